"""QGIS styles: QML for the outputs of geood (polygons, scores, classes), and embedding of a style in a GeoPackage.

QGIS loads a raster's style from a `.qml` sidecar file of the same name, and a vector layer's from the row of
`layer_styles` with `useAsDefault` set, of which it reads only the QML. Written for QGIS 3.22 and later.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from xml.sax.saxutils import quoteattr

from geood.errors import printable
from geood.geo.ogr import WRITTEN

FAILURES = (sqlite3.Error,)
_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
# Yellow to purple with rising score, with a black casing: visible on vegetation, soil, roofs and water.
_RAMP = ("#ffe08a", "#ff9a3c", "#ff3d6e", "#c400c4")
# Conventional colours of common class names; others get one of `_OTHERS` (Okabe and Ito 2008).
_KNOWN = {
    "water": "#3f8fd2",
    "tree": "#1f7a3a",
    "forest": "#1f7a3a",
    "vegetation": "#4caf50",
    "grass": "#8bc34a",
    "field": "#c9b458",
    "land": "#d8b98a",
    "soil": "#b98d5c",
    "road": "#7d7d7d",
    "building": "#b5493b",
    "roof": "#b5493b",
}
_OTHERS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")


def polygon_style(threshold: float, form: str = "") -> str:
    """Return the QML of anomaly polygons: outlines with dark casing, coloured by `score_max` from the threshold up.

    `form` is that of `qgis_form.review_form`; with it the map tip tells the verdict as well.
    """
    threshold = float(threshold)  # the repr of a NumPy scalar is not a QGIS number
    colour = (
        f"ramp_color(create_ramp(map(0,'{_RAMP[0]}',0.33,'{_RAMP[1]}',0.66,'{_RAMP[2]}',1,'{_RAMP[3]}')),"
        f'scale_linear("score_max",{threshold!r},max(maximum("score_max"),{threshold!r}+1e-6),0,1))'
    )
    casing = _line("0,0,0,200", 1.1, None)
    line = _line("255,61,110,255", 0.6, colour)
    symbol = f'<symbol alpha="1" type="fill" name="0" clip_to_extent="1" force_rhr="0">{casing}{line}</symbol>'
    return (
        _vector_style(symbol, form)
        + "<mapTip>&lt;b>[% round(score_max, 3) %]&lt;/b> taken for [% coalesce(class_name, '?') %], "
        + f"[% round(area_m2, 1) %] m²{_VERDICT_TIP if form else ''}</mapTip>{_VECTOR_END}"
    )


def cell_style(form: str) -> str:
    """Return the QML of the cells of a sample: dashed outlines, blue until a cell is complete, then green."""
    colour = "if(coalesce(\"complete\", false), '#3ddc84', '#4db8ff')"
    symbol = (
        '<symbol alpha="1" type="fill" name="0" clip_to_extent="1" force_rhr="0">'
        f"{_line('0,0,0,160', 1.0, None)}{_line('77,184,255,255', 0.6, colour, 'dash')}</symbol>"
    )
    return (
        _vector_style(symbol, form)
        + "<mapTip>cell [% cell %] of the sample: [% if(coalesce(complete, false), 'complete', 'not searched yet') %]"
        + f"[% coalesce(', ' || misses || ' missed', '') %]</mapTip>{_VECTOR_END}"
    )


def score_style(threshold: float, low: float | None = None, high: float | None = None) -> str:
    """Return the QML of a score raster: transparent below the threshold, then yellow to purple up to `high`.

    `low` and `high` are the limits of the score's range; by default 0 and 1, those of the Jensen-Shannon score.
    """
    threshold, high = float(threshold), 1.0 if high is None else float(high)
    high = high if high > threshold else threshold + max(1e-6, abs(threshold) * 1e-3)
    low = min(0.0, threshold) if low is None else min(float(low), threshold)
    stops = [threshold + (high - threshold) * share for share in (0, 1 / 3, 2 / 3, 1)]
    items = [_stop(low, _RAMP[0], 0, "below the threshold"), _stop(threshold, _RAMP[0], 0, "threshold")]
    items += [
        _stop(stop + (1e-9 * max(1.0, abs(stop)) if i == 0 else 0), colour, 200 + 15 * i, f"{stop:.3g}")
        for i, (stop, colour) in enumerate(zip(stops, _RAMP, strict=True))
    ]
    return _raster_style(
        f'<rasterrenderer type="singlebandpseudocolor" band="1" opacity="1" alphaBand="-1" nodataColor="" '
        f'classificationMin="{low!r}" classificationMax="{high!r}">{_MIN_MAX}<rastershader>'
        f'<colorrampshader colorRampType="INTERPOLATED" classificationMode="1" clip="0" minimumValue="{low!r}" '
        f'maximumValue="{high!r}" labelPrecision="4">{"".join(items)}</colorrampshader></rastershader></rasterrenderer>'
    )


def class_style(names: dict[int, str]) -> str:
    """Return the QML of a class raster: a colour and a name for each value; XML has no control characters."""
    colours = class_colours(names)
    entries = "".join(
        f'<paletteEntry value="{value}" color="{colours[value]}" alpha="255" label={quoteattr(printable(name))}/>'
        for value, name in sorted(names.items())
    )
    return _raster_style(
        f'<rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">{_MIN_MAX}'
        f"<colorPalette>{entries}</colorPalette></rasterrenderer>"
    )


def class_colours(names: dict[int, str]) -> dict[int, str]:
    """Choose a hex colour for each class value: the conventional one for its name, else the next of a distinct set."""
    colours: dict[int, str] = {}
    others = 0
    for value, name in sorted(names.items()):
        known = next((c for word, c in _KNOWN.items() if word in name.lower() and c not in colours.values()), None)
        colours[value] = known or _OTHERS[others % len(_OTHERS)]
        others += known is None
    return colours


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


_VERDICT_TIP = "[% coalesce(': &lt;b>' || verdict || '&lt;/b>', '') %][% coalesce(', ' || true_class, '') %]"
_VECTOR_END = (
    "<blendMode>0</blendMode><featureBlendMode>0</featureBlendMode><layerGeometryType>2</layerGeometryType></qgis>"
)
_TABLE = """CREATE TABLE IF NOT EXISTS layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""
_MIN_MAX = (
    "<rasterTransparency/><minMaxOrigin><limits>None</limits><extent>WholeRaster</extent>"
    "<statAccuracy>Estimated</statAccuracy></minMaxOrigin>"
)


def _vector_style(symbol: str, form: str) -> str:
    """Return the QML of a layer of polygons up to its form: one symbol for all."""
    categories = "Symbology|MapTips|Fields|Forms" if form else "Symbology|MapTips"
    return (
        f'{_DOCTYPE}<qgis version="3.22.0" styleCategories="{categories}">'
        '<renderer-v2 type="singleSymbol" forceraster="0" symbollevels="0" enableorderby="0">'
        f"<symbols>{symbol}</symbols></renderer-v2>{form}"
    )


def _line(colour: str, width_mm: float, expression: str | None, dashes: str = "solid") -> str:
    """Return an outline as a symbol layer, its colour fixed or from an expression."""
    rule = ""
    if expression:
        rule = (
            '<data_defined_properties><Option type="Map"><Option type="QString" name="name" value=""/>'
            '<Option type="Map" name="properties"><Option type="Map" name="outlineColor">'
            '<Option type="bool" name="active" value="true"/>'
            f'<Option type="QString" name="expression" value={quoteattr(expression)}/>'
            '<Option type="int" name="type" value="3"/></Option></Option>'
            '<Option type="QString" name="type" value="collection"/></Option></data_defined_properties>'
        )
    options = {"joinstyle": "miter", "line_color": colour, "line_style": dashes, "line_width": str(width_mm)}
    options |= {"line_width_unit": "MM", "capstyle": "square"}
    listed = "".join(f'<Option type="QString" name="{k}" value="{v}"/>' for k, v in options.items())
    return (
        f'<layer class="SimpleLine" enabled="1" locked="0" pass="0"><Option type="Map">{listed}</Option>{rule}</layer>'
    )


def _stop(value: float, colour: str, alpha: int, label: str) -> str:
    return f'<item value="{value!r}" color="{colour}" alpha="{alpha}" label={quoteattr(label)}/>'


def _raster_style(renderer: str) -> str:
    return (
        f'{_DOCTYPE}<qgis version="3.22.0" styleCategories="Symbology"><pipe><provider>'
        '<resampling enabled="false" maxOversampling="2" zoomedInResamplingMethod="nearestNeighbour" '
        f'zoomedOutResamplingMethod="nearestNeighbour"/></provider>{renderer}'
        '<brightnesscontrast brightness="0" contrast="0" gamma="1"/><huesaturation saturation="0" colorizeOn="0"/>'
        '<rasterresampler maxOversampling="2"/></pipe><blendMode>0</blendMode></qgis>'
    )
