"""Training crops from georeferenced scenes and their labels.

`open_scenes` finds and checks the files, splits the ground into blocks, and draws the pool of training crops and the
validation grid; screening and band statistics are `crops.build_crops`. TorchGeo reads and draws, behind
`torchgeo_layers` and `spatial_split`; it is imported on first use, because the import takes seconds.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geood.atomic import atomic_write
from geood.config import Config
from geood.datasets.crops import Crops, build_crops
from geood.datasets.files import check_images, find_files
from geood.datasets.reviewed_ground import ATTRIBUTE, ReviewedScenes, reviewed_crops
from geood.datasets.samples import CropPixels, Ground, TrainingBands, grown, seed_of, span_around
from geood.errors import DataError
from geood.geo.grid import metres_per_unit
from geood.geo.labels import LabelRules
from geood.geo.ogr import fixed_time, plain_path
from geood.geo.qgis import embed_style, split_style
from geood.geo.vector import VECTOR_SUFFIXES

if TYPE_CHECKING:
    from geood.datasets.spatial_split import Blocks
    from geood.datasets.torchgeo_layers import Box, LabelledImages

log = logging.getLogger("geood")

DRAWS = 4  # crops drawn per crop asked for, to replace those without enough data


@dataclass(frozen=True)
class SceneGround:
    """Labelled scenes and the blocks that divide them; a crop is a `Box` in the CRS of the first image."""

    layers: LabelledImages
    blocks: Blocks

    def read(self, crop: Box, *, validation: bool) -> CropPixels:
        """Read the pixels of a crop; those in blocks of the other side are invalid and unlabelled.

        Raises:
            DataError: a file cannot be read.
        """
        from geood.datasets.spatial_split import own_pixels

        return own_pixels(self.layers, self.blocks, crop, validation=validation)

    def around(self, crop: Box, height: int, width: int) -> CropPixels:
        """Read `height` x `width` pixels around a crop, on the grid of the image that it lies in, without labels.

        Raises:
            DataError: a file cannot be read.
        """
        image, (x, y) = self.layers.images.footprint(crop), self.layers.res
        sizes = round((image.ymax - image.ymin) / y), round((image.xmax - image.xmin) / x)
        row, rows = span_around((image.ymax - (crop.ymin + crop.ymax) / 2) / y, height, sizes[0])
        col, cols = span_around(((crop.xmin + crop.xmax) / 2 - image.xmin) / x, width, sizes[1])
        west, north = image.xmin + col * x, image.ymax - row * y
        return grown(self.layers.images.read(type(crop)(west, north - rows * y, west + cols * x, north)), height, width)

    def name(self, crop: Box) -> str:
        """Return the name of the image that a crop lies in, and the crop's centre."""
        files = self.layers.images.files_at(crop)
        x, y = (crop.xmin + crop.xmax) / 2, (crop.ymin + crop.ymax) / 2
        return f"{Path(files[0]).name} at x {x:.9g}, y {y:.9g}"

    def resolution_m(self, crop: Box) -> float:
        """Return the size of a pixel in metres, the mean of both sides, at the lower left corner of a crop."""
        per_x, per_y = metres_per_unit(self.layers.images.crs, crop.xmin, crop.ymin)
        return math.sqrt(self.layers.res[0] * per_x * self.layers.res[1] * per_y)

    def write_split(self, folder: Path, training: tuple[Box, ...], validation: tuple[Box, ...]) -> None:
        """Write blocks and crops with their side (train, validation) as styled layers of `folder/split.gpkg`."""
        import geopandas as gpd
        from shapely.geometry import box as polygon

        sides = (("train", self.blocks.training), ("validation", self.blocks.validation))
        rows = [(side, self.blocks.polygon(cell)) for side, cells in sides for cell in sorted(cells)]
        crops = [("train", polygon(*b)) for b in training] + [("validation", polygon(*b)) for b in validation]
        crs = self.layers.images.crs
        with atomic_write(folder / "split.gpkg", alone=True) as partial, plain_path(partial) as plain, fixed_time():
            for layer, shapes in (("blocks", rows), ("crops", crops)):
                frame = gpd.GeoDataFrame({"split": [s for s, _ in shapes]}, geometry=[g for _, g in shapes], crs=crs)
                version = {} if partial.exists() else {"VERSION": "1.2"}  # which QGIS 3.22 reads in full
                frame.to_file(plain, layer=layer, driver="GPKG", engine="pyogrio", dataset_options=version)
                qml = split_style(layer)
                embed_style(partial, layer, geometry_column="geom", qml=qml, name=layer)


def open_scenes(config: Config) -> Crops:
    """Find, check, split and screen the training scenes of a config. The same config gives the same scenes.

    Raises:
        DataError: a file is missing or cannot be used, labels and images do not fit, or no crop is left to train on.
    """
    from geood.datasets.spatial_split import draw_crops, grid_crops, split_blocks

    data, seed = config.data, config.train.seed
    layers, bands = _open_layers(config)
    blocks, pieces = split_blocks(layers, block_m=data.block_m, share=data.validation, seed=seed)
    size = math.ceil(data.crop_px / data.scale_min)
    drawn: list[Any] = draw_crops(
        layers, blocks, pieces, size_px=size, number=DRAWS * data.crops, seed=seed_of(seed, 2)
    )
    grid = grid_crops(layers, blocks, pieces, size_px=data.crop_px)
    ground: Ground = SceneGround(layers, blocks)
    if data.reviewed_images:
        reviewed, pairs = _open_reviewed(config, layers, bands)
        ground, number = ReviewedScenes(ground, blocks, reviewed), max(1, round(data.reviewed_share * data.crops))
        drawn = [*reviewed_crops(reviewed, pairs, size_px=size, number=number, seed=seed_of(seed, 4)), *drawn]
    return build_crops(config, ground, bands=bands, drawn=drawn, grid=grid)


def _open_reviewed(
    config: Config, scenes: LabelledImages, bands: TrainingBands
) -> tuple[LabelledImages, list[tuple[int, Any]]]:
    """Open reviewed images and labels in the CRS and at the resolution of the scenes; also return the polygons."""
    from geood.datasets.torchgeo_layers import ImageLayer, LabelledImages, VectorLabels

    data = config.data
    images = find_files(data.root, data.reviewed_images, what="data.reviewed_images")
    labels = find_files(data.root, [data.reviewed_labels or ""], what="data.reviewed_labels")
    first = find_files(data.root, data.images, what="data.images")[0]
    check_images([first, *(path for path in images if path != first)], config)
    layer = ImageLayer(images, bands, nodata=config.bands.nodata, res=scenes.res, crs=scenes.images.target_crs)
    truth = VectorLabels(labels[0], ground=layer.ground, res=scenes.res, rules=LabelRules(ATTRIBUTE))
    return LabelledImages(layer, truth), truth.pairs


def _open_layers(config: Config) -> tuple[LabelledImages, TrainingBands]:
    """Find and check images and labels; return them joined, and the bands that are used."""
    from geood.datasets.torchgeo_layers import (
        IMAGE,
        ImageLayer,
        LabelLayer,
        LabelledImages,
        VectorLabels,
        open_label_raster,
    )

    data = config.data
    images = find_files(data.root, data.images, what="data.images")
    labels = find_files(data.root, data.labels, what="data.labels")
    both = sorted(set(images) & set(labels))
    if both:
        raise DataError(
            f"{both[0]}: named by data.images and by data.labels; make the patterns narrower, for example tile?.tif "
            "instead of tile*.tif"
        )
    bands = check_images(images, config)
    layer = ImageLayer(images, bands, nodata=config.bands.nodata, res=data.resolution)
    vectors = [p for p in labels if p.suffix.lower() in VECTOR_SUFFIXES]
    res = (float(layer.res[0]), float(layer.res[1]))
    rules = LabelRules(data.label_attribute, data.label_layer, data.label_ids)
    truth: LabelLayer | VectorLabels
    if vectors:
        if len(labels) > 1:
            raise DataError(
                f"data.labels: one vector file or rasters, not both or several; got {labels[0]}, {labels[1]}"
            )
        truth = VectorLabels(vectors[0], ground=layer.ground, res=res, rules=rules)
    else:
        for path in labels:
            open_label_raster(str(path)).close()
        truth = LabelLayer(labels, crs=layer.target_crs, res=res, rules=rules)
    joined = LabelledImages(layer, truth)
    unused = sorted({str(p) for p in images} - set(joined.joint.index[IMAGE]))
    if unused:
        log.warning("%d of %d images have no labels and are not used, %s first", len(unused), len(images), unused[0])
    return joined, bands
