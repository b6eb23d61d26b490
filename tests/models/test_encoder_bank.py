"""Laws of the encoder's bank: distances are those to its nearest features, and strangers lie further than inliers."""

import pytest
import torch

from geood.models.encoder_bank import AXES, GROUPS, NEIGHBOURS, distances, fit_bank


def _features(count, depth, seed=0):
    mix = torch.randn(depth, depth, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, depth, generator=torch.Generator().manual_seed(seed)) @ mix + 3


def test_with_all_axes_a_distance_is_that_of_standardized_features():
    samples = _features(200, 6)
    maps = _features(2 * 4 * 5, 6, seed=1).reshape(2, 4, 5, 6).movedim(-1, 1)
    found = distances(maps, **fit_bank(samples))
    mean, std = samples.double().mean(0), samples.double().std(0)
    asked = (maps.movedim(1, -1).reshape(-1, 6).double() - mean) / std
    near = torch.cdist(asked, (samples.double() - mean) / std).sort(1).values[:, :NEIGHBOURS].mean(1)
    torch.testing.assert_close(found.double().flatten(), near, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 130, 1000])
@pytest.mark.parametrize("places", [1, 40])
def test_distances_are_those_of_a_full_search_for_a_bank_of_any_size(count, places, monkeypatch):
    """Ties, duplicates and chunks included."""
    bank = torch.randn(count, 5, generator=torch.Generator().manual_seed(count))
    bank[: count // 3] = bank[-1]
    asked = torch.cat([torch.randn(places, 5, generator=torch.Generator().manual_seed(1)), bank[-1:]])
    wanted = torch.cdist(asked.double(), bank.double()).sort(1).values[:, :NEIGHBOURS].mean(1)
    monkeypatch.setattr("geood.models.encoder_bank.DISTANCES", 7 * GROUPS)
    found = distances(asked.T[None, :, None], shift=torch.zeros(5), axes=torch.eye(5), near=bank)
    torch.testing.assert_close(found.double().flatten(), wanted, rtol=1e-5, atol=2e-3)  # root of what rounding leaves
    torch.testing.assert_close(found.double().flatten()[:-1], wanted[:-1], rtol=1e-5, atol=1e-5)


def test_wide_features_keep_their_leading_axes_alone():
    parts = fit_bank(_features(500, 3 * AXES))
    assert parts["axes"].shape == (3 * AXES, AXES) and parts["near"].shape == (500, AXES)
    spread = parts["near"].var(0)
    assert (spread.diff() < 1e-3).all()  # most spread first


def test_a_stranger_lies_further_than_any_inlier():
    samples = _features(2000, 8)
    parts = fit_bank(samples)
    as_map = lambda flat: flat.T[None, :, :, None]  # noqa: E731
    usual, strange = (
        distances(as_map(_features(500, 8, seed=1)), **parts),
        distances(as_map(samples[:50] * -4), **parts),
    )
    assert float(strange.median()) > 2 * float(usual.max())


def test_a_constant_feature_and_a_bank_of_two_are_no_trouble():
    samples = _features(100, 4)
    samples[:, 2] = 5.0
    assert torch.isfinite(distances(torch.full((1, 4, 2, 2), 5.0), **fit_bank(samples))).all()
    assert torch.isfinite(distances(torch.zeros(1, 4, 2, 2), **fit_bank(samples[:2]))).all()
