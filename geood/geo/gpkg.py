"""GeoPackages by SQLite: read while another program has them open, and lists of allowed values for their columns.

QGIS keeps a GeoPackage in WAL mode while it is open, so what a person has just saved may lie in the `-wal` file beside
it. Reading here goes through SQLite, which sees it, never writes, and never waits long for a program that holds the
file. Lists of values are those of the extension `gpkg_schema` (OGC 12-128r15, annex F.9): programs that know it, QGIS
among them, offer them as a drop-down, whatever the style.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from geood.errors import DataError, shown

PATIENCE_S = 3.0  # how long a program that holds the file is waited for
_SCHEMA = "http://www.geopackage.org/spec121/#extension_schema"
_TABLES = (
    """CREATE TABLE IF NOT EXISTS gpkg_extensions (table_name TEXT, column_name TEXT, extension_name TEXT NOT NULL,
    definition TEXT NOT NULL, scope TEXT NOT NULL, CONSTRAINT ge_tce UNIQUE (table_name, column_name, extension_name))
    """,
    """CREATE TABLE IF NOT EXISTS gpkg_data_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL, name TEXT,
    title TEXT, description TEXT, mime_type TEXT, constraint_name TEXT,
    CONSTRAINT pk_gdc PRIMARY KEY (table_name, column_name), CONSTRAINT gdc_tn UNIQUE (table_name, name))""",
    """CREATE TABLE IF NOT EXISTS gpkg_data_column_constraints (constraint_name TEXT NOT NULL,
    constraint_type TEXT NOT NULL, value TEXT, min NUMERIC, min_is_inclusive BOOLEAN, max NUMERIC,
    max_is_inclusive BOOLEAN, description TEXT,
    CONSTRAINT gdcc_ntv UNIQUE (constraint_name, constraint_type, value))""",
)


class HeldError(DataError):
    """GeoPackage that another program keeps locked while it writes."""


def embed_choices(gpkg: Path, layer: str, column: str, *, name: str, choices: Mapping[str, str], title: str) -> None:
    """Store the values that a text column may take, with a description of each, under the constraint `name`.

    Raises:
        sqlite3.Error: the file cannot be written.
    """
    with closing(sqlite3.connect(gpkg)) as database, database:
        database.execute("PRAGMA journal_mode=delete")
        for table in _TABLES:
            database.execute(table)
        for table in ("gpkg_data_columns", "gpkg_data_column_constraints"):
            if not _known(database, table):
                database.execute(
                    "INSERT INTO gpkg_extensions VALUES (?, NULL, 'gpkg_schema', ?, 'read-write')", (table, _SCHEMA)
                )
        database.execute(
            "INSERT OR REPLACE INTO gpkg_data_columns VALUES (?, ?, NULL, ?, ?, NULL, ?)",
            (layer, column, title, title, name),
        )
        for value, meaning in choices.items():
            database.execute(
                "INSERT OR REPLACE INTO gpkg_data_column_constraints VALUES (?, 'enum', ?, NULL, NULL, NULL, NULL, ?)",
                (name, value, meaning),
            )


def _known(database: sqlite3.Connection, table: str) -> bool:
    found = database.execute(
        "SELECT 1 FROM gpkg_extensions WHERE table_name = ? AND extension_name = 'gpkg_schema'", (table,)
    )
    return found.fetchone() is not None


@contextmanager
def open_read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that sees all that was saved, in the `-wal` file too, and that cannot write.

    Raises:
        DataError: the file is missing, damaged, or held by another program that is writing.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a GeoPackage")
    with tempfile.TemporaryDirectory(prefix="geood-") as folder:
        database = _connected(path, Path(folder))
        try:
            yield database
        except sqlite3.Error as error:
            raise _fault(path, error) from None
        finally:
            database.close()


def _connected(path: Path, folder: Path) -> sqlite3.Connection:
    """Connect to a file, or where SQLite cannot open it without writing beside it, to a copy in `folder`."""
    whole = quote(str(path.resolve()))
    alone = not path.with_name(f"{path.name}-wal").exists()  # so that nobody has it open in WAL mode
    try:
        with path.open("rb") as file:
            in_wal_mode = file.read(20)[18:] == b"\2\2"
        # of a file in WAL mode SQLite would make a `-wal` file, which it cannot remove again without writing
        return _trial(f"file:{whole}?mode=ro{'&immutable=1' if alone and in_wal_mode else ''}")
    except sqlite3.OperationalError as error:
        if _is_held(error):
            raise _fault(path, error) from None
    except (sqlite3.Error, OSError) as error:  # no database, or a damaged one
        raise _fault(path, error) from None
    beside = path.with_name(f"{path.name}-wal")
    try:
        if not beside.exists():  # no one writes: the file alone is all there is
            return _trial(f"file:{whole}?mode=ro&immutable=1")
        for part in (path, beside):
            shutil.copyfile(part, folder / part.name)
        return _trial(f"file:{quote(str(folder / path.name))}?mode=rw")
    except (sqlite3.Error, OSError) as error:
        raise _fault(path, error) from None


def _trial(address: str) -> sqlite3.Connection:
    database = sqlite3.connect(address, uri=True, timeout=PATIENCE_S)
    try:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        database.close()
        raise
    return database


def _fault(path: Path, error: Exception) -> DataError:
    if _is_held(error):
        return HeldError(
            f"{path}: another program is writing to it and keeps it locked; save or close it there, and try again"
        )
    return DataError(f"{path}: cannot be read as a GeoPackage ({shown(error)}); copy it again, or give another file")


def _is_held(error: Exception) -> bool:
    return "locked" in str(error) or "busy" in str(error)


@contextmanager
def snapshot(path: Path) -> Iterator[Path]:
    """Yield a copy of a GeoPackage as it is now, with all that was saved, in a folder of its own.

    Raises:
        DataError: the file is missing, damaged, or held by another program that is writing.
    """
    with tempfile.TemporaryDirectory(prefix="geood-") as folder:
        copy = Path(folder, "copy.gpkg")
        with open_read_only(path) as database, closing(sqlite3.connect(copy)) as target:
            database.backup(target)
            target.execute("PRAGMA journal_mode=delete")
        yield copy


def count_filled(path: Path, columns: Sequence[str]) -> int:
    """Count the rows, in all layers of a GeoPackage, that hold something in one of these columns.

    Raises:
        DataError: the file is missing, damaged, or held by another program that is writing.
    """
    count = 0
    with open_read_only(path) as database:
        tables = [row[0] for row in database.execute("SELECT table_name FROM gpkg_contents")]
        for table in tables:
            held = {row[1] for row in database.execute(f"PRAGMA table_info({_quoted(table)})")}
            filled = [f"coalesce(trim({_quoted(c)}), '') != ''" for c in columns if c in held]
            if filled:
                count += database.execute(
                    f"SELECT count(*) FROM {_quoted(table)} WHERE {' OR '.join(filled)}"  # quoted
                ).fetchone()[0]
    return count


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
