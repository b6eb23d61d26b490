"""Self-describing model file: safetensors weights with JSON metadata in the header.

The weights of segmenter and flow and the inlier statistics are tensors; everything else (config, bands, classes,
resolution, thresholds, validation metrics) is one JSON string in the file's header. Loading needs no config file, no
network access and no pickle. A bundle's identity is a digest of the file's bytes, so two score rasters with the same
identity in their tags came from the same model. A bundle computes every score that its networks and statistics support,
all from one forward pass; its config selects the default one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from geood._version import __version__
from geood.atomic import atomic_write
from geood.config import SCORES, Config, PredictConfig, ScoreConfig, change_config, scores_from, why_not
from geood.errors import ConfigError, OutputError, shown
from geood.geo.bands import Bands
from geood.models.bundle_header import FORMAT, Reach, damaged, finite, read_header
from geood.models.bundle_tensors import BundleTensors
from geood.models.calibration_record import CalibrationRecord
from geood.models.flows.flow import Flow
from geood.models.inlier_statistics import Inliers
from geood.models.region import WHOLE, Region, region_around
from geood.models.score_maps import Scorer, offset_of
from geood.models.segmenter import Segmenter, SegmenterOutput
from geood.notebook import html_table

log = logging.getLogger("geood")
USES = ("score", "predict")  # config sections that may change after training
UNMEASURED_HALO = 64  # pixels, for a network whose reach is not known: enough for a ResNet
TILE_PX, WIDE_TILE_PX = 1024, 2048
WIDE_HALO = 128  # pixels; beyond, tiles of 1024 px would be computed more than 1.6 times


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """Trained segmenter with everything needed to score a new scene.

    Channel i of the logits is the class with id `class_ids[i]`. `flow` generated the synthetic negatives (None: other
    negatives, or none). `inliers` serves the scores that need inlier statistics. `resolution` is the ground sampling
    distance of the training crops in metres per pixel (None: unknown), `photo_width` the width in pixels at which
    training photographs were read (None: there were none, or their resolution is known). `reach` tells how far the
    network looks (None: it was not measured). `calibration[score][fpr]` is the threshold at which the false-positive
    rate on the validation pixels is `fpr` (a decimal string such as "0.01"); it holds for the temperature, smoothing
    and offset in `calibrated`. `metrics` are the last validation metrics. `offsets[share]` is what to add to the logit
    of the outlier head so that it is above 0 on that share of the inlier validation pixels. `identity` is empty until
    the bundle is saved.

    Args:
        segmenter: the network of the classes, images (B, C, H, W) in [0, 1] to a `SegmenterOutput`.
        flow: the normalizing flow, or None.
        inliers: inlier statistics, or None.
        bands: names, indexes and scaling of the C bands.
        config: the config of the training.
        class_ids: the class id of each of the K channels of the logits.
        resolution: metres per pixel, or None.
        calibration: thresholds by score and false-positive rate.
        calibrated: the score settings that `calibration` holds for.
        metrics: the last validation metrics by name.
        offsets: of the outlier logit, by share of inliers; empty: none was found, 0 is taken.
        photo_width: width of the training photographs in pixels, or None.
        reach: how far the network looks, and the halo that it needs, or None.
        record: what was measured on inlier validation ground; None: nothing was, or by an older geood.
        identity: digest of the file, 12 hexadecimal digits.

    Raises:
        BundleError: of `load`: the file is missing, is no bundle, is damaged, or is from another format.

    Example:
        >>> import geood, torch
        >>> bundle = geood.ModelBundle.load("model.safetensors")
        >>> bundle.class_names
        {0: 'land', 1: 'road', 2: 'roof'}
        >>> image = torch.rand(1, 3, 64, 96)  # what bundle.bands.scale makes of digital numbers
        >>> bundle.score(image).shape
        torch.Size([1, 64, 96])
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
    offsets: dict[str, float] = dataclasses.field(default_factory=dict)
    photo_width: int | None = None
    reach: Reach | None = None
    record: CalibrationRecord | None = None
    identity: str = ""

    @property
    def class_names(self) -> dict[int, str]:
        """Name of each channel of the logits."""
        return {i: self.config.data.classes[class_id] for i, class_id in enumerate(self.class_ids)}

    @property
    def scores(self) -> tuple[str, ...]:
        """Kinds of score that this bundle can compute."""
        known = () if self.inliers is None else self.inliers.serves
        return scores_from("logits", *known, self.config.segmenter.outlier)

    @property
    def thresholds(self) -> dict[str, float]:
        """Thresholds of the config's score by false-positive rate; empty for other temperature, smoothing or offset."""
        now, then = self.config.score, self.calibrated
        smooth = now.smooth_of(now.kind)
        same = smooth == then.smooth_of(now.kind) and (not smooth or now.smooth_contrast == then.smooth_contrast)
        if SCORES[now.kind].tempered:
            same = same and now.temperature_of(now.kind) == then.temperature_of(now.kind)
        if SCORES[now.kind].shifted:
            same = same and now.veto_share == then.veto_share
        if SCORES[now.kind].needs == "experts" and self.inliers is not None and self.inliers.knows_false_alarms:
            same = same and now.false_alarm_nats == then.false_alarm_nats
        return self.calibration.get(now.kind, {}) if same else {}

    @property
    def offset(self) -> float:
        """Offset of the outlier logit in score hybrid, that of `score.veto_share`; 0 without one."""
        return offset_of(self.config.score, self.offsets)

    @property
    def threshold(self) -> float:
        """Default threshold: the score at the false-positive rate `score.fpr`.

        Raises:
            ConfigError: the score was not calibrated with the config's temperature, smoothing and offset.
        """
        threshold = self.thresholds.get(str(self.config.score.fpr))
        if threshold is None:
            raise ConfigError(
                "this model has no threshold for this score: it was calibrated with another temperature, smoothing or "
                "offset, had no inlier ground to validate on, or is older; give one with --threshold, or leave "
                "score.temperature, score.smooth_*, score.veto_share and score.false_alarm_nats as they are"
            )
        return threshold

    @property
    def network_halo_px(self) -> int:
        """Halo that the network is given, in pixels: the config's, or the one that it was measured to need."""
        given = self.config.predict.halo_px
        if given != "auto":
            return given
        return UNMEASURED_HALO if self.reach is None else self.reach.halo_px

    @property
    def halo_px(self) -> int:
        """Halo of a tile in pixels: that of the network plus what its score looks around a pixel, a multiple of 32."""
        return self.network_halo_px + -(-self._scorer.reach_of(self.config.score.kind) // 32) * 32

    @property
    def tile_px(self) -> int:
        """Side of a tile of calibration without its halo, pixels at the model's resolution: named, or for the halo."""
        given = self.config.predict.tile_px
        if given != "auto":
            return given
        return TILE_PX if self.halo_px <= WIDE_HALO else WIDE_TILE_PX

    @property
    def cut_off(self) -> float | None:
        """Share of what a pixel depends on that its tile's halo cuts off; None if the reach was not measured."""
        return None if self.reach is None else self.reach.lost(self.network_halo_px)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.segmenter.mean.device

    @torch.inference_mode()
    def infer(self, image: Tensor, kinds: Sequence[str] | None = None, region: Region | None = None) -> SegmenterOutput:
        """Run the segmenter on images (B, C, H, W) scaled to [0, 1] by `bands.scale`; H and W are multiples of 32.

        `kinds` are the scores that the answer is to serve (None: all); only for some the outlier output is computed.
        The answer is that in `region`, see `region_of`; None: in the whole image.
        """
        wanted = kinds is None or any(SCORES[kind].needs in ("head", "class", "experts") for kind in kinds)
        return cast(SegmenterOutput, self.segmenter(image, wanted, region))

    def region_of(self, core: Region, size: Sequence[int], kinds: Sequence[str]) -> tuple[Region, Region]:
        """Return the region of images (H, W) that scores of a core need, and the core's place in that region."""
        return region_around(core, size, radius=max(map(self._scorer.radius_of, kinds)))

    @torch.inference_mode()
    def score(self, image: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the config's anomaly score (B, H, W), float32; higher is more anomalous.

        Args:
            image: (B, C, H, W), scaled to [0, 1] by `bands.scale`; H and W are multiples of 32.
            valid: (B, H, W), boolean, False at nodata pixels; used by the smoothing only (None: all valid).
        """
        return self.score_of(self.infer(image, (self.config.score.kind,)), image, valid)

    @torch.inference_mode()
    def score_of(
        self,
        answer: SegmenterOutput,
        image: Tensor,
        valid: Tensor | None = None,
        *,
        kind: str | None = None,
        core: Region = WHOLE,
    ) -> Tensor:
        """Return the anomaly score (B, h, w) of a forward pass, float32; higher is more anomalous.

        Args:
            answer: output of `infer` for `image`.
            image: (B, C, H, W), scaled to [0, 1]; guides the smoothing.
            valid: (B, H, W), boolean, False at nodata pixels; used by the smoothing only (None: all valid).
            kind: kind of score; None: the config's.
            core: rows and columns to return, the tile without its halo; the default is the whole (H, W).

        Raises:
            ValueError: the bundle cannot compute that score.
        """
        kind = kind or self.config.score.kind
        return self.scores_of(answer, image, valid, kinds=(kind,), core=core)[kind]

    @torch.inference_mode()
    def scores_of(
        self,
        answer: SegmenterOutput,
        image: Tensor,
        valid: Tensor | None = None,
        *,
        kinds: Sequence[str],
        core: Region = WHOLE,
    ) -> dict[str, Tensor]:
        """Return several scores of a forward pass, each as `score_of` gives it; each expert is computed once.

        Raises:
            ValueError: the bundle cannot compute one of these scores.
        """
        return self._scorer.scores_of(answer, image, valid, kinds=kinds, core=core)

    @property
    def _scorer(self) -> Scorer:
        return Scorer(self.config.score, self.calibrated, self.inliers, self.offsets, self.scores)

    def with_settings(self, settings: Sequence[str]) -> ModelBundle:
        """Return a copy with the overrides `score.KEY=value` and `predict.KEY=value` applied to its config.

        A new kind of score keeps the temperature that the present config gives it, unless one is set.

        Raises:
            ConfigError: an override is malformed, of another section, or selects a score that the bundle lacks.
        """
        for setting in settings:
            if setting.partition(".")[0] not in USES:
                raise ConfigError(
                    f"--set {shown(setting)}: of a trained model only the sections {' and '.join(USES)} can be "
                    "changed, for example --set score.kind=energy"
                )
        config = change_config(self.config, settings)
        before, score = self.config.score, config.score
        for key in ("feature_bank", "encoder_bank"):
            if getattr(score, key) != getattr(before, key):
                raise ConfigError(f"--set score.{key}: the bank is filled in training; train with that value")
        given = any(s.startswith("score.temperature=") for s in settings)
        if score.kind != before.kind and SCORES[score.kind].tempered and not given:
            score = score.model_copy(update={"temperature": before.temperature_of(score.kind)})
            config = config.model_copy(update={"score": score})
        if why := why_not(config.score.kind, self.scores, self.config.segmenter.outlier):
            raise ConfigError(why)
        changed = dataclasses.replace(self, config=config)
        changed.warn_of_narrow_halo()
        return changed

    def warn_of_narrow_halo(self) -> None:
        """Log a warning if the config's halo is narrower than the network was measured to need."""
        if self.reach is not None and (warning := self.reach.warning(self.network_halo_px)):
            log.warning(warning)

    def with_score(self, score: ScoreConfig) -> ModelBundle:
        """Return a copy with another score section in its config."""
        return dataclasses.replace(self, config=self.config.model_copy(update={"score": score}))

    def with_predict(self, predict: PredictConfig) -> ModelBundle:
        """Return a copy with another predict section in its config."""
        return dataclasses.replace(self, config=self.config.model_copy(update={"predict": predict}))

    def to(self, device: torch.device | str) -> ModelBundle:
        """Move the networks to a device, in place; return the bundle."""
        for part in (self.segmenter, self.flow, self.inliers):
            if part is not None:
                part.to(device)
        return self

    def __repr__(self) -> str:
        classes = ", ".join(self.class_names.values())
        return f"ModelBundle({self.identity or 'not saved'}: {classes}; {self.config.score.kind})"

    def _repr_html_(self) -> str:
        told = {"classes": ", ".join(self.class_names.values()), "bands": ", ".join(self.bands.names)}
        thresholds = {f"threshold at {rate}": threshold for rate, threshold in self.thresholds.items()}
        return html_table(f"ModelBundle {self.identity}", told | {"score": self.config.score.kind} | thresholds)

    def header(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON values."""
        return {
            "format": FORMAT,
            "geood": __version__,
            "config": self.config.model_dump(mode="json"),
            "bands": self.bands.to_dict(),
            "class_ids": list(self.class_ids),
            "resolution": self.resolution,
            "photo_width": self.photo_width,
            "reach": None if self.reach is None else self.reach.model_dump(mode="json"),
            "calibration": {kind: finite(thresholds) for kind, thresholds in self.calibration.items()},
            "calibrated": self.calibrated.model_dump(mode="json"),
            "metrics": finite(self.metrics),
            "offsets": finite(self.offsets),
            "record": None if self.record is None else self.record.model_dump(mode="json"),
        }

    def save(self, path: str | Path) -> ModelBundle:
        """Write the bundle atomically; return a copy that knows its identity.

        Raises:
            OutputError: the file cannot be written.
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
    def load(cls, path: str | Path, *, flow: bool = True, tell: bool = True) -> ModelBundle:
        """Read a bundle, its networks on the CPU and in eval mode.

        Args:
            path: the `model.safetensors` of a training run.
            flow: False: leave out the flow, which no score needs; a bundle saved from that has none.
            tell: log a warning of what a bundle of an older format lacks.

        Raises:
            BundleError: the file is missing, not a bundle, damaged, or written by a geood with another format.
        """
        path = Path(path)
        header = read_header(path)
        for lack in header.missing if tell else ():
            log.warning("%s: %s", path, lack)
        config, bands, classes = header.config, header.bands, len(header.class_ids)
        local = config.segmenter.model_copy(update={"weights": None})
        try:
            stored = BundleTensors(path)
            segmenter = stored.fill("segmenter", partial(Segmenter, drawn=False), bands.count, classes, local).eval()
            held = flow and header.reads_flow and "flow" in stored
            generator = stored.fill("flow", Flow, bands.count, config.flow, bands.step).eval() if held else None
            sizes = classes, segmenter.features, segmenter.encoder_features
            inliers = stored.inliers(*sizes, head=config.segmenter.outlier == "head")
            identity = _identity(path)
        except (ConfigError, ValueError, RuntimeError, SafetensorError, OSError) as error:
            raise damaged(path, error) from None
        bundle = cls(
            segmenter=segmenter,
            flow=generator,
            inliers=inliers,
            bands=bands,
            config=config,
            class_ids=header.class_ids,
            resolution=header.resolution,
            calibration=header.calibration,
            calibrated=header.calibrated,
            metrics=header.metrics,
            offsets=header.offsets,
            photo_width=header.photo_width,
            reach=header.reach,
            record=header.record,
            identity=identity,
        )
        if why := why_not(config.score.kind, bundle.scores, config.segmenter.outlier):
            raise damaged(path, why)
        return bundle


def _identity(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
