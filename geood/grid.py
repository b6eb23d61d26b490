"""Pixel geometry: where pixels lie on the ground, and how a scene is cut into tiles.

Inside geood a place is a `Window` of integer pixels; geography enters only as the float64 affine and the CRS of a
`Grid`, which are carried along untouched. A `Tile` is read wider than it is written: the write windows of `tile_grid`
partition the scene, the read windows are those grown by a halo. This room opens no files and knows no tensors; the CRS
is whatever object the reader found (rasterio's), so that no projection is ever re-spelled on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from affine import Affine

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


def tile_grid(height: int, width: int, *, tile_px: int, halo_px: int, multiple: int = 32) -> Iterator[Tile]:
    """Cut a scene of `height` x `width` pixels into tiles, row by row.

    Write windows are `tile_px` square (smaller at the right and lower edge) and partition the scene. Read windows start
    on multiples of `multiple` and have sides that are multiples of it, so that a network of that stride sees each pixel
    at the same phase in every tile; hence `tile_px` and `halo_px` must be multiples too.

    Raises:
        ValueError: if the scene is empty or a size is not a multiple of `multiple`.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a scene has at least one pixel, got {height} x {width}")
    if tile_px < multiple or tile_px % multiple or halo_px < 0 or halo_px % multiple:
        raise ValueError(f"tile_px and halo_px must be multiples of {multiple}, got {tile_px} and {halo_px}")
    for row in range(0, height, tile_px):
        for col in range(0, width, tile_px):
            write = Window(row, col, min(tile_px, height - row), min(tile_px, width - col))
            inner_height = -(-write.height // multiple) * multiple
            inner_width = -(-write.width // multiple) * multiple
            read = Window(row - halo_px, col - halo_px, inner_height + 2 * halo_px, inner_width + 2 * halo_px)
            yield Tile(read, write)
