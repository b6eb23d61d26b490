"""Score rasters: whether one may be written, what it says of itself, its scores as an array.

How they are put together is the matter of `cog`. This room knows nothing of tensors, models or polygons.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from geood.errors import DataError
from geood.geo.gdal import open_raster

if TYPE_CHECKING:
    import xarray


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
