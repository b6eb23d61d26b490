"""Mixed-content images: where patches go, what lay under them, and the pasting.

Patches of one size go into a batch, and each image has one box for its patch, drawn uniformly from the places where
every pixel holds data (arXiv 2112.12833; the sizes as in the authors' code, multiples of the flow's stride). The pixels
that a patch replaces are the crop that the flow then learns from. Pasting is differentiable in the patches: that is how
the segmenter's answer reaches the flow. What shows of a patch has an irregular outline, unless its whole box is asked
for: straight edges are easy to learn and do not occur. It may fade into the image over a rim, which then is neither
negative nor inlier. This room makes no patches and knows no losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from geood.config.sections import NegativesConfig
from geood.constants import IGNORE

WAVE_PX = 12  # length of the bends of a blob's outline
BEND = 0.35  # and their depth, as a share of half its box


class PastedBatch(NamedTuple):
    """A batch with patches in it.

    `image` (B, C, H, W) float in [0, 1] outside the patches; `mask` (B, H, W) int64 with 255 under them; `negative`
    (B, H, W) bool, True on them but for a faded rim; `crops`, for each time that patches were pasted (N, C, h, w), the
    pixels they replaced, cut from the graph, one for each image that took a patch, in order.
    """

    image: Tensor
    mask: Tensor
    negative: Tensor
    covered: Tensor
    crops: tuple[Tensor, ...]


def draw_size(config: NegativesConfig, *, multiple: int, generator: torch.Generator) -> tuple[int, int]:
    """Height and width of a batch's patches in pixels, drawn independently and uniformly.

    Both are multiples of `multiple` (the flow's stride) in [patch_min_px, patch_max_px].

    Raises:
        ValueError: if there is no such size.
    """
    shortest = -(-config.patch_min_px // multiple)
    longest = config.patch_max_px // multiple
    if shortest > longest:
        raise ValueError(f"no multiple of {multiple} lies in {config.patch_min_px} to {config.patch_max_px} px")
    height, width = torch.randint(shortest, longest + 1, (2,), generator=generator, device=generator.device).tolist()
    return height * multiple, width * multiple


def draw_boxes(valid: Tensor, size: tuple[int, int], generator: torch.Generator) -> list[tuple[int, int] | None]:
    """One (row, col) of the upper left corner for each image of `valid` (B, H, W) bool, None where nothing fits.

    Uniform among the places where a box of `size` (height, width) lies inside the image and on data only.
    """
    boxes: list[tuple[int, int] | None] = []
    for fits in _places(valid, size):
        places = fits.flatten().nonzero().flatten()
        if len(places) == 0:
            boxes.append(None)
            continue
        drawn = torch.randint(len(places), (1,), generator=generator, device=generator.device)
        row, col = divmod(int(places[int(drawn)]), fits.shape[1])
        boxes.append((row, col))
    return boxes


def unpasted(image: Tensor, mask: Tensor) -> PastedBatch:
    """A batch without patches: `image` (B, C, H, W) and `mask` (B, H, W) as they are."""
    none = torch.zeros_like(mask, dtype=torch.bool)
    return PastedBatch(image, mask, none, none, ())


def paste(  # noqa: PLR0917
    batch: PastedBatch, valid: Tensor, patches: Tensor, strength: Tensor, boxes: Sequence[tuple[int, int] | None]
) -> PastedBatch:
    """`batch` with `patches` (B, C, h, w) put in at `boxes` as well; an image whose box is None stays as it is.

    `strength` (B, h, w) in [0, 1] says how much of the patch shows: 0 leaves the image as it was, 1 makes a negative,
    between them lies a rim that is neither negative nor inlier. `valid` (B, H, W) is where the images hold data.
    Gradients flow to the patches; the replaced crops are detached. Nothing is clipped here.

    Raises:
        ValueError: if a box overhangs its image, or covers a pixel without data or of an earlier patch.
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
    """How much of each of `count` patches of `size` (height, width) shows, (count, h, w) in [0, 1].

    1 inside the outline, 0 outside, a ramp of `feather_px` pixels inside along it; of the dtype and place of `like`.
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
    """Irregular outlines (count, h, w) bool about the middle of their boxes: a round hill, bent by noise and cut."""
    grid = [max(2, side // WAVE_PX + 2) for side in size]
    noise = torch.randn((count, 1, *grid), generator=generator, device=generator.device)
    bent = functional.interpolate(noise, size=size, mode="bicubic", align_corners=True)[:, 0]
    ys, xs = (torch.linspace(-1, 1, side, device=noise.device) for side in size)
    away = ys[:, None].square() + xs.square()
    return (BEND * bent + 0.75 > away) | (away < 0.1)


def _under(batch: PastedBatch, valid: Tensor, i: int, window: tuple[int, int, int, int]) -> Tensor:
    """The pixels (C, h, w) of image `i` in a window that a patch may take."""
    row, col, height, width = window
    rows, cols = slice(row, row + height), slice(col, col + width)
    sides = tuple(batch.image.shape[-2:])
    if row < 0 or col < 0 or row + height > sides[0] or col + width > sides[1]:
        raise ValueError(f"patch {i} of {height} x {width} at ({row}, {col}) overhangs its {sides} image")
    if not bool((valid[i, rows, cols] & ~batch.covered[i, rows, cols]).all()):
        raise ValueError(f"patch {i} of {height} x {width} at ({row}, {col}) covers pixels without data or of another")
    return batch.image[i, :, rows, cols].detach()


def _places(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H - h + 1, W - w + 1) bool: whether the box with this upper left corner is wholly on data."""
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
