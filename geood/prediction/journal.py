"""Journal of a prediction: an append-only file of finished tiles, which makes a run resumable.

A header identifies the run; then comes a record for each finished tile with its compressed blocks. A resumed run
accepts a record only if its checksums match, so whatever ended the run before (a signal, a full disk, a power cut), the
records before the first broken one are valid and the rest is written again; nothing depends on clocks. Records lie in
the order in which tiles were finished; the rasters made from them do not depend on it. Checksums of chunks are computed
by the workers that pack them: at 4 ms a tile they would limit the one process that writes to some 200 tiles a second.
A thread flushes the file to the disk every few seconds while others append: waiting for it took longer than writing.
This module knows nothing of rasters or models, and nothing of the folder that a journal lies in (`workdir`).
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, Self

from geood.atomic import output_errors
from geood.errors import OutputError, shown

log = logging.getLogger("geood")
KIND = b"geood journal "
MAGIC = KIND + b"6\n"
SUFFIX = ".journal"
LAYERS = 3  # chunks of a record: scores, classes and statistics of cells
FLUSH_S = 1.0  # after which finished tiles are flushed to the disk, seconds
LATE_S = 2.0  # after which a flush under way is waited for by the next tile
LARGEST = 1e100  # beyond all sums of squared float32 scores
_HEADER = struct.Struct("<II")  # length and checksum of the key
_RECORD = struct.Struct("<4sIqdddd3Q3II")  # mark, tile, figures, lengths and checksums of the chunks, its own checksum
_MARK = b"tile"
_OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class TileFigures(NamedTuple):
    """Number of scored pixels of a tile; mean, sum of squared deviations, minimum and maximum of their scores.

    `above` is the number of pixels above the threshold of the run; the journal does not keep it, as a resumed run may
    have another: None if it is not known.
    """

    scored: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")
    above: int | None = None

    @property
    def sane(self) -> bool:
        """True if these can be the figures of scores, which are finite."""
        return self.scored == 0 or (self.scored > 0 and all(abs(number) <= LARGEST for number in self[1:5]))

    def __add__(self, other: object) -> TileFigures:
        """Return the figures of both together (Chan et al. 1979)."""
        if not isinstance(other, TileFigures):
            return NotImplemented
        scored = self.scored + other.scored
        if not other.scored or not self.scored:
            return self if self.scored else other
        gap = other.mean - self.mean
        return TileFigures(
            scored,
            self.mean + gap * other.scored / scored,
            self.squares + other.squares + gap**2 * self.scored * other.scored / scored,
            min(self.low, other.low),
            max(self.high, other.high),
            None if self.above is None or other.above is None else self.above + other.above,
        )


class Chunk(NamedTuple):
    """Packed bytes of a tile and their checksum, which is computed before they are sent."""

    data: Any
    check: int

    @classmethod
    def of(cls, data: Any) -> Self:
        """Return the chunk of `bytes`, or of an array of bytes."""
        return cls(data, zlib.crc32(data))


class Journal:
    """The finished tiles of one scene; a context manager.

    `places[layer][tile]` is the (offset, length) of a chunk in the file, `figures[tile]` the figures of a tile.

    Args:
        path: the file, made if it does not exist.
        key: what the tiles depend on, as JSON values.
        tiles: number of tiles of the scene; a record of a tile beyond is no valid one (None: any).

    Raises:
        OutputError: the file cannot be written, or its key is not `key` (the message names the differences).
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, tiles: int | None = None) -> None:
        self.path, self._tiles = path, tiles
        self.places: tuple[dict[int, tuple[int, int]], ...] = tuple({} for _ in range(LAYERS))
        self.figures: dict[int, TileFigures] = {}
        self._flushed, self._flushed_end = monotonic(), -1  # when the last flush began, and what it holds
        self._flusher = ThreadPoolExecutor(1, "journal")  # starts no thread before it is needed
        self._flush: Future[None] | None = None
        with output_errors(path):
            self._file = os.fdopen(os.open(path, _OPEN, 0o644), "r+b")
            try:
                self._end = self._read(key) or self._begin(key)
                self._file.truncate(self._end)
            except BaseException:
                self._file.close()
                raise

    def append(self, tile: int, figures: TileFigures, chunks: Sequence[Chunk]) -> None:
        """Record a finished tile; from then on it survives the end of the process.

        It survives a power cut once a flush has ended that began after it: some seconds later, if other tiles follow.

        Layers without a chunk are empty.
        """
        chunks = [*chunks, *[Chunk.of(b"")] * (LAYERS - len(chunks))]
        lengths = [memoryview(chunk.data).nbytes for chunk in chunks]
        head = _RECORD.pack(_MARK, tile, *figures[:5], *lengths, *(chunk.check for chunk in chunks), 0)
        head = head[:-4] + zlib.crc32(head).to_bytes(4, "little")
        with output_errors(self.path):
            self._file.seek(self._end)
            self._file.writelines([head, *(chunk.data for chunk in chunks)])
            self._file.flush()
            self._take(tile, figures, lengths)
            passed = monotonic() - self._flushed
            if self._flush is not None and (self._flush.done() or passed > LATE_S):
                self._flush.result()
                self._flush = None
            if self._flush is None and passed > FLUSH_S:
                self.flush()

    def chunk(self, layer: int, tile: int) -> bytes:
        """Return the bytes of a chunk, empty if a tile has none in that layer."""
        offset, length = self.places[layer].get(tile, (0, 0))
        with output_errors(self.path):
            self._file.seek(offset)
            return self._file.read(length)

    def flush(self) -> None:
        """Begin to flush all tiles to the disk, and do not wait; a failure is raised by what is done next."""
        self._flushed, self._flushed_end = monotonic(), self._end
        self._flush = self._flusher.submit(_sync, self._file.fileno(), self._flush)

    def total(self) -> TileFigures:
        """Return the figures of all tiles together, summed in the order of their numbers."""
        return sum((self.figures[tile] for tile in sorted(self.figures)), TileFigures())

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        with output_errors(self.path):
            try:
                self._file.flush()
                if self._flushed_end != self._end:
                    self.flush()
                if self._flush is not None:
                    self._flush.result()
            finally:
                self._flusher.shutdown()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except OutputError:
            with suppress(OSError):  # the buffer could not be written, so closing fails again
                self._file.close()
            if kind is None:
                raise

    def _begin(self, key: Mapping[str, Any]) -> int:
        text = json.dumps(key, sort_keys=True).encode()
        self._file.seek(0)
        self._file.write(MAGIC + _HEADER.pack(len(text), zlib.crc32(text)) + text)
        self._file.flush()
        return self._file.tell()

    def _read(self, key: Mapping[str, Any]) -> int:
        """Read an existing file; return the end of its last valid record, 0 if not even the header is valid."""
        if _is_of_another_version(self._file):
            raise OutputError(
                f"{self.path.parent}: holds an unfinished run of another version of geood; finish it with that "
                "version, or start over: --overwrite without --resume"
            )
        stored, start = _read_key(self._file)
        if stored is None:
            return 0
        refuse_other(self.path.parent, stored, key)
        self._end, size = start, os.fstat(self._file.fileno()).st_size
        while (head := self._file.read(_RECORD.size)) and len(head) == _RECORD.size:
            mark, tile, *rest = _RECORD.unpack(head)
            numbers, lengths, checks = rest[:5], rest[5 : 5 + LAYERS], rest[5 + LAYERS : -1]
            own = zlib.crc32(head[:-4] + bytes(4))
            if mark != _MARK or own != rest[-1] or self._end + _RECORD.size + sum(lengths) > size:
                break
            if [zlib.crc32(self._file.read(length)) for length in lengths] != checks:
                break
            if (self._tiles is not None and tile >= self._tiles) or not (figures := TileFigures(*numbers)).sane:
                break
            self._take(tile, figures, lengths)
        return self._end

    def _take(self, tile: int, figures: TileFigures, lengths: list[int]) -> None:
        offset = self._end + _RECORD.size
        for layer, length in enumerate(lengths):
            if length:
                self.places[layer][tile] = (offset, length)
            offset += length
        self.figures[tile] = figures
        self._end = offset


def _sync(file: int, before: Future[None] | None) -> None:
    """Flush a file to the disk, once the flush before has ended.

    Raises:
        OSError: that one, or this one, failed.
    """
    if before is not None:
        before.result()
    os.fsync(file)


def key_in(path: Path) -> dict[str, Any]:
    """Return the key in the header of a journal; an empty one if there is none."""
    try:
        with path.open("rb") as file:
            return _read_key(file)[0] or {}
    except FileNotFoundError:
        return {}


def _read_key(file: Any) -> tuple[dict[str, Any] | None, int]:
    """Return the key in a journal's header and the offset of the first record; (None, 0) if the header is invalid."""
    file.seek(0)
    start = len(MAGIC) + _HEADER.size
    head = file.read(start)
    if len(head) < start or not head.startswith(MAGIC):
        return None, 0
    length, check = _HEADER.unpack(head[len(MAGIC) :])
    text = file.read(min(length, os.fstat(file.fileno()).st_size))
    if len(text) != length or zlib.crc32(text) != check:
        return None, 0
    try:
        key = json.loads(text)
    except (ValueError, RecursionError):
        return None, 0
    return (key, start + length) if isinstance(key, dict) else (None, 0)


def _is_of_another_version(file: Any) -> bool:
    file.seek(0)
    start: bytes = file.read(len(MAGIC))
    return start.startswith(KIND) and len(start) == len(MAGIC) and start != MAGIC


def refuse_other(folder: Path, stored: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """Check that the inputs of an unfinished run in `folder` are those of this one, `key`.

    Raises:
        OutputError: they are not; the message names the differences.
    """
    now = json.loads(json.dumps(key))
    changed = [name for name in sorted({*stored, *now}) if stored.get(name) != now.get(name)]
    if changed:
        was = "; ".join(
            f"{shown(name)}: was {_text(stored.get(name))}, is {_text(now.get(name))}" for name in changed[:9]
        )
        raise OutputError(
            f"{folder}: holds an unfinished run with other inputs ({was}); restore them to --resume, or start "
            "over: --overwrite without --resume"
        )


def _text(value: Any) -> str:
    return shown(value if isinstance(value, str) else json.dumps(value))


def has_tiles(path: Path) -> bool:
    """Return whether a journal holds a finished tile, or is one of another version of geood."""
    with path.open("rb") as file:
        _, start = _read_key(file)
        begun = bool(start) and path.stat().st_size >= start + _RECORD.size
        return begun or _is_of_another_version(file)
