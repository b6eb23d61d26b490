"""Reviewed ground beside the training scenes: places that a person has judged, always on the training side.

The labels are polygons of class ids with nothing between them: most of such a scene is unlabelled. So crops are not
drawn at random but around the polygons, each polygon as often as any other, at a random place of the crop. The split of
the scenes stays what it is without them: pixels in a block that validates are masked here too. Crops that show an
anomaly are left out like all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from geood.constants import IGNORE, UNSTATED
from geood.datasets.samples import UNSTATED_ID, CropPixels, Ground

if TYPE_CHECKING:
    from geood.datasets.spatial_split import Blocks
    from geood.datasets.torchgeo_layers import Box, LabelledImages

ATTRIBUTE = "class_id"  # of the polygons in a file of reviewed labels


class ReviewedCrop(NamedTuple):
    """Crop around a reviewed polygon: a box in the CRS of the training images."""

    box: Box


@dataclass(frozen=True)
class ReviewedScenes:
    """Training scenes and reviewed ground beside them; a crop is a `Box` of the former or a `ReviewedCrop`."""

    scenes: Ground
    blocks: Blocks
    layers: LabelledImages

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
