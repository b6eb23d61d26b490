"""Convolutions for inference on a CPU: batch norms and activations around them folded into one operation.

A batch norm behind a convolution is a factor and a shift of its weights. One before a 1x1 convolution, with ReLU in
between as in DenseNet, is folded too: with gain g and shift s, relu(g x + s) is g (max(x, t) - t) for g > 0 and
g (min(x, t) - t) for g < 0, where t = -s / g, so that what is left in front of the convolution is one clamping of its
input. All is folded in double precision. oneDNN computes convolution, sum and activation in one pass, and 1x1
convolutions of one tile a quarter faster than the library that torch takes for them on one thread. Where torch lacks
these operators, the same weights go through its plain ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[type[nn.Module], str] = {nn.Identity: "none", nn.ReLU: "relu", nn.ReLU6: "relu6"}
FURTHEST = 1e30  # threshold t, from which on a channel is a constant: far beyond all features
_ONEDNN = {"none": ("none", []), "relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0])}  # operator and scalars


class FoldedConv(nn.Module):
    """Convolution of features (B, C, H, W), clamped before and activated behind, with folded weights and bias.

    `bounds` are the least and the largest value of each channel of the input, (1, C, 1, 1) both; None: it is taken as
    it is. `same` pads as TensorFlow does, in place of the convolution's own padding.
    """

    weight: Tensor
    bias: Tensor
    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        conv: nn.Conv2d,
        weight: Tensor,
        bias: Tensor,
        *,
        activation: str = "none",
        bounds: tuple[Tensor, Tensor] | None = None,
        same: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.dilation, self.groups = list(conv.stride), list(conv.dilation), conv.groups
        self.padding = [0, 0] if same else [int(side) for side in conv.padding]
        self.activation, self.same = activation, same
        self.register_buffer("weight", weight.float().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.float().contiguous())
        self.register_buffer("low", None if bounds is None else bounds[0])
        self.register_buffer("high", None if bounds is None else least_high(bounds[1]))

    def forward(self, features: Tensor, beside: Tensor | None = None) -> Tensor:
        """Return the activation of the convolution, to which `beside` (B, K, h, w) is added first."""
        features = features.to(self.weight.dtype)
        beside = None if beside is None else beside.to(self.weight.dtype)
        if self.low is not None:
            features = clamped(features, self.low, self.high)
        if self.same:
            features = self._padded(features)
        if not fused_operators():
            return self._plain(features, beside)
        run, (name, scalars) = torch.ops.mkldnn._convolution_pointwise, _ONEDNN[self.activation]
        how = self.padding, self.stride, self.dilation, self.groups
        found: Tensor
        if beside is None:
            found = run(features, self.weight, self.bias, *how, name, scalars, "")
        elif self.activation == "relu6":
            found = run.binary(features, beside, self.weight, self.bias, *how, "add", 1.0, None, [], None).clamp_(0, 6)
        else:
            relu = None if self.activation == "none" else name
            found = run.binary(features, beside, self.weight, self.bias, *how, "add", 1.0, relu, [], None)
        return found

    def _plain(self, features: Tensor, beside: Tensor | None) -> Tensor:
        how = self.stride, self.padding, self.dilation, self.groups
        found = functional.conv2d(features, self.weight, self.bias, *how)
        if beside is not None:
            found = found + beside
        if self.activation == "none":
            return found
        return found.relu_() if self.activation == "relu" else found.clamp_(0, 6)

    def _padded(self, features: Tensor) -> Tensor:
        """Return the features with as many zeros around them as TensorFlow's padding "same" has."""
        margins = []
        for side, kernel, stride, dilation in zip(
            features.shape[2:], self.weight.shape[2:], self.stride, self.dilation, strict=True
        ):
            whole = max(0, (-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side)
            margins.append((whole // 2, whole - whole // 2))
        (top, bottom), (left, right) = margins
        height, width = features.shape[2:]
        shape = *features.shape[:2], top + height + bottom, left + width + right
        padded = torch.empty(shape, dtype=features.dtype, memory_format=torch.channels_last)
        padded[:, :, top : top + height, left : left + width] = features
        for part in (padded[:, :, :top], padded[:, :, top + height :], padded[..., :left], padded[..., left + width :]):
            part.zero_()
        return padded


def least_high(high: Tensor) -> Tensor | None:
    """Return upper bounds (1, C, 1, 1), or None where none of them is finite, as with positive gains only."""
    return high if bool(torch.isfinite(high).any()) else None


def clamped(features: Tensor, low: Tensor, high: Tensor | None) -> Tensor:
    """Clamp features to bounds of each channel; a maximum alone takes four fifths of the time of a clamping."""
    return torch.maximum(features, low) if high is None else torch.clamp(features, low, high)


def fused_operators() -> bool:
    """Return whether torch has oneDNN's convolution with sum and activation."""
    if not torch.backends.mkldnn.is_available():
        return False
    operator: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
    return operator is not None and "binary" in operator.overloads()


def gain_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return gain and shift (C,) of a batch norm in inference, in double precision."""
    assert norm.running_mean is not None and norm.running_var is not None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    shift = -norm.running_mean.double() * gain
    return gain, shift if norm.bias is None else shift + norm.bias.detach().double()


def plain_weights(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution in double precision; zeros where it has no bias."""
    weight = conv.weight.detach().double()
    return weight, weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()


def scaled(weights: tuple[Tensor, Tensor], gain: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution whose output has a gain and a shift (K,)."""
    weight, bias = weights[0] * gain[:, None, None, None], weights[1] * gain
    return weight, bias if shift is None else bias + shift


def after_relu(
    weights: tuple[Tensor, Tensor], norm: nn.BatchNorm2d
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Fold a batch norm with ReLU, both in front of an unpadded convolution, into it.

    Returns:
        Weight and bias of the convolution, and the bounds to which its input is clamped.
    """
    gain, shift = gain_and_shift(norm)
    dead = (gain == 0) | (gain.abs() * FURTHEST < shift.abs())
    gain = torch.where(dead, torch.zeros_like(gain), gain)
    threshold = torch.where(
        dead, torch.zeros_like(gain), -shift / torch.where(dead, torch.ones_like(gain), gain)
    ).float()
    none = torch.full_like(threshold, torch.inf)
    low, high = torch.where(gain > 0, threshold, -none), torch.where(gain < 0, threshold, none)
    constant = torch.where(dead, shift.clamp_min(0), -gain * threshold.double())  # of the activation, beside gain * x
    weight, bias = weights
    folded = weight * gain[:, None, None], bias + weight.sum((2, 3)) @ constant
    return folded, (low[None, :, None, None], high[None, :, None, None])


def norm_and_conv(parts: nn.Module) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    """Return first and last of batch norm, ReLU and convolution."""
    assert isinstance(parts, nn.Sequential)
    norm, _, conv = parts
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d)
    return norm, conv


def bn_relu_conv_folded(
    parts: nn.Module, *, gain: Tensor | None = None, shift: Tensor | None = None, activation: str = "none"
) -> FoldedConv:
    """Return batch norm, ReLU and an unpadded convolution as one, its output with a gain and a shift (K,)."""
    norm, conv = norm_and_conv(parts)
    weights, bounds = after_relu(plain_weights(conv), norm)
    if gain is not None:
        weights = scaled(weights, gain, shift)
    return FoldedConv(conv, *weights, bounds=bounds, activation=activation)
