"""What a score map is worth: pixel metrics of anomaly scores, streamed and exact, and closed-set IoU.

A `PixelCurve` counts inlier and anomaly pixels at each of the 65,536 float16 codes, in score order. Counts add up, so
tiles may come in any order and from any process and the result is the same; nothing is binned beyond float16 itself,
so average precision, AUROC and FPR95 equal those of a sort of all pixels. Definitions follow the Fishyscapes protocol
(Blum et al. 2021): pooled pixels, step-wise average precision, ties moved through together. Numpy only; no files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geood.config import IGNORE

INLIER, ANOMALY = 0, 1
_CODES = 1 << 16
_LARGEST = np.float32(65504.0)  # of float16; raw logits stay far below, but a clip must not become inf

Counts = NDArray[np.int64]


class PixelCurve:
    """The score distributions of inlier and anomaly pixels, from which all threshold-free figures follow."""

    def __init__(self) -> None:
        self._inliers: Counts = np.zeros(_CODES, np.int64)
        self._anomalies: Counts = np.zeros(_CODES, np.int64)

    def update(self, score: NDArray[np.floating], truth: NDArray[np.uint8]) -> None:
        """Count the pixels of one tile: `score` of any shape, `truth` of that shape with 0, 1 or 255 (ignored).

        Scores are rounded to float16 (about three digits), clipped to its finite range.

        Raises:
            ValueError: if shapes differ, a counted score is not finite, or `truth` holds another value.
        """
        if score.shape != truth.shape:
            raise ValueError(f"score {score.shape} and truth {truth.shape} must have one shape")
        seen = np.bincount(truth.ravel(), minlength=256)
        if seen.sum() != seen[[INLIER, ANOMALY, IGNORE]].sum():
            raise ValueError(f"truth must be 0, 1 or 255, got {np.unique(truth).tolist()}")
        counted = truth != IGNORE
        values = np.asarray(score[counted], np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"{int((~np.isfinite(values)).sum())} scores of counted pixels are not finite")
        codes, is_anomaly = _to_codes(values), truth[counted] == ANOMALY
        total = np.bincount(codes, minlength=_CODES)
        anomalies = np.bincount(codes[is_anomaly], minlength=_CODES)
        self._anomalies += anomalies
        self._inliers += total - anomalies

    def __iadd__(self, other: PixelCurve) -> PixelCurve:
        """Add the pixels of another curve to this one."""
        self._inliers += other._inliers
        self._anomalies += other._anomalies
        return self

    @property
    def positives(self) -> int:
        """Number of anomaly pixels."""
        return int(self._anomalies.sum())

    @property
    def negatives(self) -> int:
        """Number of inlier pixels."""
        return int(self._inliers.sum())

    @property
    def base_rate(self) -> float:
        """Share of anomaly pixels, which is also the average precision of a constant score; NaN without pixels."""
        return _ratio(self.positives, self.positives + self.negatives)

    @property
    def average_precision(self) -> float:
        """Step-wise area under precision over recall, in [0, 1]; NaN if there is no anomaly pixel."""
        hits, false = self._cumulated()
        gained = np.diff(hits, prepend=0)
        return _ratio(float((gained * (hits / np.maximum(hits + false, 1))).sum()), self.positives)

    @property
    def auroc(self) -> float:
        """Chance that an anomaly pixel scores above an inlier, ties half, in [0, 1]; NaN if either kind is missing."""
        below = np.cumsum(self._inliers) - 0.5 * self._inliers
        return _ratio(float((self._anomalies * below).sum()), self.positives * self.negatives)

    @property
    def fpr95(self) -> float:
        """Share of inliers at or above the highest threshold that keeps 95 % of the anomalies; NaN if undefined."""
        if not self.positives:
            return float("nan")
        hits, false = self._cumulated()
        first = int(np.argmax(hits * 20 >= self.positives * 19))  # in integers: 0.95 is not a binary fraction
        return _ratio(int(false[first]), self.negatives)

    def fpr_threshold(self, fpr: float) -> float:
        """The smallest threshold that at most a share `fpr` of the inliers exceeds (strictly); NaN without inliers.

        Needs no anomalies: this is how a bundle's thresholds are found on validation pixels. It is itself a float16
        number, and the promise is exact for the scores as they were counted, rounded to float16.
        """
        if not self.negatives:
            return float("nan")
        above = self.negatives - np.cumsum(self._inliers)
        code = int(np.argmax(above <= fpr * self.negatives))
        if not self._inliers[code]:  # only where every inlier may exceed it: the lowest score that was seen
            code = int(np.argmax(self._inliers > 0))
        return float(_from_codes(np.array([code], np.uint16))[0])

    def rates(self, threshold: float) -> dict[str, float]:
        """Recall, false-positive rate and precision of calling pixels above `threshold` (strictly) anomalies."""
        above = slice(int(_to_codes(np.array([threshold], np.float32))[0]) + 1, None)
        hits, false = int(self._anomalies[above].sum()), int(self._inliers[above].sum())
        return {
            "recall": _ratio(hits, self.positives),
            "fpr": _ratio(false, self.negatives),
            "precision": _ratio(hits, hits + false),
        }

    def _cumulated(self) -> tuple[Counts, Counts]:
        """Anomalies and inliers at or above each code that occurs, from the highest score down."""
        occurs = np.flatnonzero(self._anomalies + self._inliers)[::-1]
        return np.cumsum(self._anomalies[occurs]), np.cumsum(self._inliers[occurs])


class Confusion:
    """Counts of (true class, predicted class) over `classes` classes, and the IoU that follows."""

    def __init__(self, classes: int) -> None:
        self.counts: Counts = np.zeros((classes, classes), np.int64)

    def update(self, predicted: NDArray[np.integer], mask: NDArray[np.integer]) -> None:
        """Count the pixels of one tile; `mask` holds class indexes, 255 is ignored.

        Raises:
            ValueError: if a counted index is not below the number of classes.
        """
        classes, counted = len(self.counts), mask != IGNORE
        true, guess = mask[counted].astype(np.int64), predicted[counted].astype(np.int64)
        if true.size and not (min(true.min(), guess.min()) >= 0 and max(true.max(), guess.max()) < classes):
            raise ValueError(f"class indexes must be in 0 to {classes - 1}")
        self.counts += np.bincount(true * classes + guess, minlength=classes**2).reshape(classes, classes)

    def __iadd__(self, other: Confusion) -> Confusion:
        """Add the pixels of another matrix to this one."""
        self.counts += other.counts
        return self

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, in [0, 1]; NaN for one that is neither there nor predicted."""
        hits = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        iou = np.full(len(hits), np.nan)
        np.divide(hits, union, out=iou, where=union > 0)
        return iou

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in truth or prediction; NaN if none does."""
        iou = self.iou
        return float(iou[~np.isnan(iou)].mean()) if (~np.isnan(iou)).any() else float("nan")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _to_codes(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The rank of each value among all float16 numbers: sign-magnitude bits made monotone; -0 counts as 0."""
    halves = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16) + np.float16(0)
    bits = halves.view(np.uint16)
    return np.where(bits & 0x8000, ~bits, bits | 0x8000).astype(np.uint16)


def _from_codes(codes: NDArray[np.uint16]) -> NDArray[np.float16]:
    bits: NDArray[np.uint16] = np.where(codes & 0x8000, codes & 0x7FFF, ~codes).astype(np.uint16)
    return bits.view(np.float16)
