"""Evaluation on named data sets: the protocol's own figures, classes by name, and every bad input with its remedy."""

import csv
import dataclasses
import json
import math
import os
import shutil
from collections import Counter

import h5py
import numpy as np
import pytest
import rasterio
from PIL import Image

from geood.catalog import data_set
from geood.cli.process import _run
from geood.datasets.discovery import find_frames
from geood.datasets.frames import Frame, decode
from geood.errors import ConfigError, DataError, OutputError
from geood.evaluation.catalog_sets import evaluate_set
from geood.evaluation.class_mapping import ClassMapping
from geood.evaluation.results import percent, staged
from geood.evaluation.tile_scores import score_frame
from geood.metrics.components import ComponentScores
from geood.metrics.pixels import PixelCurve
from geood.metrics.protocols import protocol_named
from geood.metrics.segmentation import Confusion, OpenSetConfusion
from geood.models.bundle import ModelBundle
from geood.models.inference import for_inference
from geood.prediction.pipeline import predict
from support.bundles import make_bundle
from support.cpu import slow
from support.rasters import picture, write_raster

ROADS = {"images": ["x"], "labels": ["y"], "classes": {0: "road", 1: "sky", 2: "car"}, "anomaly": []}
HELD = "data.hold_out=[pedestrian, bicyclist]"


def write_image(path, array):
    """An image (C, H, W) or (H, W) of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.transpose(1, 2, 0) if array.ndim == 3 else array).save(path)
    return path


def blocks(height, width, values, seed, side=12):
    """Random values (H, W) in squares."""
    rng = np.random.default_rng([5, seed])
    coarse = rng.choice(values, (height // side + 1, width // side + 1))
    return np.kron(coarse, np.ones((side, side), int))[:height, :width].astype(np.uint8)


def write_camvid(root, frames=4, size=(90, 130)):
    """A test split of CamVid whose labels hold all its classes and void."""
    for i in range(frames):
        write_image(root / "test" / f"frame_{i}.png", picture(*size, seed=i))
        write_image(root / "testannot" / f"frame_{i}.png", blocks(*size, range(12), i))
    return root


def write_track(root, frames=4, size=(90, 130)):
    """The validation split of SegmentMeIfYouCan's AnomalyTrack, as PNGs."""
    for i in range(frames):
        write_image(root / "images" / f"validation000{i}.png", picture(*size, seed=i))
        mask = blocks(*size, [0, 0, 0, 1, 255], i)
        write_image(root / "labels_masks" / f"validation000{i}_labels_semantic.png", mask)
    return root


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    make_bundle(path, data=ROADS, predict={"tile_px": 160})
    return path


@pytest.fixture(scope="module")
def model(model_path):
    return ModelBundle.load(model_path)


@pytest.fixture
def camvid(tmp_path):
    return write_camvid(tmp_path / "camvid")


@pytest.fixture
def track(tmp_path):
    return write_track(tmp_path / "track")


@pytest.fixture
def undrawn(monkeypatch):
    """Spares the pictures, which take longest."""
    monkeypatch.setattr("geood.evaluation.measurement.draw_frame", lambda *_, **__: None)


def scored_frames(name, root, bundle):
    """Each labelled frame, decoded, and its scores of all kinds."""
    entry = data_set(name)
    for frame in find_frames(entry, root, entry.evaluated).frames:
        if frame.labels:
            decoded = decode(frame, indexes=(1, 2, 3), nodata=bundle.bands.nodata)
            yield frame, decoded, score_frame(for_inference(bundle), decoded, kinds=bundle.scores)


def same(found, wanted, tolerance=1e-12):
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, abs=tolerance, nan_ok=True), key


@pytest.mark.parametrize(
    ("name", "protocol", "options"),
    [
        ("smiyc-anomaly", "smiyc", {}),
        ("fishyscapes-laf", "fishyscapes", {}),
        ("streethazards-densehybrid", "densehybrid", {"per_image": True}),
        *slow(
            ("fishyscapes-static-v2", "fishyscapes", {}),
            ("road-anomaly", "pooled", {}),
            ("streethazards", "caos", {}),
        ),
    ],
)
def test_figures_are_those_of_the_protocol_called_on_the_scores(miniature, model, name, protocol, options):
    root, _ = miniature(name)
    wanted = {kind: protocol_named(protocol, **options) for kind in model.scores}
    truth = ClassMapping.of(data_set(name), model).truth
    for _, decoded, scored in scored_frames(name, root, model):
        for kind, score in scored.scores.items():
            wanted[kind].update(score, truth[decoded.ids])
    result = evaluate_set(data_set(name), root, bundle=model)
    assert [row["score"] for row in result.rows] == list(model.scores)
    for row in result.rows:
        same(row, wanted[row["score"]].figures())
    assert result.base_rate == result.anomaly_pixels / result.pixels > 0


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["smiyc-anomaly", "lost-and-found", "road-anomaly"])
def test_scores_that_the_model_wrote_give_its_figures_again(tmp_path, miniature, model, name):
    root, _ = miniature(name)
    first = evaluate_set(data_set(name), root, bundle=model, out=tmp_path / "out")
    again = evaluate_set(data_set(name), root, scores=tmp_path / "out" / "scores")
    [row] = again.rows
    [own] = [row for row in first.rows if row["score"] == first.own]
    assert row | {"score": "jsd", "temperature": 2.0} == own
    assert (again.images, again.components, again.pixels) == (first.images, first.components, first.pixels)


def test_scores_of_files_keep_their_precision(tmp_path, miniature):
    root, _ = miniature("fishyscapes-laf")
    entry, wanted = data_set("fishyscapes-laf"), protocol_named("fishyscapes")
    rng = np.random.default_rng(0)
    for frame in find_frames(entry, root, entry.evaluated).frames:
        ids = decode(frame, indexes=(1,)).ids
        score = (1 - 1e-5 * rng.random(ids.shape) * (2 - (ids == 1))).astype(np.float32)  # all 1 as float16
        np.save(tmp_path / f"{frame.image.stem}.npy", score)
        wanted.update(score, ids)
    [row] = evaluate_set(entry, root, scores=tmp_path).rows
    assert row == {"score": "scores"} | wanted.figures() and row["auroc"] > 0.6


def test_components_are_those_at_the_best_f1(track, model):
    result = evaluate_set(data_set("smiyc-anomaly"), track, bundle=model)
    [own] = [row for row in result.rows if row["score"] == "jsd"]
    wanted = ComponentScores(500, 100)
    for _, decoded, scored in scored_frames("smiyc-anomaly", track, model):
        wanted.update(scored.scores["jsd"], decoded.ids, threshold=own["best_f1_threshold"])
    same(result.components, wanted.figures())
    assert result.components["threshold"] == own["best_f1_threshold"] and result.components["true_components"] > 0


@pytest.mark.parametrize("settings", [(), ("score.smooth_px=4",), ("score.kind=energy", "predict.tile_px=64")])
@pytest.mark.parametrize("bands", [3, 4])
def test_a_photograph_is_scored_as_predict_scores_it(tmp_path, model, model_path, settings, bands):
    array = picture(90, 131, bands=bands)
    if bands == 4:
        array[3] = np.where(np.indices((90, 131)).sum(0) % 50 < 9, 0, 255)
    path = write_image(tmp_path / "photo.png", array)
    predict([path], tmp_path / "out.tif", bundle_path=model_path, settings=settings, threshold=0.5)
    with_settings = model.with_settings(settings)
    kind = with_settings.config.score.kind
    decoded = decode(Frame("photo", path, None), indexes=(1, 2, 3))
    score = score_frame(for_inference(with_settings), decoded, kinds=[kind]).scores[kind].astype(np.float32)
    with rasterio.open(tmp_path / "out.tif") as file:
        raster = file.read(1)
    assert np.isfinite(raster).all() == (bands == 3) and (np.isfinite(raster) == decoded.valid).all()
    np.testing.assert_allclose(score[decoded.valid], raster[decoded.valid], rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("ids", [(200, 7, 31), *slow(((0, 1, 2),), ((2, 0, 1),))])
def test_classes_are_matched_by_name_whatever_their_numbers(tmp_path, camvid, ids):
    names = dict(zip(ids, ("road", "sky", "car"), strict=True))
    bundle = make_bundle(tmp_path / "m.safetensors", data=ROADS | {"classes": names}, predict={"tile_px": 160})
    result = evaluate_set(data_set("camvid"), camvid, bundle=bundle)
    of_camvid = {"road": 3, "sky": 0, "car": 8}
    channels = [names[i] for i in sorted(ids)]
    wanted = Confusion(3)
    for _, decoded, scored in scored_frames("camvid", camvid, bundle):
        mask = np.full(decoded.ids.shape, 255)
        for channel, name in enumerate(channels):
            mask[decoded.ids == of_camvid[name]] = channel
        wanted.update(scored.classes, mask)
    assert result.class_iou == {name: wanted.iou[i] for i, name in enumerate(channels)}
    assert result.miou == wanted.miou > 0
    assert result.left_out == ("building", "pole", "pavement", "tree", "sign", "fence", "pedestrian", "bicyclist")
    assert result.pixels == wanted.counts.sum()
    assert "never learned: building, pole" in result.table() and str(result) == result.table()


@pytest.mark.parametrize("nodata", [None, 0])
def test_closed_and_open_set_figures_equal_the_accumulators(camvid, model, nodata):
    array = picture(90, 130, seed=1)
    array[:, 20:50, 20:50] = 0
    array[0, :20, :20] = 0  # in one band alone: data
    write_image(camvid / "test" / "frame_1.png", array)
    model = dataclasses.replace(model, bands=dataclasses.replace(model.bands, nodata=nodata))
    result = evaluate_set(data_set("camvid"), camvid, bundle=model, settings=[HELD])
    meaning = ClassMapping.of(data_set("camvid"), model, ["pedestrian", "bicyclist"])
    frames = list(scored_frames("camvid", camvid, model))
    assert all(decoded.valid.all() for _, decoded, _ in frames) == (nodata is None)
    pooled, closed = PixelCurve(), Confusion(3)
    for _, decoded, scored in frames:
        pooled.update(scored.scores["jsd"], meaning.truth[decoded.ids])
        closed.update(scored.classes, meaning.channel[decoded.ids])
    threshold = result.open_set["threshold"]
    assert pooled.rates(threshold)["recall"] >= 0.95
    assert pooled.rates(float(np.nextafter(np.float16(threshold), np.float16(9))))["recall"] < 0.95
    opened = OpenSetConfusion(3, threshold)
    for _, decoded, scored in frames:
        ids = decoded.ids
        opened.update(scored.classes, scored.scores["jsd"], mask=meaning.channel[ids], truth=meaning.truth[ids])
    assert result.miou == closed.miou == opened.closed_miou
    same(result.open_set, {"open_miou": opened.open_miou, "anomaly_iou": opened.anomaly_iou, "gap": opened.gap})
    assert result.anomaly_pixels == sum(np.isin(d.ids, [9, 10]).sum() for _, d, _ in frames)
    assert opened.counts.sum() == result.pixels


def held(bundle, name="camvid", hold_out=()):
    truth = ClassMapping.of(data_set(name), bundle, hold_out).truth
    return [data_set(name).taxonomy.classes[i] for i in np.flatnonzero(truth == 1)]


BDD_ANOMALIES = ["train", "motorcycle", "bicycle"]


def test_held_out_classes_come_from_the_training_or_the_command(tmp_path, model):
    def trained(**data):
        return make_bundle(tmp_path / "m.safetensors", data={"images": [], "labels": [], "classes": {}} | data)

    by_set = make_bundle(
        tmp_path / "m.safetensors",
        data={"images": [], "labels": [], "sets": [{"name": "camvid"}], "hold_out": ["car", "sky"]}
        | {
            "kind": "photos",
            "classes": {i: n for i, n in data_set("camvid").taxonomy.classes.items() if i not in (0, 8)},
        }
        | {"anomaly": [0, 8]},
    )
    assert held(by_set) == ["sky", "car"]
    city, less = data_set("cityscapes").taxonomy, ("train", "motorcycle")
    bundle_of_361 = make_bundle(
        tmp_path / "m.safetensors",
        data={"images": [], "labels": [], "kind": "photos", "sets": [{"name": "bdd-anomaly-361"}]}
        | {"classes": {i: n for i, n in city.classes.items() if n not in less}, "anomaly": [16, 17]},
    )
    assert held(bundle_of_361, "bdd-anomaly-361") == ["train", "motorcycle"]  # whose authors say what is anomalous
    own = {"images": ["x"], "labels": ["y"]}
    assert held(trained(**own, classes={3: "road", 8: "car"}, anomaly=[10])) == ["bicyclist"]
    assert held(trained(**own, classes={3: "road", 7: "car"}, anomaly=[10])) == []  # another numbering
    assert held(model) == [] and held(model, hold_out=["car"]) == ["car"]
    assert held(by_set, hold_out=["tree"]) == ["sky", "tree", "car"]
    assert held(by_set, "camvid-ood") == ["sky", "car", "animal"]
    assert held(model, "camvid-ood") == ["animal"] and held(bundle_of_361, "bdd-anomaly") == BDD_ANOMALIES
    assert held(model, "cityscapes", ["car"]) == ["car"] and held(by_set, "cityscapes") == ["sky", "car"]


def test_a_set_of_anomalies_alone_is_measured_with_any_classes(tmp_path, track):
    names = {0: "cat", 1: "dog"}
    bundle = make_bundle(tmp_path / "m.safetensors", data=ROADS | {"classes": names}, predict={"tile_px": 160})
    result = evaluate_set(data_set("smiyc-anomaly"), track, bundle=bundle)
    assert result.pixels > 0 and math.isnan(result.miou) and not result.open_set and not result.left_out


def test_a_folder_of_figures_holds_json_csv_scores_and_pictures(tmp_path, camvid, model_path, model, capsys):
    void = np.full((90, 130), 11, np.uint8)
    write_image(camvid / "testannot" / "frame_3.png", void)
    out = tmp_path / "out"
    given = ["evaluate", "camvid", str(camvid), "--model", str(model_path), "--out", str(out), "--set", HELD]
    assert _run(given, debug=False) == 0
    assert sorted(p.name for p in out.iterdir()) == ["classes", "images.csv", "metrics.json", "pictures", "scores"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["camvid", "out"]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads((out / "metrics.json").read_text(), parse_constant=refuse)
    assert found["data_set"] == "camvid" and found["source"] == model.identity and found["skipped"] == ["frame_3"]
    with (out / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"frame_{i}" for i in range(4)]
    precision = [float(row["average_precision"]) for row in rows[:3]]
    assert rows[3]["average_precision"] == "" and rows[3]["pixels"] == "0"
    worst = f"worst_1_frame_{int(np.argmin(precision))}.png"
    names = sorted(p.name for p in (out / "pictures").iterdir())
    assert worst in names and len(names) == 3
    for name in names:
        with Image.open(out / "pictures" / name) as shown:
            shown.load()
            assert shown.width > 500
    score, classes = np.load(out / "scores" / "frame_0.npy"), np.load(out / "classes" / "frame_0.npy")
    assert (score.dtype, score.shape, classes.dtype) == (np.float16, (90, 130), np.uint8)
    assert "figures" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_frames_of_one_name_are_kept_apart(tmp_path, miniature, model):
    root, tree = miniature("streethazards")
    evaluate_set(data_set("streethazards"), root, bundle=model, out=tmp_path / "out")
    scores = tmp_path / "out" / "scores"
    assert {p.relative_to(scores).as_posix() for p in scores.rglob("*.npy")} == {f"{name}.npy" for name in tree["test"]}
    (scores / "t5" / "300.npy").unlink()
    with pytest.raises(DataError, match="1 of 2 images without a score file: t5/300"):
        evaluate_set(data_set("streethazards"), root, scores=scores)


# Bad inputs: each is refused with the remedy, and the exit code of its kind.


def evaluate(capsys, *arguments):
    """Exit code and what was said on standard error."""
    code = _run(["evaluate", *map(str, arguments)], debug=False)
    said = capsys.readouterr().err
    assert "Traceback" not in said and "bug in geood" not in said
    return code, said


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("camvdi", "did you mean camvid?"),
        ("smiyc-anomalies", "did you mean smiyc-anomaly?"),
        ("zzz", "geood data list"),
        ("pair", "did you mean pairs?"),
        ("scence", "did you mean scenes?"),
    ],
)
def test_an_unknown_set_names_the_nearest(tmp_path, model_path, capsys, name, wanted):
    code, said = evaluate(capsys, name, tmp_path, "--model", model_path)
    assert code == 2 and wanted in said


def test_a_wrong_root_names_the_nearest_that_is_right(tmp_path, camvid, model_path, capsys):
    for wrong in (camvid / "test", camvid / "testannot", tmp_path):
        code, said = evaluate(capsys, "camvid", wrong, "--model", model_path)
        assert code == 3 and f"but {camvid} does; give that folder" in said
    code, said = evaluate(capsys, "camvid", tmp_path / "none", "--model", model_path)
    assert code == 3 and "no such folder" in said


def test_an_unknown_split_names_those_there_are(camvid, model_path, capsys):
    code, said = evaluate(capsys, "camvid", camvid, "--model", model_path, "--split", "tset")
    assert code == 2 and "has no split tset; it has train, val, test" in said


def test_labels_of_another_size(camvid, model_path, capsys):
    write_image(camvid / "testannot" / "frame_1.png", blocks(45, 65, range(12), 1))
    code, said = evaluate(capsys, "camvid", camvid, "--model", model_path)
    assert code == 3 and "labels of 65 x 45 px for an image of 130 x 90 (frame_1.png)" in said


def test_colours_where_ids_are_expected(camvid, model_path, capsys):
    write_image(camvid / "testannot" / "frame_1.png", picture(90, 130))
    code, said = evaluate(capsys, "camvid", camvid, "--model", model_path)
    assert code == 3 and "frame_1.png" in said and "bands" in said


def test_images_without_labels_and_labels_without_image_are_left_out_and_said(camvid, model, caplog):
    (camvid / "testannot" / "frame_1.png").unlink()
    (camvid / "test" / "frame_2.png").unlink()
    result = evaluate_set(data_set("camvid"), camvid, bundle=model, settings=[HELD])
    assert [row["image"] for row in result.images] == ["frame_0", "frame_3"]
    assert "no labels for 1 image, left out: frame_1 first" in caplog.text
    assert "no image for 1 label file: " in caplog.text and "testannot/frame_2.png first" in caplog.text


def test_a_set_without_any_labels(camvid, model_path, capsys):
    shutil.rmtree(camvid / "testannot")
    code, said = evaluate(capsys, "camvid", camvid, "--model", model_path)
    assert code == 3 and "no image of camvid, split test, has labels" in said


def test_a_void_image_is_skipped_counted_and_warned_of(track, model, caplog):
    whole = evaluate_set(data_set("smiyc-anomaly"), track, bundle=model)
    extra = track / "labels_masks" / "validation0008_labels_semantic.png"
    write_image(extra, np.full((90, 130), 255, np.uint8))
    write_image(track / "images" / "validation0008.png", picture(90, 130, seed=8))
    result = evaluate_set(data_set("smiyc-anomaly"), track, bundle=model)
    assert result.skipped == ["validation0008"] and "void in every pixel: 1 image" in result.table()
    assert "void in every pixel, which counts for nothing: 1 of the images, validation0008" in caplog.text
    for row, before in zip(result.rows, whole.rows, strict=True):
        assert row == before | {"skipped": 1}


def test_a_set_without_an_anomaly_has_no_such_figures(tmp_path, camvid, model_path, model, caplog, capsys):
    result = evaluate_set(data_set("camvid"), camvid, bundle=model)
    assert all(math.isnan(row[key]) for row in result.rows for key in ("average_precision", "auroc", "fpr95"))
    assert "camvid, split test: no anomaly pixel" in caplog.text and result.miou > 0
    assert not result.open_set and not result.components and "no anomaly pixel" in result.table()
    for i in range(1, 4):
        (camvid / "test" / f"frame_{i}.png").unlink()
    code, _ = evaluate(capsys, "camvid", camvid, "--model", model_path, "--out", tmp_path / "out")
    assert code == 0 and [p.name for p in (tmp_path / "out" / "pictures").iterdir()] == ["image_1_frame_0.png"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"][0]["average_precision"] is None


def test_a_model_that_shares_no_class(tmp_path, camvid, capsys):
    make_bundle(tmp_path / "m.safetensors", data=ROADS | {"classes": {0: "cat", 1: "dog"}})
    code, said = evaluate(capsys, "camvid", camvid, "--model", tmp_path / "m.safetensors")
    assert code == 3 and "share no class: sky, building" in said and "cat, dog; classes are matched by name" in said


def test_a_model_of_other_bands(tmp_path, camvid, capsys):
    make_bundle(tmp_path / "m.safetensors", bands=4, data=ROADS)
    code, said = evaluate(capsys, "camvid", camvid, "--model", tmp_path / "m.safetensors")
    assert code == 3 and "has 3 bands" in said and "trained on scenes with 4" in said


@pytest.mark.parametrize(
    ("value", "said"), [(2, "--set 'data.label_ids={2: 255}'"), (-1, "--set 'data.label_ids={-1: 1, 1: 255}'")]
)
def test_masks_in_other_codings_are_refused_with_the_mapping_that_reads_them(
    tmp_path, model, model_path, capsys, value, said
):
    track = write_track(tmp_path / "track", frames=1)
    right = evaluate_set(data_set("smiyc-anomaly"), track, bundle=model)
    for path in (track / "labels_masks").iterdir():
        ids = np.asarray(Image.open(path)).astype(np.int16)
        other = np.where(ids == 255, 2, ids) if value == 2 else np.select([ids == 1, ids == 255], [-1, 1], 0)
        if value == 2:
            write_image(path, other.astype(np.uint8))
        else:
            path.unlink()
            write_raster(path.with_suffix(".tif"), other.astype(np.int16), crs=None).rename(path)
    given = ["smiyc-anomaly", track, "--model", model_path]
    code, message = evaluate(capsys, *given)
    assert code == 3 and said in message
    mapping = said.removeprefix("--set '").removesuffix("'")
    out = tmp_path / "out"
    found = evaluate_set(data_set("smiyc-anomaly"), track, bundle=model, settings=[mapping], out=out)
    assert found.figures() == right.figures() and len(list((out / "pictures").iterdir())) == 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.hold_out=[cat]", "data.hold_out: cat is not a class of camvid: sky, building"),
        ("data.hold_out=car", "for example data.hold_out=[car]"),
        ("data.hold_out=[", "the value is not valid YAML"),
        ("data.label_ids={a: 1}", "'data.label_ids={2: 255}'"),
        ("data.root=x", "of data only hold_out and label_ids"),
        ("train.seed=1", "sections score and predict"),
        ("score.kind=uno", "segmenter.outlier"),
    ],
)
def test_settings_that_are_none(camvid, model_path, capsys, setting, said):
    code, message = evaluate(capsys, "camvid", camvid, "--model", model_path, "--set", setting)
    assert code == 2 and said in message


# Scores from files


def write_scores(folder, count=4, size=(90, 130), dtype=np.float32):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        np.save(folder / f"validation000{i}.npy", np.random.default_rng(i).random(size).astype(dtype))
    return folder


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".hdf5", ".h5"])
def test_every_kind_of_score_file_is_read_alike(tmp_path, track, suffix):
    wanted = evaluate_set(data_set("smiyc-anomaly"), track, scores=write_scores(tmp_path / "npy"))
    for path in (tmp_path / "npy").iterdir():
        score, other = np.load(path), tmp_path / "other" / "deep" / f"{path.stem}{suffix}"
        other.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(other, score[None])
        elif suffix == ".tif":
            write_raster(other, score, crs=None)
        else:
            with h5py.File(other, "w") as file:
                file["value"] = score
    result = evaluate_set(data_set("smiyc-anomaly"), track, scores=tmp_path / "other")
    assert result.rows == wanted.rows and result.components == wanted.components


def _spoil_nan(folder):
    score = np.load(folder / "validation0001.npy")
    score[:] = np.nan
    np.save(folder / "validation0001.npy", score)


def _spoil_infinite(folder):
    score = np.load(folder / "validation0001.npy")
    score[:] = np.inf
    np.save(folder / "validation0001.npy", score)


def _spoil_large(folder):
    np.save(folder / "validation0001.npy", np.full((90, 130), 1e6))


def _spoil_shape(folder):
    np.save(folder / "validation0001.npy", np.zeros((45, 65), np.float32))


def _spoil_kind(folder):
    np.save(folder / "validation0001.npy", np.zeros((90, 130), bool))


def _spoil_bands(folder):
    (folder / "validation0001.npy").unlink()
    write_raster(folder / "validation0001.tif", np.zeros((3, 90, 130), np.float32), crs=None)


def _spoil_file(folder):
    (folder / "validation0001.npy").write_bytes(b"")


def _spoil_pickle(folder):
    np.save(folder / "validation0001.npy", np.array([{}]), allow_pickle=True)


def _spoil_key(folder):
    (folder / "validation0001.npy").unlink()
    with h5py.File(folder / "validation0001.hdf5", "w") as file:
        file["scores"] = np.zeros((90, 130))


def _spoil_missing(folder):
    for i in (1, 3):
        (folder / f"validation000{i}.npy").unlink()


def _spoil_twice(folder):
    write_raster(folder / "validation0001.tif", np.zeros((90, 130), np.float32), crs=None)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_spoil_nan, "validation0001: its scores cannot be used"),
        (_spoil_infinite, "not finite); score this image again"),
        (_spoil_large, "beyond 65504, the range of float16; rescale them"),
        (_spoil_shape, "float32 of shape (45, 65); scores are numbers (height, width) = (90, 130)"),
        (_spoil_kind, "bool of shape (90, 130); scores are numbers"),
        (_spoil_bands, "of shape (3, 90, 130)"),
        (_spoil_file, "validation0001.npy: no scores can be read from it"),
        (_spoil_pickle, "validation0001.npy: object of shape (1,); scores are numbers"),
        (_spoil_key, "validation0001.hdf5: has no data set value; write the scores under that name"),
        (_spoil_missing, "2 of 4 images without a score file: validation0001, validation0003; write each as NAME.npy"),
        (_spoil_twice, "both scores of validation0001; move one of them away"),
    ],
    ids=lambda value: value.__name__.removeprefix("_spoil_") if callable(value) else "",
)
def test_score_files_that_cannot_be_used(tmp_path, track, capsys, spoil, said):
    folder = write_scores(tmp_path / "scores")
    spoil(folder)
    code, message = evaluate(capsys, "smiyc-anomaly", track, "--scores", folder, "--out", tmp_path / "out")
    assert code == 3 and said in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores", "track"]


def test_scores_of_void_pixels_may_be_anything(tmp_path):
    track = write_track(tmp_path / "track", frames=1)
    folder = write_scores(tmp_path / "scores", 1)
    wanted = evaluate_set(data_set("smiyc-anomaly"), track, scores=folder)
    for path in folder.iterdir():
        score = np.load(path)
        void = np.asarray(Image.open(track / "labels_masks" / f"{path.stem}_labels_semantic.png")) == 255
        score[void] = np.where(np.indices(score.shape).sum(0) % 2, np.nan, np.inf)[void]
        np.save(path, score)
    result = evaluate_set(data_set("smiyc-anomaly"), track, scores=folder, out=tmp_path / "out")
    assert result.rows == wanted.rows and result.components == wanted.components


def test_either_a_model_or_scores(tmp_path, track, model, model_path, capsys, monkeypatch):
    folder = write_scores(tmp_path / "scores")
    monkeypatch.chdir(tmp_path)
    code, said = evaluate(capsys, "smiyc-anomaly", track, "--model", model_path, "--scores", folder)
    assert code == 2 and "give --model or --scores, one of the two" in said
    code, said = evaluate(capsys, "smiyc-anomaly", track)
    assert code == 2 and "give --model BUNDLE" in said
    for given in ({}, {"bundle": model, "scores": folder}):
        with pytest.raises(ConfigError, match="one of the two"):
            evaluate_set(data_set("smiyc-anomaly"), track, **given)
    code, said = evaluate(capsys, "smiyc-anomaly", track, "--scores", folder, "--set", "score.kind=energy")
    assert code == 2 and "scores from files have no settings" in said
    code, said = evaluate(capsys, "smiyc-anomaly", track, "--scores", tmp_path / "none")
    assert code == 3 and "no such folder; give the folder of score files" in said
    code, said = evaluate(capsys, "scenes", track, "--scores", folder)
    assert code == 2 and "scenes have none" in said


# The folder of figures


def tree_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("foreign", ["notes.txt", "scores/mine.tif", "pictures/scan.jpg", "sub/x.npy"])
def test_a_folder_with_other_files_is_never_touched(tmp_path, track, capsys, foreign):
    folder, out = write_scores(tmp_path / "scores"), tmp_path / "out"
    given = ["smiyc-anomaly", track, "--scores", folder, "--out", out]
    assert evaluate(capsys, *given)[0] == 0
    code, said = evaluate(capsys, *given)
    assert code == 2 and "exists already; add --overwrite" in said
    assert evaluate(capsys, *given, "--overwrite")[0] == 0
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_text("mine")
    before = tree_of(out)
    code, said = evaluate(capsys, *given, "--overwrite")
    assert code == 2 and "is left alone; choose another --out" in said and tree_of(out) == before


def test_scores_are_no_evaluation_and_never_read_from_what_is_replaced(tmp_path, track, capsys):
    out = tmp_path / "out"
    folder = write_scores(out / "scores")
    given = ["smiyc-anomaly", track, "--scores", folder, "--out", out, "--overwrite"]
    before = tree_of(out)
    code, said = evaluate(capsys, *given)
    assert code == 2 and "is left alone" in said and tree_of(out) == before
    (out / "metrics.json").write_text("{}")
    code, said = evaluate(capsys, *given)
    assert code == 2 and f"holds {folder}, which is to be read" in said and len(tree_of(out)) == 5


def test_an_out_that_is_a_file_or_has_no_place(tmp_path, track, capsys):
    folder, file = write_scores(tmp_path / "scores"), tmp_path / "file"
    file.write_text("mine")
    given = ["smiyc-anomaly", track, "--scores", folder, "--out"]
    for more, wanted in (((), "exists already"), (("--overwrite",), "is left alone")):
        code, said = evaluate(capsys, *given, file, *more)
        assert code == 2 and wanted in said and file.read_text() == "mine"
    code, said = evaluate(capsys, *given, tmp_path / "none" / "out")
    assert code == 2 and "there is no folder" in said and not (tmp_path / "none").exists()


def test_a_full_disk_leaves_nothing_behind_and_what_was_there(small_disk, tmp_path, capsys):
    track = write_track(tmp_path / "track", frames=1)
    folder = write_scores(tmp_path / "scores")
    given = ["smiyc-anomaly", track, "--scores", folder, "--out", small_disk / "out"]
    assert evaluate(capsys, *given)[0] == 0
    before = tree_of(small_disk)
    (small_disk / "filler").write_bytes(bytes(int(2e6) - sum(map(len, before.values()))))
    code, said = evaluate(capsys, *given, "--overwrite")
    assert code == 2 and "No space left on device" in said
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", "out"]
    assert {k: v for k, v in tree_of(small_disk).items() if k != "filler"} == before


def test_a_failure_while_the_new_takes_its_place_brings_the_old_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with staged(out) as folder:
        (folder / "metrics.json").write_text("old")
    replace = os.replace

    def fail(source, target):
        if "partial" in str(source):
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="cannot be written"), staged(out, overwrite=True) as folder:
        (folder / "metrics.json").write_text("new")
    assert tree_of(tmp_path) == {"out/metrics.json": b"old"} and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_incomplete_set_is_said(miniature, model, caplog):
    root, _ = miniature("road-anomaly")
    result = evaluate_set(data_set("road-anomaly"), root, bundle=model)
    assert "figures do not compare" in caplog.text and f"{len(result.images)} of 60 of road-anomaly" in result.table()
    assert result.figures()["expected_images"] == 60


def test_a_taught_anomaly_is_said(miniature, tmp_path, caplog):
    root, _ = miniature("bdd-anomaly")
    classes = data_set("cityscapes").taxonomy.classes
    bundle = make_bundle(tmp_path / "m.safetensors", data={"kind": "photos", "classes": dict(classes), "anomaly": []})
    result = evaluate_set(data_set("bdd-anomaly"), root, bundle=bundle)
    assert set(result.leaked) == set(BDD_ANOMALIES) and "was trained on" in caplog.text


def test_miou_is_over_the_classes_that_both_know(camvid, tmp_path):
    names = {0: "sky", 1: "road", 2: "a class of elsewhere"}
    bundle = make_bundle(tmp_path / "m.safetensors", data=ROADS | {"classes": names}, predict={"tile_px": 160})
    result = evaluate_set(data_set("camvid"), camvid, bundle=bundle, settings=["data.hold_out=[car]"])
    assert set(result.class_iou) == {"sky", "road"}
    assert result.miou == pytest.approx(np.nanmean(list(result.class_iou.values())))


def test_small_shares_keep_their_figures():
    assert [percent(x).strip() for x in (0.0041, 0.0003, 0.01, 0.123, 0.0, float("nan"))] == [
        *("0.41", "0.03", "1.0", "12.3", "0.0", "-")
    ]


def test_towns_take_their_open_set_threshold_from_each_other(miniature, tmp_path):
    root, _ = miniature("streethazards-densehybrid")
    entry = data_set("streethazards-densehybrid")
    known = {i: n for i, n in entry.taxonomy.classes.items() if i not in (3, 13)}
    bundle = make_bundle(tmp_path / "m.safetensors", data=ROADS | {"classes": known}, predict={"tile_px": 64})
    truth = ClassMapping.of(entry, bundle).truth
    towns: dict = {}
    for frame, decoded, scored in scored_frames(entry.name, root, bundle):
        curve = towns.setdefault(frame.image.parent.name, PixelCurve())
        curve.update(scored.scores["jsd"], truth[decoded.ids])
    assert len(towns) == 2
    result, cuts = evaluate_set(entry, root, bundle=bundle), {}
    frames = Counter(row["image"].split("/")[0] for row in result.images)
    for town, other in zip(towns, reversed(towns), strict=True):
        points = towns[other].curve
        cuts[town] = points.scores[np.argmax(points.hits / points.positives > 0.95)]  # as DenseHybrid picks it
    wanted = sum(float(cut) * frames[town] for town, cut in cuts.items()) / sum(frames.values())
    assert result.open_set["threshold"] == pytest.approx(wanted)
