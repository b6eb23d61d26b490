"""Fixtures that several rooms' tests share: scenes written on the spot, and a small bundle.

What is heavy is imported inside them: the process that hands the tests out to others needs none of it.
"""

import multiprocessing.util
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from support.cpu import (  # noqa: F401
    pytest_addoption,
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_runtest_logreport,
    pytest_runtest_makereport,
    pytest_terminal_summary,
    pytest_xdist_make_scheduler,
)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """A folder of pytest's own for all temporary files, also those of other processes, removed when the tests end.

    Some processes are killed, or end as forks do, without removing theirs. Python's own for sockets, whose names are to
    be short, stays where it is: it is removed last.
    """
    multiprocessing.util.get_temp_dir()
    place = tmp_path_factory.getbasetemp() / "temporary"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(place))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(place / "torch"))  # made when torch's compiler is first loaded
        patch.setattr(tempfile, "tempdir", str(place))
        yield
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="session")
def little_effort():
    """Training that measures the reach of its networks, and fits its inlier statistics, in a moment."""
    from support.apart import spare_effort

    with pytest.MonkeyPatch.context() as patch:
        spare_effort(patch.setattr)
        yield


@pytest.fixture
def forked_workers(monkeypatch):
    """Dask's worker processes as forks of the process of `support.apart`, rather than each an interpreter anew."""
    import dask

    from support.apart import start_server

    start_server()
    monkeypatch.setattr("distributed.utils._forkserver_preload_set", True)  # that process has loaded Dask already
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield


@pytest.fixture
def small_disk(tmp_path, request):
    """A disk of 2 MB, or of the size that the test gives as parameter."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={getattr(request, 'param', '2M')}", "tmpfs", place]
    try:
        mounted = not subprocess.run(command, capture_output=True, check=False).returncode
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs Linux and root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory) -> Path:
    """A bundle for three bands of 8 bit."""
    from support.bundles import make_bundle

    path = tmp_path_factory.mktemp("bundle") / "model.safetensors"
    make_bundle(path)
    return path


@pytest.fixture(scope="session")
def bundle(bundle_path):
    """The same, loaded."""
    from geood.models.bundle import ModelBundle

    return ModelBundle.load(bundle_path)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory):
    """A function of a data set's name: the root of its miniature, which is not to be changed, and its frames."""
    from support.miniatures import MINIATURES

    @cache
    def written(name):
        root = tmp_path_factory.mktemp(name)
        return root, MINIATURES[name](root)

    return written
