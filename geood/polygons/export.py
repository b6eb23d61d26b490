"""Score rasters to polygons: in memory as a frame, or straight to a file of any size.

Rows go to a spool that sorts them on the disk, and from there to the file, so that neither a large scene nor many
polygons fill the memory. How polygons are found is the matter of `cutting`, how formats are written of `files`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
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

from geood.config.sections import PredictConfig
from geood.geo import qgis
from geood.geo.grid import Window
from geood.polygons.external_sort import Spool
from geood.polygons.extraction import EXTRA, ORDER, Late, PolygonSource, Rows, cut, grid_of, placed
from geood.polygons.formats import (
    GEOMETRY_FIELD,
    OUTPUT_SUFFIXES,
    Layer,
    beside,
    crs_of,
    extent,
    moved,
    publishing,
    table_of,
    write_layer,
)
from geood.polygons.geodesic_area import GeodesicAreas

__all__ = [
    "COLUMNS",
    "OUTPUT_SUFFIXES",
    "PolygonSource",
    "anomalies",
    "write_anomalies",
    "write_frame",
    "write_together",
]

log = logging.getLogger("geood")
LAYER, FAILED_LAYER = "anomalies", "failed_tiles"
COLUMNS = {
    "score_max": "float64",
    "score_mean": "float64",
    "score_p95": "float64",
    "class_name": "object",
    "area_m2": "float64",
    "area_px": "int64",
    "valid_fraction": "float64",
    "model": "object",
}
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
    """Polygons of the pixels that score above `threshold`, the highest score first.

    One MultiPolygon per component, in the scene's CRS; `score_max`, `score_mean` and `score_p95` over its pixels (p95
    of components over a megapixel within 1/4096 of the range); `class_name`, the most frequent value of the raster
    `classes` in it (None without one); `area_m2`, geodesic (NaN without CRS); `area_px`; `valid_fraction`, the share
    of its bounding window, grown by one pixel, that holds data; `model`. Polygons under `predict.min_area_m2` are left
    out, where their area is known. All figures are those of the pixels, also where outlines are simplified.
    Without georeferencing x is the column and y minus the row, which is how QGIS places such a raster.

    Raises:
        ConfigError: if there are more than `predict.max_polygons`.
        DataError: if `scores` or `classes` cannot be read or do not fit each other.
    """
    batches: list[Rows] = []
    part = PolygonSource(scores, classes, class_names, None)
    late = cut(part, batches.append, threshold=threshold, predict=predict, model=model)
    crs = GeodesicAreas(grid_of(scores)).crs
    names = [name for name in (*COLUMNS, *EXTRA) if name != "valid_fraction"] if batches else []
    columns: dict[str, Any] = {name: np.concatenate([rows.columns[name] for rows in batches]) for name in names}
    if not batches:
        return GeoDataFrame({name: Series([], dtype=kind) for name, kind in COLUMNS.items()}, geometry=[], crs=crs)
    columns["valid_fraction"] = late.valid_fraction(columns["number"], columns["valid"], columns["around"])
    typed = {name: Series(columns[name], dtype=kind) for name, kind in COLUMNS.items()}
    frame = GeoDataFrame(typed, geometry=np.concatenate([rows.shapes for rows in batches]), crs=crs)
    return frame.iloc[ORDER.order(columns)].reset_index(drop=True)


def write_anomalies(  # noqa: PLR0913 - what `anomalies` takes, and where to
    scores: Path,
    out: Path,
    *,
    threshold: float,
    classes: Path | None,
    class_names: dict[int, str] | None,
    predict: PredictConfig,
    model: str,
    overwrite: bool,
    scene: str | None = None,
    failed: Sequence[Window] = (),
) -> int:
    """Write what `anomalies` finds straight to .gpkg (styled), .geojson (in WGS84), .parquet or .fgb; how many it is.

    Memory does not grow with the scene nor with the number of polygons. The file appears whole or not at all, and is a
    valid empty layer with all columns if nothing is found. `scene` is the value of one column more, of that name.
    `failed`, windows of tiles without scores, become a layer `failed_tiles` (columns row, col, height and width) of a
    GeoPackage; with other formats a file of its own, `x.failed_tiles.geojson` beside `x.geojson`.

    Raises:
        ConfigError: if there are more than `predict.max_polygons`.
        DataError: if `scores` or `classes` cannot be read or do not fit each other.
        OutputError: if the ending is another, the file exists, or it cannot be written.
    """
    parts = [PolygonSource(scores, classes, class_names, scene, failed)]
    [count] = write_together(parts, out, threshold=threshold, predict=predict, model=model, overwrite=overwrite)
    return count


def write_together(
    parts: Sequence[PolygonSource], out: Path, *, threshold: float, predict: PredictConfig, model: str, overwrite: bool
) -> list[int]:
    """The same for several scenes in one file, one after the other, in the CRS of the first; how many of each.

    Raises:
        ConfigError, DataError, OutputError: as `write_anomalies`; `predict.max_polygons` holds for all together.
    """
    counts: list[int] = []
    with publishing(out, overwrite=overwrite) as staging, ExitStack() as stack:
        found = [GeodesicAreas(grid_of(part.scores)).crs for part in parts]
        if any(crs != found[0] for crs in found):
            log.warning("the scenes have different CRSs: all polygons are written in that of the first, %s", found[0])
        crs, intakes, sources = crs_of(out, found[0]), list[_Intake](), list[Iterator[pa.Table]]()
        for i, (part, own) in enumerate(zip(parts, found, strict=True)):
            spool = stack.enter_context(Spool(staging / f"rows{i}.arrow", ORDER))
            intakes.append(_Intake(spool, own, crs))
            late = cut(part, intakes[-1].take, threshold=threshold, predict=predict, model=model, before=sum(counts))
            counts.append(intakes[-1].count)
            sources.append(_finished(spool, late, part.scene))
        bounds = np.concatenate([f([x.bounds for x in intakes], axis=0)[at] for f, at in _EXTREMES])
        rows = (table for source in sources for table in source)
        layer = Layer(LAYER, crs, _schema(with_scene=parts[0].scene is not None), rows, sum(counts), bounds)
        _write_styled(staging / out.name, layer, threshold)
        _write_failed(staging, out, parts, found)
    return counts


def write_frame(frame: GeoDataFrame, out: Path, *, threshold: float, overwrite: bool) -> None:
    """Write polygons that are in memory, in the same formats; columns beyond those of `anomalies` are kept.

    Raises:
        OutputError: if the ending is another, the file exists, or it cannot be written.
    """
    shapes = _all_multi(np.asarray(frame.geometry.array))
    with publishing(out, overwrite=overwrite) as staging:
        crs = crs_of(out, frame.crs)
        shapes = moved(shapes, frame.crs, crs)
        columns = {name: frame[name] for name in frame.columns if name != frame.geometry.name}
        kinds = {name: _ARROW.get(str(COLUMNS.get(name))) for name in columns}
        table = table_of(columns, shapes, kinds)
        layer = Layer(LAYER, crs, table.schema, iter([table]), len(frame), extent(shapes))
        _write_styled(staging / out.name, layer, threshold)


_EXTREMES = ((np.min, slice(0, 2)), (np.max, slice(2, 4)))


class _Intake:
    """Brings the polygons of one scene to the CRS of the file and into its spool; counts and measures them."""

    def __init__(self, spool: Spool, own: pyproj.CRS | None, crs: pyproj.CRS | None) -> None:
        self.spool, self._own, self._crs = spool, own, crs
        self.count, self.bounds = 0, np.array([np.inf, np.inf, -np.inf, -np.inf])

    def take(self, rows: Rows) -> None:
        """Take in some.

        Raises:
            OSError: the disk is full.
            ProjError: not all of it lies on the globe.
        """
        if not len(rows.shapes):
            return
        shapes = moved(rows.shapes, self._own, self._crs)
        self.count += len(shapes)
        found = np.stack([self.bounds, extent(shapes)])
        self.bounds = np.concatenate([f(found, axis=0)[at] for f, at in _EXTREMES])
        kinds = {name: _ARROW[COLUMNS[name]] if name in COLUMNS else pa.int64() for name in rows.columns}
        self.spool.add(table_of(rows.columns, shapes, kinds))


def _all_multi(shapes: NDArray[Any]) -> NDArray[Any]:
    """Polygons and MultiPolygons as MultiPolygons alone."""
    parts, whole = shapely.get_parts(shapes, return_index=True)
    return shapely.multipolygons(parts, indices=whole) if len(shapes) else shapes


def _schema(*, with_scene: bool) -> pa.Schema:
    columns = COLUMNS | ({"scene": "object"} if with_scene else {})
    return pa.schema([*(pa.field(name, _ARROW[kind]) for name, kind in columns.items()), GEOMETRY_FIELD])


def _finished(spool: Spool, late: Late, scene: str | None) -> Iterator[pa.Table]:
    """The rows of one scene in order, with the columns that the file has."""
    schema = _schema(with_scene=scene is not None)
    for rows in spool.rows():
        valid = (np.asarray(rows[name]) for name in ("number", "valid", "around"))
        table = rows.append_column("valid_fraction", pa.array(late.valid_fraction(*valid)))
        if scene is not None:
            table = table.append_column("scene", pa.array([scene] * len(rows), pa.string()))
        yield table.select(schema.names).cast(schema)


def _write_styled(path: Path, layer: Layer, threshold: float) -> None:
    write_layer(path, layer)
    if path.suffix == ".gpkg":
        qgis.embed_style(path, layer.name, geometry_column="geom", qml=qgis.polygon_style(threshold), name=layer.name)


def _write_failed(staging: Path, out: Path, parts: Sequence[PolygonSource], found: Sequence[pyproj.CRS | None]) -> None:
    """Write the windows of failed tiles, if there are any."""
    crs, tables, shapes = crs_of(out, found[0]), [], []
    for part, own in zip(parts, found, strict=True):
        windows = np.array(part.failed, np.int64).reshape(-1, 4)
        row, col, height, width = windows.T
        boxes = _all_multi(shapely.box(col, row, col + width, row + height))
        at_place = shapely.transform(boxes, partial(placed, grid=grid_of(part.scores)))
        shapes.append(moved(at_place, own, crs))
        columns = {name: windows[:, i] for i, name in enumerate(Window._fields)}
        scene = {} if part.scene is None else {"scene": [part.scene] * len(windows)}
        tables.append(table_of(columns | scene, shapes[-1], {"scene": pa.string()}))
    table = pa.concat_tables(tables)
    if len(table):
        path = staging / (out if out.suffix == ".gpkg" else beside(out)).name
        write_layer(
            path, Layer(FAILED_LAYER, crs, table.schema, iter([table]), len(table), extent(np.concatenate(shapes)))
        )
