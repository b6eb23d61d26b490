"""Distribution of a scene's tiles to Dask workers, and collection of packed scores in its journal, each tile once.

Workers receive paths and windows, never pixels or open files. The number of tiles in flight is bounded, so memory does
not grow with the scene; there is no blending and no accumulator. The tiles of a lost worker are scored again by the
others; a tile that keeps failing is recorded with the reason, and the others go on. What a worker does with a tile is
in `worker`.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
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
LOOK_S = 0.01  # polling interval for results, seconds
TOGETHER = 8  # of that many threads, one may wait for others, so that their new tasks are sent together
TRIES = 2  # attempts at a tile whose workers die
HOPELESS = 16  # first tiles of a scene after whose failure a run stops: in their order, whichever fails soonest
HOPELESS_AFAR = 2  # the same for a scene on a server, where each tile was retried for minutes


def first_of(tiles: Iterator[NumberedTile], job: Job) -> list[NumberedTile]:
    """Return the first tiles of a scene, after whose failure it is given up."""
    return [*itertools.islice(tiles, HOPELESS_AFAR if is_remote(job.source.name) else HOPELESS)]


def have_gpu(client: Any) -> bool:
    """Return whether any worker of a `distributed.Client` has a GPU."""
    return any(client.run(_sees_gpu).values())


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def score_scene(
    job: Job,
    grid: Grid,
    *,
    journal: Journal,
    client: Any,
    on_gpu: bool,
    title: str,
    finished: Callable[[int], None],
) -> list[FailedTile]:
    """Score all tiles of a scene that are not in its journal yet; return those that failed.

    `client` is a `distributed.Client`; `on_gpu` tells whether its workers have GPUs. At most two tasks per worker
    thread are in flight. `finished` is told how many rows of tiles, from the top, have no tile left to score, whenever
    that number has changed; its errors pass through.

    Raises:
        BundleError: the workers cannot load the bundle.
        DataError: not a single tile can be scored.
        OutputError: the journal cannot be written.
        RunLostError: all workers are gone.
    """
    total = sum(1 for _ in tiles_of(grid, job))
    todo: Iterator[NumberedTile] = (tile for tile in tiles_of(grid, job) if tile.number not in journal.figures)
    first = first_of(todo, job)
    todo, needed = itertools.chain(first, todo), {tile.number for tile in first}
    queue = TileQueue(job, client, on_gpu=on_gpu)
    rows = _FinishedRows(job, grid, journal)
    failed: list[FailedTile] = []
    with Progress(title, total, start=len(journal.figures)) as progress:
        for result in queue.results(todo):
            if isinstance(result, ScoredTile):
                journal.append(result.number, result.figures, result.chunks)
            else:
                failed.append(result)
                needed.discard(result.number)
                if not needed and not journal.figures and len(first) < total:
                    raise DataError(f"{title}: none of the first {len(first)} tiles could be scored ({result.reason})")
            if rows.count(result.number):
                finished(rows.top)
            progress.advance()
    if failed and len(failed) == total:
        raise DataError(f"{title}: no tile could be scored ({failed[0].reason})")
    return sorted(failed)


class _FinishedRows:
    """The rows of tiles, from the top, of which all tiles are finished: scored, failed, or outside of the area."""

    def __init__(self, job: Job, grid: Grid, journal: Journal) -> None:
        self.top = 0
        self._cols, self._rows = (-(-side // job.tile_px) for side in (grid.width, grid.height))
        numbers = (tile.number for tile in tiles_of(grid, job))
        self._left = Counter(number // self._cols for number in numbers if number not in journal.figures)

    def count(self, tile: int) -> bool:
        """Count a finished tile; return whether there are more finished rows at the top."""
        self._left[tile // self._cols] -= 1
        before = self.top
        while self.top < self._rows and not self._left[self.top]:
            self.top += 1
        return self.top > before


class TileQueue:
    """Queue of one scene's tiles, submitted to the workers of a client as tasks of one tile, or of a batch on GPUs."""

    def __init__(self, job: Job, client: Any, *, on_gpu: bool) -> None:
        self._client = client
        self._job_future = self._sent(job)
        self._job = job
        self._size = MOST_AT_ONCE if on_gpu else 1
        threads = max(1, sum(client.nthreads().values()))
        self._slots = threads + 2 if on_gpu else 2 * threads
        self._together = max(1, threads // TOGETHER)
        self._retries: deque[tuple[NumberedTile, ...]] = deque()
        self._tries: Counter[int] = Counter()

    def results(self, tiles: Iterator[NumberedTile]) -> Iterator[ScoredTile | FailedTile]:
        """Yield the result of each tile, in order of completion."""
        from distributed import as_completed

        tasks = self._tasks(tiles)
        in_flight: dict[Any, tuple[NumberedTile, ...]] = {}
        running = as_completed(loop=self._client.loop, with_results=True, raise_errors=False)
        while True:
            free = self._slots - len(in_flight)
            if new := [task for _ in range(free) if (task := self._next(tasks))]:
                futures = self._client.map(score_tiles, [self._job_future] * len(new), new, pure=False)
                in_flight.update(zip(futures, new, strict=True))
                running.update(futures)
            if not in_flight:
                return
            for future, result in self._ready(running):
                task = in_flight.pop(future)
                if future.status == "error":
                    yield from self._failed(task, result[1])
                elif isinstance(result, BaseException):
                    raise result
                else:
                    yield from result
                future.release()

    def _ready(self, running: Any) -> Iterator[tuple[Any, Any]]:
        """Wait for a task to end; yield it, and a few more if they have ended too, whose places are filled together."""
        watchdog = WorkerWatchdog(self._client)
        while not running.has_ready():
            watchdog.look()
            time.sleep(LOOK_S)
        for _ in range(self._together):
            if not running.has_ready():
                return
            yield next(running)

    def _next(self, tasks: Iterator[tuple[NumberedTile, ...]]) -> tuple[NumberedTile, ...] | None:
        return self._retries.popleft() if self._retries else next(tasks, None)

    def _tasks(self, tiles: Iterator[NumberedTile]) -> Iterator[tuple[NumberedTile, ...]]:
        while task := tuple(itertools.islice(tiles, self._size)):
            yield task

    def _failed(self, task: tuple[NumberedTile, ...], error: BaseException) -> Iterator[FailedTile]:
        """Queue the tiles of a failed task again, or yield them as failed; raise errors that concern the whole run."""
        from distributed import KilledWorker

        if isinstance(error, BundleError) and self._job.weights is None and "no such bundle" in str(error):
            log.info("a worker cannot see %s: it is sent to the workers", self._job.bundle_path)
            self._job = dataclasses.replace(self._job, weights=Path(self._job.bundle_path).read_bytes())
            self._job_future = self._sent(self._job)
            self._retries.append(task)
        elif isinstance(error, BundleError) and "no such bundle" in str(error):
            self._retries.append(task)  # submitted before the bundle was sent
        elif isinstance(error, GeoodError) or not isinstance(error, (KilledWorker, MemoryError)):
            raise error
        else:
            for numbered in task:
                self._tries[numbered.number] += 1
                if self._tries[numbered.number] < TRIES:
                    self._retries.append((numbered,))
                else:
                    reason = f"the workers died while they scored it ({type(error).__name__})"
                    yield FailedTile(numbered.number, numbered.tile.write, reason)

    def _sent(self, job: Job) -> Any:
        """Return the job as a future, which is sent to each worker once, including those that join later."""
        return self._client.submit(_pass_through, job, pure=False)


def _pass_through(job: Job) -> Job:
    return job
