"""Intervals and tests of counts: shares by Clopper and Pearson, rates by Garwood, and what a count says of a promise.

All are exact: they hold for a count of 0 and for few cases, and are wider than they need to be rather than narrower.
Counts and areas come in, nothing is known of polygons here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from geood.calibration import garwood

LEVEL = 0.95  # of all intervals


class Interval(NamedTuple):
    """Estimate with its limits; NaN where nothing was seen."""

    value: float
    low: float
    high: float


def share_of(hits: int, cases: int, *, level: float = LEVEL) -> Interval:
    """Return the share of hits with its limits by Clopper and Pearson (Biometrika 26, 1934); 0 to 1 of no case."""
    from scipy.stats import beta

    if not cases:
        return Interval(math.nan, 0.0, 1.0)
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, cases - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, cases - hits)) if hits < cases else 1.0
    return Interval(hits / cases, low, high)


def count_limits(count: int, *, level: float = LEVEL) -> Interval:
    """Return a count with the limits of its Poisson mean by Garwood (Biometrika 28, 1936)."""
    return Interval(float(count), *garwood(count, level))


def rate_of(count: int, area: float, *, level: float = LEVEL) -> Interval:
    """Return a count for each unit of area with its limits; NaN, 0 and infinity where no area was seen."""
    if not area > 0:
        return Interval(math.nan, 0.0, math.inf)
    value, low, high = count_limits(count, level=level)
    return Interval(value / area, low / area, high / area)


def chance_of_at_least(count: int, mean: float) -> float:
    """Return the probability that a Poisson count of this mean is as large or larger."""
    from scipy.stats import poisson

    return float(poisson.sf(count - 1, mean)) if count else 1.0


def chance_of_at_most(count: int, mean: float) -> float:
    """Return the probability that a Poisson count of this mean is as small or smaller."""
    from scipy.stats import poisson

    return float(poisson.cdf(count, mean))


def least_total(sizes: Sequence[float], *, level: float = LEVEL) -> float:
    """Return the lower limit of the expected sum of sizes of which a random number came (compound Poisson, normal).

    Pixels of one polygon are not independent, polygons nearly are: so the variance is the sum of the squared sizes.
    """
    from scipy.stats import norm

    spread = math.sqrt(math.fsum(size * size for size in sizes))
    return max(0.0, math.fsum(sizes) - float(norm.ppf(level)) * spread)
