"""Laws of mixed-content batches: one patch an image of a size of its own, boxes that a flow can learn from, decoys."""

import pytest
import torch

from geood.config.sections import FlowConfig, NegativesConfig
from geood.models.flows.flow import Flow
from geood.training.mixed_content import mixed_content
from support.cpu import slow


def _batch(count=6, side=64):
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(count, 3, side, side, generator=generator),
        "mask": torch.randint(4, (count, side, side), generator=generator),
        "valid": torch.ones(count, side, side, dtype=torch.bool),
    }


def _mixed(batch=None, *, flow=None, learns=False, seed=0, **keys):
    config = NegativesConfig(**{"source": "phase", "patch_max_px": 32, **keys})
    return mixed_content(
        _batch() if batch is None else batch,
        config,
        flow=flow,
        photographs=None,
        learns=learns,
        moved=learns,
        generator=torch.Generator().manual_seed(seed),
    )


def _flow(levels=3):
    flow = Flow(3, FlowConfig(levels=levels, steps=1, layers=1, growth=4), (1 / 255,) * 3)
    flow.initialize(_batch()["image"])
    return flow


def test_every_image_has_its_patches_and_each_its_own_size():
    batch = _batch()
    pasted = _mixed(batch, patches=2)
    assert pasted.negative.any((1, 2)).all() and (pasted.mask[pasted.negative] == 255).all()
    assert len(pasted.crops) == 12 and len({tuple(crop.shape) for crop in pasted.crops}) > 8
    assert torch.equal(pasted.image.movedim(1, -1)[~pasted.covered], batch["image"].movedim(1, -1)[~pasted.covered])
    again, other = _mixed(batch, patches=2), _mixed(batch, patches=2, seed=1)
    assert torch.equal(pasted.image, again.image) and not torch.equal(pasted.image, other.image)


def test_without_a_source_and_decoys_nothing_changes():
    batch = _batch()
    pasted = _mixed(batch, source="none")
    assert torch.equal(pasted.image, batch["image"]) and torch.equal(pasted.mask, batch["mask"])
    assert pasted.crops == () and not pasted.negative.any()


@pytest.mark.parametrize("levels", [3, *slow(4)])
def test_a_flow_that_learns_gets_crops_that_it_takes_whatever_the_sizes_of_the_patches(levels):
    flow, batch = _flow(levels), _batch()
    pasted = _mixed(batch, flow=flow, learns=True, source={"flow": 1.0, "phase": 1.0})
    assert len(pasted.crops) == 6 and pasted.image.requires_grad
    for crop, negative in zip(pasted.crops, pasted.negative, strict=True):
        assert all(side % flow.multiple == 0 for side in crop.shape[1:])
        assert torch.isfinite(flow.bits_per_dimension(crop[None])).all()
        rows, cols = (negative.any(axis).nonzero().flatten() for axis in (1, 0))
        assert int(rows.max() - rows.min()) < crop.shape[1] and int(cols.max() - cols.min()) < crop.shape[2]
        places = batch["image"].unfold(2, crop.shape[1], 1).unfold(3, crop.shape[2], 1).movedim(1, 3)
        assert (places == crop).flatten(3).all(-1).any()  # as it was before the patch
    frozen = _mixed(batch, flow=flow, learns=False, source="flow", patch_max_px=32)
    assert not frozen.image.requires_grad


def test_uniform_sizes_are_one_for_the_batch():
    pasted = _mixed(sizes="uniform", shape="rectangle")
    [size] = {tuple(crop.shape) for crop in pasted.crops}
    assert size[1] % 8 == size[2] % 8 == 0 and set(pasted.negative.sum((1, 2)).tolist()) == {size[1] * size[2]}


def test_decoys_have_pixels_and_classes_of_a_place_in_another_image():
    batch = _batch(2)
    batch["mask"] = (batch["image"][:, 0] * 4).long()  # so that a pixel says its class
    batch["mask"][1] += 10
    pasted = _mixed(batch, source="none", decoys=2)
    assert pasted.crops == () and not pasted.negative.any() and pasted.covered.any((1, 2)).all()
    for i in (0, 1):
        there, untouched = pasted.covered[i], ~pasted.covered[i]
        classes = (pasted.image[i, 0][there] * 4).long() + (0 if i else 10)
        assert torch.equal(pasted.mask[i][there], classes)
        assert torch.equal(pasted.mask[i][untouched], batch["mask"][i][untouched])


def test_decoys_and_negatives_lie_apart_and_nothing_lies_on_gaps():
    batch = _batch()
    batch["valid"][:, ::16] = False
    pasted = _mixed(batch, source="crop", decoys=1, patch_max_px=16)
    assert pasted.covered.any() and not (pasted.covered & ~batch["valid"]).any()
    decoys = pasted.covered & ~pasted.negative
    assert decoys.any() and pasted.negative.any() and not (decoys & pasted.negative).any()
    batch["valid"][:] = False
    empty = _mixed(batch, source="crop", decoys=1)
    assert torch.equal(empty.image, batch["image"]) and not empty.covered.any()
