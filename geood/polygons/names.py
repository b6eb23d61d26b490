"""Polygon files by their names: the formats as a table, and what lies beside the polygons of each.

Knows no geometries, so that a run can check the names of its outputs before what writes them is loaded.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from geood.errors import DataError, OutputError
from geood.geo.gdal import open_raster
from geood.geo.gpkg import open_read_only
from geood.geo.paths import stem
from geood.geo.qgis.styles import style_beside


class PolygonFormat(NamedTuple):
    """Everything that tells one polygon format from another.

    `driver` is GDAL's (None: written by PyArrow). A format of several `layers` holds failed tiles and styles in the
    same file; the others get companion files. `keeps_names`: layers have names in the file. `crs` is prescribed by the
    format (None: any). Dataset options hold for a new file, layer options where the polygons have a CRS.
    """

    driver: str | None
    layers: bool = False
    keeps_names: bool = True
    crs: str | None = None
    dataset_options: Mapping[str, str] = {}
    layer_options: Mapping[str, str] = {}


FORMATS: dict[str, PolygonFormat] = {
    ".gpkg": PolygonFormat("GPKG", layers=True, dataset_options={"VERSION": "1.2"}),  # QGIS 3.22 reads it in full
    ".geojson": PolygonFormat("GeoJSON", keeps_names=False, crs="OGC:CRS84", layer_options={"RFC7946": "YES"}),
    ".parquet": PolygonFormat(None),
    ".fgb": PolygonFormat("FlatGeobuf"),
}
OUTPUT_SUFFIXES = tuple(FORMATS)


def scores_beside(polygons: Path) -> Path:
    """Return the score raster of polygons: `x.tif` of x.gpkg, `x.scores.tif` of formats whose style is in `x.qml`."""
    return polygons.with_suffix(".scores.tif" if style_of(polygons) else ".tif")


def raster_of(polygons: Path) -> Path | None:
    """Return the score raster that lies beside polygons; None if there is none. Older ones share the stem always.

    Polygons that were cut again have a name of their own; a GeoPackage of them names the raster they were cut from.
    An image may have that name too, beside polygons of other tools: it has several bands, or whole numbers.

    Raises:
        DataError: the file is damaged, or another program is writing to it.
    """
    likely = [scores_beside(polygons), polygons.with_suffix(".tif")]
    found = next((path for path in likely if path.is_file() and not _is_image(path)), None)
    if found is None and polygons.is_file():
        names = [str(row["scores"]) for row in run_rows(polygons) if row.get("scores")]
        found = next((polygons.with_name(name) for name in names if Path(name).name == name), None)
    return found if found and found.is_file() else None


def _is_image(path: Path) -> bool:
    """Return whether a raster cannot hold scores; one that is damaged is left to whoever reads it."""
    try:
        with open_raster(path) as raster:
            return raster.count > 1 or not raster.dtypes[0].startswith("float")
    except DataError:
        return False


def rasters_of(polygons: Path) -> list[Path]:
    """Return the score rasters that lie beside polygons: their own, or that of each scene in a GeoPackage of several.

    Raises:
        DataError: the file is damaged, or another program is writing to it.
    """
    if own := raster_of(polygons):
        return [own]
    scenes = [str(row["scene"]) for row in run_rows(polygons) if row.get("scene")] if polygons.is_file() else []
    return [path for scene in scenes if (path := raster_of_scene(polygons, scene)).is_file()]


def raster_of_scene(polygons: Path, scene: str) -> Path:
    """Return the score raster of one of several scenes that share their polygons, which lies beside them."""
    return polygons.with_name(f"{polygons.stem}_{stem(scene)}.tif")


def run_rows(polygons: Path) -> list[dict[str, Any]]:
    """Return the rows of the table `run` of a GeoPackage, by column; none of other files.

    Raises:
        DataError: the file is missing, damaged, or another program is writing to it.
    """
    if polygons.suffix.lower() != ".gpkg":
        return []
    with open_read_only(polygons) as database:
        try:
            found = database.execute('SELECT * FROM "run"')
        except sqlite3.OperationalError:  # no such table: the file of an older geood, or of another tool
            return []
        names = [str(column[0]) for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]


def style_of(polygons: Path) -> Path | None:
    """Return the style file of polygons; None where the style lies in the same file, or for other outputs."""
    return style_beside(polygons) if polygons.suffix in FORMATS and not FORMATS[polygons.suffix].layers else None


def companions_of(out: Path) -> tuple[Path, ...]:
    """Return the files that polygons have where tiles failed: these tiles and their style; none for other outputs."""
    failed = failed_beside(out)
    return (failed, style_beside(failed)) if failed else ()


def failed_beside(out: Path) -> Path | None:
    """Return the file of failed tiles that lies beside polygons; None for formats that hold them, or other outputs."""
    if out.suffix not in FORMATS or FORMATS[out.suffix].layers:
        return None
    return out.with_name(f"{out.stem}.failed_tiles{out.suffix}")


def check_stem(out: Path) -> None:
    """Check that polygons whose style lies in a file do not have the stem of a raster that has a style of that name.

    Raises:
        OutputError: there is one beside it.
    """
    style, raster = style_of(out), out.with_suffix(".tif")
    if style and raster.exists():
        raise OutputError(
            f"{out}: {raster.name} lies beside it, and QGIS would take {style.name} as the style of both; choose "
            f"another name, such as {out.stem}_polygons{out.suffix}, or .gpkg, which holds its style"
        )
