"""Files that cannot be read, found before anything is learned (`data.unreadable: skip`).

In a set of thousands a few files are cut or empty. By default the first of them ends a run, whenever it is met. Where a
config asks to skip them, every file is read once from its first to its last pixel before anything else, because a file
whose header is whole may be cut anywhere; what cannot be read is left out, told, and listed beside the run. What can be
read and does not fit, such as labels of another size, stays an error: that is not chance but a mistake.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from affine import Affine

from geood.atomic import atomic_write
from geood.errors import DataError, counted
from geood.geo.gdal import open_raster, pieces, rasterio_window, reading
from geood.geo.grid import Grid
from geood.progress import Progress

log = logging.getLogger("geood")

LISTED = 10  # that the log names
READERS = 4  # files read at once
Item = TypeVar("Item")


class Skipped(NamedTuple):
    """File that cannot be read, and why not."""

    path: Path
    why: str


def why_unreadable(path: Path) -> str | None:
    """Return why a raster cannot be read from its first to its last pixel; None if it can."""
    try:
        with open_raster(path) as dataset, reading(path):
            for window in pieces(Grid(dataset.height, dataset.width, Affine.identity())):
                for band in dataset.indexes:
                    dataset.read(band, window=rasterio_window(window))
    except DataError as error:
        return str(error)
    return None


def without_unreadable(
    items: Sequence[Item], files_of: Callable[[Item], Sequence[Path]], *, what: str
) -> tuple[list[Item], list[Skipped]]:
    """Return the items all of whose files can be read, and the files that cannot.

    Args:
        items: files, or what consists of some, such as an image with its labels.
        files_of: the files of an item.
        what: what the items are, in the plural, for messages.

    Raises:
        DataError: nothing is left.
    """
    kept: list[Item] = []
    skipped: list[Skipped] = []
    with Progress(f"reading {what} once", len(items)) as progress, ThreadPoolExecutor(READERS) as pool:

        def faults(item: Item) -> list[Skipped]:
            found = ((path, why_unreadable(path)) for path in files_of(item))
            return [Skipped(path, why) for path, why in found if why is not None]

        for item, wrong in zip(items, pool.map(faults, items), strict=True):
            skipped += wrong
            kept += [] if wrong else [item]
            progress.advance()
    if not kept and items:
        raise DataError(f"{skipped[0].why}; and none of the {len(items)} {what} can be read")
    if skipped:
        named = "; ".join(each.why for each in skipped[:LISTED])
        more = f"; and {counted(len(skipped) - LISTED, 'more file')}" if len(skipped) > LISTED else ""
        lost = len(items) - len(kept)
        log.warning("%d of %d %s cannot be read and are left out: %s%s", lost, len(items), what, named, more)
    return kept, skipped


def write_skipped(folder: Path, skipped: Sequence[Skipped]) -> None:
    """Write the files that were left out to `folder/skipped.csv`; without any, remove what was listed before."""
    path = folder / "skipped.csv"
    if not skipped:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path, alone=True) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Skipped._fields)
        writer.writerows(skipped)
