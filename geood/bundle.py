"""The trained thing: one safetensors file that says by itself what it is.

Weights of segmenter and flow are tensors; everything else (config, bands, classes, resolution, thresholds, figures) is
one JSON text in the file's header. Loading needs no config, no network and no pickle. The file's identity is a digest
of its bytes, so two score rasters with the same identity in their tags came from the same model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geood.config import Config, config_from_json
from geood.errors import BundleError, OutputError
from geood.flow import Flow
from geood.raster import Bands
from geood.scores import anomaly_score
from geood.segmenter import Segmenter
from geood.version import __version__

FORMAT = 1  # raised when older geood could no longer read the file


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """A trained segmenter with its flow and all that is needed to use them on a new scene.

    Channel i of the logits is the class with id `class_ids[i]`. `resolution` is metres per pixel of the training crops
    (None: not known). `thresholds` maps an inlier false-positive rate, written as a decimal, to the score above which
    that share of inlier pixels of the validation blocks lies. `metrics` are the last validation figures.
    """

    segmenter: Segmenter
    flow: Flow
    bands: Bands
    config: Config
    class_ids: tuple[int, ...]
    resolution: float | None
    thresholds: dict[str, float]
    metrics: dict[str, float]
    identity: str = ""

    @property
    def class_names(self) -> dict[int, str]:
        """Name of each channel of the logits."""
        return {i: self.config.data.classes[class_id] for i, class_id in enumerate(self.class_ids)}

    @property
    def threshold(self) -> float:
        """The default threshold: the score at the false-positive rate that `score.fpr` names."""
        return self.thresholds[str(self.config.score.fpr)]

    @torch.inference_mode()
    def logits(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W) that `bands.scale` brought to [0, 1]."""
        logits: Tensor = self.segmenter(image)
        return logits

    @torch.inference_mode()
    def score(self, image: Tensor) -> Tensor:
        """Anomaly score (B, H, W) of the kind and temperature in the config; higher is more anomalous."""
        return self.score_of(self.logits(image))

    def score_of(self, logits: Tensor) -> Tensor:
        """The configured anomaly score (B, H, W) of logits (B, K, H, W)."""
        return anomaly_score(logits, self.config.score.kind, self.config.score.temperature)

    def to(self, device: torch.device | str) -> ModelBundle:
        """The same bundle with its networks on another device."""
        self.segmenter.to(device)
        self.flow.to(device)
        return self

    def header(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""
        return {
            "format": FORMAT,
            "geood": __version__,
            "config": self.config.model_dump(mode="json"),
            "bands": self.bands.to_dict(),
            "class_ids": list(self.class_ids),
            "resolution": self.resolution,
            "thresholds": self.thresholds,
            "metrics": self.metrics,
        }

    def save(self, path: str | Path) -> ModelBundle:
        """Write the bundle whole or not at all; the bundle that comes back knows its identity.

        Raises:
            OutputError: if the file cannot be written.
        """
        path = Path(path)
        tensors = {f"segmenter.{k}": v for k, v in self.segmenter.state_dict().items()}
        tensors |= {f"flow.{k}": v for k, v in self.flow.state_dict().items()}
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, metadata={"geood": json.dumps(self.header(), sort_keys=True)})
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{path}: the bundle cannot be written ({error}); free space or choose --out") from None
        finally:
            partial.unlink(missing_ok=True)
        return dataclasses.replace(self, identity=_identity(path))

    @classmethod
    def load(cls, path: str | Path) -> ModelBundle:
        """Read a bundle; its networks are ready for inference on the CPU.

        Raises:
            BundleError: if the file is missing, is not a bundle, is damaged, or is from a newer geood.
        """
        path = Path(path)
        header = read_header(path)
        try:
            config = config_from_json(json.dumps(header["config"]), source=str(path))
            bands = Bands.from_dict(header["bands"])
            class_ids = tuple(header["class_ids"])
            local = config.segmenter.model_copy(update={"weights": None})
            segmenter = Segmenter(bands.count, len(class_ids), local)
            flow = Flow(bands.count, config.flow, bands.step)
            with safe_open(path, framework="pt") as file:
                for name, network in (("segmenter.", segmenter), ("flow.", flow)):
                    state = {k.removeprefix(name): file.get_tensor(k) for k in file.keys() if k.startswith(name)}  # noqa: SIM118
                    network.load_state_dict(state)
        except (KeyError, RuntimeError, SafetensorError, TypeError) as error:
            raise BundleError(f"{path}: the bundle is damaged ({str(error)[:200]}); copy or train it again") from None
        return cls(
            segmenter=segmenter.eval(),
            flow=flow.eval(),
            bands=bands,
            config=config,
            class_ids=class_ids,
            resolution=header["resolution"],
            thresholds=header["thresholds"],
            metrics=header["metrics"],
            identity=_identity(path),
        )


def read_header(path: str | Path) -> dict[str, Any]:
    """What a bundle says about itself, without loading a network.

    Raises:
        BundleError: if the file is missing, is not a bundle, is damaged, or is from a newer geood.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"{path}: no such bundle; give the model.safetensors that `geood train` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"{path}: not a readable safetensors file ({error}); it may be cut short, copy it again, "
            "or give the model.safetensors that `geood train` wrote"
        ) from None
    if "geood" not in metadata:
        raise BundleError(f"{path}: safetensors, but no geood bundle; give the model.safetensors of `geood train`")
    header: dict[str, Any] = json.loads(metadata["geood"])
    if header.get("format", 0) > FORMAT:
        raise BundleError(
            f"{path}: written by geood {header.get('geood')} in format {header['format']}, this geood "
            f"{__version__} reads up to {FORMAT}; upgrade geood"
        )
    return header


def _identity(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
