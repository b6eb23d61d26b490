"""The layer `sample`: cells of valid ground alone, the same for a seed, and areas that add up to the ground."""

import logging
from itertools import pairwise

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from shapely import box

from geood.config.sections import PredictConfig
from geood.geo.grid import Grid
from geood.polygons import block_windows
from geood.polygons.export import PolygonSource, write_anomalies, write_together
from geood.polygons.review_layers import _valid_counts
from support.rasters import HALF_METRE, write_scores

UTM = CRS.from_epsg(32633)


def made(folder, scores, name="a.gpkg", *, grid=None, **settings):
    """The polygon file of an array of scores."""
    grid = grid or Grid(*scores.shape, HALF_METRE, UTM)
    path = write_scores(folder / f"{name}.tif", grid, scores.astype(np.float32))
    predict = PredictConfig(**{"sample_side_m": 10.0, "sample_cells": 8} | settings)
    common = {"classes": None, "class_names": None, "predict": predict, "model": "abc", "overwrite": False}
    write_anomalies(path, folder / name, threshold=0.5, **common)
    return folder / name


def layers(path):
    return [name for name, _ in pyogrio.list_layers(path)]


@pytest.mark.parametrize("window_side", [2048, 64])
def test_valid_pixels_are_counted_by_cell(tmp_path, window_side, monkeypatch):
    monkeypatch.setattr(block_windows, "WINDOW_SIDE", window_side)
    scores = np.random.default_rng(0).random((330, 470)).astype(np.float32)
    scores[scores > 0.7] = np.nan
    grid = Grid(330, 470, HALF_METRE, UTM)
    path = write_scores(tmp_path / "s.tif", grid, scores)
    rows, cols = np.array([0, 19, 38, 200, 330]), np.arange(0, 480, 10)[:48]
    counts = _valid_counts(path, grid, rows, cols)
    spans = [[(scores[a:b, c:d] <= 0.7).sum() for c, d in pairwise(cols)] for a, b in pairwise(rows)]
    assert counts.tolist() == spans


@pytest.mark.parametrize("shape", [(330, 470), (39, 41), (7, 200), (15, 15)], ids=str)
def test_cells_cover_all_ground_and_none_is_larger_than_asked_for(tmp_path, shape):
    """Each is as likely as another and as large within a pixel, so misses for each km2 are those of all ground."""
    scores = np.full(shape, 0.1)
    sample = geopandas.read_file(made(tmp_path, scores, sample_cells=10_000), layer="sample")
    whole = box(*Grid(*shape, HALF_METRE, UTM).bounds)
    assert sample.union_all().equals(whole) and sample.area.sum() == pytest.approx(whole.area)
    sides = sample.bounds["maxx"] - sample.bounds["minx"], sample.bounds["maxy"] - sample.bounds["miny"]
    assert all((side <= 10).all() and np.ptp(side) <= 0.5 for side in sides)
    assert sample["area_m2"].sum() == pytest.approx(whole.area, rel=2e-3)
    assert sample["side_m"].to_numpy() == pytest.approx(np.sqrt(whole.area / len(sample)), rel=2e-3)


def test_cells_are_valid_ground_that_stands_for_all_of_it(tmp_path):
    scores = np.full((400, 400), 0.1)
    scores[:, 200:] = np.nan
    sample = geopandas.read_file(made(tmp_path, scores), layer="sample")
    assert sample["cell"].tolist() == list(range(1, 9)) and set(sample["seed"]) == {0}
    assert (sample.total_bounds[2] - HALF_METRE.c) <= 100
    assert sample.area.to_numpy() == pytest.approx(100) and not sample.overlaps(sample.union_all()).any()
    assert sample["area_m2"].to_numpy() == pytest.approx(100, rel=2e-3)
    assert sample["stands_for_m2"].sum() == pytest.approx(400 * 200 / 4, rel=2e-3)
    assert sample[["misses", "complete", "comment", "reviewer", "reviewed"]].isna().all(axis=None)


def test_the_same_seed_gives_the_same_bytes_and_another_other_cells(tmp_path):
    scores = np.full((400, 400), 0.1)
    first, again = (made(tmp_path, scores, name) for name in ("a.gpkg", "b.gpkg"))
    assert first.read_bytes() == again.read_bytes()
    other = geopandas.read_file(made(tmp_path, scores, "c.gpkg", sample_seed=1), layer="sample")
    assert set(other["seed"]) == {1}
    assert other.total_bounds.tolist() != geopandas.read_file(first, layer="sample").total_bounds.tolist()


def test_ground_that_holds_no_cell_has_no_layer_and_is_told_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    scores = np.full((100, 100), np.nan)
    scores[::20] = 0.1
    path = made(tmp_path, scores)
    assert "sample" not in layers(path) and "anomalies" in layers(path)
    assert "no cell of at most 20 x 20 pixels" in caplog.text and "no layer sample" in caplog.text


def test_no_cells_are_drawn_where_none_are_wanted_nor_for_other_formats(tmp_path):
    scores = np.full((100, 100), 0.1)
    assert "sample" not in layers(made(tmp_path, scores, sample_cells=0))
    assert layers(made(tmp_path, scores, "b.geojson")) == ["anomalies"]


def test_without_metres_cells_are_told_in_pixels(tmp_path):
    scores = np.full((300, 300), 0.1)
    path = made(tmp_path, scores, grid=Grid(300, 300, Affine.identity(), None))
    sample = pyogrio.read_dataframe(path, layer="sample")
    assert set(sample["side_px"]) == {100} and sample["area_m2"].isna().all() and len(sample) == 8
    assert set(shapely.get_num_geometries(sample.geometry)) == {1} and set(sample.area) == {100**2}


def test_each_of_several_scenes_has_cells_of_its_own(tmp_path):
    sources = []
    for name, place in (("a", HALF_METRE), ("b", Affine.translation(5000, 0) * HALF_METRE)):
        path = write_scores(tmp_path / f"{name}.tif", Grid(200, 200, place, UTM), np.full((200, 200), 0.1, np.float32))
        sources.append(PolygonSource(path, None, None, name))
    settings = PredictConfig(sample_side_m=10.0, sample_cells=3)
    out = tmp_path / "both.gpkg"
    write_together(sources, out, threshold=0.5, predict=settings, model="abc", overwrite=False)
    sample = geopandas.read_file(out, layer="sample")
    assert sample["scene"].tolist() == ["a"] * 3 + ["b"] * 3 and sample["cell"].tolist() == [1, 2, 3] * 2
