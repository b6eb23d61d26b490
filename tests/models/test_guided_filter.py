"""Laws of the guided filter: what it keeps, what it evens out, how far it looks, and that gaps do not leak."""

import pytest
import torch

from geood.models.guided_filter import filter_radius, guided_filter

SETTINGS = {"radius": 3, "evenness": 0.1}


def _scene(height=40, width=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(1, height, width, generator=generator)
    image = torch.rand(1, 3, height, width, generator=generator)
    return score, image, torch.ones(1, height, width, dtype=torch.bool)


def test_an_even_score_stays_as_it_is_even_beside_gaps():
    _, image, valid = _scene()
    valid[0, 10:14, 5:30] = False
    score = torch.full((1, 40, 50), 0.3)
    smooth = guided_filter(score, image, valid, **SETTINGS)
    torch.testing.assert_close(smooth, score, rtol=0, atol=1e-5)


def test_noise_on_even_ground_is_evened_out():
    score, image, valid = _scene()
    smooth = guided_filter(score, torch.full_like(image, 0.5), valid, **SETTINGS)
    assert float(smooth.std()) < 0.15 * float(score.std())
    assert float(smooth.mean()) == pytest.approx(float(score.mean()), abs=0.01)


def test_an_edge_of_the_image_stays_an_edge_of_the_score():
    score, image, valid = _scene()
    step = (torch.arange(50) >= 25).float().expand(1, 40, 50)
    noisy = step + 0.3 * (score - 0.5)
    along = guided_filter(noisy, step[:, None].expand_as(image), valid, **SETTINGS)
    blind = guided_filter(noisy, torch.full_like(image, 0.5), valid, **SETTINGS)
    jump = lambda s: float(s[..., 25].mean() - s[..., 24].mean())  # noqa: E731
    assert jump(along) > 0.9 and jump(blind) < 0.3
    assert float((along - step).abs().mean()) < 0.5 * float((noisy - step).abs().mean())


def test_a_pixel_looks_no_further_than_it_says():
    score, image, valid = _scene()
    far = filter_radius(SETTINGS["radius"])
    other = score.clone()
    other[0, :, 25 + far + 1 :] += 1
    image2 = image.clone()
    image2[..., 25 + far + 1 :] = 0
    a, b = guided_filter(score, image, valid, **SETTINGS), guided_filter(other, image2, valid, **SETTINGS)
    assert torch.equal(a[..., :26], b[..., :26]) and not torch.equal(a[..., 26:], b[..., 26:])


def test_a_part_read_wide_enough_equals_the_whole():
    score, image, valid = _scene(64, 96)
    valid[0, 20:30, 40:60] = False
    whole, far = guided_filter(score, image, valid, **SETTINGS), filter_radius(SETTINGS["radius"])
    rows, cols = slice(10 - far, 40 + far), slice(20 - far, 70 + far)
    part = guided_filter(score[:, rows, cols], image[:, :, rows, cols], valid[:, rows, cols], **SETTINGS)
    torch.testing.assert_close(part[:, far:-far, far:-far], whole[:, 10:40, 20:70], rtol=0, atol=1e-6)


def test_gaps_neither_change_nor_leak():
    score, image, valid = _scene()
    valid[0, :, 20:30] = False
    wild_score, wild_image = score.clone(), image.clone()
    wild_score[~valid], wild_image[:, :, 0:40, 20:30] = 1e3, 7.0
    a, b = guided_filter(score, image, valid, **SETTINGS), guided_filter(wild_score, wild_image, valid, **SETTINGS)
    assert torch.equal(a[valid], b[valid]) and torch.equal(b[~valid], wild_score[~valid])
    wild_score[~valid] = float("nan")
    assert torch.equal(guided_filter(wild_score, image, valid, **SETTINGS)[valid], a[valid])
