"""Training scenes: what a config's images and labels are, as crops ready for a network.

`open_scenes` finds and checks the files, splits the ground into blocks, draws the pool of training crops and looks at
each once: crops that hold an anomaly pixel are left out (the clean hold-out), and the rest give the band statistics
and the counts that are reported. After that a training item is a pure function of seed and number, whatever process
reads it. TorchGeo does the reading and drawing, behind `layers` and `blocks`; it is imported on the first use, for it
takes seconds and `find_files` needs none of it.
"""

from __future__ import annotations

import difflib
import glob
import logging
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from geood.config import Config
from geood.datasets.augment import Sample, augment
from geood.errors import ConfigError, DataError
from geood.progress import Progress
from geood.raster import Bands, Scene, bands_from_samples

if TYPE_CHECKING:
    from geood.datasets.blocks import Blocks
    from geood.datasets.layers import Box, LabelledImages, Pixels

log = logging.getLogger("geood")

IGNORE = 255
RASTERS = (".tif", ".tiff")  # what is taken from a folder
VECTORS = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet")
DRAWS = 4  # a crop without enough data is drawn again, this many times the number of crops in all
STATISTICS_VALUES = 2_000_000  # most band values kept for percentiles; at 0.5 % that is 3,000 values a band beyond


@dataclass
class Screening:
    """What became of the crops that were drawn, and what their labels hold (pixels of overlapping crops count twice)."""

    drawn: int = 0
    kept: int = 0
    dropped_anomaly: int = 0
    dropped_invalid: int = 0
    dropped_unlabelled: int = 0
    validation_crops: int = 0
    unknown_ids: dict[int, int] = field(default_factory=dict)
    class_pixels: dict[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{self.drawn} training crops drawn: {self.kept} kept, {self.dropped_anomaly} with an anomaly pixel left out, "
            f"{self.dropped_invalid} with too little data, {self.dropped_unlabelled} without a label; "
            f"{self.validation_crops} validation crops"
        )


@dataclass(frozen=True)
class Scenes:
    """Screened training and validation crops of a config. Channel i of a network is the class `class_ids[i]`."""

    config: Config
    bands: Bands
    class_ids: tuple[int, ...]
    report: Screening
    resolution_m: float | None
    layers: LabelledImages
    blocks: Blocks
    training_boxes: tuple[Box, ...]
    validation_boxes: tuple[Box, ...]

    @property
    def crs(self) -> Any:
        """The CRS that all crops are read in: that of the first image."""
        return self.layers.images.target_crs

    def training(self, seed: int, length: int, *, rank: int = 0, world: int = 1) -> Dataset[Sample]:
        """`length` augmented training samples for one of `world` processes; sample i depends on seed, rank and i only.

        Every crop of the pool comes once before any comes again. A sample holds `image` float32 (C, S, S) in [0, 1],
        `mask` int64 (S, S) of channel numbers with 255 to ignore, `valid` bool (S, S) and `name`, S = data.crop_px.
        """
        return TrainingCrops(self, seed, length, rank, world)

    def validation(self) -> Dataset[Sample]:
        """The validation crops, in the form of `training`, always the same and unchanged by augmentation."""
        return ValidationCrops(self)

    def sample(self, box: Box, *, validation: bool) -> Sample:
        """The sample of one box, with all pixels of the other side's blocks made invalid.

        Raises:
            DataError: a file cannot be read.
        """
        pixels = _own_pixels(self.layers, self.blocks, box, validation=validation)
        mask = np.full(pixels.ids.shape, IGNORE, np.int64)
        for channel, class_id in enumerate(self.class_ids):
            mask[pixels.ids == class_id] = channel
        return {
            "image": torch.from_numpy(self.bands.scale(pixels.image, pixels.valid)),
            "mask": torch.from_numpy(mask),
            "valid": torch.from_numpy(pixels.valid),
            "name": self._name(box),
        }

    def _name(self, box: Box) -> str:
        """The image that a box lies in, and where."""
        files = self.layers.images.files_at(box)
        return f"{Path(files[0]).name} at x {(box.xmin + box.xmax) / 2:.9g}, y {(box.ymin + box.ymax) / 2:.9g}"

    def write_split(self, path: Path) -> None:
        """Write blocks and crops with their side (train, validation) as layers of a GeoPackage, for a look at the split."""
        import geopandas as gpd
        from shapely.geometry import box as polygon

        sides = (("train", self.blocks.training), ("validation", self.blocks.validation))
        rows = [(side, self.blocks.polygon(cell)) for side, cells in sides for cell in sorted(cells)]
        crops = [("train", polygon(*b)) for b in self.training_boxes]
        crops += [("validation", polygon(*b)) for b in self.validation_boxes]
        partial = path.with_name(f".{path.stem}.part{path.suffix}")
        partial.unlink(missing_ok=True)
        crs = self.layers.images.crs
        for layer, found in (("blocks", rows), ("crops", crops)):
            frame = gpd.GeoDataFrame({"split": [s for s, _ in found]}, geometry=[g for _, g in found], crs=crs)
            frame.to_file(partial, layer=layer, driver="GPKG", engine="pyogrio")
        os.replace(partial, path)


class TrainingCrops(Dataset[Sample]):
    """Item i of process `rank`: a crop of the pool, augmented; see `Scenes.training`."""

    def __init__(self, scenes: Scenes, seed: int, length: int, *place: int) -> None:
        self.scenes, self.seed, self.length = scenes, seed, length
        self.rank, self.world = place
        self._round = -1

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.length:
            raise IndexError(i)
        position = i * self.world + self.rank
        generator = torch.Generator().manual_seed(_seed(self.seed, 1, position))
        box = self.scenes.training_boxes[self._crop(position)]
        return augment(self.scenes.sample(box, validation=False), self.scenes.config.data, generator=generator)

    def _crop(self, position: int) -> int:
        """Number of the crop at a position of the endless stream of shuffled pools."""
        pool = len(self.scenes.training_boxes)
        if self._round != position // pool:
            self._round = position // pool
            self._order = np.random.default_rng([self.seed, 0, self._round]).permutation(pool)
        return int(self._order[position % pool])


class ValidationCrops(Dataset[Sample]):
    """The validation crops of a `Scenes`, in order."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes.validation_boxes)

    def __getitem__(self, i: int) -> Sample:
        return self.scenes.sample(self.scenes.validation_boxes[i], validation=True)


def open_scenes(config: Config) -> Scenes:
    """Find, check, split and screen the training scenes of a config. The same config gives the same scenes.

    Raises:
        DataError: a file is missing or cannot be used, labels and images do not fit, or no crop is left to train on.
    """
    from geood.datasets.blocks import draw_crops, grid_crops, metres_per_unit, split_blocks
    from geood.datasets.layers import LabelledImages

    data, seed = config.data, config.train.seed
    layers, names, indexes, dtype, count = _open_layers(config)
    blocks, pieces = split_blocks(layers, block_m=data.block_m, share=data.validation, seed=seed)
    size = math.ceil(data.crop_px / data.scale_min)
    drawn = draw_crops(layers, blocks, pieces, size_px=size, number=DRAWS * data.crops, seed=_seed(seed, 2))
    report = Screening()
    training, values = _screen(drawn, layers, blocks, config=config, report=report)
    if not training:
        raise DataError(_why_nothing(report, config))
    grid = grid_crops(layers, blocks, pieces, size_px=data.crop_px)
    validation = _labelled(grid, layers, blocks, config=config)
    report.validation_crops = len(validation)
    box = training[0]
    per_x, per_y = metres_per_unit(layers.images.crs, box.xmin, box.ymin)
    _say(report, config)
    return Scenes(
        config=config,
        bands=bands_from_samples(config.bands, names, indexes=indexes, values=values, dtype=dtype, scene_count=count),
        class_ids=tuple(sorted(data.classes)),
        report=report,
        resolution_m=math.sqrt(layers.res[0] * per_x * layers.res[1] * per_y),
        layers=layers,
        blocks=blocks,
        training_boxes=tuple(training),
        validation_boxes=tuple(validation),
    )


def find_files(root: str | Path, patterns: list[str], *, what: str) -> list[Path]:
    """The files that patterns name (a file, a glob, or a folder of GeoTIFFs), sorted, each once.

    Args:
        root: folder that patterns start from.
        patterns: as they stand in a config.
        what: the config key they come from, for the error.

    Raises:
        DataError: a pattern names nothing.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(root) / pattern
        if path.is_dir():
            hits = [p for p in path.rglob("*") if p.suffix.lower() in RASTERS]
        elif path.is_file():
            hits = [path]
        else:
            hits = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
        if not hits:
            raise DataError(f"{what}: {pattern!r} names no file under {root}{_near(Path(root), pattern)}")
        found.update(hits)
    return sorted(found)


def _near(root: Path, pattern: str) -> str:
    """What a user may have meant, or what lies in the folder."""
    if not root.is_dir():
        return "; that folder does not exist, check data.root"
    names = [str(p.relative_to(root)) for p in sorted(root.rglob("*"))[:5000] if p.is_file()]
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
    return f"; near it: {', '.join(near)}" if near else "; the folder is empty"


def _open_layers(config: Config) -> tuple[LabelledImages, tuple[str, ...], tuple[int, ...], np.dtype[Any], int | None]:
    """Images joined with labels, and the bands that are used: names, indexes, dtype, bands a scene must have."""
    from geood.datasets.layers import ImageLayer, LabelLayer, LabelledImages, VectorLabels, open_label_raster

    data = config.data
    images = find_files(data.root, data.images, what="data.images")
    labels = find_files(data.root, data.labels, what="data.labels")
    both = sorted(set(images) & set(labels))
    if both:
        raise DataError(
            f"{both[0]}: named by data.images and by data.labels; make the patterns narrower (tile?.tif instead of tile*.tif)"
        )
    names, indexes, dtype, count = _check_images(images, config)
    layer = ImageLayer(images, indexes=indexes, nodata=config.bands.nodata, res=data.resolution)
    vectors = [p for p in labels if p.suffix.lower() in VECTORS]
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


def _check_images(
    paths: list[Path], config: Config
) -> tuple[tuple[str, ...], tuple[int, ...], np.dtype[Any], int | None]:
    """Open every image once; all must have a CRS, and the same bands of the same type."""
    first: tuple[Path, Scene] | None = None
    for path in paths:
        with Scene.open(path, nodata=config.bands.nodata) as scene:
            if scene.grid.crs is None:
                raise DataError(
                    f"{path}: this image has no CRS, and training needs one; set it (gdal_edit.py -a_srs EPSG:...)"
                )
            if first is None:
                first = path, scene
            if (scene.count, np.dtype(scene.dtype)) != (first[1].count, np.dtype(first[1].dtype)):
                raise DataError(
                    f"{path} has {scene.count} bands of {scene.dtype}, {first[0]} has {first[1].count} of {first[1].dtype}; "
                    "all training images need the same bands and the same type"
                )
    assert first is not None
    scene = first[1]
    indexes = tuple(config.bands.indexes or scene.band_indexes)
    if max(indexes) > max(scene.band_indexes):
        raise DataError(f"{first[0]} has bands 1 to {max(scene.band_indexes)}; bands.indexes asks for {max(indexes)}")
    names = tuple(_band_name(scene, i) for i in indexes)
    if config.bands.names and len(config.bands.names) != len(indexes):
        raise ConfigError(
            f"bands.names lists {len(config.bands.names)} names, but {len(indexes)} bands of {first[0]} are used "
            f"({', '.join(names)}); name each of them, or choose some with bands.indexes"
        )
    return names, indexes, np.dtype(scene.dtype), None if config.bands.indexes else scene.count


def _band_name(scene: Scene, index: int) -> str:
    known = dict(zip(scene.band_indexes, scene.band_names, strict=False))
    return str(known.get(index, f"band_{index}"))


def _own_pixels(layers: LabelledImages, blocks: Blocks, box: Box, *, validation: bool) -> Pixels:
    """The pixels of a box, those in blocks of the other side invalid and unlabelled."""
    pixels = layers.read(box)
    valid = pixels.valid & blocks.owned(box, pixels.valid.shape, validation=validation)
    return pixels._replace(valid=valid, ids=np.where(valid, pixels.ids, IGNORE))


def _screen(
    drawn: list[Box], layers: LabelledImages, blocks: Blocks, *, config: Config, report: Screening
) -> tuple[list[Box], NDArray[np.float32]]:
    """The crops to train on, and a sample of their valid band values (C, N)."""
    data = config.data
    kept: list[Box] = []
    values: list[NDArray[np.float32]] = []
    counts: Counter[int] = Counter()
    unknown: Counter[int] = Counter()
    rng = np.random.default_rng([config.train.seed, 3])
    with Progress("screening crops", data.crops) as progress:
        for box in drawn:
            if report.drawn - report.dropped_invalid == data.crops:
                break
            report.drawn += 1
            pixels = _own_pixels(layers, blocks, box, validation=False)
            if not pixels.valid.any() or pixels.valid.mean() < data.min_valid:
                report.dropped_invalid += 1
                continue
            progress.advance(kept=len(kept))
            ids = _count(pixels.ids)
            unknown.update({i: n for i, n in ids.items() if i not in data.classes and i not in data.anomaly})
            if any(i in ids for i in data.anomaly):
                report.dropped_anomaly += 1
            elif not any(i in ids for i in data.classes):
                report.dropped_unlabelled += 1
            else:
                kept.append(box)
                counts.update({i: n for i, n in ids.items() if i in data.classes})
                inside = pixels.image[:, pixels.valid]
                take = max(1, STATISTICS_VALUES // (inside.shape[0] * data.crops))
                values.append(inside[:, rng.integers(0, inside.shape[1], min(take, inside.shape[1]))])
    report.kept = len(kept)
    report.unknown_ids = dict(sorted(unknown.items()))
    report.class_pixels = {i: counts[i] for i in sorted(data.classes)}
    return kept, np.concatenate(values, axis=1) if values else np.empty((0, 0), np.float32)


def _labelled(grid: list[Box], layers: LabelledImages, blocks: Blocks, *, config: Config) -> list[Box]:
    """At most `validation_crops` of the validation grid that hold enough data and a label, evenly spread."""
    data = config.data
    full, some = [], []
    for box in _thinned(grid, 4 * data.validation_crops):
        pixels = _own_pixels(layers, blocks, box, validation=True)
        if np.isin(pixels.ids, list(data.classes)).any():
            (full if pixels.valid.mean() >= data.min_valid else some).append(box)
    if not full and not some:
        raise DataError(
            f"none of the {len(grid)} validation crops holds a labelled pixel of a class; make data.block_m smaller or "
            "data.validation larger, or try another train.seed"
        )
    return _thinned(full or some, data.validation_crops)


def _thinned(boxes: list[Box], most: int) -> list[Box]:
    if len(boxes) <= most:
        return boxes
    return [boxes[i] for i in np.linspace(0, len(boxes) - 1, most).round().astype(int)]


def _count(ids: NDArray[np.int64]) -> dict[int, int]:
    """Number of pixels of each id but 255."""
    if ids.min() >= 0 and ids.max() < 65536:
        counts = np.bincount(ids.ravel())
        return {int(i): int(counts[i]) for i in np.flatnonzero(counts) if i != IGNORE}
    found, counts = np.unique(ids, return_counts=True)
    return {int(i): int(n) for i, n in zip(found, counts, strict=True) if i != IGNORE}


def _why_nothing(report: Screening, config: Config) -> str:
    """What a user can change when no crop is left."""
    data = config.data
    reasons = {
        f"hold an anomaly pixel (ids {data.anomaly}): make data.crop_px smaller, or label more ground without "
        "anomalies": report.dropped_anomaly,
        f"hold data in less than {data.min_valid:.0%} of their pixels: make data.crop_px or data.min_valid smaller, or "
        "data.block_m larger": report.dropped_invalid,
        f"hold no pixel of the classes {sorted(data.classes)}; their labels hold {report.unknown_ids or 'nothing'}: check "
        "data.classes and the labels": report.dropped_unlabelled,
    }
    lines = [f"{count} {reason}" for reason, count in reasons.items() if count]
    return f"none of the {report.drawn} crops drawn can be trained on: {'; '.join(lines)}"


def _say(report: Screening, config: Config) -> None:
    log.info("%s", report)
    if report.unknown_ids:
        found = ", ".join(f"{i} ({n} pixels)" for i, n in report.unknown_ids.items())
        log.warning("label ids %s stand neither in data.classes nor in data.anomaly and are ignored", found)
    for class_id, pixels in report.class_pixels.items():
        if not pixels:
            log.warning("class %d (%s) occurs in no training crop", class_id, config.data.classes[class_id])


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
