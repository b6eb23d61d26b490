"""Laws of vector files: labels and areas are read by one set of rules, and edges stay where they were drawn."""

import json
import sqlite3
import struct

import geopandas as gpd
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box

from geood.errors import ConfigError, DataError
from geood.geo.aoi import AreaOfInterest
from geood.geo.grid import Grid
from geood.geo.labels.reading import open_labels
from geood.geo.labels.rules import LabelRules
from support.http_server import serving

UTM = CRS.from_epsg(32633)
GRID = Grid(60, 80, Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), UTM)
HERE = box(500_005, 4_999_980, 500_025, 4_999_995)
FAULTS = {"labels": DataError, "area": ConfigError}


def covered(kind, path, grid=GRID, layer=None):
    """The pixels that a file covers, as labels of id 1 or as an area."""
    if kind == "area":
        return AreaOfInterest.from_file(path, grid, layer).covers(grid.window)
    with open_labels([path], grid, LabelRules("kind", layer)) as labels:
        return labels.read(grid.window) == 1


def written(path, shapes, *, crs=UTM, ids=None, **options):
    ids = [1] * len(shapes) if ids is None else ids
    frame = gpd.GeoDataFrame(
        {"kind": ids}, geometry=list(shapes), crs=None if crs is None else CRS.from_user_input(crs)
    )
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path, **options)
    return path


def geojson(path, geometry, **members):
    feature = {"type": "Feature", "properties": {"kind": 1}, "geometry": geometry}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature], **members}))
    return path


def expected(shape=HERE, grid=GRID):
    rows, cols = np.mgrid[: grid.height, : grid.width] + 0.5
    return shapely.intersects_xy(shape, *(grid.transform @ (cols, rows)))


both = pytest.mark.parametrize("kind", FAULTS)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([HERE, LineString([(0, 0), (1, 1)])], "holds LineString, Polygon, where polygons were needed; "),
        ([HERE, Point(1, 1)], "holds Point, Polygon, where polygons were needed; "),
        ([GeometryCollection([HERE, Point(1, 1)])], "holds GeometryCollection, where polygons were needed; "),
        ([HERE, Polygon([(0, 0), (9, 9), (9, 0), (0, 9)])], r"polygon 2 is not valid \(Self-int.*Fix geometries"),
        ([HERE, box(0, 0, 1e300, 1e300)], r"polygon 2 reaches to 1e\+300, beyond any CRS; draw it again"),
    ],
    ids=["line", "point", "collection", "bow tie", "far"],
)
def test_only_valid_polygons_are_areas(tmp_path, shapes, said):
    with pytest.raises(ConfigError, match=rf"a\.gpkg: {said}"):
        covered("area", written(tmp_path / "a.gpkg", shapes))


@both
@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
def test_coordinates_that_are_no_numbers_are_refused(tmp_path, kind, number):
    path = geojson(tmp_path / "a.geojson", {"type": "Polygon", "coordinates": [[[15, 45], [16, 45], [0, 1], [15, 45]]]})
    path.write_text(path.read_text().replace("[0, 1]", f"[{number}, 46]"))
    with pytest.raises(FAULTS[kind], match=r"a\.geojson: (polygon 1 is not valid \(Invalid Coord|cannot be read)"):
        covered(kind, path)


@both
def test_a_missing_or_empty_or_broken_file_is_said(tmp_path, kind):
    (tmp_path / "b.gpkg").write_text("hello")
    geojson(tmp_path / "c.geojson", None)
    (tmp_path / "d.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    (tmp_path / "e;x.geojson").write_text("{}")
    for name, said in {
        "none.gpkg": "no such file",
        "b.gpkg": "cannot be read as a vector file",
        "c.geojson": "(holds no shapes|no shape has both)",
        "d.geojson": "(holds no shapes|has no attribute kind|no shape has both)",
        "e;x.geojson": "cannot be read as a vector file",
    }.items():
        with pytest.raises(FAULTS[kind], match=rf"{name}: {said}"):
            covered(kind, tmp_path / name)


@both
@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".fgb", ".geojson", ".parquet"])
def test_a_file_of_any_name_in_a_folder_of_any_name_is_read(tmp_path, kind, suffix):
    plain = written(tmp_path / f"a{suffix}", [HERE])
    folder = tmp_path / "b;c!d.zip\te"
    folder.mkdir()
    for part in tmp_path.glob("a.*"):
        part.rename(folder / f"f;g?h!i{part.suffix}")
    np.testing.assert_array_equal(covered(kind, folder / f"f;g?h!i{plain.suffix}"), expected())


SERVICES = {
    "OGR VRT": '<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>/vsicurl/{url}</SrcDataSource></OGRVRTLayer>'
    "</OGRVRTDataSource>",
    "WFS": "<OGRWFSDataSource><URL>{url}</URL></OGRWFSDataSource>",
}


@both
@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".fgb", ".geojson", ".json", ".parquet"])
def test_a_local_file_asks_no_server(tmp_path, kind, suffix):
    (tmp_path / "web").mkdir()
    with serving(tmp_path / "web") as server:
        for service, text in SERVICES.items():
            path = tmp_path / f"{service}{suffix}"
            path.write_text(text.format(url=server.url("a.geojson")))
            with pytest.raises(FAULTS[kind], match="by its content it is no"):
                covered(kind, path)
        assert not server.requests


@both
def test_heights_and_multipolygons_and_a_crs_member_are_no_matter(tmp_path, kind):
    high = written(tmp_path / "high.gpkg", [shapely.force_3d(HERE, 5)])
    many = written(tmp_path / "many.gpkg", [MultiPolygon([HERE])])
    corners = [[x, y, 7] for x, y in HERE.exterior.coords]
    name = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    old = geojson(tmp_path / "old.geojson", {"type": "Polygon", "coordinates": [corners]}, crs=name)
    turned = pyproj.Transformer.from_crs(32633, 4326, always_xy=True).transform
    degrees = [[*turned(x, y), 7] for x, y in HERE.exterior.coords]  # GDAL gives heights a CRS of three dimensions
    new = geojson(tmp_path / "new.geojson", {"type": "Polygon", "coordinates": [degrees]})
    for path in (high, many, old, new):
        np.testing.assert_array_equal(covered(kind, path), expected())


@both
def test_curves_are_drawn(tmp_path, kind):
    """A circle of five points on three arcs, which geopandas cannot write."""
    path = written(tmp_path / "a.gpkg", [HERE])
    x, y, r = 500_020.0, 4_999_985.0, 10.0
    points = [(x - r, y), (x, y + r), (x + r, y), (x, y - r), (x - r, y)]
    arcs = struct.pack("<BII", 1, 8, 5) + b"".join(struct.pack("<dd", *point) for point in points)
    blob = b"GP\x00\x01" + struct.pack("<i", 32633) + struct.pack("<BII", 1, 10, 1) + arcs
    with sqlite3.connect(path) as file:
        for (trigger,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            file.execute(f'DROP TRIGGER "{trigger}"')
        file.execute("UPDATE a SET geom = ?", (blob,))
        file.execute("UPDATE gpkg_geometry_columns SET geometry_type_name = 'CURVEPOLYGON'")
    file.close()
    wrong = covered(kind, path) != expected(Point(x, y).buffer(r, 64))
    assert wrong.sum() <= 4


@both
def test_a_layer_is_chosen_and_never_guessed(tmp_path, kind):
    path = written(tmp_path / "a.gpkg", [box(0, 0, 1, 1)], layer="old_2019")
    written(path, [HERE], layer="labels_2024")
    with pytest.raises(FAULTS[kind], match=r"a\.gpkg: its layers are old_2019, labels_2024, where one was needed; "):
        covered(kind, path)
    with pytest.raises(
        FAULTS[kind], match=r"its layers are .* labels_2042 is none of them; did you mean labels_2024\?"
    ):
        covered(kind, path, layer="labels_2042")
    np.testing.assert_array_equal(covered(kind, path, layer="labels_2024"), expected())


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_an_attribute_is_found_whatever_its_case_if_that_is_not_doubtful(tmp_path, suffix):
    path, frame = tmp_path / f"a{suffix}", gpd.GeoDataFrame({"Kind": [1]}, geometry=[HERE], crs=UTM)
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_file(path)
    np.testing.assert_array_equal(covered("labels", path), expected())


def test_two_attributes_that_differ_by_case_are_not_guessed_among(tmp_path):
    frame = gpd.GeoDataFrame({"Kind": [1], "KIND": [2]}, geometry=[HERE], crs=UTM)
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no attribute kind;"):
        covered("labels", tmp_path / "a.parquet")


def test_the_only_layer_with_the_attribute_is_taken_and_said(tmp_path, caplog):
    path = tmp_path / "a.gpkg"
    gpd.GeoDataFrame(geometry=[box(0, 0, 1, 1)], crs=UTM).to_file(path, layer="extent")
    written(path, [HERE], layer="labels")
    with caplog.at_level("INFO", "geood"):
        np.testing.assert_array_equal(covered("labels", path), expected())
    assert "of its layers extent, labels, labels is read: it alone has the attribute kind" in caplog.text


@both
@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.parquet"])
def test_a_long_edge_is_straight_where_it_was_drawn(tmp_path, kind, name):
    """The parallel below a wide scene is a curve on it; its chord lies up to seven pixels off."""
    grid = Grid(200, 2500, Affine(4, 0, 300_000, 0, -4, 6_700_000), UTM)
    change = pyproj.Transformer.from_crs(32633, 4326, always_xy=True)
    (west, a), (east, b) = change.transform(299_000, 6_699_600), change.transform(311_000, 6_699_600)
    south = (a + b) / 2
    path = written(tmp_path / name, [box(west, south, east, south + 0.01)], crs=4326)
    rows, cols = np.mgrid[: grid.height, : grid.width] + 0.5
    lon, lat = change.transform(*(grid.transform @ (cols, rows)))
    right = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= south + 0.01)
    wrong = covered(kind, path, grid) != right
    assert 0.2 < right.mean() < 0.8
    assert wrong.sum() <= 12


@both
def test_shapes_of_the_whole_world_are_clipped_before_they_are_transformed(tmp_path, kind):
    path = written(tmp_path / "a.gpkg", [box(-180, -90, 180, 90)], crs=4326)
    assert covered(kind, path).all()


@both
def test_a_photograph_has_its_rows_downwards(tmp_path, kind):
    """As a viewer shows it that has no georeference: x is the column, y is minus the row."""
    photo = Grid(60, 80, Affine.identity(), None)
    path = written(tmp_path / "a.gpkg", [box(10, -30, 25, -20)], crs=None)
    wanted = np.zeros((60, 80), bool)
    wanted[20:30, 10:25] = True
    np.testing.assert_array_equal(covered(kind, path, photo), wanted)


# Which of overlapping shapes lies on top


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.shp", "a.parquet", "plain.fgb"])
def test_the_later_shape_lies_on_top(tmp_path, name):
    shapes, ids = [HERE, HERE.buffer(-2), HERE.buffer(-4)], [2, 1, 3]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}_{name}"
        drawn = [shapes[i] for i in order]
        options = {"SPATIAL_INDEX": "NO"} if name == "plain.fgb" else {}
        if name == "a.geojson":
            drawn, options = list(gpd.GeoSeries(drawn, crs=UTM).to_crs(4326)), {}
        written(path, drawn, ids=[ids[i] for i in order], crs=4326 if name == "a.geojson" else UTM, **options)
        wanted = np.full((60, 80), 255)
        for i in order:
            wanted[expected(shapes[i])] = ids[i]
        with open_labels([path], GRID, LabelRules("kind")) as labels:
            assert (labels.read(GRID.window) != wanted).sum() <= 6


def test_overlaps_are_refused_where_the_format_has_lost_the_order(tmp_path):
    path = written(tmp_path / "a.fgb", [HERE, HERE.buffer(-2)], ids=[1, 2])
    assert pyogrio.read_info(path)["capabilities"]["fast_spatial_filter"]
    with pytest.raises(DataError, match=r"a\.fgb: shapes with the ids \d and \d overlap, and FlatGeobuf .*\.gpkg"):
        covered("labels", path)
    same = written(tmp_path / "same.fgb", [HERE, HERE.buffer(-2)], ids=[1, 1])
    np.testing.assert_array_equal(covered("labels", same), expected())
    beside = shapely.affinity.translate(HERE, 20 - 1e-4)
    touching = written(tmp_path / "touching.fgb", [HERE, beside], ids=[1, 2])
    np.testing.assert_array_equal(covered("labels", touching), expected())
