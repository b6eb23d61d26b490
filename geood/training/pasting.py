"""Pasting: sizes and positions of patches, their outlines, and what a pasted patch does to image and mask.

Each image has a box for its patch, drawn uniformly from the positions where every pixel holds data (arXiv 2112.12833).
Sides are drawn log-uniformly for each image, so that small patches are not rare; or uniformly among the multiples of
the flow's stride, one size for a batch, as in the authors' code. The pixels that a patch replaces are the crop that the
flow then learns from. Pasting is differentiable in the patches: that is how the segmenter's gradient reaches the flow.
The visible part of a patch has an irregular outline, unless the config asks for its whole box: straight edges are easy
to learn and do not occur. It may fade into the image over a rim, which is then neither negative nor inlier. This module
makes no patches and knows no losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from geood.config import NegativesConfig
from geood.constants import IGNORE

WAVE_PX = 12  # wavelength of a blob's outline
BEND = 0.35  # its amplitude, as a fraction of half the box

Size = tuple[int, int]  # height and width, pixels


class PastedBatch(NamedTuple):
    """Batch of images with patches pasted in.

    `image` (B, C, H, W) float in [0, 1] outside the patches; `mask` (B, H, W) int64 with 255 under them; `negative`
    (B, H, W) bool, True on them but for a faded rim; `covered` (B, H, W) bool, True on them with the rim and on decoys;
    `crops`, (C, h, w) for each patch, detached: the pixels that its box held, in the order of pasting.
    """

    image: Tensor
    mask: Tensor
    negative: Tensor
    covered: Tensor
    crops: tuple[Tensor, ...]


def draw_size(config: NegativesConfig, *, multiple: int, generator: torch.Generator) -> Size:
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


def draw_sizes(config: NegativesConfig, count: int, *, multiple: int, generator: torch.Generator) -> list[Size]:
    """Draw the sizes of `count` patches: by `negatives.sizes` log, each its own, or uniform, all as by `draw_size`.

    Log: the logarithm of a side is uniform between those of patch_min_px and patch_max_px. Uniform: sides are multiples
    of 8, or of `multiple` if that is more.

    Raises:
        ValueError: there is no such size.
    """
    if config.sizes == "uniform":
        return [draw_size(config, multiple=max(8, multiple), generator=generator)] * count
    low, high = math.log(config.patch_min_px), math.log(config.patch_max_px)
    drawn = torch.rand((count, 2), generator=generator, device=generator.device).mul(high - low).add(low).exp()
    return [(int(height), int(width)) for height, width in drawn.round().tolist()]


def rounded_up(size: Size, multiple: int) -> Size:
    """Return the next size up with sides that are multiples of `multiple`."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def draw_boxes(valid: Tensor, sizes: Sequence[Size], generator: torch.Generator) -> list[tuple[int, int] | None]:
    """Draw the upper left corner (row, col) of a box for each image of `valid` (B, H, W) bool; None where none fits.

    Uniform over the positions where a box of its size (height, width) lies inside the image and on valid pixels only.
    """
    boxes: list[tuple[int, int] | None] = []
    total = functional.pad(valid.to(torch.int64).cumsum(1).cumsum(2), (1, 0, 1, 0))
    for summed, size in zip(total, sizes, strict=True):
        fits = _places(summed, size)
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
    batch: PastedBatch,
    patches: Sequence[Tensor],
    *,
    valid: Tensor,
    strengths: Sequence[Tensor],
    boxes: Sequence[tuple[int, int] | None],
    labels: Sequence[Tensor] | None = None,
) -> PastedBatch:
    """Paste a patch (C, h, w) into each image of `batch` at its box (row, col); None leaves the image as it is.

    A strength (h, w) in [0, 1] is the opacity of a patch: 0 leaves the image unchanged, 1 makes a negative, and values
    between make a rim that is neither negative nor inlier. `valid` (B, H, W) bool marks the pixels with data. With
    `labels` (h, w), int64, patches are decoys: where opaque they are these classes, not negatives, and what they
    replace is no crop to learn from. Gradients flow to the patches; the replaced crops are detached. Nothing is
    clipped.

    Raises:
        ValueError: a box overhangs its image, or covers a pixel without data or of an earlier patch.
    """
    image, mask, negative, covered, before = batch
    crops, spread, meant = [], [], []
    for i, box in enumerate(boxes):
        if box is None:
            spread.append(image.new_zeros((image.shape[1] + 1, *image.shape[2:])))
            meant.append(torch.full_like(mask[i], IGNORE))
            continue
        crops.append(_under(batch, valid, i, (*box, *patches[i].shape[-2:])))
        (height, width), (row, col) = patches[i].shape[-2:], box
        around = (col, image.shape[-1] - col - width, row, image.shape[-2] - row - height)
        spread.append(functional.pad(torch.cat([patches[i], strengths[i][None]]).to(image.dtype), around))
        meant.append(torch.full_like(mask[i], IGNORE))
        if labels is not None:
            meant[-1] = functional.pad(labels[i], around, value=IGNORE)
    placed = torch.stack(spread)
    share = placed[:, -1:]
    mixed = torch.where(share == 1, placed[:, :-1], placed[:, :-1] * share + image * (1 - share))
    fresh, opaque = share[:, 0] > 0, share[:, 0] == 1
    return PastedBatch(
        torch.where(fresh[:, None], mixed, image),
        torch.where(opaque, torch.stack(meant), mask.masked_fill(fresh, IGNORE)),
        negative | opaque if labels is None else negative,
        covered | fresh,
        (*before, *crops) if labels is None else before,
    )


def draw_strength(config: NegativesConfig, size: Size, *, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the opacity (h, w) of a patch of `size` (height, width), in [0, 1].

    1 inside the outline, 0 outside, with a ramp of `feather_px` pixels just inside it; dtype and device are `like`'s.
    """
    if config.shape == "blob":
        inside = _blob(size, generator).to(like)[None]
    else:
        inside = torch.ones((1, *size), dtype=like.dtype, device=like.device)
    strength = inside
    for _ in range(config.feather_px):
        inside = -functional.max_pool2d(-functional.pad(inside, (1, 1, 1, 1)), 3, stride=1)
        strength = strength + inside
    return strength[0] / (config.feather_px + 1)


def _blob(size: Size, generator: torch.Generator) -> Tensor:
    """Draw an irregular shape (h, w) bool centred in its box: a round hill plus noise, thresholded."""
    grid = [max(2, side // WAVE_PX + 2) for side in size]
    noise = torch.randn((1, 1, *grid), generator=generator, device=generator.device)
    bent = functional.interpolate(noise, size=size, mode="bicubic", align_corners=True)[0, 0]
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


def _places(total: Tensor, size: Size) -> Tensor:
    """Return (H - h + 1, W - w + 1) bool, True where the box with this upper left corner is wholly on data.

    `total` (H + 1, W + 1) holds the number of valid pixels above and to the left of each corner.
    """
    height, width = size
    if height >= total.shape[0] or width >= total.shape[1]:
        return torch.zeros((0, 0), dtype=torch.bool, device=total.device)
    inside = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    return inside == height * width
