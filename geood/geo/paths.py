"""Paths of scenes on disk, in zip archives and on servers: GDAL names, output stems, retries and fingerprints.

User input goes through `gdal_name` once; from then on a scene is named by a local path or a GDAL name (/vsi...), which
`geood.geo.addresses.display_name` converts back. Servers fail now and then: all readers use `with_retries`.
Fingerprints are taken from file metadata, and from a few pixels if no local file exists. This module knows nothing of
bands or models.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from geood.errors import DataError
from geood.geo.addresses import NETWORK, SCHEMES, display_name
from geood.geo.gdal import open_raster, rasterio_window, reading
from geood.geo.grid import Window
from geood.geo.vrt import document, named_sources

T = TypeVar("T")
log = logging.getLogger("geood")
RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".webp")  # searched for in folders and archives
_SCHEME = re.compile(r"(https?|ftp|s3|gs|az):/+(.+)", re.IGNORECASE)  # pathlib turns two slashes into one
_ZIP = re.compile(r"(.*?\.zip)(?:[/!]+(.*))?", re.IGNORECASE)
_PLACES = 3  # number of sampled positions along each axis
_PATCH_PX = 64  # side of the window sampled at each, never beyond one block


def seen_from(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, with slashes; the whole of it if it lies on another drive."""
    try:
        return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def gdal_name(scene: str | Path) -> str:
    """Convert a path or URL to the name under which GDAL opens it; GDAL names (/vsi...) are returned unchanged.

    A local path becomes absolute, with symlinks of its folder resolved but not that of the file itself, whose sidecar
    files lie next to the link. https://, s3://, gs:// and az:// become /vsicurl/ and the like. A raster in an archive
    is given as `a.zip/inner.tif`, `a.zip!inner.tif` or `zip://a.zip!inner.tif`, where `a.zip` may be a URL; for a local
    archive with a single raster, the archive's path is enough.

    Raises:
        DataError: an archive cannot be read, or holds no raster, or several of which none is named.
    """
    text = str(scene)
    if text.startswith("/vsi"):
        return text
    zipped = text.startswith(("zip://", "zip+"))
    text = re.sub(r"^(?:zip://|zip\+)", "", text)
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    if found := _SCHEME.fullmatch(text):
        address, inner = _in_archive(found[2], zipped)
        name = SCHEMES[found[1].lower()] + address
        return name if inner is None else _member(name, inner)
    path = _local(text)
    if not zipped and path.suffix.lower() != ".zip" and _exists(path):
        return str(path)
    archive, _, inner = text.rpartition("!")
    for outer in (Path(archive),) if archive else (path, *path.parents):
        if _exists(outer) and outer.is_file() and (archive or outer.suffix.lower() == ".zip"):
            within = inner.strip("/") if archive else "" if outer == path else path.relative_to(outer).as_posix()
            return _member(str(_local(outer)), within or _only_raster(outer))
    return str(path)


def stem(scene: str | Path) -> str:
    """Return the base name for outputs of a scene: its file name without folder and extension, and without secrets."""
    text = str(scene)
    if NETWORK.search(text):
        text = unquote(display_name(gdal_name(text)))
    last = re.split(r"[/\\!]", text.rstrip("/\\!}"))[-1]
    if last in ("", ".", ".."):
        last = Path(text).resolve().name
    return re.sub(r"[:*?\"<>|{}]", "_", Path(last).stem) or "scene"


@dataclass(frozen=True, repr=False)
class ScenePath:
    """The names of one scene; the archive that it may lie in is looked into once, when `opened` is first asked for.

    `given` and `opened` may hold secrets, and are only for opening it.
    """

    given: str

    def __repr__(self) -> str:
        return f"ScenePath({self.public!r})"

    @property
    def stem(self) -> str:
        """Name of its outputs, without suffix."""
        return stem(self.given)

    @cached_property
    def opened(self) -> str:
        """Name that GDAL opens.

        Raises:
            DataError: an archive holds no raster or several and none is named, or is no archive.
        """
        return gdal_name(self.given)

    @property
    def public(self) -> str:
        """Name as the user gave it, an address without user, password and what follows a "?"."""
        return display_name(gdal_name(self.given) if NETWORK.search(self.given) else self.given)

    @property
    def shown(self) -> str:
        """Name for people, without the secrets of an address; a local one with its folder."""
        return display_name(self.opened)

    @property
    def label(self) -> str:
        """File name for outputs and log lines."""
        return Path(self.shown).name


def is_remote(name: str) -> bool:
    """Check whether reading a GDAL name uses the network, for a local VRT through any of its source files."""
    if NETWORK.search(name):
        return True
    return any(NETWORK.search(source) for source in _sources(name))


def with_retries(attempt: Callable[[], T], *, name: str, attempts: int = 4, wait_s: float = 0.5) -> T:
    """Call `attempt`, and retry it on a `DataError` of a remote scene after 1, 2, 4 ... times `wait_s` seconds.

    `attempt` must reopen the scene after a failure, because GDAL's handles cache errors.

    Raises:
        DataError: the last attempt failed, or the first one of a local scene.
        ValueError: `attempts` is less than 1.
    """
    for tried in range(1, attempts + 1):
        try:
            return attempt()
        except DataError as error:
            if tried == attempts or not is_remote(name):
                raise
            log.info("%s; trying again", error)
            time.sleep(wait_s * 2 ** (tried - 1))
    raise ValueError(f"attempts is at least 1, got {attempts}")


def fingerprint(name: str) -> dict[str, str]:
    """Return a fingerprint that changes with a scene: `bytes`, `changed` (mtime of the newest file) and a `digest`.

    The digest covers size and mtime of every local file of the scene (also a VRT's sources, masks and overviews, but
    not .aux.xml, to which programs add statistics on their own) and the header. If any file is not local, it also
    covers a small sample of the pixels, and `bytes` includes the size that the raster's block table implies. The
    folders of the files do not matter.

    Raises:
        DataError: the scene cannot be read.
    """
    with open_raster(name) as dataset, reading(name):
        facts, times, size = [repr(_header(dataset))], [0], 0
        afar = False
        for file in _files(name, dataset.files):
            local = _on_disk(file)
            if local is None:
                afar = True
            elif not local.name.endswith(".aux.xml"):
                state = local.stat() if local.exists() else None
                member = file.partition(local.name)[2]  # of an archive
                facts.append(f"{local.name} {state and (state.st_size, state.st_mtime_ns)} {member}")
                size += state.st_size if state else 0
                times.append(state.st_mtime_ns if state else 0)
        if afar or size == 0:
            reach, sample = _sample(dataset)
            facts.append(sample)
            size += reach
    found = {"bytes": str(size)} if size else {}
    if max(times):
        newest = datetime.datetime.fromtimestamp(max(times) / 1e9, datetime.UTC)
        found["changed"] = newest.isoformat(timespec="seconds")
    told = "\n".join(facts).encode("utf-8", "surrogateescape")  # names in a VRT may be in any encoding
    return found | {"digest": hashlib.sha256(told).hexdigest()[:32]}


def files_of(name: str) -> list[Path]:
    """Return the local files that a scene is read from, including the sources of a VRT.

    Raises:
        DataError: the scene cannot be opened.
    """
    with open_raster(name) as dataset:
        found = [_on_disk(file) for file in _files(name, dataset.files)]
    return [path for path in found if path is not None and path.exists()]


def _local(path: str | Path) -> Path:
    path = Path(path)
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _exists(path: Path) -> bool:
    """Check whether a path exists; one that cannot even be looked for, as its name is too long, does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _in_archive(address: str, zipped: bool) -> tuple[str, str | None]:
    """Split the part of a URL after the scheme into archive address and member (None: not an archive)."""
    outer, mark, inner = address.rpartition("!")
    if mark and (zipped or outer.partition("?")[0].lower().endswith(".zip")):
        return outer, inner.strip("/")
    path, mark, query = address.partition("?")
    if found := _ZIP.fullmatch(path):
        return found[1] + mark + query, (found[2] or "").strip("/")
    return address, "" if zipped else None


def _member(archive: str, inner: str) -> str:
    return f"/vsizip/{{{archive}}}" + (f"/{inner}" if inner else "")


def _only_raster(archive: Path) -> str:
    try:
        with zipfile.ZipFile(archive) as file:
            inside = [n for n in file.namelist() if n.lower().endswith(RASTERS) and not _hidden(n)]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{archive}: cannot be read as a zip file ({error}); copy it again") from None
    if len(inside) != 1:
        inside = [display_name(n) for n in inside]
        some = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
        raise DataError(
            f"{archive}: holds {len(inside)} rasters ({some or 'none'}), where one was needed; "
            + (f"name it, as {archive.name}/{inside[0]}" if inside else f"needed: one ending in {', '.join(RASTERS)}")
        )
    return inside[0]


def _hidden(member: str) -> bool:
    """Check whether a member of an archive is hidden, as those that macOS adds (._x.tif, __MACOSX)."""
    return member.startswith("__MACOSX/") or member.rsplit("/", 1)[-1].startswith(".")


def _files(name: str, told: Iterable[str]) -> list[str]:
    """List all files of a dataset, each once and in a fixed order; GDAL lists those of a VRT only one level deep."""
    found: dict[str, None] = {}
    waiting = [name, *told]
    while waiting:
        file = waiting.pop(0)
        if file not in found:
            found[file] = None
            waiting.extend(_sources(file))
    return list(found)


def _sources(name: str, folder: Path | None = None) -> list[str]:
    """Return the names of the sources of a local VRT, those of VRTs in its text included; none for other rasters."""
    text = document(name)
    found: list[str] = []
    if text is not None:
        folder = folder or Path(name).parent
        for source in dict.fromkeys(named_sources(text, folder)):
            found += _sources(source, folder) if source.startswith("<") else [source]
    return list(dict.fromkeys(found))


def _on_disk(name: str) -> Path | None:
    """Return the local file behind a GDAL name (for an archive member: the archive); None if there is none."""
    if NETWORK.search(name):
        return None
    plain = re.sub(r"^(?:/vsi(?:zip|tar|gzip|7z|rar)/)+", "", name)
    if plain.startswith(("/vsi", "<")):
        return None
    if found := re.match(r"\{([^}]*)\}", plain):
        return Path(found[1])
    path = Path(plain)
    if plain != name:
        path = next((p for p in (path, *path.parents) if p.is_file()), path)
    return path


def _header(dataset: Any) -> tuple[object, ...]:
    """Return the metadata of a dataset that affect its pixels, their georeferencing or their validity."""
    transform = tuple(round(number, 9) for number in dataset.transform[:6])
    bands = zip(dataset.dtypes, dataset.nodatavals, dataset.colorinterp, dataset.descriptions, strict=True)
    kinds = [(dtype, repr(nodata), role.name, text) for dtype, nodata, role, text in bands]
    flags = [[flag.name for flag in band] for band in dataset.mask_flag_enums]
    crs = dataset.crs.to_wkt() if dataset.crs else None
    return dataset.shape, transform, crs, kinds, flags, dataset.overviews(1)


def _sample(dataset: Any) -> tuple[int, str]:
    """Return the end offset of a TIFF's last block (0: unknown), and a digest of sampled pixels and block locations."""
    height, width = dataset.block_shapes[0]
    middles = [(2 * i + 1) / (2 * _PLACES) for i in range(_PLACES)]
    seen = hashlib.sha256()
    for row, col in [(int(y * dataset.height), int(x * dataset.width)) for y in middles for x in middles]:
        block = Window(row // height * height, col // width * width, height, width)
        patch = Window(row, col, _PATCH_PX, _PATCH_PX).within(block).within(Window(0, 0, *dataset.shape))
        seen.update(dataset.read(window=rasterio_window(patch)).tobytes())
        seen.update(dataset.read_masks(window=rasterio_window(patch)).tobytes())
        seen.update(repr(_block(dataset, row // height, col // width)).encode())
    last = _block(dataset, (dataset.height - 1) // height, (dataset.width - 1) // width)
    return sum(last), f"{last} {seen.hexdigest()}"


def _block(dataset: Any, row: int, col: int) -> tuple[int, int]:
    """Return byte offset and length of a block of a TIFF; zeros for other formats."""
    offset, length = (
        int(dataset.get_tag_item(f"BLOCK_{item}_{col}_{row}", "TIFF", bidx=1) or 0) for item in ("OFFSET", "SIZE")
    )
    return offset, length
