"""Regions of images: the rows and columns that a pass answers for, and where they lie on the maps of its network.

A tile is read with a halo, since its encoder looks far. A decoder does not: of its maps, the finest of which are the
dearest, scores of the tile's core need the places in it and a few around. So the encoder computes on all that is read
and the decoder on a region, the core and a margin, wide enough that within the core nothing changes. Sizes and slices
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

Region = tuple[slice, slice]  # rows and columns

WHOLE: Region = (slice(None), slice(None))
STEP = 16  # pixels: regions start and end at multiples of it, the stride of the coarsest map that scores are made of
MARGIN = 16  # pixels around a core: scores interpolate one place of stride 8 beyond it, whose class is that of logits
# which are interpolated from two places of stride 4, and one more is lost to the last convolution; of stride 16 the
# place that it lies in and the next one are at hand
AROUND = 3  # places of coarser maps around a region: on each, a convolution takes one, and interpolation another


def region_around(core: Region, size: Sequence[int], *, radius: int = 0) -> tuple[Region, Region]:
    """Return the region of an image that scores of a core are computed from, and the core's place in that region.

    Args:
        core: rows and columns of the image whose scores are wanted.
        size: height and width of the image in pixels, multiples of `STEP`.
        radius: pixels around the core that are wanted too, as a filter of the scores looks so far.
    """
    regions, places = [], []
    for side, length in zip(core, size, strict=True):
        start, stop, _ = side.indices(length)
        first = max(0, start - radius - MARGIN) // STEP * STEP
        last = min(length, -(-(stop + radius + MARGIN) // STEP) * STEP)
        regions.append(slice(first, last))
        places.append(slice(start - first, stop - first))
    return (regions[0], regions[1]), (places[0], places[1])


class Rung(NamedTuple):
    """Rung of a decoder in a region: the encoder's map there, and where of the map below, upsampled twofold, it lies.

    Attributes:
        feature: the part of the map (B, C, h, w).
        size: height and width of the map below once it is upsampled.
        part: rows and columns of that.
    """

    feature: Tensor
    size: tuple[int, int]
    part: Region


def rungs_of(features: Sequence[Tensor], region: Region | None, *, finest: int = 4) -> list[Rung]:
    """Return the rungs from encoder maps (B, C, H / s, W / s), the coarsest of which is below the first of them.

    Strides s are `finest` and twice that of the one before. None: of the whole maps.
    """
    rungs: list[Rung] = []
    sizes = [(each.shape[-2], each.shape[-1]) for each in features]  # symbols in a graph of any size
    if region is None:
        return [Rung(feature, size, WHOLE) for feature, size in zip(features[-2::-1], sizes[-2::-1], strict=True)]
    below = slice(0, sizes[-1][0]), slice(0, sizes[-1][1])
    for i in reversed(range(len(features) - 1)):
        stride, more = finest << i, AROUND if i else 0
        rows, cols = (
            slice(max(0, side.start // stride - more), min(length, -(-side.stop // stride) + more))
            for side, length in zip(region, sizes[i], strict=True)
        )
        high, wide = (2 * (side.stop - side.start) for side in below)
        part = tuple(
            slice(s.start - 2 * b.start, s.stop - 2 * b.start) for s, b in zip((rows, cols), below, strict=True)
        )
        rungs.append(Rung(features[i][..., rows, cols], (high, wide), (part[0], part[1])))
        below = rows, cols
    return rungs


def cut(image: Tensor, region: Region, *, stride: int = 1) -> Tensor:
    """Return the part of an image or map (..., H / stride, W / stride) in a region, whose ends are multiples of it."""
    rows, cols = (slice(side.start // stride, side.stop // stride) for side in region)
    return image[..., rows, cols]
