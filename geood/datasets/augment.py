"""Random augmentation of a training crop: scale, position, flips, quarter turns, brightness and contrast.

Image, mask and validity go through the same geometry; brightness and contrast change the image only, and only where it
holds data. Plain tensor operations for any number of bands. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from geood.config import DataConfig
from geood.constants import IGNORE
from geood.datasets.samples import Sample

DRAWS = 8  # windows drawn at most; one without enough data or without a label is drawn again


def augment(sample: Sample, config: DataConfig, *, generator: Generator) -> Sample:
    """Return an augmented copy of a sample, `config.crop_px` pixels a side, `config.min_valid` of it valid if possible.

    Args:
        sample: `image` (C, H, W) float in [0, 1], `mask` (H, W) int64, `valid` (H, W) bool; H and W at least
            `crop_px / scale_min`, so that a window at the smallest scale fits. Other keys are passed on.
        config: the changes and their ranges.
        generator: source of all randomness.

    Raises:
        ValueError: the sample is too small for the drawn scale.
    """
    scale = math.exp(_between(math.log(config.scale_min), math.log(config.scale_max), generator))
    out = _cut(sample, round(config.crop_px / scale), config.min_valid, generator)
    out = _resized(out, config.crop_px)
    for axis in {"none": (), "sideways": (-1,), "both": (-1, -2)}[config.flips]:
        out = _each(out, lambda t, axis=axis: t.flip(axis)) if _coin(generator) else out
    if config.quarter_turns:
        turns = int(torch.randint(4, (1,), generator=generator))
        out = _each(out, lambda t: torch.rot90(t, turns, (-2, -1)))
    shift = _between(-config.brightness, config.brightness, generator)
    stretch = 1 + _between(-config.contrast, config.contrast, generator)
    out["image"] = _lit(out["image"], out["valid"], shift, stretch)
    return _each(out, lambda t: t.contiguous())


def _cut(sample: Sample, side: int, min_valid: float, generator: Generator) -> Sample:
    """Cut a random square window of `side` pixels that holds a label and enough data, or the best of `DRAWS`."""
    height, width = sample["mask"].shape
    if side > min(height, width):
        raise ValueError(f"a window of {side} px does not fit in a sample of {height} x {width} px")
    best, window = (False, -1.0), (..., slice(0), slice(0))
    for _ in range(DRAWS):
        row = int(torch.randint(height - side + 1, (1,), generator=generator))
        col = int(torch.randint(width - side + 1, (1,), generator=generator))
        here = (..., slice(row, row + side), slice(col, col + side))
        fitness = bool((sample["mask"][here] != IGNORE).any()), float(sample["valid"][here].float().mean())
        if fitness > best:
            best, window = fitness, here
        if fitness[0] and fitness[1] >= min_valid:
            break
    return _each(sample, lambda t: t[window])


def _resized(sample: Sample, side: int) -> Sample:
    """Resample to `side` pixels: the image bilinearly with antialiasing, mask and validity by nearest neighbour.

    Only valid pixels contribute to a valid pixel, as where scenes are resampled; what is invalid keeps its values.
    """
    if sample["mask"].shape == (side, side):
        return dict(sample)

    def nearest(t: Tensor) -> Tensor:
        return F.interpolate(t[None].float(), size=(side, side), mode="nearest-exact")[0].to(t.dtype)

    def smooth(t: Tensor) -> Tensor:
        return F.interpolate(t[None], size=(side, side), mode="bilinear", antialias=True)[0]

    image, mask, valid = sample["image"], nearest(sample["mask"][None])[0], nearest(sample["valid"][None])[0]
    if sample["valid"].all():
        image = smooth(image)
    else:
        known = sample["valid"].to(image.dtype)[None]
        image = torch.where(valid, smooth(image * known) / smooth(known).clamp_min(1e-6), nearest(image))
    return {**sample, "image": image, "mask": mask, "valid": valid}


def _lit(image: Tensor, valid: Tensor, shift: float, stretch: float) -> Tensor:
    """Stretch all bands about one mean, shift and clip to [0, 1]; invalid pixels stay as they are."""
    if (shift == 0 and stretch == 1) or not valid.any():
        return image
    mean = (image * valid).sum() / (image.shape[0] * valid.sum())
    lit = (image - mean).mul_(stretch).add_(mean).add_(shift).clamp_(0, 1)
    return torch.where(valid, lit, image)


def _each(sample: Sample, change: Any) -> Sample:
    """Apply one geometric change to all tensors of a sample."""
    return {key: change(value) if isinstance(value, Tensor) else value for key, value in sample.items()}


def _between(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


def _coin(generator: Generator) -> bool:
    return bool(torch.rand(1, generator=generator) < 0.5)
