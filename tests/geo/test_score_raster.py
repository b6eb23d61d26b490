"""Laws of score rasters on disk, opened in Python."""

import numpy as np
import pytest

from geood.errors import DataError
from geood.geo.grid import Grid
from geood.geo.score_raster import open_scores
from support.places import NORTH_UP, UTM, noise, write_raster
from support.rasters import write_scores


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
