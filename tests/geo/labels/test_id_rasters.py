"""Laws of rasters of class ids: whatever their type and grid, a pixel has the id that lies at its centre, or 255."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.warp import transform as move

from geood.errors import DataError
from geood.geo.grid import Grid, Window
from geood.geo.labels import id_rasters
from geood.geo.labels.id_rasters import IdRaster, open_id_raster, read_ids
from support.rasters import HALF_METRE, UTM, write_raster

GRID = Grid(60, 80, HALF_METRE, CRS.from_string(UTM))
TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64", "float32", "float64"]
PLACES = {  # affine from a label's pixels to the scene's, and the label's height and width
    "same": (Affine.identity(), 60, 80),
    "part": (Affine.translation(20, 10), 30, 40),
    "shifted": (Affine.translation(0.3, -0.4), 60, 80),
    "half a pixel": (Affine.translation(0.5, 0.5), 60, 80),
    "finer": (Affine.translation(5, 5) @ Affine.scale(1 / 3), 100, 90),
    "coarser": (Affine.translation(-4, 8) @ Affine.scale(4), 10, 30),
    "south-up": (Affine.translation(0, 60) @ Affine.scale(1, -1), 60, 80),
    "rotated": (Affine.translation(30, -10) @ Affine.rotation(30), 50, 50),
}


def some_ids(height, width, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 6, (height, width)).astype(dtype)


def looked_up(ids, own, target):
    """The reference: for each pixel centre, the id of the pixel that it falls in."""
    rows, cols = np.mgrid[: target.height, : target.width] + 0.5
    x, y = target.transform @ (cols, rows)
    if own.crs != target.crs:
        x, y = (np.reshape(v, rows.shape) for v in move(target.crs, own.crs, x.ravel(), y.ravel()))
    col, row = (np.floor(np.asarray(v) + 1e-6).astype(int) for v in ~own.transform @ (np.asarray(x), np.asarray(y)))
    height, width = ids.shape
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    return np.where(inside, ids[row.clip(0, height - 1), col.clip(0, width - 1)].astype(np.int64), 255)


@pytest.mark.parametrize("dtype", TYPES)
def test_ids_are_those_at_the_pixel_centres_whatever_type_and_grid(tmp_path, dtype):
    for name, (place, height, width) in PLACES.items():
        ids = some_ids(height, width, dtype)
        own = Grid(height, width, GRID.transform @ place, GRID.crs)
        with IdRaster(write_raster(tmp_path / f"{name}.tif", ids, transform=own.transform)) as raster:
            seen = raster.onto(GRID)
            assert seen.dtype == np.int64
            np.testing.assert_array_equal(seen, looked_up(ids, own, GRID), err_msg=name)
            part = Window(13, 21, 30, 33)
            np.testing.assert_array_equal(raster.onto(GRID[part]), seen[part.slices], err_msg=name)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("how", ["nodata", "mask", "alpha"])
def test_what_is_declared_as_none_is_255_on_any_grid(tmp_path, dtype, how):
    ids = some_ids(60, 80, dtype)
    path = tmp_path / "l.tif"
    if how == "nodata":
        write_raster(path, ids, nodata=3)
    elif how == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write_raster(path, ids)
            with rasterio.open(path, "r+") as file:
                file.write_mask(ids != 3)
    else:
        write_raster(path, np.stack([ids, (ids != 3).astype(dtype)]), photometric="minisblack", alpha="unspecified")
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    wanted = np.where(ids == 3, 255, ids.astype(np.int64))
    with IdRaster(path) as raster:
        np.testing.assert_array_equal(raster.onto(GRID), wanted)
        shifted = Grid(60, 80, GRID.transform @ Affine.translation(7.2, 5.4), GRID.crs)
        np.testing.assert_array_equal(raster.onto(shifted)[:54, :72], wanted[5:59, 7:79])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32632", "EPSG:3857"])
def test_labels_in_another_crs_equal_a_lookup_of_each_pixel(tmp_path, crs):
    x, y = move(UTM, crs, [GRID.bounds[0] + 4, GRID.bounds[0] + 5], [GRID.bounds[3] - 4.03, GRID.bounds[3] - 4.77])
    own = Grid(50, 60, Affine((x[1] - x[0]) / 2, 0, x[0], 0, (y[1] - y[0]) / 2, y[0]), CRS.from_string(crs))
    ids = some_ids(50, 60)
    with IdRaster(write_raster(tmp_path / "l.tif", ids, crs=crs, transform=own.transform)) as raster:
        seen = raster.onto(GRID)
    assert (seen == looked_up(ids, own, GRID)).mean() > 0.999  # but for centres on an edge, to a millionth of a pixel
    assert (seen != 255).sum() > 800


def test_a_crs_without_a_place_for_some_points_leaves_them_unlabelled(tmp_path):
    """Far from its meridian a Mercator grid has no place in UTM; at the date line longitudes jump."""
    own = Grid(40, 80, Affine(4.5, 0, -180, 0, -4.5, 90), CRS.from_epsg(4326))
    ids = some_ids(40, 80)
    path = write_raster(tmp_path / "world.tif", ids, crs="EPSG:4326", transform=own.transform)
    wide = Grid(30, 60, Affine(700_000, 0, -21_000_000, 0, -700_000, 10_500_000), CRS.from_epsg(3857))
    line = Grid(20, 100, Affine(10_000, 0, 300_000, 0, -10_000, 200_000), CRS.from_epsg(32660))
    pole = Grid(40, 40, Affine(50_000, 0, -1_000_000, 0, -50_000, 1_000_000), CRS.from_epsg(3413))
    with IdRaster(path) as raster:
        for target in (wide, line, pole):
            seen = raster.onto(target)
            rows, cols = np.mgrid[: target.height, : target.width] + 0.5
            x, y = target.transform @ (cols, rows)
            lon, lat = (np.reshape(v, x.shape) for v in move(target.crs, own.crs, x.ravel(), y.ravel()))
            sure = np.isfinite(lon) & (np.abs(lon) < 179.9) & (np.abs(lat) < 89.9)
            row, col = ((90 - lat[sure]) // 4.5).astype(int), ((lon[sure] + 180) // 4.5).astype(int)
            assert sure.mean() > 0.5
            assert (seen[sure] == ids[row, col]).mean() > 0.999
    outside = Grid(5, 5, Affine(1000, 0, 9e9, 0, -1000, 9e9), CRS.from_epsg(32633))
    with IdRaster(path) as raster, pytest.raises(DataError, match=r"world\.tif: cannot be reprojected to EPSG:32633"):
        raster.onto(outside)


def test_a_much_finer_raster_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(id_rasters, "WINDOW_PX", 500)
    place = GRID.transform @ Affine.translation(1, 1) @ Affine.scale(1 / 4)
    ids = some_ids(200, 240)
    own = Grid(200, 240, place, GRID.crs)
    with IdRaster(write_raster(tmp_path / "l.tif", ids, transform=place)) as raster:
        np.testing.assert_array_equal(raster.onto(GRID), looked_up(ids, own, GRID))


def test_the_table_of_ids_maps_what_is_known_and_nothing_else(tmp_path):
    """255 in a black and white mask is a class if the table says so; masked pixels and the surroundings are not."""
    mask = np.where(some_ids(30, 40) > 2, np.uint8(255), np.uint8(0))
    for nodata in (None, 255, 7):
        with IdRaster(write_raster(tmp_path / "l.tif", mask, nodata=nodata), {255: 1, 0: 4}) as raster:
            seen = raster.onto(GRID)
        np.testing.assert_array_equal(seen[:30, :40], np.where(mask == 255, 1, 4))
        assert (seen[30:] == 255).all() and (seen[:, 40:] == 255).all()
    ids = some_ids(30, 40)
    with IdRaster(write_raster(tmp_path / "m.tif", ids, nodata=2), {0: 1, 1: 0, 3: 255}) as raster:
        seen = raster.onto(GRID)[:30, :40]
    table = np.array([1, 0, 255, 255, 4, 5])
    np.testing.assert_array_equal(seen, table[ids])


@pytest.mark.parametrize(
    ("dtype", "number", "said"),
    [
        ("float64", 1e300, r"holds 1e\+300, where class ids are integers .*gdal_edit.py -a_nodata 1e\+300"),
        ("float32", -3.4028235e38, r"holds -3\.4028234663852886e\+38, where"),
        ("float32", np.inf, "holds inf, where"),
        ("uint64", 2**64 - 1, "holds 18446744073709551615, where"),
        ("int64", -(2**63), "holds -9223372036854775808, where"),
        ("uint32", 2**32 - 1, "holds 4294967295, where"),
        ("float32", 0.5, r"holds fractions such as 0\.5, not class ids"),
    ],
)
def test_numbers_that_are_no_ids_are_told_as_they_are(tmp_path, dtype, number, said):
    ids = some_ids(60, 80, dtype)
    ids[20, 30] = np.array(number, dtype)
    with IdRaster(write_raster(tmp_path / "l.tif", ids)) as raster, pytest.raises(DataError, match=rf"l\.tif: {said}"):
        raster.onto(GRID)
    if "64" not in dtype:  # rasterio hands on a nodata value as a float
        with IdRaster(write_raster(tmp_path / "m.tif", ids, nodata=float(ids[20, 30]))) as raster:
            assert raster.onto(GRID)[20, 30] == 255


def test_nan_is_no_label_and_far_ids_are_passed_on(tmp_path):
    ids = some_ids(60, 80, "float32")
    ids[:10], ids[20:30] = np.nan, -9999
    with open_id_raster(write_raster(tmp_path / "l.tif", ids)) as dataset:
        seen = read_ids(tmp_path / "l.tif", dataset, GRID.window)
    assert (seen[:10] == 255).all() and (seen[20:30] == -9999).all()
    np.testing.assert_array_equal(seen[30:], ids[30:])
