"""Inlier statistics, offsets and score thresholds of trained networks, which complete a bundle.

Statistics come from training crops, offsets and thresholds from inlier pixels of the validation crops. How far the
outlier head is to be trusted (the offset of score hybrid) is not read from negatives: those are known to be unlike
anomalies, and rank neither scores nor weights. No weights change here.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from geood.config import FALSE_POSITIVE_RATES, VETO_SHARES, why_not
from geood.constants import IGNORE, INLIER
from geood.datasets import Crops
from geood.errors import TrainingError
from geood.metrics import PixelCurve
from geood.models import EXPERTS, Flow, InlierFit, Inliers, ModelBundle, Segmenter, fit_tail
from geood.training.halo import with_reach

log = logging.getLogger("geood")
FIT_CROPS = 256  # training crops that inlier statistics are computed from


def finish_bundle(segmenter: Segmenter, flow: Flow | None, crops: Crops, figures: dict[str, float]) -> ModelBundle:
    """Return the bundle with the inlier statistics that its scores need, and their thresholds on validation crops.

    Raises:
        TrainingError: the labels are too few for the statistics of the config's score.
    """
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
    if config.segmenter.outlier == "head":
        bundle = dataclasses.replace(bundle, offsets=_offsets(bundle, crops))
        bundle = dataclasses.replace(bundle, inliers=_with_tails(bundle, crops))
    if config.score.kind == "combined" and "combined" not in bundle.scores:
        log.warning("too few labelled places for score combined; the model's score is hybrid")
        bundle = bundle.with_score(config.score.model_copy(update={"kind": "hybrid"}))
        bundle = dataclasses.replace(bundle, calibrated=bundle.config.score)
    elif why := why_not(config.score.kind, bundle.scores, config.segmenter.outlier):
        raise TrainingError(f"the networks are trained, but their score cannot be computed: {why}")
    return _calibrated(with_reach(bundle, crops), crops).to("cpu")


def _fitted(bundle: ModelBundle, crops: Crops) -> Inliers:
    """Compute statistics of the network's outputs on training crops."""
    config, bank = crops.config, crops.config.score.feature_bank
    batches = max(1, FIT_CROPS // config.train.batch)
    fit = InlierFit(
        len(crops.class_ids),
        samples=bank,
        places=config.score.encoder_bank,
        batches=batches,
        seed=config.train.seed,
    )
    samples = crops.training(config.train.seed, FIT_CROPS)
    for batch in DataLoader(samples, batch_size=config.train.batch):
        output = bundle.infer(batch["image"].to(bundle.device))
        fit.update(output, batch["mask"].to(bundle.device))
    return fit.finish().to(bundle.device)


def _offsets(bundle: ModelBundle, crops: Crops) -> dict[str, float]:
    """Return the offsets at which the outlier logit is above 0 on given shares of the inlier validation pixels."""
    curve = _curves(_unsmoothed(bundle), crops, ("outlier",))["outlier"]
    offsets = {str(share): -float(curve.fpr_threshold(share)) for share in VETO_SHARES}
    found = {share: offset for share, offset in offsets.items() if math.isfinite(offset)}
    if not found:
        log.warning("no inlier pixel in the validation crops, so score hybrid has no offset: 0 is taken")
    elif bundle.config.score.veto_share is not None:
        share = bundle.config.score.veto_share
        log.info("outlier head: %g %% of inliers are above 0 with an offset of %.3f", 100 * share, found[str(share)])
    return found


def _with_tails(bundle: ModelBundle, crops: Crops) -> Inliers | None:
    """Return the bundle's inlier statistics with the tails of both experts; unchanged if there is no inlier pixel."""
    inliers = bundle.inliers
    if inliers is None or "encoder bank" not in inliers.serves:
        return inliers
    curves = _curves(_unsmoothed(bundle), crops, tuple(EXPERTS))
    if not all(curve.negatives for curve in curves.values()):
        log.warning("no inlier pixel in the validation crops, so there is no score combined")
        return inliers
    tails = {f"tail_{kind}": fit_tail(curve.fpr_threshold) for kind, curve in curves.items()}
    return Inliers(dict(inliers.named_buffers()) | tails).to(bundle.device)


def _unsmoothed(bundle: ModelBundle) -> ModelBundle:
    return bundle.with_score(bundle.config.score.model_copy(update={"smooth_px": 0}))


def _calibrated(bundle: ModelBundle, crops: Crops) -> ModelBundle:
    """Return the bundle with the thresholds of all its scores on inlier pixels of the validation crops."""
    calibration = {
        kind: {str(rate): float(curve.fpr_threshold(rate)) for rate in FALSE_POSITIVE_RATES}
        for kind, curve in _curves(bundle, crops, bundle.scores).items()
    }
    return dataclasses.replace(bundle, calibration=calibration)


def _curves(bundle: ModelBundle, crops: Crops, kinds: Sequence[str]) -> dict[str, PixelCurve]:
    """Count the scores of inlier pixels of the validation crops."""
    curves = {kind: PixelCurve() for kind in kinds}
    for batch in DataLoader(crops.validation(), batch_size=bundle.config.train.batch):
        image, valid = batch["image"].to(bundle.device), batch["valid"].to(bundle.device)
        truth = np.where(batch["mask"].numpy() == IGNORE, IGNORE, INLIER).astype(np.uint8)
        output = bundle.infer(image, kinds)
        for kind, curve in curves.items():
            curve.update(bundle.score_of(output, image, valid, kind=kind).float().cpu().numpy(), truth)
    return curves
