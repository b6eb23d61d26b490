"""Smoothing of a score map that follows the image: a guided filter that knows where data are.

In each window the score is fitted as a line of the image's brightness, and the lines of all windows that hold a pixel
are averaged (He, Sun and Tang, Guided Image Filtering, 2013): even ground is smoothed, while an edge of the image stays
an edge of the score. Means are taken over valid pixels only, so gaps neither bleed into the map nor darken their
rim. A pixel depends on `filter_radius` pixels about it and on nothing else, so a tile read that much wider gives what
the whole scene would. Tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def filter_radius(radius: int) -> int:
    """How many pixels away a smoothed score still looks: two windows of `radius`."""
    return 2 * radius


def guided_filter(score: Tensor, image: Tensor, valid: Tensor, *, radius: int, evenness: float) -> Tensor:
    """Scores (B, H, W) smoothed along `image` (B, C, H, W) in [0, 1]; what is not `valid` (B, H, W) stays as it was.

    `radius` is half the window's side in pixels; contrasts of the image far below `evenness`, in units of the scaled
    image, count as even ground.
    """
    weight = valid.to(score.dtype)[:, None]
    guide = image.mean(1, keepdim=True) * weight
    known = torch.where(valid[:, None], score[:, None], torch.zeros_like(score[:, None]))
    share = _means(weight, radius).clamp_min(1e-6)

    def mean(of: Tensor) -> Tensor:
        return _means(of * weight, radius) / share

    centre, level = mean(guide), mean(known)
    slope = (mean(guide * known) - centre * level) / (
        (mean(guide.square()) - centre.square()).clamp_min(0) + evenness**2
    )
    offset = level - slope * centre
    smooth = mean(slope) * guide + mean(offset)
    return torch.where(valid, smooth[:, 0], score)


def _means(values: Tensor, radius: int) -> Tensor:
    """Means over windows (B, 1, H, W), zeros beyond the border; every window is summed alike, wherever it lies."""
    side = 2 * radius + 1
    rows = functional.avg_pool2d(values, (side, 1), stride=1, padding=(radius, 0))
    return functional.avg_pool2d(rows, (1, side), stride=1, padding=(0, radius))
