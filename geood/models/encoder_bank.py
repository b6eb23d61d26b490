"""Bank of inlier features of the encoder: how far a place is from all that was seen in training.

A segmenter of few classes throws away what it needs to know a stranger; the encoder's features at stride 8 still hold
it. They are standardized and projected onto their leading principal axes, a few thousand of them are kept, each with
the class that the segmenter saw there, and the score of a place is the mean distance to its nearest neighbours (arXiv
2211.06660) among those of the class that it is taken for. So a thing is strange if nothing like it was seen, and also
if it looks like one class and is taken for another. It needs no negatives, and no pass of its own: features and classes
are by-products. Tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = 3
AXES = 32  # most principal axes
LEAST_SPREAD = 1e-3  # least standard deviation of a feature
DISTANCES = 1 << 21  # distances computed at once: 8 MiB


def fit_bank(samples: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Return the bank of encoder features (N, D): `shift` (D,), `axes` (D, A), `near` (N, A), `classes` (N,), float32.

    A feature x has the place (x - shift) @ axes in the bank; `classes` (N,) are the channels that they are taken for,
    by which the bank is ordered.
    """
    order = classes.argsort(stable=True)
    wide = samples.double()
    shift, spread = wide.mean(0), wide.std(0).clamp_min(LEAST_SPREAD)
    standard = (wide - shift) / spread
    _, vectors = torch.linalg.eigh(standard.T @ standard / len(standard))
    axes = vectors.flip(1)[:, :AXES] / spread[:, None]
    near = ((wide - shift) @ axes)[order]
    return {"shift": shift.float(), "axes": axes.float(), "near": near.float(), "classes": classes[order].float()}


def places(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return the class (B, h, w) that each place of a map of `size` (h, w) is taken for by logits (B, K, H, W)."""
    return functional.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False).argmax(1)


def distances(features: Tensor, taken: Tensor, *, shift: Tensor, axes: Tensor, near: Tensor, classes: Tensor) -> Tensor:
    """Return the distance (B, h, w) of encoder features to those of their class in the bank, float32.

    Where the bank has none of a class, it is the distance to the class that is furthest.

    Args:
        features: (B, D, h, w), at stride 8.
        taken: (B, h, w), the class that each place is taken for, from `places`.
        shift: (D,), the mean of inliers.
        axes: (D, A), principal axes divided by the features' spread.
        near: (N, A), the bank.
        classes: (N,), the classes of the bank.
    """
    flat, asked = (features.float().movedim(1, -1).flatten(0, -2) - shift) @ axes, taken.flatten()
    found = flat.new_empty(len(flat))
    banks = {int(c): near[classes == c] for c in classes.unique()}
    for each in asked.unique().tolist():
        which = asked == each
        tried = [banks[each]] if each in banks else list(banks.values())
        found[which] = torch.stack([_nearest(flat[which], bank) for bank in tried]).amax(0)
    return found.reshape(taken.shape)


def _nearest(flat: Tensor, bank: Tensor) -> Tensor:
    """Return the mean distance (M,) of places (M, A) to their nearest neighbours in a bank (N, A)."""
    count = min(NEIGHBOURS, len(bank))
    chunks = flat.split(max(1, DISTANCES // len(bank)))
    return torch.cat([torch.cdist(chunk, bank).topk(count, largest=False).values.mean(1) for chunk in chunks])
