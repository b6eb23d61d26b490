"""Inlier statistics and score thresholds of trained networks, which complete a bundle.

Statistics come from training crops, thresholds from inlier pixels of the validation crops. No weights change here.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch.utils.data import DataLoader

from geood.config import FALSE_POSITIVE_RATES
from geood.constants import IGNORE, INLIER
from geood.datasets import Crops
from geood.metrics import PixelCurve
from geood.models import Flow, InlierFit, Inliers, ModelBundle, Segmenter

FIT_CROPS = 256  # training crops that inlier statistics are computed from


def finish_bundle(segmenter: Segmenter, flow: Flow | None, crops: Crops, figures: dict[str, float]) -> ModelBundle:
    """Return the bundle with the inlier statistics that its scores need, and their thresholds on validation crops."""
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
        photo_width=crops.photo_width,
    ).to("cuda" if on_gpu else "cpu")
    bundle = dataclasses.replace(bundle, inliers=_fitted(bundle, crops))
    return _calibrated(bundle, crops).to("cpu")


def _fitted(bundle: ModelBundle, crops: Crops) -> Inliers:
    """Compute statistics of the network's outputs on training crops."""
    config, bank = crops.config, crops.config.score.feature_bank
    each = -(-bank * config.train.batch // FIT_CROPS)
    fit = InlierFit(len(crops.class_ids), samples=bank, each=each, seed=config.train.seed)
    samples = crops.training(config.train.seed, FIT_CROPS)
    for batch in DataLoader(samples, batch_size=config.train.batch):
        output = bundle.infer(batch["image"].to(bundle.device))
        fit.update(output.logits, output.features, batch["mask"].to(bundle.device))
    return fit.finish().to(bundle.device)


def _calibrated(bundle: ModelBundle, crops: Crops) -> ModelBundle:
    """Return the bundle with the thresholds of all its scores on inlier pixels of the validation crops."""
    curves = {kind: PixelCurve() for kind in bundle.scores}
    for batch in DataLoader(crops.validation(), batch_size=bundle.config.train.batch):
        image, valid = batch["image"].to(bundle.device), batch["valid"].to(bundle.device)
        truth = np.where(batch["mask"].numpy() == IGNORE, IGNORE, INLIER).astype(np.uint8)
        output = bundle.infer(image)
        for kind, curve in curves.items():
            curve.update(bundle.score_of(output, image, valid, kind=kind).float().cpu().numpy(), truth)
    calibration = {
        kind: {str(rate): float(curve.fpr_threshold(rate)) for rate in FALSE_POSITIVE_RATES}
        for kind, curve in curves.items()
    }
    return dataclasses.replace(bundle, calibration=calibration)
