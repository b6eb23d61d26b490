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
from pyproj.exceptions import CRSError, ProjError
from shapely.affinity import affine_transform

from geood.errors import ConfigError
from geood.geo.grid import Grid, Window, metres_per_unit

LEAF_PX = 32  # windows up to this side are tested pixel by pixel
STRAY_PX = 0.01  # largest deviation of an edge, in pixels, caused by transforming it to another CRS
EARTH_M = 6_371_000.0
MARGIN = 0.1  # polygons are transformed up to this far beyond the scene, as a fraction of its size
DIGITS = 4  # decimals of a pixel that enter a digest; PROJ releases differ beyond that
_POLYGONS = ("Polygon", "MultiPolygon")
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
        path = Path(path)
        frame = _read(path, layer)
        shapes = np.asarray(frame.geometry)
        shapes = shapely.force_2d(shapes[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))])
        _check_polygons(path, shapes)
        if (frame.crs is None) != (grid.crs is None):
            came = "no CRS" if frame.crs is None else f"the CRS {frame.crs.name}"
            needed = "one was needed" if frame.crs is None else "none was needed, as the scene has none"
            raise ConfigError(f"{path}: has {came}, where {needed}; save it with the CRS in which it is drawn")
        return cls._placed(str(path), shapely.union_all(shapes), frame.crs, grid)

    @classmethod
    def from_bbox(cls, box: str | Sequence[float], grid: Grid) -> Self:
        """Return the rectangle "west,south,east,north", in the scene's CRS or in one appended as ",EPSG:4326".

        Raises:
            ConfigError: the box is not a rectangle, its CRS is unknown, or it does not overlap the scene.
        """
        parts = [part.strip() for part in box.split(",", 4)] if isinstance(box, str) else list(box)
        numbers, crs = _numbers(parts[:4]), _crs(grid)
        if numbers is None:
            raise ConfigError(f"{box}: not a rectangle; give west,south,east,north with west < east and south < north")
        if parts[4:]:
            if grid.crs is None:
                raise ConfigError(f"{box}: has a CRS, but the scene has none; give x as columns and y as minus rows")
            try:
                crs = pyproj.CRS.from_user_input(parts[4])
            except CRSError:
                raise ConfigError(f"{box}: {parts[4]} is not a CRS; give one such as EPSG:4326") from None
        return cls._placed(f"box {box}", shapely.box(*numbers), crs, grid)

    @classmethod
    def _placed(cls, name: str, shape: Any, crs: Any, grid: Grid) -> Self:
        """Return the part of a shape in CRS coordinates that lies on the grid."""
        bounds, here = shape.bounds, _crs(grid)
        if crs is not None and crs != here:
            shape = _brought_over(name, shape, crs, grid)
        t = ~_affine(grid)
        shape = _polygons(affine_transform(shape, (t.a, t.b, t.d, t.e, t.c, t.f)))
        shape = _polygons(shapely.intersection(shape, shapely.box(0, 0, grid.width, grid.height)))
        if shape.is_empty:
            raise ConfigError(
                f"{name}: does not overlap the scene: it spans {_spoken(bounds, crs)}, the scene "
                f"{_spoken(_bounds(grid), here)}; draw it over the scene, or correct the CRS of either"
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


# Reading polygons and transforming them to pixel coordinates


def _read(path: Path, layer: str | None) -> Any:
    """Read the geometries of a vector file, with their CRS."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file; give a file of polygons (.gpkg, .geojson, .shp, .parquet, .fgb)")
    import geopandas  # here, as workers need the value alone
    import pyogrio

    try:
        if path.suffix.lower() == ".parquet":
            return geopandas.read_parquet(path)
        drawn = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
        if len(drawn) == 1 or layer in drawn:
            return pyogrio.read_dataframe(path, layer=layer or drawn[0], columns=[])
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: cannot be read ({said}); give polygons as .gpkg or .geojson") from None
    layers = ", ".join(drawn) or "none with geometry"
    raise ConfigError(f"{path}: its layers are {layers}, where one was needed; save the one to use in its own file")


def _check_polygons(path: Path, shapes: NDArray[Any]) -> None:
    kinds = sorted({shape.geom_type for shape in shapes})
    if not kinds or not set(kinds) <= set(_POLYGONS):
        raise ConfigError(f"{path}: holds {', '.join(kinds) or 'no shapes'}, where polygons were needed; draw an area")
    for number, shape in enumerate(shapes, 1):
        if not shape.is_valid:
            raise ConfigError(
                f"{path}: polygon {number} is not valid ({shapely.is_valid_reason(shape)}); repair it, in QGIS with "
                "Fix geometries"
            )


def _numbers(parts: Sequence[str | float]) -> tuple[float, float, float, float] | None:
    """Parse west, south, east, north; None if they do not form a rectangle."""
    try:
        west, south, east, north = map(float, parts)
    except (TypeError, ValueError):
        return None
    fits = west < east and south < north and all(map(math.isfinite, (west, south, east, north)))
    return (west, south, east, north) if fits else None


def _brought_over(name: str, shape: Any, crs: Any, grid: Grid) -> Any:
    """Transform a shape, clipped near the grid, to the grid's CRS; edges are densified to stray at most `STRAY_PX`."""
    try:
        change = pyproj.Transformer.from_crs(crs, _crs(grid), always_xy=True)
        frame = change.transform_bounds(*_bounds(grid), direction="INVERSE")
        if all(map(math.isfinite, frame)) and frame[0] < frame[2]:
            spare = MARGIN * max(frame[2] - frame[0], frame[3] - frame[1])
            shape = shapely.intersection(shape, shapely.buffer(shapely.box(*frame), spare, join_style="mitre"))
        x, y = shapely.box(*frame).centroid.coords[0] if all(map(math.isfinite, frame)) else shape.centroid.coords[0]
        edge_m = math.sqrt(8 * EARTH_M * STRAY_PX * (grid.resolution_m or 1.0))
        shape = shapely.segmentize(shape, edge_m / max(metres_per_unit(crs, x, y)))
        moved = shapely.transform(shape, lambda points: np.column_stack(change.transform(*points.T, errcheck=True)))
        if not np.isfinite(shapely.get_coordinates(moved)).all():
            raise ProjError("it extends beyond the area where that CRS is defined")
    except ProjError as error:
        raise ConfigError(f"{name}: cannot be transformed to the scene's CRS ({error}); draw it in that CRS") from None
    return moved


def _polygons(shape: Any) -> Any:
    """Return the polygonal part of a shape, made valid: rounding may have made a ring intersect itself."""
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shape)))
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon" and part.area > 0])


def _crs(grid: Grid) -> Any:
    return None if grid.crs is None else pyproj.CRS.from_user_input(grid.crs)


def _affine(grid: Grid) -> Affine:
    return Affine.scale(1, -1) if grid.transform.is_identity else grid.transform


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    return Grid(grid.height, grid.width, _affine(grid)).bounds


def _spoken(bounds: Sequence[float], crs: Any) -> str:
    west, south, east, north = (f"{number:.9g}" for number in bounds)
    return f"west {west}, south {south}, east {east}, north {north} ({crs.name if crs else 'pixels'})"
