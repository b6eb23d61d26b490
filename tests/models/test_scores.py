"""Laws of the scores: bounds, the paper's numbers, and what a shift or a permutation of logits may change."""

import math

import pytest
import torch

from geood.config.score_kinds import scores_from
from geood.models.scores import anomaly_score, jensen_shannon_to_uniform, outlier_score, score_max


def _lead(margin, classes=19):
    """Logits of which one leads all others by a margin."""
    logits = torch.zeros(1, classes, dtype=torch.float64)
    logits[0, 0] = margin
    return logits


def _jsd_by_definition(p):
    u = torch.full_like(p, 1 / p.shape[1])
    m = (p + u) / 2
    return 0.5 * ((u * (u / m).log()).sum(1) + torch.xlogy(p, p / m).sum(1))


@pytest.mark.parametrize(("classes", "nats"), [(6, 0.454), (7, 0.478), (12, 0.546), (19, 0.589)])
def test_largest_divergence_is_that_of_one_hot(classes, nats):
    assert score_max(classes) == pytest.approx(nats, abs=5e-4)
    assert float(jensen_shannon_to_uniform(_lead(800.0, classes))) == pytest.approx(score_max(classes), rel=1e-12)
    assert score_max(10**9) == pytest.approx(math.log(2))


def test_divergence_equals_its_definition():
    logits = 4 * torch.randn(50, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = _jsd_by_definition(logits.softmax(1))
    torch.testing.assert_close(jensen_shannon_to_uniform(logits), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(jensen_shannon_to_uniform(logits.movedim(1, 2), dim=2), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("margin", "jsd", "gradient"),
    [(1, 0.010, 0.046), (2, 0.054, 0.141), (4, 0.291, 0.281), (6, 0.502, 0.126), (8, 0.571, 0.030), (10, 0.585, 0.006)],
)
def test_paper_table_of_the_divergence(margin, jsd, gradient):
    logits = _lead(float(margin)).requires_grad_()
    value = jensen_shannon_to_uniform(logits)
    value.sum().backward()
    assert float(value.detach()) == pytest.approx(jsd, abs=5e-4)
    assert float(logits.grad.abs().sum()) == pytest.approx(gradient, abs=5e-4)


def test_gradient_equals_its_closed_form():
    logits = (3 * torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).requires_grad_()
    jensen_shannon_to_uniform(logits).sum().backward()
    p = logits.detach().softmax(1)
    log_ratio = (p / ((p + 1 / 5) / 2)).log()
    expected = 0.5 * p * (log_ratio - (p * log_ratio).sum(1, keepdim=True))
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)


def test_divergence_is_stable_at_both_ends():
    uniform, sure = torch.zeros(1, 19), torch.tensor([[1e4] + [0.0] * 18])
    assert float(jensen_shannon_to_uniform(uniform)) == pytest.approx(0, abs=1e-7)
    assert float(jensen_shannon_to_uniform(uniform + 1e4)) == pytest.approx(0, abs=1e-6)
    for logits in (uniform, sure):
        leaf = logits.clone().requires_grad_()
        jensen_shannon_to_uniform(leaf).sum().backward()
        assert torch.isfinite(leaf.grad).all()
    assert jensen_shannon_to_uniform(sure.half()).dtype == torch.float32


@pytest.mark.parametrize("kind", scores_from("logits"))
def test_more_sure_is_less_anomalous(kind):
    margins = torch.arange(0.0, 12.0, 0.5)
    logits = torch.zeros(1, 6, 1, len(margins))
    logits[0, 2, 0] = margins
    score = anomaly_score(logits, kind, 1.0)
    assert score.shape == (1, 1, len(margins)) and score.dtype == torch.float32
    assert (score.diff() < 0).all()


@pytest.mark.parametrize("kind", ["jsd", "max_softmax", "entropy"])
def test_bounded_scores_ignore_a_shift_of_all_logits_and_reach_both_ends(kind):
    logits = 5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    score = anomaly_score(logits, kind, 2.0)
    torch.testing.assert_close(score, anomaly_score(logits + 7, kind, 2.0), rtol=0, atol=1e-5)
    assert float(score.min()) >= 0 and float(score.max()) <= 1
    sure = torch.tensor([1e4, 0, 0, 0]).reshape(1, 4, 1, 1)
    assert float(anomaly_score(sure, kind, 1.0)) == pytest.approx(0, abs=1e-6)
    highest = 0.75 if kind == "max_softmax" else 1.0
    assert float(anomaly_score(torch.zeros(1, 4, 1, 1), kind, 1.0)) == pytest.approx(highest, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_scores_equal_their_definitions_and_leave_the_logits_alone(temperature):
    logits = 3 * torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(3))
    before, z = logits.clone(), logits.double() / temperature
    p = z.softmax(1)
    expected = {
        "jsd": 1 - _jsd_by_definition(p) / score_max(5),
        "max_softmax": 1 - p.amax(1),
        "max_logit": -z.amax(1),
        "entropy": -(p * p.log()).sum(1) / math.log(5),
        "energy": -temperature * z.logsumexp(1),
    }
    for kind in scores_from("logits"):
        got = anomaly_score(logits.requires_grad_(), kind, temperature)
        assert not got.requires_grad
        torch.testing.assert_close(got.double(), expected[kind], rtol=0, atol=2e-6)
    assert torch.equal(logits, before)


def test_scores_of_an_outlier_output_equal_their_definitions():
    generator = torch.Generator().manual_seed(0)
    logits, outlier = 3 * torch.randn(2, 5, 6, 7, generator=generator), 3 * torch.randn(2, 6, 7, generator=generator)
    hybrid = outlier.double().sigmoid().log() - logits.double().exp().sum(1).log()
    torch.testing.assert_close(outlier_score(logits, outlier, "hybrid").double(), hybrid, rtol=0, atol=1e-5)
    shifted = (outlier.double() - 1.5).sigmoid().log() - logits.double().exp().sum(1).log()
    found = outlier_score(logits, outlier, "hybrid", offset=-1.5)
    torch.testing.assert_close(found.double(), shifted, rtol=0, atol=1e-5)
    assert torch.equal(outlier_score(logits, outlier, "outlier"), outlier)
    torch.testing.assert_close(outlier_score(logits, outlier, "ratio"), outlier - logits.amax(1))
    p = torch.cat([logits, outlier[:, None]], 1).double().softmax(1)
    uno = p[:, 5] + 1 - p[:, :5].amax(1)
    torch.testing.assert_close(outlier_score(logits, outlier, "uno").double(), uno, rtol=0, atol=1e-6)
    extreme = torch.tensor([[[-1e4]], [[1e4]]])
    for kind in scores_from("head", "class"):
        assert torch.isfinite(outlier_score(torch.full((2, 5, 1, 1), 1e4), extreme, kind)).all()
        assert not outlier_score(logits.requires_grad_(), outlier, kind).requires_grad


def test_unknown_score_is_refused():
    with pytest.raises(ValueError, match="outlier, hybrid, ratio, uno"):
        outlier_score(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1), "jsd")
    with pytest.raises(ValueError, match="energy"):
        anomaly_score(torch.zeros(1, 2, 1, 1), "msp", 1.0)
    with pytest.raises(ValueError, match="two classes"):
        score_max(1)


@pytest.mark.parametrize("kind", scores_from("logits"))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_strips_give_what_the_whole_gives(kind, layout, monkeypatch):
    logits = 3 * torch.randn(2, 5, 37, 20, generator=torch.Generator().manual_seed(0))
    whole = anomaly_score(logits, kind, 2.0)
    monkeypatch.setattr("geood.models.scores.STRIP", 3 * 2 * 5 * 20)
    strips = anomaly_score(logits.to(memory_format=layout), kind, 2.0)
    torch.testing.assert_close(strips, whole, rtol=0, atol=2e-6)
