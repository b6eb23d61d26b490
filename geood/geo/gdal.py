"""GDAL wrapper: configuration options, window conversion, translation of GDAL errors to `DataError` and `OutputError`.

All access to rasters goes through this module, so that the block cache is bounded, no raw error of rasterio or GDAL
reaches a user, GDAL's warnings stay out of the log, no server can block a run for ever, and only servers are asked that
the user named. rasterio's wheel carries its own GDAL: nothing set here affects pyogrio. This module opens rasters but
does not interpret their bands.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import rasterio
from rasterio._env import del_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio._path import _parse_path
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile

from geood.errors import DataError, OutputError
from geood.geo.addresses import NETWORK, display_name, public, reaches_server
from geood.geo.grid import Grid, Window
from geood.geo.source_pool import SIZE_KEY, expect_failures, forget_failures, listen, pool_size
from geood.geo.vrt import ALLOW, SourceCheck, is_allowed

# A message of GDAL may repeat bytes of a file that are no text, which rasterio cannot decode.
GDAL_FAILURES = (RasterioError, CPLE_BaseError, OSError, UnicodeDecodeError)
CACHE_BYTES = 256 * 2**20  # GDAL's block cache; its default, a share of the RAM, would grow with the machine
MOST_BANDS = 4096  # rasterio takes time by the square of their number for their colours and masks
CHUNK = 2048  # side of the windows in which whole rasters are iterated
LONGEST = 300  # maximum characters of a GDAL message shown to a user
# A photo without georeferencing is a valid input; callers that need a CRS check `Grid.crs`.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
# Alpha and nodata are read separately, so neither hides the other.
warnings.filterwarnings("ignore", category=NodataShadowWarning)
listen()

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
# Nothing reaches a server with these: no file in GDAL's network file systems is there, and no proxy is of such a kind.
# Where the environment has a no_proxy, libcurl heeds that instead: GDAL has no option against it, and a variable of the
# process cannot be taken away while threads run. So `vrt` also refuses addresses given as reference systems.
OFFLINE = {
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "GDAL_HTTP_PROXY": "refused://none",
    "GDAL_HTTPS_PROXY": "refused://none",
}
_PROBE = {
    "CPL_VSIL_CURL_USE_HEAD": "NO",
    "GDAL_HTTP_MAX_RETRY": "0",
    "GDAL_HTTP_CONNECTTIMEOUT": "5",
    "GDAL_HTTP_LOW_SPEED_TIME": "5",
}
# Formats of images, elevations and measurements whose pixels lie in files; of GDAL's other formats some ask servers.
_FORMATS = (
    "GTiff COG VRT PNG JPEG JPEGXL JP2OpenJPEG JP2KAK JP2ECW JP2MrSID JP2Lura ECW MrSID WEBP AVIF HEIF GIF BIGGIF BMP",
    "TGA PNM SGI HFA ENVI EHdr GenBin ISCE ERS PCIDSK NITF RST ILWIS SAGA RMF KEA netCDF HDF5 HDF5Image HDF4",
    "HDF4Image GRIB BAG GPKG MBTiles Rasterlite AAIGrid AIG GSAG GSBG GS7BG XYZ USGSDEM DTED SRTMHGT BT GXF ZMap",
    "PCRaster ROI_PAC LAN MFF MFF2 KRO PAux RRASTER SNAP_TIFF CEOS SAR_CEOS JAXAPALSAR SENTINEL2 SAFE DIMAP TIL RS2",
    "TSX COSAR FITS PDS PDS4 VICAR ISIS2 ISIS3 DOQ1 DOQ2 L1B BSB SDTS",
)
DRIVERS = [name for line in _FORMATS for name in line.split()]
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
_MANY_FILES = "fewer files may be open than it takes; raise the limit (ulimit -n)"
_PACKED = {".gz": "gunzip", ".tar": "tar -xf", ".tgz": "tar -xf", ".bz2": "bunzip2", ".xz": "unxz", ".7z": "7z x"}
_PREFIX = re.compile(r"(?:^|/)([A-Z][A-Za-z0-9_]{2,}):")  # of a name for one layer of a file, as NETCDF:"x.nc":v
_FINEST, _COARSEST = 1e-12, 1e12  # sides of pixels in units of a CRS; beyond, positions are no numbers of use
_FARTHEST = 1e15  # of an origin: from there on, metres and degrees are lost in rounding

_online = False  # set once a name was given that may reach servers; GDAL's options hold for all threads
_may_ask: set[str] = set()  # local VRTs whose addresses the user named


def limit_cache(size: int) -> None:
    """Limit GDAL's block cache in this process to `size` bytes from now on."""
    global _cache_bytes
    _cache_bytes = size


def allow_servers(name: str) -> None:
    """Let a local VRT name servers from now on, because the user named their addresses or said so."""
    _may_ask.add(name)


def may_ask_servers(name: str | Path) -> bool:
    """Check whether a raster may make requests: by its own name, by `allow_servers`, or by the environment."""
    return bool(NETWORK.search(str(name))) or str(name) in _may_ask or is_allowed()


@contextmanager
def gdal_env(name: str | Path = "") -> Iterator[None]:
    """Enter the rasterio environment (GDAL configuration options) in which geood reads or writes the raster `name`.

    Environment variables take precedence over the network options (GDAL_HTTP_MAX_RETRY and the like). As long as no
    name that may reach servers has come up in this process, GDAL cannot make requests at all.
    """
    global _online
    if not _online and may_ask_servers(name):
        _online = True
    asked = _SERVERS | (_REMOTE if NETWORK.search(str(name)) else {}) | {SIZE_KEY: str(pool_size())}
    unset = {key: value for key, value in asked.items() if key not in os.environ}
    with rasterio.Env(GDAL_CACHEMAX=_cache_bytes, **_FILES, **unset, **({} if _online else OFFLINE)):
        if _online:  # an environment around this one may be older
            for key in OFFLINE:
                del_gdal_config(key)
        forget_failures()
        try:
            yield
        finally:
            forget_failures()


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
    return public(" ".join(str(error).split()).rstrip(".")) or type(error).__name__


def open_raster(path: str | Path) -> Any:
    """Open a rasterio dataset with at least one band; `path` is a local file or a GDAL name (/vsi...).

    Raises:
        DataError: the file is missing, is not a raster, cannot be fetched from its server, has only subdatasets, names
            servers or leads back to itself (see `vrt`), or lies nowhere that numbers can say.
    """
    name = str(path)
    local = not name.startswith("/vsi") and "://" not in name
    if local:
        _check_local(Path(path))
    check = SourceCheck(name, servers=may_ask_servers(name), fetch=_vrt_text)
    with _opening(name), gdal_env(name):
        if not NETWORK.search(name):  # else it would be fetched twice
            check.run(_vrt_text(name) if name.startswith("/vsi") else None)
        dataset = _open(name)
        try:
            if dataset.driver == "VRT":
                expect_failures()
                if NETWORK.search(name):
                    check.run(_text_of(dataset))
            _check_opened(name, dataset)
        except BaseException:
            dataset.close()
            raise
    return dataset


def _open(name: str, drivers: list[str] = DRIVERS) -> Any:
    """Open a raster by any of the drivers; a local path is not parsed for what rasterio takes for addresses."""
    return DatasetReader(_parse_path(name if name.startswith("/vsi") else Path(name)), driver=drivers)


def _vrt_text(name: str) -> str | None:
    """Return the text of a VRT that only GDAL can read; nothing is fetched for names that are not those of VRTs."""
    if NETWORK.search(name) and not name.partition("?")[0].lower().endswith(".vrt"):
        return None
    try:
        with gdal_env(name), _open(name, ["VRT"]) as dataset:
            return _text_of(dataset)
    except GDAL_FAILURES:
        return None


def _text_of(dataset: Any) -> str:
    return "".join(dataset.tags(ns="xml:VRT").values())


@contextmanager
def _opening(name: str) -> Iterator[None]:
    try:
        yield
    except GDAL_FAILURES as error:
        advice = "give a GeoTIFF or another format GDAL reads, and copy the file again if it was cut short"
        if name.startswith("/vsizip/"):
            advice = "name one raster that is in it, as scenes.zip/tile.tif"
        elif command := _PACKED.get(Path(name).suffix.lower()):
            advice = f"unpack it first: {command} {Path(name).name}"
        said, remedy = _explained(name, error, advice)
        raise DataError(f"{display_name(name)}: cannot be read as a raster ({said}); {remedy}") from None


def _check_local(path: Path) -> None:
    shown = display_name(path)
    try:
        os.fsencode(path).decode("utf-8")
        there = path.exists()
    except UnicodeDecodeError:
        raise DataError(f"{shown!a}: its name is not UTF-8, which GDAL needs; rename it, or its folder") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be looked at ({error.strerror}); give an existing raster") from None
    if path.is_symlink() and not there:
        raise DataError(f"{shown}: a link to {display_name(os.readlink(path))}, which is not there; mend the link")
    if not there and (layer := _PREFIX.search(str(path))):
        raise DataError(
            f"{shown}: no such file; names of layers in a file ({layer[1]}:...) are not taken; save the layer as a "
            "GeoTIFF first, with gdal_translate"
        )
    if not there:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise DataError(
            f"{shown}: no such file; " + (f"did you mean {near[0]}?" if near else "give an existing raster")
        )
    if path.is_dir():
        raise DataError(f"{shown}: a folder, where one raster was needed; give a file in it")
    if not path.is_file():
        raise DataError(f"{shown}: neither a file nor a folder; give an image that lies on disk")


def _check_opened(name: str, dataset: Any) -> None:
    """Check that a dataset has bands, lies somewhere, and takes no pixels from servers that its tags name."""
    if not dataset.count:
        inner = ", ".join(display_name(each) for each in dataset.subdatasets[:3])
        raise DataError(
            f"{display_name(name)}: holds no bands of its own ({inner or 'empty'}); save the wanted layer as a "
            "GeoTIFF, with gdal_translate"
        )
    if dataset.count > MOST_BANDS:
        raise DataError(
            f"{display_name(name)}: has {dataset.count:,} bands, more than the {MOST_BANDS:,} that are read; take out "
            "those that are needed, with gdal_translate -b"
        )
    overview = str(dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE", ""))
    if reaches_server(overview) and not may_ask_servers(name):
        raise DataError(
            f"{display_name(name)}: a local file whose overviews are on a server ({display_name(overview)}); copy it "
            f"without them (gdal_translate IN OUT), or set {ALLOW}=YES in the environment if you trust the file"
        )
    a, b, c, d, e, f = dataset.transform[:6]
    sides = math.hypot(a, d), math.hypot(b, e)
    if not all(_FINEST <= side <= _COARSEST for side in sides) or not all(abs(place) <= _FARTHEST for place in (c, f)):
        raise DataError(
            f"{display_name(name)}: lies nowhere on Earth: pixels of {sides[0]:g} x {sides[1]:g}, origin at {c:g}, "
            f"{f:g} in units of its CRS; georeference it again, for example with gdal_edit -a_ullr"
        )
    if not all(math.isfinite(n) for point in dataset.gcps[0] for n in (point.row, point.col, point.x, point.y)):
        raise DataError(
            f"{display_name(name)}: has ground control points that are not finite numbers; georeference it again"
        )


def _explained(path: str | Path, error: BaseException, advice: str) -> tuple[str, str]:
    """Return the cause of a read failure and its remedy; if GDAL gives no cause, the server is asked once more."""
    said, name = _words(error), str(path)
    if NETWORK.search(name) and not _remedy(said, name):
        answer = _answer(name)
        if _remedy(answer, name):
            said = answer
        elif not answer:
            advice = "the server answers, but did not send all of it: try again, or download the file first"
    remedy = _remedy(said, name) if NETWORK.search(name) else _MANY_FILES if "Too many open" in said else None
    return said.replace(public(name), display_name(name)).partition(" - Failure writing")[0][:LONGEST], remedy or advice


def _remedy(said: str, name: str) -> str | None:
    words = said.replace(public(name), "")
    return next((remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, words)), None)


def _answer(name: str) -> str:
    """Open a remote raster again, with short timeouts and no retries; return GDAL's message, "" if it opens."""
    try:
        with gdal_env(name), rasterio.Env(**_PROBE):
            _open(name).close()
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
