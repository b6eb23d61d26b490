"""Laws of what a run may take: sizes as people write them, memory that is kept, room on the disk."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from affine import Affine

from geood.errors import ConfigError, OutputError
from geood.geo.mosaic import write_mosaic
from geood.geo.scene import Scene
from geood.models.inlier_statistics import Inliers
from geood.prediction.budget import (
    LEAST_CACHE,
    LIGHT,
    Budget,
    SceneMemory,
    budget,
    check_disk,
    disk_needed,
    parse_bytes,
)
from geood.prediction.cluster import threads_of
from geood.prediction.pipeline import predict
from geood.prediction.plan import _cache
from geood.prediction.tile_memory import tile_bytes
from support.bundles import make_bundle, with_statistics
from support.rasters import HALF_METRE, picture, write_raster


@pytest.fixture(scope="module")
def done():
    """Bytes of tiles by bundle and size."""
    return {}


@pytest.fixture(autouse=True)
def measured_once(monkeypatch, done):
    """Each size of a tile of each bundle is measured once."""

    def measured(bundle, side):
        if (id(bundle), side) not in done:
            done[id(bundle), side] = bundle, tile_bytes(bundle, side)  # a bundle that is kept keeps its id
        return done[id(bundle), side][1]

    monkeypatch.setattr("geood.prediction.budget.tile_bytes", measured)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A bundle with large tiles."""
    return make_bundle(tmp_path_factory.mktemp("large") / "m.safetensors", predict={"tile_px": 2048, "halo_px": 32})


SIZES = [
    ("2GB", 2e9),
    ("2g", 2e9),
    ("1.5 GB", 1.5e9),
    ("800MB", 8e8),
    ("1GiB", 2**30),
    ("512 MiB", 2**29),
    ("100", 100),
]


@pytest.mark.parametrize(("text", "number"), SIZES)
def test_sizes_are_read_as_people_write_them(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "two", "1e400", "nan", "2GBB2"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="2GB"):
        parse_bytes(text)


def test_without_a_limit_a_run_is_as_its_config_says(bundle):
    assert budget(bundle).tile_px == bundle.config.predict.tile_px


def test_a_limit_makes_tiles_smaller_or_fewer_until_they_fit(large):
    free = budget(large)
    fitting = [budget(large, max_ram=free.bytes - step) for step in (0, 2**27, 2**28)]
    assert fitting[0] == Budget(
        2048,
        free.computing,
        fitting[0].cache_bytes,
        fitting[0].bytes,
        free.gpu_bytes,
        free.bytes,
        0,
        fitting[0].reading,
    )
    for limit, found in zip((0, 2**27, 2**28), fitting, strict=True):
        assert found.bytes <= free.bytes - limit
    assert fitting[2].tile_px * fitting[2].computing < free.tile_px * free.computing


def test_a_limit_that_nothing_fits_is_refused_with_the_least_that_does(bundle):
    with pytest.raises(ConfigError, match=r"--max-ram 0.01GB: this model needs at least \d\.\dGB") as error:
        budget(bundle, max_ram=10**7)
    least = float(str(error.value).split("at least ")[1].split("GB")[0])
    budget(bundle, max_ram=int(least * 1e9) + 2**28)  # this process has grown since


def test_processes_count_for_themselves(bundle):
    if not torch.cuda.is_available():
        assert budget(bundle, workers=3).bytes > budget(bundle, workers=1).bytes + 2 * 4e8


def test_what_a_process_may_hold(bundle):
    assert budget(bundle).process_bytes is None
    assert budget(bundle, max_ram=4 * 10**9).process_bytes == 4 * 10**9
    many = budget(bundle, workers=2, max_ram=8 * 10**9).process_bytes
    assert many is not None and 3.4e9 < many < 4e9


def test_memory_is_given_back_before_the_limit(tmp_path, bundle_path, monkeypatch):
    bounds = []

    def given_back(above):
        bounds.append(above)

    monkeypatch.setattr("geood.prediction.worker.give_back", given_back)
    scene = write_raster(tmp_path / "scene.tif", picture(96, 96))
    predict([scene], tmp_path / "free.tif", bundle_path=bundle_path)
    assert not bounds
    predict([scene], tmp_path / "bound.tif", bundle_path=bundle_path, max_ram="3GB")
    assert bounds and set(bounds) == {int(2.7e9)}


def test_a_disk_without_room_is_refused_before_any_work(tmp_path):
    check_disk(tmp_path, 1)
    with pytest.raises(OutputError, match="free space"):
        check_disk(tmp_path, 10**18)
    assert disk_needed(1e6, classes=True) > disk_needed(1e6, classes=False) > 8e6


MEASURE = r"""
import re, sys
from pathlib import Path
from geood.prediction.malloc import keep_freed_memory
keep_freed_memory()
from geood.prediction.cluster import threads_of
from geood.prediction.pipeline import predict
from geood.prediction.plan import _cache
scene, bundle, out, limit = sys.argv[1:]
predict([scene], out, bundle_path=bundle, max_ram=limit)
print(int(re.search("VmHWM: *([0-9]+)", Path("/proc/self/status").read_text().replace("\t", " "))[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_memory_that_was_allowed_is_kept(tmp_path):
    from support.rasters import picture, write_raster

    encoder = {"encoder": "resnet18", "decoder_channels": 64, "outlier": "none"}
    make_bundle(tmp_path / "m.safetensors", segmenter=encoder, predict={"tile_px": 2048, "halo_px": 64})
    scene = write_raster(tmp_path / "s.tif", picture(530, 1060))  # six tiles, two of 512 px at a time
    command = [sys.executable, "-c", MEASURE, str(scene), str(tmp_path / "m.safetensors"), str(tmp_path / "x.tif")]
    allowed = 1200 if torch.version.cuda is None else 2100 if torch.cuda.is_available() else 1550
    done = subprocess.run([*command, f"{allowed}MB"], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < allowed * 1e6


@pytest.mark.parametrize(("interleave", "most"), [("pixel", 3), ("band", 1)])
def test_large_blocks_count_for_the_limit(tmp_path, bundle, interleave, most):
    import rasterio

    shape = {"height": 8192, "width": 16_384, "count": 3, "dtype": "uint8", "sparse_ok": True, "crs": "EPSG:32633"}
    blocks = {"tiled": True, "blockxsize": 8192, "blockysize": 8192, "compress": "deflate", "interleave": interleave}
    with rasterio.open(tmp_path / "s.tif", "w", driver="GTiff", transform=HALF_METRE, **shape, **blocks):
        pass
    one = 8192**2 * most
    plain = budget(bundle, max_ram=10**10)
    with Scene.open(tmp_path / "s.tif") as scene:
        assert scene.block_bytes == 2 * one and scene.shared and not scene.strips
        memory = SceneMemory.of(scene)
        rows = plain.tile_px + 2 * bundle.halo_px
        assert _cache(scene, memory, budget(bundle, max_ram=10**10, scenes=[memory]), rows=rows) == plain.cache_bytes
        with pytest.raises(ConfigError, match=r"stored in blocks of 8192 x 8192 px, of 3 bands of uint8.*--max-ram"):
            _cache(scene, memory, replace(plain, limit=plain.bytes), rows=rows)
    counted = budget(bundle, max_ram=10**10, scenes=[SceneMemory(), memory])
    assert counted.bytes - plain.bytes == 2 * one + max(0, one - plain.cache_bytes)  # packed, unpacked, in the cache
    assert budget(bundle, max_ram=counted.bytes, scenes=[memory]).bytes <= counted.bytes
    tight = budget(bundle, max_ram=plain.bytes).bytes + 2**22  # enough for the model
    with pytest.raises(ConfigError, match=r"s\.tif: is stored in blocks of 8192 x 8192 px.*at least.*gdal_translate"):
        budget(bundle, max_ram=tight, scenes=[memory])


def test_tiles_shrink_for_a_scene_before_it_is_refused(large):
    """Also of wide numbers: what fits alone with the largest tiles fits with smaller ones beside a large block."""
    alone = budget(large)
    for memory in (SceneMemory(decoded=2**27), SceneMemory(number_bytes=9), SceneMemory(decoded=2**27, shared=True)):
        needing = budget(large, max_ram=10**11, scenes=[memory])
        assert needing.bytes > alone.bytes and needing.tile_px == 2048
        fitting = budget(large, max_ram=alone.bytes, scenes=[memory])
        assert fitting.bytes <= alone.bytes
        assert fitting.tile_px * fitting.computing < 2048 * alone.computing


def test_wide_numbers_of_many_bands_count(tmp_path, bundle):
    path = write_raster(tmp_path / "s.tif", picture(64, 64).astype("float64"))
    with Scene.open(path) as scene:
        memory = SceneMemory.of(scene)
    assert memory.number_bytes == 9  # and whether it is finite
    side, threads = bundle.tile_px + 2 * bundle.halo_px, threads_of(0)[1]
    wide, narrow = (budget(bundle, max_ram=10**10, scenes=[SceneMemory(number_bytes=n)]).bytes for n in (9, 4))
    assert wide - narrow == threads * side**2 * bundle.bands.count * 5


def test_heavy_weights_and_banks_count(tmp_path):
    bundle = with_statistics(make_bundle(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    held = dict(bundle.inliers.named_buffers())
    bank = torch.zeros(2**27 // held["bank"].shape[1] // 4, held["bank"].shape[1])
    heavy = replace(bundle, inliers=Inliers(held | {"bank": bank}))
    assert budget(heavy).bytes >= budget(bundle).bytes + 2**27 - LIGHT
    knn = heavy.with_score(heavy.config.score.model_copy(update={"kind": "knn"}))
    with pytest.raises(ConfigError, match=r"its score knn compares with a bank"):
        budget(knn, max_ram=10**7)


def test_blocks_of_the_tiles_of_a_mosaic_count_as_those_of_a_scene(tmp_path):
    blocks = {"tiled": True, "blockxsize": 256, "blockysize": 240, "interleave": "pixel"}
    path = write_raster(tmp_path / "s.tif", picture(300, 300), **blocks)
    east = HALF_METRE @ Affine.translation(300, 0)
    small = write_raster(
        tmp_path / "t.tif", picture(300, 300), transform=east, tiled=True, blockxsize=16, blockysize=16
    )
    with Scene.open(path) as scene, Scene.open(write_mosaic([small, path], tmp_path / "m.vrt")) as mosaic:
        assert mosaic.block_bytes == scene.block_bytes == 2 * 256 * 240 * 3
        assert mosaic.shared == scene.shared


def test_the_cache_holds_two_tiles_for_each_thread(tmp_path, bundle):
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "pixel"}
    path = write_raster(tmp_path / "s.tif", picture(1024, 1024), **tiled)
    limits = replace(budget(bundle), computing=1)
    with Scene.open(path) as scene:
        memory = SceneMemory.of(scene)
        assert _cache(scene, memory, limits, rows=64) == LEAST_CACHE < limits.cache_bytes
        assert _cache(scene, memory, limits, rows=1153) == 2 * threads_of(0, 1)[1] * 1536**2 * 3
        assert _cache(scene, memory, limits, rows=9000) == limits.cache_bytes
        assert _cache(scene, memory, replace(limits, computing=0), rows=64) == limits.cache_bytes  # of other machines


def test_blocks_of_every_thread_count(tmp_path, bundle):
    tiled = {"tiled": True, "blockxsize": 1024, "blockysize": 1024, "interleave": "pixel"}
    path = write_raster(tmp_path / "s.tif", picture(1024, 1024), **tiled)
    limits = replace(budget(bundle), cache_bytes=0, bytes=0, workers=2, computing=1, reading=0)
    threads = threads_of(2, 1)[1]
    with Scene.open(path) as scene:
        memory = SceneMemory.of(scene)
        needed = 2 * threads * 3 * 1024**2 * 3
        _cache(scene, memory, replace(limits, limit=needed), rows=64)
        with pytest.raises(ConfigError, match="blocks"):
            _cache(scene, memory, replace(limits, limit=needed - 1), rows=64)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("smooth_px", [0, 4])
@pytest.mark.parametrize("kind", ["combined", "knn"])
def test_scores_keep_to_the_memory_that_was_planned_for_them(tmp_path, kind, smooth_px):
    encoder = {"encoder": "resnet18", "decoder_channels": 64, "outlier": "head"}
    predict_as = {"tile_px": 1024, "halo_px": 64}
    bare = make_bundle(tmp_path / "a.safetensors", segmenter=encoder, predict=predict_as)
    score = bare.config.score.model_copy(update={"kind": kind, "smooth_px": smooth_px})
    knots = {kind: {"0.001": 1.0, "0.01": 0.9, "0.05": 0.8}}
    bundle = with_statistics(
        replace(bare.with_score(score), calibration=knots, calibrated=score), tmp_path / "m.safetensors"
    )
    scene = write_raster(tmp_path / "s.tif", picture(1500, 1500))
    planned = budget(bundle).bytes
    command = [sys.executable, "-c", MEASURE, str(scene), str(tmp_path / "m.safetensors"), str(tmp_path / "x.tif")]
    done = subprocess.run([*command, f"{planned}B"], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < planned


def test_a_limit_says_that_a_halo_takes_a_part_of_it(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ConfigError, match=r"its halo of 320 px takes a part of it, see predict\.halo_px"):
        budget(make_bundle(path, predict={"tile_px": "auto", "halo_px": 320}), max_ram=10**7)
    with pytest.raises(ConfigError, match=r"smaller segmenter\.encoder$"):
        budget(make_bundle(path, predict={"halo_px": 0}), max_ram=10**7)
