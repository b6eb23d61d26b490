"""Guard of what people typed: polygons with verdicts, comments or counts of misses are not replaced without being told.

A map can be made again in minutes, a review cannot. The columns looked at are those that only a person fills, in any
layer, and in GeoPackages also what was saved a moment ago by a program that still has the file open.
"""

from __future__ import annotations

import os
from pathlib import Path

from geood.errors import DataError, OutputError
from geood.geo.gpkg import HeldError, count_filled
from geood.geo.ogr import local_file
from geood.geo.qgis.form import TYPED

_UNREADABLE = OSError, RuntimeError, ValueError, DataError  # pyogrio's errors are RuntimeErrors
_SUFFIXES = (".gpkg", ".geojson", ".parquet", ".fgb")


def check_nothing_typed(path: Path, *, discard: bool) -> None:
    """Check that replacing a file of polygons would lose nothing that a person typed; with `discard` it may.

    Raises:
        OutputError: it holds something typed, another program is writing to it, or it may not be read.
    """
    if discard or path.suffix not in _SUFFIXES or not path.is_file():
        return
    if not os.access(path, os.R_OK):
        raise OutputError(
            f"{path}: you may not read it, so what a person has typed there is not known; choose another name, or add "
            "--discard-verdicts to replace it"
        )
    try:
        typed = count_filled(path, TYPED) if path.suffix == ".gpkg" else _count_typed(path)
    except HeldError as error:
        raise OutputError(str(error)) from None
    except _UNREADABLE:  # no polygons, so no verdicts either
        return
    if typed:
        raise OutputError(
            f"{path}: a person has typed verdicts, comments or counts in {typed} of its rows, which would be lost; "
            "choose another name, or add --discard-verdicts to replace them"
        )


def _count_typed(path: Path) -> int:
    import pyarrow.parquet  # here, as most runs replace nothing, and pandas comes with both
    import pyogrio

    if path.suffix == ".parquet":
        held = pyarrow.parquet.read_schema(path).names
        frame = pyarrow.parquet.read_table(path, columns=[name for name in TYPED if name in held]).to_pandas()
    else:
        with local_file(path) as plain:
            held = list(pyogrio.read_info(plain)["fields"])
            wanted = [name for name in TYPED if name in held]
            frame = pyogrio.read_dataframe(plain, columns=wanted, read_geometry=False) if wanted else None
    if frame is None or frame.empty or not len(frame.columns):
        return 0
    filled = frame.notna() & (frame.astype(str).apply(lambda values: values.str.strip()) != "")
    return int(filled.any(axis=1).sum())
