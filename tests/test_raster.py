"""Laws of scaling bands, and of score rasters on disk."""

import os

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
