"""Laws of rates over blocks: exact Poisson intervals, coverage of the bootstrap, and the conformal guarantee."""

import numpy as np
import pytest
from scipy.stats import poisson

from geood.calibration.rates import LEAST_BLOCKS, LEVEL, garwood, guaranteed, rate_interval


@pytest.mark.parametrize("mean", [0.3, 2.0, 17.5])
def test_garwood_covers_any_poisson_mean_at_least_as_often_as_it_says(mean):
    counts = np.arange(0, 100)
    covered = [low <= mean <= high for low, high in map(garwood, counts)]
    assert poisson.pmf(counts, mean)[covered].sum() >= LEVEL
    assert garwood(0)[0] == 0.0 and garwood(0)[1] == pytest.approx(2.9957, abs=1e-3)


def ground(rng, images, blocks, pixels=1000):
    """Blocks whose rates differ from image to image: above, pixels, image."""
    rate = np.repeat(rng.gamma(2.0, 0.005, images), blocks)
    return rng.binomial(pixels, rate), np.full(images * blocks, pixels), np.repeat(np.arange(images), blocks)


def test_an_interval_for_a_scene_covers_new_images_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = []
    for trial in range(60):
        above, pixels, image = ground(rng, 12, 10)
        low, high = rate_interval(above, pixels, image, blocks=10, seed=trial)
        new, size, _ = ground(rng, 1, 10)
        inside.append(low <= new.sum() / size.sum() <= high)
    assert np.mean(inside) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("images", "least", "most"), [(1, 0.0, 0.5), (3, 0.2, 0.5), (4, 0.6, 0.8), (12, 0.8, 0.95)])
def test_an_interval_of_few_images_covers_new_ones_less_often_than_it_says(images, least, most):
    """What `docs/trust.md` tells of it."""
    rng = np.random.default_rng(0)
    inside = []
    for trial in range(200):
        above, pixels, image = ground(rng, images, 10)
        low, high = rate_interval(above, pixels, image, blocks=10, seed=trial)
        new, size, _ = ground(rng, 1, 10)
        inside.append(low <= new.sum() / size.sum() <= high)
    assert least <= np.mean(inside) <= most


def test_fewer_blocks_than_an_interval_needs_have_none():
    few = np.ones(LEAST_BLOCKS - 1, np.int64)
    assert rate_interval(few, 100 * few, few, blocks=5) is None
    many = np.ones(LEAST_BLOCKS, np.int64)
    assert rate_interval(many, 100 * many, many, blocks=5) == (0.01, 0.01)
    assert rate_interval(many, 0 * many, many, blocks=5) is None  # blocks without a pixel are none
    assert rate_interval(0 * many, 100 * many, many, blocks=5) is None  # of nothing no draw tells a limit


def test_intervals_are_the_same_each_time_and_narrower_for_larger_ground():
    above, pixels, image = ground(np.random.default_rng(1), 2, 40)
    small, large = (rate_interval(above, pixels, image, blocks=n) for n in (2, 80))
    assert small == rate_interval(above, pixels, image, blocks=2)
    assert small[0] <= large[0] <= large[1] <= small[1]


def test_the_rate_of_a_new_block_is_on_average_below_what_is_guaranteed():
    rng = np.random.default_rng(2)
    bounds, rates = [], []
    for _ in range(200):
        above, pixels, _ = ground(rng, 20, 1)
        bounds.append(guaranteed(above[:-1], pixels[:-1]))
        rates.append(above[-1] / pixels[-1])
    assert np.mean(rates) <= np.mean(bounds)
    assert guaranteed(np.zeros(99, np.int64), np.ones(99, np.int64)) == pytest.approx(0.01)


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_no_blocks_of_equal_size_make_more_lie_above_on_average_than_is_guaranteed(rate):
    """Each block is left out in turn: whatever blocks there are, that is the mean over all orders of them."""
    rng = np.random.default_rng(3)
    for spread in (0.0, 0.5, 5.0):
        scores = spread * rng.standard_normal((12, 1)) + rng.standard_normal((12, 200))
        bounds, rates = [], []
        for i, own in enumerate(scores):
            rest = np.delete(scores, i, 0)
            threshold = np.sort(rest, None)[-1 - int(rate * rest.size)]
            bounds.append(guaranteed((rest > threshold).sum(1), np.full(len(rest), 200)))
            rates.append((own > threshold).mean())
        assert np.mean(rates) <= np.mean(bounds)
