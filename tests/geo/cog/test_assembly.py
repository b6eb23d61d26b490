"""Laws of a raster in the making: the same bytes however it was put together, and nothing of it after a failure."""

import errno
import os
import sys
import threading
import time

import numpy as np
import pytest

from geood.errors import DataError, OutputError
from geood.geo.cog import spaced_file
from geood.geo.cog.assembly import Assembly
from geood.geo.cog.encoding import encode_tile
from geood.geo.cog.spaced_file import SpacedFile
from geood.geo.grid import Grid, tile_grid
from support.cpu import slow
from support.places import NORTH_UP, UTM
from support.rasters import assemble

FORMS = {
    "float32": {"dtype": "float32", "nodata": float("nan"), "overview": "average", "bands": ["scores"]},
    "uint8": {"dtype": "uint8", "nodata": 255, "overview": "mode", "bands": ["class", "b", "c", "d"]},
}
TOLD = {"tags": {"A": "x"}, "statistics": {"STATISTICS_MEAN": "0.5"}}
SHAPES = [(1, 1), (40, 60), (600, 500), (1500, 300), (2100, 1100)]


def chunks_of(shape, tile_px, dtype):
    """Chunks by tile number; some tiles have none, as they are empty."""
    rng = np.random.default_rng(sum(shape))
    scores = np.round(rng.random(shape), 2).astype(np.float32)
    array = scores if dtype == "float32" else rng.integers(0, 5, (*shape, 4)).astype(np.uint8)
    array[shape[0] // 2 :, shape[1] // 3 : -shape[1] // 3] = FORMS[dtype]["nodata"]
    how = {name: FORMS[dtype][name] for name in ("nodata", "overview")}
    tiles = tile_grid(*shape, tile_px=tile_px, halo_px=0)
    return [encode_tile(np.ascontiguousarray(array[t.write.slices]), tile_px=tile_px, **how).tobytes() for t in tiles]


class Growing:
    """A journal to which chunks are appended, and an assembly of it."""

    def __init__(self, out, shape, tile_px, dtype):
        self.journal, self.places = out.with_suffix(".journal"), {}
        self.journal.touch()
        grid = Grid(*shape, NORTH_UP, UTM)
        self.assembly = Assembly(out, grid, journal=self.journal, places=self.places, tile_px=tile_px, **FORMS[dtype])

    def append(self, number, chunk):
        if chunk:
            with self.journal.open("ab") as file:
                self.places[number] = file.tell(), len(chunk)
                file.write(chunk)


def at_once(out, shape, tile_px, dtype, chunks):
    """The bytes of a raster that is put together after the last tile."""
    growing = Growing(out, shape, tile_px, dtype)
    for number, chunk in enumerate(chunks):
        growing.append(number, chunk)
    form = {"places": growing.places, "tile_px": tile_px, **FORMS[dtype]}
    assemble(out, Grid(*shape, NORTH_UP, UTM), journal=growing.journal, **form, **TOLD)
    return out.read_bytes()


def nowhere(monkeypatch):
    """No disk can cut files."""
    monkeypatch.setattr(SpacedFile, "where_possible", lambda *_: None)


@pytest.mark.parametrize("dtype", FORMS)
@pytest.mark.parametrize("tile_px", [*slow(32), 96, 512])
@pytest.mark.parametrize("shape", SHAPES)
def test_copied_at_the_end_or_laid_out_while_tiles_come_it_has_the_same_bytes(
    tmp_path, monkeypatch, shape, tile_px, dtype
):
    chunks = chunks_of(shape, tile_px, dtype)
    cols = -(-shape[1] // tile_px)
    growing = Growing(tmp_path / "a.tif", shape, tile_px, dtype)
    rng, done, rows = np.random.default_rng(0), set(), 0
    order = np.argsort(np.arange(len(chunks)) + rng.uniform(0, 2 * cols, len(chunks)))
    with growing.assembly as assembly:
        for number in order.tolist():
            growing.append(number, chunks[number])
            done.add(number)
            before = rows
            while rows * cols < len(chunks) and done.issuperset(range(rows * cols, (rows + 1) * cols)):
                rows += 1
            if rows > before:
                assembly.take(rows)
        assembly.finish(**TOLD)
    laid_out = (tmp_path / "a.tif").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.journal", "a.tif"]
    nowhere(monkeypatch)
    assert at_once(tmp_path / "b.tif", shape, tile_px, dtype, chunks) == laid_out


@pytest.mark.parametrize("after", [0, 1])
def test_a_disk_that_refuses_to_cut_the_finished_file_gets_a_copy(tmp_path, monkeypatch, caplog, after):
    """Whatever was cut before; else all resumed runs would end there, after all tiles."""
    form = ((2100, 1100), 96, "float32")
    chunks, cuts = chunks_of(*form), []
    whole = at_once(tmp_path / "a.tif", *form, chunks)

    def refused(number, start, end):
        cuts.append(start)
        if len(cuts) > after + 1:  # the first is the trial of an empty file
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        collapse(number, start, end)

    collapse = spaced_file._collapse
    monkeypatch.setattr(spaced_file, "_collapse", refused)
    assert at_once(tmp_path / "b.tif", *form, chunks) == whole
    if len(cuts) <= after + 1:
        pytest.skip("the disk of temporary files cannot cut files")
    assert "b.tif: the disk did not cut the finished file" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["a.journal", "a.tif", "b.journal", "b.tif"]


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of the system")
def test_where_files_may_be_so_long_and_no_longer_blocks_are_copied(tmp_path):
    """Full resolution, which begins beyond all room, has to end below the limit too."""
    import resource

    form = ((600, 500), 96, "float32")
    chunks = chunks_of(*form)
    whole = at_once(tmp_path / "a.tif", *form, chunks)
    with Growing(tmp_path / "b.tif", *form).assembly as assembly:
        if assembly._spaced is None:
            pytest.skip("the disk of temporary files cannot cut files")
        start = assembly._spaced.ends[-1]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (start + 2**16, before[1]))
    try:
        assert at_once(tmp_path / "c.tif", *form, chunks) == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("place", ["take", "finish", "cut"])
def test_a_full_disk_is_told_by_a_later_call_and_leaves_nothing(tmp_path, monkeypatch, place):
    shape, before = (600, 500), threading.active_count()
    growing = Growing(tmp_path / "a.tif", shape, 96, "float32")
    told = []
    with pytest.raises(OutputError, match=r"a\.tif: cannot be written .*free space"), growing.assembly as assembly:
        if assembly._spaced is None:
            pytest.skip("the disk of temporary files cannot cut files")
        monkeypatch.setattr(SpacedFile, "close_up" if place == "cut" else "append", _full)
        for number, chunk in enumerate(chunks_of(shape, 96, "float32")):
            growing.append(number, chunk)
        if place == "take":
            for rows in range(1, 7):
                assembly.take(rows)
                assembly._pool.submit(int).result()  # all that was given to the thread before has ended
                told.append(rows)
        assembly.finish(**TOLD)
    assert told == ([1] if place == "take" else [])
    assert os.listdir(tmp_path) == ["a.journal"] and threading.active_count() == before


@pytest.mark.parametrize("small_disk", ["1M"], indirect=True)
def test_a_full_disk_is_told_whatever_does_not_fit(tmp_path, small_disk):
    """Also what a scratch file still holds when it is closed."""
    shape, out = (1500, 900), small_disk / "a.tif"
    growing = Growing(tmp_path / "a.tif", shape, 512, "float32")
    for number, chunk in enumerate(chunks_of(shape, 512, "float32")):
        growing.append(number, chunk)
    form = {"journal": growing.journal, "places": growing.places, "tile_px": 512, **FORMS["float32"]}
    filler = small_disk / "filler"
    for free in range(0, 200_000, 12_288):
        disk = os.statvfs(small_disk)
        filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - free))
        with pytest.raises(OutputError, match=r"a\.tif: cannot be written .*free space"):
            assemble(out, Grid(*shape, NORTH_UP, UTM), **form, **TOLD)
        assert os.listdir(small_disk) == ["filler"]
        filler.unlink()


def test_what_fails_meanwhile_leaves_nothing(tmp_path):
    growing = Growing(tmp_path / "a.tif", (600, 500), 96, "float32")
    (tmp_path / "a.tif").write_bytes(b"the one before")
    with pytest.raises(KeyboardInterrupt), growing.assembly as assembly:
        for number, chunk in enumerate(chunks_of((600, 500), 96, "float32")):
            growing.append(number, chunk)
        assembly.take(3)
        raise KeyboardInterrupt
    assert sorted(os.listdir(tmp_path)) == ["a.journal", "a.tif"]
    assert (tmp_path / "a.tif").read_bytes() == b"the one before"


def test_an_interrupt_waits_for_one_row_at_most(tmp_path, monkeypatch):
    """Rows that a resumed run finds finished are many at once."""
    begun, index = [], Assembly._index

    def slowly(self, row):
        begun.append(row)
        time.sleep(0.2)
        index(self, row)

    monkeypatch.setattr(Assembly, "_index", slowly)
    growing = Growing(tmp_path / "a.tif", (1500, 300), 96, "float32")
    with pytest.raises(KeyboardInterrupt), growing.assembly as assembly:
        for number, chunk in enumerate(chunks_of((1500, 300), 96, "float32")):
            growing.append(number, chunk)
        assembly.take(16)
        while not begun:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert len(begun) < 8


def test_a_damaged_chunk_is_told(tmp_path):
    growing = Growing(tmp_path / "a.tif", (600, 500), 96, "float32")
    with pytest.raises(DataError, match=r"a\.journal: damaged"), growing.assembly as assembly:
        for number, chunk in enumerate(chunks_of((600, 500), 96, "float32")):
            growing.append(number, chunk[:-1] if number == 3 else chunk)
        assembly.take(1)
        assembly.finish(**TOLD)
    assert os.listdir(tmp_path) == ["a.journal"]


def _full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
