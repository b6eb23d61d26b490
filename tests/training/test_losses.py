"""Laws of the joint loss: the paper's table, its parts, and which network each term moves."""

import math
from typing import get_args

import pytest
import torch

from geood.config.sections import FlowConfig, LossConfig, SegmenterConfig
from geood.models.flows.flow import Flow
from geood.models.scores import jensen_shannon_to_uniform
from geood.models.segmenter import Segmenter, SegmenterOutput
from geood.training.losses import DIVERGENCES, HEAD_COSTS, RIM, Losses, class_nll, divergence_on, joint_loss
from geood.training.pasting import paste, unpasted

# margin, p_max, JSD, L1 norms of the gradients of JSD, KL(U||p), KL(p||U), and KL(U||p), for 19 classes
TABLE = [
    (1, 0.131, 0.010, 0.046, 0.157, 0.228, 0.034),
    (2, 0.291, 0.054, 0.141, 0.477, 0.825, 0.185),
    (4, 0.752, 0.291, 0.281, 1.399, 1.492, 1.130),
    (6, 0.957, 0.502, 0.126, 1.809, 0.491, 2.783),
    (8, 0.994, 0.571, 0.030, 1.883, 0.096, 4.641),
    (10, 0.999, 0.585, 0.006, 1.893, 0.016, 6.530),
]


def _value_and_gradient(divergence, margin):
    logits = torch.zeros(1, 19, 1, 1, dtype=torch.float64)
    logits[0, 0] = margin
    value = divergence(logits.requires_grad_())
    value.backward()
    return float(value.detach()), logits.grad


def _jsd(logits):
    return divergence_on(logits, torch.ones(1, 1, 1, dtype=torch.bool))


def _uniform_to_p(logits):
    return -math.log(19) - logits.log_softmax(1).mean()


def _p_to_uniform(logits):
    return (logits.softmax(1) * logits.log_softmax(1)).sum() + math.log(19)


@pytest.mark.parametrize("row", TABLE)
def test_paper_table(row):
    margin, p_max, jsd, jsd_l1, up_l1, pu_l1, up = row
    value, gradient = _value_and_gradient(_jsd, margin)
    up_value, up_gradient = _value_and_gradient(_uniform_to_p, margin)
    _, pu_gradient = _value_and_gradient(_p_to_uniform, margin)
    rounded = [value, float(gradient.abs().sum()), float(up_gradient.abs().sum()), float(pu_gradient.abs().sum())]
    assert [*rounded, up_value] == pytest.approx([jsd, jsd_l1, up_l1, pu_l1, up], abs=6e-4)
    # the closed forms behind the table, to 1e-6
    rest = math.exp(-margin)
    p = torch.tensor([1.0] + [rest] * 18, dtype=torch.float64) / (1 + 18 * rest)
    u, m = 1 / 19, (p + 1 / 19) / 2
    log_ratio = (p / m).log()
    assert float(p[0]) == pytest.approx(p_max, abs=6e-4)
    assert value == pytest.approx(0.5 * float((u * (u / m).log()).sum() + (p * log_ratio).sum()), abs=1e-6)
    closed = 0.5 * p * (log_ratio - (p * log_ratio).sum())
    torch.testing.assert_close(gradient.flatten(), closed, rtol=0, atol=1e-6)
    torch.testing.assert_close(up_gradient.flatten(), p - u, rtol=0, atol=1e-6)


def test_class_nll_is_the_mean_over_labelled_pixels():
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.randint(4, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    mask[0, :3] = 255
    p = logits.log_softmax(1)
    picked = [-p[b, mask[b, y, x], y, x] for b in range(2) for y in range(5) for x in range(6) if mask[b, y, x] != 255]
    assert float(class_nll(logits, mask)) == pytest.approx(float(torch.stack(picked).mean()), abs=1e-6)


def test_jsd_term_is_the_mean_over_negative_pixels():
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    negative = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.3
    expected = jensen_shannon_to_uniform(logits)[negative].mean()
    torch.testing.assert_close(divergence_on(logits, negative), expected)


def test_a_term_with_nothing_to_say_is_a_differentiable_zero():
    logits = torch.randn(1, 3, 4, 4).requires_grad_()
    image, mask = torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 255)
    outlier = torch.randn(1, 4, 4).requires_grad_()
    batch = unpasted(image, mask)
    for bits in (None, torch.zeros(0)):
        for kind in ("none", "head", "class"):
            losses = joint_loss(
                SegmenterOutput(logits, outlier, logits, logits, logits), batch, bits, kind=kind, config=LossConfig()
            )
            assert [float(x.detach()) for x in losses] == [0, 0, 0, 0, 0]
            losses.total.backward()
            assert float(logits.grad.abs().sum()) == 0


def test_total_is_the_weighted_sum():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 8, 8, generator=generator)
    mask = torch.randint(4, (2, 8, 8), generator=generator)
    patches, valid = torch.rand(2, 3, 4, 4, generator=generator), torch.ones(2, 8, 8, dtype=torch.bool)
    batch = paste(unpasted(image, mask), patches, valid=valid, strengths=torch.ones(2, 4, 4), boxes=[(0, 0), (2, 4)])
    config = LossConfig(negative_weight=0.5, flow_weight=0.25, outlier_weight=0.125)
    logits, outlier = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 8, 8, generator=generator)
    bits = torch.tensor([3.0, 5.0])
    losses = joint_loss(
        SegmenterOutput(logits, outlier, logits, logits, logits), batch, bits, kind="head", config=config
    )
    assert isinstance(losses, Losses)
    pixels = losses.classification + 0.5 * losses.negative + 0.125 * losses.outlier
    torch.testing.assert_close(losses.total, pixels + 0.25 * 4.0)
    assert losses.flow == 4.0


def test_the_outlier_head_learns_from_negatives_and_labelled_pixels_in_equal_shares():
    """But not from the pixels at a patch's outline; neither the image's border nor that of the labels is one."""
    logits, outlier, batch = _headed()
    p = outlier.double().sigmoid()
    inside, known = _counted(batch)
    assert int(inside[0].sum()) == 24 * (11 - RIM) and int(known[0].sum()) == 24 * (24 - 11 - RIM - 1)
    expected = -(p[inside].log().mean() + (1 - p[known]).log().mean()) / 2
    torch.testing.assert_close(_loss_of("balanced", logits, outlier, batch).double(), expected, rtol=1e-5, atol=1e-5)
    outlier.requires_grad_()
    _loss_of("balanced", logits, outlier, batch).backward()
    assert torch.equal(outlier.grad != 0, inside | known)


def test_a_negative_that_is_all_outline_counts_whole():
    logits, outlier, batch = _headed()
    thin = batch.negative.clone()
    thin[0, 2 * RIM :], thin[0, :, 2 * RIM :] = False, False
    outlier.requires_grad_()
    _loss_of("balanced", logits, outlier, batch._replace(negative=thin, covered=thin)).backward()
    assert (outlier.grad[0][thin[0]] != 0).sum() >= RIM * RIM
    slim = torch.zeros_like(thin)
    slim[:, 5, 5] = True
    outlier.grad = None
    _loss_of("balanced", logits, outlier, batch._replace(negative=slim, covered=slim)).backward()
    assert (outlier.grad[slim] != 0).all()


def test_the_head_learns_from_the_inside_of_a_decoy():
    logits, outlier, batch = _headed()
    decoy = torch.zeros_like(batch.covered)
    decoy[:, 13:, 4:16] = True
    outlier.requires_grad_()
    _loss_of("balanced", logits, outlier, batch._replace(covered=batch.covered | decoy)).backward()
    learned = outlier.grad != 0
    assert learned[:, 13 + RIM : 20, 4 + RIM : 16 - RIM].all()
    assert not learned[:, 15:, 4 - RIM : 4 + RIM].any() and not learned[:, 15:, 16 - RIM : 16 + RIM].any()


def _headed():
    """Logits, outlier logits, and a batch with negatives above and labels, but for one row, below."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 24, 24, generator=generator)
    outlier, mask = 3 * torch.randn(2, 24, 24, generator=generator), torch.randint(4, (2, 24, 24), generator=generator)
    negative = torch.zeros(2, 24, 24, dtype=torch.bool)
    mask[:, :11], negative[:, :11] = 255, True
    mask[:, 20] = 255
    batch = unpasted(torch.zeros(2, 3, 24, 24), mask)._replace(negative=negative, covered=negative)
    return logits, outlier, batch


def _counted(batch):
    """The pixels of `_headed` that count as negative and as labelled."""
    inside, known = batch.negative.clone(), batch.mask != 255
    inside[:, 11 - RIM :], known[:, : 11 + RIM] = False, False
    return inside, known


def _loss_of(kind, logits, outlier, batch):
    config = LossConfig(outlier=kind)
    return joint_loss(
        SegmenterOutput(logits, outlier, logits, logits, logits), batch, None, kind="head", config=config
    ).outlier


def test_the_ratio_loss_is_the_cross_entropy_of_the_likelihood_ratio():
    logits, outlier, batch = _headed()
    p = (outlier - logits.amax(1)).double().sigmoid()
    inside, known = _counted(batch)
    expected = -(p[inside].log().mean() + (1 - p[known]).log().mean()) / 2
    torch.testing.assert_close(_loss_of("ratio", logits, outlier, batch).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_evidential_loss_is_that_of_two_dirichlet_parameters():
    """Expected log-likelihood bound ln S - ln a_y, and KL(Dir(1, a of the other) || Dir(1, 1)), by torch's own."""
    logits, outlier, batch = _headed()
    found = _loss_of("evidential", logits, outlier, batch)

    def expected(o, sign):
        own, other = 1 + (sign * o).exp(), 1 + (-sign * o).exp()
        kl = torch.distributions.kl_divergence(
            torch.distributions.Dirichlet(torch.stack([torch.ones_like(other), other], -1)),
            torch.distributions.Dirichlet(torch.ones(2, dtype=o.dtype)),
        )
        return ((own + other).log() - own.log() + kl).mean()

    wide = outlier.double()
    inside, known = _counted(batch)
    whole = (expected(wide[inside], 1) + expected(wide[known], -1)) / 2
    torch.testing.assert_close(found.double(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", HEAD_COSTS)
def test_every_loss_of_the_head_falls_as_they_tell_negatives_from_inliers(kind):
    logits, _, batch = _headed()
    way = batch.negative.float() * 2 - 1
    losses = [float(_loss_of(kind, logits, step * way, batch)) for step in (-4.0, 0.0, 4.0, 8.0)]
    assert losses == sorted(losses, reverse=True) and losses[-1] >= 0


def test_the_config_and_the_losses_know_the_same_losses_of_the_head():
    assert set(get_args(LossConfig.model_fields["outlier"].annotation)) == set(HEAD_COSTS)


def test_the_outlier_class_is_one_more_class():
    generator = torch.Generator().manual_seed(0)
    logits, outlier = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 8, 8, generator=generator)
    mask = torch.randint(4, (1, 8, 8), generator=generator)
    mask[:, :2] = 255
    batch = unpasted(torch.zeros(1, 3, 8, 8), mask)._replace(negative=mask == 255)
    losses = joint_loss(
        SegmenterOutput(logits, outlier, logits, logits, logits), batch, None, kind="class", config=LossConfig()
    )
    p = torch.cat([logits, outlier[:, None]], 1).log_softmax(1)
    torch.testing.assert_close(losses.outlier, -p[:, 4][mask == 255].mean())
    torch.testing.assert_close(losses.classification, class_nll(p, mask))


@pytest.mark.parametrize("kind", ["kl_uniform", "kl_softmax"])
def test_the_other_divergences_equal_their_definition(kind):
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    negative = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.3
    p = logits.movedim(1, -1)[negative].softmax(1)
    u = torch.full_like(p, 1 / 4)
    expected = {"kl_uniform": u * (u / p).log(), "kl_softmax": p * (p / u).log()}
    found = divergence_on(logits, negative, kind).double()
    torch.testing.assert_close(found, expected[kind].sum(1).mean(), rtol=0, atol=1e-6)


def _joint(config):
    """One joint step of tiny networks; returns (flow, segmenter, losses)."""
    torch.manual_seed(0)
    flow = Flow(3, FlowConfig(levels=2, steps=1, layers=1, growth=4), (1 / 255,) * 3)
    segmenter = Segmenter(3, 4, SegmenterConfig(encoder="mobilenetv3_small_050", decoder_channels=8, outlier="none"))
    image, mask = torch.rand(2, 3, 64, 64), torch.randint(4, (2, 64, 64))
    flow.initialize(image)
    patches = flow.sample(2, 16, 24, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    batch = paste(
        unpasted(image, mask), patches, valid=valid, strengths=torch.ones(2, 16, 24), boxes=[(8, 8), (20, 30)]
    )
    bits = flow.bits_per_dimension(torch.stack(batch.crops), torch.Generator().manual_seed(1))
    return flow, segmenter, joint_loss(segmenter(batch.image), batch, bits, kind="none", config=config)


def _moved(network):
    return sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None)


def test_jsd_term_moves_the_flow_through_the_pasted_pixels():
    flow, segmenter, losses = _joint(LossConfig())
    losses.negative.backward()
    assert _moved(segmenter) > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in flow.parameters())
    assert all(float(step.shift.grad.abs().sum()) > 0 for level in flow.levels for step in level.steps)


def test_flow_term_does_not_move_the_segmenter():
    flow, segmenter, losses = _joint(LossConfig())
    losses.flow.backward()
    assert _moved(flow) > 0
    assert _moved(segmenter) == 0


def test_the_config_and_the_losses_know_the_same_divergences():
    assert set(get_args(LossConfig.model_fields["negative"].annotation)) == set(DIVERGENCES)
    with pytest.raises(ValueError, match="unknown divergence 'js'; choose one of jsd"):
        divergence_on(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool), "js")


@pytest.mark.parametrize("moved", [0, 1], ids=["flow", "segmenter"])
def test_uniform_answers_are_learned_by_both_networks(moved):
    """A short step down the JSD term lowers it, whichever network takes it: the game is cooperative."""
    flow, segmenter, _ = _joint(LossConfig())
    flow, segmenter = flow.double(), segmenter.double().eval()
    image, valid = torch.full((2, 3, 64, 64), 0.5, dtype=torch.float64), torch.ones(2, 64, 64, dtype=torch.bool)

    def term():
        patches = flow.sample(2, 16, 24, generator=torch.Generator().manual_seed(0))
        batch = paste(
            unpasted(image, valid.long()),
            patches,
            valid=valid,
            strengths=torch.ones(2, 16, 24),
            boxes=[(8, 8), (20, 30)],
        )
        return divergence_on(segmenter(batch.image).logits, batch.negative)

    first = term()
    parameters = list((flow, segmenter)[moved].parameters())
    gradients = torch.autograd.grad(first, parameters)
    slope = sum(float(g.square().sum()) for g in gradients)
    wanted = 1e-5 * float(first.detach())
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(wanted / slope * gradient)
        assert float(first - term()) == pytest.approx(wanted, rel=0.1)
