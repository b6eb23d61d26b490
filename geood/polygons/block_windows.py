"""Going through a raster window by window, the next window read while the last one is worked on.

GDAL lets other threads run while it reads and unpacks, so one thread that reads ahead hides most of that time. Windows
are whole blocks of the file, so that none is unpacked twice and there is little for GDAL to keep. Blocks that a sparse
GeoTIFF does not hold are told from its index, without reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray

from geood.geo.gdal import open_raster, rasterio_window, reading
from geood.geo.grid import Grid, Window

T = TypeVar("T")
SIDE = 2048  # of a window whose blocks are not larger; those of strips have as many pixels
CACHE_BYTES = 32 * 2**20


def open_for_windows(path: Path) -> Any:
    """A rasterio dataset, as of `open_raster`, whose blocks are unpacked on all cores if it is a GeoTIFF.

    Raises:
        DataError: if it cannot be read.
    """
    dataset = open_raster(path)
    if dataset.driver != "GTiff":
        return dataset
    dataset.close()
    with reading(path):
        return rasterio.open(path, NUM_THREADS="ALL_CPUS")


def window_size(dataset: Any) -> tuple[int, int]:
    """Height and width of windows of about SIDE x SIDE pixels that consist of whole blocks of a raster."""
    height, width = dataset.block_shapes[0]
    wide = width * max(1, SIDE // width)
    return height * max(1, SIDE**2 // wide // height), wide


def read(dataset: Any, window: Window) -> NDArray[Any]:
    """The first band of a raster in a window.

    Raises:
        DataError: if it cannot be read.
    """
    with reading(Path(dataset.name)), rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        array: NDArray[Any] = dataset.read(1, window=rasterio_window(window))
    return array


def windows(grid: Grid, size: tuple[int, int]) -> Iterator[Window]:
    """Windows of at most `size` (height, width) that partition a grid, in reading order."""
    for row in range(0, grid.height, size[0]):
        for col in range(0, grid.width, size[1]):
            yield Window(row, col, *size).within(grid.window)


def ahead(places: Iterable[Window], look: Callable[[Window], T]) -> Iterator[T]:
    """`look(window)` for each window in turn, one ahead in a thread of its own; what it raises is raised here."""
    with ThreadPoolExecutor(1) as reader:
        before: Future[T] | None = None
        for place in places:
            current = reader.submit(look, place)
            if before is not None:
                yield before.result()
            before = current
        if before is not None:
            yield before.result()


def is_absent(dataset: Any, window: Window) -> bool:
    """Whether no block of a window is in the file, and NaN stands for what is not: so in sparse GeoTIFFs of scores."""
    if dataset.driver != "GTiff" or dataset.nodata is None or not np.isnan(dataset.nodata):
        return False
    height, width = dataset.block_shapes[0]
    rows = range(window.row // height, -(-(window.row + window.height) // height))
    cols = range(window.col // width, -(-(window.col + window.width) // width))
    return not any(dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1) for row in rows for col in cols)
