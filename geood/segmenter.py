"""The network that knows the classes: a timm encoder and a ladder decoder, logits at input size.

The encoder gives features at strides 4, 8, 16 and 32; the decoder climbs from the coarsest to stride 4, at each rung
adding the projected features of that stride, as Ladder-DenseNet does (arXiv 1905.05661, 2112.12833); logits are taken
there and enlarged. The pyramid pooling of that model is left out: its global context would make a score depend on the
tile. Standardizing happens inside, so a flow's sample in [0, 1] can be pasted into an input as it is.

The encoder is never downloaded: its weights are random or come from a local safetensors file. This room knows neither
files of scenes nor class names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from geood.config import SegmenterConfig
from geood.errors import ConfigError
from geood.operators import declare_missing_operators

STRIDES = (4, 8, 16, 32)
NON_COMMERCIAL = re.compile(r"^(mit_b\d|segformer)")  # NVIDIA's SegFormer encoders


class Segmenter(nn.Module):
    """Logits (B, `classes`, H, W) of images (B, `bands`, H, W) in [0, 1]; H and W are multiples of `stride`.

    Raises:
        ConfigError: if the encoder is unknown, refused or without features at strides 4 to 32, or if its weights file
            is missing, damaged or of another network.
    """

    stride = 32
    mean: Tensor
    std: Tensor

    def __init__(self, bands: int, classes: int, config: SegmenterConfig) -> None:
        super().__init__()
        self.bands = bands
        self.encoder, widths = _encoder(bands, config.encoder)
        if config.weights is not None:
            _load_weights(self.encoder, bands, name=config.encoder, path=Path(config.weights))
        self.decoder = Ladder(widths, config.decoder_channels)
        self.head = _layer(config.decoder_channels, classes, kernel=1, bias=True)
        self.register_buffer("mean", torch.full((bands,), 0.5))
        self.register_buffer("std", torch.full((bands,), 0.25))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the faster layout: a tenth to a third on CPUs

    def forward(self, image: Tensor) -> Tensor:
        """Logits of `image`.

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
        logits = self.head(self.decoder(self.encoder(standard)))
        return functional.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)


class Ladder(nn.Module):
    """From features of `widths` channels, finest first, to `channels` channels at the finest stride."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.skips = nn.ModuleList(_layer(width, channels, kernel=1) for width in widths)
        self.rungs = nn.ModuleList(_layer(channels, channels, kernel=3) for _ in widths[:-1])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features, each half the size of the one before, to one tensor of the first one's size."""
        hidden: Tensor = self.skips[-1](features[-1])
        for i in reversed(range(len(self.rungs))):
            skip = self.skips[i](features[i])
            hidden = functional.interpolate(hidden, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            hidden = self.rungs[i](hidden + skip)
        return hidden


def _layer(inputs: int, outputs: int, *, kernel: int, bias: bool = False) -> nn.Sequential:
    """Batch norm, ReLU, convolution: the paper's order, which also takes encoder features of any range."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=False),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias),
    )


def _encoder(bands: int, name: str) -> tuple[nn.Module, list[int]]:
    """The timm encoder `name` for `bands` bands, and the widths of its features at strides 4, 8, 16 and 32."""
    timm = _timm()
    if NON_COMMERCIAL.match(name):
        raise ConfigError(f"segmenter.encoder: {name} is not for commercial use; take another, such as resnet18")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them, for example resnet18"
        raise ConfigError(f"segmenter.encoder: timm has no model {name!r}; {hint}")
    unfit = f"segmenter.encoder: {name} does not give feature maps at strides 4, 8, 16 and 32 of images of any size"
    remedy = "take a convolutional one such as densenet121, resnet18 or mobilenetv3_small_100"
    try:
        reductions = timm.create_model(name, pretrained=False, features_only=True).feature_info.reduction()
        last = {reduction: i for i, reduction in enumerate(reductions)}
        encoder = timm.create_model(
            name, pretrained=False, features_only=True, in_chans=bands, out_indices=[last[s] for s in STRIDES]
        )
        widths = _widths(encoder, bands)
    except Exception as error:  # timm asserts, raises and looks up in many ways; all mean that this encoder is unfit
        raise ConfigError(f"{unfit} ({type(error).__name__}: {error}); {remedy}") from error
    if widths is None:
        raise ConfigError(f"{unfit}; {remedy}")
    return encoder, widths


@torch.no_grad()
def _widths(encoder: nn.Module, bands: int) -> list[int] | None:
    """Channels of the four feature maps, found by looking; None if their sizes are not those of the strides."""
    height, width = 64, 96
    training = encoder.training
    features = encoder.eval()(torch.zeros(1, bands, height, width))
    encoder.train(training)
    sizes = [tuple(feature.shape[2:]) for feature in features]
    if sizes != [(height // stride, width // stride) for stride in STRIDES]:
        return None
    return [feature.shape[1] for feature in features]


def _load_weights(encoder: nn.Module, bands: int, *, name: str, path: Path) -> None:
    """Fill `encoder` from a safetensors file of the timm model `name`.

    The first layer is fitted to `bands` bands as timm does it. timm's feature extractors rename `features.x` to
    `features_x`; names are compared without that difference.
    """
    if not path.is_file():
        raise ConfigError(f"segmenter.weights: {path} does not exist; give a local .safetensors file or null")
    if path.suffix != ".safetensors":
        raise ConfigError(f"segmenter.weights: {path} is not a .safetensors file; only that format is read (no pickle)")
    try:
        stored = {_plain(key): tensor for key, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"segmenter.weights: {path} cannot be read as safetensors ({error}); fetch it again"
        ) from None
    filled = {}
    for key, wanted in encoder.state_dict().items():
        tensor = stored.get(_plain(key))
        if tensor is None:
            raise ConfigError(f"segmenter.weights: {path} lacks {key} of {name}; take the file of that timm model")
        if tensor.ndim == 4 and tensor.shape[1] == 3 and wanted.shape[1] == bands != 3:
            tensor = _timm().models.adapt_input_conv(bands, tensor)
        if tensor.shape != wanted.shape:
            raise ConfigError(
                f"segmenter.weights: {path} has {key} of shape {list(tensor.shape)}, {name} needs "
                f"{list(wanted.shape)}; take the file of that timm model"
            )
        filled[key] = tensor
    encoder.load_state_dict(filled)


def _plain(key: str) -> str:
    return key.removeprefix("model.").replace("_", ".")


def _timm() -> Any:
    """timm, imported when first needed (a second or more), after torchvision's operators are seen to."""
    declare_missing_operators()
    import timm

    return timm
