"""Laws of GDAL's pool of sources: what failed is forgotten, and it takes no more files than may be open."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geood.errors import DataError
from geood.geo import source_pool
from geood.geo.gdal import open_raster, reading
from geood.geo.grid import Window
from geood.geo.mosaic import write_mosaic
from geood.geo.scene import Scene
from support.rasters import HALF_METRE, write_raster
from support.threads import in_threads


def tiles(folder, count, side=16):
    for number in range(count):
        place = HALF_METRE @ HALF_METRE.translation(side * (number % 10), side * (number // 10))
        write_raster(folder / f"{number:03}.tif", np.full((1, side, side), 90, "uint8"), transform=place)
    return folder


def test_a_failure_that_nobody_raised_is_forgotten_too(tmp_path):
    """GDAL looks for overviews of the sources, which tells it that one is gone, and rasterio does not raise that."""
    path = write_mosaic(tiles(tmp_path / "tiles", 2), tmp_path / "m.vrt")
    (tmp_path / "tiles" / "001.tif").unlink()
    with open_raster(path) as dataset:
        with reading(path):
            dataset.overviews(1)
        for _ in range(2):
            with pytest.raises(DataError, match=r"001\.tif"), reading(path):
                dataset.read(1)


def test_sources_that_are_whole_are_read_on(tmp_path):
    path = write_mosaic(tiles(tmp_path / "tiles", 3), tmp_path / "m.vrt")
    (tmp_path / "tiles" / "001.tif").unlink()
    bad = []

    def work():
        with Scene.open(path) as scene:
            for _ in range(5):
                try:
                    scene.read(Window(0, 16, 8, 8))
                    bad.append("read")
                except DataError:
                    pass
                for col in (0, 32):
                    if not (scene.read(Window(0, col, 16, 16))[0] == 90).all():
                        bad.append(col)

    in_threads(work)
    assert not bad


def test_the_log_stays_free_of_what_gdal_says(tmp_path, caplog):
    caplog.set_level("DEBUG")
    with pytest.raises(DataError):
        open_raster(Path(__file__))
    assert "GDAL signalled" not in caplog.text


@pytest.mark.parametrize(("limit", "size"), [(64, 8), (128, 32), (256, 96), (1024, 100), (10**6, 100)])
def test_the_pool_leaves_files_for_others(monkeypatch, limit, size):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert source_pool.pool_size.__wrapped__() == size


def test_more_tiles_than_files_may_be_open(tmp_path):
    """In a process of its own, as the limit cannot be raised again."""
    pytest.importorskip("resource")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
        "from geood.geo.mosaic import write_mosaic; from geood.geo.scene import Scene;"
        "scene = Scene.open(write_mosaic([sys.argv[1]], sys.argv[2]));"
        "print(int((scene.read(scene.grid.window)[0] == 90).sum()))"
    )
    command = [sys.executable, "-c", code, tiles(tmp_path / "tiles", 80), tmp_path / "m.vrt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 80 * 16 * 16


def test_a_limit_of_open_files_is_named(tmp_path):
    said = r"fewer files may be open than it takes; raise the limit \(ulimit -n\)"
    with pytest.raises(DataError, match=said), reading(tmp_path / "a.tif"):
        raise rasterio.errors.RasterioIOError("a.tif: Too many open files")
