"""Score bins of SegmentMeIfYouCan's `PixBinaryClass` evaluator, from quantiles of one image's scores.

An image's bin edges are 384 quantiles of the scores of its anomaly pixels and 384 of those of its inlier pixels. Bins
are pooled over images in `metrics.protocols`; this module knows one image only. NumPy only; no files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geood.metrics.curve import Counts

EDGES_PER_KIND = 384  # SegmentMeIfYouCan: 768 bins, half of them from anomalies and half from inliers


def quantile_bins(
    scores: NDArray[np.floating], inliers: Counts, anomalies: Counts
) -> tuple[NDArray[np.float64], Counts, Counts]:
    """Return the lower edges (n,) of one image's bins, and the numbers of inliers and anomalies (n,) in each.

    `inliers` and `anomalies` (m,) count pixels at the distinct, ascending float16 `scores` (m,).
    """
    low, high = float(scores[0]), float(scores[-1])
    margin = max((high - low) * 0.01, 0.01)
    edges = np.unique(
        np.concatenate([[low - margin, high + margin], _quantiles(scores, inliers), _quantiles(scores, anomalies)])
    )
    below = np.searchsorted(scores.astype(np.float64), edges)
    each = [np.diff(np.concatenate([[0], np.cumsum(counts)])[below]) for counts in (inliers, anomalies)]
    return edges[:-1], each[0], each[1]


def _quantiles(scores: NDArray[np.floating], counts: Counts) -> NDArray[np.float64]:
    """Return evenly spaced quantiles, at most 384 and one per pixel, of pixels counted at ascending float16 scores.

    Interpolated as `np.quantile` does for float16: the difference of neighbours is rounded to float16, and
    interpolation starts from the nearer one.
    """
    pixels = int(counts.sum())
    if not pixels:
        return np.zeros(0)
    position = np.linspace(0, 1, min(EDGES_PER_KIND, pixels)) * (pixels - 1)
    rank = np.floor(position).astype(np.int64)
    at_most = np.cumsum(counts)
    here = scores[np.searchsorted(at_most, rank, "right")]
    after = scores[np.searchsorted(at_most, np.minimum(rank + 1, pixels - 1), "right")]
    step, weight = (after - here).astype(np.float64), position - rank
    return np.where(weight < 0.5, here + step * weight, after - step * (1 - weight))
