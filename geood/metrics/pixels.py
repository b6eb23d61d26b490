"""Streaming pixel metrics of anomaly scores: average precision, AUROC, FPR at a recall, best F1, thresholds.

A `PixelCurve` counts inlier and anomaly pixels at each of the 65,536 float16 codes, in score order. Counts are
additive, so tiles may come in any order and from any process with the same result. There is no binning beyond float16
itself, so average precision, AUROC and FPR95 equal those of a sort of all pixels. Definitions follow the Fishyscapes
protocol (Blum et al. 2021): pooled pixels, step-wise average precision, ties at one threshold. The definitions of other
benchmarks are in `metrics.protocols`. NumPy only; no files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geood.constants import ANOMALY, IGNORE, INLIER
from geood.metrics.curve import Counts, Curve, FprRule, curve_of_counts, ratio

_CODES = 1 << 16
_BLOCK_PX = 1 << 18  # pixels processed at once: fits into the cache, and memory does not grow with the image
_LARGEST = np.float32(65504.0)  # of float16; raw logits stay far below, but a clip must not become inf


def checked_truth(score: NDArray[Any], truth: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return `truth` as uint8 after checking its shape and values: 0 (inlier), 1 (anomaly) or 255 (ignored).

    Raises:
        ValueError: the shapes of `score` and `truth` differ, or `truth` holds another value.
    """
    if score.shape != truth.shape:
        raise ValueError(f"score {score.shape} and truth {truth.shape} must have one shape")
    small = truth.astype(np.uint8, copy=False)
    flat, starts = small.reshape(-1), range(0, small.size, _BLOCK_PX)
    known = all((flat[start : start + _BLOCK_PX] + np.uint8(1)).max() <= ANOMALY + 1 for start in starts)
    if not known or (small is not truth and (small != truth).any()):
        raise ValueError(f"truth must be 0, 1 or 255, got {np.unique(truth).tolist()}")
    return small


def refuse_not_finite(score: NDArray[Any], counted: NDArray[np.bool_]) -> None:
    """Check that scores are finite where `counted` (same shape) is True; other pixels may hold anything.

    Raises:
        ValueError: a counted score is NaN or infinite.
    """
    finite = np.isfinite(score)
    wrong = 0 if finite.all() else int((counted & ~finite).sum())
    if wrong:
        raise ValueError(f"{wrong} scores of counted pixels are not finite")


class PixelCurve:
    """Score histograms of inlier and anomaly pixels, from which all threshold-free metrics follow."""

    def __init__(self) -> None:
        self._inliers: Counts = np.zeros(_CODES, np.int64)
        self._anomalies: Counts = np.zeros(_CODES, np.int64)

    def update(self, score: NDArray[np.floating], truth: NDArray[np.uint8]) -> None:
        """Add the pixels of one tile.

        Args:
            score: any shape, finite where it counts; rounded to float16 (about three digits) and clipped to its range.
            truth: same shape; 0 (inlier), 1 (anomaly) or 255 (ignored).

        Raises:
            ValueError: shapes differ, a counted score is not finite, or `truth` holds another value.
        """
        truth = checked_truth(score, truth)
        inliers, anomalies = _count_bits(score, truth)
        if (inliers + anomalies)[_NOT_FINITE].any():
            refuse_not_finite(score, truth != IGNORE)
            inliers, anomalies = _count_bits(np.clip(score, -_LARGEST, _LARGEST), truth)
        self._inliers += inliers[_BITS_IN_ORDER]
        self._anomalies += anomalies[_BITS_IN_ORDER]

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
        return ratio(self.positives, self.positives + self.negatives)

    @property
    def curve(self) -> Curve:
        """Curve over all scores that occur, from which the metrics below are read."""
        scores, inliers, anomalies = self.distribution()
        return curve_of_counts(scores, inliers=inliers, anomalies=anomalies)

    @property
    def average_precision(self) -> float:
        """Step-wise area under the precision-recall curve, in [0, 1]; NaN if there is no anomaly pixel."""
        return self.curve.average_precision

    @property
    def auroc(self) -> float:
        """Area under the ROC curve, ties counted half, in [0, 1]; NaN if there are no anomaly or no inlier pixels."""
        return self.curve.auroc

    @property
    def fpr95(self) -> float:
        """False-positive rate at the highest threshold with a recall of at least 0.95, in [0, 1]; NaN if undefined."""
        return self.fpr_at(0.95)

    def fpr_at(self, recall: float = 0.95, rule: FprRule = "first_ge") -> float:
        """Return the false-positive rate at a recall by a rule of `Curve.fpr_at`, in [0, 1]; NaN if undefined."""
        return self.curve.fpr_at(recall, rule)

    @property
    def best_f1(self) -> float:
        """Largest F1 over all thresholds, in [0, 1]; NaN if there is no anomaly pixel."""
        return self.curve.best_f1()[0]

    @property
    def best_f1_threshold(self) -> float:
        """Threshold with the best F1 if pixels *strictly above* it are positive, as in `rates`; NaN without anomalies.

        It is the float16 number just below the lowest positive score, so that a score map of two values is split
        between them.
        """
        return float(np.nextafter(np.float16(self.curve.best_f1()[1]), np.float16(-np.inf)))

    def distribution(self) -> tuple[NDArray[np.float16], Counts, Counts]:
        """Return the distinct scores, ascending, and the inlier and anomaly pixels at each: three arrays (n,)."""
        occurs = np.flatnonzero(self._anomalies + self._inliers)
        return _from_codes(occurs.astype(np.uint16)), self._inliers[occurs], self._anomalies[occurs]

    def fpr_threshold(self, fpr: float) -> float:
        """Return the smallest threshold that at most a share `fpr` of the inliers exceeds; NaN without inliers.

        It needs no anomalies: a bundle's thresholds are calibrated in this way on validation pixels. The threshold is a
        float16 number, and the guarantee is exact for scores rounded to float16 and compared with `>`.
        """
        if not self.negatives:
            return float("nan")
        above = self.negatives - np.cumsum(self._inliers)
        code = int(np.argmax(above <= fpr * self.negatives))
        if not self._inliers[code]:  # only if every inlier may exceed it: take the lowest score
            code = int(np.argmax(self._inliers > 0))
        return float(_from_codes(np.array([code], np.uint16))[0])

    def rates(self, threshold: float) -> dict[str, float]:
        """Return `recall`, `fpr` and `precision`, in [0, 1] or NaN, of pixels strictly above `threshold`."""
        above = slice(int(_to_codes(np.array([threshold], np.float32))[0]) + 1, None)
        hits, false = int(self._anomalies[above].sum()), int(self._inliers[above].sum())
        return {
            "recall": ratio(hits, self.positives),
            "fpr": ratio(false, self.negatives),
            "precision": ratio(hits, hits + false),
        }


def _count_bits(score: NDArray[np.floating], truth: NDArray[np.uint8]) -> tuple[Counts, Counts]:
    """Return the numbers of inliers and anomalies at each float16 bit pattern, (65536,) each, -0 counted as 0.

    Truth and bit pattern are combined into one index, so that the pass over the pixels neither gathers nor branches.
    """
    flat_score, flat_truth = score.reshape(-1), truth.reshape(-1)
    counts = np.zeros((3, _CODES), np.int64)
    for start in range(0, flat_score.size, _BLOCK_PX):
        block = slice(start, start + _BLOCK_PX)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks for infinities
            halves = _to_halves(flat_score[block])
        index = (flat_truth[block] + np.uint8(1)).astype(np.int64)  # 255 wraps around to 0
        index <<= 16
        index |= halves.view(np.uint16)
        counts += np.bincount(index, minlength=counts.size).reshape(counts.shape)
    counts[:, 0] += counts[:, 0x8000]
    counts[:, 0x8000] = 0
    return counts[INLIER + 1], counts[ANOMALY + 1]


def _to_halves(score: NDArray[np.floating]) -> NDArray[np.float16]:
    return score if score.dtype == np.float16 else score.astype(np.float32, copy=False).astype(np.float16)


def _to_codes(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the rank of each value among all float16 numbers: sign-magnitude bits made monotonic; -0 counts as 0."""
    halves = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16) + np.float16(0)
    bits = halves.view(np.uint16)
    return np.where(bits & 0x8000, ~bits, bits | 0x8000).astype(np.uint16)


def _from_codes(codes: NDArray[np.uint16]) -> NDArray[np.float16]:
    bits: NDArray[np.uint16] = np.where(codes & 0x8000, codes & 0x7FFF, ~codes).astype(np.uint16)
    return bits.view(np.float16)


_BITS_IN_ORDER = _from_codes(np.arange(_CODES, dtype=np.uint16)).view(np.uint16)  # ascending by score
_NOT_FINITE = ~np.isfinite(np.arange(_CODES, dtype=np.uint16).view(np.float16))
