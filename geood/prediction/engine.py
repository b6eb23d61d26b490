"""Inference engine: scores and classes of batches of tiles, on a CPU or a GPU.

On a CPU each tile is scored by one thread, a given number of tiles at a time, by a network whose batch norms are folded
(`models.inference`). On a GPU batches of tiles of one shape are scored in bfloat16. The hundreds of small kernels of a
forward pass are captured once for each shape, as a CUDA graph, and replayed by one call: launched one by one they would
wait for the GIL, which the threads that decode and pack tiles hold meanwhile, and a GPU capable of 270 Mpx/s would
reach 40. 8-bit digital numbers are scaled on the GPU too. Transfers to and from the GPU overlap with computation, on
streams of their own. This module knows nothing of files or of tile positions.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geood.calibration import pooled_features
from geood.config import PredictConfig
from geood.geo.cog.encoding import rounded
from geood.models import ModelBundle, Region, SegmenterOutput, autocast, class_bands, cut, for_inference
from geood.prediction.cluster import cores

log = logging.getLogger("geood")
MOST_AT_ONCE = 8  # tiles in a batch, and in a task: with more, a GPU gains 7 % and the threads that feed it lose more
GPU_SHARE = 0.7  # share of a GPU's free memory that batches may take; kernels need room of their own
GRAPHS = 4  # graphs captured at most: inner tiles of a scene and its edges; each holds the memory of its batch


class Batch(NamedTuple):
    """Tiles of one shape: `image` (C, H, W) of each, 8-bit digital numbers or scaled to [0, 1], and `valid` (H, W)."""

    image: Sequence[NDArray[Any]]
    valid: Sequence[NDArray[np.bool_]]


class Maps(NamedTuple):
    """Scores (B, h, w) float32, classes and their evidence (B, h, w, 4) uint8 (`models.evidence`), and pooled features
    (B, P, H / 32, W / 32) float32.
    """

    score: NDArray[np.float32]
    classes: NDArray[np.uint8]
    features: NDArray[np.float32]


class _Graph(NamedTuple):
    """A captured CUDA graph with its static input and output tensors."""

    graph: Any
    image: Tensor
    valid: Tensor
    score: Tensor
    classes: Tensor
    features: Tensor


class Engine:
    """A bundle on its device, ready to compute the score of its config; `batch` is the most tiles of one pass."""

    def __init__(self, bundle: ModelBundle, computing: int, predict: PredictConfig) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bundle = for_inference(bundle.to(self.device).with_predict(predict))
        self.on_gpu = self.device.type == "cuda"
        self.batch = 1
        self._precision = predict.precision
        self._floor = min(bundle.thresholds.values(), default=float("-inf"))
        self._gate = threading.BoundedSemaphore(1 if self.on_gpu else computing or cores())
        self._configured_batch = predict.batch
        self._sized = not self.on_gpu
        self._stream = torch.cuda.Stream() if self.on_gpu else None
        self._graphs: dict[Any, _Graph | None] = {}
        low, high, fill = (
            torch.tensor(v)[:, None, None] for v in (bundle.bands.low, bundle.bands.high, bundle.bands.fill)
        )
        self._low, self._gain, self._fill = (v.to(self.device) for v in (low, 1 / (high - low), fill))
        if predict.compile:
            compiled: Any = torch.compile(self.bundle.segmenter, dynamic=False)
            self.bundle = dataclasses.replace(self.bundle, segmenter=compiled)

    def maps(self, batch: Batch, core: Region) -> Maps:
        """Return scores and classes and features in the rows and columns `core` of a batch.

        Raises:
            torch.OutOfMemoryError: the batch is too large.
        """
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # for this thread; otherwise each has its own pool, and they compete for cores
        if self.on_gpu:
            return self._on_gpu(batch, core)
        with self._gate:
            image, valid = (_together(arrays, pinned=False) for arrays in batch)
            output = self._pass(image, valid, core)
            return Maps(*(tensor.numpy() for tensor in output))

    def shrink(self, tiles: int) -> None:
        """Limit batches to `tiles` tiles from now on, and free the memory of larger ones."""
        self.batch = tiles
        self._graphs.clear()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def _pass(self, image: Tensor, valid: Tensor, core: Region) -> tuple[Tensor, Tensor, Tensor]:
        """Return score, class and pooled features of a batch on its device."""
        with torch.inference_mode():
            if image.dtype == torch.uint8:
                image = torch.where(valid[:, None], ((image - self._low) * self._gain).clamp_(0, 1), self._fill)
            kinds = (self.bundle.config.score.kind,)
            region, core = self.bundle.region_of(core, image.shape[-2:], kinds)
            with autocast(self._precision, self.device):
                output = self.bundle.infer(image, kinds, region)
            image, valid = cut(image, region), cut(valid, region)
            if self.on_gpu:  # sums over classes are slow there if these are adjacent in memory (channels last)
                tensors: Any = (None if t is None else t.float().contiguous() for t in output)
                output = SegmenterOutput(*tensors)
            score = rounded(self.bundle.score_of(output, image, valid, core=core).float())
            bands = class_bands(self.bundle, output, score, floor=self._floor, core=core)
            return score, bands, pooled_features(cut(output.features, core, stride=4))

    def _on_gpu(self, batch: Batch, core: Region) -> Maps:
        """Compute `maps` on a GPU: kernels on one compute stream, each thread's transfers on its own copy stream."""
        compute, copies = self._stream, _copy_stream()
        assert compute is not None
        image, valid = (_together(arrays, pinned=True) for arrays in batch)
        with torch.cuda.stream(copies):
            image, valid = (t.to(self.device, non_blocking=True) for t in (image, valid))
        with self._gate, torch.cuda.stream(compute):
            compute.wait_stream(copies)
            for tensor in (image, valid):
                tensor.record_stream(compute)
            if not self._sized:
                self._find_batch(image[:1], valid[:1], core)
            output = self._replayed(image, valid, core) or self._pass(image, valid, core)
            done = compute.record_event()
        with torch.cuda.stream(copies):
            copies.wait_event(done)
            for tensor in output:
                tensor.record_stream(copies)
            on_host = [_to_host(tensor) for tensor in output]
            ready = torch.cuda.Event(blocking=True)  # otherwise this thread would busy-wait on a core
            ready.record(copies)
        ready.synchronize()
        return Maps(*(tensor.numpy() for tensor in on_host))

    def _replayed(self, image: Tensor, valid: Tensor, core: Region) -> tuple[Tensor, Tensor, Tensor] | None:
        """Replay the captured CUDA graph for this shape; None if capture failed or the shape is not captured."""
        tiles, rest = image.shape[0], image.shape[1:]
        key = (rest, image.dtype, *((c.start, c.stop) for c in core))
        if key not in self._graphs:
            if len(self._graphs) >= GRAPHS or tiles < self.batch:
                return None
            self._graphs[key] = self._recorded(image, valid, core)
        graph = self._graphs[key]
        if graph is None or tiles > graph.image.shape[0]:
            return None
        graph.image[:tiles].copy_(image)
        graph.valid[:tiles].copy_(valid)
        graph.graph.replay()
        return graph.score[:tiles].clone(), graph.classes[:tiles].clone(), graph.features[:tiles].clone()

    def _recorded(self, image: Tensor, valid: Tensor, core: Region) -> _Graph | None:
        image, valid = image.clone(), valid.clone()
        for _ in range(2):  # warm-up: kernels are selected in the first passes
            self._pass(image, valid, core)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                maps = self._pass(image, valid, core)
        except RuntimeError as error:  # an operation that synchronizes with the CPU, as some scores have
            if isinstance(error, torch.OutOfMemoryError):
                raise
            log.debug("no CUDA graph is captured for tiles of %s: %s", tuple(image.shape), error)
            return None
        return _Graph(graph, image, valid, *maps)

    def _find_batch(self, image: Tensor, valid: Tensor, core: Region) -> None:
        """Set the batch size: that of the config, else as many tiles as fit, by the memory that a first one takes."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self._pass(image, valid, core)
        torch.cuda.synchronize()
        taken = max(1, torch.cuda.max_memory_allocated() - before)
        free, _ = torch.cuda.mem_get_info()
        fits = int(free * GPU_SHARE / taken / GRAPHS)
        self.batch = self._configured_batch or max(1, min(MOST_AT_ONCE, fits))
        self._sized = True


def _together(arrays: Sequence[NDArray[Any]], *, pinned: bool) -> Tensor:
    """Return the arrays of a batch as one tensor, copied once; a single one is not copied unless it is to be pinned."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if len(tensors) == 1 and not pinned:
        return tensors[0][None]
    shape = len(tensors), *tensors[0].shape
    return torch.stack(tensors, out=torch.empty(shape, dtype=tensors[0].dtype, pin_memory=pinned))


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


_thread = threading.local()


def _copy_stream() -> Any:
    """Return the copy stream of this thread."""
    if not hasattr(_thread, "stream"):
        _thread.stream = torch.cuda.Stream()
    return _thread.stream
