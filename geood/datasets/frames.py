"""Decoding of frames: an image as stored, and its labels as uint8 class ids.

The labels of a named data set are mapped to its taxonomy by its table of ids or colours. Values that the table does not
list become 255 and are counted, so that nothing unforeseen passes for a class. Photographs are read as viewers show
them, by their EXIF orientation, because labels are drawn on what is shown. Masks whose numbers show the encoding of
another tool are rejected with the `data.label_ids` that reads them.
"""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geood.catalog import DataSet, PathLayout
from geood.constants import IGNORE
from geood.errors import DataError, counted
from geood.geo.gdal import open_raster, rasterio_window, reading
from geood.geo.grid import Grid, Window
from geood.geo.labels.id_rasters import open_id_raster, read_ids
from geood.geo.labels.reading import open_labels
from geood.geo.labels.rules import LabelRules
from geood.geo.orientation import UPRIGHT, Orientation, orientation_of
from geood.geo.scene import Scene, SceneSource
from geood.progress import Progress

log = logging.getLogger("geood")
NOT_LISTED = -32768  # below all numbers that a table may list
STRIP_PX = 1 << 23  # label files are read in strips of about this many pixels


class Decoded(NamedTuple):
    """Pixels of a frame or of a window of it: image (C, H, W) in its own dtype, valid (H, W) bool, ids (H, W) uint8.

    `unknown` counts the pixels of each number or colour that the set's table does not list. All arrays are as viewers
    show the image; `orientation` leads back to what is stored.
    """

    image: NDArray[np.generic]
    valid: NDArray[np.bool_]
    ids: NDArray[np.uint8]
    unknown: Counter[str]
    orientation: Orientation = UPRIGHT


def frame_size(frame: Frame) -> tuple[int, int]:
    """Return height and width of a frame in pixels, as viewers show it.

    Raises:
        DataError: its image cannot be read.
    """
    with Scene.open(SceneSource(str(frame.base or frame.image), measured=())) as scene:
        return orientation_in(frame, scene.grid).size(scene.grid.height, scene.grid.width)


def orientation_in(frame: Frame, grid: Grid) -> Orientation:
    """Return how a frame's image, whose stored grid is given, is turned to what viewers show."""
    return UPRIGHT if grid.placed or frame.base else orientation_of(frame.image)


def decode(
    frame: Frame,
    window: Window | None = None,
    *,
    indexes: tuple[int, ...],
    nodata: float | None = None,
    measured: tuple[int, ...] | None = None,
    label_ids: Mapping[int, int] | None = None,
) -> Decoded:
    """Read image and labels of a frame, or of a window inside it; without labels all ids are 255.

    Args:
        frame: the frame to read.
        window: pixels to read, of the frame as viewers show it; None: the whole frame.
        indexes: the bands to read, from 1.
        nodata: overrides the image's own nodata value.
        measured: bands declared as alpha that hold measurements; None: told by their values.
        label_ids: maps numbers in the label file to other numbers, for files in another encoding.

    Raises:
        DataError: a file cannot be read, labels and image differ in size, or the labels are in another encoding.
    """
    with Scene.open(SceneSource(str(frame.base or frame.image), indexes, nodata, measured=measured)) as scene:
        turn, grid = orientation_in(frame, scene.grid), scene.grid
        size = turn.size(grid.height, grid.width)
        window = window or Window(0, 0, *size)
        image, valid = (turn.shown(array) for array in scene.read(turn.stored(window, *size), indexes))
    if frame.base:
        image = _overlaid(frame.image, image, window=window, size=size, indexes=indexes)
    unknown: Counter[str] = Counter()
    if frame.labels is None:
        return Decoded(image, valid, np.full(valid.shape, IGNORE, np.uint8), unknown, turn)
    if frame.data_set is None:
        own = orientation_of(frame.labels)
        if turn != UPRIGHT or own != UPRIGHT:
            _refuse_unturned(frame, size, own)
            grid = Grid(*own.size(*size), Affine.identity(), None)
        with open_labels([frame.labels], grid, LabelRules(label_ids=label_ids)) as reader:
            numbers = own.shown(reader.read(own.stored(window, *size)))
        if numbers.min() < 0 or numbers.max() > IGNORE:
            raise DataError(f"{frame.labels}: holds ids outside 0 to 255; save class ids as bytes")
        ids = numbers.astype(np.uint8)
    else:
        ids = read_labels(frame, window, label_ids=label_ids, unknown=unknown)
    return Decoded(image, valid, np.where(valid, ids, np.uint8(IGNORE)), unknown, turn)


def _refuse_unturned(frame: Frame, size: tuple[int, int], own: Orientation) -> None:
    """Reject labels that only fit the image as stored, given its size as shown and the orientation of the labels."""
    assert frame.labels is not None
    with open_raster(frame.labels) as dataset:
        height, width = own.size(dataset.height, dataset.width)
    if (height, width) != size and (width, height) == size:
        raise DataError(
            f"{frame.labels}: {width} x {height} px, but {frame.image.name} is shown turned by its EXIF orientation, "
            f"as {size[1]} x {size[0]}; labels must be drawn on what viewers show: turn them, or remove the tag from "
            "the image if its pixels are right as stored (exiftool -Orientation= IMAGE)"
        )


def _overlaid(
    overlay: Path,
    image: NDArray[np.generic],
    *,
    window: Window,
    size: tuple[int, int],
    indexes: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Add a signed overlay (H, W, 3) to a window of some bands of its base image, clipped to 0 to 255."""
    try:
        with overlay.open("rb") as file, np.load(file, allow_pickle=False) as archive:  # np.load leaves cut files open
            added = np.asarray(archive["rgb"])
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{overlay}: not an overlay with an array rgb ({error}); download it again") from None
    if added.shape != (*size, 3):
        raise DataError(f"{overlay}: an overlay of shape {added.shape} does not fit its image; download it again")
    part = added[window.slices][..., [i - 1 for i in indexes]].transpose(2, 0, 1).astype(np.int16)
    out: NDArray[np.uint8] = np.clip(image.astype(np.int16) + part, 0, 255).astype(np.uint8)
    return out


def read_labels(
    frame: Frame, window: Window, *, label_ids: Mapping[int, int] | None, unknown: Counter[str]
) -> NDArray[np.uint8]:
    """Read labels (h, w) of a window as class ids of the frame's data set; unlisted values are 255 and counted.

    Raises:
        DataError: as `decode`.
    """
    data_set, (height, width) = frame.data_set, frame_size(frame)
    assert frame.labels is not None and data_set is not None
    own = orientation_of(frame.labels)
    _refuse_unturned(frame, (height, width), own)
    window = own.stored(window, height, width)
    return own.shown(_read_stored(frame, window, own.size(height, width), label_ids=label_ids, unknown=unknown))


def _read_stored(
    frame: Frame,
    window: Window,
    size: tuple[int, int],
    *,
    label_ids: Mapping[int, int] | None,
    unknown: Counter[str],
) -> NDArray[np.uint8]:
    """Read the class ids of a window of a label file as it is stored; `size` is what it must have."""
    data_set, (height, width) = frame.data_set, size
    assert frame.labels is not None and data_set is not None
    coloured = data_set.encoding == "colours" and data_set.colours is not None
    with open_raster(frame.labels) as dataset:
        if (dataset.height, dataset.width) != (height, width):
            raise DataError(
                f"{frame.labels}: labels of {dataset.width} x {dataset.height} px for an image of {width} x "
                f"{height} ({frame.image.name}); labels must have the image's size, take those of this image"
            )
        if frame.segments or (coloured and dataset.count >= 3):
            if label_ids:
                kind = "segments" if frame.segments else "colours"
                raise DataError(
                    f"{frame.labels}: holds {kind}, not ids, and data.label_ids renumbers ids; leave data.label_ids out"
                )
            with reading(frame.labels):
                rgb = dataset.read([1, 2, 3], window=rasterio_window(window)).astype(np.int64)
            if frame.segments is None:
                assert data_set.colours is not None
                return _from_colours(rgb, data_set.colours, unknown)
            numbers = _from_segments(rgb, frame)
            return _from_table(numbers, np.unique(numbers), data_set.ids, unknown)
    with open_id_raster(frame.labels) as dataset:
        numbers = read_ids(frame.labels, dataset, window, label_ids)
        found = np.unique(numbers)
        if np.dtype(dataset.dtypes[0]).itemsize > 1:
            _refuse_wide_numbers(frame, dataset, found, label_ids)
    _refuse_other_coding(frame.labels, found, data_set)
    return _from_table(numbers, found, data_set.ids, unknown)


def _refuse_wide_numbers(
    frame: Frame, dataset: Any, found: NDArray[np.int64], label_ids: Mapping[int, int] | None
) -> None:
    """Reject a file of more than 8 bits in which no number but 0 and 255 is the set's; `found` are those of a window.

    A window may hold only the few unknown numbers of a good file, so the whole file is read before it is rejected.
    """
    data_set, path = frame.data_set, frame.labels
    assert data_set is not None and path is not None
    known = set(data_set.ids)

    def strange(numbers: set[int]) -> bool:
        return bool(numbers - known) and not numbers & known - {0, IGNORE}

    if not strange(set(found.tolist())):
        return
    everything: set[int] = set()
    rows = max(1, STRIP_PX // dataset.width)
    for row in range(0, dataset.height, rows):
        strip = Window(row, 0, min(rows, dataset.height - row), dataset.width)
        everything |= set(np.unique(read_ids(path, dataset, strip, label_ids)).tolist())
    if strange(everything):
        shown = ", ".join(str(number) for number in sorted(everything - known)[:5])
        raise DataError(
            f"{path}: {dataset.dtypes[0]} that holds {shown}, but the ids of {data_set.name} are bytes; save them as "
            "such, or say what they mean with data.label_ids"
        )


def _refuse_other_coding(path: Path, numbers: NDArray[np.int64], data_set: DataSet) -> None:
    """Reject label files whose distinct `numbers` show another encoding than the set's own."""
    found, table = set(numbers.tolist()), data_set.ids
    if data_set.taxonomy.name == "streethazards" and 0 in found:
        shifted = ", ".join(f"{i}: {i + 1}" for i in data_set.taxonomy.classes)
        raise DataError(
            f"{path}: holds 0, but the published labels begin with 1: these were counted from 0 already; say so with "
            f"--set 'data.label_ids={{{shifted}}}'"
        )
    if data_set.taxonomy.name != "anomaly":
        return
    if min(found) < 0:
        raise DataError(
            f"{path}: holds -1: a mask in which -1 is an anomaly and 1 is void; say so with "
            "--set 'data.label_ids={-1: 1, 1: 255}'"
        )
    if 2 in found and (2 not in table or (1 in found and len(table) == 4)):
        raise DataError(
            f"{path}: holds 2, as masks do in which 2 is void; if so, say it with --set 'data.label_ids={{2: 255}}'"
        )


def _from_table(
    numbers: NDArray[np.int64], found: NDArray[np.int64], table: Mapping[int, int], unknown: Counter[str]
) -> NDArray[np.uint8]:
    """Map numbers, whose distinct values are `found`, to class ids; unlisted ones become 255 and are counted."""
    meant = _looked_up(numbers, found, table, missing=NOT_LISTED)
    strange = meant == NOT_LISTED
    for number, pixels in zip(*np.unique(numbers[strange], return_counts=True), strict=True):
        unknown[str(number)] += int(pixels)
    ids: NDArray[np.uint8] = np.where(strange, IGNORE, meant).astype(np.uint8)
    return ids


def _looked_up(
    numbers: NDArray[np.int64], found: NDArray[np.int64], table: Mapping[int, int], *, missing: int
) -> NDArray[np.int64]:
    """Look up each number in a table; `found` are the distinct numbers, ascending."""
    meant = np.array([table.get(number, missing) for number in found.tolist()], np.int64)
    return meant[np.searchsorted(found, numbers)]


def _from_colours(
    rgb: NDArray[np.int64], colours: Mapping[tuple[int, int, int], int], unknown: Counter[str]
) -> NDArray[np.uint8]:
    """Map colours (3, H, W) to class ids; unlisted colours become 255 and are counted."""
    packed = (rgb[0] << 16) | (rgb[1] << 8) | rgb[2]
    counted: Counter[str] = Counter()
    table = {(r << 16) | (g << 8) | b: i for (r, g, b), i in colours.items()}
    ids = _from_table(packed, np.unique(packed), table, counted)
    for number, pixels in counted.items():
        unknown["{},{},{}".format(*(int(number) >> shift & 255 for shift in (16, 8, 0)))] += pixels
    return ids


def _from_segments(rgb: NDArray[np.int64], frame: Frame) -> NDArray[np.int64]:
    """Map a COCO panoptic image (3, H, W) to category ids; pixels of no segment are 0, unlabelled."""
    assert frame.labels is not None and frame.segments is not None
    segments = _panoptic(frame.segments).get(frame.labels.name)
    if segments is None:
        raise DataError(f"{frame.segments}: says nothing of {frame.labels.name}; download the set again")
    numbers = rgb[0] + 256 * rgb[1] + 65536 * rgb[2]
    return _looked_up(numbers, np.unique(numbers), segments, missing=0)


@cache
def _panoptic(index: Path) -> dict[str, dict[int, int]]:
    """Read a COCO panoptic index: for each label file, the category id of each segment id."""
    try:
        annotations = json.loads(index.read_text(encoding="utf-8"))["annotations"]
        return {a["file_name"]: {int(s["id"]): int(s["category_id"]) for s in a["segments_info"]} for a in annotations}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index}: not a COCO panoptic index ({error}); download it again") from None


def held_ids(frame: Frame, label_ids: Mapping[int, int] | None = None) -> tuple[dict[int, int], Counter[str]]:
    """Count the pixels of each class id in a frame's labels, 255 included, and those of each unknown number.

    Raises:
        DataError: as `decode`.
    """
    unknown: Counter[str] = Counter()
    if frame.labels is None or frame.data_set is None:
        return {}, unknown
    height, width = frame_size(frame)
    counts, rows = np.zeros(IGNORE + 1, np.int64), max(1, STRIP_PX // width)
    for row in range(0, height, rows):
        strip = Window(row, 0, min(rows, height - row), width)
        ids = read_labels(frame, strip, label_ids=label_ids, unknown=unknown)
        counts += np.bincount(ids.ravel(), minlength=IGNORE + 1)
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}, unknown


def screened(
    found: FoundFrames, anomaly: set[int], *, holds: str, label_ids: Mapping[int, int] | None = None
) -> list[Frame]:
    """Return the frames whose labels hold an anomaly id anywhere (`anomalous`) or none (`clean`).

    Raises:
        DataError: no frame is left, or as `decode`.
    """
    if holds == "anything":
        return found.frames
    kept, total = [], Counter[str]()
    with Progress("reading labels", len(found.frames)) as progress:
        for frame in found.frames:
            counts, unknown = held_ids(frame, label_ids)
            if sum(unknown.values()) > sum(n for i, n in counts.items() if i != IGNORE):
                shown = ", ".join(number for number, _ in unknown.most_common(5))
                raise DataError(
                    f"{frame.labels}: holds {shown}, undefined in its data set, so it is unknown whether it shows an "
                    "anomaly; take the label files as published, or say what they mean with data.label_ids"
                )
            total += unknown
            has = not anomaly.isdisjoint(counts)
            if frame.labels is not None and has == (holds == "anomalous"):
                kept.append(frame)
            progress.advance()
    if total:
        shown = ", ".join(f"{number} ({counted(pixels, 'pixel')})" for number, pixels in total.most_common(5))
        log.warning("label files hold undefined numbers, which do not count as an anomaly: %s", shown)
    if not kept:
        wanted = "an anomaly" if holds == "anomalous" else "no anomaly"
        raise DataError(f"{found.frames[0].image.parent}: no frame holds {wanted} (class ids {sorted(anomaly)})")
    return kept


class Frame(NamedTuple):
    """Image of a data set, and its labels (None: unlabelled). `name` is its id in the set's own terms.

    Names that repeat from folder to folder are prefixed with the folder and `/`. `base` is the image that `image` is an
    overlay of, `segments` the index that gives the category of each segment in the labels. Without a `data_set`, labels
    are rasters of the ids that the config names.
    """

    name: str
    image: Path
    labels: Path | None
    data_set: DataSet | None = None
    base: Path | None = None
    segments: Path | None = None


@dataclass
class FoundFrames:
    """Frames of a split ordered by name, and the files without a counterpart.

    `not_found` are names in the split's list of frames that no image has.
    """

    layout: PathLayout
    frames: list[Frame]
    without_labels: list[Path] = field(default_factory=list)
    without_image: list[Path] = field(default_factory=list)
    not_found: list[str] = field(default_factory=list)
