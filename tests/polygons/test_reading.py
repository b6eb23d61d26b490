"""Reading of polygons back: every format tells the same, the first by rank come, and pixels are where they were."""

from functools import partial

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from geopandas import GeoDataFrame

from geood.config.sections import PredictConfig
from geood.errors import DataError
from geood.geo.grid import Grid
from geood.polygons import reading
from geood.polygons.export import write_anomalies
from geood.polygons.extraction import read_grid
from geood.polygons.formats import OURS
from geood.polygons.names import OUTPUT_SUFFIXES
from geood.polygons.reading import in_pixels, read_anomalies, upper_right
from support.rasters import HALF_METRE, UTM, write_scores


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    array = np.zeros((64, 80), np.float32)
    for i, row in enumerate((4, 20, 40)):
        array[row : row + 5 + i, 10 : 18 + i] = 0.9
    grid = Grid(64, 80, HALF_METRE, rasterio.crs.CRS.from_string(UTM))
    write_scores(folder / "s.tif", grid, array, GEOOD_MODEL="m", GEOOD_SCENE="s")
    return folder / "s.tif"


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_polygons_cover_the_pixels_they_were_cut_from(scores, tmp_path, suffix):
    out = tmp_path / f"o{suffix}"
    given = {"classes": None, "class_names": None, "predict": PredictConfig(min_area_m2=0.0), "model": "m"}
    assert write_anomalies(scores, out, threshold=0.5, overwrite=False, **given) == 3
    frame = read_anomalies(out, most=2)
    assert frame["rank"].tolist() == [1, 2] and frame["area_px"].tolist() == [70, 54]
    [first, _] = in_pixels(frame, read_grid(scores))
    assert shapely.bounds(first) == pytest.approx([10, 40, 20, 47], abs=0.05)  # GeoJSON keeps seven decimals of degrees
    assert len(read_anomalies(out, most=9)) == 3


def test_pixels_of_an_image_without_place_are_turned_back(scores):
    frame = GeoDataFrame({"rank": [1]}, geometry=[shapely.box(1, -5, 3, -2)])
    [shape] = in_pixels(frame, Grid(64, 80, Affine.identity()))
    assert shape.bounds == (1, 2, 3, 5)
    with pytest.raises(DataError, match="need a CRS both or neither"):
        in_pixels(frame, read_grid(scores))


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_polygons_of_an_image_without_place_are_its_pixels_in_every_format(tmp_path, suffix):
    array = np.zeros((64, 80), np.float32)
    array[40:47, 10:20] = 0.9
    grid = Grid(64, 80, Affine.identity())
    scores = write_scores(tmp_path / "s.tif", grid, array, GEOOD_MODEL="m", GEOOD_SCENE="s")
    given = {"classes": None, "class_names": None, "predict": PredictConfig(min_area_m2=0.0), "model": "m"}
    write_anomalies(scores, tmp_path / f"o{suffix}", threshold=0.5, overwrite=False, **given)
    [shape] = in_pixels(read_anomalies(tmp_path / f"o{suffix}", most=2), grid)
    assert shape.bounds == (10, 40, 20, 47)


def test_polygons_of_a_place_on_earth_are_none_on_an_image_without_place():
    frame = GeoDataFrame(geometry=[shapely.box(11.1, 48.1, 11.2, 48.2)], crs=4326)
    with pytest.raises(DataError, match="a CRS both or neither"):
        in_pixels(frame, Grid(64, 80, Affine.identity()))


@pytest.mark.parametrize(("name", "said"), [("x.shp", "no file of polygons"), ("x.gpkg", "no such file")])
def test_what_is_no_polygons_of_ours_is_one_message(tmp_path, name, said):
    with pytest.raises(DataError, match=said):
        read_anomalies(tmp_path / name, most=1)


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize(("own_ranks", "count"), [(False, 60), (True, 60), (False, 9)])
def test_of_many_scenes_no_more_rows_are_read_than_the_first_of_each(tmp_path, monkeypatch, suffix, own_ranks, count):
    names = [f"it's {i}.tif" for i in range(count)]
    scenes = [name for name in names for _ in range(5)]
    ranks = [1 + i % 5 for i in range(5 * count)] if own_ranks else list(range(5 * count, 0, -1))
    shapes = [shapely.box(i, 0, i + 1, 1) for i in range(5 * count)]
    frame = GeoDataFrame({"scene": scenes, "rank": ranks, "score_max": 0.9}, geometry=shapes, crs=UTM)
    frame = frame.assign(**dict.fromkeys(OURS - {*frame.columns}, 1))
    save = frame.to_parquet if suffix == ".parquet" else partial(frame.to_file, engine="pyogrio")
    save(tmp_path / f"o{suffix}")
    read, first = [], reading._first
    monkeypatch.setattr(reading, "_first", lambda frame, most: read.append(len(frame)) or first(frame, most))
    got = read_anomalies(tmp_path / f"o{suffix}", most=2)
    best = frame.sort_values("rank", kind="stable").groupby("scene").head(2)
    assert read == [2 * count]
    assert sorted(got[["scene", "rank"]].itertuples(index=False)) == sorted(
        best[["scene", "rank"]].itertuples(index=False)
    )


def test_the_place_of_a_rank_is_on_its_outline():
    """The corner of the box of a slanting or bent shape may lie in another one."""
    ell = shapely.Polygon([(0, 0), (2, 0), (2, 8), (10, 8), (10, 10), (0, 10)])
    parts = shapely.MultiPolygon([shapely.box(0, 5, 1, 6), shapely.box(4, 1, 6, 3)])
    found = upper_right(np.array([ell, shapely.Polygon(), parts]))
    assert found[0].tolist() in ([2, 0], [10, 8]) and found[2].tolist() == [6, 1]
    assert np.isnan(found[1]).all()
