"""Areas of the components of a score map in memory, above many thresholds: the polygons that `export` would write.

Labels come from the same rooms as in `components`, so numbers of polygons counted here are those of a file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geood.geo.grid import Window
from geood.polygons.runs import PaddedWindow
from geood.polygons.statistics import WindowPixels, window_statistics


def areas_above(score: NDArray[np.float32], threshold: float, *, connectivity: int = 8) -> NDArray[np.int64]:
    """Return the areas (n,), in pixels, of the components of pixels (H, W) that score above a threshold.

    Args:
        score: the scores, NaN where there are none.
        threshold: pixels strictly above it count.
        connectivity: 8 if pixels that touch at corners are connected, 4 if not.
    """
    window = Window(0, 0, *score.shape)
    with np.errstate(invalid="ignore"):
        above = score > threshold
    if not above.any():
        return np.zeros(0, np.int64)
    padded = PaddedWindow(window, last_row=True, last_col=True)
    padded.above[:], padded.left[:] = False, False
    padded.mask[:] = above
    statistics = window_statistics(padded.label(), WindowPixels(window, score, above), connectivity=connectivity)
    return statistics.area_px[statistics.area_px > 0]


def count_areas(
    score: NDArray[np.float32], thresholds: tuple[float, ...], least_px: tuple[int, ...], *, connectivity: int
) -> NDArray[np.int64]:
    """Return the number of components (A, T) of at least so many pixels, above each threshold."""
    counts = np.zeros((len(least_px), len(thresholds)), np.int64)
    for i, threshold in enumerate(thresholds):
        areas = np.sort(areas_above(score, threshold, connectivity=connectivity))
        counts[:, i] = len(areas) - np.searchsorted(areas, least_px)
    return counts
