"""Vector files, for labels and areas of interest alike: one layer, checked, and brought onto a grid.

The rules are the same for both. One layer of a file is read; of several, one is chosen by name, or the only one that
has the attribute. Areas of interest are valid polygons; what else labels may be is in `labels.drawings`. An edge is
straight where it was drawn, so it is densified before it goes to another CRS, and clipped near the grid, because a
projection is defined only near its own ground. This module reads no rasters and does not know what polygons mean;
geopandas is imported on first use, as workers need no files.
"""

from __future__ import annotations

import difflib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from shapely.affinity import affine_transform

from geood.constants import VECTOR_SUFFIXES
from geood.errors import DataError, GeoodError
from geood.geo.grid import Grid, metres_per_unit
from geood.geo.ogr import local_file

log = logging.getLogger("geood")

STRAY_PX = 0.01  # largest deviation of an edge, in pixels, caused by transforming it to another CRS
EARTH_M = 6_371_000.0
MARGIN = 0.1  # polygons are transformed up to this far beyond the grid, as a fraction of its size
LARGEST = 1e12  # coordinates beyond this belong to no CRS, and their areas overflow
EQUAL_AREA = 6933  # EPSG; areas in it are those on the ground
POLYGONAL = ("Polygon", "MultiPolygon")


class Purpose(NamedTuple):
    """Use that is made of a file, for errors: their class, and what to do about layers, attributes and shapes."""

    fault: type[GeoodError]
    layers: str
    attributes: str
    shapes: str


class DrawnLayer(NamedTuple):
    """Shapes (N,) of any kind in the order of their file, their numbers from 1 in it, and their attribute values (N,).

    `name` is the path; `crs` and `ordered` are those of `Polygons`. Shapes without a geometry or, with an attribute,
    without a value are left out; `bare` is how many.
    """

    name: str
    shapes: NDArray[Any]
    numbers: NDArray[np.int64]
    values: NDArray[Any]
    crs: pyproj.CRS | None
    ordered: bool = True
    bare: int = 0


class Polygons(NamedTuple):
    """Polygons (N,) in the order of their file, their attribute values (N,), and their CRS (None: none).

    `ordered` is False if the file's format has lost the order in which they were drawn.
    """

    name: str
    shapes: NDArray[Any]
    values: NDArray[Any]
    crs: pyproj.CRS | None
    ordered: bool = True


def read_polygons(path: Path, purpose: Purpose, *, layer: str | None = None, attribute: str | None = None) -> Polygons:
    """Read the valid polygons of one layer, without those that are empty or, with an `attribute`, have no value.

    Heights are dropped. Curves are drawn as lines of 4 degrees, as GDAL does.

    Raises:
        GeoodError: of the purpose's class: the file is missing or unreadable, has several layers or lacks the attribute
            or holds anything but valid polygons.
    """
    found = read_layer(path, purpose, layer=layer, attribute=attribute)
    _check_polygons(path, found.shapes, found.numbers, purpose)
    return Polygons(found.name, found.shapes, found.values, found.crs, found.ordered)


def read_layer(path: Path, purpose: Purpose, *, layer: str | None = None, attribute: str | None = None) -> DrawnLayer:
    """Read the shapes of one layer, of any kind and valid or not, without their heights.

    Raises:
        GeoodError: of the purpose's class: the file is missing or unreadable, has several layers, lacks the attribute,
            or no shape has a value of it.
    """
    frame, ordered = read_frame(path, purpose, layer=layer, attribute=attribute)
    shapes = np.asarray(frame.geometry.array, object)
    values = np.zeros(len(frame)) if attribute is None else frame[attribute].to_numpy()
    wanted = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    if attribute is not None:
        wanted &= frame[attribute].notna().to_numpy()
    if not wanted.any() and attribute is not None:
        raise purpose.fault(
            f"{path}: no shape has both a geometry and a value of {attribute}; draw some, or choose another"
        )
    with np.errstate(invalid="ignore"):  # coordinates that are no numbers are refused by who reads them
        shapes = shapely.force_2d(shapes[wanted])
    crs = None if frame.crs is None else frame.crs.to_2d()
    bare = int((~wanted).sum())
    return DrawnLayer(str(path), shapes, np.flatnonzero(wanted) + 1, values[wanted], crs, ordered, bare)


def onto_grid(polygons: Polygons, grid: Grid, purpose: Purpose) -> NDArray[Any]:
    """Return the shapes in the coordinates of a grid: the part near it, empty for those that lie elsewhere.

    Without georeferencing, x is the column and y is minus the row, as in the polygons that geood writes.

    Raises:
        GeoodError: of the purpose's class: only one of file and scene has a CRS, or it cannot be transformed.
    """
    if (polygons.crs is None) != (grid.crs is None):
        came = "no CRS" if polygons.crs is None else f"the CRS {polygons.crs.name}"
        needed = "one was needed" if polygons.crs is None else "none was needed, as the scene has none"
        raise purpose.fault(f"{polygons.name}: has {came}, where {needed}; save it with the CRS in which it is drawn")
    here = crs_of(grid)
    if polygons.crs is not None and polygons.crs != here:
        return _brought_over(polygons, grid, purpose)
    if grid.transform.is_identity:
        return np.array([affine_transform(shape, (1, 0, 0, -1, 0, 0)) for shape in polygons.shapes], object)
    return polygons.shapes


def crs_of(grid: Grid) -> pyproj.CRS | None:
    """Return the horizontal CRS of a grid as pyproj has it."""
    return None if grid.crs is None else pyproj.CRS.from_user_input(grid.crs).to_2d()


def polygonal(shape: Any) -> Any:
    """Return the polygonal part of a shape, made valid: rounding may have made a ring intersect itself."""
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shape)))
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon" and part.area > 0])


def sound(shape: Any) -> Any:
    """Return a shape whose outline is valid: what crosses itself is parted there, and parts that overlap are united.

    So a bow tie becomes two triangles, which is how viewers fill it.
    """
    return shape if shape.is_valid else shapely.make_valid(shape, method="structure", keep_collapsed=False)


def areas_m2(shapes: NDArray[Any], crs: pyproj.CRS | None) -> NDArray[np.float64]:
    """Return the area of each polygon (N,) on the ground in square metres; NaN without a CRS, 0 of lines and points."""
    if crs is None or not len(shapes):
        return np.full(len(shapes), np.nan)
    try:
        change = pyproj.Transformer.from_crs(crs, pyproj.CRS.from_epsg(EQUAL_AREA), always_xy=True)
        flat = shapely.transform(shapes, lambda points: np.column_stack(change.transform(*points.T, errcheck=True)))
        areas = np.asarray(shapely.area(flat), np.float64)
        if np.isfinite(areas).all():
            return areas
    except ProjError:
        pass
    west, south, east, north = shapely.total_bounds(shapes)
    across, along = metres_per_unit(crs, (west + east) / 2, (south + north) / 2)
    return np.asarray(shapely.area(shapes) * across * along, np.float64)


def _check_name(path: Path, purpose: Purpose) -> None:
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"did you mean {near[0]}?" if near else f"give a file of polygons ({', '.join(VECTOR_SUFFIXES)})"
        raise purpose.fault(f"{path}: no such file; {hint}")


def layers_of(path: Path, purpose: Purpose) -> dict[str, list[str]]:
    """Return the layers with geometry in a vector file, and the names of the attributes of each.

    Raises:
        GeoodError: of the purpose's class: the file is missing or unreadable.
    """
    _check_name(path, purpose)
    with _opened(path, purpose) as plain:
        return _fields(path, plain)


def read_frame(
    path: Path, purpose: Purpose, *, layer: str | None = None, attribute: str | None = None, whole: bool = False
) -> tuple[Any, bool]:
    """Read geometries and an attribute of one layer as a GeoDataFrame, or with `whole` all attributes.

    Also tell whether the shapes come in the order in which they were drawn. An attribute that differs from the one
    wanted by case alone is taken for it, as GDAL does.

    Raises:
        GeoodError: of the purpose's class: the file is missing or unreadable, has several layers, or lacks the
            attribute.
    """
    import geopandas
    import pyogrio

    _check_name(path, purpose)
    with _opened(path, purpose) as plain:
        fields = _fields(path, plain)
        parquet = path.suffix.lower() == ".parquet"  # a file of one layer, which has no name of its own
        chosen = _layer(path, purpose, fields, layer=None if parquet else layer, attribute=attribute)
        own = attribute_of(fields[chosen], attribute)
        if not whole:
            _check_attribute(path, purpose, own, fields[chosen])
        renamed = {} if own is None or own == attribute else {own: attribute}
        if parquet:
            return geopandas.read_parquet(plain).rename(columns=renamed), True
        columns = None if whole else [own] if own else []
        frame = pyogrio.read_dataframe(plain, layer=chosen, columns=columns).rename(columns=renamed)
        indexed = pyogrio.read_info(plain, layer=chosen)["capabilities"]["fast_spatial_filter"]
        return frame, not (path.suffix.lower() == ".fgb" and indexed)


def attribute_of(known: Sequence[str], wanted: str | None) -> str | None:
    """Return the attribute of a layer that is wanted, or the only one that differs from it by case alone."""
    if wanted is None or wanted in known:
        return wanted
    alike = [name for name in known if name.casefold() == wanted.casefold()]
    return alike[0] if len(alike) == 1 else wanted


@contextmanager
def _opened(path: Path, purpose: Purpose) -> Iterator[Path]:
    """Yield a plain path of a vector file, and translate all that may go wrong in reading it."""
    try:
        with ExitStack() as opened:
            opened.enter_context(warnings.catch_warnings())
            opened.enter_context(np.errstate(invalid="ignore"))  # measures are dropped, NaN is refused later
            warnings.simplefilter("ignore")
            yield opened.enter_context(local_file(path))
    except DataError as error:
        raise purpose.fault(str(error)) from None
    except GeoodError:
        raise
    except Exception as error:  # pyogrio, pyarrow, shapely and geopandas each have their own
        said = " ".join(str(error).split())[:200]
        raise purpose.fault(
            f"{path}: cannot be read as a vector file ({said}); copy it again, or give polygons as .gpkg or .geojson"
        ) from None


def _fields(path: Path, plain: Path) -> dict[str, list[str]]:
    """Return the attributes of each layer with geometry; a Parquet file has one."""
    import geopandas
    import pyogrio

    if path.suffix.lower() == ".parquet":
        frame = geopandas.read_parquet(plain)
        return {path.stem: [str(c) for c in frame.columns if c != frame.geometry.name]}
    return {
        str(name): [str(f) for f in pyogrio.read_info(plain, layer=name)["fields"]]
        for name, kind in pyogrio.list_layers(plain)
        if kind is not None
    }


def _layer(
    path: Path, purpose: Purpose, fields: dict[str, list[str]], *, layer: str | None, attribute: str | None
) -> str:
    """Choose a layer: by name, the only one, or the only one with the attribute."""
    names = ", ".join(fields) or "none with geometry"
    if layer is not None and layer not in fields:
        near = difflib.get_close_matches(layer, fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise purpose.fault(f"{path}: its layers are {names}, and {layer} is none of them{hint}; {purpose.layers}")
    if layer is not None or len(fields) == 1:
        return layer or next(iter(fields))
    having = [name for name, known in fields.items() if attribute_of(known, attribute) in known]
    if len(having) == 1:
        log.info("%s: of its layers %s, %s is read: it alone has the attribute %s", path, names, having[0], attribute)
        return having[0]
    raise purpose.fault(f"{path}: its layers are {names}, where one was needed; {purpose.layers}")


def _check_attribute(path: Path, purpose: Purpose, attribute: str | None, names: list[str]) -> None:
    if attribute in names or (attribute is None and not purpose.attributes):
        return
    near = difflib.get_close_matches(attribute or "", names, n=1)
    came = "which attribute holds the class id?" if attribute is None else f"has no attribute {attribute};"
    hint = f"did you mean {near[0]}? " if near else ""
    raise purpose.fault(f"{path}: {came} {hint}{purpose.attributes}: {', '.join(names) or '(it has none)'}")


def _check_polygons(path: Path, shapes: NDArray[Any], numbers: NDArray[Any], purpose: Purpose) -> None:
    kinds = sorted({shape.geom_type for shape in shapes})
    if not kinds or not set(kinds) <= set(POLYGONAL):
        raise purpose.fault(
            f"{path}: holds {', '.join(kinds) or 'no shapes'}, where polygons were needed; {purpose.shapes}"
        )
    with np.errstate(all="ignore"):
        invalid = ~shapely.is_valid(shapes)
    if invalid.any():
        first = int(np.flatnonzero(invalid)[0])
        with np.errstate(all="ignore"):
            why = shapely.is_valid_reason(shapes[first])
        raise purpose.fault(
            f"{path}: polygon {numbers[first]} is not valid ({why}); repair it, in QGIS with Fix geometries"
        )
    reach = np.abs(shapely.bounds(shapes)).max(axis=1)
    if reach.max() > LARGEST:
        first = int(reach.argmax())
        raise purpose.fault(
            f"{path}: polygon {numbers[first]} reaches to {reach[first]:.3g}, beyond any CRS; draw it again"
        )


def _brought_over(polygons: Polygons, grid: Grid, purpose: Purpose) -> NDArray[Any]:
    """Transform shapes, clipped near the grid, to its CRS; edges are densified to stray at most `STRAY_PX`."""
    crs, shapes = polygons.crs, polygons.shapes
    try:
        change = pyproj.Transformer.from_crs(crs, crs_of(grid), always_xy=True)
        frame = change.transform_bounds(*grid.bounds, direction="INVERSE")
        known = all(map(math.isfinite, frame))
        if known and frame[0] < frame[2]:
            spare = MARGIN * max(frame[2] - frame[0], frame[3] - frame[1])
            around = shapely.buffer(shapely.box(*frame), spare, join_style="mitre")
            shapely.prepare(around)
            crossing = ~shapely.covers(around, shapes)
            shapes = shapes.copy()
            shapes[crossing] = [_clipped(shape, around) for shape in shapes[crossing]]
        middle = shapely.box(*(frame if known else shapely.total_bounds(shapes))).centroid
        edge_m = math.sqrt(8 * EARTH_M * STRAY_PX * (grid.resolution_m or 1.0))
        shapes = shapely.segmentize(shapes, edge_m / max(metres_per_unit(crs, middle.x, middle.y)))
        moved = shapely.transform(shapes, lambda points: np.column_stack(change.transform(*points.T, errcheck=True)))
        if not np.isfinite(shapely.get_coordinates(moved)).all():
            raise ProjError("it extends beyond the area where that CRS is defined")
    except (ProjError, shapely.errors.GEOSException) as error:
        raise purpose.fault(
            f"{polygons.name}: cannot be transformed to the scene's CRS ({error}); draw it in that CRS"
        ) from None
    return np.asarray(moved, object)


def _clipped(shape: Any, around: Any) -> Any:
    """Return the polygonal part of a shape inside a box."""
    part = shapely.intersection(shape, around)
    return part if part.geom_type in POLYGONAL else polygonal(part)
