"""Light within the classes that a model takes pixels for: what it is in a cell, and how far from that usual of a class.

Fields are dark and roofs are bright, so the light of a cell tells its land cover first and haze or a gain after it. The
light of the fields in it tells less of land cover: it is compared with that of fields elsewhere, class by class, and
averaged by the share of each class. That halves what light differs by from image to image. Of many bands or classes it
is not measured, as records would grow, nor of one class, which is all that a cell holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_BANDS = 4  # of which all pairs are measured, so that any order of them is known
MOST_CLASSES = 16
LEAST_SHARE = 0.05  # of a cell, with which a class counts
LEAST_CELLS = 6  # with a class, to know how its light scatters
LEAST_SPREAD, FAR = 0.02, 6.0
_LEAST = np.float32(1e-4)


class ClassRows(NamedTuple):
    """Light of m parts of cells, each of one class: `cell`, class `of` and `share` (m,) of it.

    `level` and `contrast` are (m, B), `likeness` (m, P) is of the pairs of bands.
    """

    cell: NDArray[np.int64]
    of: NDArray[np.int64]
    share: Floats
    level: Floats
    contrast: Floats
    likeness: Floats


class Usual(NamedTuple):
    """Means and standard deviations (K, D) of the looks of each class; of one that is hardly known infinite ones."""

    mean: Floats
    spread: Floats


def band_pairs(count: int) -> list[tuple[int, int]]:
    """Return the pairs of bands that are compared: neighbours first, then all others of a few bands."""
    beside = list(itertools.pairwise(range(count)))
    others = [pair for pair in itertools.combinations(range(count), 2) if pair not in beside]
    return beside + (others if count <= MOST_BANDS else [])


def is_measured(bands: int, classes: int) -> bool:
    """Return whether light within so many classes is measured: not of many bands or classes, nor of a single class."""
    return bands <= MOST_BANDS and 1 < classes <= MOST_CLASSES


def bands_and_channels(names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the bands that statistics of these names are of, and which of them are the shares of classes."""
    bands = [name.removeprefix("level ") for name in names if name.startswith("level ")]
    return bands, [i for i, name in enumerate(names) if name.startswith("class ")]


def class_light_names(bands: Sequence[str], classes: int) -> tuple[str, ...]:
    """Return the names of the statistics of light within classes, in their order; none where it is not measured."""
    if not is_measured(len(bands), classes):
        return ()
    kinds = [f"{kind} {band}" for kind in ("level", "contrast") for band in bands]
    kinds += [f"likeness {bands[one]} {bands[other]}" for one, other in band_pairs(len(bands))]
    return tuple(f"within {channel} {kind}" for channel in range(classes) for kind in kinds)


def light_within(
    standard: NDArray[np.float32], level: NDArray[np.float32], contrast: NDArray[np.float32], ofs: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the statistics (n, K (2 B + P)) of light within classes of n cells; 0 where a class has too few pixels.

    Args:
        standard: bands (B, n, N) in standard deviations from their means.
        level: these means (B, n).
        contrast: these standard deviations (B, n).
        ofs: whether a pixel is of a class (K, n, N).
    """
    bands, level, contrast = len(standard), level.T[:, None], contrast.T[:, None]
    pairs = band_pairs(bands)
    moments = [*standard, *np.square(standard), *(standard[one] * standard[other] for one, other in pairs)]
    counts = np.count_nonzero(ofs, axis=2).T[..., None].astype(np.float32)
    sums = ofs.transpose(1, 0, 2).astype(np.float32) @ np.stack(moments, 1).transpose(0, 2, 1)
    means = sums / np.maximum(counts, 1)
    mean, square, crossed = means[..., :bands], means[..., bands : 2 * bands], means[..., 2 * bands :]
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    ones, others = ([pair[side] for pair in pairs] for side in (0, 1))
    shared = crossed - mean[..., ones] * mean[..., others]
    likeness: Any = (shared / np.maximum(spread[..., ones] * spread[..., others], _LEAST)).clip(-1, 1)
    light = [level + contrast * mean, contrast * spread, likeness]
    found: NDArray[np.float32] = np.where(counts >= LEAST_SHARE * ofs.shape[2], np.concatenate(light, 2), 0)
    return found.reshape(len(found), -1)


def class_rows(cells: Floats, names: Sequence[str]) -> ClassRows | None:
    """Return the light within classes of cells (n, S) with statistics of these names; None if it was not measured."""
    bands, channels = bands_and_channels(names)
    wanted = class_light_names(bands, len(channels))
    if not wanted or not set(wanted) <= set(names):
        return None
    light = cells[:, [names.index(name) for name in wanted]].reshape(len(cells), len(channels), -1)
    shares, count = cells[:, channels], len(bands)
    cell, of = np.nonzero((shares >= LEAST_SHARE) & light.any(2))
    rows = light[cell, of]
    level, contrast, likeness = rows[:, :count], rows[:, count : 2 * count], rows[:, 2 * count :]
    return ClassRows(cell, of, shares[cell, of], level.clip(0, 1), contrast, likeness)


def usual_of(looks: Floats, rows: ClassRows, classes: int) -> Usual:
    """Return what the looks (m, D) of the rows usually are in each class."""
    mean, spread = np.zeros((classes, looks.shape[1])), np.full((classes, looks.shape[1]), np.inf)
    for channel in range(classes):
        own = looks[rows.of == channel]
        if len(own) >= LEAST_CELLS:
            mean[channel], spread[channel] = own.mean(0), np.maximum(own.std(0), LEAST_SPREAD)
    return Usual(mean, spread)


def from_usual(looks: Floats, rows: ClassRows, usual: Usual, count: int) -> Floats:
    """Return how far the looks (m, D) of the rows lie from those usual of their classes, of each of `count` cells.

    The result (count, D) is in standard deviations, averaged by the shares of the classes.
    """
    apart = ((looks - usual.mean[rows.of]) / usual.spread[rows.of]).clip(-FAR, FAR)
    sums, shares = np.zeros((count, looks.shape[1])), np.zeros(count)
    np.add.at(sums, rows.cell, rows.share[:, None] * apart)
    np.add.at(shares, rows.cell, rows.share)
    found: Floats = sums / np.maximum(shares, LEAST_SHARE)[:, None]
    return found
