"""Laws of rasters put together from packed tiles: what is in them, how their bytes lie, and full disks."""

import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from tempfile import TemporaryFile

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from rasterio.crs import CRS

from geood.errors import DataError, OutputError
from geood.geo import gdal
from geood.geo.cog import encoding, layout
from geood.geo.cog.encoding import WORST, block_px, encode_tile, rounded
from geood.geo.grid import Grid, tile_grid
from support.cpu import slow
from support.places import NORTH_UP, PLACES, UTM
from support.rasters import assemble

NAN = float("nan")
KIND = {"float32": (NAN, "average"), "uint8": (255, "mode")}
ODD_CRS = {
    "compound": CRS.from_epsg(7415),
    "south-oriented": CRS.from_epsg(2048),
    "local": CRS.from_wkt('LOCAL_CS["quarry",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'),
    "no GeoTIFF spelling": CRS.from_proj4("+proj=robin +lon_0=11 +datum=WGS84 +units=m"),
    "rotated pole": CRS.from_proj4("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=40 +lon_0=10 +R=6371229"),
}


def pixels(height, width, dtype="float32", seed=0):
    """Smooth values with noise, a tenth of them nodata."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    array = np.sin(rows / 9 + seed) * np.cos(cols / 7) + rng.normal(0, 0.05, (height, width))
    array = array.astype(np.float32) if dtype == "float32" else (array * 2 + 3).astype(np.uint8)
    array[rng.random((height, width)) < 0.1] = KIND[dtype][0]
    return array


def pack(path, array, tile_px, order=1):
    """Write the chunks of a raster's tiles in reading order or another; returns their places."""
    nodata, overview = KIND[array.dtype.name]
    tiles = list(enumerate(tile_grid(*array.shape[:2], tile_px=tile_px, halo_px=0)))
    places = {}
    with path.open("wb") as file:
        for number, tile in tiles[::order]:
            chunk = encode_tile(array[tile.write.slices], tile_px=tile_px, nodata=nodata, overview=overview)
            file.write(b"something else")
            places[number] = (file.tell(), len(chunk))
            file.write(chunk)
    return places


def finish(out, grid, places, *, tile_px, dtype="float32", **more):
    nodata, overview = KIND[dtype]
    said = {"bands": ["anomaly score"], "tags": {}, "statistics": {}, "overview": overview, "nodata": nodata}
    journal = {"journal": out.with_suffix(".journal"), "places": places, "tile_px": tile_px}
    assemble(out, grid, **journal, dtype=dtype, **said | more)
    return out


def made(out, array, *, tile_px, place=(NORTH_UP, UTM), order=1, **more):
    """A finished raster of these pixels."""
    places = pack(out.with_suffix(".journal"), array, tile_px, order)
    return finish(out, Grid(*array.shape, *place), places, tile_px=tile_px, dtype=array.dtype.name, **more)


def halved(array):
    """The next level by its definition, in float64."""
    height, width = array.shape
    half = np.empty((-(-height // 2), -(-width // 2)), array.dtype)
    for row, col in np.ndindex(half.shape):
        few = array[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel()
        few = few[few != 255] if array.dtype == np.uint8 else few[~np.isnan(few)]
        if array.dtype == np.uint8:
            half[row, col] = np.bincount(few).argmax() if few.size else 255
        else:
            half[row, col] = few.mean(dtype=np.float64) if few.size else NAN
    return half


def levels_of(path):
    with rasterio.open(path) as dataset:
        levels, count = [dataset.read(1)], len(dataset.overviews(1))
    for level in range(count):
        with rasterio.open(path, OVERVIEW_LEVEL=level) as dataset:
            levels.append(dataset.read(1))
    return levels


def directories(data):
    """Every directory of a TIFF: its place, its tags, and offsets and sizes of its blocks."""
    big = data[2] == 43
    word, count, entry, room = ("<Q", "<Q", "<HHQ", 8) if big else ("<I", "<H", "<HHI", 4)
    (at,) = struct.unpack_from(word, data, 8 if big else 4)
    found = []
    while at:
        tags, start = {}, at + struct.calcsize(count)
        for i in range(struct.unpack_from(count, data, at)[0]):
            entry_at = start + i * (struct.calcsize(entry) + room)
            tag, kind, number = struct.unpack_from(entry, data, entry_at)
            value_at = entry_at + struct.calcsize(entry)
            size = number * {1: 1, 2: 1, 3: 2, 4: 4, 12: 8, 16: 8}[kind]
            if size > room:
                (value_at,) = struct.unpack_from(word, data, value_at)
                assert value_at % 2 == 0
            tags[tag] = kind, number, data[value_at : value_at + size]
        blocks = [np.frombuffer(tags[t][2], "<u8" if tags[t][0] == 16 else "<u4").astype(int) for t in (324, 325)]
        found.append((at, tags, *blocks))
        (at,) = struct.unpack_from(word, data, start + len(tags) * (struct.calcsize(entry) + room))
    return found


def check_layout(path):
    """Directories before data, the smallest level's blocks first, each framed, and nothing between or after them but
    what brings each level to a multiple of 4096 bytes."""
    data = path.read_bytes()
    found = directories(data)
    places = [place for place, *_ in found]
    assert places == sorted(places) and places[0] < 300
    end = None
    for _, _, offsets, sizes in found[::-1]:
        if end is not None:
            assert not any(data[end : -(-end // 4096) * 4096])
            end = -(-end // 4096) * 4096
        for offset, size in zip(offsets, sizes, strict=True):
            if not size:
                assert not offset
                continue
            assert end in (None, offset - 4) and offset > places[-1]
            assert struct.unpack_from("<I", data, offset - 4) == (size,)
            assert data[offset + size : offset + size + 4] == data[offset + size - 4 : offset + size]
            end = offset + size + 4
    assert end in (None, len(data))
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    return found


# Tiles and blocks


def test_blocks_divide_half_a_tile_and_suit_tiff():
    for tile_px in range(32, 9000, 32):
        side = block_px(tile_px)
        assert tile_px // 2 % side == 0 and side % 16 == 0
        assert side <= 512 or all(tile_px // 2 % s for s in range(128, 513, 16))


def test_blocks_of_common_tiles():
    assert [block_px(px) for px in (32, 96, 256, 512, 768, 1024, 2048, 1280)] == [16, 48, 128, 256, 384, 512, 512, 320]
    assert block_px(2 * 16 * 37) == 16 * 37
    assert block_px(2 * 16 * 37 * 41) == 16 * 37 and block_px(2**36) == 512


def test_an_empty_tile_is_no_bytes():
    assert encode_tile(np.full((9, 9), NAN, np.float32), tile_px=32, nodata=NAN, overview="average").size == 0
    assert encode_tile(np.full((9, 9), 255, np.uint8), tile_px=32, nodata=255, overview="mode").size == 0


@pytest.mark.parametrize("dtype", KIND)
def test_packing_is_the_same_in_threads(dtype):
    nodata, overview = KIND[dtype]
    tiles = [pixels(100 + i, 128 - i, dtype, seed=i) for i in range(12)]

    def packed(array):
        return encode_tile(array, tile_px=128, nodata=nodata, overview=overview).tobytes()

    alone = [packed(np.ascontiguousarray(t)) for t in tiles]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(packed, tiles * 3)) == alone * 3
    assert packed(np.asfortranarray(tiles[0])) == alone[0]


# What is in them


@pytest.mark.parametrize("dtype", KIND)
@pytest.mark.parametrize("tile_px", [32, 96, 1024])
@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (33, 1), (16, 17), (95, 97), (130, 65)])
def test_pixels_come_back(tmp_path, shape, tile_px, dtype):
    array = pixels(*shape, dtype, seed=3)
    out = made(tmp_path / "a.tif", array, tile_px=tile_px)
    check_layout(out)
    with rasterio.open(out) as dataset:
        np.testing.assert_array_equal(dataset.read(1), array)
        assert dataset.dtypes == (dtype,) and dataset.count == 1
        assert dataset.block_shapes == [(block_px(tile_px),) * 2]


@pytest.mark.parametrize("shape", [(1, 1), (33, 70), (700, 300), (1100, 2100)])
def test_further_bands_lie_beside_the_first_and_leave_it_as_it_is(tmp_path, shape):
    first = pixels(*shape, "uint8", seed=4)
    rest = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    rest[first % 2 == 0] = 255
    array = np.concatenate([first[..., None], rest], axis=2)
    places = pack(tmp_path / "a.journal", array, 128)
    bands = ["class", "b", "c", "d"]
    out = finish(tmp_path / "a.tif", Grid(*shape, NORTH_UP, UTM), places, tile_px=128, dtype="uint8", bands=bands)
    said = [tags[338][1] for _, tags, *_ in check_layout(out)]
    assert set(said) == {3}, "all levels say that the further bands are no colours"
    alone = made(tmp_path / "b.tif", first, tile_px=128)
    with rasterio.open(out) as dataset:
        assert dataset.descriptions == tuple(bands) and set(dataset.nodatavals) == {255}
        np.testing.assert_array_equal(dataset.read(), array.transpose(2, 0, 1))
        count = len(dataset.overviews(1))
    for one, other in zip(levels_of(out), levels_of(alone), strict=True):
        np.testing.assert_array_equal(one, other)
    if count:
        with rasterio.open(out, OVERVIEW_LEVEL=0) as half:
            np.testing.assert_array_equal(half.read([2, 3, 4]), rest[::2, ::2].transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", KIND)
@pytest.mark.parametrize(
    ("shape", "tile_px", "block"),
    [
        ((513, 40), 32, 16),
        ((1, 2100), 64, 32),
        *slow(((1030, 27), 1024, 512), ((2049, 30), 192, 96)),
        # with smaller blocks, tiles in which level 2 is half a block, a block, two, and one and a half
        ((300, 470), 128, 64),
        ((290, 520), 256, 64),
        ((620, 150), 512, 64),
        ((90, 801), 384, 64),
    ],
)
def test_overviews_are_means_and_modes_of_four(tmp_path, monkeypatch, shape, tile_px, block, dtype):
    most = 64 if block == 64 else 512
    monkeypatch.setattr("geood.geo.cog.encoding.BLOCK_PX", most)
    array = pixels(*shape, dtype, seed=1)
    array[shape[0] // 3 :, shape[1] // 2 :] = KIND[dtype][0]
    out = made(tmp_path / "a.tif", array, tile_px=tile_px)
    levels = levels_of(out)
    assert block_px(tile_px) == block
    np.testing.assert_array_equal(levels[0], array)
    assert max(levels[-1].shape) <= most < max(levels[-2].shape)
    for upper, lower in zip(levels[1:], levels, strict=False):
        np.testing.assert_allclose(upper, halved(lower), rtol=2e-5, atol=1e-7)
    check_layout(out)


def test_modes_of_four_equal_counting():
    values = np.array([0, 1, 2, 3, 255], np.uint8)
    every = np.stack(np.meshgrid(*[values] * 4, indexing="ij"), -1).reshape(-1, 2, 2)
    wanted = [halved(four)[0, 0] for four in every]
    np.testing.assert_array_equal(encoding.SHRINK["mode"](np.concatenate(every, axis=1))[0], wanted)


def test_means_of_four_take_infinite_scores_as_they_are():
    array = np.array([[np.inf, 1, NAN, NAN, np.inf, -np.inf], [2, NAN, NAN, 5, 1, 1]], np.float32)
    np.testing.assert_array_equal(encoding.SHRINK["average"](array), np.array([[np.inf, 5, NAN]], np.float32))


@pytest.mark.parametrize("dtype", KIND)
def test_missing_and_empty_tiles_are_nodata(tmp_path, dtype):
    array = pixels(300, 1300, dtype)
    array[:, 256:640] = KIND[dtype][0]
    out = tmp_path / "a.tif"
    places = pack(out.with_suffix(".journal"), array, 128)
    del places[9], places[27]
    for number, tile in enumerate(tile_grid(300, 1300, tile_px=128, halo_px=0)):
        if number in (9, 27):
            array[tile.write.slices] = KIND[dtype][0]
    finish(out, Grid(300, 1300, NORTH_UP, UTM), places, tile_px=128, dtype=dtype)
    levels = levels_of(out)
    np.testing.assert_array_equal(levels[0], array)
    np.testing.assert_allclose(levels[2], halved(halved(array)), rtol=4e-5, atol=2e-5)
    assert (check_layout(out)[0][3] == 0).sum() > 20


def test_nothing_at_all_is_a_whole_file(tmp_path):
    (tmp_path / "a.journal").touch()
    out = finish(tmp_path / "a.tif", Grid(3000, 2000, NORTH_UP, UTM), {}, tile_px=1024)
    with rasterio.open(out) as dataset:
        assert dataset.shape == (3000, 2000) and np.isnan(dataset.read(1)).all()
    check_layout(out)


# Their bytes


@pytest.mark.parametrize("dtype", KIND)
def test_the_order_of_tiles_does_not_show(tmp_path, dtype):
    array = pixels(700, 1400, dtype)
    one = made(tmp_path / "one.tif", array, tile_px=128)
    two = made(tmp_path / "two.tif", array, tile_px=128, order=-1)
    assert (tmp_path / "one.journal").read_bytes() != (tmp_path / "two.journal").read_bytes()
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("dtype", KIND)
def test_the_file_is_what_gdal_would_write(tmp_path, dtype):
    """Header and directories are those of GDAL's own COG of the same levels, and blocks about as long: it has a ZSTD of
    its own."""
    nodata, overview = KIND[dtype]
    array = np.nan_to_num(pixels(1024, 1024, dtype), nan=0.5)
    array[array == nodata] = 1
    said = {"bands": ["scores"], "tags": {"GEOOD_X": "<1>"}, "statistics": {"STATISTICS_MEAN": "0.25"}}
    ours = made(tmp_path / "a.tif", array, tile_px=512, **said)
    theirs = tmp_path / "b.tif"
    packing = {"COMPRESS": gdal.compression(), "LEVEL": 1, "PREDICTOR": "YES" if dtype == "float32" else "NO"}
    more = {"BLOCKSIZE": 256, "OVERVIEWS": "FORCE_USE_EXISTING", "OVERVIEW_RESAMPLING": overview}
    rasterio.shutil.copy(ours, theirs, driver="COG", **packing, **more)
    ours, theirs = ours.read_bytes(), theirs.read_bytes()
    assert ours[:150] == theirs[:150]
    for mine, other in zip(directories(ours), directories(theirs), strict=True):
        told, own = ({k: v for k, v in found[1].items() if k not in (324, 325)} for found in (mine, other))
        assert told == own
        np.testing.assert_allclose(mine[3], other[3], rtol=0.05)
        np.testing.assert_array_equal(np.diff(mine[2]), mine[3][:-1] + 8)


def test_a_large_file_is_a_bigtiff(tmp_path, monkeypatch):
    array = pixels(600, 1100)
    small = made(tmp_path / "small.tif", array, tile_px=128, tags={"A": "x"})
    monkeypatch.setattr("geood.geo.cog.layout.CLASSIC_BYTES", small.stat().st_size)
    assert made(tmp_path / "same.tif", array, tile_px=128, tags={"A": "x"}).read_bytes() == small.read_bytes()
    monkeypatch.setattr("geood.geo.cog.layout.CLASSIC_BYTES", small.stat().st_size - 1)
    big = made(tmp_path / "big.tif", array, tile_px=128, tags={"A": "x"})
    assert (small.read_bytes()[2], big.read_bytes()[2]) == (42, 43)
    check_layout(big)
    for one, other in zip(levels_of(small), levels_of(big), strict=True):
        np.testing.assert_array_equal(one, other)
    with rasterio.open(big) as dataset:
        assert dataset.crs == UTM and dataset.tags()["A"] == "x" and dataset.descriptions == ("anomaly score",)


def test_offsets_beyond_four_gigabytes_are_right(tmp_path):
    """A raster of more than 4 GB, most of whose blocks are the same ones, told from its directories alone."""
    sizes = np.full((100, 100), 10**6)
    with (tmp_path / "a").open("wb+") as source:
        levels = [layout.PyramidLevel(51200, 51200, source, np.zeros_like(sizes), sizes)]
        like = layout.template(
            Grid(9, 9, NORTH_UP, UTM), block=512, dtype="float32", nodata=NAN, tags={}, bands=[""], statistics={}
        )
        ((_, _, offsets, found),) = directories(layout._head(levels, like, big=True))
    np.testing.assert_array_equal(np.diff(offsets), 10**6 + 8)
    assert offsets[-1] > 2**32 and (found == 10**6).all()


@pytest.mark.parametrize("dtype", KIND)
def test_without_zstd_it_is_deflate(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("geood.geo.cog.layout.compression", lambda: "DEFLATE")
    array = pixels(200, 1100, dtype)
    out = made(tmp_path / "a.tif", array, tile_px=128)
    with rasterio.open(out) as dataset:
        assert dataset.compression.value == "DEFLATE"
        np.testing.assert_array_equal(dataset.read(1), array)
    check_layout(out)


# Georeferencing and tags


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_grid_is_exactly_that(tmp_path, place):
    array = pixels(70, 600)
    with rasterio.open(made(tmp_path / "a.tif", array, tile_px=64, place=place)) as dataset:
        assert (dataset.transform, dataset.crs) == place
    assert sorted(os.listdir(tmp_path)) == ["a.journal", "a.tif"]


@pytest.mark.parametrize("crs", ODD_CRS.values(), ids=ODD_CRS)
def test_an_odd_crs_is_spelled_as_gdal_spells_it(tmp_path, crs):
    array = pixels(40, 50)
    shape = {"height": 40, "width": 50, "count": 1, "dtype": "float32", "nodata": float("nan")}
    with rasterio.open(tmp_path / "work.tif", "w", crs=crs, transform=NORTH_UP, **shape) as dataset:
        dataset.write(array, 1)
    rasterio.shutil.copy(tmp_path / "work.tif", tmp_path / "theirs.tif", driver="COG")
    made(tmp_path / "ours.tif", array, tile_px=64, place=(NORTH_UP, crs))
    with rasterio.open(tmp_path / "theirs.tif") as theirs, rasterio.open(tmp_path / "ours.tif") as ours:
        beside = (tmp_path / "theirs.tif.aux.xml").exists()  # what a GeoTIFF has no words for
        assert ours.crs == (None if beside else theirs.crs) and ours.transform == theirs.transform


def test_tags_description_and_statistics_are_as_given(tmp_path):
    tags = {"GEOOD_CLASSES": '{"0": "a & <b>", "1": "straße"}', "GEOOD_LONG": "x" * 5000}
    figures = {"STATISTICS_MINIMUM": "0.125", "STATISTICS_MEAN": repr(1 / 3)}
    said = {"tags": tags, "statistics": figures, "bands": ["anomaly score"]}
    with rasterio.open(made(tmp_path / "a.tif", pixels(40, 600), tile_px=64, **said)) as dataset:
        assert dataset.tags() == tags | {"AREA_OR_POINT": "Area"} and dataset.tags(1) == figures
        assert dataset.descriptions == ("anomaly score",) and np.isnan(dataset.nodata)
    with rasterio.open(made(tmp_path / "b.tif", pixels(40, 600, "uint8"), tile_px=64)) as dataset:
        assert dataset.nodata == 255


# Disks


def test_an_interrupted_run_leaves_the_old_output_and_the_next_one_clears_up(tmp_path, monkeypatch):
    out = made(tmp_path / "a.tif", pixels(64, 64), tile_px=64)
    before = out.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("geood.geo.cog.layout._runs", stop)
        made(out, pixels(64, 64, seed=1), tile_px=64)
    assert out.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["a.journal", "a.tif"]
    (tmp_path / ".a.tif.partial").mkdir()
    (tmp_path / ".a.tif.partial" / "a.tif").write_bytes(b"killed")
    assert made(out, pixels(64, 64, seed=1), tile_px=64).read_bytes() != before
    assert sorted(os.listdir(tmp_path)) == ["a.journal", "a.tif"]


@pytest.mark.parametrize("side", [300, 620, 680, 730, 1400])
def test_a_full_disk_is_an_error_and_leaves_nothing(small_disk, tmp_path, side):
    array = np.random.default_rng(0).random((side, side), np.float32)
    places = pack(tmp_path / "a.journal", array, 128)
    grid, out = Grid(side, side, NORTH_UP, UTM), small_disk / "a.tif"
    (small_disk / "a.journal").symlink_to(tmp_path / "a.journal")
    try:
        finish(out, grid, places, tile_px=128)
    except OutputError as error:
        assert "a.tif: cannot be written" in str(error) and "free space" in str(error)
        assert side > 600 and os.listdir(small_disk) == ["a.journal"]
    else:
        assert side < 730
        np.testing.assert_array_equal(levels_of(out)[0], array)


def test_a_short_file_is_noticed(tmp_path, monkeypatch):
    places = pack(tmp_path / "a.journal", pixels(64, 64), 64)
    monkeypatch.setattr("geood.geo.cog.layout.read_at", lambda *_: b"")
    with pytest.raises(OutputError, match="only part of it"):
        finish(tmp_path / "a.tif", Grid(64, 64, NORTH_UP, UTM), places, tile_px=64)
    assert os.listdir(tmp_path) == ["a.journal"]


def test_a_damaged_journal_is_named(tmp_path):
    grid, journal = Grid(64, 64, NORTH_UP, UTM), tmp_path / "a.journal"
    places = pack(journal, pixels(64, 64), 64)
    os.truncate(journal, journal.stat().st_size - 9)
    with pytest.raises(DataError, match=r"a\.journal"):
        finish(tmp_path / "a.tif", grid, {0: (places[0][0], places[0][1] - 9)}, tile_px=64)
    journal.write_bytes(journal.read_bytes()[:20])
    with pytest.raises(DataError, match=r"a\.journal: cut short"):
        finish(tmp_path / "a.tif", grid, places, tile_px=64)
    assert os.listdir(tmp_path) == ["a.journal"]


@pytest.mark.parametrize("dtype", KIND)
@pytest.mark.parametrize(("side", "tile_px"), [(900, 256), (1500, 512), (1500, 1024)])
def test_the_room_asked_for_is_enough(tmp_path, monkeypatch, side, tile_px, dtype):
    """For noise, which nothing compresses."""
    array = np.random.default_rng(0).integers(0, 250, (side, side, np.dtype(dtype).itemsize), np.uint8)
    array = np.nan_to_num(array.view(dtype)[..., 0], nan=1, copy=True)
    opened, scratch = [], []

    def scratch_file(**how):
        opened.append(TemporaryFile(**how))  # noqa: SIM115 - closed by the code under test
        return opened[-1]

    monkeypatch.setattr("geood.geo.cog.assembly.TemporaryFile", scratch_file)
    monkeypatch.setattr("geood.geo.cog.assembly.SpacedFile.where_possible", lambda *_: None)
    write = layout.write_cog
    monkeypatch.setattr(
        "geood.geo.cog.assembly.write_cog",
        lambda path, *rest: (write(path, *rest), scratch.append(sum(one.seek(0, os.SEEK_END) for one in opened))),
    )
    with np.errstate(over="ignore"):
        places = pack(tmp_path / "a.journal", array, tile_px)
        out = finish(tmp_path / "a.tif", Grid(side, side, NORTH_UP, UTM), places, tile_px=tile_px, dtype=dtype)
    needed, chunks = out.stat().st_size + sum(scratch), sum(length for _, length in places.values())
    assert max(needed, chunks) <= WORST * array.nbytes


def test_memory_does_not_grow_with_the_scene(tmp_path):
    """100,000 x 100,000 pixels with a few tiles, in a process of its own."""
    side, tile_px = 100_000, 1024
    array = pixels(tile_px, tile_px)
    chunk = encode_tile(array, tile_px=tile_px, nodata=NAN, overview="average")
    (tmp_path / "a.journal").write_bytes(chunk)
    code = f"""
import resource, time
from pathlib import Path
import rasterio
from geood.geo.cog.assembly import Assembly
from geood.geo.grid import Affine, Grid
places = {{n: (0, {len(chunk)}) for n in (0, 5000, 5001, 9000)}}
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
with Assembly(Path("a.tif"), Grid({side}, {side}, Affine.identity()), journal=Path("a.journal"), places=places,
    tile_px={tile_px}, dtype="float32", nodata=float("nan"), overview="average", bands=[""]) as assembly:
    assembly.finish(tags={{}}, statistics={{}})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    grown_kb, seconds = map(float, done.stdout.split())
    assert grown_kb < 150_000 and seconds < 20
    assert (tmp_path / "a.tif").stat().st_size < 30e6
    with rasterio.open(tmp_path / "a.tif") as dataset:
        row, col = (place * tile_px for place in divmod(9000, -(-side // tile_px)))
        window = rasterio.windows.Window(col, row, tile_px, tile_px)
        np.testing.assert_array_equal(dataset.read(1, window=window), array)
        assert np.isfinite(dataset.read(1, out_shape=(391, 391))).sum() == 4 * 16


def test_rounded_scores_have_sixteen_bits_and_are_near():
    scores = np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32) * 10.0 ** np.arange(-30, 30, 0.006)
    scores = np.r_[scores, 0, NAN].astype(np.float32)
    found = rounded(scores)
    assert found.dtype == np.float32 and not (found.view("u4") & 0xFF)[:-1].any() and np.isnan(found[-1])
    np.testing.assert_array_less(np.abs(found - scores)[:-2], np.abs(scores[:-2]) * 2.0**-16 * 1.0001)
    np.testing.assert_array_equal(rounded(found), found)
    np.testing.assert_array_equal(rounded(torch.from_numpy(scores)).numpy(), found)


def test_blocks_are_those_of_gdal(tmp_path):
    """Unpacked by GDAL, with the predictor as libtiff undoes it."""
    array = pixels(256, 192)
    with rasterio.open(made(tmp_path / "a.tif", array, tile_px=64)) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        np.testing.assert_array_equal(dataset.read(1), array)


def test_pixels_of_level_2_are_compressed_where_some_are_missing_and_damage_is_told(tmp_path):
    array = np.full((256, 256), NAN, np.float32)
    array[40:, :90] = 0.5
    whole, holed = (
        encode_tile(each, tile_px=256, nodata=NAN, overview="average") for each in (np.nan_to_num(array), array)
    )
    assert len(holed) < len(whole) - 64 * 64 * 3
    path = tmp_path / "chunk"
    path.write_bytes(holed.tobytes())
    with path.open("r+b", buffering=0) as file:
        quarter = encoding.read_index(file, 0, len(holed), pixel_bytes=4).quarter
        wanted = encoding.SHRINK["average"](encoding.SHRINK["average"](array))
        np.testing.assert_array_equal(quarter.pixels(file, array), wanted)
        file.seek(quarter.offset)
        file.write(bytes(quarter.length))
        with pytest.raises(DataError, match="damaged at byte"):
            quarter.pixels(file, array)
