"""Laws of pixel geometry: tiles partition the scene, read windows cover them, sub-grids agree."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod

from geood.geo.grid import Grid, Window, metres_per_unit, oblong, resampled, tile_grid

sizes = st.integers(1, 300)


@given(height=sizes, width=sizes, tile=st.sampled_from([32, 64, 96]), halo=st.sampled_from([0, 32, 64]))
def test_write_windows_partition_the_scene(height, width, tile, halo):
    seen = np.zeros((height, width), np.int32)
    for one in tile_grid(height, width, tile_px=tile, halo_px=halo):
        seen[one.write.slices] += 1
    assert (seen == 1).all()


@given(height=sizes, width=sizes, tile=st.sampled_from([32, 64]), halo=st.sampled_from([0, 32]))
def test_read_windows_hold_write_windows_with_their_halo_in_phase(height, width, tile, halo):
    alone = height <= tile and width <= tile  # such a scene has no seam, and needs no halo
    given, halo = halo, 0 if alone else halo
    for one in tile_grid(height, width, tile_px=tile, halo_px=given):
        assert one.halo_px == halo
        assert one.read.row == one.write.row - halo and one.read.col == one.write.col - halo
        assert one.read.row + one.read.height >= one.write.row + one.write.height + halo
        assert one.read.col + one.read.width >= one.write.col + one.write.width + halo
        assert one.read.row % 32 == one.read.col % 32 == one.read.height % 32 == one.read.width % 32 == 0
        assert one.read.height <= tile + 2 * halo and one.read.width <= tile + 2 * halo
        rows, cols = one.core
        assert rows.stop - rows.start == one.write.height and cols.stop - cols.start == one.write.width


@pytest.mark.parametrize(("height", "tile", "halo"), [(0, 32, 0), (10, 33, 0), (10, 0, 0), (10, 32, 5), (10, 32, -32)])
def test_impossible_tilings_are_refused(height, tile, halo):
    with pytest.raises(ValueError):
        list(tile_grid(height, 10, tile_px=tile, halo_px=halo))


@given(row=st.integers(-50, 50), col=st.integers(-50, 50), height=sizes, width=sizes)
def test_within_is_the_intersection(row, col, height, width):
    outer = Window(0, 0, 40, 60)
    canvas = np.zeros((500, 500), bool)
    canvas[100:140, 100:160] = True
    mine = np.zeros_like(canvas)
    mine[100 + row : 100 + row + height, 100 + col : 100 + col + width] = True
    cut = Window(row, col, height, width).within(outer)
    assert cut.height * cut.width == (canvas & mine).sum()


def test_a_window_of_a_grid_lies_where_its_pixels_lie():
    transform = Affine(0.5, 0.1, 1000.25, -0.1, -0.5, 2000.75)
    grid = Grid(100, 200, transform, None)
    part = grid[Window(30, 40, 10, 20)]
    assert part.transform @ (0, 0) == transform @ (40, 30)
    assert part.transform @ (20, 10) == pytest.approx(transform @ (60, 40))
    assert (part.height, part.width) == (10, 20)


def test_pixel_size_and_bounds_of_a_rotated_grid():
    grid = Grid(10, 20, Affine.rotation(30) @ Affine.scale(2, -3), None)
    assert grid.pixel_size == pytest.approx((2, 3))
    xmin, ymin, xmax, ymax = grid.bounds
    corners = [grid.transform @ (x, y) for x in (0, 20) for y in (0, 10)]
    assert all(xmin <= x <= xmax and ymin <= y <= ymax for x, y in corners)


@pytest.mark.parametrize("turn", [0, 30, 45, 90, 150])
@pytest.mark.parametrize(("epsg", "unit"), [(4326, metres_per_unit(CRS.from_epsg(4326), 25, 60)), (32635, (1, 1))])
def test_the_ground_of_a_pixel_does_not_depend_on_how_its_grid_is_turned(epsg, unit, turn):
    """Pixels of half a metre, at a latitude at which a degree of longitude is half as long as one of latitude."""
    corner = (25, 60) if epsg == 4326 else (389_000, 6_653_000)
    scaled = Affine.scale(1 / unit[0], 1 / unit[1]) @ Affine.rotation(turn) @ Affine.scale(0.5, -0.5)
    grid = Grid(200, 200, Affine.translation(*corner) @ scaled, CRS.from_epsg(epsg))
    assert grid.resolution_m == pytest.approx(0.5, rel=1e-3)
    assert grid.pixel_m2 == pytest.approx(0.25, rel=2e-3)
    assert grid.upright_size == pytest.approx((0.5 / unit[0], 0.5 / unit[1]))


@pytest.mark.parametrize(
    ("epsg", "transform", "expected"),
    [
        (4326, Affine(1e-5, 0, 25, 0, -1e-5, 60), "0.558 m wide and 1.11 m high on the ground"),
        (4326, Affine(0, 1e-5, 25, 1e-5, 0, 60), "1.11 m wide and 0.558 m high on the ground"),
        (4326, Affine(1e-5, 0, 25, 0, -1e-5, 20), None),
        (3857, Affine(1, 0, 3e6, 0, -1, 8.4e6), None),
        (32635, Affine(0.5, 0, 389_000, 0, -0.5, 6_653_000), None),
        (
            32635,
            Affine.translation(389_000, 6_653_000) @ Affine.rotation(30) @ Affine.scale(0.5, -1),
            "0.5 m wide and 1",
        ),
    ],
)
def test_pixels_that_are_no_squares_on_the_ground_are_told(epsg, transform, expected):
    told = oblong(Grid(100, 100, transform, CRS.from_epsg(epsg)))
    assert told is None if expected is None else str(told).startswith(expected)
    assert oblong(Grid(100, 100, transform, None)) is None


@pytest.mark.parametrize(("epsg", "degrees"), [(4326, (0, 60)), (4326, (-10, 10)), (4326, (50, 50.1))])
def test_the_mean_ground_of_a_pixel_is_that_of_the_whole_grid(epsg, degrees):
    """However many degrees it spans; pixels at the centre tell it of small grids alone."""
    south, north = degrees
    grid = Grid(300, 400, Affine(20 / 400, 0, 5, 0, -(north - south) / 300, north), CRS.from_epsg(epsg))
    west, east, along = 5.0, 25.0, np.linspace(5, 25, 2001)
    ring = [*((x, south) for x in along), *((x, north) for x in along[::-1])]
    whole = abs(Geod(ellps="WGS84").polygon_area_perimeter(*zip(*ring, strict=True))[0])
    assert grid.pixel_m2 * 300 * 400 == pytest.approx(whole, rel=1e-3)
    assert (west, east) == (along[0], along[-1])
    if north - south > 30:
        assert grid.resolution_m**2 * 300 * 400 != pytest.approx(whole, rel=0.03)


def test_the_mean_ground_of_a_pixel_is_known_with_a_crs_alone():
    assert Grid(10, 10, Affine.identity(), None).pixel_m2 is None
    utm = Grid(100, 100, Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000), CRS.from_epsg(32633))
    assert utm.pixel_m2 == pytest.approx(utm.resolution_m**2, rel=1e-6)
    mercator = Grid(100, 100, Affine(60_000, 0, 0, 0, -60_000, 8_000_000), CRS.from_epsg(3857))
    assert 0 < mercator.pixel_m2 < 60_000**2
    beyond = Grid(100, 100, Affine(1e6, 0, -5e7, 0, -1e6, 5e7), CRS.from_epsg(32633))
    assert beyond.pixel_m2 == pytest.approx(beyond.resolution_m**2)


def test_metres_per_unit():
    assert metres_per_unit(CRS.from_epsg(32633), 500_000, 4_600_000) == pytest.approx((1, 1), abs=1e-3)
    assert metres_per_unit(CRS.from_epsg(4326), 15.0, 60.0) == pytest.approx((55_800, 111_412), rel=1e-3)
    assert metres_per_unit(CRS.from_epsg(3857), 0.0, 8_399_738.0) == pytest.approx((0.5, 0.5), rel=1e-2)
    assert metres_per_unit(CRS.from_epsg(2263), 1e6, 2e5) == pytest.approx((0.3048, 0.3048), rel=1e-3)
    local = CRS.from_wkt('LOCAL_CS["yard",UNIT["foot",0.3048],AXIS["x",EAST],AXIS["y",NORTH]]')
    assert metres_per_unit(local, 0, 0) == pytest.approx((0.3048, 0.3048))


def test_resolution_is_that_on_the_ground():
    mercator = Grid(100, 100, Affine(2, 0, 0, 0, -2, 8_399_738.0), CRS.from_epsg(3857))
    assert mercator.resolution_m == pytest.approx(1.0, rel=1e-2)
    assert Grid(100, 100, Affine.identity(), None).resolution_m is None


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.sampled_from([64, 128, 320]),
    st.sampled_from([0.125, 0.4, 0.83, 1.7, 4]),
)
def test_tiles_read_at_another_scale_hold_all_that_their_pixels_ask_for(height, width, tile_px, scale):
    seen = np.zeros((height, width), int)
    for tile in tile_grid(height, width, tile_px=tile_px, halo_px=32, scale=scale):
        seen[tile.write.slices] += 1
        for start, length, origin, size in (
            (tile.write.row, tile.write.height, tile.read.row, tile.read.height),
            (tile.write.col, tile.write.width, tile.read.col, tile.read.width),
        ):
            assert size % 32 == 0 and origin % 32 == 0
            first, second, share = resampled(start, length, scale, origin=origin, size=size)
            assert (first >= tile.halo_px).all() and (second < size - tile.halo_px).all()
            centres = (np.arange(start, start + length) + 0.5) * scale - 0.5
            alone = height <= tile_px and width <= tile_px
            inside = (centres >= 0) & (centres <= size - 1) if alone else np.ones(length, bool)
            found = origin + first + share * (second - first)
            np.testing.assert_allclose(found[inside], centres[inside], atol=1e-9)
    assert (seen == 1).all()


def test_resampling_is_the_same_in_whatever_tile():
    whole = resampled(0, 500, 0.4, origin=0, size=600)
    part = resampled(200, 100, 0.4, origin=64, size=128)
    np.testing.assert_array_equal(part[0] + 64, whole[0][200:300])
    np.testing.assert_array_equal(part[2], whole[2][200:300])
