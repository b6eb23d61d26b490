"""The trained thing: one safetensors file that says by itself what it is.

Weights of segmenter and flow and the statistics of inliers are tensors; everything else (config, bands, classes,
resolution, thresholds, figures) is one JSON text in the file's header. Loading needs no config, no network and no
pickle. The file's identity is a digest of its bytes, so two score rasters with the same identity in their tags came
from the same model. A bundle gives every score that its networks and statistics serve, all from one forward pass; its
config names the one that is taken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geood._version import __version__
from geood.atomic import atomic_write
from geood.config.loading import change_config, config_from_json
from geood.config.score_kinds import SCORES, scores_from, why_not
from geood.config.sections import Config, ScoreConfig
from geood.errors import BundleError, ConfigError, OutputError
from geood.geo.bands import Bands
from geood.models.decoder import upsample
from geood.models.flow import Flow
from geood.models.guided_filter import filter_radius, guided_filter
from geood.models.inlier_statistics import Inliers
from geood.models.scores import anomaly_score, outlier_score
from geood.models.segmenter import Segmenter, SegmenterOutput

FORMAT = 2  # raised when older geood could no longer read the file
USES = ("score", "predict")  # sections that may change after training
WHOLE = (slice(None), slice(None))


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """A trained segmenter with all that is needed to use it on a new scene.

    Channel i of the logits is the class with id `class_ids[i]`. `flow` made the synthetic negatives; None where other
    negatives, or none, were used. `inliers` serves the scores that need statistics. `resolution` is metres per pixel of
    the training crops (None: not known). `calibration` maps each score and an inlier false-positive rate, written as a
    decimal, to the score above which that share of inlier pixels of the validation side lies, for the temperature and
    smoothing of `calibrated`. `metrics` are the last validation figures.
    """

    segmenter: Segmenter
    flow: Flow | None
    inliers: Inliers | None
    bands: Bands
    config: Config
    class_ids: tuple[int, ...]
    resolution: float | None
    calibration: dict[str, dict[str, float]]
    calibrated: ScoreConfig
    metrics: dict[str, float]
    identity: str = ""

    @property
    def class_names(self) -> dict[int, str]:
        """Name of each channel of the logits."""
        return {i: self.config.data.classes[class_id] for i, class_id in enumerate(self.class_ids)}

    @property
    def scores(self) -> tuple[str, ...]:
        """The kinds of score that this bundle can give."""
        known = () if self.inliers is None else self.inliers.serves
        return scores_from("logits", *known, self.config.segmenter.outlier)

    @property
    def thresholds(self) -> dict[str, float]:
        """Thresholds of the config's score by false-positive rate; none where it was not calibrated like this."""
        now, then = self.config.score, self.calibrated
        same = now.smooth_px == then.smooth_px and (not now.smooth_px or now.smooth_contrast == then.smooth_contrast)
        if SCORES[now.kind].tempered:
            same = same and now.temperature_of(now.kind) == then.temperature_of(now.kind)
        return self.calibration.get(now.kind, {}) if same else {}

    @property
    def threshold(self) -> float:
        """The default threshold: the score at the false-positive rate that `score.fpr` names.

        Raises:
            ConfigError: if the score was not calibrated with the config's temperature and smoothing.
        """
        found = self.thresholds.get(str(self.config.score.fpr))
        if found is None:
            raise ConfigError(
                "this model has no threshold for another temperature or smoothing than it was trained with; give one "
                "with --threshold, or leave score.temperature and score.smooth_* as they are"
            )
        return found

    @property
    def halo_px(self) -> int:
        """Context that a tile needs about it: that of the network and of the smoothing, a multiple of 32 pixels."""
        return self.config.predict.halo_px + -(-filter_radius(self.config.score.smooth_px) // 32) * 32

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.segmenter.mean.device

    @torch.inference_mode()
    def infer(self, image: Tensor) -> SegmenterOutput:
        """What the segmenter says of images (B, C, H, W) that `bands.scale` brought to [0, 1]."""
        answer: SegmenterOutput = self.segmenter(image)
        return answer

    @torch.inference_mode()
    def score(self, image: Tensor, valid: Tensor | None = None) -> Tensor:
        """Anomaly score (B, H, W) as the config says; higher is more anomalous.

        `valid` (B, H, W) is where the images hold data (None: everywhere); only smoothing asks for it.
        """
        return self.score_of(self.infer(image), image, valid)

    @torch.inference_mode()
    def score_of(
        self,
        answer: SegmenterOutput,
        image: Tensor,
        valid: Tensor | None = None,
        *,
        kind: str | None = None,
        core: tuple[slice, slice] = WHOLE,
    ) -> Tensor:
        """The score of an answer to `image`, cut to rows and columns `core`, of `kind` or else of the config's.

        Raises:
            ValueError: if the bundle cannot give that score.
        """
        kind, settings = kind or self.config.score.kind, self.config.score
        if not settings.smooth_px:
            return self._raw(answer, kind, core)
        raw = self._raw(answer, kind, WHOLE)
        known = torch.ones_like(raw, dtype=torch.bool) if valid is None else valid
        smooth = guided_filter(raw, image, known, radius=settings.smooth_px, evenness=settings.smooth_contrast)
        return smooth[:, core[0], core[1]]

    def _raw(self, answer: SegmenterOutput, kind: str, core: tuple[slice, slice]) -> Tensor:
        """A score before any smoothing. Those of logits are made of the core alone."""
        if kind not in self.scores:
            raise ValueError(f"this bundle cannot give the score {kind}")
        rows, cols = core
        logits, needs = answer.logits[:, :, rows, cols], SCORES[kind].needs
        if needs == "logits":
            return anomaly_score(logits, kind, self.config.score.temperature_of(kind))
        if needs in ("head", "class"):
            assert answer.outlier is not None
            return outlier_score(logits, answer.outlier[:, rows, cols], kind)
        assert self.inliers is not None
        if needs == "class statistics":
            return self.inliers.score(kind, logits, answer.features)
        coarse = self.inliers.score(kind, answer.logits, answer.features)
        return upsample(coarse[:, None], answer.logits.shape[-2:])[:, 0, rows, cols]

    def with_settings(self, settings: Sequence[str]) -> ModelBundle:
        """The same bundle used otherwise: `score.KEY=value` and `predict.KEY=value` in place of its config's.

        Another kind of score takes the temperature at which this bundle would give it anyway, unless one is set.

        Raises:
            ConfigError: if that is no setting, of another section, or asks for a score that it cannot give.
        """
        for setting in settings:
            if setting.partition(".")[0] not in USES:
                raise ConfigError(
                    f"--set {setting}: of a trained model only the sections {' and '.join(USES)} can be changed, for "
                    "example --set score.kind=energy"
                )
        config = change_config(self.config, settings)
        before, score = self.config.score, config.score
        if score.feature_bank != before.feature_bank:
            raise ConfigError("--set score.feature_bank: the bank is filled in training; train with that value")
        if score.kind != before.kind and not any(s.startswith("score.temperature=") for s in settings):
            score = score.model_copy(update={"temperature": before.temperature_of(score.kind)})
            config = config.model_copy(update={"score": score})
        if why := why_not(config.score.kind, self.scores, self.config.segmenter.outlier):
            raise ConfigError(why)
        return dataclasses.replace(self, config=config)

    def with_score(self, score: ScoreConfig) -> ModelBundle:
        """The same bundle taking another score."""
        return dataclasses.replace(self, config=self.config.model_copy(update={"score": score}))

    def to(self, device: torch.device | str) -> ModelBundle:
        """The same bundle with its networks on another device."""
        for part in (self.segmenter, self.flow, self.inliers):
            if part is not None:
                part.to(device)
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
            "calibration": self.calibration,
            "calibrated": self.calibrated.model_dump(mode="json"),
            "metrics": self.metrics,
        }

    def save(self, path: str | Path) -> ModelBundle:
        """Write the bundle whole or not at all; the bundle that comes back knows its identity.

        Raises:
            OutputError: if the file cannot be written.
        """
        path = Path(path)
        parts = {"segmenter": self.segmenter, "flow": self.flow, "inliers": self.inliers}
        tensors = {f"{p}.{k}": v for p, net in parts.items() if net is not None for k, v in net.state_dict().items()}
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        try:
            with atomic_write(path) as partial:
                save_file(tensors, partial, metadata={"geood": json.dumps(self.header(), sort_keys=True)})
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{path}: the bundle cannot be written ({error}); free space or choose --out") from None
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
            stored = _tensors(path)
            flow = Flow(bands.count, config.flow, bands.step) if "flow" in stored else None
            for name, network in (("segmenter", segmenter), ("flow", flow)):
                if network is not None:
                    network.load_state_dict(stored[name])
            inliers = Inliers(stored["inliers"]) if "inliers" in stored else None
            calibrated = ScoreConfig.model_validate(header["calibrated"])
            resolution, calibration, metrics = (header[key] for key in ("resolution", "calibration", "metrics"))
        except (KeyError, RuntimeError, SafetensorError, TypeError, ValidationError) as error:
            raise BundleError(f"{path}: the bundle is damaged ({str(error)[:200]}); copy or train it again") from None
        return cls(
            segmenter=segmenter.eval(),
            flow=None if flow is None else flow.eval(),
            inliers=inliers,
            bands=bands,
            config=config,
            class_ids=class_ids,
            resolution=resolution,
            calibration=calibration,
            calibrated=calibrated,
            metrics=metrics,
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
    if header.get("format", 0) < FORMAT:
        raise BundleError(
            f"{path}: written by geood {header.get('geood')} in format {header.get('format')}, which this geood no "
            "longer reads; train it again"
        )
    if header["format"] > FORMAT:
        raise BundleError(
            f"{path}: written by geood {header.get('geood')} in format {header['format']}, this geood "
            f"{__version__} reads up to {FORMAT}; upgrade geood"
        )
    return header


def _tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a bundle, by part and name."""
    stored: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            part, _, name = key.partition(".")
            stored.setdefault(part, {})[name] = file.get_tensor(key)
    return stored


def _identity(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
