"""Laws of tile sides: they grow where that saves time, where it changes nothing, and where memory allows."""

from dataclasses import replace

import pytest
import torch
from affine import Affine

from geood.geo.grid import Grid
from geood.geo.scene_reading import tile_side
from geood.models.bundle_header import Reach
from geood.prediction.budget import TILES_PX
from geood.prediction.tile_size import begun_tile, grown_tile
from support.bundles import make_bundle

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU tiles are computed in batches")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A bundle whose network looks 64 px far."""
    path = tmp_path_factory.mktemp("narrow") / "m.safetensors"
    made = make_bundle(path, predict={"tile_px": "auto", "halo_px": "auto"})
    return replace(made, reach=Reach(halo_px=64, beyond=(0.4, 0.005)))


def side(bundle, height, width, *, held=4096, cores=2, monkeypatch, **how):
    monkeypatch.setattr("geood.prediction.tile_size.os.cpu_count", lambda: cores)
    grid = Grid(height, width, Affine.identity(), None)
    return grown_tile(bundle, grid, holds=lambda px: px <= held, **how)


@pytest.mark.parametrize(
    ("height", "width", "cores", "chosen"),
    [
        (8192, 8192, 2, 2048),
        (4096, 4096, 2, 2048),
        (2048, 2048, 2, 1024),  # one tile would leave a core without work
        (2048, 2048, 1, 2048),
        (4096, 4096, 16, 1024),
        (100_000, 100_000, 16, 2048),
        (900, 900, 2, 1024),
    ],
)
def test_tiles_grow_where_the_busiest_core_has_less_to_read(narrow, monkeypatch, height, width, cores, chosen):
    assert side(narrow, height, width, cores=cores, monkeypatch=monkeypatch) == chosen


def test_the_next_best_is_taken_where_memory_does_not_hold_the_best(narrow, monkeypatch):
    for held, chosen in ((2048, 2048), (2047, 1536), (1024, 1024), (0, 1024)):
        assert side(narrow, 16_384, 16_384, held=held, monkeypatch=monkeypatch) == chosen


def test_a_scene_that_is_resampled_counts_by_the_pixels_that_are_read(narrow, monkeypatch):
    assert side(narrow, 4096, 4096, scale=0.5, monkeypatch=monkeypatch) == 1024
    assert side(narrow, 2048, 2048, scale=4.0, monkeypatch=monkeypatch) == 2048


@pytest.mark.parametrize("scale", [1.0, 0.5, 4.0, 0.3, 2.7])
def test_the_side_of_a_run_that_was_begun_is_known_again(scale):
    for px in TILES_PX:
        assert tile_side(begun_tile(tile_side(px, scale), scale), scale) == tile_side(px, scale)
    assert {begun_tile(side, scale) for side in (None, 0, 31, "1024", [1024])} == {None}


def test_tiles_stay_where_scores_depend_on_them_or_a_side_is_named(narrow, monkeypatch):
    kept = [
        replace(narrow, reach=None),
        replace(narrow, reach=Reach(halo_px=64, beyond=(0.4, 0.02))),
        narrow.with_settings(["predict.halo_px=32"]),  # less than it needs
    ]
    assert {side(bundle, 8192, 8192, monkeypatch=monkeypatch) for bundle in kept} == {1024}
    assert side(narrow.with_settings(["predict.tile_px=512"]), 8192, 8192, monkeypatch=monkeypatch) == 512
    wide = replace(narrow, reach=Reach(halo_px=160, beyond=(0.4,) * 4 + (0.0,)))
    assert side(wide, 2048, 2048, monkeypatch=monkeypatch) == wide.tile_px == 2048
