"""Laws of scaling bands, and of their statistics."""

import json
from dataclasses import replace

import numpy as np
import pytest

from geood.config.sections import BandsConfig
from geood.errors import ConfigError, DataError
from geood.geo.bands import Bands, bands_from_samples
from support.places import noise


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
    bands = Bands(("a", "b"), (3, 1), (0.0, 1.0), (5.0, 9.0), (0.1, 0.2), (0.2, 0.125), -9999.0, None)
    tagged = replace(bands, scales=(0.1, 1.0), offsets=(0.0, -20.0))
    for each in (bands, tagged):
        assert Bands.from_dict(json.loads(json.dumps(each.to_dict()))) == each
    before_tags = {key: value for key, value in bands.to_dict().items() if key not in ("scales", "offsets")}
    assert Bands.from_dict(before_tags) == bands
    for wrong in ({"scales": [1.0]}, {"offsets": []}, {"scales": [1.0, float("nan")]}, {"scales": "ab"}):
        with pytest.raises(DataError, match="bands"):
            Bands.from_dict(tagged.to_dict() | wrong)


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
