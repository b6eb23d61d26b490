"""Mixed-content batches: crops with negatives from the config's sources pasted in, and decoys where it asks for them.

Brings `negative_sources` and `pasting` together: sizes, places, patches, outlines, one image of the batch at a time.
Where a flow is to learn from the crops that patches replace, each patch lies in a box of a size that the flow has, and
the whole box is that crop. A decoy is a crop of real inliers, pasted with the same kind of outline, that keeps its
classes: with decoys an outline alone does not make a negative. No network and no loss are known here, but the flow as a
source.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from geood.config import NegativesConfig
from geood.models import Flow
from geood.training.negative_sources import Images, Photographs, cut_from_another, draw_patches
from geood.training.pasting import PastedBatch, Size, draw_boxes, draw_sizes, draw_strength, paste, rounded_up, unpasted


def mixed_content(
    batch: dict[str, Any],
    config: NegativesConfig,
    *,
    flow: Flow | None,
    photographs: Photographs | None,
    learns: bool,
    moved: bool,
    generator: torch.Generator,
) -> PastedBatch:
    """Paste the config's number of patches and decoys into each image of a batch, fewer where no more fit.

    Args:
        batch: samples, `image` (B, C, H, W), `mask` and `valid` (B, H, W), and for the source attribution `telling`.
        config: sources, sizes, outlines, numbers.
        flow: the flow, if the config has it as a source.
        photographs: patches of photographs, if the config has those as a source.
        learns: the flow learns from the replaced crops, so these get sizes that it has.
        moved: patches carry the flow's graph.
        generator: of all randomness.
    """
    given, pasted = _images(batch), unpasted(batch["image"], batch["mask"])
    multiple = flow.multiple if flow is not None else 1
    for _ in range(config.patches if config.sources else 0):
        sizes = draw_sizes(config, len(given.image), multiple=multiple, generator=generator)
        frames = [rounded_up(size, multiple) if learns else size for size in sizes]
        boxes = draw_boxes(given.valid & ~pasted.covered, frames, generator)
        with torch.set_grad_enabled(moved):
            patches = draw_patches(config, sizes, given, flow=flow, photographs=photographs, generator=generator)
            patches = [_framed(p.to(given.image.dtype), frame) for p, frame in zip(patches, frames, strict=True)]
        strengths = [draw_strength(config, size, like=given.image, generator=generator) for size in sizes]
        strengths = [_framed(s, frame) for s, frame in zip(strengths, frames, strict=True)]
        pasted = paste(pasted, patches, valid=given.valid, strengths=strengths, boxes=boxes)
    for _ in range(config.decoys):
        pasted = _with_decoys(pasted, batch, config, generator)
    return pasted


def _with_decoys(
    pasted: PastedBatch, batch: dict[str, Any], config: NegativesConfig, generator: torch.Generator
) -> PastedBatch:
    """Paste a crop of another image with its classes into each image with room for it."""
    given, mask = _images(batch), batch["mask"]
    sizes = draw_sizes(config, len(mask), multiple=1, generator=generator)
    boxes = draw_boxes(given.valid & ~pasted.covered, sizes, generator)
    crops, labels = [], []
    for i, (height, width) in enumerate(sizes):
        place = cut_from_another(given, i, (height, width), generator)
        if place is None:
            boxes[i], place = None, (i, 0, 0)
        j, row, col = place
        rows, cols = slice(row, row + height), slice(col, col + width)
        crops.append(given.image[j, :, rows, cols])
        labels.append(mask[j, rows, cols])
    strengths = [draw_strength(config, size, like=given.image, generator=generator) for size in sizes]
    return paste(pasted, crops, valid=given.valid, strengths=strengths, boxes=boxes, labels=labels)


def _images(batch: dict[str, Any]) -> Images:
    return Images(batch["image"], batch["valid"], batch.get("telling"))


def _framed(inside: Tensor, frame: Size) -> Tensor:
    """Centre (..., h, w) in a frame of zeros (..., *frame)."""
    spare = [whole - side for whole, side in zip(frame, inside.shape[-2:], strict=True)]
    top, left = spare[0] // 2, spare[1] // 2
    return functional.pad(inside, (left, spare[1] - left, top, spare[0] - top))
