"""From a score raster to polygons with figures, and polygons to files.

Components come in pixels; here they get their place. Areas are geodesic, on the ellipsoid of the scene's CRS, so square
metres mean square metres in degrees and in feet too. Files are made under another name, read back, then renamed.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyproj
import shapely
from affine import Affine
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from pandas import Series
from pyproj.exceptions import ProjError

from geood import qgis
from geood.components import Figures, find_components, measure
from geood.config import PredictConfig
from geood.errors import DataError, OutputError
from geood.gdal import open_raster, reason
from geood.grid import Grid
from geood.raster import check_output, read_tags

log = logging.getLogger("geood")
OUTPUT_SUFFIXES = (".gpkg", ".geojson", ".parquet", ".fgb")
LAYER = "anomalies"
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
_DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}
_EDGE_PX = 32  # longest edge taken as straight both on the map and on the ellipsoid


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
    out, where their area is known.
    Without georeferencing x is the column and y minus the row, which is how QGIS places such a raster.

    Raises:
        DataError: if `scores` or `classes` cannot be read or do not fit each other.
    """
    read_tags(scores)
    with open_raster(scores) as dataset:
        grid = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
        shapes, top = find_components(dataset, grid, threshold=threshold, connectivity=predict.connectivity)
        geometry = _on_the_map(shapes, grid)
        area = _areas_m2(geometry, shapes, grid)
        with np.errstate(invalid="ignore"):
            kept = ~(area < predict.min_area_m2)
        if predict.min_area_m2 and np.isnan(area).any():
            log.warning("%s: areas in square metres are not known, so no small polygons are left out", scores.name)
        shapes, geometry, area = shapes[kept], geometry[kept], area[kept]
        figures = Figures(shapes, grid, (threshold, top), max(class_names, default=-1) + 1 if class_names else 0)
        if classes is None:
            measure(dataset, None, grid, figures)
        else:
            with open_raster(classes) as class_dataset:
                if class_dataset.shape != dataset.shape:
                    raise DataError(
                        f"{classes}: its size differs from that of {scores}; give the classes of that scene"
                    )
                measure(dataset, class_dataset, grid, figures)
    columns = figures.columns(class_names if classes is not None else None)
    columns |= {"area_m2": area, "model": [model] * len(area)}
    typed = {name: Series(columns[name], dtype=kind) for name, kind in COLUMNS.items()}
    frame = GeoDataFrame(typed, geometry=geometry, crs=_pyproj(grid))
    order = np.lexsort((figures.boxes[:, 1], figures.boxes[:, 0], -figures.high))
    return frame.iloc[order].reset_index(drop=True)


def write_anomalies(frame: GeoDataFrame, out: Path, *, threshold: float, overwrite: bool) -> None:
    """Write polygons to .gpkg (styled), .geojson (in WGS84), .parquet or .fgb, whole or not at all.

    A frame without rows gives a valid empty layer with all columns. Columns beyond those of `anomalies` are kept.

    Raises:
        OutputError: if the ending is another, the file exists, or it cannot be written.
    """
    if out.suffix not in OUTPUT_SUFFIXES:
        raise OutputError(f"{out}: polygons are written as {', '.join(OUTPUT_SUFFIXES)}; choose one of these endings")
    check_output(out, overwrite=overwrite)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write(frame, staging / out.name, threshold)
        os.replace(staging / out.name, out)
    except (OSError, RuntimeError, ValueError, *qgis.FAILURES, *_PYOGRIO_FAILURES) as error:
        raise OutputError(
            f"{out}: cannot be written ({reason(error)}); free space on that disk, or choose another place"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


_PYOGRIO_FAILURES = (
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    pyogrio.errors.FeatureError,
    pyogrio.errors.GeometryError,
    pyogrio.errors.FieldError,
)


def _write(frame: GeoDataFrame, path: Path, threshold: float) -> None:
    if path.suffix == ".geojson" and frame.crs is not None:
        try:
            frame = frame.to_crs("OGC:CRS84")
        except ProjError as error:
            raise ValueError(f"not all of it lies on the globe, {error}; use .gpkg") from None
        if not np.isfinite(frame.total_bounds).all() and len(frame):
            raise ValueError("not all of it lies on the globe; use .gpkg, which keeps the scene's CRS")
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
        if len(geopandas.read_parquet(path, columns=["geometry"])) != len(frame):
            raise ValueError("the file came out short")
        return
    options: dict[str, Any] = {"RFC7946": "YES"} if path.suffix == ".geojson" and frame.crs is not None else {}
    version = {"VERSION": "1.2"} if path.suffix == ".gpkg" else {}  # the newest that QGIS 3.22 reads in full
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # said when the scene was read
        pyogrio.write_dataframe(
            frame,
            path,
            layer=LAYER,
            driver=_DRIVERS[path.suffix],
            geometry_type="MultiPolygon",
            promote_to_multi=True,
            dataset_options=version,
            layer_options=options,
        )
    if path.suffix == ".gpkg":
        qgis.embed_style(path, LAYER, geometry_column="geom", qml=qgis.polygon_style(threshold), name=LAYER)
    layer = None if path.suffix == ".geojson" else LAYER
    if pyogrio.read_info(path, layer=layer, force_feature_count=True)["features"] != len(frame):
        raise ValueError("the file came out short")


def _on_the_map(shapes: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Polygons in pixel coordinates brought to CRS units."""
    t = Affine.scale(1, -1) if grid.transform.is_identity else grid.transform
    matrix, shift = np.array([[t.a, t.b], [t.d, t.e]]), np.array([t.c, t.f])
    placed: NDArray[Any] = shapely.transform(shapes, lambda xy: xy @ matrix.T + shift)
    return placed


def _pyproj(grid: Grid) -> pyproj.CRS | None:
    return None if grid.crs is None else pyproj.CRS.from_wkt(grid.crs.to_wkt())


def _areas_m2(geometry: NDArray[Any], shapes: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """Area of each polygon in square metres, on the ellipsoid; NaN without CRS or off the globe."""
    area = np.full(len(geometry), np.nan)
    crs = _pyproj(grid)
    if crs is None or not len(geometry):
        return area
    globe, geod = crs.geodetic_crs, crs.get_geod()
    if globe is None or geod is None:  # a local CRS is flat by definition
        unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else np.nan
        return np.asarray(shapely.area(shapes) * abs(grid.transform.determinant) * unit**2, np.float64)
    to_degrees = pyproj.Transformer.from_crs(crs, globe, always_xy=True)
    area[:] = 0
    parts, polygon = shapely.get_parts(geometry, return_index=True)
    rings, part = shapely.get_rings(shapely.segmentize(parts, _EDGE_PX * max(grid.pixel_size)), return_index=True)
    shell = np.diff(part, prepend=-1) > 0  # of the rings of a part the first is its shell, the others are holes
    coordinates, starts = shapely.get_coordinates(rings), np.cumsum([0, *shapely.get_num_coordinates(rings)])
    x, y = to_degrees.transform(coordinates[:, 0], coordinates[:, 1])
    for ring, (start, end) in enumerate(pairwise(starts)):
        size = abs(geod.polygon_area_perimeter(x[start : end - 1], y[start : end - 1])[0])
        size = size if np.isfinite(x[start:end]).all() else np.nan
        area[polygon[part[ring]]] += size if shell[ring] else -size
    return area
