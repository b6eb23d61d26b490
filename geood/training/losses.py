"""Joint training objective: class likelihood, uniform output on synthetic negatives, flow likelihood.

    L = mean over labelled pixels of -ln p_y  +  negative_weight * mean over pasted pixels of JSD(uniform, p)
        + flow_weight * mean over replaced crops of -log2 q(crop) / dimensions  +  outlier_weight * L_outlier

The first three terms are arXiv 2112.12833 (the joint objective), with the flow's term in bits for each dimension of
the digital numbers, so that its size does not depend on patch size or scaling. KL divergences may replace the
Jensen-Shannon divergence for comparison: they are unbounded, and push hardest where the segmenter is most confident.
L_outlier teaches the segmenter's outlier output, where it has one, on the same negatives. For a class it is the
likelihood of it on pasted pixels (after arXiv 2402.15374), while the class term then is over all classes and that one.
For a head it is a cost on pasted and one on labelled pixels, not at an outline, one half each, of its logit o:

    balanced    softplus(-o) and softplus(o), the binary cross-entropy (after arXiv 2207.02606)
    ratio       the same of o - max_k f_k, f the class logits: trains the score `ratio` (Nazir et al., IJCV 2025)
    evidential  2 softplus(z) - sigmoid(z), z = -o and o: that cross-entropy, and the divergence of misleading evidence
                from none (arXiv 2508.00587, with Dirichlet parameters 1 + e^o and 1 + e^-o, so of one logit)

This module computes terms from tensors; `stage` decides which network a term trains. Sums are taken in float32 or
wider, and an empty term (no labelled pixel, no pasted patch) is a zero that can still be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from geood.config import LossConfig
from geood.constants import IGNORE, UNSTATED
from geood.models import SegmenterOutput, jensen_shannon_to_uniform
from geood.training.pasting import PastedBatch

RIM = 2  # pixels on either side of the outline of a negative, from which the outlier head does not learn


class Losses(NamedTuple):
    """Scalar losses: the weighted sum, and its terms without weights (nats, nats, bits per dimension, nats)."""

    total: Tensor
    classification: Tensor
    negative: Tensor
    flow: Tensor
    outlier: Tensor


def joint_loss(
    answer: SegmenterOutput, batch: PastedBatch, bits: Tensor | None, *, kind: str, config: LossConfig
) -> Losses:
    """Compute the objective of the joint stage.

    Args:
        answer: output of the segmenter for `batch.image`.
        batch: crops with patches pasted in.
        bits: (N,) bits per dimension of the dequantized `batch.crops` under the flow; None if there are no crops, or
            the flow is frozen.
        kind: type of the outlier output, as `segmenter.outlier`: none, head or class.
        config: the terms and their weights.
    """
    logits = answer.logits
    classification = class_nll(_with_outlier(answer) if kind == "class" else logits, batch.mask)
    negative = divergence_on(logits, batch.negative, config.negative)
    nothing = classification.new_zeros(())
    flow = bits.mean() if bits is not None and bits.numel() else nothing
    outlier = nothing
    if kind == "head":
        outlier = _head_loss(answer, batch, config.outlier, by_crop=config.inliers_by_crop)
    elif kind == "class":
        outlier = _class_loss(answer, batch)
    total = classification + config.negative_weight * negative
    total = total + config.flow_weight * flow + config.outlier_weight * outlier
    return Losses(total, classification, negative, flow, outlier)


def class_nll(logits: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean of -ln p_y over pixels whose `mask` (B, H, W) is a class, in nats; 0 if there is none.

    `logits` are (B, K, H, W); the mask is int64 and holds class indexes 0 to K - 1, 255 where nothing is known, and 254
    for inliers of no stated class, of which only the outlier head learns.
    """
    mask = mask.where(mask != UNSTATED, IGNORE)
    labelled = (mask != IGNORE).sum().clamp_min(1)
    return functional.cross_entropy(logits.float(), mask, ignore_index=IGNORE, reduction="sum") / labelled


def divergence_on(logits: Tensor, negative: Tensor, kind: str = "jsd") -> Tensor:
    """Compute the mean divergence between uniform and softmax over `negative` (B, H, W) bool pixels, in nats.

    `logits` are (B, K, H, W). `kind` is jsd, kl_uniform (KL of uniform from the softmax) or kl_softmax (the reverse). 0
    if no pixel is negative; the Jensen-Shannon divergence is at most score_max(K), where the segmenter is certain.

    Raises:
        ValueError: `kind` is none of these.
    """
    if kind not in DIVERGENCES:
        raise ValueError(f"unknown divergence {kind!r}; choose one of {', '.join(DIVERGENCES)}")
    pasted = logits.movedim(1, -1)[negative]
    return DIVERGENCES[kind](pasted).sum() / max(1, pasted.shape[0])


def _kl_uniform(logits: Tensor) -> Tensor:
    """Compute KL(uniform || softmax) of logits (N, K), (N,)."""
    return -logits.float().log_softmax(1).mean(1) - math.log(logits.shape[1])


def _kl_softmax(logits: Tensor) -> Tensor:
    """Compute KL(softmax || uniform) of logits (N, K), (N,)."""
    log_p = logits.float().log_softmax(1)
    return (log_p.exp() * log_p).sum(1) + math.log(logits.shape[1])


DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {  # by `loss.negative`; of logits (N, K) to (N,), in nats
    "jsd": lambda logits: jensen_shannon_to_uniform(logits, dim=1),
    "kl_uniform": _kl_uniform,
    "kl_softmax": _kl_softmax,
}


def _head_loss(answer: SegmenterOutput, batch: PastedBatch, kind: str, *, by_crop: bool = False) -> Tensor:
    """Compute the cost of the outlier head's logit, one half on negative and one on labelled pixels.

    With `by_crop` the second half is the mean over the crops that have labelled pixels of the mean over these: a false
    alarm of some pixels then counts as much as a crop that is labelled throughout.

    Pixels within `RIM` of a patch's outline are left out: the head sees features of every fourth pixel, which mix both
    sides, and learning to follow an outline means learning what no anomaly has. Where that leaves nothing of an image's
    negatives, all of them count.
    """
    assert answer.outlier is not None
    logit = answer.outlier.float()
    if kind == "ratio":
        logit = logit - answer.logits.float().amax(1)
    cost = HEAD_COSTS[kind]
    outline = _grown(batch.covered) & _grown(~batch.covered)
    inside = batch.negative & ~outline
    inside = torch.where(inside.any(2, keepdim=True).any(1, keepdim=True), inside, batch.negative)
    known = (batch.mask != IGNORE) & ~outline
    inliers = _mean_by_crop(cost(logit), known) if by_crop else _mean(cost(logit), known)
    return 0.5 * (_mean(cost(-logit), inside) + inliers)


def _grown(where: Tensor) -> Tensor:
    """Return the pixels (B, H, W) within `RIM` of one where the condition holds."""
    near = functional.max_pool2d(where.float()[:, None], 2 * RIM + 1, stride=1, padding=RIM)
    return near[:, 0] > 0


# By `loss.outlier`: the cost of an inlier's logit, that of an outlier being the cost of its negative.
HEAD_COSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "balanced": functional.softplus,
    "ratio": functional.softplus,
    "evidential": lambda logit: 2 * functional.softplus(logit) - logit.sigmoid(),
}


def _class_loss(answer: SegmenterOutput, batch: PastedBatch) -> Tensor:
    """Compute the mean of -ln p of the outlier class over negative pixels."""
    logits = _with_outlier(answer).float()
    return _mean(logits.logsumexp(1) - logits[:, -1], batch.negative)


def _with_outlier(answer: SegmenterOutput) -> Tensor:
    assert answer.outlier is not None
    return torch.cat([answer.logits, answer.outlier[:, None]], dim=1)


def _mean_by_crop(values: Tensor, where: Tensor) -> Tensor:
    """Average over crops the average of their values (B, H, W) where a condition holds; 0 if it holds nowhere."""
    counts = where.flatten(1).sum(1)
    means = (values * where).flatten(1).sum(1) / counts.clamp_min(1)
    return means.sum() / (counts > 0).sum().clamp_min(1)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Average the values (B, H, W) where a condition holds; 0 if it holds nowhere."""
    return values[where].sum() / where.sum().clamp_min(1)
