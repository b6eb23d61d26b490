"""Polygon export from score rasters: in memory as a GeoDataFrame, or straight to a file of any size.

Rows go through an external sort on disk to the file, so neither a large scene nor many polygons fill the memory.
Polygons come from `extraction`; the file formats are in `formats`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyproj
import shapely
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from pandas import Series

from geood.config import PredictConfig
from geood.geo.grid import Window
from geood.geo.qgis import styles
from geood.polygons.external_sort import ExternalSorter
from geood.polygons.extraction import (
    HELPER_COLUMNS,
    ROW_ORDER,
    DeferredCounts,
    PolygonSource,
    Rows,
    extract_polygons,
    pixel_to_crs,
    read_grid,
)
from geood.polygons.formats import (
    GEOMETRY_FIELD,
    Layer,
    extent,
    file_crs,
    reproject,
    staged_output,
    to_table,
    write_layer,
)
from geood.polygons.geodesic_area import GeodesicAreas
from geood.polygons.names import FORMATS
from geood.polygons.review_layers import REVIEW_FIELDS, embed_verdicts, polygon_form, with_review, write_sample

__all__ = [
    "COLUMNS",
    "PolygonSource",
    "anomalies",
    "write_anomalies",
    "write_frame",
    "write_together",
]

log = logging.getLogger("geood")
LAYER, FAILED_LAYER = "anomalies", "failed_tiles"
COLUMNS = {  # in the order of a file
    "rank": "int64",
    "class_name": "object",
    "runner_up": "object",
    "score_mean": "float64",
    "score_p95": "float64",
    "score_max": "float64",
    "threshold_excess": "float64",
    "contrast": "float64",
    "p_value": "float64",
    "margin": "float64",
    "on_edge": "float64",
    "signal": "object",
    "area_m2": "float64",
    "area_px": "int64",
    "valid_fraction": "float64",
    "model": "object",
}
_HELPERS = {"priority": "float64"}  # helper columns that are no whole numbers
_LATE = ("rank", "valid_fraction")  # columns that are known when all rows are
_ARROW = {"float64": pa.float64(), "int64": pa.int64(), "object": pa.string()}


def anomalies(
    scores: Path,
    *,
    threshold: float,
    classes: Path | None,
    class_names: dict[int, str] | None,
    predict: PredictConfig,
    model: str,
) -> GeoDataFrame:
    """Extract polygons of the pixels that score above `threshold`, those to be looked at first in front.

    Each component is one MultiPolygon in the scene's CRS. Columns: `rank`, from 1 on; `score_max`, `score_mean` and
    `score_p95` over its pixels (p95 of components over a megapixel within 1/4096 of the range); `class_name`, the most
    frequent value of the raster `classes` in it (None without one); `threshold_excess`, mean score less threshold;
    `contrast`, mean score less that of the surroundings, OUTSIDE_PX beyond the outline; `p_value`, share of the inlier
    validation pixels that score as high as its mean; `on_edge`, share of pixels beside another class; `area_m2`,
    geodesic (NaN without CRS); `area_px`; `valid_fraction`, the share of valid pixels in its bounding box expanded by
    one pixel; `model`. From further bands of `classes`: `runner_up`, the most frequent second class, `margin`, mean
    difference of the two best classes' probabilities, `signal`, which of the fused scores it rests on (None and NaN
    without them). Polygons below `predict.min_area_m2` are dropped where their area is known. All columns describe the
    pixels, also where boundaries are simplified. Without georeferencing x is the column and y minus the row, which is
    how QGIS places such a raster.

    Raises:
        ConfigError: there are more polygons than `predict.max_polygons`.
        DataError: `scores` or `classes` cannot be read or do not match.
    """
    batches: list[Rows] = []
    source = PolygonSource(scores, classes, class_names, None)
    deferred = extract_polygons(source, batches.append, threshold=threshold, predict=predict, model=model)
    crs = GeodesicAreas(read_grid(scores)).crs
    names = [name for name in (*COLUMNS, *HELPER_COLUMNS) if name not in _LATE] if batches else []
    columns: dict[str, Any] = {name: np.concatenate([rows.columns[name] for rows in batches]) for name in names}
    if not batches:
        return GeoDataFrame({name: Series([], dtype=dtype) for name, dtype in COLUMNS.items()}, geometry=[], crs=crs)
    columns["valid_fraction"] = deferred.valid_fraction(columns["number"], columns["valid_px"], columns["box_px"])
    order = ROW_ORDER.argsort(columns)
    columns["rank"] = np.argsort(order) + 1
    typed = {name: Series(columns[name], dtype=dtype) for name, dtype in COLUMNS.items()}
    frame = GeoDataFrame(typed, geometry=np.concatenate([rows.shapes for rows in batches]), crs=crs)
    return frame.iloc[order].reset_index(drop=True)


def write_anomalies(  # noqa: PLR0913 - the arguments of `anomalies`, and the output
    scores: Path,
    out: Path,
    *,
    threshold: float,
    classes: Path | None,
    class_names: dict[int, str] | None,
    predict: PredictConfig,
    model: str,
    overwrite: bool,
    discard_verdicts: bool = False,
    scene: str | None = None,
    failed: Sequence[Window] = (),
    most: int | None = None,
    finish: Callable[[Path, int], None] | None = None,
) -> int:
    """Write the polygons of `anomalies` to .gpkg, .geojson (WGS84), .parquet or .fgb, styled; return how many.

    Memory grows neither with the scene nor with the number of polygons. The file appears complete or not at all;
    without polygons it is a valid empty layer with all columns. Empty columns for a review follow those of `anomalies`:
    verdict, true_class, comment, reviewer and reviewed; a GeoPackage also gets cells of ground to be searched, in a
    layer `sample` (see `predict.sample_cells`). `scene` adds a column `scene` with that value.
    `failed`, the windows of tiles without scores, become a layer `failed_tiles` (columns row, col, height and width) of
    a GeoPackage; other formats get a file of its own, `x.failed_tiles.geojson` beside `x.geojson`. The style is in the
    GeoPackage, or beside other formats in `x.qml`. `most` keeps only so many, the first in their order. `finish` gets
    the file before it has its name, and the number of polygons, and may add to it.

    Raises:
        ConfigError: there are more polygons than `predict.max_polygons`.
        DataError: `scores` or `classes` cannot be read or do not match.
        OutputError: `out` or its style exists, holds verdicts (without `discard_verdicts`), has another suffix or the
            stem of a raster, or cannot be written.
    """
    sources = [PolygonSource(scores, classes, class_names, scene, failed)]
    [count] = write_together(
        sources,
        out,
        threshold=threshold,
        predict=predict,
        model=model,
        overwrite=overwrite,
        discard_verdicts=discard_verdicts,
        most=most,
        finish=finish,
    )
    return count


def write_together(  # noqa: PLR0913 - the arguments of `write_anomalies`
    sources: Sequence[PolygonSource],
    out: Path,
    *,
    threshold: float,
    predict: PredictConfig,
    model: str,
    overwrite: bool,
    most: int | None = None,
    discard_verdicts: bool = False,
    finish: Callable[[Path, int], None] | None = None,
) -> list[int]:
    """Write the polygons of several scenes to one file, in one order of rank and the CRS of the first; return counts.

    Columns and formats are those of `write_anomalies`; `most` counts for each scene, `finish` gets the number of all.

    Raises:
        ConfigError, DataError, OutputError: as in `write_anomalies`; `predict.max_polygons` limits all scenes together.
    """
    counts: list[int] = []
    with (
        staged_output(out, overwrite=overwrite, discard_verdicts=discard_verdicts) as staging,
        ExitStack() as stack,
    ):
        scene_crs = [GeodesicAreas(read_grid(source.scores)).crs for source in sources]
        if any(crs != scene_crs[0] for crs in scene_crs):
            log.warning(
                "the scenes have different CRSs: all polygons are written in that of the first, %s", scene_crs[0]
            )
        crs, sinks, deferred = file_crs(out, scene_crs[0]), list[_RowSink](), list[DeferredCounts]()
        sorter = stack.enter_context(ExternalSorter(staging.folder / "rows.arrow", ROW_ORDER))
        extract = partial(extract_polygons, threshold=threshold, predict=predict, model=model)
        for i, (source, own_crs) in enumerate(zip(sources, scene_crs, strict=True)):
            sinks.append(_RowSink(sorter, own_crs, crs))
            deferred.append(extract(source, sinks[-1].add, number=i, count_before=sum(counts)))
            counts.append(sinks[-1].count if most is None else min(most, sinks[-1].count))
        parts = [x.bounds for x in sinks] if most is None else _bounds_of_first(sorter, len(sources), most)
        bounds = np.concatenate([f(parts, axis=0)[at] for f, at in _EXTREMES])
        rows = _final_tables(sorter, deferred, [source.scene for source in sources], most)
        layer = Layer(LAYER, crs, _schema(with_scene=sources[0].scene is not None), rows, sum(counts), bounds)
        _write_styled(staging.polygons, layer, threshold, sources[0].class_names)
        if FORMATS[out.suffix].layers:
            write_sample(staging.polygons, sources, scene_crs, predict=predict)
        _write_failed(staging.failed, sources, scene_crs)
        if finish is not None:
            finish(staging.polygons, sum(counts))
    return counts


def write_frame(frame: GeoDataFrame, out: Path, *, threshold: float, overwrite: bool) -> None:
    """Write polygons in memory to the same formats; columns beyond those of `anomalies` are kept.

    Raises:
        OutputError: `out` has another suffix, exists, or cannot be written.
    """
    shapes = _to_multi(np.asarray(frame.geometry.array))
    with staged_output(out, overwrite=overwrite) as staging:
        crs = file_crs(out, frame.crs)
        shapes = reproject(shapes, frame.crs, crs)
        columns = {name: frame[name] for name in frame.columns if name != frame.geometry.name}
        types = {name: _ARROW.get(str(COLUMNS.get(name))) for name in columns}
        table = with_review(to_table(columns, shapes, types))
        layer = Layer(LAYER, crs, table.schema, iter([table]), len(frame), extent(shapes))
        _write_styled(staging.polygons, layer, threshold)


_EXTREMES = ((np.min, slice(0, 2)), (np.max, slice(2, 4)))


class _RowSink:
    """Sink for the polygons of one scene: reprojects them, adds them to a sorter, and tracks their count and bounds."""

    def __init__(self, sorter: ExternalSorter, source_crs: pyproj.CRS | None, crs: pyproj.CRS | None) -> None:
        self.sorter, self._source_crs, self._crs = sorter, source_crs, crs
        self.count, self.bounds = 0, np.array([np.inf, np.inf, -np.inf, -np.inf])

    def add(self, rows: Rows) -> None:
        """Add rows.

        Raises:
            OSError: the disk is full.
            ProjError: a part of the polygons does not lie on the globe.
        """
        if not len(rows.shapes):
            return
        shapes = reproject(rows.shapes, self._source_crs, self._crs)
        self.count += len(shapes)
        bounds = np.stack([self.bounds, extent(shapes)])
        self.bounds = np.concatenate([f(bounds, axis=0)[at] for f, at in _EXTREMES])
        types = {name: _ARROW[COLUMNS.get(name, _HELPERS.get(name, "int64"))] for name in rows.columns}
        self.sorter.add(to_table(rows.columns, shapes, types))


def _to_multi(shapes: NDArray[Any]) -> NDArray[Any]:
    """Convert Polygons and MultiPolygons to MultiPolygons."""
    parts, whole = shapely.get_parts(shapes, return_index=True)
    return shapely.multipolygons(parts, indices=whole) if len(shapes) else shapes


def _schema(*, with_scene: bool) -> pa.Schema:
    columns = COLUMNS | ({"scene": "object"} if with_scene else {})
    figures = (pa.field(name, _ARROW[dtype]) for name, dtype in columns.items())
    return pa.schema([*figures, *REVIEW_FIELDS, GEOMETRY_FIELD])


def _final_tables(
    sorter: ExternalSorter, deferred: Sequence[DeferredCounts], scenes: Sequence[str | None], most: int | None
) -> Iterator[pa.Table]:
    """Yield the rows of all scenes in order, the first `most` of each (None: all), with the columns of the file."""
    schema, ranked = _schema(with_scene=scenes[0] is not None), 0
    for rows in _first(sorter.sorted_tables(), len(scenes), most):
        number, valid_px, box_px, source = (np.asarray(rows[n]) for n in ("number", "valid_px", "box_px", "source"))
        fraction = np.full(len(rows), np.nan)
        for i in np.unique(source):
            here = source == i
            fraction[here] = deferred[i].valid_fraction(number[here], valid_px[here], box_px[here])
        table = rows.append_column("valid_fraction", pa.array(fraction))
        table = table.append_column("rank", pa.array(np.arange(ranked, ranked + len(rows)) + 1))
        ranked += len(rows)
        if scenes[0] is not None:
            table = table.append_column("scene", pa.array([scenes[i] for i in source], pa.string()))
        yield with_review(table).select(schema.names).cast(schema)


def _bounds_of_first(sorter: ExternalSorter, scenes: int, most: int) -> list[NDArray[np.float64]]:
    """Return bounds that together are those of the first `most` rows of each scene, which a file tells beforehand."""
    kept = (np.asarray(table[GEOMETRY_FIELD.name], object) for table in _first(sorter.sorted_tables(), scenes, most))
    return [extent(shapely.from_wkb(shapes)) for shapes in kept if len(shapes)] or [np.full(4, np.nan)]


def _first(tables: Iterator[pa.Table], scenes: int, most: int | None) -> Iterator[pa.Table]:
    """Yield the first `most` rows of each scene (None: all rows)."""
    left = np.full(scenes, np.iinfo(np.int64).max if most is None else most)
    for table in tables:
        source, keep = np.asarray(table["source"]), np.zeros(len(table), bool)
        for i in np.unique(source):
            here = np.flatnonzero(source == i)[: left[i]]
            keep[here] = True
            left[i] -= len(here)
        yield table.filter(pa.array(keep))


def _write_styled(path: Path, layer: Layer, threshold: float, class_names: dict[int, str] | None = None) -> None:
    write_layer(path, layer)
    names, known = layer.schema.names, (class_names or {}).values()
    if FORMATS[path.suffix].layers:
        embed_verdicts(path, layer.name)
    _add_style(path, layer.name, styles.polygon_style(threshold, polygon_form(names, class_names=known)))


def _add_style(path: Path, layer: str, qml: str) -> None:
    """Store the style of a layer, in its file or in the file beside it that QGIS looks for."""
    if FORMATS[path.suffix].layers:
        styles.embed_style(path, layer, geometry_column="geom", qml=qml, name=layer)
    else:
        styles.style_beside(path).write_text(qml, encoding="utf-8")


def _write_failed(path: Path, sources: Sequence[PolygonSource], scene_crs: Sequence[pyproj.CRS | None]) -> None:
    """Write the windows of failed tiles, if there are any."""
    crs, tables, shapes = file_crs(path, scene_crs[0]), [], []
    for source, own_crs in zip(sources, scene_crs, strict=True):
        windows = np.array(source.failed, np.int64).reshape(-1, 4)
        row, col, height, width = windows.T
        boxes = _to_multi(shapely.box(col, row, col + width, row + height))
        footprints = shapely.transform(boxes, partial(pixel_to_crs, grid=read_grid(source.scores)))
        shapes.append(reproject(footprints, own_crs, crs))
        columns = {name: windows[:, i] for i, name in enumerate(Window._fields)}
        scene = {} if source.scene is None else {"scene": [source.scene] * len(windows)}
        tables.append(to_table(columns | scene, shapes[-1], {"scene": pa.string()}))
    table = pa.concat_tables(tables)
    if len(table):
        write_layer(
            path, Layer(FAILED_LAYER, crs, table.schema, iter([table]), len(table), extent(np.concatenate(shapes)))
        )
        _add_style(path, FAILED_LAYER, styles.failed_style())
