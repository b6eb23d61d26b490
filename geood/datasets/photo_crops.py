"""Training crops from photographs: images without georeference, such as road scenes.

The images are files that a config names, or data sets of the catalog. An image belongs wholly to training or to
validation: as the config or the data set says; otherwise runs of consecutive names are drawn for validation, because
consecutive frames of a drive are nearly the same picture. Crops are windows of integer pixels, drawn from the training
images in proportion to their area (across data sets, in proportion to their weights) and screened as those of scenes
are, by `crops.build_crops`; where a config asks for a width, they are windows of the resampled image
(`photo_scales`). Compressed photographs are decoded whole, so the last few stay in memory; GeoTIFFs may be
large and are read by windows.
"""

from __future__ import annotations

import csv
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geood.atomic import atomic_write
from geood.catalog import DataSet, Split, data_set
from geood.config import Config
from geood.constants import IGNORE, VECTOR_SUFFIXES
from geood.datasets.crops import Crops, build_crops
from geood.datasets.discovery import drop_unlabelled, find_frames
from geood.datasets.files import check_images, find_files
from geood.datasets.frames import Decoded, Frame, decode, screened
from geood.datasets.photo_scales import PhotoScale, read_scaled, settle_scales
from geood.datasets.samples import CropPixels, grown, seed_of, span_around
from geood.datasets.unreadable import Skipped, without_unreadable
from geood.errors import ConfigError, DataError, counted
from geood.geo.grid import Window
from geood.geo.listing import pair_by_name, why_no_pairs
from geood.geo.orientation import UPRIGHT, orientation_of

RUNS = 20  # the images, ordered by name, are cut into this many runs; validation takes whole runs
KEPT_BYTES = 512 << 20  # decoded photographs cached in each process
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
WINDOWED = (".tif", ".tiff")
PACKED = (".npz", ".npy")  # overlays of NumPy, which are no rasters

log = logging.getLogger("geood")


class Crop(NamedTuple):
    """Square window of a frame, given by the frame's index; it may overhang the lower and right border."""

    frame: int
    row: int
    col: int
    side: int


class SetShare(NamedTuple):
    """Data set of a training frame, by its index, and the weight of that whole set among the others."""

    data_set: int
    weight: float


@dataclass
class Gallery:
    """Photographs with their split, and a cache of those decoded last; a copy in another process starts empty."""

    frames: tuple[Frame, ...]
    sizes: tuple[PhotoScale, ...]
    validation: frozenset[int]
    indexes: tuple[int, ...]
    nodata: float | None
    measured: tuple[int, ...] = ()
    label_ids: dict[int, int] = field(default_factory=dict)
    pixel_m: float | None = None
    unknown: dict[int, Counter[str]] = field(default_factory=dict, repr=False, compare=False)
    _kept: OrderedDict[int, Decoded] = field(default_factory=OrderedDict, repr=False, compare=False)

    def read(self, crop: Crop, *, validation: bool) -> CropPixels:
        """Read the pixels of a crop; pixels beyond the border of its frame are invalid.

        Raises:
            DataError: a file cannot be read.
        """
        if (crop.frame in self.validation) != validation:
            raise ValueError(f"{crop} is not of this side of the split")
        image, valid, ids = self._window(crop.frame, Window(crop.row, crop.col, crop.side, crop.side))
        if ids.shape == (crop.side, crop.side):
            return CropPixels(image, valid.copy(), ids)
        padding = tuple((0, crop.side - n) for n in ids.shape)
        return CropPixels(
            np.pad(image, ((0, 0), *padding)),
            np.pad(valid, padding),
            np.pad(ids, padding, constant_values=IGNORE),
        )

    def around(self, crop: Crop, height: int, width: int) -> CropPixels:
        """Read `height` x `width` pixels around a crop of a frame, of either side of the split and without labels.

        Raises:
            DataError: a file cannot be read.
        """
        sizes, half = self.sizes[crop.frame].working, crop.side / 2
        row, rows = span_around(crop.row + half, height, sizes[0])
        col, cols = span_around(crop.col + half, width, sizes[1])
        return grown(self._window(crop.frame, Window(row, col, rows, cols)), height, width)

    def name(self, crop: Crop) -> str:
        """Return the name of the image that a crop lies in, and the crop's upper left corner."""
        return f"{self.frames[crop.frame].image.name} at row {crop.row}, column {crop.col}"

    def resolution_m(self, crop: Crop) -> float | None:
        """Return the size of a pixel in metres, which photographs know only from the catalog."""
        return self.pixel_m

    def files(self) -> tuple[Path, ...]:
        """Return the photographs and their labels."""
        each = (path for f in self.frames for path in (f.image, f.base, f.labels, f.segments))
        return tuple(dict.fromkeys(path for path in each if path is not None))

    def write_split(self, folder: Path, training: tuple[Crop, ...], validation: tuple[Crop, ...]) -> None:
        """Write each image with its side and its number of crops to `folder/split.csv`."""
        crops = Counter(crop.frame for crop in (*training, *validation))
        with (
            atomic_write(folder / "split.csv", alone=True) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(("image", "split", "crops"))
            for i, frame in enumerate(self.frames):
                writer.writerow((frame.image, "validation" if i in self.validation else "train", crops[i]))

    def _window(self, number: int, window: Window) -> CropPixels:
        """Return the part of a window that lies in a frame."""
        frame = self.frames[number]
        if frame.image.suffix.lower() in WINDOWED and not frame.base:
            height, width = self.sizes[number].working
            rows, cols = min(window.height, height - window.row), min(window.width, width - window.col)
            part = self._decode(number, Window(window.row, window.col, rows, cols))
            image, valid, ids = part.image, part.valid, part.ids
        else:
            whole = self._decoded(number)
            image, valid, ids = whole.image[:, *window.slices], whole.valid[window.slices], whole.ids[window.slices]
        return CropPixels(image.astype(np.float32), valid, ids.astype(np.int64))

    def _decoded(self, number: int) -> Decoded:
        """Return a whole frame, from the cache if it is there."""
        if number not in self._kept:
            self._kept[number] = self._decode(number, Window(0, 0, *self.sizes[number].working))
            while (
                len(self._kept) > 1 and sum(p.image.nbytes + 2 * p.ids.size for p in self._kept.values()) > KEPT_BYTES
            ):
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]

    def _decode(self, number: int, window: Window) -> Decoded:
        """Return a window of the working grid of a frame."""
        read = partial(
            decode,
            self.frames[number],
            indexes=self.indexes,
            nodata=self.nodata,
            measured=self.measured,
            label_ids=self.label_ids,
        )
        pixels = read_scaled(self.sizes[number], window, read)
        if pixels.unknown:
            self.unknown[number] = pixels.unknown
        return pixels

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": OrderedDict()}


def open_photos(config: Config) -> Crops:
    """Find, check, split and screen the training photographs of a config. The same config gives the same crops.

    Raises:
        DataError: a file is missing or cannot be used, labels and images do not fit, or no crop is left to train on.
    """
    data, seed = config.data, config.train.seed
    skipped: list[Skipped] = []
    frames, held, shares = (_named_frames if data.sets else _own_frames)(config, skipped)
    bands = check_images([f.base or f.image for f in (*frames, *held)], config)
    validation = (
        range(len(frames), len(frames) + len(held)) if held else _drawn_runs(len(frames), data.validation, seed)
    )
    training, pixel_m = sorted(set(range(len(frames))) - set(validation)), _resolution(config)
    sizes, photo_width = settle_scales((*frames, *held), config, training=training, pixel_m=pixel_m)
    gallery = Gallery(
        frames=(*frames, *held),
        sizes=tuple(sizes),
        validation=frozenset(validation),
        indexes=bands.indexes,
        nodata=config.bands.nodata,
        measured=bands.measured,
        label_ids=data.label_ids,
        pixel_m=pixel_m,
    )
    _report_turned(gallery.frames)
    working = [size.working for size in sizes]
    side = math.ceil(data.crop_px / data.scale_min)
    drawn = _drawn_crops(training, working, side, shares=shares, number=4 * data.crops, seed=seed_of(seed, 2))
    grid = [c for i in sorted(gallery.validation) for c in _grid_crops(i, working[i], data.crop_px)]
    crops = build_crops(config, gallery, bands=bands, drawn=drawn, grid=grid)
    _report_unknown(gallery)
    return replace(crops, photo_width=photo_width, skipped=tuple(skipped))


def _own_frames(config: Config, skipped: list[Skipped]) -> tuple[list[Frame], list[Frame], list[SetShare]]:
    """Pair the files that a config names; return training frames, validation frames, and the former's shares.

    Raises:
        ConfigError: an image is on both sides.
        DataError: files are missing or do not pair.
    """
    frames = _readable(_frames(config, "images", "labels"), config, skipped)
    held = _frames(config, "validation_images", "validation_labels") if config.data.validation_images else []
    held = _readable(held, config, skipped)
    both = {frame.image for frame in frames} & {frame.image for frame in held}
    if both:
        raise ConfigError(
            f"{min(both)}: named by data.images and by data.validation_images; make the patterns narrower"
        )
    return frames, held, [SetShare(0, 1.0)] * len(frames)


def _named_frames(config: Config, skipped: list[Skipped]) -> tuple[list[Frame], list[Frame], list[SetShare]]:
    """Find the frames of a config's data sets; return training frames, validation frames, and the former's shares.

    Raises:
        ConfigError: an image comes twice, or is on both sides.
        DataError: a set is not where the config says, or nothing of it can be trained on.
    """
    frames, held, shares = [], [], []
    for number, entry in enumerate(config.data.sets):
        chosen, root = data_set(entry.name), Path(config.data.root) / entry.folder
        own = _labelled_frames(chosen, root, chosen.split(entry.split), config, skipped=skipped)
        frames += own
        shares += [SetShare(number, entry.weight)] * len(own)
        if any(split.name == "val" for split in chosen.splits) and entry.split != "val":
            held += _labelled_frames(chosen, root, chosen.split("val"), config, skipped=skipped)
    trained = Counter(frame.image.resolve() for frame in frames)
    [(image, times)] = trained.most_common(1)
    if times > 1:
        raise ConfigError(f"{image}: two of data.sets train on it; name each set and split once")
    both = trained.keys() & {frame.image.resolve() for frame in held}
    if both:
        raise ConfigError(f"{min(both)}: one of data.sets trains on it, and one validates; leave the split val out")
    once = {frame.image.resolve(): frame for frame in reversed(held)}  # two splits of one set have one validation
    return frames, list(reversed(once.values())), shares


def _readable(frames: list[Frame], config: Config, skipped: list[Skipped]) -> list[Frame]:
    """Return the frames that can be read, or all if the config does not skip others; add what cannot to a list."""
    if config.data.unreadable == "error":
        return frames
    kept, wrong = without_unreadable(frames, _files_of, what="photographs")
    skipped += wrong
    return kept


def _files_of(frame: Frame) -> list[Path]:
    rasters = [path for path in (frame.image, frame.base, frame.labels) if path is not None]
    return [path for path in rasters if path.suffix.lower() not in PACKED]


def _labelled_frames(
    chosen: DataSet, root: Path, split: Split, config: Config, *, skipped: list[Skipped]
) -> list[Frame]:
    """Return the labelled frames of one split, screened by content as the split or the config asks."""
    found = find_frames(chosen, root, split)
    count = len(found.frames)
    bare = drop_unlabelled(found, chosen, root, split=split)
    if bare:
        said = "%s: %d of %d images of %s have no labels and are not used"
        log.warning(said, root, len(bare), count, chosen.name)
    found.frames = _readable(found.frames, config, skipped)
    holds = "clean" if config.data.hold_out_by == "image" else split.holds
    return screened(found, set(config.data.anomaly), holds=holds, label_ids=config.data.label_ids)


def _resolution(config: Config) -> float | None:
    """Return metres per pixel if all data sets have the same, else None."""
    known = {data_set(entry.name).resolution_m for entry in config.data.sets}
    return known.pop() if len(known) == 1 else None


def _report_turned(frames: Sequence[Frame]) -> None:
    """Say that photographs are read as viewers show them, where that is not how they are stored."""
    turned = [frame.image for frame in frames if frame.base is None and orientation_of(frame.image) != UPRIGHT]
    if turned:
        said = "%d of %d photographs are read turned, as viewers show them by their EXIF orientation, %s first; "
        log.warning(said + "their labels must be drawn on what is shown", len(turned), len(frames), turned[0])


def _report_unknown(gallery: Gallery) -> None:
    """Warn of numbers or colours in label files that their data set does not define."""
    total: Counter[str] = Counter()
    for found in gallery.unknown.values():
        total.update(found)
    if total:
        shown = ", ".join(f"{number} ({counted(pixels, 'pixel')})" for number, pixels in total.most_common(5))
        log.warning("label files hold %s, %s; ignored", counted(len(total), "undefined number"), shown)


def _frames(config: Config, images: str, labels: str) -> list[Frame]:
    """Pair by name the images and labels that two keys of the data section name."""
    data = config.data
    files = [
        find_files(data.root, getattr(data, key), what=f"data.{key}", suffixes=SUFFIXES) for key in (images, labels)
    ]
    if vectors := [path for path in files[1] if path.suffix.lower() in VECTOR_SUFFIXES]:
        raise DataError(
            f"{vectors[0]}: photographs take rasters of class ids as labels, not vector files; burn it into a raster "
            "of the photograph's size (gdal_rasterize -a ATTRIBUTE)"
        )
    pairs = pair_by_name(*files)
    if pairs is None:
        raise DataError(
            f"data.{images} names {counted(len(files[0]), 'file')}, data.{labels} {len(files[1])}, and they do not "
            f"pair by name: {why_no_pairs(*files)}; the labels of {files[0][0].name} must be called "
            f"{files[0][0].stem}.png or {files[0][0].stem}_*.png"
        )
    return [Frame(image.stem, image, chosen) for image, [chosen] in zip(files[0], pairs, strict=True)]


def _drawn_runs(count: int, share: float, seed: int) -> list[int]:
    """Draw the indexes of the validation images: runs of neighbours, about `share` of all, never all."""
    if count < 2:
        raise DataError("one photograph cannot both train and validate; give more, or data.validation_images")
    runs = np.array_split(np.arange(count), min(RUNS, count))
    number = min(max(1, round(share * len(runs))), len(runs) - 1)
    chosen = np.random.default_rng(seed).permutation(len(runs))[:number]
    return [int(i) for run in sorted(chosen) for i in runs[run]]


def _drawn_crops(
    frames: list[int], sizes: list[tuple[int, int]], side: int, *, shares: list[SetShare], number: int, seed: int
) -> list[Crop]:
    """Draw random windows: sets in proportion to their weight, frames of a set to their area, positions uniformly.

    (Drawing uniformly over all windows would seldom take images that are little larger than a window.)
    """
    rng = np.random.default_rng(seed)
    areas = [math.prod(sizes[i]) for i in frames]
    of_set: Counter[int] = Counter()
    for i, area in zip(frames, areas, strict=True):
        of_set[shares[i].data_set] += area
    odds = np.array([shares[i].weight * a / of_set[shares[i].data_set] for i, a in zip(frames, areas, strict=True)])
    drawn = []
    for i in rng.choice(frames, number, p=odds / odds.sum()):
        row, col = (int(rng.integers(max(1, length - side + 1))) for length in sizes[i])
        drawn.append(Crop(int(i), row, col, side))
    return drawn


def _grid_crops(frame: int, size: tuple[int, int], side: int) -> list[Crop]:
    """Tile a frame with windows; the last of a row and of a column are moved inside."""
    rows, cols = (sorted({min(at, max(0, length - side)) for at in range(0, length, side)}) for length in size)
    return [Crop(frame, row, col, side) for row in rows for col in cols]
