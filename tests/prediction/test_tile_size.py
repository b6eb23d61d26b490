"""Laws of tile sides: they grow where that saves time, where it changes nothing, and where memory allows."""

from dataclasses import replace

import pytest
import torch
from affine import Affine

from geood.geo.grid import Grid
from geood.geo.scene_reading import tile_side
from geood.models.bundle_header import Reach
from geood.prediction.budget import config_budget
from geood.prediction.tile_size import TILES_PX, run_side, scene_side
from support.bundles import make_bundle

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU tiles are computed in batches")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A bundle whose network looks 64 px far."""
    path = tmp_path_factory.mktemp("narrow") / "m.safetensors"
    made = make_bundle(path, predict={"tile_px": "auto", "halo_px": "auto"})
    return replace(made, reach=Reach(halo_px=64, beyond=(0.4, 0.005)))


@pytest.fixture(scope="module")
def wide(narrow):
    """The same bundle, whose network looks 320 px far."""
    return replace(narrow, reach=Reach(halo_px=320, beyond=(0.9,) * 9 + (0.0,)))


@pytest.fixture
def side(monkeypatch):
    """The side of a scene's tiles on a machine that holds tiles of `held` px for each of its `cores`."""

    def chosen(bundle, height, width, *, held=4096, cores=2, here=True, **how):
        monkeypatch.setattr("geood.prediction.tile_size.os.cpu_count", lambda: cores)
        monkeypatch.setattr("geood.prediction.tile_size.machine_holds", lambda _, px: px <= held)
        grid = Grid(height, width, Affine.identity(), None)
        return scene_side(bundle, grid, least=run_side(bundle, here=here), here=here, **how)[0]

    return chosen


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
def test_tiles_grow_where_the_busiest_core_has_less_to_read(narrow, side, height, width, cores, chosen):
    assert side(narrow, height, width, cores=cores) == chosen


def test_the_next_best_is_taken_where_memory_does_not_hold_the_best(narrow, side):
    for held, chosen in ((2048, 2048), (2047, 1536), (1024, 1024), (0, 1024)):
        assert side(narrow, 16_384, 16_384, held=held) == chosen


def test_a_scene_that_is_resampled_counts_by_the_pixels_that_are_read(narrow, side):
    assert side(narrow, 4096, 4096, scale=0.5) == 1024
    assert side(narrow, 2048, 2048, scale=4.0) == 2048


@pytest.mark.parametrize("scale", [1.0, 0.5, 4.0, 0.3, 2.7])
def test_a_run_that_was_begun_keeps_its_side_on_any_machine(narrow, wide, side, scale):
    grid = Grid(8192, 8192, Affine.identity(), None)
    for bundle in (narrow, wide):
        for px in TILES_PX:
            begun = {"tile_px": tile_side(px, scale)}
            kept, known = scene_side(bundle, grid, least=run_side(bundle), begun=begun, scale=scale)
            assert known and tile_side(kept, scale) == begun["tile_px"]
            assert {side(bundle, 8192, 8192, begun=begun, held=held, scale=scale) for held in (0, 4096)} == {kept}
        for strange in (None, 0, 31, "1024", [1024]):
            assert side(bundle, 8192, 8192, begun={"tile_px": strange}) == side(bundle, 8192, 8192)
    named = narrow.with_settings(["predict.tile_px=512"])
    assert side(named, 8192, 8192, begun={"tile_px": 1024}) == 512


def test_with_a_wide_halo_tiles_are_as_large_as_memory_holds(wide, narrow, side, monkeypatch):
    """For any number of workers, and whatever the scene; sides that are named are kept."""
    assert (narrow.tile_px, wide.tile_px) == (1024, 2048)
    for held, px in ((4096, 2048), (2047, 1536), (0, 1024)):
        assert {side(wide, n, n, held=held) for n in (500, 2048, 9000)} == {px}
        assert {config_budget(wide, workers=workers).tile_px for workers in (0, 1, 3)} == {px}
        assert config_budget(narrow).tile_px == 1024
        assert side(wide.with_settings(["predict.tile_px=512"]), 9000, 9000, held=held) == 512


def test_the_machine_that_asks_has_no_say_where_others_compute(wide, narrow, side):
    """Nor have its cores a say in how many tiles a process there computes at a time."""
    for held, cores in ((4096, 1), (4096, 64), (0, 1)):
        assert side(narrow, 16_384, 16_384, held=held, cores=cores, here=False) == narrow.tile_px == 1024
        assert side(wide, 16_384, 16_384, held=held, cores=cores, here=False) == wide.tile_px == 2048
        assert side(narrow, 16_384, 16_384, begun={"tile_px": 1536}, here=False) == 1536
    elsewhere = config_budget(wide, here=False)
    assert (elsewhere.tile_px, elsewhere.computing) == (2048, 0) != (2048, config_budget(wide).computing)


def test_tiles_stay_where_scores_depend_on_them_or_a_side_is_named(narrow, side):
    kept = [
        replace(narrow, reach=None),
        replace(narrow, reach=Reach(halo_px=64, beyond=(0.4, 0.02))),
        narrow.with_settings(["predict.halo_px=32"]),  # less than it needs
    ]
    assert {side(bundle, 8192, 8192) for bundle in kept} == {1024}
    assert side(narrow.with_settings(["predict.tile_px=512"]), 8192, 8192) == 512
    assert side(replace(narrow, reach=Reach(halo_px=64, beyond=(0.4, 0.0))), 8192, 8192) == 2048
