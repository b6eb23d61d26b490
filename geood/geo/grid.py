"""Pixel geometry: windows, georeferenced grids, and the division of a scene into tiles.

geood addresses pixels by a `Window` of integers; georeferencing is only the float64 affine transform and the CRS of a
`Grid`, both passed through unchanged. A `Tile` is read larger than it is written: the write windows of `tile_grid`
partition the scene, the read windows add a halo. This module opens no files and uses no tensors. The CRS is the object
that the reader returned (rasterio's), so no projection is ever rewritten in another notation.
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


OBLONG = 1.1  # longer side by the shorter one, above which a pixel is called no square


class Window(NamedTuple):
    """Rectangle of pixels; it may extend beyond the scene, so `row` and `col` may be negative."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """(row slice, column slice) of the window, for indexing an array of the whole scene."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    def within(self, outer: Window) -> Window:
        """Intersect this window with `outer`; height or width of the result is 0 if they do not overlap."""
        row, col = max(self.row, outer.row), max(self.col, outer.col)
        bottom = min(self.row + self.height, outer.row + outer.height)
        right = min(self.col + self.width, outer.col + outer.width)
        return Window(row, col, max(0, bottom - row), max(0, right - col))


@dataclass(frozen=True)
class Grid:
    """Pixel grid of a raster: size in pixels, affine transform from (column, row) to CRS units, CRS (None: a photo)."""

    height: int
    width: int
    transform: Affine
    crs: CRS | None = None

    def __getitem__(self, window: Window) -> Grid:
        """Return the grid of a window of this grid."""
        transform = self.transform @ Affine.translation(window.col, window.row)
        return Grid(window.height, window.width, transform, self.crs)

    @property
    def placed(self) -> bool:
        """True if the grid has a CRS or coordinates of its own; a photograph has neither."""
        return self.crs is not None or not self.transform.is_identity

    @property
    def window(self) -> Window:
        """Window that covers the whole grid."""
        return Window(0, 0, self.height, self.width)

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Side lengths of a pixel (along a row, along a column) in CRS units; of rotated grids too."""
        t = self.transform
        return (t.a**2 + t.d**2) ** 0.5, (t.b**2 + t.e**2) ** 0.5

    @property
    def upright_size(self) -> tuple[float, float]:
        """Sides (along x, along y) in CRS units of a north-up pixel on as much ground; of a turned grid in degrees too,
        whose pixels are rectangles on the ground and none in degrees.
        """
        t = self.transform
        return math.hypot(t.a, t.b), math.hypot(t.d, t.e)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Bounding box (xmin, ymin, xmax, ymax) of all four corners in CRS units."""
        corners = [self.transform @ (x, y) for x in (0, self.width) for y in (0, self.height)]
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def resolution_m(self) -> float | None:
        """Ground resolution at the centre in metres per pixel (geometric mean of both sides); None without a CRS."""
        if self.crs is None:
            return None
        x, y = self.transform @ (self.width / 2, self.height / 2)
        along_x, along_y = metres_per_unit(self.crs, x, y)
        return math.sqrt(abs(float(self.transform.determinant)) * along_x * along_y)

    @property
    def pixel_m(self) -> tuple[float, float] | None:
        """Side lengths of a pixel (along a row, along a column) at the centre in metres; None without a CRS."""
        if self.crs is None:
            return None
        t = self.transform
        along_x, along_y = metres_per_unit(self.crs, *(t @ (self.width / 2, self.height / 2)))
        return math.hypot(t.a * along_x, t.d * along_y), math.hypot(t.b * along_x, t.e * along_y)

    @property
    def pixel_m2(self) -> float | None:
        """Ground area of a pixel in square metres, the mean over the grid; None without a CRS.

        Over many degrees of latitude pixels differ, and that at the centre is none to count areas by. The mean is that
        of 3 x 3 places, weighed (Gauss and Legendre).
        """
        if self.crs is None or self.resolution_m is None:
            return None
        nodes, weights = np.polynomial.legendre.leggauss(3)
        cols, rows = np.meshgrid((nodes + 1) / 2 * self.width, (nodes + 1) / 2 * self.height)
        x, y = self.transform @ (cols.ravel(), rows.ravel())
        found = _metres_per_unit(self.crs, x, y)
        if found is None:  # places outside of what the CRS is for
            return self.resolution_m**2
        mean_m2 = float((np.outer(weights, weights).ravel() / 4 * found[0] * found[1]).sum())  # of a unit by a unit
        return mean_m2 * abs(float(self.transform.determinant))


@dataclass(frozen=True)
class Tile:
    """Unit of prediction: the network sees the pixels in `read`, the scores in `write` are kept.

    `read` may extend beyond the scene; the reader pads by reflection there. `halo_px` is the width of what is read
    around `write`, on the grid that is read.
    """

    read: Window
    write: Window
    halo_px: int = 0

    @property
    def core(self) -> tuple[slice, slice]:
        """Slices of the write window in an array of the read window."""
        return Window(
            self.write.row - self.read.row, self.write.col - self.read.col, self.write.height, self.write.width
        ).slices


def tile_grid(
    height: int, width: int, *, tile_px: int, halo_px: int, multiple: int = 32, scale: float = 1.0
) -> Iterator[Tile]:
    """Split a scene of `height` x `width` pixels into tiles, in row-major order.

    Write windows are `tile_px` square (smaller at the right and bottom edge) and partition the scene. Read windows
    start at multiples of `multiple` and have sides that are multiples of it, so that a network of that stride sees each
    pixel at the same phase in every tile; hence `tile_px` and `halo_px` must be multiples too. With a `scale` other
    than 1 (working pixels per scene pixel), read windows are on the resampled grid and contain every pixel that
    `resampled` refers to. A scene in a single tile has no seam, so it is read without a halo: mirrored surroundings
    would be more to compute, and scores near the edge are better without.

    Raises:
        ValueError: the scene is empty, or a size is not a multiple of `multiple`.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a scene has at least one pixel, got {height} x {width}")
    if tile_px < multiple or tile_px % multiple or halo_px < 0 or halo_px % multiple:
        raise ValueError(f"tile_px and halo_px must be multiples of {multiple}, got {tile_px} and {halo_px}")

    alone = height <= tile_px and width <= tile_px
    halo_px = 0 if alone else halo_px

    def span(start: int, length: int) -> tuple[int, int]:
        """Return start and length of the read window along one axis."""
        beside = 0 if scale == 1 or alone else 1  # alone, the outermost pixels are interpolated from the edge
        first = math.floor(start * scale) - beside
        first -= first % multiple
        inner = math.ceil((start + length) * scale) + beside - first
        return first - halo_px, -(-inner // multiple) * multiple + 2 * halo_px

    for row in range(0, height, tile_px):
        for col in range(0, width, tile_px):
            write = Window(row, col, min(tile_px, height - row), min(tile_px, width - col))
            (top, rows), (left, cols) = span(row, write.height), span(col, write.width)
            yield Tile(Window(top, left, rows, cols), write, halo_px)


def resampled(
    start: int, length: int, scale: float, *, origin: int, size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Compute, along one axis, linear interpolation from a resampled array back to scene pixels.

    Args:
        start: first scene pixel.
        length: number n of scene pixels.
        scale: resampled pixels per scene pixel.
        origin: position of the resampled array on the resampled axis.
        size: length of the resampled array.

    Returns:
        Two index arrays (n,) of the resampled pixels on either side of each pixel centre, and the weight (n,) of the
        second in [0, 1).
    """
    position = (np.arange(start, start + length) + 0.5) * scale - 0.5 - origin
    below = np.floor(position)
    first = below.astype(np.intp)
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), position - below


def mirrored(start: int, length: int, size: int) -> NDArray[np.intp]:
    """Return `length` indices from `start` into an axis of `size`, reflected outside it without repeating the edge."""
    period = max(1, 2 * (size - 1))
    indices = np.arange(start, start + length) % period
    return np.minimum(indices, period - indices) if size > 1 else np.zeros(length, np.intp)


def metres_per_unit(crs: Any, x: float, y: float) -> tuple[float, float]:
    """Return the length of one CRS unit at (x, y) in metres on the ground, along x and y; for degrees, feet, Mercator.

    For a CRS that is not tied to the earth (a local engineering grid), it is the unit's conversion factor.
    """
    from pyproj import CRS

    found = _metres_per_unit(crs, np.array([x]), np.array([y]))
    if found is not None:
        return float(found[0][0]), float(found[1][0])
    axes = CRS.from_user_input(crs).axis_info
    factor = float(axes[0].unit_conversion_factor) if axes else 1.0
    return factor, factor


def _metres_per_unit(
    crs: Any, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the length of one CRS unit at places (n,) in metres, along x (n,) and y (n,); None if one is not known."""
    from pyproj import CRS, Geod, Transformer
    from pyproj.exceptions import ProjError

    crs = CRS.from_user_input(crs)
    unit = 1e-4 if crs.is_geographic else 10.0
    xs, ys = np.stack([x - unit, x + unit, x, x]), np.stack([y, y, y - unit, y + unit])
    try:
        to_earth = Transformer.from_crs(crs, CRS.from_epsg(4326), always_xy=True)
        lon, lat = to_earth.transform(xs, ys, errcheck=True)
        _, _, metres = Geod(ellps="WGS84").inv(lon[[0, 2]], lat[[0, 2]], lon[[1, 3]], lat[[1, 3]])
    except ProjError:
        return None
    across, along = metres / (2 * unit)
    known = np.isfinite(across) & np.isfinite(along) & (across > 0) & (along > 0)
    return (across, along) if known.all() else None


def oblong(grid: Grid) -> str | None:
    """Return in words what the pixels of a grid are on the ground where they are no squares there, as in degrees far
    from the equator; else None.
    """
    sides = grid.pixel_m
    if sides is None or max(sides) <= OBLONG * min(sides):
        return None
    return f"{sides[0]:.3g} m wide and {sides[1]:.3g} m high on the ground"


SAMPLE_PX = 64  # side of the sample windows; block sizes of files are mostly multiples of it


def sample_windows(grid: Grid, count: int, *, skip: int = 0) -> Iterator[Window]:
    """Yield `count` small windows spread evenly over a grid, in row-major order, without those of the count `skip`.

    They lie on a lattice of their own size, so that a window mostly touches one block of the file. Row-major order
    matters for files that can only be decoded from the top.
    """
    rows, cols = -(-grid.height // SAMPLE_PX), -(-grid.width // SAMPLE_PX)

    def lattice(most: int) -> set[tuple[int, int]]:
        if rows * cols <= most:
            return {(r, c) for r in range(rows) for c in range(cols)}
        # The R2 sequence: any part of it is spread evenly over the square (M. Roberts, 2018).
        down, across = ((0.5 + step * np.arange(most)) % 1 for step in (0.7548776662466927, 0.5698402909980532))
        return set(zip((down * rows).astype(int).tolist(), (across * cols).astype(int).tolist(), strict=True))

    for row, col in sorted(lattice(count) - lattice(skip)):
        yield Window(row * SAMPLE_PX, col * SAMPLE_PX, SAMPLE_PX, SAMPLE_PX).within(grid.window)
