"""Training crops from georeferenced scenes and their labels.

`open_scenes` finds and checks the files, splits the ground into blocks, and draws the pool of training crops and the
validation grid; screening and band statistics are `crops.build_crops`. TorchGeo reads and draws, behind
`torchgeo_layers` and `spatial_split`; it is imported on first use, because the import takes seconds.
"""

from __future__ import annotations

import atexit
import logging
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from geood.atomic import atomic_write
from geood.config import Config
from geood.datasets.crops import Crops, build_crops
from geood.datasets.files import check_images, find_files
from geood.datasets.reviewed_ground import ATTRIBUTE, ReviewedScenes, read_false_alarms, reviewed_crops
from geood.datasets.samples import CropPixels, Ground, TrainingBands, grown, seed_of, span_around
from geood.datasets.unreadable import Skipped, without_unreadable
from geood.errors import DataError
from geood.geo.grid import metres_per_unit, oblong
from geood.geo.labels.burnt import burn_labels
from geood.geo.labels.id_shapes import shapes_on
from geood.geo.labels.reading import are_vectors, open_labels
from geood.geo.labels.rules import PLAIN, LabelRules, rules_of
from geood.geo.ogr import fixed_time, plain_path
from geood.geo.qgis.styles import embed_style, split_style
from geood.geo.scene import Scene

if TYPE_CHECKING:
    from geood.datasets.spatial_split import Blocks
    from geood.datasets.torchgeo_layers import Box, LabelledImages

log = logging.getLogger("geood")

REVIEWED = "reviewed"  # folder of rasters burnt from reviewed ground, which may have the names of others
DRAWS = 4  # crops drawn per crop asked for, to replace those without enough data


@dataclass(frozen=True)
class SceneGround:
    """Labelled scenes and the blocks that divide them; a crop is a `Box` in the CRS of the first image.

    `labels` are the rasters of class ids that the layers read, by the rules `rules`.
    """

    layers: LabelledImages
    blocks: Blocks
    labels: tuple[Path, ...] = ()
    rules: LabelRules = PLAIN

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

    def files(self) -> tuple[Path, ...]:
        """Return the images, and the rasters that labels are read from."""
        return (*map(Path, self.layers.images.index.filepath), *self.labels)

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


def open_scenes(config: Config, folder: Path | None = None) -> Crops:
    """Find, check, split and screen the training scenes of a config. The same config gives the same scenes.

    Vector labels are burnt to rasters in `folder`; None: in a temporary one, which the process leaves with.

    Raises:
        DataError: a file is missing or cannot be used, labels and images do not fit, or no crop is left to train on.
    """
    from geood.datasets.spatial_split import draw_crops, grid_crops, split_blocks

    data, seed = config.data, config.train.seed
    folder = folder or _temporary()
    layers, bands, found = _open_layers(config, folder)
    blocks, pieces = split_blocks(layers, block_m=data.block_m, share=data.validation, seed=seed)
    size = math.ceil(data.crop_px / data.scale_min)
    drawn: list[Any] = draw_crops(
        layers, blocks, pieces, size_px=size, number=DRAWS * data.crops, seed=seed_of(seed, 2)
    )
    grid = grid_crops(layers, blocks, pieces, size_px=data.crop_px)
    ground: Ground = SceneGround(layers, blocks, found.files, found.rules)
    if data.reviewed_images:
        reviewed, pairs, alarms = _open_reviewed(config, layers, bands, folder)
        ground = ReviewedScenes(ground, blocks, reviewed, alarms)
        number = max(1, round(data.reviewed_share * data.crops))
        drawn = [*reviewed_crops(reviewed, pairs, size_px=size, number=number, seed=seed_of(seed, 4)), *drawn]
    crops = build_crops(config, ground, bands=bands, drawn=drawn, grid=grid)
    return replace(crops, skipped=tuple(found.skipped))


def _open_reviewed(
    config: Config, scenes: LabelledImages, bands: TrainingBands, folder: Path
) -> tuple[LabelledImages, list[tuple[int, Any]], tuple[Any, ...]]:
    """Open reviewed images and labels in the CRS and at the resolution of the scenes.

    Also return the polygons with their ids, and those that are false alarms.
    """
    from geood.datasets.torchgeo_layers import ImageLayer, LabelLayer, LabelledImages

    data = config.data
    images = find_files(data.root, data.reviewed_images, what="data.reviewed_images")
    labels = find_files(data.root, [data.reviewed_labels or ""], what="data.reviewed_labels")
    first = find_files(data.root, data.images, what="data.images")[0]
    check_images([first, *(path for path in images if path != first)], config)
    layer = ImageLayer(images, bands, nodata=config.bands.nodata, res=scenes.res, crs=scenes.images.target_crs)
    rules = LabelRules(ATTRIBUTE)
    burnt = _burnt(labels, images, rules, folder / REVIEWED)
    truth = LabelLayer(burnt, crs=layer.target_crs, res=scenes.res, rules=PLAIN)
    shapes = shapes_on(labels, layer.ground, rules)
    pairs = [] if shapes is None else shapes.pairs
    return LabelledImages(layer, truth), pairs, read_false_alarms(labels[0], layer.target_crs)


class _Labels(NamedTuple):
    """Rasters of class ids, the rules by which they are read, and files that could not be read."""

    files: tuple[Path, ...]
    rules: LabelRules
    skipped: list[Skipped]


def _temporary() -> Path:
    """Return a folder that lasts as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="geood-labels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _burnt(labels: Sequence[Path], images: Sequence[Path], rules: LabelRules, folder: Path) -> tuple[Path, ...]:
    """Burn vector labels onto the pixels of images.

    Raises:
        DataError: no shape lies on any image, or a file cannot be used.
    """
    grids = {}
    for path in images:
        with Scene.open(path) as scene:
            grids[path] = scene.grid
    burnt = burn_labels(labels, grids, rules, folder)
    if not burnt:
        open_labels(labels, next(iter(grids.values())), rules).close()  # says where the first image lies
        raise DataError(f"{labels[0]}: its shapes hold no pixel of the images; draw larger ones")
    return burnt


def _open_layers(config: Config, folder: Path) -> tuple[LabelledImages, TrainingBands, _Labels]:
    """Find and check images and labels; return them joined, the bands that are used, and the rasters of labels."""
    from geood.datasets.torchgeo_layers import IMAGE, ImageLayer, LabelLayer, LabelledImages, open_label_raster

    data = config.data
    images = find_files(data.root, data.images, what="data.images")
    labels = find_files(data.root, data.labels, what="data.labels")
    both = sorted(set(images) & set(labels))
    if both:
        raise DataError(
            f"{both[0]}: named by data.images and by data.labels; make the patterns narrower, for example tile?.tif "
            "instead of tile*.tif"
        )
    vectors, skipped = are_vectors(labels), list[Skipped]()
    if data.unreadable == "skip":
        images, skipped = without_unreadable(images, lambda path: [path], what="images")
        if not vectors:
            labels, more = without_unreadable(labels, lambda path: [path], what="label files")
            skipped += more
    bands = check_images(images, config)
    layer = ImageLayer(images, bands, nodata=config.bands.nodata, res=data.resolution)
    res = (float(layer.res[0]), float(layer.res[1]))
    if (sides := oblong(layer.ground)) is not None:
        log.warning(
            "the pixels of crops are %s: a model of them is for scenes of such pixels alone; for others bring the "
            "images to a CRS in metres first (gdalwarp -r bilinear -t_srs, with their UTM zone)",
            sides,
        )
    if vectors:
        found = _Labels(_burnt(labels, images, rules_of(data), folder), PLAIN, skipped)
    else:
        found = _Labels(tuple(labels), rules_of(data), skipped)
        for path in labels:
            open_label_raster(str(path)).close()
    truth = LabelLayer(found.files, crs=layer.target_crs, res=res, rules=found.rules)
    joined = LabelledImages(layer, truth)
    unused = sorted({str(p) for p in images} - set(joined.joint.index[IMAGE]))
    if unused:
        log.warning(
            "images without labels, which are not used: %d of %d, such as %s", len(unused), len(images), unused[0]
        )
    return joined, bands, found
