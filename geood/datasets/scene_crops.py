"""Training scenes: what a config's images and labels are, on the ground, as crops ready for a network.

`open_scenes` finds and checks the files, splits the ground into blocks, draws the pool of training crops and looks at
each once: crops that hold an anomaly pixel are left out (the clean hold-out), and the rest give the band statistics
and the counts that are reported. TorchGeo does the reading and drawing, behind `layers` and `blocks`; it is imported
on the first use, for it takes seconds and `find_files` needs none of it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geood.atomic import atomic_write
from geood.config.sections import Config
from geood.datasets.crops import Crops
from geood.datasets.files import check_images, find_files
from geood.datasets.samples import CropPixels, seed_of
from geood.errors import DataError
from geood.geo.bands import bands_from_samples
from geood.geo.grid import metres_per_unit
from geood.geo.labels import VECTOR_SUFFIXES

if TYPE_CHECKING:
    from geood.datasets.spatial_split import Blocks
    from geood.datasets.torchgeo_layers import Box, LabelledImages

log = logging.getLogger("geood")

DRAWS = 4  # a crop without enough data is drawn again, this many times the number of crops in all


@dataclass(frozen=True)
class SceneGround:
    """Labelled scenes and the blocks that divide them; a place is a `Box` in the CRS of the first image."""

    layers: LabelledImages
    blocks: Blocks

    def read(self, place: Box, *, validation: bool) -> CropPixels:
        """The pixels of a box.

        Raises:
            DataError: a file cannot be read.
        """
        from geood.datasets.spatial_split import own_pixels

        return own_pixels(self.layers, self.blocks, place, validation=validation)

    def name(self, place: Box) -> str:
        """The image that a box lies in, and where."""
        files = self.layers.images.files_at(place)
        x, y = (place.xmin + place.xmax) / 2, (place.ymin + place.ymax) / 2
        return f"{Path(files[0]).name} at x {x:.9g}, y {y:.9g}"

    def write_split(self, folder: Path, training: tuple[Box, ...], validation: tuple[Box, ...]) -> None:
        """Write blocks and crops with their side (train, validation) as layers of `folder/split.gpkg`."""
        import geopandas as gpd
        from shapely.geometry import box as polygon

        sides = (("train", self.blocks.training), ("validation", self.blocks.validation))
        rows = [(side, self.blocks.polygon(cell)) for side, cells in sides for cell in sorted(cells)]
        crops = [("train", polygon(*b)) for b in training] + [("validation", polygon(*b)) for b in validation]
        crs = self.layers.images.crs
        with atomic_write(folder / "split.gpkg") as partial:
            for layer, found in (("blocks", rows), ("crops", crops)):
                frame = gpd.GeoDataFrame({"split": [s for s, _ in found]}, geometry=[g for _, g in found], crs=crs)
                frame.to_file(partial, layer=layer, driver="GPKG", engine="pyogrio")


def open_scenes(config: Config) -> Crops:
    """Find, check, split and screen the training scenes of a config. The same config gives the same scenes.

    Raises:
        DataError: a file is missing or cannot be used, labels and images do not fit, or no crop is left to train on.
    """
    from geood.datasets.screening import Screening, labelled, report_screening, screen, why_nothing
    from geood.datasets.spatial_split import draw_crops, grid_crops, split_blocks

    data, seed = config.data, config.train.seed
    layers, names, indexes, dtype, count = _open_layers(config)
    blocks, pieces = split_blocks(layers, block_m=data.block_m, share=data.validation, seed=seed)
    size = math.ceil(data.crop_px / data.scale_min)
    drawn = draw_crops(layers, blocks, pieces, size_px=size, number=DRAWS * data.crops, seed=seed_of(seed, 2))
    report = Screening()
    ground = SceneGround(layers, blocks)
    training, values = screen(drawn, partial(ground.read, validation=False), config=config, report=report)
    if not training:
        raise DataError(why_nothing(report, config))
    grid = grid_crops(layers, blocks, pieces, size_px=data.crop_px)
    validation = labelled(grid, partial(ground.read, validation=True), config=config)
    report.validation_crops = len(validation)
    box = training[0]
    per_x, per_y = metres_per_unit(layers.images.crs, box.xmin, box.ymin)
    report_screening(report, config)
    return Crops(
        config=config,
        bands=bands_from_samples(config.bands, names, indexes=indexes, values=values, dtype=dtype, scene_count=count),
        class_ids=tuple(sorted(data.classes)),
        report=report,
        resolution_m=math.sqrt(layers.res[0] * per_x * layers.res[1] * per_y),
        ground=ground,
        training_boxes=tuple(training),
        validation_boxes=tuple(validation),
    )


def _open_layers(config: Config) -> tuple[LabelledImages, tuple[str, ...], tuple[int, ...], np.dtype[Any], int | None]:
    """Images joined with labels, and the bands that are used: names, indexes, dtype, bands a scene must have."""
    from geood.datasets.torchgeo_layers import ImageLayer, LabelLayer, LabelledImages, VectorLabels, open_label_raster

    data = config.data
    images = find_files(data.root, data.images, what="data.images")
    labels = find_files(data.root, data.labels, what="data.labels")
    both = sorted(set(images) & set(labels))
    if both:
        raise DataError(
            f"{both[0]}: named by data.images and by data.labels; make the patterns narrower, for example tile?.tif "
            "instead of tile*.tif"
        )
    names, indexes, dtype, count = check_images(images, config)
    layer = ImageLayer(images, indexes=indexes, nodata=config.bands.nodata, res=data.resolution)
    vectors = [p for p in labels if p.suffix.lower() in VECTOR_SUFFIXES]
    res = (float(layer.res[0]), float(layer.res[1]))
    truth: LabelLayer | VectorLabels
    if vectors:
        if len(labels) > 1:
            raise DataError(
                f"data.labels: one vector file or rasters, not both or several; got {labels[0]}, {labels[1]}"
            )
        truth = VectorLabels(vectors[0], attribute=data.label_attribute, crs=layer.target_crs, res=res)
    else:
        for path in labels:
            open_label_raster(str(path)).close()
        truth = LabelLayer(labels, crs=layer.target_crs, res=res)
    joined = LabelledImages(layer, truth)
    unused = sorted({str(p) for p in images} - set(joined.joint.index.filepath_1))
    if unused:
        log.warning("%d of %d images have no labels and are not used, %s first", len(unused), len(images), unused[0])
    return joined, names, indexes, dtype, count
