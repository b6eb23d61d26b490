"""Labels of a scene as class ids on the scene's pixel grid, read from rasters or one vector file.

Rasters of ids may have any grid and CRS: they are warped onto the scene's grid, nearest neighbour, window by window. A
vector file is rasterized window by window from a class attribute; of overlapping shapes the later one counts. Pixels
without a label are 255. Class ids are passed on as they are in the file; their meaning is not known here. Training and
evaluation share the rules for label files: `open_id_raster`, `read_ids` and `read_shapes`.
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
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from geood.constants import IGNORE
from geood.errors import DataError
from geood.geo.gdal import GDAL_FAILURES, open_raster, rasterio_window, reading, reason
from geood.geo.grid import Grid, Window

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet")
SEAM = 0.01  # adjacent rasters may overlap by this fraction of the smaller one: a seam, or error of reprojection


class _Source(Protocol):
    def read(self, window: Window) -> NDArray[np.int64]: ...


class LabelReader:
    """Reader of a scene's class ids by windows, and a context manager; create it with `open_labels`."""

    def __init__(self, sources: Sequence[_Source], files: ExitStack) -> None:
        self._sources, self._files = sources, files

    def read(self, window: Window) -> NDArray[np.int64]:
        """Return the class ids (h, w) of a window of the scene's grid; of several labels the first file's counts.

        Unlabelled pixels, and those outside the scene, are 255.

        Raises:
            DataError: a file cannot be read, or contains numbers that are not integers.
        """
        ids = self._sources[0].read(window)
        for source in self._sources[1:]:
            ids = np.where(ids == IGNORE, source.read(window), ids)
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

    Rasters that do not overlap the scene are skipped. If raster or scene has no CRS, their sizes must be equal.

    Raises:
        DataError: a file is missing or unreadable, contains no class ids, lacks the attribute, or none overlaps the
            scene.
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


def open_id_raster(path: Path) -> Any:
    """Open a raster with exactly one band of class ids, alpha excluded.

    Raises:
        DataError: the file cannot be read, has several bands, or is complex.
    """
    dataset = open_raster(path)
    bands, complex_numbers = _id_bands(dataset), "complex" in dataset.dtypes[0]
    if len(bands) == 1 and not complex_numbers:
        return dataset
    dataset.close()
    if complex_numbers:
        raise DataError(f"{path}: holds complex numbers, but labels are integer class ids")
    raise DataError(f"{path}: has {len(bands)} bands, but labels are one band of class ids; save only that band")


def read_ids(path: Path, dataset: Any, window: Window) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Read the class ids (h, w) of a window inside a raster of `open_id_raster`, and a mask (h, w) of valid pixels.

    Invalid pixels (masked, or NaN) get the id 255.

    Raises:
        DataError: the raster cannot be read, or contains numbers that are not integers.
    """
    band = _id_bands(dataset)[0]
    with reading(path):
        ids = dataset.read(band, window=rasterio_window(window))
        known: NDArray[np.bool_] = np.ones(ids.shape, np.bool_)
        if not _shown_transparent(dataset):
            known = dataset.read_masks(band, window=rasterio_window(window)) > 0
    if ids.dtype.kind == "f":
        known &= np.isfinite(ids)
        odd = ids[known][np.floor(ids[known]) != ids[known]]
        if odd.size:
            raise DataError(f"{path}: holds fractions such as {odd[0]}, not class ids")
    return np.where(known, ids, IGNORE).astype(np.int64), known


def read_shapes(path: Path, attribute: str | None) -> geopandas.GeoDataFrame:
    """Read the shapes of a vector file that have a class id: columns `id` (0 to 255, int32), `geometry` (file's CRS).

    Raises:
        DataError: the file is missing or unreadable, lacks the attribute, or its values are not class ids.
    """
    frame = _read_frame(path, attribute)
    frame = frame[frame[attribute].notna() & frame.geometry.notna() & ~frame.geometry.is_empty]
    if frame.empty:
        raise DataError(
            f"{path}: no shape has both a geometry and a value of {attribute}; draw some, or choose another"
        )
    try:
        ids = frame[attribute].to_numpy().astype(np.float64)
        wrong = ~((np.floor(ids) == ids) & (ids >= 0) & (ids <= IGNORE))
    except (TypeError, ValueError):
        wrong = np.ones(len(frame), np.bool_)
    if wrong.any():
        got = frame[attribute].to_numpy()[wrong][0]
        raise DataError(
            f"{path}: attribute {attribute} must hold class ids, integers from 0 to 254 (255: unlabelled); got "
            + (f"{got:g}" if isinstance(got, (int, float, np.number)) else repr(got))
        )
    return geopandas.GeoDataFrame({"id": ids.astype(np.int32)}, geometry=frame.geometry.to_numpy(), crs=frame.crs)


def why_not_shared(labels: Sequence[Path]) -> str | None:
    """Return the reason why label rasters cannot be used side by side on one scene; None if they can.

    They can if all are rasters with a CRS and no two overlap by more than `SEAM`, so a pixel has at most one label.

    Raises:
        DataError: a file cannot be read as a raster of class ids.
    """
    grids: list[Grid] = []
    for path in labels:
        if path.suffix.lower() in VECTOR_SUFFIXES:
            return f"{path.name} is a vector file among several files"
        with open_id_raster(path) as dataset:
            grids.append(Grid(dataset.height, dataset.width, dataset.transform, dataset.crs))
        if grids[-1].crs is None:
            return f"{path.name} has no CRS"
        for other, grid in zip(labels, grids[:-1], strict=False):
            if _shared_area(grid, grids[-1]) > SEAM * min(_area(grid.bounds), _area(_bounds_in(grids[-1], grid))):
                return f"{other.name} and {path.name} cover the same ground"
    return None


class _Raster:
    """Raster of class ids, warped onto the scene's grid if it has another one."""

    def __init__(self, path: Path, grid: Grid, opened: ExitStack) -> None:
        self.path, self._grid = path, grid
        dataset: Any = opened.enter_context(open_id_raster(path))
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
            self.overlaps = _shared_area(own, grid) > 0
            with reading(path):
                dataset = opened.enter_context(_warped(dataset, grid)) if self.overlaps else dataset
        self._dataset = dataset

    def read(self, window: Window) -> NDArray[np.int64]:
        inner = window.within(self._grid.window)
        out = np.full((window.height, window.width), IGNORE, np.int64)
        if not inner.height or not inner.width:
            return out
        ids, _ = read_ids(self.path, self._dataset, inner)
        out[inner.row - window.row :, inner.col - window.col :][: inner.height, : inner.width] = ids
        return out


class _Shapes:
    """Shapes of one vector file that lie on the scene, rasterized window by window."""

    def __init__(self, path: Path, grid: Grid, attribute: str | None) -> None:
        self.path, self._grid = path, grid
        frame = _on_scene(read_shapes(path, attribute), grid, path)
        if not len(frame):
            raise DataError(
                f"{path}: no shape with a {attribute} overlaps the scene, which spans {_span(grid.bounds)} in "
                f"{_name(grid.crs)}; give the labels of this scene, or check their CRS"
            )
        self._ids, self._shapes = frame["id"].to_numpy(), frame.geometry.to_numpy()
        self._index = shapely.STRtree(self._shapes)

    def read(self, window: Window) -> NDArray[np.int64]:
        target = self._grid[window]
        near = np.sort(self._index.query(shapely.box(*target.bounds)))
        shape = (window.height, window.width)
        if not near.size:
            return np.full(shape, IGNORE, np.int64)
        burnt = [(self._shapes[i], int(self._ids[i])) for i in near]
        with reading(self.path):
            ids = rasterize(burnt, shape, fill=IGNORE, transform=target.transform, dtype="int32")
        return np.asarray(ids, np.int64)


def _warped(dataset: Any, grid: Grid) -> WarpedVRT:
    """Warp a raster onto another grid, nearest neighbour; outside its extent the mask is 0."""
    bare = dataset.nodata is None and not any(c == ColorInterp.alpha for c in dataset.colorinterp)
    return WarpedVRT(
        dataset,
        crs=grid.crs,
        transform=grid.transform,
        height=grid.height,
        width=grid.width,
        resampling=Resampling.nearest,
        tolerance=1e-3,  # pixels; GDAL does not accept 0
        add_alpha=bare,
    )


def _id_bands(dataset: Any) -> list[int]:
    return [i for i in dataset.indexes if dataset.colorinterp[i - 1] != ColorInterp.alpha]


def _shown_transparent(dataset: Any) -> bool:
    """Check whether the only mask of a PNG is a transparent colour, which is how it is shown, not what it holds.

    GDAL calls such a colour the nodata value; PNG itself has none, a file beside it may.
    """
    if dataset.driver != "PNG" or dataset.nodata is None:
        return False
    beside = [Path(name) for name in dataset.files if name.endswith(".aux.xml")]
    declared = any("<NoDataValue>" in path.read_text(encoding="utf-8", errors="replace") for path in beside)
    return not declared and not any(MaskFlags.per_dataset in flags for flags in dataset.mask_flag_enums)


def _bounds_in(grid: Grid, other: Grid) -> tuple[float, float, float, float]:
    """Transform the bounds of a grid to the CRS of another; an empty box at the origin if that fails."""
    try:
        xmin, ymin, xmax, ymax = transform_bounds(grid.crs, other.crs, *grid.bounds)
    except GDAL_FAILURES:
        return (0.0, 0.0, 0.0, 0.0)
    return xmin, ymin, xmax, ymax


def _shared_area(own: Grid, grid: Grid) -> float:
    """Return the area, in squared CRS units of `own`, in which the bounds of two grids overlap."""
    return float(shapely.box(*_bounds_in(grid, own)).intersection(shapely.box(*own.bounds)).area)


def _area(bounds: tuple[float, float, float, float]) -> float:
    return (bounds[2] - bounds[0]) * (bounds[3] - bounds[1])


def _read_frame(path: Path, attribute: str | None) -> geopandas.GeoDataFrame:
    """Read a vector file after checking that it has the class attribute and geometries."""
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise DataError(f"{path}: no such file; " + (f"did you mean {near[0]}?" if near else "give an existing file"))
    frame: geopandas.GeoDataFrame | None = None
    try:
        if path.suffix.lower() == ".parquet":
            frame = geopandas.read_parquet(path)
            names = [str(c) for c in frame.columns if c != frame.geometry.name]
        else:
            names = list(pyogrio.read_info(path)["fields"])
            if attribute in names:
                frame = geopandas.read_file(path, columns=[attribute])
    except Exception as error:  # pyogrio, pyarrow, shapely and geopandas each have their own
        raise DataError(f"{path}: cannot be read as a vector file ({reason(error)}); copy it again") from None
    if attribute not in names:
        near = difflib.get_close_matches(attribute or "", names, n=1)
        came = "which attribute holds the class id?" if attribute is None else f"has no attribute {attribute};"
        raise DataError(
            f"{path}: {came} {f'did you mean {near[0]}? ' if near else ''}set data.label_attribute to one of: "
            f"{', '.join(names) or '(it has none)'}"
        )
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise DataError(f"{path}: is a table without geometry; give a layer of polygons")
    return frame


def _on_scene(frame: geopandas.GeoDataFrame, grid: Grid, path: Path) -> geopandas.GeoDataFrame:
    """Return the shapes whose bounding boxes meet the scene's, in the scene's CRS."""
    if (frame.crs is None) != (grid.crs is None):
        bare, other = (
            ("the labels have", "the scene has") if frame.crs is None else ("the scene has", "the labels have")
        )
        raise DataError(f"{path}: {bare} no CRS, {other} one; assign the missing one, for example with gdal_edit")
    if grid.crs is not None:
        try:
            frame = frame.to_crs(pyproj.CRS.from_wkt(grid.crs.to_wkt()))
        except ProjError as error:
            raise DataError(f"{path}: cannot be transformed to the CRS of the scene ({reason(error)})") from None
    return frame.cx[slice(*grid.bounds[::2]), slice(*grid.bounds[1::2])]


def _span(bounds: Sequence[float]) -> str:
    return f"x {bounds[0]:.7g} to {bounds[2]:.7g}, y {bounds[1]:.7g} to {bounds[3]:.7g}"


def _name(crs: Any) -> str:
    if crs is None:
        return "pixels (no CRS)"
    return str(pyproj.CRS.from_wkt(crs.to_wkt()).name)
