"""Laws of plain folders: figures are those of `predict`, of data sets and of score files; bad ones are refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import rasterio
from PIL import Image

from geood.catalog import data_set
from geood.cli.process import _run
from geood.errors import ConfigError, DataError
from geood.evaluation.catalog_sets import evaluate_set
from geood.evaluation.pairs import evaluate_pairs
from geood.metrics.components import ComponentScores
from geood.metrics.protocols import PROTOCOLS, protocol_named
from geood.models.bundle import ModelBundle
from geood.prediction.pipeline import predict
from geood.prediction.plan import SceneOptions
from support.bundles import make_bundle
from support.cpu import slow
from support.rasters import picture

SIZE = (90, 131)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A model of photographs 60 px wide."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    dataclasses.replace(make_bundle(path, predict={"tile_px": 160, "halo_px": 32}), photo_width=60).save(path)
    return path


@pytest.fixture(scope="module")
def model(model_path):
    return ModelBundle.load(model_path)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Spares the pictures, which take longest."""
    monkeypatch.setattr("geood.evaluation.measurement.draw_frame", lambda *_, **__: None)


def mask(seed, values=(0, 0, 0, 1, 255)):
    """Random values in squares."""
    coarse = np.random.default_rng([5, seed]).choice(values, (9, 12))
    return np.kron(coarse, np.ones((12, 12), int))[: SIZE[0], : SIZE[1]].astype(np.uint8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_pairs(root, *, images="images/{}.png", labels="labels/{}.png", count=3):
    for i in range(count):
        write(root / images.format(f"{i:03d}"), picture(*SIZE, seed=i).transpose(1, 2, 0))
        write(root / labels.format(f"{i:03d}"), mask(i))
    return root


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "pairs")


@pytest.mark.parametrize("protocol", ["smiyc", *slow(*sorted(set(PROTOCOLS) - {"smiyc"}))])
def test_figures_are_those_of_the_protocol_on_what_predict_writes(tmp_path, pairs, model, model_path, protocol):
    """At the width of the model, with scores at the images' own size; components where the protocol has them."""
    result = evaluate_pairs(pairs, protocol=protocol, bundle=model, out=tmp_path / "out")
    predict([pairs / "images"], tmp_path / "maps", bundle_path=model_path, threshold=0.5)
    wanted, sizes = protocol_named(protocol), PROTOCOLS[protocol].components_px
    scores = {}
    for i in range(3):
        with rasterio.open(tmp_path / "maps" / f"{i:03d}.tif") as raster:
            written = raster.read(1)
        scores[i] = np.load(tmp_path / "out" / "scores" / f"{i:03d}.npy")
        np.testing.assert_allclose(scores[i], written, rtol=2**-10, atol=1e-6)
        wanted.update(scores[i], mask(i))
    [own] = [row for row in result.rows if row["score"] == "jsd"]
    figures = wanted.figures()
    assert figures == {key: own[key] for key in figures}
    assert bool(result.components) == (sizes is not None)
    if sizes:
        components = ComponentScores(*sizes)
        for i in range(3):
            components.update(scores[i], mask(i), threshold=figures["best_f1_threshold"])
        found = components.figures()
        assert found == {key: result.components[key] for key in found} and found["true_components"] > 0
    saved = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (saved["data_set"], saved["protocol"], len(saved["images"])) == ("pairs", protocol, 3)


@pytest.mark.parametrize(
    ("layout", "given"),
    [
        ({}, {}),
        ({"images": "images/{}.png", "labels": "labels_masks/{}_labels_semantic.png"}, {}),
        ({"labels": "labels/{}-mask.png"}, {}),
        ({"images": "frames/a/{}.png", "labels": "gt/{}.png"}, {"images": "frames", "labels": "gt/*.png"}),
        ({"images": "{}.png", "labels": "{}_gt.png"}, {"images": "*.png", "labels": "*_gt.png"}),
        ({"images": "images/{}.tif", "labels": "labels/{}.tif"}, {"labels": "labels"}),
    ],
)
def test_any_layout_of_the_same_pairs_has_the_same_figures(tmp_path, pairs, model, layout, given):
    wanted = evaluate_pairs(pairs, protocol="fishyscapes", bundle=model)
    found = evaluate_pairs(write_pairs(tmp_path / "o", **layout), protocol="fishyscapes", bundle=model, **given)
    assert found.rows == wanted.rows and found.images == wanted.images and found.pixels == wanted.pixels


def test_a_folder_in_an_official_layout_has_the_figures_of_the_data_set(tmp_path, model):
    layout = {"images": "images/validation{}.png", "labels": "labels_masks/validation{}_labels_semantic.png"}
    root = write_pairs(tmp_path / "track", **layout)
    by_name, as_pairs = (
        evaluate_set(data_set("smiyc-anomaly"), root, bundle=model),
        evaluate_pairs(root, protocol="smiyc", bundle=model),
    )
    assert by_name.rows == as_pairs.rows and by_name.images == as_pairs.images
    assert "published" in by_name.table() and "published" not in as_pairs.table()


def test_images_whose_names_end_as_those_of_outputs_have_files_of_their_own(tmp_path, model):
    """Each image's maps and figures are what it has alone, whatever it is called."""
    names = ("a", "a.classes", "a.scores", "a.npy", "a.classes.npy", "metrics", "images", "classes")
    root = tmp_path / "pairs"
    for i, name in enumerate(names):
        write(root / "images" / f"{name}.png", picture(40 + i, 60 + i, seed=i).transpose(1, 2, 0))
        write(root / "labels" / f"{name}.png", mask(i)[: 40 + i, : 60 + i])
    labels = str(root / "labels")
    result = evaluate_pairs(root, labels=labels, bundle=model, out=tmp_path / "out")
    assert {row["image"] for row in result.images} == set(names)
    for i, name in enumerate(names):
        for what in ("scores", "classes"):
            assert np.load(tmp_path / "out" / what / f"{name}.npy").shape == (40 + i, 60 + i)
    again = evaluate_pairs(root, labels=labels, scores=tmp_path / "out" / "scores")
    assert again.images == result.images


def test_score_files_are_measured_as_those_of_a_data_set(tmp_path, pairs, model):
    first = evaluate_pairs(pairs, protocol="smiyc", bundle=model, out=tmp_path / "out")
    again = evaluate_pairs(pairs, protocol="smiyc", scores=tmp_path / "out" / "scores")
    [row], [own] = again.rows, [row for row in first.rows if row["score"] == first.own]
    assert row | {"score": "jsd", "temperature": 2.0} == own
    assert (again.images, again.components, again.pixels) == (first.images, first.components, first.pixels)


def test_photographs_are_read_as_they_are_if_told_so(pairs, model):
    at_width = evaluate_pairs(pairs, bundle=model)
    as_is = evaluate_pairs(pairs, bundle=model, options=SceneOptions(resample=False))
    own = evaluate_pairs(pairs, bundle=dataclasses.replace(model, photo_width=None))
    assert as_is.rows == own.rows != at_width.rows and as_is.pixels == at_width.pixels
    with pytest.raises(ConfigError, match="whole images are measured; leave both out"):
        evaluate_pairs(pairs, bundle=model, options=SceneOptions(box="0,0,9,9"))


def test_other_numbers_in_masks_are_mapped_and_those_of_other_tools_are_told(tmp_path, pairs, model, caplog):
    wanted = evaluate_pairs(pairs, bundle=model)
    for i in range(3):
        write(
            tmp_path / "pairs" / "labels" / f"{i:03d}.png",
            np.array([0, 255, 100])[np.minimum(mask(i), 2)].astype("uint8"),
        )
    found = evaluate_pairs(pairs, bundle=model, settings=["data.label_ids={255: 1, 100: 255}"])
    assert found.rows == wanted.rows
    assert not evaluate_pairs(pairs, bundle=model, settings=["data.label_ids={100: 255}"]).anomaly_pixels
    assert "if another number means that in these, say so with --set 'data.label_ids={255: 1}'" in caplog.text
    write(pairs / "labels" / "001.png", np.full(SIZE, 2, np.uint8))
    with pytest.raises(DataError, match=r"001\.png: holds 2, as masks do in which 2 is void"):
        evaluate_pairs(pairs, bundle=model)


def test_what_has_no_partner_is_left_out_and_said(pairs, model, caplog):
    (pairs / "labels" / "001.png").rename(pairs / "labels" / "009.png")
    result = evaluate_pairs(pairs, bundle=model)
    assert [row["image"] for row in result.images] == ["000", "002"]
    assert "no mask for 1 image, left out: 001.png first" in caplog.text
    assert "no image for 1 mask: 009.png first" in caplog.text


def evaluate(capsys, *arguments):
    """Exit code and what was said on standard error."""
    code = _run(["evaluate", *map(str, arguments)], debug=False)
    said = capsys.readouterr().err
    assert "Traceback" not in said and "bug in geood" not in said
    return code, said


def test_bad_folders_are_refused_with_the_remedy(tmp_path, pairs, model_path, capsys):
    def refused(*arguments, code, saying, root=pairs):
        found, said = evaluate(capsys, "pairs", root, "--model", model_path, *arguments)
        assert found == code and saying in said, said

    refused(root=tmp_path / "none", code=3, saying="no such folder; give the folder that holds images and masks")
    refused("--protocol", "smyic", code=2, saying="no such protocol; choose one of pooled, fishyscapes, smiyc")
    refused("--out", tmp_path / "x.json", code=2, saying="a JSON file holds the figures of scenes alone")
    refused("--split", "val", code=2, saying="of pairs all are measured")
    refused("--set", "data.hold_out=[car]", code=2, saying="the masks of pairs say what is an anomaly")
    refused("--images", "photos", code=3, saying="--images: 'photos' names no file under")
    write(pairs / "labels_masks" / "000.png", mask(0))
    refused(code=3, saying="holds both labels and labels_masks; say where the masks are with --labels")
    shutil.rmtree(pairs / "labels_masks")
    write(pairs / "labels" / "000_colour.png", mask(0))
    refused(code=3, saying="2 masks have its name (000.png, 000_colour.png); make --labels narrower")
    (pairs / "labels" / "000_colour.png").unlink()
    (pairs / "labels" / "000.png").rename(pairs / "labels" / "000_ids.png")
    write(pairs / "labels" / "000_ids_colour.png", mask(0))
    refused(code=3, saying="make --labels narrower, such as --labels 'labels/*_ids.png'")
    (pairs / "labels" / "000_ids_colour.png").unlink()
    write(pairs / "images" / "000.jpg", picture(*SIZE).transpose(1, 2, 0))
    refused(code=3, saying="another image has the name 000 too")
    (pairs / "images" / "000.jpg").unlink()
    write(pairs / "labels" / "002.png", mask(0)[:50])
    refused(code=3, saying="labels of 131 x 50 px for an image of 131 x 90 (002.png)")
    for path in (pairs / "labels").iterdir():
        path.rename(path.with_stem(f"x{path.stem}"))
    refused(code=3, saying="3 images and 3 masks, but no pair (no labels for 000.png")
    shutil.rmtree(pairs / "labels")
    refused(code=3, saying="holds no folder labels and labels_masks; say where the masks are")
    code, said = evaluate(capsys, "camvid", pairs, "--images", "x", "--model", model_path)
    assert code == 2 and "--images and --labels are for pairs" in said


def test_neither_or_both_of_model_and_scores_are_refused(tmp_path, pairs, model):
    for given in ({}, {"bundle": model, "scores": tmp_path}):
        with pytest.raises(ConfigError, match="one of the two"):
            evaluate_pairs(pairs, **given)
