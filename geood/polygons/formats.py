"""Polygon files: rows in, a file of one of four formats out, whole or not at all.

Rows come as Arrow tables and go straight to the writers of GDAL and Parquet, so a file may be larger than memory.
Everything is made in a hidden folder beside the target, counted, then renamed. What the columns mean is not known here.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from geood.atomic import atomic_files, check_output
from geood.errors import OutputError
from geood.geo import qgis
from geood.geo.gdal import reason

OUTPUT_SUFFIXES = (".gpkg", ".geojson", ".parquet", ".fgb")
GEOMETRY = "geometry"
GEOMETRY_FIELD = pa.field(GEOMETRY, pa.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"})
ROW_GROUP = 50_000  # rows of a Parquet file that are read together
_DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}
_FAILURES = (
    OSError,
    RuntimeError,
    *qgis.FAILURES,
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    pyogrio.errors.FeatureError,
    pyogrio.errors.GeometryError,
    pyogrio.errors.FieldError,
)


class Layer(NamedTuple):
    """Rows of MultiPolygons: Arrow tables of one schema, whose column `geometry` is WKB; `features` of them."""

    name: str
    crs: pyproj.CRS | None
    schema: pa.Schema
    rows: Iterator[pa.Table]
    features: int
    bounds: NDArray[np.float64]  # xmin, ymin, xmax, ymax


@contextmanager
def publishing(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A hidden folder beside `out`, the files in which get their place when the block ends without an error.

    Raises:
        OutputError: if `out` has another ending, exists, or something in the block cannot be written.
    """
    if out.suffix not in OUTPUT_SUFFIXES:
        raise OutputError(f"{out}: polygons are written as {', '.join(OUTPUT_SUFFIXES)}; choose one of these endings")
    check_output(out, overwrite=overwrite)
    companion = None if out.suffix == ".gpkg" else beside(out)
    if companion:
        check_output(companion, overwrite=overwrite)

    def drop_companion(staging: Path) -> None:
        if companion and not (staging / companion.name).exists():
            companion.unlink(missing_ok=True)  # it belongs to the file that is replaced

    try:
        with atomic_files(out.parent, out.name, before=drop_companion) as staging:
            yield staging
    except _FAILURES as error:
        raise OutputError(
            f"{out}: cannot be written ({reason(error)}); free space on that disk, or choose another place"
        ) from None


def beside(out: Path) -> Path:
    """Where the failed tiles go that have no place in a file of one layer."""
    return out.with_name(f"{out.stem}.failed_tiles{out.suffix}")


def write_layer(path: Path, layer: Layer) -> None:
    """Write a layer to a new file, or to a GeoPackage that has others.

    Raises:
        OSError: the file came out short; besides whatever the writers raise.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, layer)
        return
    options = {"RFC7946": "YES"} if path.suffix == ".geojson" and layer.crs is not None else {}
    version = {"VERSION": "1.2"} if path.suffix == ".gpkg" else {}  # the newest that QGIS 3.22 reads in full
    batches = (batch for table in layer.rows for batch in table.to_batches())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # said when the scene was read
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(layer.schema, batches),
            path,
            layer=layer.name,
            driver=_DRIVERS[path.suffix],
            geometry_name=GEOMETRY,
            geometry_type="MultiPolygon",
            crs=None if layer.crs is None else layer.crs.to_wkt(),
            dataset_options={} if path.exists() else version,
            layer_options=options,
        )
    name = None if path.suffix == ".geojson" else layer.name
    if pyogrio.read_info(path, layer=name, force_feature_count=True)["features"] != layer.features:
        raise OSError("the file came out short")


def table_of(columns: Mapping[str, Any], shapes: NDArray[Any], kinds: Mapping[str, pa.DataType | None]) -> pa.Table:
    """An Arrow table of columns, whose types are told from their values unless `kinds` has them, and MultiPolygons.

    Numbers that are NaN are null in it, which all formats have a sign for.
    """
    arrays = {name: pa.array(values, kinds.get(name), from_pandas=True) for name, values in columns.items()}
    fields = [pa.field(name, array.type) for name, array in arrays.items()]
    wkb = pa.array(shapely.to_wkb(shapes), pa.binary())
    return pa.Table.from_arrays([*arrays.values(), wkb], schema=pa.schema([*fields, GEOMETRY_FIELD]))


def moved(shapes: NDArray[Any], crs: pyproj.CRS | None, to: pyproj.CRS | None) -> NDArray[Any]:
    """Polygons brought from one CRS to another.

    Raises:
        ProjError: not all of it lies on the globe.
    """
    if crs is None or to is None or crs == to or not len(shapes):
        return shapes
    change = pyproj.Transformer.from_crs(crs, to, always_xy=True)
    try:
        there: NDArray[Any] = shapely.transform(
            shapes, lambda points: np.stack(change.transform(points[:, 0], points[:, 1]), axis=1)
        )
    except ProjError as error:
        raise ProjError(f"not all of it lies on the globe, {error}; use .gpkg") from None
    if not np.isfinite(extent(there)).all():
        raise ProjError("not all of it lies on the globe; use .gpkg, which keeps the scene's CRS")
    return there


def extent(shapes: NDArray[Any]) -> NDArray[np.float64]:
    """The bounds xmin, ymin, xmax, ymax of all shapes together; NaN if there is none."""
    return np.asarray(shapely.total_bounds(shapes)) if len(shapes) else np.full(4, np.nan)


def crs_of(out: Path, crs: pyproj.CRS | None) -> pyproj.CRS | None:
    """The CRS that a file has whose polygons lie in `crs`: GeoJSON knows WGS84 alone."""
    return pyproj.CRS("OGC:CRS84") if out.suffix == ".geojson" and crs is not None else crs


def _write_parquet(path: Path, layer: Layer) -> None:
    schema = layer.schema.with_metadata(_geo_metadata(layer))
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        waiting: list[pa.Table] = []
        for table in layer.rows:
            waiting.append(table.replace_schema_metadata(schema.metadata))
            if sum(map(len, waiting)) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        writer.write_table(pa.concat_tables([schema.empty_table(), *waiting]))
    if pyarrow.parquet.read_metadata(path).num_rows != layer.features:
        raise OSError("the file came out short")


def _geo_metadata(layer: Layer) -> dict[bytes, bytes]:
    """What makes a Parquet file a GeoParquet: geopandas' own words for an empty frame of these columns."""
    bare = layer.schema.remove(layer.schema.get_field_index(GEOMETRY)).remove_metadata().empty_table().to_pandas()
    buffer = io.BytesIO()
    geopandas.GeoDataFrame(bare, geometry=[], crs=layer.crs).to_parquet(buffer, index=False)
    found: dict[bytes, bytes] = pyarrow.parquet.read_schema(buffer).metadata
    geo = json.loads(found[b"geo"])
    column = geo["columns"][GEOMETRY]
    column["geometry_types"] = ["MultiPolygon"]
    column.pop("bbox", None)
    if layer.features:
        column["bbox"] = layer.bounds.tolist()
    return found | {b"geo": json.dumps(geo).encode()}
