"""Labels of a scene as class ids on the scene's pixel grid, read from rasters or one vector file.

Training, validation and evaluation read labels through the same two sources, which put the ids of a file onto any grid:
`IdRaster` for rasters, nearest pixel, and `IdShapes` for the polygons of a vector file with a class attribute; of
overlapping shapes the later one counts. Of several files the first that has a label counts. Pixels without a label are
255. Class ids are passed on as they are in the file, or as `LabelRules.label_ids` maps them; their meaning is not known
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.warp import transform_bounds

from geood.constants import IGNORE
from geood.errors import DataError
from geood.geo.gdal import GDAL_FAILURES, reading
from geood.geo.grid import Grid, Window
from geood.geo.id_rasters import IdRaster, renumbered
from geood.geo.vector import VECTOR_SUFFIXES, Polygons, Purpose, onto_grid, read_polygons

SEAM = 0.01  # neighbours may overlap by this fraction of the smaller one: a seam, or error of reprojection
LABELS = Purpose(
    DataError,
    layers="choose one with data.label_layer",
    attributes="set data.label_attribute to one of",
    shapes="labels are areas: keep those, and draw lines and points as areas (in QGIS with Buffer)",
)


class LabelRules(NamedTuple):
    """Rules for label files, as the keys of the data section say.

    `attribute` and `layer` choose the class attribute and the layer of a vector file; `label_ids` maps numbers in the
    files to class ids.
    """

    attribute: str | None = None
    layer: str | None = None
    label_ids: Mapping[int, int] | None = None


PLAIN = LabelRules()


class LabelSource(Protocol):
    """File of labels that is read onto any grid."""

    def onto(self, target: Grid) -> NDArray[np.int64]:
        """Return the class ids (h, w) at the pixel centres of a grid, 255 where there is no label."""


def first_labels(sources: Iterable[LabelSource], target: Grid) -> NDArray[np.int64]:
    """Return the class ids (h, w) on a grid; of several labels of a pixel that of the first source counts."""
    ids = np.full((target.height, target.width), IGNORE, np.int64)
    for source in sources:
        ids = np.where(ids == IGNORE, source.onto(target), ids)
        if not (ids == IGNORE).any():
            break
    return ids


class LabelReader:
    """Reader of a scene's class ids by windows, and a context manager; create it with `open_labels`."""

    def __init__(self, sources: Sequence[LabelSource], grid: Grid, files: ExitStack) -> None:
        self._sources, self._grid, self._files = sources, grid, files

    def read(self, window: Window) -> NDArray[np.int64]:
        """Return the class ids (h, w) of a window of the scene's grid; of several labels the first file's counts.

        Unlabelled pixels, and those outside the scene, are 255.

        Raises:
            DataError: a file cannot be read, or contains numbers that are not class ids.
        """
        ids = np.full((window.height, window.width), IGNORE, np.int64)
        inner = window.within(self._grid.window)
        if inner.height and inner.width:
            place = Window(inner.row - window.row, inner.col - window.col, inner.height, inner.width)
            ids[place.slices] = first_labels(self._sources, self._grid[inner])
        return ids

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_labels(paths: Sequence[str | Path], grid: Grid, rules: LabelRules = PLAIN) -> LabelReader:
    """Open the labels of a scene with this grid: rasters of class ids, or one vector file with a class attribute.

    Rasters that do not overlap the scene are skipped. If raster or scene has no CRS, their sizes must be equal.

    Raises:
        DataError: a file is missing or unreadable, contains no class ids, lacks the attribute, or none overlaps the
            scene.
    """
    files = [Path(p) for p in paths]
    if not files:
        raise DataError("no labels for this scene; give rasters of class ids or one vector file")
    vectors = [p for p in files if p.suffix.lower() in VECTOR_SUFFIXES]
    if vectors and len(files) > 1:
        raise DataError(f"{vectors[0]}: vector labels come as one file, got {len(files)}; merge them first")
    if vectors:
        return LabelReader([IdShapes(vectors[0], grid, rules)], grid, ExitStack())
    with ExitStack() as opened:
        rasters = [opened.enter_context(_raster_of(path, grid, rules)) for path in files]
        near = [r for r in rasters if r.grid == grid or _shared_area(r.grid, grid) > 0]
        if not near:
            names = ", ".join(p.name for p in files[:3])
            raise DataError(
                f"{names}: these labels do not overlap the scene, which spans {_span(grid.bounds)} in "
                f"{_name(grid.crs)}; give the labels of this scene, or check their CRS"
            )
        return LabelReader(near, grid, opened.pop_all())


def _raster_of(path: Path, grid: Grid, rules: LabelRules) -> IdRaster:
    """Open a raster of class ids; without a CRS on both sides its pixels are those of the scene."""
    raster = IdRaster(path, rules.label_ids)
    own = raster.grid
    if own.crs is not None and grid.crs is not None:
        return raster
    if (own.height, own.width) == (grid.height, grid.width):
        raster.grid = grid
        return raster
    raster.close()
    raise DataError(
        f"{path}: {own.height} x {own.width} pixels for a scene of {grid.height} x {grid.width}, and without a CRS on "
        "both they can only be matched pixel by pixel; georeference them, or give labels of that size"
    )


class IdShapes:
    """Polygons of one vector file that lie on a grid, with their class ids, rasterized onto parts of it."""

    def __init__(self, path: Path, grid: Grid, rules: LabelRules) -> None:
        """Read the polygons that lie on a grid.

        Raises:
            DataError: the file is missing, unreadable, holds anything but polygons with class ids, or none of them
                lies on the grid.
        """
        self.path = path
        polygons = read_polygons(path, LABELS, layer=rules.layer, attribute=rules.attribute)
        ids = _ids_of(polygons, rules)
        _refuse_lost_order(polygons, ids)
        shapes = onto_grid(polygons, grid, LABELS)
        here = ~shapely.is_empty(shapes) & shapely.intersects(shapely.box(*shapely.bounds(shapes).T), _box_of(grid))
        if not here.any():
            raise DataError(
                f"{path}: no shape with a {rules.attribute} overlaps the scene, which spans {_span(grid.bounds)} in "
                f"{_name(grid.crs)}; give the labels of this scene, or check their CRS"
            )
        self._ids, self._shapes = ids[here], shapes[here]
        self._index = shapely.STRtree(self._shapes)

    @property
    def pairs(self) -> list[tuple[int, Any]]:
        """Class id and shape of each polygon that lies on the grid, in its coordinates, in the order of drawing."""
        return [(int(i), shape) for i, shape in zip(self._ids, self._shapes, strict=True)]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Bounding box (xmin, ymin, xmax, ymax) of the shapes in the coordinates of the grid."""
        xmin, ymin, xmax, ymax = shapely.total_bounds(self._shapes).tolist()
        return xmin, ymin, xmax, ymax

    def onto(self, target: Grid) -> NDArray[np.int64]:
        """Return the ids (h, w) of the shapes that hold the pixel centres of a part of the grid, 255 where none does.

        Raises:
            DataError: the shapes cannot be rasterized.
        """
        near = np.sort(self._index.query(_box_of(target)))
        shape = (target.height, target.width)
        if not near.size:
            return np.full(shape, IGNORE, np.int64)
        burnt = [(self._shapes[i], int(self._ids[i])) for i in near]
        with reading(self.path):
            ids = rasterize(burnt, shape, fill=IGNORE, transform=target.transform, dtype="int32")
        return np.asarray(ids, np.int64)


def _ids_of(polygons: Polygons, rules: LabelRules) -> NDArray[np.int64]:
    """Return the class ids of polygons, 0 to 255."""
    values = polygons.values
    try:
        numbers = values.astype(np.float64)
        wrong = ~((np.floor(numbers) == numbers) & (np.abs(numbers) < 2**31))
    except (TypeError, ValueError):
        wrong = np.ones(len(values), np.bool_)
    if not wrong.any():
        ids = renumbered(numbers.astype(np.int64), rules.label_ids)
        wrong = (ids < 0) | (ids > IGNORE)
    if wrong.any():
        got = values[wrong][0]
        shown = f"{got:g}" if isinstance(got, (float, np.floating)) else repr(got)
        raise DataError(
            f"{polygons.name}: attribute {rules.attribute} must hold class ids, integers from 0 to 254 (255: "
            f"unlabelled); got {shown if not isinstance(got, np.integer) else got}"
        )
    return ids


def _refuse_lost_order(polygons: Polygons, ids: NDArray[np.int64]) -> None:
    """Reject overlapping shapes of different ids where the format does not keep which of them was drawn last."""
    if polygons.ordered:
        return
    shapes = polygons.shapes
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = (one < other) & (ids[one] != ids[other])
    one, other = one[pairs], other[pairs]
    shared = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    over = shared > SEAM * np.minimum(shapely.area(shapes[one]), shapely.area(shapes[other]))
    if over.any():
        first = np.flatnonzero(over)[0]
        raise DataError(
            f"{polygons.name}: shapes with the ids {ids[one[first]]} and {ids[other[first]]} overlap, and FlatGeobuf "
            "with a spatial index does not keep which lies on top; save it from its source as .gpkg or .geojson, or "
            "cut the overlap out (in QGIS with Difference)"
        )


def mask_hint(held: Iterable[int]) -> str:
    """Return what to do about labels that hold no ids but 255, or 0 and 255, as black and white masks do; else ""."""
    ids = set(held)
    if IGNORE not in ids or not ids <= {0, IGNORE}:
        return ""
    return (
        "; the labels hold 255, which means unlabelled, and "
        + ("0 alone beside it" if 0 in ids else "nothing else")
        + ": if they are masks of 0 and 255, say what 255 means with data.label_ids, such as {255: 1}"
    )


def why_not_shared(labels: Sequence[Path]) -> str | None:
    """Return the reason why label rasters cannot be used side by side on one scene; None if they can.

    They can if all are rasters with a CRS and no two overlap by more than `SEAM`, so a pixel has at most one label.

    Raises:
        DataError: a file cannot be read as a raster of class ids.
    """
    grids: list[Grid] = []
    for path in labels:
        if path.suffix.lower() in VECTOR_SUFFIXES:
            return f"{path.name} is a vector file among several files"
        with IdRaster(path) as raster:
            grids.append(raster.grid)
        if grids[-1].crs is None:
            return f"{path.name} has no CRS"
        for other, grid in zip(labels, grids[:-1], strict=False):
            if _shared_area(grid, grids[-1]) > SEAM * min(_area(grid.bounds), _area(_bounds_in(grids[-1], grid))):
                return f"{other.name} and {path.name} cover the same ground"
    return None


def _bounds_in(grid: Grid, other: Grid) -> tuple[float, float, float, float]:
    """Transform the bounds of a grid to the CRS of another; an empty box at the origin if that fails."""
    try:
        xmin, ymin, xmax, ymax = transform_bounds(grid.crs, other.crs, *grid.bounds)
    except GDAL_FAILURES:
        return (0.0, 0.0, 0.0, 0.0)
    return xmin, ymin, xmax, ymax


def _shared_area(own: Grid, grid: Grid) -> float:
    """Return the area, in squared CRS units of `own`, in which the bounds of two grids overlap."""
    return float(shapely.box(*_bounds_in(grid, own)).intersection(_box_of(own)).area)


def _box_of(grid: Grid) -> Any:
    return shapely.box(*grid.bounds)


def _area(bounds: tuple[float, float, float, float]) -> float:
    return (bounds[2] - bounds[0]) * (bounds[3] - bounds[1])


def _span(bounds: Sequence[float]) -> str:
    return f"x {bounds[0]:.7g} to {bounds[2]:.7g}, y {bounds[1]:.7g} to {bounds[3]:.7g}"


def _name(crs: Any) -> str:
    if crs is None:
        return "pixels (no CRS)"
    return str(pyproj.CRS.from_wkt(crs.to_wkt()).name)
