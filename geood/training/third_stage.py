"""Losses and figures of a step of the third stage, on crops with negatives pasted in.

`joint`: the segmenter's terms share one forward pass and train all of it. Where only the negatives' term is to train
the flow, its gradient at the pasted pixels is computed by itself (one more backward pass as far as the image) and
passed on to the flow alone. `head`: the segmenter gives features and class logits and stays as it is, so what it knows
of the classes, and its order of pixels, cannot be damaged by negatives that are not quite like anomalies; the outlier
head learns from its features. A flow that learns is moved as in `joint`, through the frozen segmenter. Nothing is known
of crops, stages' order or optimizers here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geood.config import Config, LossConfig
from geood.constants import IGNORE
from geood.models import Segmenter, SegmenterOutput, anomaly_score
from geood.training.losses import Losses, joint_loss
from geood.training.pasting import PastedBatch

PULL = 2.0**16  # scale of the gradient passed to the flow, so that it does not underflow in half precision


def joint_figures(segmenter: Segmenter, pasted: PastedBatch, bits: Tensor | None, config: Config) -> dict[str, Tensor]:
    """Compute loss and figures of a joint step.

    Args:
        segmenter: the network, which learns.
        pasted: crops with patches; its image carries the flow's graph where negatives are to train the flow.
        bits: (N,) bits per dimension of the replaced crops under the flow; None if it does not learn from them.
        config: kind of the outlier output, terms and weights.

    Returns:
        Scalars by name, `loss` the one to be differentiated.
    """
    settings = config.loss
    all_terms = settings.class_to_flow and settings.negative_to_flow and segmenter.outlier == "none"
    apart = pasted.image.requires_grad and not all_terms
    seen = pasted._replace(image=pasted.image.detach().requires_grad_()) if apart else pasted
    answer = segmenter(seen.image)
    losses = joint_loss(answer, seen, bits, kind=segmenter.outlier, config=settings)
    total = losses.total
    if apart:
        total = total + _pull(losses, seen.image, pasted.image, settings)
    gap = _gap(anomaly_score(answer.logits.detach(), "jsd"), pasted)
    return {"loss": total} | _figures(losses, bits, outlier=answer.outlier is not None) | gap


def head_figures(segmenter: Segmenter, pasted: PastedBatch, bits: Tensor | None, config: Config) -> dict[str, Tensor]:
    """Compute loss and figures of a step of the outlier head beside a frozen segmenter; see `joint_figures`.

    Class and divergence terms are figures only, unless they train the flow.
    """
    settings, moved = config.loss, pasted.image.requires_grad
    seen = pasted._replace(image=pasted.image.detach().requires_grad_(moved))
    with torch.set_grad_enabled(moved):
        maps = segmenter.maps(seen.image)
        logits = segmenter.class_logits(maps)
    outlier = segmenter.outlier_logit(maps.detach())
    answer = SegmenterOutput.of(maps, logits, outlier)
    losses = joint_loss(answer, seen, bits, kind="head", config=settings)
    total = settings.outlier_weight * losses.outlier + settings.flow_weight * losses.flow
    if moved:
        total = total + _pull(losses, seen.image, pasted.image, settings)
    return {"loss": total} | _figures(losses, bits, outlier=True) | _gap(outlier.detach(), pasted)


def telling(segmenter: Segmenter, image: Tensor) -> Tensor:
    """Return how much each pixel of images (B, C, H, W) tells of its class: the largest logits' gradient (B, H, W).

    Its absolute value, summed over bands; the segmenter's mode is left as it is, and its norms' statistics too.
    """
    modes = [(module, module.training) for module in segmenter.modules()]
    segmenter.eval()
    with torch.enable_grad():
        seen = image.detach().requires_grad_()
        sure = segmenter(seen, False).logits.amax(1).sum()
        [slope] = torch.autograd.grad(sure, seen)
    for module, mode in modes:
        module.training = mode
    return slope.abs().sum(1)


def _figures(losses: Losses, bits: Tensor | None, *, outlier: bool) -> dict[str, Tensor]:
    figures = {"class": losses.classification, "negative": losses.negative}
    figures |= {"bpd": losses.flow} if bits is not None else {}
    return figures | ({"outlier": losses.outlier} if outlier else {})


def _pull(losses: Losses, seen: Tensor, pasted: Tensor, settings: LossConfig) -> Tensor:
    """Return a zero whose gradient in the flow is that of the terms that train it, through the pasted pixels.

    `seen` is the segmenter's input, detached from the graph that `pasted` still belongs to.
    """
    moving = losses.negative * (settings.negative_to_flow * settings.negative_weight)
    moving = moving + losses.classification * float(settings.class_to_flow)
    [pull] = torch.autograd.grad(PULL * moving, seen, retain_graph=True)
    along = (pasted * (pull / PULL)).sum()
    return along - along.detach()


@torch.no_grad()
def _gap(score: Tensor, pasted: PastedBatch) -> dict[str, Tensor]:
    """Return the mean score of negatives minus that of labelled pixels, which the third stage is to widen."""
    inlier = pasted.mask != IGNORE
    if not pasted.negative.any() or not inlier.any():
        return {}
    return {"gap": score[pasted.negative].mean() - score[inlier].mean()}
