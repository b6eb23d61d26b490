"""Laws of mosaics: tiles put together equal the raster they were cut from, and nothing hides what is known."""

import warnings
import zipfile

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS

from geood.errors import DataError, OutputError
from geood.geo.grid import Grid, Window
from geood.geo.mosaic import write_mosaic
from geood.geo.paths import fingerprint, gdal_name
from geood.geo.scene import Scene
from support.cpu import slow
from support.http_server import serving
from support.rasters import HALF_METRE, picture, write_raster

HEIGHT, WIDTH = 90, 130
HOLE = (slice(20, 60), slice(30, 100))
ODD = CRS.from_proj4("+proj=tmerc +lat_0=47.123 +lon_0=11.456 +k=0.99987 +x_0=12345 +ellps=bessel +units=us-ft")
PLACES = {
    "north-up": (HALF_METRE, CRS.from_epsg(32633)),
    "rotated": (Affine(0.2, 0.1, 500000, 0.1, -0.2, 4500000), CRS.from_epsg(32633)),
    "south-up": (Affine(0.25, 0, 500000, 0, 0.25, 4500000), CRS.from_epsg(32633)),
    "degrees": (Affine(1e-5, 0, 11.1, 0, -1e-5, 47.3), CRS.from_epsg(4326)),
    "feet, no EPSG code": (Affine(0.8, 0, 1234.5, 0, -0.8, 6789.25), ODD),
    "no CRS": (HALF_METRE, None),
}


def at(col, row, transform=HALF_METRE):
    return transform @ Affine.translation(col, row)


def cut(folder, array, *, place=PLACES["north-up"], mask=None, rows=(0, 41), cols=(0, 70), **options):
    """Cut an array into tiles of their own files, each from a row and column to the next; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        for i, (top, bottom) in enumerate(zip(rows, (*rows[1:], array.shape[1]), strict=True)):
            for j, (left, right) in enumerate(zip(cols, (*cols[1:], array.shape[2]), strict=True)):
                part = array[:, top:bottom, left:right]
                transform = at(left, top, place[0])
                path = write_raster(folder / f"{i}_{j}.tif", part, transform=transform, crs=place[1], **options)
                if mask is not None:
                    with rasterio.open(path, "r+") as dataset:
                        dataset.write_mask(mask[top:bottom, left:right])
    return folder


def read(path, window=None):
    with Scene.open(path) as scene:
        return scene.read(window or scene.grid.window, scene.band_indexes)


def assert_same(path, whole):
    """Grid, bands and valid pixels of two scenes are the same."""
    with Scene.open(path) as one, Scene.open(whole) as other:
        assert (one.grid.height, one.grid.width, one.grid.crs) == (other.grid.height, other.grid.width, other.grid.crs)
        assert one.grid.transform.almost_equals(other.grid.transform, 1e-9)
        assert (one.band_names, one.dtype) == (other.band_names, other.dtype)
    (pixels, valid), (wanted, known) = read(path), read(whole)
    np.testing.assert_array_equal(valid, known)
    np.testing.assert_array_equal(pixels[:, known], wanted[:, known])


def with_hole():
    mask = np.ones((HEIGHT, WIDTH), bool)
    mask[HOLE] = False
    return mask


# Equal to the whole


@pytest.mark.parametrize("kind", ["none", "nodata", "mask", "alpha", "alpha and nodata"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", *slow("int8", "int16", "uint32", "int32", "float64")])
def test_tiles_put_together_equal_the_raster(tmp_path, dtype, kind):
    array = picture(HEIGHT, WIDTH, dtype=dtype, high=2**31 - 300 if dtype in ("int32", "uint32") else 120)
    mask, options = with_hole(), {}
    if "nodata" in kind:
        options["nodata"] = 7
        array[:, 70:80, :90] = 7
        array[0, 5:15] = 7  # at the nodata value in one band only: a measurement in 8 bits, else nodata
    if "alpha" in kind:
        array = np.concatenate([array, (mask * 100).astype(dtype)[None]])
        options |= {"photometric": "rgb", "alpha": "yes"}
    own = mask if kind == "mask" else None
    whole = cut(tmp_path / "whole", array, rows=(0,), cols=(0,), mask=own, **options) / "0_0.tif"
    known = read(whole)[1]
    assert known.all() == (kind == "none")
    assert_same(write_mosaic(cut(tmp_path / "tiles", array, mask=own, **options), tmp_path / "m.vrt"), whole)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_any_place_on_earth(tmp_path, place):
    array = picture(HEIGHT, WIDTH)
    whole = cut(tmp_path / "whole", array, place=place, rows=(0,), cols=(0,)) / "0_0.tif"
    tiles = cut(tmp_path / "tiles", array, place=place, rows=(0, 1, 50), cols=(0, 129))
    path = write_mosaic(tiles, tmp_path / "m.vrt")
    assert_same(path, whole)
    with Scene.open(path) as scene:
        np.testing.assert_allclose(scene.grid.transform, place[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nodata", [None, np.nan, -9999.0])
def test_floats_with_nan(tmp_path, nodata):
    array = picture(HEIGHT, WIDTH, dtype="float32")
    array[:, ~with_hole()] = np.nan
    array[1, 5, :] = np.nan
    if nodata == -9999:
        array[:, 80:85] = nodata
        array[2, 70] = nodata
    whole = cut(tmp_path / "whole", array, rows=(0,), cols=(0,), nodata=nodata) / "0_0.tif"
    assert_same(write_mosaic(cut(tmp_path / "tiles", array, nodata=nodata), tmp_path / "m.vrt"), whole)


def test_names_and_colours_of_bands_are_kept(tmp_path):
    array = picture(HEIGHT, WIDTH, bands=4, dtype="uint16")
    for folder, rows in (("whole", (0,)), ("tiles", (0, 40))):
        for path in cut(tmp_path / folder, array, rows=rows, cols=(0,), photometric="minisblack").iterdir():
            with rasterio.open(path, "r+") as dataset:
                for band, name in enumerate(("red", "red edge", "<nir> & more"), 1):
                    dataset.set_band_description(band, name)
    path = write_mosaic(tmp_path / "tiles", tmp_path / "m.vrt")
    assert_same(path, tmp_path / "whole" / "0_0.tif")
    with Scene.open(path) as scene:
        assert scene.band_names == ("red", "red edge", "<nir> & more", "band_4")


def test_one_tile_is_a_mosaic(tmp_path):
    for place in (HALF_METRE, Affine.identity()):
        crs = None if place.is_identity else CRS.from_epsg(32633)
        path = write_raster(tmp_path / "a.tif", picture(20, 30), transform=place, crs=crs)
        assert_same(write_mosaic(path, tmp_path / "m.vrt"), path)


# Gaps and overlaps


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("nodata", [None, 7])
def test_gaps_between_tiles_are_no_data(tmp_path, dtype, nodata):
    array = picture(20, 20, dtype=dtype)
    for i, (col, row) in enumerate(((0, 0), (50, 10), (5, 60))):
        write_raster(tmp_path / "in" / f"{i}.tif", array, transform=at(col, row), nodata=nodata)
    path = write_mosaic(tmp_path / "in", tmp_path / "m.vrt")
    pixels, valid = read(path)
    wanted = np.zeros((80, 70), bool)
    for col, row in ((0, 0), (50, 10), (5, 60)):
        wanted[row : row + 20, col : col + 20] = True
        np.testing.assert_array_equal(pixels[:, row : row + 20, col : col + 20], array)
    np.testing.assert_array_equal(valid, wanted)
    parts = [read(path, Window(r, c, 16, 16))[1] for r in range(0, 80, 16) for c in range(0, 64, 16)]
    assert sum(part.sum() for part in parts) == wanted[:, :64].sum()


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "nan", "undeclared"])
def test_what_a_tile_does_not_know_hides_nothing(tmp_path, kind):
    """Against pasting by hand, tile after tile in name order, whole pixels where the tile has data."""
    dtype = "float32" if kind == "nan" else "uint8"
    pasted, known = np.zeros((3, 70, 75), dtype), np.zeros((70, 75), bool)
    rng = np.random.default_rng(0)
    for i, (col, row) in enumerate(((0, 0), (20, 5), (10, 30), (15, 20))):
        array = rng.integers(0, 3, (3, 40, 55)).astype(dtype)  # 0 in some bands of many pixels
        mask = rng.random((40, 55)) < 0.6
        options, written = {}, array
        if kind in ("nodata", "undeclared"):
            options = {"nodata": 0} if kind == "nodata" else {}
            written = array * mask
            mask = written.any(axis=0)
        elif kind == "nan":
            written = np.where(mask, array, np.nan).astype(dtype)
        elif kind == "alpha":
            written = np.concatenate(
                [array, (mask * rng.choice([1, 100, 255, 255, 255], mask.shape)).astype(dtype)[None]]
            )
            options = {"photometric": "rgb", "alpha": "yes"}
        path = write_raster(tmp_path / "in" / f"{i}.tif", written, transform=at(col, row), **options)
        if kind == "mask":
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
                dataset.write_mask(mask)
        here = (slice(row, row + 40), slice(col, col + 55))
        pasted[:, *here] = np.where(mask, array, pasted[:, *here])
        known[here] |= mask
    files = sorted((tmp_path / "in").iterdir(), reverse=True)
    path = write_mosaic(files, tmp_path / "m.vrt", nodata=0 if kind == "undeclared" else None)
    pixels, valid = read(path)
    np.testing.assert_array_equal(valid, known)
    np.testing.assert_array_equal(pixels[:, known], pasted[:, known])


def test_tiles_may_differ_in_what_marks_their_holes(tmp_path):
    array = picture(30, 30)
    array[:, :5, :5] = 9
    alpha = np.full((1, 30, 30), 255, "uint8")
    alpha[0, 25:, 25:] = 0
    write_raster(tmp_path / "in" / "a.tif", array, nodata=9)
    write_raster(tmp_path / "in" / "b.tif", array, transform=at(30, 0))
    rgba = {"photometric": "rgb", "alpha": "yes"}
    write_raster(tmp_path / "in" / "c.tif", np.concatenate([array, alpha]), transform=at(60, 0), **rgba)
    write_raster(tmp_path / "in" / "d.tif", array, transform=at(90, 0))
    beside = '<PAMRasterBand band="{}"><NoDataValue>300</NoDataValue></PAMRasterBand>'  # a value that uint8 cannot have
    bands = "".join(beside.format(band) for band in (1, 2, 3))
    (tmp_path / "in" / "d.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    valid = read(write_mosaic(tmp_path / "in", tmp_path / "m.vrt"))[1]
    wanted = np.ones((30, 120), bool)
    wanted[:5, :5] = wanted[25:, 85:90] = False
    np.testing.assert_array_equal(valid, wanted)
    valid = read(write_mosaic(tmp_path / "in", tmp_path / "m.vrt", nodata=int(array[0, 29, 29])))[1]
    assert valid[:5, :5].all() and not valid[25:, 85:90].any()


def test_sparse_and_huge(tmp_path):
    array = picture(40, 40)
    write_raster(tmp_path / "a.tif", array)
    write_raster(tmp_path / "b.tif", array, transform=at(99_960, 99_960))
    path = write_mosaic(tmp_path, tmp_path / "m.vrt")
    with Scene.open(path) as scene:
        assert (scene.grid.height, scene.grid.width) == (100_000, 100_000)
        assert not scene.read(Window(50_000, 50_000, 2000, 2000), (1, 2, 3))[1].any()
        pixels, valid = scene.read(Window(99_950, 99_950, 50, 50), (1, 2, 3))
    np.testing.assert_array_equal(pixels[:, 10:, 10:], array)
    assert valid.sum() == 1600


# Files


def test_a_mosaic_depends_on_its_tiles_alone(tmp_path):
    folder = cut(tmp_path / "tiles", picture(HEIGHT, WIDTH))
    (folder / "notes.txt").write_text("no tile")
    (folder / ".hidden.tif").write_text("no tile")
    (folder / "sub").mkdir()
    texts = {
        write_mosaic(rasters, tmp_path / "m.vrt").read_text()
        for rasters in (folder, [folder], sorted(folder.glob("[0-9]*.tif")), [*folder.glob("1*"), *folder.glob("0*")])
    }
    assert len(texts) == 1
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("tiles", "m.vrt")] == []
    before = fingerprint(str(tmp_path / "m.vrt"))
    write_raster(folder / "0_0.tif", picture(41, 70, seed=9))
    assert fingerprint(str(tmp_path / "m.vrt")) != before


@pytest.mark.parametrize("nodata", [None, 7])
def test_identity_of_a_mosaic_sees_every_tile(tmp_path, nodata):
    folder = cut(tmp_path / "tiles", picture(HEIGHT, WIDTH), nodata=nodata)
    path = str(write_mosaic(folder, tmp_path / "m.vrt"))
    for tile in folder.iterdir():
        before = fingerprint(path)
        assert fingerprint(path) == before
        with rasterio.open(tile, "r+") as dataset:
            dataset.write(dataset.read() + 1)
        assert fingerprint(path) != before


def test_tiles_in_a_zip_file_and_on_a_server(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    array = picture(HEIGHT, WIDTH)
    whole = cut(tmp_path / "whole", array, rows=(0,), cols=(0,)) / "0_0.tif"
    files = sorted(cut(tmp_path / "tiles", array, compress="deflate", nodata=7).iterdir())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in files[:2]:
            archive.write(file, file.name)
    with serving(tmp_path / "tiles") as server:
        names = [f"{tmp_path}/a.zip/{f.name}" for f in files[:2]] + [server.url(f.name) for f in files[2:]]
        path = write_mosaic(names, tmp_path / "m.vrt")
        array[:, (array == 7).all(axis=0)] = 0
        assert_same(path, whole)
        assert fingerprint(str(path)) == fingerprint(str(path))
        server.fail(404)
        with pytest.raises(DataError, match="cannot be read"):
            read(path)
    assert gdal_name(path) == str(path)


# Refusals


def refused(tmp_path, match, *arrays, **options):
    """Tiles side by side, the second with options of its own."""
    arrays = arrays or (picture(20, 20),)
    first = write_raster(tmp_path / "in" / "a.tif", picture(20, 20))
    second = write_raster(tmp_path / "in" / "b.tif", arrays[0], **{"transform": at(20, 0)} | options)
    with pytest.raises(DataError, match=match) as caught:
        write_mosaic(tmp_path / "in", tmp_path / "m.vrt")
    assert str(second) in str(caught.value) and str(first) in str(caught.value)
    assert not (tmp_path / "m.vrt").exists()


def test_tiles_that_do_not_fit_are_named(tmp_path):
    refused(tmp_path, r"has CRS EPSG:32632, where EPSG:32633 was needed.*gdalwarp", crs="EPSG:32632")
    refused(tmp_path, "has CRS None, where EPSG:32633", crs=None)
    refused(tmp_path, "has type uint16, where uint8 .*-ot", picture(20, 20, dtype="uint16"))
    refused(tmp_path, "has bands 4, where 3", picture(20, 20, bands=4), photometric="minisblack")
    refused(tmp_path, "has colours gray, undefined, undefined, where red", photometric="minisblack")
    refused(tmp_path, "has pixels of 0.25 x 0.25, where 0.5 x 0.5", transform=at(20, 0) @ Affine.scale(0.5))
    refused(tmp_path, "has pixels of 0.5 x 0.5, where", transform=at(20, 0) @ Affine.rotation(3))
    refused(tmp_path, "has pixels that lie 0.4 px off", transform=at(20.4, 0))
    refused(tmp_path, "has pixels of 0.5", transform=at(20, 0) @ Affine.scale(1 + 0.02 / 20))


def test_a_hundredth_of_a_pixel_is_not_off(tmp_path):
    write_raster(tmp_path / "a.tif", picture(20, 20))
    write_raster(tmp_path / "b.tif", picture(20, 20), transform=at(20.009, -0.009) @ Affine.scale(1 + 1e-5))
    with Scene.open(write_mosaic(tmp_path, tmp_path / "m.vrt")) as scene:
        assert scene.grid == Grid(20, 40, HALF_METRE, CRS.from_epsg(32633))


def test_photographs_are_no_tiles(tmp_path):
    with warnings.catch_warnings(action="ignore"):
        for name in ("a.tif", "b.tif"):
            write_raster(tmp_path / name, picture(20, 20), crs=None, transform=Affine.identity())
    with pytest.raises(DataError, match=r"b\.tif: is not georeferenced"):
        write_mosaic(tmp_path, tmp_path / "m.vrt")


def test_what_cannot_be_a_tile(tmp_path):
    with pytest.raises(DataError, match="no raster in this folder"):
        write_mosaic(tmp_path, tmp_path / "m.vrt")
    with pytest.raises(DataError, match="no raster for a mosaic"):
        write_mosaic([], tmp_path / "m.vrt")
    good = write_raster(tmp_path / "a.tif", picture(20, 20))
    bad = tmp_path / "b.tif"
    bad.write_text("hello")
    with pytest.raises(DataError, match=r"b\.tif: cannot be read as a raster"):
        write_mosaic(tmp_path, tmp_path / "m.vrt")
    with pytest.raises(DataError, match=r"c\.tif: no such file"):
        write_mosaic([good, tmp_path / "c.tif"], tmp_path / "m.vrt")
    write_raster(bad, picture(20, 20).astype("complex64"))
    with pytest.raises(DataError, match=r"b\.tif: has bands of type complex64"):
        write_mosaic(bad, tmp_path / "m.vrt")
    with pytest.raises(OutputError, match="cannot be written"):
        write_mosaic(good, tmp_path / "nowhere" / "m.vrt")


@pytest.mark.parametrize("options", [{}, {"nodata": 7}])
@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_tile_that_goes_bad_is_an_error_that_names_it(tmp_path, options, harm):
    folder = cut(tmp_path / "tiles", picture(HEIGHT, WIDTH), compress="deflate", **options)
    path, tile = write_mosaic(folder, tmp_path / "m.vrt"), folder / "1_0.tif"
    if harm == "gone":
        tile.unlink()
    else:
        with tile.open("r+b") as file:
            file.truncate(tile.stat().st_size // 2)
    with pytest.raises(DataError, match=r"m\.vrt: cannot be read .*1_0\.tif"):
        read(path)
    np.testing.assert_array_equal(read(path, Window(0, 0, 30, 30))[1], True)


@pytest.mark.parametrize("options", [{}, {"nodata": 7}])
@pytest.mark.parametrize("harm", ["gone", "empty"])
def test_a_tile_that_went_bad_stays_an_error_however_often_it_is_read(tmp_path, options, harm):
    """GDAL keeps in mind that it could not open a file, and then returns zeros without a word."""
    folder = cut(tmp_path / "tiles", picture(HEIGHT, WIDTH), **options)
    path, tile = write_mosaic(folder, tmp_path / "m.vrt"), folder / "1_0.tif"
    before = tile.read_bytes()
    tile.unlink() if harm == "gone" else tile.write_bytes(b"")
    with Scene.open(path) as scene:
        for _ in range(3):
            with pytest.raises(DataError, match=r"1_0\.tif"):
                scene.read(scene.grid.window)
        tile.write_bytes(before)  # as a server that is well again
        np.testing.assert_array_equal(scene.read(scene.grid.window)[0], picture(HEIGHT, WIDTH))


def test_another_vrt_is_no_better_off_after_a_mosaic(tmp_path):
    read(write_mosaic(cut(tmp_path / "tiles", picture(HEIGHT, WIDTH), nodata=7), tmp_path / "m.vrt"))
    source = "<SimpleSource><SourceFilename>gone.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
    band = f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand>'
    (tmp_path / "gone.vrt").write_text(f'<VRTDataset rasterXSize="64" rasterYSize="64">{band}</VRTDataset>')
    for _ in range(2):
        with pytest.raises(DataError, match=r"gone\.tif"):
            read(tmp_path / "gone.vrt")


def test_names_that_only_some_tiles_have_are_those_of_all(tmp_path, caplog):
    caplog.set_level("INFO", logger="geood")
    folder = cut(tmp_path / "tiles", picture(HEIGHT, WIDTH))
    for name, names in (("0_1.tif", ("red", "green", None)), ("1_1.tif", ("red", "green", "blue"))):
        with rasterio.open(folder / name, "r+") as tile:
            tile.descriptions = names
    with Scene.open(write_mosaic(folder, tmp_path / "m.vrt")) as scene:
        assert scene.band_names == ("red", "green", "blue")
    assert "0_0.tif and 2 more tiles: without all band names" in caplog.text
    with rasterio.open(folder / "1_0.tif", "r+") as tile:
        tile.descriptions = ("red", "nir", "blue")
    with pytest.raises(
        DataError, match=r"band 2 is called nir, where green was needed, as in .*0_1\.tif.*descriptions"
    ):
        write_mosaic(folder, tmp_path / "m.vrt")


def test_only_the_owner_reads_a_mosaic_of_secret_addresses(tmp_path):
    folder, out = cut(tmp_path / "tiles", picture(HEIGHT, WIDTH)), tmp_path / "m.vrt"
    names = sorted(path.name for path in folder.iterdir())
    with serving(folder) as server:
        write_mosaic([server.url(name) for name in names], out)
        assert out.stat().st_mode & 0o077
        for _ in range(2):
            write_mosaic([f"{server.url(name)}?sig=SECRET" for name in names], out)
            assert not out.stat().st_mode & 0o077 and "SECRET" in out.read_text()
            out.chmod(0o644)
        np.testing.assert_array_equal(read(out)[0], picture(HEIGHT, WIDTH))


def test_a_pixel_that_lacks_a_band_comes_from_the_tile_below(tmp_path):
    below, above = (picture(40, 40, dtype="uint16", high=900, seed=seed) for seed in (1, 2))
    above[:, :10], above[1, 10:20] = 0, 0
    for name, array in (("a", below), ("b", above)):
        write_raster(tmp_path / "tiles" / f"{name}.tif", array, nodata=0, transform=at(0, 0))
    pixels, valid = read(write_mosaic(tmp_path / "tiles", tmp_path / "m.vrt"))
    assert valid.all()
    np.testing.assert_array_equal(pixels[:, :20], below[:, :20])
    np.testing.assert_array_equal(pixels[:, 20:], above[:, 20:])


def test_infrared_that_tiles_declare_as_alpha_stays_data(tmp_path, caplog):
    array = picture(HEIGHT, WIDTH, bands=4)
    array[3, :30] = 0
    options = {"photometric": "rgb", "alpha": "yes"}
    whole = cut(tmp_path / "whole", array, rows=(0,), cols=(0,), **options) / "0_0.tif"
    with caplog.at_level("WARNING", "geood"):
        path = write_mosaic(cut(tmp_path / "tiles", array, **options), tmp_path / "m.vrt")
    assert "band 4 is declared as alpha, but holds measurements" in caplog.text
    assert_same(path, whole)
    assert read(path)[1].all()
