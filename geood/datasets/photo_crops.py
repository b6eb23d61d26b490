"""Training photographs: images without a place, such as road scenes, as crops ready for a network.

They are files that a config names, or data sets of the catalog. An image belongs wholly to training or to validation:
as the config or the data set says, or else runs of neighbours by name are drawn for validation, because consecutive
frames of a drive are nearly the same picture. Crops are windows of integer pixels, drawn from the training images in
proportion to their area (of each data set, in the proportion of their weights) and screened as those of scenes are: one
that holds an anomaly pixel is left out whole. Photographs are decoded as a whole, so the last few stay in memory;
GeoTIFFs are read by windows, for a whole one may be large.
"""

from __future__ import annotations

import csv
import logging
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geood.atomic import atomic_write
from geood.catalog import DataSet, Split, data_set
from geood.config.sections import Config
from geood.constants import IGNORE
from geood.datasets.crops import Crops
from geood.datasets.discovery import drop_unlabelled, find_frames
from geood.datasets.files import check_images, find_files
from geood.datasets.frames import Decoded, Frame, decode, frame_size, screened
from geood.datasets.samples import CropPixels, seed_of
from geood.datasets.screening import Screening, labelled, report_screening, screen, why_nothing
from geood.errors import ConfigError, DataError
from geood.geo.bands import bands_from_samples
from geood.geo.grid import Window
from geood.geo.labels import pair_by_name

RUNS = 20  # the images in order of their names are cut into this many runs; validation takes whole ones
KEPT_BYTES = 512 << 20  # decoded photographs kept in each process that reads
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
WINDOWED = (".tif", ".tiff")

log = logging.getLogger("geood")


class Crop(NamedTuple):
    """A square window of a frame, by the frame's number; it may overhang the lower and right border."""

    frame: int
    row: int
    col: int
    side: int


class SetShare(NamedTuple):
    """The data set that a training frame is of, by its number, and the weight of that whole set among the others."""

    data_set: int
    weight: float


@dataclass
class Gallery:
    """The photographs, and the ones decoded last; a copy in another process starts with none."""

    frames: tuple[Frame, ...]
    validation: frozenset[int]
    indexes: tuple[int, ...]
    nodata: float | None
    label_ids: dict[int, int] = field(default_factory=dict)
    unknown: dict[int, Counter[str]] = field(default_factory=dict, repr=False, compare=False)
    _kept: OrderedDict[int, Decoded] = field(default_factory=OrderedDict, repr=False, compare=False)

    def read(self, place: Crop, *, validation: bool) -> CropPixels:
        """The pixels of a crop; what overhangs its frame is invalid.

        Raises:
            DataError: a file cannot be read.
        """
        if (place.frame in self.validation) != validation:
            raise ValueError(f"{place} is not of this side of the split")
        frame = self.frames[place.frame]
        if frame.image.suffix.lower() in WINDOWED and not frame.base:
            height, width = frame_size(frame)
            rows, cols = min(place.side, height - place.row), min(place.side, width - place.col)
            found = self._decode(place.frame, Window(place.row, place.col, rows, cols))
            image, valid, ids = found[:3]
        else:
            window = (slice(place.row, place.row + place.side), slice(place.col, place.col + place.side))
            whole = self._decoded(place.frame)
            image, valid, ids = whole.image[:, *window], whole.valid[window], whole.ids[window]
        beside = tuple((0, place.side - n) for n in ids.shape)
        return CropPixels(
            np.pad(image, ((0, 0), *beside)).astype(np.float32),
            np.pad(valid, beside),
            np.pad(ids, beside, constant_values=IGNORE).astype(np.int64),
        )

    def name(self, place: Crop) -> str:
        """The image that a crop lies in, and where."""
        return f"{self.frames[place.frame].image.name} at row {place.row}, column {place.col}"

    def write_split(self, folder: Path, training: tuple[Crop, ...], validation: tuple[Crop, ...]) -> None:
        """Write each image with its side and its number of crops to `folder/split.csv`."""
        crops = [place.frame for place in (*training, *validation)]
        with atomic_write(folder / "split.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "split", "crops"))
            for i, frame in enumerate(self.frames):
                writer.writerow((frame.image, "validation" if i in self.validation else "train", crops.count(i)))

    def _decoded(self, number: int) -> Decoded:
        """A whole frame."""
        if number not in self._kept:
            self._kept[number] = self._decode(number, None)
            while (
                len(self._kept) > 1 and sum(p.image.nbytes + 2 * p.ids.size for p in self._kept.values()) > KEPT_BYTES
            ):
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]

    def _decode(self, number: int, window: Window | None) -> Decoded:
        found = decode(self.frames[number], window, indexes=self.indexes, nodata=self.nodata, label_ids=self.label_ids)
        if found.unknown:
            self.unknown[number] = found.unknown
        return found

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": OrderedDict()}


def open_photos(config: Config) -> Crops:
    """Find, check, split and screen the training photographs of a config. The same config gives the same crops.

    Raises:
        DataError: a file is missing or cannot be used, labels and images do not fit, or no crop is left to train on.
    """
    data, seed = config.data, config.train.seed
    frames, held, shares = _named_frames(config) if data.sets else _own_frames(config)
    names, indexes, dtype, count = check_images([f.base or f.image for f in (*frames, *held)], config)
    validation = (
        range(len(frames), len(frames) + len(held)) if held else _drawn_runs(len(frames), data.validation, seed)
    )
    gallery = Gallery((*frames, *held), frozenset(validation), indexes, config.bands.nodata, data.label_ids)
    sizes = [frame_size(frame) for frame in gallery.frames]
    report = Screening()
    side = math.ceil(data.crop_px / data.scale_min)
    training = [i for i in range(len(frames)) if i not in gallery.validation]
    drawn = _drawn_crops(training, sizes, side, shares=shares, number=4 * data.crops, seed=seed_of(seed, 2))
    kept, values = screen(drawn, lambda place: gallery.read(place, validation=False), config=config, report=report)
    if not kept:
        raise DataError(why_nothing(report, config))
    grid = [c for i in sorted(gallery.validation) for c in _grid_crops(i, sizes[i], data.crop_px)]
    shown = labelled(grid, lambda place: gallery.read(place, validation=True), config=config)
    report.validation_crops = len(shown)
    report_screening(report, config)
    _report_unknown(gallery)
    return Crops(
        config=config,
        bands=bands_from_samples(config.bands, names, indexes=indexes, values=values, dtype=dtype, scene_count=count),
        class_ids=tuple(sorted(data.classes)),
        report=report,
        resolution_m=_resolution(config),
        ground=gallery,
        training_boxes=tuple(kept),
        validation_boxes=tuple(shown),
    )


def _own_frames(config: Config) -> tuple[list[Frame], list[Frame], list[SetShare]]:
    """Training and validation frames of the files that a config names, and what share each training frame is part of.

    Raises:
        ConfigError: an image is on both sides.
        DataError: files are missing or are no pairs.
    """
    frames = _frames(config, "images", "labels")
    held = _frames(config, "validation_images", "validation_labels") if config.data.validation_images else []
    both = {frame.image for frame in frames} & {frame.image for frame in held}
    if both:
        raise ConfigError(
            f"{min(both)}: named by data.images and by data.validation_images; make the patterns narrower"
        )
    return frames, held, [SetShare(0, 1.0)] * len(frames)


def _named_frames(config: Config) -> tuple[list[Frame], list[Frame], list[SetShare]]:
    """The same for the data sets that a config names.

    Raises:
        ConfigError: an image comes twice, or is on both sides.
        DataError: a set is not where the config says, or nothing of it can be trained on.
    """
    frames, held, shares = [], [], []
    for number, entry in enumerate(config.data.sets):
        chosen, root = data_set(entry.name), Path(config.data.root) / entry.folder
        own = _labelled_frames(chosen, root, chosen.split(entry.split), config)
        frames += own
        shares += [SetShare(number, entry.weight)] * len(own)
        if any(split.name == "val" for split in chosen.splits) and entry.split != "val":
            held += _labelled_frames(chosen, root, chosen.split("val"), config)
    trained = Counter(frame.image.resolve() for frame in frames)
    [(image, times)] = trained.most_common(1)
    if times > 1:
        raise ConfigError(f"{image}: two of data.sets train on it; name each set and split once")
    both = trained.keys() & {frame.image.resolve() for frame in held}
    if both:
        raise ConfigError(f"{min(both)}: one of data.sets trains on it, and one validates; leave the split val out")
    once = {frame.image.resolve(): frame for frame in reversed(held)}  # two splits of one set have one validation
    return frames, list(reversed(once.values())), shares


def _labelled_frames(chosen: DataSet, root: Path, split: Split, config: Config) -> list[Frame]:
    """The frames of one split that have labels and may be used."""
    found = find_frames(chosen, root, split)
    count = len(found.frames)
    bare = drop_unlabelled(found, chosen, root, split=split)
    if bare:
        log.warning("%s: %d of %d images of %s have no labels and are not used", *(root, len(bare), count, chosen.name))
    holds = "clean" if config.data.hold_out_by == "image" else split.holds
    return screened(found, set(config.data.anomaly), holds=holds, label_ids=config.data.label_ids)


def _resolution(config: Config) -> float | None:
    """Metres a pixel, where all the data sets have the same."""
    known = {data_set(entry.name).resolution_m for entry in config.data.sets}
    return known.pop() if len(known) == 1 else None


def _report_unknown(gallery: Gallery) -> None:
    """Warn of numbers or colours in label files that stand for nothing."""
    total: Counter[str] = Counter()
    for counted in gallery.unknown.values():
        total.update(counted)
    if total:
        shown = ", ".join(f"{number} ({pixels:,} pixels)" for number, pixels in total.most_common(5))
        log.warning("label files hold %d numbers that stand for no class, %s; they are ignored", len(total), shown)


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
    return [Frame(image.stem, image, chosen) for image, [chosen] in zip(found[0], pairs, strict=True)]


def _drawn_runs(count: int, share: float, seed: int) -> list[int]:
    """Numbers of the images kept for validation: runs of neighbours, about `share` of all, never all."""
    if count < 2:
        raise DataError("one photograph cannot both train and validate; give more, or data.validation_images")
    runs = np.array_split(np.arange(count), min(RUNS, count))
    number = min(max(1, round(share * len(runs))), len(runs) - 1)
    chosen = np.random.default_rng(seed).permutation(len(runs))[:number]
    return [int(i) for run in sorted(chosen) for i in runs[run]]


def _drawn_crops(
    frames: list[int], sizes: list[tuple[int, int]], side: int, *, shares: list[SetShare], number: int, seed: int
) -> list[Crop]:
    """Random windows: of each data set in proportion to its weight, of its frames to their area, anywhere in them.

    (Uniform over all windows would seldom take images that are little larger than one.)
    """
    rng = np.random.default_rng(seed)
    areas = [math.prod(sizes[i]) for i in frames]
    of_set: Counter[int] = Counter()
    for i, area in zip(frames, areas, strict=True):
        of_set[shares[i].data_set] += area
    places = np.array([shares[i].weight * a / of_set[shares[i].data_set] for i, a in zip(frames, areas, strict=True)])
    drawn = []
    for i in rng.choice(frames, number, p=places / places.sum()):
        row, col = (int(rng.integers(max(1, length - side + 1))) for length in sizes[i])
        drawn.append(Crop(int(i), row, col, side))
    return drawn


def _grid_crops(frame: int, size: tuple[int, int], side: int) -> list[Crop]:
    """Windows side by side that cover a frame; the last of a row and of a column are moved inside."""
    rows, cols = (sorted({min(at, max(0, length - side)) for at in range(0, length, side)}) for length in size)
    return [Crop(frame, row, col, side) for row in rows for col in cols]
