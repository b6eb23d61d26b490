"""How long does a tile's reading take, by the layout of the file?

    python benchmarks/reading.py [--side 6144] [--keep FOLDER]

The same three bands of 8 bit, written in several layouts, are read tile by tile in reading order by one thread with the
halo of the default config, as a worker does: decoded, with validity. For comparison, one core of two takes about 2.2 s
to score such a tile with `densenet121`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import rasterio
import rasterio.shutil
from predict import make_scene

from geood.geo.gdal import limit_cache
from geood.geo.grid import tile_grid
from geood.geo.scene import Scene

CACHE = 256 * 2**20
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles of 512, uncompressed": {"tiled": True, "blockxsize": 512, "blockysize": 512},
    "tiles of 512, deflate": {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"},
    "tiles of 512, JPEG": {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "jpeg",
        "photometric": "ycbcr",
        "interleave": "pixel",
    },
    "tiles of 512, LERC and ZSTD": {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "lerc_zstd"},
    "strips of a row, deflate": {"tiled": False, "blockysize": 1, "compress": "deflate"},
    "strips of 64 rows, deflate": {"tiled": False, "blockysize": 64, "compress": "deflate"},
}


def seconds_a_tile(path: Path) -> float:
    """Mean seconds of reading one tile."""
    limit_cache(CACHE)
    with Scene.open(path) as scene:
        tiles = list(tile_grid(scene.grid.height, scene.grid.width, tile_px=1024, halo_px=64))
        began = time.perf_counter()
        for tile in tiles:
            scene.read(tile.read)
        return (time.perf_counter() - began) / len(tiles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=6144, help="pixels")
    parser.add_argument("--keep", type=Path, help="folder for the files; else a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        source = folder / f"scene_{options.side}.tif"
        if not source.exists():
            make_scene(source, options.side)
        print("| layout | MB | ms a tile |\n|---|---|---|")
        for name, how in LAYOUTS.items():
            path = folder / "layout.tif"
            rasterio.shutil.copy(source, path, driver="GTiff", **how)
            print(f"| {name} | {path.stat().st_size / 1e6:.0f} | {seconds_a_tile(path) * 1e3:.0f} |", flush=True)
        rasterio.shutil.copy(source, folder / "layout.tif", driver="COG", COMPRESS="DEFLATE")
        print(f"| COG, deflate | | {seconds_a_tile(folder / 'layout.tif') * 1e3:.0f} |")


if __name__ == "__main__":
    main()
