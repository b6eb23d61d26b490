"""Feed of a stage: batches of crops in the order of their positions, read while the step before them is computed.

With `data.workers` 0 one thread of the training process reads ahead; a process would take five seconds to start and
hundreds of megabytes. The thread computes alone: left to themselves torch's operations on a crop would wait for a
second pool of threads, beside that of the step. It reads within an epoch alone, so a validation, which reads the same
files, never runs beside it. What a batch holds depends on neither: a crop is a function of seed and position.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from geood.datasets import Crops
from geood.geo.gdal import gdal_env
from geood.training.plans import STAGES
from geood.training.stage import Stage, pl

AHEAD = 2  # batches that are read before they are asked for
Batch = dict[str, Any]


class EpochSlice(Sampler[int]):
    """Sampler of the positions of one epoch out of all positions of a stage; Lightning sets the epoch.

    It does so too late for the first epoch, when workers have taken positions already; `epoch` gives that one.
    """

    def __init__(self, length: int, epoch: int) -> None:
        self.length, self.epoch = length, epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))

    def __len__(self) -> int:
        return self.length


class Feed(DataLoader[Batch]):
    """Loader of batches that a thread reads ahead, unless it has worker processes, which do so themselves.

    One iterator reads at a time: a new one ends that before it.
    """

    _reading: ReadAhead | None = None

    def __iter__(self) -> Any:
        batches = super().__iter__()
        if self.num_workers:
            return batches
        self.close()
        self._reading = ReadAhead(batches)
        return self._reading

    def close(self) -> None:
        """Read no further, once the batch that is being read has ended."""
        if self._reading is not None:
            self._reading.close()


class ReadAhead(Iterator[Batch]):
    """Iterator of batches that one thread reads, `AHEAD` of them before they are asked for.

    What the reading raises is raised in its turn, and ends it.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, threads = batches, torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "feed", initializer=_compute_alone)
        self._pool.submit(int).result()  # it is set up
        torch.set_num_threads(threads)
        self._ready: deque[Future[Batch | None]] = deque(self._pool.submit(self._read) for _ in range(AHEAD))

    def __next__(self) -> Batch:
        try:
            batch = self._ready.popleft().result() if self._ready else None
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        self._ready.append(self._pool.submit(self._read))
        return batch

    def close(self) -> None:
        """Wait for the batch that is being read, and read no further."""
        self._ready.clear()
        self._pool.shutdown(cancel_futures=True)

    def _read(self) -> Batch | None:
        with gdal_env():  # one for the whole batch: those within it are entered faster
            return next(self._batches, None)


def _compute_alone() -> None:
    """Let torch compute on this thread alone; sets the number for threads to come as well, until it is set again."""
    torch.get_num_threads()  # else its first operation would take the number of the others
    torch.set_num_threads(1)


def feed_of(stage: Stage, crops: Crops, trainer: pl.Trainer, *, epoch: int) -> Feed:
    """Return a loader of batches of a stage, from `epoch` on; each epoch takes the next slice of its positions."""
    plan, config = stage.plan, stage.config
    per_epoch = plan.epoch_steps * plan.batch
    key = (config.train.seed, STAGES.index(plan.stage))
    dataset = crops.training(
        int(np.random.SeedSequence(key).generate_state(1)[0]),
        per_epoch * plan.epochs,
        rank=trainer.global_rank,
        world=trainer.world_size,
    )
    workers = config.data.workers
    return Feed(
        dataset,
        batch_size=plan.batch,
        sampler=EpochSlice(per_epoch, epoch),
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=torch.cuda.is_available() and config.train.accelerator != "cpu",
    )
