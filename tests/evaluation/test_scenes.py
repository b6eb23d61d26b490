import dataclasses
import json
import math

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import rasterio.vrt
import torch
from affine import Affine
from shapely.geometry import shape
from sklearn.metrics import average_precision_score, roc_auc_score

from geood.config.score_kinds import scores_from
from geood.config.sections import Config
from geood.errors import ConfigError, DataError, OutputError
from geood.evaluation.results import write_metrics
from geood.evaluation.scenes import evaluate_scenes
from geood.geo.bands import Bands
from geood.models.bundle import ModelBundle
from geood.models.scores import anomaly_score
from geood.models.segmenter import SegmenterOutput
from support.cpu import slow

CLASSES, ANOMALY, STRANGE, NONE = {2: "land", 5: "road"}, 9, 77, 255
UTM = "EPSG:32633"


class PixelNet(torch.nn.Module):
    """A network that looks at one pixel: its two bands, times a gain, are the logits of the two classes."""

    gain = 5.0
    mean = torch.zeros(2)  # tells the device

    def forward(self, image, outlier=True, region=None):
        seen = image if region is None else image[..., *region]
        return SegmenterOutput(seen * self.gain, None, seen, seen, seen)


@pytest.fixture
def model():
    data = {"images": ["x"], "labels": ["y"], "classes": CLASSES, "anomaly": [ANOMALY], "crop_px": 64}
    predict = {"tile_px": 64, "halo_px": 32}
    sections = {"data": data, "negatives": {"patch_max_px": 32}, "predict": predict, "segmenter": {"outlier": "none"}}
    sections["score"] = {"kind": "jsd"}
    config = Config.model_validate(sections)
    return ModelBundle(
        segmenter=PixelNet(),
        flow=None,
        inliers=None,
        bands=Bands(("a", "b"), (1, 2), (0.0, 0.0), (255.0, 255.0), (0.5, 0.5), (1 / 255, 1 / 255), None, 2),
        config=config,
        class_ids=(2, 5),
        resolution=None,
        calibration={"jsd": {"0.01": 0.6}},
        calibrated=config.score,
        metrics={},
        identity="f" * 12,
    )


def draw_scene(rng, height, width):
    """Pixels whose difference of bands goes with the label, more weakly for anomalies; nodata (0, 0) in a corner."""
    ids = rng.choice([2, 5, ANOMALY, STRANGE, NONE], (height, width), p=[0.4, 0.4, 0.1, 0.05, 0.05]).astype(np.uint8)
    lean = np.select([ids == 2, ids == 5], [40, -40], 0) + rng.normal(0, 30, ids.shape)
    image = np.clip(np.stack([128 + lean, 128 - lean]), 1, 255).astype(np.uint8)
    image[:, :20, :30] = 0
    return image, ids


def write(path, array, *, crs=UTM, nodata=None, west=500_000.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(array), "dtype": array.dtype, "nodata": nodata}
    place = {"height": array.shape[1], "width": array.shape[2], "crs": crs}
    if crs:
        place["transform"] = Affine(0.5, 0, west, 0, -0.5, 5_000_000)
    with rasterio.open(path, "w", **profile, **place) as target:
        target.write(array)


LAYOUTS = {
    "suffix": ("{}.tif", "{}_labels.tif"),
    "labels folder": ("{}.tif", "labels/{}.tif"),
    "two folders": ("images/{}.tif", "labels/{}.tif"),
}


def make_scenes(root, layout="suffix", *, crs=UTM):
    rng, made = np.random.default_rng(0), []
    for i, (name, height, width) in enumerate((("east", 150, 130), ("west", 40, 200))):
        image, ids = draw_scene(rng, height, width)
        image_name, label_name = (pattern.format(name) for pattern in LAYOUTS[layout])
        write(root / image_name, image, crs=crs, nodata=0, west=500_000.0 + 1000 * i)
        write(root / label_name, ids[None], crs=crs, west=500_000.0 + 1000 * i)
        made.append((image, ids))
    return made


def pooled(scenes, model):
    """Logits (N, K) and ids (N,) of all valid pixels at once, without tiles."""
    valid = [(image > 0).any(0) for image, _ in scenes]
    pixels = np.concatenate([image[:, v].T for (image, _), v in zip(scenes, valid, strict=True)])
    ids = np.concatenate([ids[v] for (_, ids), v in zip(scenes, valid, strict=True)])
    logits = torch.from_numpy(pixels.astype(np.float32) / np.float32(255)) * PixelNet.gain
    return logits, ids


def test_figures_of_tiles_equal_those_of_all_pixels_at_once(tmp_path, model):
    scenes = make_scenes(tmp_path)
    result = evaluate_scenes(tmp_path, model)
    logits, ids = pooled(scenes, model)
    counted = np.isin(ids, [2, 5, ANOMALY])
    truth = (ids == ANOMALY)[counted]
    assert [row["score"] for row in result.rows] == list(scores_from("logits"))
    for row in result.rows:
        assert row["temperature"] == (2.0 if row["score"] == "jsd" else 1.0)
        score = anomaly_score(logits[..., None, None], row["score"], row["temperature"]).flatten().numpy()[counted]
        score = score.astype(np.float16).astype(float)
        assert row["average_precision"] == pytest.approx(average_precision_score(truth, score), abs=2e-4)
        assert row["auroc"] == pytest.approx(roc_auc_score(truth, score), abs=2e-4)
    assert result.pixels == counted.sum()
    assert result.anomaly_pixels == truth.sum()
    assert result.base_rate == truth.mean()
    predicted = np.array([2, 5])[logits.argmax(1).numpy()]
    for i, name in model.class_names.items():
        here, there = predicted[np.isin(ids, [2, 5])] == (2, 5)[i], ids[np.isin(ids, [2, 5])] == (2, 5)[i]
        assert result.class_iou[name] == pytest.approx((here & there).sum() / (here | there).sum(), abs=1e-3)
    assert result.miou == pytest.approx(np.mean(list(result.class_iou.values())))
    assert result.unknown_ids == {STRANGE: int((ids == STRANGE).sum())}
    assert result.headline()["AP"] == result.rows[0]["average_precision"]
    assert sum(scene["pixels"] for scene in result.scenes) == result.pixels


@pytest.mark.parametrize("tile", [32, *slow(96, 256)])
def test_tiling_does_not_matter(tmp_path, model, tile):
    make_scenes(tmp_path)
    predict = model.config.predict.model_copy(update={"tile_px": tile, "halo_px": 0})
    other = dataclasses.replace(model, config=model.config.model_copy(update={"predict": predict}))
    assert evaluate_scenes(tmp_path, other) == evaluate_scenes(tmp_path, model)


@pytest.mark.parametrize("layout", ["two folders", *slow("suffix", "labels folder")])
def test_each_folder_layout_and_a_config_give_the_same_figures(tmp_path, model, layout):
    make_scenes(tmp_path / "suffix")
    expected = evaluate_scenes(tmp_path / "suffix", model).headline()
    make_scenes(tmp_path / layout, layout)
    assert evaluate_scenes(tmp_path / layout, model).headline() == expected
    config = tmp_path / "test.yaml"
    images, labels = (pattern.format("*") for pattern in LAYOUTS[layout])
    images = "[east.tif, west.tif]" if layout == "suffix" else f"['{images}']"
    config.write_text(
        f"data:\n  root: {tmp_path / layout}\n  images: [none.tif]\n  labels: [none.tif]\n  test_images: {images}\n"
        f"  test_labels: ['{labels}']\n  classes: {{2: land, 5: road}}\n  anomaly: [{ANOMALY}]\n"
    )
    assert evaluate_scenes(config, model).headline() == expected
    assert evaluate_scenes(config, model, settings=["score.kind=energy"]).score == "energy"
    with pytest.raises(ConfigError, match=r"--set train\.seed=1: of a trained model only"):
        evaluate_scenes(config, model, settings=["train.seed=1"])
    other = evaluate_scenes(config, model, settings=[f"data.anomaly=[{STRANGE}]"])
    assert set(other.unknown_ids) == {ANOMALY}


def test_scenes_without_crs_are_paired_pixel_by_pixel(tmp_path, model):
    make_scenes(tmp_path / "a")
    make_scenes(tmp_path / "b", crs=None)
    assert evaluate_scenes(tmp_path / "b", model).headline() == evaluate_scenes(tmp_path / "a", model).headline()


def test_without_anomalies_the_iou_remains_and_the_rest_is_null(tmp_path, model):
    image, ids = draw_scene(np.random.default_rng(1), 70, 70)
    write(tmp_path / "x.tif", image, nodata=0)
    write(tmp_path / "x_labels.tif", np.where(ids == ANOMALY, 2, ids)[None].astype(np.uint8))
    result = evaluate_scenes(tmp_path, model)
    assert result.base_rate == 0 and result.miou > 0
    assert math.isnan(result.headline()["AP"])
    figures = json.loads(result.to_json())
    assert figures["rows"][0]["average_precision"] is None
    assert figures["at_threshold"]["recall"] is None
    assert result.table().splitlines()[1].split()[-3:] == ["-", "-", "-"]


def test_table_names_every_score_and_marks_the_own_one(tmp_path, model):
    make_scenes(tmp_path)
    table = evaluate_scenes(tmp_path, model).table()
    for name in (
        "Jensen-Shannon *",
        "max softmax",
        "max logit",
        "entropy",
        "energy",
        "AP",
        "FPR95",
        "AUROC",
        "mIoU",
        "77 (",
    ):
        assert name in table


def test_the_own_score_follows_the_config(tmp_path, model):
    make_scenes(tmp_path)
    score = model.config.score.model_copy(update={"kind": "energy", "temperature": 3.0})
    own = dataclasses.replace(model, config=model.config.model_copy(update={"score": score}))
    result = evaluate_scenes(tmp_path, own)
    assert {row["score"]: row["temperature"] for row in result.rows} == {
        "jsd": 3.0, "max_softmax": 1.0, "max_logit": 1.0, "entropy": 1.0, "energy": 3.0
    }  # fmt: skip
    assert result.headline()["AP"] == result.rows[4]["average_precision"]


def test_figures_are_written_whole_and_never_over_others(tmp_path, model):
    make_scenes(tmp_path / "scenes")
    result, out = evaluate_scenes(tmp_path / "scenes", model), tmp_path / "metrics.json"
    write_metrics(result, out, overwrite=False)
    figures = json.loads(out.read_text())
    assert figures["model"] == model.identity
    assert figures["rows"] == result.rows
    assert figures["at_threshold"]["threshold"] == 0.6
    with pytest.raises(OutputError):
        write_metrics(result, out, overwrite=False)
    write_metrics(result, out, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "scenes"]


def test_a_folder_without_a_pair_is_refused(tmp_path, model):
    with pytest.raises(DataError, match="0 scenes and 0 label files, but no pair"):
        evaluate_scenes(tmp_path, model)
    write(tmp_path / "x.tif", np.ones((2, 40, 40), np.uint8))
    with pytest.raises(DataError, match="1 scene and 0 label files"):
        evaluate_scenes(tmp_path, model)


def test_a_scene_without_labels_is_named_and_left_out(tmp_path, model, caplog):
    make_scenes(tmp_path)
    expected = evaluate_scenes(tmp_path, model)
    write(tmp_path / "bare.tif", np.ones((2, 40, 40), np.uint8))
    with caplog.at_level("WARNING", logger="geood"):
        assert evaluate_scenes(tmp_path, model) == expected
    assert "bare.tif" in caplog.text


def test_set_needs_a_config(tmp_path, model):
    make_scenes(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.crops=1: changes a config"):
        evaluate_scenes(tmp_path, model, settings=["data.crops=1"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("classes: {2: land, 5: road}", "test_images is empty"),
        (
            "classes: {2: land, 6: sand}\n  test_images: [a.tif]\n  test_labels: [b.tif]",
            r"never learned the classes \[6\]",
        ),
        (
            "classes: {2: road, 5: Land}\n  test_images: [a.tif]\n  test_labels: [b.tif]",
            r"otherwise \(road is 2 here, 5 there; Land is 5 here, 2 there\); give its ids, or auto",
        ),
        ("classes: {2: land, 3: x}\n  anomaly: [5]\n  test_images: [a.tif]\n  test_labels: [b.tif]", r"classes \[3\]"),
    ],
)
def test_a_config_that_does_not_fit_the_bundle_is_refused(tmp_path, model, lines, message):
    config = tmp_path / "test.yaml"
    config.write_text(f"data:\n  images: [x.tif]\n  labels: [y.tif]\n  {lines}\n")
    with pytest.raises(ConfigError, match=message):
        evaluate_scenes(config, model)


def test_an_anomaly_that_was_learned_is_refused(tmp_path, model):
    config = tmp_path / "test.yaml"
    model = dataclasses.replace(model, class_ids=(2, 5, 6))
    config.write_text(
        "data:\n  images: [x.tif]\n  labels: [y.tif]\n  classes: {2: land, 5: road}\n  anomaly: [6]\n"
        "  test_images: [a.tif]\n  test_labels: [b.tif]\n"
    )
    with pytest.raises(ConfigError, match=r"ids \[6\] are under anomaly"):
        evaluate_scenes(config, model)


def test_a_scene_with_other_bands_is_refused_before_the_work(tmp_path, model):
    make_scenes(tmp_path)
    write(tmp_path / "zebra.tif", np.ones((3, 40, 40), np.uint8))
    write(tmp_path / "zebra_labels.tif", np.ones((1, 40, 40), np.uint8))
    with pytest.raises(DataError, match="zebra"):
        evaluate_scenes(tmp_path, model)


def test_labels_that_lie_elsewhere_are_refused(tmp_path, model):
    write(tmp_path / "x.tif", np.ones((2, 40, 40), np.uint8))
    write(tmp_path / "x_labels.tif", np.ones((1, 40, 40), np.uint8), west=600_000.0)
    with pytest.raises(DataError, match=r"x_labels.*do not overlap"):
        evaluate_scenes(tmp_path, model)


def test_vector_labels_of_a_config_equal_the_same_labels_as_raster(tmp_path, model):
    image, ids = draw_scene(np.random.default_rng(2), 64, 96)
    ids[:] = 2
    ids[30:, 50:], ids[40:60, 10:30] = 5, ANOMALY
    write(tmp_path / "x.tif", image, nodata=0)
    write(tmp_path / "x_labels.tif", ids[None])
    with rasterio.open(tmp_path / "x_labels.tif") as source:
        shapes = list(rasterio.features.shapes(source.read(1), transform=source.transform))
    frame = geopandas.GeoDataFrame(
        {"kind": [int(v) for _, v in shapes]}, geometry=[shape(s) for s, _ in shapes], crs=UTM
    )
    frame.to_file(tmp_path / "truth.gpkg")
    config = tmp_path / "test.yaml"
    config.write_text(
        "data:\n  images: [x.tif]\n  labels: [truth.gpkg]\n  label_attribute: kind\n  classes: {2: land, 5: road}\n"
        f"  test_images: [x.tif]\n  test_labels: [truth.gpkg]\n  anomaly: [{ANOMALY}]\n"
    )
    (tmp_path / "raster").mkdir()
    for name in ("x.tif", "x_labels.tif"):
        (tmp_path / name).rename(tmp_path / "raster" / name)
    config.write_text(config.read_text().replace("[x.tif]", "[raster/x.tif]"))
    wanted = evaluate_scenes(tmp_path / "raster", model).headline()
    assert evaluate_scenes(config, model).headline() == wanted
    texts = {i: f" {name.upper()} " for i, name in model.config.data.classes.items()} | {ANOMALY: "Boat"}
    frame.assign(kind=[texts[i] for i in frame["kind"]]).to_file(tmp_path / "truth.gpkg")
    named = ["data.classes=auto", "data.anomaly=[boat]"]  # auto: the classes that the model was taught
    assert evaluate_scenes(config, model, settings=named).headline() == wanted


def a_config(folder, images, labels):
    """Write a config that evaluates images with labels, and return its path."""
    path = folder / "test.yaml"
    path.write_text(
        f"data:\n  root: {folder}\n  images: [none.tif]\n  labels: [none.tif]\n  test_images: [{images}]\n"
        f"  test_labels: [{labels}]\n  classes: {{2: land, 5: road}}\n  anomaly: [{ANOMALY}]\n"
    )
    return path


@pytest.mark.parametrize("crs", [UTM, *slow(None)])
@pytest.mark.parametrize("ending", ["_gt", "", *slow("-truth", ".ids")])
def test_labels_go_with_the_image_whose_name_theirs_begins_with(tmp_path, model, crs, ending):
    """Two images of one ground and size: any other label fits as well, but is wrong."""
    rng = np.random.default_rng(3)
    for name in ("a", "a_2"):
        image, ids = draw_scene(rng, 64, 64)
        for folder, label in (("folder", f"{name}_labels"), ("config/gt", f"{name}{ending}")):
            write(tmp_path / folder / f"{label}.tif", ids[None], crs=crs)
        for folder in ("folder", "config"):
            write(tmp_path / folder / f"{name}.tif", image, crs=crs, nodata=0)
    expected = evaluate_scenes(tmp_path / "folder", model)
    assert evaluate_scenes(a_config(tmp_path / "config", "a*.tif", "gt"), model).headline() == expected.headline()


def test_labels_that_could_go_with_any_image_are_refused(tmp_path, model):
    image, ids = draw_scene(np.random.default_rng(3), 64, 64)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.tif", image, nodata=0)
        write(tmp_path / f"gt_{name}.tif", ids[None])
        write(tmp_path / f"bare_{name}.tif", image, crs=None)
    both = a_config(tmp_path, "a.tif, b.tif", "gt_a.tif, gt_b.tif")
    wanted = r"2 test images \(a.tif, b.tif\) and 2 label files \(gt_a.tif, gt_b.tif\).*cover the same ground"
    with pytest.raises(ConfigError, match=wanted + r"; name the labels of a.tif a_labels.tif"):
        evaluate_scenes(both, model)
    for labels in ("gt_a.tif, gt_b.tif", "gt_a.tif"):
        with pytest.raises(ConfigError, match=r"bare_a.tif has no CRS"):
            evaluate_scenes(a_config(tmp_path, "bare_a.tif, bare_b.tif", labels), model)
    assert evaluate_scenes(a_config(tmp_path, "a.tif, b.tif", "gt_a.tif"), model).pixels
    assert evaluate_scenes(a_config(tmp_path, "bare_a.tif", "gt_a.tif"), model).pixels


def test_rasters_side_by_side_label_every_image(tmp_path, model):
    scenes = make_scenes(tmp_path)
    for new, old in (("one", "east_labels"), ("two", "west_labels")):
        (tmp_path / f"{old}.tif").rename(tmp_path / f"{new}.tif")
    result = evaluate_scenes(a_config(tmp_path, "east.tif, west.tif", "one.tif, two.tif"), model)
    assert result.anomaly_pixels == sum(((ids == ANOMALY) & (image > 0).any(0)).sum() for image, ids in scenes)


def test_labels_that_miss_a_later_scene_are_found_before_the_work(tmp_path, model, monkeypatch):
    make_scenes(tmp_path)
    write(tmp_path / "zebra.tif", np.ones((2, 40, 40), np.uint8), west=900_000.0)
    monkeypatch.setattr(ModelBundle, "infer", None)
    with pytest.raises(DataError, match=r"zebra.tif: its labels do not fit; .*do not overlap the scene"):
        evaluate_scenes(a_config(tmp_path, "east.tif, zebra.tif", "east_labels.tif"), model)


def test_scores_that_are_not_finite_name_scene_and_cause(tmp_path, model, monkeypatch):
    make_scenes(tmp_path)
    monkeypatch.setattr(PixelNet, "gain", float("nan"))
    with pytest.raises(DataError, match=r"east.tif.*not finite.*damaged"):
        evaluate_scenes(tmp_path, model)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int64", "float32"])
def test_what_labels_of_any_type_do_not_cover_is_not_measured(tmp_path, model, dtype):
    image, ids = draw_scene(np.random.default_rng(4), 64, 96)
    ids[ids == NONE] = STRANGE
    figures = []
    for name in ("uint8", dtype):
        write(tmp_path / name / "x.tif", image)
        write(tmp_path / name / "x_labels.tif", ids[None, :32].astype(name))
        figures.append(evaluate_scenes(tmp_path / name, model))
    assert figures[1].pixels == figures[0].pixels == int(np.isin(ids[:32], [2, 5, ANOMALY]).sum())
    assert figures[1].headline() == figures[0].headline()
    assert figures[1].unknown_ids == {STRANGE: int((ids[:32] == STRANGE).sum())}


def test_masks_of_0_and_255_are_read_by_a_table_and_said_without_one(tmp_path, model, caplog):
    image, ids = draw_scene(np.random.default_rng(5), 64, 64)
    write(tmp_path / "x.tif", image)
    mask = np.where(ids == ANOMALY, 255, 0).astype(np.uint8)
    write(tmp_path / "x_labels.tif", mask[None])
    with caplog.at_level("WARNING", "geood"):
        assert evaluate_scenes(tmp_path, model).anomaly_pixels == 0
    assert "no anomaly pixel (ids [9]) in the labels" in caplog.text
    assert "say what 255 means with data.label_ids, such as {255: 1}" in caplog.text
    table = ["data.label_ids={255: 9, 0: 2}"]
    result = evaluate_scenes(tmp_path, model, settings=table)
    assert (result.pixels, result.anomaly_pixels) == (mask.size, int((mask == 255).sum()))
    config = a_config(tmp_path, "x.tif", "x_labels.tif")
    assert evaluate_scenes(config, model, settings=table).headline() == result.headline()
    with pytest.raises(ConfigError, match=r"only data\.label_ids and data\.anomaly can be set"):
        evaluate_scenes(tmp_path, model, settings=["data.label_ids_={1: 2}"])


def test_a_folder_of_labels_says_what_is_to_be_found_where_the_model_held_nothing_out(tmp_path, model, caplog):
    image, ids = draw_scene(np.random.default_rng(5), 64, 64)
    write(tmp_path / "x.tif", image)
    write(tmp_path / "x_labels.tif", np.where(ids == ANOMALY, 78, ids)[None].astype(np.uint8))
    with caplog.at_level("WARNING", "geood"):
        assert evaluate_scenes(tmp_path, model).anomaly_pixels == 0
    assert "78] in them are of no class: --set data.anomaly=[" in caplog.text
    for told in ("[78]", "{78: boat}"):
        result = evaluate_scenes(tmp_path, model, settings=[f"data.anomaly={told}"])
        assert result.anomaly_pixels == int((ids == ANOMALY).sum())
    for wrong, said in (("[2]", "as classes"), ("[boat]", "give ids"), ("6", "give ids"), ("[true]", "give ids")):
        with pytest.raises(ConfigError, match=said):
            evaluate_scenes(tmp_path, model, settings=[f"data.anomaly={wrong}"])


def test_two_files_for_one_place_in_a_pair_are_refused(tmp_path, model):
    make_scenes(tmp_path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "east.tif").write_bytes((tmp_path / "east_labels.tif").read_bytes())
    with pytest.raises(DataError, match=r"east_labels\.tif and .*labels/east\.tif: labels of one scene; move one"):
        evaluate_scenes(tmp_path, model)
    (tmp_path / "labels" / "east.tif").rename(tmp_path / "west.png")
    with pytest.raises(DataError, match=r"west\.png and .*west\.tif: scenes with the same labels; move one"):
        evaluate_scenes(tmp_path, model)


def test_case_of_names_hidden_files_and_folders_do_not_matter(tmp_path, model):
    make_scenes(tmp_path / "plain")
    expected = evaluate_scenes(tmp_path / "plain", model).headline()
    made = tmp_path / "odd"
    make_scenes(made)
    (made / "east.tif").rename(made / "east.TIF")
    (made / "west_labels.tif").rename(made / "west_LABELS.Tif")
    (made / "._east.tif").write_bytes(b"")
    for folder in ("folder.tif", "folder_labels.tif", ".ipynb_checkpoints"):
        (made / folder).mkdir()
    assert evaluate_scenes(made, model).headline() == expected


def test_labels_in_another_crs_fall_on_their_scene(tmp_path, model):
    image, ids = draw_scene(np.random.default_rng(6), 64, 96)
    ids = np.kron(ids[::8, ::8], np.ones((8, 8), np.uint8))
    for name in ("own", "other"):
        write(tmp_path / name / "x.tif", image, nodata=0)
    write(tmp_path / "own" / "x_labels.tif", ids[None])
    with (
        rasterio.open(tmp_path / "own" / "x_labels.tif") as source,
        rasterio.vrt.WarpedVRT(source, crs="EPSG:4326", add_alpha=True) as warped,
    ):
        array, profile = warped.read(1, masked=True).filled(NONE), warped.profile
    profile |= {"driver": "GTiff", "count": 1, "nodata": None}
    with rasterio.open(tmp_path / "other" / "x_labels.tif", "w", **profile) as target:
        target.write(array.astype(np.uint8), 1)
    one, two = (evaluate_scenes(tmp_path / name, model) for name in ("own", "other"))
    assert two.pixels == pytest.approx(one.pixels, rel=0.05)
    assert two.headline()["AUROC"] == pytest.approx(one.headline()["AUROC"], abs=0.03)
