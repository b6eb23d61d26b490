"""VRT documents: the files that one names, found and checked before GDAL opens any of them.

GDAL opens whatever a VRT names, at any depth and with any of its drivers. So a small local file could make requests to
servers that the user never named, and one that leads back to itself would stop threads that read it for ever. Both are
refused before any of its sources is opened. The text is read as leniently as GDAL reads it: comments, CDATA, character
references, names in any case, and attributes in place of elements.
"""

from __future__ import annotations

import html
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn
from xml.sax.saxutils import escape

from geood.errors import DataError, shown
from geood.geo.addresses import NETWORK, display_name, reaches_server

ALLOW = "GEOOD_VRT_NETWORK"  # environment variable: "YES" lets local VRTs name servers
_DEEPEST = 16  # VRTs within VRTs
_MOST_READS = 10**7  # rasters read for one pass over a VRT, each as often as it is named
_HEAD_BYTES = 2048
_NAME = r"(?:SourceFilename|SourceDataset)"
_VALUE = r"(?:\"[^\"]*\"|[^\s<>\"'=][\w.:-]*)"  # of an attribute; GDAL takes words without quotes too
_SOURCE = re.compile(
    rf"<\s*{_NAME}\b(?P<attributes>[^<>]*)>(?P<text>[^<]*)|\b{_NAME}\s*=\s*(?P<value>{_VALUE})", re.IGNORECASE
)
_BESIDE = re.compile(rf"relativeToVRT\s*=\s*({_VALUE})", re.IGNORECASE)
_NONZERO = re.compile(r"[ \t-\r]*[+-]?0*[1-9]\d{0,8}(?!\d)", re.ASCII)  # as C's atoi reads it, within 32 bits
_NO = ("", "0", "no", "false", "off")
_FILTERED = re.compile(r"<\s*KernelFilteredSource\b.*?(?:</\s*KernelFilteredSource|\Z)", re.S | re.I)
_KERNEL = re.compile(r"<\s*Kernel\b.*<\s*Size\s*>\s*\+?0*[1-9]", re.S | re.I)
_UNREAD = r"<!--.*?(?:-->|\Z)|<!\[CDATA\[(?P<cdata>.*?)(?:\]\]>|\Z)"  # as tags: comments, and CDATA
_IN_TEXT = re.compile(rf"{_UNREAD}|<", re.S | re.I)
_IN_TAG = re.compile(rf"{_UNREAD}|(?P<quoted>\"[^\"]*\"|'[^']*')|[<>]", re.S | re.I)
_REFERENCE = re.compile(r"&(?:#x0*([0-9a-f]{1,6})|#0*([0-9]{1,7})|(?:lt|gt|amp|apos|quot));", re.I)
_MARK = re.compile(r"[<>\"']")
# Metadata may hold addresses, but for the items that tell where positions, overviews and reference systems are.
_METADATA = re.compile(r"<\s*Metadata\b[^<>]*(?<!/)>.*?(?:(?P<end></\s*Metadata\b)|\Z)", re.S | re.I)
_FETCHED_ITEM = re.compile(r"\bkey\s*=\s*\"?\s*(?:[XYZ]_DATASET|SRS|OVERVIEW_FILE)\b", re.I)
_ADDRESS = re.compile(r"(?:https?|ftp)://[^\s<>\"']*", re.I)
_SERVICE_DOCUMENT = re.compile(
    r"<\s*(?:GDAL_WMS|GDAL_WMTS|WMS_|WMT_MS|WCS_|Capabilities|TileMap|TileService|VSISparseFile)|\"stac_version\"", re.I
)


def named_sources(text: str, folder: Path) -> Iterator[str]:
    """Yield the names of all sources in a VRT's text, in order and as often as they occur.

    Those relative to the VRT are joined to its folder; where GDAL might take a name either way, both are yielded. A VRT
    within the text counts as a source, whose name is its text; what that names is not yielded.
    """
    return _named(_plain(text), folder)


def _named(plain: str, folder: Path) -> Iterator[str]:
    for found in _SOURCE.finditer(plain):
        source = _unescaped((found["value"] or found["text"]).strip('"')).lstrip()
        if source:
            fixed = NETWORK.search(source) or source[0] == "<" or _is_inline(source)
            for beside in (False,) if fixed else _readings(found["attributes"] or ""):
                yield str(folder / source) if beside else source


def _readings(attributes: str) -> list[bool]:
    """Return whether a name is relative to the VRT, by the attributes of its element; both if that is in doubt."""
    values = [_unescaped(value.strip('"')) for value in _BESIDE.findall(attributes)]
    if values and all(_NONZERO.match(value) for value in values):
        return [True]
    return [False] if all(value.lower() in _NO for value in values) else [True, False]


def _plain(text: str) -> str:
    """Return a VRT's text without comments and CDATA, in which <, > and quotes are nothing but marks of tags."""
    parts, at, in_tag = [], 0, False
    while found := (_IN_TAG if in_tag else _IN_TEXT).search(text, at):
        before, at, kind = text[at : found.start()], found.end(), found.lastgroup
        parts.append(before if in_tag else _without_marks(before))
        if kind == "quoted":
            parts.append(f'"{_without_marks(found["quoted"][1:-1])}"')
        elif kind == "cdata":
            inner = _without_marks(escape(found["cdata"]))
            parts.append(f'"{inner}"' if in_tag else inner)
        elif found[0] in ("<", ">"):
            parts.append(found[0])
            in_tag = found[0] == "<"
    return "".join((*parts, text[at:]))


def _without_marks(text: str) -> str:
    """Return a text with its <, > and quotes as references; those that it has stay as they are."""
    return _MARK.sub(lambda found: f"&#{ord(found[0])};", text)


def _unescaped(text: str) -> str:
    """Return a text with the character references that GDAL knows resolved."""
    return _REFERENCE.sub(_character, text)


def _character(reference: re.Match[str]) -> str:
    if not (reference[1] or reference[2]):
        return html.unescape(reference[0].lower())
    code = int(reference[1], 16) if reference[1] else int(reference[2])
    return chr(code) if code <= sys.maxunicode else ""


def document(name: str) -> str | None:
    """Return the text of a VRT on disk or within another's text, None if the name is that of anything else.

    Raises:
        DataError: the name is that of a pipe or a device, which would be waited for without end.
    """
    if name.startswith("<") or _is_inline(name):
        return name if _is_inline(name) else None
    if name.lower().startswith("vrt://"):
        return f"<SourceFilename>{escape(name[6:].partition('?')[0])}</SourceFilename>"
    if name.startswith("DERIVED_SUBDATASET:"):
        return f"<SourceFilename>{escape(name.split(':', 2)[-1])}</SourceFilename>"
    if "://" in name or name.startswith("/vsi"):
        return None
    head = _head(name)
    if not head.lstrip().startswith("<VRTDataset"):
        return None
    return Path(name).read_text(encoding="utf-8", errors="surrogateescape")


def _is_inline(name: str) -> bool:
    """Check whether a name is a VRT's text; GDAL looks for its start anywhere in a name."""
    return "<VRTDataset" in name


def is_allowed() -> bool:
    """Check whether the environment lets local VRTs name servers."""
    return os.environ.get(ALLOW, "").strip().upper() in ("YES", "TRUE", "ON", "1")


class SourceCheck:
    """A walk through all that a raster draws on, if it is a VRT.

    `servers` says whether it may name servers; `fetch` returns the text of a VRT that only GDAL can read (/vsi...), and
    None if a name is that of anything else.
    """

    def __init__(self, top: str, *, servers: bool, fetch: Callable[[str], str | None]) -> None:
        self.top, self._servers, self._fetch = top, servers, fetch
        self._known: dict[object, tuple[int, int]] = {}

    def run(self, text: str | None) -> None:
        """Check the raster; `text` is that of a VRT that does not lie on disk.

        Raises:
            DataError: it leads back to itself, its VRTs are nested too deep or name their images too often, it names
                servers though it may not, or it has a filter without a kernel.
        """
        text = document(self.top) if text is None else text
        if text is not None:
            self._visit(text, Path(self.top).parent, (_identity(self.top),))

    def _visit(self, text: str, folder: Path, above: tuple[object, ...]) -> tuple[int, int]:
        """Return how many VRTs are nested in one, itself included, and how many rasters are read for all its pixels."""
        if len(above) > _DEEPEST:
            self._refuse(f"more than {_DEEPEST} VRTs within one another", _FLATTEN)
        plain = _plain(text)
        if "<!doctype" in plain.lower():  # quotes and brackets in it have rules of their own
            self._refuse("a VRT with a DOCTYPE, which GDAL does not write", "take it out of the file")
        depth, reads = 0, 0
        for source, times in Counter(_named(plain, folder)).items():
            below, each = self._source(source, folder, above)
            depth, reads = max(depth, below), reads + times * each
        if not self._servers and (address := _address(plain)):  # elsewhere than in a source's name
            self._refuse_server(address)
        if any(not _KERNEL.search(found[0]) for found in _FILTERED.finditer(plain)):
            self._refuse("a source that is filtered without a kernel, which GDAL does not survive", _FLATTEN)
        if depth + len(above) > _DEEPEST:
            self._refuse(f"more than {_DEEPEST} VRTs within one another", _FLATTEN)
        if reads > _MOST_READS:
            self._refuse(f"names its images {reads:,} times", _FLATTEN)
        return depth + 1, reads

    def _source(self, name: str, folder: Path, above: tuple[object, ...]) -> tuple[int, int]:
        key = _identity(name)
        if key in above:
            self._refuse(
                f"leads back to itself, through {_short(name)}", "write it again from its images, with gdalbuildvrt"
            )
        if key not in self._known:
            if not self._servers and (_is_service(name) or (name[0] != "<" and reaches_server(name))):
                self._refuse_server(name)
            text = self._fetch(name) if name.startswith("/vsi") and not _is_inline(name) else document(name)
            within = folder if name.startswith("<") or _is_inline(name) else Path(name).parent
            self._known[key] = (0, 1) if text is None else self._visit(text, within, (*above, key))
        return self._known[key]

    def _refuse_server(self, name: str) -> NoReturn:
        self._refuse(
            f"a local file that names a server ({_short(name)})",
            f"give the address itself as the scene, or set {ALLOW}=YES in the environment if you trust the file",
        )

    def _refuse(self, came: str, remedy: str) -> NoReturn:
        raise DataError(f"{display_name(self.top)}: {came}; {remedy}")


_FLATTEN = "save it as one GeoTIFF first: gdal_translate IN OUT"


def _address(plain: str) -> str | None:
    """Return the first part of a VRT's plain text for which GDAL might ask a server, None if there is none.

    GDAL also fetches reference systems: from an address given as one.
    """
    found = NETWORK.search(_unescaped(plain)) or _ADDRESS.search(_unescaped(_METADATA.sub(_fetched, plain)))
    return found[0] if found else None


def _fetched(metadata: re.Match[str]) -> str:
    """Return the metadata if an item of them may be fetched, else nothing."""
    return metadata[0] if not metadata["end"] or _FETCHED_ITEM.search(_unescaped(metadata[0])) else ""


def _is_service(name: str) -> bool:
    """Check whether a name is a document for one of GDAL's drivers for services, or that of a local file with one."""
    text = name if name.startswith("<") else "" if name.startswith("/vsi") or "://" in name else _head(name)
    return bool(_SERVICE_DOCUMENT.search(text))


def _head(name: str) -> str:
    """Return the first characters of a local file; "" if it cannot be read.

    Raises:
        DataError: it is a pipe or a device, which would be waited for without end.
    """
    try:
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise DataError(f"{display_name(name)}: neither a file nor a folder; give an image that lies on disk")
        with open(name, "rb") as file:
            return file.read(_HEAD_BYTES).decode("latin-1")
    except (OSError, ValueError):
        return ""


def _identity(name: str) -> object:
    """Return a value that all names of one file share, also through links."""
    try:
        state = os.stat(name)
    except (OSError, ValueError):
        return name
    return state.st_dev, state.st_ino


def _short(name: str) -> str:
    return shown(display_name("a text within it" if name.startswith("<") else name), most=97)
