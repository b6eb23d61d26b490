"""Rasters of pixels, and of scores as `predict` puts them together, written on the spot."""

import numpy as np
import rasterio
from affine import Affine

from geood.geo.cog.assembly import Assembly
from geood.geo.cog.encoding import encode_tile
from geood.geo.grid import tile_grid

UTM = "EPSG:32633"
HALF_METRE = Affine(0.5, 0, 500_000.25, 0, -0.5, 4_649_776.75)


def write_raster(path, array, *, crs=UTM, transform=HALF_METRE, nodata=None, **profile):
    """Write an array (C, H, W) or (H, W) as a GeoTIFF and return its path."""
    array = array[None] if array.ndim == 2 else array
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=array.dtype,
        crs=crs,
        transform=transform,
        nodata=nodata,
        **profile,
    ) as file:
        file.write(array)
    return path


def assemble(out, grid, *, tags, statistics, **form):
    """Put the COG of all chunks of a journal together at once."""
    with Assembly(out, grid, **form) as assembly:
        assembly.finish(tags=tags, statistics=statistics)


def write_torn(path, array, *, torn, **profile):
    """Write an array (C, H, W) in blocks of 64 x 64 pixels, the blocks (row, column) in `torn` without their bytes."""
    write_raster(path, array, tiled=True, blockxsize=64, blockysize=64, compress="deflate", **profile)
    with rasterio.open(path) as file:
        tags = [
            [file.get_tag_item(f"BLOCK_{item}_{x}_{y}", "TIFF", bidx=1) for item in ("OFFSET", "SIZE")] for y, x in torn
        ]
    held = bytearray(path.read_bytes())
    for offset, size in ((int(offset), int(size)) for offset, size in tags):
        held[offset : offset + size] = bytes(size)
    path.write_bytes(held)
    return path


def write_scores(path, grid, array, **tags):
    """A score raster (float32) or class raster (uint8) of an array, put together as `predict` does it."""
    kinds = array.dtype == np.uint8
    pixels = {"nodata": 255.0 if kinds else float("nan"), "overview": "mode" if kinds else "average"}
    journal, places = path.with_name(f"{path.name}.journal"), {}
    with journal.open("wb") as file:
        for number, tile in enumerate(tile_grid(grid.height, grid.width, tile_px=1024, halo_px=0)):
            chunk = encode_tile(np.ascontiguousarray(array[tile.write.slices]), tile_px=1024, **pixels)
            places[number] = file.tell(), len(chunk)
            file.write(chunk)
    assemble(
        path,
        grid,
        journal=journal,
        places=places,
        tile_px=1024,
        dtype=array.dtype.name,
        bands=["class" if kinds else "anomaly score"],
        tags={"GEOOD_MODEL": "abc", **tags},
        statistics={},
        **pixels,
    )
    journal.unlink()
    return path


def picture(height, width, *, bands=3, seed=0, dtype="uint8", high=255):
    """Smooth random digital numbers (bands, height, width), from 1 up."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((bands, height // 8 + 2, width // 8 + 2))
    fine = np.kron(coarse, np.ones((1, 8, 8)))[:, :height, :width] + rng.random((bands, height, width)) * 0.2
    return (1 + fine / 1.2 * (high - 1)).astype(dtype)


def write_holed_scene(folder, side=700):
    """Write a scene of 121 tiles of 64 pixels (64 tiles for a side of 500) with a hole in it."""
    array = picture(side, side)
    array[:, side * 3 // 14 : side // 2, side // 7 : side * 9 // 14] = 0
    return write_raster(folder / "scene.tif", array, nodata=0)
