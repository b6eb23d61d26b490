"""GDAL's pool of the open sources of VRTs: how many it holds, and what it must forget.

GDAL keeps a source that could not be opened in this pool as long as any VRT is open. Read again, it fails without a
message, and rasterio, which goes by messages, returns pixels of zeros: after one failure of a tile its next attempt
would succeed with wrong numbers. So whenever GDAL signals an error, also one that nobody raises, the pool is filled
with other sources until all before them are gone; those that are whole are opened again when they are needed.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from functools import cache
from typing import Any

import rasterio
from rasterio.io import MemoryFile

SIZE_KEY = "GDAL_MAX_DATASET_POOL_SIZE"
_USUAL = 100  # GDAL's own default
_MOST = 10_000  # of which a filler is made
_LEAST = 8
_OTHER_FILES = 64  # files that Python, Dask and torch have open

_thread = threading.local()
_lock = threading.Lock()
_filler: Any = None
_kept: list[MemoryFile] = []  # for the life of the process


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
    """Get ready to forget failures, now that a VRT was opened in this process; before the first there is no pool."""
    global _filler
    with _lock:
        if _filler is None:
            _filler = _open_filler()


def forget_failures() -> None:
    """Empty the pool if GDAL signalled an error in this thread since the last call.

    The filler stays open: rasterio opens files while it holds Python's own lock, for which a thread may wait that tells
    of an error while it holds GDAL's.
    """
    if _filler is None or not getattr(_thread, "failed", False):
        return
    with _lock:
        _filler.read(1)
    _thread.failed = False


def _open_filler() -> Any:
    """Open a VRT of more tiny images in memory than the pool holds; reading it puts them all into the pool."""
    memory = MemoryFile(ext=".tif")
    with memory.open(driver="GTiff", height=1, width=1, count=1, dtype="uint8"):
        pass
    _kept.append(memory)
    asked, length = os.environ.get(SIZE_KEY, ""), len(memory.getbuffer())
    count = max(_USUAL, min(_MOST, int(asked)) if re.fullmatch("[0-9]{1,9}", asked) else 0)
    side = 'xSize="1" ySize="1"'
    properties = 'RasterXSize="1" RasterYSize="1" DataType="Byte" BlockXSize="1" BlockYSize="1"'
    parts = "".join(
        f"<SimpleSource><SourceFilename>/vsisubfile/0_{length + i},{memory.name}</SourceFilename>"
        f"<SourceBand>1</SourceBand><SourceProperties {properties}/>"
        f'<SrcRect xOff="0" yOff="0" {side}/><DstRect xOff="{i}" yOff="0" {side}/></SimpleSource>'
        for i in range(count)
    )
    band = f'<VRTRasterBand dataType="Byte" band="1">{parts}</VRTRasterBand>'
    return rasterio.open(f'<VRTDataset rasterXSize="{count}" rasterYSize="1">{band}</VRTDataset>')
