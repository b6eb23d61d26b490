"""Speed and memory of `predict`, beside the bare network on the same tiles in the same run.

    python benchmarks/predict.py [--side 6000] [--model BUNDLE] [--keep FOLDER]

Makes a scene of `side` x `side` pixels (three bands, uint8, deflate), then times in turn, tile for tile the same work:

  bare network   segmenter alone on ready tensors of the tiles' read windows, one tile a core, no files
  memory kept    the same in a process that keeps freed memory, as the command line does (`geood.memory`)
  predict .tif   the whole command: read, scale, score, write, COG with overviews and statistics
  predict .gpkg  the same with class raster and polygons

and prints Mpx/s of kept pixels, the ratio to the bare network, and the peak of resident memory (of a process of its
own for each row). The rows of predict keep freed memory too. Without --model an untrained network of the default config
is taken; its speed is that of a trained one, and its scores cut about a polygon for each 1000 pixels.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine

from geood.bands import Bands
from geood.bundle import ModelBundle
from geood.config import Config
from geood.config_file import load_config
from geood.flow import Flow
from geood.grid import tile_grid
from geood.memory import KEEP_FREED_MEMORY
from geood.prediction import predict
from geood.segmenter import Segmenter

ROWS = {"bare": "bare network", "bare-kept": "memory kept", "tif": "predict .tif", "gpkg": "predict .gpkg"}
AERIAL = Path(__file__).parent.parent / "configs" / "aerial.yaml"


def make_scene(path: Path, side: int) -> None:
    """A scene with detail on several scales, so that it compresses about as a photograph does; written by blocks."""
    rng = np.random.default_rng(0)
    coarse = rng.random((3, 64, 64))
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
    transform = Affine(0.25, 0, 500_000, 0, -0.25, 4_650_000)
    with rasterio.open(
        path, "w", crs="EPSG:32633", transform=transform, compress="deflate", BIGTIFF="IF_SAFER", **profile
    ) as file:
        for row in range(0, side, 1024):
            for col in range(0, side, 1024):
                height, width = min(1024, side - row), min(1024, side - col)
                base = np.kron(np.roll(coarse, (row // 1024, col // 1024), (1, 2)), np.ones((1, 16, 16)))
                block = base[:, :height, :width] * 200 + rng.random((3, height, width)) * 25 + 15
                file.write(block.astype("uint8"), window=rasterio.windows.Window(col, row, width, height))


def untrained_bundle(path: Path, config: Config) -> None:
    """A bundle with random weights; its thresholds leave about a polygon for each 1000 pixels of `make_scene`."""
    torch.manual_seed(0)
    bands = Bands(("r", "g", "b"), (1, 2, 3), (0.0,) * 3, (255.0,) * 3, (0.5,) * 3, (1 / 255,) * 3, scene_count=3)
    segmenter = Segmenter(3, len(config.data.classes), config.segmenter)
    ModelBundle(
        segmenter=segmenter.eval(),
        flow=Flow(3, config.flow, bands.step).eval(),
        inliers=None,
        bands=bands,
        config=config,
        class_ids=tuple(config.data.classes),
        resolution=0.25,
        calibration={config.score.kind: {"0.001": 0.9999, "0.01": 0.9999, "0.05": 0.9999}},
        calibrated=config.score,
        metrics={},
    ).save(path)


def bare_network(bundle: Path, side: int) -> float:
    """Seconds for the segmenter alone on tensors of all tiles' read windows, one tile a core at a time."""
    model = ModelBundle.load(bundle)
    settings = model.config.predict
    shapes = [
        (t.read.height, t.read.width) for t in tile_grid(side, side, tile_px=settings.tile_px, halo_px=settings.halo_px)
    ]
    ready = {shape: torch.rand(1, model.bands.count, *shape) for shape in set(shapes)}

    def run(shape: tuple[int, int]) -> None:
        model.answer(ready[shape])

    cores = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(run, shapes[:cores]))  # warm up
        began = time.perf_counter()
        list(pool.map(run, shapes))
        return time.perf_counter() - began


def timed_predict(scene: Path, out: Path, bundle: Path) -> float:
    """Seconds for the whole of `predict`."""
    began = time.perf_counter()
    predict([scene], out, bundle=bundle)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=6000, help="pixels")
    parser.add_argument("--model", type=Path, help="a bundle for three bands")
    parser.add_argument(
        "--encoder", default="densenet121", help="without --model: the encoder of the untrained network"
    )
    parser.add_argument("--keep", type=Path, help="folder for scene and outputs; else a temporary one")
    parser.add_argument("--row", choices=["bare", "tif", "gpkg"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        one_row(options.row, options.folder, options.model, options.side)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        bundle = options.model or folder / "untrained.safetensors"
        if options.model is None:
            untrained_bundle(bundle, load_config(AERIAL, [f"segmenter.encoder={options.encoder}"]))
        scene = folder / f"scene_{options.side}.tif"
        if not scene.exists():
            make_scene(scene, options.side)
        side, cores = options.side, os.cpu_count()
        print(f"{side} x {side} px, {cores} cores, torch {torch.__version__}, bundle {bundle.name}")
        print(f"{'':<16}{'seconds':>9}{'Mpx/s':>9}{'of bare':>9}{'peak MB':>9}")
        bare = 0.0
        for row, name in ROWS.items():
            what = {"row": row.removesuffix("-kept"), "folder": folder, "model": bundle, "side": side}
            command = [sys.executable, __file__, *(f"--{option}={value}" for option, value in what.items())]
            environment = os.environ | ({} if row == "bare" else KEEP_FREED_MEMORY)
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            seconds, peak = (float(x) for x in done.stdout.split()[-2:])
            bare = bare or seconds
            rate = options.side**2 / 1e6 / seconds
            print(f"{name:<16}{seconds:>9.1f}{rate:>9.2f}{bare / seconds:>9.3f}{peak:>9.0f}", flush=True)


def one_row(row: str, folder: Path, bundle: Path, side: int) -> None:
    """Time one row in this process and print seconds and peak memory."""
    if row == "bare":
        seconds = bare_network(bundle, side)
    else:
        for old in folder.glob("out*"):
            old.unlink()
        seconds = timed_predict(folder / f"scene_{side}.tif", folder / f"out.{row}", bundle)
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
