"""A file of parts that grow side by side, though their order in it is fixed and their sizes are known last.

Each part has room after it, a hole that takes nothing of the disk; what is left of it is cut out of the file at the
end, which moves no byte: the file system only notes where the later blocks lie (`fallocate` with COLLAPSE_RANGE). ext4
and XFS on Linux can do that, and only in whole blocks, so that each part begins at a multiple of `ALIGN`. Elsewhere
there is no such file, and whoever asks for one copies instead. Some others take that call too and are left alone: for a
file on an SMB server Linux has the server copy all that follows, older versions without what had not reached it yet,
and on NTFS a hole may take all of its bytes. This module knows nothing of rasters.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

ALIGN = 4096  # bytes of a block of most file systems
_COLLAPSE_RANGE = 0x08  # of fallocate(2)
_DISKS = {0xEF53, 0x58465342, 0x794C7630}  # ext4 (and ext2, which refuses to cut), XFS, overlays: types of statfs(2)


def aligned(size: int) -> int:
    """Return the next multiple of `ALIGN`."""
    return -(-size // ALIGN) * ALIGN


class SpacedFile:
    """A new file in parts, each of which is appended to; a context manager.

    `ends[part]` is where the next byte of a part goes.
    """

    def __init__(self, file: BinaryIO, rooms: Sequence[int]) -> None:
        self._file = file
        self._starts = [0]
        for room in rooms:
            self._starts.append(self._starts[-1] + aligned(room))
        self.ends = self._starts[:-1]

    @classmethod
    def where_possible(cls, path: Path, rooms: Sequence[int]) -> Self | None:
        """Make a file at `path` with `rooms`, the most bytes of each part; None where that cannot be.

        Raises:
            OSError: the file cannot be made.
        """
        file = path.open("w+b", buffering=0)
        spaced = cls(file, rooms)
        try:
            _check_disk(file.fileno())
            os.truncate(file.fileno(), 2 * ALIGN)
            _collapse(file.fileno(), 0, ALIGN)
            for end in reversed(spaced._starts[-2:]):  # the last part may become so long, and begins empty
                os.truncate(file.fileno(), end)
        except OSError:  # not on this system or disk, or no file may be so long
            file.close()
            path.unlink()
            return None
        return spaced

    def append(self, part: int, data: bytes) -> None:
        """Write bytes at the end of a part.

        Raises:
            OSError: the disk is full, or the part has no room for them.
        """
        if self.ends[part] + len(data) > self._starts[part + 1]:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._file.seek(self.ends[part])
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.ends[part] += len(data)

    def hand_over(self) -> None:
        """Let the system write to the disk what has been appended, without waiting, and free the memory of the rest."""
        release(self._file)

    def close_up(self) -> int:
        """Cut out what is left of the rooms, and return the size of the file once all of it is on the disk.

        Raises:
            OSError: that failed.
        """
        number = self._file.fileno()
        for end, start in reversed([*zip(self.ends[:-1], self._starts[1:-1], strict=True)]):
            if start == os.fstat(number).st_size:  # nothing follows
                os.truncate(number, aligned(end))
            elif aligned(end) < start:
                _collapse(number, aligned(end), start)
        os.fsync(number)
        return os.fstat(number).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def release(file: BinaryIO, start: int = 0, length: int = 0) -> None:
    """Let the system begin to write `length` bytes of a file to the disk (0: all), and free the memory of those it has.

    It is an advice, which not every system takes.
    """
    with suppress(AttributeError, OSError):
        os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_DONTNEED)


def _check_disk(number: int) -> None:
    """Check that an open file lies on a disk that cuts files without moving bytes.

    Raises:
        OSError: it does not, or that is not known.
    """
    if _disk_type(number) not in _DISKS:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _disk_type(number: int) -> int:
    """Return the type of the file system of an open file, as statfs(2) numbers it; 0 where that is not known."""
    if sys.platform != "linux" or sys.maxsize < 2**32:  # with 32 bits, numbers of bytes have other C types
        return 0
    found = (ctypes.c_long * 64)()  # more than the C structure takes; the type is its first member
    return 0 if ctypes.CDLL(None).fstatfs(number, found) else found[0]


def _collapse(number: int, start: int, end: int) -> None:
    """Cut the bytes from `start` to `end`, multiples of the block size of the disk, out of an open file.

    Raises:
        OSError: that cannot be done there, or failed.
    """
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    while fallocate(number, _COLLAPSE_RANGE, start, end - start):
        if ctypes.get_errno() != errno.EINTR:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
