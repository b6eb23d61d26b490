"""Edge-preserving smoothing of score maps: a guided filter with a validity mask.

In each window the score is fitted as a linear function of the image's brightness, and the fits of all windows that
contain a pixel are averaged (He, Sun and Tang, Guided Image Filtering, 2013). Homogeneous areas are smoothed, while an
edge in the image remains an edge in the score. Means are taken over valid pixels only, so that nodata neither bleeds
into the map nor darkens its rim. A pixel depends only on pixels within `filter_radius`, so a tile with a halo of that
width gives the same result as the whole scene. Tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def filter_radius(radius: int) -> int:
    """Return the radius of the filter's receptive field in pixels: that of two windows in a row."""
    return 2 * radius


def guided_filter(score: Tensor, image: Tensor, valid: Tensor, *, radius: int, evenness: float) -> Tensor:
    """Smooth a score map along the edges of an image; return (B, H, W).

    Args:
        score: (B, H, W); invalid pixels are returned unchanged.
        image: (B, C, H, W) in [0, 1]; its mean over the bands is the guide.
        valid: (B, H, W), boolean, False at nodata pixels.
        radius: half the window's side, in pixels; a window is 2 * radius + 1 pixels wide.
        evenness: contrast of the scaled image below which a window counts as homogeneous; its square is the filter's
            regularization epsilon.
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
    """Return window means (B, 1, H, W), zero-padded; every window is summed in the same order, wherever it lies."""
    side = 2 * radius + 1
    padded = functional.pad(values, (radius, radius, radius, radius))
    return _sums(_sums(padded, side, 2), side, 3).div_(side**2)


def _sums(values: Tensor, side: int, dim: int) -> Tensor:
    """Return the sums of all windows of `side` along a dimension, made of sums of 1, 2, 4, ... values."""
    count = values.shape[dim] - side + 1
    run, length, start, whole = values, 1, 0, None
    while length <= side:
        if side & length:
            part = run.narrow(dim, start, count)
            whole, start = part if whole is None else whole + part, start + length
        if 2 * length <= side:
            kept = run.shape[dim] - length
            run = run.narrow(dim, 0, kept) + run.narrow(dim, length, kept)
        length *= 2
    assert whole is not None
    return whole
