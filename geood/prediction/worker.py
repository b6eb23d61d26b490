"""Task of a Dask worker: read tiles, score them, cut off the halo, and pack the results.

On a CPU each tile is scored alone, so its arithmetic never depends on what else runs: the output is the same for any
number of workers, byte for byte. On a GPU tiles of one shape are scored in batches (see `engine`), and outputs agree
within the rounding of its kernels.

The bundle is loaded once per process. The scene is opened once per thread, or once per process under a lock if it can
only be decoded by whole rows or in large blocks. A tile that cannot be read or scored is returned as a `FailedTile`, so
that the others go on.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geood.calibration import CellMaps, tile_cells
from geood.constants import NO_CLASS
from geood.errors import BundleError, DataError, GeoodError
from geood.geo.cog.encoding import EMPTY, encode_tile, rounded
from geood.geo.gdal import limit_cache
from geood.geo.paths import with_retries
from geood.geo.scene import Scene
from geood.geo.scene_reading import WayBack, read_tile
from geood.models import ModelBundle, Region
from geood.prediction.engine import Batch, Engine, Maps
from geood.prediction.job import FailedTile, Job, NumberedTile, ScoredTile
from geood.prediction.journal import Chunk, TileFigures
from geood.prediction.malloc import give_back

NOTHING = Chunk.of(EMPTY)
NEARLY = 0.9  # share of a process's memory limit above which it releases freed memory


class ReadTile(NamedTuple):
    """A tile as read: image (C, H, W), 8-bit or scaled to [0, 1], validity (H, W), and the pixels to score (h, w)."""

    numbered: NumberedTile
    image: NDArray[Any]
    valid: NDArray[np.bool_]
    wanted: NDArray[np.bool_]


def score_tiles(job: Job, tiles: Sequence[NumberedTile]) -> list[ScoredTile | FailedTile]:
    """Read, score and pack tiles; return one result for each, in any order.

    Raises:
        BundleError: the bundle cannot be loaded here, or is not the job's.
    """
    try:
        limit_cache(job.cache_bytes)
        engine = STATE.engine(job)
    except GeoodError as error:
        failure = error
        failure.__context__ = failure.__cause__ = None  # GDAL's exceptions do not travel between processes
        raise failure from None
    results: list[ScoredTile | FailedTile] = []
    ready: list[ReadTile] = []
    for numbered in tiles:
        try:
            pixels = _read(job, engine, numbered)
        except DataError as error:
            results.append(FailedTile(numbered.number, numbered.tile.write, str(error)))
            continue
        if pixels is None:
            results.append(ScoredTile(numbered.number, TileFigures(), (NOTHING, NOTHING, NOTHING)))
        else:
            ready.append(pixels)
    for batch in _batches(ready, engine.batch):
        results.extend(_scored(job, engine, batch))
    if job.process_bytes is not None:
        give_back(above=int(job.process_bytes * NEARLY))
    return results


def _read(job: Job, engine: Engine, numbered: NumberedTile) -> ReadTile | None:
    """Read the pixels of a tile; None if none of them is to be scored."""
    tile = numbered.tile

    def attempt() -> ReadTile | None:
        try:
            with STATE.scene(job) as scene:
                pixels, valid, wanted = read_tile(scene, tile)
        except DataError:
            STATE.forget_scene()
            raise
        if job.area is not None:
            wanted = wanted & job.area.covers(tile.write)
        if not wanted.any():
            return None
        raw = engine.on_gpu and pixels.dtype == np.uint8
        return ReadTile(numbered, pixels if raw else engine.bundle.bands.scale(pixels, valid), valid, wanted)

    return with_retries(attempt, name=job.source.name)


def _batches(ready: list[ReadTile], most: int) -> Iterator[list[ReadTile]]:
    """Yield batches of consecutive tiles of one shape, of `most` tiles at most."""
    batch: list[ReadTile] = []
    for pixels in ready:
        if batch and (len(batch) == most or pixels.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(pixels)
    if batch:
        yield batch


def _scored(job: Job, engine: Engine, batch: list[ReadTile]) -> list[ScoredTile | FailedTile]:
    """Score and pack a batch; halve it as long as it does not fit the memory."""
    try:
        core = _core(job, batch[0])
        maps = engine.maps(Batch([pixels.image for pixels in batch], [pixels.valid for pixels in batch]), core)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if _is_memory(error) and len(batch) > 1:
            engine.shrink(len(batch) // 2)
            return [result for half in _batches(batch, engine.batch) for result in _scored(job, engine, half)]
        reason = f"{type(error).__name__}: {error}"
        if _is_memory(error):
            reason = f"not enough memory for a tile of {job.tile_px} px; use a smaller predict.tile_px"
        return [FailedTile(number, tile.write, reason) for (number, tile), *_ in batch]
    cells = _measured(job, engine, batch, maps)
    return [
        _packed(job, pixels, score=score, classes=classes, cells=measured)
        for pixels, score, classes, measured in zip(batch, maps.score, maps.classes, cells, strict=True)
    ]


def _measured(job: Job, engine: Engine, batch: Sequence[ReadTile], maps: Maps) -> list[NDArray[np.float32]]:
    """Return the statistics (n, S) of the cells of each tile of a batch."""
    bundle, found = engine.bundle, []
    for pixels, score, classes, features in zip(batch, *maps, strict=True):
        raw = pixels.image.dtype == np.uint8  # it was scaled on the GPU
        bands = bundle.bands if raw else None
        cells = CellMaps(pixels.image, score, classes[..., 0], features, len(bundle.class_ids), bands)
        tile = pixels.numbered.tile
        found.append(tile_cells(cells, tile, pixels.wanted, scale=job.source.scale))
    return found


def _core(job: Job, pixels: ReadTile) -> Region:
    """Return the rows and columns of a tile as read to score: without the halo, unless scores are resampled later."""
    halo = pixels.numbered.tile.halo_px if job.source.scale == 1 else 0
    rows, cols = (slice(halo, side - halo) for side in pixels.image.shape[1:])
    return rows, cols


def _is_memory(error: BaseException) -> bool:
    return (
        not isinstance(error, RuntimeError)
        or isinstance(error, torch.OutOfMemoryError)
        or "alloc" in str(error).lower()
    )


def _packed(
    job: Job, pixels: ReadTile, *, score: NDArray[np.float32], classes: NDArray[np.uint8], cells: NDArray[np.float32]
) -> ScoredTile | FailedTile:
    """Cut a scored tile to its write window, blank its invalid pixels, and pack it."""
    (number, tile), wanted = pixels.numbered, pixels.wanted
    if job.source.scale == 1:
        inside = slice(tile.write.height), slice(tile.write.width)
        score, classes = score[inside], classes[inside]
    else:
        back = WayBack(tile, job.source.scale)
        score = rounded(back.scores(score))
        classes = back.classes(classes) if job.classes else classes
    whole = bool(wanted.all())
    values = score if whole else score[wanted]
    mean = float(values.mean(dtype=np.float64))
    if not np.isfinite(mean):
        return FailedTile(number, tile.write, "valid pixels have no finite score; the model may be damaged")
    squares = values - np.float32(mean)
    np.square(squares, out=squares)
    above = None if job.threshold is None else int(np.count_nonzero(values > job.threshold))
    spread = float(squares.sum(dtype=np.float64))
    figures = TileFigures(values.size, mean, spread, float(values.min()), float(values.max()), above)
    if not whole:
        score = np.where(wanted, score, np.float32(np.nan))
    packed = encode_tile(score, tile_px=job.tile_px, nodata=float("nan"), overview="average")
    packed_classes = EMPTY
    if job.classes:
        blank = classes if whole else np.where(wanted[..., None], classes, np.uint8(NO_CLASS))
        packed_classes = encode_tile(blank, tile_px=job.tile_px, nodata=NO_CLASS, overview="mode")
    chunks = Chunk.of(packed), Chunk.of(packed_classes), Chunk.of(cells.astype("<f4").tobytes())
    return ScoredTile(number, figures, chunks)


class WorkerState:
    """State of one worker process between tiles: the engine of its bundle, and open scenes.

    GDAL's handles must not be shared by threads, so a scene is opened once per thread; a scene of strips, which can
    only be decoded by whole rows, or of large blocks is opened once for all threads and read under a lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[object, ...] | None = None
        self._engine: Engine | None = None
        self._preloaded: tuple[str, str, ModelBundle] | None = None
        self._scenes_lock = threading.RLock()
        self._shared: dict[object, Scene] = {}
        self._thread = threading.local()

    def preload(self, bundle_path: Path, bundle: ModelBundle) -> None:
        """Keep a loaded bundle for the threads of this process; its engine moves it to a GPU if there is one."""
        with self._lock:
            self._key = self._engine = None
            self._preloaded = str(bundle_path.resolve()), bundle.identity, bundle

    @contextmanager
    def holding(self, bundle_path: Path, bundle: ModelBundle) -> Iterator[None]:
        """Keep a loaded bundle for a run; at its end let go of it and of its engine, and close the scenes."""
        self.preload(bundle_path, bundle)
        try:
            yield
        finally:
            self.forget_scene()
            with self._lock:
                self._key = self._engine = self._preloaded = None

    def engine(self, job: Job) -> Engine:
        """Return the engine of a job, made once for each bundle, score and set of inference settings.

        Raises:
            BundleError: the bundle cannot be loaded, or was replaced meanwhile.
        """
        predict = job.predict
        inference = (job.computing, predict.precision, predict.compile, predict.batch)
        key = (job.bundle_path, job.identity, job.score, *inference)
        with self._lock:
            if self._engine is None or self._key != key:
                self._engine = None  # frees its memory before the next one is made
                bundle = self._loaded(job)
                if bundle.identity != job.identity:
                    raise BundleError(f"{job.bundle_path}: was replaced while it was in use; run again")
                self._key, self._engine = key, Engine(bundle.with_score(job.score), job.computing, predict)
            return self._engine

    def _loaded(self, job: Job) -> ModelBundle:
        if self._preloaded and self._preloaded[:2] == (job.bundle_path, job.identity):
            return self._preloaded[2]
        if job.weights is None:
            return ModelBundle.load(job.bundle_path, flow=False, tell=False)
        with tempfile.TemporaryDirectory(prefix="geood-") as folder:
            copy = Path(folder) / "model.safetensors"
            copy.write_bytes(job.weights)
            return ModelBundle.load(copy, flow=False, tell=False)

    @contextmanager
    def scene(self, job: Job) -> Iterator[Scene]:
        """Yield the scene of a job, open for reading in this thread.

        Raises:
            DataError: the scene cannot be opened.
        """
        key = (job.source, job.state)
        if getattr(self._thread, "key", None) == key:
            yield self._thread.scene
            return
        with self._scenes_lock:
            if key in self._shared:
                yield self._shared[key]
                return
        scene = Scene.open(job.source)
        self.forget_scene(but=key)
        if not scene.shared:
            self._thread.scene, self._thread.key = scene, key
            yield scene
            return
        with self._scenes_lock:
            if self._shared.setdefault(key, scene) is not scene:
                scene.close()
            yield self._shared[key]

    def forget_scene(self, but: object = None) -> None:
        """Close the scene of this thread, and all shared ones except `but`, so that they are opened anew."""
        with self._scenes_lock:
            for key in [k for k in self._shared if k != but]:
                self._shared.pop(key).close()
        if getattr(self._thread, "scene", None) is not None:
            self._thread.scene.close()
        self._thread.scene = self._thread.key = None


STATE = WorkerState()  # one per process; Dask tasks are plain functions and find it here
