"""The form of a review: what QGIS makes of it, and of the choices without any style."""

import json
import subprocess
import xml.etree.ElementTree as ET

import geopandas
import numpy as np
import pytest
from rasterio.crs import CRS

from geood.config.sections import PredictConfig
from geood.errors import OutputError
from geood.geo.grid import Grid
from geood.geo.qgis.form import CELL_REVIEW, POLYGON_REVIEW, VERDICTS, review_form
from geood.polygons.export import write_anomalies
from geood.polygons.typed_verdicts import check_nothing_typed
from geood.review.auditing import audit
from support.qgis import PYTHON, environment, need_qgis
from support.rasters import HALF_METRE, write_scores

SCRIPT = """
import json, os, sys
from qgis.core import *
app = QgsApplication([], False)
app.initQgis()
path, found = sys.argv[1], {}
bare = QgsVectorLayer.LayerOptions()
bare.loadDefaultStyle = False
layer = QgsVectorLayer(path + "|layername=anomalies", "bare", "ogr", bare)
setup = layer.editorWidgetSetup(layer.fields().indexOf("verdict"))
found["bare"] = [setup.type(), sorted(v for choice in setup.config()["map"] for v in choice.values())]
for name in ("anomalies", "sample"):
    layer = QgsVectorLayer(path + "|layername=" + name, name, "ogr")
    form, fields = layer.editFormConfig(), layer.fields()
    at = {field.name(): fields.indexOf(field.name()) for field in fields}
    found[name] = {
        "widgets": {key: layer.editorWidgetSetup(i).type() for key, i in at.items()},
        "fixed": sorted(key for key, i in at.items() if form.readOnly(i)),
        "groups": [[child.name() for child in tab.children()] for tab in form.tabs()],
        "above": sorted(key for key, i in at.items() if form.labelOnTop(i)),
        "python": form.initCode() + form.initFunction(),
        "tip": layer.mapTipTemplate(),
        "defaults": {key: layer.defaultValueDefinition(i).expression() for key, i in at.items()},
    }
    layer.startEditing()
    features = sorted(layer.getFeatures(), key=lambda f: f.id())
    typed = {"verdict": ["false", "real", "false", "real"], "reviewer": [None, "Ada"]}
    typed = typed if name == "anomalies" else {"misses": [2, 0], "complete": [True, True]}
    for column, values in typed.items():
        for feature, value in zip(features, values):
            if value is not None:
                layer.changeAttributeValue(feature.id(), at[column], value)
    found[name]["saved"] = layer.commitChanges()
print("FOUND", json.dumps(found), flush=True)
sys.stdin.readline()  # the file stays open
os._exit(0)  # QGIS crashes now and then while it is taken down
"""


def make_map(folder):
    """Scores with four things of falling scores, and their polygons with a sample."""
    scores = np.full((300, 400), 0.1, np.float32)
    for i in range(4):
        scores[20:40, 20 + 80 * i : 40 + 80 * i] = 0.95 - 0.1 * i
    path = write_scores(folder / "a.tif", Grid(300, 400, HALF_METRE, CRS.from_epsg(32633)), scores)
    settings = PredictConfig(sample_cells=5, sample_side_m=25.0)
    write_anomalies(
        path,
        folder / "a.gpkg",
        threshold=0.5,
        classes=None,
        class_names={0: 'land & "sea"', 1: "road"},
        predict=settings,
        model="abc",
        overwrite=False,
    )
    return folder / "a.gpkg"


def test_verdicts_typed_in_qgis_are_read_while_it_is_open_and_never_replaced(tmp_path):
    need_qgis()
    path = make_map(tmp_path)
    command = [PYTHON, "-c", SCRIPT, str(path)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(tmp_path / "home"),
    ) as qgis:
        try:
            line = next((line for line in qgis.stdout if line.startswith("FOUND ")), None)
            assert line, "QGIS ended early"
            found = json.loads(line.removeprefix("FOUND "))
            judged = audit([path])
            with pytest.raises(OutputError, match=r"typed .* in 6 of its rows, which would be lost"):
                check_nothing_typed(path, discard=False)
        finally:
            qgis.communicate("\n", timeout=60)
    assert found["bare"] == ["ValueMap", sorted(VERDICTS)]
    polygons, cells = found["anomalies"], found["sample"]
    assert polygons["widgets"]["verdict"] == "ValueMap" and polygons["widgets"]["true_class"] == "UniqueValues"
    assert polygons["groups"][0] == list(POLYGON_REVIEW) and cells["groups"][0] == list(CELL_REVIEW)
    assert set(polygons["fixed"]) == set(polygons["widgets"]) - set(POLYGON_REVIEW)
    assert polygons["above"] == ["true_class"] and not cells["above"]  # a long title beside it would press the others
    assert (cells["widgets"]["misses"], cells["widgets"]["complete"]) == ("Range", "CheckBox")
    assert "verdict" in polygons["tip"] and not polygons["python"] and not cells["python"]
    assert polygons["defaults"]["reviewed"] == "now()" and "user_full_name" in polygons["defaults"]["reviewer"]
    assert polygons["saved"] and cells["saved"]
    assert (judged.overall.judged, judged.overall.real) == (4, 2) and judged.cells["misses"] == 2
    frame = geopandas.read_file(path, layer="anomalies")
    assert frame["reviewed"].notna().all() and frame["reviewer"].iloc[1] == "Ada"
    assert frame["reviewer"].iloc[0] not in (None, "", "Ada")


def test_a_form_is_well_formed_and_shows_each_column_once():
    columns = ["score_max", 'odd "name" & <more>', *POLYGON_REVIEW]
    tree = ET.fromstring(f"<qgis>{review_form(columns, POLYGON_REVIEW, class_names=['a & b'])}</qgis>")
    shown = [field.get("name") for field in tree.iter("attributeEditorField")]
    assert sorted(shown) == sorted(columns) and shown[: len(POLYGON_REVIEW)] == list(POLYGON_REVIEW)
    assert "a & b" in next(a.get("name") for a in tree.iter("alias") if a.get("field") == "true_class")
