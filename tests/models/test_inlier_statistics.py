"""Laws of the scores that need statistics: they equal their definitions, and strangers score higher than inliers."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from geood.constants import UNSTATED
from geood.models.encoder_bank import usual_distance
from geood.models.inlier_statistics import NEIGHBOURS, REVIEWED_SHARE, InlierFit, Inliers, _Sample
from geood.models.segmenter import SegmenterOutput

CLASSES, DEPTH = 3, 4


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _batch(seed=0, count=6):
    """Logits of three classes, features in three clusters, and masks with a rim of 255."""
    generator = _seeded(seed)
    ids = torch.randint(CLASSES, (count, 8, 8), generator=generator)
    centres = torch.randn(CLASSES, DEPTH, generator=_seeded(9)) * 4
    features = centres[ids].movedim(-1, 1) + torch.randn(count, DEPTH, 8, 8, generator=generator)
    mask = ids.repeat_interleave(4, 1).repeat_interleave(4, 2)
    spread = torch.randn(count, CLASSES, 32, 32, generator=generator)
    logits = torch.nn.functional.one_hot(mask, CLASSES).movedim(-1, 1) * 3.0 + spread
    mask[:, :4] = 255
    return logits, features, mask


def _answer(logits, features):
    """A segmenter's answer, whose encoder's features are every second one of the decoder's, and every fourth."""
    return SegmenterOutput(logits, None, features, features[:, :, 1::2, 1::2], features[:, :, 1::4, 1::4])


def _fit(samples=0, batches=4, places=0):
    fit = InlierFit(CLASSES, samples=samples, places=places, batches=batches, seed=0)
    for seed in range(batches):
        logits, features, mask = _batch(seed)
        fit.update(_answer(logits, features), mask)
    return fit.finish()


def test_neither_bank_depends_on_whether_the_other_is_filled():
    """Both were drawn with one generator, so a bank of features for the score knn changed score combined."""
    both, decoder, encoder = (
        dict(_fit(samples, places=places).named_buffers()) for samples, places in ((120, 110), (120, 0), (0, 110))
    )
    for alone, own in ((decoder, "bank"), (encoder, "encoder_near")):
        assert own in alone and all(torch.equal(both[name], tensor) for name, tensor in alone.items())


def test_class_statistics_are_those_of_all_labelled_pixels_at_once():
    inliers = _fit()
    logits, _, mask = (torch.cat(parts) for parts in zip(*(_batch(seed) for seed in range(4)), strict=True))
    pixels = logits.movedim(1, -1)[mask != 255].double()
    largest, taken = pixels.max(1)
    for k in range(CLASSES):
        assert float(inliers.logit_mean[k]) == pytest.approx(float(largest[taken == k].mean()), abs=1e-5)
        assert float(inliers.logit_std[k]) == pytest.approx(float(largest[taken == k].std(correction=0)), abs=1e-5)
        template = pixels.softmax(1)[taken == k].mean(0)
        torch.testing.assert_close(inliers.log_templates[k].exp().double(), template, rtol=1e-5, atol=1e-7)
    assert inliers.scores == ("standardized_max_logit", "kl_matching")


def test_class_scores_equal_their_definitions():
    inliers, (logits, features, _) = _fit(), _batch(7)
    p = logits.double().softmax(1)
    templates = inliers.log_templates.double().exp()
    divergences = [(p * (p / t[:, None, None]).log()).sum(1) for t in templates]
    found = inliers.score("kl_matching", _answer(logits, features))
    torch.testing.assert_close(found.double(), torch.stack(divergences).amin(0), rtol=0, atol=1e-5)
    largest, taken = logits.max(1)
    expected = -(largest - inliers.logit_mean[taken]) / inliers.logit_std[taken]
    torch.testing.assert_close(inliers.score("standardized_max_logit", _answer(logits, features)), expected)


def test_standardized_max_logits_of_inliers_have_mean_0_and_spread_1():
    inliers = _fit()
    scores = torch.cat(
        [inliers.score("standardized_max_logit", _answer(a, b))[m != 255] for a, b, m in map(_batch, range(4))]
    )
    assert float(scores.mean()) == pytest.approx(0, abs=1e-4) and float(scores.std()) == pytest.approx(1, abs=1e-3)


def test_a_class_that_is_never_predicted_takes_the_logits_of_all_and_has_no_template():
    fit = InlierFit(3, samples=0, places=0, batches=1, seed=0)
    logits = torch.stack([torch.ones(1, 8, 8), torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)], 1)
    fit.update(_answer(logits, torch.zeros(1, 2, 2, 2)), torch.zeros(1, 8, 8, dtype=torch.int64))
    inliers = fit.finish()
    assert inliers.logit_mean.tolist() == [1, 1, 1] and inliers.log_templates.shape == (1, 3)
    sure, unsure = (
        inliers.score("kl_matching", _answer(logits, logits)),
        inliers.score("kl_matching", _answer(0 * logits, logits)),
    )
    assert sure.abs().max() < 1e-5 and (unsure > 0.01).all()


def test_feature_scores_equal_their_definitions():
    inliers, (logits, features, _) = _fit(300), _batch(7, count=2)
    flat = features.movedim(1, -1).reshape(-1, DEPTH)
    flat = (flat / flat.norm(dim=1, keepdim=True) - inliers.unit_mean) / inliers.unit_std
    near = (flat[:, None] - inliers.bank).norm(dim=2).sort(1).values[:, :NEIGHBOURS].mean(1)
    torch.testing.assert_close(
        inliers.score("knn", _answer(logits, features)), near.reshape(2, 8, 8), rtol=1e-4, atol=1e-4
    )
    density = 0
    root = inliers.mixture_root.double()
    covariance = torch.linalg.inv(root @ root.T).numpy()
    means = (inliers.mixture_centres.double() @ torch.linalg.inv(root)).numpy()
    for weight, mean in zip(inliers.mixture_log_weights, means, strict=True):
        density += math.exp(weight) * multivariate_normal(mean, covariance).pdf(flat.double().numpy())
    expected = -np.log(density).reshape(2, 8, 8) / DEPTH
    np.testing.assert_allclose(inliers.score("gmm", _answer(logits, features)).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_the_residual_is_what_the_leading_axes_of_inliers_leave():
    """By definition, and by its law: 0 on their span, the distance from it elsewhere."""
    inliers, (logits, features, _) = _fit(300), _batch(7, count=2)
    axes = inliers.axes.double()
    assert axes.shape == (DEPTH // 2, DEPTH)
    torch.testing.assert_close(axes @ axes.T, torch.eye(DEPTH // 2, dtype=torch.float64), rtol=0, atol=1e-6)
    standard = (features.movedim(1, -1) - inliers.feature_mean) / inliers.feature_std
    rest = torch.linalg.qr(torch.cat([axes, torch.eye(DEPTH, dtype=torch.float64)]).T)[0][:, DEPTH // 2 : DEPTH]
    expected = (standard.double() @ rest).norm(dim=-1)
    torch.testing.assert_close(
        inliers.score("residual", _answer(logits, features)).double(), expected, rtol=1e-4, atol=1e-4
    )
    inside = (torch.randn(1, 8, 8, DEPTH // 2, generator=_seeded()) @ inliers.axes) * inliers.feature_std
    on_span = (inside + inliers.feature_mean).movedim(-1, 1)
    assert float(inliers.score("residual", _answer(logits, on_span)).max()) < 1e-4


def test_the_axes_are_those_of_most_spread():
    generator = _seeded()
    fit = InlierFit(CLASSES, samples=400, places=0, batches=1, seed=0)
    hidden = torch.randn(8, 1, 8, 8, generator=generator)
    noise = torch.randn(8, DEPTH, 8, 8, generator=generator)
    features = torch.cat([hidden, hidden, hidden, hidden], 1) + 0.1 * noise
    fit.update(_answer(torch.zeros(8, CLASSES, 32, 32), features), torch.zeros(8, 32, 32, dtype=torch.int64))
    leading = fit.finish().axes[-1]
    assert float(leading.abs().min()) > 0.45  # all four values go together


def test_neighbours_and_mixture_do_not_look_at_the_length_of_a_feature():
    inliers, (logits, features, _) = _fit(300), _batch(7)
    for kind in ("knn", "gmm"):
        longer = inliers.score(kind, _answer(logits, 3 * features))
        torch.testing.assert_close(longer, inliers.score(kind, _answer(logits, features)), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(
        inliers.score("residual", _answer(logits, 3 * features)), inliers.score("residual", _answer(logits, features))
    )


@pytest.mark.parametrize("kind", ["knn", "gmm"])
def test_strange_features_score_higher(kind):
    """The other way round, no inlier points there."""
    inliers, (logits, features, _) = _fit(300), _batch(7)
    strange, usual = (inliers.score(kind, _answer(logits, given)) for given in (-features, features))
    assert float(strange.mean()) > float(usual.quantile(0.95))


def test_features_are_taken_where_there_is_a_label_and_no_more_than_asked():
    fit = InlierFit(CLASSES, samples=150, places=110, batches=3, seed=0)
    for seed in range(6):
        logits, features, mask = _batch(seed)
        features[:, :, 0] = 1e6  # under the rim of 255
        fit.update(_answer(logits, features), mask)
    inliers = fit.finish()
    assert len(inliers.encoder_near) == 110 and float(inliers.encoder_shift.abs().max()) < 100
    assert len(inliers.bank) == 150 and float(inliers.feature_mean.abs().max()) < 100


def test_reviewed_places_come_first_but_never_take_more_than_their_share():
    for reviewed, expected in ((slice(0, 1), None), (slice(None), int(REVIEWED_SHARE * 100))):
        sample, features = _Sample(100, 50, torch.Generator().manual_seed(0)), torch.zeros(2, 3, 16, 16)
        mask = torch.zeros(2, 64, 64, dtype=torch.uint8)
        mask[0, 8:24, reviewed.start or 0 : 16] = UNSTATED
        if reviewed == slice(None):
            mask[0] = UNSTATED
        features[:, 0] = (mask[:, 2::4, 2::4] == UNSTATED).float()
        places = int(features[:, 0].sum())
        for _ in range(2):
            sample.draw(features, mask != 255, mask == UNSTATED)
        drawn = sample.all()
        assert len(drawn) == 100 and int(drawn[:, 0].sum()) == (expected or min(int(REVIEWED_SHARE * 100), 2 * places))


def test_labels_of_reviewed_crops_come_first_as_those_of_no_stated_class_do():
    """Also where a class is stated: the bank asks only whether ground is an inlier."""
    banks = []
    for class_id, crops in ((UNSTATED, None), (1, torch.tensor([True] + [False] * 5))):
        fit = InlierFit(CLASSES, samples=0, places=100, batches=2, seed=0)
        for seed in range(2):
            logits, features, mask = _batch(seed)
            mask[0, :12] = class_id
            mask[0, 12:] = 255
            fit.update(_answer(logits, features), mask, reviewed=crops)
        banks.append(fit.finish().state_dict())
    assert 0 < int(banks[0]["encoder_reviewed"].sum()) <= int(REVIEWED_SHARE * 100)
    for name in ("near", "classes", "reviewed"):
        assert torch.equal(banks[0][f"encoder_{name}"], banks[1][f"encoder_{name}"])


def _with_false_alarms(false):
    fit = InlierFit(CLASSES, samples=0, places=100, batches=4, seed=0)
    for seed in range(4):
        logits, features, mask = _batch(seed)
        fit.update(_answer(logits, features), mask)
    logits, features, _ = _batch(8)
    fit.add_false_alarms(_answer(logits, features), false)
    return fit.finish(), _answer(logits, features)


def test_places_of_false_alarms_are_kept_beside_the_bank_and_leave_it_as_it_was():
    false = torch.zeros(6, 32, 32, dtype=torch.bool)
    without, answer = _with_false_alarms(false)
    false[2, :12, :12], false[5, 28, 28] = True, True  # middles of four places and of one
    inliers, _ = _with_false_alarms(false)
    assert not without.knows_false_alarms and set(without.state_dict()) == set(_fit(0, places=100).state_dict())
    assert set(inliers.state_dict()) - set(without.state_dict()) == {"encoder_false", "encoder_reach"}
    assert all(torch.equal(inliers.state_dict()[name], kept) for name, kept in without.state_dict().items())
    assert len(inliers.encoder_false) == 2 and float(inliers.encoder_reach) > 0
    near = inliers.nearness_to_false_alarms(inliers.in_bank(answer))
    assert near.shape == (6, 4, 4) and float(near.min()) == 0
    assert float(near[2, 0, 0]) > 0.99 and float(near[5, 3, 3]) > 0.99


def test_what_was_fitted_comes_back_from_its_tensors_and_other_scores_are_refused():
    fitted = _fit(100)
    again, (logits, features, _) = Inliers(dict(fitted.state_dict())), _batch(7)
    for kind in fitted.scores:
        assert torch.equal(again.score(kind, _answer(logits, features)), fitted.score(kind, _answer(logits, features)))
    with pytest.raises(ValueError, match="only standardized_max_logit, kl_matching"):
        _fit().score("knn", _answer(logits, features))


def test_labels_too_few_for_a_bank_leave_its_scores_out(caplog):
    fit = InlierFit(CLASSES, samples=200, places=200, batches=1, seed=0)
    logits, features, mask = _batch()
    mask[:, 6:], mask[:, :, 6:] = 255, 255  # one place of the decoder's an image, none of the encoder's
    fit.update(_answer(logits, features), mask)
    assert fit.finish().scores == ("standardized_max_logit", "kl_matching") and caplog.text.count("too few") == 2


def _reviewed_fit(seed, *, kept=None, reviewed=True, false=False):
    """Statistics of other batches, whose lower right corners are reviewed ground."""
    fit = InlierFit(CLASSES, samples=100, places=100, batches=4, seed=0)
    for i in range(4):
        logits, features, mask = _batch(seed + i)
        if reviewed:
            mask[i, 16:, 16:] = UNSTATED
        fit.update(_answer(logits, features), mask)
        if false:
            fit.add_false_alarms(_answer(logits, features), mask == UNSTATED)
    return fit.finish(kept)


def _of_bank(inliers):
    return {name: tensor for name, tensor in inliers.state_dict().items() if name.startswith("encoder_")}


def test_a_bank_that_is_kept_stays_to_the_bit_where_nothing_was_reviewed():
    first, other = _reviewed_fit(0, reviewed=False), _reviewed_fit(20, reviewed=False)
    kept, answer = _reviewed_fit(20, reviewed=False, kept=first), _answer(*_batch(7)[:2])
    assert not torch.equal(first.encoder_near, other.encoder_near) and set(_of_bank(kept)) == set(_of_bank(first))
    assert all(torch.equal(tensor, _of_bank(first)[name]) for name, tensor in _of_bank(kept).items())
    assert torch.equal(kept.in_bank(answer).own, first.in_bank(answer).own)
    for name in ("bank", "logit_mean", "mixture_root"):  # what is of the decoder is that of these batches
        assert torch.equal(getattr(kept, name), getattr(other, name))


def test_reviewed_places_are_added_to_a_kept_bank_and_replaced_in_the_next_round():
    first = _reviewed_fit(0, reviewed=False)
    second = _reviewed_fit(20, kept=first, false=True)
    third, again = _reviewed_fit(40, kept=second), _reviewed_fit(40, kept=first)
    assert all(torch.equal(tensor, _of_bank(again)[name]) for name, tensor in _of_bank(third).items())
    for inliers in (second, third):
        told = inliers.encoder_reviewed == 1
        assert int(told.sum()) == 16 and torch.equal(inliers.encoder_near[~told], first.encoder_near)
        assert torch.equal(inliers.encoder_classes[~told], first.encoder_classes)
        assert bool((inliers.encoder_classes.diff() >= 0).all())
        assert torch.equal(inliers.encoder_axes, first.encoder_axes)
    assert set(_of_bank(_reviewed_fit(60, kept=third, reviewed=False))) == set(_of_bank(first))
    reach = _reviewed_fit(20, false=True, kept=first).encoder_reach
    assert torch.equal(reach, usual_distance(first.encoder_near).reshape(1))


def test_a_bank_finds_its_reviewed_places_where_they_are():
    inliers = _reviewed_fit(20, kept=_reviewed_fit(0, reviewed=False), false=True)
    rows = inliers.encoder_near[inliers.encoder_reviewed == 1]
    apart = torch.cdist(inliers.encoder_false, rows)  # every place in reviewed ground was called a false alarm
    assert apart.shape == (16, 16) and float(apart.amin(1).max()) < 1e-3 < float(apart.amax())


def test_a_bank_made_anew_tells_its_reviewed_rows_too():
    inliers, plain = _reviewed_fit(0), _reviewed_fit(0, reviewed=False)
    assert "encoder_reviewed" not in plain.state_dict() and len(plain.encoder_near) == 100
    assert len(inliers.encoder_reviewed) == len(inliers.encoder_near) == 100
    assert int(inliers.encoder_reviewed.sum()) == 16
    kept = _reviewed_fit(20, kept=inliers, reviewed=False)
    assert torch.equal(kept.encoder_near, inliers.encoder_near[inliers.encoder_reviewed == 0])
