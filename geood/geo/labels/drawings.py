"""Labels as people draw them: polygons of class ids, from the shapes and texts of vector files.

Files come from hands: a class is a word in any case, an outline crosses itself, a road is a line. Here all of it
becomes valid polygons of class ids in the order in which they were drawn, by rules that are said each time they change
something: names are matched (`rules`), lines and points are widened by `data.label_buffer_m` or refused, outlines
that cross themselves are parted there. Of several files the first lies on top, of several layers the last, and in a
layer what was drawn later, as viewers show it. Where they lie in a scene is not known here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from geood.errors import DataError, counted, shown
from geood.geo.grid import metres_per_unit
from geood.geo.labels.rules import LabelRules, Meanings, meanings_of, near_name
from geood.geo.vector import LARGEST, POLYGONAL, DrawnLayer, Polygons, Purpose, areas_m2, layers_of, read_layer, sound

log = logging.getLogger("geood")

PAIRED = 256  # polygons whose overlaps are looked at together
SEAM = 0.01  # neighbours may overlap by this fraction of the smaller one: a seam, or error of reprojection
ROUND = 8  # segments of a quarter of a circle around points and the ends of lines
LABELS = Purpose(
    DataError,
    layers="choose one with data.label_layer",
    attributes="set data.label_attribute to one of",
    shapes="labels are areas: keep those, and draw lines and points as areas (in QGIS with Buffer), or say with "
    "data.label_buffer_m how many metres on each side are theirs",
)
_THIN = ("Point", "MultiPoint", "LineString", "MultiLineString", "LinearRing")
_MOST = 8  # names that a message lists


def read_drawings(paths: Sequence[Path], rules: LabelRules) -> tuple[Polygons, ...]:
    """Read the polygons of vector files in the order of drawing; their `values` are class ids, 0 to 255.

    What is forgiven, repaired, widened or left out is logged, once for files that did not change.

    Raises:
        DataError: a file is missing or unreadable, its layer is not told or not there, it lacks the attribute, a value
            is no class, or a shape can be no label.
    """
    frozen = rules._replace(
        label_ids=tuple((rules.label_ids or {}).items()),  # type: ignore[arg-type]
        names=tuple((rules.names or {}).items()),  # type: ignore[arg-type]
    )
    return _read(tuple(paths), tuple(_stamp(path) for path in paths), frozen)


@lru_cache(maxsize=2)
def _read(paths: tuple[Path, ...], stamps: tuple[Any, ...], frozen: LabelRules) -> tuple[Polygons, ...]:
    """Read files that are told apart by their stamps; the mappings of the rules come as pairs, which can be hashed."""
    rules = frozen._replace(label_ids=dict(frozen.label_ids or ()), names=dict(frozen.names or ()))
    found: list[Polygons] = []
    for path, names in reversed(chosen_layers(paths, rules)):
        found += [_polygons(read_layer(path, LABELS, layer=name, attribute=rules.attribute), rules) for name in names]
    return tuple(found)


def _stamp(path: Path) -> tuple[tuple[int, int], ...]:
    """Return time and size of a file and of those that are read as part of it."""
    parts = (path, path.with_name(path.name + "-wal"), path.with_suffix(".dbf"))
    return tuple((part.stat().st_mtime_ns, part.stat().st_size) for part in parts if part.is_file())


def chosen_layers(paths: Sequence[Path], rules: LabelRules) -> list[tuple[Path, tuple[str | None, ...]]]:
    """Return the layers to read of each file: of several that are asked for, those that it has.

    Raises:
        DataError: one is in no file, or a file has none of them.
    """
    if len(rules.layers) == 1:
        return [(path, rules.layers) for path in paths]
    there = {path: layers_of(path, LABELS) for path in paths}
    missing = [str(name) for name in rules.layers if not any(name in names for names in there.values())]
    if missing:
        known = ", ".join(dict.fromkeys(name for names in there.values() for name in names))
        raise DataError(
            f"{paths[0]}: has no layer {', '.join(missing)}, which data.label_layer names; its layers are {known}"
        )
    chosen: list[tuple[Path, tuple[str | None, ...]]]
    chosen = [(path, tuple(name for name in rules.layers if name in there[path])) for path in paths]
    if bare := [path for path, names in chosen if not names]:
        raise DataError(
            f"{bare[0]}: has none of the layers that data.label_layer names; its layers are {', '.join(there[bare[0]])}"
        )
    return chosen


def _polygons(layer: DrawnLayer, rules: LabelRules) -> Polygons:
    """Return the polygons of a layer with their class ids, and say what was done to them."""
    if layer.bare:
        said = "%s: %s without geometry or without a value of %s, which are no labels"
        log.info(said, layer.name, counted(layer.bare, "shape"), rules.attribute)
    _check_numbers(layer)
    meanings = meanings_of(layer.values, rules, file=layer.name)
    shapes = _widened(layer, rules)
    shapes = _repaired(layer, shapes)
    _report_names(layer, meanings, shapes, rules)
    keep = ~shapely.is_empty(shapes)
    for places in meanings.unknown.values():
        keep[places] = False
    polygons = Polygons(layer.name, shapes[keep], meanings.ids[keep], layer.crs, layer.ordered)
    _refuse_lost_order(polygons)
    return polygons


def _check_numbers(layer: DrawnLayer) -> None:
    """Refuse coordinates that are no numbers, or beyond any CRS, and shapes of which no area can be made."""
    kinds = sorted({shape.geom_type for shape in layer.shapes})
    odd = [kind for kind in kinds if kind not in (*_THIN, *POLYGONAL)]
    if odd or not kinds:
        raise DataError(
            f"{layer.name}: holds {', '.join(odd) or 'no shapes'}, where polygons were needed; {LABELS.shapes}"
        )
    with np.errstate(all="ignore"):
        reach = np.abs(shapely.bounds(layer.shapes)).max(axis=1)
        whole = np.array([np.isfinite(shapely.get_coordinates(shape)).all() for shape in layer.shapes], np.bool_)
    for wrong, why in (
        (~whole, "is not valid (Invalid Coordinate: it has some that are no numbers); draw it again"),
        (whole & (reach > LARGEST), f"reaches to {np.nanmax(reach):.3g}, beyond any CRS; draw it again"),
    ):
        if wrong.any():
            raise DataError(f"{layer.name}: polygon {layer.numbers[np.flatnonzero(wrong)[0]]} {why}")


def _widened(layer: DrawnLayer, rules: LabelRules) -> NDArray[Any]:
    """Return the shapes with lines and points widened to areas.

    Raises:
        DataError: there are some, and no width is asked for, or there are no metres.
    """
    thin = np.array([shape.geom_type in _THIN for shape in layer.shapes], np.bool_)
    if not thin.any():
        return layer.shapes
    counts = Counter(shape.geom_type for shape in layer.shapes[thin])
    named = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    if rules.buffer_m is None:
        raise DataError(f"{layer.name}: holds {named}, where polygons were needed; {LABELS.shapes}")
    if layer.crs is None:
        raise DataError(
            f"{layer.name}: holds {named} and has no CRS, so data.label_buffer_m {rules.buffer_m:g} cannot be measured "
            "in it; save it with the CRS in which it is drawn"
        )
    shapes = layer.shapes.copy()
    shapes[thin] = [buffered(shape, layer.crs, rules.buffer_m) for shape in layer.shapes[thin]]
    log.info("%s: %s become areas of %g m on each side", layer.name, named, rules.buffer_m)
    return shapes


def buffered(shape: Any, crs: pyproj.CRS, metres: float) -> Any:
    """Return the ground within some metres of a line or point, in its CRS, by the length of its units there."""
    middle = shapely.Point(shape.centroid)
    units = 1 / np.array(metres_per_unit(crs, middle.x, middle.y))
    flat = shapely.transform(shape, lambda points: points / units)
    return shapely.transform(shapely.buffer(flat, metres, quad_segs=ROUND), lambda points: points * units)


def _repaired(layer: DrawnLayer, shapes: NDArray[Any]) -> NDArray[Any]:
    """Return the shapes with valid outlines; those of no area become empty."""
    with np.errstate(all="ignore"):
        wrong = np.flatnonzero(~shapely.is_valid(shapes))
    if not wrong.size:
        return shapes
    first, shapes = shapes[wrong[0]], shapes.copy()
    shapes[wrong] = [sound(shape) for shape in shapes[wrong]]
    lost = int(shapely.is_empty(shapes[wrong]).sum())
    log.warning(
        "%s: outlines that are not valid: %d, polygon %d first (%s); repaired, parted where they cross themselves%s",
        layer.name,
        wrong.size,
        layer.numbers[wrong[0]],
        shapely.is_valid_reason(first),
        f", and {lost} of them have no area and are left out" if lost else "",
    )
    return shapes


def _report_names(layer: DrawnLayer, meanings: Meanings, shapes: NDArray[Any], rules: LabelRules) -> None:
    """Say which spellings were forgiven; warn of names that no class has, with numbers and areas."""
    if meanings.forgiven:
        told = [
            f"{', '.join(f'{spelling!r} ({n})' for spelling, n in spellings.most_common(_MOST))} as {name}"
            for name, spellings in meanings.forgiven.items()
        ]
        log.info("%s: read without regard to case and blanks: %s", layer.name, shown("; ".join(told), most=800))
    if not meanings.unknown:
        return
    areas, told = areas_m2(shapes, layer.crs), []
    for name, places in sorted(meanings.unknown.items(), key=lambda item: -areas[item[1]].sum())[:_MOST]:
        near, area = near_name(name, rules.names or {}), areas[places].sum()
        ground = "" if np.isnan(area) else f", {area:,.0f} m2"
        told.append(f"{name!r} ({len(places)}{ground}{f'; did you mean {near}?' if near else ''})")
    more = len(meanings.unknown) - len(told)
    log.warning(
        "%s: %s in %s that are neither in data.classes nor in data.anomaly, and their ground counts as not drawn: %s%s",
        layer.name,
        counted(sum(map(len, meanings.unknown.values())), "shape has a name", "shapes have names"),
        rules.attribute,
        shown(", ".join(told), most=800),
        f" and {counted(more, 'more name')}" if more else "",
    )


def _refuse_lost_order(polygons: Polygons) -> None:
    """Reject overlapping shapes of different ids where the format does not keep which of them was drawn last."""
    if polygons.ordered:
        return
    ids = polygons.values
    for one, other in overlapping(polygons.shapes, ids):
        raise DataError(
            f"{polygons.name}: shapes with the ids {ids[one]} and {ids[other]} overlap, and FlatGeobuf "
            "with a spatial index does not keep which lies on top; save it from its source as .gpkg or .geojson, or "
            "cut the overlap out (in QGIS with Difference)"
        )


def overlapping(shapes: NDArray[Any], values: NDArray[Any] | None = None) -> Iterator[tuple[int, int]]:
    """Yield the pairs of polygons (n,) that overlap by more than a seam, those of the same value left out.

    Pairs are looked at for some polygons at a time, so that memory stays bounded where many lie on one another.
    """
    tree = shapely.STRtree(shapes)
    for start in range(0, len(shapes), PAIRED):
        one, other = tree.query(shapes[start : start + PAIRED], predicate="intersects")
        one = one + start
        pairs = one < other if values is None else (one < other) & (values[one] != values[other])
        one, other = one[pairs], other[pairs]
        shared = shapely.area(shapely.intersection(shapes[one], shapes[other]))
        over = shared > SEAM * np.minimum(shapely.area(shapes[one]), shapely.area(shapes[other]))
        yield from zip(one[over].tolist(), other[over].tolist(), strict=True)
