"""What may happen to a long prediction: every interrupted run can be finished, to the same bytes."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import picture, write_raster

from geood.journal import MAGIC


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene of 144 tiles with a hole in it."""
    array = picture(1500, 1500)
    array[:, 300:700, 200:900] = 0
    return write_raster(tmp_path_factory.mktemp("in") / "scene.tif", array, nodata=0)


@pytest.fixture(scope="module")
def command(scene, bundle_path):
    """A function of the output and more options: the command line that predicts the scene."""

    def line(out, *more):
        how = ["--model", str(bundle_path), "--set", "predict.tile_px=128", *more]
        return [sys.executable, "-m", "geood", "predict", str(scene), "--out", str(out), *how]

    return line


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, command):
    """The scores of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("unbroken") / "x.tif"
    subprocess.run(command(out), check=True, capture_output=True)
    return digest(out)


def start(line):
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)


def journal_of(out):
    return out.parent / f".{out.name}.geood" / f"{out.stem}.journal"


def wait_for_tiles(process, out, size=3000):
    """Wait until some tiles are in the journal."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if journal_of(out).exists() and journal_of(out).stat().st_size > size:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def killed(process, signal_=signal.SIGKILL):
    os.killpg(process.pid, signal_)
    _, said = process.communicate(timeout=120)
    return said


def resumed(command, out, *more):
    return subprocess.run(command(out, "--resume", *more), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_ctrl_c_keeps_the_tiles_that_are_done(tmp_path, command, unbroken, workers):
    out = tmp_path / "x.tif"
    process = start(command(out, "--workers", workers))
    wait_for_tiles(process, out)
    said = killed(process, signal.SIGINT)  # as a terminal does: to all processes of the command
    assert process.returncode == 130, said
    assert "interrupted" in said and "--resume" in said and "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == [".x.tif.geood"]
    before = journal_of(out).stat().st_size
    assert before > len(MAGIC)
    again = resumed(command, out)
    assert again.returncode == 0, again.stderr
    assert digest(out) == unbroken
    assert not (tmp_path / ".x.tif.geood").exists()


def test_ctrl_c_twice_ends_at_once_and_can_be_resumed(tmp_path, command, unbroken):
    out = tmp_path / "x.tif"
    process = start(command(out))
    wait_for_tiles(process, out)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    said = killed(process, signal.SIGINT)
    assert process.returncode == 130, said
    assert resumed(command, out).returncode == 0
    assert digest(out) == unbroken


def kill_and_resume(tmp_path, command, unbroken, seed, kills):
    rng, out = np.random.default_rng(seed), tmp_path / "x.tif"
    for _ in range(kills):
        process = start(command(out, "--resume"))
        wait_for_tiles(process, out, size=rng.integers(300, 40_000))
        time.sleep(rng.random() * 0.3)
        killed(process)
        if out.exists():
            break
    again = resumed(command, out) if not out.exists() else None
    assert again is None or again.returncode == 0, again.stderr
    assert digest(out) == unbroken
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".geood"] == [] or again is None


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_a_run_is_finished_to_the_same_bytes(tmp_path, command, unbroken, seed):
    kill_and_resume(tmp_path, command, unbroken, seed, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 20))
def test_killed_at_random_moments_seventeen_times_more(tmp_path, command, unbroken, seed):
    kill_and_resume(tmp_path, command, unbroken, seed, kills=1 + seed % 3)
