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

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geood._torch_compat import declare_missing_operators
from geood.config.sections import SegmenterConfig
from geood.errors import ConfigError
from geood.models.decoder import Ladder, PyramidPooling, enlarge, unit

STRIDES = (4, 8, 16, 32)
IMAGENET = "imagenet"
NON_COMMERCIAL = re.compile(r"^(mit_b\d|segformer)")  # NVIDIA's SegFormer encoders


class Answer(NamedTuple):
    """What a segmenter says of images (B, C, H, W).

    `logits` (B, K, H, W) of the classes; `outlier` (B, H, W), the logit of being none of them, None where the network
    has no output for that; `features` (B, D, H / 4, W / 4), what the decoder made of the image.
    """

    logits: Tensor
    outlier: Tensor | None
    features: Tensor


class Segmenter(nn.Module):
    """An `Answer` to images (B, `bands`, H, W) in [0, 1] about `classes` classes; H and W are multiples of `stride`.

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
        self.encoder, widths = _encoder(bands, config)
        if config.network == "ldn121":
            _pool_as_ldn(self.encoder)
            top: nn.Module = PyramidPooling(widths[-1], width=512, level=128)
            channels, mean, std = [512, 256, 256, 128], 0.0, 1.0
        else:
            top = unit(widths[-1], config.decoder_channels, kernel=1)
            channels, mean, std = [config.decoder_channels] * len(widths), 0.5, 0.25
        self.decoder = Ladder(widths, top=top, channels=channels)
        self.head = unit(channels[-1], classes, kernel=1, bias=True)
        beside = {"none": 0, "head": 2, "class": 1}[config.outlier]
        self.outlier_head = unit(channels[-1], beside, kernel=1, bias=True) if beside else None
        self.register_buffer("mean", torch.full((bands,), mean))
        self.register_buffer("std", torch.full((bands,), std))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the faster layout: a tenth to a third on CPUs

    def forward(self, image: Tensor) -> Answer:
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
        logits = enlarge(self.head(features), (height, width))
        if self.outlier_head is None:
            return Answer(logits, None, features)
        beside = self.outlier_head(features)
        outlier = beside if self.outlier == "class" else beside[:, 1:] - beside[:, :1]
        return Answer(logits, enlarge(outlier, (height, width))[:, 0], features)

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


def _encoder(bands: int, config: SegmenterConfig) -> tuple[nn.Module, list[int]]:
    """The config's timm encoder with its weights, and the widths of its features at strides 4, 8, 16 and 32."""
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
    except Exception as error:  # timm asserts, raises and looks up in many ways; all mean that this encoder is unfit
        raise ConfigError(f"{unfit} ({type(error).__name__}: {error}); {remedy}") from error
    if widths is None:
        raise ConfigError(f"{unfit}; {remedy}")
    if config.weights == IMAGENET:
        encoder = _fetched(name, shape)
    elif config.weights is not None:
        _load_weights(encoder, bands, name=name, path=Path(config.weights))
    return encoder, widths


def _fetched(name: str, shape: dict[str, Any]) -> nn.Module:
    """The encoder with the pretrained weights that timm takes by default for it, from the network or timm's cache."""
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
        said = (str(error).split("\n")[0] or type(error).__name__)[:200]
        raise ConfigError(
            f"segmenter.weights: no ImageNet weights of {name} could be fetched ({said}); {local}"
        ) from None
    return encoder


def _pool_as_ldn(encoder: nn.Module) -> None:
    """Give timm's DenseNet-121 the pooling and the batch norm of LDN-121; weights are those of any DenseNet-121."""
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
    """timm, imported when first needed (a second or more), after torchvision's operators are seen to."""
    declare_missing_operators()
    import timm

    return timm
