"""Reading of a raster file on the pixel grid of a crop.

Where the grids agree, pixels are read unchanged. A rotated file, or one with another CRS or pixel size, is resampled as
scenes are for predictions (`geo.resampling`): area averages of finer pixels, else bilinearly; where predictions would
read it as it is, up to a few per cent of its pixel size and however it is turned, each pixel is the nearest of its own.
The validity mask goes the same way, so that nothing outside a file or without data turns into a value. Few files stay
open, and none crosses to another process. Class ids are never resampled: `geo.labels.id_rasters` looks them up.
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
from rasterio.warp import reproject, transform, transform_bounds

from geood.errors import DataError
from geood.geo.gdal import GDAL_FAILURES, reading, reason
from geood.geo.grid import Grid, Window
from geood.geo.resampling import MAJORITY
from geood.geo.scene_reading import SAME

OPEN_FILES = 16  # a GDAL handle holds buffers; TorchGeo's 128 for each worker can eat gigabytes (its thread 1694)
FINEST = 16  # a source may be this many times finer than the crops; beyond that one crop reads a huge window
TOLERANCE_PX = 0.01  # grids that agree to this fraction of a pixel are the same


class OpenFiles:
    """Cache of the files used last, kept open; a copy in another process starts empty."""

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
    """Pixels of one file on a grid: data (channels, h, w), valid (h, w) bool."""

    data: NDArray[Any]
    valid: NDArray[np.bool_]


class SourceImage(NamedTuple):
    """Open raster of measurements: its grid, and a function that reads a window inside it; invalid pixels are 0."""

    path: str
    grid: Grid
    read: Callable[[Window], SourcePart]
    channels: int

    def onto(self, target: Grid) -> SourcePart:
        """Return the pixels of `target`: unchanged where the grids agree, else resampled."""
        window = aligned_window(self.grid, target)
        return self._warped(target) if window is None else self._placed(window)

    def _empty(self, height: int, width: int) -> SourcePart:
        return SourcePart(np.zeros((self.channels, height, width), np.float32), np.zeros((height, width), np.bool_))

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
        source, known = self.grid[part], np.zeros(out.valid.shape, np.uint8)
        grids = {"src_transform": source.transform, "src_crs": source.crs}
        grids |= {"dst_transform": target.transform, "dst_crs": target.crs}
        data = np.where(valid, array, np.nan).astype(np.float32)
        fills = {"src_nodata": np.nan, "dst_nodata": np.nan, "init_dest_nodata": True}
        with reading(Path(self.path)):
            kernel = self._kernel(target)
            if kernel == Resampling.average:
                share = np.zeros(out.valid.shape, np.float32)
                reproject(valid.astype(np.float32), share, **grids, resampling=kernel)
                known[:] = share >= MAJORITY
            else:
                reproject(valid.astype(np.uint8), known, **grids, resampling=Resampling.nearest)
            reproject(data, out.data, **grids, **fills, resampling=kernel)
        valid = (known > 0) & np.isfinite(out.data).all(0)
        return SourcePart(np.where(valid, out.data, 0).astype(np.float32), valid)

    def _kernel(self, target: Grid) -> Resampling:
        """Return how pixels come onto a target grid: as averages of finer ones, the nearest of those that predictions
        read as they are, since what is between two has less contrast, and else bilinearly.
        """
        col, row = target.width / 2, target.height / 2
        places = [target.transform @ place for place in ((col, row), (col + 1, row), (col, row + 1))]
        xs, ys = transform(target.crs, self.grid.crs, *zip(*places, strict=True))
        here, right, below = (np.array(~self.grid.transform @ place) for place in zip(xs, ys, strict=True))
        (a, b), (d, e) = right - here, below - here
        if abs(a * e - b * d) > (1 + SAME) ** 2:
            return Resampling.average
        alike = all(abs(side - 1) <= SAME for side in (math.hypot(a, b), math.hypot(d, e)))
        return Resampling.nearest if alike else Resampling.bilinear

    def _window_under(self, target: Grid) -> Window:
        """Return the window of this raster under a target grid, with a margin of two pixels for resampling."""
        try:
            xmin, ymin, xmax, ymax = transform_bounds(target.crs, self.grid.crs, *target.bounds)
        except GDAL_FAILURES as error:
            raise DataError(
                f"{self.path}: cannot be reprojected to {target.crs} ({reason(error)}); check its CRS"
            ) from None
        corners = [~self.grid.transform @ (x, y) for x in (xmin, xmax) for y in (ymin, ymax)]
        col, row = (math.floor(min(v)) - 2 for v in zip(*corners, strict=True))
        right, bottom = (math.ceil(max(v)) + 2 for v in zip(*corners, strict=True))
        return Window(row, col, bottom - row, right - col).within(self.grid.window)


def aligned_window(source: Grid, target: Grid) -> Window | None:
    """Return the window of `source` that coincides with `target`; None if their pixels differ on the ground."""
    a, b = source.transform, target.transform
    drift = TOLERANCE_PX * b.a / max(target.height, target.width)
    same = all(abs(p - q) <= drift for p, q in zip((a.a, a.b, a.d, a.e), (b.a, b.b, b.d, b.e), strict=True))
    if not same or source.crs != target.crs:
        return None
    col, row = ~a @ (b.c, b.f)
    if abs(col - round(col)) > TOLERANCE_PX or abs(row - round(row)) > TOLERANCE_PX:
        return None
    return Window(round(row), round(col), target.height, target.width)
