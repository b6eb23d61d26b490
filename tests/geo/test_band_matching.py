"""Laws of finding a model's bands in a scene, and of telling numbers that are unlike the training."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio

from geood.config.sections import BandsConfig
from geood.errors import ConfigError, DataError
from geood.geo.band_matching import match_bands, parse_bands
from geood.geo.bands import Bands, bands_from_samples
from geood.geo.scene import Scene, SceneSource
from geood.prediction.scene_checks import far_from_training
from support.places import noise, write_raster

RGB = Bands(("red", "green", "blue"), (1, 2, 3), (0,) * 3, (255,) * 3, (0.5,) * 3, (1 / 255,) * 3, None, 3)


def scene_of(tmp_path, *names, count=None, **options):
    """A scene whose bands are described so ("" for none)."""
    pixels = noise(count or len(names), 4, 4).astype(np.uint8)
    if options.get("alpha") == "yes":
        pixels[3] = 255
    path = write_raster(tmp_path / "a.tif", pixels, **{"photometric": "minisblack", **options})
    with rasterio.open(path, "r+") as dataset:
        for i, name in enumerate(names, 1):
            if name:
                dataset.set_band_description(i, name)
    return Scene.open(path)


# Names


@pytest.mark.parametrize(
    "names",
    [
        ("red", "green", "blue"),
        ("blue", "green", "red"),
        ("nir", "Blue", "GREEN", "Red"),
        ("green", "", "red", "swir", "blue"),
    ],
)
def test_names_find_bands_in_any_order(tmp_path, names):
    with scene_of(tmp_path, *names) as scene:
        indexes, sentence = match_bands(scene, RGB, None)
    assert [names[i - 1].lower() for i in indexes] == ["red", "green", "blue"]
    assert "by their names" in sentence and f"{indexes[0]}: red" in sentence


def test_another_order_is_said(tmp_path):
    with scene_of(tmp_path, "blue", "green", "red") as scene:
        assert match_bands(scene, RGB, None)[1].startswith("3: red, 2: green, 1: blue")


def test_colours_are_names(tmp_path):
    bands = replace(RGB, names=("blue", "green", "red"))
    with scene_of(tmp_path, count=4, photometric="rgb", alpha="yes") as scene:
        assert match_bands(scene, bands, None)[0] == (3, 2, 1)


@pytest.mark.parametrize("names", [("band_1", "band_2", "band_3"), ("gray", "band_2", "band_3"), ("Band 3", "1", "2")])
def test_places_are_no_names(tmp_path, names):
    bands = replace(RGB, names=names)
    with scene_of(tmp_path, *reversed(names)) as scene:
        indexes, sentence = match_bands(scene, bands, None)
    assert indexes == (1, 2, 3) and "by position" in sentence


def test_without_names_the_place_counts_where_the_number_fits(tmp_path):
    with scene_of(tmp_path, count=3) as scene:
        assert match_bands(scene, RGB, None)[0] == (1, 2, 3)
        assert match_bands(scene, replace(RGB, indexes=(2, 3, 1)), None)[0] == (2, 3, 1)
    with scene_of(tmp_path, count=4) as scene:
        with pytest.raises(
            DataError, match=r"has 4 bands .*gray, band_2.*with 3 \(1: red.*--bands red=N,green=N,blue=N"
        ):
            match_bands(scene, RGB, None)
        assert match_bands(scene, replace(RGB, scene_count=None), None)[0] == (1, 2, 3)


def test_names_that_contradict_places_are_refused(tmp_path):
    with (
        scene_of(tmp_path, "nir", "red", "green") as scene,
        pytest.raises(
            DataError, match=r"1: nir, 2: red, 3: green.*1: red, 2: green, 3: blue.*red, green at another position"
        ),
    ):
        match_bands(scene, RGB, None)
    with scene_of(tmp_path, "red", "green", "") as scene:
        assert match_bands(scene, RGB, None)[0] == (1, 2, 3)
    with scene_of(tmp_path, "B4", "B3", "B2") as scene:
        assert match_bands(scene, RGB, None)[0] == (1, 2, 3)


def test_a_name_that_stands_twice_serves_nothing(tmp_path):
    with scene_of(tmp_path, "red", "red", "blue") as scene:
        indexes, sentence = match_bands(scene, RGB, None)
    assert indexes == (1, 2, 3) and "by position" in sentence


# Given by hand


def test_what_is_given_beats_names(tmp_path):
    with scene_of(tmp_path, "red", "green", "blue", "nir") as scene:
        for text in ("red=4,green=3,blue=2", "blue=2, RED=4 ,green = 3", "4,3,2"):
            indexes, sentence = match_bands(scene, RGB, parse_bands(text, RGB))
            assert indexes == (4, 3, 2) and sentence == "4: red, 3: green, 2: blue, as given"
        assert match_bands(scene, RGB, parse_bands("1,1,1", RGB))[0] == (1, 1, 1)
        with pytest.raises(DataError, match=r"no band 9, only 1: red, .*4: nir; choose"):
            match_bands(scene, RGB, parse_bands("9,1,1", RGB))


def test_a_fourth_band_that_only_the_file_calls_alpha_can_be_given(tmp_path):
    bands = replace(RGB, names=("red", "green", "blue", "nir"), indexes=(1, 2, 3, 4), scene_count=4)
    with scene_of(tmp_path, count=4, photometric="rgb", alpha="yes") as scene:
        with pytest.raises(DataError, match=r"has 3 bands .*--bands .*nir=N \(band 4 is declared as alpha"):
            match_bands(scene, bands, None)
        indexes, _ = match_bands(scene, bands, {"red": 1, "green": 2, "blue": 3, "nir": 4})
    with rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.write(np.zeros((4, 4), np.uint8), 4)
    with Scene.open(SceneSource(str(tmp_path / "a.tif"), indexes)) as scene:
        assert scene.band_indexes == (1, 2, 3, 4) and scene.alpha == ()
        array, valid = scene.read(scene.grid.window)
    assert valid.all() and array.shape == (4, 4, 4) and not array[3].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"needed is one scene band for each of the model's \(red, green, blue\)"),
        ("1,2", "got 2; give as many"),
        ("1,2,0", "counted from 1"),
        ("1,2,x", "counted from 1"),
        ("1,2,²", "counted from 1"),
        pytest.param("1,2," + "9" * 5000, r"^--bands 1,2,9{76}\.\.\.: .*counted from 1", id="5000 digits"),
        pytest.param("1,2," + "0" * 5000 + "1", "counted from 1", id="5000 zeros"),
        ("1,2,99999999", "counted from 1"),
        ("red=1,green=2", "blue missing"),
        ("red=1,gren=2,blue=3", "gren is none of them; did you mean green"),
        ("red=1,red=2,blue=3", "red is named twice"),
        ("red=1,2,blue=3", "a number alone is none of them; give them as red=1,green=2,blue=3"),
    ],
)
def test_a_wrong_choice_says_what_is_needed(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_bands(text, RGB)


# Numbers


def trained_on(values, names=None, dtype="uint8"):
    names = names or [f"band_{i + 1}" for i in range(len(values))]
    indexes = range(1, len(values) + 1)
    flat = values.reshape(len(values), -1)
    return bands_from_samples(BandsConfig(), names, indexes=[*indexes], values=flat, dtype=dtype, scene_count=None)


def land(seed=0, side=300):
    """Blue to red and near infrared of a place with fields: correlated colours, bright infrared."""
    rng = np.random.default_rng(seed)
    light = np.kron(rng.random((side // 20, side // 20)), np.ones((20, 20))) * 60 + rng.random((side, side)) * 20
    colours = [40 + light * 0.8, 60 + light, 50 + light * 1.1, 150 + (80 - light)]
    return np.stack(colours).clip(1, 255).astype(np.uint8)


BANDS = trained_on(land(1), ["blue", "green", "red", "nir"])


def findings(tmp_path, pixels, bands=BANDS, indexes=(1, 2, 3, 4), **options):
    with Scene.open(write_raster(tmp_path / "a.tif", pixels, photometric="minisblack", **options)) as scene:
        return far_from_training(scene, bands, indexes)


@pytest.mark.parametrize("seed", range(5))
def test_a_scene_like_the_training_gives_no_warning(tmp_path, seed):
    assert findings(tmp_path, land(seed)) == []


def test_the_band_and_both_ranges_are_named(tmp_path):
    pixels = land()
    pixels[2] = 255
    (sentence,) = findings(tmp_path, pixels)
    low, high = BANDS.low[2], BANDS.high[2]
    assert sentence.startswith("band 3 (red): 100 % of its pixels lie outside")
    assert f"({low:.6g} to {high:.6g})" in sentence and "255 to 255" in sentence


@pytest.mark.parametrize("factor", [16, 257])
def test_sixteen_bits_for_eight_are_told(tmp_path, factor):
    sentences = findings(tmp_path, land().astype(np.uint16) * factor)
    assert len(sentences) == 4 and all("on 8-bit scenes, this one is uint16" in s for s in sentences)


def test_reflectance_is_told(tmp_path):
    sentences = findings(tmp_path, (land() / 255).astype(np.float32))
    assert len(sentences) == 4 and all("reflectance from 0 to 1" in s for s in sentences)


def test_swapped_bands_are_told_with_the_right_order(tmp_path):
    sentences = findings(tmp_path, land()[[0, 1, 3, 2]])
    assert "(--bands blue=1,green=2,red=4,nir=3)" in sentences[-1]
    assert findings(tmp_path, land()[[0, 1, 3, 2]], indexes=(1, 2, 4, 3)) == []


def test_only_valid_pixels_are_looked_at(tmp_path):
    pixels = land(side=600)
    pixels[:, :, 100:] = 0
    assert findings(tmp_path, pixels, nodata=0) == []
    assert findings(tmp_path, pixels)
    assert findings(tmp_path, np.zeros_like(pixels), nodata=0) == []


def test_a_huge_scene_is_never_read_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    shape = {
        "height": 200_000,
        "width": 200_000,
        "count": 4,
        "dtype": "uint8",
        "nodata": 0,
        "photometric": "minisblack",
    }
    tiles = {"tiled": True, "sparse_ok": True, "BIGTIFF": "YES", "blockxsize": 512, "blockysize": 512}
    with rasterio.open(path, "w", driver="GTiff", **shape, **tiles):
        pass
    read, whole = [], Scene.stored

    def counted(self, window, indexes):
        read.append(window.height * window.width)
        return whole(self, window, indexes)

    monkeypatch.setattr(Scene, "stored", counted)
    with Scene.open(path) as scene:
        assert far_from_training(scene, BANDS, (1, 2, 3, 4)) == []
    assert sum(read) <= 1024 * 64 * 64
