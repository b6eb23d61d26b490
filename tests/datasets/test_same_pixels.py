"""The law that training and prediction read the same: pixels and validity of every kind of raster."""

import logging

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from geood.calibration.tiled_scoring import ImageSource
from geood.datasets.files import check_images
from geood.datasets.frames import Frame, decode
from geood.datasets.torchgeo_layers import Box, ImageLayer
from geood.geo.bands import bands_from_samples
from geood.geo.grid import Window
from geood.geo.scene import Scene
from geood.geo.scene_reading import settle_reading
from support.rasters import UTM, picture, write_raster
from support.scenery import config

SIDE = 48
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[8:16, 8:16] = True  # no data at all
PARTLY = np.zeros((SIDE, SIDE), bool)
PARTLY[20:30, 20:30] = True  # no data in the second of three bands
MASK = np.where(HOLE, 0, 255).astype("uint8")


def numbers(dtype, nodata, count=3, high=120):
    array = picture(SIDE, SIDE, bands=count, dtype=dtype, high=high)
    array[:, HOLE] = nodata
    array[1, PARTLY] = nodata
    return array


def plain(dtype="uint8", count=3):
    return picture(SIDE, SIDE, bands=count, dtype=dtype, high=120)


def infrared(dark):
    array = plain(count=4)
    array[3, :dark] = 0
    return array


def with_alpha(array, alpha):
    return np.concatenate([array, alpha.astype(array.dtype)[None]])


EITHER, WHOLE, NOTHING = HOLE | PARTLY, HOLE, np.zeros_like(HOLE)
RGBA = {"photometric": "rgb", "alpha": "yes"}
KINDS = {  # pixels, options of the file, sections of the config, invalid pixels
    "plain": (plain(), {}, {}, NOTHING),
    "8 bit, a number in one band is a measurement": (numbers("uint8", 0), {"nodata": 0}, {}, WHOLE),
    "8 bit with sign": (numbers("int8", -128), {"nodata": -128}, {}, WHOLE),
    "8 bit, one band read": (numbers("uint8", 0), {"nodata": 0}, {"indexes": [2]}, EITHER),
    "16 bit": (numbers("uint16", 65535), {"nodata": 65535}, {}, EITHER),
    "16 bit, the band with holes is not read": (numbers("uint16", 0), {"nodata": 0}, {"indexes": [3, 1]}, WHOLE),
    "16 bit with sign": (numbers("int16", -9999), {"nodata": -9999}, {}, EITHER),
    "32 bit": (numbers("int32", -(2**31)), {"nodata": -(2**31)}, {}, EITHER),
    "float": (numbers("float32", -9999), {"nodata": -9999}, {}, EITHER),
    "float, the least number": (numbers("float32", -3.4028235e38), {"nodata": -3.4028234663852886e38}, {}, EITHER),
    "NaN": (numbers("float32", np.nan), {}, {}, EITHER),
    "NaN, declared": (numbers("float64", np.nan), {"nodata": np.nan}, {}, EITHER),
    "infinite": (numbers("float32", np.inf), {}, {}, EITHER),
    "override": (numbers("uint16", 200), {"nodata": 3}, {"nodata": 200}, EITHER),
    "override, 8 bit": (numbers("uint8", 200), {}, {"nodata": 200}, WHOLE),
    "override, one band read": (numbers("float32", 200), {}, {"nodata": 200, "indexes": [1]}, WHOLE),
    "mask": (plain(), {"mask": MASK}, {}, WHOLE),
    "alpha": (with_alpha(plain(), MASK), RGBA, {}, WHOLE),
    "alpha and nodata": (with_alpha(numbers("uint16", 0), MASK), RGBA | {"nodata": 0}, {}, EITHER),
    "alpha and mask": (with_alpha(plain(), ~PARTLY * 255), RGBA | {"mask": MASK}, {}, EITHER),
    "infrared called alpha": (infrared(20), RGBA, {}, NOTHING),
    "infrared ordered": (infrared(SIDE), RGBA, {"indexes": [4, 3]}, NOTHING),
    "infrared left out": (infrared(20), RGBA, {"indexes": [1, 2, 3]}, NOTHING),
    "one bit": (plain() % 2, {"nbits": 1}, {}, NOTHING),
    "undeclared": (numbers("uint16", 65535), {}, {}, NOTHING),
}  # fmt: skip


def write(path, array, *, mask=None, **options):
    options = {"photometric": "minisblack"} | options
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(path, array, **options)
        if mask is not None:
            with rasterio.open(path, "r+") as file:
                file.write_mask(mask)
    return path


def reading_of(path, bands, settings):
    """A scene's description as `predict` settles it for a model that was trained on these bands."""
    shape = (len(bands.indexes), 2)
    values = np.broadcast_to(np.array([0.0, 255.0]), shape)
    fitted = bands_from_samples(
        settings.bands,
        bands.names,
        indexes=bands.indexes,
        values=values,
        dtype=bands.dtype,
        scene_count=bands.scene_count,
    )
    with Scene.open(path, fitted.nodata) as scene:
        return settle_reading(scene, fitted, None).source(str(path), fitted.nodata)


@pytest.mark.parametrize("kind", KINDS)
def test_training_reads_what_predict_reads(tmp_path, kind):
    array, options, section, invalid = KINDS[kind]
    path = write(tmp_path / "a.tif", array, **options)
    settings = config(tmp_path, bands=section)
    bands = check_images([path], settings)
    layer = ImageLayer([path], bands, nodata=settings.bands.nodata, res=None)
    with Scene.open(reading_of(path, bands, settings)) as scene:
        image, valid = scene.read(scene.grid.window)
        west, south, east, north = scene.grid.bounds
        assert np.array_equal(scene.valid(scene.grid.window), valid)
    assert np.array_equal(valid, ~invalid)
    assert np.array_equal(image[:, valid], array[[i - 1 for i in bands.indexes]][:, valid])
    sample = layer[slice(west, east), slice(south, north)]
    assert np.array_equal(sample["valid"].numpy(), valid)
    assert np.array_equal(sample["image"].numpy()[:, valid], image[:, valid].astype("float32"))
    found = decode(Frame("a", path, None), indexes=bands.indexes, nodata=settings.bands.nodata, measured=bands.measured)
    assert np.array_equal(found.valid, valid) and np.array_equal(found.image[:, valid], image[:, valid])


@pytest.mark.parametrize("times", [2, 3, 4, 2.5, 0.5])
@pytest.mark.parametrize("kind", ["plain", "8 bit, a number in one band is a measurement", "16 bit with sign", "NaN"])
def test_training_reads_what_predict_reads_at_another_resolution(tmp_path, kind, times):
    """Pixels that were finer came as sharp as GDAL's bilinear kernel left them, two thirds of what `predict` reads."""
    array, options, section, _ = KINDS[kind]
    path = write(tmp_path / "a.tif", array, **options)
    settings, side = config(tmp_path, bands=section), round(SIDE / times) // 2
    bands = check_images([path], settings)
    source = reading_of(path, bands, settings)
    with Scene.open(source.__class__(source.name, source.indexes, source.nodata, 1 / times)) as scene:
        image, valid = scene.read(Window(1, 2, side, side))
        west, _, _, north = scene.grid.bounds
        size = scene.grid.transform.a * times
    layer = ImageLayer([path], bands, nodata=settings.bands.nodata, res=size)
    x, y = west + 2 * size, north - size
    found = layer.read(Box(x, y - side * size, x + side * size, y))
    assert np.array_equal(found.valid, valid) and valid.any()
    assert np.abs(found.image - image)[:, valid].max() < 1e-3


@pytest.mark.parametrize("change", ["size", "phase", "zone", "turned", "quarter"])
def test_crops_of_images_that_predict_reads_as_they_are_keep_their_contrast(tmp_path, change):
    """Between two pixels there is less of it: a second image whose pixels are 2 % larger lost a third."""
    array = np.random.default_rng(0).integers(0, 255, (3, 300, 300), np.uint8)
    first, transform, crs = (
        Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000),
        Affine(0.5, 0, 700_000, 0, -0.5, 4_600_000),
        UTM,
    )
    if change == "size":
        transform = Affine(0.51, 0, 700_000, 0, -0.51, 4_600_000)
    elif change == "phase":
        transform = Affine(0.5, 0, 700_000.2, 0, -0.5, 4_600_000.2)
    elif change in ("turned", "quarter"):
        about = Affine.rotation(30 if change == "turned" else 90, (700_065, 4_599_925))
        transform = about @ Affine(0.5, 0, 699_990, 0, -0.5, 4_600_000)
    else:
        crs, (x, y) = "EPSG:32634", Transformer.from_crs(32633, 32634, always_xy=True).transform(700_000, 4_600_000)
        transform = Affine(0.5, 0, x, 0, -0.5, y)
    write(tmp_path / "a.tif", array, transform=first)
    write(tmp_path / "b.tif", array, transform=transform, crs=crs)
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    layer = ImageLayer(paths, check_images(paths, config(tmp_path)), nodata=None, res=None)
    found = layer.read(Box(700_040, 4_599_900, 700_090, 4_599_950))
    assert found.valid.mean() > 0.9
    assert found.image[:, found.valid].std() == pytest.approx(array.std(), rel=0.02)
    assert np.isin(found.image[:, found.valid], array).all()


@pytest.mark.parametrize("scale", [0.5, 2.0, 1 / 3])
@pytest.mark.parametrize("kind", ["16 bit", "16 bit with sign", "32 bit", "float", "NaN", "override"])
def test_no_nodata_number_is_mixed_into_its_neighbours(tmp_path, kind, scale):
    array, options, section, invalid = KINDS[kind]
    path = write(tmp_path / "a.tif", array, **options)
    settings = config(tmp_path, bands=section)
    source = reading_of(path, check_images([path], settings), settings)
    with (
        Scene.open(source) as own,
        Scene.open(source.__class__(source.name, source.indexes, source.nodata, scale)) as scene,
    ):
        image, valid = scene.read(scene.working.window)
        in_memory = ImageSource(*own.read(own.grid.window), scale)
    measured = array[:, ~invalid]
    assert valid.any() and not valid.all()
    assert (image[:, valid] >= measured.min() - 1e-3).all() and (image[:, valid] <= measured.max() + 1e-3).all()
    same = in_memory.read(Window(0, 0, *valid.shape))
    assert np.array_equal(same[1], valid) and np.array_equal(same[0][:, valid], image[:, valid])


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 0), ("float32", -9999)])
def test_a_scene_placed_by_points_knows_no_data_in_one_band(tmp_path, dtype, nodata):
    path = write(tmp_path / "a.tif", numbers(dtype, nodata), nodata=nodata, crs=None, transform=Affine.identity())
    with rasterio.open(path, "r+") as file:
        corners = [(row, col) for row in (0, SIDE) for col in (0, SIDE)]
        points = [GroundControlPoint(row=r, col=c, x=500_000 + c / 2, y=4_600_000 - r / 2) for r, c in corners]
        file.gcps = (points, CRS.from_string(UTM))
    with Scene.open(path) as scene:
        image, valid = scene.read(scene.grid.window)
        assert np.array_equal(scene.valid(scene.grid.window), valid)
    assert not (image[:, valid] == nodata).any()
    assert (~valid).sum() == pytest.approx(EITHER.sum(), rel=0.1)


def test_other_scale_and_offset_tags_are_told(tmp_path, caplog):
    settings = config(tmp_path)
    paths = [write(tmp_path / f"{name}.tif", plain()) for name in "ab"]
    with caplog.at_level(logging.WARNING, "geood"):
        bands = check_images(paths, settings)
        assert not caplog.text
        with rasterio.open(paths[1], "r+") as file:
            file.offsets = (-20.0,) * 3
        assert check_images(paths, settings) == bands
    assert "1 of 2 training images have other tags than the first" in caplog.text
    assert "scale 1 and offset -20 as tags, a.tif has scale 1 and offset 0" in caplog.text
    trained = bands_from_samples(
        settings.bands, bands.names, indexes=(1, 2, 3), values=np.array([[0, 9]] * 3), dtype="uint8", scene_count=3
    )
    for known, said in (({}, False), ({"scales": bands.scales, "offsets": bands.offsets}, True)):
        caplog.clear()
        model = type(trained).from_dict(trained.to_dict() | known)
        for path in paths:
            with caplog.at_level(logging.WARNING, "geood"), Scene.open(path) as scene:
                settle_reading(scene, model, None)
        assert ("offset -20 as tags, the training images have scale 1 and offset 0" in caplog.text) == said
        assert "a.tif: its bands" not in caplog.text


def test_a_scale_or_offset_tag_that_is_not_finite_is_none(tmp_path):
    path = write(tmp_path / "a.tif", plain())
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (float("nan"), 2.0, float("inf")), (float("-inf"), float("nan"), 3.0)
    with Scene.open(path) as scene:
        assert scene.scale_tags(scene.band_indexes) == ((1.0, 2.0, 1.0), (0.0, 0.0, 3.0))


@pytest.mark.parametrize(("dtype", "value"), [("uint16", 65535), ("uint16", 0), ("float32", -9999), ("uint8", 0)])
def test_a_frame_that_is_no_data_and_not_declared_is_told_in_training(tmp_path, dtype, value, caplog):
    array = plain(dtype)
    path = write(tmp_path / "a.tif", array)
    array[:, :12] = array[:, :, :20] = value
    framed = write(tmp_path / "b.tif", array)
    with caplog.at_level(logging.WARNING, "geood"):
        check_images([path], config(tmp_path))
        check_images([framed], config(tmp_path, bands={"nodata": value}))
        assert not caplog.text
        check_images([path, framed], config(tmp_path))
    assert f"b.tif: much of its border is {value} in its bands and counts as data" in caplog.text
