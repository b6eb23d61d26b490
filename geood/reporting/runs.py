"""Run folders of `geood train`, read for people: history of the figures, confusion, thresholds, split, config.

A run may be unfinished, or of an older geood that wrote fewer files: what is not there stays None or empty. Nothing is
computed that training did not measure. Which page or line it goes to is not known here.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from geood.config import Config, load_config, title_of
from geood.errors import DataError, shown
from geood.models import BundleHeader, read_header

STAGES = ("segmenter", "flow", "joint", "head")
IDENTITY = 12  # hexadecimal digits of a bundle's identity
LONGEST = 300  # characters of a value of the config


class Point(NamedTuple):
    """Value of a figure after a number of steps of a stage."""

    step: int
    value: float


@dataclass(frozen=True)
class Run:
    """Run folder: config, figures by (stage, figure), and what training measured at its end.

    `header` and `identity` are of the bundle (None, empty: not finished). `confusion` (K, K) has the pixels of each
    true class by predicted class, in the order of `classes`; None in runs of an older geood. `pictures` are the last of
    each stage, `losses` dense where the run keeps them.
    """

    folder: Path
    config: Config
    history: dict[tuple[str, str], list[Point]]
    header: BundleHeader | None
    identity: str
    classes: tuple[str, ...]
    confusion: NDArray[np.int64] | None
    versions: dict[str, str]
    pictures: dict[str, Path]
    losses: dict[str, list[Point]] = field(default_factory=dict)

    @property
    def stages(self) -> list[str]:
        """Stages that have figures, in their order."""
        return [stage for stage in STAGES if any(name == stage for name, _ in self.history)]

    @property
    def third(self) -> str | None:
        """The stage that learned from negatives, if it ran."""
        return next((stage for stage in ("head", "joint") if stage in self.stages), None)

    def last(self, stage: str, figure: str) -> float | None:
        """Return the last value of a figure of a stage; None if there is none."""
        points = self.history.get((stage, figure))
        return points[-1].value if points else None

    @property
    def miou(self) -> float | None:
        """Mean IoU of the classes on the validation ground in the last stage that measured it."""
        found = [value for stage in self.stages if (value := self.last(stage, "val/miou")) is not None]
        return found[-1] if found else None

    @property
    def iou(self) -> dict[str, float]:
        """IoU of each class on the validation ground, by its name; NaN of a class that does not occur there."""
        return {} if self.confusion is None else dict(zip(self.classes, iou_of(self.confusion), strict=True))


def iou_of(confusion: NDArray[np.int64]) -> list[float]:
    """Return the IoU of each class from a confusion matrix (K, K); NaN where a class does not occur."""
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return [float(h / u) if u else math.nan for h, u in zip(hits, union, strict=True)]


def read_run(folder: Path, *, losses: bool = True) -> Run:
    """Read a run folder; `losses` asks for the dense ones of TensorBoard too.

    Raises:
        ConfigError: its config.yaml cannot be read.
        DataError: it is no run, or one of its files is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder}: no run of geood, it has no config.yaml; give the folder that `geood train` made")
    config = load_config(folder / "config.yaml")
    bundle_path = folder / "model.safetensors"
    header = read_header(bundle_path) if bundle_path.is_file() else None
    classes, confusion = _confusion(folder / "confusion.csv")
    return Run(
        folder=folder,
        config=config,
        history=_history(folder / "metrics.csv"),
        header=header,
        identity=identity_of(bundle_path) if header else "",
        classes=classes,
        confusion=confusion,
        versions=_versions(folder / "versions.json"),
        pictures=_last_pictures(folder / "samples"),
        losses={stage: found for stage in STAGES if (found := _dense(folder, stage))} if losses else {},
    )


def identity_of(bundle_path: Path) -> str:
    """Return the identity of a bundle, by which its maps name it."""
    with bundle_path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:IDENTITY]


def _history(path: Path) -> dict[tuple[str, str], list[Point]]:
    history: dict[tuple[str, str], list[Point]] = {}
    if not path.is_file():
        return history
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                point = Point(int(row["step"]), float(row["value"]))
                history.setdefault((row["stage"], row["figure"]), []).append(point)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: is damaged ({shown(error)}); restore it, or remove it to go on without") from None
    return history


def _confusion(path: Path) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    if not path.is_file():
        return (), None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file))
        counts = np.array([[int(cell) for cell in row[1:]] for row in rows], np.int64)
        if counts.shape != (len(head) - 1,) * 2 or (counts < 0).any():
            raise ValueError("it is no square table of counts")
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise DataError(f"{path}: is damaged ({shown(error)}); remove it to go on without") from None
    return tuple(head[1:]), counts


def _versions(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in given.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({shown(error)}); remove it to go on without") from None


def _last_pictures(folder: Path) -> dict[str, Path]:
    """Return the last picture of negatives of each stage."""
    return {stage: found[-1] for stage in STAGES if (found := sorted(folder.glob(f"{stage}_*.png")))}


def _dense(run: Path, stage: str) -> list[Point]:
    """Return the losses of a stage every few steps, as TensorBoard's files keep them; empty where there are none."""
    folder = run / "tensorboard" / stage
    if not any(folder.glob("events*")):
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        return []
    last = {event.step: float(event.value) for event in events.Scalars("train/loss")}  # resumed, a run repeats some
    return [Point(step + 1, last[step]) for step in sorted(last)]


class Threshold(NamedTuple):
    """Threshold of the model's score: promised share of inliers above it, and the interval of it on other ground."""

    rate: float
    value: float
    low: float | None
    high: float | None
    default: bool


def thresholds_of(header: BundleHeader) -> list[Threshold]:
    """Return the thresholds of a bundle's own score, the strictest first."""
    kind, given = header.config.score.kind, header.calibration.get(header.config.score.kind, {})
    intervals = header.record.intervals.get(kind, {}) if header.record else {}
    default = str(header.config.score.fpr)
    rows = []
    for rate, value in given.items():
        low, high = intervals.get(rate) or (None, None)
        rows.append(Threshold(float(rate), value, low, high, rate == default))
    return sorted(rows, key=lambda row: row.rate)


class KeyChange(NamedTuple):
    """Key of a config with its value and the default; `default` is None for a key that has none."""

    key: str
    value: str
    default: str | None


def config_differences(config: Config) -> list[KeyChange]:
    """Return the keys of a config that are not at their defaults, in the order of the sections."""
    return [row for name in type(config).model_fields for row in _of_section(name, getattr(config, name))]


def _of_section(name: str, section: Any) -> Iterator[KeyChange]:
    if not isinstance(section, BaseModel):
        return
    for key, field_info in type(section).model_fields.items():
        value = getattr(section, key)
        if field_info.is_required():
            yield KeyChange(f"{name}.{key}", _told(value), None)
            continue
        default = field_info.get_default(call_default_factory=True, validated_data={})
        if value != default:
            yield KeyChange(f"{name}.{key}", _told(value), _told(default))


def _told(value: Any) -> str:
    text = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else "" if value is None else text
    return shown(text, most=LONGEST) if text else "none"


def run_lines(folder: Path) -> list[str]:
    """Return what a finished training has to say, as lines for a terminal: mIoU, classes, thresholds.

    Raises:
        DataError: a file of the run is damaged.
    """
    run = read_run(folder, losses=False)
    lines = []
    if run.miou is not None:
        lines.append(f"mIoU       {100 * run.miou:.1f} % on the validation ground")
    if run.iou:
        each = ", ".join(f"{name} {'-' if math.isnan(iou) else f'{100 * iou:.0f}'}" for name, iou in run.iou.items())
        bare = "; -: not on that ground" if any(map(math.isnan, run.iou.values())) else ""
        lines.append(f"classes    {each} (IoU in %{bare})")
    if run.header is not None:
        lines += [_threshold_line(run.header, row) for row in thresholds_of(run.header)]
    return lines


def _threshold_line(header: BundleHeader, row: Threshold) -> str:
    interval = (
        ""
        if row.low is None or row.high is None
        else f" ({100 * row.low:.3g} to {100 * row.high:.3g} % on other ground)"
    )
    name = f", score {title_of(header.config.score.kind)}: the default" if row.default else ""
    return f"threshold  {row.value:.4g}: {100 * row.rate:g} % of ordinary ground scores higher{interval}{name}"
