"""Laws of folded convolutions: norms before and behind, clamping, sums, activations and TensorFlow's padding."""

import pytest
import torch
from torch import nn

from geood.models.folded import FoldedConv, after_relu, gain_and_shift, plain_weights, scaled
from geood.models.timm_files import timm_library


def _norm(channels, gains):
    norm = nn.BatchNorm2d(channels).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(gains))
        norm.bias.normal_()
    return norm


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_norm_and_relu_before_a_convolution_are_a_clamping(bias):
    """For gains of either sign, of none, and so small that the threshold lies beyond all numbers."""
    gains = [1.5, -0.8, 0.0, 1e-35, -1e-12, 300.0]
    norm, conv, features = _norm(6, gains), nn.Conv2d(6, 5, 1, bias=bias), torch.randn(2, 6, 7, 9)
    weights, bounds = after_relu(plain_weights(conv), norm)
    ours = FoldedConv(conv, *weights, bounds=bounds)(features)
    theirs = conv.double()(norm.double()(features.double()).relu())
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("name", "activation"), [("none", nn.Identity()), ("relu", nn.ReLU()), ("relu6", nn.ReLU6())])
@pytest.mark.parametrize("summed", [False, True])
@torch.inference_mode()
def test_a_norm_behind_and_a_sum_and_an_activation_are_taken_in(name, activation, summed):
    conv, norm, features = (
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        _norm(8, [2.0] * 8),
        torch.randn(1, 4, 9, 8),
    )
    beside = torch.randn(1, 8, 5, 4) if summed else None
    folded = FoldedConv(conv, *scaled(plain_weights(conv), *gain_and_shift(norm)), activation=name)
    theirs = norm(conv(features))
    torch.testing.assert_close(
        folded(features, beside), activation(theirs if beside is None else theirs + beside), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", [(8, 9), (7, 6)])
@pytest.mark.parametrize("kernel", [3, 5])
@torch.inference_mode()
def test_padding_is_that_of_tensorflow_where_the_convolution_has_it(size, kernel):
    conv, features = timm_library().layers.Conv2dSame(3, 3, kernel, stride=2, groups=3), torch.randn(1, 3, *size)
    torch.testing.assert_close(FoldedConv(conv, *plain_weights(conv), same=True)(features), conv(features))
