"""The split: no pixel on both sides, crops where they should be."""

import dataclasses

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from pyproj import CRS
from shapely.geometry import box

from geood.datasets.scene_crops import open_scenes
from geood.datasets.spatial_split import draw_crops, grid_crops, own_pixels, split_blocks
from geood.datasets.torchgeo_layers import Box
from geood.errors import DataError
from support.rasters import UTM, picture, write_raster
from support.scenery import SIZE, config, make_scene, moved


@pytest.fixture
def folder(tmp_path):
    return make_scene(tmp_path)


def test_training_and_validation_never_share_a_pixel(tmp_path):
    ground = np.arange(SIZE * SIZE, dtype="float32").reshape(1, SIZE, SIZE)  # each pixel has its own number
    write_raster(tmp_path / "a1.tif", ground)
    write_raster(tmp_path / "a2.tif", ground[:, 150:], transform=moved(0, 150))  # the same ground, twice
    write_raster(tmp_path / "truth.tif", np.zeros((SIZE, SIZE), "uint8"))
    scenes = open_scenes(config(tmp_path, crops=40, classes={0: "land", 1: "road"}))
    seen = {}
    for side, crops in ((False, scenes.training_boxes), (True, scenes.validation_boxes)):
        found = [own_pixels(scenes.ground.layers, scenes.ground.blocks, crop, validation=side) for crop in crops]
        seen[side] = {int(v) for pixels in found for v in pixels.image[0][pixels.valid]}
        assert all((pixels.ids[~pixels.valid] == 255).all() for pixels in found)
        sample = scenes.sample(crops[0], validation=side)
        assert np.array_equal(sample["valid"].numpy(), found[0].valid)
    assert not seen[False] & seen[True]
    whole = Box(500_000.25, 4_649_776.75 - SIZE / 2, 500_000.25 + SIZE / 2, 4_649_776.75)
    training, validation = (scenes.ground.blocks.owned(whole, (SIZE, SIZE), validation=side) for side in (False, True))
    assert np.array_equal(training, ~validation)
    assert seen[True] <= set(ground[0][validation].astype(int).tolist())


def test_blocks_hold_their_share_and_one_each_at_least(folder):
    layers = open_scenes(config(folder)).ground.layers
    blocks, pieces = split_blocks(layers, block_m=20.0, share=0.25, seed=3)
    area = {p.cell: (p.box.xmax - p.box.xmin) * (p.box.ymax - p.box.ymin) for p in pieces}
    assert set(area) == blocks.training | blocks.validation
    assert not blocks.training & blocks.validation
    assert sum(area.values()) == pytest.approx(150 * 150, rel=0.03)
    held = sum(area[cell] for cell in blocks.validation) / sum(area.values())
    assert held == pytest.approx(0.25, abs=0.03)
    for share in (0.001, 0.999):
        blocks, _ = split_blocks(layers, block_m=80.0, share=share, seed=0)
        assert blocks.training
        assert blocks.validation
    with pytest.raises(DataError, match=r"data.block_m to 37"):
        split_blocks(layers, block_m=500.0, share=0.2, seed=0)


def test_crops_lie_where_they_should(folder):
    layers = open_scenes(config(folder)).ground.layers
    blocks, pieces = split_blocks(layers, block_m=40.0, share=0.3, seed=0)
    image = Box(*layers.images.index.total_bounds)
    drawn = draw_crops(layers, blocks, pieces, size_px=64, number=200, seed=1)
    grid = grid_crops(layers, blocks, pieces, size_px=64)
    assert len(drawn) == 200
    assert len(set(drawn)) > 150
    assert len(set(grid)) == len(grid) >= len(blocks.validation) // 2
    for crop in drawn + grid:
        assert crop.xmin > image.xmin - 1
        assert crop.ymin > image.ymin - 1
        assert crop.xmax < image.xmax + 1
        assert crop.ymax < image.ymax + 1
    everywhere = dataclasses.replace(blocks, training=blocks.training | blocks.validation)
    corners = {crop.xmin for crop in draw_crops(layers, everywhere, pieces, size_px=64, number=2000, seed=1)}
    assert (min(corners), max(corners)) == pytest.approx((image.xmin, image.xmax - 32), abs=0.01)
    assert len(corners) == SIZE - 64 + 1


def test_ground_that_several_images_cover_is_validated_once(folder):
    alone = open_scenes(config(folder))
    write_raster(folder / "a2.tif", picture(SIZE, SIZE, seed=1))
    both = open_scenes(config(folder))
    assert both.validation_boxes == alone.validation_boxes
    assert len(set(both.validation_boxes)) == len(both.validation_boxes)


def test_the_split_is_written(folder):
    scenes = open_scenes(config(folder))
    scenes.write_split(folder)
    scenes.write_split(folder)
    blocks, crops = (gpd.read_file(folder / "split.gpkg", layer=layer) for layer in ("blocks", "crops"))
    assert (blocks.split == "train").sum() == len(scenes.ground.blocks.training)
    assert (blocks.split == "validation").sum() == len(scenes.ground.blocks.validation)
    assert len(crops) == len(scenes.training_boxes) + len(scenes.validation_boxes)
    assert blocks.crs == CRS.from_user_input(UTM)
    assert blocks.union_all().contains(box(*rasterio.open(folder / "a.tif").bounds).buffer(-1))
    assert sorted(p.name for p in folder.glob("*split*")) == ["split.gpkg"]
    assert sorted(gpd.read_file(folder / "split.gpkg", layer="layer_styles")["f_table_name"]) == ["blocks", "crops"]
