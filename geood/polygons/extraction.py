"""One score raster cut into rows: polygons at their place, with their figures, some at a time.

Components come in pixels; here they get their place and their area. Those that are surely too small, by their pixels
and the largest pixel nearby, never become outlines; the exact area has the last word. Which rows come first depends on
the raster, so each carries what rows are sorted by.
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

from geood.config.sections import PredictConfig
from geood.errors import ConfigError, DataError
from geood.geo.gdal import open_raster
from geood.geo.grid import Grid, Window
from geood.geo.score_raster import read_tags
from geood.polygons.block_windows import open_for_windows
from geood.polygons.components import ClosedComponents, Components, Cut
from geood.polygons.external_sort import Key
from geood.polygons.geodesic_area import GeodesicAreas
from geood.polygons.rings import Outlines, outlines, to_shapes
from geood.polygons.simplification import simplified
from geood.polygons.valid_counts import UNKNOWN, grown, sizes

log = logging.getLogger("geood")
ORDER = Key("score_max", ("row", "col", "first"))  # the highest score first, then in reading order
EXTRA = ("row", "col", "first", "number", "around", "valid")  # columns that are dropped again
_SAMPLES = 5  # pixels along each side of a window among which the largest is sought
_MARGIN = 1.05  # by which one between those may be larger still


class PolygonSource(NamedTuple):
    """The rasters of one scene; `failed` are windows of tiles that have no scores, `scene` a value for that column."""

    scores: Path
    classes: Path | None
    class_names: dict[int, str] | None
    scene: str | None
    failed: Sequence[Window] = ()


class Rows(NamedTuple):
    """Polygons and their columns: all but `valid_fraction`, for which there are those of EXTRA."""

    columns: dict[str, NDArray[Any]]
    shapes: NDArray[Any]


class Late(NamedTuple):
    """Pixels with data around those polygons of which that was not known in time, by rising `number`."""

    numbers: NDArray[np.int64]
    valid: NDArray[np.int64]

    def valid_fraction(self, number: NDArray[np.int64], valid: NDArray[np.int64], around: NDArray[np.int64]) -> Any:
        """That column, from the columns of EXTRA."""
        unknown = valid == UNKNOWN
        found = valid.astype(np.float64)
        found[unknown] = self.valid[np.searchsorted(self.numbers, number[unknown])]
        return found / around


def grid_of(scores: Path) -> Grid:
    """The grid of a score raster.

    Raises:
        DataError: if the file cannot be read or is no score raster of geood.
    """
    read_tags(scores)
    with open_raster(scores) as dataset:
        return Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)


def placed(points: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Points (n, 2) as column and row brought to CRS units; without georeferencing y is minus the row, as in QGIS."""
    t = Affine.scale(1, -1) if grid.transform.is_identity else grid.transform
    there: NDArray[np.float64] = points @ np.array([[t.a, t.d], [t.b, t.e]]) + np.array([t.c, t.f])
    return there


def cut(
    part: PolygonSource,
    take: Callable[[Rows], None],
    *,
    threshold: float,
    predict: PredictConfig,
    model: str,
    before: int = 0,
) -> Late:
    """Hand the polygons of one scene to `take`, in any order; the rest of what there is to know comes in the end.

    Raises:
        ConfigError: if with the `before` others there are more than `predict.max_polygons`.
        DataError: if the rasters cannot be read or do not fit each other.
    """
    names = part.class_names if part.classes is not None and part.class_names else {}
    with ExitStack() as stack:
        grid, (scores, classes) = grid_of(part.scores), _opened(part, stack)
        areas, detail_px = GeodesicAreas(grid), _detail_px(part.scores, grid, predict.simplify_m)
        least_px = partial(_least_px, areas, predict.min_area_m2)
        how = Cut(threshold, predict.connectivity, max(names, default=-1) + 1, least_px)
        components, count, unknown = Components(scores, classes, grid, how), before, False
        for found in components:
            outline = outlines(found.corners, found.owner, len(found.number))
            area = areas.of(outline)
            with np.errstate(invalid="ignore"):
                kept = np.flatnonzero(~(area < predict.min_area_m2))
            count, unknown = count + len(kept), unknown or bool(np.isnan(area).any())
            _check_count(count, predict, part.scores, found=found, rows=grid.height)
            figures = _columns(found, outline, grid, names) | {"area_m2": area}
            columns = {name: values[kept] for name, values in figures.items()}
            columns["model"] = np.full(len(kept), model, object)
            rows = Rows(columns, _shapes(found, outline, grid, detail_px)[kept])
            del found, outline, figures  # with one large component in it each is as large as its polygon
            take(rows)
        if predict.min_area_m2 and unknown:
            log.warning("%s: areas in square metres are not known, so no small polygons are left out", part.scores.name)
        return Late(*components.late())


def _opened(part: PolygonSource, stack: ExitStack) -> tuple[Any, Any | None]:
    """The rasters of a scene, which the stack closes."""
    scores = stack.enter_context(open_for_windows(part.scores))
    if part.classes is None:
        return scores, None
    classes = stack.enter_context(open_for_windows(part.classes))
    if classes.shape != scores.shape:
        raise DataError(f"{part.classes}: its size differs from that of {part.scores}; give the classes of that scene")
    return scores, classes


def _check_count(count: int, predict: PredictConfig, scores: Path, *, found: ClosedComponents, rows: int) -> None:
    """See that there are not too many polygons, before they are made."""
    if count > predict.max_polygons:
        raise ConfigError(
            f"{scores}: {count:,} polygons in the first {found.box[:, 2].max():,} of {rows:,} rows, more than "
            f"predict.max_polygons {predict.max_polygons:,}; give a higher --threshold or a larger "
            f"predict.min_area_m2 (now {predict.min_area_m2:g}), or raise predict.max_polygons"
        )


def _columns(found: ClosedComponents, outline: Outlines, grid: Grid, names: dict[int, str]) -> dict[str, NDArray[Any]]:
    """The figures of components by name."""
    kinds = np.array([names.get(kind) for kind in range(256)], dtype=object)
    return {
        "score_max": found.high,
        "score_mean": found.mean,
        "score_p95": found.p95,
        "class_name": kinds[found.kind],
        "area_px": found.pixels,
        "row": found.box[:, 0],
        "col": found.box[:, 1],
        "first": outline.points[outline.rings[outline.polygons[outline.components[:-1]]], 0].astype(np.int64),
        "number": found.number,
        "around": sizes(grown(found.box, grid)),
        "valid": found.valid,
    }


def _shapes(found: ClosedComponents, outline: Outlines, grid: Grid, detail_px: float) -> NDArray[Any]:
    """The polygons of components in CRS units."""
    points = outline.points.astype(np.float64)
    if not detail_px:
        return to_shapes(outline, placed(points, grid))
    smooth = simplified(to_shapes(outline, points), found.corners, found.owner, size_px=detail_px)
    shapes: NDArray[Any] = shapely.transform(smooth, partial(placed, grid=grid))
    return shapes


def _detail_px(scores: Path, grid: Grid, simplify_m: float) -> float:
    """The size of details to be simplified, in pixels; 0: none."""
    if not simplify_m:
        return 0.0
    if grid.resolution_m is None:
        log.warning("%s: pixels have no known size in metres, so no outlines are simplified", scores.name)
        return 0.0
    return simplify_m / grid.resolution_m


def _least_px(areas: GeodesicAreas, min_area_m2: float, window: Window) -> float:
    """How many pixels of a window `min_area_m2` is at least, by the largest of them; 0 where that is not known."""
    if not min_area_m2 or areas.crs is None:
        return 0.0
    rows, cols = np.meshgrid(
        *(np.linspace(at, at + n - 1, _SAMPLES) for at, n in zip(window[:2], window[2:], strict=True))
    )
    return min_area_m2 / (areas.of_largest_pixel(rows.ravel(), cols.ravel()) * _MARGIN)
