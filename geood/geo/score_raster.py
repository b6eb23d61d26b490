"""Reading of score rasters: their GEOOD_* tags, and their scores as a lazy xarray array.

They are written by `cog`. This module knows nothing of tensors, models or polygons.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from geood.errors import DataError
from geood.geo.gdal import open_raster

if TYPE_CHECKING:
    import xarray


def read_tags(path: str | Path, *, dtype: str = "float32") -> dict[str, str]:
    """Read the GEOOD_* tags of a score raster, or with dtype "uint8" of a class raster.

    Raises:
        DataError: the file is missing, cannot be read, or is not a score raster of geood.
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
    """Open a score raster as an xarray array, read lazily by Dask chunks.

    Args:
        path: the `.tif` that `geood predict` wrote.
        chunks: side of a chunk, pixels.

    Returns:
        Scores (y, x), float32, higher is more anomalous, NaN where there is no data; with coordinates in CRS units, the
        CRS under `.rio.crs`, and the raster's tags as attributes.

    Raises:
        DataError: the file cannot be read or is not a score raster of geood.

    Example:
        >>> import geood
        >>> scores = geood.open_scores("scores.tif")
        >>> scores.dims, scores.shape, str(scores.dtype)
        (('y', 'x'), (96, 128), 'float32')
        >>> share = float((scores > float(scores.attrs["GEOOD_THRESHOLD"])).mean())
        >>> 0 <= share <= 1
        True
    """
    import rioxarray

    path = Path(path)
    tags = read_tags(path)
    array: Any = rioxarray.open_rasterio(path, chunks={"y": chunks, "x": chunks}, masked=True)
    array = array.squeeze("band", drop=True).rename("score")
    array.attrs = {**tags, "long_name": "anomaly score"}
    scores: xarray.DataArray = array
    return scores
