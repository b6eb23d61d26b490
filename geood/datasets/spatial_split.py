"""Spatial split: square blocks on one lattice over all images, each for training or for validation, never both.

Crops of one area overlap and neighbours look alike, so a random split of crops measures memory. Here the ground is
split: a block belongs to one side, and the pixels of a crop that lie in a block of the other side are masked. So
nothing leaks, wherever crops lie and however images overlap. Crops are drawn with TorchGeo's samplers, with three
workarounds: a box smaller than a crop yields nothing (boxes are grown to a crop), positions are counted from a box's
corner (boxes are snapped to the pixels of their image, so that nothing is resampled), and the box is chosen with the
global generator, whatever `generator` is given (a fork of it is seeded).
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from shapely.geometry import box as polygon

from geood.constants import IGNORE
from geood.datasets.samples import CropPixels
from geood.datasets.torchgeo_layers import IMAGE, Box, LabelledImages
from geood.errors import DataError
from geood.geo.grid import metres_per_unit

Cell = tuple[int, int]  # column and row on the lattice, counted east and south from its origin


@dataclass(frozen=True)
class Piece:
    """Part of one block that one image and its labels cover, and the bounding box of that image."""

    cell: Cell
    box: Box
    image: Box


@dataclass(frozen=True)
class Blocks:
    """Lattice of blocks, and the side that owns each. Sizes in CRS units; origin is the imagery's north-west corner."""

    west: float
    north: float
    width: float
    height: float
    training: frozenset[Cell]
    validation: frozenset[Cell]

    def polygon(self, cell: Cell) -> Any:
        """Return the footprint of one block."""
        west, north = self.west + cell[0] * self.width, self.north - cell[1] * self.height
        return polygon(west, north - self.height, west + self.width, north)

    def owned(self, box: Box, shape: tuple[int, int], *, validation: bool) -> NDArray[np.bool_]:
        """Return which pixels of a box, (H, W) bool, lie in blocks of one side; the centre of a pixel decides."""
        xs = box.xmin + (np.arange(shape[1]) + 0.5) * (box.xmax - box.xmin) / shape[1]
        ys = box.ymax - (np.arange(shape[0]) + 0.5) * (box.ymax - box.ymin) / shape[0]
        cols, col_of = np.unique(np.floor((xs - self.west) / self.width).astype(int), return_inverse=True)
        rows, row_of = np.unique(np.floor((self.north - ys) / self.height).astype(int), return_inverse=True)
        side = self.validation if validation else self.training
        owned = np.array([[(int(c), int(r)) in side for c in cols] for r in rows])
        return owned[np.ix_(row_of, col_of)]


def split_blocks(layers: LabelledImages, *, block_m: float, share: float, seed: int) -> tuple[Blocks, list[Piece]]:
    """Lay the lattice over labelled imagery and give random blocks to validation until they hold `share` of the area.

    Each side gets at least one block. Cells are square, `block_m` metres a side at the centre of the imagery.

    Raises:
        DataError: all imagery lies in one block.
    """
    bounds = Box(*layers.joint.index.total_bounds)
    per_x, per_y = metres_per_unit(layers.images.crs, (bounds.xmin + bounds.xmax) / 2, (bounds.ymin + bounds.ymax) / 2)
    lattice = Blocks(bounds.xmin, bounds.ymax, block_m / per_x, block_m / per_y, frozenset(), frozenset())
    pieces = _pieces(layers, lattice)
    area: dict[Cell, float] = {}
    for piece in pieces:
        covered = (piece.box.xmax - piece.box.xmin) * (piece.box.ymax - piece.box.ymin)
        area[piece.cell] = min(area.get(piece.cell, 0.0) + covered, lattice.width * lattice.height)
    if len(area) < 2:
        wide, high = (bounds.xmax - bounds.xmin) * per_x, (bounds.ymax - bounds.ymin) * per_y
        raise DataError(
            f"all labelled imagery ({wide:.0f} x {high:.0f} m) lies in one block of {block_m:g} m, and nothing is left "
            f"to validate on; set data.block_m to {min(wide, high) / 4:.3g} or less"
        )
    cells = sorted(area)
    order = np.random.default_rng(seed).permutation(len(cells))
    shuffled = [cells[i] for i in order]
    held = np.cumsum([area[cell] for cell in shuffled]) / sum(area.values())
    count = min(max(1, int(np.searchsorted(held, share) + 1)), len(cells) - 1)
    training, validation = frozenset(shuffled[count:]), frozenset(shuffled[:count])
    return Blocks(lattice.west, lattice.north, lattice.width, lattice.height, training, validation), pieces


def draw_crops(
    layers: LabelledImages, blocks: Blocks, pieces: list[Piece], *, size_px: int, number: int, seed: int
) -> list[Box]:
    """Draw `number` random crops of `size_px` pixels around the training blocks, each block in proportion to its area.

    The same seed gives the same crops, and the global generator is left as it was.
    """
    wide, high = size_px * layers.res[0], size_px * layers.res[1]
    boxes = []
    for piece in pieces:
        if piece.cell in blocks.training:
            around = Box(
                max(piece.box.xmin - wide / 2, piece.image.xmin),
                max(piece.box.ymin - high / 2, piece.image.ymin),
                min(piece.box.xmax + wide / 2, piece.image.xmax),
                min(piece.box.ymax + high / 2, piece.image.ymax),
            )
            x0, y0, x1, y1 = _on_pixels(around, piece.image, layers.res, size_px)
            # one pixel more: the sampler takes the floor of a uniform number, so never the last position
            boxes.append(Box(x0, y0, x1 + layers.res[0], y1 + layers.res[1]))
    region = _region(layers, boxes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        queries = _queries("RandomGeoSampler", region, size=size_px, length=number)
    return [_whole(query, layers.res, size_px) for query in queries]


def grid_crops(layers: LabelledImages, blocks: Blocks, pieces: list[Piece], *, size_px: int) -> list[Box]:
    """Tile the validation blocks with crops of `size_px` pixels; a crop belongs to the block that holds its centre.

    Where images cover the same ground on the same pixel grid, a crop comes once.
    """
    crops: dict[tuple[float, float], Box] = {}
    for piece in pieces:
        if piece.cell in blocks.validation:
            box = _on_pixels(piece.box, piece.image, layers.res, size_px)
            region, size = _region(layers, [box]), size_px * (1 - 1e-9)
            for query in _queries("GridGeoSampler", region, size=size, stride=size_px):
                crop = _whole(query, layers.res, size_px)
                if (crop.xmin + crop.xmax) / 2 < box.xmax and (crop.ymin + crop.ymax) / 2 < box.ymax:
                    crops.setdefault((round(crop.xmin / layers.res[0], 1), round(crop.ymin / layers.res[1], 1)), crop)
    return list(crops.values())


def own_pixels(layers: LabelledImages, blocks: Blocks, box: Box, *, validation: bool) -> CropPixels:
    """Read the pixels of a box; those in blocks of the other side are invalid and unlabelled.

    Raises:
        DataError: a file cannot be read.
    """
    pixels = layers.read(box)
    valid = pixels.valid & blocks.owned(box, pixels.valid.shape, validation=validation)
    return pixels._replace(valid=valid, ids=np.where(valid, pixels.ids, IGNORE))


def _pieces(layers: LabelledImages, lattice: Blocks) -> list[Piece]:
    """Cut all labelled imagery along the lattice, image by image, in the order of the index."""
    index = layers.images.index
    whole = {path: Box(*shape.bounds) for path, shape in zip(index.filepath, index.geometry, strict=True)}
    found: dict[tuple[Cell, str], Box] = {}
    joint = layers.joint.index
    for path, shape in zip(joint[IMAGE], joint.geometry, strict=True):
        for cell, box in _cut(Box(*shape.bounds), lattice, smallest=layers.res):
            known = found.get((cell, path), box)
            found[cell, path] = Box(*(f(a, b) for f, a, b in zip((min, min, max, max), known, box, strict=True)))
    return [Piece(cell, box, whole[path]) for (cell, path), box in found.items()]


def _cut(box: Box, lattice: Blocks, *, smallest: tuple[float, float]) -> Iterator[tuple[Cell, Box]]:
    """Yield the part of a box in each cell; slivers narrower than a pixel may hold no pixel and are left out."""
    cols = range(*_span(box.xmin - lattice.west, box.xmax - lattice.west, lattice.width))
    rows = range(*_span(lattice.north - box.ymax, lattice.north - box.ymin, lattice.height))
    for col, row in itertools.product(cols, rows):
        xmin, ymin, xmax, ymax = lattice.polygon((col, row)).bounds
        part = Box(max(xmin, box.xmin), max(ymin, box.ymin), min(xmax, box.xmax), min(ymax, box.ymax))
        if part.xmax - part.xmin > smallest[0] and part.ymax - part.ymin > smallest[1]:
            yield (col, row), part


def _span(low: float, high: float, step: float) -> tuple[int, int]:
    return math.floor(low / step), math.ceil(high / step)


def _on_pixels(box: Box, image: Box, res: tuple[float, float], size_px: int) -> Box:
    """Snap a box to the pixels of its image and grow it to at least one crop, inside the image where it fits."""
    wide, high = (image.xmax - image.xmin) / res[0], (image.ymax - image.ymin) / res[1]
    x0, x1 = _side(box.xmin - image.xmin, box.xmax - image.xmin, res=res[0], limit_px=wide, size_px=size_px)
    y0, y1 = _side(box.ymin - image.ymin, box.ymax - image.ymin, res=res[1], limit_px=high, size_px=size_px)
    return Box(image.xmin + x0 * res[0], image.ymin + y0 * res[1], image.xmin + x1 * res[0], image.ymin + y1 * res[1])


def _side(low: float, high: float, *, res: float, limit_px: float, size_px: int) -> tuple[int, int]:
    """Snap one axis of a box as `_on_pixels` does; return first and end pixel from the image's lower corner."""
    first, last, limit = math.floor(low / res + 1e-6), math.ceil(high / res - 1e-6), round(limit_px)
    if last - first < size_px:
        first -= (size_px - (last - first)) // 2
        if limit >= size_px:
            first = min(max(first, 0), limit - size_px)
        last = first + size_px
    return first, last


def _region(layers: LabelledImages, boxes: list[Box]) -> Any:
    """Return the joint dataset with `boxes` as its index, which is all that a sampler uses."""
    region = copy.copy(layers.joint)
    times = layers.joint.index.index
    span = pd.IntervalIndex.from_arrays(
        [times.left.min()] * len(boxes), [times.right.max()] * len(boxes), closed="both", name="datetime"
    )
    region.index = gpd.GeoDataFrame(geometry=[polygon(*box) for box in boxes], index=span, crs=layers.images.crs)
    return region


def _queries(sampler: str, region: Any, **options: Any) -> list[Any]:
    """Return all queries of one of TorchGeo's samplers over a region.

    TorchGeo 0.10 deprecates these samplers in favour of others that shrink each box by the diagonal of a crop, so that
    a block of a crop's size yields nothing; the old ones give the same crops in all versions.
    """
    from torchgeo import samplers

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Use (torchgeo|geopandas)", category=DeprecationWarning)
        return list(getattr(samplers, sampler)(region, **options))


def _whole(query: Any, res: tuple[float, float], size_px: int) -> Box:
    """Return the box of a sampler's query, exactly `size_px` pixels."""
    x, y = float(query[0].start), float(query[1].start)
    return Box(x, y, x + size_px * res[0], y + size_px * res[1])
