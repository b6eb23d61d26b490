"""Laws of polygons: they are the pixels above the threshold, whole, with the right statistics, in every format."""

import json
import os
import sqlite3
import warnings

import geopandas
import geopandas.testing
import numpy as np
import pyarrow as pa
import pyarrow.parquet
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

from geood.config.sections import PredictConfig
from geood.errors import ConfigError, DataError, OutputError
from geood.geo.grid import Grid, Window
from geood.geo.qgis.form import POLYGON_REVIEW
from geood.polygons.export import (
    COLUMNS,
    PolygonSource,
    anomalies,
    write_anomalies,
    write_frame,
    write_together,
)
from geood.polygons.external_sort import ExternalSorter, SortKey
from geood.polygons.extraction import _to_digits
from geood.polygons.geodesic_area import GeodesicAreas
from geood.polygons.names import OUTPUT_SUFFIXES
from geood.polygons.rings import Rings
from support.cpu import slow
from support.places import CUSTOM, NORTH_UP, PLACES, UTM

NAMES = {0: "field", 1: "road", 2: "roof"}
SEVEN = 6e-7  # relative error of figures of seven digits, and of what they were computed in
TEXTS = ("class_name", "runner_up", "signal", "model")


def write_band(path, grid, array, nodata, **options):
    shape = {"height": grid.height, "width": grid.width, "count": 1, "dtype": array.dtype, "nodata": nodata}
    place = {"crs": grid.crs, "transform": None if grid.transform.is_identity else grid.transform}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place, **options) as file:
        file.write(array, 1)
        file.update_tags(GEOOD_MODEL="abc")
    return path


def scores_on(path, grid, array, **options):
    """Write a score raster."""
    return write_band(path, grid, array, float("nan"), **options)


def write_classes(path, grid, array):
    return write_band(path, grid, array, 255)


def how(threshold, classes, predict):
    return {
        "threshold": threshold,
        "classes": classes,
        "class_names": NAMES if classes else None,
        "predict": PredictConfig(**predict),
        "model": "abc",
    }


def cut(path, *, threshold=0.5, classes=None, **predict):
    return anomalies(path, **how(threshold, classes, predict))


def write(path, out, *, threshold=0.5, classes=None, overwrite=False, scene=None, failed=(), **predict):
    given = how(threshold, classes, predict)
    return write_anomalies(path, out, **given, overwrite=overwrite, scene=scene, failed=failed)


def as_written(frame):
    """A frame read from a file, with the types of one in memory."""
    return frame.astype(COLUMNS)


def flooded(mask, diagonal):
    """Label the components of a mask by flood fill; 0 outside."""
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


def falls(frame):
    """Whether rows are in the order of their rank, as far as rounded figures tell."""
    figure = (frame.contrast.fillna(frame.threshold_excess) * np.sqrt(frame.area_px)).to_numpy()
    return bool((np.diff(figure) <= 2 * SEVEN * np.abs(figure[1:])).all())


def test_figures_have_seven_digits_and_are_else_as_they_are():
    values = np.array([123456789.0, 0.1 + 0.2, -1.23456789e-6, 0, np.nan, np.inf, 9.9999999])
    rounded = _to_digits(values)
    assert [f"{value!r}" for value in rounded.tolist()] == [
        *("123456800.0", "0.3", "-1.234568e-06", "0.0", "nan", "inf", "10.0")
    ]
    edges = np.array([5e-324, 1e-300, -1e-303])  # a p value of a score far beyond all inliers is as small
    assert _to_digits(edges).tolist() == edges.tolist()
    many = np.exp(np.random.default_rng(0).uniform(-20, 20, 1000))
    assert _to_digits(many).tolist() == [float(f"{value:.7g}") for value in many]


@given(
    shape=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    case=st.tuples(st.integers(0, 10**6), st.sampled_from([(3, 4), (5, 2), (99, 99)]), st.sampled_from([4, 8])),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_polygons_are_the_components_with_their_figures(tmp_path, monkeypatch, shape, case):
    """Compare with a flood fill and NumPy, for windows of any size."""
    seed, window, connectivity = case
    monkeypatch.setattr("geood.polygons.components.window_size", lambda _: window)
    array, grid = some_scores(*shape, seed), Grid(*shape, NORTH_UP, UTM)
    labels = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
    path = scores_on(tmp_path / "s.tif", grid, array)
    frame = cut(path, classes=write_classes(tmp_path / "c.tif", grid, labels), connectivity=connectivity)
    number = flooded(array > 0.5, connectivity == 8)
    assert len(frame) == number.max()
    assert frame.geometry.is_valid.all() and set(frame.geom_type) <= {"MultiPolygon"}
    assert frame["rank"].tolist() == list(range(1, len(frame) + 1))
    assert falls(frame)
    for row in frame.itertuples():
        burnt = rasterio.features.rasterize([row.geometry], array.shape, transform=NORTH_UP) > 0
        here = number == number[burnt][0]
        np.testing.assert_array_equal(burnt, here)
        values = array[here].astype(np.float64)
        assert row.area_px == here.sum() == pytest.approx(row.geometry.area * 16)
        assert row.score_max == pytest.approx(values.max(), rel=SEVEN)
        assert row.score_mean == pytest.approx(values.mean(), rel=1e-6)
        assert row.threshold_excess == pytest.approx(values.mean() - 0.5, rel=SEVEN)
        assert row.score_p95 == pytest.approx(np.percentile(values, 95), rel=SEVEN)
        assert row.class_name == NAMES[np.bincount(labels[here]).argmax()]
        rows, cols = np.nonzero(here)
        around = array[max(0, rows.min() - 1) : rows.max() + 2, max(0, cols.min() - 1) : cols.max() + 2]
        assert row.valid_fraction == pytest.approx(np.isfinite(around).mean())


@pytest.mark.parametrize("side", [99, 16])
def test_large_components_have_a_near_95th_percentile(tmp_path, monkeypatch, side):
    monkeypatch.setattr("geood.polygons.components.window_size", lambda _: (side, side))
    monkeypatch.setattr("geood.polygons.components.EXACT_BELOW", 100)
    monkeypatch.setattr("geood.polygons.quantiles.EXACT_BELOW", 100)
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
    corners = shapely.Polygon([seen @ c for c in ((10, 4), (15, 4), (15, 7), (10, 7))])
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
    missing = tmp_path / "m.tif"
    with pytest.raises(DataError, match="no such file"):
        cut(missing)
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


def with_styles(path):
    """Names of a file of polygons and of its style, where that does not lie in it."""
    return {path.name} | ({f"{path.stem}.qml"} if path.suffix != ".gpkg" else set())


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("rows", [None, 0])
def test_every_format_holds_the_same(tmp_path, frame, suffix, rows):
    frame = frame.iloc[:rows].assign(scene="a.tif")
    out = tmp_path / f"o{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_frame(frame, out, threshold=0.5, overwrite=False)
    assert set(os.listdir(tmp_path)) == with_styles(out)
    back = read_back(out)
    assert len(back) == len(frame)
    if suffix == ".geojson":
        assert back.crs.to_epsg() == 4326
        back = back.to_crs(frame.crs)
        if len(frame):
            assert abs(back.total_bounds - frame.total_bounds).max() < 0.02
    else:
        assert back.crs == frame.crs and set(back.columns) == {*COLUMNS, *POLYGON_REVIEW, "scene", "geometry"}
    if suffix == ".fgb":  # it keeps its own order, along a Hilbert curve
        back = back.sort_values("rank", ignore_index=True)
    for name in COLUMNS if rows is None else ():
        if name in TEXTS:
            assert back[name].fillna("").tolist() == frame[name].fillna("").tolist()
        elif name == "model":
            assert set(back[name]) == {"abc"}
        else:
            np.testing.assert_allclose(back[name].astype(float), frame[name], rtol=1e-12)


def test_a_custom_crs_is_not_spelled_anew(tmp_path):
    array = np.full((3, 3), 0.9, np.float32)
    found = cut(scores_on(tmp_path / "s.tif", Grid(3, 3, PLACES["feet, no EPSG code"][0], CUSTOM), array))
    for name in ("g.gpkg", "p.parquet", "f.fgb"):
        write_frame(found, tmp_path / name, threshold=0.5, overwrite=False)
        assert CRS.from_wkt(read_back(tmp_path / name).crs.to_wkt()) == CUSTOM


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("value", [0.0, 0.9])
def test_a_photo_has_polygons_in_pixels(tmp_path, suffix, value):
    array = np.full((3, 4), value, np.float32)
    found = cut(scores_on(tmp_path / "s.tif", Grid(3, 4, Affine.identity(), None), array))
    write_frame(found, tmp_path / f"o{suffix}", threshold=0.5, overwrite=False)
    back = read_back(tmp_path / f"o{suffix}")
    assert len(back) == (value > 0)
    if value:
        assert back.total_bounds.tolist() == [0, -3, 4, 0]


def test_an_empty_geopackage_is_typed_and_styled(tmp_path, frame):
    write_frame(frame.iloc[:0], tmp_path / "o.gpkg", threshold=0.5, overwrite=False)
    info = pyogrio.read_info(tmp_path / "o.gpkg", layer="anomalies")
    assert info["geometry_type"] == "MultiPolygon" and info["features"] == 0
    kinds = dict(zip(info["fields"], info["dtypes"], strict=True))
    review = dict.fromkeys(POLYGON_REVIEW, "object") | {"reviewed": "datetime64[ms]"}
    assert kinds == COLUMNS | review
    with sqlite3.connect(tmp_path / "o.gpkg") as database:
        (styles,) = database.execute("SELECT count(*) FROM layer_styles WHERE useAsDefault = 1").fetchone()
    assert styles == 1


def test_an_existing_file_is_replaced_only_when_asked(tmp_path, frame):
    out = tmp_path / "o.gpkg"
    out.write_text("keep me")
    with pytest.raises(OutputError, match="exists already"):
        write_frame(frame, out, threshold=0.5, overwrite=False)
    assert out.read_text() == "keep me"
    write_frame(frame, out, threshold=0.5, overwrite=True)
    assert len(read_back(out)) == len(frame) and os.listdir(tmp_path) == ["o.gpkg"]
    with pytest.raises(OutputError, match=r"\.gpkg, \.geojson, \.parquet, \.fgb"):
        write_frame(frame, tmp_path / "o.kml", threshold=0.5, overwrite=False)


@pytest.mark.parametrize("suffix", [OUTPUT_SUFFIXES[0], *slow(*OUTPUT_SUFFIXES[1:])])
def test_a_full_disk_leaves_nothing(small_disk, frame, suffix):
    many = frame.loc[np.arange(60000) % len(frame)].reset_index(drop=True)
    many["model"] = [f"{i:0200x}" for i in np.random.default_rng(0).integers(0, 2**62, len(many))]
    many[["score_mean", "score_p95", "area_m2"]] = np.random.default_rng(1).random((len(many), 3))
    with pytest.raises(OutputError, match=r"cannot be written .*; free space"):
        write_frame(many, small_disk / f"o{suffix}", threshold=0.5, overwrite=False)
    assert os.listdir(small_disk) == []


def test_what_is_off_the_globe_is_said(tmp_path, frame):
    far = frame.set_crs("EPSG:3857", allow_override=True).assign(geometry=shapely.box(1e12, 1e12, 2e12, 2e12))
    far = far.set_crs("+proj=geos +h=35785831 +ellps=GRS80", allow_override=True)
    with pytest.raises(OutputError, match=r"not all of it lies on the globe.*\.gpkg"):
        write_frame(far, tmp_path / "o.geojson", threshold=0.5, overwrite=False)
    near = frame.set_crs('LOCAL_CS["site", UNIT["metre", 1]]', allow_override=True)
    with pytest.raises(OutputError, match=r"not tied to the earth; use \.gpkg, which keeps it\)$"):
        write_frame(near, tmp_path / "o.geojson", threshold=0.5, overwrite=False)
    assert os.listdir(tmp_path) == []


# Straight to files


def same(frame, other):
    """Check that two frames hold the same rows in the same order."""
    columns = [name for name in COLUMNS if name not in TEXTS]
    geopandas.testing.assert_geodataframe_equal(frame[[*columns, "geometry"]], other[[*columns, "geometry"]])
    for name in TEXTS:
        assert frame[name].fillna("").tolist() == other[name].fillna("").tolist()


@pytest.fixture
def scored(tmp_path):
    """Return a score raster, its class raster, and an empty folder."""
    grid, classes = Grid(60, 70, NORTH_UP, UTM), np.random.default_rng(1).integers(0, 4, (60, 70)).astype(np.uint8)
    scores = scores_on(tmp_path / "s.tif", grid, some_scores(60, 70))
    (tmp_path / "out").mkdir()
    return scores, write_classes(tmp_path / "c.tif", grid, classes), tmp_path / "out"


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_a_file_holds_what_the_frame_holds(scored, suffix):
    scores, classes, folder = scored
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count = write(scores, folder / f"o{suffix}", classes=classes, threshold=0.7, scene="a.tif")
    assert set(os.listdir(folder)) == with_styles(folder / f"o{suffix}")
    frame, back = cut(scores, classes=classes, threshold=0.7), read_back(folder / f"o{suffix}")
    assert count == len(frame) == len(back) > 50 and set(back.pop("scene")) == {"a.tif"}
    if suffix == ".geojson":
        assert back.crs.to_epsg() == 4326
        moved = back.to_crs(frame.crs).geometry.centroid
        assert frame.geometry.centroid.distance(moved).max() < 0.02
        back = back.set_geometry(frame.geometry)
    if suffix == ".fgb":  # it keeps its own order, along a Hilbert curve
        back = back.sort_values("rank", ignore_index=True)
    same(frame, as_written(back))


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_windows_and_runs_leave_no_trace_in_a_file(scored, monkeypatch, suffix):
    scores, classes, folder = scored
    write(scores, folder / f"whole{suffix}", classes=classes, threshold=0.6)
    monkeypatch.setattr("geood.polygons.components.window_size", lambda _: (11, 16))
    monkeypatch.setattr("geood.polygons.components.BATCH_VERTICES", 300)
    monkeypatch.setattr("geood.polygons.external_sort.RUN_BYTES", 6000)
    monkeypatch.setattr("geood.polygons.external_sort.BATCH_BYTES", 700)
    monkeypatch.setattr("geood.polygons.formats.ROW_GROUP", 40)
    write(scores, folder / f"parts{suffix}", classes=classes, threshold=0.6)
    whole, parts = read_back(folder / f"whole{suffix}"), read_back(folder / f"parts{suffix}")
    assert whole.geometry.to_wkb().equals(parts.geometry.to_wkb())
    same(whole, parts)


@given(st.lists(st.lists(st.tuples(st.sampled_from([0.5, 0.7, 0.9]), st.integers(0, 9)), max_size=9), max_size=6))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_external_sorter_sorts(tmp_path, lots):
    key, number, rows = SortKey("score", ("row", "number")), 0, []
    with pytest.MonkeyPatch.context() as patch, ExternalSorter(tmp_path / "rows.arrow", key) as sorter:
        patch.setattr("geood.polygons.external_sort.RUN_BYTES", 200)
        patch.setattr("geood.polygons.external_sort.BATCH_BYTES", 100)
        for lot in lots:
            score, row = ([*part] for part in zip(*lot, strict=True)) if lot else ([], [])
            numbers = [*range(number, number := number + len(lot))]
            rows += zip([-s for s in score], row, numbers, strict=True)
            columns = (pa.array(score, pa.float64()), pa.array(row, pa.int64()), pa.array(numbers, pa.int64()))
            sorter.add(pa.table(dict(zip(("score", "row", "number"), columns, strict=True))))
        found = [row["number"] for table in sorter.sorted_tables() for row in table.to_pylist()]
    assert found == [number for *_, number in sorted(rows)] and not os.listdir(tmp_path)


def test_parquet_is_geoparquet_in_row_groups(scored, monkeypatch):
    scores, _, folder = scored
    monkeypatch.setattr("geood.polygons.formats.ROW_GROUP", 100)
    monkeypatch.setattr("geood.polygons.external_sort.RUN_BYTES", 20_000)
    monkeypatch.setattr("geood.polygons.external_sort.BATCH_BYTES", 5_000)
    count = write(scores, folder / "o.parquet", threshold=0.7)
    file = pyarrow.parquet.ParquetFile(folder / "o.parquet")
    assert file.metadata.num_rows == count and file.metadata.num_row_groups > 2
    frame = geopandas.read_parquet(folder / "o.parquet")
    geo = pyarrow.parquet.read_schema(folder / "o.parquet").metadata[b"geo"].decode()
    assert '"MultiPolygon"' in geo and str(frame.total_bounds[0]) in geo


@pytest.mark.parametrize("run_bytes", [20_000, 10**8])
def test_bounds_of_geoparquet_are_those_of_the_rows_in_it(scored, monkeypatch, run_bytes):
    monkeypatch.setattr("geood.polygons.external_sort.RUN_BYTES", run_bytes)
    scores, _, folder = scored
    given = how(0.7, None, {})
    for most in (None, 3):
        write_anomalies(scores, folder / "o.parquet", **given, overwrite=True, most=most)
        frame = geopandas.read_parquet(folder / "o.parquet")
        geo = json.loads(pyarrow.parquet.read_schema(folder / "o.parquet").metadata[b"geo"])
        assert geo["columns"]["geometry"]["bbox"] == pytest.approx(frame.total_bounds)
    assert len(frame) == 3


def test_absent_blocks_are_as_good_as_no_data(tmp_path):
    array = np.full((96, 96), np.nan, np.float32)
    array[20:40, 40:60] = some_scores(20, 20)
    grid, tiles = Grid(96, 96, NORTH_UP, UTM), {"tiled": True, "blockxsize": 16, "blockysize": 16}
    dense = scores_on(tmp_path / "a.tif", grid, array, **tiles)
    sparse = scores_on(tmp_path / "b.tif", grid, array, SPARSE_OK=True, **tiles)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geood.polygons.components.window_size", lambda _: (16, 16))
        same(cut(dense), cut(sparse))
    same(cut(dense), cut(sparse))
    assert sparse.stat().st_size < dense.stat().st_size / 2


def test_several_scenes_share_a_file_in_the_crs_of_the_first(tmp_path, caplog):
    one = scores_on(tmp_path / "a.tif", Grid(20, 30, NORTH_UP, UTM), some_scores(20, 30, 0))
    two = scores_on(tmp_path / "b.tif", Grid(20, 30, *PLACES["degrees"]), some_scores(20, 30, 1))
    parts = [PolygonSource(path, None, None, path.name, [Window(0, 0, 4, 5)]) for path in (one, two)]
    settings = {"threshold": 0.6, "predict": PredictConfig(), "model": "abc"}
    counts = write_together(parts, tmp_path / "o.gpkg", overwrite=False, **settings)
    assert caplog.text.count("different CRSs: all polygons are written in that of the first") == 1
    back = geopandas.read_file(tmp_path / "o.gpkg", layer="anomalies")
    assert back.crs == UTM and back.scene.value_counts().to_dict() == dict(zip(["a.tif", "b.tif"], counts, strict=True))
    assert back["rank"].tolist() == list(range(1, sum(counts) + 1))
    assert falls(back)
    first, second = cut(one, threshold=0.6), cut(two, threshold=0.6)
    here, there = (back[back.scene == name].reset_index(drop=True) for name in ("a.tif", "b.tif"))
    same(first, as_written(here.assign(rank=first["rank"]).drop(columns="scene")))
    assert np.allclose(second.area_m2, there.area_m2)
    assert second.to_crs(UTM).geometry.geom_equals_exact(there.geometry, 1e-6).all()
    tiles = geopandas.read_file(tmp_path / "o.gpkg", layer="failed_tiles")
    assert tiles.scene.tolist() == ["a.tif", "b.tif"] and tiles.crs == UTM
    with pytest.raises(ConfigError, match=f"{sum(counts)} polygons"):
        few = settings | {"predict": PredictConfig(max_polygons=sum(counts) - 1)}
        write_together(parts, tmp_path / "p.gpkg", overwrite=False, **few)


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_failed_tiles_are_a_layer_or_a_file_of_their_own(scored, suffix):
    scores, _, folder = scored
    out, windows = folder / f"o{suffix}", [Window(0, 0, 32, 32), Window(32, 64, 28, 6)]
    write(scores, out, failed=windows)
    beside = folder / f"o.failed_tiles{suffix}"
    back = geopandas.read_file(out, layer="failed_tiles") if suffix == ".gpkg" else read_back(beside)
    back = back.sort_values("row")
    assert [Window(*row) for row in back[["row", "col", "height", "width"]].to_numpy().tolist()] == windows
    corners = back.geometry.to_crs(UTM).total_bounds
    assert np.allclose(corners, [500_000, 4_499_985, 500_017.5, 4_500_000], atol=0.02)
    assert set(os.listdir(folder)) == with_styles(out) | (set() if suffix == ".gpkg" else with_styles(beside))
    with pytest.raises(OutputError, match="exists already"):
        write(scores, out, failed=windows)
    write(scores, out, overwrite=True)
    assert set(os.listdir(folder)) == with_styles(out)
    if suffix == ".gpkg":
        assert {name for name, _ in pyogrio.list_layers(out)} == {"anomalies", "layer_styles", "sample"}


def test_too_many_polygons_are_an_error_that_says_what_to_do(scored, monkeypatch):
    scores, _, folder = scored
    monkeypatch.setattr("geood.polygons.components.window_size", lambda _: (10, 10))
    monkeypatch.setattr("geood.polygons.components.BATCH_VERTICES", 50)
    made = []
    monkeypatch.setattr(
        "geood.polygons.extraction._shapes", lambda found, *rest: made.append(found) or np.empty(99, object)
    )
    monkeypatch.setattr("geood.polygons.export._RowSink.add", lambda *_: None)
    with pytest.raises(ConfigError) as error:
        write(scores, folder / "o.gpkg", threshold=0.7, max_polygons=40)
    for part in (
        "s.tif",
        "polygons in the first",
        "of 60 rows",
        "predict.max_polygons 40",
        "--threshold",
        "min_area_m2",
    ):
        assert part in str(error.value)
    assert sum(len(found.number) for found in made) <= 40 and not os.listdir(folder)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_cheap_bound_leaves_out_nothing_that_the_exact_area_keeps(tmp_path, monkeypatch, place):
    path = scores_on(tmp_path / "s.tif", Grid(40, 50, *place), some_scores(40, 50))
    area = cut(path, threshold=0.7).area_m2
    least = 1.0 if area.isna().all() else float(area.median())
    bounded = cut(path, threshold=0.7, min_area_m2=least)
    monkeypatch.setattr("geood.polygons.extraction._min_px", lambda *_: 0.0)
    same(bounded, cut(path, threshold=0.7, min_area_m2=least))
    assert 0 < len(bounded) <= len(area)


@pytest.mark.parametrize("small_disk", ["400k"], indirect=True)
@pytest.mark.parametrize("suffix", [*slow(*OUTPUT_SUFFIXES[:-1]), OUTPUT_SUFFIXES[-1]])
def test_a_disk_that_fills_up_while_cutting_leaves_nothing(small_disk, tmp_path, monkeypatch, suffix):
    scores = scores_on(tmp_path / "s.tif", Grid(400, 400, NORTH_UP, UTM), some_scores(400, 400))
    for run_bytes in (10**9, 10**4):  # so that the file, or before it the sorted runs, does not fit
        monkeypatch.setattr("geood.polygons.external_sort.RUN_BYTES", run_bytes)
        with pytest.raises(OutputError, match=r"cannot be written .*; free space"):
            write(scores, small_disk / f"o{suffix}", threshold=0.7)
        assert os.listdir(small_disk) == []


def test_a_raster_that_is_cut_short_leaves_nothing(tmp_path):
    scores = scores_on(tmp_path / "s.tif", Grid(500, 500, NORTH_UP, UTM), some_scores(500, 500))
    os.truncate(scores, 600_000)
    with pytest.raises(DataError, match=r"s\.tif: cannot be read"):
        write(scores, tmp_path / "o.gpkg")
    assert os.listdir(tmp_path) == ["s.tif"]


def test_a_scene_off_the_globe_is_no_geojson(tmp_path):
    crs = CRS.from_proj4("+proj=geos +h=35785831 +ellps=GRS80")
    scores = scores_on(tmp_path / "s.tif", Grid(4, 4, Affine(1e5, 0, 1e7, 0, -1e5, 1e7), crs), np.ones((4, 4), "f4"))
    with pytest.raises(OutputError, match=r"not all of it lies on the globe.*\.gpkg"):
        write(scores, tmp_path / "o.geojson")
    assert write(scores, tmp_path / "o.gpkg") == 1


# Simplified outlines


@given(seed=st.integers(0, 10**6), connectivity=st.sampled_from([4, 8]), size_m=st.sampled_from([0.1, 0.2, 0.4, 2.0]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_simplified_polygons_are_valid_and_keep_their_contacts(tmp_path, seed, connectivity, size_m):
    path = scores_on(tmp_path / "s.tif", Grid(20, 24, NORTH_UP, UTM), some_scores(20, 24, seed))
    plain = cut(path, connectivity=connectivity)
    smooth = cut(path, connectivity=connectivity, simplify_m=size_m)
    assert smooth.geometry.is_valid.all() and set(smooth.geom_type) <= {"MultiPolygon"}
    assert (shapely.get_num_geometries(smooth.geometry) == shapely.get_num_geometries(plain.geometry)).all()
    assert plain.drop(columns="geometry").equals(smooth.drop(columns="geometry"))
    before, after = (shapely.get_parts(frame.geometry.array) for frame in (plain, smooth))
    one, other = shapely.STRtree(before).query(before, predicate="touches")
    contacts = shapely.intersection(before[one], before[other])
    assert (shapely.distance(contacts, after[one]) == 0).all()
    overlap = shapely.area(shapely.intersection(after[one], after[other]))
    details = size_m > 0.5 and connectivity == 4  # of several pixels: a component may grow over others farther on
    assert overlap == pytest.approx(0, abs=size_m**2 if details else 1e-6)


def test_staircases_go_and_shapes_stay(tmp_path, caplog):
    row, col = np.mgrid[:80, :80]
    disk = (np.hypot(row - 40, col - 40) < 30).astype(np.float32)
    path = scores_on(tmp_path / "s.tif", Grid(80, 80, NORTH_UP, UTM), disk)
    plain, smooth = cut(path), cut(path, simplify_m=0.5)
    assert shapely.get_num_coordinates(smooth.geometry[0]) < 0.4 * shapely.get_num_coordinates(plain.geometry[0])
    assert smooth.symmetric_difference(plain).area[0] < 0.05 * plain.area[0] and not caplog.text
    photo = scores_on(tmp_path / "p.tif", Grid(80, 80, Affine.identity(), None), disk)
    same(cut(photo), cut(photo, simplify_m=0.5))
    assert "p.tif: pixels have no known size in metres" in caplog.text


# Areas


def squares(rows, cols):
    corner = np.stack([cols, rows], axis=1).repeat(5, axis=0)
    square = np.tile([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]], (len(rows), 1))
    count = np.arange(len(rows) + 1)
    return Rings((corner + square).astype(np.int32), count * 5, count, count)


@pytest.mark.parametrize(
    ("code", "transform"),
    [
        (32633, Affine(0.25, 0, 500_000, 0, -0.25, 4_500_000)),
        (32601, Affine(30, 0, 195_000, 0, -30, 7_200_000)),
        (3413, Affine(30, 0, -1e6, 0, -30, -1e6)),
        (3031, Affine(100, 0, -50_000, 0, -100, 30_000)),
        (27572, Affine(1, 0, 600_000, 0, -1, 2_200_000)),
    ],
    ids=["utm", "antimeridian", "north", "south pole", "grads"],
)
def test_the_area_of_a_pixel_is_that_of_the_projection(code, transform):
    grid = Grid(1000, 1000, transform, CRS.from_epsg(code))
    place = np.arange(0, 1000, 37)
    area = GeodesicAreas(grid).measure(squares(place, place))
    projection = pyproj.Proj(code)
    x, y = zip(*[transform @ (at + 0.5, at + 0.5) for at in place.tolist()], strict=True)
    scale = projection.get_factors(*projection(x, y, inverse=True)).areal_scale
    assert area * scale == pytest.approx(np.full(len(place), transform.a**2), rel=1e-4 if code == 3031 else 1e-6)


@pytest.mark.parametrize("code", [3031, 3413, 3995])
def test_an_area_around_a_pole_holds_the_pole(code):
    grid = Grid(2000, 2000, Affine(500, 0, -500_000, 0, -500, 500_000), CRS.from_epsg(code))
    ring = np.array([[600, 600], [600, 1400], [1400, 1400], [1400, 600], [600, 600]], np.int32)
    whole = GeodesicAreas(grid).measure(Rings(ring, np.array([0, 5]), np.array([0, 1]), np.array([0, 1])))
    rows, cols = (part.ravel() for part in np.mgrid[600:1400:8, 600:1400:8])
    pixel = GeodesicAreas(grid).measure(squares(rows + 4, cols + 4)).sum() * 64
    assert whole[0] == pytest.approx(pixel, rel=1e-3)
