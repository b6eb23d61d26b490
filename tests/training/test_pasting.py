"""Laws of pasting: where boxes may lie, how they are drawn, what is exchanged with what."""

import pytest
import torch

from geood.config.sections import NegativesConfig
from geood.training.pasting import draw_boxes, draw_size, draw_sizes, draw_strength, paste, unpasted


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sizes_are_all_multiples_in_the_range_and_independent():
    config, generator = NegativesConfig(patch_min_px=16, patch_max_px=40), _seeded()
    drawn = {draw_size(config, multiple=8, generator=generator) for _ in range(400)}
    assert drawn == {(h, w) for h in (16, 24, 32, 40) for w in (16, 24, 32, 40)}
    assert {draw_size(config, multiple=16, generator=generator)[0] for _ in range(50)} == {16, 32}
    with pytest.raises(ValueError, match="no multiple of 64"):
        draw_size(config, multiple=64, generator=generator)


def test_log_sides_are_uniform_in_their_logarithm_and_each_patch_has_its_own():
    config = NegativesConfig(patch_min_px=8, patch_max_px=64)
    drawn = [size for _ in range(100) for size in draw_sizes(config, 40, multiple=8, generator=_seeded(_))]
    sides = torch.tensor(drawn, dtype=torch.float32)
    assert sides.min() == 8 and sides.max() == 64 and len(set(drawn[:40])) > 30
    for octave in (8, 16, 32):
        share = ((sides >= octave) & (sides < 2 * octave)).float().mean()
        assert float(share) == pytest.approx(1 / 3, abs=0.03)
    logs = sides.log()
    assert abs(float(torch.corrcoef(logs.T)[0, 1])) < 0.05  # height and width are independent


def test_uniform_sizes_are_one_for_a_batch_and_multiples_of_the_stride():
    config = NegativesConfig(patch_min_px=8, patch_max_px=48, sizes="uniform")
    for seed in range(20):
        [size] = set(draw_sizes(config, 5, multiple=16, generator=_seeded(seed)))
        assert size == draw_size(config, multiple=16, generator=_seeded(seed))
    assert {side % 8 for side in draw_sizes(config, 1, multiple=1, generator=_seeded())[0]} == {0}


def test_boxes_lie_on_data_and_reach_every_such_place_equally():
    valid = torch.ones(1, 7, 9, dtype=torch.bool)
    valid[0, 3, 4] = False
    size = (3, 2)
    places = {(r, c) for r in range(7 - 3 + 1) for c in range(9 - 2 + 1) if valid[0, r : r + 3, c : c + 2].all()}
    boxes = draw_boxes(valid.expand(6000, 7, 9), [size] * 6000, _seeded())
    counts = {place: boxes.count(place) for place in set(boxes)}
    assert set(counts) == places
    expected = 6000 / len(places)
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 2 * len(places)  # chi-square, far out


def test_no_box_where_nothing_fits():
    valid = torch.ones(3, 8, 8, dtype=torch.bool)
    valid[1, ::4] = False
    assert draw_boxes(valid, [(8, 8)] * 3, _seeded()) == [(0, 0), None, (0, 0)]
    assert draw_boxes(valid, [(9, 8), (3, 8), (8, 9)], _seeded()) == [None, (1, 0), None]


def test_same_seed_same_boxes():
    valid = torch.rand(4, 32, 32, generator=_seeded(3)) < 0.98
    sizes = [(4, 4), (5, 3), (2, 8), (4, 4)]
    assert draw_boxes(valid, sizes, _seeded(1)) == draw_boxes(valid, sizes, _seeded(1))
    assert draw_boxes(valid, sizes, _seeded(1)) != draw_boxes(valid, sizes, _seeded(2))


FULL = torch.ones(3, 4, 6)


def _scene():
    image = torch.rand(3, 2, 10, 12, generator=_seeded())
    mask = torch.randint(3, (3, 10, 12), generator=_seeded())
    return image, mask, torch.ones(3, 10, 12, dtype=torch.bool), torch.rand(3, 2, 4, 6, generator=_seeded(1)) + 2


def test_pasting_exchanges_box_and_crop_and_nothing_else():
    image, mask, valid, patches = _scene()
    boxes = [(0, 0), None, (6, 6)]
    before = image.clone(), mask.clone()
    batch = paste(unpasted(image, mask), patches, valid=valid, strengths=FULL, boxes=boxes)
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1])
    assert batch.negative.sum((1, 2)).tolist() == [24, 0, 24]
    assert (batch.mask[batch.negative] == 255).all()
    assert torch.equal(batch.mask[~batch.negative], mask[~batch.negative])
    assert torch.equal(batch.image[0, :, 0:4, 0:6], patches[0])
    assert torch.equal(batch.image[2, :, 6:10, 6:12], patches[2])
    # putting the crops back restores the images
    first, last = batch.crops
    crops = (first, first, last)
    restored = paste(unpasted(batch.image, batch.mask), crops, valid=valid, strengths=FULL, boxes=boxes)
    assert torch.equal(restored.image, image)


def test_gradient_reaches_the_patches_and_not_the_crops():
    image, mask, valid, patches = _scene()
    image.requires_grad_()
    patches.requires_grad_()
    batch = paste(unpasted(image, mask), patches, valid=valid, strengths=FULL, boxes=[(1, 2), None, (0, 0)])
    assert not batch.crops[0].requires_grad
    (2 * batch.image).sum().backward()
    assert torch.equal(patches.grad, torch.tensor([2.0, 0.0, 2.0]).reshape(3, 1, 1, 1).expand_as(patches))
    assert torch.equal(image.grad, 2.0 * (~batch.negative)[:, None].expand_as(image))


def test_a_batch_without_a_place_stays_as_it_is():
    image, mask, valid, patches = _scene()
    batch = paste(unpasted(image, mask), patches, valid=valid, strengths=FULL, boxes=[None, None, None])
    assert torch.equal(batch.image, image) and torch.equal(batch.mask, mask)
    assert batch.crops == () and not batch.negative.any()


def test_a_box_off_the_data_is_refused():
    image, mask, valid, patches = _scene()
    valid[0, 5, 5] = False
    with pytest.raises(ValueError, match="without data"):
        paste(unpasted(image, mask), patches, valid=valid, strengths=FULL, boxes=[(3, 3), None, None])
    with pytest.raises(ValueError, match="overhangs"):
        paste(unpasted(image, mask), patches, valid=valid, strengths=FULL, boxes=[(7, 0), None, None])
    with pytest.raises(ValueError, match="overhangs"):
        paste(unpasted(image, mask), patches, valid=valid, strengths=FULL, boxes=[(-1, 0), None, None])


def test_more_patches_lie_beside_the_first_and_all_crops_are_kept():
    image, mask, valid, patches = _scene()
    one = paste(unpasted(image, mask), patches, valid=valid, strengths=FULL, boxes=[(0, 0), None, (6, 6)])
    with pytest.raises(ValueError, match="or of another"):
        paste(one, patches, valid=valid, strengths=FULL, boxes=[(3, 5), None, None])
    small, boxes = patches[..., :2, :3] - 1, [(4, 6), (0, 0), None]
    two = paste(one, small, valid=valid, strengths=FULL[:, :2, :3], boxes=boxes)
    assert [c.shape for c in two.crops] == [(2, 4, 6), (2, 4, 6), (2, 2, 3), (2, 2, 3)]
    assert torch.equal(two.crops[2], image[0, :, 4:6, 6:9])
    assert two.negative.sum((1, 2)).tolist() == [30, 6, 24] and (two.mask[two.negative] == 255).all()
    assert torch.equal(two.image[0, :, 0:4, 0:6], patches[0]) and torch.equal(two.image[1, :, 0:2, 0:3], small[1])


@pytest.mark.parametrize("feather", [0, 1, 2])
def test_a_faded_rim_is_neither_negative_nor_inlier(feather):
    config = NegativesConfig(patch_min_px=8, patch_max_px=8, feather_px=feather, shape="rectangle")
    image, mask = torch.zeros(1, 1, 20, 20), torch.zeros(1, 20, 20, dtype=torch.int64)
    patches = torch.ones(1, 1, 8, 8)
    strength = draw_strength(config, (8, 8), like=patches, generator=_seeded())
    batch = paste(unpasted(image, mask), patches, valid=mask == 0, strengths=[strength], boxes=[(4, 4)])
    assert (batch.covered.sum(), batch.negative.sum()) == (64, (8 - 2 * feather) ** 2)
    assert torch.equal(batch.mask == 255, batch.covered) and not (batch.negative & ~batch.covered).any()
    line = batch.image[0, 0, 8, 4:12]
    assert torch.equal(line, line.flip(0)) and (line[: feather + 1].diff() > 0).all()
    assert torch.equal(batch.image[0, 0] == 1, batch.negative[0]) and torch.equal(
        batch.image[0, 0] > 0, batch.covered[0]
    )


def _drawn(config, count, size):
    generator = _seeded()
    return torch.stack([draw_strength(config, size, like=torch.zeros(1), generator=generator) for _ in range(count)])


def test_a_blob_of_the_least_size_has_a_middle_and_misses_its_corners():
    strength = _drawn(NegativesConfig(), 200, (8, 8))
    assert (strength[:, 3:5, 3:5] == 1).all() and not strength[:, [0, 0, 7, 7], [0, 7, 0, 7]].all()


def test_blobs_are_irregular_whole_in_their_middle_and_never_the_whole_box():
    config = NegativesConfig(shape="blob", patch_min_px=16)
    for size in ((16, 16), (24, 72), (216, 40)):
        strength = _drawn(config, 200, size)
        assert strength.shape == (200, *size) and set(strength.unique().tolist()) == {0.0, 1.0}
        share = strength.mean((1, 2))
        assert 0.3 < float(share.mean()) < 0.75 and float(share.std()) > 0.03 and float(share.min()) > 0.05
        assert (strength[:, size[0] // 2, size[1] // 2] == 1).all()
        assert len({tuple(blob.flatten().tolist()) for blob in strength}) == 200


def test_a_blob_leaves_the_rest_of_its_box_as_it_was():
    image, mask, valid, patches = _scene()
    strength = torch.zeros(3, 4, 6)
    strength[:, 1:3, 2:5] = 1
    batch = paste(unpasted(image, mask), patches, valid=valid, strengths=strength, boxes=[(0, 0), None, (6, 6)])
    assert batch.negative.sum((1, 2)).tolist() == [6, 0, 6] and batch.crops[0].shape == (2, 4, 6)
    assert torch.equal(batch.image[0, :, 1:3, 2:5], patches[0, :, 1:3, 2:5])
    untouched = ~batch.negative
    assert torch.equal(batch.image.movedim(1, -1)[untouched], image.movedim(1, -1)[untouched])
    assert torch.equal(batch.mask[untouched], mask[untouched])


def test_a_feather_fades_along_the_outline_of_a_blob():
    plain = NegativesConfig(shape="blob", patch_min_px=16)
    soft = plain.model_copy(update={"feather_px": 2})
    hard, faded = (_drawn(c, 20, (40, 32)) for c in (plain, soft))
    assert torch.equal(faded > 0, hard > 0) and torch.equal(faded.unique(), torch.tensor([0, 1 / 3, 2 / 3, 1]))
    inner = -torch.nn.functional.max_pool2d(-torch.nn.functional.pad(hard, (2, 2, 2, 2)), 5, stride=1)
    assert torch.equal(faded == 1, inner == 1)


def test_patches_of_their_own_sizes_lie_where_their_boxes_are():
    image, mask, valid, patches = _scene()
    own, strengths = [patches[0], patches[1, :, :2], patches[2, :, :, :1]], [FULL[0], FULL[1, :2], FULL[2, :, :1]]
    boxes = [(6, 6), (8, 1), (0, 11)]
    batch = paste(unpasted(image, mask), own, valid=valid, strengths=strengths, boxes=boxes)
    for i, ((row, col), patch) in enumerate(zip(boxes, own, strict=True)):
        height, width = patch.shape[1:]
        assert torch.equal(batch.image[i, :, row : row + height, col : col + width], patch)
        assert torch.equal(batch.crops[i], image[i, :, row : row + height, col : col + width])
    assert batch.negative.sum((1, 2)).tolist() == [24, 12, 4]


def test_a_decoy_brings_its_classes_and_is_neither_negative_nor_replaced_crop():
    image, mask, valid, patches = _scene()
    labels, strength = torch.full((3, 4, 6), 7), torch.ones(3, 4, 6)
    labels[:, 0], strength[:, :, 0], strength[:, :, 1] = 255, 0.0, 0.5
    whole = unpasted(image, mask)
    batch = paste(whole, patches, valid=valid, strengths=strength, boxes=[(1, 2), None, (6, 6)], labels=labels)
    assert not batch.negative.any() and batch.crops == () and batch.covered.sum((1, 2)).tolist() == [20, 0, 20]
    inside = batch.mask[0, 1:5, 2:8]
    assert torch.equal(inside[:, 0], mask[0, 1:5, 2]) and (inside[:, 1] == 255).all()  # outside, and on the rim
    assert (inside[0, 2:] == 255).all() and (inside[1:, 2:] == 7).all()  # unlabelled stays so
    assert torch.equal(batch.image[0, :, 1:5, 4:8], patches[0, :, :, 2:])
    assert torch.equal(batch.mask[1], mask[1]) and torch.equal(batch.image[1], image[1])
    with pytest.raises(ValueError, match="or of another"):
        paste(batch, patches, valid=valid, strengths=FULL, boxes=[(1, 2), None, None])
