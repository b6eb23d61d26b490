"""Checks of a config that need no data: devices, sense of score and stages, encoder and weights, earlier runs.

They are the first thing that a training does. A misspelt encoder, or weights that nobody can fetch, are found in
seconds and not after thousands of crops were read. Images and labels are not looked at here.
"""

from __future__ import annotations

from pathlib import Path

import torch

from geood.config import OF_ENCODER, Config, scores_from, why_not
from geood.errors import ConfigError, DataError
from geood.models import check_encoder
from geood.training.tuning import keeps_head


def check_first(config: Config) -> int:
    """Check what can be checked of a config without reading its data; return the number of the encoder's parameters.

    ImageNet weights that are not on this machine are fetched.

    Raises:
        ConfigError: devices, encoder, weights or an earlier run are not there, or sections contradict each other.
        DataError: the folder of photographs for negatives is not there.
    """
    check_devices(config)
    check_sense(config)
    for key in ("stages_from", "tune_from"):
        source = getattr(config.train, key)
        if source and not Path(source).exists():
            raise ConfigError(f"train.{key}: {source} does not exist; name a run that `geood train` made")
    folder = config.negatives.folder
    if folder is not None and not Path(config.data.root, folder).is_dir():
        raise DataError(f"negatives.folder: {Path(config.data.root, folder)} is no folder; name one of photographs")
    indexes = config.bands.indexes
    return check_encoder(config.segmenter, len(indexes) if indexes else None)


def check_devices(config: Config) -> None:
    """Check that the devices asked for exist.

    Raises:
        ConfigError: they do not.
    """
    train, found = config.train, torch.cuda.device_count()
    if train.accelerator == "gpu" and not found:
        raise ConfigError("train.accelerator is gpu, but torch sees no GPU here; set it to auto or cpu")
    if uses_gpu(config) and train.devices > found:
        raise ConfigError(
            f"train.devices is {train.devices}, but there are {found} GPUs here; set it to {found} or less"
        )


def uses_gpu(config: Config) -> bool:
    """Return whether a config is trained on a GPU on this machine."""
    accelerator = config.train.accelerator
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.device_count() > 0)


def check_sense(config: Config) -> None:
    """Check that the config can compute the score that it asks for, and that its outlier output will be trained.

    Raises:
        ConfigError: it cannot, or nothing would train the output.
    """
    outlier, score = config.segmenter.outlier, config.score
    needs = {
        "feature bank": score.feature_bank,
        **dict.fromkeys(OF_ENCODER, score.encoder_bank),
        "experts": score.encoder_bank and outlier == "head",
    }
    given = scores_from("logits", "class statistics", *(need for need, met in needs.items() if met), outlier)
    if why := why_not(config.score.kind, given, outlier):
        raise ConfigError(why)
    third = config.train.third_stage
    steps = config.train.head_steps if third == "head" else config.train.joint_steps
    if third == "head" and outlier != "head" and steps:
        raise ConfigError(
            f"train.third_stage head trains the outlier head, and segmenter.outlier is {outlier}; set that to head, or "
            "train.third_stage to joint, or train.head_steps to 0 for the classes alone"
        )
    trained = config.negatives.sources and steps and config.loss.outlier_weight
    if outlier != "none" and not trained and not keeps_head(config):
        raise ConfigError(
            f"segmenter.outlier {outlier} learns from negatives in the third stage, and there are none, or they weigh "
            f"nothing; give negatives.source, train.{third}_steps and loss.outlier_weight, set segmenter.outlier to "
            "none, or go on with a model (geood train --from), whose head is kept with train.head_steps 0"
        )
