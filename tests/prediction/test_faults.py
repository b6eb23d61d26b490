"""What may happen to a long prediction: every interrupted run can be finished, to the same bytes."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import psutil
import pytest
import rasterio
import torch
from affine import Affine
from distributed import LocalCluster

import geood.prediction.cluster
import geood.prediction.pipeline
import geood.prediction.publication
import geood.prediction.worker
from geood.cli.process import _run
from geood.errors import DataError, OutputError, RunLostError, TilesFailedError
from geood.geo.grid import Grid
from geood.prediction.dispatch import score_scene
from geood.prediction.job import FailedTile, ScoredTile
from geood.prediction.journal import MAGIC, Chunk, Journal, TileFigures
from geood.prediction.pipeline import predict
from support.apart import CommandApart, start_server
from support.bundles import make_bundle
from support.http_server import DROP, serving
from support.rasters import picture, write_holed_scene, write_raster

SMALL = ["predict.tile_px=64", "predict.halo_px=0"]  # many tiles, of little work
THRESHOLD = 0.9  # few polygons lie above it, and cutting them takes little


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene of 64 tiles with a hole in it."""
    return write_holed_scene(tmp_path_factory.mktemp("in"), side=500)


@pytest.fixture(scope="module")
def command(scene, bundle_path):
    """A function of the output and more options: the arguments of the command that predicts the scene."""

    def line(out, *more):
        small = [part for key in SMALL for part in ("--set", key)]
        how = ["--model", str(bundle_path), *small, "--threshold", str(THRESHOLD), *more]
        return ["predict", str(scene), "--out", str(out), *how]

    return line


@pytest.fixture(scope="module")
def whole(tmp_path_factory, command):
    """The score raster of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("unbroken") / "x.tif"
    assert _run(command(out), debug=False) == 0
    return out


@pytest.fixture(scope="module")
def unbroken(whole):
    """Its digest."""
    return digest(whole)


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def start(line):
    line = [sys.executable, "-m", "geood", *line]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)


def journal_of(out):
    return out.parent / f".{out.stem}.geood" / f"{out.stem}.journal"


def wait_for_tiles(process, out, size=3000):
    """Wait until some tiles are in the journal."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if journal_of(out).exists() and journal_of(out).stat().st_size > size:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def killed(process, signal_=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):  # done a moment before
        os.killpg(process.pid, signal_)
    _, said = process.communicate(timeout=120)
    return said


def resumed(command, out):
    return _run(command(out, "--resume"), debug=False)


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_ctrl_c_keeps_the_tiles_that_are_done(tmp_path, command, unbroken, workers):
    out = tmp_path / "x.tif"
    line = command(out, "--workers", workers)
    process = CommandApart(line, tmp_path / "said.txt") if workers == "0" else start(line)
    wait_for_tiles(process, out)
    said = killed(process, signal.SIGINT)  # as a terminal does: to all processes of the command
    assert process.returncode == 130, said
    assert "interrupted" in said and "--resume" in said and "Traceback" not in said
    assert {p.name for p in tmp_path.iterdir()} - {"said.txt"} == {".x.geood"}
    before = journal_of(out).stat().st_size
    assert before > len(MAGIC)
    assert resumed(command, out) == 0
    assert digest(out) == unbroken
    assert not (tmp_path / ".x.geood").exists()


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_and_can_be_resumed(tmp_path, command, unbroken):
    out = tmp_path / "x.tif"
    process = CommandApart(command(out), tmp_path / "said.txt")
    wait_for_tiles(process, out)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    said = killed(process, signal.SIGINT)
    assert process.returncode == 130, said
    assert resumed(command, out) == 0
    assert digest(out) == unbroken


ENDING = """
import sys, time
import torch  # which takes long to be taken down
import geood.cli.process

def run(*_, **__):
    try:
        print("up", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        return geood.cli.process.INTERRUPTED

geood.cli.process._run = run
geood.cli.process.main()
"""


@pytest.mark.parametrize("later", [0.03, pytest.param(0.1, marks=pytest.mark.slow)])
def test_ctrl_c_once_more_while_the_process_ends(later):
    process = subprocess.Popen([sys.executable, "-c", ENDING], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(later)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def kill_and_resume(tmp_path, command, unbroken, seed, kills):
    rng, out, said = np.random.default_rng(seed), tmp_path / "out" / "x.tif", tmp_path / "said.txt"
    out.parent.mkdir()
    for _ in range(kills):
        process = CommandApart(command(out, "--resume"), said)
        wait_for_tiles(process, out, size=rng.integers(300, 150_000))
        time.sleep(rng.random() * 0.3)
        killed(process)
        if out.exists():
            break
    unfinished = not out.exists()
    assert not unfinished or resumed(command, out) == 0
    assert digest(out) == unbroken
    assert [p.name for p in out.parent.iterdir() if p.suffix == ".geood"] == [] or not unfinished


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_moments_a_run_is_finished_to_the_same_bytes(tmp_path, command, unbroken, seed):
    kill_and_resume(tmp_path, command, unbroken, seed, kills=1 + seed % 3)


# The same in this process, where a run can be stopped at a tile


@pytest.fixture
def stop_at(monkeypatch):
    """A function that lets the run after it end with an error at a tile; a further call lets runs go on."""
    append = Journal.append

    def at(count, error=KeyboardInterrupt):
        left = iter(range(count))

        def limited(self, *args):
            if next(left, None) is None:
                raise error
            append(self, *args)

        monkeypatch.setattr(Journal, "append", limited if count else append)

    return at


def run(scene, out, bundle, settings=SMALL, **how):
    return predict([scene], out, bundle_path=bundle, settings=settings, threshold=THRESHOLD, **how)


def test_a_run_is_the_same_wherever_it_was_stopped(tmp_path, scene, bundle_path, unbroken, stop_at):
    out = tmp_path / "x.tif"
    for count in (1, 30, 0):
        stop_at(count)
        if count:
            with pytest.raises(KeyboardInterrupt):
                run(scene, out, bundle_path, resume=True)
        else:
            run(scene, out, bundle_path, resume=True)
    assert digest(out) == unbroken


def test_polygons_of_a_resumed_run_are_those_of_an_unbroken_one(tmp_path, bundle_path, stop_at):
    """And its rasters, where tiles have a halo."""
    scene = write_holed_scene(tmp_path / "in", side=250)
    how = {"settings": ["predict.tile_px=64", "predict.halo_px=32"]}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    [whole] = run(scene, tmp_path / "a" / "x.gpkg", bundle_path, **how)
    stop_at(6)
    with pytest.raises(KeyboardInterrupt):
        run(scene, tmp_path / "b" / "x.gpkg", bundle_path, **how)
    stop_at(0)
    [resumed_] = run(scene, tmp_path / "b" / "x.gpkg", bundle_path, resume=True, **how)
    for one, other in ((whole.scores, resumed_.scores), (whole.classes, resumed_.classes)):
        assert digest(one) == digest(other)
    assert whole.anomalies == resumed_.anomalies > 0 and whole.valid_pixels == resumed_.valid_pixels


def test_work_that_lies_there_is_not_thrown_away_unasked(tmp_path, scene, bundle_path, stop_at):
    stop_at(5)
    with pytest.raises(KeyboardInterrupt):
        run(scene, tmp_path / "x.tif", bundle_path)
    stop_at(0)
    with pytest.raises(OutputError, match=r"unfinished run.*--resume.*--overwrite"):
        run(scene, tmp_path / "x.tif", bundle_path)
    run(scene, tmp_path / "x.tif", bundle_path, overwrite=True)
    assert [p.suffix for p in sorted(tmp_path.iterdir())] == [".qml", ".qml", ".tif"]


def test_what_changed_meanwhile_is_named_and_refused(tmp_path, bundle_path, stop_at):
    scene = write_raster(tmp_path / "in" / "s.tif", picture(200, 200))
    bundle, out = tmp_path / "m.safetensors", tmp_path / "x.tif"
    shutil.copy(bundle_path, bundle)
    stop_at(5)
    with pytest.raises(KeyboardInterrupt):
        run(scene, out, bundle)
    stop_at(0)
    torch.manual_seed(1)
    make_bundle(bundle, flow={"steps": 2})
    with pytest.raises(OutputError, match=r"model: was \w+, is \w+"):
        run(scene, out, bundle, resume=True)
    shutil.copy(bundle_path, bundle)
    with pytest.raises(OutputError, match=r"score: was"):
        predict([scene], out, bundle_path=bundle, settings=[*SMALL, "score.kind=energy"], threshold=0.0, resume=True)
    with pytest.raises(OutputError, match=r"tile_px: was 64, is 96"):
        predict([scene], out, bundle_path=bundle, settings=["predict.tile_px=96"], resume=True)
    write_raster(scene, picture(200, 200, seed=1))
    with pytest.raises(OutputError, match=r"scene: was"):
        run(scene, out, bundle, resume=True)
    run(scene, out, bundle, overwrite=True)


def test_nothing_is_said_or_scored_before_a_run_is_refused(tmp_path, bundle_path, stop_at, caplog, monkeypatch):
    """Of two scenes the second has changed."""
    scenes = [write_raster(tmp_path / "in" / f"{name}.tif", picture(200, 200)) for name in "ab"]
    out, how = tmp_path / "out", {"bundle_path": bundle_path, "settings": SMALL, "threshold": THRESHOLD}
    stop_at(20)  # of two times 16 tiles
    with pytest.raises(KeyboardInterrupt):
        predict(scenes, out, **how)
    stop_at(0)
    write_raster(scenes[1], picture(200, 200, seed=1))
    monkeypatch.setattr(geood.prediction.pipeline, "_scored", None)
    caplog.clear()
    with pytest.raises(OutputError, match=r"scene: was"):
        predict(scenes, out, **how, resume=True)
    assert not [record for record in caplog.records if "kept in" not in record.getMessage()]


@pytest.mark.parametrize("moment", [pytest.param(0, marks=pytest.mark.slow), 4e9])
def test_work_dated_by_a_clock_that_was_wrong(tmp_path, scene, bundle_path, unbroken, stop_at, moment):
    stop_at(20)
    with pytest.raises(KeyboardInterrupt):
        run(scene, tmp_path / "x.tif", bundle_path)
    stop_at(0)
    for path in (tmp_path / ".x.geood").iterdir():
        os.utime(path, (moment, moment))
    run(scene, tmp_path / "x.tif", bundle_path, resume=True)
    assert digest(tmp_path / "x.tif") == unbroken


@pytest.mark.parametrize("small_disk", ["700k"], indirect=True)
def test_a_disk_that_fills_up_meanwhile(small_disk, scene, bundle_path, unbroken, monkeypatch):
    monkeypatch.setattr(geood.prediction.pipeline, "check_disk", lambda *_: None)
    out = small_disk / "x.tif"
    with pytest.raises(OutputError, match="free space"):
        run(scene, out, bundle_path)
    assert [p.name for p in small_disk.iterdir()] == [".x.geood"]
    subprocess.run(["mount", "-o", "remount,size=60M", small_disk], check=True)
    run(scene, out, bundle_path, resume=True)
    assert digest(out) == unbroken


@pytest.mark.parametrize("small_disk", ["40M"], indirect=True)
def test_a_scene_in_a_folder_that_cannot_be_written(tmp_path, small_disk, scene, bundle_path, unbroken):
    copy = small_disk / "scene.tif"
    shutil.copy(scene, copy)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    run(copy, tmp_path / "x.tif", bundle_path)
    assert digest(tmp_path / "x.tif") == unbroken


def test_a_damaged_block_costs_its_tiles_and_no_other(tmp_path, bundle_path):
    array, large = picture(400, 400), ["predict.tile_px=128"]  # so that a block lies beyond its neighbours' halo
    blocks = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}
    path = write_raster(tmp_path / "in" / "s.tif", array, **blocks)
    predict([path], tmp_path / "whole.tif", bundle_path=bundle_path, settings=large)
    with rasterio.open(path) as file:
        offset, size = (int(file.get_tag_item(f"BLOCK_{item}_19_19", "TIFF", bidx=1)) for item in ("OFFSET", "SIZE"))
    with path.open("r+b") as file:
        file.seek(offset + 2)
        file.write(b"\xff" * (size - 4))
    with pytest.raises(TilesFailedError) as error:
        predict([path], tmp_path / "x.tif", bundle_path=bundle_path, settings=large)
    [made] = error.value.made
    with rasterio.open(tmp_path / "x.tif") as got, rasterio.open(tmp_path / "whole.tif") as wanted:
        found, whole = got.read(1), wanted.read(1)
    assert {(w.row, w.col) for w in made.failed_tiles} == {(256, 256)}
    for window in made.failed_tiles:
        assert np.isnan(found[window.slices]).all()
        whole[window.slices] = np.nan
    np.testing.assert_array_equal(found, whole)


def test_many_tiles_that_fail_sooner_than_the_first_is_done_do_not_end_a_run(tmp_path, scene, bundle_path, monkeypatch):
    read = geood.prediction.worker._read

    def uneven(job, engine, numbered):
        if numbered.number:
            raise DataError("away")
        time.sleep(1)  # as the first pass on a GPU takes
        return read(job, engine, numbered)

    monkeypatch.setattr(geood.prediction.worker, "_read", uneven)
    with pytest.raises(TilesFailedError, match="63 tiles could not be scored"):
        run(scene, tmp_path / "x.tif", bundle_path)


def test_a_run_ends_when_the_first_tiles_have_all_failed(tmp_path, scene, bundle_path, monkeypatch):
    count = iter(range(1000))

    def broken(*_):
        next(count)
        raise DataError("away")

    monkeypatch.setattr(geood.prediction.worker, "_read", broken)
    with pytest.raises(DataError, match=r"none of the first 16 tiles could be scored \(away\)"):
        run(scene, tmp_path / "x.tif", bundle_path)
    assert next(count) < 60


def test_two_runs_of_one_output(tmp_path, command, scene, bundle_path, unbroken):
    process = CommandApart(command(tmp_path / "x.tif"), tmp_path / "said.txt")
    wait_for_tiles(process, tmp_path / "x.tif", size=300)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match="another run is writing this output now"):
                run(scene, tmp_path / "x.tif", bundle_path, **how)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=120)
    assert process.returncode == 0 and digest(tmp_path / "x.tif") == unbroken


@pytest.mark.usefixtures("forked_workers")
def test_the_tiles_of_a_killed_worker_are_done_by_others(tmp_path, scene, bundle_path, unbroken, monkeypatch):
    append, killed_ = Journal.append, []

    def watched(self, *args):
        append(self, *args)
        if not killed_ and len(self.figures) > 4:
            killed_.append(psutil.Process(start_server()).children()[0])
            killed_[0].kill()

    monkeypatch.setattr(Journal, "append", watched)
    run(scene, tmp_path / "x.tif", bundle_path, workers=2)
    assert killed_ and digest(tmp_path / "x.tif") == unbroken


@pytest.mark.slow
def test_a_scheduler_that_goes_away(tmp_path, scene, bundle_path, unbroken, monkeypatch):
    append = Journal.append
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0")

    def watched(self, *args):
        append(self, *args)
        if len(self.figures) == 5:
            threading.Thread(target=cluster.close).start()

    monkeypatch.setattr(Journal, "append", watched)
    with pytest.raises(RunLostError, match=r"scheduler went away.*--resume"):
        run(scene, tmp_path / "x.tif", bundle_path, scheduler=cluster.scheduler_address)
    monkeypatch.setattr(Journal, "append", append)
    run(scene, tmp_path / "x.tif", bundle_path, resume=True)
    assert digest(tmp_path / "x.tif") == unbroken


@pytest.mark.slow
def test_a_scheduler_whose_workers_all_leave(tmp_path, scene, bundle_path, unbroken, monkeypatch):
    monkeypatch.setattr(geood.prediction.cluster, "WORKERS_S", 2)
    append, cluster = Journal.append, LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0")

    def watched(self, *args):
        append(self, *args)
        if len(self.figures) == 5:
            cluster.scale(0)

    with cluster:
        monkeypatch.setattr(Journal, "append", watched)
        with pytest.raises(RunLostError, match=r"no Dask workers.*--resume"):
            run(scene, tmp_path / "x.tif", bundle_path, scheduler=cluster.scheduler_address)
        monkeypatch.setattr(Journal, "append", append)
        cluster.scale(1)
        run(scene, tmp_path / "x.tif", bundle_path, scheduler=cluster.scheduler_address, resume=True)
    assert digest(tmp_path / "x.tif") == unbroken


@pytest.mark.parametrize(
    "action", [pytest.param(500, marks=pytest.mark.slow), 503, pytest.param(DROP, marks=pytest.mark.slow)]
)
def test_a_server_that_fails_now_and_then(tmp_path, scene, bundle_path, whole, action):
    tiled = write_raster(tmp_path / "web" / "scene.tif", rasterio.open(scene).read(), nodata=0, tiled=True, zlevel=1)
    with serving(tiled.parent) as server:
        server.fail(action, every=7)
        predict([server.url("scene.tif")], tmp_path / "x.tif", bundle_path=bundle_path, settings=SMALL)
        assert len(server.requests) > 5
    np.testing.assert_array_equal(read(tmp_path / "x.tif"), read(whole))


def test_outputs_that_were_only_half_put_in_place(tmp_path, scene, bundle_path, monkeypatch):
    put, calls = geood.prediction.publication.put_in_place, []

    def failing(made, final, **how):
        calls.append(final)
        if len(calls) == 2:
            raise PermissionError(13, "in use")
        put(made, final, **how)

    monkeypatch.setattr(geood.prediction.publication, "put_in_place", failing)
    with pytest.raises(OutputError, match=r"cannot be put in place \(in use\).*--resume"):
        run(scene, tmp_path / "x.gpkg", bundle_path)
    monkeypatch.setattr(geood.prediction.publication, "put_in_place", put)
    [made] = run(scene, tmp_path / "x.gpkg", bundle_path, resume=True)
    assert made.polygons.exists() and made.scores.exists() and made.classes.exists() and made.anomalies > 0
    assert not (tmp_path / ".x.geood").exists()


@pytest.mark.parametrize("suffix", [pytest.param(".gpkg", marks=pytest.mark.slow), ".geojson"])
def test_tiles_that_failed_for_a_while_are_tried_again(tmp_path, scene, bundle_path, whole, monkeypatch, suffix):
    out, reading, count = tmp_path / f"x{suffix}", geood.prediction.worker._read, iter(range(1000))

    def broken(job, engine, numbered):
        if 20 < next(count) < 40:
            raise DataError("the disk was away")
        return reading(job, engine, numbered)

    monkeypatch.setattr(geood.prediction.worker, "_read", broken)
    with pytest.raises(
        TilesFailedError, match=r"19 tiles could not be scored.*the disk was away.*--resume --overwrite"
    ):
        run(scene, out, bundle_path)
    listed = tmp_path / f"x.failed_tiles{suffix}"
    assert listed.exists() == listed.with_suffix(".qml").exists() == (suffix == ".geojson")
    monkeypatch.setattr(geood.prediction.worker, "_read", reading)
    [made] = run(scene, out, bundle_path, resume=True, overwrite=True)
    assert not listed.exists() and not listed.with_suffix(".qml").exists() and not made.failed_tiles
    assert not (tmp_path / f".{out.stem}.geood").exists()
    assert np.array_equal(read(made.scores), read(whole), equal_nan=True)


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_tiles_are_told_of_as_soon_as_all_above_are_finished(tmp_path, monkeypatch, seed):
    """Whatever the order of the tiles, with some in the journal already, some outside of the area, some that fail."""
    rng, cols, rows = np.random.default_rng(seed), 5, 6
    outside = {n for n in range(cols * rows) if seed % 2 and rng.random() < 0.3}
    area = types.SimpleNamespace(touches=lambda window: window.row // 32 * cols + window.col // 32 not in outside)
    job = types.SimpleNamespace(tile_px=32, halo_px=0, area=area, source=types.SimpleNamespace(name="x.tif", scale=1))
    done, told = set(outside), []

    class Queue:
        def __init__(self, *_, **__):
            pass

        def results(self, tiles):
            for number in rng.permutation([tile.number for tile in tiles]).tolist():
                done.add(number)
                failed = number and rng.random() < 0.1
                yield (
                    FailedTile(number, None, "why") if failed else ScoredTile(number, TileFigures(), [Chunk.of(b"x")])
                )

    def finished(top):
        whole = [done.issuperset(range(row * cols, (row + 1) * cols)) for row in range(rows)]
        told.append((top, [*whole, False].index(False)))

    monkeypatch.setattr("geood.prediction.dispatch.TileQueue", Queue)
    with Journal(tmp_path / "a.journal", {}) as journal:
        for number in {*range(1, cols * rows)} - outside:
            if seed > 2 and rng.random() < 0.4:
                journal.append(number, TileFigures(), [Chunk.of(b"x")])
                done.add(number)
        grid = Grid(32 * rows - 7, 32 * cols - 3, Affine.identity())
        how = {"client": None, "on_gpu": False, "title": "x", "finished": finished}
        score_scene(job, grid, journal=journal, **how)
    assert told and all(top == wanted for top, wanted in told)
    assert [top for top, _ in told] == sorted({top for top, _ in told}) and told[-1][0] == rows


def test_where_a_disk_cannot_cut_files_a_raster_has_the_same_bytes(tmp_path, command, unbroken, monkeypatch):
    monkeypatch.setattr("geood.geo.cog.spaced_file.SpacedFile.where_possible", lambda *_: None)
    assert _run(command(tmp_path / "x.tif"), debug=False) == 0
    assert digest(tmp_path / "x.tif") == unbroken
