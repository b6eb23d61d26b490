"""Laws of the journal of finished tiles and of the folder a run works in."""

import errno
import multiprocessing
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geood.errors import OutputError
from geood.prediction.journal import MAGIC, Chunk, Journal, TileFigures
from geood.prediction.workdir import work_dir

KEY = {"scene": {"a.tif": "10 20"}, "tile_px": 64}


def figures(values):
    values = np.asarray(values, np.float64)
    if not values.size:
        return TileFigures()
    spread = float(((values - values.mean()) ** 2).sum())
    return TileFigures(values.size, float(values.mean()), spread, float(values.min()), float(values.max()))


def chunks(scores, classes=b""):
    return Chunk.of(scores), Chunk.of(classes)


def contents(journal):
    data = journal.path.read_bytes()
    layers = [{t: data[o : o + n] for t, (o, n) in places.items()} for places in journal.places]
    return layers, dict(journal.figures)


def filled(path, tiles=5):
    with Journal(path, KEY) as journal:
        for tile in range(tiles):
            journal.append(
                tile * 3, figures([tile, 1.0]), chunks(bytes([tile]) * (tile + 4), b"" if tile % 2 else b"kinds")
            )
        return contents(journal)


def test_what_was_appended_is_there_when_it_is_opened_again(tmp_path):
    wrote = filled(tmp_path / "a.journal")
    with Journal(tmp_path / "a.journal", KEY) as journal:
        assert contents(journal) == wrote
        assert journal.places[0].keys() == {0, 3, 6, 9, 12}
        assert journal.places[1].keys() == {0, 6, 12}


def test_whatever_is_cut_off_or_overwritten_only_whole_tiles_count(tmp_path):
    path = tmp_path / "a.journal"
    (scores, *_), _ = filled(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with Journal(path, KEY) as journal:
            (kept, *_), _ = contents(journal)
            assert kept == {tile: scores[tile] for tile in list(scores)[: len(kept)]}
            assert len(kept) < len(scores)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            with Journal(path, KEY) as journal:
                (kept, *_), _ = contents(journal)
                assert all(scores[tile] == chunk for tile, chunk in kept.items())
        except OutputError:  # the key was hit and reads as another
            assert place < 150


def test_a_journal_goes_on_after_its_last_whole_tile(tmp_path):
    path = tmp_path / "a.journal"
    filled(path)
    with path.open("ab") as file:
        file.write(b"tile" + b"\0" * 40)  # as a power cut may leave it
    with Journal(path, KEY) as journal:
        journal.append(100, figures([2.0]), chunks(b"new"))
    with Journal(path, KEY) as journal:
        assert contents(journal)[0][0][100] == b"new"
        assert len(journal.figures) == 6


def test_a_journal_of_another_run_is_refused_with_what_differs(tmp_path):
    filled(tmp_path / "a.journal")
    with pytest.raises(OutputError, match=r"tile_px: was 64, is 32.*--resume"):
        Journal(tmp_path / "a.journal", KEY | {"tile_px": 32})
    with pytest.raises(OutputError, match=r"threshold: was null, is 1"):
        Journal(tmp_path / "a.journal", KEY | {"threshold": 1})


def test_work_of_another_version_is_neither_taken_up_nor_thrown_away(tmp_path):
    folder = tmp_path / ".w"
    folder.mkdir()
    (folder / "a.journal").write_bytes(MAGIC[:-2] + b"1\n" + bytes(100))
    with pytest.raises(OutputError, match="unfinished run"), work_dir(folder, resume=False, overwrite=False):
        pass
    with pytest.raises(OutputError, match="another version"), work_dir(folder, resume=True, overwrite=False) as place:
        place.journal("a", KEY)
    assert (folder / "a.journal").exists()
    with work_dir(folder, resume=False, overwrite=True) as place, place.journal("a", KEY) as journal:
        assert not journal.figures


@given(st.lists(st.lists(st.floats(-100, 100), max_size=5), max_size=6))
@settings(deadline=None, max_examples=50)
def test_figures_of_parts_make_those_of_the_whole(parts):
    total = sum((figures(part) for part in parts), TileFigures())
    whole = figures([value for part in parts for value in part])
    np.testing.assert_allclose(total[:5], whole[:5], rtol=1e-9, atol=1e-7)


def test_a_full_disk_is_said_and_what_was_written_counts(small_disk):
    path = small_disk / "a.journal"
    with pytest.raises(OutputError, match="cannot be written"), Journal(path, KEY) as journal:
        for tile in range(100):
            journal.append(tile, figures([1.0]), chunks(os.urandom(100_000)))
    held = len(journal.figures)
    assert 10 <= held < 25
    (small_disk.parent / "copy").write_bytes(path.read_bytes())
    with Journal(small_disk.parent / "copy", KEY) as again:
        assert len(again.figures) == held


def test_a_workplace_is_gone_after_success_and_after_failure_without_work(tmp_path):
    folder = tmp_path / ".out.geood"
    with work_dir(folder, resume=False, overwrite=False) as place:
        filled(place.folder / "a.journal")
        place.journal("a", KEY).close()
    assert not folder.exists()
    with pytest.raises(KeyError), work_dir(folder, resume=False, overwrite=False) as place:
        Journal(place.folder / "a.journal", KEY).close()
        raise KeyError
    assert not folder.exists()


def test_work_is_kept_when_a_run_fails_and_asked_about_when_the_next_begins(tmp_path):
    folder = tmp_path / ".out.geood"
    with pytest.raises(KeyboardInterrupt), work_dir(folder, resume=False, overwrite=False) as place:
        filled(place.folder / "a.journal")
        raise KeyboardInterrupt
    with pytest.raises(OutputError, match=r"--resume.*--overwrite"), work_dir(folder, resume=False, overwrite=False):
        pass
    with (
        pytest.raises(KeyboardInterrupt),
        work_dir(folder, resume=True, overwrite=False) as place,
        place.journal("a", KEY) as journal,
    ):
        assert len(journal.figures) == 5
        raise KeyboardInterrupt
    with work_dir(folder, resume=False, overwrite=True) as place, place.journal("a", KEY) as journal:
        assert not journal.figures
    assert not folder.exists()


def test_work_on_other_scenes_is_left_alone(tmp_path):
    folder = tmp_path / ".w"
    with pytest.raises(KeyboardInterrupt), work_dir(folder, resume=False, overwrite=False):
        filled(folder / "a.journal")
        raise KeyboardInterrupt
    with work_dir(folder, resume=True, overwrite=False) as place, place.journal("b", KEY) as journal:
        journal.append(0, figures([1.0]), chunks(b"x"))
    assert sorted(p.name for p in folder.iterdir()) == ["a.journal", "lock"]
    with work_dir(folder, resume=True, overwrite=False) as place, place.journal("a", KEY) as journal:
        assert len(journal.figures) == 5
    assert not folder.exists()


def hold(folder, held):
    with work_dir(folder, resume=True, overwrite=False):
        held.set()
        time.sleep(60)


def test_only_one_run_at_a_time_and_a_killed_one_lets_go(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    held = spawn.Event()
    other = spawn.Process(target=hold, args=(tmp_path / ".w", held))
    other.start()
    assert held.wait(60)
    with pytest.raises(OutputError, match="another run"), work_dir(tmp_path / ".w", resume=True, overwrite=True):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with work_dir(tmp_path / ".w", resume=True, overwrite=False):
        pass
    shutil.rmtree(tmp_path / ".w", ignore_errors=True)


def test_pixels_above_a_threshold_add_up_if_all_are_known():
    one, other = TileFigures(2, 0.0, 0.0, 0.0, 0.0, 1), TileFigures(3, 0.0, 0.0, 0.0, 0.0, 2)
    assert (TileFigures() + one + other + TileFigures()).above == 3
    assert (one + other._replace(above=None)).above is None


def test_tiles_are_appended_while_those_before_are_flushed_and_all_are_in_the_end(tmp_path, monkeypatch):
    flushed, go_on, real = [], threading.Event(), os.fsync

    def slow(number):
        assert go_on.wait(60)
        real(number)
        flushed.append(os.fstat(number).st_size)

    monkeypatch.setattr("geood.prediction.journal.FLUSH_S", -1.0)
    monkeypatch.setattr("geood.prediction.journal.LATE_S", 1e9)
    monkeypatch.setattr("geood.prediction.journal.os.fsync", slow)
    with Journal(tmp_path / "a.journal", KEY) as journal:
        journal.append(0, figures([1.0]), chunks(b"scores"))
        journal.append(1, figures([1.0]), chunks(b"scores"))
        assert not flushed
        go_on.set()
        monkeypatch.setattr("geood.prediction.journal.LATE_S", -1.0)
        journal.append(2, figures([1.0]), chunks(b"scores"))
        assert flushed  # the flush that was late has been waited for
    assert flushed[-1] == (tmp_path / "a.journal").stat().st_size


def test_a_flush_that_fails_is_told_at_the_next_tile_or_at_the_end(tmp_path, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("geood.prediction.journal.os.fsync", broken)
    with pytest.raises(OutputError, match=r"a\.journal"), Journal(tmp_path / "a.journal", KEY) as journal:
        journal.append(0, figures([1.0]), chunks(b"scores"))
    with pytest.raises(OutputError, match=r"b\.journal"), Journal(tmp_path / "b.journal", KEY) as journal:
        journal.append(0, figures([1.0]), chunks(b"scores"))
        journal.flush()
        monkeypatch.setattr("geood.prediction.journal.LATE_S", -1.0)
        journal.append(1, figures([1.0]), chunks(b"scores"))
        raise AssertionError("the failed flush was not told")
