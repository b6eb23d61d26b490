"""Laws of object figures of scenes: those of the maps that `predict` writes, in a table, in files and in pictures."""

import csv
import json
import math
import os
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.features
import scipy.ndimage
from affine import Affine

from geood.cli.app import evaluate as command
from geood.errors import OutputError
from geood.evaluation.objects import SHOWN, write_band
from geood.evaluation.scenes import evaluate_scenes
from geood.geo.grid import Grid
from geood.models.bundle import ModelBundle
from geood.models.calibration_record import CalibrationRecord
from geood.prediction.pipeline import predict
from support.bundles import make_bundle
from support.rasters import picture, write_raster

SIDE_M = 0.5  # of a pixel


@pytest.fixture
def labelled(tmp_path):
    """A folder of two labelled scenes with things of id 7, and a bundle's path."""
    make_bundle(tmp_path / "m.safetensors")
    truths = {}
    for number, name in enumerate(("a", "b")):
        ids = np.zeros((100, 120), np.uint8)
        ids[10:20, 10:22] = ids[50:54, 60:64] = ids[70:73, 5:8] = 7  # of 120, 16 and 9 px
        ids[:, 100:] = 255
        write_raster(tmp_path / "set" / f"{name}.tif", picture(*ids.shape, seed=number))
        write_raster(tmp_path / "set" / f"{name}_labels.tif", ids)
        truths[name] = np.where(ids == 7, 1, ids)
        truths[name][70:73, 5:8] = 255  # too small to count
    return tmp_path / "set", tmp_path / "m.safetensors", truths


def test_figures_are_those_of_the_polygons_that_predict_writes(tmp_path, labelled):
    """Where all ground is labelled the polygons are the same, and each is real or false by its pixels."""
    root, model, _ = labelled
    for name in ("a", "b"):
        path = root / f"{name}_labels.tif"
        with rasterio.open(path) as file:
            ids = file.read(1)
        write_raster(path, np.where(ids == 255, 0, np.where(np.indices(ids.shape)[0] >= 65, 0, ids)).astype(np.uint8))
    result = evaluate_scenes(root, ModelBundle.load(model))
    orders, false, found = [], 0, 0
    for name in ("a", "b"):
        [made] = predict([root / f"{name}.tif"], tmp_path / f"{name}.gpkg", bundle_path=model)
        frame = gpd.read_file(made.polygons, layer="anomalies")
        with rasterio.open(root / f"{name}_labels.tif") as file, rasterio.open(made.scores) as scores:
            truth, score, place = file.read(1) == 7, scores.read(1), file.transform
        masks = [rasterio.features.rasterize([shape], truth.shape, transform=place) > 0 for shape in frame.geometry]
        real = [truth[mask].mean() >= 0.25 for mask in masks]
        things, count = scipy.ndimage.label(truth)
        found += sum((score[things == i] > made.threshold).mean() >= 0.25 for i in range(1, count + 1))
        orders.append((frame, real))
        false += len(real) - sum(real)
        [row] = [row for row in result.scenes if row["scene"].endswith(f"{name}.tif")]
        assert row["polygons"] == len(frame) and row["false_polygons"] == len(real) - sum(real)
        assert row["km2"] == pytest.approx(truth.size * SIDE_M**2 / 1e6, rel=1e-2)  # on the ellipsoid
        for first in SHOWN:
            assert row[f"precision_{first}"] == np.mean(real[:first])
    [row] = [row for row in result.objects if (row["score"], row["at"]) == ("jsd", "fpr 0.01")]
    assert (row["false_polygons"], row["found"], row["things"]) == (false, found, 4)
    assert row["false_per_km2"] == pytest.approx(false / (2 * 100 * 120 * SIDE_M**2 / 1e6), rel=1e-2)


@pytest.mark.parametrize("resolution", [None, SIDE_M])
def test_the_least_area_of_a_polygon_is_that_of_predict_whether_the_model_knows_metres_or_not(tmp_path, resolution):
    bundle = make_bundle(tmp_path / "m.safetensors", predict={"min_area_m2": None})
    replace(bundle, resolution=resolution).save(tmp_path / "m.safetensors")
    write_raster(tmp_path / "a.tif", picture(100, 120))
    write_raster(tmp_path / "a_labels.tif", np.zeros((100, 120), np.uint8))
    [made] = predict([tmp_path / "a.tif"], tmp_path / "out", bundle=tmp_path / "m.safetensors", threshold=0.9)
    bundle = ModelBundle.load(tmp_path / "m.safetensors").with_settings(["score.fpr=0.001"])  # with that threshold
    [row] = evaluate_scenes(tmp_path, bundle).scenes
    assert row["threshold"] == 0.9 and row["polygons"] == made.anomalies > 0


@pytest.mark.parametrize("images", [1, 4])
def test_false_polygons_are_promised_as_by_predict_and_compared_with_those_that_were_counted(tmp_path, images):
    """For each scene by its size; with one image of calibration ground there is no interval."""
    bundle = make_bundle(tmp_path / "m.safetensors", predict={"min_area_m2": 2.25})
    record = CalibrationRecord(
        kind=bundle.config.score.kind,
        pixels=40_000,
        pixel_m=SIDE_M,
        intervals={},
        thresholds=(0.5, bundle.threshold),
        block_px=(5000,) * 8,
        block_image=tuple(i % images for i in range(8)),
        above=((500, 50),) * 8,
        least_px=(1, 8),
        polygons=((90, 60), (40, 15)),
        spread=((0.2, 0.1), (0.2, 0.1)),
    )
    replace(bundle, record=record, resolution=SIDE_M).save(tmp_path / "m.safetensors")
    for name, size in (("a", (100, 120)), ("b", (60, 80))):
        write_raster(tmp_path / "set" / f"{name}.tif", picture(*size, seed=len(name)))
        write_raster(tmp_path / "set" / f"{name}_labels.tif", np.zeros(size, np.uint8))
    result = evaluate_scenes(tmp_path / "set", ModelBundle.load(tmp_path / "m.safetensors"))
    inside = 0
    for row in result.scenes:
        [made] = predict([row["scene"]], tmp_path / "x.gpkg", bundle=tmp_path / "m.safetensors", overwrite=True)
        told = made.verdict
        assert row["false_per_km2"] == pytest.approx(told.polygons_per_km2, rel=1e-2)  # nothing here is an anomaly
        assert row["false_promised"] == told.false_per_km2 == 1500
        if images == 1:
            assert math.isnan(row["false_low"]) and math.isnan(row["false_high"]) and told.false_low is None
            continue
        assert (row["false_low"], row["false_high"]) == pytest.approx((told.false_low, told.false_high), rel=1e-2)
        inside += told.false_low <= told.polygons_per_km2 <= told.false_high
    [line] = [line for line in result.table().splitlines() if line.startswith("promised at")]
    assert line.startswith("promised at the default threshold: 1,500 false/km2")
    assert line.endswith(
        "false/km2" if images == 1 else f"; {inside} of 2 scenes within the 90 % interval for its size"
    )
    bare = evaluate_scenes(tmp_path / "set", replace(bundle, resolution=SIDE_M))
    assert math.isnan(bare.scenes[0]["false_promised"]) and "promised at" not in bare.table()


def test_what_is_not_labelled_and_what_is_too_small_does_not_count(labelled):
    root, model, truths = labelled
    bundle = ModelBundle.load(model)
    result = evaluate_scenes(root, bundle)
    assert len(result.things) == 4 and {thing["area_px"] for thing in result.things} == {120, 16}
    assert sorted(thing["area_m2"] for thing in result.things) == pytest.approx([4, 4, 30, 30], rel=1e-2)
    by_size = result.objects[0]["by_size"]["things"]
    assert by_size == [2, 2, 0, 0, 0]
    km2 = sum((truth != 255).sum() for truth in truths.values()) * SIDE_M**2 / 1e6
    assert sum(row["km2"] for row in result.scenes) == pytest.approx(km2, rel=1e-2)


def test_all_scores_are_counted_at_their_calibrated_thresholds(labelled):
    """Those of a temperature that are not the model's own were left out."""
    root, model, _ = labelled
    bundle = ModelBundle.load(model)
    thresholds = {kind: {"0.01": 0.1, "0.05": 0.0} for kind in bundle.scores}
    settings = bundle.config.score.model_copy(update={"kind": "max_logit", "temperature": 2.0, "fpr": 0.01})
    tempered = replace(bundle.with_score(settings), calibrated=settings, calibration=thresholds)
    rows = evaluate_scenes(root, tempered).objects
    at = {kind: [row["at"] for row in rows if row["score"] == kind] for kind in bundle.scores}
    assert "energy" in at and all(each[:2] == ["fpr 0.01", "fpr 0.05"] for each in at.values())


def test_all_scores_find_as_many_things_at_equal_recall(labelled):
    root, model, _ = labelled
    result = evaluate_scenes(root, ModelBundle.load(model))
    rows = [row for row in result.objects if row["at"] == "recall 0.5"]
    assert {row["score"] for row in rows} == set(ModelBundle.load(model).scores)
    assert all(row["recall"] >= 0.5 for row in rows)
    assert "false/km2" in result.table() and "recall 0.5" in result.table() and str(result) == result.table()


def test_a_folder_gets_figures_tables_and_pictures(tmp_path, labelled, capsys):
    root, model, _ = labelled
    out = tmp_path / "measured"
    command("scenes", root, model=model, out=out)
    assert {p.name for p in out.iterdir()} == {"results.json", "scenes.csv", "objects.csv", "pictures"}
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["a.png", "b.png"]
    figures = json.loads((out / "results.json").read_text())
    assert figures["ranking"]["polygons"] == sum(scene["polygons"] for scene in figures["scenes"])
    for name, rows in (("scenes.csv", 2), ("objects.csv", 4)):
        with (out / name).open(newline="") as file:
            assert len(list(csv.DictReader(file))) == rows
    assert str(out) in capsys.readouterr().out
    command("scenes", root, model=model, out=out, overwrite=True)
    command("scenes", root, model=model, out=tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["objects"] == figures["objects"]


@pytest.mark.skipif(os.name == "nt", reason="files have no limits there")
@pytest.mark.parametrize("room", [0.3, 0.999])
def test_a_disk_that_is_full_is_told(tmp_path, room):
    """A limit on the size of files is met where a full disk is: when GDAL closes the file, which raises nothing."""
    import resource

    array = np.random.default_rng(0).random((300, 300), np.float32)
    array[:9] = np.nan
    grid = Grid(300, 300, Affine.scale(2.0, -2.0), None)
    write_band(tmp_path / "a.tif", grid, array, nodata=math.nan, tags={"A": "b"})
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(1), array, equal_nan=True) and file.tags()["A"] == "b"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room * (tmp_path / "a.tif").stat().st_size), before[1]))
    try:
        with pytest.raises(OutputError, match="free space on that disk"):
            write_band(tmp_path / "b.tif", grid, array, nodata=math.nan, tags={"A": "b"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_too_many_pixels_have_no_object_figures(labelled, monkeypatch, caplog):
    root, model, _ = labelled
    monkeypatch.setattr("geood.evaluation.scenes.MOST_PX", 1000)
    result = evaluate_scenes(root, ModelBundle.load(model))
    assert result.objects == [] and result.things == [] and "too many to count" in caplog.text
    assert math.isfinite(result.headline()["AP"])
