"""The tile engine: a scene's tiles out to Dask workers, packed scores back into its journal, each once.

Workers get paths and windows (never pixels, never open files). Only a bounded number of tiles is under way, so memory
does not grow with the scene; there is no blending and no accumulator. A worker that is lost has its tiles done again by
the others; a tile that keeps failing is set down with its reason and the others go on. What a worker does with a tile
is the matter of `workers`.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geood.errors import BundleError, DataError, GeoodError
from geood.geo.grid import Grid
from geood.geo.paths import is_remote
from geood.prediction.cluster import WorkerWatchdog
from geood.prediction.engine import MOST_AT_ONCE
from geood.prediction.job import FailedTile, Job, NumberedTile, ScoredTile, tiles_of
from geood.prediction.journal import Journal
from geood.prediction.worker import score_tiles
from geood.progress import Progress

log = logging.getLogger("geood")
LOOK_S = 0.01  # between looks whether a result is there
TRIES = 2  # of a tile whose workers die
HOPELESS = 16  # failed tiles without one that went well, after which a run is given up
HOPELESS_AFAR = 2  # the same for a scene on a server, where each of them was tried for minutes


def have_gpu(client: Any) -> bool:
    """Whether a worker of a client has a GPU."""
    return any(client.run(_sees_gpu).values())


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def score_scene(
    job: Job, grid: Grid, *, halo_px: int, journal: Journal, client: Any, on_gpu: bool, title: str
) -> list[FailedTile]:
    """Score all tiles of a scene that its journal does not hold yet; returns those that failed.

    `client` is a `distributed.Client`, whose workers have GPUs or not. At most two tasks for each of its threads are
    under way.

    Raises:
        BundleError: if workers cannot load the bundle.
        DataError: if no tile at all can be scored.
        OutputError: if the journal cannot be written.
        RunLostError: if there are no workers any more.
    """
    total = sum(1 for _ in tiles_of(grid, job, halo_px=halo_px))
    todo = (one for one in tiles_of(grid, job, halo_px=halo_px) if one.number not in journal.figures)
    run = TileQueue(job, client, on_gpu=on_gpu)
    failed: list[FailedTile] = []
    hopeless = HOPELESS_AFAR if is_remote(job.source.name) else HOPELESS
    with Progress(title, total, start=len(journal.figures)) as progress:
        for result in run.results(todo):
            if isinstance(result, ScoredTile):
                journal.append(result.number, result.figures, result.chunks)
            else:
                failed.append(result)
                if len(failed) >= hopeless and not journal.figures:
                    raise DataError(f"{title}: none of the first {len(failed)} tiles could be scored ({result.reason})")
            progress.advance()
    if failed and len(failed) == total:
        raise DataError(f"{title}: no tile could be scored ({failed[0].reason})")
    return sorted(failed)


class TileQueue:
    """The tasks of one scene, given out to the workers of a client."""

    def __init__(self, job: Job, client: Any, *, on_gpu: bool) -> None:
        self._client = client
        self._job = self._sent(job)
        self._plain = job
        self._size = MOST_AT_ONCE if on_gpu else 1
        threads = max(1, sum(client.nthreads().values()))
        self._slots = threads + 2 if on_gpu else 2 * threads
        self._again: deque[tuple[NumberedTile, ...]] = deque()
        self._tries: Counter[int] = Counter()

    def results(self, tiles: Iterator[NumberedTile]) -> Iterator[ScoredTile | FailedTile]:
        """What comes back of each tile, in whatever order."""
        from distributed import as_completed

        tasks = self._tasks(tiles)
        under_way: dict[Any, tuple[NumberedTile, ...]] = {}
        running = as_completed(with_results=True, raise_errors=False)
        while True:
            while len(under_way) < self._slots and (task := self._next(tasks)):
                future = self._client.submit(score_tiles, self._job, task, pure=False)
                under_way[future] = task
                running.add(future)
            if not under_way:
                return
            patience = WorkerWatchdog(self._client)
            while not running.has_ready():
                patience.look()
                time.sleep(LOOK_S)
            future, result = next(running)
            task = under_way.pop(future)
            if future.status == "error":
                yield from self._failed(task, result[1])
            elif isinstance(result, BaseException):
                raise result
            else:
                yield from result
            future.release()

    def _next(self, tasks: Iterator[tuple[NumberedTile, ...]]) -> tuple[NumberedTile, ...] | None:
        return self._again.popleft() if self._again else next(tasks, None)

    def _tasks(self, tiles: Iterator[NumberedTile]) -> Iterator[tuple[NumberedTile, ...]]:
        while task := tuple(itertools.islice(tiles, self._size)):
            yield task

    def _failed(self, task: tuple[NumberedTile, ...], error: BaseException) -> Iterator[FailedTile]:
        """What is to be done where a task brought an error instead of results."""
        from distributed import KilledWorker

        if isinstance(error, BundleError) and self._plain.weights is None and "no such bundle" in str(error):
            log.info("a worker does not see %s: it is sent to the workers", self._plain.bundle_path)
            self._plain = dataclasses.replace(self._plain, weights=Path(self._plain.bundle_path).read_bytes())
            self._job = self._sent(self._plain)
            self._again.append(task)
        elif isinstance(error, BundleError) and "no such bundle" in str(error):
            self._again.append(task)  # given out before the bundle was sent
        elif isinstance(error, GeoodError) or not isinstance(error, (KilledWorker, MemoryError)):
            raise error
        else:
            for one in task:
                self._tries[one.number] += 1
                if self._tries[one.number] < TRIES:
                    self._again.append((one,))
                else:
                    reason = f"the workers died while they scored it ({type(error).__name__})"
                    yield FailedTile(one.number, one.tile.write, reason)

    def _sent(self, job: Job) -> Any:
        """The job as a future, so that it goes to each worker once, and again to one that comes later."""
        return self._client.submit(_same, job, pure=False)


def _same(job: Job) -> Job:
    return job
