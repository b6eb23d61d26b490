"""Styles: what is in them, and that QGIS itself finds, takes and draws them."""

import shutil
import sqlite3
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from geood.config.sections import PredictConfig
from geood.geo.grid import Grid
from geood.geo.qgis import styles
from geood.polygons.export import anomalies, write_anomalies, write_frame, write_together
from geood.polygons.extraction import PolygonSource
from geood.prediction.run_table import write_run
from support.cpu import slow
from support.qgis import ask_qgis
from support.rasters import write_scores

NAMES = {0: "water", 1: "road", 2: 'roofs "old" & <new>'}
SCRIPT = """
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor
folder, threshold = sys.argv[1], float(sys.argv[2])

def draw(layer, name):
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setExtent(scores.extent())
    settings.setDestinationCrs(layer.crs())
    settings.setOutputSize(QSize(160, 120))
    settings.setBackgroundColor(QColor(255, 255, 255))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(f"{folder}/{name}.png")

def open_file(name):
    layer = QgsVectorLayer(f"{folder}/{name}", name, "ogr")
    return layer, layer.loadDefaultStyle()[1]

scores = QgsRasterLayer(f"{folder}/a.tif", "scores")
classes = QgsRasterLayer(f"{folder}/a.classes.tif", "classes")
polygons = QgsVectorLayer(f"{folder}/a.gpkg|layername=anomalies", "polygons", "ogr")
empty = QgsVectorLayer(f"{folder}/empty.gpkg|layername=anomalies", "empty", "ogr")
found = {"valid": [layer.isValid() for layer in (scores, classes, polygons, empty)]}
found["default"] = [layer.loadDefaultStyle()[1] for layer in (scores, polygons, empty)]
found["renderers"] = [layer.renderer().type() for layer in (scores, classes, polygons, empty)]
shader = scores.renderer().shader().rasterShaderFunction()
values = (0.0, threshold - 0.01, threshold + 0.01, 1.0)
found["ramp"] = [list(shader.shade(v)[1:]) for v in values]
draw(scores, "ramp")
found["above"] = scores.loadNamedStyle(f"{folder}/a.above.qml")[1]
shader = scores.renderer().shader().rasterShaderFunction()
found["shades"] = [shader.shade(v)[-1] for v in values]
found["files"] = {}
for name in ("b.geojson", "c.fgb"):
    layer, loaded = open_file(name)
    form = layer.editorWidgetSetup(layer.fields().indexOf("verdict")).type()
    drawn = layer.renderer().symbol().symbolLayerCount()
    found["files"][name] = [layer.isValid(), loaded, layer.labelsEnabled(), drawn, form]
memory = "MultiPolygon?field=split:string"
found["others"] = []
for name in ("failed", "blocks", "crops", "parquet"):
    layer = QgsVectorLayer(memory, name, "memory")
    found["others"].append([layer.loadNamedStyle(f"{folder}/{name}.qml")[1], layer.renderer().type()])
photo = QgsRasterLayer(f"{folder}/a.classes.tif", "photo")
photo.loadNamedStyle(f"{folder}/b.qml")
found["raster with the style of polygons"] = photo.renderer().type()
found["classes"] = {int(c.value): [c.label, c.color.name()] for c in classes.renderer().classes()}
found["layers"] = polygons.renderer().symbol().symbolLayerCount()
line = polygons.renderer().symbol().symbolLayer(1)
colour = line.dataDefinedProperties().property(QgsSymbolLayer.PropertyStrokeColor)
context = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(polygons))
found["colours"] = []
for feature in polygons.getFeatures():
    context.setFeature(feature)
    found["colours"].append([feature["score_max"], colour.valueAsColor(context)[0].name()])
found["count"] = polygons.featureCount(), empty.featureCount()
found["extents"] = [[round(v, 6) for v in (e.xMinimum(), e.yMinimum(), e.xMaximum(), e.yMaximum())]
                    for e in (scores.extent(), polygons.extent())]
for layer, name in ((scores, "scores"), (classes, "classes"), (polygons, "polygons"), (empty, "empty")):
    draw(layer, name)
"""
TIPS = """
for name in ("one", "two", "bare", "drawn"):
    layer = QgsVectorLayer(f"{sys.argv[1]}/{name}.gpkg|layername=anomalies", name, "ogr")
    QgsProject.instance().addMapLayer(layer)
    if not layer.abstract():
        layer.setAbstract("")  # as in a project that was saved
    context = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(layer))
    found = globals().get("found", {})
    found[name] = []
    for feature in layer.getFeatures():
        context.setFeature(feature)
        found[name].append(QgsExpression.replaceExpressionText(layer.mapTipTemplate(), context))
"""
PLACES = {
    "utm": (Affine(0.25, 0, 500000, 0, -0.25, 4500000), CRS.from_epsg(32633)),
    "photo": (Affine.identity(), None),
}


def make_outputs(folder, place, threshold):
    """Scores, classes and polygons as predict leaves them: four squares with rising scores."""
    grid = Grid(120, 160, *place)
    scores = np.full((120, 160), 0.1, np.float32)
    for i in range(4):
        scores[20:60, 10 + 40 * i : 30 + 40 * i] = threshold + 0.05 + (1 - threshold - 0.05) * i / 3
    scores[90:, :40] = np.nan
    labels = np.repeat(np.array([[0, 1, 2, 1]], np.uint8), 40, 1).repeat(120, 0)
    labels[90:, :40] = 255
    path = write_scores(folder / "a.tif", grid, scores)
    write_scores(folder / "a.classes.tif", grid, labels)
    every = {"a": styles.ramp_style(threshold), "a.above": styles.above_style(threshold)}
    every |= {"a.classes": styles.class_style(NAMES), "failed": styles.failed_style()}
    every |= {layer: styles.split_style(layer) for layer in ("blocks", "crops")}
    for name, qml in every.items():
        (folder / f"{name}.qml").write_text(qml, encoding="utf-8")
    frame = anomalies(path, threshold=threshold, classes=None, class_names=None, predict=PredictConfig(), model="abc")
    write_frame(frame, folder / "a.gpkg", threshold=threshold, overwrite=False)
    write_frame(frame.iloc[:0], folder / "empty.gpkg", threshold=threshold, overwrite=False)
    for name in ("b.geojson", "c.fgb", "parquet.parquet"):
        write_frame(frame, folder / name, threshold=threshold, overwrite=False)


def drawn(path: Path):
    with rasterio.open(path) as picture:
        return picture.read()[:3]


@pytest.mark.parametrize("place", ["utm", *slow("photo")])
def test_qgis_finds_the_styles_and_draws_with_them(tmp_path, place):
    threshold = 0.6
    make_outputs(tmp_path, PLACES[place], threshold)
    found = ask_qgis(SCRIPT, tmp_path, threshold, folder=tmp_path)
    assert found["valid"] == [True] * 4 and found["default"] == [True] * 3 and found["count"] == [4, 0]
    assert found["renderers"] == ["singlebandpseudocolor", "paletted", "singleSymbol", "singleSymbol"]
    colours = [tuple(shade) for shade in found["ramp"]]
    assert len(set(colours)) == 4 and {alpha for *_, alpha in colours} == {255} and found["above"]
    warm = [red > blue for red, _, blue, _ in colours]
    assert warm == [False, False, True, True] or colours[3][0] > colours[1][0]
    assert found["files"] == {name: [True, True, True, 2, "ValueMap"] for name in ("b.geojson", "c.fgb")}
    kinds = ["singleSymbol", "categorizedSymbol", "categorizedSymbol", "singleSymbol"]
    assert found["others"] == [[True, kind] for kind in kinds]
    assert found["raster with the style of polygons"] == "paletted"
    below, under, above, top = found["shades"]
    assert below == under == 0 and above > 150 and top > 200
    assert found["classes"] == {str(k): [v, styles.class_colours(NAMES)[k]] for k, v in NAMES.items()}
    assert found["layers"] == 2
    colours = [colour for _, colour in sorted(found["colours"])]
    assert len(set(colours)) == 4 and "#000000" not in colours
    west, south, east, north = found["extents"][1]
    outer = found["extents"][0]
    unit = (outer[2] - outer[0]) / 160
    inner = [outer[0] + 10 * unit, outer[3] - 60 * unit, outer[0] + 150 * unit, outer[3] - 20 * unit]
    assert [west, south, east, north] == pytest.approx(inner)
    scores, polygons = drawn(tmp_path / "scores.png"), drawn(tmp_path / "polygons.png")
    white = (scores == 255).all(axis=0)
    assert not white[25:55, 15:25].any() and white[70:85].all() and white[95:, :35].all()
    inside = (polygons[:, 35:45, 18:22] == 255).all()
    outline = (polygons[:, 15:65, 5:35] != 255).any(axis=0)
    assert inside and outline.sum() > 50 and (drawn(tmp_path / "empty.png") == 255).all()
    colours = {tuple(drawn(tmp_path / "classes.png")[:, 10, x]) for x in (20, 60, 100)}
    assert len(colours) == 3 and (255, 255, 255) not in colours


def test_the_map_tip_of_a_polygon_tells_the_verdict_on_its_scene(tmp_path):
    """QGIS 3.22 shows the description of a layer nowhere but in its properties."""
    settings = {"threshold": 0.5, "predict": PredictConfig(), "model": "abc", "overwrite": False}
    sources = []
    for name in ("a.tif", "a.tif: b.tif"):
        scores = np.full((40, 40), 0.1, np.float32)
        scores[5:15, 5:15] = 0.9
        path = write_scores(tmp_path / name, Grid(40, 40, *PLACES["utm"]), scores)
        sources.append(PolygonSource(path, None, None, name))
    write_anomalies(sources[0].scores, tmp_path / "one.gpkg", classes=None, class_names=None, **settings)
    write_together(sources, tmp_path / "two.gpkg", **settings)
    said = [("a.tif", "holds", "it does"), ("a.tif: b.tif", "cannot be told", "few squares")]
    rows = [
        (scene, SimpleNamespace(answer=answer, why=why, fields=lambda answer=answer: {"answer": answer}))
        for scene, answer, why in said
    ]
    write_run(tmp_path / "one.gpkg", rows[:1])
    write_run(tmp_path / "two.gpkg", rows[::-1])
    write_anomalies(sources[0].scores, tmp_path / "bare.gpkg", classes=None, class_names=None, **settings)
    shutil.copy(tmp_path / "two.gpkg", tmp_path / "drawn.gpkg")
    for name in ("bare", "drawn"):  # as a person leaves polygons: without texts, and without a scene
        with closing(sqlite3.connect(tmp_path / f"{name}.gpkg")) as database, database:
            for function in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):  # of the triggers of the index
                database.create_function(function, 1, lambda _: 0)
            scene = ", scene = NULL" if name == "drawn" else ""
            database.execute(f"UPDATE anomalies SET verdict = '', true_class = ''{scene}")
    found = ask_qgis(TIPS, tmp_path, folder=tmp_path)
    assert found["bare"] == ["<b>1: 0.9</b> taken for ?, 6.3 m²"] == found["drawn"][:1]
    expected = [f"<br>{scene}: budget {answer}: {why}" for scene, answer, why in said]
    assert [tip[tip.index("<br>") :] for tip in found["one"]] == expected[:1]
    assert sorted(tip[tip.index("<br>") :] for tip in found["two"]) == sorted(expected)


@pytest.mark.parametrize("threshold", [0.0, np.float64(0.5), 0.999999, 1.0, -12.5, 3e4, 1e-12])
def test_every_threshold_gives_rising_stops(threshold):
    for style, shown_below in ((styles.ramp_style, 255), (styles.above_style, 0)):
        root = ET.fromstring(style(threshold).encode())
        stops = [(float(i.get("value")), int(i.get("alpha"))) for i in root.iter("item")]
        values = [v for v, _ in stops]
        assert values == sorted(values) and all(a == shown_below for v, a in stops if v <= threshold)
        assert values[-1] > threshold and stops[-1][1] > 200 and values.count(float(threshold)) >= 1
        [shader] = root.iter("colorrampshader")
        assert (float(shader.get("minimumValue")), float(shader.get("maximumValue"))) == (values[0], values[-1])
    assert "np." not in styles.polygon_style(threshold) and repr(float(threshold)) in styles.polygon_style(threshold)


def test_no_placeholder_is_left_in_any_style():
    every = [
        styles.polygon_style(0.5, "<aliases/>"),
        styles.cell_style(""),
        styles.failed_style(),
        styles.class_style(NAMES),
    ]
    every += [
        styles.split_style("blocks"),
        styles.split_style("crops"),
        styles.ramp_style(0.5),
        styles.above_style(0.5),
    ]
    for qml in every:
        assert "__" not in qml and qml.startswith("<!DOCTYPE qgis") and ET.fromstring(qml.encode()).tag == "qgis"


def test_names_are_escaped_and_colours_distinct():
    root = ET.fromstring(styles.class_style(NAMES).encode())
    assert [e.get("label") for e in root.iter("paletteEntry")] == list(NAMES.values())
    names = dict(enumerate(["water", "road", "building", "tree", "land", "a", "b", "c", "other water"]))
    assert len(set(styles.class_colours(names).values())) == len(names)


def test_classes_of_any_name_take_colours_unlike_those_of_known_names():
    colours = styles.class_colours({0: "slum", 1: "other", 2: "vegetation", 3: "water"})
    assert not {colours[0], colours[1]} & {"#009e73", "#0072b2", "#56b4e9"}  # green and blues, as the known ones
    assert styles.class_colours({0: "Bare ground"}) == {0: styles.class_colours({0: "barren"})[0]}
    many = styles.class_colours({i: f"no {i}" for i in range(20)})
    assert set(many) == set(range(20)) and len({many[i] for i in range(8)}) == len({many[i] for i in range(8, 16)}) == 8


@pytest.mark.parametrize("name", ["a\x00b", "\x1b[31m", "\x0b", "half \ud800", "\ufffe", "line\nbreak", "]]>"])
def test_any_name_makes_a_style_that_is_xml(name):
    root = ET.fromstring(styles.class_style({0: name}).encode())
    assert [e.get("value") for e in root.iter("paletteEntry")] == ["0"]


def test_a_style_is_registered_once(tmp_path):
    make_outputs(tmp_path, PLACES["utm"], 0.6)
    path = tmp_path / "a.gpkg"
    styles.embed_style(path, "anomalies", geometry_column="geom", qml=styles.polygon_style(0.9), name="again")
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT f_table_name, f_geometry_column, useAsDefault, styleName FROM layer_styles")
        assert rows.fetchall() == [("anomalies", "geom", 1, "again")]
        rows = database.execute("SELECT data_type FROM gpkg_contents WHERE table_name = 'layer_styles'")
        assert rows.fetchall() == [("attributes",)]
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert {name for name, _ in pyogrio.list_layers(path)} == {"anomalies", "layer_styles"}
