"""Tail probabilities of scores on inliers: scores of different units made comparable, so that they can be added.

The surprisal of a score is -ln of the share of inliers that reach it. Experts are joined by the weighted sum of
their surprisals, the logarithm of a weighted product of tail probabilities (Good 1955). In a table of knots, a score's
surprisal is linear between them; beyond the last it grows as it does along the tail, that is, tails are taken for
exponential. Tensors only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEP = 0.1  # between two knots, in nats
LAST = 6.0  # surprisal of the last knot: one inlier in 400
TAIL = 4.0  # from here to the last knot the growth of the tail is measured: one inlier in 55
KNOTS = round(LAST / STEP) + 1
PIXELS = 1 << 15  # scores looked up at once: their numbers stay near a core
FURTHEST = 1e36  # surprisal beyond which it does not grow, and its negative, in nats
LEAST_RISE = 1e-6  # of a score from knot to knot


def fit_tail(threshold: Callable[[float], float]) -> Tensor:
    """Return the knots (M,) of a score: what shares e^0, e^-0.1, ... e^-6 of inliers exceed, float32, increasing.

    `threshold` gives the score that a share of inliers exceeds.
    """
    shares = torch.exp(-STEP * torch.arange(KNOTS, dtype=torch.float64))
    knots = torch.tensor([threshold(float(share)) for share in shares], dtype=torch.float64)
    knots = knots.cummax(0).values
    rise = LEAST_RISE * max(1.0, float(knots.abs().max()))
    return (knots + rise * torch.arange(len(knots))).float()


def surprisal(score: Tensor, knots: Tensor) -> Tensor:
    """Return the surprisal of a score on inliers, of its shape, float32, in nats.

    It is increasing, so it ranks pixels as the score does. Below the first knot, which all inliers reach, it is
    negative and goes on with the slope of the first step.
    """
    tail = (knots[-1:] - knots[round(TAIL / STEP)]) / (LAST - TAIL)
    per_nat = torch.cat([knots.diff() / STEP, tail])
    if isinstance(score.shape[-1], torch.SymInt):
        return _of_part(score.float(), knots, per_nat)
    parts = score.float().flatten().split(PIXELS)
    if score.device.type == "cpu":
        at, nats = _line(knots.double().numpy(), per_nat.double().numpy())
        found = [torch.from_numpy(np.interp(part.numpy(), at, nats)).float() for part in parts]
    else:
        found = [_of_part(part, knots, per_nat) for part in parts]
    return torch.cat(found).reshape(score.shape)


def _line(knots: NDArray[np.float64], per_nat: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return scores and their surprisals between which the surprisal is linear, for all scores there are.

    NumPy interpolates in half the time of `_of_part`, as it begins to look where it found the score before. It does so
    from the lesser of two scores, so that one far below all others would leave few digits to what lies between.
    """
    far = FURTHEST ** np.linspace(1, 1 / 6, 6)
    at = [knots[0] - far * per_nat[0], knots, knots[-1:] + FURTHEST * per_nat[-1]]
    return np.concatenate(at), np.concatenate([-far, STEP * np.arange(len(knots)), [LAST + FURTHEST]])


def _of_part(score: Tensor, knots: Tensor, per_nat: Tensor) -> Tensor:
    """Return the surprisal of scores (n,); `per_nat` (M,) is the growth of the score by a nat, from each knot on."""
    traced = isinstance(score.shape[-1], torch.SymInt)
    below = _count_below(score, knots[1:]) if traced else torch.bucketize(score, knots[1:])
    return (score - knots[below]).div_(per_nat[below]).add_(below, alpha=STEP)


def _count_below(score: Tensor, knots: Tensor) -> Tensor:
    """Return how many of the increasing `knots` are below each score, as `bucketize`, which ONNX lacks, does."""
    below = torch.zeros(score.shape, dtype=torch.int64, device=score.device)
    for step in [2**i for i in reversed(range(len(knots).bit_length()))]:
        tried = below + step
        inside = (tried <= len(knots)) & (knots[tried.clamp_max(len(knots)) - 1] < score)
        below = torch.where(inside, tried, below)
    return below
