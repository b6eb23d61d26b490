"""Encoding of tiles to compressed chunks, from which a cloud-optimized GeoTIFF (COG) is put together.

Each tile is encoded as soon as it is finished, in any process and any order: the compressed blocks of full resolution
(level 0) and of the first overview (level 1), and the uncompressed pixels of the second overview (level 2).
`assembly` makes a COG around these bytes; only level 2 and above, a twelfth of the pixels, are compressed there. So
the same tiles give the same file whatever the order and the process, and nothing is compressed twice. This module knows
nothing of models or polygons.

For scores of a trained network, on one core, encoding takes 11 ms/Mpx. Compressing level 2 as well would cost 1.5 ms
and decompressing it 0.5 ms, to save a quarter of its bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from geood.errors import DataError
from geood.geo.cog.layout import all_nodata, frame, framed, packed, read_at, zstd

Overview = Literal["average", "mode"]
Scores = TypeVar("Scores", bound=Any)  # an array or a tensor
Places = Mapping[int, tuple[int, int]]  # tile number -> byte offset and length of its chunk in a file

BLOCK_PX = 512  # maximum block side, as far as the tile size allows, and maximum longer side of the smallest overview
WORST = 1.5  # upper bound, per byte of pixels, for all chunks, and again for their COG with its scratch file
EMPTY = np.zeros(0, np.uint8)  # the chunk of a tile without data
_HEAD = struct.Struct("<4HI")  # chunk header: rows and columns of level-1 blocks; rows, columns and bytes of level 2


class Quarter(NamedTuple):
    """Location in a file and shape of a tile's level-2 pixels (quarter resolution), row-major.

    They are ZSTD-compressed if `length` differs from the byte length of the pixels.
    """

    offset: int
    length: int
    height: int
    width: int

    def pixels(self, chunks: BinaryIO, like: NDArray[Any]) -> NDArray[Any]:
        """Read the pixels (h, w), or (h, w, 4), of the dtype and bands of `like`.

        Raises:
            DataError: they are cut short or damaged.
        """
        data, shape = read_at(chunks, self.offset, self.length), (self.height, self.width, *like.shape[2:])
        size = math.prod(shape) * like.itemsize
        if self.length != size:
            try:
                data = zstd().decompress(data, size, asbytes=True)
            except OSError:
                raise DataError(f"{chunks.name}: damaged at byte {self.offset}; remove it and run again") from None
        return np.frombuffer(data, like.dtype).reshape(shape)


class ChunkIndex(NamedTuple):
    """Contents of a tile's chunk: offsets of the frames and sizes of the blocks of levels 0 and 1, and its quarter."""

    blocks: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.int64]]]
    quarter: Quarter


def block_px(tile_px: int) -> int:
    """Return the block side, in pixels, for tiles of `tile_px` (a multiple of 32).

    It divides half a tile, so that no block of the first overview spans two tiles, and is a multiple of 16, as TIFF
    requires. The largest such side up to 512 is taken; if that is below 128 for a large tile, the smallest above 512.
    """
    units = tile_px // 32  # of 16 pixels in half a tile
    side = max(16 * n for n in range(1, BLOCK_PX // 16 + 1) if units % n == 0)
    if side >= BLOCK_PX // 4 or 16 * units <= BLOCK_PX:
        return side
    parts = min(units, 16 * units // BLOCK_PX)  # the smallest side above is half a tile in the most parts
    return 16 * units // max(n for n in range(1, parts + 1) if units % n == 0 and 16 * units // n > BLOCK_PX)


def encode_tile(array: NDArray[Any], *, tile_px: int, nodata: float, overview: Overview) -> NDArray[np.uint8]:
    """Encode one tile's pixels (h, w), or (h, w, 4) of bytes, at most `tile_px` a side; no bytes if all are nodata.

    Scores are float32 with nodata NaN and overview "average"; classes are uint8 with nodata 255 and overview "mode",
    which holds for the first band: the others keep the upper left of each 2 x 2 pixels. Thread-safe and deterministic.
    """
    if all_nodata(array, nodata):
        return EMPTY
    block = block_px(tile_px)
    full = _padded(array, 2 * block, nodata)
    half = SHRINK[overview](full)
    quarter = SHRINK[overview](half)[: -(-array.shape[0] // 4), : -(-array.shape[1] // 4)]
    blocks = [data for level in (full, half) for data in packed(level, nodata=nodata, block=block)]
    sizes = np.array([len(data) for data in blocks], "<u4")
    rest = _bare(quarter, nodata)
    head = _HEAD.pack(half.shape[0] // block, half.shape[1] // block, *quarter.shape[:2], len(rest))
    parts = [head, sizes, *(part for data in blocks for part in frame(data)), rest]
    return np.concatenate([np.frombuffer(part, np.uint8) for part in parts])


def rounded(scores: Scores) -> Scores:
    """Round scores, a float32 array or tensor, to 16 significant bits, as score rasters hold them; NaN stays NaN.

    A score changes by 1.5e-5 of itself (2**-16) at most. The lowest byte of each is 0 then, which spares a third of the
    bytes and of the time to compress them. Veltkamp's splitting (Dekker 1971), exact below 1e36.
    """
    spread = scores * 257
    near: Scores = spread - (spread - scores)
    return near


def _average(array: NDArray[Any]) -> NDArray[Any]:
    """Downsample by 2: the mean of the non-NaN values of each 2 x 2 pixels, rounded as scores are."""
    with np.errstate(invalid="ignore"):
        pairs = array[:, ::2] + array[:, 1::2]  # of whole rows: in half the time of four quarters
        mean: NDArray[Any] = pairs[::2] + pairs[1::2]
        mean *= array.dtype.type(0.25)
        holes = np.isnan(mean)
        if holes.any():
            few = np.stack([array[i::2, j::2][holes] for i in (0, 1) for j in (0, 1)])
            mean[holes] = np.nansum(few, axis=0) / (~np.isnan(few)).sum(axis=0)
        near = rounded(mean)
        far = ~np.isfinite(near)
        near[far] = mean[far]
    return near


def _mode(array: NDArray[Any]) -> NDArray[Any]:
    """Downsample by 2: the most frequent value of each 2 x 2 pixels, the smallest of a tie; 255 does not count.

    Of several bands this is done with the first; the others keep the upper left pixel.
    """
    if array.ndim == 3:
        words = np.ascontiguousarray(array).view("<u4")[::2, ::2]
        half: NDArray[Any] = words.copy().view(array.dtype)
        half[..., 0] = _mode(array[..., 0])
        return half
    a, b, c, d = (np.ascontiguousarray(array[i::2, j::2]) for i in (0, 1) for j in (0, 1))
    a, b, c, d = np.minimum(a, b), np.maximum(a, b), np.minimum(c, d), np.maximum(c, d)
    a, b, c, d = np.minimum(a, c), np.minimum(b, d), np.maximum(a, c), np.maximum(b, d)
    b, c = np.minimum(b, c), np.maximum(b, c)  # now all four are in ascending order
    upper, middle = (c == d) & (c < 255) & (a < b), (b == c) & (b < 255)
    mode: NDArray[Any] = a + (c - a) * upper  # in half the time of choices by `where`
    mode += (b - mode) * middle
    return mode


SHRINK: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {"average": _average, "mode": _mode}


def _bare(quarter: NDArray[Any], nodata: float) -> bytes:
    """Return the bytes of level-2 pixels; compressed if some are nodata and that makes them shorter."""
    data = quarter.tobytes()
    holes = np.isnan(quarter) if np.isnan(nodata) else quarter == nodata
    return min(data, zstd().compress(data, asbytes=True), key=len) if holes.any() else data


def _padded(array: NDArray[Any], multiple: int, nodata: float) -> NDArray[Any]:
    """Pad an array with nodata at the right and bottom so that both sides are multiples."""
    height, width = (-(-side // multiple) * multiple for side in array.shape[:2])
    if (height, width) == array.shape[:2]:
        return array
    padded = np.full((height, width, *array.shape[2:]), nodata, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Return (height, width) of all levels, full resolution first; half of an odd side is rounded up."""
    shapes = [(height, width)]
    while max(shapes[-1]) > BLOCK_PX:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return shapes


def read_index(chunks: BinaryIO, offset: int, length: int, *, pixel_bytes: int) -> ChunkIndex:
    """Read where blocks and pixels lie in the chunk of `length` bytes at `offset` of a file.

    Raises:
        DataError: it is cut short or damaged.
    """
    rows, cols, height, width, rest = _HEAD.unpack(read_at(chunks, offset, _HEAD.size))
    sizes = np.frombuffer(read_at(chunks, offset + _HEAD.size, 20 * rows * cols), "<u4").astype(np.int64)
    starts = np.cumsum([offset + _HEAD.size + 4 * sizes.size, *framed(sizes)])
    if starts[-1] + rest != offset + length or not 0 < rest <= height * width * pixel_bytes:
        raise DataError(f"{chunks.name}: damaged at byte {offset}; remove it and run again")
    blocks = []
    for n in (0, 1):
        shape, mine = (2 * rows >> n, 2 * cols >> n), slice(n * 4 * rows * cols, (n + 4) * rows * cols)
        blocks.append((starts[mine].reshape(shape), sizes[mine].reshape(shape)))
    return ChunkIndex((blocks[0], blocks[1]), Quarter(int(starts[-1]), rest, height, width))
