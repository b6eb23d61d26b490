"""Ladder decoder: encoder features at strides 4 to 32 to one feature map at stride 4.

The decoder upsamples from the coarsest features to the finest and adds a skip connection from the encoder at each rung
(Ladder-DenseNet, arXiv 1905.05661). The module at the top is either one convolution, or spatial pyramid pooling as in
the paper's network (arXiv 2112.12833), whose receptive field is the whole image, so that a score depends on the tile it
was computed in. All layers are batch norm, ReLU, convolution: the paper's order, which also accepts encoder features of
any range.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from geood.models.region import Region, rungs_of

PYRAMID_ROWS = (8, 4, 2, 1)


class Ladder(nn.Module):
    """Decoder of features with `widths` channels, finest first, to one map of the finest one's size.

    `top` maps the coarsest features to `channels[0]` channels; rung i then outputs `channels[i]` channels (i from 1).
    """

    def __init__(self, widths: Sequence[int], *, top: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        if len(channels) != len(widths):
            raise ValueError(f"{len(widths)} features need as many channel counts, got {list(channels)}")
        self.top = top
        beside = zip(widths[-2::-1], channels[:-1], strict=True)
        self.skips = nn.ModuleList(bn_relu_conv(width, running, kernel=1) for width, running in beside)
        self.rungs = nn.ModuleList(bn_relu_conv(below, above, kernel=3) for below, above in pairwise(channels))

    def forward(self, features: Sequence[Tensor], region: Region | None = None) -> Tensor:
        """Map features (B, widths[i], H / 2^i, W / 2^i) to (B, channels[-1], H, W), or to the part of it in a region.

        A region is one of the image (`region.region_around`); the outermost places of its map differ from the whole's.
        """
        hidden: Tensor = self.top(features[-1])
        for skip, rung, (feature, size, part) in zip(self.skips, self.rungs, rungs_of(features, region), strict=True):
            hidden = rung(upsample(hidden, size)[..., *part] + skip(feature))
        return hidden


class PyramidPooling(nn.Module):
    """Spatial pyramid pooling: features concatenated with their averages over grids of 8, 4, 2 and 1 rows.

    Grid cells are about square, so a wide image has more columns. A grid is never finer than the features.
    """

    def __init__(self, inputs: int, *, width: int, level: int) -> None:
        super().__init__()
        self.entry = bn_relu_conv(inputs, width, kernel=1)
        self.levels = nn.ModuleList(bn_relu_conv(width, level, kernel=1) for _ in PYRAMID_ROWS)
        self.fuse = bn_relu_conv(width + level * len(PYRAMID_ROWS), width, kernel=1)

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, width, h, w)."""
        hidden = self.entry(feature)
        height, width = hidden.shape[-2:]
        parts = [hidden]
        for rows, level in zip(PYRAMID_ROWS, self.levels, strict=True):
            cells = min(rows, height), min(max(1, round(rows * width / height)), width)
            parts.append(upsample(level(functional.adaptive_avg_pool2d(hidden, cells)), (height, width)))
        fused: Tensor = self.fuse(torch.cat(parts, dim=1))
        return fused


def bn_relu_conv(inputs: int, outputs: int, *, kernel: int, bias: bool = False) -> nn.Sequential:
    """Return batch norm, ReLU and a convolution: (B, inputs, H, W) to (B, outputs, H, W)."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=False),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias),
    )


def upsample(hidden: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate (B, C, h, w) bilinearly to (B, C, *size); `size` is (height, width)."""
    return functional.interpolate(hidden, size=tuple(size), mode="bilinear", align_corners=False)
