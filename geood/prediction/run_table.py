"""Table `run` of a GeoPackage: the verdict on each scene whose polygons it holds, and the same in words for QGIS.

Polygons that were cut again have a row of what is promised for their threshold instead.

QGIS takes the description of a layer for its abstract, of which the map tip of a polygon shows the line of its scene
(`geo/qgis`). Written with SQLite alone, with a fixed time, so that equal maps have equal bytes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from geood.atomic import output_errors
from geood.calibration import Verdict
from geood.errors import OutputError
from geood.geo.ogr import WRITTEN
from geood.geo.score_raster import RUN_TAG

TABLE, LAYER = "run", "anomalies"


def write_run(gpkg: Path, rows: Sequence[tuple[str, Verdict]]) -> None:
    """Add the table `run` to a GeoPackage, a row for each scene and its verdict; describe the layer of polygons.

    Raises:
        OutputError: the file cannot be written.
    """
    records = [{"scene": scene} | verdict.fields() for scene, verdict in rows]
    words = "\n".join(f"{scene}: budget {verdict.answer}: {verdict.why}" for scene, verdict in rows[:20])
    _write(gpkg, records, words)


def said(tags: Mapping[str, str]) -> dict[str, Any]:
    """Return the record of a verdict in the tags of a score raster; empty where there is none that can be read."""
    try:
        record = json.loads(tags.get(RUN_TAG, ""))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def write_cut(gpkg: Path, record: Mapping[str, Any]) -> None:
    """Add the table `run` of polygons that were cut again: at which threshold, and what is promised for it.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(gpkg, [dict(record)], f"{record['scene']}: polygons cut again at {record['threshold']:.6g}")


def _write(gpkg: Path, records: Sequence[Mapping[str, Any]], words: str) -> None:
    kinds = {name: _kind([record[name] for record in records]) for name in records[0]}
    columns = ", ".join(f'"{name}" {kind}' for name, kind in kinds.items())
    try:
        with output_errors(gpkg), closing(sqlite3.connect(gpkg)) as database, database:
            database.execute("PRAGMA journal_mode=delete")
            database.execute(f'CREATE TABLE "{TABLE}" (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, {columns})')
            names, marks = ", ".join(f'"{name}"' for name in kinds), ", ".join("?" * len(kinds))
            database.executemany(
                f'INSERT INTO "{TABLE}" ({names}) VALUES ({marks})',
                [tuple(record.values()) for record in records],
            )
            database.execute(
                "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, last_change) VALUES "
                "(?, 'attributes', ?, 'what the map promises, and whether it holds', ?)",
                (TABLE, TABLE, WRITTEN),
            )
            database.execute("UPDATE gpkg_contents SET description = ? WHERE table_name = ?", (words, LAYER))
    except sqlite3.Error as error:
        raise OutputError(f"{gpkg}: its table {TABLE} cannot be written ({error}); free space first") from None


def _kind(values: Sequence[object]) -> str:
    """Return the SQL type of a column."""
    given = [value for value in values if value is not None]
    if given and all(isinstance(value, bool) for value in given):
        return "BOOLEAN"
    if given and all(isinstance(value, int) for value in given):
        return "INTEGER"
    return "TEXT" if any(isinstance(value, str) for value in given) else "REAL"
