"""Layers for a review: empty columns beside the polygons, and a sample of ground to be searched for what was missed.

Polygons are a ranked list of what was found, and no list of what was found can tell what was not. So a GeoPackage also
gets cells, drawn at random from those of a lattice that covers the scene to its last row and column, with a seed that
is stored: who searches a cell to its end and counts what no polygon marks gives misses for each square kilometre. Cells
are equally large within a pixel, and no larger than asked for. Those of which less than half holds data are not drawn.
The same scores and settings give the same cells.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyproj
import shapely
from numpy.typing import NDArray

from geood.config import PredictConfig
from geood.errors import counted
from geood.geo.gpkg import embed_choices
from geood.geo.grid import Grid
from geood.geo.qgis import styles
from geood.geo.qgis.form import CELL_REVIEW, POLYGON_REVIEW, SAMPLE_LAYER, VERDICT_DOMAIN, VERDICTS, review_form
from geood.polygons.block_windows import is_absent, iter_windows, open_for_windows, read_ahead, read_band, window_size
from geood.polygons.extraction import PolygonSource, pixel_to_crs, read_grid
from geood.polygons.formats import GEOMETRY, Layer, extent, reproject, to_table, write_layer

log = logging.getLogger("geood")
LEAST_VALID = 0.5  # share of a cell that holds data
SIDE_PX = 128  # of a cell where pixels have no size in metres
_TEXT, _TIME = pa.string(), pa.timestamp("ms", "UTC")
REVIEW_FIELDS = [pa.field(name, _TIME if name == "reviewed" else _TEXT) for name in POLYGON_REVIEW]
_CELL_TYPES = {"misses": pa.int64(), "complete": pa.bool_(), "reviewed": _TIME}


class _Cells(NamedTuple):
    """Cells that were drawn: edges (N, 4) left, top, right, bottom in pixels, valid pixels (N,); `ground_px` of all.

    `side_px` is the side of a square as large as the mean cell of the lattice.
    """

    edges: NDArray[np.int64]
    valid_px: NDArray[np.int64]
    side_px: float
    ground_px: int


def with_review(table: pa.Table) -> pa.Table:
    """Return a table of polygons with the empty columns of a review, where it has none of that name, geometry last."""
    at = len(table.schema) - 1 if table.schema.names[-1] == GEOMETRY else len(table.schema)
    for field in REVIEW_FIELDS:
        if field.name not in table.schema.names:
            table = table.add_column(at, field, pa.nulls(len(table), field.type))
            at += 1
    return table


def polygon_form(names: Sequence[str], *, class_names: Iterable[str]) -> str:
    """Return the form of a layer of polygons with columns of these names."""
    return review_form([name for name in names if name != GEOMETRY], POLYGON_REVIEW, class_names=class_names)


def embed_verdicts(gpkg: Path, layer: str) -> None:
    """Store the choices of verdicts in a GeoPackage, which programs show without a style.

    Raises:
        sqlite3.Error: the file cannot be written.
    """
    embed_choices(gpkg, layer, "verdict", name=VERDICT_DOMAIN, choices=VERDICTS, title="verdict on the polygon")


def write_sample(
    gpkg: Path,
    sources: Sequence[PolygonSource],
    scene_crs: Sequence[pyproj.CRS | None],
    *,
    predict: PredictConfig,
) -> None:
    """Write the layer `sample`: `predict.sample_cells` cells of each scene, in the CRS of the first.

    Columns: `cell`, a number; `seed`, that they were drawn with; `side_m` of a square as large (or `side_px` where
    there are no metres); `area_m2`, the valid ground of the cell; `stands_for_m2`, the share of the scene's ground that
    it stands for; and empty ones for the review.

    Raises:
        DataError: the scores cannot be read.
    """
    if not predict.sample_cells:
        return
    tables, shapes = [], []
    for source, own_crs in zip(sources, scene_crs, strict=True):
        grid = read_grid(source.scores)
        cells = _drawn(source.scores, grid, predict)
        if not len(cells.edges):
            continue
        boxes = shapely.box(*cells.edges.T)
        boxes = shapely.transform(boxes, partial(pixel_to_crs, grid=grid))
        shapes.append(reproject(shapely.multipolygons(boxes[:, None]), own_crs, scene_crs[0]))
        tables.append(to_table(_columns(cells, grid, predict, source.scene), shapes[-1], _CELL_TYPES))
    if not tables:
        return
    table = pa.concat_tables(tables)
    write_layer(
        gpkg,
        Layer(SAMPLE_LAYER, scene_crs[0], table.schema, iter([table]), len(table), extent(np.concatenate(shapes))),
    )
    form = review_form([name for name in table.schema.names if name != GEOMETRY], CELL_REVIEW)
    styles.embed_style(gpkg, SAMPLE_LAYER, geometry_column="geom", qml=styles.cell_style(form), name=SAMPLE_LAYER)


def _columns(cells: _Cells, grid: Grid, predict: PredictConfig, scene: str | None) -> dict[str, Any]:
    count, metres = len(cells.edges), grid.resolution_m
    pixel_m2 = grid.pixel_m2 or np.nan
    size = {"side_px": np.full(count, cells.side_px)} if metres is None else {}
    figures = {
        "cell": np.arange(1, count + 1),
        "seed": np.full(count, predict.sample_seed),
        **({"side_m": np.full(count, cells.side_px * metres)} if metres is not None else size),
        "area_m2": cells.valid_px * pixel_m2,
        "stands_for_m2": np.full(count, cells.ground_px * pixel_m2 / count),
        **({} if scene is None else {"scene": [scene] * count}),
    }
    empty = {name: pa.nulls(count, _CELL_TYPES.get(name, _TEXT)) for name in CELL_REVIEW}
    return figures | empty


def _drawn(scores: Path, grid: Grid, predict: PredictConfig) -> _Cells:
    """Draw cells of a lattice over the whole grid, fewer than asked for where there are no more."""
    metres = grid.resolution_m
    most = SIDE_PX if metres is None else max(1, round(predict.sample_side_m / metres))
    rows, cols = (_edges(length, most) for length in (grid.height, grid.width))
    valid, whole = _valid_counts(scores, grid, rows, cols), np.outer(np.diff(rows), np.diff(cols))
    enough = np.argwhere(valid >= LEAST_VALID * whole)
    if not len(enough):
        said = "%s: no cell of at most %d x %d pixels holds data in half of it, so there is no layer sample to search"
        log.info(said, scores.name, most, most)
        return _Cells(np.empty((0, 4), np.int64), np.empty(0, np.int64), 0.0, 0)
    if len(enough) < predict.sample_cells:
        said = "%s: the layer sample holds %s, all that fit into the scene (predict.sample_cells: %d)"
        log.info(said, scores.name, counted(len(enough), "cell"), predict.sample_cells)
    order = np.random.default_rng(predict.sample_seed).permutation(len(enough))[: predict.sample_cells]
    row, col = enough[order].T
    edges = np.stack([cols[col], rows[row], cols[col + 1], rows[row + 1]], axis=1)
    ground = int(valid[valid >= LEAST_VALID * whole].sum())
    return _Cells(edges, valid[row, col], float(np.sqrt(whole.mean())), ground)


def _edges(length: int, most: int) -> NDArray[np.int64]:
    """Return the edges (n + 1,) of the fewest spans of a length that are not above `most`, equal within a pixel."""
    count = -(-length // most)
    return np.arange(count + 1) * length // count


def _valid_counts(scores: Path, grid: Grid, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the pixels with a score in each cell (R, C) between edges at rows (R + 1,) and columns (C + 1,)."""
    counts = np.zeros((len(rows) - 1, len(cols) - 1), np.int64)
    with open_for_windows(scores) as dataset:
        windows = [w for w in iter_windows(grid, window_size(dataset)) if not is_absent(dataset, w)]
        for window, array in zip(windows, read_ahead(windows, partial(read_band, dataset)), strict=True):
            known = np.isfinite(array)
            at_rows = np.searchsorted(rows, window.row + np.arange(window.height), side="right") - 1
            at_cols = np.searchsorted(cols, window.col + np.arange(window.width), side="right") - 1
            by_row = np.add.reduceat(known, np.flatnonzero(np.diff(at_rows, prepend=-1)), axis=0, dtype=np.int64)
            both = np.add.reduceat(by_row, np.flatnonzero(np.diff(at_cols, prepend=-1)), axis=1)
            np.add.at(counts, np.ix_(np.unique(at_rows), np.unique(at_cols)), both)
    return counts
