"""Laws of labels as people draw them: what is forgiven is said, what is not is refused, all is on the right pixel."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box

from geood.errors import DataError
from geood.geo.grid import Grid
from geood.geo.labels.reading import open_labels
from geood.geo.labels.rules import LabelRules

UTM = CRS.from_epsg(32633)
GRID = Grid(60, 80, Affine(0.5, 0, 500_000, 0, -0.5, 5_000_030), UTM)  # 40 m x 30 m
NAMES = {"land": 0, "built up": 1, "boat": 253}
RULES = LabelRules("class", names=NAMES)


def at(shape):
    return shapely.transform(shape, lambda points: points + np.array([500_000, 5_000_000]))


def written(path, rows, *, crs=UTM, **options):
    frame = gpd.GeoDataFrame({"class": [value for value, _ in rows]}, geometry=[at(s) for _, s in rows], crs=UTM)
    frame.to_crs(crs).to_file(path, **options)
    return path


def read(*paths, rules=RULES, grid=GRID):
    with open_labels(paths, grid, rules) as labels:
        return labels.read(grid.window)


def inside(shape):
    rows, cols = np.mgrid[: GRID.height, : GRID.width] + 0.5
    return shapely.intersects_xy(at(shape), *(GRID.transform @ (cols, rows)))


def test_names_are_found_whatever_their_case_and_blanks_and_it_is_said(tmp_path, caplog):
    rows = [("land", box(0, 0, 10, 10)), (" Built  UP", box(10, 0, 20, 10)), ("BOAT", box(20, 0, 30, 10))]
    with caplog.at_level("INFO", "geood"):
        ids = read(written(tmp_path / "a.gpkg", rows))
    for (_, shape), wanted in zip(rows, (0, 1, 253), strict=True):
        assert (ids[inside(shape)] == wanted).all()
    assert (ids == 255).sum() == ids.size - 3 * 400
    assert "read without regard to case and blanks: ' Built  UP' (1) as built up; 'BOAT' (1) as boat" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "geood"):
        read(tmp_path / "a.gpkg")  # the file did not change: it is not read again
    assert not caplog.text


def test_names_of_no_class_are_listed_with_areas_and_their_ground_is_not_known(tmp_path, caplog):
    rows = [
        ("land", box(0, 0, 9, 9)),
        ("laand", box(10, 0, 20, 10)),
        ("shed", box(20, 0, 22, 2)),
        (" ", box(0, 9, 9, 12)),
    ]
    ids = read(written(tmp_path / "a.gpkg", rows))
    assert "2 shapes have names in class that are neither in data.classes nor in data.anomaly" in caplog.text
    assert "'laand' (1, 100 m2; did you mean land?), 'shed' (1, 4 m2)" in caplog.text
    assert set(np.unique(ids)) == {0, 255} and (ids == 0).sum() == 18 * 18
    with pytest.raises(
        DataError, match=r"no text in class is the name of a class \(land, built up, boat\); it holds 'x'"
    ):
        read(written(tmp_path / "b.gpkg", [("x", box(0, 0, 9, 9))]))
    twins = LabelRules("class", names={"Land": 0, "land ": 1})
    with pytest.raises(DataError, match=r"'Land' and 'land ' differ by case or blanks alone"):
        read(tmp_path / "a.gpkg", rules=twins)


def test_ids_as_texts_are_ids(tmp_path):
    rows = [("1", box(0, 0, 9, 9)), ("0.0", box(10, 0, 20, 10)), ("Boat", box(20, 0, 30, 10))]
    assert set(np.unique(read(written(tmp_path / "a.gpkg", rows)))) == {0, 1, 253, 255}
    with pytest.raises(DataError, match=r"must hold class ids, .*; got '300'"):
        read(written(tmp_path / "b.gpkg", [("land", box(0, 0, 9, 9)), ("300", box(9, 0, 12, 9))]))


def test_a_bow_tie_is_its_two_triangles_and_parts_that_overlap_are_one(tmp_path, caplog):
    tie = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    pair = MultiPolygon([box(20, 0, 30, 10), box(25, 5, 35, 15)])
    flat = Polygon([(1, 20), (9, 20), (5, 20)])
    ids = read(written(tmp_path / "a.gpkg", [("land", tie), ("boat", pair), ("boat", flat)]))
    triangles = Polygon([(0, 0), (5, 5), (0, 10)]).union(Polygon([(10, 0), (10, 10), (5, 5)]))
    assert ((ids == 0) != inside(triangles)).sum() <= 20  # pixels on its edges
    np.testing.assert_array_equal(ids == 253, inside(shapely.union_all(list(pair.geoms))))
    assert "outlines that are not valid: 3, polygon 1 first (Self-intersection" in caplog.text
    assert "1 of them have no area and are left out" in caplog.text


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:3857"])
def test_lines_and_points_are_widened_by_metres_or_refused(tmp_path, crs, caplog):
    line, point = LineString([(5, 5), (30, 20)]), Point(30, 6)
    path = written(tmp_path / "a.gpkg", [("land", line), ("boat", point)], crs=crs)
    with pytest.raises(DataError, match=r"holds 1 LineString, 1 Point, where polygons were needed; .*label_buffer_m"):
        read(path)
    with caplog.at_level("INFO", "geood"):
        ids = read(path, rules=RULES._replace(buffer_m=3.0))
    for wanted, shape in ((0, line), (253, point)):
        assert ((ids == wanted) != inside(shape.buffer(3.0, quad_segs=32))).sum() <= 12
    assert "1 LineString, 1 Point become areas of 3 m on each side" in caplog.text


def test_what_is_drawn_later_lies_on_top_and_of_files_the_first(tmp_path):
    low, high = box(0, 0, 20, 20), box(10, 0, 30, 20)
    a = written(tmp_path / "a.gpkg", [("land", low), ("boat", high)], layer="one")
    written(a, [("built up", box(0, 0, 5, 5))], layer="two")
    b = written(tmp_path / "b.gpkg", [("built up", box(0, 0, 40, 20))], layer="one")
    one = RULES._replace(layer="one")
    ids = read(a, b, rules=one)
    np.testing.assert_array_equal(ids == 253, inside(high))
    np.testing.assert_array_equal(ids == 0, inside(low) & ~inside(high))
    np.testing.assert_array_equal(ids == 1, inside(box(0, 0, 40, 20)) & ~inside(low) & ~inside(high))
    both = read(a, rules=RULES._replace(layer=("one", "two")))
    np.testing.assert_array_equal(both == 1, inside(box(0, 0, 5, 5)))
    assert (read(a, rules=RULES._replace(layer=("two", "one"))) != 1).all()
    with pytest.raises(DataError, match=r"a\.gpkg: has no layer three, .*; its layers are one, two"):
        read(a, rules=RULES._replace(layer=("one", "three")))
    with pytest.raises(DataError, match=r"b\.gpkg: has none of the layers .*; its layers are one"):
        written(a, [("boat", high)], layer="three")
        read(a, b, rules=RULES._replace(layer=("two", "three")))


def test_ground_without_a_shape_is_not_known_or_the_background(tmp_path):
    path = written(tmp_path / "a.gpkg", [("boat", box(0, 0, 9, 9)), ("255", box(20, 0, 29, 9))])
    ids = read(path, rules=RULES._replace(background=0))
    np.testing.assert_array_equal(ids == 255, inside(box(20, 0, 29, 9)))  # said to be not known
    np.testing.assert_array_equal(ids == 0, (read(path) == 255) & (ids != 255))


def test_shapes_that_can_be_no_label_are_refused(tmp_path):
    collection = shapely.GeometryCollection([box(0, 0, 3, 3), Point(1, 1)])
    with pytest.raises(DataError, match="holds GeometryCollection, where polygons were needed"):
        read(written(tmp_path / "a.gpkg", [("land", collection)]))
    bare = gpd.GeoDataFrame({"class": ["land"]}, geometry=[LineString([(0, 0), (5, 5)])])
    bare.to_file(tmp_path / "b.gpkg")
    with pytest.raises(DataError, match=r"has no CRS, so data\.label_buffer_m 2 cannot be measured"):
        read(tmp_path / "b.gpkg", rules=RULES._replace(buffer_m=2.0))
