"""Outlier heads: two small networks beside the classes, from a segmenter's feature maps to an outlier logit.

One head sees the decoder's features alone, the other these and the encoder's two finest maps, which keep what the
classes did not need. Each is a batch norm, a 1x1 convolution to 64 channels, ReLU and a 1x1 convolution to one channel.
Norm and first convolution treat each map at its own resolution and the coarser one is upsampled behind them: for a 1x1
convolution that is what upsampling before it gives, with 64 channels to interpolate in place of hundreds. The last
layer starts at zero, so an untrained head says nothing: a random one would rank pixels by chance, with a large effect
on any score that it enters. Nothing is known of classes or losses here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from geood.models.decoder import upsample

WIDTH = 64  # channels between the two convolutions of a head


class FeatureMaps(NamedTuple):
    """Feature maps that heads of a segmenter see, for images (B, C, H, W).

    Attributes:
        decoder: (B, D, H / 4, W / 4), the decoder's last.
        encoder: the encoder's two finest, (B, D', H / 4, W / 4) and (B, D'', H / 8, W / 8).
        size: height and width of the images.
    """

    decoder: Tensor
    encoder: tuple[Tensor, Tensor]
    size: tuple[int, int]

    def detach(self) -> FeatureMaps:
        """Return the maps without their history: what is computed from them does not train what made them."""
        fine, coarse = self.encoder
        return FeatureMaps(self.decoder.detach(), (fine.detach(), coarse.detach()), self.size)


class OutlierHeads(nn.Module):
    """Heads on a decoder's features of `features` channels, alone and with encoder maps of `widths` channels."""

    def __init__(self, features: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.on_both = _Head([features, *widths[:2]])

    def forward(self, maps: FeatureMaps) -> Tensor:
        """Return the outlier logit of each head (B, 2, H / 4, W / 4); above 0 it is more likely an outlier than not."""
        decoder, (fine, coarse), _ = maps
        return self.on_both([decoder, fine, coarse])


class _Head(nn.Module):
    """One head on maps of these channels; (B, 1, h, w), the size of the first map."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.mixes = nn.ModuleList(nn.Conv2d(width, WIDTH, 1, bias=i == 0) for i, width in enumerate(widths))
        self.last = nn.Conv2d(WIDTH, 1, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size, mixed = maps[0].shape[-2:], []
        for norm, mix, each in zip(self.norms, self.mixes, maps, strict=True):
            part = mix(norm(each)) if self.training else _folded(norm, mix, each)
            mixed.append(part if part.shape[-2:] == size else upsample(part, size))
        hidden = mixed[0]
        for part in mixed[1:]:
            hidden = hidden + part
        logit: Tensor = self.last(functional.relu(hidden))
        return logit


def _folded(norm: nn.Module, mix: nn.Module, features: Tensor) -> Tensor:
    """Return the convolution of normalized features, the norm folded into its weights: one pass over the map."""
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(mix, nn.Conv2d)
    assert norm.running_var is not None and norm.running_mean is not None
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * gain
    matrix = mix.weight[:, :, 0, 0]
    bias = matrix @ shift if mix.bias is None else matrix @ shift + mix.bias
    return functional.conv2d(features, (matrix * gain)[:, :, None, None], bias)
