"""The tile engine: paths and windows out to Dask workers, scores back, each written once.

`score_scene` cuts a scene into tiles, hands paths and windows (never pixels, never open files) to the workers of a
Dask client, and writes each result with the one pair of writers of this process; only a bounded number of tiles is
under way, so memory does not grow with the scene. There is no blending and no accumulator.

On a CPU every tile is scored alone on one thread, and as many tiles at a time as there are threads. That is as fast as
sharing one tile between threads (no barriers) and makes the answer independent of how many workers there are, byte for
byte: the arithmetic of a tile never depends on what else runs. On a GPU tiles of one shape go in batches, and answers
agree within the rounding of its kernels.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geood.bundle import ModelBundle
from geood.config import PredictConfig, ScoreConfig
from geood.errors import BundleError, ConfigError, GeoodError, OutputError, TilesFailedError
from geood.grid import Grid, Tile, Window, tile_grid
from geood.memory import KEEP_FREED_MEMORY
from geood.progress import Progress
from geood.raster import NO_CLASS, ScoreWriter
from geood.scene import Scene
from geood.segmenter import Answer


class ScoredTile(NamedTuple):
    """What a worker sends back: score (h, w) float32, NaN where invalid, and class index (h, w) uint8."""

    window: Window
    score: NDArray[np.float32]
    classes: NDArray[np.uint8]
    valid_pixels: int


@contextmanager
def dask_client(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A Dask client: a running scheduler, `workers` processes here, or threads in this process.

    What is started here listens on this machine's loopback address only.
    """
    if workers and scheduler:
        raise ConfigError("--workers and --scheduler exclude each other: a running scheduler has its own workers")
    import dask
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    for name in [n for n in logging.root.manager.loggerDict if n.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    settings = {
        "logging": {"distributed": "critical", "tornado": "critical"},  # of worker processes
        "distributed.admin.tick.limit": "1h",
        "distributed.worker.daemon": True,
        "distributed.nanny.pre-spawn-environ": dask.config.get("distributed.nanny.pre-spawn-environ")
        | KEEP_FREED_MEMORY,
    }
    threads = torch.get_num_threads()
    with dask.config.set(settings):
        client = _connect(workers, scheduler)
        try:
            yield client
        except (KilledWorker, CommClosedError, CancelledError) as error:
            raise TilesFailedError(
                f"the workers died while they scored ({type(error).__name__}), most likely for lack of memory; "
                "use fewer --workers or a smaller predict.tile_px"
            ) from None
        finally:
            client.close()
            torch.set_num_threads(threads)


def _connect(workers: int, scheduler: str | None) -> Any:
    """The client of `dask_client`, connected."""
    from distributed import Client

    if scheduler:
        try:
            return Client(scheduler, timeout=10)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); give an address such as "
                "tcp://host:8786"
            ) from None
    at_once = 2 if torch.cuda.is_available() else _cores()  # on a GPU: one reads while the other scores
    here = "127.0.0.1"
    private = {"dashboard_address": f"{here}:0", "worker_dashboard_address": f"{here}:0"}
    quiet = {"scheduler_kwargs": {"dashboard": False}, "silence_logs": logging.CRITICAL, "memory_limit": 0}
    try:
        if not workers:
            return Client(processes=False, n_workers=1, threads_per_worker=at_once, **private, **quiet)
        threads = max(1, at_once // workers)
        return Client(n_workers=workers, threads_per_worker=threads, host=here, preload=[__name__], **private, **quiet)
    except (OSError, ValueError) as error:
        raise OutputError(f"no Dask workers could be started on this machine ({error})") from None


def dask_setup(_: Any) -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the one that started this worker process.

    Dask calls this by its name in every worker process of `dask_client`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def score_scene(
    scene: Path, bundle: Path, *, model: ModelBundle, writers: tuple[ScoreWriter, ScoreWriter], client: Any
) -> int:
    """Score every valid pixel of a scene once and write it; returns how many valid pixels there are.

    `client` is a `distributed.Client`. At most two tiles (on a GPU: batches) for each of its threads are under way.

    Raises:
        TilesFailedError: if a valid pixel came back without a finite score.
    """
    from distributed import as_completed

    _offer_model(bundle, model)
    score_writer, class_writer = writers
    with Scene.open(scene, nodata=model.bands.nodata) as opened:
        grid = opened.grid
    settings = model.config.predict
    batches = list(_batches(grid, settings, model.halo_px))
    slots = 2 * max(1, sum(client.nthreads().values()))
    waiting = iter(batches)
    state = scene.stat()
    job = (str(scene.resolve()), f"{state.st_mtime_ns} {state.st_size}", str(bundle.resolve()), model.identity)
    score = model.config.score

    def submit(batch: tuple[Tile, ...]) -> Any:
        return client.submit(score_tiles, *job, score, batch, pure=False)

    valid_pixels, holes = 0, []
    with Progress(scene.name, len(batches)) as progress:
        running = as_completed([submit(b) for b in itertools.islice(waiting, slots)], with_results=True)
        for future, results in running:
            future.release()
            for batch in itertools.islice(waiting, 1):
                running.add(submit(batch))
            for scored in results:
                if np.isfinite(scored.score).sum() != scored.valid_pixels:
                    holes.append(scored.window)
                score_writer.write(scored.window, scored.score)
                class_writer.write(scored.window, scored.classes)
                valid_pixels += scored.valid_pixels
            progress.advance()
    if holes:
        raise TilesFailedError(
            f"{scene}: {len(holes)} tiles hold valid pixels without a finite score, the first at row {holes[0].row}, "
            f"column {holes[0].col}; the model may be damaged, train or copy it again"
        )
    return valid_pixels


def score_tiles(  # noqa: PLR0917 - Dask passes them on by position
    scene: str, state: str, bundle: str, identity: str, score: ScoreConfig, tiles: tuple[Tile, ...]
) -> list[ScoredTile]:
    """What a Dask worker does: read tiles of one shape, score them together, cut off the halo.

    Takes paths and windows only, with the `state` (time and size) of the scene and the `identity` of the bundle, so
    that a worker that outlives a command never answers from an older file; `score` says what is asked. The bundle is
    loaded once per process, the scene opened once per thread. Tiles without a valid pixel in their write window give no
    result.
    """
    try:
        model, device = _worker_model(bundle, identity)
        opened = _worker_scene(scene, state, model.bands.nodata)
        return _score_tiles(opened, model.with_score(score), device=device, tiles=tiles)
    except GeoodError as error:
        failure = error
    failure.__context__ = failure.__cause__ = None  # GDAL's exceptions do not travel between processes
    raise failure


def _score_tiles(
    opened: Scene, model: ModelBundle, *, device: torch.device, tiles: tuple[Tile, ...]
) -> list[ScoredTile]:
    images, valids, kept = [], [], []
    for tile in tiles:
        pixels, valid = opened.read(tile.read, model.bands.indexes)
        if valid[tile.core].any():
            images.append(model.bands.scale(pixels, valid))
            valids.append(valid)
            kept.append(tile)
    if not kept:
        return []
    image, known = (torch.from_numpy(np.stack(arrays)).to(device) for arrays in (images, valids))
    with torch.inference_mode():
        answer = model.answer(image)
        return [_scored(tile, i, model, answer=answer, image=image, valid=known) for i, tile in enumerate(kept)]


def _scored(
    tile: Tile, i: int, model: ModelBundle, *, answer: Answer, image: torch.Tensor, valid: torch.Tensor
) -> ScoredTile:
    """What the answer to image `i` of a batch says about the valid pixels of its tile, halo cut off."""
    rows, cols = tile.core
    here = slice(i, i + 1)
    one = Answer(answer.logits[here], None if answer.outlier is None else answer.outlier[here], answer.features[here])
    score = model.score_of(one, image[here], valid[here], core=tile.core)[0].cpu().numpy()
    classes = one.logits[0, :, rows, cols].argmax(dim=0).to(torch.uint8).cpu().numpy()
    known = valid[i, rows, cols].cpu().numpy()
    score[~known], classes[~known] = np.nan, NO_CLASS
    return ScoredTile(tile.write, score, classes, int(np.count_nonzero(known)))


_models: dict[tuple[str, str], tuple[ModelBundle, torch.device]] = {}
_models_lock = threading.Lock()
_thread = threading.local()


def _offer_model(bundle: Path, model: ModelBundle) -> None:
    """Spare the threads of this process to load the bundle once more; a GPU gets it only where it is used."""
    if not torch.cuda.is_available():
        with _models_lock:
            _models.clear()
            _models[str(bundle.resolve()), model.identity] = (model, torch.device("cpu"))


def _worker_model(bundle: str, identity: str) -> tuple[ModelBundle, torch.device]:
    """The bundle, loaded once per process; on a CPU this thread then computes alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _models_lock:
        if (bundle, identity) not in _models:
            loaded = ModelBundle.load(bundle)
            if loaded.identity != identity:
                raise BundleError(f"{bundle}: was replaced while it was in use; run again")
            _models.clear()
            _models[bundle, identity] = (loaded.to(device), device)
        found = _models[bundle, identity]
    if device.type == "cpu" and not getattr(_thread, "alone", False):
        torch.set_num_threads(1)
        _thread.alone = True
    return found


def _worker_scene(scene: str, state: str, nodata: float | None) -> Scene:
    """The scene, opened once per thread (GDAL's handles must not be shared between threads)."""
    key = (scene, state, nodata)
    if getattr(_thread, "scene_key", None) != key:
        if getattr(_thread, "scene", None) is not None:
            _thread.scene.close()
        _thread.scene_key = None
        _thread.scene = Scene.open(scene, nodata=nodata)
        _thread.scene_key = key
    opened: Scene = _thread.scene
    return opened


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batches(grid: Grid, settings: PredictConfig, halo_px: int) -> Iterator[tuple[Tile, ...]]:
    """Tiles in reading order, alone on a CPU, in runs of one shape on a GPU."""
    tiles = tile_grid(grid.height, grid.width, tile_px=settings.tile_px, halo_px=halo_px)
    size = settings.batch if torch.cuda.is_available() else 1
    for _, alike in itertools.groupby(tiles, key=lambda t: (t.read.height, t.read.width)):
        while batch := tuple(itertools.islice(alike, size)):
            yield batch
