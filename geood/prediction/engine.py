"""The networks of a bundle where they compute: scores and classes of batches of tiles, on a CPU or a GPU.

On a CPU one tile is scored on one thread, and as many at a time as are told. On a GPU batches of one shape go through
in bfloat16. There the hundreds of small kernels of a pass are recorded once for each shape and replayed by one call (a
CUDA graph): launched one by one they wait for Python's lock, which the threads that decode and pack tiles hold
meanwhile, and a GPU that can do 270 Mpx/s gets 40. Digital numbers of 8 bit are scaled there too. Copies to and from
the GPU run beside its work, in streams of their own. This room knows nothing of files or of where tiles lie.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geood.config import PredictConfig
from geood.models import ModelBundle, SegmenterOutput

log = logging.getLogger("geood")
MOST_AT_ONCE = 8  # tiles in a batch, and in a task: beyond, a GPU gains 7 % and the threads that feed it lose more
GPU_SHARE = 0.7  # of the free memory of a GPU that a batch may take; kernels need room of their own
GRAPHS = 4  # recorded at most: the inner tiles of a scene and its edges; each holds the memory of its batch

Core = tuple[slice, slice]


class Batch(NamedTuple):
    """Tiles of one shape: digital numbers of 8 bit or scaled ones (B, C, H, W), where they are valid (B, H, W)."""

    image: NDArray[Any]
    valid: NDArray[np.bool_]


class Maps(NamedTuple):
    """Scores (B, h, w) float32 and class indexes (B, h, w) uint8."""

    score: NDArray[np.float32]
    classes: NDArray[np.uint8]


class _Graph(NamedTuple):
    """A recorded pass: where its input goes, and where its output lies."""

    graph: Any
    image: Tensor
    valid: Tensor
    score: Tensor
    classes: Tensor


class Engine:
    """A bundle, ready to give the score of its config; `batch` is how many tiles it takes at once."""

    def __init__(self, bundle: ModelBundle, computing: int, predict: PredictConfig) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bundle = bundle.to(self.device)
        self.on_gpu = self.device.type == "cuda"
        self.batch = 1
        self._precision = _precision(predict.precision, self.device)
        self._gate = threading.BoundedSemaphore(1 if self.on_gpu else computing)
        self._batch_told = predict.batch
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

    def maps(self, batch: Batch, core: Core, *, classes: bool = True) -> Maps:
        """Scores and classes in rows and columns `core` of a batch; without `classes` these may be anything.

        Raises:
            torch.OutOfMemoryError: if the batch is too large.
        """
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # of this thread alone; else each has a team of its own, and they fight for cores
        if self.on_gpu:
            return self._on_gpu(batch, core)
        with self._gate:
            image, valid = torch.from_numpy(batch.image), torch.from_numpy(batch.valid)
            found = self._pass(image, valid, core, classes=classes)
            return Maps(*(tensor.numpy() for tensor in found))

    def shrink(self, tiles: int) -> None:
        """Take at most so many tiles at once from now on, and let go of the memory of larger batches."""
        self.batch = tiles
        self._graphs.clear()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def _pass(self, image: Tensor, valid: Tensor, core: Core, *, classes: bool = True) -> tuple[Tensor, Tensor]:
        """Score and class of a batch on its device."""
        low = torch.autocast(self.device.type, dtype=self._precision) if self._precision else nullcontext()
        with torch.inference_mode():
            if image.dtype == torch.uint8:
                image = torch.where(valid[:, None], ((image - self._low) * self._gain).clamp_(0, 1), self._fill)
            with low:
                output = self.bundle.infer(image)
            rows, cols = core
            if self.on_gpu:  # which is slow at sums over classes that lie next to each other in memory
                parts: Any = (None if t is None else t.float().contiguous() for t in output)
                output = SegmenterOutput(*parts)
            score = self.bundle.score_of(output, image, valid, core=core)
            if not classes:  # finding them takes a CPU half as long as the score
                return score.float(), torch.zeros(score.shape, dtype=torch.uint8, device=score.device)
            return score.float(), output.logits[:, :, rows, cols].argmax(dim=1).to(torch.uint8)

    def _on_gpu(self, batch: Batch, core: Core) -> Maps:
        """The same through a GPU: its work in one stream, copies of each thread in another beside it."""
        compute, copies = self._stream, _copy_stream()
        assert compute is not None
        image, valid = (torch.from_numpy(array).pin_memory() for array in batch)
        with torch.cuda.stream(copies):
            image, valid = (t.to(self.device, non_blocking=True) for t in (image, valid))
        with self._gate, torch.cuda.stream(compute):
            compute.wait_stream(copies)
            for tensor in (image, valid):
                tensor.record_stream(compute)
            if not self._sized:
                self._find_batch(image[:1], valid[:1], core)
            found = self._replayed(image, valid, core) or self._pass(image, valid, core)
            done = compute.record_event()
        with torch.cuda.stream(copies):
            copies.wait_event(done)
            for tensor in found:
                tensor.record_stream(copies)
            on_host = [_to_host(tensor) for tensor in found]
            ready = torch.cuda.Event(blocking=True)  # else this thread keeps a core busy with waiting
            ready.record(copies)
        ready.synchronize()
        return Maps(*(tensor.numpy() for tensor in on_host))

    def _replayed(self, image: Tensor, valid: Tensor, core: Core) -> tuple[Tensor, Tensor] | None:
        """The same by a recorded pass; None where there is none: a score that cannot be recorded, a rare shape."""
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
        return graph.score[:tiles].clone(), graph.classes[:tiles].clone()

    def _recorded(self, image: Tensor, valid: Tensor, core: Core) -> _Graph | None:
        image, valid = image.clone(), valid.clone()
        for _ in range(2):  # kernels choose themselves in the first passes
            self._pass(image, valid, core)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                score, classes = self._pass(image, valid, core)
        except RuntimeError as error:  # a step that waits for the CPU, as some scores have
            if isinstance(error, torch.OutOfMemoryError):
                raise
            log.debug("tiles of %s are not recorded: %s", tuple(image.shape), error)
            return None
        return _Graph(graph, image, valid, score, classes)

    def _find_batch(self, image: Tensor, valid: Tensor, core: Core) -> None:
        """Set how many tiles are scored at once: as told, else as many as fit beside a first one."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self._pass(image, valid, core)
        torch.cuda.synchronize()
        taken = max(1, torch.cuda.max_memory_allocated() - before)
        free, _ = torch.cuda.mem_get_info()
        fits = int(free * GPU_SHARE / taken / GRAPHS)
        self.batch = self._batch_told or max(1, min(MOST_AT_ONCE, fits))
        self._sized = True


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _precision(asked: str, device: torch.device) -> torch.dtype | None:
    """The lower precision that networks compute in; None for float32."""
    if asked == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[asked]


_thread = threading.local()


def _copy_stream() -> Any:
    """The stream of this thread for copies."""
    if not hasattr(_thread, "stream"):
        _thread.stream = torch.cuda.Stream()
    return _thread.stream
