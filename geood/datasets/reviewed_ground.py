"""Reviewed ground beside the training scenes: places that a person has judged, always on the training side.

The labels are polygons of class ids with nothing between them: most of such a scene is unlabelled. So crops are not
drawn at random but around the polygons, each polygon as often as any other, at a random place of the crop. The split of
the scenes stays what it is without them: pixels in a block that validates are masked here too. Crops that show an
anomaly are left out like all others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyogrio.errors import DataSourceError
from rasterio.crs import CRS
from rasterio.features import rasterize

from geood.constants import IGNORE, UNSTATED
from geood.datasets.samples import UNSTATED_ID, CropPixels, Ground
from geood.errors import DataError, shown
from geood.geo.ogr import local_file

if TYPE_CHECKING:
    from geood.datasets.spatial_split import Blocks
    from geood.datasets.torchgeo_layers import Box, LabelledImages

ATTRIBUTE = "class_id"  # of the polygons in a file of reviewed labels
ORIGIN, FALSE = "origin", "false"  # column of such a file that tells false alarms from other ground, where it has one
SQUARE_PX, AROUND_PX = 256, 128  # side of the squares in which false alarms are read, and how much around them


class FalseAlarms(NamedTuple):
    """Ground around false alarms: pixels without labels, and which of them are one, (H, W) bool."""

    pixels: CropPixels
    false: NDArray[np.bool_]


class ReviewedCrop(NamedTuple):
    """Crop around a reviewed polygon: a box in the CRS of the training images."""

    box: Box


@dataclass(frozen=True)
class ReviewedScenes:
    """Training scenes and reviewed ground beside them; a crop is a `Box` of the former or a `ReviewedCrop`.

    `alarms` are the shapes of what a person called false alarms, in the CRS of the images.
    """

    scenes: Ground
    blocks: Blocks
    layers: LabelledImages
    alarms: tuple[Any, ...] = ()

    def read(self, crop: Any, *, validation: bool) -> CropPixels:
        """Read the pixels of a crop; those that the other side of the split owns are invalid and unlabelled.

        Raises:
            DataError: a file cannot be read.
        """
        if not isinstance(crop, ReviewedCrop):
            return self.scenes.read(crop, validation=validation)
        pixels = self.layers.read(crop.box)
        valid = pixels.valid & ~self.blocks.owned(crop.box, pixels.valid.shape, validation=True)
        ids = np.where(valid, pixels.ids, IGNORE)
        return pixels._replace(valid=valid, ids=np.where(ids == UNSTATED, UNSTATED_ID, ids))

    def false_alarms(self) -> Iterator[FalseAlarms]:
        """Yield squares of ground that together show every false alarm once, with ground around it.

        They lie on the pixels of their image in steps of 32, as the tiles of `predict` do. Pixels in a block that
        validates are none, and neither are those on which another verdict was drawn later.

        Raises:
            DataError: a file cannot be read.
        """
        for box, shapes in _squares(self.layers, self.alarms):
            pixels = self.layers.read(box)
            shape, step = pixels.valid.shape, self.layers.res
            burnt = rasterize(shapes, shape, transform=Affine(step[0], 0, box.xmin, 0, -step[1], box.ymax)) > 0
            burnt &= pixels.valid & (pixels.ids != IGNORE) & ~self.blocks.owned(box, shape, validation=True)
            inside = np.zeros(shape, bool)
            inside[AROUND_PX:-AROUND_PX, AROUND_PX:-AROUND_PX] = True
            if (burnt & inside).any():
                yield FalseAlarms(pixels._replace(ids=np.full(shape, IGNORE, np.int64)), burnt & inside)

    def around(self, crop: Any, height: int, width: int) -> CropPixels:
        """Read `height` x `width` pixels around a crop of the scenes, see `Ground`."""
        return self.scenes.around(crop, height, width)

    def name(self, crop: Any) -> str:
        """Return the name of the image that a crop lies in, and the crop's centre."""
        if not isinstance(crop, ReviewedCrop):
            return self.scenes.name(crop)
        files = self.layers.images.files_at(crop.box)
        return f"{Path(files[0]).name if files else 'reviewed ground'} at x {_middle(crop.box)[0]:.9g}"

    def resolution_m(self, crop: Any) -> float | None:
        """Return the size of a pixel in metres at a crop."""
        return self.scenes.resolution_m(crop.box if isinstance(crop, ReviewedCrop) else crop)

    def files(self) -> tuple[Path, ...]:
        """Return images and labels of the scenes and of the reviewed ground."""
        own = (Path(path) for layer in (self.layers.images, self.layers.labels) for path in layer.index.filepath)
        return (*self.scenes.files(), *own)

    def write_split(self, folder: Path, training: tuple[Any, ...], validation: tuple[Any, ...]) -> None:
        """Write blocks and crops with their side to `folder/split.gpkg`; crops of reviewed ground are of training."""
        boxes = tuple(crop.box if isinstance(crop, ReviewedCrop) else crop for crop in training)
        self.scenes.write_split(folder, boxes, validation)


def reviewed_crops(
    layers: LabelledImages, pairs: list[tuple[int, Any]], *, size_px: int, number: int, seed: int
) -> list[ReviewedCrop]:
    """Draw `number` crops around the labelled polygons, in rounds through all of them in random order.

    Args:
        layers: images and labels of the reviewed ground.
        pairs: class id and shape of each polygon; those of 255 are not drawn around.
        size_px: side of a crop, pixels.
        number: how many crops.
        seed: of places and order.
    """
    shapes = [shape for class_id, shape in pairs if class_id != IGNORE and not shape.is_empty]
    rng = np.random.default_rng(seed)
    crops: list[ReviewedCrop] = []
    while shapes and len(crops) < number:
        for i in rng.permutation(len(shapes)):
            box = _around(layers, _point_in(shapes[int(i)], rng), size_px, rng)
            crops += [] if box is None else [ReviewedCrop(box)]
        if not crops:  # no image under any of them
            return []
    return crops[:number]


def read_false_alarms(path: Path, crs: CRS | None) -> tuple[Any, ...]:
    """Read the shapes of false alarms in a file of reviewed labels, in a CRS; none if the file does not tell them.

    Raises:
        DataError: the file cannot be read.
    """
    import pyogrio

    with local_file(path) as plain:
        try:
            layers = [name for name, _ in pyogrio.list_layers(plain)]
            told = [name for name in layers if ORIGIN in pyogrio.read_info(plain, layer=name)["fields"]]
            frames = [pyogrio.read_dataframe(plain, layer=name, columns=[ORIGIN]) for name in told]
        except DataSourceError as error:
            raise DataError(f"{path}: cannot be read ({shown(error)}); write it again with geood feedback") from None
    found: list[Any] = []
    for frame in frames:
        shapes = frame.geometry[(frame[ORIGIN] == FALSE) & frame.geometry.notna()]
        found += list(shapes.to_crs(crs) if shapes.crs is not None and crs is not None else shapes)
    return tuple(shape for shape in found if not shape.is_empty)


def _squares(layers: LabelledImages, shapes: tuple[Any, ...]) -> list[tuple[Box, list[Any]]]:
    """Return the squares of a lattice on each image that shapes touch, grown by what is read around, with the shapes.

    A shape belongs to the first image under it.
    """
    from geood.datasets.torchgeo_layers import Box

    xres, yres = layers.res
    found: dict[tuple[float, float, int, int], list[Any]] = {}
    for shape in shapes:
        paths = layers.images.files_at(Box(*shape.bounds))
        if not paths:
            continue
        image = layers.images.footprint(Box(*shape.bounds))
        west, south, east, north = shape.bounds
        cols = range(*_cells((west - image.xmin) / xres, (east - image.xmin) / xres))
        rows = range(*_cells((image.ymax - north) / yres, (image.ymax - south) / yres))
        for row, col in itertools.product(rows, cols):
            found.setdefault((image.xmin, image.ymax, row, col), []).append(shape)
    boxes = []
    for (xmin, ymax, row, col), some in sorted(found.items(), key=lambda item: item[0]):
        west, north = xmin + (col * SQUARE_PX - AROUND_PX) * xres, ymax - (row * SQUARE_PX - AROUND_PX) * yres
        side = SQUARE_PX + 2 * AROUND_PX
        boxes.append((Box(west, north - side * yres, west + side * xres, north), some))
    return boxes


def _cells(low: float, high: float) -> tuple[int, int]:
    """Return first and end of the squares that a range of pixels lies in."""
    return math.floor(low / SQUARE_PX), math.floor(high / SQUARE_PX) + 1


def _point_in(shape: Any, rng: np.random.Generator) -> tuple[float, float]:
    """Return a random point of a polygon; one that is certainly inside where chance finds none."""
    import shapely

    west, south, east, north = shape.bounds
    for _ in range(20):
        x, y = rng.uniform(west, east), rng.uniform(south, north)
        if shape.covers(shapely.Point(x, y)):
            return float(x), float(y)
    inside = shape.representative_point()
    return inside.x, inside.y


def _around(layers: LabelledImages, point: tuple[float, float], size_px: int, rng: np.random.Generator) -> Box | None:
    """Return a box on the pixels of the image under a point, which lies in its middle half; None without an image."""
    from geood.datasets.torchgeo_layers import Box

    x, y = point
    (xres, yres), bounds = layers.res, layers.images.box_at(Box(x, y, x, y))
    if bounds is None:
        return None
    col = math.floor((x - bounds.xmin) / xres) - round(size_px * rng.uniform(0.25, 0.75))
    row = math.floor((y - bounds.ymin) / yres) - round(size_px * rng.uniform(0.25, 0.75))
    west, south = bounds.xmin + col * xres, bounds.ymin + row * yres
    return Box(west, south, west + size_px * xres, south + size_px * yres)


def _middle(box: Box) -> tuple[float, float]:
    return (box.xmin + box.xmax) / 2, (box.ymin + box.ymax) / 2
