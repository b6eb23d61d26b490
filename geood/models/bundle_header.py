"""Header of a bundle: one strict schema of everything but the tensors, and its reading.

A bundle may come from anybody, and its header decides which networks are built. So nothing of it is used before all of
it has passed: types, lengths, ranges, and that its parts agree. Loading and `geood info` read it here alike, and what
does not fit is a `BundleError`. Nothing is known of networks; tensors are checked in `bundle_tensors`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from safetensors import SafetensorError, safe_open

from geood._version import __version__
from geood.config import SCORES, Config, ScoreConfig, config_from_tree
from geood.errors import BundleError, ConfigError, DataError, shown
from geood.geo.bands import Bands
from geood.models.bundle_upgrades import PLAIN_FLOWS, Upgraded, upgraded
from geood.models.calibration_record import CalibrationRecord

FORMAT = 8  # incremented whenever an older geood could not read the file
DAMAGED = "the bundle is damaged"
REMEDY = "copy or train it again"
WIDEST_PHOTO = 1_000_000  # pixels; far above any photograph
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Reach(BaseModel):
    """Reach of a network: the halo that its tiles need, and what is still lost with it.

    `halo_px` was chosen by `reach.chosen_halo`. `beyond[i]` is the share of a pixel's input gradient from beyond
    32 (i + 1) pixels, as a square distance. `seam` is the step of scores from pixel to pixel at a seam of two tiles
    with that halo, as a multiple of the step in one pass; `changed` is the share of the pixels above the threshold that
    change side. Both are None if they were not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    halo_px: Annotated[int, Field(ge=0, le=16_384, multiple_of=32)]
    beyond: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=1, max_length=512)
    seam: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    changed: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    def lost(self, halo_px: int) -> float:
        """Return the share of a pixel's input gradient that a halo cuts off; beyond what was measured, its bound."""
        steps = min(halo_px // 32, len(self.beyond))
        return self.beyond[steps - 1] if steps else 1.0

    def warning(self, halo_px: int) -> str | None:
        """Return a warning of a halo that is narrower than needed; None of any other."""
        if halo_px >= self.halo_px:
            return None
        return (
            f"predict.halo_px {halo_px} is less than the {self.halo_px} px that this network needs: "
            f"{100 * self.lost(halo_px):.1f} % of what a pixel depends on lies beyond, and seams between tiles may show"
        )


class BundleHeader(BaseModel):
    """Header of a bundle, checked as a whole; the fields are those of `ModelBundle`, with format and version."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int
    geood: str
    config: Config
    bands: InstanceOf[Bands]
    class_ids: tuple[int, ...] = Field(min_length=2)
    resolution: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    photo_width: Annotated[int, Field(ge=1, le=WIDEST_PHOTO)] | None = None
    calibration: dict[str, dict[str, Finite]]
    calibrated: ScoreConfig
    metrics: dict[str, Finite]
    offsets: dict[str, Finite]
    reach: Reach | None = None
    record: CalibrationRecord | None = None
    _written: int = PrivateAttr(FORMAT)
    _missing: tuple[str, ...] = PrivateAttr(())

    @property
    def written(self) -> int:
        """Format of the file, which is older than `format` if it was upgraded on reading."""
        return self._written

    @property
    def reads_flow(self) -> bool:
        """True if a flow in the file has the form of now; a plain one of older formats has not, and is left out."""
        return self._written >= PLAIN_FLOWS or self.config.flow.network != "plain"

    @property
    def missing(self) -> tuple[str, ...]:
        """A sentence on each thing that a bundle of an older format lacks."""
        return self._missing

    @field_validator("calibration")
    @classmethod
    def _known(cls, calibration: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for kind, thresholds in calibration.items():
            if kind not in SCORES:
                raise ValueError(f"got {shown(kind)}, which is not a score")
            for rate in thresholds:
                if not _is_share(rate):
                    raise ValueError(f"got {shown(rate)}, which is not a false-positive rate")
        return calibration

    @field_validator("offsets")
    @classmethod
    def _shares(cls, offsets: dict[str, float]) -> dict[str, float]:
        if strange := [share for share in offsets if not _is_share(share)]:
            raise ValueError(f"got {shown(strange[0])}, which is not a share of inliers")
        return offsets

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if strange := [i for i in self.class_ids if i not in self.config.data.classes]:
            raise ValueError(f"class_ids: {strange[0]} has no name in the config")
        if len(set(self.class_ids)) < len(self.class_ids):
            raise ValueError("class_ids: an id is there twice")
        if self.offsets and self.config.segmenter.outlier != "head":
            raise ValueError(f"offsets: its segmenter.outlier is {self.config.segmenter.outlier}, not head")
        return self


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def read_header(path: str | Path) -> BundleHeader:
    """Read and check the header of a bundle without its tensors.

    Raises:
        BundleError: the file is missing, not a bundle, damaged, or written by a geood with another format.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"{path}: no such bundle; give the model.safetensors that `geood train` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"{path}: not a readable safetensors file ({shown(error)}); it may be cut short, copy it again, "
            "or give the model.safetensors that `geood train` wrote"
        ) from None
    if "geood" not in metadata:
        raise BundleError(f"{path}: safetensors, but no geood bundle; give the model.safetensors of `geood train`")
    tree, written, missing = _parsed(metadata["geood"], path)
    header = _checked(tree, path)
    header._written, header._missing = written, missing
    return header


def damaged(path: Path, why: object) -> BundleError:
    """Return the error of a bundle whose contents do not fit, for `raise`."""
    return BundleError(f"{path}: {DAMAGED} ({shown(why, most=200)}); {REMEDY}")


def _parsed(text: str, path: Path) -> Upgraded:
    """Parse the JSON text, upgrade one of an older format, and refuse what cannot be."""
    try:
        tree = json.loads(text)
    except RecursionError:
        raise damaged(path, "its header is nested too deeply") from None
    except ValueError as error:
        raise damaged(path, f"its header is not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise damaged(path, f"its header is not a mapping but a {type(tree).__name__}")
    given, by = tree.get("format"), shown(tree.get("geood"))
    if type(given) is not int:
        raise damaged(path, f"its format is {shown(given)}, not a number")
    if given > FORMAT:
        raise BundleError(
            f"{path}: written by geood {by} in format {shown(given)}, this geood {__version__} reads up to {FORMAT}; "
            "upgrade geood"
        )
    if (newer := upgraded(tree, to=FORMAT)) is None:
        raise BundleError(
            f"{path}: written by geood {by} in format {shown(given)}, which this geood no longer reads; train it again"
        )
    return newer


def _checked(tree: dict[str, Any], path: Path) -> BundleHeader:
    try:
        tree["config"] = config_from_tree(tree.get("config"), source="its config")
        tree["bands"] = Bands.from_dict(tree.get("bands"))
        tree["calibrated"] = ScoreConfig.model_validate(tree.get("calibrated"))
        if tree.get("record") is not None:
            told = {"connectivity": tree["config"].predict.connectivity}  # older records do not tell, but counted so
            record = told | tree["record"] if isinstance(tree["record"], dict) else tree["record"]
            tree["record"] = CalibrationRecord.model_validate_json(json.dumps(record))
        if isinstance(tree.get("class_ids"), list):
            tree["class_ids"] = tuple(tree["class_ids"])
        if isinstance(reach := tree.get("reach"), dict) and isinstance(reach.get("beyond"), list):
            tree["reach"] = reach | {"beyond": tuple(reach["beyond"])}
        return BundleHeader.model_validate(tree)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(shown(part) for part in fault["loc"])
        raise damaged(
            path, f"its header, {place or 'as a whole'}: {fault['msg'].removeprefix('Value error, ')}"
        ) from None
    except (ConfigError, DataError) as error:
        raise damaged(path, str(error).splitlines()[0]) from None
    except RecursionError:
        raise damaged(path, "its header is nested too deeply") from None


def finite(figures: dict[str, float]) -> dict[str, float]:
    """Return the figures that are finite: JSON has no others, and a threshold of a set without pixels is none."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}
