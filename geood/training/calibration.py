"""Inlier statistics, offsets and score thresholds of trained networks, which complete a bundle.

Statistics come from training crops; offsets, tails and thresholds from the inlier pixels of the validation ground, read
in the tiles of `predict` (`calibration`). How far the
outlier head is to be trusted (the offset of score hybrid) is not read from negatives: those are known to be unlike
anomalies, and rank neither scores nor weights. No weights change here.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from geood.calibration import LEAST_BLOCKS, GroundSample, measure_ground, sample_ground
from geood.config import VETO_SHARES, why_not
from geood.datasets import Crops
from geood.errors import TrainingError, counted
from geood.metrics import PixelCurve
from geood.models import Flow, InlierFit, Inliers, ModelBundle, Segmenter, outlier_score, with_tails
from geood.training.halo import with_reach

log = logging.getLogger("geood")
FIT_CROPS = 256  # training crops that inlier statistics are computed from


def finish_bundle(
    segmenter: Segmenter, flow: Flow | None, crops: Crops, figures: dict[str, float], *, kept: Inliers | None
) -> ModelBundle:
    """Return the bundle with the inlier statistics that its scores need, and their thresholds on validation ground.

    The encoder's bank is that of `kept`, unless it is None, with reviewed places.

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
    bundle = dataclasses.replace(bundle, inliers=_fitted(bundle, crops, kept))
    if config.segmenter.outlier == "head":
        ground = sample_ground(bundle.with_score(config.score.bare), crops)
        bundle = dataclasses.replace(bundle, offsets=_offsets(bundle, ground))
        bundle = dataclasses.replace(bundle, inliers=_with_tails(bundle, ground))
    if config.score.kind == "combined" and "combined" not in bundle.scores:
        log.warning("too few labelled places for score combined; the model's score is hybrid")
        bundle = bundle.with_score(config.score.model_copy(update={"kind": "hybrid"}))
        bundle = dataclasses.replace(bundle, calibrated=bundle.config.score)
    elif why := why_not(config.score.kind, bundle.scores, config.segmenter.outlier):
        raise TrainingError(f"the networks are trained, but their score cannot be computed: {why}")
    return calibrated(with_reach(bundle, crops), crops).to("cpu")


def _fitted(bundle: ModelBundle, crops: Crops, kept: Inliers | None) -> Inliers:
    """Compute statistics of the network's outputs on training crops; a kept bank is that of the model before."""
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
        fit.update(output, batch["mask"].to(bundle.device), reviewed=batch["reviewed"].to(bundle.device))
    if config.score.false_alarm_nats and config.score.encoder_bank:
        for image, false in crops.false_alarms():
            fit.add_false_alarms(bundle.infer(image.to(bundle.device)), false)
    return fit.finish(kept).to(bundle.device)


def _offsets(bundle: ModelBundle, ground: GroundSample | None) -> dict[str, float]:
    """Return the offsets at which the outlier logit is above 0 on given shares of the inlier validation pixels."""
    if ground is None:
        log.warning("no inlier pixel in the validation ground, so score hybrid has no offset: 0 is taken")
        return {}
    curve = _curve(ground.outlier)
    found = {str(share): -float(curve.fpr_threshold(share)) for share in VETO_SHARES}
    if bundle.config.score.veto_share is not None:
        share = bundle.config.score.veto_share
        log.info("outlier head: %g %% of inliers are above 0 with an offset of %.3f", 100 * share, found[str(share)])
    return found


def _with_tails(bundle: ModelBundle, ground: GroundSample | None) -> Inliers | None:
    """Return the bundle's inlier statistics with the tails of the experts; unchanged if there is no inlier pixel."""
    inliers = bundle.inliers
    if inliers is None or "encoder bank" not in inliers.serves:
        return inliers
    if ground is None or not ground.of_bank:
        log.warning("no inlier pixel in the validation ground, so there is no score combined")
        return inliers
    hybrid = outlier_score(ground.logits, ground.outlier, "hybrid", offset=bundle.offset)
    scores = {"hybrid": hybrid} | ground.of_bank
    return with_tails(inliers, lambda kind: _curve(scores[kind]).fpr_threshold).to(bundle.device)


def _curve(score: Tensor) -> PixelCurve:
    """Count scores of inlier pixels."""
    curve, values = PixelCurve(), score.float().cpu().numpy().reshape(-1)
    curve.update(values, np.zeros(values.shape, np.uint8))
    return curve


def calibrated(bundle: ModelBundle, crops: Crops) -> ModelBundle:
    """Return the bundle with the thresholds of all its scores on inlier validation ground, and the record of it."""
    calibration, record = measure_ground(bundle, crops)
    if record is None:
        log.warning(
            "no inlier pixel in the validation ground, so the model has no threshold and promises nothing: predict "
            "will need --threshold; widen data.validation or the labels, and train again"
        )
    elif record.blocks < LEAST_BLOCKS:
        log.warning(
            "%s of validation ground, too few to tell how far its rates hold elsewhere (%d are needed): make "
            "data.block_m smaller, or data.validation larger",
            counted(record.blocks, "block"),
            LEAST_BLOCKS,
        )
    return dataclasses.replace(bundle, calibration=calibration, record=record)
