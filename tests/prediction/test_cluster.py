"""Dask for this run alone: what it starts can be reached by nobody else, and a scheduler's address tells no secrets."""

import logging
import os
import re
import stat
import subprocess
import sys
import threading
import types
from pathlib import Path

import distributed
import psutil
import pytest
from distributed import LocalCluster
from distributed.security import Security

import geood
from geood.errors import ConfigError, OutputError
from geood.prediction import cluster
from geood.prediction.cluster import TlsFiles, connect, dask_client
from geood.prediction.pipeline import predict
from support.rasters import picture, write_raster


def test_loops_tell_nothing_while_a_run_lasts_and_what_they_did_afterwards():
    loops = logging.getLogger("tornado.application")
    before = loops.getEffectiveLevel()
    with pytest.raises(ZeroDivisionError), dask_client(0, None):
        assert not loops.isEnabledFor(logging.ERROR)
        raise ZeroDivisionError
    assert loops.getEffectiveLevel() == before


def listening(process):
    """The address and port of each socket at which a process answers."""
    return {tuple(c.laddr) for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def test_dask_does_nothing_often_by_itself():
    """Its profiler and clocks, at 10 and 20 ms, took a twentieth of a core."""
    with dask_client(0, None) as client:
        nodes = [client.cluster.scheduler, *client.cluster.workers.values()]
        pauses_ms = {name: call.callback_time for node in nodes for name, call in node.periodic_callbacks.items()}
    assert len(pauses_ms) > 4 and min(pauses_ms.values()) >= 100, pauses_ms


def test_threads_open_no_port():
    before = listening(psutil.Process())
    with dask_client(0, None) as client:
        assert client.submit(abs, -1).result() == 1
        assert listening(psutil.Process()) == before


def test_processes_answer_only_who_has_the_certificate_of_this_run():
    before, strangers = listening(psutil.Process()), [("tcp", None), ("tls", Security.temporary())]
    with dask_client(1, None) as client:
        assert client.submit(abs, -1).result() == 1
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        places = {place for process in family for place in listening(process)} - before
        assert len(places) == 3  # scheduler, worker, and the process that watches over it: no pages
        assert {address for address, _ in places} == {"127.0.0.1"}  # not to be reached from other machines
        for scheme, security in strangers:
            with pytest.raises((OSError, TypeError)):
                connect(f"{scheme}://{client.scheduler.addr.split('://')[-1]}", timeout=2, security=security)
        for place in [*sys.path, *client.run(lambda: __import__("sys").path).popitem()[1]]:
            if "dask" in place and Path(place).is_dir():
                assert stat.S_IMODE(Path(place).parents[0].stat().st_mode) & 0o022 == 0
                assert any(stat.S_IMODE(parent.stat().st_mode) == 0o700 for parent in Path(place).parents)


class Recorded(Exception):
    """The end of a start that was only to be looked at."""


@pytest.mark.parametrize(("workers", "cuda"), [(2, False), (0, False), (0, True)])
def test_all_that_opens_ports_has_tls(monkeypatch, workers, cuda):
    made, grown = [], {}

    def spec_cluster(**options):
        made.extend([options, options["scheduler"]["options"]])
        close = types.SimpleNamespace(close=lambda timeout: None, worker_spec=grown, scheduler_address="tls://")
        close.sync = lambda *_: (_ for _ in ()).throw(OSError("seen"))
        return close

    def cuda_cluster(**options):
        made.append(options)
        raise OSError("seen")

    monkeypatch.setattr(cluster.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "SpecCluster", spec_cluster)
    monkeypatch.setitem(
        sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=cuda_cluster) if cuda else None
    )
    with pytest.raises(OutputError, match="seen"), dask_client(workers, None):
        pass
    made.extend(worker["options"] for worker in grown.values())
    assert len(made) == (1 if cuda else 4)
    assert all(options["security"].require_encryption for options in made)
    assert len({options["security"].tls_scheduler_key for options in made}) == 1
    listeners = [options for options in made if "preload" in options]
    assert all(options["protocol"] == "tls://" and options["host"] == "127.0.0.1" for options in listeners)
    gpus = [worker["options"]["env"] for worker in grown.values()]
    assert gpus == ([] if cuda else [{}] * 2 if workers else [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(2)])


def test_one_process_per_gpu_by_dask_cuda_is_a_cluster_like_any_other(monkeypatch):
    """A stand-in for its class, which takes what dask-cuda is given and starts one worker in this process."""
    started = []

    def cuda_cluster(**options):
        started.append(LocalCluster(n_workers=1, processes=False, **options))
        return started[0]

    monkeypatch.setattr(cluster.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=cuda_cluster))
    with dask_client(0, None) as client:
        assert client.submit(abs, -1).result() == 1
        assert client.scheduler.address == started[0].scheduler_address
        assert started[0].scheduler_address.startswith("tls://127.0.0.1:")
        assert set(client.nthreads().values()) == {cluster.threads_of(0)[1]}
    assert started[0].status.name == "closed"


def test_dask_is_started_in_one_place():
    start = re.compile(r"\b(Scheduler|Nanny|Worker|LocalCluster|SpecCluster|LocalCUDACluster)\(")
    rooms = Path(geood.__file__).parent.rglob("*.py")
    assert {room.name for room in rooms if start.search(room.read_text(encoding="utf-8"))} == {"cluster.py"}


@pytest.fixture
def tls(tmp_path):
    """A certificate of its own, and the files that hold it."""
    security = Security.temporary()
    files = TlsFiles(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    files.ca_file.write_text(security.tls_ca_file)
    files.cert.write_text(security.tls_client_cert)
    files.key.write_text(security.tls_client_key)
    return security, files


def test_a_scheduler_with_tls_takes_the_files_it_was_started_with(tls):
    security, files = tls
    how = {"n_workers": 1, "processes": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with LocalCluster(protocol="tls://", security=security, **how) as running:
        with dask_client(0, running.scheduler_address, tls=files) as client:
            assert client.submit(abs, -1).result() == 1
        with pytest.raises(ConfigError, match=r"tls://.*--tls-ca-file"), dask_client(0, running.scheduler_address):
            pass


@pytest.mark.slow
def test_a_cluster_of_several_processes_with_tls_gives_the_bytes_of_one(tmp_path, tls, bundle_path):
    security, files = tls
    scene, how = write_raster(tmp_path / "s.tif", picture(300, 300)), {"settings": ["predict.tile_px=64"]}
    predict([scene], tmp_path / "one.tif", bundle_path=bundle_path, **how)
    each = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with LocalCluster(protocol="tls://", security=security, processes=True, **each) as running:
        address = running.scheduler_address
        with dask_client(0, address, tls=files) as client:
            assert len({*client.run(os.getpid).values(), os.getpid()}) == 3
        predict([scene], tmp_path / "many.tif", bundle_path=bundle_path, scheduler=address, tls=files, **how)
    assert (tmp_path / "many.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()


def test_tls_files_that_cannot_be_used_are_named(tmp_path, tls):
    _, files = tls
    text, locked = tmp_path / "text.pem", tmp_path / "locked.pem"
    text.write_text("no certificate")
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:x", "-in", files.key, "-out", locked]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        with pytest.raises(ConfigError, match="passphrase"):
            TlsFiles(files.ca_file, files.cert, locked).security()
    for wrong, said in (
        (TlsFiles(tmp_path / "none.pem", files.cert, files.key), r"--tls-ca-file .*none.pem: no such file"),
        (TlsFiles(files.ca_file, files.cert, tmp_path), r"--tls-key .*: no such file"),
        (TlsFiles(text, files.cert, files.key), r"--tls-ca-file .*text.pem: holds no certificates"),
        (TlsFiles(files.ca_file, text, files.key), r"--tls-cert .*text.pem.*no certificate and its key"),
        (TlsFiles(files.ca_file, files.cert), r"in the same file"),
    ):
        with pytest.raises(ConfigError, match=said):
            wrong.security()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("tcp://me:hunter2@host:1", "tcp://host:1"),
        ("tls://me:hun@ter2@host:1", "tls://host:1"),
        ("me:hunter2@host:1", "host:1"),
        ("tcp://host:1?token=hunter2", "tcp://host:1"),
        ("tcp://host:1#hunter2", "tcp://host:1"),
        ("tcp://me:hun/ter2@host:1", "tcp://host:1"),
    ],
)
def test_secrets_in_an_address_are_refused_and_not_shown(address, shown):
    with pytest.raises(ConfigError, match="no user, password or token") as error, dask_client(0, address):
        pass
    assert f"--scheduler {shown}:" in str(error.value) and "ter2" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["nonsense", "tcp://", "tcp://host:port", "ftp://host:1", "inproc://x", "127.0.0.1:1"]
)
def test_an_address_without_a_scheduler_is_an_error(monkeypatch, address):
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    before = {thread for thread in threading.enumerate() if thread.name == "IO loop"}
    with pytest.raises(ConfigError, match="--scheduler") as error, dask_client(0, address):
        pass
    # Not left to the garbage collector: that closes clients in any thread, and may lock the next one out.
    assert {thread for thread in threading.enumerate() if thread.name == "IO loop"} <= before, error


def test_certificates_belong_to_a_scheduler_with_tls(tls):
    with pytest.raises(ConfigError, match="are for a --scheduler"), dask_client(0, None, tls=tls[1]):
        pass
    with pytest.raises(ConfigError, match="begins with tls://"), dask_client(0, "tcp://host:1", tls=tls[1]):
        pass


def test_too_few_file_handles_are_an_error_before_anything_starts(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with (
        pytest.raises(OutputError, match=r"may open 64 files at once, \d+ are needed.*ulimit -n \d+"),
        dask_client(9, None),
    ):
        pass
    allowed = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: allowed.append(both))
    cluster._check_handles(9)
    assert 64 < allowed[0][0] <= allowed[0][1] == 4096
