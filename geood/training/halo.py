"""Halo of a trained network, measured on wide views of the ground that it was validated on.

The networks and what their score needs are complete by then; thresholds are not, since they are to be read from tiles
with this halo. How it is measured and chosen is in `models.reach`; here are the views that it is measured on, and what
is said about it. No labels are used.
"""

from __future__ import annotations

import dataclasses
import logging
import math

from torch import Tensor

from geood.config import OF_ENCODER, SCORES
from geood.datasets import Crops
from geood.models import LOST, ModelBundle, Seam, effort_for, has_global_gates, measured_reach, outputs_of

log = logging.getLogger("geood")
REMEDY = (
    "its squeeze-excitation weighs channels by all of a tile, and a model trained with segmenter.gates: local has no "
    "such seams"
)


def with_reach(bundle: ModelBundle, crops: Crops) -> ModelBundle:
    """Return a bundle that knows how far its network looks, and the halo that it needs.

    Raises:
        DataError: a file cannot be read.
    """
    segmenter, seed, score = bundle.segmenter, bundle.config.train.seed, bundle.config.score
    needs = SCORES[score.kind].needs
    network = outputs_of(
        segmenter, outlier=needs in ("head", "class", "experts"), encoder=needs in (*OF_ENCODER, "experts")
    )
    raw = bundle.with_score(score.bare)  # what the score itself looks around a pixel is added to the halo

    def scores(image: Tensor) -> Tensor:
        return raw.score(image)

    def tile_px(halo_px: int) -> int:
        predict = bundle.config.predict.model_copy(update={"halo_px": halo_px})
        config = bundle.config.model_copy(update={"predict": predict})
        return dataclasses.replace(bundle, config=config).tile_px

    def views(height: int, width: int, number: int) -> list[Tensor]:
        return [view.to(bundle.device) for view in crops.views(height, width, number=number, seed=seed)]

    reach = measured_reach(network, scores, views, effort=effort_for(segmenter), tile_px=tile_px)
    lost, step, changed = reach.lost(reach.halo_px), reach.seam or math.nan, reach.changed or 0.0
    log.info(
        "the network needs a halo of %d px: %.3g %% of what a pixel depends on lies beyond, scores step %.3g times as "
        "far at seams as elsewhere, and %.3g %% of the most anomalous pixels change side",
        reach.halo_px,
        100 * lost,
        step,
        100 * changed,
    )
    if reach.seam is not None and not Seam(reach.seam, changed).smooth:
        remedy = "look at a first map" if not has_global_gates(segmenter) else REMEDY
        log.warning("tiles may show as seams in maps of this network, even with that halo: %s", remedy)
    if lost > LOST:
        log.info("no halo holds all of it: such networks see the whole of what they are shown")
    measured = dataclasses.replace(bundle, reach=reach)
    measured.warn_of_narrow_halo()
    return measured
