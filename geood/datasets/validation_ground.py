"""Validation ground as whole images: the parts of training images that were kept apart, as `predict` would meet them.

Crops of the validation blocks serve the figures of a training. What is promised of a map must be measured as maps are
made: in the tiles of a whole image, with the pixels around a block in view. So here a part of an image is a window on
its own grid, with a mask of the pixels that validation owns and the class ids on them. Where images overlap, both
count. How images are read and scored for a model is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyproj
from numpy.typing import NDArray
from rasterio.warp import transform_bounds

from geood.config import Config
from geood.constants import IGNORE
from geood.datasets.frames import Decoded, decode
from geood.datasets.photo_crops import Gallery
from geood.datasets.reviewed_ground import ReviewedScenes
from geood.datasets.samples import Ground
from geood.datasets.scene_crops import SceneGround
from geood.errors import ElsewhereError
from geood.geo.grid import Grid, Window
from geood.geo.labels.reading import open_labels
from geood.geo.scene import Scene

if TYPE_CHECKING:
    from geood.datasets.spatial_split import Blocks, Cell

LOOKED_AT = 16  # times the blocks that are asked for: so many parts are looked at for labels


@dataclass(frozen=True)
class ValidationPart:
    """Part of an image that validation owns: a window on the image's own grid. Parts of one `block` go together."""

    image: Path
    block: str
    window: Window


class PartIds(Protocol):
    """Reader of the class ids of one image, and of what validation owns of it."""

    def read(self, part: ValidationPart) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return the pixels of a part that validation owns (h, w), and the class ids (h, w), 255 where unknown."""


def validation_parts(ground: Ground, config: Config) -> list[ValidationPart]:
    """Return the parts of all images that validation owns, in the order of the images; none of what is not a file.

    Raises:
        DataError: an image cannot be read.
    """
    if isinstance(ground, Gallery):
        return [_whole_frame(ground, number) for number in sorted(ground.validation)]
    ground = _scenes_of(ground)
    if not isinstance(ground, SceneGround):
        return []
    parts: list[ValidationPart] = []
    for path in dict.fromkeys(str(file) for file in ground.layers.images.index.filepath):
        with Scene.open(path, config.bands.nodata) as scene:
            parts += _parts_of_scene(Path(path), scene.grid, ground)
    return parts


def _scenes_of(ground: Ground) -> Ground:
    """Return the scenes alone: reviewed ground beside them is never validated on."""
    return ground.scenes if isinstance(ground, ReviewedScenes) else ground


def _whole_frame(gallery: Gallery, number: int) -> ValidationPart:
    size = gallery.sizes[number]
    return ValidationPart(gallery.frames[number].image, f"image {number}", Window(0, 0, size.height, size.width))


def _parts_of_scene(path: Path, grid: Grid, ground: SceneGround) -> Iterator[ValidationPart]:
    """Yield the windows of an image in which a validation block lies, by its bounding box."""
    crs = ground.layers.images.crs
    inverse = ~grid.transform
    for cell in sorted(ground.blocks.validation):
        bounds = ground.blocks.polygon(cell).bounds
        if grid.crs != crs:
            bounds = transform_bounds(crs, grid.crs, *bounds)
        west, south, east, north = bounds
        corners = ((west, north), (east, north), (east, south), (west, south))  # all four: the grid may be turned
        cols, rows = zip(*(inverse @ corner for corner in corners), strict=True)
        top, left = int(np.floor(min(rows) + 1e-6)), int(np.floor(min(cols) + 1e-6))
        bottom, right = int(np.ceil(max(rows) - 1e-6)), int(np.ceil(max(cols) - 1e-6))
        window = Window(top, left, bottom - top, right - left).within(grid.window)
        if window.height and window.width:
            yield ValidationPart(path, f"block {cell[0]} {cell[1]}", window)


def open_ids(
    ground: Ground, config: Config, image: Path, grid: Grid, *, decoded: Decoded | None = None
) -> AbstractContextManager[PartIds | None]:
    """Open the class ids of an image with this grid; None if none of its labels are of this image.

    `decoded` is that of a photograph, by `decoded_frame`; None: it is read.

    Raises:
        DataError: a label file cannot be read.
    """
    ground = _scenes_of(ground)
    if isinstance(ground, SceneGround):
        return _scene_ids(ground, grid)
    assert isinstance(ground, Gallery)
    return _frame_ids(decoded_frame(ground, image) if decoded is None else decoded)


def labelled_blocks(ground: Ground, config: Config, most: int) -> int:
    """Count the blocks of validation ground on which a class is drawn, up to `most`; some are looked at, not all.

    Raises:
        DataError: a file cannot be read.
    """
    found: set[str] = set()
    for image, parts in groupby(validation_parts(ground, config)[: LOOKED_AT * most], key=lambda part: part.image):
        with Scene.open(str(image), config.bands.nodata) as scene:
            grid = scene.grid
        with open_ids(ground, config, image, grid) as ids:
            for part in parts:
                if (
                    ids is not None
                    and len(found) < most
                    and np.isin(ids.read(part)[1], list(config.data.classes)).any()
                ):
                    found.add(part.block)
    return len(found)


def decoded_frame(ground: Ground, image: Path) -> Decoded | None:
    """Return the whole pixels of a photograph as viewers show it; None if the ground is of scenes.

    Raises:
        DataError: the photograph cannot be read.
    """
    if not isinstance(ground, Gallery):
        return None
    frame = next(frame for frame in ground.frames if frame.image == image)
    return decode(
        frame, indexes=ground.indexes, nodata=ground.nodata, measured=ground.measured, label_ids=ground.label_ids
    )


@dataclass(frozen=True)
class _FrameIds:
    ids: NDArray[np.int64]

    def read(self, part: ValidationPart) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        ids = self.ids[part.window.slices]
        return np.ones(ids.shape, np.bool_), ids


@contextmanager
def _frame_ids(decoded: Decoded | None) -> Iterator[PartIds]:
    assert decoded is not None
    yield _FrameIds(decoded.ids.astype(np.int64))


@dataclass(frozen=True)
class _SceneIds:
    labels: object
    grid: Grid
    blocks: Blocks
    to_blocks: pyproj.Transformer | None

    def read(self, part: ValidationPart) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        owned = self._owned(part)
        ids = self.labels.read(part.window)  # type: ignore[attr-defined]
        return owned, np.where(owned, ids, IGNORE)

    def _owned(self, part: ValidationPart) -> NDArray[np.bool_]:
        """Return the pixels whose centre lies in the part's own block."""
        rows, cols = np.mgrid[: part.window.height, : part.window.width] + 0.5
        t = self.grid[part.window].transform
        x, y = t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f
        if self.to_blocks is not None:
            x, y = self.to_blocks.transform(x, y)
        col, row = (int(number) for number in part.block.split()[1:])
        return _in_cell(self.blocks, (col, row), x, y)


def _in_cell(blocks: Blocks, cell: Cell, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (np.floor((x - blocks.west) / blocks.width) == cell[0]) & (
        np.floor((blocks.north - y) / blocks.height) == cell[1]
    )
    return inside


@contextmanager
def _scene_ids(ground: SceneGround, grid: Grid) -> Iterator[PartIds | None]:
    crs, opened = ground.layers.images.crs, None
    with suppress(ElsewhereError):  # of an image without labels nothing is trained or validated
        opened = open_labels(ground.labels, grid, ground.rules)
    if opened is None:
        yield None
        return
    change = None if grid.crs == crs else pyproj.Transformer.from_crs(grid.crs, crs, always_xy=True)
    with opened:
        yield _SceneIds(opened, grid, ground.blocks, change)
