"""Laws of cells: the same figures however tiles are cut and padded, of known pixels alone, and as their bytes say."""

import numpy as np
import pytest
import torch

from geood.calibration import cells
from geood.calibration.cells import (
    CELL_PX,
    DIRECTIONS,
    CellMaps,
    cell_statistics,
    cells_key,
    onto_working,
    pooled_features,
    read_cells,
    statistic_names,
    tile_cells,
)
from geood.geo.bands import Bands
from geood.geo.grid import Tile, Window
from support.rasters import picture

NAMES = statistic_names(("r", "g", "b"), 3)


def maps(side=128, seed=0):
    rng = np.random.default_rng(seed)
    image = (picture(side, side, seed=seed) / 255).astype(np.float32)
    features = torch.from_numpy(rng.random((1, 5, side // 4, side // 4), np.float32))
    classes = rng.integers(0, 3, (side, side)).astype(np.uint8)
    return CellMaps(image, rng.random((side, side), np.float32), classes, pooled_features(features)[0].numpy(), 3)


def test_statistics_are_those_of_the_pixels_of_a_cell():
    whole, known = maps(), np.ones((128, 128), bool)
    rows = cell_statistics(whole, known, every=1)
    assert rows.shape == (4, len(NAMES)) and len(cell_statistics(whole, known, every=2)) == 1
    first = dict(zip(NAMES, rows[0], strict=True))
    corner = (slice(CELL_PX), slice(CELL_PX))
    assert first["level g"] == pytest.approx(whole.image[1][corner].mean(), rel=1e-5)
    assert first["contrast b"] == pytest.approx(whole.image[2][corner].std(), rel=1e-4)
    pair = np.corrcoef(whole.image[0][corner].ravel(), whole.image[1][corner].ravel())[0, 1]
    assert first["likeness r g"] == pytest.approx(pair, abs=1e-4)
    assert first["score 0.9"] == pytest.approx(np.quantile(whole.score[corner], 0.9, method="lower"), rel=1e-6)
    assert first["class 2"] == pytest.approx((whole.classes[corner] == 2).mean(), rel=1e-5)
    assert first["feature 0"] == pytest.approx(whole.features[0, :2, :2].mean(), rel=1e-5)


def test_values_are_ranked_as_by_sorting():
    values = np.random.default_rng(0).normal(size=(3, 501)).astype(np.float32) ** 5
    values[:, :200] = np.float32([-0.5, 0.0, 3e38, -1e-40])[np.arange(200) % 4]
    for shares in ((0.02,), (0.5, 0.9, 0.99)):
        places = [int(share * 500) for share in shares]
        assert np.array_equal(cells._ranked(values, shares), np.sort(values, axis=1)[:, places])


def test_noise_is_its_standard_deviation_and_blur_takes_detail_away():
    rng = np.random.default_rng(0)
    flat = maps(64)._replace(image=np.float32(0.5) + rng.normal(0, 0.05, (1, 64, 64)).astype(np.float32).repeat(3, 0))
    found = dict(zip(NAMES, cell_statistics(flat, np.ones((64, 64), bool))[0], strict=True))
    assert np.exp(found["noise"]) == pytest.approx(0.05, rel=0.1)
    sharp = maps(64)
    blurred = sharp._replace(image=(sharp.image + np.roll(sharp.image, 1, 2) + np.roll(sharp.image, 1, 1)) / 3)
    each = [dict(zip(NAMES, cell_statistics(m, np.ones((64, 64), bool))[0], strict=True)) for m in (sharp, blurred)]
    assert each[1]["detail"] < each[0]["detail"] and each[1]["noise"] < each[0]["noise"]


def test_unknown_pixels_count_for_nothing_and_mostly_unknown_cells_are_left_out():
    whole, known = maps(64), np.ones((64, 64), bool)
    known[:20] = False
    odd = whole._replace(image=whole.image.copy(), score=whole.score.copy())
    odd.image[:, :20], odd.score[:20] = 9.0, np.nan
    np.testing.assert_allclose(cell_statistics(whole, known), cell_statistics(odd, known), rtol=1e-5)
    known[:40] = False
    assert cell_statistics(whole, known).shape == (0, len(NAMES))


def test_a_halo_changes_nothing():
    bare, halo = maps(128), 32
    known = np.random.default_rng(1).random((128, 128)) < 0.9
    tile = Tile(Window(-halo, -halo, 192, 192), Window(0, 0, 128, 128), halo)
    padded = CellMaps(
        np.pad(bare.image, ((0, 0), (halo, halo), (halo, halo)), constant_values=7),
        bare.score,
        bare.classes,
        np.pad(bare.features, ((0, 0), (1, 1), (1, 1)), constant_values=7),
        3,
    )
    expected = cell_statistics(bare, known, every=1)
    np.testing.assert_array_equal(tile_cells(padded, tile, known, scale=1.0, every=1), expected)


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_a_mask_reaches_the_working_grid(scale):
    within = np.zeros((64, 64), bool)
    within[:, :32] = True
    shape = (int(64 * scale), int(64 * scale))
    mask = onto_working(within, Tile(Window(0, 0, *shape), Window(0, 0, 64, 64)), scale=scale, shape=shape)
    assert mask[:, : shape[1] // 2].all() and not mask[:, shape[1] // 2 :].any()


def test_directions_are_the_same_for_ever():
    """Bundles hold what was measured along them."""
    unit = torch.zeros(1, 4, 8, 8)
    unit[:, 0] = 1.0
    found = pooled_features(unit)[0, :, 0, 0].numpy()
    assert found.shape == (DIRECTIONS,)
    np.testing.assert_allclose(found[:3], pooled_features(unit.double())[0, :3, 0, 0].numpy())


def test_bytes_come_back_as_cells_and_damaged_ones_are_left_out():
    rows = cell_statistics(maps(), np.ones((128, 128), bool), every=1)
    np.testing.assert_array_equal(read_cells(rows.astype("<f4").tobytes(), len(NAMES)), rows)
    assert len(read_cells(b"", len(NAMES))) == 0 and len(read_cells(b"12345", len(NAMES))) == 0
    rows[1, 3] = np.nan
    assert len(read_cells(rows.tobytes() + b"1", len(NAMES))) == 3


def test_cells_taken_together_are_those_taken_alone():
    whole, known = maps(192, seed=3), np.ones((192, 192), bool)
    together = cell_statistics(whole, known, every=1)
    alone = [
        cells._statistics(whole, [(slice(row, row + 64), slice(col, col + 64))], known[:64, :64])[0]
        for row in (0, 64, 128)
        for col in (0, 64, 128)
    ]
    np.testing.assert_array_equal(together, np.stack(alone))
    known[5, 100] = False
    np.testing.assert_array_equal(np.delete(cell_statistics(whole, known, every=1), 1, 0), np.delete(together, 1, 0))


def test_cells_that_are_measured_otherwise_have_another_key(monkeypatch):
    keys = {cells_key(("r", "g"), 3), cells_key(("r", "g"), 4), cells_key(("g", "r"), 3)}
    monkeypatch.setattr(cells, "EVERY", 1)
    assert len(keys | {cells_key(("r", "g"), 3)}) == 4


def test_digital_numbers_are_scaled_as_cells_are_cut():
    bands = Bands(("r", "g", "b"), (1, 2, 3), (3.0, 0.0, 9.5), (200.0, 255.0, 249.0), (0.5,) * 3, (1 / 255,) * 3)
    numbers, known = picture(192, 192, seed=4), np.random.default_rng(1).random((192, 192)) < 0.9
    known[:64, :64] = True
    raw = maps(192, seed=4)._replace(image=numbers, bands=bands)
    scaled = raw._replace(image=bands.scale(numbers, np.ones_like(known)), bands=None)
    found = cell_statistics(raw, known, every=1)
    assert len(found) == 9
    np.testing.assert_array_equal(found, cell_statistics(scaled, known, every=1))


def test_a_mask_of_one_scale_is_cut_to_what_was_read():
    within = np.random.default_rng(0).random((60, 50)) < 0.5
    tile = Tile(Window(64, -32, 128, 128), Window(96, 0, 60, 50), 32)
    np.testing.assert_array_equal(onto_working(within, tile, scale=1.0, shape=(60, 50)), within)
    grown = onto_working(within, tile, scale=1.0, shape=(64, 64))
    np.testing.assert_array_equal(grown[:60, :50], within)
    assert not grown[60:].any() and not grown[:, 50:].any()
