"""Laws of the encoder's bank: distances are those to its nearest features of a class, and strangers lie far away."""

import pytest
import torch

from geood.models.encoder_bank import (
    AROUND,
    AXES,
    GROUPS,
    NEIGHBOURS,
    InBank,
    class_ratio,
    distances,
    distances_to_others,
    fit_bank,
    joined,
    located,
    nearness,
    neighbours_elsewhere,
    places,
    spans,
    surroundings,
    usual_distance,
)


def _features(count, depth, seed=0):
    mix = torch.randn(depth, depth, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, depth, generator=torch.Generator().manual_seed(seed)) @ mix + 3


def _bank(samples, classes=None):
    parts = fit_bank(samples, torch.zeros(len(samples)) if classes is None else classes)
    return parts | {"of": spans(parts.pop("classes"))}


def _map(flat):
    return flat.T[None, :, :, None]


def _distances(features, taken, *, shift, axes, near, of):
    return distances(located((features,), shift=shift, axes=axes), taken, near=near, of=of)


def _on_a_cpu(monkeypatch):
    monkeypatch.setattr("geood.models.encoder_bank.DISTANCES", 7 * GROUPS)


def _as_on_a_gpu(monkeypatch):
    """All places are compared with all classes, as graphs do too."""
    monkeypatch.setattr("geood.models.encoder_bank._by_class", lambda flat: False)
    monkeypatch.setattr("geood.models.encoder_bank.DISTANCES_ON_GPU", 7 * GROUPS)


DEVICES = (_on_a_cpu, _as_on_a_gpu)


def _none(count):
    return torch.zeros(1, count, 1, dtype=torch.int64)


def _by_hand(asked, samples, near):
    """Distances that take the spread of the samples, of one class, along every direction for one."""
    root = torch.linalg.inv(torch.linalg.cholesky(torch.cov(samples.double().T)))
    apart = torch.cdist(asked.double() @ root.T, near.double() @ root.T)
    return apart.sort(1).values[:, :NEIGHBOURS].mean(1)


def test_with_all_axes_a_distance_is_that_of_whitened_features_of_the_class():
    samples, asked = _features(20000, 6), _features(40, 6, seed=1)  # so many that the covariance is hardly shrunk
    classes, taken = torch.arange(20000) % 3, torch.arange(40) % 3
    found = _distances(_map(asked), taken[None, :, None], **_bank(samples, classes.float()))[0, :, 0]
    for each in range(3):
        near = _by_hand(asked[taken == each], samples, samples[classes == each])
        torch.testing.assert_close(found[taken == each].double(), near, rtol=0.02, atol=1e-3)


def test_a_stranger_along_an_axis_on_which_inliers_hardly_differ_is_far():
    samples = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    samples[:, 7] = samples[:, 6] + 0.05 * samples[:, 7]  # two channels that go together
    usual, strange = samples[:50].clone(), samples[:50].clone()
    usual[:, 6:] += 0.5
    strange[:, 6] += 0.5
    near, far = (_distances(_map(each), _none(50), **_bank(samples)).mean() for each in (usual, strange))
    assert float(far) > 2 * float(near)


def test_maps_are_located_as_if_the_coarser_were_interpolated_and_joined_to_the_finer():
    maps = torch.randn(2, 5, 8, 12), torch.randn(2, 7, 4, 6)
    shift, axes = torch.randn(12), torch.randn(12, 3)
    whole = (joined(maps).movedim(1, -1) - shift) @ axes
    torch.testing.assert_close(located(maps, shift=shift, axes=axes), whole, rtol=1e-4, atol=1e-4)
    assert joined(maps).shape == (2, 12, 8, 12) and torch.equal(joined(maps)[:, :5], maps[0])
    assert joined(maps[:1]) is not None and torch.equal(joined(maps[:1]), maps[0])


@pytest.mark.parametrize("device", DEVICES)
def test_a_class_that_the_bank_lacks_is_as_far_as_the_furthest_class(device, monkeypatch):
    device(monkeypatch)
    samples, asked = _features(200, 6), _features(40, 6, seed=1)
    bank = _bank(samples, torch.arange(200) % 2 * 2.0)
    each = [_distances(_map(asked), _none(40) + taken, **bank) for taken in (0, 1, 2)]
    assert torch.equal(each[1], torch.maximum(each[0], each[2]))


def test_what_looks_like_one_class_and_is_taken_for_another_is_strange():
    left, right = torch.randn(300, 8) - 5, torch.randn(300, 8) + 5
    bank = _bank(torch.cat([left, right]), torch.arange(600).ge(300).float())
    right_class, wrong_class = (_distances(_map(left[:50]), _none(50) + taken, **bank) for taken in (0, 1))
    assert float(wrong_class.min()) > 3 * float(right_class.max())


def test_a_place_is_taken_for_the_class_of_the_pixels_in_its_middle():
    logits = torch.zeros(1, 2, 64, 64)
    logits[0, 1, :, 40:] = 5.0
    assert torch.equal(places(logits, (8, 8)), (torch.arange(8) >= 5).long().expand(1, 8, 8))


def test_distances_of_a_part_of_a_map_are_those_of_the_whole():
    maps, taken = torch.randn(1, 6, 8, 10), torch.randint(0, 3, (1, 8, 10))
    bank = _bank(_features(120, 6), torch.arange(120) % 3 * 1.0)
    part = _distances(maps[:, :, 2:5, 3:9], taken[:, 2:5, 3:9], **bank)
    torch.testing.assert_close(part, _distances(maps, taken, **bank)[:, 2:5, 3:9], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 130, 1000])
@pytest.mark.parametrize("asked_for", [1, 140])
@pytest.mark.parametrize("device", DEVICES)
def test_distances_are_those_of_a_full_search_for_a_bank_of_any_size(count, asked_for, device, monkeypatch):
    """Ties, duplicates and chunks included."""
    device(monkeypatch)
    bank = torch.randn(count, 5, generator=torch.Generator().manual_seed(count))
    bank[: count // 3] = bank[-1]
    asked = torch.cat([torch.randn(asked_for, 5, generator=torch.Generator().manual_seed(1)), bank[-1:]])
    wanted = torch.cdist(asked.double(), bank.double()).sort(1).values[:, :NEIGHBOURS].mean(1)
    plain = {"shift": torch.zeros(5), "axes": torch.eye(5), "near": bank, "of": spans(torch.zeros(count))}
    found = _distances(_map(asked), _none(asked_for + 1), **plain)
    torch.testing.assert_close(found.double().flatten(), wanted, rtol=1e-5, atol=2e-3)  # root of what rounding leaves
    torch.testing.assert_close(found.double().flatten()[:-1], wanted[:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [[9, 7], [400, 3, 90], [5, 4, 4, 4], [50, 1, 1, 9]])
@pytest.mark.parametrize("device", DEVICES)
def test_distances_to_others_are_those_of_a_full_search_of_every_fourth_row(rows, device, monkeypatch):
    """Classes that the bank lacks and chunks included, and classes of which no row is a fourth one."""
    device(monkeypatch)
    classes = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows)).float()
    bank, asked = _features(len(classes), 5), _features(200, 5, seed=1)
    of, taken = spans(classes), torch.arange(200) % (len(rows) + 1)
    most = neighbours_elsewhere(of)
    apart = torch.cdist(asked.double(), bank[::4].double()).masked_fill(taken[:, None] == classes[::4], torch.inf)
    found = distances_to_others(asked[None, :, None], taken[None, :, None], near=bank, of=of, most=most)
    wanted = apart.sort(1).values[:, :most].mean(1)
    torch.testing.assert_close(found.double().flatten(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "most"), [([8, 8], 2), ([100, 100], 3), ([100, 1], 1), ([99, 1], 0), ([50], 0)])
def test_neighbours_elsewhere_are_as_many_as_every_class_finds(rows, most):
    classes = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows)).float()
    assert neighbours_elsewhere(spans(classes)) == most


def test_the_ratio_is_above_0_where_another_class_is_nearer_and_is_finite_at_a_row_of_the_bank():
    left, right = torch.randn(300, 8) - 5, torch.randn(300, 8) + 5
    parts = fit_bank(torch.cat([left, right]), torch.arange(600).ge(300).float())
    of = spans(parts["classes"])
    for taken in (0, 1):
        logits = torch.zeros(1, 2, 50, 1)
        logits[:, taken] = 5.0
        at = located((_map(left[:50]),), shift=parts["shift"], axes=parts["axes"])
        found = InBank(at, logits, near=parts["near"], of=of, elsewhere=3)
        assert bool((found.ratio > 0).all()) == bool((found.ratio > 0).any()) == bool(taken)
        assert torch.equal(found.own, distances(at, torch.full((1, 50, 1), taken), near=parts["near"], of=of))
    assert torch.isfinite(class_ratio(torch.zeros(3), torch.rand(3))).all()


def test_wide_features_are_mixed_onto_fewer_axes_which_keep_distances():
    samples, asked = _features(4000, 2 * AXES), _features(40, 2 * AXES, seed=1)
    parts = _bank(samples)
    assert parts["axes"].shape == (2 * AXES, AXES) and parts["near"].shape == (4000, AXES)
    assert torch.equal(parts["axes"], _bank(samples)["axes"])  # always the same mixture
    apart = torch.cdist(*((each - parts["shift"]) @ parts["axes"] for each in (asked, samples[:300])))
    centred = samples.double() - samples.double().mean(0)
    root = torch.linalg.inv(torch.linalg.cholesky(centred.T @ centred / len(centred)))
    whole = torch.cdist(asked.double() @ root.T, samples[:300].double() @ root.T)
    assert float((apart / whole).min()) > 0.7 and float((apart / whole).max()) < 1.3


def test_a_stranger_lies_further_than_any_inlier():
    samples = _features(2000, 8)
    parts = _bank(samples)
    usual = _distances(_map(_features(500, 8, seed=1)), _none(500), **parts)
    strange = _distances(_map(samples[:50] * -4), _none(50), **parts)
    assert float(strange.median()) > 2 * float(usual.max())


def test_a_constant_feature_and_a_bank_of_two_are_no_trouble():
    samples = _features(100, 4)
    samples[:, 2] = 5.0
    for asked, bank in ((torch.full((1, 4, 2, 2), 5.0), samples), (torch.zeros(1, 4, 2, 2), samples[:2])):
        assert torch.isfinite(_distances(asked, torch.zeros(1, 2, 2, dtype=torch.int64), **_bank(bank))).all()


def test_a_channel_that_is_silent_in_training_does_not_make_a_whisper_strange():
    samples = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    samples[:, 3] = 0.0
    quiet, loud = samples[:50].clone(), samples[:50].clone()
    quiet[:, 3], loud[:, 3] = 0.01, 1.0
    bank = _bank(samples)
    usual, whisper, shout = (_distances(_map(each), _none(50), **bank).mean() for each in (samples[:50], quiet, loud))
    assert float(whisper) < 2 * float(usual) and float(shout) > 5 * float(usual)


def test_nearness_is_one_at_a_place_falls_evenly_and_ends_at_the_reach():
    samples, asked = _features(200, 6), _features(40, 6, seed=1)
    bank = fit_bank(samples, torch.zeros(200))
    own = {"to": bank["near"][:70]}
    apart = torch.cdist((asked - bank["shift"]) @ bank["axes"], bank["near"][:70]).amin(1)
    reach = apart.median().reshape(1)
    at = {"shift": bank["shift"], "axes": bank["axes"]}
    found = nearness(located((_map(asked),), **at), reach=reach, **own)[0, :, 0]
    torch.testing.assert_close(found, (1 - apart / reach).clamp(min=0), rtol=1e-4, atol=1e-4)
    assert (found[apart > 1.001 * reach] == 0).all() and (found > 0).sum() == 19
    own = nearness(located((_map(samples),), **at), reach=reach, to=bank["near"])[0, :, 0]
    torch.testing.assert_close(own, torch.ones(200), rtol=0, atol=1e-2)


def test_what_is_around_a_place_is_as_near_and_what_is_far_from_all_is_not():
    near = torch.zeros(2, 40, 40)
    near[0, 10:20:4, 10:20:4] = 1.0  # parts of one body
    near[0, 30, 30] = 0.5
    found = surroundings(near)
    assert (found[0, 10:19, 10:19] == 1).all() and float(found[0, 30, 30]) == 0.5
    rows, cols = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    apart = torch.stack([torch.maximum((rows - r).abs(), (cols - c).abs()) for r, c in near[0].nonzero()]).amin(0)
    assert (found[0][apart > AROUND - 1] == 0).all() and (found[0][apart < AROUND] > 0).all()
    assert not found[1].any() and torch.equal(surroundings(torch.full((1, 3, 7), 0.25)), torch.full((1, 3, 7), 0.25))
    turned = surroundings(near.flip(1).mT)
    torch.testing.assert_close(turned, found.flip(1).mT)


def test_the_usual_distance_is_that_of_the_nearest_neighbours_of_the_bank():
    near = _features(200, 6)
    others = torch.cdist(near, near).fill_diagonal_(torch.inf).sort(1).values[:, :NEIGHBOURS].mean(1)
    torch.testing.assert_close(usual_distance(near), others[::4].median(), rtol=1e-3, atol=1e-3)
