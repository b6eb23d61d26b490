"""The curve that every threshold-free figure is read from: how many anomalies and inliers score at or above each score.

A `Curve` holds whole numbers, so the figures of a data set do not depend on the order its pixels came in. It knows
nothing of images, labels or benchmarks: `metrics` fills it from counts of float16 codes, `protocols` from the exact
scores or from a benchmark's own bins, and what those benchmarks call FPR95 differs only in the rule by which the point
is picked. Average precision is the step-wise sum throughout: the trapezoid under precision and recall interpolates
between points that no threshold reaches and flatters scores with many ties.
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
    """Points (n,) from the highest score down; the last one counts every pixel.

    `scores` are distinct and descend; `hits` and `false_alarms` are the anomalies and the inliers that score at or
    above each. A point may be left out where only inliers lie between its neighbours: no figure here changes by it.
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
        """Step-wise area under precision over recall, in [0, 1]; NaN if there is no anomaly pixel."""
        gained = np.diff(self.hits, prepend=0)
        precision = self.hits / np.maximum(self.hits + self.false_alarms, 1)
        return ratio(float((gained * precision).sum()), self.positives)

    @property
    def auroc(self) -> float:
        """Chance that an anomaly pixel scores above an inlier, ties half, in [0, 1]; NaN if either kind is missing."""
        alarmed = np.diff(self.false_alarms, prepend=0)
        beaten = np.diff(self.hits, prepend=0) * (self.negatives - self.false_alarms + 0.5 * alarmed)
        return ratio(float(beaten.sum()), self.positives * self.negatives)

    def fpr_at(self, recall: float = 0.95, rule: FprRule = "first_ge") -> float:
        """The share of inliers called anomalies where the share of anomalies found is `recall`; NaN if undefined.

        The curve is made of steps and seldom passes through `recall` itself; benchmarks differ in what they read then:

        - `first_ge`: the highest threshold with at least this recall (Fishyscapes, SegmentMeIfYouCan);
        - `first_gt`: the highest threshold with more than it (DenseHybrid);
        - `closest`: the threshold whose recall is nearest; the lower one of equally near ones, so that a plateau is
          read at its worst end (CAOS). Nearness is compared in float64 as there, where 0.9 is nearer to 0.95 than 1 is;
        - `interp`: on the straight line between the two points around it, a plateau again at its worst end.

        The first two compare in whole numbers, as 0.95 is not a binary fraction.

        Raises:
            ValueError: if `rule` is unknown, or `recall` is not above 0 and at most 1 (below 1 for `first_gt`).
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
        """The largest F1 = 2 TP / (2 TP + FP + FN), and the lowest score that is called an anomaly there.

        Called are the pixels *at or above* that score; of equal F1 the highest score is taken. NaN twice if there is
        no anomaly pixel.
        """
        if not self.positives:
            return NAN, NAN
        f1 = 2 * self.hits / (self.hits + self.false_alarms + self.positives)
        best = int(np.argmax(f1))
        return float(f1[best]), float(self.scores[best])

    def without_collinear(self) -> Curve:
        """The curve without the points inside a run of equal steps, as scikit-learn's `roc_curve` hands it out.

        The areas stay as they are; a rule that takes the first point past some recall may take a later one.
        """
        if len(self.hits) <= 2:
            return self
        turns = (np.diff(self.hits, 2) != 0) | (np.diff(self.false_alarms, 2) != 0)
        keep = np.concatenate([[True], turns, [True]])
        return Curve(self.scores[keep], self.hits[keep], self.false_alarms[keep])


def curve_of_scores(inliers: NDArray[np.floating], anomalies: NDArray[np.floating]) -> Curve:
    """The exact curve of two lists of finite scores, (n,) and (m,) of one dtype, by sorting each.

    Its points are those where an anomaly is gained and those just before, which is all that the figures need: far
    fewer than the pixels of a data set whose anomalies are rare.
    """
    inliers, anomalies = np.sort(inliers), np.sort(anomalies)
    next_above = np.searchsorted(inliers, anomalies, "right")
    before = inliers[next_above[next_above < len(inliers)]]
    scores = np.unique(np.concatenate([anomalies, before, inliers[:1]]))[::-1]
    hits = len(anomalies) - np.searchsorted(anomalies, scores, "left")
    false_alarms = len(inliers) - np.searchsorted(inliers, scores, "left")
    return Curve(scores, hits.astype(np.int64), false_alarms.astype(np.int64))


def curve_of_counts(scores: NDArray[np.floating], *, inliers: Counts, anomalies: Counts) -> Curve:
    """The curve of pixels counted by score: `inliers` and `anomalies` (n,) at `scores` (n,), in any order, repeats too.

    Equal scores are moved through together, whichever list they came from.
    """
    distinct, where = np.unique(scores, return_inverse=True)
    hits, false = np.zeros(len(distinct), np.int64), np.zeros(len(distinct), np.int64)
    np.add.at(hits, where, anomalies)
    np.add.at(false, where, inliers)
    return Curve(distinct[::-1], np.cumsum(hits[::-1]), np.cumsum(false[::-1]))


def ratio(part: float, whole: float) -> float:
    """`part` / `whole`; NaN where `whole` is 0."""
    return part / whole if whole else NAN
