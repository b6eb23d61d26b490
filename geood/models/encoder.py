"""timm encoders: feature maps at strides 4 to 32, any number of bands, optional pretrained weights.

An encoder is accepted only after a trial forward pass, because some timm models give feature maps at other strides or
for one image size only. Weights are random, read from a local safetensors file (no pickle), or fetched by timm;
encoders and fetched weights that are not for commercial use are refused. This module knows nothing of decoders or
classes.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from geood._torch_compat import declare_missing_operators
from geood.config import SegmenterConfig
from geood.errors import ConfigError

STRIDES = (4, 8, 16, 32)
IMAGENET = "imagenet"
NON_COMMERCIAL = re.compile(r"^(mit_b\d|segformer)")  # NVIDIA's SegFormer encoders


def make_encoder(bands: int, config: SegmenterConfig) -> tuple[nn.Module, list[int]]:
    """Build the config's timm encoder; return it and the channels of its features at strides 4, 8, 16 and 32.

    The encoder maps images (B, bands, H, W), H and W multiples of 32, to four maps (B, widths[i], H / 2^(i+2),
    W / 2^(i+2)).

    Raises:
        ConfigError: the encoder is unknown, refused or lacks features at these strides, or its weights are missing,
            damaged, not for commercial use, or of another network.
    """
    timm, name = _timm(), config.encoder
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
        shape = {"features_only": True, "in_chans": bands, "out_indices": [last[s] for s in STRIDES]}
        encoder = timm.create_model(name, pretrained=False, **shape)
        widths = _widths(encoder, bands)
    except Exception as error:  # timm raises many types; each means that this encoder is unfit
        raise ConfigError(f"{unfit} ({type(error).__name__}: {error}); {remedy}") from error
    if widths is None:
        raise ConfigError(f"{unfit}; {remedy}")
    if config.weights == IMAGENET:
        encoder = _fetched(name, shape)
    elif config.weights is not None:
        _load_weights(encoder, bands, name=name, path=Path(config.weights))
    return encoder, widths


def _fetched(name: str, shape: dict[str, Any]) -> nn.Module:
    """Return the encoder with timm's default pretrained weights, from the network or timm's cache."""
    timm = _timm()
    weights = timm.models.get_pretrained_cfg(name)
    local = "give the path of a local .safetensors file instead, or null"
    if weights is None or not weights.has_weights:
        raise ConfigError(f"segmenter.weights: timm has no ImageNet weights for {name}; {local}")
    if "-nc" in (weights.license or "").lower():
        raise ConfigError(
            f"segmenter.weights: the weights of {name} are not for commercial use ({weights.license}); {local}"
        )
    try:
        encoder: nn.Module = timm.create_model(name, pretrained=True, **shape)
    except Exception as error:  # whatever the hub's client raises where there is no network
        reason = (str(error).split("\n")[0] or type(error).__name__)[:200]
        raise ConfigError(
            f"segmenter.weights: no ImageNet weights of {name} could be fetched ({reason}); {local}"
        ) from None
    return encoder


def pool_as_ldn(encoder: nn.Module) -> None:
    """Change pooling and batch-norm momentum of timm's DenseNet-121 to LDN-121's, in place; weights still fit."""
    for name, module in list(encoder.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
        parent, _, last = name.rpartition(".")
        if isinstance(module, nn.MaxPool2d):
            setattr(encoder.get_submodule(parent), last, nn.MaxPool2d(2, stride=2))
        elif isinstance(module, nn.AvgPool2d):
            pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
            setattr(encoder.get_submodule(parent), last, pool)


@torch.no_grad()
def _widths(encoder: nn.Module, bands: int) -> list[int] | None:
    """Return the channels of the four feature maps from a trial forward pass; None if a stride is wrong."""
    height, width = 64, 96
    training = encoder.training
    features = encoder.eval()(torch.zeros(1, bands, height, width))
    encoder.train(training)
    sizes = [tuple(feature.shape[2:]) for feature in features]
    if sizes != [(height // stride, width // stride) for stride in STRIDES]:
        return None
    return [feature.shape[1] for feature in features]


def _load_weights(encoder: nn.Module, bands: int, *, name: str, path: Path) -> None:
    """Load the weights of `encoder` from a safetensors file of the timm model `name`.

    The first convolution is adapted to `bands` bands as timm does. timm's feature extractors rename `features.x` to
    `features_x`; `_plain` removes that difference before names are compared.
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
    with torch.device("meta"):
        whole = {_plain(key) for key in _timm().create_model(name).state_dict()}
    strange = sorted(set(stored) - whole)
    if strange:
        raise ConfigError(
            f"segmenter.weights: {path} holds {strange[0]}, which {name} lacks; take the file of that timm model"
        )
    encoder.load_state_dict(filled)


def _plain(key: str) -> str:
    return key.removeprefix("model.").replace("_", ".")


def _timm() -> Any:
    """Import timm on first use (it takes a second or more), after declaring torchvision's missing operators."""
    declare_missing_operators()
    import timm

    return timm
