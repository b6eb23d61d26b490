"""Freed memory kept for the next tile.

The activations of a network on a large tile are tens of megabytes each. The GNU C library maps every such block afresh
and gives it back at once, so that a CPU spends a tenth to a fourth of its time on touching new pages; told to keep
them, the network does the same work in about four fifths of the time, for a few per cent more memory. (Smaller tiles
would avoid it as well, at the price of more halo.) This is a matter of a whole process, so it is for processes that are
geood's own: the command line and the workers it starts. Other C libraries are left as they are.

What is kept has gaps, and with hundreds of tiles they add up to a tenth of it. Where a bound is set, `give_back`
returns them before it is reached.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# glibc's parameters, by their number in malloc.h and the environment variable for processes yet to be started
_PARAMETERS = {
    "MALLOC_MMAP_MAX_": (-4, 0),  # no block is mapped for itself
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),  # bytes on top of the heap that may lie idle
    "MALLOC_ARENA_MAX": (-8, 1),  # one heap for all threads: others cannot hold blocks this large
}
KEEP_FREED_MEMORY = {name: str(value) for name, (_, value) in _PARAMETERS.items()}


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; best called before any thread starts. Returns whether that was possible."""
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)  # musl has none
    taken = [mallopt(number, value) for number, value in _PARAMETERS.values()]
    return all(taken)


def give_back(above: int) -> bool:
    """Return freed memory to the system if this process holds more than so many bytes of it; whether it did.

    Takes 30 microseconds where it does not; where it does, some milliseconds, and a tenth more time for the next tile,
    which touches new pages again. Only Linux tells what is held, and only glibc gives back.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and pages * os.sysconf("SC_PAGE_SIZE") > above and bool(trim(0))
