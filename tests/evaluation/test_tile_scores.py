"""Evaluation scores what `predict` writes: the figures of its score raster are those of `evaluate`."""

import dataclasses

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from geood.calibration.tiled_scoring import ImageSource, prediction_tiles, scored_tiles
from geood.catalog import data_set
from geood.constants import ANOMALY, IGNORE, INLIER
from geood.errors import ConfigError, DataError
from geood.evaluation.catalog_sets import evaluate_set
from geood.evaluation.scenes import evaluate_scenes
from geood.geo.grid import Window, resampled
from geood.geo.scene import Scene, SceneSource
from geood.geo.scene_reading import AUTOMATIC, ReadingOptions, settle_reading
from geood.metrics.pixels import PixelCurve
from geood.models.bundle import ModelBundle
from geood.prediction.pipeline import predict
from geood.prediction.plan import SceneOptions
from support.bundles import make_bundle, with_statistics
from support.cpu import slow
from support.rasters import picture, write_raster

FINE = Affine(0.25, 0, 500_000.25, 0, -0.25, 4_649_776.75)
COARSE = Affine(0.9, 0, 500_000.25, 0, -0.9, 4_649_776.75)
ROUNDING = 1e-5  # of figures: a network in one thread and in several differs by 1e-7, which may move a float16 score
OWN = Affine(0.5, 0, 500_000.25, 0, -0.5, 4_649_776.75)


def written(folder, *, transform, order, nodata=False):
    """A scene with bands in another order and its labels, in a folder as `evaluate scenes` takes it."""
    image = picture(140, 120, bands=3, seed=3)
    labels = np.random.default_rng(1).choice([0, 1, 2, 7, 255], (140, 120), p=[0.3, 0.3, 0.2, 0.1, 0.1]).astype("uint8")
    if nodata:
        image[:, 60:100, 40:80] = 0
        image[:, :, 115:] = 0
    names = ["red", "green", "blue"]
    path = write_raster(folder / "a.tif", image[order], transform=transform, nodata=0 if nodata else None)
    with rasterio.open(path, "r+") as file:
        file.descriptions = [names[i] for i in order]
    write_raster(folder / "a_labels.tif", labels, transform=transform, nodata=255)
    return path, labels


@pytest.mark.parametrize(
    ("transform", "order", "nodata", "settings"),
    [
        (OWN, [2, 0, 1], True, ["predict.precision=bfloat16"]),
        (FINE, [2, 1, 0], True, ["score.smooth_px=4"]),
        *slow(
            (OWN, [0, 1, 2], False, []),
            (OWN, [2, 0, 1], True, ["score.smooth_px=4"]),
            (FINE, [0, 1, 2], False, []),
            (COARSE, [0, 1, 2], True, ["score.smooth_px=4"]),
            (COARSE, [2, 1, 0], True, ["predict.precision=bfloat16"]),
        ),
    ],
)
def test_figures_of_the_written_raster_are_those_of_evaluate(tmp_path, transform, order, nodata, settings):
    compare(tmp_path, transform=transform, order=order, nodata=nodata, settings=settings)


@pytest.mark.parametrize("transform", [COARSE, *slow(FINE, Affine(0.02, 0, 0, 0, -0.02, 0))])
def test_both_read_scenes_as_they_are_told(tmp_path, transform):
    """At their own resolution, with bands that the user names; the last is too fine to be resampled."""
    options = ReadingOptions("2,3,1", nodata=9.0, resample=False)
    compare(tmp_path, transform=transform, order=[0, 1, 2], nodata=False, options=options)
    with pytest.raises(ConfigError, match="named twice"):
        bundle = ModelBundle.load(tmp_path / "model.safetensors")
        evaluate_scenes(tmp_path / "scenes", bundle, options=ReadingOptions("red=1,red=2,blue=3"))


def test_another_order_of_bands_is_said_once(tmp_path, caplog):
    with caplog.at_level("INFO", "geood"):
        compare(tmp_path, transform=OWN, order=[2, 1, 0], nodata=False)
    assert (
        caplog.text.count("bands 3: red, 2: green, 1: blue, by their names in the scene (in the training scenes") == 1
    )


def compare(tmp_path, *, transform, order, nodata, settings=(), options=AUTOMATIC):
    """Compare what `predict` wrote with what `evaluate` measures."""
    bundle = make_bundle(tmp_path / "model.safetensors", names=("red", "green", "blue"))
    (tmp_path / "scenes").mkdir()
    scene, labels = written(tmp_path / "scenes", transform=transform, order=order, nodata=nodata)
    predict(
        [scene],
        tmp_path / "out.tif",
        bundle_path=tmp_path / "model.safetensors",
        threshold=0.5,
        settings=settings,
        options=SceneOptions(*options),
    )
    with rasterio.open(tmp_path / "out.tif") as raster:
        scores = raster.read(1)
    truth = np.full(labels.shape, IGNORE, np.uint8)
    truth[np.isin(labels, [0, 1, 2]) & np.isfinite(scores)] = INLIER
    truth[(labels == 7) & np.isfinite(scores)] = ANOMALY
    wanted = PixelCurve()
    wanted.update(scores, truth)
    bundle = ModelBundle.load(tmp_path / "model.safetensors").with_settings(settings)
    found = evaluate_scenes(tmp_path / "scenes", bundle, options=options)
    [own] = [row for row in found.rows if row["score"] == "jsd"]
    assert found.pixels == wanted.positives + wanted.negatives
    figures = [own[name] for name in ("average_precision", "fpr95", "auroc")]
    assert figures == pytest.approx([wanted.average_precision, wanted.fpr95, wanted.auroc], rel=ROUNDING)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3917, 2.0])
@pytest.mark.parametrize("window", [Window(0, 0, 64, 64), Window(-32, -96, 160, 192), Window(11, 7, 40, 90)])
def test_an_image_in_memory_reads_as_a_scene(tmp_path, scale, window):
    image = picture(170, 140, seed=5)
    image[:, 20:60, 30:90] = 0
    path = write_raster(tmp_path / "a.tif", image, nodata=0)
    with Scene.open(SceneSource(str(path), (3, 1, 2), None, scale)) as scene:
        there = ImageSource(image[[2, 0, 1]], (image > 0).any(0), scale)
        for found, wanted in zip(there.read(window), scene.read(window), strict=True):
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(there.valid(scene.grid.window), scene.valid(scene.grid.window))


# Photographs at the width that a model was trained at


def make_photo_model(path, width, **sections):
    bundle = make_bundle(path, predict={"tile_px": 64, "halo_px": 32} | sections.pop("predict", {}), **sections)
    return dataclasses.replace(bundle, photo_width=width).save(path)


def tagged(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def written_photo(folder, *, size=(90, 131), alpha=False, turn=1):
    """A photograph `a.png` with a hole if it has `alpha`, tagged as turned, and its labels `a_labels.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    image = picture(*size, seed=3)
    if alpha:
        mask = np.full(size, 255, np.uint8)
        mask[20:50, 30:70] = 0
        image = np.concatenate([image, mask[None]])
    labels = np.random.default_rng(1).choice([0, 1, 2, 7, 255], size, p=[0.3, 0.3, 0.2, 0.1, 0.1]).astype("uint8")
    Image.fromarray(image.transpose(1, 2, 0)).save(folder / "a.png", exif=tagged(turn))
    Image.fromarray(labels).save(folder / "a_labels.png")
    return folder / "a.png", labels


def raster_of(path, out, *, model, **options):
    predict([path], out, bundle_path=model, threshold=0.5, options=SceneOptions(**options))
    with rasterio.open(out.with_suffix(".tif")) as raster:
        return raster.read(1)


@pytest.mark.parametrize(
    ("width", "alpha", "turn", "resample"),
    [
        (131, False, 1, True),
        (33, True, 6, True),
        *slow(
            (33, False, 1, True),
            (57, True, 1, True),
            (200, False, 6, True),
            (400, True, 1, True),
            (33, False, 1, False),
        ),
    ],
)
def test_a_photograph_of_another_width_is_measured_as_predict_writes_it(tmp_path, width, alpha, turn, resample):
    """Odd sizes, smaller and larger than the model's, with no-data, and as the camera stored them."""
    make_photo_model(tmp_path / "m.safetensors", width)
    photo, labels = written_photo(tmp_path / "photos", alpha=alpha, turn=turn)
    scores = raster_of(photo, tmp_path / "out.tif", model=tmp_path / "m.safetensors", resample=resample)
    assert scores.shape == labels.shape and np.isfinite(scores).all() == (not alpha)
    truth = np.full(labels.shape, IGNORE, np.uint8)
    truth[np.isin(labels, [0, 1, 2]) & np.isfinite(scores)] = INLIER
    truth[(labels == 7) & np.isfinite(scores)] = ANOMALY
    wanted = PixelCurve()
    wanted.update(scores, truth)
    bundle = ModelBundle.load(tmp_path / "m.safetensors")
    found = evaluate_scenes(tmp_path / "photos", bundle, options=ReadingOptions(resample=resample))
    [own] = [row for row in found.rows if row["score"] == "jsd"]
    assert found.pixels == wanted.positives + wanted.negatives
    figures = [own[name] for name in ("average_precision", "fpr95", "auroc")]
    assert figures == pytest.approx([wanted.average_precision, wanted.fpr95, wanted.auroc], rel=ROUNDING)


def test_a_photograph_four_times_as_large_has_the_scores_of_the_small_one_enlarged(tmp_path):
    make_photo_model(tmp_path / "m.safetensors", 96, predict={"tile_px": 512, "halo_px": 64})
    small, large = picture(64, 96, seed=5), np.kron(picture(64, 96, seed=5), np.ones((1, 4, 4), np.uint8))
    made = {}
    for name, image in (("small", small), ("large", large)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{name}.png")
        scores = raster_of(tmp_path / f"{name}.png", tmp_path / f"{name}.gpkg", model=tmp_path / "m.safetensors")
        with rasterio.open(tmp_path / f"{name}.classes.tif") as raster:
            made[name] = scores, raster.read(1)
    (scores, classes), (enlarged, large_classes) = made["small"], made["large"]
    assert enlarged.shape == (256, 384) and scores.std() > 0.05
    (top, below, down), (left, right, across) = (resampled(0, 4 * n, 0.25, origin=0, size=n) for n in scores.shape)
    rows = scores[top] + (scores[below] - scores[top]) * down[:, None]
    wanted = rows[:, left] + (rows[:, right] - rows[:, left]) * across
    inner = (slice(64, -64), slice(64, -64))  # at the border the mirrored margins differ in width
    assert np.abs(enlarged - wanted)[inner].max() < 0.02 and np.abs(enlarged - wanted).mean() < 0.02
    assert (large_classes == np.kron(classes, np.ones((4, 4), np.uint8)))[inner].mean() > 0.99
    as_it_is = raster_of(tmp_path / "large.png", tmp_path / "own.tif", model=tmp_path / "m.safetensors", resample=False)
    assert np.abs(as_it_is - wanted)[inner].mean() > 5 * np.abs(enlarged - wanted)[inner].mean()


@pytest.mark.parametrize("turn", [6, *slow(1, 3)])
def test_a_data_set_is_measured_at_the_width_and_as_viewers_show_it(tmp_path, turn):
    """A frame that the camera stored turned has the scores of the upright one, at its own size."""
    bundle = make_photo_model(tmp_path / "m.safetensors", 60)
    image, stored = picture(90, 131), {1: 0, 3: 2, 6: 1}[turn]
    mask = np.random.default_rng(0).choice([0, 1, 255], (90, 131)).astype(np.uint8)
    for name, turns, tag in (("upright", 0, 1), ("turned", stored, turn)):
        for kind, array in (("images", np.rot90(image.transpose(1, 2, 0), turns)), ("labels_masks", mask)):
            (tmp_path / name / kind).mkdir(parents=True)
            end = ".png" if kind == "images" else "_labels_semantic.png"
            exif = tagged(tag if kind == "images" else 1)
            Image.fromarray(np.ascontiguousarray(array)).save(tmp_path / name / kind / f"validation0{end}", exif=exif)
    one, two = (
        evaluate_set(data_set("smiyc-anomaly"), tmp_path / name, bundle=bundle, out=tmp_path / f"{name}-out")
        for name in ("upright", "turned")
    )
    assert one.rows == two.rows and one.pixels == (mask != 255).sum()
    score = np.load(tmp_path / "upright-out" / "scores" / "validation0.npy")
    raster = raster_of(
        tmp_path / "upright/images/validation0.png", tmp_path / "o.tif", model=tmp_path / "m.safetensors"
    )
    np.testing.assert_allclose(score, raster, rtol=2**-10, atol=1e-6)


def test_what_is_settled_for_photographs_is_said_once(tmp_path, caplog):
    make_photo_model(tmp_path / "m.safetensors", 60)
    for i in range(3):
        Image.fromarray(picture(80, 120).transpose(1, 2, 0)).save(tmp_path / f"p{i}.png")
    with caplog.at_level("INFO", "geood"):
        predict([tmp_path], tmp_path / "out", bundle_path=tmp_path / "m.safetensors", threshold=0.5)
    wanted = "3 of 3 photographs are read at the model's width, such as p0.png, downsampled 2 times (average): the"
    assert caplog.text.count("120 px wide") == 1 and wanted in caplog.text
    caplog.clear()
    as_they_are = SceneOptions(resample=False)
    bundle_path = tmp_path / "m.safetensors"
    predict([tmp_path], tmp_path / "own", bundle_path=bundle_path, threshold=0.5, options=as_they_are)
    assert caplog.text.count("120 px wide") == 1
    assert "3 of 3 photographs are not of the model's width, such as p0.png" in caplog.text
    Image.fromarray(picture(4, 10).transpose(1, 2, 0)).save(tmp_path / "tiny.png")
    with pytest.raises(DataError, match=r"tiny\.png: the photograph is 10 px wide.*upsampled 6 times.*--no-resample"):
        predict([tmp_path / "tiny.png"], tmp_path / "o.tif", bundle_path=tmp_path / "m.safetensors", threshold=0.5)


def test_only_photographs_are_read_at_a_width(tmp_path):
    """A raster with a place but no CRS is read as it is, and one with a CRS at the model's resolution."""
    make_photo_model(tmp_path / "m.safetensors", 32)
    for name, crs, place in (("bare", None, OWN), ("scene", "EPSG:32633", OWN)):
        write_raster(tmp_path / f"{name}.tif", picture(64, 64), crs=crs, transform=place)
        with Scene.open(tmp_path / f"{name}.tif") as scene:
            reading = settle_reading(scene, ModelBundle.load(tmp_path / "m.safetensors").bands, 0.5, photo_width=32)
        assert reading.scale == 1


def test_tiles_of_any_size_give_the_same_scores_where_the_halo_covers_what_the_network_sees(tmp_path):
    """Of every kind, neighbours in the encoder and the union of experts too; with less halo not."""
    head = {"encoder": "resnet10t", "decoder_channels": 16, "outlier": "head"}
    bundle = with_statistics(make_bundle(tmp_path / "a.safetensors", segmenter=head), tmp_path / "b.safetensors")
    image = picture(96, 128, seed=4)
    source = ImageSource(image, np.ones(image.shape[1:], bool))

    def scores(tile_px, halo_px):
        asked = bundle.with_settings([f"predict.tile_px={tile_px}", f"predict.halo_px={halo_px}"])
        maps = {kind: np.full(image.shape[1:], np.nan, np.float32) for kind in asked.scores}
        tiles = prediction_tiles(*image.shape[1:], 1.0, asked)
        for tile, _, scored in scored_tiles(asked, source, tiles, lambda *_: True, kinds=asked.scores):
            for kind, score in scored.scores.items():
                maps[kind][tile.write.slices] = score
        return maps

    wide, tiled, narrow = scores(96, 224), scores(64, 224), scores(64, 32)
    assert {"encoder_knn", "combined"} < set(wide)
    for kind, wanted in wide.items():
        spread = float(wanted.std())
        np.testing.assert_allclose(tiled[kind], wanted, rtol=1e-4, atol=1e-3 * spread, err_msg=kind)
    assert np.abs(narrow["jsd"] - wide["jsd"]).max() > 0.01 * wide["jsd"].std()
