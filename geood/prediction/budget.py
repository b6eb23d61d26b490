"""Resource budget of a prediction: tile size and threads for a memory limit, and the disk space needed.

The memory that a tile needs is measured (`tile_memory`). What a scene needs while it is read is told by its header:
the bytes of a number, and of the blocks that its threads decode. What Python, torch and GDAL need besides is nearly the
same everywhere, and a constant here. `predict` keeps to the numbers that `geood plan` shows.
"""

from __future__ import annotations

import functools
import itertools
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from geood.errors import ConfigError, OutputError, counted
from geood.geo.cog.encoding import WORST
from geood.geo.gdal import CACHE_BYTES
from geood.geo.grid import Tile
from geood.geo.scene import Scene
from geood.models import ModelBundle
from geood.prediction.cluster import threads_of
from geood.prediction.tile_memory import SPARE, tile_bytes
from geood.prediction.tile_size import TILES_PX, run_side

LEAST_CACHE = 32 * 2**20
KERNELS = 130 * 2**20  # added by the first forward pass for kernels and scratch space, measured with two encoders
BASE = 720 * 2**20  # this process with all imports and a bundle of `LIGHT` bytes; constant: tile sizes are reproducible
LIGHT = 48 * 2**20  # weights of the bundle with which `BASE` was measured; they are kept twice: folded, and as stored
WORKER_BYTES = 480 * 2**20  # a process with torch and GDAL loaded, before any bundle
CUDA_LIBRARIES = 320 * 2**20  # more in each process where torch is a build for CUDA, with or without a GPU
CUDA_CONTEXT = 440 * 2**20  # more in each process that computes on a GPU: context and kernels (H200, torch 2.11)
TO_SMALL_BLOCKS = "convert it to small blocks first: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IN OUT"
_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class SceneMemory:
    """Memory that one scene takes in a process that reads it, beside the pixels of its tiles.

    A codec holds a block packed and unpacked, `decoded` bytes each at most, outside GDAL's cache, which holds it once
    more; so does every thread, unless they share one open file. `strip` is the rows and bytes of a strip of a scene
    that can only be decoded by whole rows, else zeros. A number is read with `number_bytes`. `why` says what is large.
    """

    number_bytes: int = 4
    decoded: int = 0
    shared: bool = False
    strip: tuple[int, int] = (0, 0)
    why: str = ""

    @classmethod
    def of(cls, scene: Scene) -> SceneMemory:
        """Return the memory of an open scene."""
        height, width = scene.decoded_block
        stored = (
            "can only be decoded by whole rows" if scene.strips else f"is stored in blocks of {width} x {height} px"
        )
        return cls(
            number_bytes=max(4, scene.dtype.itemsize) + (scene.dtype.kind == "f"),  # floats are checked to be finite
            decoded=scene.block_bytes // 2,
            shared=scene.shared,
            strip=(scene.layout.block[0], scene.rows_cache_bytes(0)),
            why=f"{scene.path}: {stored}, of {counted(scene.count, 'band')} of {scene.dtype}",
        )

    def cache(self, least: int, rows: int) -> int:
        """Return the size of GDAL's cache, in bytes: `least`, or what decodes tiles of `rows` rows only once."""
        height, strip = self.strip
        return max(least, (-(-rows // height) + 1) * strip if strip else 0)

    def bytes(self, cache: int, rows: int, threads: int) -> int:
        """Return the bytes of cache and codecs while `threads` threads read tiles of `rows` rows."""
        decoding = self.decoded * (1 if self.shared else threads)
        return 2 * decoding + max(self.cache(cache, rows), decoding)


@dataclass(frozen=True)
class Budget:
    """Tile size, concurrency and memory of a run.

    Each process computes `computing` tiles of side `tile_px` at a time (0: of other machines, one for each core there).
    `bytes` is the peak resident memory of all processes together, at most `limit` (None: no limit); `gpu_bytes` is the
    memory of one tile on a GPU (None: no GPU). `workers` is the number of worker processes, 0 for threads in this one.
    `reading` is what of the memory of each process is for GDAL's cache and its codecs.
    """

    tile_px: int
    computing: int
    cache_bytes: int
    bytes: int
    gpu_bytes: int | None
    limit: int | None = None
    workers: int = 0
    reading: int = 0

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


def config_budget(bundle: ModelBundle, *, workers: int = 0, here: bool = True) -> Budget:
    """Return tile size and concurrency of the config, without measuring the memory they need (`bytes` is 0).

    `here` tells whether this machine computes; of others neither cores nor memory are known.
    """
    return Budget(run_side(bundle, here=here), threads_of(workers)[0] if here else 0, CACHE_BYTES, 0, None)


def budget(
    bundle: ModelBundle, *, workers: int = 0, max_ram: int | None = None, scenes: Sequence[SceneMemory] = ()
) -> Budget:
    """Return the fastest tile size and concurrency within `max_ram` bytes; without a limit, those of the config.

    They fit each of `scenes`, which are read one after another.

    Raises:
        ConfigError: even the smallest does not fit; the message names the least limit that would do.
    """
    wished = bundle.tile_px
    computing, _ = threads_of(workers)
    cache = CACHE_BYTES if max_ram is None else max(LEAST_CACHE, min(CACHE_BYTES, max_ram // 16))
    measured = functools.cache(lambda side: tile_bytes(bundle, side))  # one pass a size, whatever the concurrency
    largest_of = functools.partial(_largest, scenes or [SceneMemory()])
    budget_of = functools.partial(
        largest_of, functools.partial(_budget, bundle, measured, cache=cache, workers=workers)
    )
    largest = budget_of(wished, computing)
    if max_ram is None or largest.bytes <= max_ram:
        return replace(largest, limit=max_ram, workers=workers)
    sizes = [px for px in TILES_PX if px < wished] or [wished]
    choices = itertools.product([wished, *sizes], range(computing, 0, -1))
    candidates = [budget_of(px, at_once) for px, at_once in choices]
    fitting = [candidate for candidate in candidates if candidate.bytes <= max_ram]
    if not fitting:
        bare = _budget(bundle, measured, sizes[-1], 1, SceneMemory(), cache=cache, workers=workers).bytes
        least = min(candidate.bytes for candidate in candidates)
        because = bare if bare <= max_ram else None
        why = _too_little(bundle, scenes, least=least, bare=because, workers=workers)
        raise ConfigError(f"--max-ram {max_ram / 1e9:.3g}GB: {why}")
    fastest = max(fitting, key=lambda fit: fit.computing * _useful(fit.tile_px, bundle.halo_px))
    return replace(fastest, limit=max_ram, workers=workers)


def tiles_budget(bundle: ModelBundle, tiles: Sequence[Tile], limits: Budget, scene: SceneMemory) -> Budget:
    """Return limits with the memory of the tiles of one scene, which may be fewer and smaller than usual.

    `tiles` are those that a `ScenePlan` has. No more than `limits.limit` is told, which holds for any tiles.
    """
    reads = [(tile.read.height * tile.read.width, tile.halo_px) for tile in tiles]
    pixels, halo_px = max(reads, default=(32 * 32, 0))  # an area between the centres of pixels has none
    side = math.ceil(math.sqrt(pixels) / 32) * 32
    found = _budget(
        bundle,
        lambda px: tile_bytes(bundle, px, halo_px),
        side - 2 * halo_px,
        min(limits.computing, max(1, len(tiles))),
        scene,
        cache=limits.cache_bytes,
        workers=limits.workers,
        halo_px=halo_px,
    )
    bytes_ = found.bytes if limits.limit is None else min(found.bytes, limits.limit)
    return replace(limits, bytes=bytes_, gpu_bytes=found.gpu_bytes, reading=found.reading)


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


def _largest(scenes: Sequence[SceneMemory], budget_of: Callable[..., Budget], tile_px: int, computing: int) -> Budget:
    """Return the budget of the scene that needs most, of tiles and concurrency that are the same for all."""
    return max((budget_of(tile_px, computing, scene) for scene in scenes), key=lambda one: one.bytes)


def _budget(  # noqa: PLR0913, PLR0917 - all that memory depends on
    bundle: ModelBundle,
    measured: Callable[[int], int],
    tile_px: int,
    computing: int,
    scene: SceneMemory,
    *,
    cache: int,
    workers: int,
    halo_px: int | None = None,
) -> Budget:
    side = tile_px + 2 * (bundle.halo_px if halo_px is None else halo_px)
    tile = int(measured(side) * SPARE)
    bands = bundle.bands.count
    waiting = side * side * (bands * (scene.number_bytes + 4) + 2)  # digital numbers, scaled pixels, validity
    outputs = tile_px * tile_px * (8 + 2 * len(bundle.class_ids) * 4)  # handed on; kernels copy logits to other layouts
    _, threads = threads_of(workers, computing)
    on_gpu = torch.cuda.is_available()
    busy = 0 if on_gpu else computing * (tile + outputs)
    reading, weights = scene.bytes(cache, side, threads), 2 * max(0, _weights(bundle) - LIGHT)
    kernels = CUDA_CONTEXT if on_gpu else KERNELS
    each = busy + threads * (waiting + tile_px * tile_px * 12) + reading + kernels + weights
    total = BASE + _libraries() + each
    if workers:
        total = BASE + _libraries() + weights + workers * (WORKER_BYTES + _libraries() + each)
    return Budget(tile_px, computing, cache, total, tile // 2 if on_gpu else None, reading=reading)


def _weights(bundle: ModelBundle) -> int:
    """Return the bytes of the network's weights and of the inlier statistics, banks among them."""
    parts = [bundle.segmenter, *([] if bundle.inliers is None else [bundle.inliers])]
    return sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())


def _too_little(
    bundle: ModelBundle, scenes: Sequence[SceneMemory], *, least: int, bare: int | None, workers: int
) -> str:
    """Return what needs more than the limit, and what helps: a scene whose blocks do, or else the model.

    `bare` are the bytes of the smallest tiles of a scene that takes next to nothing to read, if these fit.
    """
    allow = f"at least {least / 1e9 + 0.05:.1f}GB here" + (
        f" with {counted(workers, 'worker')}; use fewer, or" if workers else ";"
    )
    if scenes and bare is not None:
        worst = max(scenes, key=lambda scene: scene.bytes(LEAST_CACHE, bundle.tile_px, 1))
        return (
            f"{worst.why}, and reading it takes {(least - bare) / 1e9:.3g} GB: this needs {allow} allow that much, or "
            f"{TO_SMALL_BLOCKS}"
        )
    kind, halo, side = bundle.config.score.kind, bundle.halo_px, TILES_PX[-1] + 2 * bundle.halo_px
    cheaper = bundle.with_score(bundle.config.score.model_copy(update={"kind": "jsd"}))
    bank = tile_bytes(bundle, side) > 1.1 * tile_bytes(cheaper, side)
    return (
        f"this model needs {allow} allow that much, or train a smaller segmenter.encoder"
        + (f"; its score {kind} compares with a bank and takes a part of it, see score.kind" if bank else "")
        + (f"; its halo of {halo} px takes a part of it, see predict.halo_px" if halo > 0 else "")
    )


def _libraries() -> int:
    return CUDA_LIBRARIES if torch.version.cuda else 0


def _useful(tile_px: int, halo_px: int) -> float:
    """Return the share of a tile's pixels as read that are not halo."""
    return (tile_px / (tile_px + 2 * halo_px)) ** 2
