"""Bank of inlier features of the encoder: how far a place is from all that was seen in training.

A segmenter of few classes throws away what it needs to know a stranger; the encoder's features at stride 8 still hold
it. They are standardized and projected onto their leading principal axes, a few thousand of them are kept, and the
score of a place is the mean distance to its nearest neighbours there (arXiv 2211.06660). It needs no negatives, and
no pass of its own: the features are by-products. Tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = 3
AXES = 32  # most principal axes
LEAST_SPREAD = 1e-3  # least standard deviation of a feature
GROUPS = 64  # of the bank
DISTANCES = 1 << 19  # distances computed at once: 2 MiB, which stay near a core
DISTANCES_ON_GPU = 1 << 21


def fit_bank(samples: Tensor) -> dict[str, Tensor]:
    """Return the bank of encoder features (N, D): `shift` (D,), `axes` (D, A) and `near` (N, A), all float32.

    A feature x has the place (x - shift) @ axes in the bank.
    """
    wide = samples.double()
    shift, spread = wide.mean(0), wide.std(0).clamp_min(LEAST_SPREAD)
    standard = (wide - shift) / spread
    _, vectors = torch.linalg.eigh(standard.T @ standard / len(standard))
    axes = vectors.flip(1)[:, :AXES] / spread[:, None]
    return {"shift": shift.float(), "axes": axes.float(), "near": ((wide - shift) @ axes).float()}


def distances(features: Tensor, *, shift: Tensor, axes: Tensor, near: Tensor) -> Tensor:
    """Return the distance (B, h, w) of encoder features to the bank, float32.

    Args:
        features: (B, D, h, w), at stride 8.
        shift: (D,), the mean of inliers.
        axes: (D, A), principal axes divided by the features' spread.
        near: (N, A), the bank.
    """
    flat = (features.float().movedim(1, -1).flatten(0, -2) - shift) @ axes
    count, short = min(NEIGHBOURS, len(near)), -len(near) % GROUPS
    across = functional.pad(-2 * near.T, (0, short))
    lengths = functional.pad(near.square().sum(1), (0, short), value=torch.inf)
    at_once = (DISTANCES if flat.device.type in ("cpu", "meta") else DISTANCES_ON_GPU) // len(lengths)
    each = [_nearest(chunk, across, lengths, count) for chunk in flat.split(max(1, at_once))]
    return torch.cat(each).reshape(features.shape[0], *features.shape[2:])


def _nearest(places: Tensor, across: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Return the mean distance (n,) of places (n, A) to the nearest `count` of a bank.

    Sorting is what costs, so it sees few numbers: the bank is cut into groups, and the nearest lie in the groups whose
    own nearest are nearest. `across` (A, N) is the bank times -2, `lengths` (N,) are its squared lengths; of squared
    distances only the length of the place is missing then.
    """
    squares = torch.addmm(lengths, places, across).view(len(places), -1, GROUPS)
    groups = squares.amin(1).topk(count, largest=False).indices
    inside = squares.gather(2, groups[:, None].expand(-1, squares.shape[1], -1)).flatten(1)
    least = inside.topk(count, largest=False).values + places.square().sum(1, keepdim=True)
    return least.clamp_min_(0).sqrt_().mean(1)
