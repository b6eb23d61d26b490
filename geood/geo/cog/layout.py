"""Byte layout of a cloud-optimized GeoTIFF (COG) written around already compressed blocks.

Blocks are compressed here, and GDAL encodes georeferencing and metadata in a small in-memory TIFF, whose tags are taken
from it. This module lays out the final file: header, IFDs of all levels, then the blocks, smallest level first. That is
GDAL's own COG layout, so GDAL fetches a block with one request; only that each level begins at a multiple of 4096
bytes, so that it can be written before it is known where that is (`spaced_file`). Blocks without data are omitted
(sparse file). This module knows nothing of tiles or scores.

ZSTD level 1 with the floating-point predictor takes 8 ms/Mpx of one core and 1.8 bytes per pixel of scores of 16
significant bits; through an in-memory TIFF of GDAL the same takes 13. Level 3 takes twice as long, for 4 %. Blocks are
stored with the leader and trailer of the COG layout (`frame`), so that a run of adjacent blocks is copied at once.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from geood.errors import DataError
from geood.geo.cog.spaced_file import SpacedFile, aligned
from geood.geo.gdal import compression, gdal_env
from geood.geo.grid import Grid

Tags = dict[int, tuple[int, int, bytes]]  # number -> field type, count, little-endian value

CLASSIC_BYTES = 2**32 - 1  # a larger file must be a BigTIFF: 32-bit offsets do not reach its end
ZSTD_LEVEL = DEFLATE_LEVEL = 1
PIECE = 2**23  # bytes copied at a time
AT_ONCE = 64  # rows of a block whose bytes are split together
FRONT = 0  # part of a spaced file: header and IFDs
FRAME = 8  # bytes around a block: leader (its size) and trailer (its last four bytes repeated)
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 12: 8, 16: 8}
SUBFILE, WIDTH, HEIGHT, BLOCK_OFFSETS, BLOCK_SIZES = 254, 256, 257, 324, 325
PIXEL_TAGS = {258, 259, 262, 277, 284, 317, 322, 323, 338, 339, 42113}  # shared by overviews and full resolution
LAYOUT = (
    b"LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    b"BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
)  # GDAL overwrites the trailing blank in a file that was edited later
_thread = threading.local()
GHOST = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n" % len(LAYOUT) + LAYOUT


@dataclass(frozen=True)
class PyramidLevel:
    """Level of the pyramid: size in pixels, and location of its framed blocks in the file `source`.

    `offsets` (rows, columns of blocks) are the byte offsets of the frames, `sizes` the byte counts of the blocks inside
    them without leader and trailer; size 0 means no data.
    """

    height: int
    width: int
    source: BinaryIO
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def blank(cls, source: BinaryIO, shape: tuple[int, int], block: int) -> PyramidLevel:
        """Create a level without data, of `shape` (height, width) in pixels and with blocks of side `block`."""
        blocks = (-(-shape[0] // block), -(-shape[1] // block))
        return cls(*shape, source, np.zeros(blocks, np.int64), np.zeros(blocks, np.int64))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Byte counts of the frames."""
        return framed(self.sizes)


def frame(block: memoryview) -> tuple[bytes | memoryview, ...]:
    """Return leader, block and trailer; an empty tuple for a block without data."""
    return (len(block).to_bytes(4, "little"), block, block[-4:]) if block else ()


def framed(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the byte counts of blocks of these sizes with leader and trailer."""
    return sizes + FRAME * (sizes > 0)


def packed(array: NDArray[Any], *, nodata: float, block: int) -> list[memoryview]:
    """Compress an array (H, W), or (H, W, 4) of bytes; return its blocks in row-major order, empty where all is nodata.

    Sides must be multiples of `block`. Blocks of floats go through TIFF's floating-point predictor. Thread-safe; the
    GIL is held for little of it.
    """
    if array.ndim == 3:  # four bytes side by side are the bytes of one word
        array, nodata = np.ascontiguousarray(array).view("<u4")[..., 0], 2**32 - 1
    rows, cols = (range(0, side, block) for side in array.shape)
    blocks = (array[row : row + block, col : col + block] for row in rows for col in cols)
    return [memoryview(b"") if all_nodata(one, nodata) else _compressed(one) for one in blocks]


def all_nodata(array: NDArray[Any], nodata: float) -> bool:
    """Return whether all pixels are nodata; the first one tells it of most arrays, without a look at the others."""
    first = array[:1, :1]
    return all(bool((np.isnan(part) if np.isnan(nodata) else part == nodata).all()) for part in (first, array))


def _compressed(block: NDArray[Any]) -> memoryview:
    pixels: Any = _predicted(block) if block.dtype.kind == "f" else np.ascontiguousarray(block)
    if compression() == "DEFLATE":
        return memoryview(zlib.compress(pixels, DEFLATE_LEVEL))
    return memoryview(zstd().compress(pixels, asbytes=True))


def zstd() -> Any:
    """Return the codec of this thread: one may keep its state between blocks, so threads must not share it."""
    if not hasattr(_thread, "zstd"):
        from pyarrow import Codec

        _thread.zstd = Codec("zstd", ZSTD_LEVEL)
    return _thread.zstd


def _predicted(block: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return rows as TIFF's predictor 3 stores them: all highest bytes, the next, and so on, each less the one before.

    The differences run across the whole row, modulo 256 (Adobe Photoshop TIFF Technical Note 3, 2005).
    """
    height, width = block.shape
    differences = np.empty((height, 4 * width), np.uint8)
    for row in range(0, height, AT_ONCE):  # few rows stay in the processor's cache from step to step
        rows = slice(row, row + AT_ONCE)
        words, found = block[rows].view("<u4"), differences[rows]
        planes = np.empty((len(words), 4, width), np.uint8)
        for k, halves in ((0, (words >> 16).astype(np.uint16)), (2, words.astype(np.uint16))):
            planes[:, k], planes[:, k + 1] = halves >> 8, halves  # the lower byte of each
        np.subtract(
            planes.ravel()[1:], planes.ravel()[:-1], out=found.ravel()[1:]
        )  # one long row, in a third of the time
        found[:, 0] = planes[:, 0, 0]
    return differences


def template(
    grid: Grid,
    *,
    block: int,
    dtype: str,
    nodata: float,
    tags: dict[str, str],
    bands: Sequence[str],
    statistics: dict[str, str],
) -> Tags:
    """Return the TIFF tags that GDAL writes for a raster with these metadata `tags` and descriptions of its `bands`.

    `statistics` are tags of the first band. They are taken from a raster of one pixel: only the tags of the size depend
    on it, and `write_cog` sets those.
    """
    georeferencing = {"crs": grid.crs, "transform": None if grid.transform.is_identity else grid.transform}
    with gdal_env(), MemoryFile() as memory:
        profile = _profile(dtype, nodata, block, bands=len(bands))
        with memory.open(height=1, width=1, **georeferencing, **profile) as dataset:
            for index, description in enumerate(bands, start=1):
                dataset.set_band_description(index, description)
            dataset.update_tags(1, **statistics)
            dataset.update_tags(**tags)
        return _tags_of(memory.read())


def write_cog(path: Path, levels: list[PyramidLevel], like: Tags) -> None:
    """Write a COG of these levels, full resolution first, with the tags of a `template`; sync it and check its size.

    Raises:
        DataError: a source ends before its blocks do.
        OSError: the file cannot be written, or only partly.
    """
    head, starts, end = _plan(levels, like)
    with path.open("wb") as file:
        file.write(head)
        for level, start in reversed([*zip(levels, starts, strict=True)]):
            file.write(bytes(start - file.tell()))
            for data in frames(level):
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
        _check_size(os.fstat(file.fileno()).st_size, end)


def complete_cog(file: SpacedFile, levels: list[PyramidLevel], like: Tags) -> None:
    """Complete a file in whose parts after the first the levels lie, smallest first, to what `write_cog` would write.

    Raises:
        OSError: the file cannot be written, or only partly.
    """
    head, _, end = _plan(levels, like)
    file.append(FRONT, head)
    _check_size(file.close_up(), end)


def _check_size(size: int, wanted: int) -> None:
    if size != wanted:
        raise OSError("only part of it reached the disk")


def frames(level: PyramidLevel, rows: slice = slice(None)) -> Iterator[bytes]:
    """Yield the framed blocks of a level, or of some rows of blocks, in row-major order.

    Raises:
        DataError: the source ends before.
    """
    for start, end in _runs(level.offsets[rows], level.sizes[rows]):
        for at in range(start, end, PIECE):
            yield read_at(level.source, at, min(PIECE, end - at))


def read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """Read `length` bytes at `offset` of a file.

    Raises:
        DataError: the file ends before.
    """
    file.seek(offset)
    data = file.read(min(length, os.fstat(file.fileno()).st_size))
    if len(data) != length:
        raise DataError(f"{file.name}: cut short at byte {offset + len(data)}; remove it and run again")
    return data


def _profile(dtype: str, nodata: float, block: int, *, bands: int) -> dict[str, Any]:
    blocks = {"tiled": True, "blockxsize": block, "blockysize": block}
    packing = {"compress": compression(), "predictor": 3 if dtype == "float32" else 1}
    kind = {"driver": "GTiff", "count": bands, "dtype": dtype, "nodata": nodata, "SPARSE_OK": True}
    layout = {"ENDIANNESS": "LITTLE", "INTERLEAVE": "PIXEL", "PHOTOMETRIC": "MINISBLACK"}
    return {**kind, **layout, **blocks, **packing}


def _tags_of(tiff: bytes | memoryview) -> Tags:
    """Parse the tags of the first IFD of a little-endian classic TIFF."""
    (at,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, at)
    tags = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number, value = struct.unpack_from("<HHII", tiff, entry)
        size = number * TYPE_BYTES[kind]
        start = value if size > 4 else entry + 8
        tags[tag] = (kind, number, bytes(tiff[start : start + size]))
    return tags


def _runs(offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the byte ranges of the source that hold blocks in row-major order, adjacent ones merged."""
    there = sizes > 0
    starts = offsets[there]
    ends = starts + framed(sizes)[there]
    if not starts.size:
        return []
    cuts = np.flatnonzero(starts[1:] != ends[:-1])
    return list(zip(starts[[0, *(cuts + 1)]].tolist(), ends[[*cuts, -1]].tolist(), strict=True))


def _plan(levels: list[PyramidLevel], like: Tags) -> tuple[bytes, list[int], int]:
    """Return the bytes before the blocks, where the first frame of each level lies, and the size of the whole file."""
    head = _head(levels, like, big=False)
    starts, end = _starts(levels, len(head))
    if end > CLASSIC_BYTES:
        head = _head(levels, like, big=True)
        starts, end = _starts(levels, len(head))
    return head, starts, end


def _starts(levels: list[PyramidLevel], at: int) -> tuple[list[int], int]:
    """Return where the first frame of each level lies if they follow at byte `at`, and where the last one ends."""
    starts = []
    for level in reversed(levels):
        starts.append(aligned(at))
        at = starts[-1] + int(level.lengths.sum())
    return starts[::-1], at


def _head(levels: list[PyramidLevel], like: Tags, *, big: bool) -> bytes:
    """Build the bytes before the blocks, twice: their length, which the offsets in them need, is known afterwards."""
    near, far = _directories(levels, like, far_at=0, data_at=0, big=big)
    return b"".join(_directories(levels, like, far_at=len(near), data_at=len(near) + len(far), big=big))


def _directories(
    levels: list[PyramidLevel], like: Tags, *, far_at: int, data_at: int, big: bool
) -> tuple[bytes, bytes]:
    """Build the header with the IFDs of all levels, and the arrays of block offsets and sizes that follow it."""
    word, entry, room = ("<Q", struct.Struct("<HHQ8s"), 8) if big else ("<I", struct.Struct("<HHI4s"), 4)
    near = bytearray(struct.pack("<2sHHH", b"II", 43, 8, 0) if big else struct.pack("<2sH", b"II", 42))
    far, link = bytearray(), len(near)  # link: position of the pointer to the next IFD
    near += bytes(room) + GHOST
    starts, _ = _starts(levels, data_at)
    for n, (level, start) in enumerate(zip(levels, starts, strict=True)):
        near += bytes(len(near) % 2)
        struct.pack_into(word, near, link, len(near))
        tags = _level_tags(level, like, overview=n > 0, start=start, big=big)
        near += struct.pack("<Q" if big else "<H", len(tags))
        table, link = len(near), len(near) + len(tags) * entry.size
        near += bytes(len(tags) * entry.size + room)
        for i, (tag, (kind, count, value)) in enumerate(sorted(tags.items())):
            field = value
            if len(value) > room:
                part, base = (far, far_at) if tag in (BLOCK_OFFSETS, BLOCK_SIZES) else (near, 0)
                field = struct.pack(word, base + len(part))
                part += value + bytes(len(value) % 2)
            entry.pack_into(near, table + i * entry.size, tag, kind, count, field)
    return bytes(near), bytes(far)


def _level_tags(level: PyramidLevel, like: Tags, *, overview: bool, start: int, big: bool) -> Tags:
    """Return the tags of a level whose first frame is at byte `start` of the file."""
    tags = {tag: value for tag, value in like.items() if tag in PIXEL_TAGS or not overview}
    if overview:
        tags[SUBFILE] = (4, 1, struct.pack("<I", 1))
    for tag, side in ((WIDTH, level.width), (HEIGHT, level.height)):
        tags[tag] = (3, 1, struct.pack("<H", side)) if side < 2**16 else (4, 1, struct.pack("<I", side))
    lengths = level.lengths.ravel()
    offsets = np.where(lengths > 0, start + np.cumsum(lengths) - lengths + FRAME // 2, 0)
    kind, dtype = (16, "<u8") if big else (4, "<u4")
    tags[BLOCK_OFFSETS] = (kind, lengths.size, offsets.astype(dtype).tobytes())
    tags[BLOCK_SIZES] = (4, lengths.size, level.sizes.ravel().astype("<u4").tobytes())
    return tags
