"""Training scenes: mask over image, the same crops for a seed, a clean hold-out, plain words for bad input."""

import logging
import pickle

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import box
from torch.utils.data import DataLoader

from geood.datasets import reprojection
from geood.datasets.files import find_files
from geood.datasets.samples import TrainingBands
from geood.datasets.scene_crops import open_scenes
from geood.datasets.torchgeo_layers import Box, ImageLayer, LabelLayer, LabelledImages
from geood.errors import ConfigError, DataError
from geood.geo.grid import Grid, Window
from geood.geo.labels.burnt import burn_labels
from geood.geo.labels.reading import open_labels
from geood.geo.labels.rules import LabelRules
from support.apart import start_server
from support.rasters import HALF_METRE, UTM, picture, write_raster
from support.scenery import SIZE, assert_mask_is_on_image, config, digital, make_scene, moved, read_all, truth


@pytest.fixture
def folder(tmp_path):
    return make_scene(tmp_path)


# -- what a sample is


def test_mask_lies_on_image(folder):
    scenes = open_scenes(config(folder))
    training, validation = scenes.training(1, 30), scenes.validation()
    assert_mask_is_on_image(scenes, [training[i] for i in range(30)])
    assert_mask_is_on_image(scenes, [validation[i] for i in range(len(validation))])
    sample = training[0]
    assert (sample["image"].dtype, sample["mask"].dtype, sample["valid"].dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )
    assert (sample["image"].shape, sample["mask"].shape) == ((3, 64, 64), (64, 64))
    assert sample["image"].min() >= 0
    assert sample["image"].max() <= 1
    assert sample["name"].startswith("a.tif at x 5000")


def test_channels_are_the_sorted_class_ids(folder):
    scenes = open_scenes(config(folder, classes={2: "roof", 0: "land"}, anomaly=[]))
    assert scenes.class_ids == (0, 2)
    sample = scenes.validation()[0]
    ids = truth(digital(scenes, sample["image"]))
    expected = np.select([ids == 0, ids == 2], [0, 1], 255)
    known = sample["valid"].numpy()
    assert np.array_equal(sample["mask"].numpy()[known], expected[known])


def test_aligned_pixels_are_read_as_they_are(folder):
    scenes = open_scenes(config(folder))
    with rasterio.open(folder / "a.tif") as file:
        image = file.read()
    for crop in scenes.training_boxes + scenes.validation_boxes:
        col, row = ~HALF_METRE @ (crop.xmin, crop.ymax)
        assert (col, row) == pytest.approx((round(col), round(row)), abs=1e-6)
        pixels = scenes.ground.layers.read(crop)
        inside = image[:, round(row) : round(row) + 64, round(col) : round(col) + 64]
        assert np.array_equal(pixels.image, inside)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_types_and_band_counts(tmp_path, dtype):
    image = picture(SIZE, SIZE, bands=5, dtype=dtype, high=9000)
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "truth.tif", truth(np.rint(image)), nodata=255)
    scenes = open_scenes(config(tmp_path, crops=8, bands={"indexes": [5, 2]}))
    assert scenes.bands.indexes == (5, 2)
    assert (scenes.bands.step[0] == 0) == (dtype == "float32")
    assert scenes.training(0, 1)[0]["image"].shape == (2, 64, 64)
    assert np.array_equal(read_all(scenes).image, image[[4, 1]].astype("float32"))


# -- seeds


def test_same_seed_same_samples_whatever_was_drawn_before(folder):
    scenes = open_scenes(config(folder))
    torch.manual_seed(123)
    torch.rand(7)
    before = torch.get_rng_state()
    again = open_scenes(config(folder))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is somebody else's"
    assert scenes.training_boxes == again.training_boxes
    assert scenes.bands == again.bands
    assert scenes.ground.blocks == again.ground.blocks
    one, two, other = scenes.training(4, 10), again.training(4, 10), scenes.training(5, 10)
    assert all(torch.equal(one[i]["image"], two[i]["image"]) for i in (9, 0, 5))
    assert not all(torch.equal(one[i]["image"], other[i]["image"]) for i in range(10))
    assert open_scenes(config(folder, train={"seed": 1})).training_boxes != scenes.training_boxes


def test_ranks_share_the_stream_and_each_crop_comes_once_a_round(folder):
    scenes = open_scenes(config(folder))
    pool = len(scenes.training_boxes)
    alone = scenes.training(3, 2 * pool)
    first, second = (scenes.training(3, pool, rank=r, world=2) for r in (0, 1))
    for i in (0, 1, pool - 1):
        assert torch.equal(alone[2 * i]["image"], first[i]["image"])
        assert torch.equal(alone[2 * i + 1]["image"], second[i]["image"])
    assert sorted(alone._crop(i) for i in range(pool)) == list(range(pool))
    assert [alone._crop(i) for i in range(pool)] != [alone._crop(i) for i in range(pool, 2 * pool)]
    with pytest.raises(IndexError):
        alone[2 * pool]


def test_a_worker_process_gives_the_same_batches(folder):
    training = open_scenes(config(folder)).training(2, 4)
    here = list(DataLoader(training, batch_size=2))
    start_server()
    there = list(DataLoader(training, batch_size=2, num_workers=1, multiprocessing_context="forkserver"))
    for one, two in zip(here, there, strict=True):
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["mask"], two["mask"])
        assert one["name"] == two["name"]


def test_no_open_file_travels(folder):
    scenes = open_scenes(config(folder))
    copy = pickle.loads(pickle.dumps(scenes.training(0, 5)))
    assert len(scenes.ground.layers.images._open) == 1
    assert len(copy.crops.ground.layers.images._open) == 0
    assert torch.equal(copy[1]["image"], scenes.training(0, 5)[1]["image"])


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(reprojection, "OPEN_FILES", 2)
    opened = reprojection.OpenFiles(rasterio.open)
    paths = [str(write_raster(tmp_path / f"{i}.tif", picture(8, 8))) for i in range(4)]
    files = [opened(path) for path in paths]
    assert [file.closed for file in files] == [True, True, False, False]
    assert opened(paths[3]) is files[3]
    assert not opened(paths[0]).closed


def test_nothing_is_printed(folder, capsys):
    open_scenes(config(folder))
    assert capsys.readouterr().out == ""


# -- the clean hold-out


def test_no_crop_with_an_anomaly_pixel_is_kept(tmp_path):
    image = picture(SIZE, SIZE)
    labels = truth(image)
    labels[140:150, 140:150] = 7
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "truth.tif", labels, nodata=255)
    scenes = open_scenes(config(tmp_path, crops=60))
    report = scenes.report
    assert report.dropped_anomaly > 0
    assert report.kept == len(scenes.training_boxes) == report.drawn - report.dropped_anomaly - report.dropped_invalid
    for crop in scenes.training_boxes:
        pixels = scenes.ground.layers.read(crop)
        mine = scenes.ground.blocks.owned(crop, pixels.valid.shape, validation=False)
        assert 7 not in pixels.ids[mine]


def test_a_negative_number_in_labels_is_no_label(tmp_path, caplog):
    """Programs write -1 where nobody labelled; the outlier head must not learn that ground as known."""
    image = picture(SIZE, SIZE)
    labels = np.where(np.arange(SIZE) % 2 == 0, truth(image).astype("int16"), -1)
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "truth.tif", labels)
    scenes = open_scenes(config(tmp_path, crops=8))
    training = scenes.training(1, 8)
    masks = np.stack([training[i]["mask"] for i in range(8)] + [scenes.validation()[0]["mask"]])
    assert set(np.unique(masks)) == {0, 1, 2, 255}
    assert scenes.report.unknown_ids[-1] > 0
    assert "label ids -1 (" in caplog.text


def test_nothing_left_says_why(tmp_path):
    image = picture(SIZE, SIZE)
    labels = truth(image)
    labels[::20, ::20] = 7
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "truth.tif", labels, nodata=255)
    with pytest.raises(DataError, match=r"24 hold an anomaly pixel \(ids \[7\]\): make data.crop_px smaller"):
        open_scenes(config(tmp_path))
    with pytest.raises(DataError, match=r"hold no pixel of the classes \[100, 101\].*check data.classes"):
        open_scenes(config(tmp_path, classes={100: "x", 101: "y"}, anomaly=[]))
    write_raster(tmp_path / "a.tif", np.zeros_like(image), nodata=0)
    with pytest.raises(DataError, match="data in less than 30 % of their pixels"):
        open_scenes(config(tmp_path))


# -- bad input


def test_files_that_are_not_there(folder):
    with pytest.raises(DataError, match=r"data.images: 'aa.tif' names no file under .*; near it: a.tif"):
        open_scenes(config(folder, images=["aa.tif"]))
    with pytest.raises(DataError, match=r"data.labels: 'no/\*.tif' names no file"):
        open_scenes(config(folder, labels=["no/*.tif"]))
    with pytest.raises(DataError, match=r"that folder does not exist, check data.root"):
        open_scenes(config(folder / "nowhere"))
    with pytest.raises(DataError, match=r"named by data.images and by data.labels"):
        open_scenes(config(folder, images=["*.tif"]))


def test_find_files_takes_files_globs_and_folders(folder):
    deep = write_raster(folder / "more" / "b.TIF", picture(8, 8))
    (folder / "more" / "notes.txt").write_text("no raster")
    assert find_files(folder, ["more"], what="x") == [deep]
    assert find_files(folder, [".", "a.tif", "*.tif", str(deep)], what="x") == sorted(
        [folder / "a.tif", folder / "truth.tif", deep]
    )
    assert find_files(folder, ["**/*.TIF"], what="x") == [deep]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["a2.tif", "truth.tif"])
@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_an_unreadable_file_is_an_error_and_not_a_hole(folder, name, damage):
    image = picture(SIZE, SIZE, seed=1)
    write_raster(folder / "a2.tif", image, transform=moved(SIZE))
    write_raster(folder / "truth.tif", np.repeat(truth(image), 2, axis=1), nodata=255)
    if damage == "text":
        (folder / name).write_text("this is no raster")
    else:
        truncate(folder / name)
    with pytest.raises(DataError, match=name):
        open_scenes(config(folder, labels=["truth.tif"]))


def test_images_and_labels_without_a_place(folder):
    write_raster(folder / "a.tif", picture(SIZE, SIZE), crs=None)
    with pytest.raises(DataError, match=r"no CRS.*gdal_edit"):
        open_scenes(config(folder))
    write_raster(folder / "a.tif", picture(SIZE, SIZE))
    write_raster(folder / "truth.tif", truth(picture(SIZE, SIZE)), crs=None)
    with pytest.raises(DataError, match="labels have no CRS"):
        open_scenes(config(folder))


def test_labels_elsewhere(folder):
    write_raster(folder / "truth.tif", truth(picture(SIZE, SIZE)), transform=moved(100_000))
    with pytest.raises(DataError, match="do not overlap the images"):
        open_scenes(config(folder))


def test_an_image_without_labels_is_left_out_and_said(folder, caplog):
    write_raster(folder / "a2.tif", picture(SIZE, SIZE), transform=moved(100_000))
    with caplog.at_level(logging.WARNING, "geood"):
        scenes = open_scenes(config(folder))
    assert "images without labels, which are not used: 1 of 2, such as" in caplog.text
    assert all(crop.xmax < 510_000 for crop in scenes.training_boxes)


def test_an_image_under_earlier_ones_is_said(folder, caplog):
    image = picture(SIZE, SIZE)
    write_raster(folder / "a2.tif", image, transform=moved(SIZE))
    with caplog.at_level(logging.WARNING, "geood"):
        open_scenes(config(folder))
    assert "under earlier ones" not in caplog.text
    write_raster(folder / "a3.tif", image, transform=moved(SIZE // 2))  # half under the first, half under the second
    write_raster(folder / "a4.tif", image)
    with caplog.at_level(logging.WARNING, "geood"):
        open_scenes(config(folder))
    [said] = [r.getMessage() for r in caplog.records if "under earlier ones" in r.getMessage()]
    assert said.startswith("2 of 4 images lie wholly under earlier ones, ")
    assert "a3.tif first" in said
    assert "\n" not in said


def test_images_that_do_not_match(folder):
    write_raster(folder / "a2.tif", picture(SIZE, SIZE, bands=5), transform=moved(SIZE))
    with pytest.raises(DataError, match=r"a2.tif has 5 bands of uint8, .*a.tif has 3 of uint8"):
        open_scenes(config(folder))
    (folder / "a2.tif").unlink()
    with pytest.raises(DataError, match=r"bands.indexes asks for 4"):
        open_scenes(config(folder, bands={"indexes": [1, 4]}))
    with pytest.raises(ConfigError, match=r"bands.names lists 2 names, but 3 bands"):
        open_scenes(config(folder, bands={"names": ["x", "y"]}))


def test_labels_that_are_none(folder):
    write_raster(folder / "truth.tif", picture(SIZE, SIZE))
    with pytest.raises(DataError, match="has 3 bands, but labels are one band of class ids"):
        open_scenes(config(folder))
    write_raster(folder / "truth.tif", np.full((SIZE, SIZE), 0.5, "float32"))
    with pytest.raises(DataError, match=r"holds fractions such as 0.5"):
        open_scenes(config(folder))


def test_vector_labels_that_cannot_be_used(folder):
    place = box(500_000, 4_649_700, 500_100, 4_649_777)
    frame = gpd.GeoDataFrame({"kind": ["road"], "code": [1]}, geometry=[place], crs=UTM)
    frame.to_file(folder / "truth.gpkg")
    vector = {"labels": ["truth.gpkg"]}
    with pytest.raises(DataError, match=r"which attribute .* set data.label_attribute to one of: kind, code"):
        open_scenes(config(folder, **vector))
    with pytest.raises(
        DataError, match=r"no attribute knd; did you mean kind\? set data.label_attribute to one of: kind"
    ):
        open_scenes(config(folder, **vector, label_attribute="knd"))
    frame.assign(kind="rode").to_file(folder / "truth.gpkg")
    with pytest.raises(DataError, match=r"no text in kind is the name of a class \(.*road.*it holds 'rode' 1 time;"):
        open_scenes(config(folder, **vector, label_attribute="kind"))
    with pytest.raises(DataError, match="vector files or rasters, not both"):
        open_scenes(config(folder, labels=["truth.gpkg", "truth.tif"], label_attribute="code"))
    for wrong in (-1, 300):
        frame.assign(code=wrong).to_file(folder / "truth.gpkg")
        with pytest.raises(DataError, match=rf"truth.gpkg: attribute code must hold class ids, .*; got {wrong}$"):
            open_scenes(config(folder, **vector, label_attribute="code"))
    frame.to_crs("EPSG:32633").set_crs(None, allow_override=True).to_file(folder / "truth.gpkg")
    with pytest.raises(DataError, match="has no CRS, where one was needed"):
        open_scenes(config(folder, **vector, label_attribute="code"))
    (folder / "truth.gpkg").write_text("no GeoPackage")
    with pytest.raises(DataError, match=r"truth.gpkg"):
        open_scenes(config(folder, **vector, label_attribute="code"))


def test_hidden_files_of_a_folder_are_no_scenes(tmp_path):
    for name in ("a.tif", "._a.tif", ".a.12.partial.tif"):
        (tmp_path / name).write_bytes(b"")
    assert find_files(tmp_path, ["."], what="data.images") == [tmp_path / "a.tif"]


def test_hidden_folders_and_folders_named_like_rasters_are_no_scenes(tmp_path):
    for name in ("a.tif", ".ipynb_checkpoints/a-checkpoint.tif", "b.tif/c.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_files(tmp_path, ["."], what="data.images") == [tmp_path / "a.tif", tmp_path / "b.tif" / "c.tif"]
    assert find_files(tmp_path, ["*.tif"], what="data.images", suffixes=(".tif",)) == [tmp_path / "a.tif"]


# -- training and evaluation see the same labels


GROUND = Grid(64, 64, HALF_METRE, CRS.from_string(UTM))
LABELS = {  # affine from a label's pixels to the image's, the label's height and width, and options of the file
    "same grid": (Affine.identity(), 64, 64, {}),
    "shifted": (Affine.translation(0.4, 0.7), 64, 64, {}),
    "half a pixel": (Affine.translation(0.5, 0.5), 64, 64, {}),
    "finer": (Affine.scale(0.4), 160, 160, {}),
    "coarser": (Affine.scale(2.5), 26, 26, {}),
    "part": (Affine.translation(0, 0), 32, 64, {}),
    "nodata": (Affine.identity(), 64, 64, {"nodata": 2}),
    "nodata, shifted": (Affine.translation(0.4, 0.7), 64, 64, {"nodata": 2}),
}


def as_trained(image, layer):
    """The ids of the whole image, as a crop of training or validation has them."""
    bands = TrainingBands(("red", "green", "blue"), (1, 2, 3), np.dtype("uint8"), 3)
    images = ImageLayer([image], bands, nodata=None, res=None)
    return LabelledImages(images, layer(images)).read(Box(*GROUND.bounds)).ids


@pytest.mark.parametrize(
    "dtype",
    [
        *("uint8", "int16", "uint64", "float32"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("int8", "uint16", "uint32", "int32", "int64", "float64")
        ),
    ],
)
def test_training_and_evaluation_see_the_same_label_rasters(tmp_path, dtype):
    image = write_raster(tmp_path / "a.tif", picture(64, 64))
    for number, (name, (place, height, width, options)) in enumerate(LABELS.items()):
        ids = np.random.default_rng(0).integers(0, 6, (height, width)).astype(dtype)
        path = write_raster(tmp_path / f"{number}.tif", ids, transform=HALF_METRE @ place, **options)
        rules = LabelRules(label_ids={5: 255, 4: 0})
        trained = as_trained(
            image, lambda images, p=path, r=rules: LabelLayer([p], crs=images.target_crs, res=images.res, rules=r)
        )
        with open_labels([path], GROUND, rules) as labels:
            evaluated = labels.read(Window(0, 0, 64, 64))
        np.testing.assert_array_equal(trained, evaluated, err_msg=name)
        assert set(np.unique(evaluated)) == {0, 1, 3, 255} | ({2} if not options else set()), name
        if name == "part":
            assert (evaluated[32:] == 255).all()


def test_training_and_evaluation_see_the_same_of_two_rasters_that_overlap(tmp_path):
    """A stored 255 is no label, so the next file counts."""
    image = write_raster(tmp_path / "a.tif", picture(64, 64))
    first, second = np.full((64, 64), 1, "uint8"), np.full((64, 64), 2, "uint8")
    first[:, 20:] = 255
    paths = [write_raster(tmp_path / "1.tif", first), write_raster(tmp_path / "2.tif", second)]
    trained = as_trained(
        image, lambda images: LabelLayer(paths, crs=images.target_crs, res=images.res, rules=LabelRules())
    )
    with open_labels(paths, GROUND) as labels:
        np.testing.assert_array_equal(trained, labels.read(GROUND.window))
    np.testing.assert_array_equal(trained, np.where(first == 255, 2, 1))


def test_training_and_evaluation_see_the_same_shapes(tmp_path):
    image = write_raster(tmp_path / "a.tif", picture(64, 64))
    west, south, east, north = GROUND.bounds
    shapes = [box(west + 3, south + 3, east + 900, north - 4), box(west - 9, south + 6, west + 11, south + 20)]
    frame = gpd.GeoDataFrame({"kind": [300, 4]}, geometry=shapes, crs=UTM).to_crs("EPSG:4326")
    frame.to_file(tmp_path / "l.gpkg", layer="old")
    frame.assign(kind=[300, 6]).to_file(tmp_path / "l.gpkg", layer="new")
    rules = LabelRules("kind", "new", {300: 3})
    burnt = burn_labels([tmp_path / "l.gpkg"], {image: GROUND}, rules, tmp_path / "burnt")
    trained = as_trained(
        image, lambda images: LabelLayer(burnt, crs=images.target_crs, res=images.res, rules=LabelRules())
    )
    with open_labels([tmp_path / "l.gpkg"], GROUND, rules) as labels:
        np.testing.assert_array_equal(trained, labels.read(GROUND.window))
    assert set(np.unique(trained)) == {3, 6, 255}


def test_a_layer_is_chosen_by_the_config(folder):
    place = box(500_000, 4_649_500, 500_200, 4_649_800)
    for layer, kind in (("old", 0), ("new", 1)):
        gpd.GeoDataFrame({"kind": [kind]}, geometry=[place], crs=UTM).to_file(folder / "l.gpkg", layer=layer)
    vector = {"labels": ["l.gpkg"], "label_attribute": "kind", "crops": 6, "classes": {0: "land", 1: "road"}}
    with pytest.raises(DataError, match=r"its layers are old, new, .*data\.label_layer"):
        open_scenes(config(folder, **vector))
    assert open_scenes(config(folder, **vector, label_layer="new")).report.class_pixels[0] == 0


def test_masks_of_0_and_255_are_read_by_a_table_and_said_without_one(tmp_path, caplog):
    write_raster(tmp_path / "a.tif", image := picture(SIZE, SIZE))
    write_raster(tmp_path / "truth.tif", np.where(truth(image) == 1, 255, 0).astype("uint8"))
    keys = {"crops": 6, "classes": {0: "land", 1: "road"}}
    with caplog.at_level(logging.WARNING, "geood"):
        open_scenes(config(tmp_path, **keys))
    assert "class 1 (road) occurs in no training crop; the labels hold 255, which means unlabelled" in caplog.text
    assert "say what 255 means with data.label_ids, such as {255: 1}" in caplog.text
    mapped = open_scenes(config(tmp_path, **keys, label_ids={255: 1}))
    np.testing.assert_array_equal(read_all(mapped).ids, truth(image) == 1)
    write_raster(tmp_path / "truth.tif", np.full((SIZE, SIZE), 255, "uint8"))
    with pytest.raises(DataError, match=r"check data.classes and the labels; the labels hold 255.*data\.label_ids"):
        open_scenes(config(tmp_path, **keys))
