"""Evidence on pixels beside their score: the second class, how far behind it is, and which expert spoke.

It explains a score, and is wanted only where polygons may be: at pixels that score above a floor. On a CPU it is
computed from those pixels alone, a few in a hundred, which costs next to nothing; on a GPU from all of them, since the
kernels of a CUDA graph must not depend on data. Whole numbers below 255 and no floats, so that maps stay small.
Tensors only; how the bands are stored is known in `prediction`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geood.constants import NO_CLASS
from geood.models.bundle import EXPERTS, WHOLE, ModelBundle
from geood.models.segmenter import SegmenterOutput

EVIDENCE = ("runner-up", "margin", "signal")  # bands, in order
MARGIN_STEPS = 254  # value of a margin of 1
_SAME = 1e-3  # nats between two computations of one surprisal: rounding


def evidence_of(
    bundle: ModelBundle,
    answer: SegmenterOutput,
    score: Tensor,
    *,
    floor: float,
    core: tuple[slice, slice] = WHOLE,
) -> Tensor:
    """Return the bands of EVIDENCE (B, 3, h, w), uint8, of the pixels that score above `floor`; 255 elsewhere.

    `runner-up` is the channel of the second most likely class (255 if there is one class only), `margin` the difference
    of the two probabilities in MARGIN_STEPS, and `signal` the index in EXPERTS of the one whose surprisal is the score
    `combined`; 255 for other scores and for smoothed ones, which are no pixel's own.

    Args:
        bundle: the bundle that gave the score.
        answer: its output for the images.
        score: the score of its config (B, h, w).
        floor: lowest score of interest.
        core: rows and columns of the images that the score covers.
    """
    logits = answer.logits[:, :, core[0], core[1]]
    outlier = None if answer.outlier is None else answer.outlier[:, core[0], core[1]]
    bands = torch.full((len(EVIDENCE), *score.shape), NO_CLASS, dtype=torch.uint8, device=score.device)
    if score.device.type == "cpu":
        chosen = score > floor
        if chosen.any():
            flat = logits.movedim(1, 0)[:, chosen]  # (K, N)
            one = None if outlier is None else outlier[chosen][None, None]
            bands[:, chosen] = _bands(bundle, flat[None, :, None], one, score[chosen][None, None])[:, 0, 0]
    else:
        bands = torch.where(score > floor, _bands(bundle, logits, outlier, score), bands)
    return bands.movedim(0, 1)


def _bands(bundle: ModelBundle, logits: Tensor, outlier: Tensor | None, score: Tensor) -> Tensor:
    """Return the bands (3, B, h, w) of pixels with these logits (B, K, h, w), outlier logits and scores (B, h, w)."""
    none = torch.full(score.shape, NO_CLASS, dtype=torch.uint8, device=score.device)
    runner, margin = none, none
    if logits.shape[1] > 1:
        share = logits.float().softmax(1)
        best, taken = share.max(1, keepdim=True)
        second, index = share.scatter(1, taken, -1).max(1)
        runner, margin = index.to(torch.uint8), ((best[:, 0] - second) * MARGIN_STEPS).round().to(torch.uint8)
    settings = bundle.config.score
    if settings.kind != "combined" or settings.smooth_px:
        return torch.stack([runner, margin, none])
    assert bundle.inliers is not None
    first = EXPERTS[0]
    plain = bundle.with_score(bundle.calibrated.model_copy(update={"smooth_px": 0}))
    answer = SegmenterOutput(logits, outlier, logits, logits)
    surprisal = bundle.inliers.surprisal(first, plain.score_of(answer, logits, kind=first))
    return torch.stack([runner, margin, (surprisal < score - _SAME).to(torch.uint8)])
