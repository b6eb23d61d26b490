"""Segmentation network: timm encoder and ladder decoder, logits at input resolution.

There are two variants. `ladder` takes any convolutional encoder and has no global context: with a wide enough halo its
scores do not depend on the tile. `ldn121` is the paper's Ladder-DenseNet-121 (arXiv 2112.12833): DenseNet-121 with
modified pooling, spatial pyramid pooling at the top, rungs of 256, 256 and 128 channels, 11.1 million parameters.
`ladder` standardizes its input internally and `ldn121` does not, so both take images in [0, 1], and a flow's samples in
[0, 1] can be pasted into them.

Besides class logits a segmenter may have an outlier output: a small head on its features (`outlier_head`, after the
binary head of DenseHybrid, arXiv 2207.02606), or one additional class (UNO, arXiv 2402.15374). It is computed on demand
only, so scores of class logits alone do not pay for it.

Encoder weights are random, read from a local safetensors file, or, if the config says "imagenet", fetched by timm at
the start of training; loading a bundle fetches nothing. This module knows neither rasters nor class names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geood.config import SegmenterConfig
from geood.models.decoder import Ladder, PyramidPooling, bn_relu_conv, upsample
from geood.models.encoder import make_encoder, pool_as_ldn
from geood.models.outlier_head import FeatureMaps, OutlierHead
from geood.models.region import Region, cut


class SegmenterOutput(NamedTuple):
    """Output of a segmenter for images (B, C, H, W).

    Attributes:
        logits: (B, K, H, W), of the classes.
        outlier: (B, H, W), logit of being none of the classes; None if the network has no outlier output, or it was not
            asked for.
        features: (B, D, H / 4, W / 4), of the decoder.
        encoder: (B, D', H / 8, W / 8), of the encoder.
        coarser: (B, D'', H / 16, W / 16), of the encoder.
    """

    logits: Tensor
    outlier: Tensor | None
    features: Tensor
    encoder: Tensor
    coarser: Tensor

    @classmethod
    def of(cls, maps: FeatureMaps, logits: Tensor, outlier: Tensor | None) -> SegmenterOutput:
        """Return the output with these feature maps and logits."""
        _, middle, coarse = maps.encoder
        return cls(logits, outlier, maps.decoder, middle, coarse)


class Segmenter(nn.Module):
    """Segmentation network: images (B, `bands`, H, W) in [0, 1] to a `SegmenterOutput` with `classes` classes.

    H and W are multiples of `stride`. `drawn` is False if its weights are loaded afterwards, so that those drawn do not
    count.

    Raises:
        ConfigError: the encoder is unknown, refused or lacks features at strides 4 to 32, or its weights are missing,
            damaged, not for commercial use, or of another network.
    """

    stride = 32
    mean: Tensor
    std: Tensor

    def __init__(self, bands: int, classes: int, config: SegmenterConfig, *, drawn: bool = True) -> None:
        super().__init__()
        self.bands, self.outlier = bands, config.outlier
        self.checkpointing = config.checkpointing
        self.encoder, widths = make_encoder(bands, config, drawn=drawn)
        if config.network == "ldn121":
            pool_as_ldn(self.encoder)
            top: nn.Module = PyramidPooling(widths[-1], width=512, level=128)
            channels, mean, std = [512, 256, 256, 128], 0.0, 1.0
        else:
            top = bn_relu_conv(widths[-1], config.decoder_channels, kernel=1)
            channels, mean, std = [config.decoder_channels] * len(widths), 0.5, 0.25
        self.features = channels[-1]  # channels of the decoder's features
        self.encoder_features = (widths[1], widths[2])  # channels of the encoder's at strides 8 and 16
        self.decoder = Ladder(widths, top=top, channels=channels)
        self.head = bn_relu_conv(channels[-1], classes, kernel=1, bias=True)
        self.outlier_head: nn.Module | None = None
        if config.outlier == "head":
            self.outlier_head = OutlierHead(channels[-1], widths, config.outlier_strides)
        elif config.outlier == "class":
            self.outlier_head = bn_relu_conv(channels[-1], 1, kernel=1, bias=True)
        self.register_buffer("mean", torch.full((bands,), mean))
        self.register_buffer("std", torch.full((bands,), std))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth to a third faster on CPUs

    def forward(self, image: Tensor, outlier: bool = True, region: Region | None = None) -> SegmenterOutput:
        """Compute class logits, outlier logit and decoder features of `image` (B, bands, H, W).

        `outlier` says whether a network with an outlier output computes it. The answer is that in `region`
        (`region.region_around`), which the decoder is confined to; None: in the whole image.

        Raises:
            ValueError: the number of bands or the size does not fit.
        """
        maps = self.maps(image, region)
        logits = self.class_logits(maps)
        wanted = outlier and self.outlier_head is not None
        return SegmenterOutput.of(maps, logits, self.outlier_logit(maps) if wanted else None)

    def maps(self, image: Tensor, region: Region | None = None) -> FeatureMaps:
        """Compute the feature maps of `image` (B, bands, H, W) in a region, of which all outputs are made.

        Raises:
            ValueError: the number of bands or the size does not fit.
        """
        height, width = image.shape[-2:]
        if image.ndim != 4 or image.shape[1] != self.bands:
            raise ValueError(f"this segmenter takes images (B, {self.bands}, H, W), got {tuple(image.shape)}")
        if min(height, width) < self.stride or height % self.stride or width % self.stride:
            raise ValueError(f"height and width must be multiples of {self.stride}, got {height} x {width}")
        standard = (image - self.mean[:, None, None]) / self.std[:, None, None]
        standard = standard.contiguous(memory_format=torch.channels_last)
        with _checkpointed(self.encoder) if self.checkpointing and torch.is_grad_enabled() else ExitStack():
            encoded = self.encoder(standard)
        if region is None:
            return FeatureMaps(self.decoder(encoded), (encoded[0], encoded[1], encoded[2]), (height, width))
        fine, middle, coarse = (cut(encoded[i], region, stride=4 << i) for i in range(3))
        high, wide = (side.stop - side.start for side in region)
        return FeatureMaps(self.decoder(encoded, region), (fine, middle, coarse), (high, wide))

    def class_logits(self, maps: FeatureMaps) -> Tensor:
        """Compute the class logits (B, K, H, W) from feature maps."""
        return upsample(self.head(maps.decoder), maps.size)

    def outlier_logit(self, maps: FeatureMaps) -> Tensor:
        """Compute the outlier logit (B, H, W) from feature maps."""
        assert self.outlier_head is not None
        return upsample(self.outlier_head(maps if self.outlier == "head" else maps.decoder), maps.size)[:, 0]

    @property
    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """Parts that class logits depend on: encoder, decoder and class head."""
        return (self.encoder, self.decoder, self.head)

    def take_classes(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of a segmenter with the same classes; an outlier output of another kind is left as it is.

        Raises:
            RuntimeError: the weights are those of another network.
        """
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("outlier_head.")}
        same = all(name in state and state[name].shape == tensor.shape for name, tensor in own.items())
        head = {name: state[name] for name in own} if same else own
        self.load_state_dict({k: v for k, v in state.items() if not k.startswith("outlier_head.")} | head)


@contextmanager
def _checkpointed(network: nn.Module) -> Iterator[None]:
    """Checkpoint the blocks of `network` in this context: store only their inputs, recompute the rest in backward.

    A block is a smallest module with two or more convolutions (a dense layer, a residual block). The running statistics
    of its batch norms are updated by the first forward pass only.
    """
    blocks = [module for module in network.modules() if _is_block(module)]
    for block in blocks:
        block.forward = partial(_twice, block, block.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _twice(block: nn.Module, forward: Any, features: Any) -> Any:
    """Return a block's output, checkpointed on a copy of its feature list."""
    kept = list(features) if isinstance(features, list) else features  # a dense block appends to the list afterwards
    return checkpoint(forward, kept, use_reentrant=False, context_fn=lambda: (ExitStack(), _Forgetting(block)))


def _is_block(module: nn.Module) -> bool:
    return _convolutions(module) > 1 and all(_convolutions(child) < 2 for child in module.children())


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())


class _Forgetting:
    """Reusable context manager that undoes updates of batch-norm running statistics on exit."""

    def __init__(self, network: nn.Module) -> None:
        self.norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        self.kept: list[dict[str, Tensor]] = []

    def __enter__(self) -> None:
        self.kept = [dict(norm.named_buffers()) for norm in self.norms]
        for norm, buffers in zip(self.norms, self.kept, strict=True):
            norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})

    def __exit__(self, *_: object) -> None:
        for norm, buffers in zip(self.norms, self.kept, strict=True):
            norm._buffers.update(buffers)
