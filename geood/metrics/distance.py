"""How far away an anomaly can be and still be found: pixel figures by distance from the camera.

The protocol of NFlowJS on Lost and Found (Grcic et al. 2022): the pixels of all images are pooled in buckets of 5 m,
from 5 to 50 m, and each bucket has figures of its own. The distance of a pixel comes from stereo disparity and is often
not known; such pixels are left out and counted, so that a figure can be read with what it rests on. How a data set
writes disparities into files is no business of this room. Numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from geood.constants import IGNORE
from geood.metrics.curve import FprRule
from geood.metrics.pixels import PixelCurve, checked_truth, refuse_not_finite

BUCKETS_M = tuple(float(edge) for edge in range(5, 55, 5))


class DistanceCurves:
    """A `PixelCurve` for each bucket of distance; scores are rounded to float16, counts add up in any order.

    `edges_m` ascend; a bucket holds its lower edge and not its upper one.
    """

    def __init__(self, edges_m: Sequence[float] = BUCKETS_M) -> None:
        if len(edges_m) < 2 or not (np.diff(edges_m) > 0).all():
            raise ValueError(f"the edges of distance buckets must be two or more and ascend, got {tuple(edges_m)}")
        self.edges_m = tuple(edges_m)
        self.curves = [PixelCurve() for _ in self.edges_m[1:]]
        self.images = 0
        self.unknown_px = 0
        self.outside_px = 0

    def update(
        self, score: NDArray[np.floating], truth: NDArray[np.uint8], *, distance_m: NDArray[np.floating]
    ) -> None:
        """Count the pixels of one image: three arrays of one shape, `truth` with 0, 1 or 255 (ignored).

        Pixels whose `distance_m` is NaN go to `unknown_px`, those beyond the buckets to `outside_px`; void is in
        neither.

        Raises:
            ValueError: if shapes differ, a counted score is not finite, or `truth` holds another value.
        """
        truth = checked_truth(score, truth)
        if distance_m.shape != truth.shape:
            raise ValueError(f"distance {distance_m.shape} and truth {truth.shape} must have one shape")
        counted = truth != IGNORE
        refuse_not_finite(score, counted)
        values, kinds, away = score[counted], truth[counted], distance_m[counted]
        bucket = np.searchsorted(self.edges_m, away, "right") - 1  # NaN sorts behind the last edge
        for index, curve in enumerate(self.curves):
            here = bucket == index
            curve.update(values[here], kinds[here])
        unknown = int(np.isnan(away).sum())
        self.unknown_px += unknown
        self.outside_px += int(((bucket < 0) | (bucket >= len(self.curves))).sum()) - unknown
        self.images += 1

    def __iadd__(self, other: DistanceCurves) -> DistanceCurves:
        """Add the pixels of another accumulator to this one.

        Raises:
            ValueError: if its buckets are others.
        """
        if other.edges_m != self.edges_m:
            raise ValueError(f"cannot add buckets {other.edges_m} to buckets {self.edges_m}")
        for index, curve in enumerate(other.curves):
            self.curves[index] += curve
        self.images += other.images
        self.unknown_px += other.unknown_px
        self.outside_px += other.outside_px
        return self

    def figures(self, *, rule: FprRule = "first_gt") -> list[dict[str, float]]:
        """One row a bucket, nearest first: `from_m`, `to_m`, `average_precision`, `auroc`, `fpr95` and the pixels of
        each kind; NaN where a bucket lacks a kind.

        The published figures take FPR95 where the recall first exceeds 0.95, hence the `rule`.
        """
        return [
            {
                "from_m": start,
                "to_m": stop,
                "average_precision": curve.average_precision,
                "auroc": curve.auroc,
                "fpr95": curve.fpr_at(0.95, rule),
                "anomaly_px": curve.positives,
                "inlier_px": curve.negatives,
            }
            for start, stop, curve in zip(self.edges_m[:-1], self.edges_m[1:], self.curves, strict=True)
        ]
