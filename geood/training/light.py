"""Other light: random photometric changes of training crops, negatives included, for the outlier head.

The head learns from few crops of few scenes, and what they have in common it takes for ordinary. Haze, another hour,
season or camera would then be outliers. So most crops, with their negatives, are shown in another light: contrast, gain
and shift of each band, gamma, saturation, blur and noise are drawn anew. Class labels and calibration never see it. The
ranges below are of strength 1 and grow in proportion. Tensors only.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

CHANGED = 0.75  # share of images that are changed
CONTRAST = 0.4  # in units of ln
GAIN = 0.2  # of each band, in units of ln
SHIFT, BAND_SHIFT = 0.15, 0.07  # of all bands together and of each, as a share of their range
GAMMA = 0.35  # in units of ln
SATURATION = (-0.7, 0.4)  # in units of ln
NOISE = 0.03  # largest standard deviation, as a share of the range
OFTEN = 0.5  # share of the changed images that are blurred, and of those that get noise
DARKEST = 1e-4  # where gamma still has a slope


def in_other_light(image: Tensor, valid: Tensor, *, strength: float, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) in [0, 1] in another light, each in its own; differentiable in the image.

    Args:
        image: float, in [0, 1].
        valid: (B, H, W) bool; other pixels stay as they are.
        strength: of the changes, 0 or more; with 0 images stay as they are.
        generator: source of all randomness, on the device of the images.
    """
    if strength == 0:
        return image
    count, bands = image.shape[:2]
    between = partial(_between, generator=generator)
    changed = between(0, 1, count, 1) < CHANGED
    known = valid[:, None]
    middle = (image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1)
    lit = (image - middle) * _around(CONTRAST * strength, count, 1, generator).exp() + middle
    lit = lit * _around(GAIN * strength, count, bands, generator).exp()
    lit = lit + _around(SHIFT * strength, count, 1, generator) + _around(BAND_SHIFT * strength, count, bands, generator)
    lit = lit.clamp(DARKEST, 1) ** _around(GAMMA * strength, count, 1, generator).exp()
    grey = lit.mean(1, keepdim=True)
    lit = grey + (lit - grey) * between(SATURATION[0] * strength, SATURATION[1] * strength, count, 1).exp()
    lit = _rougher(lit, known, strength, generator).clamp(0, 1)
    return torch.where(changed & known, lit, image)


def _rougher(image: Tensor, known: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W), some blurred, by pixels that are `known` (B, 1, H, W) bool, some with noise."""
    between, count = partial(_between, generator=generator), len(image)
    depth = between(0, strength, count, 1).clamp_max(1)
    near = _blurred(image * known) / _blurred(known.to(image.dtype)).clamp_min(0.1)  # at least a ninth is known
    image = image + (near - image) * (depth * (between(0, 1, count, 1) < OFTEN))
    noise = torch.randn(image.shape, generator=generator, device=generator.device)
    spread = between(0, NOISE * strength, count, 1)
    return image + noise * spread * (between(0, 1, count, 1) < OFTEN)


def _blurred(image: Tensor) -> Tensor:
    """Return the means over 3 x 3 pixels, mirrored at the edges."""
    return functional.avg_pool2d(functional.pad(image, (1, 1, 1, 1), mode="reflect"), 3, 1)


def _around(most: float, count: int, bands: int, generator: torch.Generator) -> Tensor:
    return _between(-most, most, count, bands, generator=generator)


def _between(low: float, high: float, count: int, bands: int, *, generator: torch.Generator) -> Tensor:
    """Draw numbers (count, bands, 1, 1) evenly between two."""
    drawn = torch.rand(count, bands, 1, 1, generator=generator, device=generator.device)
    return low + (high - low) * drawn
