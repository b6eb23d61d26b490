"""The day of an analyst, through the command line: train, predict, look, cut again, evaluate."""

import json
from pathlib import Path

import geopandas as gpd
import pytest
import rasterio

from geood.cli import _run
from geood.config import load_config
from geood.datasets.synthetic import make_world
from geood.demo import CONFIG, run_demo
from geood.errors import OutputError

SHORT = [
    "train.segmenter_steps=30",
    "train.flow_steps=4",
    "train.joint_steps=4",
    "train.validate_every=30",
    "data.crops=40",
    "data.validation_crops=4",
    "data.crop_px=96",
    "negatives.patch_max_px=48",
    "train.batch=4",
]


def short(monkeypatch=None):
    return [part for one in SHORT for part in ("--set", one)]


@pytest.fixture(scope="module")
def area(tmp_path_factory) -> Path:
    """A folder with a small world and the demo's config."""
    folder = tmp_path_factory.mktemp("area")
    make_world(folder / "world", seed=1, size_px=256, scenes=2)
    (folder / "area.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


def test_train_predict_polygonize_evaluate(area, monkeypatch, capsys):
    monkeypatch.chdir(area)
    assert _run(["train", "area.yaml", *short()], debug=True) == 0
    assert (area / "runs" / "area" / "model.safetensors").exists()
    assert _run(["predict", "world/test.tif", "--out", "anomalies.gpkg"], debug=True) == 0
    with rasterio.open("world/test.tif") as scene, rasterio.open("anomalies.tif") as scores:
        assert (scene.transform, scene.crs, scene.shape) == (scores.transform, scores.crs, scores.shape)
    columns = "score_max score_mean score_p95 class_name area_m2 area_px valid_fraction model geometry"
    assert set(gpd.read_file("anomalies.gpkg", layer="anomalies").columns) == set(columns.split())
    assert _run(["polygonize", "anomalies.tif", "--out", "again.gpkg", "--min-area", "4"], debug=True) == 0
    evaluate = ["evaluate", "scenes", "area.yaml", "--out", "metrics.json"]
    assert _run(evaluate, debug=True) == 0
    said = capsys.readouterr().out
    assert "AUROC" in said and "closed-set mIoU" in said
    figures = json.loads(Path("metrics.json").read_text())
    assert len(figures["rows"]) == 5 and 0 < figures["base_rate"] < 0.2
    assert _run(evaluate, debug=False) == 2  # metrics.json exists
    capsys.readouterr()


def test_the_demo_draws_and_lists_its_files(tmp_path, monkeypatch):
    import geood.demo as room

    quick = CONFIG.replace("crops: 600", "crops: 30").replace("validation_crops: 32", "validation_crops: 2")
    for stage in ("segmenter_steps: 300", "flow_steps: 400", "joint_steps: 300"):
        quick = quick.replace(stage, stage.split(":")[0] + ": 2")
    monkeypatch.setattr(room, "CONFIG", quick)
    monkeypatch.setattr(room, "make_world", lambda folder, seed: make_world(folder, seed=seed, size_px=256, scenes=2))
    result = run_demo(tmp_path / "demo")
    assert all(path.exists() for path, _ in result.files)
    assert (tmp_path / "demo" / "overview.png").stat().st_size > 50_000
    assert "AUROC" in result.table
    with pytest.raises(OutputError, match="exists already; add --overwrite"):
        run_demo(tmp_path / "demo")
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="give another --out"):
        run_demo(tmp_path / "mine", overwrite=True)


def test_the_demo_config_is_valid(tmp_path):
    (tmp_path / "demo.yaml").write_text(CONFIG, encoding="utf-8")
    assert load_config(tmp_path / "demo.yaml", SHORT).data.anomaly == [9]
