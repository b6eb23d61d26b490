"""Intervals and tests of counts, against their definitions and published tables."""

import math

import numpy as np
import pytest
from scipy.stats import binom, poisson

from geood.review.intervals import (
    chance_of_at_least,
    chance_of_at_most,
    count_limits,
    least_total,
    rate_of,
    share_of,
)


@pytest.mark.parametrize(("hits", "cases"), [(0, 10), (3, 10), (10, 10), (19, 100)])
def test_at_each_limit_of_a_share_what_was_seen_has_a_chance_of_a_fortieth(hits, cases):
    value, low, high = share_of(hits, cases)
    assert value == hits / cases and low <= value <= high
    assert binom.sf(hits - 1, cases, low) == pytest.approx(0.025) if hits else low == 0
    assert binom.cdf(hits, cases, high) == pytest.approx(0.025) if hits < cases else high == 1


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_at_each_limit_of_a_count_what_was_seen_has_a_chance_of_a_fortieth(count):
    value, low, high = count_limits(count)
    assert value == count and low <= count < high
    assert poisson.sf(count - 1, low) == pytest.approx(0.025) if count else low == 0
    assert poisson.cdf(count, high) == pytest.approx(0.025)


def test_known_limits():
    """Garwood's of 0 is -ln 0.025, his table gives 5.57 for 1; Clopper and Pearson's of 0 of 10 is 0.308."""
    assert count_limits(0).high == pytest.approx(-math.log(0.025))
    assert count_limits(1).high == pytest.approx(5.5716, abs=1e-4)
    assert share_of(0, 10).high == pytest.approx(0.3085, abs=1e-4)


def test_without_a_case_nothing_is_known():
    share, rate = share_of(0, 0), rate_of(3, 0.0)
    assert math.isnan(share.value) and share[1:] == (0, 1)
    assert math.isnan(rate.value) and rate[1:] == (0, math.inf)
    assert rate_of(4, 2.0) == pytest.approx(tuple(x / 2 for x in count_limits(4)))


def test_chances_of_both_sides_share_what_was_seen():
    assert chance_of_at_least(0, 3.0) == 1
    for count in (0, 2, 9):
        both = chance_of_at_least(count, 3.0) + chance_of_at_most(count, 3.0)
        assert both == pytest.approx(1 + poisson.pmf(count, 3.0))


def test_the_least_total_is_seldom_above_the_expected_one():
    rng = np.random.default_rng(0)
    above = 0
    for _ in range(400):
        sizes = rng.exponential(10.0, rng.poisson(60))
        above += least_total(sizes.tolist()) > 600
    assert above / 400 < 0.09
    assert least_total([]) == 0
