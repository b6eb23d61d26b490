"""Band scaling: from digital numbers (DN) to [0, 1].

The range of each band is fixed once, from the valid pixels of the training crops, and stored in the bundle. Nothing is
ever guessed from a tile, a file or a dtype, so a score means the same in every scene. This module holds a value class
and the function that fits it; it opens no files and uses no tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from geood.config import BandsConfig
from geood.errors import ConfigError, DataError, counted, shown

MOST_BANDS = 65_535  # that a raster of GDAL can have


@dataclass(frozen=True)
class Bands:
    """The bands of a model and their linear scaling from digital numbers to [0, 1].

    One entry per band: `names`; `indexes` in the scene, 1-based; `low` and `high`, the digital numbers mapped to 0 and
    1; `fill`, the scaled value of invalid pixels; `step`, the size of one digital number after scaling (0 for float
    data). `nodata` is the nodata value with which the config overrides that of the files, else None. `scene_count` is
    the number of bands, alpha excluded, that a scene must have; None: any number that includes all `indexes`. `scales`
    and `offsets` are the tags of the training images, which are never applied; empty in bundles that do not know them.
    """

    names: tuple[str, ...]
    indexes: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    fill: tuple[float, ...]
    step: tuple[float, ...]
    nodata: float | None = None
    scene_count: int | None = None
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """Number of bands used."""
        return len(self.indexes)

    def scale(self, array: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Scale digital numbers (C, H, W) to float32 in [0, 1]; invalid pixels (H, W) and NaN become `fill`."""
        out = np.empty(array.shape, np.float32)
        wide = array.dtype.itemsize > 4 or (array.dtype.kind in "iu" and array.dtype.itemsize == 4)
        whole = bool(valid.all())
        for band, scaled, low, high, fill in zip(array, out, self.low, self.high, self.fill, strict=True):
            with np.errstate(invalid="ignore", over="ignore"):
                np.subtract(band, low, out=scaled, dtype=np.float64 if wide else np.float32, casting="unsafe")
                np.multiply(scaled, np.float32(1 / (high - low)), out=scaled)
            np.clip(scaled, 0, 1, out=scaled)
            if array.dtype.kind == "f":
                scaled[~valid | ~np.isfinite(band)] = fill
            elif not whole:
                scaled[~valid] = fill
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Create from the output of `to_dict`, which may have been through a file of others.

        Raises:
            DataError: a value has another type, is not finite, or the bands do not have one of each.
        """
        try:
            fields = _Fields.model_validate_json(json.dumps(values))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            place = ".".join(["bands", *(shown(part) for part in fault["loc"])])
            raise DataError(f"{place}: {fault['msg'].removeprefix('Value error, ')}") from None
        except (TypeError, ValueError, RecursionError):
            raise DataError("bands: not a mapping of JSON values") from None
        return cls(**dict(fields))


class _Fields(BaseModel):
    """Fields of `Bands` as they may come from a file."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    names: tuple[str, ...] = Field(min_length=1)
    indexes: tuple[Annotated[int, Field(ge=1, le=MOST_BANDS)], ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    fill: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    step: tuple[Annotated[float, Field(ge=0)], ...]
    nodata: float | None
    scene_count: Annotated[int, Field(ge=1, le=MOST_BANDS)] | None
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        tags = ("scales", "offsets") if self.scales or self.offsets else ()
        lengths = {key: len(getattr(self, key)) for key in ("indexes", "low", "high", "fill", "step", *tags)}
        for key, length in lengths.items():
            if length != len(self.names):
                raise ValueError(f"{counted(len(self.names), 'name')}, and {counted(length, 'value')} under {key}")
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not (0 < high - low < math.inf and 1 / (high - low) < math.inf):
                raise ValueError(f"{shown(name)} has the range {low:g} to {high:g}, which cannot be scaled")
        return self


def bands_from_samples(
    config: BandsConfig,
    names: Sequence[str],
    *,
    indexes: Sequence[int],
    values: NDArray[Any],
    dtype: Any,
    scene_count: int | None,
) -> Bands:
    """Fit the range of each band to `values` (C, N), valid digital numbers of the training crops.

    Low and high are the percentiles of the config; if those coincide, the minimum and maximum; a constant band gets a
    range of one digital number.

    Raises:
        ConfigError: the config names a different number of bands.
        DataError: a band has no finite value.
    """
    named = tuple(config.names or names)
    if not len(named) == len(indexes) == len(values):
        raise ConfigError(
            f"bands.names lists {len(named)} ({', '.join(named)}), but "
            f"{counted(len(indexes), 'band is', 'bands are')} used; name each of them"
        )
    low, high, fill = [], [], []
    for name, band in zip(named, np.asarray(values, np.float64), strict=True):
        finite = band[np.isfinite(band)]
        if not finite.size:
            raise DataError(f"band {name}: no valid pixel in the training crops; check the images and bands.nodata")
        bottom, top = (float(v) for v in np.percentile(finite, [config.low_percentile, config.high_percentile]))
        if top <= bottom:
            bottom, top = float(finite.min()), float(finite.max())
        if top <= bottom:
            top = bottom + max(1.0, abs(bottom) * 1e-6)
        low.append(bottom)
        high.append(top)
        fill.append(float(np.clip((finite - bottom) / (top - bottom), 0, 1).mean()))
    whole = np.issubdtype(np.dtype(dtype), np.integer)
    step = tuple(1 / (b - a) if whole else 0.0 for a, b in zip(low, high, strict=True))
    return Bands(
        names=named,
        indexes=tuple(indexes),
        low=tuple(low),
        high=tuple(high),
        fill=tuple(fill),
        step=step,
        nodata=config.nodata,
        scene_count=scene_count,
    )
