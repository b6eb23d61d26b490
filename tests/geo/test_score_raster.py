"""Laws of scaling bands, and of score rasters on disk."""

import os

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from geood.atomic import check_output
from geood.config.sections import BandsConfig
from geood.errors import ConfigError, DataError, OutputError
from geood.geo.bands import Bands, bands_from_samples
from geood.geo.grid import Grid
from geood.geo.score_raster import open_scores
from support.rasters import write_scores

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


# Score rasters


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
    scores = open_scores(write_scores(tmp_path / "s.tif", Grid(300, 200, NORTH_UP, UTM), array), chunks=128)
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
