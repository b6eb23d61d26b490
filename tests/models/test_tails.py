"""Laws of tail probabilities: a surprisal is -ln of the share of inliers that exceed a score, and keeps its order."""

import math

import pytest
import torch

from geood.models.tails import KNOTS, LAST, STEP, TAIL, _of_part, fit_tail, surprisal


def _fitted(inliers):
    ordered = inliers.sort(descending=True).values
    return fit_tail(lambda share: float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]))


@pytest.mark.parametrize("seed", range(3))
def test_a_surprisal_of_s_is_reached_by_a_share_of_e_to_the_minus_s(seed):
    generator = torch.Generator().manual_seed(seed)
    inliers = torch.randn(200_000, generator=generator)
    found = surprisal(torch.randn(200_000, generator=generator), _fitted(inliers))
    for level in (0.5, 1.0, 3.0, 5.0):
        assert float((found > level).float().mean()) == pytest.approx(math.exp(-level), rel=0.15)


def test_exponential_tails_go_on_beyond_the_last_knot():
    inliers = torch.distributions.Exponential(2.0).icdf(torch.linspace(1e-6, 1 - 1e-6, 400_000))
    far = torch.tensor([5.0, 10.0, 50.0])
    torch.testing.assert_close(surprisal(far, _fitted(inliers)), 2 * far, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["usual", "constant", "two values"])
def test_the_order_of_scores_is_kept(kind):
    draws = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    inliers = {"usual": draws, "constant": torch.full_like(draws, 0.3), "two values": (draws > 0).float()}[kind]
    knots = _fitted(inliers)
    assert knots.shape == (KNOTS,) and (knots.diff() > 0).all()
    scores = torch.linspace(-5, 5, 1001)
    found = surprisal(scores, knots)
    assert torch.isfinite(found).all() and (found.diff() >= 0).all() and float(found[-1]) > LAST


def test_the_scale_of_a_score_does_not_matter():
    draws = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    scores = torch.linspace(-2, 6, 500)
    torch.testing.assert_close(
        surprisal(100 * scores + 7, _fitted(100 * draws + 7)), surprisal(scores, _fitted(draws)), rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("far", [3.0, 1e3, 1e9, 1e20])
def test_between_knots_and_beyond_them_a_surprisal_is_linear_and_the_same_on_all_devices(far):
    inliers = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    knots = _fitted(inliers).double()
    per_nat = torch.cat([knots.diff() / STEP, (knots[-1:] - knots[round(TAIL / STEP)]) / (LAST - TAIL)])
    scores = torch.cat([torch.linspace(-far, far, 1000), torch.linspace(-3, 3, 1000), knots.float()])
    below = (knots[1:] < scores[:, None]).sum(1)
    wanted = STEP * below + (scores - knots[below]) / per_nat[below]
    torch.testing.assert_close(surprisal(scores, knots.float()).double(), wanted, rtol=1e-6, atol=1e-6)
    elsewhere = _of_part(scores, knots.float(), per_nat.float())
    torch.testing.assert_close(surprisal(scores, knots.float()), elsewhere, rtol=1e-5, atol=1e-6)


def test_what_is_no_number_stays_none_and_what_is_infinite_is_beyond_all():
    knots = _fitted(torch.randn(20_000, generator=torch.Generator().manual_seed(0)))
    found = surprisal(torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1e9]), knots)
    assert math.isnan(found[0]) and found[1] > found[4] > found[3] > found[2] and found[1] > 1e30
    assert float(found[3]) == pytest.approx(math.log(2), abs=0.05)
