"""Rows on the way to a file: taken in in any order, handed out sorted, never all in memory.

Rows are gathered up to a bound, sorted, and laid on the disk as a run; in the end all runs are read side by side. What
fits into the bound never touches the disk. No geometry, no formats here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

RUN_BYTES = 32 * 2**20
BATCH_BYTES = 2**20


class Key(NamedTuple):
    """Columns by which rows are sorted: falling by the first, then rising by the others."""

    falling: str
    rising: tuple[str, ...]

    def order(self, columns: Any) -> NDArray[np.intp]:
        """Indexes that sort the rows of a table, or of arrays by name."""
        rising = [np.asarray(columns[name]) for name in reversed(self.rising)]
        return np.lexsort((*rising, -np.asarray(columns[self.falling])))

    def of(self, table: pa.Table, row: int) -> tuple[Any, ...]:
        """What a row is sorted by."""
        return (-table.column(self.falling)[row].as_py(), *(table.column(name)[row].as_py() for name in self.rising))


class Spool:
    """Rows of one schema; a context manager that removes its file `path`, if it needed one."""

    def __init__(self, path: Path, key: Key) -> None:
        self._path, self._key = path, key
        self._waiting: list[pa.Table] = []
        self._bytes = 0
        self._runs: list[tuple[int, int]] = []  # first and end batch in the file
        self._file: Any = None
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, table: pa.Table) -> None:
        """Take in rows.

        Raises:
            OSError: the disk is full.
        """
        if not len(table):
            return
        self._waiting.append(table)
        self._bytes += table.nbytes
        if self._bytes >= RUN_BYTES:
            self._write_run()

    def rows(self) -> Iterator[pa.Table]:
        """All rows in order, some at a time."""
        if not self._runs:
            if self._waiting:
                yield self._sorted(pa.concat_tables(self._waiting))
            return
        if self._waiting:
            self._write_run()
        self._writer.close()
        self._file.close()
        with pa.OSFile(str(self._path)) as file:
            reader = pa.ipc.open_file(file)
            yield from self._merged([iter([*range(first, end)]) for first, end in self._runs], reader)

    def _merged(self, runs: list[Iterator[int]], reader: Any) -> Iterator[pa.Table]:
        """Rows of all runs in order: of what is read, those before the last row of each run that goes on."""
        pool: list[pa.Table] = []
        last: dict[int, tuple[Any, ...]] = dict.fromkeys(range(len(runs)), ())
        while last:
            bound = min(last.values())
            for run in [run for run, key in last.items() if key <= bound]:
                batch = next(runs[run], None)
                if batch is None:
                    del last[run]
                else:
                    pool.append(pa.Table.from_batches([reader.get_batch(batch)]))
                    last[run] = self._key.of(pool[-1], len(pool[-1]) - 1)
            table = self._sorted(pa.concat_tables(pool))
            ready = self._count_up_to(table, min(last.values())) if last else len(table)
            yield table.slice(0, ready)
            pool = [table.slice(ready)]

    def _count_up_to(self, table: pa.Table, bound: tuple[Any, ...]) -> int:
        """How many rows of a sorted table come before or at `bound`."""
        low, high = 0, len(table)
        while low < high:
            middle = (low + high) // 2
            if self._key.of(table, middle) <= bound:
                low = middle + 1
            else:
                high = middle
        return low

    def _sorted(self, table: pa.Table) -> pa.Table:
        return table.combine_chunks().take(self._key.order(table))

    def _write_run(self) -> None:
        table = self._sorted(pa.concat_tables(self._waiting))
        self._waiting, self._bytes = [], 0
        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._file = pa.OSFile(str(self._path), "wb")
            self._writer = pa.ipc.new_file(self._file, table.schema, options=options)
        batches = table.to_batches(max_chunksize=max(1, BATCH_BYTES * len(table) // table.nbytes))
        first = self._runs[-1][1] if self._runs else 0
        for batch in batches:
            self._writer.write_batch(batch)
        self._runs.append((first, first + len(batches)))
