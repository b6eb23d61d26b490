"""Outlier head: a small network beside the classes, from a segmenter's feature maps to an outlier logit.

It sees the decoder's features and maps of the encoder, which keep what the classes did not need: a batch norm, a 1x1
convolution to 64 channels, ReLU and a 1x1 convolution to one channel. Norm and first convolution treat each map at its
own resolution, and their sum is upsampled from the coarsest map to the finest: for a 1x1 convolution that is what
upsampling before it gives, with 64 channels to interpolate in place of hundreds. The last layer starts at zero, so an
untrained head says nothing: a random one would rank pixels by chance, with a large effect on any score that it enters.
Nothing is known of classes or losses here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from geood.models.decoder import upsample
from geood.models.encoder import STRIDES

WIDTH = 64  # channels between the two convolutions


class FeatureMaps(NamedTuple):
    """Feature maps that heads of a segmenter see, for images (B, C, H, W).

    Attributes:
        decoder: (B, D, H / 4, W / 4), the decoder's last.
        encoder: the encoder's three finest, (B, D', H / s, W / s) for strides s of 4, 8 and 16; D' grows.
        size: height and width of the images.
    """

    decoder: Tensor
    encoder: tuple[Tensor, Tensor, Tensor]
    size: tuple[int, int]

    def seen_at(self, strides: Sequence[int]) -> list[Tensor]:
        """Return the decoder's map and those of the encoder at `strides`."""
        return [self.decoder, *(self.encoder[STRIDES.index(stride)] for stride in strides)]

    def detach(self) -> FeatureMaps:
        """Return the maps without their history: what is computed from them does not train what made them."""
        fine, middle, coarse = (each.detach() for each in self.encoder)
        return FeatureMaps(self.decoder.detach(), (fine, middle, coarse), self.size)


class OutlierHead(nn.Module):
    """Head on a decoder's features of `features` channels and some of an encoder's maps.

    `widths` are the channels of the encoder's maps at strides 4, 8 and 16, `strides` those that are seen, increasing.
    """

    def __init__(self, features: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        seen = [features, *(widths[STRIDES.index(stride)] for stride in strides)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in seen)
        self.mixes = nn.ModuleList(nn.Conv2d(width, WIDTH, 1, bias=i == 0) for i, width in enumerate(seen))
        bound = sum(seen) ** -0.5  # as of one convolution of all maps: else those of few channels would weigh most
        for mix in self.mixes:
            assert isinstance(mix, nn.Conv2d)
            nn.init.uniform_(mix.weight, -bound, bound)
        self.last = nn.Conv2d(WIDTH, 1, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, maps: FeatureMaps) -> Tensor:
        """Return the outlier logit (B, 1, H / 4, W / 4); above 0 it is more likely an outlier than not."""
        hidden: Tensor | None = None
        for i, each in reversed(list(enumerate(maps.seen_at(self.strides)))):
            norm, mix = self.norms[i], self.mixes[i]
            mixed: Tensor = mix(norm(each)) if self.training else _folded(norm, mix, each)
            hidden = mixed if hidden is None else mixed + resized(hidden, mixed)
        assert hidden is not None
        logit: Tensor = self.last(functional.relu(hidden))
        return logit


def resized(features: Tensor, like: Tensor) -> Tensor:
    """Return features (B, C, h, w) upsampled to the size of others; as they are if they have it."""
    return features if features.shape[-2:] == like.shape[-2:] else upsample(features, like.shape[-2:])


def _folded(norm: nn.Module, mix: nn.Module, features: Tensor) -> Tensor:
    """Return the convolution of normalized features, the norm folded into its weights: one pass over the map."""
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(mix, nn.Conv2d)
    assert norm.running_var is not None and norm.running_mean is not None
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * gain
    matrix = mix.weight[:, :, 0, 0]
    bias = matrix @ shift if mix.bias is None else matrix @ shift + mix.bias
    return functional.conv2d(features, (matrix * gain)[:, :, None, None], bias)
