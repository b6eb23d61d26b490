"""Listing of a label file before it is used: layers, kinds of shapes, attributes with their values, and what is wrong.

It tells what a person has to know, or a program that writes a config: which layer and which attribute hold the classes,
how often each value comes and how much ground it covers, in which CRS, and what reading will repair, widen or refuse.
A raster of class ids is one layer whose one attribute has no name. Nothing is matched with the classes of a config
here, and nothing is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from geood.constants import IGNORE, VECTOR_SUFFIXES
from geood.errors import DataError
from geood.geo.gdal import pieces
from geood.geo.labels.drawings import buffered, overlapping
from geood.geo.labels.id_rasters import IdRaster
from geood.geo.vector import POLYGONAL, Purpose, areas_m2, layers_of, read_frame, sound

MOST_VALUES = 254  # an attribute with more of them names things, not classes
MOST_SHAPES = 20_000  # overlaps of more shapes are not looked for
LISTED = Purpose(DataError, layers="name one of them", attributes="", shapes="")


class FoundValue(NamedTuple):
    """Value of an attribute: a class id or a text, the number of its shapes or pixels, and their area.

    `area_m2` is that of polygons and pixels, and of lines and points once they are widened, in square metres; None
    where a CRS does not tell metres.
    """

    value: int | float | str
    number: int
    area_m2: float | None


class FoundAttribute(NamedTuple):
    """Attribute of a layer, "" of a raster, and its values, the most common first; none if there are too many."""

    name: str
    values: tuple[FoundValue, ...]

    @property
    def text(self) -> bool:
        """True if its values are texts: class names rather than ids."""
        return any(isinstance(found.value, str) for found in self.values)


class FoundLayer(NamedTuple):
    """Layer: the number of shapes of each type of geometry, CRS, bounds in it (xmin, ymin, xmax, ymax), attributes.

    `problems` are sentences on what reading repairs, needs a key for, or refuses.
    """

    name: str
    shapes: dict[str, int]
    crs: str | None
    bounds: tuple[float, float, float, float] | None
    attributes: tuple[FoundAttribute, ...]
    problems: tuple[str, ...]


class LabelFile(NamedTuple):
    """Label file: its kind and its layers."""

    path: Path
    kind: Literal["vector", "raster"]
    layers: tuple[FoundLayer, ...]


def list_labels(path: str | Path, *, buffer_m: float | None = None) -> LabelFile:
    """List what a vector file or a raster of class ids holds that can be labels.

    Args:
        path: the file.
        buffer_m: metres of ground on each side of a line, and around a point, that count as theirs; None: none.

    Raises:
        DataError: the file is missing or unreadable, or a raster is not one of class ids.
    """
    path = Path(path)
    if path.suffix.lower() not in VECTOR_SUFFIXES:
        return LabelFile(path, "raster", (_of_raster(path),))
    names = layers_of(path, LISTED)
    return LabelFile(path, "vector", tuple(_of_layer(path, name, buffer_m) for name in names))


def _of_raster(path: Path) -> FoundLayer:
    """Count the pixels of each class id in a raster."""
    counts: Counter[int] = Counter()
    with IdRaster(path) as raster:
        grid, problems = raster.grid, []
        for window in pieces(grid):
            ids, pixels = np.unique(raster.onto(grid[window]), return_counts=True)
            counts.update(dict(zip(ids.tolist(), pixels.tolist(), strict=True)))
    bare = counts.pop(IGNORE, 0)
    pixel_m2 = grid.pixel_m2
    if grid.crs is None:
        problems.append("it has no CRS: its pixels are those of its image")
    if not counts:
        problems.append("it holds no class ids: all of it is unlabelled")
    elif bare:
        problems.append(f"{100 * bare / (bare + counts.total()):.1f} % of it is unlabelled")
    values = tuple(FoundValue(i, n, None if pixel_m2 is None else n * pixel_m2) for i, n in counts.most_common())
    crs = None if grid.crs is None else pyproj.CRS.from_user_input(grid.crs).name
    return FoundLayer(path.stem, {}, crs, grid.bounds, (FoundAttribute("", values),), tuple(problems))


def _of_layer(path: Path, name: str, buffer_m: float | None) -> FoundLayer:
    """List one layer of a vector file, its lines and points widened by some metres."""
    frame, ordered = read_frame(path, LISTED, layer=name, whole=True)
    shapes = np.asarray(frame.geometry.array, object)
    there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    crs = None if frame.crs is None else frame.crs.to_2d()
    table, bare = frame.drop(columns=frame.geometry.name)[there], int((~there).sum())
    with np.errstate(all="ignore"):
        shapes = shapely.force_2d(shapes[there])
        whole = np.isfinite(shapely.bounds(shapes)).all(axis=1)
    kinds = Counter(shape.geom_type for shape in shapes)
    problems = [] if not bare else [f"rows without a geometry, left out: {bare}"]
    problems += _faults(shapes[whole], np.flatnonzero(there)[whole] + 1, kinds, broken=int((~whole).sum()))
    areas, grown = np.zeros(len(shapes)), _widened(shapes[whole], crs, buffer_m)
    areas[whole] = areas_m2(np.array([sound(shape) for shape in grown], object), crs)
    shapes[whole] = [sound(shape) for shape in shapes[whole]]
    if crs is None:
        problems.append("it has no CRS; save it with the one in which it was drawn")
    if over := _overlaps(shapes[whole]):
        lies = "the later drawn counts" if ordered else "this format does not keep which lies on top: save as .gpkg"
        problems.append(f"pairs of shapes that overlap: {over}; where their classes differ, {lies}")
    return FoundLayer(
        name,
        dict(kinds.most_common()),
        None if crs is None else crs.name,
        tuple(shapely.total_bounds(shapes[whole]).tolist()) if whole.any() else None,  # type: ignore[arg-type]
        tuple(_of_attribute(str(column), table[column], areas) for column in table.columns),
        tuple(problems),
    )


def _widened(shapes: NDArray[Any], crs: pyproj.CRS | None, buffer_m: float | None) -> NDArray[Any]:
    """Return shapes with lines and points as areas, if they are to be widened and the CRS tells how far."""
    thin = ~np.isin(shapely.get_type_id(shapes), (3, 6, 7))
    if buffer_m is None or crs is None or not thin.any():
        return shapes
    return np.array([buffered(s, crs, buffer_m) if t else s for s, t in zip(shapes, thin, strict=True)], object)


def _faults(shapes: NDArray[Any], numbers: NDArray[Any], kinds: Counter[str], *, broken: int) -> list[str]:
    """Return sentences on shapes that are not plain valid polygons."""
    said = [f"shapes with coordinates that are no numbers, refused: {broken}"] if broken else []
    thin = {kind: count for kind, count in kinds.items() if kind not in POLYGONAL}
    if thin:
        shown = ", ".join(f"{kind} {count}" for kind, count in thin.items())
        said.append(f"lines and points ({shown}): data.label_buffer_m says how far the ground beside them is theirs")
    with np.errstate(all="ignore"):
        invalid = np.flatnonzero(~shapely.is_valid(shapes))
    if invalid.size:
        why = shapely.is_valid_reason(shapes[invalid[0]])
        said.append(
            f"outlines that are not valid, repaired: {invalid.size}, of shape {numbers[invalid[0]]} first ({why})"
        )
    if not len(shapes):
        said.append("it holds no shapes")
    return said


def _overlaps(shapes: NDArray[Any]) -> int:
    """Count the pairs of polygons that overlap by more than a shared border; 0 if there are too many to look at."""
    polygons = shapes[np.isin(shapely.get_type_id(shapes), (3, 6))]
    if not 0 < len(polygons) <= MOST_SHAPES:
        return 0
    return sum(1 for _ in overlapping(polygons))


def _of_attribute(name: str, column: Any, areas: NDArray[np.float64]) -> FoundAttribute:
    """Count the values of an attribute; numbers that are whole are given as integers."""
    given = column.notna().to_numpy()
    values: Sequence[Any] = [_plain(value) for value in column[given].tolist()]
    counts = Counter(values)
    if len(counts) > MOST_VALUES:
        return FoundAttribute(name, ())
    ground: Counter[Any] = Counter()
    for value, area in zip(values, areas[given].tolist(), strict=True):
        ground[value] += area
    return FoundAttribute(
        name,
        tuple(FoundValue(v, n, None if np.isnan(ground[v]) else float(ground[v])) for v, n in counts.most_common()),
    )


def _plain(value: Any) -> int | float | str:
    """Return a value of a table as an integer, a fraction or text."""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return int(value) if float(value).is_integer() else float(value)
    return value if isinstance(value, str) else str(value)
