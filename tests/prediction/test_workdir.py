"""Laws of the work folder: what somebody else laid there is neither followed, nor emptied, nor taken for work."""

import os
from pathlib import Path

import pytest

from geood.errors import OutputError
from geood.polygons import OUTPUT_SUFFIXES, companions_of
from geood.prediction.journal import Chunk, Journal, TileFigures
from geood.prediction.outputs import outputs_of
from geood.prediction.workdir import PUBLISHING, work_dir, work_folder

KEY = {"tile_px": 64}
OUTS = ["x.tif", *(f"x{suffix}" for suffix in OUTPUT_SUFFIXES)]
HOW = [{"resume": r, "overwrite": o} for r in (False, True) for o in (False, True)]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(folder, match, **how):
    with pytest.raises(OutputError, match=match), work_dir(folder, **how):
        raise AssertionError("the run began")


@pytest.fixture
def home(tmp_path):
    """A folder with somebody's files."""
    (tmp_path / "home" / "deep").mkdir(parents=True)
    for name in ("thesis.txt", "a.journal", "deep/x.tif"):
        (tmp_path / "home" / name).write_text("years of work")
    return tmp_path / "home"


@pytest.mark.parametrize("how", HOW)
def test_a_work_folder_that_is_a_link_is_refused(tmp_path, home, how):
    before, folder = contents(home), tmp_path / ".x.geood"
    folder.symlink_to("home")
    refused(folder, r"\.x\.geood: is a link", **how)
    folder.unlink()
    folder.symlink_to("nowhere")
    refused(folder, "is a link", **how)
    assert contents(home) == before and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("how", HOW)
def test_a_work_folder_of_another_user_is_refused(tmp_path, monkeypatch, how):
    folder = tmp_path / ".x.geood"
    folder.mkdir()
    (folder / "a.journal").write_text("another user's")
    found = os.lstat(folder)
    other = os.stat_result([*found[:4], found.st_uid + 1, *found[5:]])
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: other if path == folder else real(path))
    refused(folder, "is another user's", **how)
    assert contents(folder) == {"a.journal": "another user's"}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["lock", "a.journal", PUBLISHING, "mosaic.vrt", ".a.tif.partial", "x.gpkg"])
def test_no_link_in_a_work_folder_is_followed(tmp_path, home, name, how):
    before, folder = contents(home), tmp_path / ".x.geood"
    folder.mkdir()
    (folder / name).symlink_to("../home/a.journal")
    refused(folder, r"\.x\.geood/", **how)
    (folder / name).unlink()
    (folder / name).symlink_to("../home/deep")
    refused(folder, r"\.x\.geood/", **how)
    assert contents(home) == before


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["thesis.txt", "Makefile", "folder/x.tif", "a.journal/x"])
def test_what_geood_does_not_make_is_left_alone(tmp_path, name, how):
    folder = tmp_path / ".x.geood"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    refused(folder, "nothing that geood makes", **how)
    assert contents(folder)[name] == "mine"


@pytest.mark.parametrize("resume", [False, True])
def test_everything_that_geood_makes_is_removed_whatever_ended_the_run_before(tmp_path, resume):
    folder = tmp_path / ".x.geood"
    (folder / ".x.tif.partial").mkdir(parents=True)
    finals = [path for out in OUTS for path in outputs_of(["x.tif"], Path(out), mosaic=False, overview=True).finals]
    every = [path for final in finals for path in (final, *companions_of(final))]
    made = ["x.gpkg-journal", "summary.csv", *(path.name for path in every)]
    for name in [*made, "a\nb.fgb", "mosaic.vrt", ".publishing.partial.json", ".x.tif.partial/scratch"]:
        (folder / name).write_text("half")
    with work_dir(folder, resume=resume, overwrite=False):
        assert resume or os.listdir(folder) == ["lock"]
    assert not folder.exists()


def test_what_a_killed_run_had_half_made_takes_no_room_of_the_one_that_goes_on(tmp_path):
    folder = tmp_path / ".x.geood"
    with pytest.raises(KeyboardInterrupt), work_dir(folder, resume=False, overwrite=False) as work:
        with work.journal(".a", KEY) as journal:
            journal.append(3, TileFigures(), [Chunk.of(b"pixels")])
        (work.folder / "a.tif").write_text("made")
        (work.folder / ".b.tif.partial").mkdir()
        (work.folder / ".b.tif.partial" / "b.tif").write_text("half made")
        raise KeyboardInterrupt
    with work_dir(folder, resume=True, overwrite=False) as work:
        assert sorted(os.listdir(folder)) == [".a.journal", "a.tif", "lock"]


def test_a_journal_is_never_opened_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.journal").symlink_to("mine")
    with pytest.raises(OutputError):
        Journal(tmp_path / "a.journal", KEY)
    assert (tmp_path / "mine").read_text() == "mine"


def test_tiles_of_no_use_are_not_kept_and_those_of_other_scenes_are(tmp_path):
    folder = work_folder(tmp_path, "x")
    with pytest.raises(KeyError), work_dir(folder, resume=False, overwrite=False) as work:
        for name in ("a", "b"):
            with work.journal(name, KEY) as journal:
                journal.append(0, TileFigures(), (Chunk.of(b"x"), Chunk.of(b"")))
        work.discard.add("a")
        raise KeyError
    assert sorted(os.listdir(folder)) == ["b.journal", "lock"]


@pytest.mark.parametrize("name", ["x" * 250, "a;b", "a\nb", "é" * 120])
def test_outputs_of_any_name_have_a_work_folder(tmp_path, name):
    with work_dir(work_folder(tmp_path, name), resume=False, overwrite=False) as work:
        assert work.folder.is_dir() and work.folder.parent == tmp_path
    assert not os.listdir(tmp_path)


def test_a_lock_on_a_file_that_is_gone_is_none(tmp_path, monkeypatch):
    folder, real = tmp_path / ".x.geood", os.open

    def late(path, *how):
        descriptor = real(path, *how)
        if str(path).endswith("lock"):
            os.unlink(path)  # as by a run that ends between the two steps
        return descriptor

    monkeypatch.setattr(os, "open", late)
    refused(folder, "another run ended just now", resume=False, overwrite=False)
