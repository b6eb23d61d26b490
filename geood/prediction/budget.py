"""Resource budget of a prediction: tile size and threads for a memory limit, and the disk space needed.

The memory that a network needs for a tile differs tenfold between encoders, so it is measured by a forward pass on
torch's meta device (shapes without arithmetic, a tenth of a second). What Python, torch and GDAL need besides is nearly
the same everywhere, and a constant here. `predict` keeps to the numbers that `geood plan` shows.
"""

from __future__ import annotations

import copy
import functools
import itertools
import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geood.errors import ConfigError, OutputError
from geood.geo.cog import WORST
from geood.geo.gdal import CACHE_BYTES
from geood.models import ModelBundle
from geood.prediction.cluster import threads_of

TILES_PX = (1024, 768, 512, 384, 256, 192, 128)  # sides to try if the config's does not fit the memory
LEAST_CACHE = 32 * 2**20
KERNELS = 130 * 2**20  # added by the first forward pass for kernels and scratch space, measured with two encoders
BASE = 720 * 2**20  # this process with all imports and one bundle; a constant, so that tile sizes are reproducible
SPARE = 1.2  # factor on the tensors of a tile, for fragmentation of the heap (1.05 to 1.15 measured)
WORKER_BYTES = 480 * 2**20  # a process with torch and GDAL loaded, before any bundle
CUDA_LIBRARIES = 320 * 2**20  # more in each process where torch is a build for CUDA, with or without a GPU
CUDA_CONTEXT = 440 * 2**20  # more in each process that computes on a GPU: context and kernels (H200, torch 2.11)
_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Budget:
    """Tile size, concurrency and memory of a run.

    Each process computes `computing` tiles of side `tile_px` at a time. `bytes` is the peak resident memory of all
    processes together, at most `limit` (None: no limit); `gpu_bytes` is the memory of one tile on a GPU (None: no GPU).
    `workers` is the number of worker processes, 0 for threads in this one.
    """

    tile_px: int
    computing: int
    cache_bytes: int
    bytes: int
    gpu_bytes: int | None
    limit: int | None = None
    workers: int = 0

    @property
    def process_bytes(self) -> int | None:
        """Memory limit of one process that scores tiles; None: no limit."""
        if self.limit is None or not self.workers:
            return self.limit
        return (self.limit - BASE - _libraries()) // self.workers


def parse_bytes(text: str) -> int:
    """Return the number of bytes of a size such as 2GB, 1.5G, 800MB or 800MiB.

    Raises:
        ConfigError: the text is not a size.
    """
    plain = text.strip().upper().removesuffix("B")
    binary = plain.endswith("I")
    plain = plain.removesuffix("I")
    unit = plain[-1:] if plain[-1:] in _UNITS else ""
    try:
        number = float(plain.removesuffix(unit))
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ConfigError(f"--max-ram {text}: not a size; give one such as 2GB, 1500MB or 8GiB")
    return int(number * (1024 ** ("KMGT".index(unit) + 1) if binary and unit else _UNITS[unit]))


def config_budget(bundle: ModelBundle, *, workers: int = 0) -> Budget:
    """Return tile size and concurrency of the config, without measuring the memory they need (`bytes` is 0)."""
    return Budget(bundle.config.predict.tile_px, threads_of(workers)[0], CACHE_BYTES, 0, None)


def budget(bundle: ModelBundle, *, workers: int = 0, max_ram: int | None = None) -> Budget:
    """Return the fastest tile size and concurrency within `max_ram` bytes; without a limit, those of the config.

    Raises:
        ConfigError: even the smallest does not fit; the message names the least limit that would do.
    """
    predict = bundle.config.predict
    computing, _ = threads_of(workers)
    cache = CACHE_BYTES if max_ram is None else max(LEAST_CACHE, min(CACHE_BYTES, max_ram // 16))
    measured = functools.cache(lambda side: tile_bytes(bundle, side))  # one pass a size, whatever the concurrency
    budget_of = functools.partial(_budget, bundle, measured, cache=cache, workers=workers)
    largest = budget_of(predict.tile_px, computing)
    if max_ram is None or largest.bytes <= max_ram:
        return replace(largest, limit=max_ram, workers=workers)
    sizes = [px for px in TILES_PX if px < predict.tile_px] or [predict.tile_px]
    choices = itertools.product([predict.tile_px, *sizes], range(computing, 0, -1))
    candidates = [budget_of(px, at_once) for px, at_once in choices]
    fitting = [candidate for candidate in candidates if candidate.bytes <= max_ram]
    if not fitting:
        least = min(candidate.bytes for candidate in candidates)
        raise ConfigError(
            f"--max-ram {max_ram / 1e9:.3g}GB: this model needs at least {least / 1e9 + 0.05:.1f}GB here"
            + (f" with {workers} workers; use fewer, or" if workers else ";")
            + " allow that much, or train a smaller segmenter.encoder"
        )
    fastest = max(fitting, key=lambda fit: fit.computing * _useful(fit.tile_px, bundle.halo_px))
    return replace(fastest, limit=max_ram, workers=workers)


def disk_needed(pixels: float, *, classes: bool) -> int:
    """Return an upper bound in bytes for the journal and the finished rasters together, for that many valid pixels."""
    per_pixel = WORST * (8 if classes else 4)  # four bytes of scores, and four of classes with their evidence
    return int(2 * pixels * per_pixel)


def check_disk(folder: Path, needed: int) -> None:
    """Check that the disk of a folder has `needed` bytes free.

    Raises:
        OutputError: it has less; the message names both figures.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{folder}: {free / 1e9:.3g} GB are free, up to {needed / 1e9:.3g} GB are needed for scores and their "
            "journal; free space, or choose another --out"
        )


def tile_bytes(bundle: ModelBundle, side: int) -> int:
    """Return the peak bytes of live tensors in a float32 forward pass of the segmenter on a tile of side `side`."""
    network = copy.deepcopy(bundle.segmenter).to("meta")
    meter = _Meter()
    with torch.inference_mode(), meter:
        network(torch.empty(1, bundle.bands.count, side, side, device="meta"))
    return meter.peak


def _budget(
    bundle: ModelBundle, measured: Callable[[int], int], tile_px: int, computing: int, *, cache: int, workers: int
) -> Budget:
    side = tile_px + 2 * bundle.halo_px
    network = int(measured(side) * SPARE)
    bands = bundle.bands.count
    waiting = side * side * (bands * 8 + 2)  # digital numbers, scaled pixels, validity
    outputs = tile_px * tile_px * (8 + 2 * len(bundle.class_ids) * 4)  # scores and the logits they are computed from
    _, threads = threads_of(workers, computing)
    on_gpu = torch.cuda.is_available()
    busy = 0 if on_gpu else computing * (network + outputs)
    each = busy + threads * (waiting + tile_px * tile_px * 12) + cache + (CUDA_CONTEXT if on_gpu else KERNELS)
    total = BASE + _libraries() + each
    if workers:
        total = BASE + _libraries() + workers * (WORKER_BYTES + _libraries() + each)
    return Budget(tile_px, computing, cache, total, network // 2 if on_gpu else None)


def _libraries() -> int:
    return CUDA_LIBRARIES if torch.version.cuda else 0


def _useful(tile_px: int, halo_px: int) -> float:
    """Return the share of a tile's pixels as read that are not halo."""
    return (tile_px / (tile_px + 2 * halo_px)) ** 2


class _Meter(TorchDispatchMode):
    """Counter of the bytes of live tensors, and of their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive:
                    self._alive[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata)
        return output

    def _gone(self, key: int) -> None:
        self.now -= self._alive.pop(key)
