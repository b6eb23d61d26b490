"""Reading of polygons that geood wrote, the first by rank, and their place in the pixels of a scene.

A file may hold millions, so no more are read than are asked for. Formats differ in the CRS that they keep, so polygons
come back in that of a grid. What a person typed comes along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet
import pyogrio
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from geood.errors import DataError
from geood.geo.gdal import reason
from geood.geo.gpkg import snapshot
from geood.geo.grid import Grid
from geood.geo.listing import files_in
from geood.geo.ogr import local_file
from geood.geo.score_raster import read_tags
from geood.polygons.formats import OURS, is_anomalies
from geood.polygons.names import OUTPUT_SUFFIXES, raster_of

LAYER = "anomalies"
BY = ("scene", "rank")
MOST_CONDITIONS = 50  # with more scenes, their rows are chosen after reading: a condition for each is slow
_GEOJSON = pyproj.CRS("EPSG:4326")  # as readers tell it
_ONE_CRS = "polygons and scene need a CRS both or neither; give the scene that the polygons are of"
_FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
)


def read_anomalies(path: Path, *, most: int) -> geopandas.GeoDataFrame:
    """Read the polygons of a file that `predict` or `polygonize` wrote: the first `most` of each scene, by rank.

    Raises:
        DataError: the file is missing, damaged, held by a program that writes to it, or not of geood.
    """
    if path.suffix not in OUTPUT_SUFFIXES:
        raise DataError(f"{path}: no file of polygons; needed: {', '.join(OUTPUT_SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the polygons that `geood predict` wrote")
    try:
        if path.suffix == ".parquet":
            return _first(_checked(_of_first_ranks(_by_parquet(path), most), path), most)
        with ExitStack() as stack:
            open_elsewhere = path.with_name(f"{path.name}-wal").exists()
            whole = stack.enter_context(snapshot(path)) if open_elsewhere else path
            rows = _by_gdal(stack.enter_context(local_file(whole)))
            return _first(_checked(_of_first_ranks(rows, most), path), most)
    except _FAILURES as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}); copy it again, or predict again") from None


def maps_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the polygons of geood in a folder, and its score rasters that are beside none of them.

    Raises:
        DataError: the folder cannot be listed.
    """
    polygons = [file for file in files_in(folder, OUTPUT_SUFFIXES) if is_anomalies(file)]
    used = {raster_of(file) for file in polygons}
    return polygons, [file for file in files_in(folder, (".tif",)) if file not in used and _is_scores(file)]


def _is_scores(path: Path) -> bool:
    try:
        return bool(read_tags(path))
    except DataError:
        return False


class _Rows(NamedTuple):
    """Rows of a file of any format: its columns, and how they are read.

    `keys` yields all rows of the columns `BY`; `upto` reads the rows of scenes up to a rank each (None: of any scene),
    all rows if none is given.
    """

    columns: set[str]
    keys: Callable[[], Iterator[pd.DataFrame]]
    upto: Callable[[Sequence[tuple[str | None, int]]], geopandas.GeoDataFrame]


def _of_first_ranks(rows: _Rows, most: int) -> geopandas.GeoDataFrame:
    """Read the rows of the first ranks of each scene, wherever they lie in the file, and few others."""
    if "rank" not in rows.columns:
        return rows.upto(())
    if "scene" not in rows.columns:
        return rows.upto([(None, most)])
    last = _last_ranks(rows.keys(), most)
    if len(last) <= MOST_CONDITIONS:
        return rows.upto([*last.items()])
    frame = rows.upto([(None, max(last.values()))])
    return frame[frame["rank"] <= frame["scene"].map(last)].reset_index(drop=True)


def _by_gdal(plain: Path) -> _Rows:
    layers = [str(name) for name, _ in pyogrio.list_layers(plain)]
    layer = LAYER if LAYER in layers else layers[0]

    def keys() -> Iterator[pd.DataFrame]:
        with pyogrio.open_arrow(plain, layer=layer, columns=list(BY), read_geometry=False, use_pyarrow=True) as opened:
            yield from (batch.to_pandas() for batch in opened[1])

    def upto(last: Sequence[tuple[str | None, int]]) -> geopandas.GeoDataFrame:
        each = (
            f'"rank" <= {rank}' + ("" if scene is None else " AND \"scene\" = '{}'".format(scene.replace("'", "''")))
            for scene, rank in last
        )
        where = " OR ".join(f"({condition})" for condition in each)
        return pyogrio.read_dataframe(plain, layer=layer, where=where or None)

    return _Rows(set(pyogrio.read_info(plain, layer=layer)["fields"]), keys, upto)


def _by_parquet(path: Path) -> _Rows:
    def keys() -> Iterator[pd.DataFrame]:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(columns=list(BY))
        yield from (batch.to_pandas() for batch in batches)

    def upto(last: Sequence[tuple[str | None, int]]) -> geopandas.GeoDataFrame:
        filters: list[list[tuple[str, str, str | int]]] = [
            [("rank", "<=", rank)] + ([] if scene is None else [("scene", "==", scene)]) for scene, rank in last
        ]
        return geopandas.read_parquet(path, filters=filters or None)

    return _Rows(set(pyarrow.parquet.read_schema(path).names), keys, upto)


def _last_ranks(parts: Iterable[pd.DataFrame], most: int) -> dict[str, int]:
    """Return the rank of the polygon at place `most` of each scene, or of its last one; scenes may share the ranks."""
    first = pd.DataFrame()
    for part in parts:
        kept = part.assign(rank=pd.to_numeric(part["rank"], errors="coerce")).dropna()
        first = pd.concat([first, kept]).sort_values("rank", kind="stable").groupby("scene", sort=False).head(most)
    return {} if first.empty else {str(k): int(v) for k, v in first.groupby("scene")["rank"].max().items()}


def _checked(frame: geopandas.GeoDataFrame, path: Path) -> geopandas.GeoDataFrame:
    if not set(frame.columns) >= OURS:
        raise DataError(f"{path}: holds no polygons of geood; give the file that `geood predict` wrote")
    return frame


def _first(frame: geopandas.GeoDataFrame, most: int) -> geopandas.GeoDataFrame:
    """Return the first rows of each scene; without rows that a person left without a shape or a rank."""
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    if "rank" in frame:
        frame = frame.dropna(subset="rank").sort_values("rank", kind="stable")
    frame = frame.groupby("scene", sort=False).head(most) if "scene" in frame else frame.head(most)
    return frame.reset_index(drop=True)


def in_pixels(frame: geopandas.GeoDataFrame, grid: Grid) -> NDArray[Any]:
    """Return the shapes (n,) of polygons as columns and rows of a grid, which may have another CRS.

    Polygons without a CRS have degrees in GeoJSON, which knows no other: on a grid that has none they are pixels, if
    all of them lie on it.

    Raises:
        DataError: one of both has a CRS and the other has none.
    """
    shapes, crs = frame.geometry, frame.crs
    told = grid.crs is not None or crs != _GEOJSON
    if told and (crs is None) != (grid.crs is None):
        raise DataError(_ONE_CRS)
    if crs is not None and grid.crs is not None:
        shapes = shapes.to_crs(pyproj.CRS.from_user_input(grid.crs))
    back = ~(Affine.scale(1, -1) if grid.transform.is_identity else grid.transform)
    turn, move = np.array([[back.a, back.d], [back.b, back.e]]), np.array([back.c, back.f])
    placed: NDArray[Any] = shapely.transform(np.asarray(shapes.array), lambda points: points @ turn + move)
    if not told and not shapely.intersects(placed, shapely.box(0, 0, grid.width, grid.height)).all():
        raise DataError(_ONE_CRS)
    return placed


def upper_right(shapes: NDArray[Any]) -> NDArray[np.float64]:
    """Return the point (n, 2) of each shape in pixels that lies farthest up and to the right: a place for its rank.

    The corner of its box may lie in another polygon. Shapes without points have NaN.
    """
    points, of = shapely.get_coordinates(shapes, return_index=True)
    order = np.lexsort((points[:, 0] - points[:, 1], of))
    found = np.full((len(shapes), 2), np.nan)
    found[of[order]] = points[order]  # the last of each stays
    return found
