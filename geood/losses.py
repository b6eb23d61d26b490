"""The equation that is trained: class likelihood, uniform answers on synthetic negatives, flow likelihood.

    L = mean over labelled pixels of -ln p_y  +  jsd_weight * mean over pasted pixels of JSD(uniform, p)
        + flow_weight * mean over replaced crops of -log2 q(crop) / dimensions

This is arXiv 2112.12833 (the joint objective), with the flow's term in bits for each dimension of the digital numbers,
so that its size does not depend on patch size or scaling. The first two terms reach the segmenter and, through the
pasted pixels, the flow; the last one reaches the flow only, because crops are cut from data. This room sees tensors
and weights; who steps which network is the training's matter. All sums are taken in float32 or wider, and a term with
nothing to say (no labelled pixel, no pasted patch) is a zero that can still be differentiated.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from geood.config import IGNORE, LossConfig
from geood.flow import bits_per_dimension
from geood.negatives import PastedBatch
from geood.scores import jensen_shannon_to_uniform


class Losses(NamedTuple):
    """Scalars: the weighted sum, and its terms without weights (nats, nats, bits per dimension)."""

    total: Tensor
    classification: Tensor
    jsd: Tensor
    flow: Tensor


def joint_loss(
    logits: Tensor, batch: PastedBatch, log_prob: Tensor | None, *, config: LossConfig, step: Tensor
) -> Losses:
    """The objective of the joint stage.

    Args:
        logits: (B, K, H, W), the segmenter's answer to `batch.image`.
        batch: crops with patches in them.
        log_prob: (N,) the flow's log-density of the dequantized `batch.crops`, in nats; None if there are no crops.
        config: weights of the terms.
        step: (C,) one digital number in scaled units, 0 for float bands.
    """
    classification = class_nll(logits, batch.mask)
    jsd = jsd_to_uniform_on(logits, batch.negative)
    if log_prob is None or log_prob.numel() == 0:
        flow = classification.new_zeros(())
    else:
        flow = bits_per_dimension(log_prob, math.prod(batch.crops.shape[1:]), step).mean()
    total = classification + config.jsd_weight * jsd + config.flow_weight * flow
    return Losses(total, classification, jsd, flow)


def class_nll(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean of -ln p_y over pixels whose `mask` (B, H, W) is not 255, in nats; 0 where all are.

    `logits` are (B, K, H, W); the mask holds class indexes 0 to K - 1.
    """
    labelled = (mask != IGNORE).sum().clamp_min(1)
    return functional.cross_entropy(logits.float(), mask, ignore_index=IGNORE, reduction="sum") / labelled


def jsd_to_uniform_on(logits: Tensor, negative: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence to uniform over the pixels where `negative` (B, H, W) holds, in nats.

    0 where none does; score_max(K) is its largest value and means that the segmenter is sure of its negatives.
    """
    pasted = logits.movedim(1, -1)[negative]
    return jensen_shannon_to_uniform(pasted, dim=1).sum() / max(1, pasted.shape[0])
