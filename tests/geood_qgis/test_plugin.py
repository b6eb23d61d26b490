"""The plugin in QGIS: its algorithms run geood, load what it wrote with its styles, and end as they should."""

import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
import typer
from rasterio.crs import CRS

from geood.cli.app import app
from geood.config.sections import PredictConfig
from geood.geo.grid import Grid
from geood.geo.qgis.styles import above_style, ramp_style
from support.qgis import ask_qgis
from support.rasters import HALF_METRE, picture, write_raster, write_scores

ROOT = Path(__file__).parent.parent.parent
# The program: `polygonize` is geood's own; `predict` copies outputs, or waits until it is interrupted; others fail.
PREDICT = """
import os, shutil, signal, sys, time
if sys.argv[1] == "--version":
    sys.exit(print("geood 0 (distribution geood-toolkit)"))
if sys.argv[1] == "audit" or "--fpr=0.1" in sys.argv:
    print("geood: " + sys.argv[-1] + ": not so,\\nbut otherwise")
    sys.exit(3)
if sys.argv[1] != "predict":
    os.execv({python!r}, [{python!r}, "-m", "geood", *sys.argv[1:]])
print("called with", sys.argv[2:], flush=True)
if "--resume" not in sys.argv:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    print("scene.tif 1/4, 1 s, 3 s left  ", flush=True)
    time.sleep(60)
out = next(a[len("--out="):] for a in sys.argv if a.startswith("--out="))
for made in ("a.gpkg", "a.tif", "a.qml", "a.above.qml"):
    shutil.copy(os.path.join({folder!r}, made), out[:-len(".gpkg")] + made[1:])
print("scores     " + out[:-len(".gpkg")] + ".tif")
"""
SCRIPT = """
folder, root, program = sys.argv[1:4]
sys.path[:0] = [root, "/usr/share/qgis/python/plugins"]
import geood_qgis
from processing.core.Processing import Processing
from processing.gui.Postprocessing import handleAlgorithmResults
Processing.initialize()
plugin = geood_qgis.classFactory(None)
plugin.initProcessing()
registry = QgsApplication.processingRegistry()
found = {"ids": sorted(a.id() for a in registry.providerById("geood").algorithms())}

class Feedback(QgsProcessingFeedback):
    def __init__(self, cancel_at=1000):
        super().__init__()
        self.seen, self.errors, self.cancel_at = [], [], cancel_at
        self.progressChanged.connect(self.moved)
    def moved(self, percent):
        self.seen.append(percent)
        if percent >= self.cancel_at:
            self.cancel()
    def reportError(self, text, fatalError=False):
        self.errors.append(text)

def run(name, parameters, feedback=None):
    algorithm, feedback = registry.algorithmById("geood:" + name).create(), feedback or Feedback()
    project, context = QgsProject.instance(), QgsProcessingContext()
    project.clear()
    context.setProject(project)
    for output in ("OUTPUT",):
        if output in parameters:
            parameters[output] = QgsProcessingOutputLayerDefinition(parameters[output], project)
    results, fine = algorithm.run(parameters, context, feedback)
    if fine:
        handleAlgorithmResults(algorithm, context, feedback, False)
    layers = []
    for node in project.layerTreeRoot().findLayers():
        layer = node.layer()
        layers.append([layer.name(), layer.renderer().type(), sorted(layer.styleManager().styles())])
    return {"fine": fine, "results": results, "layers": layers, "errors": feedback.errors, "seen": feedback.seen}

def setting(value):
    QgsSettings().setValue("Processing/Configuration/GEOOD_PROGRAM", value)

scores, scene = folder + "/a.tif", folder + "/scene.tif"
model = folder + "/model.safetensors"
setting("/nowhere")
found["missing"] = run("plan", {"SCENE": scene, "MODEL": model})
setting(program)
found["polygonize"] = run("polygonize", {"SCORES": scores, "TOP": 1, "OUTPUT": folder + "/a.gpkg"})
found["refused"] = run("polygonize", {"SCORES": scores, "FPR": 0.1, "THRESHOLD": 0.5, "OUTPUT": folder + "/n.gpkg"})
box = "500010,500020,4649700,4649710 [EPSG:32633]"
given = {"SCENES": [scene], "MODEL": model, "EXTENT": box, "SETTINGS": "score.kind=energy a.b='1 2'"}
found["cancelled"] = run("predict", {**given, "OUTPUT": folder + "/p.gpkg"}, Feedback(cancel_at=25))
found["resumed"] = run("predict", {**given, "RESUME": True, "OUTPUT": folder + "/p.gpkg"})
found["audit"] = run("audit", {"REVIEWED": [folder + "/a.gpkg|layername=anomalies"]})
plugin.unload()
found["left"] = registry.providerById("geood") is not None
"""


@pytest.mark.slow
def test_algorithms_run_the_program_and_load_what_it_wrote_with_its_styles(tmp_path):
    grid = Grid(60, 80, HALF_METRE, CRS.from_epsg(32633))
    scores = np.full((60, 80), 0.1, np.float32)
    scores[20:40, 30:50], scores[5:9, 5:9] = 0.9, 0.8
    tags = {"SCENE": "scene.tif", "THRESHOLD": "0.5", "CLASSES": '{"0": "land"}'}
    tags["PREDICT"] = PredictConfig(sample_cells=0).model_dump_json()
    write_scores(tmp_path / "a.tif", grid, scores, **{f"GEOOD_{name}": text for name, text in tags.items()})
    (tmp_path / "a.qml").write_text(ramp_style(0.5))
    (tmp_path / "a.above.qml").write_text(above_style(0.5))
    (tmp_path / "model.safetensors").write_text("never read")
    write_raster(tmp_path / "scene.tif", picture(60, 80))
    starter = tmp_path / "env" / "bin" / "geood"
    starter.parent.mkdir(parents=True)
    code = PREDICT.format(python=sys.executable, folder=str(tmp_path))
    starter.write_text(f"#!{sys.executable}\nimport os\nos.environ['PYTHONPATH'] = {str(ROOT)!r}\n{code}")
    starter.chmod(0o755)
    found = ask_qgis(SCRIPT, tmp_path, ROOT, starter.parent.parent, folder=tmp_path, PYTHONPATH="/leads/astray")
    assert found["ids"] == ["geood:audit", "geood:plan", "geood:polygonize", "geood:predict"] and not found["left"]
    missing, refused = found["missing"], found["refused"]
    assert not missing["fine"] and "geood doctor" in missing["errors"][-1] and "/nowhere" in missing["errors"][-1]
    assert not refused["fine"] and refused["errors"][-1] == f"geood: {tmp_path}/a.tif: not so,\nbut otherwise"
    made = found["polygonize"]
    assert made["fine"] and made["layers"] == [["a anomalies", "singleSymbol", ["default"]]], made
    assert made["results"]["OUTPUT"] == str(tmp_path / "a.gpkg")
    cancelled, resumed = found["cancelled"], found["resumed"]
    assert not cancelled["fine"] and "Resume ticked" in cancelled["errors"][-1] and 25 in cancelled["seen"]
    assert resumed["fine"] and resumed["results"]["SCORES"] == str(tmp_path / "p.tif"), resumed
    assert [name for name, *_ in resumed["layers"]] == ["p anomalies", "p scores"]
    assert resumed["layers"][1][1:] == ["singlebandpseudocolor", ["above the threshold", "whole range"]]
    audit = found["audit"]  # told of the file, not of its layer
    assert not audit["fine"] and audit["errors"][-1] == f"geood: {tmp_path}/a.gpkg: not so,\nbut otherwise"


# A program that keeps how it was called; `predict` makes its output, `polygonize` fails.
KEEPING = """#!/bin/sh
[ "$1" = --version ] && echo "geood 0 (distribution geood-toolkit)" && exit
for each; do printf '%s\\n' "$each" >> {calls}; done
echo >> {calls}
case $1 in
    plan) echo "tiles      4";;
    predict) echo "scene.tif 2/4, 1 s, 1 s left  "; echo "scores     {folder}/out.tif";;
    polygonize) echo "geood: not so"; exit 3;;
esac
"""
CALLS = """
folder, root, program = sys.argv[1:4]
sys.path.insert(0, root)
import geood_qgis
plugin = geood_qgis.classFactory(None)
plugin.initProcessing()
registry = QgsApplication.processingRegistry()
QgsSettings().setValue("Processing/Configuration/GEOOD_PROGRAM", program)
reviewed, area = folder + "/a.gpkg|layername=reviewed", folder + "/a.gpkg|layername=reviewed"
scene, cut = folder + "/scene.tif", {"THRESHOLD": 0.5, "FPR": 0.01, "FALSE_PER_KM2": 2.5, "TOP": 7}
given = {
    "plan": {"SCENE": scene, "MODEL": "m.safetensors", "MAX_RAM": "2GB"},
    "predict": {"SCENES": [scene], "MODEL": "m.safetensors", **cut, "AOI": area, "EXTENT": "0,10,20,30 [EPSG:32633]",
                "MOSAIC": True, "BANDS": "red=1", "MAX_RAM": "2GB", "SETTINGS": "a.b=1 c.d='2 3'", "RESUME": True,
                "OVERWRITE": True, "OUTPUT": folder + "/out.gpkg"},
    "polygonize": {"SCORES": scene, **cut, "MIN_AREA": 3.5, "SIMPLIFY": 1.5, "OVERWRITE": True,
                   "OUTPUT": folder + "/cut.gpkg"},
    "audit": {"REVIEWED": [reviewed], "SCORES": scene, "FALSE_PER_KM2": 5},
}
found = {}
for name, parameters in given.items():
    algorithm = registry.algorithmById("geood:" + name).create()
    names = [each.name() for each in algorithm.parameterDefinitions()]
    context, feedback = QgsProcessingContext(), QgsProcessingFeedback()
    context.setProject(QgsProject.instance())
    checked, why = algorithm.checkParameterValues(parameters, context)
    results, fine = algorithm.run(parameters, context, feedback)
    found[name] = {"names": names, "given": list(parameters), "checked": checked, "why": why, "fine": fine,
                   "results": results, "log": feedback.textLog(), "progress": feedback.progress()}
"""


def test_algorithms_call_the_program_with_options_that_its_verbs_have(tmp_path):
    """All parameters are given, so all options are seen."""
    calls = tmp_path / "calls"
    (tmp_path / "geood").write_text(KEEPING.format(calls=calls, folder=tmp_path))
    (tmp_path / "geood").chmod(0o755)
    write_raster(tmp_path / "scene.tif", picture(60, 80))
    area = geopandas.GeoDataFrame({"verdict": ["real"]}, geometry=[shapely.box(0, 0, 9, 9)], crs=32633)
    area.to_file(tmp_path / "a.gpkg", layer="reviewed")
    found = ask_qgis(CALLS, tmp_path, ROOT, tmp_path / "geood", folder=tmp_path)
    verbs = typer.main.get_command(app).commands
    told = dict(zip(found, calls.read_text().split("\n\n"), strict=False))
    for name, seen in found.items():
        assert seen["checked"] and sorted(seen["names"]) == sorted(seen["given"]), (name, seen)
        verb, *arguments = told[name].splitlines()
        known = {option for parameter in verbs[verb].params for option in parameter.opts}
        used = {argument.partition("=")[0] for argument in arguments[: arguments.index("--")]}
        assert verb == name and used <= known, used - known
    scene = f"{tmp_path}/scene.tif"
    assert told["plan"].splitlines() == ["plan", "--model=m.safetensors", "--max-ram=2GB", "--", scene]
    predict = told["predict"].splitlines()
    assert {"--top=7", "--fpr=0.01", "--bbox=0.0,20.0,10.0,30.0", "--set=a.b=1", "--set=c.d=2 3"} <= set(predict)
    assert predict[-2:] == ["--", scene] and f"--out={tmp_path}/out.gpkg" in predict
    assert told["audit"].splitlines()[-2:] == ["--", f"{tmp_path}/a.gpkg"]
    assert found["plan"]["results"] == {"PLAN": "tiles      4"} and found["predict"]["progress"] == 50
    assert found["predict"]["results"] == {"OUTPUT": f"{tmp_path}/out.gpkg", "SCORES": f"{tmp_path}/out.tif"}
    assert [name for name, seen in found.items() if not seen["fine"]] == ["polygonize"]
    assert "geood: not so" in found["polygonize"]["log"]
