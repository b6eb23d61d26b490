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
from geood.models.bundle import ModelBundle
from geood.models.region import WHOLE, Region
from geood.models.score_maps import EXPERTS
from geood.models.segmenter import SegmenterOutput

EVIDENCE = ("runner-up", "margin", "signal")  # bands, in order
MARGIN_STEPS = 254  # value of a margin of 1
SIGNALS = ("hybrid", "encoder_knn")  # what score combined comes from: the second with all that the encoder's bank says


def class_bands(
    bundle: ModelBundle,
    answer: SegmenterOutput,
    score: Tensor,
    *,
    floor: float,
    core: Region = WHOLE,
) -> Tensor:
    """Return the channel of the most likely class and the bands of EVIDENCE (B, h, w, 4), uint8.

    Evidence is that on the pixels that score above `floor`, 255 elsewhere: `runner-up` is the channel of the second
    most likely class (255 if there is one class only), `margin` the difference of the two probabilities in
    MARGIN_STEPS, and `signal` the index in SIGNALS of what most of the score `combined` comes from; 255 for other
    scores. Where that is smoothed, its surroundings have a say; where it is lowered near false alarms, half of
    what is left decides.

    Args:
        bundle: the bundle that gave the score.
        answer: its output for the images.
        score: the score of its config (B, h, w).
        floor: lowest score of interest.
        core: rows and columns of the images that the score covers.
    """
    logits = answer.logits[:, :, core[0], core[1]]
    outlier = None if answer.outlier is None else answer.outlier[:, core[0], core[1]]
    bands = torch.full((*score.shape, 1 + len(EVIDENCE)), NO_CLASS, dtype=torch.uint8, device=score.device)
    bands[..., 0] = logits.argmax(1)
    if score.device.type != "cpu":
        bands[..., 1:] = torch.where((score > floor)[..., None], _bands(bundle, logits, outlier, score), bands[..., 1:])
        return bands
    for i, one in enumerate(score):
        row, col = (one > floor).nonzero(as_tuple=True)
        if len(row):  # as an image of one row
            own = None if outlier is None else outlier[i, row, col][None, None]
            found = _bands(bundle, logits[i][:, row, col][None, :, None], own, one[row, col][None, None])
            bands[i, row, col, 1:] = found[0, 0]
    return bands


def _bands(bundle: ModelBundle, logits: Tensor, outlier: Tensor | None, score: Tensor) -> Tensor:
    """Return the bands (B, h, w, 3) of pixels with these logits (B, K, h, w), outlier logits and scores (B, h, w)."""
    none = torch.full(score.shape, NO_CLASS, dtype=torch.uint8, device=score.device)
    runner, margin = none, none
    if logits.shape[1] > 1:
        share = logits.float().softmax(1)
        best, taken = share.max(1, keepdim=True)
        second, index = share.scatter(1, taken, -1).max(1)
        runner, margin = index.to(torch.uint8), ((best[:, 0] - second) * MARGIN_STEPS).round().to(torch.uint8)
    settings = bundle.config.score
    if settings.kind != "combined":
        return torch.stack([runner, margin, none], dim=-1)
    assert bundle.inliers is not None
    first, weight = SIGNALS[0], EXPERTS[SIGNALS[0]]
    plain = bundle.with_score(bundle.calibrated.bare)
    answer = SegmenterOutput(logits, outlier, logits, logits, logits)
    part = weight * bundle.inliers.surprisal(first, plain.score_of(answer, logits, kind=first))
    return torch.stack([runner, margin, (part < score / 2).to(torch.uint8)], dim=-1)
