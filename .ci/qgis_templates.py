"""Save the style templates of geood by QGIS itself: `make qgis-templates`, with the Python that QGIS comes with.

Everything is set by QGIS's own classes and written by its own writer, so the files hold what QGIS 3.22 holds. Names
between double underscores are filled in by `geood.geo.qgis.style_templates`. Scores stand on a scale of their own, on
which 0 is the low end, 1 the threshold and 2 the high end; geood moves them to the values of a raster.
"""

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsApplication,
    QgsCategorizedSymbolRenderer,
    QgsColorRampShader,
    QgsContrastEnhancement,
    QgsCoordinateReferenceSystem,
    QgsFillSymbol,
    QgsLinePatternFillSymbolLayer,
    QgsLineSymbol,
    QgsMapLayer,
    QgsMultiBandColorRenderer,
    QgsPalettedRasterRenderer,
    QgsPalLayerSettings,
    QgsProject,
    QgsProperty,
    QgsRasterLayer,
    QgsRasterShader,
    QgsRendererCategory,
    QgsSimpleLineSymbolLayer,
    QgsSingleBandGrayRenderer,
    QgsSingleBandPseudoColorRenderer,
    QgsSingleSymbolRenderer,
    QgsSymbolLayer,
    QgsTextBufferSettings,
    QgsTextFormat,
    QgsUnitTypes,
    QgsVectorLayer,
    QgsVectorLayerSimpleLabeling,
)
from qgis.PyQt.QtGui import QColor, QFont

# Cold below the threshold, yellow to purple above it: both ends stay apart for readers without red or green.
COLD = ((0.0, "#10243e"), (0.5, "#3f6b8f"), (1.0, "#b9cbd6"))
HOT = ((1.0, "#ffe08a"), (4 / 3, "#ff9a3c"), (5 / 3, "#ff3d6e"), (2.0, "#c400c4"))
STEP = 1e-9  # by which the first colour above the threshold follows the last one below it
SHADE = (
    "ramp_color(create_ramp(map(0,'#ffe08a',0.33,'#ff9a3c',0.66,'#ff3d6e',1,'#c400c4')),"
    'scale_linear("score_max",__threshold__,max(maximum("score_max"),__threshold__+1e-6),0,1))'
)
TIP = (
    "<b>[% if(rank is null, '', rank || ': ') %][% round(score_max, 3) %]</b> taken for "
    "[% coalesce(class_name, '?') %], [% round(area_m2, 1) %] m²"
)
VERDICT_TIP = (
    "[% coalesce(': <b>' || nullif(verdict, '') || '</b>', '') %][% coalesce(', ' || nullif(true_class, ''), '') %]"
)
# Of the description of the layer, which has a line for each scene: that of the polygon's scene, or of the only one.
BUDGET_TIP = (
    "[% with_variable('lines', string_to_array(layer_property(@layer_id, 'abstract'), '\\n'), "
    "coalesce('<br>' || nullif(array_first(array_filter(@lines, "
    "coalesce(left(@element, length(attribute($currentfeature, 'scene')) + 9) "
    "= attribute($currentfeature, 'scene') || ': budget ', array_length(@lines) = 1))), ''), '')) %]"
)
CELL_TIP = (
    "cell [% cell %] of the sample: [% if(coalesce(complete, false), 'complete', 'not searched yet') %]"
    "[% coalesce(', ' || misses || ' missed', '') %]"
)
FIELDS = "field=rank:integer&field=score_max:double&field=class_name:string&field=area_m2:double"
FIELDS += "&field=verdict:string&field=true_class:string&field=complete:integer&field=split:string&field=cell:integer"


def save(layer: QgsMapLayer, path: Path) -> None:
    """Write the symbols, labels and map tip of a layer, and nothing else, with the version of QGIS alone."""
    parts = QgsMapLayer.StyleCategory
    what = parts.Symbology | parts.MapTips | parts.Labeling if isinstance(layer, QgsVectorLayer) else parts.Symbology
    message, saved = layer.saveNamedStyle(str(path), QgsMapLayer.StyleCategories(what))
    if not saved:
        sys.exit(f"{path}: {message}")
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def line(colour: str, width_mm: float, dashes: str = "solid", shade: str = "") -> QgsSymbolLayer:
    """Make an outline, its colour fixed or from an expression."""
    made = QgsSimpleLineSymbolLayer.create(
        {"line_color": colour, "line_width": str(width_mm), "line_style": dashes, "joinstyle": "miter"}
    )
    if shade:
        made.setDataDefinedProperty(QgsSymbolLayer.Property.PropertyStrokeColor, QgsProperty.fromExpression(shade))
    return made


def outlines(*lines: QgsSymbolLayer) -> QgsFillSymbol:
    """Make a fill that is nothing but outlines."""
    symbol = QgsFillSymbol()
    for made in lines:
        symbol.appendSymbolLayer(made)
    symbol.deleteSymbolLayer(0)
    return symbol


def polygons() -> QgsVectorLayer:
    """Make a layer of polygons without any."""
    return QgsVectorLayer(f"MultiPolygon?crs=EPSG:32633&{FIELDS}", "polygons", "memory")


def ranks() -> QgsVectorLayerSimpleLabeling:
    """Make labels of ranks, from a scale on at which they do not cover the map."""
    form, halo = QgsTextFormat(), QgsTextBufferSettings()
    halo.setEnabled(True)
    halo.setSize(0.7)
    halo.setColor(QColor(255, 255, 255, 220))
    form.setBuffer(halo)
    form.setFont(QFont("Sans Serif"))
    form.setSize(8)
    form.setColor(QColor("#3a0050"))
    settings = QgsPalLayerSettings()
    settings.fieldName, settings.isExpression = "rank", False
    settings.placement = QgsPalLayerSettings.Placement.OutsidePolygons
    settings.scaleVisibility, settings.minimumScale, settings.maximumScale = True, 10000, 0
    settings.setFormat(form)
    return QgsVectorLayerSimpleLabeling(settings)


def anomalies(path: Path) -> None:
    """Save the style of anomaly polygons."""
    layer = polygons()
    layer.setRenderer(
        QgsSingleSymbolRenderer(outlines(line("0,0,0,200", 1.1), line("255,61,110,255", 0.6, shade=SHADE)))
    )
    layer.setLabeling(ranks())
    layer.setLabelsEnabled(True)
    layer.setMapTipTemplate(TIP + VERDICT_TIP + BUDGET_TIP)
    save(layer, path)


def sample(path: Path) -> None:
    """Save the style of cells to be searched."""
    layer = polygons()
    shade = "if(coalesce(\"complete\", false), '#3ddc84', '#4db8ff')"
    dashed = line("77,184,255,255", 0.6, "dash", shade)
    layer.setRenderer(QgsSingleSymbolRenderer(outlines(line("0,0,0,160", 1.0), dashed)))
    layer.setMapTipTemplate(CELL_TIP)
    save(layer, path)


def failed_tiles(path: Path) -> None:
    """Save the style of tiles without scores."""
    layer = polygons()
    hatch = QgsLinePatternFillSymbolLayer()
    hatch.setSubSymbol(QgsLineSymbol.createSimple({"line_color": "230,30,30,200", "line_width": "0.4"}))
    hatch.setLineAngle(45)
    hatch.setDistance(2.5)
    hatch.setDistanceUnit(QgsUnitTypes.RenderUnit.RenderMillimeters)
    layer.setRenderer(QgsSingleSymbolRenderer(outlines(hatch, line("230,30,30,255", 0.6))))
    layer.setMapTipTemplate("no scores: this tile failed")
    save(layer, path)


def split(path: Path, *, filled: bool) -> None:
    """Save a style of a training split, training in blue and validation in orange: areas, or outlines alone."""
    layer, categories = polygons(), []
    for side, colour in (("train", "0,114,178"), ("validation", "230,159,0")):
        style = {"color": f"{colour},60", "outline_color": f"{colour},255", "outline_width": "0.3"}
        symbol = QgsFillSymbol.createSimple(style) if filled else outlines(line(f"{colour},160", 0.25))
        categories.append(QgsRendererCategory(side, symbol, side))
    layer.setRenderer(QgsCategorizedSymbolRenderer("split", categories))
    layer.setMapTipTemplate("[% split %]")
    save(layer, path)


def shaded(raster: QgsRasterLayer, items: list[Any], path: Path) -> None:
    """Save a raster's style of colours at values, between which it is interpolated."""
    function = QgsColorRampShader(0.0, 2.0)
    function.setColorRampType(QgsColorRampShader.Type.Interpolated)
    function.setColorRampItemList(
        [QgsColorRampShader.ColorRampItem(value, QColor(colour), label) for value, colour, label in items]
    )
    function.legendSettings().setUseContinuousLegend(False)  # which would hide the threshold
    shader = QgsRasterShader()
    shader.setRasterShaderFunction(function)
    renderer = QgsSingleBandPseudoColorRenderer(raster.dataProvider(), 1, shader)
    renderer.setClassificationMin(0.0)
    renderer.setClassificationMax(2.0)
    raster.setRenderer(renderer)
    save(raster, path)


def see_through(colour: str, alpha: int) -> QColor:
    """Return a colour with an alpha."""
    made = QColor(colour)
    made.setAlpha(alpha)
    return made


def scores(raster: QgsRasterLayer, folder: Path) -> None:
    """Save the two styles of a score raster."""
    cold = [(value, colour, "__value__") for value, colour in COLD]
    hot = [(value + (STEP if i == 0 else 0), colour, "__value__") for i, (value, colour) in enumerate(HOT)]
    hot[0] = (*hot[0][:2], "threshold __value__")
    shaded(raster, [*cold[:-1], (1.0, COLD[-1][1], "below the threshold"), *hot], folder / "scores_ramp.qml")
    clear = [(value, see_through(HOT[0][1], 0), "below the threshold") for value in (0.0, 1.0)]
    shown = [(value, see_through(colour, 200 + 15 * i), label) for i, (value, colour, label) in enumerate(hot)]
    shaded(raster, clear + shown, folder / "scores_above.qml")


def classes(raster: QgsRasterLayer, path: Path) -> None:
    """Save the style of a class raster, with one class."""
    entry = QgsPalettedRasterRenderer.Class(0, QColor("#d8b98a"), "__name__")
    raster.setRenderer(QgsPalettedRasterRenderer(raster.dataProvider(), 1, [entry]))
    save(raster, path)


def image(raster: QgsRasterLayer, path: Path) -> None:
    """Save the style of an image of three bands, stretched to the values that are filled in."""
    renderer = QgsMultiBandColorRenderer(raster.dataProvider(), 1, 2, 3)
    takers = (renderer.setRedContrastEnhancement, renderer.setGreenContrastEnhancement)
    for i, take in enumerate((*takers, renderer.setBlueContrastEnhancement)):
        take(stretch(raster, i + 1))
    raster.setRenderer(renderer)
    save(raster, path)


def grey(raster: QgsRasterLayer, path: Path) -> None:
    """Save the style of an image of one band, stretched to the values that are filled in."""
    renderer = QgsSingleBandGrayRenderer(raster.dataProvider(), 1)
    renderer.setContrastEnhancement(stretch(raster, 1))
    raster.setRenderer(renderer)
    save(raster, path)


def stretch(raster: QgsRasterLayer, band: int) -> QgsContrastEnhancement:
    """Return a stretch of a band from 0 to 255."""
    made = QgsContrastEnhancement(raster.dataProvider().dataType(band))
    made.setMinimumValue(0)
    made.setMaximumValue(255)
    made.setContrastEnhancementAlgorithm(QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum)
    return made


def project(raster: QgsRasterLayer, path: Path) -> None:
    """Save a project with a group that holds a layer of polygons and a raster; paths in it are relative."""
    made = QgsProject.instance()
    made.setTitle("__title__")
    made.setCrs(QgsCoordinateReferenceSystem("EPSG:32633"))
    group = made.layerTreeRoot().addGroup("__group__")
    for layer in (polygons(), raster):
        made.addMapLayer(layer, False)
        group.addLayer(layer)
    if not made.write(str(path)):
        sys.exit(f"{path}: {made.error()}")
    strip(path)


def strip(path: Path) -> None:
    """Take out of a project what names this machine, and what geood fills in: places, styles, statistics."""
    tree = ET.parse(path)
    root = tree.getroot()
    for name in ("saveDateTime", "saveUser", "saveUserFull"):
        root.attrib.pop(name, None)
    for name in ("main-annotation-layer", "snapping-settings", "projectMetadata"):
        for child in root.findall(name):
            root.remove(child)
    for layer in root.find("projectlayers"):
        for child in list(layer):
            if child.tag not in ("id", "datasource", "layername", "srs", "provider", "flags"):
                layer.remove(child)
        layer.find("datasource").text = "__source__"
    for layer in root.iter("layer-tree-layer"):
        layer.set("source", "__source__")
    text = ET.tostring(root, encoding="unicode")
    for layer in root.iter("maplayer"):
        text = text.replace(layer.findtext("id"), f"__{layer.get('type')}__")
    path.write_text(text + "\n", encoding="utf-8")
    path.with_name(f"{path.name}~").unlink(missing_ok=True)


def main(folder: Path, scratch: Path) -> None:
    """Save all templates to a folder."""
    import numpy as np
    from osgeo import gdal

    made = scratch / "scratch.tif"
    gdal.GetDriverByName("GTiff").Create(str(made), 8, 8, 3, gdal.GDT_Float32).WriteRaster(
        0, 0, 8, 8, np.zeros((3, 8, 8), np.float32).tobytes()
    )
    raster = QgsRasterLayer(str(made), "raster")
    anomalies(folder / "anomalies.qml")
    sample(folder / "sample.qml")
    failed_tiles(folder / "failed_tiles.qml")
    split(folder / "split_blocks.qml", filled=True)
    split(folder / "split_crops.qml", filled=False)
    scores(raster, folder)
    classes(raster, folder / "classes.qml")
    image(raster, folder / "image.qml")
    grey(raster, folder / "image_grey.qml")
    project(raster, folder / "project.qgs")


if __name__ == "__main__":
    import tempfile

    application = QgsApplication([], False)
    application.initQgis()
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1]), Path(scratch))
    os._exit(0)  # QGIS crashes now and then while it is taken down
