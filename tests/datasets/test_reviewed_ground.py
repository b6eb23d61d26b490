"""Reviewed ground: inliers of stated and of no stated class, drawn around, and never on the side that validates."""

import geopandas
import numpy as np
import pytest
import shapely
import torch
from affine import Affine

from geood.constants import UNSTATED
from geood.datasets.reviewed_ground import ReviewedCrop, read_false_alarms
from geood.datasets.scene_crops import open_scenes
from geood.datasets.torchgeo_layers import Box
from geood.errors import ConfigError, DataError
from support.rasters import HALF_METRE, picture, write_raster
from support.scenery import config, digital, make_scene

EAST = HALF_METRE * Affine.translation(400, 0)  # on ground of its own, beside the training scene


def ground(folder, rows, *, name="new.tif", origins=None):
    """Write a scene beside the training scene, and labels given as (row, column, side in pixels, class id).

    `origins` tell what is a false alarm.
    """
    write_raster(folder / name, picture(200, 200, seed=5), transform=EAST)
    shapes = []
    for row, col, side, _ in rows:
        west, north = EAST * (col, row)
        shapes.append(shapely.box(west, north - side / 2, west + side / 2, north))
    columns = {"class_id": [r[3] for r in rows]} | ({"origin": origins} if origins else {})
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs=32633)
    frame.to_file(folder / "reviewed.gpkg", layer="labels")
    return {"reviewed_images": [name], "reviewed_labels": "reviewed.gpkg"}


@pytest.fixture
def folder(tmp_path):
    return make_scene(tmp_path)


def test_crops_lie_around_reviewed_polygons_and_hold_their_ids(folder):
    keys = ground(folder, [(40, 40, 20, 1), (100, 120, 10, 254), (150, 30, 8, 255)])
    scenes = open_scenes(config(folder, **keys, reviewed_share=0.5))
    own = [crop for crop in scenes.training_boxes if isinstance(crop, ReviewedCrop)]
    assert len(own) == 12 and len(scenes.training_boxes) == 24
    found = {}
    for crop in own:
        sample = scenes.sample(crop, validation=False)
        assert sample["mask"].shape == (64, 64)
        for value, count in zip(*np.unique(sample["mask"].numpy(), return_counts=True), strict=True):
            found[int(value)] = max(found.get(int(value), 0), int(count))
    assert found[1] == 400 and found[UNSTATED] == 100 and set(found) == {1, UNSTATED, 255}
    assert scenes.report.unknown_ids == {} and scenes.ground.name(own[0]).startswith("new.tif at x")
    training = scenes.training(3, 30)
    assert any((training[i]["mask"] == UNSTATED).any() for i in range(30))


def test_labels_of_shapes_stay_where_an_image_of_the_same_name_was_reviewed(folder):
    west, north = HALF_METRE * (0, 0)
    strips = [shapely.box(west + 5 * i, north - 150, west + 5 * i + 5, north) for i in range(30)]
    frame = geopandas.GeoDataFrame({"class_id": [i % 3 for i in range(30)]}, geometry=strips, crs=32633)
    frame.to_file(folder / "shapes.gpkg")
    keys = ground(folder, [(40, 40, 20, 254)]) | {"reviewed_images": ["a.tif"]}
    reviewed = shapely.box(west + 5, north - 50, west + 50, north - 5)
    geopandas.GeoDataFrame({"class_id": [254]}, geometry=[reviewed], crs=32633).to_file(
        folder / "reviewed.gpkg", layer="labels"
    )
    settings = config(folder, labels=["shapes.gpkg"], label_attribute="class_id", **keys)
    for _ in range(2):  # the second time both are there already
        training = open_scenes(settings, folder / "burnt").training(1, 8)
        assert {*np.unique(np.stack([training[i]["mask"] for i in range(8)]))} >= {0, 1, 2, UNSTATED}


def test_pixels_are_read_unchanged_from_the_image_that_was_reviewed(folder):
    keys = ground(folder, [(40, 40, 20, 1)])
    scenes = open_scenes(config(folder, **keys))
    crop = next(crop for crop in scenes.training_boxes if isinstance(crop, ReviewedCrop))
    pixels = scenes.ground.read(crop, validation=False)
    image = picture(200, 200, seed=5)
    west, north = EAST * (0, 0)
    col, row = round((crop.box.xmin - west) * 2), round((north - crop.box.ymax) * 2)
    inside = (slice(max(0, row), row + 64), slice(max(0, col), col + 64))
    shown = pixels.image[:, max(0, -row) :, max(0, -col) :]
    height, width = image[0][inside].shape
    assert np.array_equal(shown[:, :height, :width], image[(slice(None), *inside)])


def test_the_split_of_the_scenes_is_what_it_is_without_reviewed_ground(folder):
    plain = open_scenes(config(folder))
    scenes = open_scenes(config(folder, **ground(folder, [(40, 40, 20, 1)])))
    assert scenes.validation_boxes == plain.validation_boxes
    assert scenes.ground.blocks == plain.ground.blocks
    for crop in scenes.training_boxes:
        if not isinstance(crop, ReviewedCrop):
            assert crop in plain.training_boxes


def test_reviewed_ground_in_a_block_that_validates_is_masked(folder):
    """The training scene itself was reviewed: labels as large as the scene."""
    west, north = HALF_METRE * (0, 0)
    frame = geopandas.GeoDataFrame({"class_id": [254]}, geometry=[shapely.box(west, north - 150, west + 150, north)])
    frame.set_crs(32633).to_file(folder / "reviewed.gpkg", layer="labels")
    scenes = open_scenes(config(folder, reviewed_images=["a.tif"], reviewed_labels="reviewed.gpkg"))
    held = [scenes.ground.blocks.polygon(cell) for cell in scenes.ground.blocks.validation]
    crops = [crop for crop in scenes.training_boxes if isinstance(crop, ReviewedCrop)]
    touching = [c for c in crops if any(shape.intersects(shapely.box(*c.box).buffer(-1)) for shape in held)]
    assert touching
    for crop in touching:
        pixels = scenes.ground.read(crop, validation=False)
        owned = scenes.ground.blocks.owned(crop.box, pixels.valid.shape, validation=True)
        assert owned.any() and not pixels.valid[owned].any() and (pixels.ids[owned] == 255).all()


def test_false_alarms_are_shown_once_each_and_nothing_else_is(folder):
    """Of a class or of none; not where something real was drawn on top, and no cell without a miss."""
    rows = [(10, 10, 60, 254), (40, 40, 20, 254), (100, 120, 10, 1), (150, 30, 8, 255), (104, 124, 4, 255)]
    origins = ["cell", "false", "false", "left out", "left out"]
    scenes = open_scenes(config(folder, **ground(folder, rows, origins=origins)))
    squares = list(scenes.ground.false_alarms())
    assert sum(int(square.false.sum()) for square in squares) == 20 * 20 + 10 * 10 - 4 * 4
    for square in squares:
        assert square.false.shape == (512, 512) and not square.false[~square.pixels.valid].any()
        assert (square.pixels.ids == 255).all()
    [(image, false)] = scenes.false_alarms()  # one lattice square of 256 pixels holds the whole scene
    assert torch.equal(false[0, 168:188, 168:188], torch.ones(20, 20, dtype=torch.bool))  # 128 around, on its grid
    own = np.rint(digital(scenes, image[0])[:, false[0].numpy()])
    inside = false[0, 128:328, 128:328].numpy()
    shown = picture(200, 200, seed=5)[:3, inside].astype(float)
    low, high = (np.array(v)[:, None] for v in (scenes.bands.low, scenes.bands.high))
    assert np.array_equal(own, shown.clip(low, high))


def test_ground_that_does_not_tell_false_alarms_has_none_and_neither_has_ground_without_a_review(folder):
    assert not list(open_scenes(config(folder)).false_alarms())
    assert not list(open_scenes(config(folder, **ground(folder, [(40, 40, 20, 254)]))).false_alarms())
    keys = ground(folder, [(40, 40, 20, 255)], origins=["left out"])  # real ones
    assert not list(open_scenes(config(folder, **keys)).false_alarms())
    (folder / "broken.gpkg").write_bytes(b"no database")
    with pytest.raises(DataError, match=r"broken\.gpkg: cannot be read"):
        read_false_alarms(folder / "broken.gpkg", None)


def test_false_alarms_in_a_block_that_validates_are_not_shown(folder):
    west, north = HALF_METRE * (0, 0)
    shape = shapely.box(west, north - 150, west + 150, north)
    frame = geopandas.GeoDataFrame({"class_id": [254], "origin": ["false"]}, geometry=[shape], crs=32633)
    frame.to_file(folder / "reviewed.gpkg", layer="labels")
    scenes = open_scenes(config(folder, reviewed_images=["a.tif"], reviewed_labels="reviewed.gpkg"))
    blocks, whole = scenes.ground.blocks, Box(west, north - 150, west + 150, north)
    held = int(blocks.owned(whole, (300, 300), validation=True).sum())
    squares = list(scenes.ground.false_alarms())
    assert held and sum(int(square.false.sum()) for square in squares) == 300 * 300 - held


def test_split_is_written_with_reviewed_crops_among_those_of_training(folder):
    scenes = open_scenes(config(folder, **ground(folder, [(40, 40, 20, 1)])))
    scenes.write_split(folder)
    crops = geopandas.read_file(folder / "split.gpkg", layer="crops")
    assert (crops["split"] == "train").sum() == len(scenes.training_boxes)


def test_keys_that_do_not_fit_are_named(folder):
    keys = ground(folder, [(40, 40, 20, 1)])
    with pytest.raises(ValueError, match="reviewed_images and reviewed_labels belong together"):
        config(folder, reviewed_images=["new.tif"])
    with pytest.raises(ValueError, match="id 254 means no stated class"):
        config(folder, **keys, classes={0: "a", 1: "b", 254: "c"})
    with pytest.raises((ConfigError, DataError), match="reviewed_images"):
        open_scenes(config(folder, **keys | {"reviewed_images": ["none.tif"]}))
