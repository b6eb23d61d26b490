"""The network that knows the classes: a timm encoder and a ladder decoder, logits at input size.

There are two. `ladder` takes any convolutional encoder and has no global context: with a wide enough halo its scores do
not depend on the tile. `ldn121` is the paper's Ladder-DenseNet-121 (arXiv 2112.12833): DenseNet-121 with pooling of its
own, spatial pyramid pooling on top, rungs of 256, 256 and 128 channels, 11.1 million parameters. It takes images as
they are; the other standardizes them inside. So a flow's sample in [0, 1] can be pasted into an input of both.

Beside the classes a segmenter may say of each pixel how much it is an outlier: by a head of two channels on the
decoder's features (the binary head of DenseHybrid, arXiv 2207.02606), or by one class more (UNO, arXiv 2402.15374).

Encoder weights are random, come from a local safetensors file, or, where the config asks for "imagenet", are fetched by
timm when a training starts; a bundle never fetches any. This room knows neither files of scenes nor class names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geood.config.sections import SegmenterConfig
from geood.models.decoder import Ladder, PyramidPooling, bn_relu_conv, upsample
from geood.models.encoder import make_encoder, pool_as_ldn


class SegmenterOutput(NamedTuple):
    """What a segmenter says of images (B, C, H, W).

    `logits` (B, K, H, W) of the classes; `outlier` (B, H, W), the logit of being none of them, None where the network
    has no output for that; `features` (B, D, H / 4, W / 4), what the decoder made of the image.
    """

    logits: Tensor
    outlier: Tensor | None
    features: Tensor


class Segmenter(nn.Module):
    """Segmentation network: images (B, `bands`, H, W) in [0, 1] to a `SegmenterOutput` about `classes` classes.

    H and W are multiples of `stride`.

    Raises:
        ConfigError: if the encoder is unknown, refused or without features at strides 4 to 32, or if its weights file
            is missing, damaged or of another network.
    """

    stride = 32
    mean: Tensor
    std: Tensor

    def __init__(self, bands: int, classes: int, config: SegmenterConfig) -> None:
        super().__init__()
        self.bands, self.outlier = bands, config.outlier
        self.checkpointing = config.checkpointing
        self.encoder, widths = make_encoder(bands, config)
        if config.network == "ldn121":
            pool_as_ldn(self.encoder)
            top: nn.Module = PyramidPooling(widths[-1], width=512, level=128)
            channels, mean, std = [512, 256, 256, 128], 0.0, 1.0
        else:
            top = bn_relu_conv(widths[-1], config.decoder_channels, kernel=1)
            channels, mean, std = [config.decoder_channels] * len(widths), 0.5, 0.25
        self.decoder = Ladder(widths, top=top, channels=channels)
        self.head = bn_relu_conv(channels[-1], classes, kernel=1, bias=True)
        beside = {"none": 0, "head": 2, "class": 1}[config.outlier]
        self.outlier_head = bn_relu_conv(channels[-1], beside, kernel=1, bias=True) if beside else None
        self.register_buffer("mean", torch.full((bands,), mean))
        self.register_buffer("std", torch.full((bands,), std))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the faster layout: a tenth to a third on CPUs

    def forward(self, image: Tensor) -> SegmenterOutput:
        """What the network says of `image`.

        Raises:
            ValueError: if bands or size do not fit.
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
        features = self.decoder(encoded)
        logits = upsample(self.head(features), (height, width))
        if self.outlier_head is None:
            return SegmenterOutput(logits, None, features)
        beside = self.outlier_head(features)
        outlier = beside if self.outlier == "class" else beside[:, 1:] - beside[:, :1]
        return SegmenterOutput(logits, upsample(outlier, (height, width))[:, 0], features)

    def take_classes(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a segmenter of the same classes; an outlier output of a kind it lacks stays as it was.

        Raises:
            RuntimeError: if they are those of another network.
        """
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("outlier_head.")}
        same = all(name in state and state[name].shape == tensor.shape for name, tensor in own.items())
        head = {name: state[name] for name in own} if same else own
        self.load_state_dict({k: v for k, v in state.items() if not k.startswith("outlier_head.")} | head)


@contextmanager
def _checkpointed(network: nn.Module) -> Iterator[None]:
    """While this lasts, blocks of `network` keep their inputs only and compute the rest again in the backward pass.

    A block is a smallest module of two convolutions or more (a dense layer, a residual block). Its batch norms learn
    from the first pass alone.
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
    """A block's output, to be computed again for the backward pass from what the features are now."""
    kept = list(features) if isinstance(features, list) else features  # dense blocks go on to lengthen their list
    return checkpoint(forward, kept, use_reentrant=False, context_fn=lambda: (ExitStack(), _Forgetting(block)))


def _is_block(module: nn.Module) -> bool:
    return _convolutions(module) > 1 and all(_convolutions(child) < 2 for child in module.children())


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())


class _Forgetting:
    """A context, entered any number of times, in which what batch norms of a network learn is forgotten at its end."""

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
