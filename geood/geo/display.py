"""Rasters as pictures: scenes and scores at the size at which they are drawn, so memory stays small for any scene.

GDAL reads decimated: from overviews where a file has them, else block by block. Values are stretched for the eye, once
for a whole scene, so that cut-outs of it look alike; what is computed never passes here. Of a damaged file all that can
be read is shown, as a map of it has scores there. No figure is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling

from geood.geo.addresses import NETWORK
from geood.geo.gdal import GDAL_FAILURES, open_raster, rasterio_window, reading
from geood.geo.grid import Grid, Window

LONGEST_PX = 1000  # side at which rasters are read for a page
CELLS = 16  # along each axis, in which a damaged file is read
LOW, HIGH = 2, 98  # percentiles between which values of other types than 8 bit are stretched, as QGIS does

SCORES_LOW, SCORES_HIGH = 1, 99.9  # percentiles between which scores are coloured

Picture = NDArray[np.float32]


class DisplayRange(NamedTuple):
    """Values that are shown as black and as white."""

    low: float = 0.0
    high: float = 255.0


def drawn_shape(height: int, width: int, longest: int = LONGEST_PX) -> tuple[int, int]:
    """Return height and width at which a raster is drawn: at most `longest`, never enlarged."""
    shrink = min(1.0, longest / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def stretch_of(values: NDArray[Any]) -> DisplayRange:
    """Return the stretch of an image that is not 8-bit, one for all bands, so that its colours keep their balance."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, (LOW, HIGH)) if known.size else DisplayRange()
    return DisplayRange(float(low), float(high))


def score_range(score: Picture, *, least_high: float = -np.inf) -> DisplayRange:
    """Return the scores that get the first and the last colour: percentiles of the finite ones, 0 and 1 without any.

    Args:
        score: scores of any shape, NaN where there are none.
        least_high: the last colour is at least that of this score, such as the threshold.
    """
    finite = score[np.isfinite(score)]
    low, high = np.percentile(finite, (SCORES_LOW, SCORES_HIGH)) if finite.size else (0.0, 1.0)
    return DisplayRange(float(low), float(max(high, least_high, low + 1e-6)))


def grid_of(path: str | Path) -> Grid:
    """Return the grid of a source.

    Raises:
        DataError: it cannot be read.
    """
    with open_raster(path) as source:
        return Grid(source.height, source.width, source.transform, source.crs)


def read_photo(path: str | Path, longest: int = LONGEST_PX) -> Picture:
    """Read three bands (H, W, 3) in [0, 1] for display, white where invalid; all types but 8-bit are stretched.

    Raises:
        DataError: the raster cannot be read.
    """
    return read_stretched(path, longest)[0]


def read_stretched(path: str | Path, longest: int = LONGEST_PX) -> tuple[Picture, DisplayRange]:
    """Read a whole scene as `read_photo` does, and return the stretch for cut-outs of it as well."""
    with reading(path), open_raster(path) as source:
        shape = drawn_shape(source.height, source.width, longest)
        pixels, valid = _bands(source, shape, None)
        eight_bit = source.dtypes[0] == "uint8"
    stretch = DisplayRange()
    if not eight_bit and valid.any():
        stretch = stretch_of(pixels[:, valid])
    return _shown(pixels, valid, stretch), stretch


@contextmanager
def open_parts(path: str | Path, stretch: DisplayRange) -> Iterator[Callable[[Window, int], Picture]]:
    """Yield a function that reads a window of a scene (h, w, 3) in [0, 1], its longer side at most so many pixels.

    Raises:
        DataError: the raster cannot be read.
    """
    with reading(path), open_raster(path) as source:

        def part(window: Window, side: int) -> Picture:
            pixels, valid = _bands(source, drawn_shape(window.height, window.width, side), window)
            return _shown(pixels, valid, stretch)

        yield part


def read_band(path: str | Path, shape: tuple[int, int]) -> Picture:
    """Read the first band (h, w) of a raster at the drawn size, by nearest neighbour.

    Raises:
        DataError: the raster cannot be read.
    """
    with reading(path), open_raster(path) as source:
        return np.asarray(source.read(1, out_shape=shape), np.float32)


def read_average(path: str | Path, shape: tuple[int, int]) -> Picture:
    """Read the first band (h, w) of a raster at the drawn size, averaged; NaN where there is no data.

    Raises:
        DataError: the raster cannot be read.
    """
    with reading(path), open_raster(path) as source:
        values = source.read(1, out_shape=shape, resampling=Resampling.average, masked=True)
    return np.ma.filled(values.astype(np.float32), np.nan)


def _bands(source: Any, shape: tuple[int, int], window: Window | None) -> tuple[Picture, NDArray[np.bool_]]:
    """Read three bands (3, h, w) of an open raster, or one of them thrice, and where they are valid (h, w)."""
    kinds = zip(source.indexes, source.colorinterp, strict=True)
    bands = [i for i, kind in kinds if kind != ColorInterp.alpha]
    return read_valid(source, bands[:3] if len(bands) >= 3 else bands[:1] * 3, shape, window)


def read_valid(
    source: Any,
    bands: Sequence[int],
    shape: tuple[int, int],
    window: Window | None = None,
    *,
    kernel: Resampling = Resampling.average,
) -> tuple[Picture, NDArray[np.bool_]]:
    """Read bands (n, h, w) of an open raster at the drawn size, and where they are valid (h, w).

    A damaged file is read in cells, and is not valid in those that cannot be read; GDAL's error passes through if none
    can. What a server does not send is asked for once.
    """
    whole = window or Window(0, 0, source.height, source.width)

    def read(window: Window, shape: tuple[int, int]) -> tuple[Picture, NDArray[np.bool_]]:
        place = rasterio_window(window)
        pixels = source.read(list(bands), out_shape=(len(bands), *shape), window=place, resampling=kernel)
        mask = source.dataset_mask(out_shape=shape, window=place) > 0
        return (values := pixels.astype(np.float32)), mask & np.isfinite(values).all(0)

    try:
        return read(whole, shape)
    except GDAL_FAILURES as error:
        failure = error
    if NETWORK.search(source.name):
        raise failure
    drawn, valid, seen = np.zeros((len(bands), *shape), np.float32), np.zeros(shape, np.bool_), False
    strips = source.block_shapes[0][1] >= source.width  # whole rows are read for any cell then
    for rows, top, height in _cut(shape[0], whole.row, whole.height, CELLS):
        for cols, left, width in _cut(shape[1], whole.col, whole.width, 1 if strips else CELLS):
            size = rows.stop - rows.start, cols.stop - cols.start
            with suppress(*GDAL_FAILURES):
                drawn[:, rows, cols], valid[rows, cols] = read(Window(top, left, height, width), size)
                seen = True
    if not seen:
        raise failure
    return drawn, valid


def _cut(drawn: int, start: int, length: int, most: int) -> list[tuple[slice, int, int]]:
    """Cut an axis into `most` parts at most: drawn pixels, and first pixel and number of pixels of the raster."""
    edges = [drawn * i // min(most, drawn) for i in range(min(most, drawn) + 1)]
    pixels = [start + edge * length // drawn for edge in edges]
    return [(slice(*pair), top, end - top) for pair, (top, end) in zip(pairwise(edges), pairwise(pixels), strict=True)]


def _shown(pixels: Picture, valid: NDArray[np.bool_], stretch: DisplayRange) -> Picture:
    known = np.where(valid, pixels, stretch.low)  # nodata is often the lowest number of all
    photo = np.clip((known - stretch.low) / max(stretch.high - stretch.low, 1e-9), 0, 1)
    return np.where(valid, photo, 1).transpose(1, 2, 0).astype(np.float32)
