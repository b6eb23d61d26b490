"""Mixed-content images: sizes and positions of patches, their outlines, and the pasting.

Patches of one size go into a batch, and each image has one box for its patch, drawn uniformly from the positions where
every pixel holds data (arXiv 2112.12833; the sizes as in the authors' code, multiples of the flow's stride). The pixels
that a patch replaces are the crop that the flow then learns from. Pasting is differentiable in the patches: that is how
the segmenter's gradient reaches the flow. The visible part of a patch has an irregular outline, unless the config asks
for its whole box: straight edges are easy to learn and do not occur. It may fade into the image over a rim, which is
then neither negative nor inlier. This module makes no patches and knows no losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from geood.config import NegativesConfig
from geood.constants import IGNORE

WAVE_PX = 12  # wavelength of a blob's outline
BEND = 0.35  # its amplitude, as a fraction of half the box


class PastedBatch(NamedTuple):
    """Batch of images with patches pasted in.

    `image` (B, C, H, W) float in [0, 1] outside the patches; `mask` (B, H, W) int64 with 255 under them; `negative`
    (B, H, W) bool, True on them but for a faded rim; `covered` (B, H, W) bool, True on them with the rim; `crops`, one
    tensor (N, C, h, w) each time that patches were pasted: the replaced pixels, detached, of each image that took a
    patch, in order.
    """

    image: Tensor
    mask: Tensor
    negative: Tensor
    covered: Tensor
    crops: tuple[Tensor, ...]


def draw_size(config: NegativesConfig, *, multiple: int, generator: torch.Generator) -> tuple[int, int]:
    """Draw height and width of a batch's patches in pixels, independently and uniformly.

    Both are multiples of `multiple` (the flow's stride) in [patch_min_px, patch_max_px].

    Raises:
        ValueError: there is no such size.
    """
    shortest = -(-config.patch_min_px // multiple)
    longest = config.patch_max_px // multiple
    if shortest > longest:
        raise ValueError(f"no multiple of {multiple} lies in {config.patch_min_px} to {config.patch_max_px} px")
    height, width = torch.randint(shortest, longest + 1, (2,), generator=generator, device=generator.device).tolist()
    return height * multiple, width * multiple


def draw_boxes(valid: Tensor, size: tuple[int, int], generator: torch.Generator) -> list[tuple[int, int] | None]:
    """Draw the upper left corner (row, col) of a box for each image of `valid` (B, H, W) bool; None where none fits.

    Uniform over the positions where a box of `size` (height, width) lies inside the image and on valid pixels only.
    """
    boxes: list[tuple[int, int] | None] = []
    for fits in _places(valid, size):
        corners = fits.flatten().nonzero().flatten()
        if len(corners) == 0:
            boxes.append(None)
            continue
        drawn = torch.randint(len(corners), (1,), generator=generator, device=generator.device)
        row, col = divmod(int(corners[int(drawn)]), fits.shape[1])
        boxes.append((row, col))
    return boxes


def unpasted(image: Tensor, mask: Tensor) -> PastedBatch:
    """Return a batch without patches: `image` (B, C, H, W) and `mask` (B, H, W) unchanged."""
    none = torch.zeros_like(mask, dtype=torch.bool)
    return PastedBatch(image, mask, none, none, ())


def paste(
    batch: PastedBatch, patches: Tensor, *, valid: Tensor, strength: Tensor, boxes: Sequence[tuple[int, int] | None]
) -> PastedBatch:
    """Paste `patches` (B, C, h, w) into `batch` at `boxes` (row, col); an image whose box is None stays unchanged.

    `strength` (B, h, w) in [0, 1] is the opacity of the patch: 0 leaves the image unchanged, 1 makes a negative, and
    values between make a rim that is neither negative nor inlier. `valid` (B, H, W) bool marks the pixels with data.
    Gradients flow to the patches; the replaced crops are detached. Nothing is clipped.

    Raises:
        ValueError: a box overhangs its image, or covers a pixel without data or of an earlier patch.
    """
    image, mask, negative, covered, before = batch
    crops, spread = [], []
    for i, box in enumerate(boxes):
        if box is None:
            spread.append(image.new_zeros((image.shape[1] + 1, *image.shape[2:])))
            continue
        crops.append(_under(batch, valid, i, (*box, *patches.shape[-2:])))
        row, col = box
        right, below = image.shape[-1] - col - patches.shape[-1], image.shape[-2] - row - patches.shape[-2]
        whole = torch.cat([patches[i].to(image.dtype), strength[i][None].to(image.dtype)])
        spread.append(functional.pad(whole, (col, right, row, below)))
    placed = torch.stack(spread)
    share = placed[:, -1:]
    mixed = torch.where(share == 1, placed[:, :-1], placed[:, :-1] * share + image * (1 - share))
    fresh = share[:, 0] > 0
    return PastedBatch(
        torch.where(fresh[:, None], mixed, image),
        mask.masked_fill(fresh, IGNORE),
        negative | (share[:, 0] == 1),
        covered | fresh,
        (*before, torch.stack(crops)) if crops else before,
    )


def draw_strength(
    config: NegativesConfig, count: int, size: tuple[int, int], *, like: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw the opacity of `count` patches of `size` (height, width): (count, h, w) in [0, 1].

    1 inside the outline, 0 outside, with a ramp of `feather_px` pixels just inside it; dtype and device are `like`'s.
    """
    if config.shape == "blob":
        inside = _blobs(count, size, generator).to(like)
    else:
        inside = torch.ones((count, *size), dtype=like.dtype, device=like.device)
    strength = inside
    for _ in range(config.feather_px):
        inside = -functional.max_pool2d(-functional.pad(inside, (1, 1, 1, 1)), 3, stride=1)
        strength = strength + inside
    return strength / (config.feather_px + 1)


def _blobs(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw irregular shapes (count, h, w) bool centred in their boxes: a round hill plus noise, thresholded."""
    grid = [max(2, side // WAVE_PX + 2) for side in size]
    noise = torch.randn((count, 1, *grid), generator=generator, device=generator.device)
    bent = functional.interpolate(noise, size=size, mode="bicubic", align_corners=True)[:, 0]
    ys, xs = (torch.linspace(-1, 1, side, device=noise.device) for side in size)
    away = ys[:, None].square() + xs.square()
    return (BEND * bent + 0.75 > away) | (away < 0.1)


def _under(batch: PastedBatch, valid: Tensor, i: int, window: tuple[int, int, int, int]) -> Tensor:
    """Return the pixels (C, h, w) of image `i` under a patch; `window` is (row, col, height, width)."""
    row, col, height, width = window
    rows, cols = slice(row, row + height), slice(col, col + width)
    sides = tuple(batch.image.shape[-2:])
    if row < 0 or col < 0 or row + height > sides[0] or col + width > sides[1]:
        raise ValueError(f"patch {i} of {height} x {width} at ({row}, {col}) overhangs its {sides} image")
    if not bool((valid[i, rows, cols] & ~batch.covered[i, rows, cols]).all()):
        raise ValueError(f"patch {i} of {height} x {width} at ({row}, {col}) covers pixels without data or of another")
    return batch.image[i, :, rows, cols].detach()


def _places(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, H - h + 1, W - w + 1) bool, True where the box with this upper left corner is wholly on data."""
    height, width = size
    batch, rows, cols = valid.shape
    if height > rows or width > cols:
        return valid.new_zeros((batch, 0, 0))
    total = functional.pad(valid.to(torch.int64).cumsum(1).cumsum(2), (1, 0, 1, 0))
    inside = (
        total[:, height:, width:]
        - total[:, :-height, width:]
        - total[:, height:, :-width]
        + total[:, :-height, :-width]
    )
    return inside == height * width
