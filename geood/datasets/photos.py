"""Training photographs: images without a place, such as road scenes, as crops ready for a network.

An image belongs wholly to training or to validation. Which is which is told by the config, or else runs of neighbours
by name are drawn for validation, because consecutive frames of a drive are nearly the same picture. Crops are windows
of integer pixels, drawn uniformly over all windows of the training images and screened as those of scenes are: one
that holds an anomaly pixel is left out whole. Photographs are decoded as a whole, so the last few stay in memory.
"""

from __future__ import annotations

import csv
import math
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geood.config import IGNORE, Config
from geood.datasets.crops import Crops, Pixels, seed_of
from geood.datasets.scenes import check_images, find_files
from geood.datasets.screening import Screening, labelled, report_screening, screen, why_nothing
from geood.errors import ConfigError, DataError
from geood.labels import open_labels, pair_by_name
from geood.raster import Scene, bands_from_samples

RUNS = 20  # the images in order of their names are cut into this many runs; validation takes whole ones
KEPT_BYTES = 512 << 20  # decoded photographs kept in each process that reads
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


class Frame(NamedTuple):
    """One image file and the raster of its class ids, of the same size."""

    image: Path
    labels: Path


class Crop(NamedTuple):
    """A square window of a frame, by the frame's number; it may overhang the lower and right border."""

    frame: int
    row: int
    col: int
    side: int


@dataclass
class Gallery:
    """The photographs, and the ones decoded last; a copy in another process starts with none."""

    frames: tuple[Frame, ...]
    validation: frozenset[int]
    indexes: tuple[int, ...]
    nodata: float | None
    _kept: OrderedDict[int, Pixels] = field(default_factory=OrderedDict, repr=False, compare=False)

    def read(self, place: Crop, *, validation: bool) -> Pixels:
        """The pixels of a crop; what overhangs its frame is invalid.

        Raises:
            DataError: a file cannot be read.
        """
        if (place.frame in self.validation) != validation:
            raise ValueError(f"{place} is not of this side of the split")
        image, valid, ids = self._decoded(place.frame)
        below, right = (max(0, at + place.side - n) for at, n in zip(place[1:3], ids.shape, strict=True))
        window = (slice(place.row, place.row + place.side), slice(place.col, place.col + place.side))
        beside = ((0, below), (0, right))
        return Pixels(
            np.pad(image[:, *window], ((0, 0), *beside)).astype(np.float32),
            np.pad(valid[window], beside),
            np.pad(ids[window], beside, constant_values=IGNORE).astype(np.int64),
        )

    def name(self, place: Crop) -> str:
        """The image that a crop lies in, and where."""
        return f"{self.frames[place.frame].image.name} at row {place.row}, column {place.col}"

    def write_split(self, folder: Path, training: tuple[Crop, ...], validation: tuple[Crop, ...]) -> None:
        """Write each image with its side and its number of crops to `folder/split.csv`."""
        crops = [place.frame for place in (*training, *validation)]
        partial = folder / ".split.part.csv"
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "split", "crops"))
            for i, frame in enumerate(self.frames):
                writer.writerow((frame.image, "validation" if i in self.validation else "train", crops.count(i)))
        os.replace(partial, folder / "split.csv")

    def _decoded(self, number: int) -> Pixels:
        """A whole frame, in the image's own dtype and with ids of one byte."""
        if number not in self._kept:
            frame = self.frames[number]
            with Scene.open(frame.image, nodata=self.nodata) as scene, open_labels([frame.labels], scene.grid) as ids:
                image, valid = scene.read(scene.grid.window, self.indexes)
                found = np.where(valid, ids.read(scene.grid.window), IGNORE)
            if found.min() < 0 or found.max() > IGNORE:
                raise DataError(f"{frame.labels}: holds ids outside 0 to 255; save class ids as bytes")
            self._kept[number] = Pixels(image, valid, found.astype(np.uint8))
            while (
                len(self._kept) > 1 and sum(p.image.nbytes + 2 * p.ids.size for p in self._kept.values()) > KEPT_BYTES
            ):
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": OrderedDict()}


def open_photos(config: Config) -> Crops:
    """Find, check, split and screen the training photographs of a config. The same config gives the same crops.

    Raises:
        DataError: a file is missing or cannot be used, labels and images do not fit, or no crop is left to train on.
    """
    data, seed = config.data, config.train.seed
    frames = _frames(config, "images", "labels")
    held = _frames(config, "validation_images", "validation_labels") if data.validation_images else []
    both = {frame.image for frame in frames} & {frame.image for frame in held}
    if both:
        raise ConfigError(
            f"{min(both)}: named by data.images and by data.validation_images; make the patterns narrower"
        )
    names, indexes, dtype, count = check_images([f.image for f in (*frames, *held)], config)
    validation = (
        range(len(frames), len(frames) + len(held)) if held else _drawn_runs(len(frames), data.validation, seed)
    )
    gallery = Gallery((*frames, *held), frozenset(validation), indexes, config.bands.nodata)
    sizes = [_size(frame.image) for frame in gallery.frames]
    report = Screening()
    side = math.ceil(data.crop_px / data.scale_min)
    training = [i for i in range(len(sizes)) if i not in gallery.validation]
    drawn = _drawn_crops(training, sizes, side, number=4 * data.crops, seed=seed_of(seed, 2))
    kept, values = screen(drawn, lambda place: gallery.read(place, validation=False), config=config, report=report)
    if not kept:
        raise DataError(why_nothing(report, config))
    grid = [c for i in sorted(gallery.validation) for c in _grid_crops(i, sizes[i], data.crop_px)]
    shown = labelled(grid, lambda place: gallery.read(place, validation=True), config=config)
    report.validation_crops = len(shown)
    report_screening(report, config)
    return Crops(
        config=config,
        bands=bands_from_samples(config.bands, names, indexes=indexes, values=values, dtype=dtype, scene_count=count),
        class_ids=tuple(sorted(data.classes)),
        report=report,
        resolution_m=None,
        ground=gallery,
        training_boxes=tuple(kept),
        validation_boxes=tuple(shown),
    )


def _frames(config: Config, images: str, labels: str) -> list[Frame]:
    """Images and labels that two keys of the data section name, paired by name."""
    data = config.data
    found = [
        find_files(data.root, getattr(data, key), what=f"data.{key}", suffixes=SUFFIXES) for key in (images, labels)
    ]
    pairs = pair_by_name(*found)
    if pairs is None:
        raise DataError(
            f"data.{images} names {len(found[0])} files, data.{labels} {len(found[1])}, and they are no pairs by name; "
            f"the labels of {found[0][0].name} must be called {found[0][0].stem}.png or {found[0][0].stem}_*.png"
        )
    return [Frame(image, chosen) for image, [chosen] in zip(found[0], pairs, strict=True)]


def _size(image: Path) -> tuple[int, int]:
    with Scene.open(image) as scene:
        return scene.grid.height, scene.grid.width


def _drawn_runs(count: int, share: float, seed: int) -> list[int]:
    """Numbers of the images kept for validation: runs of neighbours, about `share` of all, never all."""
    if count < 2:
        raise DataError("one photograph cannot both train and validate; give more, or data.validation_images")
    runs = np.array_split(np.arange(count), min(RUNS, count))
    number = min(max(1, round(share * len(runs))), len(runs) - 1)
    chosen = np.random.default_rng(seed).permutation(len(runs))[:number]
    return [int(i) for run in sorted(chosen) for i in runs[run]]


def _drawn_crops(frames: list[int], sizes: list[tuple[int, int]], side: int, *, number: int, seed: int) -> list[Crop]:
    """Random windows, uniform over all windows of the frames."""
    rng = np.random.default_rng(seed)
    places = np.array([max(1, sizes[i][0] - side + 1) * max(1, sizes[i][1] - side + 1) for i in frames], float)
    drawn = []
    for i in rng.choice(frames, number, p=places / places.sum()):
        row, col = (int(rng.integers(max(1, length - side + 1))) for length in sizes[i])
        drawn.append(Crop(int(i), row, col, side))
    return drawn


def _grid_crops(frame: int, size: tuple[int, int], side: int) -> list[Crop]:
    """Windows side by side that cover a frame; the last of a row and of a column are moved inside."""
    rows, cols = (sorted({min(at, max(0, length - side)) for at in range(0, length, side)}) for length in size)
    return [Crop(frame, row, col, side) for row in rows for col in cols]
