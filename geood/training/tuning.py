"""Going on with a trained model: its networks and its scaling of bands are taken over, and the third stage runs again.

The outlier head starts anew: the longer it learns, the better it fits its negatives and the worse it ranks anomalies.
With `train.head_steps` 0 it is kept as it is, and so is the encoder's bank where the training ground is that of before:
reviewed places are added to it, in place of those of earlier rounds. What else is measured is made anew: the bank of
the decoder's features, tails, thresholds.
The networks know pixels scaled in one way, so the bands are those of the model, not fitted anew to data with reviewed
ground in it. Classes, bands and networks have to be the same; images and labels may differ, which is what `stages_from`
does not allow.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from geood.config import Config
from geood.datasets import Crops, ReviewedScenes
from geood.errors import ConfigError, shown
from geood.geo.scene_reading import SAME
from geood.models import Flow, Inliers, ModelBundle, Segmenter, bundle_path_of, read_header
from geood.training.inputs import changed_since

log = logging.getLogger("geood")

ALIKE = 0.01  # by which resolutions may differ, as a share
APART = {"outlier", "outlier_strides", "weights", "checkpointing"}  # keys that do not change the classes' network
OF_HEAD = {"outlier_strides"}  # those among them that change the network of the head
# Keys of `data` that leave alone which ground, of which class, a training draws places from, and which it validates on
APART_OF_GROUND = {
    "crops",
    "reviewed_images",
    "reviewed_labels",
    "reviewed_share",
    "test_images",
    "test_labels",
    "unreadable",
    "validation_crops",
    "workers",
}


class Begun(NamedTuple):
    """Start of a training beside its segmenter: crops, flow, figures of stages, statistics whose bank is kept."""

    crops: Crops
    flow: Flow | None
    figures: dict[str, float]
    kept: Inliers | None = None


def take_model(source: Path, config: Config, crops: Crops, *, segmenter: Segmenter) -> Begun:
    """Load the segmenter of a bundle; return the crops with its bands, its flow, figures of stages, and its bank.

    Its outlier head is taken only if none is to be trained, and its flow if negatives come from one: that is made for
    the bundle's bands, as its range of values depends on them. Where nothing is trained, it may have none.

    Raises:
        BundleError: the bundle cannot be read.
        ConfigError: it has other classes, bands, networks, resolution or width of photographs, or lacks the flow.
        OutputError: what its run folder notes of files is damaged.
    """
    path = bundle_path_of(source)
    key = f"train.tune_from: {path}"
    if not path.exists():
        raise ConfigError(f"{key} does not exist; name a finished run, or its model.safetensors")
    bundle = ModelBundle.load(path)
    _check_alike(bundle, config, crops, key)
    flow = None
    if "flow" in config.negatives.sources and not (keeps_head(config) and bundle.flow is None):
        if bundle.flow is None:
            raise ConfigError(f"{key} has no flow of this geood for negatives.source; choose another source")
        flow = Flow(bundle.bands.count, config.flow, bundle.bands.step)
    try:
        state = bundle.segmenter.state_dict()
        if keeps_head(config):
            segmenter.load_state_dict(state)
        else:
            segmenter.take_classes({name: part for name, part in state.items() if not name.startswith("outlier_head.")})
        if flow is not None and bundle.flow is not None:
            flow.load_state_dict(bundle.flow.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"{key} has other weights than this config's networks ({shown(error, most=200)}); give its own config"
        ) from None
    figures = {name: value for name, value in bundle.metrics.items() if name.startswith(("segmenter/", "flow/"))}
    bands = dataclasses.replace(bundle.bands, nodata=crops.bands.nodata)  # by which these crops are read
    ground = crops.ground.scenes if isinstance(crops.ground, ReviewedScenes) else crops.ground
    kept = kept_bank(bundle, path, config, ground.files())
    return Begun(dataclasses.replace(crops, bands=bands), flow, figures, kept)


def keeps_head(config: Config) -> bool:
    """Return whether the outlier head of the model that a training goes on with is kept, as none is trained."""
    train = config.train
    learns = train.third_stage == "joint" or train.head_steps > 0
    return train.tune_from is not None and config.segmenter.outlier == "head" and not learns


def kept_bank(bundle: ModelBundle, path: Path, config: Config, files: Iterable[Path]) -> Inliers | None:
    """Return the statistics of the model at `path` that a training goes on with, if their bank is kept; else None.

    `files` are the images and labels that are read now, but for those of reviews.

    Raises:
        OutputError: what its run folder notes of files is damaged.
    """
    if not config.score.encoder_bank:
        return None
    why = _why_anew(bundle, config)
    if why is None and (others := changed_since(path.parent, files)):
        why = f"{shown(others[0], most=500)} was not read then as it is"
    if why is not None:
        log.info("the encoder's bank is made anew, as %s", why)
        return None
    log.info("the encoder's bank of %s is kept, with the reviewed places of this training", path)
    return bundle.inliers


def _why_anew(bundle: ModelBundle, config: Config) -> str | None:
    """Return why the encoder's bank of a bundle cannot be kept; None if it can."""
    if not keeps_head(config):
        return "no outlier head is kept"
    held = {} if bundle.inliers is None else dict(bundle.inliers.named_buffers())
    if "encoder_classes" not in held or len(held["encoder_shift"]) != sum(bundle.segmenter.encoder_features):
        return "the model has none, or one of an earlier geood"
    size = bundle.config.score.encoder_bank
    if size != config.score.encoder_bank:
        return f"score.encoder_bank is {config.score.encoder_bank}, and was {size}"
    now, before = ({"train.seed": each.train.seed} | _ground_keys(each) for each in (config, bundle.config))
    if differing := [key for key in now if now[key] != before[key]]:
        return f"the training ground may be another: other values of {', '.join(differing)}"
    if bundle.config.data.reviewed_images and "encoder_reviewed" not in held:
        return "the model learned from reviewed ground, and its bank does not tell which rows are of that"
    return None


def _ground_keys(config: Config) -> dict[str, Any]:
    return {f"data.{key}": value for key, value in config.data.model_dump(exclude=APART_OF_GROUND).items()}


def with_kept_head(config: Config, *, given: Config) -> Config:
    """Return the config of a training that keeps a model's head, with the strides that this sees.

    What `given` says of them is left as it is, to be refused if it differs; else the default would be that of another
    head where the model is of an earlier geood.

    Raises:
        BundleError: the model cannot be read.
    """
    named = "outlier_strides" in given.segmenter.model_fields_set
    if named or not keeps_head(config) or not (path := bundle_path_of(str(config.train.tune_from))).exists():
        return config
    seen, default = read_header(path).config.segmenter.outlier_strides, config.segmenter.outlier_strides
    if seen == default:
        return config
    log.info("the head of %s is kept, with segmenter.outlier_strides: %s (the default is %s)", path, seen, default)
    return config.model_copy(update={"segmenter": config.segmenter.model_copy(update={"outlier_strides": seen})})


def _check_alike(bundle: ModelBundle, config: Config, crops: Crops, key: str) -> None:
    now, before = config.segmenter.model_dump(), bundle.config.segmenter.model_dump()
    apart = APART - OF_HEAD if keeps_head(config) else APART
    differing = [f"segmenter.{name}" for name in now if name not in apart and now[name] != before[name]]
    names = {i: bundle.config.data.classes[i] for i in bundle.class_ids}
    if dict(config.data.classes) != names:
        differing.append("data.classes")
    if crops.bands.names != bundle.bands.names or crops.bands.indexes != bundle.bands.indexes:
        differing.append("bands")
    if differing:
        raise ConfigError(f"{key} was trained with other values of {', '.join(differing)}; give those, or train anew")
    if crops.resolution_m and bundle.resolution and abs(crops.resolution_m / bundle.resolution - 1) > ALIKE:
        raise ConfigError(
            f"{key} was trained at {bundle.resolution:.4g} m per pixel, and these crops have {crops.resolution_m:.4g}; "
            "set data.resolution to that of the first training"
        )
    if crops.photo_width and bundle.photo_width and abs(crops.photo_width / bundle.photo_width - 1) > SAME:
        raise ConfigError(
            f"{key} was trained on photographs {bundle.photo_width} px wide, and these are {crops.photo_width}; set "
            f"data.width_px to {bundle.photo_width}"
        )
