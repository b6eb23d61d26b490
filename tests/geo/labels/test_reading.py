"""Laws of labels on a scene's grid, from rasters of any grid and from vector files."""

import geopandas
import numpy as np
import pandas
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform as move

from geood.constants import IGNORE
from geood.errors import DataError
from geood.geo.grid import Grid, Window
from geood.geo.labels.reading import open_labels, why_not_shared
from geood.geo.labels.rules import LabelRules

UTM = CRS.from_epsg(32633)
GRID = Grid(60, 80, Affine(0.5, 0, 500000, 0, -0.5, 5000000), UTM)
GRIDS = {
    "north-up": GRID,
    "rotated": Grid(60, 80, Affine(0.4, 0.2, 500000, 0.2, -0.4, 5000000), UTM),
    "south-up": Grid(60, 80, Affine(0.5, 0, 500000, 0, 0.5, 5000000), UTM),
}


def write_ids(path, ids, grid, **options):
    shape = {"count": 1, "height": ids.shape[0], "width": ids.shape[1], "dtype": ids.dtype}
    profile = {"driver": "GTiff", "crs": grid.crs, "transform": grid.transform, **shape, **options}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(ids, 1)
    return path


def some_ids(height, width, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 6, (height, width)).astype(dtype)


def squares(path, grid, ids, *, crs=None, attribute="kind", **kwargs):
    """A vector file with one square of 10 pixels for each id, down the diagonal."""
    shapes = []
    for i in range(len(ids)):
        corners = [(10 * i, 10 * i), (10 * i + 10, 10 * i), (10 * i + 10, 10 * i + 10), (10 * i, 10 * i + 10)]
        shapes.append(shapely.Polygon([grid.transform @ c for c in corners]))
    frame = geopandas.GeoDataFrame(
        {attribute: ids, "note": "x"}, geometry=shapes, crs=None if grid.crs is None else UTM
    )
    frame = frame.to_crs(crs) if crs else frame
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path, **kwargs)
    return path


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_labels_on_the_same_grid_are_read_as_they_are(tmp_path, grid, dtype):
    ids = some_ids(60, 80, dtype)
    with open_labels([write_ids(tmp_path / "l.tif", ids, grid)], grid) as labels:
        whole = labels.read(grid.window)
        part = labels.read(Window(7, 11, 20, 30))
        over = labels.read(Window(-5, 70, 20, 30))
    assert whole.dtype == np.int64
    np.testing.assert_array_equal(whole, ids)
    np.testing.assert_array_equal(part, ids[7:27, 11:41])
    np.testing.assert_array_equal(over[5:, :10], ids[:15, 70:])
    assert (over[:5] == 255).all() and (over[:, 10:] == 255).all()


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_labels_on_a_coarser_shifted_grid_are_the_nearest(tmp_path, grid):
    ids = some_ids(12, 16)
    coarse = Grid(12, 16, grid.transform @ Affine.translation(10, 5) @ Affine.scale(4), UTM)
    with open_labels([write_ids(tmp_path / "l.tif", ids, coarse)], grid) as labels:
        seen = labels.read(grid.window)
    wanted = np.full((60, 80), 255)
    wanted[5:53, 10:74] = np.repeat(np.repeat(ids, 4, 0), 4, 1)
    np.testing.assert_array_equal(seen, wanted)


def test_labels_in_another_crs_equal_a_lookup_of_each_pixel(tmp_path):
    ids = some_ids(40, 40)
    lon, lat = move(UTM, "EPSG:4326", [GRID.bounds[0] + 5], [GRID.bounds[3] - 5])
    degrees = Grid(40, 40, Affine(1e-5, 0, lon[0], 0, -7e-6, lat[0]), CRS.from_epsg(4326))
    with open_labels([write_ids(tmp_path / "l.tif", ids, degrees)], GRID) as labels:
        seen = labels.read(GRID.window)
        np.testing.assert_array_equal(labels.read(Window(20, 30, 25, 35)), seen[20:45, 30:65])
    rows, cols = np.mgrid[:60, :80] + 0.5
    x, y = GRID.transform @ (cols.ravel(), rows.ravel())
    lon, lat = (np.array(v) for v in move(UTM, "EPSG:4326", x, y))
    col, row = ~degrees.transform @ (lon, lat)
    inside = (row >= 0) & (row < 40) & (col >= 0) & (col < 40)
    wanted = np.where(inside, ids[row.astype(int).clip(0, 39), col.astype(int).clip(0, 39)], 255).reshape(60, 80)
    assert (seen == wanted).mean() > 0.999 and (seen != 255).sum() > 500


def test_nodata_of_labels_is_no_label_and_the_first_file_counts(tmp_path):
    first, second = np.full((60, 80), 1, np.uint8), np.full((60, 80), 2, np.uint8)
    first[:, 40:] = 99
    paths = [write_ids(tmp_path / "a.tif", first, GRID, nodata=99), write_ids(tmp_path / "b.tif", second, GRID)]
    with open_labels(paths, GRID) as labels:
        seen = labels.read(GRID.window)
    assert (seen[:, :40] == 1).all() and (seen[:, 40:] == 2).all()
    with open_labels(paths[:1], GRID) as labels:
        assert (labels.read(GRID.window)[:, 40:] == 255).all()


def test_photos_match_by_size(tmp_path):
    photo, ids = Grid(6, 8, Affine.identity(), None), some_ids(6, 8)
    with open_labels([write_ids(tmp_path / "l.tif", ids, photo)], photo) as labels:
        np.testing.assert_array_equal(labels.read(photo.window), ids)
    with pytest.raises(DataError, match="6 x 8 pixels for a scene of 60 x 80"):
        open_labels([tmp_path / "l.tif"], GRID)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb", ".parquet"])
@pytest.mark.parametrize("crs", [None, "EPSG:4326"])
def test_shapes_become_their_ids(tmp_path, suffix, crs):
    path = squares(tmp_path / f"l{suffix}", GRID, [3, 0, 4], crs=crs)
    with open_labels([path], GRID, LabelRules("kind")) as labels:
        seen = labels.read(GRID.window)
        np.testing.assert_array_equal(labels.read(Window(5, 5, 20, 20)), seen[5:25, 5:25])
        assert (labels.read(Window(40, 0, 10, 10)) == 255).all()
    wanted = np.full((60, 80), 255)
    for i, value in enumerate([3, 0, 4]):
        wanted[10 * i : 10 * i + 10, 10 * i : 10 * i + 10] = value
    np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_shapes_fall_on_any_grid(tmp_path, grid):
    with open_labels([squares(tmp_path / "l.gpkg", grid, [5, 6])], grid, LabelRules("kind")) as labels:
        seen = labels.read(grid.window)
    assert (seen[:10, :10] == 5).all() and (seen[10:20, 10:20] == 6).all() and (seen != 255).sum() == 200


def test_a_shape_without_id_is_no_label(tmp_path):
    with open_labels([squares(tmp_path / "l.gpkg", GRID, [5, None, 6])], GRID, LabelRules("kind")) as labels:
        seen = labels.read(GRID.window)
    assert sorted(np.unique(seen)) == [5, 6, 255]


@pytest.mark.parametrize("wrong", [-1, 256, 300, 1.5, float("inf")])
def test_a_class_id_is_a_whole_number_of_a_byte(tmp_path, wrong):
    path = squares(tmp_path / "l.gpkg", GRID, [1, wrong])
    with pytest.raises(
        DataError, match=rf"l\.gpkg: attribute kind must hold class ids, .* 0 to 254 .*; got {wrong:g}$"
    ):
        open_labels([path], GRID, LabelRules("kind"))


def test_255_is_no_label_in_shapes_too(tmp_path):
    path = squares(tmp_path / "l.gpkg", GRID, [0, 254, IGNORE])
    with open_labels([path], GRID, LabelRules("kind")) as labels:
        assert sorted(np.unique(labels.read(GRID.window))) == [0, 254, 255]


def test_rasters_side_by_side_can_be_shared_and_others_cannot(tmp_path):
    ids = some_ids(60, 80)

    def at(name, right, crs=UTM):
        return write_ids(tmp_path / name, ids, Grid(60, 80, Affine(0.5, 0, 500000 + right, 0, -0.5, 5000000), crs))

    first, next_to, over = at("a.tif", 0), at("b.tif", 40), at("c.tif", 50)
    assert why_not_shared([first, next_to]) is None
    assert why_not_shared([first, over]) is None
    assert why_not_shared([first, over, next_to]) == "c.tif and b.tif cover the same ground"
    assert why_not_shared([first, at("bare.tif", 0, None)]) == "bare.tif has no CRS"
    shapes = [squares(tmp_path / name, GRID, [1]) for name in ("l.gpkg", "m.gpkg")]
    assert why_not_shared(shapes) is None  # of which the first lies on top
    with pytest.raises(DataError, match="labels are vector files or rasters, not both"):
        why_not_shared([shapes[0], first])
    degrees = tmp_path / "degrees.tif"
    lon, lat = move(UTM, "EPSG:4326", [500000], [5000000])
    write_ids(degrees, ids, Grid(60, 80, Affine(5e-6, 0, lon[0], 0, -5e-6, lat[0]), CRS.from_epsg(4326)))
    assert why_not_shared([first, degrees]) == "a.tif and degrees.tif cover the same ground"
    assert why_not_shared([next_to, degrees]) is None


def test_labels_that_cannot_be_used_are_refused(tmp_path):
    far = Grid(60, 80, Affine(0.5, 0, 900000, 0, -0.5, 5000000), UTM)
    ids = some_ids(60, 80)

    def refused(match, paths, attribute=None):
        with pytest.raises(DataError, match=match):
            open_labels(paths, GRID, LabelRules(attribute)).read(GRID.window)

    refused(
        r"far\.tif: these labels do not overlap the scene, .* UTM zone 33N", [write_ids(tmp_path / "far.tif", ids, far)]
    )
    refused(r"missing\.tif: no such file", [tmp_path / "missing.tif"])
    (tmp_path / "text.tif").write_text("x")
    refused(r"text\.tif: cannot be read", [tmp_path / "text.tif"])
    refused("no labels", [])
    refused(r"holds fractions such as \d\.5", [write_ids(tmp_path / "half.tif", ids / np.float32(2), GRID)])
    with rasterio.open(
        tmp_path / "rgb.tif", "w", driver="GTiff", count=3, height=60, width=80, dtype="uint8", crs=UTM
    ) as dataset:
        dataset.write(np.zeros((3, 60, 80), np.uint8))
    refused("has 3 bands, but labels are one band", [tmp_path / "rgb.tif"])
    path = squares(tmp_path / "l.gpkg", GRID, [1, 2])
    refused(r"no attribute knd; did you mean kind\? set data\.label_attribute to one of: kind, note", [path], "knd")
    refused(r"which attribute holds the class id\? set data\.label_attribute to one of: kind, note", [path])
    refused("note must hold class ids.*got 'x'", [path], "note")
    refused("labels are vector files or rasters, not both", [path, tmp_path / "rgb.tif"], "kind")
    refused("no shape with a kind overlaps", [squares(tmp_path / "far.gpkg", far, [1])], "kind")
    table = tmp_path / "table.gpkg"
    pyogrio.write_dataframe(pandas.DataFrame({"kind": [1]}), table)
    refused("its layers are none with geometry", [table], "kind")
    refused("no shape has both", [squares(tmp_path / "none.gpkg", GRID, [None, None])], "kind")
    refused(
        "has no CRS, where one was needed", [squares(tmp_path / "bare.gpkg", Grid(9, 9, GRID.transform), [1])], "kind"
    )
    (tmp_path / "bad.gpkg").write_text("x")
    refused(r"bad\.gpkg: cannot be read as a vector file", [tmp_path / "bad.gpkg"], "kind")
    (tmp_path / "bad.parquet").write_text("x")
    refused(r"bad\.parquet: cannot be read as a vector file", [tmp_path / "bad.parquet"], "kind")
