"""Validation ground scored for a calibration: which pixels count."""

import dataclasses

import numpy as np
import pytest

from geood.calibration.measurement import measure_ground, rounded_up
from geood.calibration.tiled_scoring import prediction_tiles, scored_tiles
from geood.datasets.scene_crops import open_scenes
from geood.datasets.torchgeo_layers import Box
from geood.geo.scene import Scene
from geood.models import for_inference
from support.bundles import make_bundle
from support.rasters import HALF_METRE, picture, write_raster
from support.scenery import SIZE, config, make_scene, truth


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Crops of a scene that is labelled throughout, and a bundle for it."""
    folder = make_scene(tmp_path_factory.mktemp("ground"))
    crops = open_scenes(config(folder))
    return crops, dataclasses.replace(make_bundle(folder / "model.safetensors"), bands=crops.bands)


def test_ground_without_data_is_none_even_where_it_is_labelled(tmp_path):
    image = picture(SIZE, SIZE)
    labels = truth(image)
    image[:, :, 100:200] = 0
    write_raster(tmp_path / "a.tif", image, nodata=0)
    write_raster(tmp_path / "truth.tif", labels, nodata=255)
    crops = open_scenes(config(tmp_path))
    bundle = dataclasses.replace(make_bundle(tmp_path / "model.safetensors"), bands=crops.bands)
    west, north, side = HALF_METRE.c, HALF_METRE.f, SIZE * HALF_METRE.a
    owned = crops.ground.blocks.owned(Box(west, north - side, west + side, north), (SIZE, SIZE), validation=True)

    _, record = measure_ground(bundle, crops)

    assert record is not None
    assert owned[:, 100:200].any()
    assert record.pixels == (owned & (image[0] > 0)).sum()


def test_as_many_pixels_lie_above_a_threshold_as_in_the_map(ground):
    """Scores rounded to the nearest number of float16 fell on the threshold that they exceed in the map."""
    crops, bundle = ground
    with Scene.open(str(crops.ground.files()[0])) as scene:
        tiles = prediction_tiles(SIZE, SIZE, 1.0, bundle)
        made = scored_tiles(for_inference(bundle), scene, tiles, lambda *_: True, kinds=("jsd",))
        score = np.zeros((SIZE, SIZE), np.float32)
        for tile, _, scored in made:
            score[tile.write.slices] = scored.scores["jsd"]
    west, north, side = HALF_METRE.c, HALF_METRE.f, SIZE * HALF_METRE.a
    owned = crops.ground.blocks.owned(Box(west, north - side, west + side, north), (SIZE, SIZE), validation=True)

    thresholds, record = measure_ground(bundle, crops)

    above = np.asarray(record.above).sum(0)
    assert above.tolist() == [(score[owned] > threshold).sum() for threshold in record.thresholds]
    for rate, threshold in thresholds["jsd"].items():
        assert (score[owned] > threshold).mean() <= float(rate)


def test_a_score_rounded_up_exceeds_the_same_numbers_of_float16():
    rng = np.random.default_rng(0)
    near = rng.standard_normal(2000).astype(np.float16)
    scores = np.concatenate(
        [near.astype(np.float32) * np.float32(1 + step) for step in (-4e-4, -1e-5, 0.0, 1e-5, 4e-4)]
        + [np.array([0.0, -0.0, 1e-10, -1e-10, 3e-8, 65504.0, -65504.0], np.float32)]
    )
    up = rounded_up(scores)
    thresholds = np.concatenate([near, np.array([0.0, 6e-8, -6e-8, 65504.0, -65504.0], np.float16)])
    assert ((up[:, None] > thresholds) == (scores[:, None] > thresholds.astype(np.float32))).all()
    assert ((up >= scores) & (up - scores <= 2e-3 * np.abs(scores) + 6e-8)).all()
