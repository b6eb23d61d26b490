"""Figures of things and of polygons: recall by size, false polygons per km2, precision of a ranking.

An analyst looks at polygons and misses things, so both are counted as such. A thing is an 8-connected component of the
ground truth with some pixels; it is found if at least FOUND of its pixels score above the threshold. A polygon is a
component of the pixels above the threshold; it is real if at least REAL of its pixels are anomaly, and false otherwise.
Both shares are the lowest of the component metrics of SegmentMeIfYouCan (`components`). Pixels without a label belong
to neither, and neither do things of fewer pixels. NumPy and SciPy's labelling; no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # whose packages load on first use; a prediction of scores uses none
from numpy.typing import NDArray

from geood.constants import ANOMALY, IGNORE, INLIER
from geood.metrics.curve import NAN, ratio

FOUND, REAL = 0.25, 0.25
LEAST_THING_PX = 16
SIZES_M2 = (0.0, 25.0, 100.0, 400.0, 1600.0, math.inf)  # edges of the classes of size
_EIGHT_NEIGHBOURS = np.ones((3, 3), np.int8)


class Things(NamedTuple):
    """Things of a scene: `labels` (H, W) from 1 on, 0 elsewhere; `size_px` (n,), `row` and `col` of their centres."""

    labels: NDArray[np.int32]
    size_px: NDArray[np.int64]
    row: NDArray[np.float64]
    col: NDArray[np.float64]

    def reach(self, score: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the score (n,) of each thing above which it is not found: FOUND of its pixels score as high or higher.

        Pixels without a score, NaN, are the lowest.
        """
        at = np.flatnonzero(self.labels)
        owner = self.labels.ravel()[at]
        values = np.nan_to_num(score.ravel()[at].astype(np.float64), nan=-np.inf)
        ordered = values[np.lexsort((-values, owner))]
        starts = np.cumsum(self.size_px) - self.size_px
        reached: NDArray[np.float64] = ordered[starts + np.ceil(FOUND * self.size_px).astype(np.int64) - 1]
        return reached


class PolygonCounts(NamedTuple):
    """Numbers of real and of false polygons, and of the inlier pixels above the threshold."""

    real: int
    false: int
    inlier_px: int = 0


def things_of(truth: NDArray[np.uint8], *, least_px: int = LEAST_THING_PX) -> tuple[Things, NDArray[np.uint8]]:
    """Return the things of a truth mask (H, W), and the mask with the pixels of smaller ones ignored."""
    labels, count = scipy.ndimage.label(truth == ANOMALY, _EIGHT_NEIGHBOURS)
    size = np.bincount(labels.ravel(), minlength=count + 1)
    kept = size >= least_px
    kept[0] = False
    number = np.zeros(count + 1, np.int32)
    number[kept] = np.arange(1, kept.sum() + 1)
    things, held = number[labels], np.flatnonzero(kept)
    centres = np.array(scipy.ndimage.center_of_mass(np.ones_like(things), labels, held)).reshape(-1, 2)
    rest = np.where((truth == ANOMALY) & (things == 0), np.uint8(IGNORE), truth)
    return Things(things, size[kept], centres[:, 0], centres[:, 1]), rest


def count_polygons(
    score: NDArray[np.floating],
    truth: NDArray[np.uint8],
    *,
    threshold: float,
    connectivity: int = 8,
    least_px: float = 0,
) -> PolygonCounts:
    """Count the polygons of a scene at a threshold; score (H, W), NaN where there is none, and truth of one shape."""
    with np.errstate(invalid="ignore"):
        above = (score > threshold) & (truth != IGNORE)
    labels, count = scipy.ndimage.label(above, _EIGHT_NEIGHBOURS if connectivity == 8 else None)
    at = np.flatnonzero(above)
    owner = labels.ravel()[at] - 1
    size = np.bincount(owner, minlength=count)
    real = is_real(np.bincount(owner, truth.ravel()[at] == ANOMALY, count), size)[size >= least_px]
    return PolygonCounts(int(real.sum()), int((~real).sum()), int((truth.ravel()[at] == INLIER).sum()))


def is_real(anomaly_px: NDArray[np.floating | np.integer], labelled_px: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return whether polygons with so many anomaly pixels and labelled pixels are real."""
    return np.asarray(anomaly_px >= REAL * np.maximum(labelled_px, 1))


def recall_by_size(found: NDArray[np.bool_], size_m2: NDArray[np.floating]) -> dict[str, list[float | int]]:
    """Return the number of things in each class of SIZES_M2, `things`, and the share found of them, `recall`."""
    place = np.searchsorted(SIZES_M2, size_m2, "right") - 1
    things = [int((place == i).sum()) for i in range(len(SIZES_M2) - 1)]
    return {"things": list(things), "recall": [ratio(int(found[place == i].sum()), n) for i, n in enumerate(things)]}


def threshold_at_recall(reach: NDArray[np.floating], recall: float) -> float:
    """Return the highest threshold at which at least this share of the things is found; NaN without things.

    It is the float32 number just below the score that the last of them reaches: score maps are float32, and a number
    of more digits would be rounded up to that score where it is compared with them.
    """
    if not len(reach):
        return NAN
    needed = math.ceil(recall * len(reach) - 1e-9)
    last = np.float32(np.sort(reach)[::-1][max(needed, 1) - 1])
    return float(np.nextafter(last, np.float32(-np.inf)))


def precision_at(real: Sequence[bool] | NDArray[np.bool_], first: int) -> float:
    """Return the share of real ones among the `first` polygons of a ranking, or all if they are fewer; NaN of none."""
    shown = np.asarray(real, np.bool_)[:first]
    return ratio(int(shown.sum()), len(shown))
