"""GDAL at arm's length: its settings, its windows, and its failures in plain words.

Every room that touches rasters goes through here, so that the block cache is bounded, no raw error of rasterio or GDAL
reaches a user, and its warnings stay out of the log. rasterio's wheel carries its own GDAL: nothing set here reaches
pyogrio. This room opens rasters but does not know what is in them.
"""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from geood.errors import DataError, OutputError
from geood.grid import Grid, Window

GDAL_FAILURES = (RasterioError, CPLE_BaseError, OSError)
CACHE_BYTES = 256 * 2**20  # GDAL's block cache; its own default, a share of the memory, grows with the machine
CHUNK = 2048  # side of the windows in which whole rasters are gone through

# A photo without georeferencing is a proper input; whoever cares sees `Grid.crs` None.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
# Alpha is read apart from nodata, so neither hides the other.
warnings.filterwarnings("ignore", category=NodataShadowWarning)
# GDAL's messages reach the user inside geood's errors; the raw lines would only repeat them.
logging.getLogger("rasterio._env").setLevel(logging.CRITICAL)


def settings() -> rasterio.Env:
    """The GDAL settings under which geood reads and writes rasters: a bounded cache, PNGs row by row.

    Where GDAL 3.10 reads a whole PNG at once, it takes one that was cut short for whole and hands on stray memory.
    """
    return rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_PNG_WHOLE_IMAGE_OPTIM="NO")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever GDAL says while `path` is read into a `DataError`."""
    try:
        with settings():
            yield
    except GDAL_FAILURES as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}); check that it is whole, or copy it again") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn whatever fails while `path` is written into an `OutputError`."""
    try:
        with settings():
            yield
    except GDAL_FAILURES as error:
        raise OutputError(
            f"{path}: cannot be written ({reason(error)}); free space on that disk, or choose another place"
        ) from None


def reason(error: BaseException) -> str:
    """GDAL's own words for a failure, on one line; rasterio hides them behind its own."""
    while isinstance(error, RasterioError) and (cause := error.__cause__ or error.__context__):
        error = cause
    return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__


def open_raster(path: Path) -> Any:
    """A rasterio dataset with at least one band.

    Raises:
        DataError: if the file is missing, is no raster, or has no bands of its own.
    """
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise DataError(f"{path}: no such file; " + (f"did you mean {near[0]}?" if near else "give an existing raster"))
    if path.is_dir():
        raise DataError(f"{path}: a folder, where one raster was needed; give a file in it")
    try:
        with settings():
            dataset = rasterio.open(path)
    except GDAL_FAILURES as error:
        raise DataError(
            f"{path}: cannot be read as a raster ({reason(error)}); give a GeoTIFF or another format GDAL reads, "
            "and copy the file again if it was cut short"
        ) from None
    if not dataset.count:
        inner = ", ".join(dataset.subdatasets[:3])
        dataset.close()
        raise DataError(f"{path}: holds no bands of its own ({inner or 'empty'}); save the layer you want as a GeoTIFF")
    return dataset


def rasterio_window(window: Window) -> Any:
    """The same window as rasterio spells it."""
    return rasterio.windows.Window(window.col, window.row, window.width, window.height)


def pieces(grid: Grid) -> Iterator[Window]:
    """Windows of at most 2048 x 2048 pixels that partition a grid, in reading order."""
    for row in range(0, grid.height, CHUNK):
        for col in range(0, grid.width, CHUNK):
            yield Window(row, col, CHUNK, CHUNK).within(grid.window)


@cache
def compression() -> str:
    """ZSTD where this GDAL has it, else DEFLATE."""
    shape = {"height": 1, "width": 1, "count": 1, "dtype": "uint8"}
    try:
        with MemoryFile() as memory, memory.open(driver="GTiff", compress="zstd", **shape):
            return "ZSTD"
    except GDAL_FAILURES:
        return "DEFLATE"
