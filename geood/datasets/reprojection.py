"""One raster file on somebody else's pixels: the grid of a crop.

Where the grids agree the pixels are taken as they are; a rotated file, one in another CRS or of another pixel size is
resampled, measurements bilinearly and class ids from the nearest pixel. Validity goes the same way, so that nothing
outside a file or without data turns into a value. Open files are few, and stay in their process.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform_bounds

from geood.errors import DataError
from geood.geo.gdal import GDAL_FAILURES, reading, reason
from geood.geo.grid import Grid, Window

OPEN_FILES = 16  # a GDAL handle holds buffers; TorchGeo's 128 for each worker can eat gigabytes (its thread 1694)
FINEST = 16  # a source may be this many times finer than the crops; beyond it one crop reads a huge window
TOLERANCE_PX = 0.01  # grids that agree to this share of a pixel are the same grid


class OpenFiles:
    """The few files used last, kept open; a copy in another process starts with none."""

    def __init__(self, opener: Callable[[str], AbstractContextManager[Any]]) -> None:
        self._opener = opener
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[str, tuple[Any, ExitStack]] = OrderedDict()

    def __call__(self, path: str) -> Any:
        if self._process != os.getpid():
            self._begin()
        if path not in self._files:
            stack = ExitStack()
            self._files[path] = stack.enter_context(self._opener(path)), stack
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1][1].close()
        self._files.move_to_end(path)
        return self._files[path][0]

    def __len__(self) -> int:
        return len(self._files)

    def __getstate__(self) -> dict[str, Any]:
        return {"_opener": self._opener}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._opener = state["_opener"]
        self._begin()


class SourcePart(NamedTuple):
    """What one file knows of a grid: data (channels, h, w), valid (h, w)."""

    data: NDArray[Any]
    valid: NDArray[np.bool_]


class SourceImage(NamedTuple):
    """One open raster: its grid, how a window inside it is read, and what stands where it knows nothing.

    A `fill` that is a float marks measurements, to be resampled bilinearly; an int marks class ids.
    """

    path: str
    grid: Grid
    read: Callable[[Window], SourcePart]
    channels: int
    fill: float

    def onto(self, target: Grid) -> SourcePart:
        """The pixels of `target`: as they are where the grids agree, else resampled."""
        window = aligned_window(self.grid, target)
        return self._warped(target) if window is None else self._placed(window)

    def _empty(self, height: int, width: int) -> SourcePart:
        kind = np.float32 if isinstance(self.fill, float) else np.int32
        return SourcePart(np.full((self.channels, height, width), self.fill, kind), np.zeros((height, width), np.bool_))

    def _placed(self, window: Window) -> SourcePart:
        part = window.within(self.grid.window)
        if part == window:
            return self.read(window)
        out = self._empty(window.height, window.width)
        if part.height and part.width:
            rows, cols = Window(part.row - window.row, part.col - window.col, part.height, part.width).slices
            out.data[:, rows, cols], out.valid[rows, cols] = self.read(part)
        return out

    def _warped(self, target: Grid) -> SourcePart:
        out = self._empty(target.height, target.width)
        part = self._window_under(target)
        if not part.height or not part.width:
            return out
        if max(part.height, part.width) > FINEST * max(target.height, target.width) + 8:
            raise DataError(
                f"{self.path}: its pixels are over {FINEST} times finer than those of the training crops; bring it to "
                "their size first (gdalwarp -tr), or set data.resolution nearer to its own"
            )
        array, valid = self.read(part)
        measured = isinstance(self.fill, float)
        nothing = np.nan if measured else self.fill
        here, known = self.grid[part], np.zeros(out.valid.shape, np.uint8)
        place = {"src_transform": here.transform, "src_crs": here.crs}
        place |= {"dst_transform": target.transform, "dst_crs": target.crs}
        data = np.where(valid, array, nothing).astype(array.dtype)
        fills = {"src_nodata": nothing, "dst_nodata": nothing, "init_dest_nodata": True}
        with reading(Path(self.path)):
            reproject(valid.astype(np.uint8), known, **place, resampling=Resampling.nearest)
            reproject(
                data, out.data, **place, **fills, resampling=Resampling.bilinear if measured else Resampling.nearest
            )
        valid = (known > 0) & np.isfinite(out.data).all(0)
        return SourcePart(np.where(valid, out.data, self.fill).astype(array.dtype), valid)

    def _window_under(self, target: Grid) -> Window:
        """The window of this raster that a target grid lies on, with two pixels to spare for resampling."""
        try:
            xmin, ymin, xmax, ymax = transform_bounds(target.crs, self.grid.crs, *target.bounds)
        except GDAL_FAILURES as error:
            raise DataError(
                f"{self.path}: cannot be brought to {target.crs} ({reason(error)}); check its CRS"
            ) from None
        corners = [~self.grid.transform @ (x, y) for x in (xmin, xmax) for y in (ymin, ymax)]
        col, row = (math.floor(min(v)) - 2 for v in zip(*corners, strict=True))
        right, bottom = (math.ceil(max(v)) + 2 for v in zip(*corners, strict=True))
        return Window(row, col, bottom - row, right - col).within(self.grid.window)


def aligned_window(source: Grid, target: Grid) -> Window | None:
    """The window of `source` that is `target`, if both have the same pixels on the ground; None if they differ."""
    a, b = source.transform, target.transform
    drift = TOLERANCE_PX * b.a / max(target.height, target.width)
    same = all(abs(p - q) <= drift for p, q in zip((a.a, a.b, a.d, a.e), (b.a, b.b, b.d, b.e), strict=True))
    if not same or source.crs != target.crs:
        return None
    col, row = ~a @ (b.c, b.f)
    if abs(col - round(col)) > TOLERANCE_PX or abs(row - round(row)) > TOLERANCE_PX:
        return None
    return Window(round(row), round(col), target.height, target.width)
