"""Settings of glibc's allocator: freed memory is kept for the next tile.

The activations of a network on a large tile are tens of megabytes each. By default the GNU C library maps each such
block anew and unmaps it as soon as it is freed, so a CPU spends a tenth to a fourth of its time on page faults. If the
blocks are kept, the network takes about four fifths of the time, for a few per cent more memory. (Smaller tiles would
avoid the faults as well, at the price of more halo.) The settings hold for a whole process, so they are for geood's own
processes: the command line and the workers it starts. Other C libraries are left as they are.

Kept memory becomes fragmented; with hundreds of tiles the gaps add up to a tenth of it. If there is a memory limit,
`give_back` returns them before it is reached.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# glibc's parameters: environment variable (for child processes), number in malloc.h and value
_PARAMETERS = {
    "MALLOC_MMAP_MAX_": (-4, 0),  # no block gets a mapping of its own
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),  # free bytes at the top of the heap that are kept
    "MALLOC_ARENA_MAX": (-8, 1),  # one heap for all threads: further arenas cannot hold blocks this large
}
KEEP_FREED_MEMORY = {name: str(value) for name, (_, value) in _PARAMETERS.items()}


def keep_freed_memory() -> bool:
    """Make this process keep freed memory, preferably before any thread starts; return whether that was possible."""
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)  # musl has none
    taken = [mallopt(number, value) for number, value in _PARAMETERS.values()]
    return all(taken)


def give_back(above: int) -> bool:
    """Release freed memory to the system if more than `above` bytes are resident; return whether any was released.

    Takes 30 microseconds if not. If so, it takes some milliseconds, and the next tile a tenth longer, since it touches
    new pages again. Only Linux has /proc/self/statm, and only glibc has malloc_trim.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and pages * os.sysconf("SC_PAGE_SIZE") > above and bool(trim(0))
