"""Labels of a scene, as class ids on the scene's own pixel grid.

Rasters of ids may have any grid and CRS: they are warped onto the scene, nearest neighbour, window by window. One
vector file is rasterized, window by window, from a class attribute; where its shapes overlap the later one counts. A
pixel that no label reaches is 255. A class has no meaning here: ids are handed on as they stand in the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import geopandas
import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio.enums import ColorInterp, Resampling
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from geood.errors import DataError
from geood.gdal import GDAL_FAILURES, open_raster, rasterio_window, reading, reason
from geood.grid import Grid, Window

NO_LABEL = 255
VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet")


class _Source(Protocol):
    def read(self, window: Window) -> NDArray[np.int64]: ...


class LabelReader:
    """Class ids of a scene, read by windows; a context manager, made with `open_labels`."""

    def __init__(self, sources: Sequence[_Source], files: ExitStack) -> None:
        self._sources, self._files = sources, files

    def read(self, window: Window) -> NDArray[np.int64]:
        """Ids (h, w) of a window of the scene's grid, 255 where there is no label; the first file that has one counts.

        Raises:
            DataError: if a file cannot be read, or holds numbers that are not whole.
        """
        ids = self._sources[0].read(window)
        for source in self._sources[1:]:
            ids = np.where(ids == NO_LABEL, source.read(window), ids)
        return ids

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_labels(paths: Sequence[str | Path], grid: Grid, *, attribute: str | None = None) -> LabelReader:
    """Open the labels of a scene with this grid: rasters of class ids, or one vector file with a class `attribute`.

    Files that lie elsewhere are left out. A raster without CRS, or for a scene without one, must have the scene's size.

    Raises:
        DataError: if a file is missing or unreadable, holds no ids, lacks the attribute, or if none overlaps the scene.
    """
    files = [Path(p) for p in paths]
    if not files:
        raise DataError("no labels for this scene; give rasters of class ids or one vector file")
    vectors = [p for p in files if p.suffix.lower() in VECTOR_SUFFIXES]
    if vectors and len(files) > 1:
        raise DataError(f"{vectors[0]}: vector labels come as one file, got {len(files)}; merge them first")
    if vectors:
        return LabelReader([_Shapes(vectors[0], grid, attribute)], ExitStack())
    with ExitStack() as opened:
        rasters = [_Raster(path, grid, opened) for path in files]
        near = [r for r in rasters if r.overlaps]
        if not near:
            names = ", ".join(p.name for p in files[:3])
            raise DataError(
                f"{names}: these labels do not overlap the scene, which spans {_span(grid.bounds)} in "
                f"{_name(grid.crs)}; give the labels of this scene, or check their CRS"
            )
        return LabelReader(near, opened.pop_all())


class _Raster:
    """One raster of ids, seen on the scene's grid."""

    def __init__(self, path: Path, grid: Grid, opened: ExitStack) -> None:
        self.path, self._grid = path, grid
        dataset: Any = opened.enter_context(open_raster(path))
        bands = [i for i in dataset.indexes if dataset.colorinterp[i - 1] != ColorInterp.alpha]
        if len(bands) != 1:
            raise DataError(f"{path}: has {len(bands)} bands, but labels are one band of class ids; save the ids alone")
        if "complex" in dataset.dtypes[0]:
            raise DataError(f"{path}: holds complex numbers, but labels are whole class ids")
        self._band = bands[0]
        own = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
        same_size = (own.height, own.width) == (grid.height, grid.width)
        self.overlaps = True
        if own.crs is None or grid.crs is None:
            if not same_size:
                raise DataError(
                    f"{path}: {own.height} x {own.width} pixels for a scene of {grid.height} x {grid.width}, and "
                    "without a CRS on both they can only be matched pixel by pixel; georeference them, or give labels "
                    "of that size"
                )
        elif own != grid:
            self.overlaps = _overlap(own, grid)
            with reading(path):
                dataset = opened.enter_context(_warped(dataset, grid)) if self.overlaps else dataset
        self._dataset = dataset

    def read(self, window: Window) -> NDArray[np.int64]:
        inner = window.within(self._grid.window)
        out = np.full((window.height, window.width), NO_LABEL, np.int64)
        if not inner.height or not inner.width:
            return out
        with reading(self.path):
            ids = self._dataset.read(self._band, window=rasterio_window(inner))
            known = self._dataset.dataset_mask(window=rasterio_window(inner)) > 0
        if ids.dtype.kind == "f":
            known &= np.isfinite(ids)
            if (ids[known] % 1).any():
                raise DataError(
                    f"{self.path}: holds fractions such as {ids[known][ids[known] % 1 > 0][0]}, not class ids"
                )
        ids = np.where(known, ids, NO_LABEL).astype(np.int64)
        out[inner.row - window.row :, inner.col - window.col :][: inner.height, : inner.width] = ids
        return out


class _Shapes:
    """The shapes of one vector file that lie on the scene."""

    def __init__(self, path: Path, grid: Grid, attribute: str | None) -> None:
        self.path, self._grid = path, grid
        frame = _read_shapes(path, grid, _attribute(path, attribute))
        column = frame.columns[0]
        frame = frame[frame[column].notna() & frame.geometry.notna() & ~frame.geometry.is_empty]
        if not len(frame):
            raise DataError(
                f"{path}: no shape with a {column} overlaps the scene, which spans {_span(grid.bounds)} in "
                f"{_name(grid.crs)}; give the labels of this scene, or check their CRS"
            )
        try:
            ids = frame[column].to_numpy(np.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"{path}: {column} is text ({frame[column].iloc[0]!r}), but a class id is a number"
            ) from None
        if (ids % 1).any() or ids.min() < 0 or ids.max() > NO_LABEL:
            raise DataError(f"{path}: {column} has values from {ids.min():g} to {ids.max():g}; ids are whole, 0 to 254")
        self._ids, self._shapes = ids.astype(np.int32), frame.geometry.to_numpy()
        self._index = shapely.STRtree(self._shapes)

    def read(self, window: Window) -> NDArray[np.int64]:
        place = self._grid[window]
        near = np.sort(self._index.query(shapely.box(*place.bounds)))
        shape = (window.height, window.width)
        if not near.size:
            return np.full(shape, NO_LABEL, np.int64)
        burnt = [(self._shapes[i], int(self._ids[i])) for i in near]
        with reading(self.path):
            ids = rasterize(burnt, shape, fill=NO_LABEL, transform=place.transform, dtype="int32")
        return np.asarray(ids, np.int64)


def _warped(dataset: Any, grid: Grid) -> WarpedVRT:
    """A raster on another grid, nearest neighbour; outside it the mask is 0."""
    bare = dataset.nodata is None and not any(c == ColorInterp.alpha for c in dataset.colorinterp)
    return WarpedVRT(
        dataset,
        crs=grid.crs,
        transform=grid.transform,
        height=grid.height,
        width=grid.width,
        resampling=Resampling.nearest,
        tolerance=1e-3,  # pixels; GDAL takes no 0
        add_alpha=bare,
    )


def _overlap(own: Grid, grid: Grid) -> bool:
    try:
        there = transform_bounds(grid.crs, own.crs, *grid.bounds)
    except GDAL_FAILURES:
        return False
    return bool(shapely.box(*there).intersection(shapely.box(*own.bounds)).area > 0)


def _attribute(path: Path, attribute: str | None) -> str:
    """The class attribute's name, seen to be in the file."""
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise DataError(f"{path}: no such file; " + (f"did you mean {near[0]}?" if near else "give an existing file"))
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            names = [n for n in pyarrow.parquet.read_schema(path).names if n != "geometry"]
        else:
            names = list(pyogrio.read_info(path)["fields"])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a vector file ({reason(error)}); copy it again") from None
    if attribute in names:
        return str(attribute)
    listed = f"it has {', '.join(names)}" if names else "it has none"
    if attribute is None:
        raise DataError(f"{path}: which attribute holds the class id? set data.label_attribute; {listed}")
    near = difflib.get_close_matches(attribute, names, n=1)
    raise DataError(f"{path}: has no attribute {attribute}; " + (f"did you mean {near[0]}? " if near else "") + listed)


def _read_shapes(path: Path, grid: Grid, attribute: str) -> geopandas.GeoDataFrame:
    """Shapes with the attribute, in the scene's CRS, those near the scene."""
    try:
        if path.suffix.lower() == ".parquet":
            frame = geopandas.read_parquet(path, columns=[attribute, "geometry"])
        else:
            frame = geopandas.read_file(path, columns=[attribute])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a vector file ({reason(error)}); copy it again") from None
    if (frame.crs is None) != (grid.crs is None):
        bare, other = (
            ("the labels have", "the scene has") if frame.crs is None else ("the scene has", "the labels have")
        )
        raise DataError(f"{path}: {bare} no CRS, {other} one; assign the missing one, for example with gdal_edit")
    if grid.crs is not None:
        try:
            frame = frame.to_crs(pyproj.CRS.from_wkt(grid.crs.to_wkt()))
        except ProjError as error:
            raise DataError(f"{path}: cannot be brought to the CRS of the scene ({reason(error)})") from None
    return frame.cx[slice(*grid.bounds[::2]), slice(*grid.bounds[1::2])]


def _span(bounds: Sequence[float]) -> str:
    return f"x {bounds[0]:.7g} to {bounds[2]:.7g}, y {bounds[1]:.7g} to {bounds[3]:.7g}"


def _name(crs: Any) -> str:
    if crs is None:
        return "pixels (no CRS)"
    return str(pyproj.CRS.from_wkt(crs.to_wkt()).name)
