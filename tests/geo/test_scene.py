"""Laws of reading scenes: any window, always with what is valid, at any resolution, from any layout and place."""

import logging
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from geood.errors import DataError
from geood.geo import gdal
from geood.geo.bands import Bands
from geood.geo.border import undeclared_nodata
from geood.geo.gdal import open_raster
from geood.geo.grid import Grid, Window, tile_grid
from geood.geo.labels.id_rasters import open_id_raster
from geood.geo.scene import Scene, SceneSource
from geood.prediction.scene_checks import oblong_pixels, sample_windows, turned_by_viewers, valid_share
from support.places import NORTH_UP, PLACES, UTM, noise, write_raster
from support.rasters import write_scores

# Reading


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (7, 5), (40, 33)])
@pytest.mark.parametrize(
    "window", [Window(0, 0, 8, 8), Window(-9, -4, 30, 50), Window(-64, 3, 96, 2), Window(5, 60, 3, 9)]
)
def test_a_window_anywhere_equals_the_mirrored_scene(tmp_path, shape, window):
    pixels = noise(2, *shape).astype(np.uint16)
    margin = 128
    mirrored = np.pad(pixels, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    rows, cols = window.slices
    wanted = mirrored[:, rows.start + margin : rows.stop + margin, cols.start + margin : cols.stop + margin]
    with Scene.open(write_raster(tmp_path / "a.tif", pixels)) as scene:
        array, valid = scene.read(window, (1, 2))
        swapped, _ = scene.read(window, (2, 1))
    np.testing.assert_array_equal(array, wanted)
    np.testing.assert_array_equal(swapped, wanted[::-1])
    assert array.dtype == np.uint16 and valid.all()


def test_tiles_put_together_equal_the_scene(tmp_path):
    pixels = noise(1, 150, 201).astype(np.uint8)
    pixels[0, 30:70, 100:140] = 0
    whole, seen = np.zeros_like(pixels), np.zeros((150, 201), bool)
    with Scene.open(write_raster(tmp_path / "a.tif", pixels, nodata=0)) as scene:
        for tile in tile_grid(150, 201, tile_px=64, halo_px=32):
            array, valid = scene.read(tile.read, (1,))
            whole[(slice(None), *tile.write.slices)] = array[(slice(None), *tile.core)]
            seen[tile.write.slices] = valid[tile.core]
    np.testing.assert_array_equal(whole, pixels)
    np.testing.assert_array_equal(seen, pixels[0] > 0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"])
def test_pixels_keep_their_dtype(tmp_path, dtype):
    pixels = noise(1, 5, 6, high=100).astype(dtype)
    with Scene.open(write_raster(tmp_path / "a.tif", pixels)) as scene:
        array, _ = scene.read(scene.grid.window, (1,))
    assert array.dtype == scene.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, pixels)


def scene_validity(path, nodata=None, indexes=None):
    with Scene.open(path, nodata=nodata) as scene:
        return scene.read(scene.grid.window, indexes or scene.band_indexes)[1]


def test_nodata_counts_where_all_bands_have_it(tmp_path):
    pixels = noise(3, 6, 6).astype(np.uint8)
    pixels[:, 1, 1] = 0
    pixels[0, 2, 2] = 0
    wanted = np.ones((6, 6), bool)
    wanted[1, 1] = False
    np.testing.assert_array_equal(scene_validity(write_raster(tmp_path / "a.tif", pixels, nodata=0)), wanted)
    undeclared = write_raster(tmp_path / "b.tif", pixels)
    assert scene_validity(undeclared).all()
    np.testing.assert_array_equal(scene_validity(undeclared, nodata=0), wanted)


def test_a_nodata_override_takes_the_place_of_the_files_own(tmp_path):
    pixels = np.array([[[0, 1, 255]]], np.uint8)
    path = write_raster(tmp_path / "a.tif", pixels, nodata=0)
    assert scene_validity(path).tolist() == [[False, True, True]]
    assert scene_validity(path, nodata=255).tolist() == [[True, True, False]]


def test_mask_band_alpha_and_nan_count(tmp_path):
    wanted = np.ones((8, 8), bool)
    wanted[2:5, 3:6] = False
    mask = wanted.astype(np.uint8) * 255
    pixels = noise(3, 8, 8).astype(np.uint8)
    np.testing.assert_array_equal(scene_validity(write_raster(tmp_path / "mask.tif", pixels, mask=mask)), wanted)
    alpha = np.concatenate([pixels, mask[None]])
    path = write_raster(tmp_path / "alpha.tif", alpha, photometric="rgb", alpha="yes")
    np.testing.assert_array_equal(scene_validity(path), wanted)
    path = write_raster(tmp_path / "both.tif", alpha, photometric="rgb", alpha="yes", nodata=7)
    np.testing.assert_array_equal(scene_validity(path), wanted)
    floats = pixels.astype(np.float32)
    floats[1, ~wanted] = np.nan
    path = write_raster(tmp_path / "nan.tif", floats)
    np.testing.assert_array_equal(scene_validity(path), wanted)
    assert scene_validity(path, indexes=(1, 3)).all()


def test_alpha_is_no_band(tmp_path):
    pixels = noise(4, 3, 3).astype(np.uint8)
    pixels[3] = 255
    path = write_raster(tmp_path / "a.tif", pixels, photometric="rgb", alpha="yes")
    with Scene.open(path) as scene:
        assert (scene.count, scene.band_indexes, scene.band_names) == (3, (1, 2, 3), ("red", "green", "blue"))


def test_band_names_come_from_descriptions_first(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(3, 3, 3).astype(np.uint8), photometric="minisblack")
    with rasterio.open(path, "r+") as dataset:
        dataset.set_band_description(2, "nir")
    with Scene.open(path) as scene:
        assert scene.band_names == ("gray", "nir", "band_3")


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_grid_is_as_stored(tmp_path, place):
    path = write_raster(tmp_path / "a.tif", noise(1, 4, 7).astype(np.uint8), place=place)
    with Scene.open(path) as scene, rasterio.open(path) as dataset:
        assert scene.grid == Grid(4, 7, dataset.transform, dataset.crs)
        assert scene.grid.transform.almost_equals(place[0], 1e-9)
        assert (scene.grid.crs is None) == (place[1] is None)


# Bad input


def test_what_is_no_raster_is_one_clear_error(tmp_path):
    (tmp_path / "scene.tif").write_text("hello")
    with pytest.raises(DataError, match=r"scene\.tif: cannot be read as a raster"):
        Scene.open(tmp_path / "scene.tif")
    with pytest.raises(DataError, match=r"scne\.tif: no such file; did you mean scene\.tif"):
        Scene.open(tmp_path / "scne.tif")
    with pytest.raises(DataError, match="a folder"):
        Scene.open(tmp_path)
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.tif"):
        Scene.open(tmp_path / "empty.tif")


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw", "zstd", "jpeg"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_truncated_file_never_reads_as_data(tmp_path, compress, share):
    pixels = noise(3, 300, 300).astype(np.uint8)
    path = write_raster(tmp_path / "a.tif", pixels, compress=compress, tiled=True, blockxsize=128, blockysize=128)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError, match=r"a\.tif: cannot be read"), Scene.open(path) as scene:
        scene.read(scene.grid.window, (1, 2, 3))


def test_a_damaged_middle_never_reads_as_data(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(1, 300, 300).astype(np.uint8), compress="deflate")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0" * 4000)
    with pytest.raises(DataError, match="cannot be read"), Scene.open(path) as scene:
        scene.read(scene.grid.window, (1,))


def test_pixels_that_would_be_misread_are_refused(tmp_path):
    with pytest.raises(DataError, match="complex"):
        Scene.open(write_raster(tmp_path / "complex.tif", np.zeros((1, 3, 3), np.complex64)))
    path = write_raster(tmp_path / "palette.tif", noise(1, 3, 3).astype(np.uint8), photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {i: (i, 0, 0, 255) for i in range(256)})
    with pytest.raises(DataError, match=r"palette.*-expand rgb"):
        Scene.open(path)


def test_bands_that_do_not_fit_are_named(tmp_path):
    bands = Bands(("red", "green"), (1, 2), (0, 0), (1, 1), (0, 0), (1, 1), None, 2)
    with Scene.open(write_raster(tmp_path / "a.tif", noise(3, 3, 3).astype(np.uint8), photometric="rgb")) as scene:
        with pytest.raises(DataError, match=r"3 bands \(red, green, blue\).*2 \(1: red, 2: green\)"):
            scene.check_bands(bands)
        scene.check_bands(Bands(*[*bands.to_dict().values()][:7], None))
    path = write_raster(tmp_path / "b.tif", noise(1, 3, 3).astype(np.uint8))
    with Scene.open(path) as scene, pytest.raises(DataError, match="has 1 band "):
        scene.check_bands(Bands.from_dict({**bands.to_dict(), "scene_count": None}))


@pytest.mark.skipif("GEOOD_DATA" not in os.environ, reason="GEOOD_DATA does not name a folder of odd rasters")
def test_every_odd_raster_is_read_or_refused(tmp_path):
    files = sorted((Path(os.environ["GEOOD_DATA"]) / "rasters").iterdir())
    for path in files:
        try:
            with Scene.open(path) as scene:
                scene.read(Window(-5, -5, 40, 40), scene.band_indexes)
                window = Window(0, 0, 600, 600).within(scene.grid.window)
                array, valid = scene.read(window, scene.band_indexes)
                assert array.shape[1:] == valid.shape == (window.height, window.width)
                grid = scene.grid
        except DataError as error:
            assert str(path) in str(error) and ";" in str(error)
            continue
        if window == grid.window:
            write_scores(tmp_path / "a.tif", grid, np.where(valid, np.float32(0.5), np.float32(np.nan)))
        else:
            continue
        with rasterio.open(tmp_path / "a.tif") as dataset:
            assert Grid(dataset.height, dataset.width, dataset.transform, dataset.crs) == grid, path


# Validity


def vrt(path, height, width, bands):
    """A virtual raster; each band is (file, its band, nodata or None)."""
    parts = "".join(
        f"""<VRTRasterBand dataType="Byte" band="{i}">
        {"" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>"}
        <SimpleSource><SourceFilename>{source}</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource>
        </VRTRasterBand>"""
        for i, (source, band, nodata) in enumerate(bands, 1)
    )
    path.write_text(f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{parts}</VRTDataset>')
    return path


def test_nodata_may_differ_between_bands(tmp_path):
    pixels = np.array([[[0, 0, 5, 9]], [[255, 9, 255, 9]], [[7, 7, 7, 7]]], np.uint8)
    source = write_raster(tmp_path / "a.tif", pixels)
    both = vrt(tmp_path / "a.vrt", 1, 4, [(source, 1, 0), (source, 2, 255)])
    assert scene_validity(both).tolist() == [[False, True, True, True]]
    partly = vrt(tmp_path / "b.vrt", 1, 4, [(source, 1, 0), (source, 2, 255), (source, 3, None)])
    assert scene_validity(partly).tolist() == [[False, True, True, True]]  # a band that has none has no say
    assert scene_validity(partly, nodata=9, indexes=(1, 2)).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("nodata", [None, 0, 7])
def test_validity_alone_is_that_of_reading(tmp_path, nodata):
    pixels = noise(2, 40, 50, high=4).astype(np.float32)
    pixels[1, 3, 3], pixels[:, 5:9, 5:9], pixels[:, 20:30] = np.nan, 7, 0
    for name, array in (("float", pixels), ("byte", np.nan_to_num(pixels).astype(np.uint8))):
        for own in (None, 0):
            with Scene.open(write_raster(tmp_path / f"{name}.tif", array, nodata=own), nodata) as scene:
                for window in (scene.grid.window, Window(3, 3, 20, 7)):
                    np.testing.assert_array_equal(scene.valid(window), scene.read(window)[1])
                    np.testing.assert_array_equal(scene.valid(window, (1,)), scene.read(window, (1,))[1])


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 0), ("uint8", 255), ("uint16", 65535), ("float32", -9999)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_border_that_looks_like_no_data_is_told(tmp_path, dtype, value, share):
    pixels = noise(3, 300, 500, high=250).astype(dtype)
    tilted = np.add.outer(np.arange(300) / 300, np.arange(500) / 500) < 2 * share
    pixels[:, tilted] = value
    path = write_raster(tmp_path / "a.tif", pixels)
    with Scene.open(path) as scene:
        assert undeclared_nodata(scene) == (value if share > 0.2 else None)
    with Scene.open(path, nodata=value) as scene:
        assert undeclared_nodata(scene) is None
    pixels[1, tilted] = 3
    with Scene.open(write_raster(tmp_path / "one.tif", pixels)) as scene:  # in two of three bands
        assert undeclared_nodata(scene) == (value if share > 0.2 and dtype != "uint8" else None)
    pixels[0, tilted] = 3
    with Scene.open(write_raster(tmp_path / "two.tif", pixels)) as scene:
        assert undeclared_nodata(scene) is None


@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 50), (384, 20), (385, 400)])
def test_the_border_of_a_small_scene_is_read_whole_and_once(tmp_path, monkeypatch, height, width):
    """Of a large one no more windows are read than of any, whatever its size."""
    seen, stored = np.zeros((height, width), int), Scene.stored

    def counted(self, window, indexes):
        seen[window.slices] += 1
        return stored(self, window, indexes)

    monkeypatch.setattr(Scene, "stored", counted)
    with Scene.open(write_raster(tmp_path / "a.tif", noise(1, height, width))) as scene:
        assert undeclared_nodata(scene) is None
    inner = np.pad(np.zeros((max(height - 2, 0), max(width - 2, 0)), bool), 1, constant_values=True)[:height, :width]
    assert not seen[~inner].any()
    if max(height, width) <= 384:
        assert (seen[inner] >= 1).all() and seen.max() <= 2  # twice at corners, which lie on two sides
    else:
        assert 0 < seen.astype(bool).sum() < inner.sum()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 64), (65, 64), (700, 900), (5000, 300), (100_000, 200_000)])
def test_sample_windows_are_distinct_and_spread(height, width):
    grid, seen = Grid(height, width, NORTH_UP, UTM), set()
    for skip, count in ((0, 32), (32, 128), (128, 512)):
        found = list(sample_windows(grid, count, skip=skip))
        assert found == sorted(found) and not seen & set(found) and len(found) <= count
        assert all(w.height and w.width and w == w.within(grid.window) for w in found)
        seen |= set(found)
    cells = -(-height // 64) * -(-width // 64)
    assert len(seen) == cells or 400 < len(seen) <= 512
    if cells > 512:
        for axis, size in ((0, height), (1, width)):
            quarters = np.bincount([int(4 * w[axis] / size) for w in seen], minlength=4)
            assert quarters.min() > len(seen) / 6


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_the_valid_share_is_estimated(tmp_path, share, monkeypatch):
    monkeypatch.setattr("geood.prediction.scene_checks.PATIENCE", math.inf)  # however busy the machine is
    pixels = np.ones((1, 2000, 3000), np.uint8)
    pixels[:, int(2000 * share) :] = 0
    with Scene.open(write_raster(tmp_path / "a.tif", pixels, nodata=0, tiled=True, compress="deflate")) as scene:
        assert valid_share(scene) == pytest.approx(share, abs=0.03)
    with Scene.open(write_raster(tmp_path / "b.tif", pixels[:, :1])) as scene:
        assert scene.wholly_valid and valid_share(scene) == 1.0


# Odd places

SHEARED = Affine(0.2, 0.15, 500_000, 0.0, -0.25, 4_500_000)
TILTED = Affine.translation(500_000, 4_649_000) @ Affine.rotation(20) @ Affine.scale(0.5, -0.5)


@pytest.mark.parametrize("transform", [SHEARED, TILTED, Affine(0.25, 0, 500_000, 0, 0.25, 4_500_000)])
def test_tilted_sheared_and_south_up_scenes_are_read_as_stored(tmp_path, transform):
    pixels = noise(2, 40, 50).astype(np.uint8)
    with Scene.open(write_raster(tmp_path / "a.tif", pixels, place=(transform, UTM))) as scene:
        array, valid = scene.read(scene.grid.window)
        assert scene.grid == scene.working and scene.grid.transform.almost_equals(transform, 1e-9)
    np.testing.assert_array_equal(array, pixels)
    assert valid.all()


def by_points(path, pixels, bend=0.0, crs=UTM, **options):
    """A raster that control points alone place: tilted, and bent by so many pixels at its corners."""
    height, width = pixels.shape[1:]
    write_raster(path, pixels, place=(Affine.identity(), None), **options)
    points = []
    for row in np.linspace(0, height, 4):
        for col in np.linspace(0, width, 4):
            push = bend * (row / height) * (col / width)
            points.append(GroundControlPoint(row, col, *(TILTED @ (col + push, row + push))))
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = (points, crs)
    return path


@pytest.mark.parametrize("bend", [0.0, 9.0])
def test_control_points_place_a_scene(tmp_path, caplog, bend):
    pixels = noise(3, 90, 130).astype(np.uint8)
    with (
        caplog.at_level(logging.INFO, "geood"),
        Scene.open(by_points(tmp_path / "a.tif", pixels, bend)) as scene,
    ):
        array, valid = scene.read(scene.grid.window)
        grid = scene.grid
        assert "16 ground control points" in str(scene.layout) and scene.dtype == np.uint8
    assert "warped to a north-up grid" in caplog.text
    assert grid.crs == UTM and grid.transform.b == grid.transform.d == 0 and grid.transform.e < 0
    assert grid.resolution_m == pytest.approx(0.5, rel=0.1)
    assert 0.3 < valid.mean() < 0.9 and not valid[0, 0] and not valid[-1, -1]
    right = 0
    for row, col in zip(*np.nonzero(valid), strict=True):
        x, y = ~TILTED @ (grid.transform @ (col + 0.5, row + 0.5))
        if bend:
            # Where the bend takes the pixel (x0, y0) to, by fixed point.
            x0, y0 = x, y
            for _ in range(20):
                push = bend * (y0 / 90) * (x0 / 130)
                x0, y0 = x - push, y - push
            x, y = x0, y0
        # One of the pixels that the place lies in or all but touches.
        near = pixels[:, max(0, int(y - 0.1)) : int(y + 0.1) + 1, max(0, int(x - 0.1)) : int(x + 0.1) + 1]
        right += (near == array[:, row, col][:, None, None]).all(axis=0).any()
    assert right / valid.sum() > (0.999 if not bend else 0.98)


@pytest.mark.parametrize("scale", [1.0, 0.5, 1.5])
def test_windows_of_a_scene_by_points_put_together_equal_the_whole(tmp_path, scale):
    pixels = noise(2, 300, 430).astype(np.uint16)
    pixels[:, 50:80, 90:200] = 0
    source = SceneSource(str(by_points(tmp_path / "a.tif", pixels, 9.0, nodata=0)), scale=scale)
    with Scene.open(source) as scene:
        array, valid = scene.read(scene.working.window)
    for side in (64, 211):
        with Scene.open(source) as scene:
            for tile in tile_grid(scene.working.height, scene.working.width, tile_px=side // 32 * 32, halo_px=32):
                part, seen = scene.read(tile.read)
                assert part[(slice(None), *tile.core)].tobytes() == array[(slice(None), *tile.write.slices)].tobytes()
                np.testing.assert_array_equal(seen[tile.core], valid[tile.write.slices])


def test_what_is_no_data_in_a_scene_by_points(tmp_path):
    pixels = noise(3, 90, 130).astype(np.uint8)
    plain = by_points(tmp_path / "plain.tif", pixels)
    footprint = scene_validity(plain)
    hole = np.zeros((90, 130), bool)
    hole[30:60, 40:80] = True
    marked = np.where(hole, 0, pixels)
    marked[0, 10] = 0
    inside = scene_validity(by_points(tmp_path / "nodata.tif", marked.astype(np.uint8), nodata=0))
    assert 0.9 < (footprint & ~inside).sum() / hole.sum() < 1.1
    with Scene.open(tmp_path / "nodata.tif") as scene, Scene.open(plain) as same:
        array, valid = scene.read(scene.grid.window)
        np.testing.assert_array_equal(array[1:, valid], same.read(same.grid.window)[0][1:, valid])
        assert (array[0, valid] == 0).any()  # no data in one band of three is a number
    again = scene_validity(tmp_path / "nodata.tif", nodata=255)
    np.testing.assert_array_equal(again, footprint)
    unmarked = by_points(tmp_path / "unmarked.tif", marked.astype(np.uint8))
    np.testing.assert_array_equal(scene_validity(unmarked), footprint)
    np.testing.assert_array_equal(scene_validity(unmarked, nodata=0), inside)
    mask = np.where(hole, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(scene_validity(by_points(tmp_path / "mask.tif", pixels, mask=mask)), inside)
    alpha = np.concatenate([pixels, mask[None]])
    path = by_points(tmp_path / "alpha.tif", alpha, photometric="rgb", alpha="yes")
    np.testing.assert_array_equal(scene_validity(path), inside)
    with Scene.open(path) as scene:
        assert scene.band_names == ("red", "green", "blue")
    with pytest.raises(DataError, match=r"has no bands \[4\]"):
        Scene.open(SceneSource(str(path), indexes=(1, 2, 4)))
    floats = np.where(hole, np.nan, pixels).astype(np.float32)
    np.testing.assert_array_equal(scene_validity(by_points(tmp_path / "nan.tif", floats)), inside)


def test_what_nothing_places_rightly_is_refused(tmp_path):
    path = by_points(tmp_path / "a.tif", noise(1, 9, 9).astype(np.uint8), crs=CRS())
    with pytest.raises(DataError, match=r"control points have no CRS.*; add it first: gdal_translate"):
        Scene.open(path)
    path = write_raster(tmp_path / "rpc.tif", noise(1, 9, 9).astype(np.uint8), place=(Affine.identity(), None))
    with rasterio.open(path, "r+") as dataset:
        line = dict.fromkeys(
            ("line_num_coeff", "line_den_coeff", "samp_num_coeff", "samp_den_coeff"), [1.0] + 19 * [0.0]
        )
        scales = {
            f"{what}_{kind}": 1.0 for what in ("height", "lat", "long", "line", "samp") for kind in ("off", "scale")
        }
        dataset.rpcs = rasterio.rpc.RPC(**line, **scales, err_bias=None, err_rand=None)
    with pytest.raises(DataError, match=r"RPCs.*; orthorectify it first: gdalwarp -rpc"):
        Scene.open(path)


# Files


LAYOUTS = {
    "bigtiff": {"BIGTIFF": "YES"},
    "one strip": {"blockysize": 999},
    "strips by band": {"interleave": "band", "compress": "lzw", "predictor": 2},
    "strips by pixel": {"interleave": "pixel", "compress": "deflate"},
    "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "zstd"},
    "lerc": {"compress": "lerc", "max_z_error": 0},
    "png": {"driver": "PNG"},
    "lossless webp": {"compress": "webp", "webp_lossless": True, "interleave": "pixel"},
    "jpeg 2000": {"driver": "JP2OpenJPEG", "quality": 100, "reversible": "yes"},
    "big endian": {"endianness": "big"},
}


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(70, 95), (1, 95), (70, 1), (1, 1)])
def test_a_lossless_file_reads_as_written_whatever_its_layout(tmp_path, options, shape):
    pixels = noise(3, *shape).astype(np.uint8)
    try:
        path = write_raster(tmp_path / "a.raster", pixels, **options)
    except rasterio.errors.RasterioError as error:
        pytest.skip(f"this GDAL cannot write it: {error}")
    with Scene.open(path) as scene:
        array, valid = scene.read(scene.grid.window)
        corner, _ = scene.read(Window(shape[0] // 2, shape[1] // 2, 9, 9))
    np.testing.assert_array_equal(array, pixels)
    assert valid.all() and corner.shape == (3, 9, 9)


@pytest.mark.parametrize("options", [{"photometric": "ycbcr"}, {"photometric": "rgb"}, {"interleave": "band"}])
def test_jpeg_in_tiff_reads_alike_with_its_mask(tmp_path, options):
    rows, cols = np.mgrid[:128, :160]
    pixels = np.stack([rows + 50, cols + 20, rows // 2 + cols // 2]).astype(np.uint8)
    wanted = (rows - 60) ** 2 + (cols - 80) ** 2 > 900
    mask = wanted.astype(np.uint8) * 255
    shape = {"tiled": True, "blockxsize": 64, "blockysize": 64, "jpeg_quality": 95}
    path = write_raster(tmp_path / "a.tif", pixels, mask=mask, compress="jpeg", **shape, **options)
    with Scene.open(path) as scene:
        array, valid = scene.read(scene.grid.window)
        assert "JPEG" in str(scene.layout) and scene.band_names[:1] in (("red",), ("gray",))
        part, _ = scene.read(Window(13, 29, 70, 80))
    np.testing.assert_array_equal(valid, wanted)
    np.testing.assert_array_equal(part, array[:, 13:83, 29:109])
    assert np.abs(array.astype(int) - pixels).max() < 12


def test_a_scene_is_opened_by_any_name_that_gdal_knows(tmp_path):
    pixels = noise(3, 9, 9).astype(np.uint8)
    data = write_raster(tmp_path / "a.tif", pixels).read_bytes()
    with rasterio.MemoryFile(data) as memory:
        source = SceneSource(memory.name, indexes=(3, 1), nodata=7.0)
        with Scene.open(memory.name) as scene:
            np.testing.assert_array_equal(scene.read(scene.grid.window)[0], pixels)
        with Scene.open(pickle.loads(pickle.dumps(source))) as scene:
            np.testing.assert_array_equal(scene.read(scene.grid.window)[0], pixels[[2, 0]])
            assert scene.source == source and hash(scene.source) == hash(source) and scene.nodata == 7
    with pytest.raises(DataError, match=r"a\.tif: has no bands \[4\], only \(1, 2, 3\)"):
        Scene.open(SceneSource(str(tmp_path / "a.tif"), indexes=(1, 4)))


def test_the_layout_is_told(tmp_path):
    pixels = noise(3, 20, 3000).astype(np.uint8)
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 64}
    with Scene.open(write_raster(tmp_path / "a.tif", pixels, compress="deflate", **tiles)) as scene:
        assert str(scene.layout) == "GTiff, tiles of 128 x 64 px, DEFLATE compression, no overviews"
        assert not scene.strips and scene.rows_cache_bytes(1000) == 0
    with Scene.open(write_raster(tmp_path / "b.tif", pixels, blockysize=4)) as scene:
        assert str(scene.layout) == "GTiff, strips of 4 rows, no compression, no overviews"
        assert scene.strips and scene.rows_cache_bytes(10) == (3 + 1) * 4 * 3000 * 3
    with Scene.open(write_raster(tmp_path / "c.tif", pixels[:, :, :1000])) as scene:
        assert not scene.strips


def test_rows_in_the_cache_spare_decoding(tmp_path):
    """A file of strips is decoded once for all tiles beside each other, in a cache as large as is said."""
    pixels = noise(3, 128, 4096).astype(np.uint8)
    path = write_raster(tmp_path / "a.tif", pixels, compress="deflate", interleave="pixel", blockysize=8)
    with Scene.open(path) as scene:
        assert scene.rows_cache_bytes(64) < 64 * 4096 * 3 * 1.2
        for col in range(0, 4096, 64):
            array, _ = scene.read(Window(32, col, 64, 64))
            np.testing.assert_array_equal(array, pixels[:, 32:96, col : col + 64])
            if not col:
                with path.open("r+b") as file:  # what is decoded already is not read again
                    file.truncate(1000)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_blocks_of_a_window_stay_in_a_cache_of_that_size(tmp_path, monkeypatch, interleave):
    """All bands of a window are decoded once, wherever it lies."""
    monkeypatch.setattr(gdal, "_cache_bytes", gdal._cache_bytes)
    pixels = noise(4, 512, 768).astype(np.uint16)
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 64, "compress": "deflate", "interleave": interleave}
    for row, col in ((0, 0), (63, 127), (1, 130), (212, 468)):
        path = write_raster(tmp_path / f"{row}.tif", pixels, **tiles)
        with Scene.open(path) as scene:
            assert scene.window_cache_bytes(300) == 6 * 64 * 4 * 128 * 4 * 2
            gdal.limit_cache(int(scene.window_cache_bytes(300) * 1.05))  # GDAL counts its own notes on a block too
            for _ in range(2):
                np.testing.assert_array_equal(
                    scene.read(Window(row, col, 300, 300))[0], pixels[:, row : row + 300, col : col + 300]
                )
                with path.open("r+b") as file:
                    file.truncate(1000)


def test_blocks_of_a_window_are_not_told_of_a_mosaic(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(3, 64, 64).astype(np.uint8), tiled=True, blockxsize=16, blockysize=16)
    rasterio.shutil.copy(path, tmp_path / "a.vrt", driver="VRT")
    with Scene.open(tmp_path / "a.vrt") as mosaic, Scene.open(path) as scene:
        assert mosaic.window_cache_bytes(32) is None
        assert scene.window_cache_bytes(33) == 48**2 * 3


def test_a_huge_scene_is_judged_by_a_few_places(tmp_path, monkeypatch):
    source = write_raster(tmp_path / "a.tif", noise(1, 3000, 3000).astype(np.uint8), tiled=True, nodata=0)
    parts = "".join(
        f"""<ComplexSource><SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand>
        <NODATA>0</NODATA><SrcRect xOff="0" yOff="0" xSize="3000" ySize="3000"/>
        <DstRect xOff="{x}" yOff="{y}" xSize="50000" ySize="100000"/></ComplexSource>"""
        for x, y in ((0, 0), (120_000, 50_000))
    )
    (tmp_path / "a.vrt").write_text(
        f"""<VRTDataset rasterXSize="200000" rasterYSize="200000"><VRTRasterBand dataType="Byte" band="1">
        <NoDataValue>0</NoDataValue>{parts}</VRTRasterBand></VRTDataset>"""
    )
    pixels, whole = [], Scene.valid

    def counted(self, window, indexes=()):
        pixels.append(window.height * window.width)
        return whole(self, window, indexes)

    monkeypatch.setattr(Scene, "valid", counted)
    monkeypatch.setattr("geood.prediction.scene_checks.PATIENCE", math.inf)
    with Scene.open(tmp_path / "a.vrt") as scene:
        assert valid_share(scene) == pytest.approx(0.25, abs=0.05)
        assert undeclared_nodata(scene) is None
    assert sum(pixels) <= 1024 * 64 * 64
    monkeypatch.setattr("geood.prediction.scene_checks.PATIENCE", 0.0)
    pixels.clear()
    with Scene.open(tmp_path / "a.vrt") as scene:
        assert valid_share(scene) == pytest.approx(0.25, abs=0.1) and len(pixels) == 33


ODD_SIZES = (1e300, 1e-300, 1e13, 1e-13, float("nan"), float("inf"))
ODD_PLACES = [Affine(odd, 0, 5e5, 0, -0.5, 4e6) for odd in ODD_SIZES]
ODD_PLACES += [Affine(0.5, 0, 5e5, 0, -odd, 4e6) for odd in ODD_SIZES]
ODD_PLACES += [Affine(0.5, 0, odd, 0, -0.5, 4e6) for odd in (1e300, -1e16, float("nan"), float("inf"))]
ODD_PLACES += [Affine(0.5, 0, 5e5, 0, -0.5, odd) for odd in (1e300, -1e16, float("nan"), float("-inf"))]


@pytest.mark.parametrize("place", ODD_PLACES, ids=str)
def test_places_beyond_reason_are_refused(tmp_path, place):
    path = write_raster(tmp_path / "a.tif", noise(1, 8, 8).astype(np.uint8), transform=place)
    for opened in (Scene.open, open_id_raster, open_raster):
        with pytest.raises(DataError, match=r"a\.tif: lies nowhere on Earth: .* georeference it again"):
            opened(path)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_ground_control_points_beyond_reason_are_refused(tmp_path, odd):
    points = [GroundControlPoint(r, c, 5e5 + c, 4e6 - r) for r, c in ((0, 0), (0, 8), (8, 0))]
    points.append(GroundControlPoint(8, 8, odd, 4e6))
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=8, width=8, count=1, dtype="uint8", gcps=points, crs=UTM
    ) as file:
        file.write(noise(1, 8, 8).astype(np.uint8))
    with pytest.raises(DataError, match=r"a\.tif: has ground control points that are not finite numbers"):
        Scene.open(path)


@pytest.mark.parametrize(("north", "told"), [(60, True), (10, False)])
def test_a_scene_in_degrees_far_from_the_equator_is_told_to_look_stretched(tmp_path, north, told):
    degrees = Affine(1e-5, 0, 25, 0, -1e-5, north)
    path = write_raster(tmp_path / "a.tif", noise(3, 64, 64).astype(np.uint8), place=(degrees, "EPSG:4326"))
    with Scene.open(path) as scene:
        said = oblong_pixels(scene)
    assert (said is not None) == told and (said is None or "0.558 m wide and 1.11 m high" in said)


def test_a_photograph_that_viewers_turn_is_told(tmp_path):
    for orientation, placed in ((1, False), (6, False), (6, True)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}_{placed}.jpg"
        Image.fromarray(noise(3, 20, 30).astype(np.uint8).transpose(1, 2, 0)).save(path, exif=exif)
        if placed:
            path.with_suffix(".jgw").write_text("0.5\n0\n0\n-0.5\n500000\n4600000\n")
        with Scene.open(path) as scene:
            assert (scene.grid.height, scene.grid.width) == (20, 30), "scenes are read as stored"
            assert (turned_by_viewers(scene) is not None) == (orientation == 6 and not placed)
