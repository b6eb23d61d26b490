"""Evaluation scores what `predict` writes: the figures of its score raster are those of `evaluate`."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from geood.constants import ANOMALY, IGNORE, INLIER
from geood.errors import ConfigError
from geood.evaluation.scenes import evaluate_scenes
from geood.evaluation.tile_scores import ImageSource
from geood.geo.grid import Window
from geood.geo.scene import Scene, SceneSource
from geood.geo.scene_reading import AUTOMATIC, ReadingOptions
from geood.metrics.pixels import PixelCurve
from geood.models.bundle import ModelBundle
from geood.prediction.pipeline import predict
from geood.prediction.plan import SceneOptions
from support.bundles import make_bundle
from support.rasters import picture, write_raster

FINE = Affine(0.25, 0, 500_000.25, 0, -0.25, 4_649_776.75)
COARSE = Affine(0.9, 0, 500_000.25, 0, -0.9, 4_649_776.75)
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
    ("transform", "order", "nodata"),
    [
        (OWN, [0, 1, 2], False),
        (FINE, [0, 1, 2], False),
        (COARSE, [0, 1, 2], True),
        (OWN, [2, 0, 1], True),
        (FINE, [2, 1, 0], True),
    ],
)
@pytest.mark.parametrize("settings", [[], ["score.smooth_px=4"], ["predict.precision=bfloat16"]])
def test_figures_of_the_written_raster_are_those_of_evaluate(tmp_path, transform, order, nodata, settings):
    compare(tmp_path, transform=transform, order=order, nodata=nodata, settings=settings)


@pytest.mark.parametrize("transform", [FINE, COARSE, Affine(0.02, 0, 0, 0, -0.02, 0)])
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
    assert own["average_precision"] == wanted.average_precision
    assert (own["fpr95"], own["auroc"]) == (wanted.fpr95, wanted.auroc)


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
