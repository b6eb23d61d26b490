"""Laws of bands declared as alpha: an order wins, then values that contradict the declaration, then the declaration."""

import logging

import numpy as np
import pytest

from geood.datasets.files import check_images
from geood.datasets.scene_crops import open_scenes
from geood.errors import DataError
from geood.geo.bands import Bands
from geood.geo.scene import Scene, SceneSource
from geood.geo.scene_reading import ReadingOptions, settle_reading
from support.rasters import picture, write_raster
from support.scenery import SIZE, config, truth

SIDE = 160
ROWS, COLS = np.mgrid[:SIDE, :SIDE]
DISC = np.hypot(ROWS - 80, COLS - 80) < 60
INFRARED = picture(SIDE, SIDE, bands=1, seed=9)[0]
INFRARED[:, :30] = 0  # water


def four(path, fourth, **profile):
    """Write red, green, blue and a fourth band as GDAL does by default: the fourth is declared as alpha."""
    colours = picture(*fourth.shape, seed=1).astype(fourth.dtype)
    options = {"photometric": "rgb", "alpha": "yes"} | profile
    return write_raster(path, np.concatenate([colours, fourth[None]]), **options)


def faded(rim):
    return (255 * np.clip((60 - np.hypot(ROWS - 80, COLS - 80)) / rim, 0, 1)).astype("uint8")


MASKS = {
    "hard": DISC.astype("uint8") * 255,
    "one": DISC.astype("uint8"),
    "faded": faded(10),
    "16 bit": DISC.astype("uint16") * 65535,
    "signed": DISC.astype("int16") * 32767,
    "float": DISC.astype("float32"),
    "translucent": DISC.astype("uint8") * 100,
    "opaque": np.full((SIDE, SIDE), 255, "uint8"),
    "empty": np.zeros((SIDE, SIDE), "uint8"),
    "corner": ((ROWS < 3) & (COLS < 3)).astype("uint8") * 255,
}
DATA = {
    "infrared": INFRARED,
    "16 bit": INFRARED.astype("uint16") * 40,
    "three numbers": np.where(DISC, 0, 150 + ROWS // 80 * 50).astype("uint8"),
    "saturated": np.where(DISC & (ROWS < 80), 255, INFRARED),
    "dark": (INFRARED // 60).astype("uint8"),
    "negative": INFRARED.astype("int16") - 100,
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_stays_a_mask(tmp_path, name):
    mask = MASKS[name]
    with Scene.open(four(tmp_path / "a.tif", mask)) as scene:
        assert (scene.count, scene.alpha, scene.measured) == (3, (4,), ())
        assert scene.dark == ((4,) if name == "empty" else ())
        np.testing.assert_array_equal(scene.read(scene.grid.window)[1], mask > 0)


@pytest.mark.parametrize("name", DATA)
def test_values_that_are_no_masks_are_data_and_said_to_be(tmp_path, name, caplog):
    path = four(tmp_path / "a.tif", DATA[name])
    with caplog.at_level(logging.WARNING, "geood"), Scene.open(path) as scene:
        array, valid = scene.read(scene.grid.window)
        assert (scene.count, scene.alpha, scene.measured, scene.band_names[3]) == (4, (), (4,), "band_4")
    assert valid.all()
    np.testing.assert_array_equal(array[3], DATA[name])
    assert "band 4 is declared as alpha, but holds measurements by its values" in caplog.text
    with Scene.open(SceneSource(str(path), (1, 2, 3))) as scene:
        assert scene.read(scene.grid.window)[1].all(), "a band that is not read is no mask either"


def test_an_order_goes_before_the_values(tmp_path):
    with Scene.open(SceneSource(str(four(tmp_path / "a.tif", MASKS["hard"])), (4, 1))) as scene:
        array, valid = scene.read(scene.grid.window)
    assert valid.all()
    np.testing.assert_array_equal(array[0], MASKS["hard"])
    source = SceneSource(str(four(tmp_path / "b.tif", INFRARED)), (1, 2, 3), measured=())
    with Scene.open(source) as scene:
        np.testing.assert_array_equal(scene.read(scene.grid.window)[1], INFRARED > 0)


def bands_of(count, scene_count):
    numbers = {"low": 0.0, "high": 255.0, "fill": 0.5, "step": 1.0}
    each = {key: (number,) * count for key, number in numbers.items()}
    names = tuple(f"band_{i + 1}" for i in range(count))
    return Bands(names=names, indexes=tuple(range(1, count + 1)), scene_count=scene_count, **each)


@pytest.mark.parametrize(
    ("fourth", "count", "scene_count", "wanted"),
    [
        (INFRARED, 4, 4, True),
        (INFRARED, 4, None, True),
        (INFRARED, 3, 3, False),
        (INFRARED, 3, None, False),
        (MASKS["hard"], 3, 3, False),
        (MASKS["hard"], 3, None, False),
        (MASKS["hard"], 4, None, True),  # ordered in training
        (MASKS["hard"], 4, 4, None),  # a mask is no infrared
        (MASKS["empty"], 4, 4, True),  # infrared of water
        (MASKS["empty"], 3, 3, False),
    ],
)
def test_a_model_gets_the_bands_that_it_was_trained_on(tmp_path, fourth, count, scene_count, wanted):
    path = four(tmp_path / "a.tif", fourth)
    with Scene.open(path) as scene:
        if wanted is None:
            with pytest.raises(DataError, match=r"band 4 is declared as alpha, but can be named there"):
                settle_reading(scene, bands_of(count, scene_count), None)
            options = ReadingOptions(bands="1,2,3,4")
            assert settle_reading(scene, bands_of(count, scene_count), None, options).indexes == (1, 2, 3, 4)
            return
        reading = settle_reading(scene, bands_of(count, scene_count), None)
    assert reading.indexes == ((1, 2, 3, 4) if wanted else (1, 2, 3))
    with Scene.open(reading.source(str(path), None)) as scene:
        expected = fourth > 0 if not wanted and fourth is not INFRARED else np.ones_like(DISC)
        np.testing.assert_array_equal(scene.read(scene.grid.window)[1], expected)


# Training


def folder_with(path, fourth, **profile):
    four(path / "a.tif", fourth, **profile)
    write_raster(path / "truth.tif", truth(picture(*fourth.shape, seed=1)), nodata=255)
    return path


@pytest.fixture
def infrared():
    band = picture(SIZE, SIZE, bands=1, seed=5)[0]
    band[: SIZE // 2] = 0
    return band


@pytest.mark.parametrize("indexes", [None, [1, 2, 3, 4], [4, 1]])
def test_infrared_declared_as_alpha_is_trained_on(tmp_path, infrared, indexes, caplog):
    with caplog.at_level(logging.WARNING, "geood"):
        crops = open_scenes(config(folder_with(tmp_path, infrared), bands={"indexes": indexes}))
    assert crops.bands.indexes == tuple(indexes or (1, 2, 3, 4))
    assert crops.bands.scene_count == (None if indexes else 4)
    assert ("declared as alpha" in caplog.text) == (indexes is None)
    for box in crops.training_boxes:
        pixels = crops.ground.layers.read(box)
        assert pixels.valid.all(), "zeros of infrared are no nodata"
    with Scene.open(tmp_path / "a.tif") as scene:
        assert settle_reading(scene, crops.bands, None).indexes == crops.bands.indexes


def test_a_band_is_data_in_all_images_if_it_is_in_one(tmp_path, caplog):
    images = [four(tmp_path / "sea.tif", MASKS["empty"]), four(tmp_path / "land.tif", INFRARED)]
    settings = config(tmp_path, images=["*.tif"])
    assert check_images(images, settings).indexes == (1, 2, 3, 4)
    assert check_images(images[:1], settings).indexes == (1, 2, 3)
    plain = write_raster(tmp_path / "rgb.tif", picture(SIDE, SIDE))
    assert check_images([images[0], plain], settings).indexes == (1, 2, 3)
    with pytest.raises(DataError, match=r"rgb\.tif has 3 bands of uint8, .*sea\.tif has 4"):
        check_images([*images, plain], settings)
    with pytest.raises(DataError, match=r"bands 1 to 4; bands\.indexes asks for 5"):
        check_images(images, config(tmp_path, bands={"indexes": [5]}))


def test_a_band_taken_for_a_mask_is_said(tmp_path, caplog):
    paths = [four(tmp_path / "a.tif", MASKS["hard"])]
    with caplog.at_level(logging.INFO, "geood"):
        assert check_images(paths, config(tmp_path)).indexes == (1, 2, 3)
    assert "band 4 of the training images is declared as alpha" in caplog.text and "bands.indexes" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "geood"):
        assert check_images(paths, config(tmp_path, bands={"indexes": [1, 2, 3, 4]})).indexes == (1, 2, 3, 4)
    assert "alpha" not in caplog.text
