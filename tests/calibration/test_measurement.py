"""Validation ground scored for a calibration: which pixels count."""

import dataclasses

from geood.calibration.measurement import measure_ground
from geood.datasets.scene_crops import open_scenes
from geood.datasets.torchgeo_layers import Box
from support.bundles import make_bundle
from support.rasters import HALF_METRE, picture, write_raster
from support.scenery import SIZE, config, truth


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
