"""What `predict` takes of a core beside a GPU, measured without one.

    python benchmarks/engine.py [--pretend 267] [--cores 1,2] [--side 8192] [--out gpkg] [--like SCORES.tif]

The network is replaced by one that answers `--pretend` megapixels a second (read pixels, in batches of 8 tiles, one
batch at a time) and takes no core meanwhile, as a GPU would; its maps are ready beforehand. All else is the real run:
reading, feeding, packing, journal, putting the rasters together, verdict, polygons. Each row of the first table runs in
a process of its own that may use so many cores (Linux only); the start, until the first tile is read, is told apart,
and efficiency is the rate without it by that of the first row and the cores. The second table tells the CPU time of
each stage, milliseconds of a core for each megapixel of the scene, by the clock of the thread that works on it
(`start`, `end` and what follows: of the whole process). `pretence` is what the stand-in for the network takes to make
maps of tiles at the edge, `rows` the laying out of finished rows in the rasters, `Dask` the thread of its loop,
`after the start` all that the process takes from the first tile on, without `pretence`. `after the last tile` is the
time on the wall from there to the end. Garbage is collected as in the `geood` command.

`--like` takes a score raster whose scores are repeated over the scene; without it they are smooth with noise, and
compress about as those of a trained network do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import rasterio
from numpy.typing import NDArray
from predict import AERIAL, make_scene, untrained_bundle

from geood.cli.process import collect_later
from geood.config.loading import load_config
from geood.geo.cog.encoding import rounded
from geood.prediction import cluster, journal, pipeline, rasters, scene_verdict, worker
from geood.prediction.engine import MOST_AT_ONCE, Engine, Maps
from geood.prediction.malloc import KEEP_FREED_MEMORY

SMALL = ["segmenter.encoder=resnet10t", "segmenter.decoder_channels=8"]  # its weights are never used
STAGES = (
    *("start", "pretence", "read", "scale", "cells", "pack", "check", "journal", "rows", "Dask"),
    *("end", "verdict", "polygons"),
)


def ready_scores(like: Path | None, side: int = 1024) -> NDArray[np.float32]:
    """Scores of a tile: from a raster, or smooth with noise."""
    if like is not None:
        with rasterio.open(like) as raster:
            found = raster.read(1, window=rasterio.windows.Window(0, 0, side, side))
        return _above(np.nan_to_num(np.pad(found, [(0, side - n) for n in found.shape], mode="reflect")))
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.003, (side, side))
    coarse = np.kron(rng.gamma(2, 1, (side // 16, side // 16)), np.ones((16, 16)))
    for axis in (0, 1):
        coarse = sum(np.roll(coarse, shift, axis) for shift in range(-8, 9)) / 17
    return _above((coarse + noise).astype(np.float32))


def _above(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of which a hundredth lies above the threshold of the untrained bundle."""
    scaled: NDArray[np.float32] = rounded(scores * np.float32(0.9999 / np.quantile(scores, 0.99)))
    return scaled


class Pretender(Engine):
    """An engine that waits as long as a GPU computes, and answers with maps made beforehand."""

    rate = 267e6
    scores = np.zeros((1024, 1024), np.float32)
    ready: ClassVar[dict[Any, Maps]] = {}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.on_gpu, self.batch = True, MOST_AT_ONCE
        self._gate = threading.BoundedSemaphore(1)

    def maps(self, batch: Any, core: Any) -> Maps:
        """Wait and answer."""
        tiles, (_, height, width) = len(batch.image), batch.image[0].shape
        rows, cols = (len(range(*c.indices(side))) for c, side in zip(core, (height, width), strict=True))
        with self._gate:
            began = time.monotonic()
            key = (rows, cols, height, width)
            if key not in self.ready:
                self.prepare(key)
            time.sleep(max(0.0, tiles * height * width / self.rate - (time.monotonic() - began)))
            return Maps(*(maps[:tiles] for maps in self.ready[key]))

    @classmethod
    def prepare(cls, shape: tuple[int, int, int, int]) -> None:
        """Make the maps of a batch, of rows and columns to score and of a height and width as read."""
        rows, cols, height, width = shape
        score = np.tile(cls.scores, (2, 2))[:rows, :cols]
        stacked = np.stack([np.roll(score, 37 * i, 1) for i in range(MOST_AT_ONCE)])
        classes = np.full((*stacked.shape, 4), 255, np.uint8)
        classes[..., 0] = (stacked * 3).astype(np.uint8) % 3
        features = np.zeros((MOST_AT_ONCE, 8, height // 32, width // 32), np.float32)
        cls.ready[shape] = Maps(stacked, classes, features)


class Clock:
    """CPU seconds by stage, over all threads; a stage within another counts for itself alone."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.first_tile = self.last_tile = self.started = 0.0
        self._lock, self._inner = threading.Lock(), threading.local()

    @contextmanager
    def stage(self, name: str, clock: Callable[[], float]) -> Iterator[None]:
        """Count the time within for a stage."""
        before = getattr(self._inner, "spent", 0.0)
        self._inner.spent = 0.0
        began, began_at = clock(), time.monotonic()
        try:
            yield
        finally:
            whole = clock() - began
            with self._lock:
                self.spent[name] += whole - self._inner.spent
                if name == "read" and not self.first_tile:
                    self.first_tile, self.started = began_at, time.process_time() - whole
                if name == "journal":
                    self.last_tile = time.monotonic()
            self._inner.spent = before + whole

    def watch(self, patches: ExitStack, name: str, holder: Any, attribute: str, *, alone: bool = False) -> None:
        """Count calls of a function; `alone` if the whole process works on it."""
        real, clock = getattr(holder, attribute), time.process_time if alone else time.thread_time

        def watched(*args: Any, **options: Any) -> Any:
            with self.stage(name, clock):
                return real(*args, **options)

        patches.enter_context(patch.object(holder, attribute, watched))

    def scoring(self, real: Callable[..., Any], before: float) -> Callable[..., Any]:
        """Count the process time from `before` to the scoring of tiles, and what Dask's loop takes meanwhile."""

        def watched(*args: Any, **options: Any) -> Any:
            self.spent["start"] = time.process_time() - before
            [loop] = (thread.ident for thread in threading.enumerate() if thread.name == "IO loop")
            clock = time.pthread_getcpuclockid(loop)
            self.spent["Dask"] = -time.clock_gettime(clock)
            try:
                return real(*args, **options)
            finally:
                self.spent["Dask"] += time.clock_gettime(clock)

        return watched


def one_row(options: argparse.Namespace, cores: int) -> None:
    """Predict in this process with so many cores; print the figures as JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    collect_later()  # as the `geood` command does
    Pretender.rate, Pretender.scores = options.pretend * 1e6, ready_scores(options.like)
    clock, folder = Clock(), options.keep
    bundle = worker.ModelBundle.load(folder / "small.safetensors")
    bands, side = type(bundle.bands), 1024 + 2 * bundle.halo_px
    Pretender.prepare((1024, 1024, side, side))  # of most tiles: while maps are made, all threads wait
    with ExitStack() as patches:
        patches.enter_context(patch.object(worker, "Engine", Pretender))
        patches.enter_context(patch.object(rasters, "have_gpu", lambda _: True))
        for name in ("budget.threads_of", "plan.threads_of", "cluster.threads_of"):
            threads = 1, min(cluster.GPU_THREADS, cores) + cluster.READERS
            patches.enter_context(patch(f"geood.prediction.{name}", lambda *_, threads=threads: threads))
        clock.watch(patches, "pretence", Pretender, "prepare")
        clock.watch(patches, "read", worker, "read_tile")
        clock.watch(patches, "scale", bands, "scale")
        clock.watch(patches, "cells", worker, "tile_cells")
        clock.watch(patches, "pack", worker, "_packed")
        clock.watch(patches, "check", journal.zlib, "crc32")
        clock.watch(patches, "journal", journal.Journal, "append")
        clock.watch(patches, "rows", rasters.Assembly, "_lay_out")
        clock.watch(patches, "end", rasters.Assembly, "finish", alone=True)
        clock.watch(patches, "verdict", pipeline, "state_of", alone=True)
        clock.watch(patches, "verdict", scene_verdict, "fill_tags", alone=True)
        clock.watch(patches, "polygons", pipeline, "_polygons", alone=True)
        for old in folder.glob("out.*"):  # removing them is not what is measured
            old.unlink()
        began, before = time.monotonic(), time.process_time()
        patches.enter_context(patch.object(rasters, "score_scene", clock.scoring(rasters.score_scene, before)))
        pipeline.predict(
            [folder / f"scene_{options.side}.tif"],
            folder / f"out.{options.out}",
            bundle=folder / "small.safetensors",
            overwrite=True,
        )
        ended = time.monotonic()
    megapixels = options.side**2 / 1e6
    told = {name: clock.spent[name] / megapixels * 1e3 for name in STAGES}
    told["after the start"] = (time.process_time() - clock.started) / megapixels * 1e3 - told["pretence"]
    told["all"] = (time.process_time() - before) / megapixels * 1e3
    bytes_px = (folder / "out.tif").stat().st_size / options.side**2
    times = {"start": clock.first_tile - began, "seconds": ended - began, "after": ended - clock.last_tile}
    print(json.dumps({**times, "bytes": bytes_px, "stages": told}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretend", type=float, default=267, metavar="RATE", help="Mpx/s of the network")
    parser.add_argument("--cores", default="1,2", help="numbers of cores, a row for each")
    parser.add_argument("--side", type=int, default=8192, help="pixels")
    parser.add_argument("--out", choices=["tif", "gpkg"], default="gpkg", help="scores alone, or polygons too")
    parser.add_argument("--like", type=Path, help="a score raster whose scores are taken")
    parser.add_argument("--keep", type=Path, help="folder for scene and outputs; else a temporary one")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        one_row(options, options.row)
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.keep = options.keep or Path(temporary)
        options.keep.mkdir(exist_ok=True)
        if not (scene := options.keep / f"scene_{options.side}.tif").exists():
            make_scene(scene, options.side)
        untrained_bundle(options.keep / "small.safetensors", load_config(AERIAL, SMALL))
        rows(options)


def rows(options: argparse.Namespace) -> None:
    """Run and print both tables."""
    given = ["pretend", "side", "out", "keep", *(["like"] if options.like else [])]
    found: dict[int, Any] = {}
    for cores in map(int, options.cores.split(",")):
        command = [
            sys.executable,
            __file__,
            f"--row={cores}",
            *(f"--{name}={getattr(options, name)}" for name in given),
        ]
        env = os.environ | KEEP_FREED_MEMORY | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
        found[cores] = json.loads(done.stdout.splitlines()[-1])
    megapixels = options.side**2 / 1e6
    rates = {cores: megapixels / (row["seconds"] - row["start"]) for cores, row in found.items()}
    first = next(iter(found))
    print(f"{options.side} x {options.side} px, {options.out}, a network of {options.pretend:g} Mpx/s\n")
    print("| cores | start, s | the rest, s | Mpx/s | a core | efficiency | after the last tile, ms/Mpx |")
    print("|---|---|---|---|---|---|---|")
    for cores, row in found.items():
        rate, efficiency = rates[cores], rates[cores] / rates[first] * first / cores
        after = row["after"] / megapixels * 1e3
        print(
            f"| {cores} | {row['start']:.1f} | {row['seconds'] - row['start']:.1f} | {rate:.1f} | {rate / cores:.1f} | "
            f"{efficiency:.2f} | {after:.1f} |"
        )
    print(f"\n| stage, ms of a core/Mpx | {' | '.join(f'{cores} cores' for cores in found)} |")
    print("|---|" + "---|" * len(found))
    for name in (*STAGES, "after the start", "all"):
        told = " | ".join(f"{row['stages'][name]:.2f}" for row in found.values())
        print(f"| {name} | {told} |")
    print(f"\n{next(iter(found.values()))['bytes']:.2f} bytes a pixel in the score raster, overviews with it")


if __name__ == "__main__":
    main()
