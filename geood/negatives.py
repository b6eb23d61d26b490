"""Mixed-content images: where synthetic patches go, what lay under them, and the pasting.

Each batch has one patch size and each image one box, drawn uniformly from the places where every pixel holds data
(arXiv 2112.12833; the sizes as in the authors' code, multiples of the flow's stride). The pixels that a patch replaces
are the crop that the flow then learns from. Pasting is differentiable in the patches: that is how the segmenter's
answer reaches the flow. This room makes no patches and knows no losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from geood.config import IGNORE, NegativesConfig


class PastedBatch(NamedTuple):
    """A batch with patches in it.

    `image` (B, C, H, W) float in [0, 1] outside the patches; `mask` (B, H, W) int64 with 255 under them; `negative`
    (B, H, W) bool, True on them; `crops` (N, C, h, w) the pixels they replaced, cut from the graph, one for each image
    that took a patch, in order.
    """

    image: Tensor
    mask: Tensor
    negative: Tensor
    crops: Tensor


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


def paste(  # noqa: PLR0917
    image: Tensor, mask: Tensor, valid: Tensor, patches: Tensor, boxes: Sequence[tuple[int, int] | None]
) -> PastedBatch:
    """Put `patches` (B, C, h, w) into `image` (B, C, H, W) at `boxes`; an image whose box is None stays as it is.

    `mask` and `valid` are (B, H, W). Gradients flow to the patches; the replaced crops are detached. Nothing is
    clipped: a patch value outside [0, 1] stays where the loss can see it.

    Raises:
        ValueError: if a box overhangs its image or covers a pixel without data.
    """
    negative = torch.zeros_like(valid, dtype=torch.bool)
    crops, spread = [], []
    height, width = patches.shape[-2:]
    for i, box in enumerate(boxes):
        if box is None:
            spread.append(torch.zeros_like(image[i]))
            continue
        row, col = box
        rows, cols = slice(row, row + height), slice(col, col + width)
        if row < 0 or col < 0 or row + height > image.shape[-2] or col + width > image.shape[-1]:
            raise ValueError(f"patch {i} of {height} x {width} at {box} overhangs its {tuple(image.shape[-2:])} image")
        if not bool(valid[i, rows, cols].all()):
            raise ValueError(f"patch {i} of {height} x {width} at {box} covers pixels without data")
        negative[i, rows, cols] = True
        crops.append(image[i, :, rows, cols].detach())
        right, below = image.shape[-1] - col - width, image.shape[-2] - row - height
        spread.append(functional.pad(patches[i].to(image.dtype), (col, right, row, below)))
    mixed = torch.where(negative[:, None], torch.stack(spread), image)
    replaced = torch.stack(crops) if crops else image.new_zeros((0, *patches.shape[1:]))
    return PastedBatch(mixed, mask.masked_fill(negative, IGNORE), negative, replaced)


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
