"""QGIS styles for the outputs of geood: polygons, cells of a sample, failed tiles, scores, classes, training blocks.

Each is a template that QGIS saved (`style_templates`) with its values filled in. QGIS takes the style of a layer in a
GeoPackage from its table `layer_styles`, where `useAsDefault` is set, of which it reads only the QML. For any other
file, raster or vector, it takes the `.qml` of the same stem, whatever kind of layer that was made for; so no two files
that need a style may share a stem. Written for QGIS 3.22 and later.
"""

from __future__ import annotations

import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import closing
from copy import deepcopy
from functools import partial
from pathlib import Path

from geood.errors import printable
from geood.geo.ogr import WRITTEN
from geood.geo.qgis.style_templates import stretch, template, written

FAILURES = (sqlite3.Error,)
STYLE = ".qml"
ABOVE = ".above.qml"  # ending of the second style of a score raster, which QGIS loads when it is told to
# Conventional colours of common class names; others get one of `_OTHERS` (Okabe and Ito 2008).
_KNOWN = {
    "water": "#3f8fd2",
    "tree": "#1f7a3a",
    "forest": "#1f7a3a",
    "wood": "#1f7a3a",
    "vegetation": "#4caf50",
    "grass": "#8bc34a",
    "field": "#c9b458",
    "barren": "#b98d5c",
    "bare": "#b98d5c",
    "land": "#d8b98a",
    "soil": "#b98d5c",
    "road": "#7d7d7d",
    "paved": "#7d7d7d",
    "impervious": "#7d7d7d",
    "building": "#b5493b",
    "built": "#b5493b",
    "roof": "#b5493b",
}
_OTHERS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")


def polygon_style(threshold: float, form: str = "") -> str:
    """Return the QML of anomaly polygons: outlines with dark casing, coloured by `score_max` from the threshold up.

    Labels are the ranks, from a scale of 1:10,000 on. `form` is that of `form.review_form`.
    """
    return _with_form("anomalies.qml", form, {"threshold": repr(float(threshold))})  # NumPy's repr is no QGIS number


def cell_style(form: str) -> str:
    """Return the QML of the cells of a sample: dashed outlines, blue until a cell is complete, then green."""
    return _with_form("sample.qml", form, {})


def failed_style() -> str:
    """Return the QML of tiles without scores because they failed: red hatching."""
    return written(template("failed_tiles.qml"))


def split_style(layer: str) -> str:
    """Return the QML of `blocks` or `crops` of a training split: training blue, validation orange."""
    return written(template(f"split_{layer}.qml"))


def ramp_style(threshold: float, low: float | None = None, high: float | None = None) -> str:
    """Return the QML of a score raster over its whole range: dark to pale blue, from the threshold yellow to purple.

    `low` and `high` are the limits of the score's range; by default 0 and 1, those of the Jensen-Shannon score.
    """
    return _score_style("scores_ramp.qml", threshold, low, high)


def above_style(threshold: float, low: float | None = None, high: float | None = None) -> str:
    """Return the QML of a score raster that is transparent up to the threshold, then yellow to purple up to `high`.

    `low` and `high` are those of `ramp_style`.
    """
    return _score_style("scores_above.qml", threshold, low, high)


def class_style(names: dict[int, str]) -> str:
    """Return the QML of a class raster: a colour and a name for each value; XML has no control characters."""
    root, colours = template("classes.qml"), class_colours(names)
    for palette in root.iter("colorPalette"):
        [entry] = palette
        palette.remove(entry)
        for value, name in sorted(names.items()):
            made = deepcopy(entry)
            made.attrib |= {"value": str(value), "color": colours[value], "label": printable(name)}
            palette.append(made)
    return written(root)


def class_colours(names: dict[int, str]) -> dict[int, str]:
    """Choose a hex colour for each class value: the conventional one for its name, else one unlike those taken."""
    colours: dict[int, str] = {}
    for value, name in sorted(names.items()):
        known = next((c for word, c in _KNOWN.items() if word in name.lower() and c not in colours.values()), None)
        if known:
            colours[value] = known
    for value in sorted(names.keys() - colours):
        colours[value] = _unlike(list(colours.values()))
    return dict(sorted(colours.items()))


def _unlike(taken: Sequence[str]) -> str:
    """Return the colour of `_OTHERS` that is farthest from those taken; if none is free, in turn."""

    def distance(one: str, other: str) -> int:
        return sum((int(one[i : i + 2], 16) - int(other[i : i + 2], 16)) ** 2 for i in (1, 3, 5))

    free = [colour for colour in _OTHERS if colour not in taken] or [_OTHERS[len(taken) % len(_OTHERS)]]
    return max(free, key=lambda colour: min((distance(colour, each) for each in taken), default=0))


def style_beside(path: Path) -> Path:
    """Return the file that QGIS takes the style of a raster or vector file from, if that is no GeoPackage."""
    return path.with_suffix(STYLE)


def embed_style(gpkg: Path, layer: str, *, geometry_column: str, qml: str, name: str) -> None:
    """Store a style in a GeoPackage as the default style of one of its layers.

    Raises:
        sqlite3.Error: the file cannot be written.
    """
    with closing(sqlite3.connect(gpkg)) as database, database:
        database.execute("PRAGMA journal_mode=delete")
        database.execute(_TABLE)
        database.execute(
            "INSERT OR REPLACE INTO gpkg_contents (table_name, data_type, identifier, description, last_change) VALUES "
            "('layer_styles', 'attributes', 'layer_styles', 'styles of QGIS', ?)",
            (WRITTEN,),
        )
        database.execute("DELETE FROM layer_styles WHERE f_table_name = ?", (layer,))
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
            "styleQML, styleSLD, useAsDefault, description, owner, ui, update_time) "
            "VALUES ('', '', ?, ?, ?, ?, '', 1, '', '', NULL, ?)",
            (layer, geometry_column, name, qml, WRITTEN),
        )


_TABLE = """CREATE TABLE IF NOT EXISTS layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""


def _with_form(name: str, form: str, values: dict[str, str]) -> str:
    """Return the QML of polygons with the parts of a form, which are a sequence of elements."""
    root = template(name, values)
    if form:
        root.set("styleCategories", f"{root.get('styleCategories')}|Fields|Forms")
        root.extend(ET.fromstring(f"<form>{form}</form>"))
    return written(root)


def _score_style(name: str, threshold: float, low: float | None, high: float | None) -> str:
    threshold, high = float(threshold), 1.0 if high is None else float(high)
    high = high if high > threshold else threshold + max(1e-6, abs(threshold) * 1e-3)
    low = min(0.0, threshold) if low is None else min(float(low), threshold)
    root = template(name)
    stretch(root, partial(_to_score, low=low, threshold=threshold, high=high), title=lambda score: f"{score:.4g}")
    return written(root)


def _to_score(at: float, *, low: float, threshold: float, high: float) -> float:
    """Return the score at a place of the template's scale: 0 is `low`, 1 the threshold, 2 `high`."""
    if at <= 1:
        return low + (threshold - low) * at if at < 1 else threshold
    least = 1e-9 * max(1.0, abs(threshold))  # the first colour above is no longer that of the threshold itself
    return max(threshold + (high - threshold) * (at - 1), threshold + least) if at < 2 else high
