"""Laws of the outlier heads: nothing said before training, one function in training and use, gradients kept apart."""

import pytest
import torch
from torch.nn import functional

from geood.config.sections import SegmenterConfig
from geood.models.outlier_heads import FeatureMaps, OutlierHeads
from geood.models.segmenter import Segmenter

SIZE = (64, 96)


def _maps(seed=0, *, batch=2):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((8, 16, 24), (5, 16, 24), (7, 8, 12))
    decoder, fine, coarse = (3 + 2 * torch.randn(batch, *shape, generator=generator) for shape in shapes)
    return FeatureMaps(decoder, (fine, coarse), SIZE)


def _heads(*, trained=True):
    torch.manual_seed(0)
    heads = OutlierHeads(8, (5, 7, 9, 11))
    if trained:
        for head in (heads.on_decoder, heads.on_both):
            torch.nn.init.normal_(head.last.weight)
    return heads


def test_untrained_heads_call_every_pixel_as_likely_an_outlier_as_not():
    heads = _heads(trained=False)
    for mode in (True, False):
        assert not heads.train(mode)(_maps()).any()
    heads(_maps()).sum().backward()
    assert all(head.last.weight.grad.any() for head in (heads.on_decoder, heads.on_both))  # and can leave that point


def test_a_head_in_use_is_norm_convolutions_and_upsampling_of_the_whole_map():
    """The norm folded into the convolution and the late upsampling change nothing but rounding."""
    heads = _heads()
    for seed in range(30):
        heads.train()(_maps(seed))  # statistics of the norms
    heads.eval()
    maps = _maps(99)
    decoder, (fine, coarse), _ = maps
    for head, parts, found in (
        (heads.on_decoder, [decoder], heads(maps)[:, :1]),
        (heads.on_both, [decoder, fine, coarse], heads(maps)[:, 1:]),
    ):
        normed = [norm(part) for norm, part in zip(head.norms, parts, strict=True)]
        whole = torch.cat(
            [functional.interpolate(p, (16, 24), mode="bilinear", align_corners=False) for p in normed], 1
        )
        weight = torch.cat([mix.weight for mix in head.mixes], 1)
        expected = head.last(functional.conv2d(whole, weight, head.mixes[0].bias).relu())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_second_head_alone_sees_the_encoder():
    heads, maps = _heads().eval(), _maps()
    other = maps._replace(encoder=tuple(map(torch.zeros_like, maps.encoder)))
    assert torch.equal(heads(maps)[:, 0], heads(other)[:, 0]) and not torch.equal(heads(maps)[:, 1], heads(other)[:, 1])


def test_detached_maps_train_the_heads_and_nothing_behind_them():
    heads = _heads()
    decoder, (fine, coarse), size = _maps()
    leaves = [part.requires_grad_() for part in (decoder, fine, coarse)]
    heads(FeatureMaps(decoder, (fine, coarse), size).detach()).square().sum().backward()
    assert all(leaf.grad is None for leaf in leaves)
    assert all(p.grad is not None and p.grad.any() for p in heads.parameters())


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    made = Segmenter(3, 4, SegmenterConfig(encoder="resnet10t", decoder_channels=8, outlier="head")).eval()
    for head in (made.outlier_head.on_decoder, made.outlier_head.on_both):
        torch.nn.init.normal_(head.last.weight)
    return made


def test_a_segmenter_gives_the_mean_of_its_heads_or_each_or_none(segmenter):
    image = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, each, none = (segmenter(image, outlier) for outlier in ("mean", "each", "none"))
    assert mean.heads is None and none.outlier is None and none.heads is None
    assert each.heads.shape == (2, 2, *SIZE) and torch.equal(each.outlier, each.heads.mean(1))
    torch.testing.assert_close(mean.outlier, each.outlier)
    assert torch.equal(mean.logits, none.logits) and torch.equal(each.logits, none.logits)


def test_the_heads_cost_little_beside_the_network(segmenter):
    """In multiplications for a pixel of the decoder's map, of the smallest usual network."""
    lite = Segmenter(3, 4, SegmenterConfig(encoder="tf_efficientnet_lite0", decoder_channels=96))
    heads = (lite.outlier_head.on_decoder, lite.outlier_head.on_both)
    weights = [mix.weight.numel() for head in heads for mix in head.mixes]
    coarse = weights[-1] * 3 // 4  # computed at a quarter of the places
    rungs = sum(p.numel() for p in lite.decoder.rungs[-1].parameters())
    assert sum(weights) - coarse < rungs / 3
