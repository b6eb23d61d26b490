"""Laws of reading scenes by windows with validity, of scaling bands, and of score rasters on disk."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window as RasterioWindow

from geood.bands import Bands, bands_from_samples
from geood.config import BandsConfig
from geood.errors import ConfigError, DataError, OutputError
from geood.grid import Grid, Window, tile_grid
from geood.raster import ScoreWriter, check_output, finish_cog, open_scores, read_tags
from geood.scene import Scene

UTM = CRS.from_epsg(32633)
NORTH_UP = Affine(0.25, 0, 500000, 0, -0.25, 4500000)
CUSTOM = CRS.from_proj4("+proj=tmerc +lat_0=47.123 +lon_0=11.456 +k=0.99987 +x_0=12345 +ellps=bessel +units=us-ft")
PLACES = {
    "north-up": (NORTH_UP, UTM),
    "rotated": (Affine(0.2, 0.1, 500000, 0.1, -0.2, 4500000), UTM),
    "south-up": (Affine(0.25, 0, 500000, 0, 0.25, 4500000), UTM),
    "degrees": (Affine(1e-5, 0, 11.1, 0, -1e-5, 47.3), CRS.from_epsg(4326)),
    "feet, no EPSG code": (Affine(0.8, 0, 1234.5, 0, -0.8, 6789.25), CUSTOM),
    "photo": (Affine.identity(), None),
    "no CRS": (NORTH_UP, None),
}


def write_raster(path, array, *, place=(NORTH_UP, UTM), mask=None, **options):
    count, height, width = array.shape
    transform, crs = place
    shape = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    profile = {"driver": "GTiff", "crs": crs, "transform": transform, **shape, **options}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dataset:
        dataset.write(array)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def scores_on(path, grid, array, **tags):
    """A finished score raster with these scores."""
    work = path.with_name("work.tif")
    with ScoreWriter(work, grid) as writer:
        writer.write(grid.window, array)
    finish_cog(work, path, description="anomaly score", tags={"GEOOD_MODEL": "abc", **tags}, overview="average")
    work.unlink()
    return path


def noise(*shape, seed=0, high=255):
    return np.random.default_rng(seed).integers(1, high, shape)


# Reading


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (7, 5), (40, 33)])
@pytest.mark.parametrize(
    "window", [Window(0, 0, 8, 8), Window(-9, -4, 30, 50), Window(-64, 3, 96, 2), Window(5, 60, 3, 9)]
)
def test_a_window_anywhere_equals_the_mirrored_scene(tmp_path, shape, window):
    pixels = noise(2, *shape).astype(np.uint16)
    margin = 128
    mirrored = np.pad(pixels, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    rows, cols = window.slices
    wanted = mirrored[:, rows.start + margin : rows.stop + margin, cols.start + margin : cols.stop + margin]
    with Scene.open(write_raster(tmp_path / "a.tif", pixels)) as scene:
        array, valid = scene.read(window, (1, 2))
        swapped, _ = scene.read(window, (2, 1))
    np.testing.assert_array_equal(array, wanted)
    np.testing.assert_array_equal(swapped, wanted[::-1])
    assert array.dtype == np.uint16 and valid.all()


def test_tiles_put_together_equal_the_scene(tmp_path):
    pixels = noise(1, 150, 201).astype(np.uint8)
    pixels[0, 30:70, 100:140] = 0
    whole, seen = np.zeros_like(pixels), np.zeros((150, 201), bool)
    with Scene.open(write_raster(tmp_path / "a.tif", pixels, nodata=0)) as scene:
        for tile in tile_grid(150, 201, tile_px=64, halo_px=32):
            array, valid = scene.read(tile.read, (1,))
            whole[(slice(None), *tile.write.slices)] = array[(slice(None), *tile.core)]
            seen[tile.write.slices] = valid[tile.core]
    np.testing.assert_array_equal(whole, pixels)
    np.testing.assert_array_equal(seen, pixels[0] > 0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"])
def test_pixels_keep_their_dtype(tmp_path, dtype):
    pixels = noise(1, 5, 6, high=100).astype(dtype)
    with Scene.open(write_raster(tmp_path / "a.tif", pixels)) as scene:
        array, _ = scene.read(scene.grid.window, (1,))
    assert array.dtype == scene.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, pixels)


def scene_validity(path, nodata=None, indexes=None):
    with Scene.open(path, nodata=nodata) as scene:
        return scene.read(scene.grid.window, indexes or scene.band_indexes)[1]


def test_nodata_counts_where_all_bands_have_it(tmp_path):
    pixels = noise(3, 6, 6).astype(np.uint8)
    pixels[:, 1, 1] = 0
    pixels[0, 2, 2] = 0
    wanted = np.ones((6, 6), bool)
    wanted[1, 1] = False
    np.testing.assert_array_equal(scene_validity(write_raster(tmp_path / "a.tif", pixels, nodata=0)), wanted)
    undeclared = write_raster(tmp_path / "b.tif", pixels)
    assert scene_validity(undeclared).all()
    np.testing.assert_array_equal(scene_validity(undeclared, nodata=0), wanted)


def test_a_nodata_override_takes_the_place_of_the_files_own(tmp_path):
    pixels = np.array([[[0, 1, 255]]], np.uint8)
    path = write_raster(tmp_path / "a.tif", pixels, nodata=0)
    assert scene_validity(path).tolist() == [[False, True, True]]
    assert scene_validity(path, nodata=255).tolist() == [[True, True, False]]


def test_mask_band_alpha_and_nan_count(tmp_path):
    wanted = np.ones((8, 8), bool)
    wanted[2:5, 3:6] = False
    mask = wanted.astype(np.uint8) * 255
    pixels = noise(3, 8, 8).astype(np.uint8)
    np.testing.assert_array_equal(scene_validity(write_raster(tmp_path / "mask.tif", pixels, mask=mask)), wanted)
    alpha = np.concatenate([pixels, mask[None]])
    path = write_raster(tmp_path / "alpha.tif", alpha, photometric="rgb", alpha="yes")
    np.testing.assert_array_equal(scene_validity(path), wanted)
    path = write_raster(tmp_path / "both.tif", alpha, photometric="rgb", alpha="yes", nodata=7)
    np.testing.assert_array_equal(scene_validity(path), wanted)
    floats = pixels.astype(np.float32)
    floats[1, ~wanted] = np.nan
    path = write_raster(tmp_path / "nan.tif", floats)
    np.testing.assert_array_equal(scene_validity(path), wanted)
    assert scene_validity(path, indexes=(1, 3)).all()


def test_alpha_is_no_band(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(4, 3, 3).astype(np.uint8), photometric="rgb", alpha="yes")
    with Scene.open(path) as scene:
        assert (scene.count, scene.band_indexes, scene.band_names) == (3, (1, 2, 3), ("red", "green", "blue"))


def test_band_names_come_from_descriptions_first(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(3, 3, 3).astype(np.uint8), photometric="minisblack")
    with rasterio.open(path, "r+") as dataset:
        dataset.set_band_description(2, "nir")
    with Scene.open(path) as scene:
        assert scene.band_names == ("gray", "nir", "band_3")


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_grid_is_as_stored(tmp_path, place):
    path = write_raster(tmp_path / "a.tif", noise(1, 4, 7).astype(np.uint8), place=place)
    with Scene.open(path) as scene, rasterio.open(path) as dataset:
        assert scene.grid == Grid(4, 7, dataset.transform, dataset.crs)
        assert scene.grid.transform.almost_equals(place[0], 1e-9)
        assert (scene.grid.crs is None) == (place[1] is None)


# Bad input


def test_what_is_no_raster_is_one_clear_error(tmp_path):
    (tmp_path / "scene.tif").write_text("hello")
    with pytest.raises(DataError, match=r"scene\.tif: cannot be read as a raster"):
        Scene.open(tmp_path / "scene.tif")
    with pytest.raises(DataError, match=r"scne\.tif: no such file; did you mean scene\.tif"):
        Scene.open(tmp_path / "scne.tif")
    with pytest.raises(DataError, match="a folder"):
        Scene.open(tmp_path)
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.tif"):
        Scene.open(tmp_path / "empty.tif")


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw", "zstd", "jpeg"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_truncated_file_never_reads_as_data(tmp_path, compress, share):
    pixels = noise(3, 300, 300).astype(np.uint8)
    path = write_raster(tmp_path / "a.tif", pixels, compress=compress, tiled=True, blockxsize=128, blockysize=128)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError, match=r"a\.tif: cannot be read"), Scene.open(path) as scene:
        scene.read(scene.grid.window, (1, 2, 3))


def test_a_damaged_middle_never_reads_as_data(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(1, 300, 300).astype(np.uint8), compress="deflate")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0" * 4000)
    with pytest.raises(DataError, match="cannot be read"), Scene.open(path) as scene:
        scene.read(scene.grid.window, (1,))


def test_pixels_that_would_be_misread_are_refused(tmp_path):
    with pytest.raises(DataError, match="complex"):
        Scene.open(write_raster(tmp_path / "complex.tif", np.zeros((1, 3, 3), np.complex64)))
    path = write_raster(tmp_path / "palette.tif", noise(1, 3, 3).astype(np.uint8), photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {i: (i, 0, 0, 255) for i in range(256)})
    with pytest.raises(DataError, match=r"palette.*-expand rgb"):
        Scene.open(path)
    points = [rasterio.control.GroundControlPoint(r, c, c, r) for r, c in ((0, 0), (0, 3), (3, 0))]
    path = write_raster(tmp_path / "gcps.tif", noise(1, 3, 3).astype(np.uint8), place=(Affine.identity(), None))
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = (points, UTM)
    with pytest.raises(DataError, match=r"control points.*gdalwarp"):
        Scene.open(path)


def test_bands_that_do_not_fit_are_named(tmp_path):
    bands = Bands(("red", "green"), (1, 2), (0, 0), (1, 1), (0, 0), (1, 1), None, 2)
    with Scene.open(write_raster(tmp_path / "a.tif", noise(3, 3, 3).astype(np.uint8), photometric="rgb")) as scene:
        with pytest.raises(DataError, match=r"3 bands \(red, green, blue\).*2 \(1: red, 2: green\)"):
            scene.check_bands(bands)
        scene.check_bands(Bands(*[*bands.to_dict().values()][:7], None))
    path = write_raster(tmp_path / "b.tif", noise(1, 3, 3).astype(np.uint8))
    with Scene.open(path) as scene, pytest.raises(DataError, match="1 bands"):
        scene.check_bands(Bands.from_dict({**bands.to_dict(), "scene_count": None}))


@pytest.mark.skipif("GEOOD_DATA" not in os.environ, reason="GEOOD_DATA does not name a folder of odd rasters")
def test_every_odd_raster_is_read_or_refused(tmp_path):
    files = sorted((Path(os.environ["GEOOD_DATA"]) / "rasters").iterdir())
    for path in files:
        try:
            with Scene.open(path) as scene:
                scene.read(Window(-5, -5, 40, 40), scene.band_indexes)
                window = Window(0, 0, 600, 600).within(scene.grid.window)
                array, valid = scene.read(window, scene.band_indexes)
                assert array.shape[1:] == valid.shape == (window.height, window.width)
                grid = scene.grid
        except DataError as error:
            assert str(path) in str(error) and ";" in str(error)
            continue
        with ScoreWriter(tmp_path / "a.tif", grid) as writer:
            writer.write(window, np.where(valid, np.float32(0.5), np.float32(np.nan)))
        with rasterio.open(tmp_path / "a.tif") as dataset:
            assert Grid(dataset.height, dataset.width, dataset.transform, dataset.crs) == grid, path


# Bands


def test_scaling_is_linear_clipped_and_fills(tmp_path):
    bands = Bands(("a", "b"), (1, 2), (10.0, 0.0), (20.0, 2.0), (0.25, 0.75), (0.1, 0.0))
    array = np.array([[[5, 10, 15, 20, 25]], [[0, 1, 2, np.nan, np.inf]]], np.float32)
    valid = np.array([[True, True, False, True, True]])
    scaled = bands.scale(array, valid)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[[0, 0, 0.25, 1, 1]], [[0, 0.5, 0.75, 0.75, 0.75]]])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_scaling_equals_float64_arithmetic(dtype):
    array = (noise(1, 50, 50, high=100) + (10**8 if dtype in ("int32", "float64") else 0)).astype(dtype)
    low, high = float(array.min()) + 7, float(array.max()) - 5
    bands = Bands(("a",), (1,), (low,), (high,), (0.5,), (0.0,))
    wanted = np.clip((array.astype(np.float64) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(bands.scale(array, np.ones((50, 50), bool)), wanted, atol=2e-7)


def test_bands_survive_json():
    import json

    bands = Bands(("a", "b"), (3, 1), (0.0, 1.0), (5.0, 9.0), (0.1, 0.2), (0.2, 0.125), -9999.0, None)
    assert Bands.from_dict(json.loads(json.dumps(bands.to_dict()))) == bands


def sampled(values, dtype, **config):
    names = [f"b{i}" for i in range(len(values))]
    indexes = list(range(1, len(values) + 1))
    return bands_from_samples(
        BandsConfig(**config), names, indexes=indexes, values=np.array(values), dtype=dtype, scene_count=len(values)
    )


def test_bands_take_percentiles_step_and_fill():
    values = np.arange(101.0)
    bands = sampled([values, values * 2], "uint8", low_percentile=10.0, high_percentile=90.0)
    assert (bands.low, bands.high) == ((10.0, 20.0), (90.0, 180.0))
    assert bands.step == (1 / 80, 1 / 160)
    assert bands.fill == pytest.approx((0.5, 0.5))
    assert sampled([values], "float32").step == (0.0,)


def test_constant_and_nearly_constant_bands_still_have_a_range():
    bands = sampled([[7.0] * 1000, [0.0] * 999 + [4.0], [np.nan] * 500 + [3.0] * 500], "uint8")
    assert bands.low == (7.0, 0.0, 3.0) and bands.high == (8.0, 4.0, 4.0)
    with pytest.raises(DataError, match="b0: no valid pixel"):
        sampled([[np.nan]], "float32")
    with pytest.raises(ConfigError, match=r"bands\.names lists 2"):
        sampled([[1.0, 2.0]], "uint8", names=["x", "y"])


# Writing


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_score_raster_has_exactly_the_scenes_grid(tmp_path, place):
    scene_path = write_raster(tmp_path / "scene.tif", noise(1, 300, 270).astype(np.uint8), place=place)
    with Scene.open(scene_path) as scene:
        grid = scene.grid
    array = noise(300, 270).astype(np.float32) / 256
    array[:40, 200:] = np.nan
    path = scores_on(tmp_path / "scores.tif", grid, array)
    with rasterio.open(path) as dataset:
        assert Grid(dataset.height, dataset.width, dataset.transform, dataset.crs) == grid
        assert np.isnan(dataset.nodata) and dataset.dtypes == ("float32",)
        np.testing.assert_array_equal(dataset.read(1), array)


def test_a_score_raster_is_a_cog_with_statistics_and_tags(tmp_path):
    array = noise(1100, 900).astype(np.float32) / 256
    array[:400] = np.nan
    path = scores_on(tmp_path / "s.tif", Grid(1100, 900, NORTH_UP, UTM), array, GEOOD_X="1")
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.overviews(1) and dataset.block_shapes == [(512, 512)]
        assert dataset.descriptions == ("anomaly score",)
        tags = {k: float(v) for k, v in dataset.tags(1).items() if k.startswith("STATISTICS")}
    data = array[400:].astype(np.float64)
    wanted = {"MINIMUM": data.min(), "MAXIMUM": data.max(), "MEAN": data.mean(), "STDDEV": data.std()}
    for name, value in wanted.items():
        assert tags[f"STATISTICS_{name}"] == pytest.approx(value, rel=1e-9)
    assert tags["STATISTICS_VALID_PERCENT"] == pytest.approx(100 * 700 / 1100, rel=1e-3)
    assert read_tags(path) == {"GEOOD_MODEL": "abc", "GEOOD_X": "1"}
    assert os.listdir(tmp_path) == ["s.tif"]


def test_statistics_do_not_depend_on_windows(tmp_path, monkeypatch):
    array = noise(130, 90).astype(np.float32)
    seen = []
    for side in (2048, 37):
        monkeypatch.setattr("geood.gdal.CHUNK", side)
        with rasterio.open(scores_on(tmp_path / "s.tif", Grid(130, 90, NORTH_UP, UTM), array)) as dataset:
            seen.append([float(v) for k, v in sorted(dataset.tags(1).items())])
    assert seen[0] == pytest.approx(seen[1], rel=1e-12)


def test_the_order_of_writing_does_not_show(tmp_path):
    grid, array = Grid(500, 700, NORTH_UP, UTM), noise(500, 700).astype(np.float32)
    tiles = [t.write for t in tile_grid(500, 700, tile_px=96, halo_px=0)]
    files = []
    for order in (tiles, tiles[::-1]):
        with ScoreWriter(tmp_path / "w.tif", grid) as writer:
            for window in order:
                writer.write(window, array[window.slices])
        finish_cog(tmp_path / "w.tif", tmp_path / "o.tif", description="d", tags={}, overview="average")
        files.append((tmp_path / "o.tif").read_bytes())
    assert files[0] == files[1]


def test_what_is_never_written_is_no_data_and_takes_no_space(tmp_path):
    grid = Grid(20000, 20000, NORTH_UP, UTM)
    with ScoreWriter(tmp_path / "w.tif", grid) as writer:
        writer.write(Window(1000, 1000, 100, 100), np.ones((100, 100), np.float32))
        writer.write(Window(9000, 0, 300, 300), np.full((300, 300), np.nan, np.float32))
    assert (tmp_path / "w.tif").stat().st_size < 2e6
    with rasterio.open(tmp_path / "w.tif") as dataset:
        corner = dataset.read(1, window=RasterioWindow(1090, 1090, 20, 20))
    assert np.isfinite(corner).sum() == 100


def test_all_nodata_has_no_statistics_but_is_whole(tmp_path):
    array = np.full((20, 30), np.nan, np.float32)
    with rasterio.open(scores_on(tmp_path / "s.tif", Grid(20, 30, NORTH_UP, UTM), array)) as dataset:
        assert dataset.tags(1) == {"STATISTICS_VALID_PERCENT": "0"}
        assert np.isnan(dataset.read(1)).all()


def test_classes_keep_their_values_in_overviews(tmp_path):
    array = np.repeat(np.repeat(noise(40, 40, high=6).astype(np.uint8), 32, 0), 32, 1)
    with ScoreWriter(tmp_path / "w.tif", Grid(1280, 1280, NORTH_UP, UTM), dtype="uint8", nodata=255) as writer:
        writer.write(Window(0, 0, 1280, 1280), array)
    finish_cog(tmp_path / "w.tif", tmp_path / "c.tif", description="class", tags={}, overview="mode")
    with rasterio.open(tmp_path / "c.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), array)
        np.testing.assert_array_equal(dataset.read(1, out_shape=(320, 320)), array[::4, ::4])


def test_a_write_outside_the_grid_is_our_bug(tmp_path):
    with ScoreWriter(tmp_path / "w.tif", Grid(10, 10, NORTH_UP, UTM)) as writer:
        with pytest.raises(ValueError, match="does not fit"):
            writer.write(Window(5, 5, 10, 10), np.zeros((10, 10), np.float32))
        with pytest.raises(ValueError, match="does not fit"):
            writer.write(Window(0, 0, 5, 5), np.zeros((4, 5), np.float32))


def test_an_error_inside_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), ScoreWriter(tmp_path / "w.tif", Grid(10, 10, NORTH_UP, UTM)):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_an_interrupted_copy_leaves_the_old_output(tmp_path, monkeypatch):
    grid = Grid(10, 10, NORTH_UP, UTM)
    path = scores_on(tmp_path / "s.tif", grid, np.zeros((10, 10), np.float32))
    before = path.read_bytes()

    def stop(*_, **__):
        raise KeyboardInterrupt

    with ScoreWriter(tmp_path / "w.tif", grid) as writer:
        writer.write(grid.window, np.ones((10, 10), np.float32))
    monkeypatch.setattr("rasterio.shutil.copy", stop)
    with pytest.raises(KeyboardInterrupt):
        finish_cog(tmp_path / "w.tif", path, description="d", tags={}, overview="average")
    assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["s.tif", "w.tif"]


@pytest.mark.parametrize("side", [256, 800, 1024, 3000])
def test_a_full_disk_is_an_error_and_leaves_nothing(small_disk, side):
    """Small files fail on closing only, when GDAL empties its cache; large ones while writing."""
    array = np.random.default_rng(0).random((side, side), np.float32)
    grid = Grid(side, side, NORTH_UP, UTM)
    if side == 256:
        (small_disk / "other").write_bytes(b"x" * (2**21 - 2**17))
    full = pytest.raises(OutputError, match=r"w\.tif: cannot be written .*; free space")
    with full, ScoreWriter(small_disk / "w.tif", grid) as writer:
        writer.write(grid.window, array)
    assert not (small_disk / "w.tif").exists()


@pytest.mark.parametrize("side", [300, 500, 600, 640, 680, 1200])
def test_a_disk_that_fills_up_in_the_copy_leaves_nothing(small_disk, tmp_path, side):
    array = np.random.default_rng(0).random((side, side), np.float32)
    grid = Grid(side, side, NORTH_UP, UTM)
    with ScoreWriter(tmp_path / "w.tif", grid) as writer:
        writer.write(grid.window, array)
    out = small_disk / "s.tif"
    try:
        finish_cog(tmp_path / "w.tif", out, description="d", tags={"GEOOD_X": "1"}, overview="average")
    except OutputError:
        assert side > 500 and os.listdir(small_disk) == []
    else:
        assert side < 700
        with rasterio.open(out) as dataset:
            np.testing.assert_array_equal(dataset.read(1), array)


def test_outputs_are_checked_before_work(tmp_path):
    check_output(tmp_path / "new.tif", overwrite=False)
    (tmp_path / "old.tif").write_text("keep me")
    with pytest.raises(OutputError, match=r"old\.tif: exists already; add --overwrite"):
        check_output(tmp_path / "old.tif", overwrite=False)
    check_output(tmp_path / "old.tif", overwrite=True)
    with pytest.raises(OutputError, match="there is no folder"):
        check_output(tmp_path / "none" / "a.tif", overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_output("/proc/a.tif", overwrite=False)
    assert (tmp_path / "old.tif").read_text() == "keep me" and os.listdir(tmp_path) == ["old.tif"]


# Scores in Python


def test_open_scores_gives_places_and_chunks(tmp_path):
    array = noise(300, 200).astype(np.float32)
    array[0, 0] = np.nan
    scores = open_scores(scores_on(tmp_path / "s.tif", Grid(300, 200, NORTH_UP, UTM), array), chunks=128)
    assert scores.name == "score" and scores.dims == ("y", "x") and scores.chunks == ((128, 128, 44), (128, 72))
    np.testing.assert_array_equal(scores.values, array)
    np.testing.assert_allclose(scores.x.values, 500000 + 0.25 * (np.arange(200) + 0.5))
    np.testing.assert_allclose(scores.y.values, 4500000 - 0.25 * (np.arange(300) + 0.5))
    assert scores.rio.crs == UTM and scores.attrs["GEOOD_MODEL"] == "abc"


def test_open_scores_wants_a_score_raster(tmp_path):
    with pytest.raises(DataError, match="not a score raster of geood"):
        open_scores(write_raster(tmp_path / "a.tif", noise(1, 3, 3).astype(np.uint8)))
    with pytest.raises(DataError, match="no such file"):
        open_scores(tmp_path / "b.tif")
