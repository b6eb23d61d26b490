"""Laws of burnt labels: they are the shapes, pixel for pixel, made once and again when what was drawn has changed."""

import os

import geopandas as gpd
import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import box

from geood.errors import DataError, OutputError
from geood.geo.grid import Grid
from geood.geo.labels.burnt import burn_labels
from geood.geo.labels.reading import open_labels
from geood.geo.labels.rules import LabelRules

UTM = CRS.from_epsg(32633)
RULES = LabelRules("class", names={"land": 0, "road": 1})
GRIDS = {
    "north-up": Grid(60, 80, Affine(0.5, 0, 500_000, 0, -0.5, 5_000_030), UTM),
    "rotated": Grid(60, 80, Affine(0.4, 0.2, 500_000, 0.2, -0.4, 5_000_020), UTM),
}
FINE = Grid(300, 300, Affine(0.2, 0, 500_000, 0, -0.2, 5_000_060), UTM)
FAR = Grid(60, 80, Affine(0.5, 0, 700_000, 0, -0.5, 5_000_030), UTM)


def drawn(path, *rows):
    shapes = [box(500_000 + a, 5_000_000 + b, 500_000 + c, 5_000_000 + d) for _, (a, b, c, d) in rows]
    gpd.GeoDataFrame({"class": [name for name, _ in rows]}, geometry=shapes, crs=UTM).to_file(path)
    return path


@pytest.mark.parametrize("background", [None, 1])
@pytest.mark.parametrize("kind", GRIDS)
def test_a_burnt_raster_is_the_shapes(tmp_path, kind, background):
    grid, rules = GRIDS[kind], RULES._replace(background=background)
    path = drawn(tmp_path / "l.gpkg", ("land", (3, 3, 22, 17)), ("road", (12, 9, 31, 19)))
    [burnt] = burn_labels([path], {tmp_path / "scene.tif": grid, tmp_path / "far.tif": FAR}, rules, tmp_path / "burnt")
    with open_labels([path], grid, rules) as shapes, open_labels([burnt], grid) as raster:
        np.testing.assert_array_equal(raster.read(grid.window), shapes.read(grid.window))
        assert set(np.unique(raster.read(grid.window))) == ({0, 1} if background else {0, 1, 255})


def test_it_is_made_once_and_again_after_a_change(tmp_path, caplog):
    grid, folder = GRIDS["north-up"], tmp_path / "burnt"
    images = {tmp_path / "a.tif": grid}
    rows = [("land", (3, 3, 22, 17)), ("road", (12, 9, 31, 19))]
    path = drawn(tmp_path / "l.gpkg", *rows)
    folder.mkdir()
    others = [folder / f"b.{'0' * 16}.tif", folder / "a.mine.tif"]  # of another image, and a person's own
    for other in others:
        other.touch()
    [first] = burn_labels([path], images, RULES, folder)
    assert (
        "labels overlap on 320 pixels, where the later drawn counts, as viewers show it: road over land 320"
        in caplog.text
    )
    written = first.stat().st_mtime_ns
    caplog.clear()
    assert burn_labels([path], images, RULES, folder) == (first,)
    assert first.stat().st_mtime_ns == written and not caplog.text
    first.write_bytes(first.read_bytes()[:100])  # cut: burnt again
    assert burn_labels([path], images, RULES, folder) == (first,) and first.stat().st_size > 100
    drawn(path, *rows, ("land", (0, 0, 5, 5)))
    [second] = burn_labels([path], images, RULES, folder)
    [third] = burn_labels([path], images, RULES._replace(background=0), folder)
    assert len({first, second, third}) == 3
    assert sorted(folder.iterdir()) == sorted({third, *others})  # of what was drawn before nothing is left


@pytest.mark.skipif(os.name == "nt", reason="files have no limits there")
def test_a_disk_that_is_full_in_the_end_leaves_no_raster(tmp_path):
    """A limit on the size of files is met where a full disk is: when GDAL closes the file, which raises nothing."""
    import resource

    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (400, 2))
    rows = [("road" if i % 2 else "land", (x, y, x + 3, y + 2)) for i, (x, y) in enumerate(corners)]
    path, images = drawn(tmp_path / "l.gpkg", *rows), {tmp_path / "a.tif": FINE}
    [whole] = burn_labels([path], images, RULES, tmp_path / "whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size - 1000, before[1]))
    try:
        with pytest.raises(OutputError, match="free space on that disk"):
            burn_labels([path], images, RULES, tmp_path / "burnt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(tmp_path / "burnt")


def test_names_are_cut_by_bytes_and_between_letters(tmp_path):
    path = drawn(tmp_path / "l.gpkg", ("land", (3, 3, 22, 17)))
    image = tmp_path / f"a{'ä' * 110}.tif"
    [burnt] = burn_labels([path], {image: GRIDS["north-up"]}, RULES, tmp_path / "burnt")
    assert burnt.name.startswith(f"a{'ä' * 39}.") and len(burnt.name.encode()) < 110


def test_without_a_shape_on_any_image_there_is_none(tmp_path):
    path = drawn(tmp_path / "l.gpkg", ("land", (3, 3, 22, 17)))
    assert burn_labels([path], {tmp_path / "far.tif": FAR}, RULES, tmp_path / "burnt") == ()
    with pytest.raises(DataError, match="no such file"):
        burn_labels([tmp_path / "no.gpkg"], {tmp_path / "far.tif": FAR}, RULES, tmp_path / "burnt")
