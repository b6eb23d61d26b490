"""Cumulative score curve, from which average precision, AUROC, FPR at a recall and best F1 are read.

A `Curve` holds the integer numbers of anomaly and inlier pixels that score at or above each score, so the metrics of a
data set do not depend on the order of its pixels. It knows nothing of images, labels or benchmarks: `metrics.pixels`
fills it from counts of float16 codes, `metrics.protocols` from exact scores or a benchmark's own bins, and the
benchmarks' definitions of FPR95 differ only in the rule that picks the point. Average precision is the step-wise sum
throughout: the trapezoidal rule interpolates between points that no threshold reaches and overrates scores with many
ties.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
FprRule = Literal["first_ge", "first_gt", "closest", "interp"]
NAN = float("nan")


@dataclass(frozen=True)
class Curve:
    """Numbers of anomaly and inlier pixels at or above each score: n points, the last of which counts every pixel.

    A point may be left out where only inliers lie between its neighbours: no metric here changes by it.

    Attributes:
        scores: (n,), distinct and descending.
        hits: (n,), int64, anomaly pixels that score at or above each (true positives).
        false_alarms: (n,), int64, inlier pixels that score at or above each (false positives).
    """

    scores: NDArray[np.floating]
    hits: Counts
    false_alarms: Counts

    @property
    def positives(self) -> int:
        """Number of anomaly pixels."""
        return int(self.hits[-1]) if len(self.hits) else 0

    @property
    def negatives(self) -> int:
        """Number of inlier pixels."""
        return int(self.false_alarms[-1]) if len(self.hits) else 0

    @property
    def average_precision(self) -> float:
        """Step-wise area under the precision-recall curve, in [0, 1]; NaN if there is no anomaly pixel."""
        gained = np.diff(self.hits, prepend=0)
        precision = self.hits / np.maximum(self.hits + self.false_alarms, 1)
        return ratio(float((gained * precision).sum()), self.positives)

    @property
    def auroc(self) -> float:
        """Area under the ROC curve, ties counted half, in [0, 1]; NaN if there are no anomaly or no inlier pixels."""
        alarmed = np.diff(self.false_alarms, prepend=0)
        beaten = np.diff(self.hits, prepend=0) * (self.negatives - self.false_alarms + 0.5 * alarmed)
        return ratio(float(beaten.sum()), self.positives * self.negatives)

    def fpr_at(self, recall: float = 0.95, rule: FprRule = "first_ge") -> float:
        """Return the false-positive rate at a recall, in [0, 1]; NaN if there are no anomaly or no inlier pixels.

        The curve is a step function and seldom passes through `recall` exactly; benchmarks pick the point by different
        rules:

        - `first_ge`: the highest threshold with at least this recall (Fishyscapes, SegmentMeIfYouCan);
        - `first_gt`: the highest threshold with a greater recall (DenseHybrid);
        - `closest`: the threshold with the nearest recall; the lowest of equally near ones, so that a plateau is read
          at its worst end (CAOS). Distances are compared in float64 as there, where 0.9 is nearer to 0.95 than 1 is;
        - `interp`: linear interpolation between the two neighbouring points, a plateau again at its worst end.

        The first two compare integers, because 0.95 is not a binary fraction.

        Raises:
            ValueError: `rule` is unknown, or `recall` is not above 0 and at most 1 (below 1 for `first_gt`).
        """
        if rule not in get_args(FprRule):
            raise ValueError(f"rule must be one of {', '.join(get_args(FprRule))}, got {rule!r}")
        if not 0 < recall <= 1 or (rule == "first_gt" and recall == 1):
            raise ValueError(f"recall must be above 0 and at most 1 (below 1 for first_gt), got {recall}")
        if not (self.positives and self.negatives):
            return NAN
        if rule == "interp":
            found, alarmed = self.hits / self.positives, self.false_alarms / self.negatives
            return float(np.interp(recall, np.append(0.0, found), np.append(0.0, alarmed)))
        if rule == "closest":
            full = int(np.searchsorted(self.hits, self.positives))
            upwards = np.abs(self.hits[full::-1] / self.positives - recall)
            return int(self.false_alarms[full - int(np.argmin(upwards))]) / self.negatives
        share = Fraction(str(recall)).limit_denominator(1_000_000)
        side: Literal["left", "right"] = "left" if rule == "first_ge" else "right"
        point = np.searchsorted(self.hits * share.denominator, self.positives * share.numerator, side)
        return int(self.false_alarms[point]) / self.negatives

    def best_f1(self) -> tuple[float, float]:
        """Return the largest F1 = 2 TP / (2 TP + FP + FN) and its threshold; both NaN if there is no anomaly pixel.

        Pixels *at or above* the threshold are positive; of several thresholds with this F1 the highest is returned.
        """
        if not self.positives:
            return NAN, NAN
        f1 = 2 * self.hits / (self.hits + self.false_alarms + self.positives)
        best = int(np.argmax(f1))
        return float(f1[best]), float(self.scores[best])

    def precision_recall(self, most: int = 200) -> list[tuple[float, float, float]]:
        """Return points of the curve as (threshold, recall, precision): about `most`, evenly spread over the recall.

        Empty if there is no anomaly pixel. Pixels *at or above* a threshold are positive.
        """
        if not self.positives:
            return []
        wanted = np.linspace(0, self.positives, most)
        at = np.unique(np.clip(np.searchsorted(self.hits, wanted), 0, len(self.hits) - 1))
        hits, found = self.hits[at], self.hits[at] + self.false_alarms[at]
        columns = self.scores[at], hits / self.positives, hits / np.maximum(found, 1)
        return list(zip(*(np.asarray(column, float).tolist() for column in columns), strict=True))

    def without_collinear(self) -> Curve:
        """Drop points that are collinear with their neighbours, as scikit-learn's `roc_curve` does by default.

        The areas do not change; a rule that picks the first point past a recall may pick a later one.
        """
        if len(self.hits) <= 2:
            return self
        turns = (np.diff(self.hits, 2) != 0) | (np.diff(self.false_alarms, 2) != 0)
        keep = np.concatenate([[True], turns, [True]])
        return Curve(self.scores[keep], self.hits[keep], self.false_alarms[keep])


def curve_of_scores(inliers: NDArray[np.floating], anomalies: NDArray[np.floating]) -> Curve:
    """Compute the exact curve of finite scores of inliers (n,) and anomalies (m,), of one dtype, by sorting.

    Only points that add an anomaly and those just before them are kept. That is all that the metrics need, and far
    fewer than the pixels of a data set with rare anomalies.
    """
    inliers, anomalies = np.sort(inliers), np.sort(anomalies)
    next_above = np.searchsorted(inliers, anomalies, "right")
    before = inliers[next_above[next_above < len(inliers)]]
    scores = np.unique(np.concatenate([anomalies, before, inliers[:1]]))[::-1]
    hits = len(anomalies) - np.searchsorted(anomalies, scores, "left")
    false_alarms = len(inliers) - np.searchsorted(inliers, scores, "left")
    return Curve(scores, hits.astype(np.int64), false_alarms.astype(np.int64))


def curve_of_counts(scores: NDArray[np.floating], *, inliers: Counts, anomalies: Counts) -> Curve:
    """Compute the curve from numbers of `inliers` and `anomalies` (n,), int64, at `scores` (n,).

    Scores may come in any order and repeat; equal scores make one point.
    """
    distinct, where = np.unique(scores, return_inverse=True)
    hits, false = np.zeros(len(distinct), np.int64), np.zeros(len(distinct), np.int64)
    np.add.at(hits, where, anomalies)
    np.add.at(false, where, inliers)
    return Curve(distinct[::-1], np.cumsum(hits[::-1]), np.cumsum(false[::-1]))


def ratio(part: float, whole: float) -> float:
    """Return `part` / `whole`; NaN if `whole` is 0."""
    return part / whole if whole else NAN
