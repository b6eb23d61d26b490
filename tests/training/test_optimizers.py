"""Laws of rates and optimizers: who gets which rate, how it runs, and that two optimizers step as they would alone."""

import copy

import pytest
import torch
from torch.optim import Adamax, AdamW

from geood.config.sections import FlowConfig, SegmenterConfig, TrainConfig
from geood.models.flows.flow import Flow
from geood.models.segmenter import Segmenter
from geood.training.optimizers import CombinedOptimizer, make_optimizer, schedules


def _networks():
    torch.manual_seed(0)
    segmenter = Segmenter(3, 4, SegmenterConfig(encoder="resnet10t", decoder_channels=8, outlier="head"))
    return segmenter, Flow(3, FlowConfig(steps=1, layers=1, growth=4), (1 / 255,) * 3)


def _rates(optimizer):
    """First rate of every parameter by its identity."""
    return {id(p): group["first_lr"] for group in optimizer.param_groups for p in group["params"]}


def test_encoder_decoder_and_flow_have_rates_of_their_own():
    segmenter, flow = _networks()
    config = TrainConfig(joint_segmenter_lr=4e-4, encoder_lr_factor=0.25, joint_flow_lr=1e-5, flow_lr=3.0)
    rates = _rates(make_optimizer(config, "joint", segmenter=segmenter, flow=flow))
    assert {rates[id(p)] for p in segmenter.encoder.parameters()} == {1e-4}
    assert {rates[id(p)] for p in (*segmenter.decoder.parameters(), *segmenter.head.parameters())} == {4e-4}
    assert {rates[id(p)] for p in segmenter.outlier_head.parameters()} == {config.head_lr} == {1e-3}
    assert {rates[id(p)] for p in flow.parameters()} == {1e-5}
    assert len(rates) == sum(1 for network in (segmenter, flow) for _ in network.parameters())
    alone = _rates(make_optimizer(config, "flow", segmenter=None, flow=flow))
    assert set(alone.values()) == {3.0}
    first = _rates(make_optimizer(config, "segmenter", segmenter=segmenter, flow=None))
    assert not {id(p) for p in segmenter.outlier_head.parameters()} & set(first)


def test_the_stage_head_trains_the_heads_and_the_flow_and_no_class():
    segmenter, flow = _networks()
    config = TrainConfig(head_lr=1e-2, joint_flow_lr=1e-5)
    optimizer = make_optimizer(config, "head", segmenter=segmenter, flow=flow)
    rates = _rates(optimizer)
    assert set(rates) == {id(p) for network in (segmenter.outlier_head, flow) for p in network.parameters()}
    assert {rates[id(p)] for p in segmenter.outlier_head.parameters()} == {1e-2}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0.0]
    head, flows = schedules(optimizer, config, "head", steps=210)
    assert [head(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert head(110) == pytest.approx(0.51) and head(210) == pytest.approx(0.02)  # a cosine down to 2 %
    assert flows(100) == 1.0  # its rate there lies below the last one: constant
    alone = make_optimizer(config, "head", segmenter=segmenter, flow=None)
    assert len(alone.param_groups) == 1
    assert schedules(alone, config, "head", steps=9)[0](0) == 1
    joint = make_optimizer(config, "joint", segmenter=segmenter, flow=flow)
    assert [group["of"] for group in joint.param_groups] == ["segmenter", "segmenter", "head", "flow"]
    assert schedules(joint, config, "joint", steps=1000)[2](9) == 1.0  # the head's own warm-up there as well


@pytest.mark.parametrize(("kind", "wanted"), [("adam", AdamW), ("adamax", Adamax)])
def test_the_flow_is_stepped_by_the_optimizer_that_the_config_names(kind, wanted):
    segmenter, flow = _networks()
    config = TrainConfig(flow_optimizer=kind, adam_epsilon=1e-7, weight_decay=0.1)
    optimizer = make_optimizer(config, "joint", segmenter=segmenter, flow=flow)
    assert isinstance(optimizer, CombinedOptimizer) and [type(part) for part in optimizer.parts] == [AdamW, wanted]
    assert all(group["eps"] == 1e-7 for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 1e-3, 0.0]


def test_a_schedule_rises_then_falls_to_its_last_rate():
    segmenter, flow = _networks()
    config = TrainConfig(
        segmenter_lr=1e-3, segmenter_last_lr=1e-5, warmup_steps=10, flow_warmup_steps=10, flow_lr=1e-3,
        flow_last_lr=2e-4, flow_schedule="exponential",
    )  # fmt: skip
    first, *_ = schedules(
        make_optimizer(config, "segmenter", segmenter=segmenter, flow=None), config, "segmenter", steps=1000
    )
    assert [first(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert first(10) == 1 and first(505) == pytest.approx(0.01 + 0.99 / 2) and first(1000) == pytest.approx(0.01)
    [flows] = schedules(make_optimizer(config, "flow", segmenter=None, flow=flow), config, "flow", steps=1000)
    assert flows(1000) == pytest.approx(0.2) and flows(505) == pytest.approx(0.2**0.5)
    joint = schedules(make_optimizer(config, "joint", segmenter=segmenter, flow=flow), config, "joint", steps=1000)
    assert {joint[3](step) for step in (10, 500, 1000)} == {1.0}  # its rate there lies below the last one: constant
    short, *_ = schedules(
        make_optimizer(config, "segmenter", segmenter=segmenter, flow=None), config, "segmenter", steps=4
    )
    assert short(0) == 1


def _walk(optimizer, weights, steps, *, seed=0):
    """Some steps down random slopes."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed + step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


def _pair():
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    return weights, CombinedOptimizer([AdamW([weights[0]], lr=0.1), Adamax([weights[1]], lr=0.2)])


def test_together_they_step_as_each_would_alone():
    weights, both = _pair()
    _walk(both, weights, 5)
    alone = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    for optimizer in (AdamW([alone[0]], lr=0.1), Adamax([alone[1]], lr=0.2)):
        _walk(optimizer, alone, 5)
    assert all(torch.equal(a, b) for a, b in zip(weights, alone, strict=True))


def test_together_they_go_on_from_a_saved_state_and_heed_a_schedule():
    weights, both = _pair()
    rate = torch.optim.lr_scheduler.LambdaLR(both, lambda step: 1 / (step + 1))
    _walk(both, weights, 2)
    rate.step()
    saved = copy.deepcopy(both.state_dict())
    others, again = _pair()
    for mine, theirs in zip(others, weights, strict=True):
        mine.data.copy_(theirs)
    again.load_state_dict(saved)
    assert (
        [group["lr"] for group in again.param_groups] == [0.05, 0.1] == [p.param_groups[0]["lr"] for p in again.parts]
    )
    for optimizer, these in ((both, weights), (again, others)):
        _walk(optimizer, these, 3, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    again.zero_grad()
    assert all(w.grad is None for w in others)
