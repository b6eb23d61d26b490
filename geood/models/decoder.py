"""Decoders: from an encoder's features at strides 4 to 32 to one map at stride 4.

A ladder climbs from the coarsest features to the finest and at each rung adds those of the encoder (Ladder-DenseNet,
arXiv 1905.05661). What stands on its top differs: one convolution, or spatial pyramid pooling as in the paper's network
(arXiv 2112.12833), which looks at the whole image and so ties a score to the tile it was computed in. All layers are
batch norm, ReLU, convolution: the paper's order, which also takes encoder features of any range.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

PYRAMID_ROWS = (8, 4, 2, 1)


class Ladder(nn.Module):
    """From features of `widths` channels, finest first, to one map of the finest one's size.

    `top` takes the coarsest features; `channels` are what it gives and then what each rung gives.
    """

    def __init__(self, widths: Sequence[int], *, top: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        if len(channels) != len(widths):
            raise ValueError(f"{len(widths)} features need as many channel counts, got {list(channels)}")
        self.top = top
        beside = zip(widths[-2::-1], channels[:-1], strict=True)
        self.skips = nn.ModuleList(bn_relu_conv(width, running, kernel=1) for width, running in beside)
        self.rungs = nn.ModuleList(bn_relu_conv(below, above, kernel=3) for below, above in pairwise(channels))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features, each half the size of the one before, to one tensor of the first one's size."""
        hidden: Tensor = self.top(features[-1])
        for skip, rung, feature in zip(self.skips, self.rungs, features[-2::-1], strict=True):
            hidden = rung(upsample(hidden, feature.shape[-2:]) + skip(feature))
        return hidden


class PyramidPooling(nn.Module):
    """Features, and beside them their means over the cells of grids of 8, 4, 2 and 1 rows.

    The cells are about square, so a wide image has more columns. A grid is never finer than the features.
    """

    def __init__(self, inputs: int, *, width: int, level: int) -> None:
        super().__init__()
        self.entry = bn_relu_conv(inputs, width, kernel=1)
        self.levels = nn.ModuleList(bn_relu_conv(width, level, kernel=1) for _ in PYRAMID_ROWS)
        self.fuse = bn_relu_conv(width + level * len(PYRAMID_ROWS), width, kernel=1)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, width, h, w)."""
        hidden = self.entry(feature)
        height, width = hidden.shape[-2:]
        parts = [hidden]
        for rows, level in zip(PYRAMID_ROWS, self.levels, strict=True):
            cells = min(rows, height), min(max(1, round(rows * width / height)), width)
            parts.append(upsample(level(functional.adaptive_avg_pool2d(hidden, cells)), (height, width)))
        fused: Tensor = self.fuse(torch.cat(parts, dim=1))
        return fused


def bn_relu_conv(inputs: int, outputs: int, *, kernel: int, bias: bool = False) -> nn.Sequential:
    """Batch norm, ReLU, convolution."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=False),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias),
    )


def upsample(hidden: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, to (height, width)."""
    return functional.interpolate(hidden, size=tuple(size), mode="bilinear", align_corners=False)
