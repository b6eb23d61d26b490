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
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dask
import numpy as np
import rasterio
import torch
from distributed import Scheduler, Worker
from engine import ready_scores
from numpy.typing import NDArray
from predict import AERIAL, make_scene, untrained_bundle

from geood.config.loading import load_config
from geood.geo.cog.encoding import encode_tile
from geood.geo.grid import Grid
from geood.prediction import cluster, dispatch, worker
from geood.prediction.job import Job, NumberedTile, ScoredTile
from geood.prediction.journal import Chunk, Journal, TileFigures
from geood.prediction.malloc import KEEP_FREED_MEMORY, keep_freed_memory
from geood.prediction.pipeline import predict
from geood.prediction.worker import NOTHING

_SETTINGS = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
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


def packed_tile() -> NDArray[np.uint8]:
    """Packed scores of a tile, which compress about as those of a trained network."""
    return encode_tile(ready_scores(None), tile_px=1024, nodata=float("nan"), overview="average")


def play(address: str, workers: str, wait_s: str, cpus: str) -> None:
    """Be `workers` workers of the scheduler at `address`, until it goes away."""
    global _chunks, _wait_s
    os.sched_setaffinity(0, set(map(int, cpus.split(","))))
    _chunks, _wait_s = (Chunk.of(packed_tile()), NOTHING, NOTHING), float(wait_s)
    worker.score_tiles = pretend

    async def players() -> None:
        each = [Worker(address, nthreads=1, memory_limit=0, dashboard=False) for _ in range(int(workers))]
        await asyncio.gather(*each)
        await asyncio.gather(*(one.finished() for one in each))

    with dask.config.set(_SETTINGS):
        asyncio.run(players())


def schedule(cpus: str) -> None:
    """Be a scheduler, until the standard input ends."""
    os.sched_setaffinity(0, set(map(int, cpus.split(","))))

    async def scheduler() -> None:
        async with Scheduler(protocol="tcp", host=cluster.HERE, dashboard=False) as one:
            print(one.address, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    with dask.config.set(_SETTINGS):
        asyncio.run(scheduler())


def pretenders(folder: Path, wait_s: float, rounds: int, chosen: Sequence[int]) -> None:
    """A row for each number of workers that only wait."""
    megabytes = packed_tile().nbytes / 1e6
    for wait in (wait_s, 0.0):
        for workers in chosen if wait else chosen[-1:]:
            rate, client, scheduler = pretended(folder / "pretended.journal", workers, wait, rounds)
            share = rate * wait / workers if wait else float("nan")
            figures = f"{rate:.0f} | {share:.2f} | {rate * megabytes:.0f} | {client:.1f} | {scheduler:.1f}"
            print(f"| {workers} | {wait:.2f} | {figures} |", flush=True)


def pretended(journal: Path, workers: int, wait_s: float, rounds: int) -> tuple[float, float, float]:
    """Tiles a second with `workers` pretended workers, and milliseconds a tile of a core in client and scheduler."""
    journal.unlink(missing_ok=True)
    here, there = cores_apart()
    side = max(8, round((workers * (rounds if wait_s else 16)) ** 0.5))
    grid = Grid(side * 1024, side * 1024, rasterio.Affine.identity())
    row = [sys.executable, __file__]
    first, second = here[0], here[-1]
    with ExitStack() as started:
        started.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, {first})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        scheduler = started.enter_context(subprocess.Popen([*row, "--schedule", str(second)], **pipes))
        started.callback(scheduler.communicate)
        keep_freed_memory()  # as the command line does
        address = scheduler.stdout.readline().strip()
        shares = [len(range(i, workers, len(there))) for i in range(len(there))]
        for cpu, share in zip(there, shares, strict=True):
            if share:
                player = subprocess.Popen([*row, "--play", address, str(share), str(wait_s), str(cpu)])
                started.callback(player.wait)
                started.callback(player.terminate)
        with Journal(journal, {}) as kept, cluster.dask_client(0, address) as client:
            client.wait_for_workers(workers)
            before = time.process_time(), client.run_on_scheduler(time.process_time)
            began = time.perf_counter()
            dispatch.score_scene(
                _job(), grid, journal=kept, client=client, on_gpu=False, title="pretended", finished=lambda _: None
            )
            seconds = time.perf_counter() - began
            after = time.process_time(), client.run_on_scheduler(time.process_time)
        assert len(kept.figures) == side**2
    spent = (1000 * (late - early) / side**2 for early, late in zip(before, after, strict=True))
    return side**2 / seconds, *spent


def cores_apart() -> tuple[list[int], list[int]]:
    """Cores for client and scheduler, and cores for the players."""
    cores = sorted(os.sched_getaffinity(0))
    here = cores[:1] if len(cores) < 4 else cores[:2]
    return here, cores[len(here) :] or cores


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
    inner = {"--row": one_row, "--play": play, "--schedule": schedule}
    if chosen := inner.get("".join(sys.argv[1:2])):
        chosen(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=6144, help="pixels")
    parser.add_argument(
        "--wait", type=float, default=1.1, help="seconds that a pretended tile takes; one core's by default"
    )
    parser.add_argument("--rounds", type=int, default=8, help="tiles that each pretended worker does")
    parser.add_argument("--workers", type=int, nargs="+", default=PRETENDERS, help="numbers of pretended workers")
    parser.add_argument("--keep", type=Path, help="folder for scenes and outputs; else a temporary one")
    parser.add_argument("--only", choices=["processes", "pretenders"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        if options.only != "pretenders":
            processes(folder, options.side)
        if options.only != "processes":
            columns = ["workers", "seconds a tile", "tiles/s", "of ideal", "MB/s into the journal"]
            print(f"\n| {' | '.join([*columns, 'ms a tile, client', 'scheduler'])} |")
            print("|---|---|---|---|---|---|---|")
            pretenders(folder, options.wait, options.rounds, options.workers)


if __name__ == "__main__":
    main()
