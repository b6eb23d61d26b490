"""How prediction scales: processes on this machine, and a cluster of workers that only pretend.

    python benchmarks/scaling.py [--side 6144] [--keep FOLDER]

First 1, 2 and 4 processes score a scene with the default network, where the network takes the time, and with a tiny one
over a scene that is slow to decode, where reading does. Each process computes on one core, while left to itself it
would take all that it is given. Speed is against one process; efficiency is that divided by the processes, or by the
cores where those are fewer.

Then 1 to 128 workers of a Dask cluster (threads that talk over TCP, as on a network) do tiles that take as long as one
was measured to take, but only wait, and send back packed scores of a real tile. What they reach against workers x tiles
a second shows how far scheduler, client and journal keep up; with tiles of no length, where they stop.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import rasterio
import torch
from distributed import Client, LocalCluster
from predict import AERIAL, make_scene, untrained_bundle

from geood.config.loading import load_config
from geood.geo.cog import encode_tile
from geood.geo.grid import Grid
from geood.prediction import cluster, dispatch
from geood.prediction.job import Job, NumberedTile, ScoredTile
from geood.prediction.journal import Chunk, Journal, TileFigures
from geood.prediction.malloc import KEEP_FREED_MEMORY
from geood.prediction.pipeline import predict
from geood.prediction.worker import NOTHING

TINY = ["segmenter.encoder=resnet10t", "segmenter.decoder_channels=8", "predict.halo_px=32"]
PRETENDERS = (1, 4, 16, 64, 128)


def slow_to_decode(scene: Path, path: Path) -> None:
    """The same scene with 16 bands' worth of noise beneath LZMA-like compression: many bytes to decode a pixel."""
    with rasterio.open(scene) as source:
        profile = source.profile | {"compress": "deflate", "zlevel": 9, "dtype": "float64", "predictor": 3}
        with rasterio.open(path, "w", **profile) as file:
            for _, window in source.block_windows(1):
                file.write(source.read(window=window).astype("float64") + 0.1, window=window)


def timed(scene: Path, out: Path, bundle: Path, workers: int) -> float:
    """Seconds for the tiles of a prediction alone, without what comes before and after."""
    command = [sys.executable, __file__, "--row", str(scene), str(out), str(bundle), str(workers)]
    done = subprocess.run(command, env=os.environ | KEEP_FREED_MEMORY, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def one_row(scene: str, out: str, bundle: str, workers: str) -> None:
    """Time the tiles of one prediction in this process."""
    began, real = [], dispatch.score_scene

    def watched(*args: Any, **options: Any) -> Any:
        client = options["client"]
        client.wait_for_workers(max(1, int(workers)))
        client.run(_warm, dispatch.tiles_of, args[0])
        began.append(time.perf_counter())
        found = real(*args, **options)
        began.append(time.perf_counter())
        return found

    threads = (1, 1 + cluster.READERS)
    with ExitStack() as patches:  # by name, so that a name that is gone is an error
        for name in ("budget.threads_of", "cluster.threads_of"):
            patches.enter_context(patch(f"geood.prediction.{name}", lambda *_: threads))
        patches.enter_context(patch("geood.prediction.rasters.score_scene", watched))
        predict([scene], out, bundle_path=bundle, workers=int(workers), overwrite=True)
    print(began[1] - began[0])


def _warm(_: Any, job: Job) -> None:
    """Load the model before the clock runs."""
    from geood.prediction.worker import STATE

    STATE.engine(job)


def processes(folder: Path, side: int) -> None:
    """The first table."""
    network, tiny = folder / "network.safetensors", folder / "tiny.safetensors"
    untrained_bundle(network, load_config(AERIAL))
    untrained_bundle(tiny, load_config(AERIAL, TINY))
    scene, slow = folder / f"scene_{side}.tif", folder / "slow.tif"
    if not scene.exists():
        make_scene(scene, side)
    slow_to_decode(scene, slow)
    cores = os.cpu_count() or 1
    print(f"{side} x {side} px, {cores} cores, torch {torch.__version__}\n")
    print("| scene | processes | seconds | Mpx/s | speed | efficiency |\n|---|---|---|---|---|---|")
    for name, path, bundle in (("network-bound", scene, network), ("read-bound", slow, tiny)):
        alone = 0.0
        for workers in (1, 2, 4):
            seconds = timed(path, folder / "out.tif", bundle, workers)
            alone = alone or seconds
            speed, rate = alone / seconds, side**2 / 1e6 / seconds
            print(
                f"| {name} | {workers} | {seconds:.1f} | {rate:.2f} | {speed:.2f} | {speed / min(workers, cores):.2f} |"
            )


_chunks = (NOTHING, NOTHING)
_wait_s = 0.0


def pretend(_: Job, tiles: tuple[NumberedTile, ...]) -> list[ScoredTile]:
    """Wait as long as a tile takes and answer with one that was packed before."""
    time.sleep(_wait_s * len(tiles))
    figures = TileFigures(1024**2, 0.5, 1.0, 0.0, 1.0)
    return [ScoredTile(one.number, figures, _chunks) for one in tiles]


def pretenders(folder: Path, wait_s: float) -> None:
    """A row for each number of workers that only wait."""
    global _chunks, _wait_s
    rng = np.random.default_rng(0)
    score = (np.kron(rng.random((64, 64)), np.ones((16, 16))) + rng.random((1024, 1024)) / 20).astype(np.float32)
    packed = encode_tile(score, tile_px=1024, nodata=float("nan"), overview="average")
    _chunks = Chunk.of(packed), NOTHING
    dispatch.score_tiles = pretend
    for wait in (wait_s, 0.0):
        _wait_s = wait
        for workers in PRETENDERS if wait else PRETENDERS[-1:]:
            many = max(64, min(1024, int(workers * 10 / max(wait, 0.1))))
            side = int(many**0.5)
            grid = Grid(side * 1024, side * 1024, rasterio.Affine.identity())
            journal = folder / "pretended.journal"
            journal.unlink(missing_ok=True)
            with (
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=False,
                    protocol="tcp",
                    dashboard_address=None,
                    memory_limit=0,
                ) as cluster,
                Client(cluster, direct_to_workers=True) as client,
                Journal(journal, {}) as kept,
            ):
                began = time.perf_counter()
                dispatch.score_scene(_job(), grid, journal=kept, client=client, on_gpu=False, title="pretended")
                rate = side**2 / (time.perf_counter() - began)
            share, megabytes = rate * wait / workers if wait else float("nan"), rate * packed.nbytes / 1e6
            print(f"| {workers} | {wait:.2f} | {rate:.0f} | {share:.2f} | {megabytes:.0f} |")


def _job() -> Job:
    """A job of which only the size of tiles counts."""
    from geood.geo.scene import SceneSource

    config = load_config(AERIAL)
    return Job(
        source=SceneSource("pretended.tif"),
        state="",
        bundle_path="",
        identity="",
        score=config.score,
        predict=config.predict,
        tile_px=1024,
        halo_px=64,
        area=None,
        classes=False,
        computing=1,
        cache_bytes=2**25,
    )


def main() -> None:
    if sys.argv[1:2] == ["--row"]:
        one_row(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=6144, help="pixels")
    parser.add_argument(
        "--wait", type=float, default=1.1, help="seconds that a pretended tile takes; one core's by default"
    )
    parser.add_argument("--keep", type=Path, help="folder for scenes and outputs; else a temporary one")
    parser.add_argument("--only", choices=["processes", "pretenders"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        if options.only != "pretenders":
            processes(folder, options.side)
        if options.only != "processes":
            print("\n| workers | seconds a tile | tiles/s | of ideal | MB/s into the journal |\n|---|---|---|---|---|")
            pretenders(folder, options.wait)


if __name__ == "__main__":
    main()
