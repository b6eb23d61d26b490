"""Orientation of photographs: how viewers turn the pixels of a file, by its EXIF tag.

Cameras store rows as the sensor reads them and note in the tag how the picture is to be turned. GDAL and QGIS show it
as stored; viewers, and most tools that labels are drawn with, show it turned. Here the tag is read, and arrays and
windows go from the stored grid to the shown one and back. Nothing is known of frames and their labels.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood.geo.grid import Window

_TAG = 0x0112
_JPEG, _PNG, _TIFF = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*")
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}  # JPEG markers
_PIXELS = {0xD9, 0xDA}  # JPEG markers after which no tags come
# By the value of the tag: rows and columns change places, then rows are reversed, then columns (EXIF 2.3, 4.6.4).
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class Orientation(NamedTuple):
    """Way from the stored grid of an image to the one that viewers show: transposed, then reversed along axes."""

    transposed: bool = False
    rows: bool = False
    cols: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width as shown of those stored, and those stored of those shown."""
        return (width, height) if self.transposed else (height, width)

    def stored(self, window: Window, height: int, width: int) -> Window:
        """Return the stored window of a shown one, given height and width of the image as shown."""
        row = height - window.row - window.height if self.rows else window.row
        col = width - window.col - window.width if self.cols else window.col
        if self.transposed:
            return Window(col, row, window.width, window.height)
        return Window(row, col, window.height, window.width)

    def shown(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array (..., H, W) as stored to what viewers show."""
        return np.ascontiguousarray(self._reversed(array.swapaxes(-1, -2) if self.transposed else array))

    def back(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array (..., H, W) as shown to what is stored."""
        turned = self._reversed(array)
        return np.ascontiguousarray(turned.swapaxes(-1, -2) if self.transposed else turned)

    def _reversed(self, array: NDArray[Any]) -> NDArray[Any]:
        return array[..., :: -1 if self.rows else 1, :: -1 if self.cols else 1]


UPRIGHT = Orientation()


def orientation_of(path: str | Path) -> Orientation:
    """Return the orientation that a JPEG, PNG, WebP or TIFF file tells of itself; upright for any other file.

    A tag that cannot be read, or is none of the eight values, is as good as none, as it is for viewers.
    """
    try:
        with Path(path).open("rb") as file:
            return Orientation(*_TURNS[_value(file)])
    except (OSError, ValueError, struct.error, KeyError):
        return UPRIGHT


def _value(file: BinaryIO) -> int:
    """Return the value of the tag; 1 without one."""
    head = file.read(12)
    file.seek(0)
    if head[:2] == _JPEG:
        return _in_jpeg(file)
    if head[:8] == _PNG:
        return _in_chunks(file, 8, b"eXIf", ">")
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return _in_chunks(file, 12, b"EXIF", "<")
    return _in_directory(file, 0) if head[:4] in _TIFF else 1


def _in_jpeg(file: BinaryIO) -> int:
    file.seek(2)
    while True:
        mark, kind = struct.unpack(">BB", file.read(2))
        while mark == kind == 0xFF:  # filling
            [kind] = struct.unpack(">B", file.read(1))
        if mark != 0xFF or kind in _PIXELS:
            return 1
        if kind in _WITHOUT_LENGTH:
            continue
        [length] = struct.unpack(">H", file.read(2))
        start = file.tell()
        if kind == 0xE1 and file.read(6) == b"Exif\0\0":
            return _in_directory(file, start + 6)
        file.seek(start + length - 2)


def _in_chunks(file: BinaryIO, start: int, wanted: bytes, order: str) -> int:
    """Look for the tag in the chunks of a PNG (length, name, content, checksum) or WebP (name, length, content)."""
    file.seek(start)
    while len(head := file.read(8)) == 8:
        name, size = (head[4:], head[:4]) if order == ">" else (head[:4], head[4:])
        [length] = struct.unpack(f"{order}I", size)
        start = file.tell()
        if name == wanted:
            prefix = 6 if file.read(6) == b"Exif\0\0" else 0  # some writers of WebP keep the mark of JPEG
            return _in_directory(file, start + prefix)
        file.seek(start + (length + 4 if order == ">" else length + length % 2))
    return 1


def _in_directory(file: BinaryIO, start: int) -> int:
    """Look for the tag in the first directory of a TIFF structure that begins at `start`."""
    file.seek(start)
    order = {b"II*\0": "<", b"MM\0*": ">"}[file.read(4)]
    file.seek(start + struct.unpack(f"{order}I", file.read(4))[0])
    [count] = struct.unpack(f"{order}H", file.read(2))
    for _ in range(count):
        tag, kind, number, value = struct.unpack(f"{order}HHIH2x", file.read(12))
        if tag == _TAG:
            return int(value) if (kind, number) == (3, 1) else 1
    return 1
