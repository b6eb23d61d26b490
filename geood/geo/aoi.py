"""Areas of interest: polygons or a bounding box that select the pixels of a grid to be processed.

Input polygons may be in any CRS. They are transformed to pixel coordinates of the whole grid once, so a pixel is inside
or outside whatever window it is queried through. A pixel is inside if its centre is, boundary included. This module
reads vector files but no rasters.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import CRSError
from shapely.affinity import affine_transform

from geood.errors import ConfigError, shown
from geood.geo.grid import Grid, Window
from geood.geo.vector import LARGEST, Polygons, Purpose, crs_of, onto_grid, polygonal, read_polygons

LEAF_PX = 32  # windows up to this side are tested pixel by pixel
DIGITS = 4  # decimals of a pixel that enter a digest; PROJ releases differ beyond that
AREA = Purpose(ConfigError, layers="save the one to use in its own file", attributes="", shapes="draw an area")
_lock = threading.Lock()  # GEOS completes a prepared geometry on its first use, in whichever thread that happens


@dataclass(frozen=True)
class AreaOfInterest:
    """Area of interest on a grid, picklable; create it with `from_file` or `from_bbox`.

    `shape` is a (multi)polygon in pixel coordinates (column, row) of the grid, `window` its bounding box in pixels.
    """

    shape: Any
    window: Window

    @classmethod
    def from_file(cls, path: str | Path, grid: Grid, layer: str | None = None) -> Self:
        """Return the union of all polygons of a vector file in any CRS; `layer` selects one of several layers.

        Without georeferencing, x is the column and y is minus the row, as in the polygons that geood writes.

        Raises:
            ConfigError: the file cannot be read, contains anything but valid polygons, does not overlap the scene, or
                only one of file and scene has a CRS.
        """
        polygons = read_polygons(Path(path), AREA, layer=layer)
        return cls._placed(polygons._replace(shapes=np.array([shapely.union_all(polygons.shapes)])), grid)

    @classmethod
    def from_bbox(cls, box: str | Sequence[float], grid: Grid) -> Self:
        """Return the rectangle "west,south,east,north", in the scene's CRS or in one appended as ",EPSG:4326".

        Raises:
            ConfigError: the box is not a rectangle, its CRS is unknown, or it does not overlap the scene.
        """
        parts = [part.strip() for part in box.split(",", 4)] if isinstance(box, str) else list(box)
        numbers, crs, given = _numbers(parts[:4]), crs_of(grid), f"box {shown(str(box))}"
        if numbers is None:
            raise ConfigError(
                f"{given}: not a rectangle; give west,south,east,north with west < east and south < north"
            )
        if parts[4:]:
            if grid.crs is None:
                raise ConfigError(f"{given}: has a CRS, but the scene has none; give x as columns and y as minus rows")
            try:
                crs = pyproj.CRS.from_user_input(parts[4]).to_2d()
            except (CRSError, UnicodeError):
                raise ConfigError(f"{given}: {shown(str(parts[4]))} is not a CRS; give one such as EPSG:4326") from None
        return cls._placed(Polygons(given, np.array([shapely.box(*numbers)]), np.zeros(1), crs), grid)

    @classmethod
    def _placed(cls, polygons: Polygons, grid: Grid) -> Self:
        """Return the part of one shape in CRS coordinates that lies on the grid."""
        [shape], t = onto_grid(polygons, grid, AREA), ~grid.transform
        shape = polygonal(affine_transform(shape, (t.a, t.b, t.d, t.e, t.c, t.f)))
        shape = polygonal(shapely.intersection(shape, shapely.box(0, 0, grid.width, grid.height)))
        if shape.is_empty:
            drawn = Grid(grid.height, grid.width, Affine.scale(1, -1)) if grid.transform.is_identity else grid
            raise ConfigError(
                f"{polygons.name}: does not overlap the scene: it spans "
                f"{_spoken(polygons.shapes[0].bounds, polygons.crs)}, the scene {_spoken(drawn.bounds, crs_of(grid))}; "
                "draw it over the scene, or correct the CRS of either"
            )
        left, top, right, bottom = shape.bounds
        row, col = math.floor(top), math.floor(left)
        window = Window(row, col, math.ceil(bottom) - row, math.ceil(right) - col).within(grid.window)
        return cls(shape, window)

    def __post_init__(self) -> None:
        shapely.prepare(self.shape)

    def __reduce__(self) -> tuple[type[AreaOfInterest], tuple[Any, Window]]:
        return type(self), (self.shape, self.window)

    def covers(self, window: Window) -> NDArray[np.bool_]:
        """Return a boolean mask (h, w) of the pixels of a window inside the area; it agrees between windows."""
        mask = np.zeros((window.height, window.width), np.bool_)
        waiting = [window] if self.touches(window) else []
        shape: Any = self._near(window) if waiting else None
        while waiting:
            block = waiting.pop()
            centres = _centres(block)
            if not shape.intersects(centres):
                continue
            target = Window(block.row - window.row, block.col - window.col, block.height, block.width).slices
            if shape.covers(centres):
                mask[target] = True
            elif max(block.height, block.width) > LEAF_PX:
                waiting += _quarters(block)
            else:
                rows, cols = (np.arange(s.start, s.stop) + 0.5 for s in block.slices)
                mask[target] = shapely.intersects_xy(shape, cols[None, :], rows[:, None])
        return mask

    def touches(self, window: Window) -> bool:
        """Check whether the area intersects the rectangle spanned by the outermost pixel centres of a window."""
        with _lock:
            return bool(window.height and window.width and self.shape.intersects(_centres(window)))

    def _near(self, window: Window) -> Any:
        """Return the polygons near a window, uncut so that no pixel's result changes, prepared for this thread only."""
        polygons, bounds = self._polygons
        near = (bounds[:, 0] <= window.col + window.width) & (bounds[:, 2] >= window.col)
        near &= (bounds[:, 1] <= window.row + window.height) & (bounds[:, 3] >= window.row)
        shape = shapely.multipolygons(polygons[near])
        shapely.prepare(shape)
        return shape

    @cached_property
    def _polygons(self) -> tuple[NDArray[Any], NDArray[np.float64]]:
        polygons = shapely.get_parts(self.shape)
        return polygons, shapely.bounds(polygons)

    def digest(self) -> str:
        """Return a digest of the shape (32 hex digits) that identifies this area."""
        shape = shapely.normalize(shapely.transform(self.shape, lambda points: np.round(points, DIGITS) + 0.0))
        return hashlib.sha256(shapely.to_wkb(shape)).hexdigest()[:32]


# Windows as shapes


def _centres(window: Window) -> Any:
    """Return the rectangle, line or point that the pixel centres of a window span."""
    left, top = window.col + 0.5, window.row + 0.5
    right, bottom = left + window.width - 1, top + window.height - 1
    if left == right and top == bottom:
        return shapely.Point(left, top)
    if left == right or top == bottom:
        return shapely.LineString([(left, top), (right, bottom)])
    return shapely.box(left, top, right, bottom)


def _quarters(window: Window) -> Iterator[Window]:
    tall, wide = -(-window.height // 2), -(-window.width // 2)
    for row in range(window.row, window.row + window.height, tall):
        for col in range(window.col, window.col + window.width, wide):
            yield Window(row, col, tall, wide).within(window)


# Rectangles, and words


def _numbers(parts: Sequence[str | float]) -> tuple[float, float, float, float] | None:
    """Parse west, south, east, north; None if they do not form a rectangle."""
    try:
        west, south, east, north = map(float, parts)
    except (TypeError, ValueError, OverflowError):
        return None
    fits = west < east and south < north and all(abs(number) <= LARGEST for number in (west, south, east, north))
    return (west, south, east, north) if fits else None


def _spoken(bounds: Sequence[float], crs: Any) -> str:
    west, south, east, north = (f"{number:.9g}" for number in bounds)
    return f"west {west}, south {south}, east {east}, north {north} ({crs.name if crs else 'pixels'})"
