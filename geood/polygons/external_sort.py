"""External merge sort of table rows: added in any order, read back sorted, never all in memory.

Rows are collected up to a limit, sorted, and written to disk as a sorted run; in the end all runs are merged. What fits
into the limit never touches the disk. Knows no geometry and no file formats.
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


class SortKey(NamedTuple):
    """Sort columns: descending by the first, then ascending by the others."""

    descending: str
    ascending: tuple[str, ...]

    def argsort(self, columns: Any) -> NDArray[np.intp]:
        """Return the indexes that sort the rows of a table, or of arrays by name."""
        ascending = [np.asarray(columns[name]) for name in reversed(self.ascending)]
        return np.lexsort((*ascending, -np.asarray(columns[self.descending])))

    def value(self, table: pa.Table, row: int) -> tuple[Any, ...]:
        """Return the sort key of one row."""
        return (
            -table.column(self.descending)[row].as_py(),
            *(table.column(name)[row].as_py() for name in self.ascending),
        )


class ExternalSorter:
    """External sorter of rows of one schema; a context manager that removes its file `path`, if it needed one."""

    def __init__(self, path: Path, key: SortKey) -> None:
        self._path, self._key = path, key
        self._pending: list[pa.Table] = []
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
        """Add rows.

        Raises:
            OSError: the disk is full.
        """
        if not len(table):
            return
        self._pending.append(table)
        self._bytes += table.nbytes
        if self._bytes >= RUN_BYTES:
            self._write_run()

    def sorted_tables(self) -> Iterator[pa.Table]:
        """Yield all rows in order, in chunks; may be called again, and then no row may be added."""
        if not self._runs:
            if self._pending:
                yield self._sorted(pa.concat_tables(self._pending))
            return
        if self._pending:
            self._write_run()
        if not self._file.closed:
            self._writer.close()
            self._file.close()
        with pa.OSFile(str(self._path)) as file:
            reader = pa.ipc.open_file(file)
            yield from self._merged([iter([*range(first, end)]) for first, end in self._runs], reader)

    def _merged(self, runs: list[Iterator[int]], reader: Any) -> Iterator[pa.Table]:
        """Merge runs: of the rows read so far, yield those up to the smallest last key of the runs that continue."""
        pool: list[pa.Table] = []
        last_keys: dict[int, tuple[Any, ...]] = dict.fromkeys(range(len(runs)), ())
        while last_keys:
            bound = min(last_keys.values())
            for run in [run for run, key in last_keys.items() if key <= bound]:
                batch = next(runs[run], None)
                if batch is None:
                    del last_keys[run]
                else:
                    pool.append(pa.Table.from_batches([reader.get_batch(batch)]))
                    last_keys[run] = self._key.value(pool[-1], len(pool[-1]) - 1)
            table = self._sorted(pa.concat_tables(pool))
            ready = self._count_up_to(table, min(last_keys.values())) if last_keys else len(table)
            yield table.slice(0, ready)
            pool = [table.slice(ready)]

    def _count_up_to(self, table: pa.Table, bound: tuple[Any, ...]) -> int:
        """Count the rows of a sorted table whose key is at most `bound`."""
        low, high = 0, len(table)
        while low < high:
            middle = (low + high) // 2
            if self._key.value(table, middle) <= bound:
                low = middle + 1
            else:
                high = middle
        return low

    def _sorted(self, table: pa.Table) -> pa.Table:
        return table.combine_chunks().take(self._key.argsort(table))

    def _write_run(self) -> None:
        table = self._sorted(pa.concat_tables(self._pending))
        self._pending, self._bytes = [], 0
        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._file = pa.OSFile(str(self._path), "wb")
            self._writer = pa.ipc.new_file(self._file, table.schema, options=options)
        batches = table.to_batches(max_chunksize=max(1, BATCH_BYTES * len(table) // table.nbytes))
        first = self._runs[-1][1] if self._runs else 0
        for batch in batches:
            self._writer.write_batch(batch)
        self._runs.append((first, first + len(batches)))
