"""Where scenes lie: on a disk, in a zip file, on a server; how GDAL calls them; whether they are still the same.

A scene's name goes through `gdal_name` once, at the door; inside it is a local path or a name that GDAL opens, and
`geood.geo.gdal.display_name` turns it back for messages. Servers fail now and then: `with_retries` is for all readers.
This room looks at files and, where there are none to look at, at a few pixels; it knows nothing of bands or models.
"""

from __future__ import annotations

import datetime
import hashlib
import html
import logging
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from geood.errors import DataError
from geood.geo.gdal import NETWORK, SCHEMES, open_raster, rasterio_window, reading
from geood.geo.grid import Window

T = TypeVar("T")
log = logging.getLogger("geood")
RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".webp")  # what is taken from folders and archives
_SCHEME = re.compile(r"(https?|ftp|s3|gs|az):/+(.+)", re.IGNORECASE)  # pathlib makes one slash of two
_ZIP = re.compile(r"(.*?\.zip)(?:[/!]+(.*))?", re.IGNORECASE)
_SOURCE = re.compile(r"<(?:SourceFilename|SourceDataset)([^>]*)>([^<]+)<")
_PLACES = 3  # pixels are looked at in so many places along each side
_PATCH_PX = 64  # side of what is looked at there, never beyond one block


def gdal_name(scene: str | Path) -> str:
    """What GDAL opens where a user says `scene`; names that GDAL knows (/vsi...) stay as they are.

    A local path becomes absolute, free of links but for the file itself (its companions lie beside the link);
    https://..., s3://..., gs:// and az:// become /vsicurl/ and its like. The raster in an archive is told as
    `a.zip/inner.tif`, `a.zip!inner.tif` or `zip://a.zip!inner.tif`, also with an address for `a.zip`; a local archive
    that holds one raster needs no more than its own name.

    Raises:
        DataError: if an archive holds no raster or several and none is named, or is no archive.
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
    if not zipped and path.exists() and path.suffix.lower() != ".zip":
        return str(path)
    archive, _, inner = text.rpartition("!")
    for outer in (Path(archive),) if archive else (path, *path.parents):
        if outer.is_file() and (archive or outer.suffix.lower() == ".zip"):
            within = inner.strip("/") if archive else "" if outer == path else path.relative_to(outer).as_posix()
            return _member(str(_local(outer)), within or _only_raster(outer))
    return str(path)


def stem(scene: str | Path) -> str:
    """What outputs of a scene are called: its file name without ending, folder and query."""
    text = str(scene)
    if NETWORK.search(text):
        text = unquote(text.partition("?")[0])
    last = re.split(r"[/\\!]", text.rstrip("/\\!}"))[-1]
    if last in ("", ".", ".."):
        last = Path(text).resolve().name
    return re.sub(r"[:*?\"<>|{}]", "_", Path(last).stem) or "scene"


def is_remote(name: str) -> bool:
    """Whether reading `name` goes over the network, for a local VRT through one of the files it is made of."""
    if NETWORK.search(name):
        return True
    path = Path(name)
    return path.suffix.lower() == ".vrt" and any(NETWORK.search(source) for source in _sources(path))


def with_retries(attempt: Callable[[], T], *, name: str, attempts: int = 4, wait_s: float = 0.5) -> T:
    """What `attempt` returns; where a remote scene gives a `DataError`, it is tried again after 1, 2, 4 times `wait_s`.

    `attempt` must open the scene anew after a failure: GDAL's handles remember what went wrong.

    Raises:
        DataError: of the last attempt.
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
    """What tells whether a scene is still the same: `bytes`, `changed` (the newest file's time) and a `digest` of all.

    The digest is over size and time of every local file the scene is made of (a VRT's sources, masks, overviews; not
    .aux.xml, where programs leave statistics unasked) and over what its header says. Where a file is not at hand it is
    over a small sample of the pixels too, and `bytes` is as far as the raster's own tables reach. Where the files lie
    does not count.

    Raises:
        DataError: if the scene cannot be read.
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
                facts.append(f"{local.name} {state and (state.st_size, state.st_mtime_ns)}")
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
    return found | {"digest": hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]}


def files_of(name: str) -> list[Path]:
    """The files on this machine's disks that a scene is read from, those that a VRT is made of among them.

    Raises:
        DataError: if the scene cannot be opened.
    """
    with open_raster(name) as dataset:
        found = [_on_disk(file) for file in _files(name, dataset.files)]
    return [path for path in found if path is not None and path.exists()]


def _local(path: str | Path) -> Path:
    path = Path(path)
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _in_archive(address: str, zipped: bool) -> tuple[str, str | None]:
    """Address and member (None: it is no archive) of what comes after the scheme."""
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
            inside = [n for n in file.namelist() if n.lower().endswith(RASTERS) and not n.startswith("__MACOSX/")]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{archive}: cannot be read as a zip file ({error}); copy it again") from None
    if len(inside) != 1:
        some = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
        raise DataError(
            f"{archive}: holds {len(inside)} rasters ({some or 'none'}), where one was needed; "
            + (f"name it, as {archive.name}/{inside[0]}" if inside else f"needed: one ending in {', '.join(RASTERS)}")
        )
    return inside[0]


def _files(name: str, told: Iterable[str]) -> list[str]:
    """Names of all files behind a dataset, each once, in a fixed order; GDAL tells of a VRT's but one level deep."""
    found: dict[str, None] = {}
    waiting = [name, *told]
    while waiting:
        file = waiting.pop(0)
        if file not in found:
            found[file] = None
            if file.lower().endswith(".vrt"):
                waiting.extend(_sources(Path(file)))
    return list(found)


def _sources(vrt: Path) -> list[str]:
    """What a local VRT is made of; nothing where it is none."""
    try:
        text = vrt.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return list(dict.fromkeys(_named(text, vrt.parent)))


def _named(text: str, folder: Path) -> Iterator[str]:
    for attributes, raw in _SOURCE.findall(text):
        source = html.unescape(raw)
        if source.startswith("<"):  # a VRT in a VRT
            yield from _named(source, folder)
        elif 'relativeToVRT="1"' in attributes.replace("'", '"') and not NETWORK.search(source):
            yield str(folder / source)
        else:
            yield source


def _on_disk(name: str) -> Path | None:
    """The local file that holds what GDAL calls `name`; None where there is none."""
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
    """What a dataset says of itself that matters to its pixels, their place or their validity."""
    transform = tuple(round(number, 9) for number in dataset.transform[:6])
    bands = zip(dataset.dtypes, dataset.nodatavals, dataset.colorinterp, dataset.descriptions, strict=True)
    kinds = [(dtype, repr(nodata), role.name, text) for dtype, nodata, role, text in bands]
    flags = [[flag.name for flag in band] for band in dataset.mask_flag_enums]
    crs = dataset.crs.to_wkt() if dataset.crs else None
    return dataset.shape, transform, crs, kinds, flags, dataset.overviews(1)


def _sample(dataset: Any) -> tuple[int, str]:
    """How far a TIFF's last block reaches (0: not told), and a digest of pixels and blocks in some places."""
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
    """Offset and length of a block of a TIFF; zeros elsewhere."""
    offset, length = (
        int(dataset.get_tag_item(f"BLOCK_{item}_{col}_{row}", "TIFF", bidx=1) or 0) for item in ("OFFSET", "SIZE")
    )
    return offset, length
