"""Reading: what is valid, labels and images on any grid, and never a value where there is no data."""

import logging
import pickle

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import shapes
from rasterio.warp import Resampling, calculate_default_transform, reproject
from shapely.geometry import shape

from geood.datasets import reprojection
from geood.datasets.scene_crops import open_scenes
from geood.errors import DataError
from geood.geo.grid import metres_per_unit
from support.rasters import HALF_METRE, UTM, picture, write_raster
from support.scenery import SIZE, assert_mask_is_on_image, config, make_scene, moved, read_all, truth


@pytest.fixture
def folder(tmp_path):
    return make_scene(tmp_path)


# -- what is valid


@pytest.mark.parametrize("how", ["nodata", "override", "alpha", "mask", "nan"])
def test_invalid_pixels_are_never_data(tmp_path, how):
    image = picture(SIZE, SIZE, dtype="float32" if how == "nan" else "uint8")
    known = np.ones((SIZE, SIZE), bool)
    known[:, 120:170] = False
    labels = truth(np.rint(image))
    if how in ("nodata", "override"):
        image[:, ~known] = 0
        image[0, :50] = 0  # nodata in one band only is data
        write_raster(tmp_path / "a.tif", image, nodata=0 if how == "nodata" else None)
    elif how == "alpha":
        colours = {"photometric": "RGB", "alpha": "YES"}
        write_raster(tmp_path / "a.tif", np.concatenate([image, known[None] * np.uint8(255)]), **colours)
    elif how == "mask":
        write_raster(tmp_path / "a.tif", image)
        with rasterio.open(tmp_path / "a.tif", "r+") as file:
            file.write_mask(known)
    else:
        image[1, ~known] = np.nan
        write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "truth.tif", labels, nodata=255)
    scenes = open_scenes(config(tmp_path, bands={"nodata": 0.0} if how == "override" else {}))
    pixels = read_all(scenes)
    assert np.array_equal(pixels.valid, known)
    assert (pixels.ids[~known] == 255).all()
    assert np.isfinite(pixels.image).all()
    assert scenes.bands.count == 3
    training = scenes.training(0, 20)
    for sample in (training[i] for i in range(20)):
        unknown = ~sample["valid"].numpy()
        assert (sample["mask"].numpy()[unknown] == 255).all()
        expected = np.array(scenes.bands.fill, "float32")[:, None]
        assert np.allclose(sample["image"].numpy()[:, unknown], expected)


def test_statistics_leave_out_what_is_not_valid(tmp_path):
    image = picture(SIZE, SIZE, dtype="int16", high=200)
    write_raster(tmp_path / "truth.tif", truth(image), nodata=255)
    image[:, :, 100:140] = -9999
    write_raster(tmp_path / "a.tif", image, nodata=-9999)
    bands = open_scenes(config(tmp_path)).bands
    assert min(bands.low) >= 1
    assert max(bands.high) <= 200
    assert all(0.2 < fill < 0.8 for fill in bands.fill)


def test_an_image_smaller_than_a_crop_is_used_and_its_surroundings_are_invalid(tmp_path):
    image = picture(50, 60)
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "truth.tif", truth(image), nodata=255)
    scenes = open_scenes(config(tmp_path, block_m=15.0, min_valid=0.05, validation=0.2))
    samples = [scenes.training(0, 4)[i] for i in range(4)]
    assert_mask_is_on_image(scenes, samples)
    assert all(sample["image"].shape == (3, 64, 64) for sample in samples)
    pixels = scenes.ground.layers.read(scenes.training_boxes[0])
    assert pixels.valid.sum() == 50 * 60
    assert (pixels.ids[~pixels.valid] == 255).all()


def test_where_images_overlap_the_first_valid_pixel_counts(tmp_path):
    first, second = np.full((3, SIZE, SIZE), 30, "uint8"), np.full((3, SIZE, SIZE), 90, "uint8")
    first[:, :, 250:] = 0
    write_raster(tmp_path / "a1.tif", first, nodata=0)
    write_raster(tmp_path / "a2.tif", second, transform=moved(200), nodata=0)
    write_raster(tmp_path / "truth.tif", np.ones((SIZE, 600), "uint8"))
    scenes = open_scenes(config(tmp_path))
    row = read_all(scenes, width=500)
    assert row.valid.all()
    assert (row.image[:, :, :250] == 30).all()
    assert (row.image[:, :, 250:] == 90).all()


# -- labels


def test_unlabelled_is_255_and_class_0_is_a_class(tmp_path):
    image = picture(SIZE, SIZE)
    labels = truth(image)
    labels[100:120] = 255
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "truth.tif", labels[:, :200], nodata=255)
    pixels = read_all(open_scenes(config(tmp_path)))
    assert np.array_equal(pixels.ids[:, :200], labels[:, :200])
    assert (pixels.ids[:, 200:] == 255).all()
    assert pixels.valid.all()


def test_labels_on_another_grid_and_crs_are_taken_from_the_nearest(tmp_path):
    stripes = np.repeat(np.arange(SIZE)[None] // 50 % 3, SIZE, 0).astype("uint8")
    write_raster(tmp_path / "a.tif", picture(SIZE, SIZE))
    bounds = rasterio.transform.array_bounds(SIZE, SIZE, HALF_METRE)
    there, width, height = calculate_default_transform(UTM, "EPSG:4326", SIZE, SIZE, *bounds, resolution=3e-6)
    labels = np.full((height, width), 255, "uint8")
    place = {"src_transform": HALF_METRE, "src_crs": UTM, "dst_transform": there, "dst_crs": "EPSG:4326"}
    reproject(stripes, labels, **place, resampling=Resampling.nearest, init_dest_nodata=False)
    write_raster(tmp_path / "truth.tif", labels, crs="EPSG:4326", transform=there, nodata=255)
    pixels = read_all(open_scenes(config(tmp_path)))
    assert (pixels.ids == stripes).mean() > 0.98
    assert set(np.unique(pixels.ids)) <= {0, 1, 2, 255}


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".parquet"])
def test_vector_labels_are_the_raster_they_were_cut_from(tmp_path, suffix):
    labels = np.kron(np.arange(36).reshape(6, 6) % 3, np.ones((50, 50))).astype("uint8")
    write_raster(tmp_path / "a.tif", picture(SIZE, SIZE))
    found = [(shape(s), v) for s, v in shapes(labels, mask=labels != 2, transform=HALF_METRE)]
    frame = gpd.GeoDataFrame({"kind": [int(v) for _, v in found]}, geometry=[s for s, _ in found], crs=UTM)
    path = tmp_path / f"truth{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_crs("EPSG:4326" if suffix == ".geojson" else UTM).to_file(path)
    keys = {"labels": [path.name], "label_attribute": "kind", "crops": 6}
    scenes = open_scenes(config(tmp_path, **keys), tmp_path / "burnt")
    pixels = read_all(scenes)
    assert (pixels.ids == np.where(labels == 2, 255, labels)).mean() > 0.99
    assert [file.parent for file in scenes.ground.labels] == [tmp_path / "burnt"]
    assert pickle.loads(pickle.dumps(scenes)).validation()[0]["image"].shape == (3, 64, 64)


def test_ids_nobody_named_are_counted_and_said(tmp_path, caplog):
    image = picture(SIZE, SIZE)
    labels = truth(image)
    labels[:, :150] = 42
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "truth.tif", labels)
    with caplog.at_level(logging.WARNING, "geood"):
        scenes = open_scenes(config(tmp_path, classes={0: "land", 1: "road", 2: "roof", 3: "sea"}))
    assert set(scenes.report.unknown_ids) == {42}
    assert "42" in caplog.text
    assert "class 3 (sea)" in caplog.text
    assert scenes.report.class_pixels[3] == 0
    assert (read_all(scenes).ids[:, :150] == 42).all()
    assert_mask_is_on_image(scenes, [scenes.training(0, 5)[i] for i in range(5)])


# -- geometry of the images


def test_images_of_different_crs_train_together(tmp_path):
    """The second image is the first one's ground, drawn in degrees; what is read of both is the same picture."""
    smooth = np.add.outer(np.arange(SIZE), 2 * np.arange(SIZE))[None] / 5.0
    image = np.concatenate([smooth, smooth + 10]).astype("float32")
    write_raster(tmp_path / "a1.tif", image)
    bounds = rasterio.transform.array_bounds(SIZE, SIZE, HALF_METRE)
    there, width, height = calculate_default_transform(UTM, "EPSG:4326", SIZE, SIZE, *bounds)
    degrees = np.full((2, height, width), np.nan, "float32")
    place = {"src_transform": HALF_METRE, "src_crs": UTM, "dst_transform": there, "dst_crs": "EPSG:4326"}
    reproject(image, degrees, **place, resampling=Resampling.bilinear, dst_nodata=np.nan)
    write_raster(tmp_path / "a2.tif", degrees, crs="EPSG:4326", transform=there, nodata=np.nan)
    write_raster(tmp_path / "truth.tif", np.zeros((SIZE, SIZE), "uint8"))
    both = open_scenes(config(tmp_path, crops=8, classes={0: "land", 1: "road"}))
    assert both.ground.layers.images.target_crs == rasterio.crs.CRS.from_string(UTM)
    second = both.ground.layers.images._source(str(tmp_path / "a2.tif"))
    target = reprojection.Grid(100, 100, moved(100, 100), both.ground.layers.images.target_crs)
    part = second.onto(target)
    assert part.valid.all()
    assert np.abs(part.data - image[:, 100:200, 100:200]).max() < 0.5


@pytest.mark.parametrize("turn", ["rotated", "south-up"])
def test_turned_images_are_put_upright(tmp_path, turn):
    transform = moved() @ Affine.rotation(30) if turn == "rotated" else moved(0, SIZE) @ Affine.scale(1, -1)
    cols, rows = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    x, y = transform @ (cols, rows)
    ground = np.stack([x - 499_900, y - 4_649_500]).astype("float32")  # each pixel says where it lies
    write_raster(tmp_path / "a.tif", ground, transform=transform)
    write_raster(tmp_path / "truth.tif", np.zeros((SIZE, SIZE), "uint8"), transform=transform)
    scenes = open_scenes(config(tmp_path, crops=8, classes={0: "land", 1: "road"}, min_valid=0.2))
    assert scenes.resolution_m == pytest.approx(0.5, rel=1e-3)
    crop = scenes.training_boxes[0]
    pixels = scenes.ground.layers.read(crop)
    at = np.stack(np.meshgrid(crop.xmin + 0.25 + 0.5 * np.arange(64), crop.ymax - 0.25 - 0.5 * np.arange(64)))
    expected = at - np.array([499_900, 4_649_500])[:, None, None]
    assert pixels.valid.any()
    assert np.abs(pixels.image - expected)[:, pixels.valid].max() < 0.5


def test_crops_of_a_turned_image_in_degrees_have_its_pixels(tmp_path):
    """At 60 degrees north they were twice as high as wide on the ground, where `predict` sees squares."""
    across, along = metres_per_unit(CRS.from_epsg(4326), 25, 60)
    on_ground = Affine.rotation(45) @ Affine.scale(0.5, -0.5)
    transform = Affine.translation(25, 60) @ Affine.scale(1 / across, 1 / along) @ on_ground
    write_raster(tmp_path / "a.tif", picture(SIZE, SIZE), crs="EPSG:4326", transform=transform)
    write_raster(tmp_path / "truth.tif", np.zeros((SIZE, SIZE), "uint8"), crs="EPSG:4326", transform=transform)
    scenes = open_scenes(config(tmp_path, crops=8, classes={0: "land", 1: "road"}, min_valid=0.2))
    x, y = scenes.ground.layers.res
    assert (x * across, y * along) == pytest.approx((0.5, 0.5), rel=1e-3)
    assert scenes.resolution_m == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(("north", "told"), [(60, True), (10, False)])
def test_crops_in_degrees_far_from_the_equator_are_told_to_be_no_squares(tmp_path, caplog, north, told):
    transform = Affine(5e-6, 0, 25, 0, -5e-6, north)
    write_raster(tmp_path / "a.tif", picture(SIZE, SIZE), crs="EPSG:4326", transform=transform)
    write_raster(tmp_path / "truth.tif", np.zeros((SIZE, SIZE), "uint8"), crs="EPSG:4326", transform=transform)
    open_scenes(config(tmp_path, crops=8, classes={0: "land", 1: "road"}))
    assert ("the pixels of crops are 0.279 m wide and 0.557 m high on the ground" in caplog.text) == told


def test_another_resolution(folder, monkeypatch):
    scenes = open_scenes(config(folder, resolution=1.0, block_m=50.0))
    assert scenes.resolution_m == pytest.approx(1.0, rel=1e-3)
    crop = scenes.training_boxes[0]
    assert crop.xmax - crop.xmin == pytest.approx(64.0)
    assert scenes.training(0, 1)[0]["image"].shape == (3, 64, 64)
    monkeypatch.setattr(reprojection, "FINEST", 1)
    with pytest.raises(DataError, match=r"a.tif: its pixels are over 1 times finer"):
        open_scenes(config(folder, resolution=2.0, block_m=50.0))
