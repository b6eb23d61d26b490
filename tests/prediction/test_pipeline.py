"""The promises of prediction: same answer, same grid, no holes, whole or absent; and every bad input refused."""

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import psutil
import pytest
import rasterio
import torch
from affine import Affine
from distributed import LocalCluster
from PIL import Image
from rasterio.crs import CRS
from rasterio.windows import Window as RasterioWindow
from shapely.geometry import box

import geood
from geood.config import SCORES, scores_from
from geood.errors import BundleError, ConfigError, DataError, GeoodError, OutputError, TilesFailedError
from geood.geo.gdal import CACHE_BYTES
from geood.geo.mosaic import write_mosaic
from geood.geo.opener import STRIPS_PX
from geood.geo.paths import ScenePath
from geood.geo.qgis import styles
from geood.geo.scene import Scene
from geood.models.bundle import ModelBundle
from geood.models.bundle_header import Reach
from geood.polygons import rasters_of
from geood.prediction import worker
from geood.prediction.budget import budget, config_budget
from geood.prediction.estimate import plan_run
from geood.prediction.job import tiles_of
from geood.prediction.pipeline import predict
from geood.prediction.plan import SceneOptions, plan_scene
from geood.prediction.polygonizing import polygonize
from geood.prediction.worker import WorkerState
from support.bundles import make_bundle
from support.cpu import slow
from support.rasters import HALF_METRE, picture, write_raster


@pytest.fixture
def scene(tmp_path):
    """A scene of 150 x 210 pixels with a hole of nodata."""
    array = picture(150, 210)
    array[:, 40:90, 100:170] = 0
    return write_raster(tmp_path / "in" / "scene.tif", array, nodata=0)


def digest(*paths):
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def test_scores_of_a_scene_of_one_tile_are_those_of_the_plain_image(tmp_path, bundle_path, bundle):
    """Nothing is mirrored around it."""
    array = picture(64, 64)
    path = write_raster(tmp_path / "scene.tif", array)
    predict([path], tmp_path / "out.tif", bundle_path=bundle_path, settings=["predict.precision=float32"])
    image = bundle.bands.scale(array, np.ones(array.shape[1:], bool))
    whole = bundle.score(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(read(tmp_path / "out.tif"), whole, atol=5e-3 if torch.cuda.is_available() else 1e-5)


def test_every_valid_pixel_is_scored_and_no_other(tmp_path, bundle_path, scene):
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=bundle_path)
    valid = read(scene) > 0
    assert (np.isfinite(read(made.scores)) == valid).all()
    assert ((read(made.classes) != 255) == valid).all()
    assert made.valid_pixels == valid.sum()


def test_the_map_knows_its_statistics_without_being_read_again(tmp_path, bundle_path, scene):
    [made] = predict([scene], tmp_path / "out.tif", bundle_path=bundle_path)
    with rasterio.open(made.scores) as file:
        scores, said = file.read(1), {k.removeprefix("STATISTICS_"): float(v) for k, v in file.tags(1).items()}
    known = scores[np.isfinite(scores)].astype(np.float64)
    figures = {"MINIMUM": known.min(), "MAXIMUM": known.max(), "MEAN": known.mean(), "STDDEV": known.std()}
    assert said == pytest.approx(figures | {"VALID_PERCENT": 100 * known.size / scores.size}, rel=1e-3)


@pytest.mark.usefixtures("forked_workers")
def test_the_answer_is_the_same_for_threads_processes_and_a_scheduler(tmp_path, bundle_path, scene):
    def outputs(name, **how):
        [made] = predict([scene], tmp_path / name / "out.gpkg", bundle_path=bundle_path, **how)
        frame = gpd.read_file(made.polygons, layer="anomalies")
        return digest(made.scores, made.classes), frame.to_json()

    for name in ("threads", "processes", "scheduler"):
        (tmp_path / name).mkdir()
    threads = outputs("threads")
    assert outputs("processes", workers=1) == threads
    apart = {"processes": False, "protocol": "tcp://"}  # a worker in this process, to which everything is sent yet
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", **apart) as cluster:
        assert outputs("scheduler", scheduler=cluster.scheduler_address) == threads


ROTATED = Affine.translation(500_000, 4_649_000) @ Affine.rotation(25) @ Affine.scale(0.5, -0.5)
CUSTOM = CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=20 +x_0=1234.5 +y_0=0 +ellps=bessel +units=m")


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32633", ROTATED),
        ("EPSG:4326", Affine(1e-6, 0, 15.1, 0, -1e-6, 42.1)),
        (None, Affine.identity()),
        *slow(
            ("EPSG:32633", HALF_METRE),
            ("EPSG:32633", Affine(0.5, 0, 500_000, 0, 0.5, 4_649_000)),
            ("EPSG:2263", Affine(1.5, 0, 980_000, 0, -1.5, 190_000)),
            (CUSTOM, HALF_METRE),
        ),
    ],
    ids=["rotated", "degrees", "no CRS", "north-up", "south-up", "feet", "custom"],
)
def test_the_score_raster_has_the_grid_of_the_scene(tmp_path, bundle_path, crs, transform):
    path = write_raster(tmp_path / "scene.tif", picture(70, 45), crs=crs, transform=transform)
    [made] = predict([path], tmp_path / "out.gpkg", bundle_path=bundle_path, threshold=0.3)
    with rasterio.open(path) as a, rasterio.open(made.scores) as b:
        assert (a.width, a.height, a.transform, a.crs) == (b.width, b.height, b.transform, b.crs)
        bounds = a.bounds
    frame = gpd.read_file(made.polygons, layer="anomalies")
    assert len(frame) == made.anomalies > 0
    if crs is not None and transform is not ROTATED:
        low, high = sorted((bounds.bottom, bounds.top))
        xmin, ymin, xmax, ymax = frame.total_bounds
        assert bounds.left - 1e-9 <= xmin < xmax <= bounds.right + 1e-9 and low - 1e-9 <= ymin < ymax <= high + 1e-9


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (33, 2), (65, 64)])
def test_any_size_is_covered(tmp_path, bundle_path, height, width):
    path = write_raster(tmp_path / "scene.tif", picture(height, width))
    predict([path], tmp_path / "out.tif", bundle_path=bundle_path, settings=["predict.tile_px=64"])
    scores = read(tmp_path / "out.tif")
    assert scores.shape == (height, width) and np.isfinite(scores).all()


def test_a_scene_of_nothing_gives_a_valid_empty_map(tmp_path, bundle_path):
    path = write_raster(tmp_path / "scene.tif", np.zeros((3, 80, 80), "uint8"), nodata=0)
    [made] = predict([path], tmp_path / "out.gpkg", bundle_path=bundle_path)
    assert np.isnan(read(made.scores)).all() and made.anomalies == made.valid_pixels == 0
    frame = gpd.read_file(made.polygons, layer="anomalies")
    assert len(frame) == 0 and {"score_max", "area_m2", "class_name"} <= set(frame.columns)


def test_invalid_pixels_hardly_touch_their_neighbours(tmp_path, bundle_path):
    array = picture(96, 96).astype("float32")
    holed = array.copy()
    holed[:, 10, 10] = np.nan
    paths = [write_raster(tmp_path / f"{n}.tif", a) for n, a in (("full", array), ("holed", holed))]
    for path in paths:
        predict([path], tmp_path / f"{path.stem}_out.tif", bundle_path=bundle_path)
    full, with_hole = (read(tmp_path / f"{p.stem}_out.tif") for p in paths)
    assert np.isnan(with_hole[10, 10]) and np.isfinite(with_hole).sum() == 96 * 96 - 1
    gap = np.abs(full - with_hole)[np.isfinite(with_hole)]
    assert gap.max() < 0.5 and np.median(gap) < 0.02


@pytest.mark.parametrize(
    ("bands", "dtype", "high"), [(4, "uint16", 60_000), (5, "float32", 3), *slow((1, "uint8", 255), (2, "int16", 9000))]
)
def test_bands_and_types(tmp_path, bands, dtype, high):
    make_bundle(tmp_path / "m.safetensors", bands=bands, high=float(high))
    options = {"photometric": "minisblack"} if bands == 4 else {}
    path = write_raster(tmp_path / "s.tif", picture(64, 64, bands=bands, dtype=dtype, high=high), **options)
    predict([path], tmp_path / "out.tif", bundle_path=tmp_path / "m.safetensors")
    assert read(tmp_path / "out.tif").std() > 0


def test_several_scenes_share_a_file_or_have_one_each(tmp_path, bundle_path):
    scenes = [write_raster(tmp_path / "in" / f"{n}.tif", picture(64, 64, seed=i)) for i, n in enumerate("ab")]
    shared = predict(scenes, tmp_path / "all.gpkg", bundle_path=bundle_path, threshold=0.3)
    frame = gpd.read_file(tmp_path / "all.gpkg", layer="anomalies")
    assert set(frame["scene"]) == {"a.tif", "b.tif"} and len(frame) == sum(p.anomalies for p in shared)
    assert (tmp_path / "all_a.tif").exists() and (tmp_path / "all_b.tif").exists()
    apart = predict(scenes, tmp_path / "each", bundle_path=bundle_path, threshold=0.3)
    assert [p.polygons.name for p in apart] == ["a.gpkg", "b.gpkg"]
    assert sum(len(gpd.read_file(p.polygons, layer="anomalies")) for p in apart) == len(frame)
    assert digest(apart[0].scores) == digest(shared[0].scores)


def test_rasters_of_scenes_that_share_polygons_are_found_by_the_name_that_these_tell(tmp_path, bundle_path):
    """Also of a scene in an archive, which has the name of the file in it."""
    inner, plain = (write_raster(tmp_path / "in" / f"{n}.tif", picture(64, 64, seed=i)) for i, n in enumerate("ab"))
    with zipfile.ZipFile(tmp_path / "in" / "z.zip", "w") as archive:
        archive.write(inner, "a.tif")
    made = predict([tmp_path / "in" / "z.zip", plain], tmp_path / "all.gpkg", bundle_path=bundle_path, threshold=0.3)
    assert rasters_of(tmp_path / "all.gpkg") == [one.scores for one in made]
    scenes = [tmp_path / "in" / "z.zip", inner]
    refused(
        ConfigError,
        r"z\.zip and .*a\.tif: outputs .* same name, x_a\.tif",
        scenes,
        tmp_path / "x.gpkg",
        bundle_path=bundle_path,
    )


def test_polygons_can_be_cut_again_without_the_model(tmp_path, bundle_path, scene, monkeypatch):
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=bundle_path, threshold=0.4)
    again = polygonize(made.scores, tmp_path / "again.gpkg")
    assert again == made.anomalies
    first, second = (
        gpd.read_file(made.polygons, layer="anomalies"),
        gpd.read_file(tmp_path / "again.gpkg", layer="anomalies"),
    )
    assert first.equals(second)
    assert polygonize(made.scores, tmp_path / "none.geojson", threshold=1.0) == 0
    assert polygonize(made.scores, tmp_path / "large.fgb", min_area_m2=1e9) == 0

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("geood.prediction.polygonizing.write_cut", stopped)  # the last that is added to the file
    with pytest.raises(KeyboardInterrupt):
        polygonize(made.scores, tmp_path / "half.gpkg")
    assert not [*tmp_path.glob("*half*")]


def test_evidence_is_kept_where_a_polygon_of_a_calibrated_threshold_may_be(tmp_path, bundle_path, bundle, scene):
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=bundle_path, threshold=0.6)
    with rasterio.open(made.classes) as file:
        classes, runner, margin, signal = file.read()
        assert file.descriptions == ("class", "runner-up", "margin", "signal")
    score = read(made.scores)
    kept = score > min(bundle.thresholds.values())
    assert kept.any() and ((runner != 255) == kept).all() and ((margin != 255) == kept).all()
    assert (signal == 255).all() and (runner != classes)[kept].all() and runner[kept].max() < 3
    frame = gpd.read_file(made.polygons, layer="anomalies", fid_as_index=True)
    assert frame["rank"].tolist() == frame.index.tolist() == [*range(1, len(frame) + 1)]
    names = set(bundle.class_names.values())
    assert set(frame.runner_up) <= names and (frame.runner_up != frame.class_name).all()
    assert frame.margin.between(0, 1).all() and frame.on_edge.between(0, 1).all() and frame.signal.isna().all()
    assert (frame.p_value <= 0.05).all() and np.allclose(frame.threshold_excess, frame.score_mean - 0.6)


def test_without_evidence_columns_are_empty_and_the_order_is_the_same(tmp_path, bundle_path, scene):
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=bundle_path, threshold=0.6)
    with rasterio.open(made.classes) as file:
        classes, tags, profile = file.read(1), file.tags(), file.profile
    made.classes.unlink()
    with rasterio.open(made.classes, "w", **profile | {"count": 1, "driver": "GTiff"}) as file:
        file.write(classes, 1)
        file.update_tags(**{name: value for name, value in tags.items() if name.startswith("GEOOD_")})
    polygonize(made.scores, tmp_path / "one.gpkg")
    made.classes.unlink()
    polygonize(made.scores, tmp_path / "none.gpkg")
    whole, one, none = (
        gpd.read_file(path, layer="anomalies")
        for path in (made.polygons, tmp_path / "one.gpkg", tmp_path / "none.gpkg")
    )
    evidence = ["runner_up", "margin", "signal"]
    assert one[evidence].isna().all().all() and one.drop(columns=evidence).equals(whole.drop(columns=evidence))
    evidence += ["class_name", "on_edge"]
    assert none[evidence].isna().all().all() and none.drop(columns=evidence).equals(whole.drop(columns=evidence))


@pytest.mark.parametrize("suffix", [".geojson", ".parquet", *slow(".gpkg", ".fgb")])
def test_polygon_formats_agree(tmp_path, bundle_path, scene, suffix):
    [made] = predict([scene], tmp_path / f"out{suffix}", bundle_path=bundle_path, threshold=0.5)
    frame = gpd.read_parquet(made.polygons) if suffix == ".parquet" else gpd.read_file(made.polygons, layer="anomalies")
    assert len(frame) == made.anomalies
    assert frame.crs.to_epsg() == (4326 if suffix == ".geojson" else 32633)


def test_scores_open_as_an_array(tmp_path, bundle_path, scene):
    predict([scene], tmp_path / "out.tif", bundle_path=bundle_path)
    array = geood.open_scores(tmp_path / "out.tif")
    assert array.dims == ("y", "x") and array.shape == (150, 210) and array.chunks is not None
    assert array.rio.crs.to_epsg() == 32633
    assert float(array.x[0]) == pytest.approx(500_000.5) and float(array.y[0]) == pytest.approx(4_649_776.5)
    np.testing.assert_array_equal(array.values, read(tmp_path / "out.tif"))


def test_the_map_tells_how_it_was_made(tmp_path, scene):
    bundle = make_bundle(tmp_path / "m.safetensors", score={"kind": "entropy", "smooth_px": 3, "smooth_contrast": 0.2})
    predict([scene], tmp_path / "out.tif", bundle_path=tmp_path / "m.safetensors", threshold=0.25)
    told = geood.open_scores(tmp_path / "out.tif").attrs
    assert told["GEOOD_SCENE"] == scene.name and told["GEOOD_MODEL"] == bundle.identity
    assert told["GEOOD_SCORE"] == "entropy" and float(told["GEOOD_THRESHOLD"]) == 0.25
    assert (int(told["GEOOD_SMOOTH_PX"]), float(told["GEOOD_SMOOTH_CONTRAST"])) == (3, 0.2)


# Bad input: one clear error, nothing left behind, nothing replaced.


def refused(kind, match, scenes, out, **options):
    """`predict` raises, and the folder of `out` is as it was."""
    folder = out.parent
    before = contents(folder)
    with pytest.raises(kind, match=match) as error:
        predict(scenes, out, **options)
    assert contents(folder) == before
    return str(error.value)


def contents(folder):
    """Everything in a folder, with the bytes of files; None if there is no such folder."""
    return {p: p.is_file() and p.read_bytes() for p in folder.rglob("*")} if folder.is_dir() else None


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "x.gpkg"


def test_a_missing_scene(tmp_path, bundle_path, scene, out):
    refused(
        DataError, "no such file; did you mean scene.tif", [scene.with_name("scen.tif")], out, bundle_path=bundle_path
    )


def test_a_file_that_is_no_raster(tmp_path, bundle_path, out):
    path = tmp_path / "notes.tif"
    path.write_text("not a raster")
    refused(DataError, "notes.tif.*cannot be read as a raster", [path], out, bundle_path=bundle_path)


def test_a_truncated_scene_is_mapped_where_it_is_whole_and_the_rest_is_listed(tmp_path, bundle_path, out):
    how = {"bundle_path": bundle_path, "settings": ["predict.tile_px=64"]}
    path = write_raster(tmp_path / "s.tif", picture(300, 300), tiled=True, blockxsize=64, blockysize=64)
    predict([path], tmp_path / "whole.tif", **how)
    path.write_bytes(path.read_bytes()[:150_000])
    with pytest.raises(TilesFailedError, match=r"s\.tif: \d+ tiles could not be scored, the first at row") as error:
        predict([path], out, **how)
    [made] = error.value.made
    got, wanted, failed = read(made.scores), read(tmp_path / "whole.tif"), np.zeros((300, 300), bool)
    for window in made.failed_tiles:
        failed[window.slices] = True
    assert 0 < failed.mean() < 1
    assert np.isnan(got[failed]).all()
    np.testing.assert_array_equal(got[~failed], wanted[~failed])
    layer = gpd.read_file(made.polygons, layer="failed_tiles")
    assert len(layer) == len(made.failed_tiles)
    assert layer.area.sum() == pytest.approx(failed.sum() * 0.25)
    with rasterio.open(made.scores) as file:
        assert len(json.loads(file.tags()["GEOOD_FAILED_TILES"])) == len(layer)
    polygonize(made.scores, tmp_path / "again.gpkg")
    assert len(gpd.read_file(tmp_path / "again.gpkg", layer="failed_tiles")) == len(layer)


def test_a_scene_of_which_nothing_can_be_read(tmp_path, bundle_path, out):
    path = write_raster(tmp_path / "s.tif", picture(300, 300), tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[:1200])
    refused(DataError, "s.tif", [path], out, bundle_path=bundle_path)


def test_a_scene_with_other_bands(tmp_path, bundle_path, out):
    path = write_raster(tmp_path / "s.tif", picture(64, 64, bands=5))
    refused(DataError, "has 5 bands .* trained on scenes with 3", [path], out, bundle_path=bundle_path)


def test_a_bundle_that_is_none(tmp_path, scene, out):
    refused(BundleError, "not a readable safetensors", [scene], out, bundle_path=scene)


def test_an_output_that_exists_is_kept_until_overwritten(tmp_path, bundle_path, scene, out):
    out.write_text("precious")
    refused(OutputError, "exists", [scene], out, bundle_path=bundle_path)
    predict([scene], out, bundle_path=bundle_path, overwrite=True)
    assert gpd.read_file(out, layer="anomalies") is not None


def test_a_raster_beside_the_polygons_is_not_replaced_either(bundle_path, scene, out):
    out.with_suffix(".tif").write_text("precious")
    refused(OutputError, r"x\.tif.*exists", [scene], out, bundle_path=bundle_path)


def test_the_scene_itself_is_never_replaced(bundle_path, scene):
    before = scene.read_bytes()
    for name in ("scene.gpkg", "scene.tif"):
        with pytest.raises(OutputError, match="replace the scene itself"):
            predict([scene], scene.with_name(name), bundle_path=bundle_path, overwrite=True)
    assert scene.read_bytes() == before and [p.name for p in scene.parent.iterdir()] == ["scene.tif"]


def test_nothing_that_is_read_is_ever_replaced(tmp_path, bundle_path, scene):
    tiles = tmp_path / "tiles"
    for name in ("a.tif", "b.tif"):
        write_raster(tiles / name, picture(64, 64))
    vrt = write_mosaic([str(scene)], tmp_path / "view.vrt")
    gpd.GeoSeries([box(*rasterio.open(scene).bounds)], crs="EPSG:32633").to_file(tmp_path / "area.gpkg")
    os.link(scene, tmp_path / "link.tif")
    before = {p: p.read_bytes() for p in (*tiles.iterdir(), scene, tmp_path / "area.gpkg")}
    for scenes, out, how in (
        ([tiles], tiles / "a.gpkg", {"mosaic": True}),
        ([vrt], scene, {}),
        ([scene], tmp_path / "link.tif", {}),
        ([scene], tmp_path / "area.gpkg", {"options": SceneOptions(area=tmp_path / "area.gpkg")}),
    ):
        with pytest.raises(OutputError, match="replace the scene itself"):
            predict(scenes, out, bundle_path=bundle_path, overwrite=True, **how)
    assert {p: p.read_bytes() for p in before} == before


def test_a_missing_output_folder(tmp_path, bundle_path, scene):
    refused(OutputError, "folder", [scene], tmp_path / "nowhere" / "x.gpkg", bundle_path=bundle_path)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_be_written(bundle_path, scene):
    with pytest.raises(OutputError, match="writ"):
        predict([scene], "/proc/x.gpkg", bundle_path=bundle_path)


@pytest.mark.parametrize("name", ["x.shp", "x.png", "x.v1"])
def test_an_unknown_ending(bundle_path, scene, out, name):
    refused(ConfigError, r"\.gpkg", [scene], out.with_name(name), bundle_path=bundle_path)


def test_a_scheduler_that_does_not_answer(bundle_path, scene, out, monkeypatch):
    monkeypatch.setattr("geood.prediction.cluster.ANSWER_S", 1)
    refused(ConfigError, "no Dask scheduler", [scene], out, bundle_path=bundle_path, scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize("small_disk", ["400k"], indirect=True)
def test_a_full_disk(tmp_path, bundle_path, small_disk):
    path = write_raster(tmp_path / "s.tif", np.random.default_rng(0).integers(1, 255, (3, 500, 500), "uint8"))
    refused(OutputError, "disk.*free|free.*disk", [path], small_disk / "x.gpkg", bundle_path=bundle_path)


def test_the_model_is_loaded_once_for_each_process(tmp_path, bundle_path, scene, monkeypatch):
    loads = []
    load = ModelBundle.load.__func__
    monkeypatch.setattr(
        ModelBundle, "load", classmethod(lambda cls, path, **keys: loads.append(path) or load(cls, path, **keys))
    )
    predict([scene], tmp_path / "a.tif", bundle_path=bundle_path)
    assert len(loads) == 1 or torch.cuda.is_available()


@pytest.mark.skipif("GEOOD_DATA" not in os.environ, reason="GEOOD_DATA does not name a folder of odd rasters")
def test_a_folder_of_odd_rasters_gives_maps_or_clear_errors(tmp_path):
    files = [p for p in sorted((Path(os.environ["GEOOD_DATA"]) / "rasters").iterdir()) if p.suffix in (".tif", ".tiff")]
    bundles, mapped = {}, 0
    for i, path in enumerate(files):
        out = tmp_path / f"{i}" / "x.gpkg"
        out.parent.mkdir()
        try:
            with Scene.open(path) as scene:
                count = scene.count
            if count not in bundles:
                bundles[count] = tmp_path / f"{count}.safetensors"
                make_bundle(bundles[count], bands=count, predict={"tile_px": 512, "halo_px": 32})
            [made] = predict([path], out, bundle_path=bundles[count])
        except GeoodError as error:
            assert str(path) in str(error) and not list(out.parent.iterdir())
            continue
        with rasterio.open(path) as a, rasterio.open(made.scores) as b:
            assert (a.shape, a.transform, a.crs) == (b.shape, b.transform, b.crs), path
        assert np.isfinite(read(made.scores)).sum() == made.valid_pixels, path
        assert len(gpd.read_file(made.polygons, layer="anomalies")) == made.anomalies, path
        mapped += 1
    assert mapped > len(files) / 2


def test_a_scheduler_that_lives_on_sees_the_file_as_it_is_now(tmp_path, bundle_path):
    path, how = tmp_path / "scene.tif", {"processes": False, "protocol": "tcp://", "host": "127.0.0.1"}
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", **how) as cluster:
        for seed in (1, 2):
            write_raster(path, picture(64, 64, seed=seed))
            predict([path], tmp_path / f"{seed}.tif", bundle_path=bundle_path, scheduler=cluster.scheduler_address)
    predict([path], tmp_path / "fresh.tif", bundle_path=bundle_path)
    assert digest(tmp_path / "2.tif") == digest(tmp_path / "fresh.tif") != digest(tmp_path / "1.tif")


def test_outputs_that_would_meet_are_refused_before_any_work(tmp_path, bundle_path, out):
    scenes = [write_raster(tmp_path / "in" / n, picture(64, 64)) for n in ("a.tif", "a.classes.tif", "A.tif")]
    apart = r"a\.tif and .*a\.classes\.tif: outputs of these two scenes would have the same name, a\.classes\.tif"
    refused(ConfigError, apart, scenes[:2], out.parent, bundle_path=bundle_path)
    refused(ConfigError, r"same name, A\.tif", scenes[::2], out.parent, bundle_path=bundle_path)
    refused(ConfigError, "same name", [scenes[0], scenes[0]], out, bundle_path=bundle_path)


def test_scenes_with_and_without_crs_do_not_share_a_file(tmp_path, bundle_path, out):
    scenes = [
        write_raster(tmp_path / "in" / "a.tif", picture(64, 64)),
        write_raster(tmp_path / "in" / "b.tif", picture(64, 64), crs=None, transform=Affine.identity()),
    ]
    refused(ConfigError, "some have none", scenes, out, bundle_path=bundle_path)


def test_a_new_folder_goes_again_when_nothing_came_of_it(tmp_path, bundle_path, scene, out):
    refused(
        BundleError,
        "no such bundle",
        [scene, scene.with_name("b.tif")],
        out.parent / "new",
        bundle_path=tmp_path / "no",
    )
    other = write_raster(tmp_path / "in" / "b.tif", picture(64, 64, bands=5))
    refused(DataError, "5 bands", [scene, other], out.parent / "new", bundle_path=bundle_path)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_that_is_no_number(bundle_path, scene, out, threshold):
    refused(ConfigError, "--threshold", [scene], out, bundle_path=bundle_path, threshold=threshold)


def test_a_class_raster_of_another_scene_is_not_used(tmp_path, bundle_path, scene):
    predict([scene], tmp_path / "out.gpkg", bundle_path=bundle_path)
    other = write_raster(tmp_path / "in" / "other.tif", picture(150, 210, seed=3))
    predict([other], tmp_path / "second.gpkg", bundle_path=bundle_path)
    (tmp_path / "second.classes.tif").replace(tmp_path / "out.classes.tif")
    with pytest.raises(DataError, match="not of the same prediction"):
        polygonize(tmp_path / "out.tif", tmp_path / "again.gpkg")


def at(path, array, metres, **options):
    return write_raster(path, array, transform=Affine(metres, 0, 500_000, 0, -metres, 4_649_000), **options)


def between(scores, times):
    """Scores on a grid that many times as fine, linearly between pixels."""
    places = ((np.arange(len(scores) * times) + 0.5) / times - 0.5).clip(0, len(scores) - 1)
    low = np.minimum(places.astype(int), len(scores) - 2)
    rows = scores[low] + (scores[low + 1] - scores[low]) * (places - low)[:, None]
    return rows[:, low] + (rows[:, low + 1] - rows[:, low]) * (places - low)


def test_a_finer_scene_is_read_at_the_models_resolution_and_answered_on_its_own_grid(tmp_path):
    make_bundle(tmp_path / "m.safetensors", predict={"tile_px": 128, "halo_px": 160})  # wide enough to see no seams
    array = picture(150, 150)
    predict([at(tmp_path / "own.tif", array, 0.5)], tmp_path / "a.tif", bundle_path=tmp_path / "m.safetensors")
    fine = np.kron(array, np.ones((1, 2, 2), np.uint8))
    predict([at(tmp_path / "fine.tif", fine, 0.25)], tmp_path / "b.tif", bundle_path=tmp_path / "m.safetensors")
    found, wanted = read(tmp_path / "b.tif"), between(read(tmp_path / "a.tif"), 2)
    inner = (slice(1, -1),) * 2  # the outermost pixels lie beyond the centres of the model's
    np.testing.assert_allclose(found[inner], wanted[inner], atol=1e-4)


def test_every_pixel_of_a_resampled_scene_has_a_score_where_it_is_valid_and_nowhere_else(tmp_path, bundle_path):
    for metres in (0.1, 0.37, 1.3):
        array = picture(111, 97)
        array[:, 31:77, 60:95] = array[:, 100, 3] = 0
        path = at(tmp_path / f"{metres}.tif", array, metres, nodata=0)
        [made] = predict([path], tmp_path / f"out_{metres}.gpkg", bundle_path=bundle_path)
        valid = (array != 0).any(axis=0)
        np.testing.assert_array_equal(np.isfinite(read(made.scores)), valid)
        np.testing.assert_array_equal(read(made.classes) != 255, valid)


def test_a_scene_may_be_read_as_it_is(tmp_path, bundle_path, caplog):
    path = at(tmp_path / "s.tif", picture(64, 64), 0.1)
    predict([path], tmp_path / "out.tif", bundle_path=bundle_path, options=SceneOptions(resample=False))
    assert "--no-resample" in caplog.text
    same = at(tmp_path / "same.tif", picture(64, 64), 0.5)
    predict([same], tmp_path / "same_out.tif", bundle_path=bundle_path)
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), read(tmp_path / "same_out.tif"))


def test_a_scene_of_quite_another_resolution_is_refused(tmp_path, bundle_path, out):
    refused(DataError, "gdalwarp", [at(tmp_path / "s.tif", picture(64, 64), 0.01)], out, bundle_path=bundle_path)


def test_bands_are_taken_by_name(tmp_path, bundle_path):
    array = picture(64, 64, bands=4)
    path = write_raster(tmp_path / "s.tif", array[[3, 2, 1, 0]])
    plain = write_raster(tmp_path / "plain.tif", array[:3])
    predict([plain], tmp_path / "a.tif", bundle_path=bundle_path)
    options = SceneOptions(bands="band_1=4,band_2=3,band_3=2")
    predict([path], tmp_path / "b.tif", bundle_path=bundle_path, options=options)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))


def test_a_part_of_a_scene_has_the_scores_of_the_whole(tmp_path, bundle_path, scene):
    predict([scene], tmp_path / "whole.tif", bundle_path=bundle_path)
    with rasterio.open(scene) as file:
        west, north = file.transform @ (30, 20)
        east, south = file.transform @ (190, 140)
    options = SceneOptions(box=f"{west},{south},{east},{north}")
    predict([scene], tmp_path / "part.tif", bundle_path=bundle_path, options=options)
    whole, part = read(tmp_path / "whole.tif"), read(tmp_path / "part.tif")
    inside = np.zeros(whole.shape, bool)
    inside[20:140, 30:190] = True
    np.testing.assert_array_equal(part, np.where(inside, whole, np.nan))


def test_tiles_are_taken_as_one_scene(tmp_path, bundle_path, scene):
    with rasterio.open(scene) as file:
        for i, window in enumerate((RasterioWindow(0, 0, 100, 150), RasterioWindow(100, 0, 110, 150))):
            profile = {"crs": file.crs, "transform": file.window_transform(window), "nodata": 0}
            write_raster(tmp_path / "tiles" / f"{i}.tif", file.read(window=window), **profile)
    predict([scene], tmp_path / "whole.tif", bundle_path=bundle_path)
    [made] = predict([tmp_path / "tiles"], tmp_path / "city.gpkg", bundle_path=bundle_path, mosaic=True)
    np.testing.assert_array_equal(read(made.scores), read(tmp_path / "whole.tif"))
    with rasterio.open(made.scores) as file:
        assert file.tags()["GEOOD_SCENE"] == "tiles"


def test_the_numbers_of_a_scene_are_compared_with_those_of_training(tmp_path, bundle_path, caplog):
    path = write_raster(tmp_path / "s.tif", picture(100, 100, dtype="uint16", high=4000))
    predict([path], tmp_path / "out.tif", bundle_path=bundle_path)
    assert "the model was trained on 8-bit scenes, this one is uint16" in caplog.text


def test_a_plan_says_what_would_be_done_and_is_kept_to(tmp_path, bundle_path, scene):
    said = dict(plan_run(str(scene), bundle_path=bundle_path, options=SceneOptions(), max_ram="8GB", out=tmp_path))
    assert "210 x 150 px" in said["scene"] and "4 of 128 px" in said["tiles"]
    assert said["valid"].startswith("about 89 %")
    assert list(tmp_path.iterdir()) == [scene.parent]
    with pytest.raises(ConfigError, match="--max-ram"):
        plan_run(str(scene), bundle_path=bundle_path, options=SceneOptions(), max_ram="10MB", out=tmp_path)
    with pytest.raises(ConfigError, match="--max-ram"):
        predict([scene], tmp_path / "x.tif", bundle_path=bundle_path, max_ram="10MB")


def test_a_plan_counts_the_tiles_of_its_scene_and_not_larger_ones(tmp_path, scene, bundle_path):
    def memory(tile_px, **more):
        options = {"options": SceneOptions(), "out": tmp_path, "settings": [f"predict.tile_px={tile_px}"]}
        said = dict(plan_run(str(scene), bundle_path=bundle_path, **options, **more))
        return float(said["memory"].removeprefix("up to ").removesuffix(" GB"))

    alone, cache = memory(256), CACHE_BYTES / 1e9
    full = budget(ModelBundle.load(bundle_path).with_settings(["predict.tile_px=2048"])).bytes / 1e9
    assert full > alone + 2 * cache
    for said in (memory(2048), memory(2048, max_ram="30GB")):
        assert alone <= said <= alone + cache


REACH = Reach(halo_px=64, beyond=(0.25, 0.004, 0.0))


@pytest.fixture
def measured_path(tmp_path):
    """A bundle whose network needs a halo of 64 px."""
    path = tmp_path / "measured.safetensors"
    saved = make_bundle(path, predict={"tile_px": 64, "halo_px": "auto"})
    dataclasses.replace(saved, reach=REACH).save(path)
    return path


def test_a_plan_tells_the_halo_what_it_cuts_off_and_what_it_costs(tmp_path, scene, bundle_path, measured_path, caplog):
    def halo(path, *settings):
        return dict(plan_run(str(scene), bundle_path=path, options=SceneOptions(), out=tmp_path, settings=settings))[
            "halo"
        ]

    inner = 100 * (1 - 210 * 150 / (4 * 3 * (64 + 2 * 64) ** 2))  # at least: tiles at the edges are smaller
    said = halo(measured_path)
    assert said.startswith("64 px, as the model needs, 0.4 % of what a pixel depends on lies beyond; ")
    assert 0 < float(said.split("; ")[1].split(" %")[0]) <= inner and said.endswith("of the pixels computed are halo")
    assert not caplog.records
    said = halo(measured_path, "predict.halo_px=32")
    assert said.startswith("32 px, as predict.halo_px says, the model needs 64, 25 % of what a pixel depends on")
    [record] = caplog.records
    assert "32 is less than the 64 px that this network needs: 25.0 %" in record.getMessage()
    assert halo(measured_path, "score.smooth_px=3").startswith(
        "64 px, as the model needs and 32 px more for what the score looks around a pixel"
    )
    assert halo(bundle_path).startswith("32 px, as predict.halo_px says; ")
    assert halo(bundle_path, "predict.halo_px=auto").startswith("64 px, not measured; ")


def test_a_halo_of_the_bundle_gives_the_map_of_the_same_number(tmp_path, scene, measured_path):
    """And a narrower one, which is warned of, another map."""
    maps = {}
    for px in ("auto", 64, 32):
        settings = [f"predict.halo_px={px}"]
        [made] = predict([scene], tmp_path / f"{px}.tif", bundle_path=measured_path, settings=settings)
        maps[px] = read(made.scores)
    assert np.array_equal(maps["auto"], maps[64], equal_nan=True)
    assert not np.array_equal(maps["auto"], maps[32], equal_nan=True)


def test_tiles_keep_the_halo_of_their_job_whatever_the_bundle_of_a_worker_says(scene, bundle_path, bundle, monkeypatch):
    """Workers load the bundle as it was saved; the run may have another halo."""
    wide = bundle.with_settings(["predict.halo_px=64"])
    limits = config_budget(wide)
    planned = plan_scene(
        ScenePath(str(scene)), wide, SceneOptions(), bundle_path=bundle_path, limits=limits, classes=True
    )
    tiles = list(tiles_of(planned.grid, planned.job))[:3]
    packed = []
    for preloaded in (wide, bundle):
        monkeypatch.setattr("geood.prediction.worker.STATE", WorkerState())
        worker.STATE.preload(bundle_path, preloaded)
        packed.append([(r.number, bytes(r.chunks[0].data)) for r in worker.score_tiles(planned.job, tiles)])
    assert packed[0] == packed[1]


def test_a_run_leaves_no_file_open(tmp_path, bundle_path):
    """Strips so long are read through one open file, which all threads share."""
    wide = write_raster(tmp_path / "wide.tif", picture(32, STRIPS_PX + 32))
    predict([wide], tmp_path / "out.tif", bundle_path=bundle_path)
    assert not [file.path for file in psutil.Process().open_files() if file.path.startswith(str(tmp_path))]


@pytest.mark.parametrize("kind", ["energy", *slow(*sorted(set(scores_from("logits")) - {"jsd", "energy"}))])
def test_every_score_can_be_written_with_its_style(tmp_path, scene, kind):
    make_bundle(tmp_path / "m.safetensors", score={"kind": kind})
    threshold = max(-1e6, SCORES[kind].low)
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=tmp_path / "m.safetensors", threshold=threshold)
    scores = read(made.scores)
    assert np.nanstd(scores) > 0 and made.anomalies >= 1
    own_range = made.scores.with_suffix(".qml").read_text() != styles.ramp_style(threshold)
    assert own_range != SCORES[kind].bounded


# Folders of photographs


def photographs(folder, count=3):
    """Photographs without a place, one of them with transparent pixels, and files that are none."""
    folder.mkdir()
    for i in range(count):
        array = picture(70, 90, bands=4, seed=i).transpose(1, 2, 0)
        array[:, :, 3] = 255
        array[:30, :40, 3] = 0 if i == 1 else 255
        Image.fromarray(array).save(folder / f"photo_{i}.png")
    (folder / "notes.txt").write_text("no scene")
    (folder / "below").mkdir()
    return folder


def summary(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_photographs_gives_scores_of_each_and_a_summary_of_them(tmp_path, bundle_path):
    out = tmp_path / "out"
    made = predict([photographs(tmp_path / "in")], out, bundle_path=bundle_path, threshold=0.6)
    assert [Path(one.scene).name for one in made] == ["photo_0.png", "photo_1.png", "photo_2.png"]
    assert {p.name for p in out.iterdir()} == {"summary.csv"} | {
        f"photo_{i}{end}"
        for i in range(3)
        for end in (".gpkg", ".tif", ".qml", ".above.qml", ".classes.tif", ".classes.qml")
    }
    rows = summary(out)
    assert [(row["scene"], row["scores"]) for row in rows] == [(f"photo_{i}.png", f"photo_{i}.tif") for i in range(3)]
    for one, row in zip(made, rows, strict=True):
        scores = read(one.scores)
        known = scores[np.isfinite(scores)].astype(float)
        assert int(row["valid_pixels"]) == known.size == one.valid_pixels
        assert float(row["score_mean"]) == pytest.approx(known.mean(), rel=1e-12)
        assert float(row["score_max"]) == pytest.approx(known.max(), rel=1e-7)
        assert float(row["above_threshold"]) == pytest.approx((known > 0.6).mean(), rel=1e-12)
        assert float(row["threshold"]) == 0.6
        assert int(row["anomalies"]) == len(gpd.read_file(one.polygons, layer="anomalies")) == one.anomalies > 0
    assert made[1].valid_pixels == 70 * 90 - 30 * 40


def test_a_scene_without_a_valid_pixel_has_an_empty_row(tmp_path, bundle_path):
    folder = photographs(tmp_path / "in", 1)
    Image.fromarray(np.zeros((40, 40, 4), np.uint8)).save(folder / "nothing.png")
    predict([folder], tmp_path / "out", bundle_path=bundle_path)
    row = summary(tmp_path / "out")[0]
    assert (row["scene"], row["valid_pixels"], row["anomalies"]) == ("nothing.png", "0", "0")
    assert row["score_mean"] == row["score_max"] == row["above_threshold"] == ""


def test_photographs_without_a_place_are_warned_of_once(tmp_path, bundle_path, caplog):
    predict([photographs(tmp_path / "in")], tmp_path / "out", bundle_path=bundle_path)
    said = [record.getMessage() for record in caplog.records if "no CRS" in record.getMessage()]
    assert len(said) == 1 and "photo_0.png and 2 more: no CRS" in said[0]


@pytest.mark.parametrize(
    ("name", "polygons", "scores"),
    [("x.gpkg", "x.gpkg", "x.tif"), ("x.tif", None, "x.tif"), ("new", "new/photo_0.gpkg", "new/photo_0.tif")],
)
def test_a_folder_with_one_photograph_may_have_any_output(tmp_path, bundle_path, name, polygons, scores):
    [made] = predict([photographs(tmp_path / "in", 1)], tmp_path / name, bundle_path=bundle_path)
    assert made.polygons == (polygons and tmp_path / polygons) and made.scores == tmp_path / scores
    assert all(p.is_file() for p in (made.scores, made.polygons) if p)
    assert (tmp_path / name / "summary.csv").is_file() == (name == "new")


def test_scenes_named_one_by_one_have_the_summary_of_their_folder(tmp_path, bundle_path):
    folder = photographs(tmp_path / "in", 2)
    predict([folder], tmp_path / "folder", bundle_path=bundle_path, threshold=0.6)
    named = sorted(folder.glob("*.png"))
    predict(named, tmp_path / "named", bundle_path=bundle_path, threshold=0.6)
    predict(named, tmp_path / "x.gpkg", bundle_path=bundle_path, threshold=0.6)
    for path in ("named/summary.csv", "x.summary.csv"):
        with (tmp_path / path).open(newline="") as file:
            rows = list(csv.DictReader(file))
        whole = ("scene", "valid_pixels", "score_mean", "score_max", "above_threshold", "anomalies", "budget")
        assert [[row[key] for key in whole] for row in rows] == [
            [row[key] for key in whole] for row in summary(tmp_path / "folder")
        ]
        assert all((tmp_path / path).with_name(row["scores"]).is_file() for row in rows)
    (tmp_path / "y.summary.csv").write_text("mine")
    refused(OutputError, r"y\.summary\.csv: exists already", named, tmp_path / "y.gpkg", bundle_path=bundle_path)
    predict(named[:1], tmp_path / "one", bundle_path=bundle_path)
    assert not (tmp_path / "one" / "summary.csv").exists()


def test_photographs_may_share_a_polygon_file(tmp_path, bundle_path):
    made = predict([photographs(tmp_path / "in")], tmp_path / "x.gpkg", bundle_path=bundle_path, threshold=0.6)
    found = gpd.read_file(tmp_path / "x.gpkg", layer="anomalies")
    assert sorted(found["scene"].unique()) == [Path(one.scene).name for one in made]
    assert not (tmp_path / "summary.csv").exists()


def test_folders_that_cannot_be_predicted(tmp_path, bundle_path, out):
    (tmp_path / "empty").mkdir()
    refused(
        DataError,
        r"no scene in this folder; needed: files ending in \.tif",
        [tmp_path / "empty"],
        out.parent,
        bundle_path=bundle_path,
    )
    folder = photographs(tmp_path / "in")
    shutil.copy(folder / "photo_1.png", folder / "photo_1.webp")
    refused(ConfigError, "same name", [folder], out.parent, bundle_path=bundle_path)
    (folder / "photo_1.webp").write_text("no picture")
    refused(ConfigError, "same name", [folder], out.parent, bundle_path=bundle_path)
    (folder / "photo_1.png").unlink()
    refused(DataError, r"photo_1\.webp: cannot be read as a raster", [folder], out.parent, bundle_path=bundle_path)
    (folder / "photo_1.webp").unlink()
    refused(ConfigError, r"cannot tell what to write", [folder], out.with_suffix(".tif"), bundle_path=bundle_path)
    (out.parent / "summary.csv").write_text("mine")
    refused(OutputError, r"summary\.csv: exists already", [folder], out.parent, bundle_path=bundle_path)
