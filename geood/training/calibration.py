"""From trained networks to a bundle: inlier statistics and thresholds on validation crops."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch.utils.data import DataLoader

from geood.config.sections import FALSE_POSITIVE_RATES
from geood.constants import IGNORE, INLIER
from geood.datasets.crops import Crops
from geood.metrics.pixels import PixelCurve
from geood.models.bundle import ModelBundle
from geood.models.flow import Flow
from geood.models.inlier_statistics import InlierFit, Inliers
from geood.models.segmenter import Segmenter

FIT_CROPS = 256  # training crops that statistics of inliers are made from


def finish_bundle(segmenter: Segmenter, flow: Flow | None, crops: Crops, figures: dict[str, float]) -> ModelBundle:
    """The bundle, with what its scores need to know of inliers and the thresholds they have on the validation side."""
    config = crops.config
    on_gpu = config.train.accelerator != "cpu" and torch.cuda.is_available()
    bundle = ModelBundle(
        segmenter=segmenter.eval(),
        flow=None if flow is None else flow.eval(),
        inliers=None,
        bands=crops.bands,
        config=config,
        class_ids=crops.class_ids,
        resolution=crops.resolution_m,
        calibration={},
        calibrated=config.score,
        metrics=figures,
    ).to("cuda" if on_gpu else "cpu")
    bundle = dataclasses.replace(bundle, inliers=_fitted(bundle, crops))
    return _calibrated(bundle, crops).to("cpu")


def _fitted(bundle: ModelBundle, crops: Crops) -> Inliers:
    """Statistics of the answers to training crops."""
    config, bank = crops.config, crops.config.score.feature_bank
    each = -(-bank * config.train.batch // FIT_CROPS)
    fit = InlierFit(len(crops.class_ids), samples=bank, each=each, seed=config.train.seed)
    samples = crops.training(config.train.seed, FIT_CROPS)
    for batch in DataLoader(samples, batch_size=config.train.batch):
        answer = bundle.infer(batch["image"].to(bundle.device))
        fit.update(answer.logits, answer.features, batch["mask"].to(bundle.device))
    return fit.finish().to(bundle.device)


def _calibrated(bundle: ModelBundle, crops: Crops) -> ModelBundle:
    """The bundle with the thresholds of all its scores on inlier pixels of the validation side."""
    curves = {kind: PixelCurve() for kind in bundle.scores}
    for batch in DataLoader(crops.validation(), batch_size=bundle.config.train.batch):
        image, valid = batch["image"].to(bundle.device), batch["valid"].to(bundle.device)
        truth = np.where(batch["mask"].numpy() == IGNORE, IGNORE, INLIER).astype(np.uint8)
        answer = bundle.infer(image)
        for kind, curve in curves.items():
            curve.update(bundle.score_of(answer, image, valid, kind=kind).float().cpu().numpy(), truth)
    calibration = {
        kind: {str(rate): float(curve.fpr_threshold(rate)) for rate in FALSE_POSITIVE_RATES}
        for kind, curve in curves.items()
    }
    return dataclasses.replace(bundle, calibration=calibration)
