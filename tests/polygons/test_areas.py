"""What is counted in memory is what a file of polygons would hold."""

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from geood.config import PredictConfig
from geood.geo.grid import Grid
from geood.polygons import anomalies, areas_above, count_areas
from support.rasters import write_scores

GRID = Grid(60, 80, Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000), CRS.from_epsg(32633))


@pytest.mark.parametrize("connectivity", [4, 8])
def test_areas_are_those_of_the_polygons_of_a_raster(tmp_path, connectivity):
    score = np.random.default_rng(0).random((60, 80)).astype(np.float32)
    score[10:20, 30:50] = np.nan
    path = write_scores(tmp_path / "s.tif", GRID, score)
    for threshold in (0.2, 0.6, 0.9):
        frame = anomalies(
            path,
            threshold=threshold,
            classes=None,
            class_names=None,
            predict=PredictConfig(min_area_m2=0.0, connectivity=connectivity),
            model="m",
        )
        own = areas_above(score, threshold, connectivity=connectivity)
        assert sorted(own.tolist()) == sorted(frame.area_px.tolist())
        counts = count_areas(score, (threshold,), (1, 3), connectivity=connectivity)
        assert counts.tolist() == [[len(frame)], [(frame.area_px >= 3).sum()]]


def test_nothing_above_has_no_areas():
    assert not len(areas_above(np.full((3, 4), np.nan, np.float32), 0.5))
    assert count_areas(np.zeros((3, 4), np.float32), (0.5, 0.7), (1,), connectivity=8).tolist() == [[0, 0]]
