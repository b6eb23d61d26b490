"""Block-aligned windows of a raster, with the next one read while the current one is processed.

GDAL releases the GIL while it reads and decompresses, so one read-ahead thread hides most of that time. Windows consist
of whole blocks of the file, so that none is decompressed twice and GDAL needs little cache. Blocks that a sparse
GeoTIFF does not store are recognized from its block index, without reading.
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
WINDOW_SIDE = 2048  # pixels, unless blocks are larger; windows of strips have about as many pixels
CACHE_BYTES = 32 * 2**20


def open_for_windows(path: Path) -> Any:
    """Open a raster as `open_raster` does; the blocks of a GeoTIFF are decompressed on all cores.

    Raises:
        DataError: the file cannot be read.
    """
    dataset = open_raster(path)
    if dataset.driver != "GTiff":
        return dataset
    dataset.close()
    with reading(path):
        return rasterio.open(path, NUM_THREADS="ALL_CPUS")


def window_size(dataset: Any) -> tuple[int, int]:
    """Return height and width of windows of about WINDOW_SIDE x WINDOW_SIDE pixels that consist of whole blocks."""
    height, width = dataset.block_shapes[0]
    window_width = width * max(1, WINDOW_SIDE // width)
    return height * max(1, WINDOW_SIDE**2 // window_width // height), window_width


def read_band(dataset: Any, window: Window) -> NDArray[Any]:
    """Read the first band (h, w) of a raster in a window.

    Raises:
        DataError: the file cannot be read.
    """
    return _read(dataset, window, 1)


def read_bands(dataset: Any, window: Window) -> NDArray[Any]:
    """Read all bands (B, h, w) of a raster in a window.

    Raises:
        DataError: the file cannot be read.
    """
    return _read(dataset, window, None)


def _read(dataset: Any, window: Window, bands: int | None) -> NDArray[Any]:
    with reading(Path(dataset.name)), rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        array: NDArray[Any] = dataset.read(bands, window=rasterio_window(window))
    return array


def iter_windows(grid: Grid, size: tuple[int, int]) -> Iterator[Window]:
    """Yield windows of at most `size` (height, width) that partition a grid, in reading order."""
    for row in range(0, grid.height, size[0]):
        for col in range(0, grid.width, size[1]):
            yield Window(row, col, *size).within(grid.window)


def read_ahead(windows: Iterable[Window], read: Callable[[Window], T]) -> Iterator[T]:
    """Yield `read(window)` for each window in order, one window ahead in a thread; its exceptions are raised here."""
    with ThreadPoolExecutor(1) as executor:
        previous: Future[T] | None = None
        for window in windows:
            current = executor.submit(read, window)
            if previous is not None:
                yield previous.result()
            previous = current
        if previous is not None:
            yield previous.result()


def is_absent(dataset: Any, window: Window) -> bool:
    """Return True if the file is a sparse GeoTIFF with nodata NaN that stores no block of the window."""
    if dataset.driver != "GTiff" or dataset.nodata is None or not np.isnan(dataset.nodata):
        return False
    height, width = dataset.block_shapes[0]
    rows = range(window.row // height, -(-(window.row + window.height) // height))
    cols = range(window.col // width, -(-(window.col + window.width) // width))
    return not any(dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1) for row in rows for col in cols)
