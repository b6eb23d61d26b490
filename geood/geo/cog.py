"""Encoding of tiles to compressed chunks, and assembly of a cloud-optimized GeoTIFF (COG) from them.

Each tile is encoded as soon as it is finished, in any process and any order: the compressed blocks of full resolution
(level 0) and of the first overview (level 1), and the uncompressed pixels of the second overview (level 2). After the
last tile, `assemble` writes a COG around these bytes; only level 2 and above, a twelfth of the pixels, are compressed
then. So the same tiles give the same file whatever the order and the process, and nothing is compressed twice. This
module knows nothing of models or polygons.

For scores of a trained network, on one core, encoding takes 11 ms/Mpx, and assembly 2 ms/Mpx after the last tile, where
GDAL's COG driver takes 56. Compressing level 2 as well would cost 1.5 ms
and decompressing it 0.5 ms, to save a quarter of its bytes. Higher levels are built block by block, each from the four
blocks below it, so memory does not grow with the scene.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from geood.atomic import atomic_files
from geood.errors import DataError
from geood.geo.cog_layout import PyramidLevel, frame, framed, packed, read_at, template, write_cog
from geood.geo.gdal import writing
from geood.geo.grid import Grid, Window

Overview = Literal["average", "mode"]
Scores = TypeVar("Scores", bound=Any)  # an array or a tensor
Places = Mapping[int, tuple[int, int]]  # tile number -> byte offset and length of its chunk in a file

BLOCK_PX = 512  # maximum block side, as far as the tile size allows, and maximum longer side of the smallest overview
WORST = 1.5  # upper bound, per byte of pixels, for all chunks, and again for their COG with its scratch file
THREADS = 8  # more would wait for the one thread that downsamples
EMPTY = np.zeros(0, np.uint8)  # the chunk of a tile without data
_HEAD = struct.Struct("<4HI")  # chunk header: rows and columns of level-1 blocks; rows, columns and bytes of level 2


class Quarter(NamedTuple):
    """Location in a file and shape of a tile's level-2 pixels (quarter resolution), row-major.

    They are zlib-compressed if `length` differs from the byte length of the pixels.
    """

    offset: int
    length: int
    height: int
    width: int


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
    if _is_empty(array, nodata):
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


def assemble(  # noqa: PLR0913 - grid, pixels and metadata of a raster
    out: Path,
    grid: Grid,
    *,
    journal: Path,
    places: Places,
    tile_px: int,
    dtype: str,
    nodata: float,
    overview: Overview,
    bands: Sequence[str],
    tags: dict[str, str],
    statistics: dict[str, str],
) -> None:
    """Write the COG of all chunks in `journal`, atomically; an existing `out` is replaced.

    Only one process may write `out` at a time: leftovers of an interrupted write are removed first.

    Args:
        out: path of the COG.
        grid: size, transform and CRS of the raster.
        journal: file with the chunks of `encode_tile`.
        places: byte offset and length of each chunk by tile number (row-major); missing or empty tiles are nodata.
        tile_px: side of a tile in pixels.
        dtype: dtype of the pixels, "float32" or "uint8".
        nodata: nodata value.
        overview: resampling method of the overviews.
        bands: description of each band, one or four; chunks of four have pixels (h, w, 4) of bytes.
        tags: tags (metadata items) of the dataset.
        statistics: tags of the first band.

    Raises:
        DataError: the journal is cut short or damaged.
        OutputError: the file cannot be written; nothing is left behind then.
    """
    block, shapes = block_px(tile_px), _shapes(grid.height, grid.width)
    with writing(out), atomic_files(out.parent, out.name, alone=True) as staging:
        like = template(grid, block=block, dtype=dtype, nodata=nodata, tags=tags, bands=bands, statistics=statistics)
        depth = (len(bands),) if len(bands) > 1 else ()
        with journal.open("rb") as chunks, TemporaryFile(dir=staging) as scratch:
            pixel_bytes = np.dtype(dtype).itemsize * len(bands)
            levels, quarters = _lower_levels(chunks, places, shapes, tile_px=tile_px, pixel_bytes=pixel_bytes)
            tile_cols = -(-grid.width // tile_px)

            def second(row: int, col: int) -> NDArray[Any] | None:
                array = np.full((block, block, *depth), nodata, dtype)
                window = Window(row * block, col * block, block, block)
                _fill(array, window, chunks, quarters, tiles=(tile_cols, tile_px // 4))
                return None if _is_empty(array, nodata) else array

            upper = [PyramidLevel.blank(scratch, shape, block) for shape in shapes[2:]]
            _make_upper(upper, second, nodata=nodata, overview=overview, block=block)
            write_cog(staging / out.name, [*levels, *upper], like)


def _average(array: NDArray[Any]) -> NDArray[Any]:
    """Downsample by 2: the mean of the non-NaN values of each 2 x 2 pixels, rounded as scores are."""
    a, b, c, d = (array[i::2, j::2] for i in (0, 1) for j in (0, 1))
    with np.errstate(invalid="ignore"):
        mean: NDArray[Any] = ((a + b) + (c + d)) * array.dtype.type(0.25)
        holes = np.isnan(mean)
        if holes.any():
            few = np.stack([quarter[holes] for quarter in (a, b, c, d)])
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
    a, b, c, d = (array[i::2, j::2] for i in (0, 1) for j in (0, 1))
    a, b, c, d = np.minimum(a, b), np.maximum(a, b), np.minimum(c, d), np.maximum(c, d)
    a, b, c, d = np.minimum(a, c), np.minimum(b, d), np.maximum(a, c), np.maximum(b, d)
    b, c = np.minimum(b, c), np.maximum(b, c)  # now all four are in ascending order
    mode: NDArray[Any] = np.where((c == d) & (c < 255), c, a)
    mode = np.where((b == c) & (b < 255), b, mode)
    mode = np.where(a == b, a, mode)
    return mode


SHRINK: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {"average": _average, "mode": _mode}


def _bare(quarter: NDArray[Any], nodata: float) -> bytes:
    """Return the bytes of level-2 pixels; compressed if some are nodata and that makes them shorter."""
    data = quarter.tobytes()
    return min(data, zlib.compress(data, 1), key=len) if _holes(quarter, nodata).any() else data


def _holes(array: NDArray[Any], nodata: float) -> NDArray[np.bool_]:
    holes: NDArray[np.bool_] = np.isnan(array) if np.isnan(nodata) else array == nodata
    return holes


def _is_empty(array: NDArray[Any], nodata: float) -> bool:
    return bool(_holes(array, nodata).all())


def _padded(array: NDArray[Any], multiple: int, nodata: float) -> NDArray[Any]:
    """Pad an array with nodata at the right and bottom so that both sides are multiples."""
    height, width = (-(-side // multiple) * multiple for side in array.shape[:2])
    if (height, width) == array.shape[:2]:
        return array
    padded = np.full((height, width, *array.shape[2:]), nodata, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def _shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Return (height, width) of all levels, full resolution first; half of an odd side is rounded up."""
    shapes = [(height, width)]
    while max(shapes[-1]) > BLOCK_PX:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return shapes


def _lower_levels(
    chunks: BinaryIO, places: Places, shapes: list[tuple[int, int]], *, tile_px: int, pixel_bytes: int
) -> tuple[list[PyramidLevel], dict[int, Quarter]]:
    """Index the chunks: the blocks of levels 0 and 1, and the location of each tile's level-2 pixels."""
    block, tile_cols = block_px(tile_px), -(-shapes[0][1] // tile_px)
    levels, quarters = [PyramidLevel.blank(chunks, shape, block) for shape in shapes[:2]], {}
    for tile, (offset, length) in places.items():
        if not length:
            continue
        rows, cols, height, width, rest = _HEAD.unpack(read_at(chunks, offset, _HEAD.size))
        sizes = np.frombuffer(read_at(chunks, offset + _HEAD.size, 20 * rows * cols), "<u4").astype(np.int64)
        starts = np.cumsum([offset + _HEAD.size + 4 * sizes.size, *framed(sizes)])
        if starts[-1] + rest != offset + length or not 0 < rest <= height * width * pixel_bytes:
            raise DataError(f"{chunks.name}: damaged at byte {offset}; remove it and run again")
        quarters[tile] = Quarter(int(starts[-1]), rest, height, width)
        for n, level in enumerate(levels):
            mine = slice(n * 4 * rows * cols, (n + 4) * rows * cols)
            row, col = (place * (tile_px // block >> n) for place in divmod(tile, tile_cols))
            there = slice(row, row + (2 * rows >> n)), slice(col, col + (2 * cols >> n))
            seen = tuple(map(slice, level.sizes[there].shape))  # smaller at the edge; blocks beyond it hold no data
            for whole, part in ((level.sizes, sizes), (level.offsets, starts)):
                whole[there] = part[mine].reshape(2 * rows >> n, 2 * cols >> n)[seen]
    return levels, quarters


def _make_upper(
    levels: list[PyramidLevel],
    second: Callable[[int, int], NDArray[Any] | None],
    *,
    nodata: float,
    overview: Overview,
    block: int,
) -> None:
    """Build level 2 and above in their scratch file; `second` returns a block of level 2, None if it has no data.

    One thread downsamples, recursing to the four blocks below each block; the others compress.
    """
    waiting: deque[tuple[PyramidLevel, int, int, Future[tuple[int, bytes]]]] = deque()

    def keep(most: int) -> None:
        while len(waiting) > most:
            level, row, col, future = waiting.popleft()
            size, data = future.result()
            level.sizes[row, col], level.offsets[row, col] = size, level.source.tell()
            level.source.write(data)

    def make(n: int, row: int, col: int) -> NDArray[Any] | None:
        rows, cols = levels[n].sizes.shape
        if row >= rows or col >= cols:
            return None
        array = second(row, col) if n == 0 else None
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)) if n else ():
            below = make(n - 1, 2 * row + i, 2 * col + j)
            if below is not None:
                array = np.full((block, block, *below.shape[2:]), nodata, below.dtype) if array is None else array
                half = block // 2
                array[i * half : (i + 1) * half, j * half : (j + 1) * half] = SHRINK[overview](below)
        if array is not None:
            waiting.append((levels[n], row, col, pool.submit(_framed_block, array, nodata=nodata)))
            keep(2 * THREADS)
        return array

    if levels:
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            for row, col in np.ndindex(levels[-1].sizes.shape):
                make(len(levels) - 1, row, col)
            keep(0)
        levels[0].source.flush()


def _framed_block(array: NDArray[Any], *, nodata: float) -> tuple[int, bytes]:
    """Compress a single block; return its compressed size and its framed bytes."""
    [block] = packed(array, nodata=nodata, block=len(array))
    return len(block), b"".join(frame(block))


def _fill(
    array: NDArray[Any], window: Window, chunks: BinaryIO, quarters: Mapping[int, Quarter], *, tiles: tuple[int, int]
) -> None:
    """Copy the tiles' level-2 pixels into a block at `window`; `tiles`: number of tiles per row, side at level 2."""
    tile_cols, side = tiles
    for tile_row in range(window.row // side, -(-(window.row + window.height) // side)):
        for tile_col in range(window.col // side, min(tile_cols, -(-(window.col + window.width) // side))):
            quarter = quarters.get(tile_row * tile_cols + tile_col)
            if not quarter:
                continue
            data = read_at(chunks, quarter.offset, quarter.length)
            shape = (quarter.height, quarter.width, *array.shape[2:])
            if quarter.length != math.prod(shape) * array.itemsize:
                data = zlib.decompress(data)
            pixels = np.frombuffer(data, array.dtype).reshape(shape)
            shared = Window(tile_row * side, tile_col * side, *shape[:2]).within(window)
            source = shared._replace(row=shared.row - tile_row * side, col=shared.col - tile_col * side)
            target = shared._replace(row=shared.row - window.row, col=shared.col - window.col)
            array[target.slices] = pixels[source.slices]
