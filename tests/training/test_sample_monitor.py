"""Laws of the monitor of samples: known figures of known images, equal treatment, warnings, the picture."""

import math

import pytest
import torch

from geood.training.sample_monitor import (
    LAGS,
    REAL,
    far_off,
    outlined,
    pasted_figures,
    sample_figures,
    sample_picture,
    stacked,
)

STEP = torch.full((3,), 1 / 255)


def _noise(count=64, side=40, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_noise_has_no_correlation_no_borders_and_its_own_spread():
    figures = sample_figures(_noise(), STEP)
    assert all(figures[f"corr_{lag}"] == pytest.approx(0, abs=0.01) for lag in LAGS)
    assert figures["border"] == pytest.approx(1, abs=0.02) and figures["outside"] == 0
    assert figures["spread"] == pytest.approx(12**-0.5, abs=0.005)


def test_blocks_show_as_a_border_and_as_correlation_inside_them_only():
    blocks = _noise(side=5).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    figures = sample_figures(0.9 * blocks + 0.1 * _noise(seed=1), STEP)
    assert figures["border"] > 5 and figures["corr_8"] == pytest.approx(0, abs=0.05)
    # neighbours share a block in 7 of 8 cases, pixels 4 apart in half
    assert figures["corr_1"] == pytest.approx(7 / 8, abs=0.08) and figures["corr_4"] == pytest.approx(1 / 2, abs=0.08)
    assert any("show blocks" in what for what in far_off(figures | {REAL + "border": 1.0}))


def test_correlation_is_that_of_a_known_wave():
    cols = torch.arange(64.0)
    wave = (0.5 + 0.4 * torch.sin(2 * math.pi * cols / 32))[None, None, None].expand(1, 1, 64, 64)
    figures = sample_figures(wave, torch.zeros(1))
    for lag in (4, 8, 16):  # 1 along the crests, the cosine of the phase across them
        assert figures[f"corr_{lag}"] == pytest.approx((1 + math.cos(2 * math.pi * lag / 32)) / 2, abs=0.08)


def test_half_a_digital_number_outside_is_noise_and_more_is_told():
    image = torch.zeros(1, 3, 20, 20)
    assert sample_figures(image - 0.49 / 255, STEP)["outside"] == 0
    assert sample_figures(image - 0.51 / 255, STEP)["outside"] == 1
    assert sample_figures(image + 0.001, torch.zeros(3))["outside"] == 0
    assert sample_figures(image - 0.003, torch.zeros(3))["outside"] == 1
    assert sample_figures(image - 0.001, torch.zeros(3))["outside"] == 0  # a float band: as of 8 bits


def test_turned_and_rearranged_images_have_the_same_figures():
    images = torch.cat([_noise(4), _noise(4, seed=1).cumsum(3) / 40])
    expected = sample_figures(images, STEP)
    for same in (images.transpose(2, 3), images.flip(0), images.flip(1)):
        assert sample_figures(same, STEP) == pytest.approx(expected)


@pytest.mark.parametrize("side", [2, 8, 16])
def test_what_is_too_small_for_a_figure_has_none(side):
    figures = sample_figures(_noise(2, side), STEP)
    assert {f"corr_{lag}" for lag in LAGS if lag < side} == {k for k in figures if k.startswith("corr")}
    assert ("border" in figures) == (side > 8)


def test_constant_images_bear_measuring():
    figures = sample_figures(torch.full((2, 1, 24, 24), 0.3), torch.zeros(1))
    assert figures["spread"] == 0 and figures["border"] == 1 and figures["corr_16"] == 1


def test_real_crops_are_not_far_from_themselves_and_each_fault_is_told_once():
    real = {"corr_1": 0.98, "corr_4": 0.9, "corr_8": 0.8, "corr_16": 0.7, "border": 1.0, "spread": 0.2, "outside": 0.0}
    beside = {REAL + k: v for k, v in real.items()}
    assert far_off(real | beside) == [] == far_off({}) == far_off(real)
    for change, said in (
        ({"corr_8": 0.3, "corr_16": 0.1}, "hang together less"),
        ({"border": 2.0}, "show blocks"),
        ({"spread": 0.05}, "all alike"),
        ({"spread": 0.5}, "vary more"),
        ({"outside": 0.2}, "leave the range"),
    ):
        [what] = far_off(real | beside | change)
        assert said in what


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_rows_of_any_band_count_and_size_are_drawn_under_each_other(bands):
    rows = {"real crops": torch.rand(9, bands, 16, 24), "pasted": torch.rand(2, bands, 32, 32)}
    shown = sample_picture(rows)
    assert shown.mode == "RGB" and shown.size == (8 * 122 + 2, 22 + 84 + 22 + 132)  # 5 and 4 times as large
    assert sample_picture({}).size == (1, 1)


@pytest.mark.parametrize("bands", [1, 4])
def test_the_outline_lies_around_what_is_covered(bands):
    covered = torch.zeros(1, 8, 8, dtype=torch.bool)
    covered[0, 2:5, 3:6] = True
    images = torch.rand(1, bands, 8, 8, generator=torch.Generator().manual_seed(0))
    shown = outlined(images, covered)
    changed = (shown != (images[:, :3] if bands > 2 else images.expand(-1, 3, -1, -1))).any(1)
    assert int(changed.sum()) == 25 - 9 and not (changed & covered).any()


def test_stacked_keeps_the_first():
    assert stacked([], 3) is None
    assert torch.equal(stacked([torch.zeros(2, 1), torch.ones(2, 1)], 3), torch.tensor([[0.0], [0], [1]]))


def test_pasted_pixels_alone_are_measured_and_the_same_ones_before():
    """Noise pasted into a smooth image: the noise hangs together no more, and what lies around it does not count."""
    smooth = torch.linspace(0, 1, 64).expand(2, 3, 64, 64).clone()
    negative = torch.zeros(2, 64, 64, dtype=torch.bool)
    negative[:, 8:56, 8:56] = True
    pasted = torch.where(negative[:, None], _noise(2, 64), smooth)
    figures = pasted_figures(pasted, smooth, negative)
    assert figures["pasted_corr_1"] == pytest.approx(0, abs=0.05) and figures[f"{REAL}pasted_corr_1"] > 0.9
    assert set(figures) == {f"{real}pasted_corr_{lag}" for real in ("", REAL) for lag in (1, 4, 8)}
    whole = torch.ones_like(negative)
    of_all = {f"{k.removeprefix('pasted_')}": v for k, v in pasted_figures(pasted, smooth, whole).items()}
    assert of_all["corr_4"] == pytest.approx(sample_figures(pasted, STEP)["corr_4"], abs=1e-6)
    assert pasted_figures(pasted, smooth, torch.zeros_like(negative)) == {}
