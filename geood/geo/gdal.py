"""GDAL wrapper: configuration options, window conversion, translation of GDAL errors to `DataError` and `OutputError`.

All access to rasters goes through this module, so that the block cache is bounded, no raw error of rasterio or GDAL
reaches a user, GDAL's warnings stay out of the log, and no server can block a run for ever. rasterio's wheel carries
its own GDAL: nothing set here affects pyogrio. This module opens rasters but does not interpret their bands.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from geood.errors import DataError, OutputError
from geood.geo.grid import Grid, Window

GDAL_FAILURES = (RasterioError, CPLE_BaseError, OSError)
CACHE_BYTES = 256 * 2**20  # GDAL's block cache; its default, a share of the RAM, would grow with the machine
CHUNK = 2048  # side of the windows in which whole rasters are iterated
LONGEST = 300  # maximum characters of a GDAL message shown to a user
SCHEMES = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "ftp": "/vsicurl/ftp://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
}
NETWORK = re.compile(r"/vsi(?:curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)(?:_streaming)?[/?]|^(?:https?|ftp|s3|gs|az):/")

# A photo without georeferencing is a valid input; callers that need a CRS check `Grid.crs`.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
# Alpha and nodata are read separately, so neither hides the other.
warnings.filterwarnings("ignore", category=NodataShadowWarning)
# GDAL's messages reach the user inside geood's errors; the raw lines would only repeat them, with secrets in URLs.
for _logger in ("rasterio._env", "rasterio._err"):
    logging.getLogger(_logger).setLevel(logging.CRITICAL)

_cache_bytes = CACHE_BYTES
_FILES = {
    # With its whole-image path for PNG, GDAL 3.10 does not notice a truncated file and returns uninitialized memory.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
    # GDAL's JPEG 2000 threads swallow errors, and blocks that could not be decoded come back black.
    "GDAL_NUM_THREADS": "1",
}
# Network options; the environment takes precedence.
_SERVERS = {
    # Retries after about 0.5, 1 and 2 s if a server answers 429 or 5xx, or closes the connection without an answer.
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    # A server that does not answer is an error; a slow one, from 1 kB/s, is waited for.
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    # GDAL caches what it learned of a file for the life of the process, also "does not exist" and truncated ranges; so
    # the cache of a file is dropped when a handle on it is closed.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/:/vsiadls/",
}
_REMOTE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}  # each probe for a sidecar file would cost a request
_PROBE = {
    "CPL_VSIL_CURL_USE_HEAD": "NO",
    "GDAL_HTTP_MAX_RETRY": "0",
    "GDAL_HTTP_CONNECTTIMEOUT": "5",
    "GDAL_HTTP_LOW_SPEED_TIME": "5",
}
_REMEDIES = {
    r"code: (404|410)|NoSuch|not exist": "there is no such file; check the address",
    r"code: (401|403|407)|denied|credential|_KEY|_SIGN_REQUEST": (
        "check the address, GDAL's credentials (GDAL_HTTP_USERPWD, AWS_*, GS_*, AZURE_*), and that a signed address "
        "has not expired"
    ),
    r"code: (429|5\d\d)": "the server is overloaded or failing; try again later",
    r"resolve": "no such host, or no network; check the address",
    r"connect|timed out|too slow|Timeout": "the server does not answer; try again later, or download the file first",
    r"Range downloading": "the server only sends whole files; download the file first",
    r"SSL|certificate": "its certificate is not trusted; see CURL_CA_BUNDLE",
}


def limit_cache(size: int) -> None:
    """Limit GDAL's block cache in this process to `size` bytes from now on."""
    global _cache_bytes
    _cache_bytes = size


def gdal_env(name: str | Path = "") -> rasterio.Env:
    """Return the rasterio environment (GDAL configuration options) in which geood reads or writes the raster `name`.

    Environment variables take precedence over the network options (GDAL_HTTP_MAX_RETRY and the like).
    """
    asked = _SERVERS | (_REMOTE if NETWORK.search(str(name)) else {})
    unset = {key: value for key, value in asked.items() if key not in os.environ}
    return rasterio.Env(GDAL_CACHEMAX=_cache_bytes, **_FILES, **unset)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Translate GDAL failures while `path` is read to `DataError`."""
    try:
        with gdal_env(path):
            yield
    except GDAL_FAILURES as error:
        said, remedy = _explained(path, error, "check that it is whole, or copy it again")
        raise DataError(f"{display_name(path)}: cannot be read ({said}); {remedy}") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate GDAL and OS failures while `path` is written to `OutputError`."""
    try:
        with gdal_env():
            yield
    except GDAL_FAILURES as error:
        raise OutputError(
            f"{path}: cannot be written ({reason(error)}); free space on that disk, or choose another place"
        ) from None


def reason(error: BaseException) -> str:
    """Return GDAL's own message for a failure, on one line; rasterio wraps it in its own."""
    return _words(error)[:LONGEST]


def _words(error: BaseException) -> str:
    while isinstance(error, RasterioError) and (cause := error.__cause__ or error.__context__):
        error = cause
    return _public(" ".join(str(error).split()).rstrip(".")) or type(error).__name__


def _public(text: str) -> str:
    """Strip query strings from the URLs in a text, as they may hold secrets."""
    return re.sub(r"\?[^\s'\"}]+", "", text)


def display_name(name: str | Path) -> str:
    """Convert a GDAL name (/vsi...) back to the path or URL that a user would write, without its query string."""
    text = str(name)
    if match := re.fullmatch(r"/vsizip/\{(.*)\}/?(.*)", text):
        archive, inner = match.groups()
        return display_name(archive) + (f"!{inner}" if inner else "")
    if not NETWORK.search(text):
        return text
    for scheme, prefix in SCHEMES.items():
        if text.startswith(prefix):
            text = f"{scheme}://{text[len(prefix) :]}"
    return _public(text)


def open_raster(path: str | Path) -> Any:
    """Open a rasterio dataset with at least one band; `path` is a local file or a GDAL name (/vsi...).

    Raises:
        DataError: the file is missing, is not a raster, cannot be fetched from its server, or has only subdatasets.
    """
    name = str(path)
    local = not name.startswith("/vsi") and "://" not in name
    if local:
        _check_local(Path(path))
    try:
        with gdal_env(name):
            dataset = rasterio.open(Path(path) if local else name)
    except GDAL_FAILURES as error:
        advice = "give a GeoTIFF or another format GDAL reads, and copy the file again if it was cut short"
        if name.startswith("/vsizip/"):
            advice = "name one raster that is in it, as scenes.zip/tile.tif"
        said, remedy = _explained(name, error, advice)
        raise DataError(f"{display_name(name)}: cannot be read as a raster ({said}); {remedy}") from None
    if not dataset.count:
        inner = ", ".join(dataset.subdatasets[:3])
        dataset.close()
        raise DataError(
            f"{display_name(name)}: holds no bands of its own ({inner or 'empty'}); save the wanted layer as a GeoTIFF"
        )
    return dataset


def _check_local(path: Path) -> None:
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise DataError(f"{path}: no such file; " + (f"did you mean {near[0]}?" if near else "give an existing raster"))
    if path.is_dir():
        raise DataError(f"{path}: a folder, where one raster was needed; give a file in it")


def _explained(path: str | Path, error: BaseException, advice: str) -> tuple[str, str]:
    """Return the cause of a read failure and its remedy; if GDAL gives no cause, the server is asked once more."""
    said, name = _words(error), str(path)
    if NETWORK.search(name) and not _remedy(said, name):
        answer = _answer(name)
        if _remedy(answer, name):
            said = answer
        elif not answer:
            advice = "the server answers, but did not send all of it: try again, or download the file first"
    remedy = _remedy(said, name) if NETWORK.search(name) else None
    return said.replace(_public(name), display_name(name)).partition(" - Failure writing")[0][
        :LONGEST
    ], remedy or advice


def _remedy(said: str, name: str) -> str | None:
    words = said.replace(_public(name), "")
    return next((remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, words)), None)


def _answer(name: str) -> str:
    """Open a remote raster again, with short timeouts and no retries; return GDAL's message, "" if it opens."""
    try:
        with gdal_env(name), rasterio.Env(**_PROBE):
            rasterio.open(name).close()
    except GDAL_FAILURES as error:
        return _words(error)
    return ""


def rasterio_window(window: Window) -> Any:
    """Convert a window to `rasterio.windows.Window`."""
    return rasterio.windows.Window(window.col, window.row, window.width, window.height)


def pieces(grid: Grid) -> Iterator[Window]:
    """Yield windows of at most 2048 x 2048 pixels that partition a grid, in row-major order."""
    for row in range(0, grid.height, CHUNK):
        for col in range(0, grid.width, CHUNK):
            yield Window(row, col, CHUNK, CHUNK).within(grid.window)


@cache
def compression() -> str:
    """Return "ZSTD" if this build of GDAL supports it, else "DEFLATE"."""
    shape = {"height": 1, "width": 1, "count": 1, "dtype": "uint8"}
    try:
        with MemoryFile() as memory, memory.open(driver="GTiff", compress="zstd", **shape):
            return "ZSTD"
    except GDAL_FAILURES:
        return "DEFLATE"
