"""Polygons of one score raster as table rows: georeferenced, with their statistics, in batches.

Components come in pixels; here they get coordinates and areas. Components that are certainly too small, judged by their
pixel count and the largest pixel nearby, are dropped before rings are built; the exact area decides about the rest.
Batches come in no particular order, so each row carries the columns by which rows are sorted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from geood.config import PredictConfig
from geood.constants import DIGITS
from geood.errors import ConfigError, DataError
from geood.geo.gdal import open_raster
from geood.geo.grid import Grid, Window
from geood.geo.score_raster import evidence_tags, read_tags
from geood.polygons.block_windows import open_for_windows
from geood.polygons.components import ClosedComponents, ComponentOptions, Components
from geood.polygons.external_sort import SortKey
from geood.polygons.geodesic_area import GeodesicAreas
from geood.polygons.ranking import priority, share_of_inliers
from geood.polygons.rings import Rings, rings_from_vertices, to_multipolygons
from geood.polygons.simplification import simplify
from geood.polygons.valid_counts import UNKNOWN, box_areas, expand_boxes

log = logging.getLogger("geood")
ROW_ORDER = SortKey("priority", ("source", "row", "col", "first_x"))  # by rank, then in reading order
ROUNDED = (  # columns that are rounded to `DIGITS`
    "score_mean",
    "score_p95",
    "score_max",
    "threshold_excess",
    "contrast",
    "p_value",
    "margin",
    "on_edge",
    "area_m2",
)
HELPER_COLUMNS = ("priority", "source", "row", "col", "first_x", "number", "box_px", "valid_px")  # not written
_TINY = 1e-290  # the power of ten that brings its last digit before the point is a float yet
_SAMPLES = 5  # pixels sampled along each side of a window to find the largest
_MARGIN = 1.05  # by which a pixel between the samples may be larger still


class PolygonSource(NamedTuple):
    """The rasters of one scene; `failed` are windows of tiles without scores, `scene` a value for that column."""

    scores: Path
    classes: Path | None
    class_names: dict[int, str] | None
    scene: str | None
    failed: Sequence[Window] = ()


class Rows(NamedTuple):
    """Polygons and their columns: all but those known in the end, `rank` and `valid_fraction`, and HELPER_COLUMNS."""

    columns: dict[str, NDArray[Any]]
    shapes: NDArray[Any]


class DeferredCounts(NamedTuple):
    """Valid-pixel counts that were UNKNOWN when their polygons were extracted, by ascending component number."""

    numbers: NDArray[np.int64]
    valid_px: NDArray[np.int64]

    def valid_fraction(self, number: NDArray[np.int64], valid_px: NDArray[np.int64], box_px: NDArray[np.int64]) -> Any:
        """Compute the column `valid_fraction` (n,) from the columns of HELPER_COLUMNS."""
        unknown = valid_px == UNKNOWN
        result = valid_px.astype(np.float64)
        result[unknown] = self.valid_px[np.searchsorted(self.numbers, number[unknown])]
        return result / box_px


def read_grid(scores: Path) -> Grid:
    """Read the grid of a score raster.

    Raises:
        DataError: the file cannot be read or is no score raster of geood.
    """
    read_tags(scores)
    with open_raster(scores) as dataset:
        return Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)


def pixel_to_crs(points: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Transform points (n, 2) from column and row to CRS units; without georeferencing to (x, -y), as in QGIS."""
    t = Affine.scale(1, -1) if grid.transform.is_identity else grid.transform
    result: NDArray[np.float64] = points @ np.array([[t.a, t.d], [t.b, t.e]]) + np.array([t.c, t.f])
    return result


def extract_polygons(
    source: PolygonSource,
    consume: Callable[[Rows], None],
    *,
    threshold: float,
    predict: PredictConfig,
    model: str,
    number: int = 0,
    count_before: int = 0,
) -> DeferredCounts:
    """Pass the polygons of scene `number` to `consume`, in any order; return the counts known only in the end.

    Raises:
        ConfigError: with the `count_before` others there are more polygons than `predict.max_polygons`.
        DataError: the rasters cannot be read or do not match.
    """
    names = source.class_names if source.classes is not None and source.class_names else {}
    tags = evidence_tags(source.scores)
    with ExitStack() as stack:
        grid, (scores, classes) = read_grid(source.scores), _open_rasters(source, stack)
        areas, detail_px = GeodesicAreas(grid), _detail_px(source.scores, grid, predict.simplify_m)
        least_m2 = predict.min_area_m2 or 0.0
        min_px = partial(_min_px, areas, least_m2)
        options = ComponentOptions(threshold, predict.connectivity, max(names, default=-1) + 1, min_px)
        components, count, unknown = Components(scores, classes, grid, options), count_before, False
        for closed in components:
            rings = rings_from_vertices(closed.vertices, closed.owner, len(closed.number))
            area = areas.measure(rings)
            with np.errstate(invalid="ignore"):
                kept = np.flatnonzero(~(area < least_m2))
            count, unknown = count + len(kept), unknown or bool(np.isnan(area).any())
            _check_count(count, predict, source.scores, closed=closed, rows=grid.height)
            all_columns = _figures(closed, threshold, tags.inliers) | _names(closed, names, tags.signals)
            all_columns |= _places(closed, rings, grid) | {"area_m2": area}
            columns = {name: values[kept] for name, values in all_columns.items()}
            columns["priority"] = priority(columns)
            columns |= {name: _to_digits(columns[name]) for name in ROUNDED}
            columns |= {"model": np.full(len(kept), model, object), "source": np.full(len(kept), number)}
            rows = Rows(columns, _shapes(closed, rings, grid, detail_px)[kept])
            del closed, rings, all_columns  # each is as large as its polygon, if one component is large
            consume(rows)
        if least_m2 and unknown:
            log.warning(
                "%s: areas in square metres are not known, so no small polygons are left out", source.scores.name
            )
        return DeferredCounts(*components.deferred_counts())


def _open_rasters(source: PolygonSource, stack: ExitStack) -> tuple[Any, Any | None]:
    """Open the rasters of a scene; the stack closes them."""
    scores = stack.enter_context(open_for_windows(source.scores))
    if source.classes is None:
        return scores, None
    classes = stack.enter_context(open_for_windows(source.classes))
    if classes.shape != scores.shape:
        raise DataError(
            f"{source.classes}: its size differs from that of {source.scores}; give the classes of that scene"
        )
    return scores, classes


def _check_count(count: int, predict: PredictConfig, scores: Path, *, closed: ClosedComponents, rows: int) -> None:
    """Check the number of polygons before they are built."""
    if count > predict.max_polygons:
        raise ConfigError(
            f"{scores}: {count:,} polygons in the first {closed.box[:, 2].max():,} of {rows:,} rows, more than "
            f"predict.max_polygons {predict.max_polygons:,}; give a higher --threshold or a larger least area (now "
            f"{predict.min_area_m2 or 0:g} m2: predict.min_area_m2, or --min-area of polygonize), or predict with a "
            "larger predict.max_polygons"
        )


def _figures(
    closed: ClosedComponents, threshold: float, inliers: Sequence[tuple[float, float]]
) -> dict[str, NDArray[Any]]:
    """Return the columns of numbers by name."""
    with np.errstate(invalid="ignore"):  # of infinite scores
        excess, contrast = closed.score_mean - threshold, closed.score_mean - closed.evidence.outside
    return {
        "score_max": closed.score_max,
        "score_mean": closed.score_mean,
        "score_p95": closed.score_p95,
        "threshold_excess": excess,
        "contrast": contrast,
        "p_value": share_of_inliers(closed.score_mean, inliers),
        "margin": closed.evidence.margin,
        "on_edge": closed.evidence.on_edge,
        "area_px": closed.area_px,
    }


def _to_digits(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return numbers with `DIGITS` that count; those below `_TINY`, and what is not finite, as they are."""
    result = np.array(values, np.float64)
    plain = np.isfinite(result) & (np.abs(result) > _TINY)
    places = DIGITS - 1 - np.floor(np.log10(np.abs(result[plain]))).astype(np.int64)
    whole, power = np.rint(result[plain] * 10.0**places), 10.0 ** np.abs(places)
    result[plain] = np.where(places > 0, whole / power, whole * power)
    return result


def _names(closed: ClosedComponents, names: dict[int, str], signals: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the columns of names."""
    evidence = closed.evidence
    classes = np.array([names.get(class_id) for class_id in range(256)], dtype=object)
    spoke = np.array([signals[i] if i < len(signals) else None for i in range(256)], dtype=object)
    return {
        "class_name": classes[evidence.class_id],
        "runner_up": classes[evidence.runner_id],
        "signal": spoke[evidence.signal_id],
    }


def _places(closed: ClosedComponents, rings: Rings, grid: Grid) -> dict[str, NDArray[Any]]:
    """Return the columns that say where components lie."""
    first_point = rings.ring_offsets[rings.polygon_offsets[rings.component_offsets[:-1]]]
    return {
        "row": closed.box[:, 0],
        "col": closed.box[:, 1],
        "first_x": rings.points[first_point, 0].astype(np.int64),
        "number": closed.number,
        "box_px": box_areas(expand_boxes(closed.box, grid)),
        "valid_px": closed.valid_px,
    }


def _shapes(closed: ClosedComponents, rings: Rings, grid: Grid, detail_px: float) -> NDArray[Any]:
    """Build the polygons of components in CRS units."""
    points = rings.points.astype(np.float64)
    if not detail_px:
        return to_multipolygons(rings, pixel_to_crs(points, grid))
    smooth = simplify(to_multipolygons(rings, points), closed.vertices, closed.owner, size_px=detail_px)
    shapes: NDArray[Any] = shapely.transform(smooth, partial(pixel_to_crs, grid=grid))
    return shapes


def _detail_px(scores: Path, grid: Grid, simplify_m: float) -> float:
    """Return the size of details to be simplified, in pixels; 0 means none."""
    if not simplify_m:
        return 0.0
    if grid.resolution_m is None:
        log.warning("%s: pixels have no known size in metres, so no outlines are simplified", scores.name)
        return 0.0
    return simplify_m / grid.resolution_m


def _min_px(areas: GeodesicAreas, min_area_m2: float, window: Window) -> float:
    """Return how many pixels of a window `min_area_m2` is at least, by the largest of them; 0 where unknown."""
    if not min_area_m2 or areas.crs is None:
        return 0.0
    rows, cols = np.meshgrid(
        *(np.linspace(at, at + n - 1, _SAMPLES) for at, n in zip(window[:2], window[2:], strict=True))
    )
    largest = areas.largest_pixel(rows.ravel(), cols.ravel())
    return min_area_m2 / (largest * _MARGIN) if largest > 0 else 0.0
