"""Laws of the outlier head: nothing said before training, one function in training and use, gradients kept apart."""

import pytest
import torch
from torch.nn import functional

from geood.config.sections import SegmenterConfig
from geood.models.outlier_head import FeatureMaps, OutlierHead
from geood.models.segmenter import Segmenter

SIZE = (64, 96)


def _maps(seed=0, *, batch=2):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((8, 16, 24), (5, 16, 24), (7, 8, 12), (9, 4, 6))
    decoder, *encoder = (3 + 2 * torch.randn(batch, *shape, generator=generator) for shape in shapes)
    return FeatureMaps(decoder, tuple(encoder), SIZE)


def _head(strides=(8, 16), *, trained=True):
    torch.manual_seed(0)
    head = OutlierHead(8, (5, 7, 9, 11), strides)
    if trained:
        torch.nn.init.normal_(head.last.weight)
    return head


def test_an_untrained_head_calls_every_pixel_as_likely_an_outlier_as_not():
    head = _head(trained=False)
    for mode in (True, False):
        assert not head.train(mode)(_maps()).any()
    head(_maps()).sum().backward()
    assert head.last.weight.grad.any()  # and can leave that point


def _climbed(features, stride):
    """Features of a stride upsampled twofold until they are of stride 4."""
    while stride > 4:
        features = functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        stride //= 2
    return features


@pytest.mark.parametrize("strides", [(), (4, 8), (8, 16), (4, 8, 16)])
def test_a_head_in_use_is_norm_convolutions_and_upsampling_of_the_whole_map(strides):
    """The norm folded into the convolution and the late upsampling change nothing but rounding."""
    head = _head(strides)
    for seed in range(30):
        head.train()(_maps(seed))  # statistics of the norms
    head.eval()
    maps = _maps(99)
    normed = [norm(part) for norm, part in zip(head.norms, maps.seen_at(strides), strict=True)]
    whole = torch.cat([_climbed(part, stride) for part, stride in zip(normed, (4, *strides), strict=True)], 1)
    weight = torch.cat([mix.weight for mix in head.mixes], 1)
    expected = head.last(functional.conv2d(whole, weight, head.mixes[0].bias).relu())
    torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [(), (4, 8), (8, 16), (4, 8, 16)])
def test_a_head_sees_the_decoder_and_the_maps_of_its_strides(strides):
    head, maps = _head(strides).eval(), _maps()
    assert not torch.equal(head(maps), head(maps._replace(decoder=torch.zeros_like(maps.decoder))))
    for i, stride in enumerate((4, 8, 16)):
        other = [torch.zeros_like(part) if i == j else part for j, part in enumerate(maps.encoder)]
        assert torch.equal(head(maps), head(maps._replace(encoder=tuple(other)))) == (stride not in strides)


def test_detached_maps_train_the_head_and_nothing_behind_it():
    head = _head()
    decoder, encoder, size = _maps()
    leaves = [part.requires_grad_() for part in (decoder, *encoder)]
    head(FeatureMaps(decoder, encoder, size).detach()).square().sum().backward()
    assert all(leaf.grad is None for leaf in leaves)
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_a_segmenter_gives_the_outlier_logit_on_demand():
    torch.manual_seed(0)
    segmenter = Segmenter(3, 4, SegmenterConfig(encoder="resnet10t", decoder_channels=8, outlier="head")).eval()
    torch.nn.init.normal_(segmenter.outlier_head.last.weight)
    image = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        asked, spared = segmenter(image), segmenter(image, False)
    assert spared.outlier is None and asked.outlier.shape == (2, *SIZE) and asked.outlier.any()
    assert torch.equal(asked.logits, spared.logits)


def test_the_head_costs_little_beside_the_network():
    """In multiplications for a pixel of the decoder's map, of the smallest usual network."""
    lite = Segmenter(3, 4, SegmenterConfig(encoder="tf_efficientnet_lite0", decoder_channels=96))
    weights = [mix.weight.numel() for mix in lite.outlier_head.mixes]
    at_place = [weight / (stride // 4) ** 2 for weight, stride in zip(weights, (4, 8, 16), strict=True)]
    rungs = sum(p.numel() for p in lite.decoder.rungs[-1].parameters())
    assert sum(at_place) < rungs / 3
