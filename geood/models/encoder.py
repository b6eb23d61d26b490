"""timm encoders: feature maps at strides 4 to 32, any number of bands, optional pretrained weights.

An encoder is accepted only after a trial forward pass, because some timm models give feature maps at other strides or
for one image size only. Encoders that are not for commercial use are refused. Weights are random, or come by way of
`encoder_weights`. This module knows nothing of decoders or classes.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from geood.config import SegmenterConfig
from geood.errors import ConfigError
from geood.models.encoder_weights import (
    IMAGENET,
    PACKAGE,
    bands_of,
    imagenet_encoder,
    load_encoder_weights,
)
from geood.models.local_gates import has_global_gates, use_local_gates
from geood.models.timm_files import network_maker, timm_library

log = logging.getLogger("geood")
STRIDES = (4, 8, 16, 32)
USUAL = (1, 2, 3, 4)  # the places of these strides among the maps of most encoders
NON_COMMERCIAL = re.compile(r"^(mit_b\d|segformer)")  # NVIDIA's SegFormer encoders


def make_encoder(bands: int, config: SegmenterConfig, *, drawn: bool = True) -> tuple[nn.Module, list[int]]:
    """Build the config's timm encoder; return it and the channels of its features at strides 4, 8, 16 and 32.

    The encoder maps images (B, bands, H, W), H and W multiples of 32, to four maps (B, widths[i], H / 2^(i+2),
    W / 2^(i+2)). `drawn` tells whether its random weights count, which depend on what was drawn before.

    Raises:
        ConfigError: the encoder is unknown, refused or lacks features at these strides, or its weights are missing,
            damaged, not for commercial use, or of another network.
    """
    name = config.encoder
    if NON_COMMERCIAL.match(name):
        raise ConfigError(f"segmenter.encoder: {name} is not for commercial use; take another, such as resnet18")
    make = network_maker(name)
    if make is None:
        near = difflib.get_close_matches(name, timm_library().list_models(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them, for example resnet18"
        raise ConfigError(f"segmenter.encoder: timm has no model {name!r}; {hint}")
    unfit = f"segmenter.encoder: {name} does not give feature maps at strides 4, 8, 16 and 32 of images of any size"
    remedy = "take a convolutional one such as densenet121, resnet18 or mobilenetv3_small_100"
    try:
        shape = {"features_only": True, "in_chans": bands, "out_indices": USUAL}
        encoder = None if drawn else _at_once(make, name, shape)
        if encoder is None:
            reductions = cast(Any, make(name, pretrained=False, features_only=True)).feature_info.reduction()
            last = {reduction: i for i, reduction in enumerate(reductions)}
            shape |= {"out_indices": [last[s] for s in STRIDES]}
            encoder = make(name, pretrained=False, **shape)
        widths = _widths(encoder, bands)
    except Exception as error:  # timm raises many types; each means that this encoder is unfit
        raise ConfigError(f"{unfit} ({type(error).__name__}: {error}); {remedy}") from error
    if widths is None:
        raise ConfigError(f"{unfit}; {remedy}")
    if config.weights == IMAGENET:
        encoder = imagenet_encoder(name, shape)
    elif config.weights is not None:
        load_encoder_weights(encoder, bands, name=name, weights=config.weights)
    if config.gates == "local" and not use_local_gates(encoder, bands):
        raise ConfigError(f"segmenter.gates: {name} has no squeeze-excitation to be local; leave it out")
    return encoder, widths


def check_encoder(config: SegmenterConfig, bands: int | None = None) -> int:
    """Check the config's encoder and its weights without any data; return the number of its parameters.

    An encoder whose tiles may show in maps is warned of.

    ImageNet weights that are not here are fetched. The random generator is left as it was. Without the number of
    `bands`, that which a local file of weights was made for is taken, else three.

    Raises:
        ConfigError: as in `make_encoder`.
    """
    with torch.random.fork_rng(devices=[]):
        if bands is None and config.weights not in (None, IMAGENET, PACKAGE):
            plain, _ = make_encoder(3, config.model_copy(update={"weights": None}))
            bands = bands_of(plain, str(config.weights))
        encoder, _ = make_encoder(bands or 3, config)
    if has_global_gates(encoder):
        log.warning(
            "segmenter.encoder %s weighs its channels by their means over the whole of a tile (squeeze-excitation), so "
            "that tiles may show as seams in maps, whatever the halo; segmenter.gates: local takes means of the ground "
            "around and has none, if it is set before the first training",
            config.encoder,
        )
    return sum(parameter.numel() for parameter in encoder.parameters())


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


def _at_once(make: Callable[..., nn.Module], name: str, shape: dict[str, Any]) -> nn.Module | None:
    """Build an encoder whose maps have the strides at the usual places, with no other to ask it; None if not so."""
    try:
        encoder: Any = make(name, pretrained=False, **shape)
    except Exception:  # one with four maps, or unfit, which the other way tells
        return None
    return encoder if tuple(encoder.feature_info.reduction()) == STRIDES else None


@torch.no_grad()
def _widths(encoder: nn.Module, bands: int) -> list[int] | None:
    """Return the channels of the four feature maps from a trial forward pass; None if a stride is wrong.

    An encoder without memory, which stands for one that is tried later, is taken at timm's word.
    """
    if next(encoder.parameters()).is_meta:
        told: list[int] = cast(Any, encoder).feature_info.channels()
        return told
    height, width = 64, 96
    training = encoder.training
    features = encoder.eval()(torch.zeros(1, bands, height, width))
    encoder.train(training)
    sizes = [tuple(feature.shape[2:]) for feature in features]
    if sizes != [(height // stride, width // stride) for stride in STRIDES]:
        return None
    return [feature.shape[1] for feature in features]
