"""Rates that blocks of ground tell: an interval for new ground, and a guarantee. NumPy and SciPy; no files.

Neighbouring pixels are no independent samples, so the unit is a block: a cell of the lattice that parts training from
validation ground, or a whole photograph. A new scene differs from another one more than its blocks do among
themselves, so where there are enough images, bootstrap draws are of an image first, and of its blocks then (Davison and
Hinkley 1997, 3.8).

The guarantee is that of conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814): if a new block is
exchangeable with the n that were measured, and the share of its pixels above the threshold is at most 1, then in
expectation that share is at most (n r + 1) / (n + 1), where r is the mean share of the n blocks. That is proved for the
lowest threshold with a mean share of r at most, r chosen beforehand. Thresholds here are those of a share of all pixels
together: the same where blocks have as many pixels each, and about the same where they have not.
"""

from __future__ import annotations

import numpy as np
import scipy  # whose packages load on first use: before the first tile none is needed
from numpy.typing import NDArray

LEVEL = 0.9  # of all intervals
LEAST_BLOCKS = 8  # with fewer an interval is not told
MORE_BLOCKS = "train with a smaller data.block_m, or a larger data.validation"
LEAST_IMAGES = 4  # with fewer, blocks are drawn from all images together
DRAWS = 2000
MOST_DRAWN = 400  # blocks of one draw: with more the interval is that of an endless scene


def rate_interval(
    above: NDArray[np.int64], pixels: NDArray[np.int64], image: NDArray[np.int64], *, blocks: float, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 90 % interval of the rate on new ground of about so many `blocks`; None with fewer than 8 to go by.

    Where nothing lies above there is none either: all draws of nothing are 0, which is no limit for new ground.

    Args:
        above: pixels of each block above the threshold (n,).
        pixels: pixels of each block (n,).
        image: the image of each block (n,).
        blocks: size of the new ground in blocks of mean size.
        seed: seed of the bootstrap.
    """
    counted = pixels > 0
    above, pixels, image = above[counted], pixels[counted], image[counted]
    if len(pixels) < LEAST_BLOCKS or not above.any():
        return None
    rng, size = np.random.default_rng(seed), int(np.clip(round(blocks), 1, MOST_DRAWN))
    groups = [np.flatnonzero(image == i) for i in np.unique(image)]
    if len(groups) < LEAST_IMAGES:
        groups = [np.arange(len(pixels))]
    drawn = np.empty((DRAWS, size), np.int64)
    for draw in drawn:
        group = groups[rng.integers(len(groups))]
        chosen = rng.integers(len(group), size=len(group) + size)
        known = group[chosen[: len(group)]]  # the blocks are a sample themselves
        draw[:] = known[chosen[len(group) :]]
    rates = above[drawn].sum(1) / pixels[drawn].sum(1)
    low, high = np.quantile(rates, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def guaranteed(above: NDArray[np.int64], pixels: NDArray[np.int64]) -> float:
    """Return the rate that conformal risk control guarantees for a new block in expectation, at most 1."""
    counted = pixels > 0
    rates = above[counted] / pixels[counted]
    return float((rates.sum() + 1) / (len(rates) + 1))


def garwood(count: float, level: float = LEVEL) -> tuple[float, float]:
    """Return the exact interval of the mean of a Poisson count (Garwood 1936)."""
    low = 0.0 if count == 0 else float(scipy.special.gammaincinv(count, (1 - level) / 2))
    return low, float(scipy.special.gammaincinv(count + 1, (1 + level) / 2))
