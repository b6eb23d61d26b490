"""Submissions: the trees and files that benchmark servers take, and the official tool's own reading of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from geood.catalog import data_set
from geood.cli.process import _run
from geood.datasets.discovery import find_frames
from geood.datasets.frames import Frame, decode
from geood.errors import ConfigError, DataError, OutputError
from geood.evaluation.submission import submit
from geood.evaluation.tile_scores import score_frame
from geood.models.bundle import ModelBundle
from geood.models.inference import for_inference
from support.bundles import make_bundle
from support.rasters import picture


def write_image(path, array):
    """An image (C, H, W) or (H, W) of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.transpose(1, 2, 0) if array.ndim == 3 else array).save(path)
    return path


def expected(frame, bundle):
    kind = bundle.config.score.kind
    scored = score_frame(for_inference(bundle), decode(frame._replace(labels=None), indexes=(1, 2, 3)), kinds=[kind])
    return scored.scores[kind], scored.classes


def test_a_track_has_one_float16_file_for_each_image_labelled_or_not(tmp_path, bundle, miniature):
    root, tree = miniature("smiyc-anomaly")
    assert submit("smiyc-anomaly", root, bundle, tmp_path / "out", method="mine") == len(tree["all"])
    folder = tmp_path / "out" / "anomaly_p" / "mine" / "AnomalyTrack-all"
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{name}.hdf5" for name in tree["all"])
    entry = data_set("smiyc-anomaly")
    frames = find_frames(entry, root, entry.split("all")).frames
    assert {frame.labels is None for frame in frames} == {True, False}
    for frame in frames:
        with h5py.File(folder / f"{frame.name}.hdf5") as file:
            assert list(file) == ["value"] and file["value"].dtype == np.float16
            np.testing.assert_array_equal(file["value"][:], expected(frame, bundle)[0])


@pytest.mark.parametrize(
    ("name", "folder"), [("smiyc-obstacle", "ObstacleTrack-all"), ("smiyc-lost-and-found", "LostAndFound-test")]
)
def test_the_other_tracks_lie_where_the_official_tool_looks(tmp_path, bundle, miniature, name, folder):
    root, tree = miniature(name)
    frames = tree["all" if "all" in tree else "test"]
    assert submit(name, root, bundle, tmp_path, method="m") == len(frames)
    assert {p.stem for p in (tmp_path / "anomaly_p" / "m" / folder).glob("*.hdf5")} == set(frames)


def test_an_incomplete_track_is_warned_of(tmp_path, bundle, miniature, caplog):
    submit("smiyc-anomaly", miniature("smiyc-anomaly")[0], bundle, tmp_path, method="m")
    assert "4 images, 110 in the complete track" in caplog.text


def test_fishyscapes_files_are_a_float32_map_and_class_ids_of_one_byte(tmp_path):
    bundle = make_bundle(
        tmp_path / "m.safetensors",
        data={"images": ["x"], "labels": ["y"], "classes": {3: "land", 40: "road", 200: "roof"}, "anomaly": []},
    )
    names = ("10.png", "2.jpg")
    frames = [
        Frame(Path(n).stem, write_image(tmp_path / "in" / n, picture(70, 90, seed=i)), None)
        for i, n in enumerate(names)
    ]
    (tmp_path / "in" / "notes.txt").write_text("no image")
    assert submit("fishyscapes", tmp_path / "in", bundle, tmp_path / "out", method="geood") == 2
    assert len(list((tmp_path / "out").iterdir())) == 4
    for frame in frames:
        scores, classes = expected(frame, bundle)
        anomaly, segmentation = (np.load(tmp_path / f"out/{frame.name}_{k}.npy") for k in ("anomaly", "segmentation"))
        assert (anomaly.dtype, segmentation.dtype) == (np.float32, np.uint8)
        np.testing.assert_array_equal(anomaly, scores)
        np.testing.assert_array_equal(segmentation, np.array([3, 40, 200])[classes])
        assert set(np.unique(segmentation)) <= {3, 40, 200}


def test_the_score_is_the_one_that_is_asked_for(tmp_path, bundle):
    write_image(tmp_path / "in" / "a.png", picture(64, 64))
    for kind in ("jsd", "energy"):
        submit("fishyscapes", tmp_path / "in", bundle, tmp_path / kind, method="m", settings=[f"score.kind={kind}"])
    assert not np.array_equal(*(np.load(tmp_path / kind / "a_anomaly.npy") for kind in ("jsd", "energy")))


def test_what_exists_is_replaced_only_when_asked_and_nothing_is_left_half_written(tmp_path, bundle, monkeypatch):
    write_image(tmp_path / "in" / "a.png", picture(64, 64))
    out = tmp_path / "out"
    submit("fishyscapes", tmp_path / "in", bundle, out, method="m")
    before = (out / "a_anomaly.npy").read_bytes()
    (out / "a_anomaly.npy").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"a_anomaly\.npy: exists already; add --overwrite"):
        submit("fishyscapes", tmp_path / "in", bundle, out, method="m")
    assert (out / "a_anomaly.npy").read_bytes() == b"mine"
    submit("fishyscapes", tmp_path / "in", bundle, out, method="m", overwrite=True)
    assert (out / "a_anomaly.npy").read_bytes() == before

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=r"No space left on device.*another --out"):
        submit("fishyscapes", tmp_path / "in", bundle, tmp_path / "full", method="m")
    assert not list((tmp_path / "full").iterdir())


@pytest.mark.parametrize(
    ("kind", "names", "said"),
    [
        (DataError, (), "no images"),
        (DataError, ("a.png", "a.jpg"), "scores of one name"),
        (DataError, ("a.jpg", "a.jpg.png", "a.png"), "scores of one name"),
    ],
)
def test_folders_of_images_that_cannot_be_submitted(tmp_path, bundle, kind, names, said):
    (tmp_path / "in").mkdir()
    for name in names:
        write_image(tmp_path / "in" / name, picture(64, 64))
    with pytest.raises(kind, match=said):
        submit("fishyscapes", tmp_path / "in", bundle, tmp_path / "out", method="m")
    assert not (tmp_path / "out").exists()


def test_images_of_other_bands_are_refused_before_any_work(tmp_path, bundle):
    write_image(tmp_path / "in" / "a.png", picture(64, 64))
    write_image(tmp_path / "in" / "b.png", picture(64, 64)[0])
    with pytest.raises(DataError, match=r"b\.png: has 1 band .*trained on scenes with 3"):
        submit("fishyscapes", tmp_path / "in", bundle, tmp_path / "out", method="m")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["camvid", "{root}"], 2, "camvid: not a benchmark that geood can write for; known: smiyc-anomaly"),
        (["smiyc-anomaly", "{root}", "--method", "../x"], 2, "--method ../x: it becomes the name of a folder"),
        (["smiyc-anomaly", "{root}/images"], 3, "{root} does; give that folder"),
        (["smiyc-anomaly", "{root}", "--set", "train.seed=1"], 2, "only the sections score and predict"),
    ],
)
def test_errors_of_the_command_line(tmp_path, bundle_path, miniature, capsys, arguments, code, said):
    root, _ = miniature("smiyc-anomaly")
    given = [a.format(root=root) for a in arguments]
    out = tmp_path / "out"
    assert _run(["submit", *given, "--out", str(out), "--model", str(bundle_path)], debug=False) == code
    assert said.format(root=root) in capsys.readouterr().err and not out.exists()


def test_without_h5py_the_remedy_is_said_before_any_work(tmp_path, bundle, miniature, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"pip install 'geood-toolkit\[hdf5\]'"):
        submit("smiyc-anomaly", miniature("smiyc-anomaly")[0], bundle, tmp_path / "out", method="m")
    assert not (tmp_path / "out").exists()


def fake_track(root, bundle):
    """A complete AnomalyTrack of small frames, whose anomalies are where a bundle's scores are high, more or less."""
    names = [f"scene{i:04d}" for i in range(100)] + [f"validation{i:04d}" for i in range(10)]
    for i, name in enumerate(names):
        path = write_image(root / "images" / f"{name}.jpg", picture(160, 224, seed=i))
        if not name.startswith("validation"):
            continue
        rng = np.random.default_rng(i)
        score, _ = expected(Frame(name, path, None), bundle)
        haze = ndimage.gaussian_filter(score.astype(np.float32), 5)
        haze = haze + 0.7 * haze.std() * ndimage.gaussian_filter(rng.normal(size=haze.shape), 5) * 10
        mask = (haze > np.quantile(haze, 0.9)).astype(np.uint8)
        mask[:20] = 255
        if name.endswith("3"):
            mask[mask == 1] = 0
        write_image(root / "labels_masks" / f"{name}_labels_semantic.png", mask)
        write_image(root / "labels_masks" / f"{name}_labels_semantic_color.png", mask)


@pytest.mark.skipif("GEOOD_ORACLE_SMIYC" not in os.environ, reason="GEOOD_ORACLE_SMIYC names no official checkout")
def test_the_official_tool_reads_a_submission_and_finds_the_same_figures(tmp_path, capsys):
    """With GEOOD_ORACLE_SMIYC, a checkout of road-anomaly-benchmark, and GEOOD_ORACLE_PYTHON, its interpreter."""
    bundle_path = tmp_path / "m.safetensors"
    make_bundle(bundle_path, predict={"tile_px": 256})
    bundle = ModelBundle.load(bundle_path).with_settings(["score.smooth_px=8"])
    root, outputs = tmp_path / "dataset_AnomalyTrack", tmp_path / "outputs"
    fake_track(root, bundle)
    given = ["smiyc-anomaly", str(root), "--model", str(bundle_path), "--set", "score.smooth_px=8"]
    assert _run(["submit", *given, "--out", str(outputs), "--method", "mine"], debug=False) == 0
    assert _run(["evaluate", *given, "--out", str(tmp_path / "evaluation")], debug=False) == 0
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    [pixels] = [row for row in found["rows"] if row["score"] == found["score"]]
    place = {"DIR_DATASETS": str(tmp_path), "DIR_OUTPUTS": str(outputs), "MPLBACKEND": "agg"}
    for metric in ("PixBinaryClass", "SegEval-AnomalyTrack"):
        command = [os.environ["GEOOD_ORACLE_PYTHON"], "-m", "road_anomaly_benchmark", "metric", metric, "mine"]
        subprocess.run(
            [*command, "AnomalyTrack-validation", "--no-parallel"],
            cwd=os.environ["GEOOD_ORACLE_SMIYC"],
            env=os.environ | place,
            check=True,
            capture_output=True,
        )
    official = {}
    for kind in ("PixBinaryClass/data/PixClassCurve", "SegEval-AnomalyTrack/data/SegEval-AnomalyTrackResults"):
        with h5py.File(outputs / f"{kind}_mine_AnomalyTrack-validation.hdf5") as file:
            official |= dict(file.attrs)
    print(official, pixels, found["components"], sep="\n")
    for ours, theirs in (
        ("average_precision", "area_PRC"),
        ("auroc", "area_ROC"),
        ("fpr95", "tpr95_fpr"),
        ("best_f1", "best_f1"),
        ("best_f1_threshold", "best_f1_threshold"),
    ):
        assert pixels[ours] == pytest.approx(official[theirs], abs=1e-9), ours
    components = found["components"]
    assert components["predicted_components"] > 10
    assert components["threshold"] == official["best_f1_threshold"]
    for ours, theirs in (
        ("mean_siou", "sIoU_gt"),
        ("mean_predicted_siou", "sIoU_pred"),
        ("mean_ppv", "prec_pred"),
        ("mean_f1", "f1_mean"),
    ):
        assert components[ours] == pytest.approx(official[theirs], abs=1e-12), ours


def test_a_photograph_that_viewers_turn_is_scored_upright_and_written_as_stored(tmp_path, bundle):
    image = picture(48, 80)
    write_image(tmp_path / "in" / "a.png", image)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    turned = np.ascontiguousarray(np.rot90(image.transpose(1, 2, 0), 1))
    Image.fromarray(turned).save(tmp_path / "in" / "b.png", exif=exif)
    submit("fishyscapes", tmp_path / "in", bundle, tmp_path / "out", method="m")
    for kind in ("anomaly", "segmentation"):
        upright, stored = (np.load(tmp_path / "out" / f"{name}_{kind}.npy") for name in "ab")
        np.testing.assert_array_equal(stored, np.rot90(upright, 1))
