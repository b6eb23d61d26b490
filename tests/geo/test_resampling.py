"""Laws of reading scenes at another resolution: no window shows, only valid pixels count, known sums come out."""

import logging
import math

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from geood.errors import DataError
from geood.geo.grid import Grid, Window, mirrored
from geood.geo.resampling import nearest, resample, resized, spread, taps
from geood.geo.scene import Scene, SceneSource
from geood.geo.scene_reading import resampling_of, resampling_of_photo
from support.cpu import slow
from support.places import NORTH_UP, PLACES, UTM, noise, write_raster

SCALES = [1 / 8, 1 / 3, 0.4, 0.5, 0.7013, 0.93, 1.08, 1.5, 2.0, 3.7, 4.0]


def at(path, scale, **how):
    return Scene.open(SceneSource(str(path), scale=scale, **how))


def whole(scene):
    return scene.read(scene.working.window)


def holed(height, width, bands=2, dtype=np.uint16, seed=0):
    pixels = noise(bands, height, width, seed=seed, high=200).astype(dtype)
    rng = np.random.default_rng(seed)
    for _ in range(6):
        row, col = rng.integers(0, height), rng.integers(0, width)
        pixels[:, row : row + rng.integers(1, 9), col : col + rng.integers(1, 9)] = 0
    return pixels


def resize(pixels, valid, scale):
    down, across = (taps(0, resized(n, scale), scale=scale, size=n) for n in pixels.shape[1:])
    return resample(pixels, valid, down, across)


def areas(size, scale):
    """How much of each new pixel (n) lies in each old one (size), as a dense matrix."""
    new = np.arange(resized(size, scale))[:, None] / scale
    old = np.arange(size)
    return np.clip(np.minimum(np.minimum(new + 1 / scale, size), old + 1) - np.maximum(new, old), 0, None)


# Windows


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("nodata", [0, *slow(None)])
def test_windows_put_together_equal_one_window_over_all(tmp_path, monkeypatch, scale, nodata):
    path = write_raster(tmp_path / "a.tif", holed(31, 43), nodata=nodata)
    with at(path, scale) as scene:
        array, valid = whole(scene)
        height, width = scene.working.height, scene.working.width
        assert array.shape == (2, height, width) and (nodata is None) == valid.all()
        for rows, cols in ((1, width), (height, 1), (7, 5), (13, 31)):
            for row in range(0, height, rows):
                for col in range(0, width, cols):
                    window = Window(row, col, rows, cols).within(scene.working.window)
                    part, seen = scene.read(window)
                    assert part.tobytes() == array[(slice(None), *window.slices)].tobytes()
                    np.testing.assert_array_equal(seen, valid[window.slices])
        monkeypatch.setattr("geood.geo.scene.PIECE_PX", 100)
        assert whole(scene)[0].tobytes() == array.tobytes()


def test_pixels_under_a_window_are_read_in_pieces_of_few_bytes_whatever_a_scene_holds(tmp_path, monkeypatch):
    """Memory is planned for the pixels that come out; those under them may be many bands of wide numbers."""
    monkeypatch.setattr("geood.geo.scene.PIECE_BYTES", 2**14)
    sizes, stored = [], Scene.stored

    def seen(scene, *arguments):
        array, valid = stored(scene, *arguments)
        sizes.append(array.nbytes)
        return array, valid

    monkeypatch.setattr(Scene, "stored", seen)
    for dtype in (np.uint8, np.float64):
        pixels = noise(7, 160, 40, high=200).astype(dtype)
        sizes.clear()
        with at(write_raster(tmp_path / "a.tif", pixels), 1 / 8) as scene:
            array, _ = whole(scene)
        assert max(sizes) <= max(2**14, 7 * 8 * 40 * np.dtype(dtype).itemsize) and sum(sizes) == pixels.nbytes
        assert array.tobytes() == resize(pixels, np.ones((160, 40), bool), 1 / 8)[0].tobytes()


@pytest.mark.parametrize("scale", [0.4, 1.5])
@pytest.mark.parametrize("window", [Window(-9, -4, 30, 50), Window(-64, 3, 96, 2), Window(5, 60, 3, 9)])
def test_what_overhangs_is_mirrored_in_working_pixels(tmp_path, scale, window):
    with at(write_raster(tmp_path / "a.tif", holed(40, 33), nodata=0), scale) as scene:
        array, valid = whole(scene)
        around = np.pad(array, ((0, 0), (128, 128), (128, 128)), mode="reflect")
        seen = np.pad(valid, 128, mode="reflect")
        rows, cols = (slice(s.start + 128, s.stop + 128) for s in window.slices)
        part, part_valid = scene.read(window)
    np.testing.assert_array_equal(part, around[:, rows, cols])
    np.testing.assert_array_equal(part_valid, seen[rows, cols])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_window_shows_at_any_size_and_scale(data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    scale = data.draw(st.one_of(st.sampled_from(SCALES), st.floats(1 / 8, 4)))
    pixels = holed(height, width, dtype=np.float32, seed=data.draw(st.integers(0, 99)))
    valid = pixels[0] > 0
    array, seen = resize(pixels, valid, scale)
    row = data.draw(st.integers(0, seen.shape[0] - 1))
    col = data.draw(st.integers(0, seen.shape[1] - 1))
    down = taps(row, data.draw(st.integers(1, seen.shape[0] - row)), scale=scale, size=height)
    across = taps(col, data.draw(st.integers(1, seen.shape[1] - col)), scale=scale, size=width)
    under = (slice(down.start, down.stop), slice(across.start, across.stop))
    part, part_seen = resample(pixels[(slice(None), *under)], valid[under], down, across)
    place = (slice(row, row + part.shape[1]), slice(col, col + part.shape[2]))
    assert part.tobytes() == array[(slice(None), *place)].tobytes()
    np.testing.assert_array_equal(part_seen, seen[place])
    assert (array[:, seen] >= 0.99).all() and (array[:, seen] <= 200).all()  # invalid zeros never mix in


def test_overviews_make_no_difference(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(1, 600, 600).astype(np.uint8), tiled=True)
    with at(path, 0.25) as scene:
        without = whole(scene)[0]
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.nearest)
    with at(path, 0.25) as scene:
        assert scene.layout.overviews == 2
        assert whole(scene)[0].tobytes() == without.tobytes()


# Values


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [1, 200, 65535])
def test_a_constant_stays(scale, value):
    pixels = np.full((1, 31, 47), value, np.uint16)
    valid = noise(31, 47, high=10) > 3
    for known in (np.ones_like(valid), valid):
        array, seen = resize(pixels, known, scale)
        np.testing.assert_allclose(array[:, seen], value, rtol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_a_ramp_stays(scale):
    rows, cols = np.mgrid[:50, :70]
    array, _ = resize((100 + 3 * rows + 2 * cols).astype(np.uint16)[None], np.ones((50, 70), bool), scale)
    centres = [(np.arange(n) + 0.5) / scale - 0.5 for n in array.shape[1:]]
    wanted = 100 + 3 * centres[0][:, None] + 2 * centres[1]
    inner = slice(1 + int(scale), -2 - int(scale))
    np.testing.assert_allclose(array[0, inner, inner], wanted[inner, inner], atol=5 / 8)
    if float(1 / scale).is_integer() or scale > 1:
        np.testing.assert_allclose(array[0, inner, inner], wanted[inner, inner], atol=1e-3)


def test_half_of_the_resolution_is_the_mean_of_two_by_two(tmp_path):
    pixels = noise(3, 40, 62).astype(np.uint8)
    with at(write_raster(tmp_path / "a.tif", pixels), 0.5) as scene:
        array, valid = whole(scene)
    np.testing.assert_array_equal(array, pixels.reshape(3, 20, 2, 31, 2).mean(axis=(2, 4)).astype(np.float32))
    assert valid.all() and array.dtype == np.float32


@pytest.mark.parametrize("scale", [s for s in SCALES if s < 1])
def test_shrinking_equals_the_mean_over_areas(scale):
    pixels = holed(41, 58, dtype=np.uint8)
    valid = pixels[0] > 0
    array, seen = resize(pixels, valid, scale)
    down, across = areas(41, scale), areas(58, scale)
    known = down @ valid @ across.T
    inside = down.sum(axis=1)[:, None] * across.sum(axis=1)
    np.testing.assert_array_equal(seen, known / inside > 0.4999)
    wanted = (down @ (pixels * valid) @ across.T) / np.maximum(known, 1e-9)
    np.testing.assert_allclose(array[:, seen], wanted[:, seen], rtol=1e-5)


@pytest.mark.parametrize("scale", [s for s in SCALES if s > 1])
def test_enlarging_lies_between_the_nearest_pixels(scale):
    pixels = noise(1, 23, 31).astype(np.float64)
    array, _ = resize(pixels, np.ones((23, 31), bool), scale)
    wanted = pixels[0]
    for axis, size in ((0, 23), (1, 31)):
        centres = (np.arange(array.shape[1 + axis]) + 0.5) / scale - 0.5
        line = lambda column, to=centres, size=size: np.interp(to, np.arange(size), column)  # noqa: E731
        wanted = np.apply_along_axis(line, axis, wanted)
    np.testing.assert_allclose(array[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 41, 58])
@pytest.mark.parametrize("scale", SCALES)
def test_the_nearest_pixel_is_the_one_under_the_centre_and_among_the_taps(scale, size):
    whole = nearest(0, resized(size, scale), scale=scale, size=size)
    centres = (np.arange(whole.size) + 0.5) / scale
    assert (abs(whole + 0.5 - centres.clip(0.5, size - 0.5)) <= 0.5 + 1e-5).all()
    for first, length in ((0, 1), (whole.size // 2, 1), (whole.size // 3, whole.size - whole.size // 3)):
        part, around = (f(first, length, scale=scale, size=size) for f in (nearest, taps))
        np.testing.assert_array_equal(part, whole[first : first + length])
        assert around.start <= part.min() and part.max() < around.stop


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_enlarged_validity_is_that_of_the_pixel_underneath(scale):
    valid = noise(9, 12, high=10) > 4
    _, seen = resize(noise(1, 9, 12), valid, scale)
    np.testing.assert_array_equal(seen, np.kron(valid, np.ones((int(scale), int(scale)), bool)))


def test_a_pixel_is_valid_if_half_of_it_is():
    pixels = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2)
    for known, wanted in (([1, 1, 1, 0], 2.0), ([1, 0, 0, 1], 2.5), ([0, 0, 0, 1], None), ([0, 0, 0, 0], None)):
        array, seen = resize(pixels, np.array(known, bool).reshape(2, 2), 0.5)
        assert bool(seen[0, 0]) == (wanted is not None)
        assert array[0, 0, 0] == (wanted or 0)


def test_not_a_number_and_no_data_stay_out(tmp_path):
    pixels = noise(2, 16, 16).astype(np.float32)
    pixels[0, 3, 4] = np.nan
    pixels[1, 9, 9] = np.inf
    pixels[:, 12, 12] = -3e38
    with at(write_raster(tmp_path / "a.tif", pixels, nodata=-3e38), 0.5) as scene:
        array, valid = whole(scene)
    assert valid.all() and (array >= 1).all() and (array < 255).all()
    assert array[0, 1, 2] == np.nanmean(pixels[0, 2:4, 4:6])


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float64"])
def test_long_numbers_keep_their_digits(dtype):
    pixels = (noise(1, 8, 8) + 10**9).astype(dtype)
    array, _ = resize(pixels, np.ones((8, 8), bool), 0.5)
    np.testing.assert_allclose(array, pixels.reshape(1, 4, 2, 4, 2).mean(axis=(2, 4)), rtol=1e-15)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_any_size_has_pixels(tmp_path, shape, scale):
    with at(write_raster(tmp_path / "a.tif", noise(1, *shape).astype(np.uint8)), scale) as scene:
        array, valid = scene.read(Window(-32, -32, 96, 96))
        assert scene.working.height == max(1, math.ceil(shape[0] * scale))
    assert np.isfinite(array).all() and valid.all() and array.min() >= 1


# Grids and decisions


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_working_grid_covers_the_scene(tmp_path, place):
    with at(write_raster(tmp_path / "a.tif", noise(1, 41, 60).astype(np.uint8), place=place), 0.4) as scene:
        grid, working = scene.grid, scene.working
        assert (working.height, working.width, working.crs) == (17, 24, grid.crs)
        for x, y in ((0, 0), (40, 25)):
            assert np.allclose(working.transform @ (x * 0.4, y * 0.4), grid.transform @ (x, y), rtol=1e-12)
        assert np.allclose(working.pixel_size, np.array(grid.pixel_size) / 0.4)
        assert scene.valid(Window(30, 50, 11, 10)).shape == (11, 10)


@pytest.mark.parametrize(
    ("own", "model", "scale"),
    [
        (0.5, 0.5, 1.0),
        (0.52, 0.5, 1.0),
        (0.48, 0.5, 1.0),
        (0.25, 0.5, 0.5),
        (0.2503, 0.5, 0.5),
        (0.2, 0.5, 0.4),
        (0.0625, 0.5, 1 / 8),
        (1.0, 0.5, 2.0),
        (2.0, 0.5, 4.0),
        (0.8, 0.5, 1.6),
        (0.54, 0.5, 1.08),
    ],
)
def test_a_scene_is_read_at_the_models_resolution(own, model, scale):
    grid = Grid(100, 100, Affine(own, 0, 500000, 0, -own, 4500000), UTM)
    found, sentence = resampling_of(grid, model, resample=True)
    assert found == pytest.approx(scale, rel=1e-3)
    if scale in (1.0, 0.5, 1 / 8, 2.0, 4.0):
        assert found == scale
    assert f"{model:.3g} m" in sentence and ("as it is" in sentence) == (scale == 1)


def test_true_ground_size_counts(caplog):
    degrees = Affine(1e-5, 0, 11.1, 0, -1e-5, 60.0)
    grid = Grid(100, 100, degrees, CRS.from_epsg(4326))
    # Pixels of 0.557 m by 1.114 m: their aspect stays, and 0.788 m is what counts.
    assert grid.resolution_m == pytest.approx(0.788, abs=0.002)
    assert resampling_of(grid, 0.788, resample=True)[0] == 1.0
    assert resampling_of(grid, 0.394, resample=True)[0] == 2.0
    feet = Grid(100, 100, Affine(1, 0, 980000, 0, -1, 190000), CRS.from_epsg(2263))
    assert resampling_of(feet, 0.3048, resample=True)[0] == 1.0
    mercator = Grid(100, 100, Affine(1, 0, 0, 0, -1, 8399737.9), CRS.from_epsg(3857))  # at 60 degrees north
    assert resampling_of(mercator, 1.0, resample=True)[0] == 0.5


def test_what_has_no_ground_size_is_read_as_it_is(caplog):
    photo = Grid(100, 100, Affine.identity())
    assert resampling_of(photo, 0.5, resample=True) == (1.0, "read as it is: the scene has no CRS")
    grid = Grid(100, 100, NORTH_UP, UTM)
    assert resampling_of(grid, None, resample=True)[0] == 1.0
    with caplog.at_level(logging.WARNING, "geood"):
        scale, sentence = resampling_of(grid, 1.0, resample=False)
        assert scale == 1.0 and "as asked for" in sentence and "--no-resample" in caplog.text
        caplog.clear()
        assert resampling_of(grid, 0.25, resample=False)[0] == 1.0 and not caplog.text


def test_a_scene_too_far_from_the_model_is_refused():
    grid = Grid(100, 100, NORTH_UP, UTM)
    with pytest.raises(DataError, match=r"0\.25 m.*2\.5 m.*downsampled 10 times, and 8 .*average -tr 2\.499 2\.499 "):
        resampling_of(grid, 2.5, resample=True)
    with pytest.raises(DataError, match=r"upsampled 5 times, and 4 is the most; .*--no-resample"):
        resampling_of(grid, 0.05, resample=True)
    assert resampling_of(grid, 0.05, resample=False)[0] == 1.0


@pytest.mark.parametrize(
    ("own", "model", "scale"),
    [
        (320, 320, 1),
        (330, 320, 1),
        (1280, 320, 1 / 4),
        (1281, 320, 1 / 4),
        (1000, 320, 0.32),
        (160, 320, 2),
        (5000, 320, 1 / 16),
    ],
)
def test_a_photograph_is_read_at_the_width_of_the_models(own, model, scale):
    found, sentence = resampling_of_photo(own, model)
    assert found == pytest.approx(scale, rel=0.05) and abs(own * found / model - 1) <= 0.05
    assert f"{own} px wide, those of the model {model} px" in sentence and ("as it is" in sentence) == (scale == 1)
    assert resampling_of_photo(own, model, resample=False)[0] == 1.0


def test_a_photograph_too_far_from_the_model_is_refused():
    with pytest.raises(
        DataError, match=r"8000 px.*320 px: .*downsampled 25 times, and 16 .*-r average -outsize 320 0 "
    ):
        resampling_of_photo(8000, 320)
    with pytest.raises(DataError, match=r"upsampled 5 times, and 4 is the most; .*bilinear.*--no-resample"):
        resampling_of_photo(64, 320)


@pytest.mark.parametrize(
    ("start", "length", "size"), [(-5, 20, 9), (3, 4, 9), (-70, 200, 50), (0, 5, 1), (-3, 9, 2), (5, 9, 9)]
)
def test_spread_pixels_are_those_at_each_index(start, length, size):
    rng = np.random.default_rng(0)
    array, places = rng.integers(0, 99, (3, size, size), np.uint8), mirrored(start, length, size)
    found = spread(array, places, places[:4])
    np.testing.assert_array_equal(found, array[:, places][:, :, places[:4]])
    np.testing.assert_array_equal(spread(array[0], places[:3], places), array[0][places[:3]][:, places])
