"""The examples run: each as its first lines say, on a small scene."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from geood.prediction import predict
from support.rasters import picture, write_raster

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def place(tmp_path_factory, bundle_path):
    """A folder with a scene, its map and STAC items, the second of which leads nowhere."""
    folder = tmp_path_factory.mktemp("examples")
    scene = write_raster(folder / "scene.tif", picture(96, 128))
    predict([scene], folder / "anomalies.gpkg", bundle=bundle_path)
    for name, href in (("a", "scene.tif"), ("b", "none.tif")):
        (folder / f"{name}.json").write_text(json.dumps({"type": "Feature", "assets": {"image": {"href": href}}}))
    return folder


def run(folder, script, *arguments):
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / script), *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=os.environ | {"PYTHONPATH": path}
    )


def test_every_example_is_listed_and_run_here():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    here = Path(__file__).read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        ran = f'"{script.name}"' in here or script.name == "first_map.py"  # that in test_documentation
        assert f"`{script.name}" in listed and ran


def test_a_web_map_is_one_file(place, tmp_path):
    done = run(place, "web_map.py", place / "anomalies.gpkg", tmp_path / "map.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert "<path" in page and "rank 1: " in page and "http" not in page and (tmp_path / "map.geojson").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("open_scores.py", ["anomalies.tif"], "above 0.5"),
        ("score_array.py", ["MODEL"], "noise scores"),
        ("loader_to_xarray.py", ["MODEL"], "above the threshold"),
        ("dask_cluster.py", ["scene.tif", "MODEL", "cluster.tif"], "12,288 pixels"),
    ],
)
def test_an_example_runs(place, bundle_path, script, arguments, said):
    done = run(place, script, *(str(bundle_path) if a == "MODEL" else a for a in arguments))
    assert done.returncode == 0 and said in done.stdout, done.stderr


@pytest.mark.slow
def test_a_batch_goes_on_after_an_error(place, bundle_path, tmp_path):
    done = run(place, "stac_batch.py", bundle_path, tmp_path / "out", "b.json", "a.json")
    assert done.returncode == 1 and "none.tif" in done.stdout and "anomalies, budget" in done.stdout, done.stderr
    assert "done before" in run(place, "stac_batch.py", bundle_path, tmp_path / "out", "a.json").stdout
