"""Polygon files: writes a layer of table rows in one of the formats of a table, whole or not at all.

Rows come as Arrow tables and go straight to the writers of GDAL and Parquet, so a file may be larger than memory. Files
are written in a hidden folder beside the target, their features counted, then renamed. Knows nothing of what columns
mean.
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
from geood.errors import DataError, OutputError
from geood.geo.gdal import reason
from geood.geo.ogr import fixed_time, local_file, plain_path
from geood.geo.qgis import styles
from geood.geo.qgis.styles import style_beside
from geood.polygons.names import FORMATS, OUTPUT_SUFFIXES, check_stem, companions_of, failed_beside, style_of
from geood.polygons.typed_verdicts import check_nothing_typed

GEOMETRY = "geometry"
GEOMETRY_FIELD = pa.field(GEOMETRY, pa.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"})
ROW_GROUP = 50_000  # rows of a Parquet row group
OURS = {"score_max", "area_px", "model"}  # columns that tell polygons of geood
_FAILURES = (
    OSError,
    RuntimeError,
    *styles.FAILURES,
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    pyogrio.errors.FeatureError,
    pyogrio.errors.GeometryError,
    pyogrio.errors.FieldError,
)


class Layer(NamedTuple):
    """Layer of `feature_count` MultiPolygons: Arrow tables of one schema with WKB in column `geometry`."""

    name: str
    crs: pyproj.CRS | None
    schema: pa.Schema
    rows: Iterator[pa.Table]
    feature_count: int
    bounds: NDArray[np.float64]  # xmin, ymin, xmax, ymax


class StagedOutput(NamedTuple):
    """Hidden folder in which a polygon file is made, and the plain paths of its parts in that folder.

    `failed` is the companion with the failed tiles, or `polygons` where they lie in the same file.
    """

    folder: Path
    polygons: Path
    failed: Path


@contextmanager
def staged_output(out: Path, *, overwrite: bool, discard_verdicts: bool = False) -> Iterator[StagedOutput]:
    """Yield a hidden folder beside `out`, whose files are put in place when the block ends without an error.

    The files have plain names in it, as GDAL's drivers parse some names.

    Raises:
        OutputError: `out` has another suffix or exists, holds verdicts, or something in the block cannot be written.
    """
    if out.suffix not in OUTPUT_SUFFIXES:
        raise OutputError(f"{out}: polygons are written as {', '.join(OUTPUT_SUFFIXES)}; choose one of these endings")
    check_stem(out)
    companion = failed_beside(out)
    for path in (out, style_of(out), *companions_of(out)):
        if path:
            check_output(path, overwrite=overwrite)
    check_nothing_typed(out, discard=discard_verdicts)
    polygons, failed = f"polygons{out.suffix}", f"failed_tiles{out.suffix}"
    finals = {polygons: out} | ({failed: companion} if companion else {})
    finals |= {style_beside(Path(made)).name: style for made, final in finals.items() if (style := style_of(final))}
    try:
        with atomic_files(out.parent, out.name, overwrite=overwrite, finals=finals) as folder:
            yield StagedOutput(folder, folder / polygons, folder / (failed if companion else polygons))
            check_nothing_typed(out, discard=discard_verdicts)  # the work took a while
    except _FAILURES as error:
        remedy = "" if isinstance(error, ProjError) else "; free space on that disk, or choose another place"
        raise OutputError(f"{out}: cannot be written ({reason(error)}){remedy}") from None


def is_anomalies(path: Path) -> bool:
    """Return whether a file holds polygons that geood wrote, by their columns."""
    try:
        if path.suffix == ".parquet":
            return set(pyarrow.parquet.read_schema(path).names) >= OURS
        with local_file(path) as plain, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="More than one layer found")
            return set(pyogrio.read_info(plain)["fields"]) >= OURS
    except (*_FAILURES, DataError, ValueError):
        return False


def write_layer(path: Path, layer: Layer) -> None:
    """Write a layer to a new file, or to one that has others where its format holds several.

    Raises:
        OSError: the file holds fewer features than were given; besides whatever the writers raise.
    """
    kind = FORMATS[path.suffix]
    if kind.driver is None:
        _write_parquet(path, layer)
        return
    batches = (batch for table in layer.rows for batch in table.to_batches())
    name = layer.name if kind.keeps_names else None
    with plain_path(path) as plain, fixed_time(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # reported when the scene was read
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(layer.schema, batches),
            plain,
            layer=layer.name,
            driver=kind.driver,
            geometry_name=GEOMETRY,
            geometry_type="MultiPolygon",
            crs=None if layer.crs is None else layer.crs.to_wkt(),
            dataset_options={} if path.exists() else dict(kind.dataset_options),
            layer_options={} if layer.crs is None else dict(kind.layer_options),
        )
        written = pyogrio.read_info(plain, layer=name, force_feature_count=True)["features"]
    if written != layer.feature_count:
        raise OSError("it holds fewer features than were written")


def to_table(columns: Mapping[str, Any], shapes: NDArray[Any], types: Mapping[str, pa.DataType | None]) -> pa.Table:
    """Build an Arrow table of columns and MultiPolygons; column types are inferred unless given in `types`.

    NaN becomes null, which all formats can express.
    """
    arrays = {name: pa.array(values, types.get(name), from_pandas=True) for name, values in columns.items()}
    fields = [pa.field(name, array.type) for name, array in arrays.items()]
    wkb = pa.array(shapely.to_wkb(shapes), pa.binary())
    return pa.Table.from_arrays([*arrays.values(), wkb], schema=pa.schema([*fields, GEOMETRY_FIELD]))


def reproject(shapes: NDArray[Any], crs: pyproj.CRS | None, to: pyproj.CRS | None) -> NDArray[Any]:
    """Reproject polygons from one CRS to another.

    Raises:
        ProjError: a part of them does not lie on the globe, or their CRS is not tied to it.
    """
    if crs is None or to is None or crs == to or not len(shapes):
        return shapes
    try:
        transformer = pyproj.Transformer.from_crs(crs, to, always_xy=True)
    except ProjError:
        raise ProjError("its CRS is not tied to the earth; use .gpkg, which keeps it") from None
    try:
        moved: NDArray[Any] = shapely.transform(
            shapes, lambda points: np.stack(transformer.transform(points[:, 0], points[:, 1]), axis=1)
        )
    except ProjError as error:
        raise ProjError(f"not all of it lies on the globe, {error}; use .gpkg") from None
    if not np.isfinite(extent(moved)).all():
        raise ProjError("not all of it lies on the globe; use .gpkg, which keeps the scene's CRS")
    return moved


def extent(shapes: NDArray[Any]) -> NDArray[np.float64]:
    """Return the bounds xmin, ymin, xmax, ymax of all shapes together; NaN if there are none."""
    return np.asarray(shapely.total_bounds(shapes)) if len(shapes) else np.full(4, np.nan)


def file_crs(out: Path, crs: pyproj.CRS | None) -> pyproj.CRS | None:
    """Return the CRS of a file for polygons in `crs`: that of the format where it prescribes one."""
    prescribed = FORMATS[out.suffix].crs
    return pyproj.CRS(prescribed) if prescribed and crs is not None else crs


def _write_parquet(path: Path, layer: Layer) -> None:
    schema = layer.schema.with_metadata(_geo_metadata(layer))
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        pending: list[pa.Table] = []
        for table in layer.rows:
            pending.append(table.replace_schema_metadata(schema.metadata))
            if sum(map(len, pending)) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(pending))
                pending = []
        writer.write_table(pa.concat_tables([schema.empty_table(), *pending]))
    if pyarrow.parquet.read_metadata(path).num_rows != layer.feature_count:
        raise OSError("it holds fewer features than were written")


def _geo_metadata(layer: Layer) -> dict[bytes, bytes]:
    """Return the GeoParquet metadata that geopandas writes for an empty frame, with geometry type and bounds."""
    empty = layer.schema.remove(layer.schema.get_field_index(GEOMETRY)).remove_metadata().empty_table().to_pandas()
    buffer = io.BytesIO()
    geopandas.GeoDataFrame(empty, geometry=[], crs=layer.crs).to_parquet(buffer, index=False)
    metadata: dict[bytes, bytes] = pyarrow.parquet.read_schema(buffer).metadata
    geo = json.loads(metadata[b"geo"])
    column = geo["columns"][GEOMETRY]
    column["geometry_types"] = ["MultiPolygon"]
    column.pop("bbox", None)
    if layer.feature_count:
        column["bbox"] = layer.bounds.tolist()
    return metadata | {b"geo": json.dumps(geo).encode()}
