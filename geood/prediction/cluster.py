"""Dask clients for scoring: threads in this process, processes on this machine, one per GPU, or a running cluster.

Each of them is a `distributed.Client`, so that scoring has one code path. Dask takes pickled functions from whoever
reaches it, so whatever is started here can be reached by this run alone: threads need no socket, and processes listen
on the loopback address and talk over TLS with a certificate that was made for this run and that no file keeps. No pages
are served, and the scratch folder, from which Dask imports modules, is this user's own. A worker has more threads than
it computes with: the others read ahead and pack finished tiles, so that neither cores nor a GPU wait for a disk or a
server. This module knows nothing of scenes or bundles.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from geood.errors import ConfigError, GeoodError, OutputError, RunLostError
from geood.prediction.malloc import KEEP_FREED_MEMORY

HERE = "127.0.0.1"
ANSWER_S = 10  # timeout of the connection to a scheduler, seconds
# Packed tiles do not pass through the scheduler; the caller's own computations with Dask stay where they were.
_CLIENT = {"direct_to_workers": True, "set_as_default": False}
WORKERS_S = 60  # time that a scheduler may have no workers, seconds
CLOSE_S = 10  # timeout of the end of worker processes, seconds
READERS = 2  # threads of a process beside those that compute
HANDLES, HANDLES_EACH = (
    24,
    14,
)  # files and sockets that this process opens at most: always, and for each worker (measured)
GPU_THREADS = 8  # threads that feed one GPU: with fewer it waits for decoding and packing, more only hold memory
_FAILURES = (OSError, ValueError, TypeError, RuntimeError, ImportError)  # of Dask while it connects or starts


@dataclass(frozen=True)
class TlsFiles:
    """Certificate files for a scheduler that was started with TLS, as `dask scheduler` takes them.

    `ca_file` holds the certificates that the other end is checked against; `cert` and `key` are this end's. Without
    `key`, the key is in the file `cert`.
    """

    ca_file: Path
    cert: Path
    key: Path | None = None

    def security(self) -> Any:
        """Return the `distributed.Security` of these files.

        Raises:
            ConfigError: a file is missing or is no certificate or key, or the key has a passphrase.
        """
        options = {"--tls-ca-file": self.ca_file, "--tls-cert": self.cert, "--tls-key": self.key}
        for option, path in options.items():
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"{option} {path}: no such file; give a certificate file in PEM format")
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--tls-ca-file {self.ca_file}: holds no certificates in PEM format ({error})") from None
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_passphrase)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--tls-cert {self.cert}, --tls-key {self.key or 'in the same file'}: no certificate and its key in "
                f"PEM format ({error}); give those that belong together, without a passphrase"
            ) from None
        from distributed.security import Security

        key = self.key or self.cert
        return Security(
            require_encryption=True,
            tls_ca_file=str(self.ca_file),
            tls_client_cert=str(self.cert),
            tls_client_key=str(key),
        )


def _no_passphrase() -> str:
    """Refuse to ask for a passphrase: a run must not wait at a terminal."""
    raise ValueError("the key has a passphrase")


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
def dask_client(
    workers: int, scheduler: str | None, *, computing: int | None = None, tls: TlsFiles | None = None
) -> Iterator[Any]:
    """Yield a Dask client: of a running scheduler, of `workers` local processes, of one process per GPU, or of threads.

    Raises:
        ConfigError: both `workers` and `scheduler` are given, `tls` without a scheduler or with unusable files, or the
            scheduler does not answer or has no workers.
        OutputError: no workers can be started.
        RunLostError: the connection to the scheduler was lost meanwhile.
    """
    if scheduler is not None and not scheduler.strip():
        raise ConfigError("--scheduler: the address is empty; give one such as tcp://host:8786, or leave it out")
    if workers and scheduler:
        raise ConfigError("--workers and --scheduler exclude each other: a running scheduler has its own workers")
    if tls and not scheduler:
        raise ConfigError("--tls-ca-file, --tls-cert and --tls-key are for a --scheduler; leave them out")
    import dask
    from distributed import CancelledError
    from distributed.comm import CommClosedError

    for log in [logging.getLogger(n) for n in list(logging.root.manager.loggerDict) if n.startswith("distributed")]:
        if log.level != logging.CRITICAL:  # each change makes every logger of the process forget what it knows
            log.setLevel(logging.CRITICAL)
    threads = torch.get_num_threads()
    connected = _of_scheduler(scheduler, tls) if scheduler else _of_this_machine(workers, computing)
    with _quiet_loops(), _scratch() as folder, dask.config.set(_settings(folder)), connected as client:
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


@contextmanager
def _quiet_loops() -> Iterator[None]:
    """Keep Tornado from printing the traceback of each connection that is closed at the end, above all after Ctrl-C."""
    loops = logging.getLogger("tornado.application")
    before = loops.level
    loops.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        loops.setLevel(before)


def _scratch() -> TemporaryDirectory[str]:
    """Make a folder that is this user's alone: Dask's own one is shared in /tmp, and Dask imports modules from it."""
    import dask

    return TemporaryDirectory(
        prefix="geood-dask-", dir=dask.config.get("temporary-directory", None), ignore_cleanup_errors=True
    )


def _settings(folder: str) -> dict[str, Any]:
    """Return Dask's settings for a run with its scratch in `folder`; they pass on to worker processes."""
    import dask

    before_start = dask.config.get("distributed.nanny.pre-spawn-environ")
    return {
        "logging": {"distributed": "critical", "tornado": "critical"},  # of worker processes
        "temporary-directory": folder,
        "distributed.admin.tick.limit": "1h",
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "10s",
        "distributed.worker.profile.enabled": False,
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        "distributed.worker.daemon": True,
        "distributed.worker.use-file-locking": False,
        "distributed.nanny.pre-spawn-environ": before_start | KEEP_FREED_MEMORY,
    }


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


@contextmanager
def _of_scheduler(address: str, tls: TlsFiles | None) -> Iterator[Any]:
    """Yield a client of a running scheduler; whoever answers there can run code in this process."""
    shown = f"--scheduler {_without_secrets(address)}"
    if shown != f"--scheduler {address}":
        raise ConfigError(
            f"{shown}: Dask takes no user, password or token in an address; leave them out, and give certificates by "
            "--tls-ca-file, --tls-cert and --tls-key"
        )
    secured = {}
    if tls:
        if not address.startswith(("tls://", "wss://")):
            raise ConfigError(f"{shown}: certificates are for an address that begins with tls://; give that one")
        secured = {"security": tls.security()}
    try:
        client = connect(address, timeout=ANSWER_S, **secured)
    except _FAILURES as error:
        remedy = "give an address such as tcp://host:8786"
        if address.startswith("tls:"):
            remedy += ", and for tls:// its certificates by --tls-ca-file, --tls-cert and --tls-key"
        raise ConfigError(f"{shown}: no Dask scheduler answers there ({error}); {remedy}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError:
            raise ConfigError(f"{shown}: it has no workers; start some (dask worker ADDRESS)") from None
        yield client


def connect(target: Any, **options: Any) -> Any:
    """Return a client of the scheduler or cluster `target`; one that fails to connect is closed here.

    Left to the garbage collector, it would be closed in any thread, also in one that Dask starts and waits for while it
    holds the lock that closing needs: the next client would not start.
    """
    from distributed import Client

    client = Client.__new__(Client)
    try:
        Client.__init__(client, target, **_CLIENT, **options)
    except BaseException:
        with suppress(AssertionError, AttributeError, *_FAILURES):  # as far as it came
            client.close()
        with suppress(AttributeError, *_FAILURES):
            client._loop_runner.stop()
        raise
    return client


def _without_secrets(address: str) -> str:
    """Return an address without what may be a user, password or token in it."""
    return re.sub(r"[?#].*", "", re.sub(r"^([\w+.-]+://)?.*@", r"\1", address, flags=re.DOTALL), flags=re.DOTALL)


@contextmanager
def _of_this_machine(workers: int, computing: int | None) -> Iterator[Any]:
    """Yield a client of threads in this process, or of processes that are started for it."""
    with ExitStack() as started:
        try:
            cluster, nodes = _scheduler(workers, threads_of(workers, computing)[1])
            started.callback(_close, cluster)
            cluster.worker_spec.update(nodes)
            cluster.sync(_grown, cluster)
            client = connect(cluster)
        except _FAILURES as error:
            raise OutputError(f"no Dask workers could be started on this machine ({_cause(error)})") from None
        yield client


def _scheduler(workers: int, threads: int) -> tuple[Any, dict[Any, Any]]:
    """Start a scheduler without workers; return its cluster, and the specifications of the workers to be started.

    They come apart so that the cluster can be closed if a run is interrupted while processes start. This is the only
    function that opens ports: each has TLS with the certificate of this run at both ends.
    """
    from distributed import Nanny, Scheduler, SpecCluster, Worker
    from distributed.security import Security

    gpus = torch.cuda.device_count()
    alone = not workers and gpus < 2
    _check_handles(0 if alone else workers or gpus)
    private: dict[str, Any] = {"protocol": "inproc://"} if alone else {"protocol": "tls://", "host": HERE}
    security = None if alone else Security.temporary()
    private |= {"security": security, "preload": [__name__], "dashboard": False, "dashboard_address": f"{HERE}:0"}
    each = private | {"nthreads": threads, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    if not workers and not alone and (cluster := _cuda_cluster(threads, security)):
        return cluster, {}
    cluster = SpecCluster(
        scheduler={"cls": Scheduler, "options": private},
        security=security,
        silence_logs=logging.CRITICAL,
        shutdown_on_close=False,  # Dask's hook at the end of Python would stumble over workers that never started
    )
    environments: list[dict[str, str]] = [{}] * max(1, workers) if alone or workers else _one_gpu_each(gpus)
    more = [{} if alone else {"env": environment} for environment in environments]
    kind = Worker if alone else Nanny
    return cluster, {i: {"cls": kind, "options": each | options} for i, options in enumerate(more)}


def _check_handles(workers: int) -> None:
    """Check that this process may open enough files for that many worker processes, or allow it.

    With too few, Dask's loops would wait for ever.

    Raises:
        OutputError: the machine's limit is too low.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    opened = len(os.listdir("/dev/fd")) if Path("/dev/fd").is_dir() else HANDLES
    needed = opened + HANDLES + HANDLES_EACH * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise OutputError(
                f"this process may open {hard} files at once, {needed} are needed here: allow more "
                f"(ulimit -n {needed}), or use fewer --workers"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _one_gpu_each(gpus: int) -> list[dict[str, str]]:
    """Return the environment of one worker process per GPU, which sees no other."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else [str(i) for i in range(gpus)]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[:gpus]]


def _cuda_cluster(threads: int, security: Any) -> Any:
    """Start one worker process per GPU by dask-cuda, which also picks the cores next to it; None: not installed."""
    try:
        from dask_cuda import LocalCUDACluster  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    cluster = LocalCUDACluster(
        threads_per_worker=threads,
        host=HERE,
        protocol="tls://",
        security=security,
        memory_limit=0,
        silence_logs=logging.CRITICAL,
        preload=[__name__],
        dashboard_address=f"{HERE}:0",
        scheduler_kwargs={"dashboard": False, "preload": [__name__]},
    )
    cluster.shutdown_on_close = False
    return cluster


async def _grown(cluster: Any) -> None:
    """Wait until all workers of a cluster have started."""
    await cluster


def _close(cluster: Any) -> None:
    """End the processes of a cluster; after an interruption some of them may not have started."""
    with suppress(AssertionError, *_FAILURES):
        cluster.close(timeout=CLOSE_S)


def _cause(error: BaseException) -> str:
    """Return the first cause of a failure to start."""
    while under := error.__cause__ or error.__context__:
        error = under
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def dask_setup(node: Any) -> None:
    """Prepare a scheduler or worker: close its web server, and leave Ctrl-C to the parent process.

    Ctrl-C reaches all processes of a terminal. Dask calls this function by its name in every node of `dask_client`.
    """
    node.http_server.stop()
    if threading.current_thread() is threading.main_thread():  # a process of its own
        signal.signal(signal.SIGINT, signal.SIG_IGN)
