"""Speed and memory of extracting polygons from score rasters on disk.

    python benchmarks/polygonize.py [--sides 20000 100000] [--suffix .gpkg] [--keep FOLDER]

Makes score rasters (float32, blocks of 512, zstd) and polygonizes each into a file, every row in its own process:

  read       reading the windows of the raster alone, one ahead, as `polygonize` does
  scattered  a polygon for each 6000 pixels, all pixels valid
  crowded    a polygon for each 500 pixels, all pixels valid
  islands    two of a hundred blocks of 2048 hold scores, with polygons as in scattered; the others are not in the file

and prints megapixels of the raster in a second, the peak of resident memory, and how many polygons there were. On sides
above 40,000 only the raster of islands is made: 0.6 GB at 100,000, where the others would take 25 GB.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import scipy.ndimage
from affine import Affine

from geood.config.sections import PredictConfig
from geood.geo.gdal import rasterio_window
from geood.geo.grid import Grid
from geood.polygons.block_windows import is_absent, iter_windows, open_for_windows, read_ahead, read_band, window_size
from geood.polygons.export import write_anomalies

FIELD = 2048  # side of the periodic field that rasters are made of


class Case(NamedTuple):
    """Recipe of a raster: width of its blobs, threshold, and the share of blocks that hold any."""

    sigma: float
    threshold: float
    share: float


CASES = {"scattered": Case(8, 0.97, 1), "crowded": Case(3, 0.9, 1), "islands": Case(8, 0.97, 0.02)}
LARGE = 40_000


def make_scores(path: Path, side: int, case: Case) -> None:
    """Write a score raster of smooth noise, uniform over [0, 1]; blocks that are not written are nodata."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((FIELD, FIELD), dtype=np.float32)
    smooth = scipy.ndimage.gaussian_filter(noise, case.sigma, mode="wrap").ravel()
    field = np.empty_like(smooth)
    field[np.argsort(smooth)] = np.linspace(0, 1, len(smooth), dtype=np.float32)
    field = field.reshape(FIELD, FIELD)
    shape = {"width": side, "height": side, "count": 1, "dtype": "float32", "nodata": float("nan")}
    blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "SPARSE_OK": True, "BIGTIFF": "IF_SAFER"}
    packing = {"compress": "zstd", "ZSTD_LEVEL": 3, "predictor": 3, "NUM_THREADS": "ALL_CPUS"}
    grid = Grid(side, side, Affine(0.25, 0, 500_000, 0, -0.25, 4_650_000))
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32633", transform=grid.transform, **shape, **blocks, **packing
    ) as file:
        file.update_tags(GEOOD_MODEL="benchmark")
        for window in iter_windows(grid, (FIELD, FIELD)):
            shift = tuple(rng.integers(0, FIELD, 2).tolist())
            if rng.random() < case.share:
                block = np.roll(field, shift, (0, 1))[: window.height, : window.width]
                file.write(block, 1, window=rasterio_window(window))


def read_alone(scores: Path) -> None:
    """Read the windows of a raster and do nothing with them."""
    with open_for_windows(scores) as dataset:
        grid = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
        todo = iter_windows(grid, window_size(dataset))
        for _ in read_ahead(todo, lambda window: None if is_absent(dataset, window) else read_band(dataset, window)):
            pass


def one_row(row: str, scores: Path, suffix: str, threshold: float) -> None:
    """Time one row in this process; print seconds, the number of polygons and the peak of memory."""
    began, count = time.perf_counter(), 0
    if row == "read":
        read_alone(scores)
    else:
        out, settings = scores.with_suffix(suffix), PredictConfig()
        count = write_anomalies(
            scores,
            out,
            threshold=threshold,
            classes=None,
            class_names=None,
            predict=settings,
            model="benchmark",
            overwrite=True,
        )
    seconds = time.perf_counter() - began
    print(seconds, count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[20_000, 100_000], help="pixels")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--suffix", default=".gpkg", choices=[".gpkg", ".geojson", ".parquet", ".fgb"])
    parser.add_argument("--keep", type=Path, help="folder for rasters and polygons; else a temporary one")
    parser.add_argument("--row", choices=["read", "cut"], help=argparse.SUPPRESS)
    parser.add_argument("--scores", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threshold", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        one_row(options.row, options.scores, options.suffix, options.threshold)
        return
    print(
        f"{os.cpu_count()} cores, rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}, {options.suffix}"
    )
    print(f"{'side':>7} {'raster':<10} {'row':<5}{'seconds':>9}{'Mpx/s':>9}{'polygons':>10}{'peak MB':>9}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        for side in options.sides:
            for name in options.cases:
                if name == "islands" or side <= LARGE:
                    rows_of(folder / f"{name}_{side}.tif", side, name, options.suffix)
                    if not options.keep:
                        for made in folder.glob(f"{name}_{side}.*"):
                            made.unlink()


def rows_of(scores: Path, side: int, name: str, suffix: str) -> None:
    """Make one raster, unless it is there, and print its rows."""
    case = CASES[name]
    if not scores.exists():
        make_scores(scores, side, case)
    for row in ("read", "cut"):
        what = {"row": row, "scores": scores, "suffix": suffix, "threshold": case.threshold}
        command = [sys.executable, __file__, *(f"--{option}={value}" for option, value in what.items())]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds, count, peak = (float(x) for x in done.stdout.split()[-3:])
        rate = side**2 / 1e6 / seconds
        print(f"{side:>7} {name:<10} {row:<5}{seconds:>9.1f}{rate:>9.0f}{count:>10.0f}{peak:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
