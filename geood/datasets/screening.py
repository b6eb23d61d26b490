"""Screening of drawn crops: rejects those with an anomaly pixel, too few valid pixels or no label.

A crop with a single anomaly pixel is rejected whole (masking only the pixels would still show the network the object's
surroundings and rim); so is one with too little data, or without a label, since its content is unknown. The crops that
are kept provide the values for band statistics. Rejections are counted by reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from geood.config import Config
from geood.constants import IGNORE
from geood.datasets.samples import UNSTATED_ID, CropPixels
from geood.errors import DataError, counted
from geood.geo.labels.reading import mask_hint
from geood.progress import Progress

log = logging.getLogger("geood")

Crop = TypeVar("Crop")
EXAMPLES = 8  # crops with an anomaly that a report keeps, to be looked at
HOPELESS = 500  # crops with data of which none is kept: with 95 % certainty fewer than 6 in 1,000 would be
STATISTICS_VALUES = 2_000_000  # band values kept at most; thousands per band still lie beyond a percentile of 0.5 %


@dataclass
class Screening:
    """Counts of drawn crops by outcome, and of label pixels by id (crops overlap; a pixel counts once per crop)."""

    drawn: int = 0
    kept: int = 0
    dropped_anomaly: int = 0
    dropped_invalid: int = 0
    dropped_unlabelled: int = 0
    validation_crops: int = 0
    unlabelled_pixels: int = 0
    unknown_ids: dict[int, int] = field(default_factory=dict)
    class_pixels: dict[int, int] = field(default_factory=dict)
    with_anomaly: list[Any] = field(default_factory=list, repr=False)  # the first crops that were left out for it

    def __str__(self) -> str:
        return (
            f"{counted(self.drawn, 'training crop')} drawn: {self.kept} kept; left out: {self.dropped_anomaly} with an "
            f"anomaly pixel, {self.dropped_invalid} with too little data, {self.dropped_unlabelled} without a label; "
            f"{counted(self.validation_crops, 'validation crop')}"
        )


def screen(
    drawn: Sequence[Crop], read: Callable[[Crop], CropPixels], *, config: Config
) -> tuple[list[Crop], NDArray[np.float32], Screening]:
    """Read drawn crops until there are enough; return those to train on, some of their valid values, and a report.

    At most `data.crops` of those with enough data are looked at, and fewer if none of the first `HOPELESS` is of use.
    Values are float32 (C, N), digital numbers; kept crops stay in the order they were drawn.
    """
    data, report = config.data, Screening()
    kept: list[Crop] = []
    values: list[NDArray[np.float32]] = []
    counts: Counter[int] = Counter()
    unknown: Counter[int] = Counter()
    rng = np.random.default_rng([config.train.seed, 3])
    with Progress("screening crops", data.crops) as progress:
        for crop in drawn:
            if report.drawn - report.dropped_invalid == data.crops or (not kept and _is_hopeless(report)):
                break
            report.drawn += 1
            pixels = read(crop)
            if not pixels.valid.any() or pixels.valid.mean() < data.min_valid:
                report.dropped_invalid += 1
                continue
            progress.advance(kept=len(kept))
            ids = _count(pixels.ids[pixels.valid])
            report.unlabelled_pixels += ids.pop(IGNORE, 0)
            known = {*data.classes, UNSTATED_ID}
            unknown.update({i: n for i, n in ids.items() if i not in known and i not in data.anomaly})
            if any(i in ids for i in data.anomaly):
                report.dropped_anomaly += 1
                report.with_anomaly += [crop] if len(report.with_anomaly) < EXAMPLES else []
            elif not any(i in ids for i in known):
                report.dropped_unlabelled += 1
            else:
                kept.append(crop)
                counts.update({i: n for i, n in ids.items() if i in data.classes})
                inside = pixels.image[:, pixels.valid]
                take = max(1, STATISTICS_VALUES // (inside.shape[0] * data.crops))
                values.append(inside[:, rng.integers(0, inside.shape[1], min(take, inside.shape[1]))])
    report.kept = len(kept)
    report.unknown_ids = dict(sorted(unknown.items()))
    report.class_pixels = {i: counts[i] for i in sorted(data.classes)}
    return kept, np.concatenate(values, axis=1) if values else np.empty((0, 0), np.float32), report


def _is_hopeless(report: Screening) -> bool:
    """Return whether so many crops were drawn, none of them kept, that further ones would bring next to nothing."""
    return report.drawn - report.dropped_invalid >= HOPELESS or report.drawn >= 4 * HOPELESS


def labelled(grid: Sequence[Crop], read: Callable[[Crop], CropPixels], *, config: Config) -> list[Crop]:
    """Choose at most `validation_crops` of the validation grid that hold a label and enough data, evenly spread.

    If none has enough data, those with less are taken.

    Raises:
        DataError: no crop that was read holds a labelled pixel of a class.
    """
    data = config.data
    full: list[Crop] = []
    some: list[Crop] = []
    for crop in _thinned(grid, 4 * data.validation_crops):
        pixels = read(crop)
        if np.isin(pixels.ids, list(data.classes)).any():
            (full if pixels.valid.mean() >= data.min_valid else some).append(crop)
    if not full and not some:
        raise DataError(
            f"none of the {len(grid)} validation crops holds a labelled pixel of a class; make data.block_m smaller or "
            "data.validation larger, or try another train.seed"
        )
    return _thinned(full or some, data.validation_crops)


def _thinned(crops: Sequence[Crop], most: int) -> list[Crop]:
    if len(crops) <= most:
        return list(crops)
    return [crops[i] for i in np.linspace(0, len(crops) - 1, most).round().astype(int)]


def _count(ids: NDArray[np.int64]) -> dict[int, int]:
    """Count the pixels of each id, 255 included."""
    if ids.min() >= 0 and ids.max() < 65536:
        counts = np.bincount(ids.ravel())
        return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
    distinct, counts = np.unique(ids, return_counts=True)
    return {int(i): int(n) for i, n in zip(distinct, counts, strict=True)}


def why_nothing(report: Screening, config: Config) -> str:
    """Return the error message for a screening that kept no crop: each reason with its remedy."""
    data = config.data
    reasons = {
        f"hold an anomaly pixel (ids {[*data.anomaly]}): make data.crop_px smaller, or label more ground without "
        "anomalies": report.dropped_anomaly,
        f"hold data in less than {100 * data.min_valid:.0f} % of their pixels: make data.crop_px or data.min_valid "
        "smaller, or data.block_m larger": report.dropped_invalid,
        f"hold no pixel of the classes {sorted(data.classes)}; their labels hold {report.unknown_ids or 'nothing'}: "
        f"check data.classes and the labels{_hint(report)}": report.dropped_unlabelled,
    }
    lines = [f"{count} {reason}" for reason, count in reasons.items() if count]
    return f"none of the {report.drawn} crops drawn can be trained on: {'; '.join(lines)}"


def report_screening(report: Screening, config: Config) -> None:
    """Log how many crops were kept and rejected; warn of ids unknown to the config, and of classes in no crop."""
    log.info("%s", report)
    if report.unknown_ids:
        shown = ", ".join(f"{i} ({counted(n, 'pixel')})" for i, n in report.unknown_ids.items())
        log.warning("label ids %s are neither in data.classes nor in data.anomaly and are ignored", shown)
    for class_id, pixels in report.class_pixels.items():
        if not pixels:
            name = config.data.classes[class_id]
            log.warning("class %d (%s) occurs in no training crop%s", class_id, name, _hint(report))


def _hint(report: Screening) -> str:
    held = [i for i, pixels in (report.class_pixels | report.unknown_ids).items() if pixels]
    return mask_hint([*held, IGNORE] if report.unlabelled_pixels else held)
