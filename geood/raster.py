"""Score rasters: written, checked, opened.

Scores are written by one writer into a sparse tiled GeoTIFF, then copied to a COG with overviews and statistics,
because GDAL's COG driver opened for writing would hold the whole raster in memory. A full disk can pass GDAL in silence
(a lost tile of a sparse file reads as no data), so every file is checked block by block after it is closed. This room
knows nothing of tensors, models or polygons.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray

from geood.errors import DataError, OutputError
from geood.gdal import compression, open_raster, pieces, rasterio_window, writing
from geood.grid import Grid, Window

if TYPE_CHECKING:
    import xarray

NO_CLASS = 255  # in class rasters: no data
WORK_BLOCK = 256  # divides the default tile, so that no block of the working file is compressed twice
COG_BLOCK = 512


class ScoreWriter:
    """The one writer of a sparse, tiled, compressed single-band GeoTIFF; a context manager.

    Blocks that are never written, or hold no data only, take no space and read as `nodata`. Leaving the context closes
    the file and checks that every block that was written lies on the disk; after an error the file is removed.

    Raises:
        OutputError: if the file cannot be made or written, or the disk is full (also on leaving).
    """

    def __init__(self, path: Path, grid: Grid, *, dtype: str = "float32", nodata: float = float("nan")) -> None:
        self.path, self.grid, self.nodata = path, grid, nodata
        self._written = np.zeros((-(-grid.height // WORK_BLOCK), -(-grid.width // WORK_BLOCK)), np.bool_)
        shape = {"height": grid.height, "width": grid.width, "count": 1, "dtype": dtype, "nodata": nodata}
        place = {"crs": grid.crs, "transform": None if grid.transform.is_identity else grid.transform}
        blocks = {"tiled": True, "blockxsize": WORK_BLOCK, "blockysize": WORK_BLOCK, "SPARSE_OK": True}
        packing = {"BIGTIFF": "IF_SAFER", "compress": compression(), "predictor": 3 if dtype == "float32" else 1}
        packing |= {"ZSTD_LEVEL": 1, "ZLEVEL": 1}  # this file is short-lived: fast rather than small
        with writing(path):
            self._dataset = rasterio.open(path, "w", driver="GTiff", **shape, **place, **blocks, **packing)

    def write(self, window: Window, array: NDArray[Any]) -> None:
        """Write the pixels (h, w) of a window that lies in the grid.

        Raises:
            OutputError: if that fails.
            ValueError: if array and window differ in shape or the window overhangs the grid.
        """
        if array.shape != (window.height, window.width) or window.within(self.grid.window) != window:
            raise ValueError(f"an array of {array.shape} does not fit {window} of {self.grid.height, self.grid.width}")
        with writing(self.path):
            self._dataset.write(array, 1, window=rasterio_window(window))
        data = np.isfinite(array) if np.isnan(self.nodata) else array != self.nodata
        rows = [0, *range(-window.row % WORK_BLOCK or WORK_BLOCK, window.height, WORK_BLOCK)]
        cols = [0, *range(-window.col % WORK_BLOCK or WORK_BLOCK, window.width, WORK_BLOCK)]
        touched = np.logical_or.reduceat(np.logical_or.reduceat(data, rows, axis=0), cols, axis=1)
        row, col = window.row // WORK_BLOCK, window.col // WORK_BLOCK
        self._written[row : row + len(rows), col : col + len(cols)] |= touched

    def close(self) -> None:
        """Close the file and check it."""
        with writing(self.path):
            self._dataset.close()
            _check_blocks(self.path, self._written)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.close()
        except OutputError:
            self.path.unlink(missing_ok=True)
            if kind is None:
                raise
        if kind is not None:
            self.path.unlink(missing_ok=True)


def finish_cog(working: Path, out: Path, *, description: str, tags: dict[str, str], overview: str) -> None:
    """Copy a working raster to a cloud-optimized GeoTIFF with overviews, statistics, a band description and tags.

    `overview` is GDAL's resampling, "average" or "mode". `out` appears whole or not at all, and is replaced if it
    exists; `working` gets the same statistics and tags and stays. Memory is bounded for any size.

    Raises:
        OutputError: if the copy cannot be written; nothing is left behind then.
    """
    with writing(out):
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            with rasterio.open(working, "r+") as dataset:
                dataset.set_band_description(1, description)
                dataset.update_tags(1, **_statistics(dataset))
                dataset.update_tags(**tags)
                predictor = "YES" if dataset.dtypes[0] == "float32" else "NO"
            options = {"COMPRESS": compression(), "PREDICTOR": predictor, "LEVEL": 3, "BLOCKSIZE": COG_BLOCK}
            options |= {"BIGTIFF": "IF_SAFER", "OVERVIEW_RESAMPLING": overview.upper(), "NUM_THREADS": "ALL_CPUS"}
            rasterio.shutil.copy(working, staging / out.name, driver="COG", **options)
            _check_blocks(staging / out.name)
            os.replace(staging / out.name, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def check_output(path: str | Path, *, overwrite: bool) -> None:
    """See that a file can be written, before work is spent on it.

    Raises:
        OutputError: if it exists and `overwrite` is not set, is a folder, or its folder is missing or not writable.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; add --overwrite to replace it, or choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; make it first, or choose another place")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OutputError(f"{path}: its folder cannot be written to ({error.strerror}); choose another place") from None


def read_tags(path: str | Path, *, dtype: str = "float32") -> dict[str, str]:
    """The GEOOD_* tags of a score raster (with dtype "uint8": of a class raster).

    Raises:
        DataError: if the file is missing, cannot be read, or is no score raster of geood.
    """
    path = Path(path)
    with open_raster(path) as dataset:
        tags = {k: v for k, v in dataset.tags().items() if k.startswith("GEOOD_")}
        if not tags or dataset.count != 1 or dataset.dtypes[0] != dtype:
            raise DataError(
                f"{path}: not a score raster of geood ({dataset.count} bands of {dataset.dtypes[0]}, "
                f"{len(tags)} GEOOD_ tags); give the .tif that `geood predict` wrote"
            )
    return tags


def open_scores(path: str | Path, chunks: int = 1024) -> xarray.DataArray:
    """A score raster as an array (y, x) with coordinates and CRS, read lazily in dask chunks; NaN is no data.

    Raises:
        DataError: if the file cannot be read or is no score raster of geood.
    """
    import rioxarray

    path = Path(path)
    tags = read_tags(path)
    array: Any = rioxarray.open_rasterio(path, chunks={"y": chunks, "x": chunks}, masked=True)
    array = array.squeeze("band", drop=True).rename("score")
    array.attrs = {**tags, "long_name": "anomaly score"}
    scores: xarray.DataArray = array
    return scores


def _check_blocks(path: Path, written: NDArray[np.bool_] | None = None) -> None:
    """See that blocks lie whole in a closed TIFF: those marked in `written`, or all of them at every overview."""
    size = path.stat().st_size
    with rasterio.open(path) as dataset:
        levels = len(dataset.overviews(1)) if written is None else 0
    for level in range(-1, levels):
        with rasterio.open(path, **({"OVERVIEW_LEVEL": level} if level >= 0 else {})) as dataset:
            block_height, block_width = dataset.block_shapes[0]
            shape = (-(-dataset.height // block_height), -(-dataset.width // block_width))
            for row, col in np.argwhere(np.ones(shape, np.bool_) if written is None else written):
                offset, length = (
                    int(dataset.get_tag_item(f"BLOCK_{item}_{col}_{row}", "TIFF", bidx=1) or -1)
                    for item in ("OFFSET", "SIZE")
                )
                if not 0 < offset < offset + length <= size:
                    raise OSError("the disk took only part of it")


def _statistics(dataset: Any) -> dict[str, str]:
    """Band statistics as GDAL and QGIS keep them, over all valid pixels, one window at a time (Chan et al. 1979)."""
    count, mean, squares, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    grid = Grid(dataset.height, dataset.width, Affine.identity())
    for window in pieces(grid):
        array = dataset.read(1, window=rasterio_window(window))
        values = array[np.isfinite(array)] if np.isnan(dataset.nodata) else array[array != dataset.nodata]
        if values.size:
            here, spread = float(values.mean(dtype=np.float64)), float(values.var(dtype=np.float64)) * values.size
            gap, total = here - mean, count + values.size
            squares += spread + gap**2 * count * values.size / total
            mean += gap * values.size / total
            count, low, high = total, min(low, float(values.min())), max(high, float(values.max()))
    share = {"STATISTICS_VALID_PERCENT": f"{100 * count / (dataset.height * dataset.width):.4g}"}
    if not count:
        return share
    figures = {"MINIMUM": low, "MAXIMUM": high, "MEAN": mean, "STDDEV": (squares / count) ** 0.5}
    return share | {f"STATISTICS_{name}": repr(value) for name, value in figures.items()}
