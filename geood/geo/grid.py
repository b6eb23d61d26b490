"""Pixel geometry: where pixels lie on the ground, and how a scene is cut into tiles.

Inside geood a place is a `Window` of integer pixels; geography enters only as the float64 affine and the CRS of a
`Grid`, which are carried along untouched. A `Tile` is read wider than it is written: the write windows of `tile_grid`
partition the scene, the read windows are those grown by a halo. This room opens no files and knows no tensors; the CRS
is whatever object the reader found (rasterio's), so that no projection is ever re-spelled on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rasterio.crs import CRS


class Window(NamedTuple):
    """A rectangle of pixels; `row` and `col` may be negative where it overhangs the scene."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The same rectangle as (row slice, column slice), for indexing an array of the whole scene."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    def within(self, outer: Window) -> Window:
        """The part of this window that lies in `outer`; its height or width is 0 where they do not meet."""
        row, col = max(self.row, outer.row), max(self.col, outer.col)
        bottom = min(self.row + self.height, outer.row + outer.height)
        right = min(self.col + self.width, outer.col + outer.width)
        return Window(row, col, max(0, bottom - row), max(0, right - col))


@dataclass(frozen=True)
class Grid:
    """The pixel grid of a raster: size in pixels, affine from (column, row) to CRS units, and CRS (None: a photo)."""

    height: int
    width: int
    transform: Affine
    crs: CRS | None = None

    def __getitem__(self, window: Window) -> Grid:
        """The grid of one window of this grid."""
        transform = self.transform @ Affine.translation(window.col, window.row)
        return Grid(window.height, window.width, transform, self.crs)

    @property
    def window(self) -> Window:
        """The window that covers the whole grid."""
        return Window(0, 0, self.height, self.width)

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Length of a pixel's two sides (along a row, along a column), in CRS units; right for rotated grids too."""
        t = self.transform
        return (t.a**2 + t.d**2) ** 0.5, (t.b**2 + t.e**2) ** 0.5

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(xmin, ymin, xmax, ymax) in CRS units, enclosing all four corners."""
        corners = [self.transform @ (x, y) for x in (0, self.width) for y in (0, self.height)]
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def resolution_m(self) -> float | None:
        """Metres on the ground per pixel at the middle of the grid, the mean of both sides; None without a CRS."""
        if self.crs is None:
            return None
        x, y = self.transform @ (self.width / 2, self.height / 2)
        along_x, along_y = metres_per_unit(self.crs, x, y)
        width, height = self.pixel_size
        return math.sqrt(width * along_x * height * along_y)


@dataclass(frozen=True)
class Tile:
    """One unit of prediction: pixels in `read` are looked at, scores in `write` are kept.

    `read` may overhang the scene; the reader mirrors the scene there.
    """

    read: Window
    write: Window

    @property
    def core(self) -> tuple[slice, slice]:
        """Slices that cut the write window out of an array of the read window."""
        return Window(
            self.write.row - self.read.row, self.write.col - self.read.col, self.write.height, self.write.width
        ).slices


def tile_grid(
    height: int, width: int, *, tile_px: int, halo_px: int, multiple: int = 32, scale: float = 1.0
) -> Iterator[Tile]:
    """Cut a scene of `height` x `width` pixels into tiles, row by row.

    Write windows are `tile_px` square (smaller at the right and lower edge) and partition the scene. Read windows start
    on multiples of `multiple` and have sides that are multiples of it, so that a network of that stride sees each pixel
    at the same phase in every tile; hence `tile_px` and `halo_px` must be multiples too. With a `scale` other than 1
    they are windows of the scene resampled to that many of its pixels, and hold all that `resampled` asks for.

    Raises:
        ValueError: if the scene is empty or a size is not a multiple of `multiple`.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a scene has at least one pixel, got {height} x {width}")
    if tile_px < multiple or tile_px % multiple or halo_px < 0 or halo_px % multiple:
        raise ValueError(f"tile_px and halo_px must be multiples of {multiple}, got {tile_px} and {halo_px}")

    def span(start: int, length: int) -> tuple[int, int]:
        """Where reading starts along one axis, and how far it goes."""
        beside = 0 if scale == 1 else 1
        first = math.floor(start * scale) - beside
        first -= first % multiple
        inner = math.ceil((start + length) * scale) + beside - first
        return first - halo_px, -(-inner // multiple) * multiple + 2 * halo_px

    for row in range(0, height, tile_px):
        for col in range(0, width, tile_px):
            write = Window(row, col, min(tile_px, height - row), min(tile_px, width - col))
            (top, rows), (left, cols) = span(row, write.height), span(col, write.width)
            yield Tile(Window(top, left, rows, cols), write)


def resampled(
    start: int, length: int, scale: float, *, origin: int, size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Where the pixels from `start` on lie among `size` resampled ones that begin at `origin`, along one axis.

    For each of `length` pixels the two resampled ones about its centre, and the share of the second.
    """
    place = (np.arange(start, start + length) + 0.5) * scale - 0.5 - origin
    below = np.floor(place)
    first = below.astype(np.intp)
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), place - below


def mirrored(start: int, length: int, size: int) -> NDArray[np.intp]:
    """Indexes into an axis of `size` for `length` places from `start`, mirrored outside it without repeating edges."""
    period = max(1, 2 * (size - 1))
    places = np.arange(start, start + length) % period
    return np.minimum(places, period - places) if size > 1 else np.zeros(length, np.intp)


def metres_per_unit(crs: Any, x: float, y: float) -> tuple[float, float]:
    """How many metres on the ground one CRS unit is at a point, along x and along y; right for degrees, feet, Mercator.

    A CRS without a place on the earth (a local engineering grid) is measured by its unit alone.
    """
    from pyproj import CRS, Geod, Transformer
    from pyproj.exceptions import ProjError

    crs = CRS.from_user_input(crs)
    try:
        to_earth = Transformer.from_crs(crs, CRS.from_epsg(4326), always_xy=True)
        unit = 1e-4 if crs.is_geographic else 10.0
        lon, lat = to_earth.transform([x - unit, x + unit, x, x], [y, y, y - unit, y + unit], errcheck=True)
        _, _, metres = Geod(ellps="WGS84").inv([lon[0], lon[2]], [lat[0], lat[2]], [lon[1], lon[3]], [lat[1], lat[3]])
        across, along = metres[0] / (2 * unit), metres[1] / (2 * unit)
        if math.isfinite(across) and math.isfinite(along) and across > 0 and along > 0:
            return across, along
    except ProjError:
        pass
    factor = float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0
    return factor, factor
