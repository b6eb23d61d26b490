"""Laws of polygons: they are the pixels above the threshold, whole and with the right figures, in every format."""

import os
import sqlite3
import warnings

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from test_raster import CUSTOM, NORTH_UP, PLACES, UTM, scores_on

from geood.config import PredictConfig
from geood.errors import DataError, OutputError
from geood.grid import Grid
from geood.raster import ScoreWriter, finish_cog
from geood.vector import COLUMNS, OUTPUT_SUFFIXES, anomalies, write_anomalies

NAMES = {0: "field", 1: "road", 2: "roof"}


def cut(path, *, threshold=0.5, classes=None, **predict):
    return anomalies(
        path,
        threshold=threshold,
        classes=classes,
        class_names=NAMES if classes else None,
        predict=PredictConfig(**predict),
        model="abc",
    )


def write_classes(path, grid, array):
    with ScoreWriter(path.with_name("wc.tif"), grid, dtype="uint8", nodata=255) as writer:
        writer.write(grid.window, array)
    finish_cog(path.with_name("wc.tif"), path, description="class", tags={}, overview="mode")
    return path


def flooded(mask, diagonal):
    """Number of its component for each pixel of a mask, 0 outside: the plainest flood fill."""
    steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a or b) and (diagonal or not (a and b))]
    number, count = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if number[start]:
            continue
        count += 1
        todo = [start]
        while todo:
            row, col = todo.pop()
            if 0 <= row < mask.shape[0] and 0 <= col < mask.shape[1] and mask[row, col] and not number[row, col]:
                number[row, col] = count
                todo += [(row + a, col + b) for a, b in steps]
    return number


def some_scores(height, width, seed=0, holes=0.1):
    rng = np.random.default_rng(seed)
    array = rng.random((height, width)).astype(np.float32)
    array[rng.random((height, width)) < holes] = np.nan
    return array


@given(
    shape=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    case=st.tuples(st.integers(0, 10**6), st.sampled_from([3, 5, 99]), st.sampled_from([4, 8])),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_polygons_are_the_components_with_their_figures(tmp_path, monkeypatch, shape, case):
    """Against a flood fill and numpy, for any size of the windows in which the raster is gone through."""
    seed, side, connectivity = case
    monkeypatch.setattr("geood.gdal.CHUNK", side)
    array, grid = some_scores(*shape, seed), Grid(*shape, NORTH_UP, UTM)
    labels = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
    path = scores_on(tmp_path / "s.tif", grid, array)
    frame = cut(path, classes=write_classes(tmp_path / "c.tif", grid, labels), connectivity=connectivity)
    number = flooded(array > 0.5, connectivity == 8)
    assert len(frame) == number.max()
    assert frame.geometry.is_valid.all() and set(frame.geom_type) <= {"MultiPolygon"}
    assert frame.score_max.is_monotonic_decreasing
    for row in frame.itertuples():
        burnt = rasterio.features.rasterize([row.geometry], array.shape, transform=NORTH_UP) > 0
        here = number == number[burnt][0]
        np.testing.assert_array_equal(burnt, here)
        values = array[here].astype(np.float64)
        assert row.area_px == here.sum() == pytest.approx(row.geometry.area * 16)
        assert row.score_max == values.max()
        assert row.score_mean == pytest.approx(values.mean(), rel=1e-6)
        assert row.score_p95 == pytest.approx(np.percentile(values, 95), rel=1e-9)
        assert row.class_name == NAMES[np.bincount(labels[here]).argmax()]
        rows, cols = np.nonzero(here)
        around = array[max(0, rows.min() - 1) : rows.max() + 2, max(0, cols.min() - 1) : cols.max() + 2]
        assert row.valid_fraction == pytest.approx(np.isfinite(around).mean())


def test_large_components_have_a_near_95th_percentile(tmp_path, monkeypatch):
    monkeypatch.setattr("geood.components.LARGE_PX", 100)
    array = some_scores(80, 80, holes=0) * 0.5 + 0.5
    frame = cut(scores_on(tmp_path / "s.tif", Grid(80, 80, NORTH_UP, UTM), array), threshold=0.4)
    assert frame.area_px.tolist() == [6400]
    assert frame.score_p95[0] == pytest.approx(np.percentile(array, 95), abs=0.6 / 4096)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_polygons_lie_where_their_pixels_lie(tmp_path, place):
    transform, crs = place
    array = np.zeros((20, 30), np.float32)
    array[4:7, 10:15] = 0.9
    frame = cut(scores_on(tmp_path / "s.tif", Grid(20, 30, transform, crs), array))
    seen = Affine.scale(1, -1) if transform.is_identity else transform  # as QGIS shows a photo: y is minus the row
    corners = shapely.Polygon([seen * c for c in ((10, 4), (15, 4), (15, 7), (10, 7))])
    assert frame.geometry[0].symmetric_difference(corners).area < 1e-9 * corners.area
    assert (frame.crs is None) == (crs is None)
    if crs is not None:
        assert frame.crs == pyproj.CRS.from_wkt(crs.to_wkt())


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        (UTM, NORTH_UP, 0.25**2 / 0.9996**2),
        (CRS.from_epsg(4326), Affine(1e-4, 0, 10, 0, -1e-4, 0.0005), 11.1319 * 11.0574),
        (CRS.from_epsg(4326), Affine(1e-4, 0, 10, 0, -1e-4, 60.0005), 5.58024 * 11.1415),
        (CRS.from_epsg(3857), Affine(10, 0, 0, 0, -10, 8399738), 5.009 * 5.010),
        (CRS.from_epsg(2263), Affine(1, 0, 980000, 0, -1, 200000), 0.3048006**2),
        (CRS.from_wkt('LOCAL_CS["site",UNIT["foot",0.3048]]'), Affine(2, 0, 0, 0, -2, 0), 0.6096**2),
    ],
    ids=["utm", "degrees at 0", "degrees at 60", "web mercator at 60", "us feet", "local feet"],
)
def test_areas_are_square_metres_whatever_the_crs(tmp_path, crs, transform, metres):
    array = np.zeros((12, 12), np.float32)
    array[2:10, 2:10] = 0.9
    array[4:6, 4:6] = 0  # a hole
    frame = cut(scores_on(tmp_path / "s.tif", Grid(12, 12, transform, crs), array))
    assert frame.area_m2[0] == pytest.approx(60 * metres, rel=2e-3)


def test_small_polygons_are_left_out_where_areas_are_known(tmp_path, caplog):
    array = np.zeros((20, 20), np.float32)
    array[1:3, 1:3] = 0.8
    array[8:18, 8:18] = 0.9
    known = scores_on(tmp_path / "s.tif", Grid(20, 20, NORTH_UP, UTM), array)
    assert cut(known, min_area_m2=1.0).area_px.tolist() == [100] and not caplog.text
    photo = cut(scores_on(tmp_path / "p.tif", Grid(20, 20, Affine.identity(), None), array), min_area_m2=1.0)
    assert photo.area_px.tolist() == [100, 4] and photo.area_m2.isna().all()
    assert "p.tif: areas in square metres are not known" in caplog.text


def test_the_threshold_itself_is_not_above_it(tmp_path):
    array = np.array([[0.5, 0.75, 1.0, np.nan]], np.float32)
    path = scores_on(tmp_path / "s.tif", Grid(1, 4, NORTH_UP, UTM), array)
    assert cut(path, threshold=0.75).area_px.tolist() == [1]
    assert len(cut(path, threshold=1.0)) == 0


def test_what_is_no_score_raster_is_refused(tmp_path):
    grid = Grid(4, 4, NORTH_UP, UTM)
    classes = write_classes(tmp_path / "c.tif", grid, np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="not a score raster"):
        cut(classes)
    other = scores_on(tmp_path / "s.tif", Grid(5, 4, NORTH_UP, UTM), np.zeros((5, 4), np.float32))
    with pytest.raises(DataError, match="size differs"):
        cut(other, classes=classes)


# Files


@pytest.fixture
def frame(tmp_path):
    array, grid = some_scores(12, 12), Grid(12, 12, NORTH_UP, UTM)
    labels = np.zeros((12, 12), np.uint8)
    labels[:, 6:] = 255
    found = cut(
        scores_on(tmp_path / "s.tif", grid, array),
        classes=write_classes(tmp_path / "c.tif", grid, labels),
        connectivity=4,
    )
    for path in tmp_path.glob("*.tif"):
        path.unlink()
    assert len(found) > 5 and found.class_name.isna().any()
    return found


def read_back(path):
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("rows", [None, 0])
def test_every_format_holds_the_same(tmp_path, frame, suffix, rows):
    frame = frame.iloc[:rows].assign(scene="a.tif")
    out = tmp_path / f"o{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_anomalies(frame, out, threshold=0.5, overwrite=False)
    assert os.listdir(tmp_path) == [out.name]
    back = read_back(out)
    assert len(back) == len(frame)
    if suffix == ".geojson":
        assert back.crs.to_epsg() == 4326
        back = back.to_crs(frame.crs)
        if len(frame):
            assert abs(back.total_bounds - frame.total_bounds).max() < 0.02
    else:
        assert back.crs == frame.crs and set(back.columns) == {*COLUMNS, "scene", "geometry"}
    if suffix == ".fgb":  # it keeps its own order, along a Hilbert curve
        back = back.sort_values(["score_max", "area_m2"], ascending=False, ignore_index=True)
    for name in COLUMNS if rows is None else ():
        if name == "class_name":
            assert back[name].fillna("").tolist() == frame[name].fillna("").tolist()
        elif name == "model":
            assert set(back[name]) == {"abc"}
        else:
            np.testing.assert_allclose(back[name], frame[name], rtol=1e-12)


def test_a_custom_crs_is_not_spelled_anew(tmp_path):
    array = np.full((3, 3), 0.9, np.float32)
    found = cut(scores_on(tmp_path / "s.tif", Grid(3, 3, PLACES["feet, no EPSG code"][0], CUSTOM), array))
    for suffix in (".gpkg", ".parquet", ".fgb"):
        write_anomalies(found, tmp_path / f"o{suffix}", threshold=0.5, overwrite=False)
        assert CRS.from_wkt(read_back(tmp_path / f"o{suffix}").crs.to_wkt()) == CUSTOM


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("value", [0.0, 0.9])
def test_a_photo_has_polygons_in_pixels(tmp_path, suffix, value):
    array = np.full((3, 4), value, np.float32)
    found = cut(scores_on(tmp_path / "s.tif", Grid(3, 4, Affine.identity(), None), array))
    write_anomalies(found, tmp_path / f"o{suffix}", threshold=0.5, overwrite=False)
    back = read_back(tmp_path / f"o{suffix}")
    assert len(back) == (value > 0)
    if value:
        assert back.total_bounds.tolist() == [0, -3, 4, 0]


def test_an_empty_geopackage_is_typed_and_styled(tmp_path, frame):
    write_anomalies(frame.iloc[:0], tmp_path / "o.gpkg", threshold=0.5, overwrite=False)
    info = pyogrio.read_info(tmp_path / "o.gpkg", layer="anomalies")
    assert info["geometry_type"] == "MultiPolygon" and info["features"] == 0
    kinds = dict(zip(info["fields"], info["dtypes"], strict=True))
    assert kinds == COLUMNS
    with sqlite3.connect(tmp_path / "o.gpkg") as database:
        (styles,) = database.execute("SELECT count(*) FROM layer_styles WHERE useAsDefault = 1").fetchone()
    assert styles == 1


def test_an_existing_file_is_replaced_only_when_asked(tmp_path, frame):
    out = tmp_path / "o.gpkg"
    out.write_text("keep me")
    with pytest.raises(OutputError, match="exists already"):
        write_anomalies(frame, out, threshold=0.5, overwrite=False)
    assert out.read_text() == "keep me"
    write_anomalies(frame, out, threshold=0.5, overwrite=True)
    assert len(read_back(out)) == len(frame) and os.listdir(tmp_path) == ["o.gpkg"]
    with pytest.raises(OutputError, match=r"\.gpkg, \.geojson, \.parquet, \.fgb"):
        write_anomalies(frame, tmp_path / "o.kml", threshold=0.5, overwrite=False)


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_a_full_disk_leaves_nothing(small_disk, frame, suffix):
    many = frame.loc[np.arange(60000) % len(frame)].reset_index(drop=True)
    many["model"] = [f"{i:0200x}" for i in np.random.default_rng(0).integers(0, 2**62, len(many))]
    many[["score_mean", "score_p95", "area_m2"]] = np.random.default_rng(1).random((len(many), 3))
    with pytest.raises(OutputError, match=r"cannot be written .*; free space"):
        write_anomalies(many, small_disk / f"o{suffix}", threshold=0.5, overwrite=False)
    assert os.listdir(small_disk) == []


def test_what_is_off_the_globe_is_said(tmp_path, frame):
    far = frame.set_crs("EPSG:3857", allow_override=True).assign(geometry=shapely.box(1e12, 1e12, 2e12, 2e12))
    far = far.set_crs("+proj=geos +h=35785831 +ellps=GRS80", allow_override=True)
    with pytest.raises(OutputError, match=r"not all of it lies on the globe.*\.gpkg"):
        write_anomalies(far, tmp_path / "o.geojson", threshold=0.5, overwrite=False)
    assert os.listdir(tmp_path) == []
