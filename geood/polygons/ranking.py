"""In which order polygons are to be looked at, and how rare scores like theirs are among inliers.

The order is that of the contrast to the surroundings times the square root of the area: what stands out, and is more
than a speck. It was chosen on scenes with labelled unknown objects (benchmarks/results/ranking.md), where it puts real
things first more often than the maximum score, which any single pixel can raise, and than the mean, which large known
surfaces of a high score share. It takes only what a score raster tells, so it is the same without the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 1e300  # finite, so that any two ranks compare

Floats = NDArray[np.float64]


def priority(columns: dict[str, NDArray[Any]]) -> Floats:
    """Return the ranking figure of polygons (n,), finite; the highest is to be looked at first.

    Without known surroundings the contrast is at least the excess over the threshold, which is taken then.
    """
    contrast = np.where(np.isnan(columns["contrast"]), columns["threshold_excess"], columns["contrast"])
    with np.errstate(invalid="ignore"):  # of infinite scores
        figure = contrast * np.sqrt(columns["area_px"])
    finite: Floats = np.nan_to_num(figure, nan=-LARGEST, posinf=LARGEST, neginf=-LARGEST)
    return finite


def share_of_inliers(scores: Floats, knots: Sequence[tuple[float, float]]) -> Floats:
    """Return which share of inlier pixels scores at least as high, (n,), by the knots (score, share) of a calibration.

    Between two knots the logarithm of the share is linear in the score, beyond the last it goes on as between the last
    two: tails are taken for exponential. Below the first knot the line to a share of 1 is not known, so the share is
    that of the first two continued, at most 1. Without two knots it is unknown, NaN.
    """
    ordered = sorted((score, share) for score, share in knots if share > 0)
    at = np.array([score for score, _ in ordered])
    log_share = np.log([share for _, share in ordered]) if ordered else np.zeros(0)
    rising = np.flatnonzero(np.diff(at, prepend=-np.inf) > 0)
    at, log_share = at[rising], np.minimum.accumulate(log_share[rising])
    if len(at) < 2:
        return np.full(len(scores), np.nan)
    upper = np.clip(np.searchsorted(at, scores), 1, len(at) - 1)
    slope = (log_share[upper] - log_share[upper - 1]) / (at[upper] - at[upper - 1])
    with np.errstate(invalid="ignore", over="ignore"):
        shares: Floats = np.exp(np.minimum(0.0, log_share[upper] + slope * (scores - at[upper])))
    return shares
