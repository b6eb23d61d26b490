"""Pixel metrics by distance from the camera, in bins of 5 m from 5 to 50 m.

The protocol of NFlowJS on Lost and Found (Grcic et al. 2022): the pixels of all images are pooled by distance, and each
bin has its own metrics. The distance of a pixel comes from stereo disparity and is often unknown; such pixels are
excluded and counted, so that it is known how many pixels a metric rests on. This module does not know how data sets
encode disparity in files. NumPy only.
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
    """One `PixelCurve` per distance bin; scores are rounded to float16, images may come in any order.

    `edges_m` are the bins' edges in metres, ascending; a bin includes its lower edge and not its upper one.
    """

    def __init__(self, edges_m: Sequence[float] = BUCKETS_M) -> None:
        if len(edges_m) < 2 or not (np.diff(edges_m) > 0).all():
            raise ValueError(f"the edges of distance bins must be two or more and ascend, got {tuple(edges_m)}")
        self.edges_m = tuple(edges_m)
        self.curves = [PixelCurve() for _ in self.edges_m[1:]]
        self.images = 0
        self.unknown_px = 0
        self.outside_px = 0

    def update(
        self, score: NDArray[np.floating], truth: NDArray[np.uint8], *, distance_m: NDArray[np.floating]
    ) -> None:
        """Add the pixels of one image.

        Args:
            score: any shape, finite where it counts.
            truth: same shape; 0 (inlier), 1 (anomaly) or 255 (ignored).
            distance_m: same shape, metres. NaN counts in `unknown_px`, a distance outside the bins in `outside_px`;
                ignored pixels count in neither.

        Raises:
            ValueError: shapes differ, a counted score is not finite, or `truth` holds another value.
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
            ValueError: its bins differ.
        """
        if other.edges_m != self.edges_m:
            raise ValueError(f"cannot add bins {other.edges_m} to bins {self.edges_m}")
        for index, curve in enumerate(other.curves):
            self.curves[index] += curve
        self.images += other.images
        self.unknown_px += other.unknown_px
        self.outside_px += other.outside_px
        return self

    def figures(self, *, rule: FprRule = "first_gt") -> list[dict[str, float]]:
        """Return one row per bin, nearest first.

        A row has `from_m`, `to_m`, `average_precision`, `auroc`, `fpr95`, `anomaly_px` and `inlier_px`; a metric is NaN
        if it is undefined in its bin. The published figures take FPR95 where the recall first exceeds 0.95, hence the
        default `rule`.
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
