"""Rasters of noise at places of every kind: north-up, rotated, in degrees or feet, without a CRS."""

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS

UTM = CRS.from_epsg(32633)
NORTH_UP = Affine(0.25, 0, 500000, 0, -0.25, 4500000)
CUSTOM = CRS.from_proj4("+proj=tmerc +lat_0=47.123 +lon_0=11.456 +k=0.99987 +x_0=12345 +ellps=bessel +units=us-ft")
PLACES = {
    "north-up": (NORTH_UP, UTM),
    "rotated": (Affine(0.2, 0.1, 500000, 0.1, -0.2, 4500000), UTM),
    "south-up": (Affine(0.25, 0, 500000, 0, 0.25, 4500000), UTM),
    "degrees": (Affine(1e-5, 0, 11.1, 0, -1e-5, 47.3), CRS.from_epsg(4326)),
    "feet, no EPSG code": (Affine(0.8, 0, 1234.5, 0, -0.8, 6789.25), CUSTOM),
    "photo": (Affine.identity(), None),
    "no CRS": (NORTH_UP, None),
}


def write_raster(path, array, *, place=(NORTH_UP, UTM), mask=None, **options):
    count, height, width = array.shape
    transform, crs = place
    shape = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    profile = {"driver": "GTiff", "crs": crs, "transform": transform, **shape, **options}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dataset:
        dataset.write(array)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def noise(*shape, seed=0, high=255):
    return np.random.default_rng(seed).integers(1, high, shape)
