"""Kill -9 at every phase of a prediction: `--resume` ends with the rasters and rows of an unbroken run, and no more.

The command kills itself, with its workers, when it reaches a place: a call of a function, or a change of names in a
folder once the note of publishing is there. So no phase is missed, however short it is.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time

import geopandas as gpd
import pytest
from geopandas.testing import assert_geodataframe_equal

from geood.prediction.journal import MAGIC
from support.rasters import write_holed_scene

OUT, WORK = "x.gpkg", ".x.geood"
RASTERS = ("x.tif", "x.classes.tif", "x.qml", "x.above.qml", "x.classes.qml")
KILLING = """
import importlib, os, signal, sys

def kill():
    os.killpg(os.getpgrp(), signal.SIGKILL)

def at_call(module, name, number):
    *owners, last = name.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), iter(range(number))

    def called(*arguments, **options):
        if next(calls, None) is None:
            kill()
        return real(*arguments, **options)

    setattr(owner, last, called)

def at_change(note, number):
    calls = iter(range(number))

    def hook(event, arguments):
        if event in ("os.rename", "os.link", "os.remove", "os.rmdir") and os.path.exists(note):
            if next(calls, None) is None:
                kill()

    sys.addaudithook(hook)

{place}
sys.argv[0] = "geood"
from geood.cli.process import main
if __name__ == "__main__":
    main()
"""
PHASES = {
    "start": ("geood.prediction.pipeline", "plan_scene", 0),
    "first tile": ("geood.prediction.journal", "Journal.append", 0),
    "amid the tiles": ("geood.prediction.journal", "Journal.append", 60),
    "last tile": ("geood.prediction.journal", "Journal.append", 120),
    "rows of tiles to their places": ("geood.geo.cog.assembly", "Assembly._place", 7),
    "overviews": ("geood.geo.cog.assembly", "UpperLevels.extend", 2),
    "end of the scores": ("geood.geo.cog.assembly", "Assembly.finish", 0),
    "end of the classes": ("geood.geo.cog.assembly", "Assembly.finish", 1),
    "scores before they are cut": ("geood.geo.cog.spaced_file", "SpacedFile.close_up", 0),
    "scores half cut": ("geood.geo.cog.spaced_file", "_collapse", 3),
    "scores complete": ("geood.geo.cog.layout", "_check_size", 0),
    "polygons": ("geood.polygons", "write_anomalies", 0),
    "amid the polygons": ("geood.polygons.export", "extract_polygons", 0),
    "polygons to their file": ("geood.polygons.export", "write_layer", 0),
    "publishing": ("geood.prediction.publication", "Publication.finish", 0),
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene of 121 tiles with a hole in it."""
    return write_holed_scene(tmp_path_factory.mktemp("in"))


@pytest.fixture(scope="module")
def arguments(scene, bundle_path):
    """A function of the output: the arguments of the command."""
    how = ["--model", str(bundle_path), "--set", "predict.tile_px=64"]
    return lambda out: ["predict", str(scene), "--out", str(out), *how]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, arguments):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    subprocess.run([sys.executable, "-m", "geood", *arguments(folder / OUT)], check=True, capture_output=True)
    return folder


def killed(place, tmp_path, given):
    """Run the command, which kills itself at a place (or is done before); return whether it was killed."""
    script = tmp_path / "killing.py"  # a file, as worker processes import it
    script.write_text(KILLING.format(place=place), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script), *given], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _, said = process.communicate(timeout=300)
    script.unlink()
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode != 0


def resumed(given):
    return subprocess.run(
        [sys.executable, "-m", "geood", *given, "--resume"], capture_output=True, text=True, check=False
    )


def check_like(folder, unbroken):
    """Check that a folder has the outputs of the unbroken run, and nothing else."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in unbroken.iterdir())
    for name in RASTERS:
        digests = [hashlib.sha256((place / name).read_bytes()).hexdigest() for place in (folder, unbroken)]
        assert digests[0] == digests[1], name
    frames = [gpd.read_file(place / OUT, layer="anomalies") for place in (folder, unbroken)]
    assert len(frames[0]) and not assert_geodataframe_equal(*frames)


def finish(given, out, unbroken):
    """Resume a killed run, and check that it ends as the unbroken one."""
    again = resumed(given)
    assert again.returncode == 0, again.stderr
    check_like(out, unbroken)


@pytest.mark.parametrize(
    ("phase", "workers"),
    [
        *((phase, "0") for phase in PHASES),
        *((phase, "2") for phase in ("start", "amid the tiles", "polygons", "publishing")),
    ],
)
def test_a_run_killed_in_any_phase_is_finished(phase, workers, tmp_path, arguments, unbroken):
    out = tmp_path / "out"
    out.mkdir()
    given = [*arguments(out / OUT), "--workers", workers]
    assert killed(f"at_call{PHASES[phase]!r}", tmp_path, given)
    assert {p.name for p in out.iterdir()} <= {WORK}  # no output before all are complete
    finish(given, out, unbroken)


@pytest.mark.parametrize("number", range(16))
def test_a_run_killed_at_any_change_of_names_is_finished(number, tmp_path, arguments, unbroken):
    """Each of them may be another output that gets its name, or a file of the work folder that goes."""
    out = tmp_path / "out"
    out.mkdir()
    given = arguments(out / OUT)
    note = out / WORK / "publishing.json"
    if killed(f"at_change({str(note)!r}, {number})", tmp_path, given):
        again = resumed(given)
        assert again.returncode == 0, again.stderr
    check_like(out, unbroken)


@pytest.mark.parametrize("number", range(3))
def test_a_run_killed_again_while_it_resumes_is_finished(number, tmp_path, arguments, unbroken):
    out = tmp_path / "out"
    out.mkdir()
    given = arguments(out / OUT)
    for phase in ("amid the tiles", "first tile", "end of the classes", "publishing")[number:]:
        assert killed(f"at_call{PHASES[phase]!r}", tmp_path, [*given, "--resume"])
    note = out / WORK / "publishing.json"
    killed(f"at_change({str(note)!r}, {number})", tmp_path, [*given, "--resume"])
    finish(given, out, unbroken)


DAMAGES = {
    "a bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
    "cut": lambda data: data[: len(data) // 3],
    "junk": lambda data: data + b"junk" * 500,
    "a doubled tail": lambda data: data + data[-5000:],
    "a page of zeros": lambda data: data[:8192] + bytes(4096) + data[12288:],
    "the header": lambda data: MAGIC + b"\xff" * 4 + data[len(MAGIC) + 4 :],
    "all but the header": lambda data: data[:400],
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize(("damage", "workers"), [*((damage, "0") for damage in DAMAGES), ("cut", "2")])
def test_a_damaged_journal_costs_tiles_and_nothing_else(damage, workers, tmp_path, arguments, unbroken):
    out = tmp_path / "out"
    out.mkdir()
    given = [*arguments(out / OUT), "--workers", workers]
    assert killed("at_call{!r}".format(PHASES["amid the tiles"]), tmp_path, given)
    journal = out / WORK / "x.journal"
    journal.write_bytes(DAMAGES[damage](journal.read_bytes()))
    finish(given, out, unbroken)


def test_no_worker_outlives_its_run(tmp_path, arguments):
    """The command alone is killed, by what a system does that runs out of memory."""
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "geood", *arguments(out / OUT), "--workers", "2"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    journal, until = out / WORK / "x.journal", time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size > 3000) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("workers went on")
