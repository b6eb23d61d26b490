"""Laws of areas of interest: a pixel is in or out whatever the window and the CRS, and equals a reference."""

import pickle
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box

from geood.errors import ConfigError
from geood.geo.aoi import AreaOfInterest
from geood.geo.grid import Grid, Window, tile_grid
from geood.prediction.plan import SceneOptions, _area
from support.cpu import slow
from support.threads import in_threads

UTM = CRS.from_epsg(32633)
NORTH_UP = Affine(0.5, 0, 500_000.25, 0, -0.5, 4_649_776.75)
GRID = Grid(180, 250, NORTH_UP, UTM)
GRIDS = {
    "north-up": GRID,
    "rotated": Grid(180, 250, Affine(0.4, 0.3, 500_000, 0.3, -0.4, 4_649_000), UTM),
    "south-up": Grid(180, 250, Affine(0.5, 0, 500_000, 0, 0.5, 4_649_000), UTM),
    "degrees": Grid(180, 250, Affine(1e-5, 0, 11.1, 0, -1e-5, 47.3), CRS.from_epsg(4326)),
    "feet": Grid(180, 250, Affine(2, 0, 6_000_000, 0, -2, 2_000_000), CRS.from_epsg(2263)),
}


def on_ground(shape, grid):
    """A shape in pixels brought to the grid's CRS."""
    t = grid.transform
    return shapely.affinity.affine_transform(shape, (t.a, t.b, t.d, t.e, t.c, t.f))


def written(path, shapes, crs=UTM, **options):
    frame = gpd.GeoDataFrame(geometry=list(shapes), crs=None if crs is None else pyproj.CRS.from_user_input(crs))
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path, **options)
    return path


def star(seed=0, points=40, middle=(120, 90), size=85):
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = size * (0.3 + 0.7 * rng.random(points))
    return Polygon(np.column_stack([middle[0] + radius * np.cos(angles), middle[1] + radius * np.sin(angles)]))


def holed():
    return MultiPolygon([star(1).difference(box(100, 70, 140, 110)), box(200.2, 10.7, 240.9, 60.1), star(2, size=9)])


def whole(area, grid=GRID):
    return area.covers(grid.window)


def reference(shape, grid=GRID):
    """As GDAL burns polygons, in pixels."""
    shapes = [(shape, 1)]
    return rasterio.features.rasterize(shapes, (grid.height, grid.width), transform=Affine.identity()) > 0


# Which pixels


@pytest.mark.parametrize(
    "shape", [star(), holed(), *slow(box(0, 0, 250, 180), box(10.5, 10.5, 30.2, 40.6))], ids=range(4)
)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_pixels_are_those_that_gdal_burns(tmp_path, grid, shape):
    area = AreaOfInterest.from_file(written(tmp_path / "a.gpkg", [on_ground(shape, grid)], grid.crs), grid)
    np.testing.assert_array_equal(whole(area, grid), reference(shape, grid) | _on_edges(shape, grid))
    assert not whole(area, grid)[_outside(area.window, grid)].any()


def _on_edges(shape, grid):
    """Pixels whose centres lie on an edge; GDAL takes those on some edges only."""
    rows, cols = np.mgrid[: grid.height, : grid.width] + 0.5
    return shapely.dwithin(shape.boundary, shapely.points(cols, rows), 1e-6) & (
        shapely.distance(shape, shapely.points(cols, rows)) < 1e-6
    )


def _outside(window, grid):
    found = np.ones((grid.height, grid.width), bool)
    found[window.slices] = False
    return found


@given(
    st.integers(0, 1000),
    st.tuples(st.integers(-50, 200), st.integers(-50, 280), st.integers(0, 200), st.integers(0, 200)),
)
@settings(max_examples=60, deadline=None)
def test_a_pixel_is_in_or_out_whatever_the_window(seed, window):
    shape, window = star(seed, points=12, size=160), Window(*window)
    area = AreaOfInterest(shape, Window(0, 0, 1, 1))
    rows, cols = np.arange(window.row, window.row + window.height), np.arange(window.col, window.col + window.width)
    wanted = shapely.intersects_xy(shape, cols[None, :] + 0.5, rows[:, None] + 0.5)
    found = area.covers(window)
    assert found.shape == (window.height, window.width) and found.dtype == bool
    np.testing.assert_array_equal(found, wanted)
    assert area.touches(window) or not found.any()


@pytest.mark.parametrize("tile", [32, 64, 96])
def test_windows_put_together_equal_the_whole(tile):
    area = AreaOfInterest.from_bbox("500010.5,4649700.5,500100,4649760.25", GRID)
    for area in (area, AreaOfInterest(holed(), GRID.window)):  # noqa: B020 - both, one after the other
        found = np.zeros((GRID.height, GRID.width), bool)
        for one in tile_grid(GRID.height, GRID.width, tile_px=tile, halo_px=0):
            found[one.write.slices] = area.covers(one.write)
            assert area.touches(one.write) >= found[one.write.slices].any()
        np.testing.assert_array_equal(found, whole(area))


def test_parts_that_share_edges_hold_every_pixel():
    cells = shapely.get_parts(
        shapely.voronoi_polygons(shapely.MultiPoint(np.random.default_rng(0).random((30, 2)) * 200))
    )
    found = sum(AreaOfInterest(cell, GRID.window).covers(Window(0, 0, 150, 150)).astype(int) for cell in cells)
    assert (found >= 1).all() and (found == 1).mean() > 0.99


# Out of files in any CRS


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.shp", "a.parquet", "a.fgb"])
def test_any_vector_file(tmp_path, name):
    crs = CRS.from_epsg(4326) if name == "a.geojson" else UTM
    shape = on_ground(star(), GRID)
    if crs != UTM:
        shape = gpd.GeoSeries([shape], crs=32633).to_crs(4326)[0]
    area = AreaOfInterest.from_file(str(written(tmp_path / name, [shape], crs)), GRID)
    assert (whole(area) != reference(star())).sum() <= 3


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32632", "EPSG:2154", "ESRI:102003"])
def test_an_area_is_the_same_from_any_crs(tmp_path, crs):
    shape = on_ground(holed(), GRID)
    own = AreaOfInterest.from_file(written(tmp_path / "a.gpkg", [shape]), GRID)
    drawn = shapely.segmentize(shape, 1.0)  # so that what is drawn elsewhere is the same line on the ground
    other = AreaOfInterest.from_file(
        written(tmp_path / "b.gpkg", gpd.GeoSeries([drawn], crs=32633).to_crs(crs), crs), GRID
    )
    assert (whole(own) != whole(other)).sum() <= 2
    assert max(abs(a - b) for a, b in zip(own.window, other.window, strict=True)) <= 1


def test_a_long_edge_stays_where_it_is_drawn():
    """A parallel is a curve in UTM: its middle lies metres off the chord between its ends."""
    grid = Grid(40_000, 40_000, Affine(1, 0, 600_000, 0, -1, 5_600_000), UTM)
    area = AreaOfInterest.from_bbox("16.5,50.3,16.9,50.4,EPSG:4326", grid)
    change = pyproj.Transformer.from_crs(4326, 32633, always_xy=True)
    for longitude in np.linspace(16.51, 16.89, 9):
        col, row = ~grid.transform @ change.transform(longitude, 50.4)
        here = area.covers(Window(round(row) - 3, round(col), 7, 1))[:, 0]
        first = round(row) - 3 + int(np.argmax(here))
        assert abs(first - (row - 0.5)) <= 1.01, longitude


def test_several_polygons_are_one_area(tmp_path):
    parts = [box(10, 10, 60, 60), box(40, 40, 90, 90), box(200, 100, 240, 160)]
    area = AreaOfInterest.from_file(written(tmp_path / "a.gpkg", [on_ground(p, GRID) for p in parts]), GRID)
    np.testing.assert_array_equal(whole(area), reference(shapely.union_all(parts)))
    assert area.window == Window(10, 10, 150, 230)


def test_what_lies_beyond_the_scene_is_cut_off(tmp_path):
    world = written(tmp_path / "world.geojson", [box(-180, -90, 180, 90)], CRS.from_epsg(4326))
    area = AreaOfInterest.from_file(world, GRID)
    assert area.window == GRID.window and whole(area).all()
    half = box(-1000, -1000, 100, 1000)
    area = AreaOfInterest.from_file(written(tmp_path / "a.gpkg", [on_ground(half, GRID)]), GRID)
    assert area.window == Window(0, 0, 180, 100)


def test_heights_and_empty_shapes_are_no_matter(tmp_path):
    shapes = [shapely.force_3d(on_ground(star(), GRID), 5), Polygon(), None]
    area = AreaOfInterest.from_file(written(tmp_path / "a.gpkg", shapes), GRID)
    np.testing.assert_array_equal(whole(area), reference(star()))


def test_a_photograph_has_its_rows_downwards(tmp_path):
    photo = Grid(180, 250, Affine.identity(), None)
    drawn = shapely.affinity.scale(star(), 1, -1, origin=(0, 0))  # as it is drawn over the picture in QGIS
    area = AreaOfInterest.from_file(written(tmp_path / "a.gpkg", [drawn], None), photo)
    np.testing.assert_array_equal(whole(area, photo), reference(star()))
    assert AreaOfInterest.from_bbox("10,-60,30,-20", photo).window == Window(20, 10, 40, 20)


def test_one_of_several_layers(tmp_path):
    path = tmp_path / "a.gpkg"
    written(path, [on_ground(star(), GRID)], layer="area")
    written(path, [on_ground(Point(5, 5), GRID)], layer="wells")
    np.testing.assert_array_equal(whole(AreaOfInterest.from_file(path, GRID, "area")), reference(star()))
    for layer in (None, "parcels"):
        with pytest.raises(ConfigError, match=r"a\.gpkg: its layers are area, wells"):
            AreaOfInterest.from_file(path, GRID, layer)


# Rectangles


def test_a_rectangle_is_its_pixels():
    area = AreaOfInterest.from_bbox("500010.25, 4649726.75, 500050.25, 4649756.75", GRID)
    wanted = np.zeros((180, 250), bool)
    wanted[40:100, 20:100] = True
    np.testing.assert_array_equal(whole(area), wanted)
    assert area.window == Window(40, 20, 60, 80)
    assert area == AreaOfInterest.from_bbox((500010.25, 4649726.75, 500050.25, 4649756.75), GRID)
    again = AreaOfInterest.from_bbox("500010.25,4649726.75,500050.25,4649756.75,EPSG:32633", GRID)
    assert again.digest() == area.digest()


def test_a_rectangle_in_degrees():
    west, south = pyproj.Transformer.from_crs(32633, 4326, always_xy=True).transform(500_050, 4_649_720)
    area = AreaOfInterest.from_bbox(f"{west},{south},{west + 1},{south + 1},EPSG:4326", GRID)
    found = whole(area)
    col, row = ~GRID.transform @ (500_050, 4_649_720)
    assert found[: int(row) - 1, int(col) + 2 :].all()
    assert not found[int(row) + 2 :].any() and not found[:, : int(col) - 1].any()


@pytest.mark.parametrize(
    "box",
    [
        *(
            "",
            "1,2,3",
            "1,2,a,4",
            "3,2,1,4",
            "1,4,3,2",
            "1,2,1,4",
            "nan,1,2,3",
            "1,2,inf,4",
            "1,2,3,4,EPSG:0",
            "1,2,3,4,",
        ),
        *("1e308,1e308,1.1e308,1.2e308", "-1e308,-1e308,1e308,1e308", "1,2,1e300,4"),
        *((10**400, 1, 2, 3), (1, 2, 3, None), "1,2,3,4,\0", "1,2,3,4,\ud800"),
    ],
)
def test_what_is_no_rectangle(box):
    with pytest.raises(ConfigError, match=r"not a rectangle; give west,south|is not a CRS") as caught:
        AreaOfInterest.from_bbox(box, GRID)
    assert str(caught.value).isprintable()


def test_an_option_of_thousands_of_characters_is_not_repeated():
    for text in ("9" * 5000 + ",1,2,3", "1,2,3,4," + "9" * 5000):
        with pytest.raises(ConfigError) as caught:
            AreaOfInterest.from_bbox(text, GRID)
        assert len(str(caught.value)) < 400


def test_an_empty_option_is_refused_and_never_the_whole_scene():
    for options in (SceneOptions(box=""), SceneOptions(area=Path())):
        with pytest.raises(ConfigError, match=r"not a rectangle|cannot be read as a vector file|its layers are none"):
            _area(options, GRID)
    with pytest.raises(ConfigError, match="exclude each other"):
        _area(SceneOptions(box="", area=Path()), GRID)


# Values


def test_an_area_travels_and_is_told_from_others():
    area, other = AreaOfInterest(holed(), GRID.window), AreaOfInterest(holed().buffer(0.01), GRID.window)
    back = pickle.loads(pickle.dumps(area))
    assert back == area and back.digest() == area.digest() != other.digest()
    np.testing.assert_array_equal(whole(back), whole(area))
    turned = AreaOfInterest(shapely.normalize(holed()), GRID.window)
    assert turned.digest() == area.digest() == AreaOfInterest(holed().buffer(0).reverse(), GRID.window).digest()


def test_threads_may_share_an_area():
    wanted = whole(AreaOfInterest(holed(), GRID.window))
    area, bad = AreaOfInterest(holed(), GRID.window), []

    def work():
        for _ in range(20):
            bad.extend([1] if not np.array_equal(whole(area), wanted) else [])

    in_threads(work)
    assert not bad


def test_far_windows_are_quick():
    """Windows wholly in or out cost no look at their pixels."""
    turn = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    radius = 30_000 + 3000 * np.sin(40 * turn)
    coast = Polygon(np.column_stack([50_000 + radius * np.cos(turn), 50_000 + radius * np.sin(turn)]))
    area = AreaOfInterest(coast, Window(0, 0, 100_000, 100_000))
    began = time.process_time()  # of this process alone, on however busy a machine
    assert area.covers(Window(49_000, 49_000, 2048, 2048)).all()
    for i in range(200):
        assert not area.covers(Window(0, 5 * i, 2048, 2048)).any()
    assert 0 < area.covers(Window(50_000, 79_000, 2048, 2048)).mean() < 1
    houses = [box(x, y, x + 20, y + 20) for x in range(0, 100_000, 900) for y in range(0, 100_000, 900)]
    area = AreaOfInterest(MultiPolygon(houses), Window(0, 0, 100_000, 100_000))
    assert area.covers(Window(50_000, 50_000, 2048, 2048)).sum() == 4 * 400
    assert time.process_time() - began < 5


# Refusals


def test_what_is_no_area(tmp_path):
    for shapes, said in (
        ([Point(0, 0)], "holds Point, where polygons"),
        ([on_ground(star(), GRID), LineString([(0, 0), (1, 1)])], "holds LineString, Polygon, where polygons"),
        ([Polygon()], "holds no shapes"),
        (
            [on_ground(Polygon([(0, 0), (9, 9), (9, 0), (0, 9)]), GRID)],
            r"polygon 1 is not valid \(Self-intersection.*Fix",
        ),
    ):
        path = written(tmp_path / f"{len(list(tmp_path.iterdir()))}.gpkg", shapes)
        with pytest.raises(ConfigError, match=said) as caught:
            AreaOfInterest.from_file(path, GRID)
        assert str(path) in str(caught.value)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "a.gpkg").write_text("hello")
    (tmp_path / "a.parquet").write_text("hello")
    for name, said in {
        "a.csv": "its layers are none with geometry",
        "a.gpkg": "cannot be read",
        "a.parquet": "cannot be read",
        "none.gpkg": "no such file",
    }.items():
        with pytest.raises(ConfigError, match=rf"{name}: {said}"):
            AreaOfInterest.from_file(tmp_path / name, GRID)


def test_an_area_elsewhere_is_refused_with_both_extents(tmp_path):
    path = written(tmp_path / "a.gpkg", [box(11, 47, 12, 48)], CRS.from_epsg(4326))
    with pytest.raises(ConfigError) as caught:
        AreaOfInterest.from_file(path, GRID)
    text = str(caught.value)
    assert "spans west 11, south 47, east 12, north 48 (WGS 84)" in text
    assert "the scene west 500000.25, south 4649686.75, east 500125.25, north 4649776.75 (WGS 84 / UTM" in text
    for box_text in ("0,0,1,1", "-170,10,-160,20,EPSG:4326", "500125.25,4649700,500130,4649710"):
        with pytest.raises(ConfigError, match="does not overlap the scene"):
            AreaOfInterest.from_bbox(box_text, GRID)


def test_a_crs_on_one_side_only_is_refused(tmp_path):
    bare = Grid(180, 250, NORTH_UP, None)
    shape = on_ground(star(), GRID)
    with pytest.raises(ConfigError, match="has no CRS, where one was needed"):
        AreaOfInterest.from_file(written(tmp_path / "a.gpkg", [shape], None), GRID)
    with pytest.raises(ConfigError, match="has the CRS WGS 84 / UTM zone 33N, where none was needed"):
        AreaOfInterest.from_file(written(tmp_path / "b.gpkg", [shape]), bare)
    with pytest.raises(ConfigError, match="has a CRS, but the scene has none"):
        AreaOfInterest.from_bbox("0,0,1,1,EPSG:4326", bare)
    area = AreaOfInterest.from_file(tmp_path / "a.gpkg", bare)
    np.testing.assert_array_equal(whole(area), reference(star()))
