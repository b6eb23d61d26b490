"""Dask clients for scoring: threads in this process, processes on this machine, one per GPU, or a running cluster.

Each of them is a `distributed.Client`, so that scoring has one code path. Whatever is started here listens on the
loopback address only. A worker has more threads than it computes with: the others read ahead and pack finished tiles,
so that neither cores nor a GPU wait for a disk or a server. This module knows nothing of scenes or bundles.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from geood.errors import ConfigError, GeoodError, OutputError, RunLostError
from geood.prediction.malloc import KEEP_FREED_MEMORY

HERE = "127.0.0.1"
ANSWER_S = 10  # timeout of the connection to a scheduler, seconds
WORKERS_S = 60  # time that a scheduler may have no workers, seconds
READERS = 2  # threads of a process beside those that compute
GPU_THREADS = 8  # threads that feed one GPU: with fewer it waits for decoding and packing, more only hold memory


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(workers: int, computing: int | None = None) -> tuple[int, int]:
    """Return how many threads of each process compute at a time, and how many it has in all.

    `computing` is an upper limit of the first number; on a GPU one batch is computed at a time.
    """
    if torch.cuda.is_available():
        share = max(1, cores() // max(1, workers or torch.cuda.device_count()))
        return 1, min(GPU_THREADS, share) + READERS
    at_once = max(1, cores() // max(1, workers))
    at_once = min(at_once, computing or at_once)
    return at_once, at_once + READERS


@contextmanager
def dask_client(workers: int, scheduler: str | None, *, computing: int | None = None) -> Iterator[Any]:
    """Yield a Dask client: of a running scheduler, of `workers` local processes, of one process per GPU, or of threads.

    Raises:
        ConfigError: both `workers` and `scheduler` are given, or the scheduler does not answer or has no workers.
        OutputError: no workers can be started.
        RunLostError: the connection to the scheduler was lost meanwhile.
    """
    if workers and scheduler:
        raise ConfigError("--workers and --scheduler exclude each other: a running scheduler has its own workers")
    import dask
    from distributed import CancelledError
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
        client = _connect(workers, scheduler, computing)
        try:
            yield client
        except GeoodError:
            raise
        except Exception as error:
            if client.status == "running" and not isinstance(error, (CommClosedError, CancelledError)):
                raise
            raise RunLostError(
                f"the Dask scheduler went away ({type(error).__name__}); finished tiles are kept: start it again and "
                "add --resume"
            ) from None
        finally:
            client.close()
            torch.set_num_threads(threads)


class WorkerWatchdog:
    """Watchdog for a client without workers; Dask itself would wait for them forever."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._looked = self._seen = time.monotonic()

    def look(self) -> None:
        """Check for workers, once every few seconds at most.

        Raises:
            RunLostError: there have been none for a minute.
        """
        now = time.monotonic()
        if now - self._looked < WORKERS_S / 30:
            return
        self._looked = now
        if self._client.status != "running" or self._client.nthreads():
            self._seen = time.monotonic()
        elif now - self._seen > WORKERS_S:
            raise RunLostError(
                "there have been no Dask workers for a minute; finished tiles are kept: start some and add --resume"
            )


def _connect(workers: int, scheduler: str | None, computing: int | None) -> Any:
    """Connect the client of `dask_client`."""
    from distributed import Client

    straight = {"direct_to_workers": True}  # so packed tiles do not pass through the scheduler
    if scheduler:
        try:
            client = Client(scheduler, timeout=ANSWER_S, **straight)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); give an address such as "
                "tcp://host:8786"
            ) from None
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError:
            client.close()
            raise ConfigError(f"--scheduler {scheduler}: it has no workers; start some (dask worker ADDRESS)") from None
        return client
    _, threads = threads_of(workers, computing)
    private = {"dashboard_address": f"{HERE}:0", "worker_dashboard_address": f"{HERE}:0"}
    quiet = {"scheduler_kwargs": {"dashboard": False}, "silence_logs": logging.CRITICAL, "memory_limit": 0}
    try:
        if not workers and torch.cuda.device_count() > 1:
            return Client(_gpu_cluster(torch.cuda.device_count(), threads), **straight)
        if not workers:
            return Client(processes=False, n_workers=1, threads_per_worker=threads, **private, **quiet)
        return Client(
            n_workers=workers, threads_per_worker=threads, host=HERE, preload=[__name__], **straight, **private, **quiet
        )
    except (OSError, ValueError) as error:
        raise OutputError(f"no Dask workers could be started on this machine ({error})") from None


def _gpu_cluster(gpus: int, threads: int) -> Any:
    """Start one worker process per GPU, each of which sees only its own: with dask-cuda if installed, else by hand."""
    try:
        from dask_cuda import LocalCUDACluster  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from distributed import Nanny, Scheduler, SpecCluster

        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else [str(i) for i in range(gpus)]
        workers = {
            name: {
                "cls": Nanny,
                "options": {
                    "nthreads": threads,
                    "host": HERE,
                    "dashboard_address": f"{HERE}:0",
                    "memory_limit": 0,
                    "preload": [__name__],
                    "silence_logs": logging.CRITICAL,
                    "env": {"CUDA_VISIBLE_DEVICES": name},
                },
            }
            for name in names[:gpus]
        }
        scheduler = {"cls": Scheduler, "options": {"host": HERE, "dashboard": False, "dashboard_address": f"{HERE}:0"}}
        return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
    return LocalCUDACluster(
        threads_per_worker=threads, host=HERE, memory_limit=0, silence_logs=logging.CRITICAL, preload=[__name__]
    )


def dask_setup(_: Any) -> None:
    """Ignore SIGINT in a worker process: Ctrl-C reaches all processes of a terminal, and the parent handles it.

    Dask calls this function by its name in every worker process of `dask_client`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
