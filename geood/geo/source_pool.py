"""GDAL's pool of the open sources of VRTs: how many it holds, and what it must forget.

GDAL keeps a source that could not be opened in this pool as long as any VRT is open. Read again, it fails without a
message, and rasterio, which goes by messages, returns pixels of zeros: after one failure of a tile its next attempt
would succeed with wrong numbers. So whenever GDAL signals an error, also one that nobody raises, the pool is filled
with other sources until all before them are gone; those that are whole are opened again when they are needed.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import cache

import rasterio
from rasterio.io import MemoryFile

SIZE_KEY = "GDAL_MAX_DATASET_POOL_SIZE"
_USUAL = 100  # GDAL's own default
_LEAST = 8
_OTHER_FILES = 64  # files that Python, Dask and torch have open

_thread = threading.local()
_in_use = False


class _Listener(logging.Filter):
    """A filter that notes GDAL's errors for the thread in which they occur, and keeps them out of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False: geood's own errors tell what GDAL said; the raw lines would repeat it, with secrets in URLs."""
        _thread.failed = True
        return False


def listen() -> None:
    """Note all errors that GDAL signals from now on."""
    for name in ("rasterio._env", "rasterio._err"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)  # the level at which rasterio logs an error that it may or may not raise
        if not any(isinstance(one, _Listener) for one in logger.filters):
            logger.addFilter(_Listener())


@cache
def pool_size() -> int:
    """Return how many sources GDAL may keep open, fewer than usual where few files may be open."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
    except ImportError:  # not on Windows
        return _USUAL
    limit = getrlimit(RLIMIT_NOFILE)[0]
    return _USUAL if limit == RLIM_INFINITY else max(_LEAST, min(_USUAL, (limit - _OTHER_FILES) // 2))


def expect_failures() -> None:
    """Take note that a VRT was opened in this process; before the first one there is no pool."""
    global _in_use
    _in_use = True


def forget_failures() -> None:
    """Empty the pool if GDAL signalled an error in this thread since the last call."""
    if not (_in_use and getattr(_thread, "failed", False)):
        return
    set_size = os.environ.get(SIZE_KEY, "")
    name, length = _tiny()
    count = max(_USUAL, int(set_size) if set_size.isdigit() else 0)
    rectangle = 'xSize="1" ySize="1"'
    parts = "".join(
        f"<SimpleSource><SourceFilename>/vsisubfile/0_{length + i},{name}</SourceFilename><SourceBand>1</SourceBand>"
        f'<SrcRect xOff="0" yOff="0" {rectangle}/><DstRect xOff="{i}" yOff="0" {rectangle}/></SimpleSource>'
        for i in range(count)
    )
    band = f'<VRTRasterBand dataType="Byte" band="1">{parts}</VRTRasterBand>'
    with rasterio.open(f'<VRTDataset rasterXSize="{count}" rasterYSize="1">{band}</VRTDataset>') as filler:
        filler.read(1)
    _thread.failed = False


@cache
def _tiny() -> tuple[str, int]:
    """Return the name and the bytes of an image of one pixel in memory, which stays for the life of the process."""
    memory = MemoryFile(ext=".tif")
    with memory.open(driver="GTiff", height=1, width=1, count=1, dtype="uint8"):
        pass
    _kept.append(memory)
    return memory.name, len(memory.getbuffer())


_kept: list[MemoryFile] = []
