"""Laws of files whose parts grow side by side: what is in them in the end, and where they cannot be."""

import errno
import os
import subprocess

import numpy as np
import pytest

from geood.geo.cog import spaced_file
from geood.geo.cog.spaced_file import ALIGN, SpacedFile, aligned

ROOM = 10**6


@pytest.fixture
def folder(tmp_path):
    """A folder on a disk that can cut files."""
    file = SpacedFile.where_possible(tmp_path / "trial", [ROOM])
    if file is None:
        pytest.skip("the disk of temporary files cannot cut files")
    with file:
        (tmp_path / "trial").unlink()
    return tmp_path


def pieces(rng, size):
    """Random bytes in pieces, `size` together."""
    cuts = np.sort(rng.integers(0, size + 1, 3)).tolist()
    data = rng.bytes(size)
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]


@pytest.mark.parametrize(
    "sizes",
    [
        (300, 70_000, 250_000),
        (4096, 8192, 4096),
        (1, 4097, 3),
        (4095, 0, 5000),
        (900, 5000, 0),
        (5000, 0, 0),
        (0, 0, 0),
        (77,),
        (ROOM, ROOM, 3 * ROOM),
    ],
    ids=str,
)
def test_parts_lie_one_after_the_other_whatever_the_order_they_came_in(folder, sizes):
    rng = np.random.default_rng(len(sizes))
    parts = [pieces(rng, size) for size in sizes]
    with SpacedFile.where_possible(folder / "a", [ROOM] * (len(sizes) - 1) + [3 * ROOM]) as file:
        for n in range(4):
            for part in rng.permutation(len(sizes)).tolist():
                file.append(part, parts[part][n])
            file.hand_over()
        size = file.close_up()
    wanted = b""
    for part in parts:
        wanted = wanted.ljust(aligned(len(wanted)), b"\0") + b"".join(part)
    found = (folder / "a").read_bytes()
    assert len(found) == size and found.rstrip(b"\0") == wanted.rstrip(b"\0")
    assert len(found) == (len(wanted) if sizes[-1] else aligned(len(wanted)))


def test_room_takes_nothing_of_the_disk(folder):
    with SpacedFile.where_possible(folder / "a", [2**33] * 3) as file:
        for part in range(3):
            file.append(part, bytes(range(256)) * 64)
        assert os.stat(folder / "a").st_size > 2**34 and os.stat(folder / "a").st_blocks * 512 < 10**6
        assert file.close_up() == 3 * 2**14


def test_a_part_does_not_run_into_the_next(folder):
    with SpacedFile.where_possible(folder / "a", [ALIGN, ROOM]) as file:
        file.append(1, b"next")
        file.append(0, bytes(ALIGN))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            file.append(0, b"x")
        file.close_up()
    assert (folder / "a").read_bytes() == bytes(ALIGN) + b"next"


def test_elsewhere_there_is_none_and_nothing_is_left(tmp_path, small_disk):
    assert SpacedFile.where_possible(small_disk / "a", [ROOM]) is None, "tmpfs cannot cut files"
    assert not os.listdir(small_disk)
    with pytest.raises(FileNotFoundError):
        SpacedFile.where_possible(tmp_path / "missing" / "a", [ROOM])


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_have_none(tmp_path, monkeypatch, platform):
    monkeypatch.setattr(spaced_file.sys, "platform", platform)
    assert SpacedFile.where_possible(tmp_path / "a", [ROOM]) is None and not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", [0xFF534D42, 0xFE534D42, 0x7366746E, 0xF2F52010], ids=["SMB", "SMB 2", "NTFS", "F2FS"])
def test_disks_that_cut_files_by_moving_bytes_or_keep_no_holes_have_none(folder, monkeypatch, kind):
    """Linux cuts a file on an SMB server by copying there, older versions without what was not sent yet."""
    monkeypatch.setattr(spaced_file, "_disk_type", lambda *_: kind)
    assert SpacedFile.where_possible(folder / "a", [ROOM]) is None and not os.listdir(folder)


def test_the_type_of_a_disk_is_known(folder, small_disk):
    """As the system's own command tells it, whose numbers are those of statfs(2)."""
    for place in (folder, small_disk):
        told = subprocess.run(["stat", "-f", "-c", "%t", place], capture_output=True, text=True, check=True).stdout
        with (place / "a").open("wb") as file:
            assert spaced_file._disk_type(file.fileno()) == int(told, 16)


def test_a_file_that_may_not_be_so_long_is_none(folder):
    assert SpacedFile.where_possible(folder / "a", [2**62]) is None and not os.listdir(folder)


def test_a_cut_that_fails_is_an_error(folder, monkeypatch):
    with SpacedFile.where_possible(folder / "a", [ROOM, ROOM]) as file:
        file.append(1, b"next")
        monkeypatch.setattr(spaced_file, "_collapse", _full)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            file.close_up()


def _full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
