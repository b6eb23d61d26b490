"""Assembly of a cloud-optimized GeoTIFF (COG) from the chunks of a journal, which may still grow.

As soon as all tiles of a row are finished, a thread finds the blocks of the two largest levels in their chunks and
makes those of the levels above. Where the file system allows it (`spaced_file`), it also copies them to their places in
the file that is being made, so little is left to do after the last tile; elsewhere they are copied then. Both give the
same bytes, whatever the order in which tiles were finished. This module knows nothing of models or polygons.

On one core copying takes 0.7 ms/Mpx and the levels from 2 on 0.9. These are built block by block, each from the four
blocks below it, which wait in a scratch file, so memory does not grow with the scene.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from geood.atomic import atomic_files
from geood.geo.cog.encoding import SHRINK, Overview, Places, Quarter, block_px, level_shapes, read_index
from geood.geo.cog.layout import (
    FRAME,
    PyramidLevel,
    all_nodata,
    complete_cog,
    frame,
    frames,
    packed,
    template,
    write_cog,
)
from geood.geo.cog.spaced_file import SpacedFile, release
from geood.geo.gdal import writing
from geood.geo.grid import Grid, Window

log = logging.getLogger("geood")
PACKED = 2  # levels whose blocks are in the chunks
UNCUT = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM}  # of a disk that does not cut a file, full or not
ROOM = 2**30  # bytes kept free for header and IFDs, more than they can take


class Assembly:
    """A COG in the making; a context manager, after whose end `out` is there if it was finished, and nothing else.

    Only one process may write `out` at a time: leftovers of an interrupted write are removed first.

    Args:
        out: path of the COG; an existing file is replaced when it is finished.
        grid: size, transform and CRS of the raster.
        journal: file with the chunks of `encode_tile`.
        places: byte offset and length of each chunk by tile number (row-major); missing or empty tiles are nodata.
            It may grow in another thread.
        tile_px: side of a tile in pixels.
        dtype: dtype of the pixels, "float32" or "uint8".
        nodata: nodata value.
        overview: resampling method of the overviews.
        bands: description of each band, one or four; chunks of four have pixels (h, w, 4) of bytes.
    """

    def __init__(  # noqa: PLR0913 - grid, pixels and metadata of a raster
        self,
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
    ) -> None:
        self._out, self._grid, self._journal, self._places, self._tile_px = out, grid, journal, places, tile_px
        block = block_px(tile_px)
        self._template = partial(template, grid, block=block, dtype=dtype, nodata=nodata, bands=bands)
        depth = (len(bands),) if len(bands) > 1 else ()
        self._blank: NDArray[Any] = np.full((block, block, *depth), nodata, dtype)
        self._shrink = SHRINK[overview]
        self._tile_rows, self._tile_cols = (-(-side // tile_px) for side in (grid.height, grid.width))
        self._jobs: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        with writing(self._out), ExitStack() as stack:
            self._staging = stack.enter_context(atomic_files(self._out.parent, self._out.name, alone=True))
            self._chunks: BinaryIO = stack.enter_context(self._journal.open("rb", buffering=0))
            self._blocks, self._halves = (stack.enter_context(TemporaryFile(dir=self._staging)) for _ in range(2))
            self._begin()
            rooms = [level.sizes.size * (2 * self._blank.nbytes + FRAME) for level in self._levels[::-1]]
            self._spaced = SpacedFile.where_possible(self._staging / self._out.name, [ROOM, *rooms])
            if self._spaced:
                stack.enter_context(self._spaced)
            self._pool = ThreadPoolExecutor(1, "cog")
            stack.callback(self._pool.shutdown, cancel_futures=True)
            self._open = stack.pop_all()
        return self

    def _begin(self) -> None:
        """Begin with the first row of tiles."""
        self._rows = 0  # of tiles, taken
        self._quarters: dict[int, Quarter] = {}
        shapes, block = level_shapes(self._grid.height, self._grid.width), len(self._blank)
        sources: list[BinaryIO] = [*[self._chunks] * PACKED, *[self._blocks] * len(shapes)]
        self._levels = [PyramidLevel.blank(*each, block) for each in zip(sources, shapes, strict=False)]
        self._upper = UpperLevels(self._levels, self._halves, self._blank, keep=self._keep, shrink=self._shrink)

    def __exit__(self, *failure: Any) -> None:
        with writing(self._out):  # scratch files may still have to be written, on a full disk
            self._open.__exit__(*failure)

    def take(self, rows: int) -> None:
        """Begin to lay out all rows of tiles before row `rows`, which must be finished, and do not wait.

        Raises:
            DataError: the journal is cut short or damaged; this may be told by a later call.
            OutputError: the file cannot be written; the same.
        """
        with writing(self._out):
            while self._jobs and self._jobs[0].done():
                self._jobs.popleft().result()
        self._jobs.extend(self._pool.submit(self._lay_out, row) for row in range(self._rows, rows))
        self._rows = rows

    def finish(self, *, tags: dict[str, str], statistics: dict[str, str]) -> None:
        """Complete the file, with `tags` (metadata items) of the dataset and `statistics` of its first band.

        Raises:
            DataError: the journal is cut short or damaged.
            OutputError: the file cannot be written.
        """
        with writing(self._out):
            like, path = self._template(tags=tags, statistics=statistics), self._staging / self._out.name
            self._take_all()
            if self._spaced:
                try:
                    complete_cog(self._spaced, self._levels, like)
                except OSError as error:
                    if error.errno not in UNCUT:
                        raise
                    log.warning("%s: the disk did not cut the finished file (%s): it is copied", self._out.name, error)
                    with self._spaced:  # closed, so that the disk has its bytes for the copy
                        path.unlink()
                    self._spaced = None
                    self._begin()
                    self._take_all()
            if not self._spaced:
                write_cog(path, self._levels, like)
            self._open.close()

    def _take_all(self) -> None:
        """Lay out all rows of tiles, and wait."""
        self.take(self._tile_rows)
        while self._jobs:
            self._jobs.popleft().result()

    def _lay_out(self, row: int) -> None:
        """Lay out a row of tiles; those above have been."""
        self._index(row)
        if self._spaced:
            self._place(row)
        last = row + 1 == self._tile_rows
        self._upper.extend(None if last else (row + 1) * self._tile_px // 2**PACKED, self._second)
        if self._spaced:
            self._spaced.hand_over()

    def _index(self, row: int) -> None:
        """Note where the chunks of a row of tiles have their blocks and their level-2 pixels."""
        side = self._tile_px // len(self._blank)
        pixel_bytes = self._blank.nbytes // len(self._blank) ** 2
        for col in range(self._tile_cols):
            tile = row * self._tile_cols + col
            offset, length = self._places.get(tile, (0, 0))
            if not length:
                continue
            found = read_index(self._chunks, offset, length, pixel_bytes=pixel_bytes)
            self._quarters[tile] = found.quarter
            for n, (level, (starts, sizes)) in enumerate(zip(self._levels, found.blocks, strict=False)):
                at = slice(row * side >> n, None), slice(col * side >> n, None)
                rows, cols = map(min, sizes.shape, level.sizes[at].shape)  # blocks beyond the edge hold no data
                level.sizes[at][:rows, :cols] = sizes[:rows, :cols]
                level.offsets[at][:rows, :cols] = starts[:rows, :cols]

    def _place(self, row: int) -> None:
        """Copy the blocks of a row of tiles to their places in the file."""
        side = self._tile_px // len(self._blank)
        for n, level in enumerate(self._levels[:PACKED]):
            for data in frames(level, slice(row * side >> n, (row + 1) * side >> n)):
                self._write(n, data)
        for tile in range((row - 1) * self._tile_cols, (row + 1) * self._tile_cols):  # those before are on the disk now
            if tile in self._quarters:
                start, _ = self._places[tile]
                release(self._chunks, start, self._quarters[tile].offset - start)

    def _keep(self, n: int, row: int, col: int, block: memoryview) -> None:
        """Keep a block of level `n`, which is not in a chunk."""
        level = self._levels[n]
        level.sizes[row, col], level.offsets[row, col] = len(block), self._blocks.seek(0, os.SEEK_END)
        if self._spaced:
            self._write(n, b"".join(frame(block)))
        else:
            self._blocks.writelines(frame(block))
            self._blocks.flush()

    def _write(self, n: int, data: bytes) -> None:
        """Write the next blocks of level `n` to their place in the file."""
        assert self._spaced
        self._spaced.append(len(self._levels) - n, data)

    def _second(self, row: int, col: int) -> NDArray[Any] | None:
        """Return a block of level 2, None if it has no data."""
        block, side = len(self._blank), self._tile_px // 2**PACKED
        window = Window(row * block, col * block, block, block)
        array = None
        for tile_row in range(window.row // side, -(-(window.row + block) // side)):
            for tile_col in range(window.col // side, min(self._tile_cols, -(-(window.col + block) // side))):
                if quarter := self._quarters.get(tile_row * self._tile_cols + tile_col):
                    array = self._blank.copy() if array is None else array
                    place = Window(tile_row * side, tile_col * side, quarter.height, quarter.width)
                    shared = place.within(window)
                    source = shared._replace(row=shared.row - place.row, col=shared.col - place.col)
                    target = shared._replace(row=shared.row - window.row, col=shared.col - window.col)
                    array[target.slices] = quarter.pixels(self._chunks, array)[source.slices]
        return None if array is None or all_nodata(array, self._blank.flat[0]) else array


class UpperLevels:
    """Levels 2 and above of `levels`, made row by row of blocks, which are given to `keep`.

    Half the pixels of each block, of two rows of blocks of each level, wait in a scratch file for the next level.
    """

    def __init__(
        self,
        levels: Sequence[PyramidLevel],
        scratch: BinaryIO,
        blank: NDArray[Any],
        *,
        keep: Callable[[int, int, int, memoryview], None],
        shrink: Callable[[NDArray[Any]], NDArray[Any]],
    ) -> None:
        self._levels, self._scratch, self._blank, self._keep, self._shrink = levels, scratch, blank, keep, shrink
        self._half_bytes = blank.nbytes // 4
        self._begins = np.cumsum([0, *(2 * self._half_bytes * level.sizes.shape[1] for level in levels)])
        self._rows = 0  # of blocks of level 2, made

    def extend(self, height: int | None, second: Callable[[int, int], NDArray[Any] | None]) -> None:
        """Make all blocks above the first `height` rows of pixels of level 2 (None: all) that are not made yet.

        `second` returns a block of level 2, None if it has no data.
        """
        for level in self._levels[PACKED : PACKED + 1]:
            rows = len(level.sizes) if height is None else height // len(self._blank)
            for row in range(self._rows, rows):
                self._make(PACKED, row, partial(second, row))
            self._rows = rows

    def _make(self, n: int, row: int, block_of: Callable[[int], NDArray[Any] | None]) -> None:
        """Make a row of blocks of level `n`, and the row above it once both rows below that are there."""
        rows, cols = self._levels[n].sizes.shape
        higher = n + 1 < len(self._levels)
        for col in range(cols):
            if (array := block_of(col)) is None:
                continue
            [block] = packed(array, nodata=self._blank.flat[0], block=len(array))
            self._keep(n, row, col, block)
            if higher:
                self._scratch.seek(self._half_at(n, row, col))
                self._scratch.write(self._shrink(array).tobytes())
        if higher and (row % 2 or row == rows - 1):
            self._make(n + 1, row // 2, partial(self._joined, n, row // 2))

    def _half_at(self, n: int, row: int, col: int) -> int:
        place: int = row % 2 * self._levels[n].sizes.shape[1] + col
        return int(self._begins[n]) + place * self._half_bytes

    def _joined(self, n: int, row: int, col: int) -> NDArray[Any] | None:
        """Return the block above the four of level `n` at twice `row` and `col`, None if it has no data."""
        below = self._levels[n].sizes[2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
        if not below.any():
            return None
        array, half = self._blank.copy(), len(self._blank) // 2
        for i, j in np.argwhere(below).tolist():
            self._scratch.seek(self._half_at(n, 2 * row + i, 2 * col + j))
            pixels = np.frombuffer(self._scratch.read(self._half_bytes), array.dtype)
            target = slice(i * half, (i + 1) * half), slice(j * half, (j + 1) * half)
            array[target] = pixels.reshape(array[target].shape)
        return array
