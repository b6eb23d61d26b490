"""Laws of the encoder's bank: distances are those to its nearest features, and strangers lie further than inliers."""

import torch

from geood.models.encoder_bank import AXES, NEIGHBOURS, distances, fit_bank


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
