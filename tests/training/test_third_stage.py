"""Laws of the stage head: what learns and what does not, and what reaches the flow, there and in its own stage."""

import pytest
import torch

from geood.models.flows.flow import Flow
from geood.models.segmenter import Segmenter
from geood.training.plans import Plan
from geood.training.stage import Stage
from geood.training.third_stage import telling
from support.bundles import small_config


def _batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(2, 3, 64, 64, generator=generator),
        "mask": torch.randint(3, (2, 64, 64), generator=generator),
        "valid": torch.ones(2, 64, 64, dtype=torch.bool),
        "name": ["a", "b"],
    }


def _stage(*, source="flow", loss=None, **train):
    config = small_config(
        data={"crop_px": 64},
        segmenter={"outlier": "head"},
        negatives={"source": source},
        loss=loss or {},
        train={"third_stage": "head", **train},
    )
    torch.manual_seed(0)
    segmenter, flow = Segmenter(3, 3, config.segmenter), None
    if source == "flow":
        flow = Flow(3, config.flow, (1 / 255,) * 3)
        flow.initialize(_batch()["image"])
    return Stage(Plan("head", 1, 2), config, segmenter=segmenter, flow=flow)


def test_the_flow_alone_learns_from_patches_of_the_largest_size_and_where_gaps_leave_none_from_smaller_ones(
    monkeypatch,
):
    stage, seen = _stage(), []
    monkeypatch.setattr(stage.flow, "bits_per_dimension", lambda crops, _: seen.append(crops.shape) or crops.mean())
    largest, batch = stage.config.negatives.patch_max_px, _batch()
    for _ in range(3):
        stage._flow_step(batch)
    assert seen == [(2, 3, largest, largest)] * 3
    batch["valid"] = torch.zeros(2, 64, 64, dtype=torch.bool)
    assert float(stage._flow_step(batch)["loss"].detach()) == 0 and len(seen) == 3
    batch["valid"][:, :24, :24] = True
    for seed in range(20):
        monkeypatch.setattr(stage, "generator", lambda seed=seed: torch.Generator().manual_seed(seed))
        stage._flow_step(batch)
    assert len(seen) > 3 and all(max(shape[2:]) <= 24 for shape in seen[3:])


def _moved(network):
    return {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}


def _stepped(stage):
    figures = stage._third_step(_batch())
    figures["loss"].backward()
    return figures


@pytest.mark.parametrize("source", ["flow", "phase"])
def test_only_the_head_of_the_segmenter_learn(source):
    stage = _stage(source=source)
    _stepped(stage)
    head = {"outlier_head.last.weight", "outlier_head.last.bias"}
    assert _moved(stage.segmenter) == head  # behind the last layer, which is zero, nothing moves in the first step
    learners = {name for name, p in stage.segmenter.named_parameters() if p.requires_grad}
    assert learners == {name for name in stage.segmenter.state_dict() if name.startswith("outlier_head.")} - {
        name for name, _ in stage.segmenter.named_buffers()
    }


def test_training_mode_ends_at_the_head():
    """Whoever asks for it: statistics of the frozen norms would drift."""
    stage = _stage(source="phase")
    for mode in (True, False, True):
        stage.train(mode)
        assert not any(module.training for part in stage.segmenter.frozen_parts for module in part.modules())
        assert all(module.training == mode for module in stage.segmenter.outlier_head.modules())
    before = {name: tensor.clone() for name, tensor in stage.segmenter.state_dict().items()}
    for _ in range(3):
        _stepped(stage)
    after = stage.segmenter.state_dict()
    frozen = [name for name in before if not name.startswith("outlier_head.")]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert int(after["outlier_head.norms.2.num_batches_tracked"]) == 3


def test_other_stages_after_it_train_the_whole_segmenter():
    segmenter, config = _stage(source="phase").segmenter, _stage(source="phase").config
    for stage, wanted in (("segmenter", {False, True}), ("joint", {True})):
        made = Stage(Plan(stage, 1, 2), config, segmenter=segmenter, flow=None)
        assert {p.requires_grad for p in made.segmenter.parameters()} == wanted
        assert all(p.requires_grad for part in segmenter.frozen_parts for p in part.parameters())
        assert all(module.training for module in segmenter.modules())


def _flow_gradient(**loss):
    stage = _stage(loss=loss)
    _stepped(stage)
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in stage.flow.parameters()]
    )


def test_the_flow_is_moved_by_its_likelihood_and_by_the_divergence_through_the_frozen_segmenter():
    likelihood = _flow_gradient(flow_weight=1.0, negative_weight=0.0)
    divergence = _flow_gradient(flow_weight=0.0, negative_weight=1.0)
    both = _flow_gradient(flow_weight=1.0, negative_weight=1.0)
    assert likelihood.any() and divergence.any()
    torch.testing.assert_close(both, likelihood + divergence, rtol=1e-3, atol=1e-6)
    assert not _flow_gradient(flow_weight=0.0, negative_weight=1.0, negative_to_flow=False).any()
    assert not _flow_gradient(
        flow_weight=0.0, negative_weight=0.0, outlier_weight=9.0
    ).any()  # nor does the head move it


def test_a_step_of_the_flow_along_the_pull_lowers_the_divergence():
    stage = _stage(loss={"flow_weight": 0.0, "negative_weight": 1.0})
    stage.flow.double(), stage.segmenter.double()
    batch = {k: v.double() if k == "image" else v for k, v in _batch().items()}
    first = stage._third_step(batch)
    gradients = torch.autograd.grad(first["loss"], list(stage.flow.parameters()), allow_unused=True)
    slope = sum(float(g.square().sum()) for g in gradients if g is not None)
    wanted = 1e-5 * float(first["negative"].detach())
    with torch.no_grad():
        for parameter, gradient in zip(stage.flow.parameters(), gradients, strict=True):
            if gradient is not None:
                parameter.sub_(wanted / slope * gradient)
    lowered = float((first["negative"] - stage._third_step(batch)["negative"]).detach())
    assert lowered == pytest.approx(wanted, rel=0.1)


def test_a_flow_that_stays_as_it_is_costs_no_graph_through_the_segmenter():
    stage = _stage(joint_flow_lr=0.0)
    figures = _stepped(stage)
    assert not _moved(stage.flow) and "bpd" not in figures and not figures["negative"].requires_grad


def test_a_batch_without_room_gives_the_flow_and_the_heads_a_gradient_all_the_same():
    stage = _stage()
    batch = _batch() | {"valid": torch.zeros(2, 64, 64, dtype=torch.bool)}
    figures = stage._third_step(batch)
    figures["loss"].backward()
    assert "gap" not in figures
    assert all(p.grad is not None for p in (*stage.flow.parameters(), *stage.segmenter.outlier_head.parameters()))


def test_telling_pixels_are_those_that_the_largest_logit_depends_on():
    segmenter = _stage(source="attribution").segmenter.train()
    before = {name: tensor.clone() for name, tensor in segmenter.state_dict().items()}
    image = _batch()["image"]
    found = telling(segmenter, image)
    assert all(module.training for module in segmenter.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in segmenter.state_dict().items())
    assert (
        found.shape == (2, 64, 64) and not found.requires_grad and all(p.grad is None for p in segmenter.parameters())
    )
    wide, seen, total = segmenter.double().eval(), image.double(), 0.0
    with torch.no_grad():
        taken = wide(seen).logits.argmax(1, keepdim=True)
        for band in range(3):  # by finite differences
            step = torch.zeros_like(seen)
            step[0, band, 20, 30] = 1e-6
            rise = wide(seen + step).logits - wide(seen - step).logits
            total += abs(float(rise.gather(1, taken).sum()) / 2e-6)
    assert float(found[0, 20, 30]) == pytest.approx(total, rel=1e-3)


def test_attribution_trains_the_heads_like_any_source():
    stage = _stage(source="attribution")
    figures = _stepped(stage)
    assert torch.isfinite(figures["loss"]) and _moved(stage.segmenter) and "gap" in figures


def test_the_class_term_of_a_validation_does_not_depend_on_its_batches():
    stage, batch, found = _stage(source="phase").eval(), _batch(), []
    batch["mask"][0, 4:] = 255
    halves = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(2)]
    bare = halves[0] | {"mask": torch.full_like(halves[0]["mask"], 255)}
    for batches in ([batch], [*halves, bare]):
        stage.on_validation_epoch_start()
        with torch.no_grad():
            for each in batches:
                stage.validation_step(each, 1)
        found.append(stage._validation.nll / stage._validation.labelled)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_pasted_negatives_are_shown_on_the_batch_and_the_crops_with_the_most_classes():
    stage, batch = _stage(source="phase").eval(), _batch()
    one = batch | {"mask": torch.zeros_like(batch["mask"])}
    both = batch | {"mask": torch.zeros_like(batch["mask"]), "image": 1 - batch["image"]}
    both["mask"][-1, 9:] = 1
    stage.on_validation_epoch_start()
    with torch.no_grad():
        for index, each in enumerate((one, both, one)):
            stage.validation_step(each, index)
    assert torch.equal(stage._validation.before, both["image"].flip(0))
    assert stage._validation.pasted.shape == both["image"].shape


def test_a_stage_whose_crops_have_no_room_for_negatives_says_so(caplog):
    batch = _batch()
    stage = _stage(source="phase")
    stage._third_step(batch)
    stage.on_train_end()
    assert not caplog.records
    batch["valid"][:, ::7] = False  # no row of data is left that is 8 px high
    batch["mask"][:, ::7] = 255
    for _ in range(2):
        stage._third_step(batch)
    stage.on_train_end()
    assert "stage head: in 67 % of the crops no negative of 8 to 32 px fitted" in caplog.text
