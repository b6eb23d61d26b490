"""Sources of negative patches: samples of the flow, or one of the simpler alternatives it is compared with.

All sources return patches (B, C, h, w) in the scaled units of the images, drawn with one generator: `flow` samples,
`noise` (independent uniform values), `colour` (one colour per patch), `shuffled` (crops of the batch itself with their
tiles permuted: real textures, senseless layout) and `folder` (cut from photographs: classic outlier exposure, arXiv
1812.04606). Each patch then gets a tint: contrast and level of every band change at random, so that negatives also
differ from inliers as unknown materials do. Only the flow's patches carry a gradient. This module handles tensors only;
photographs come from a function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from geood.config import NegativesConfig
from geood.models import Flow
from geood.training.pasting import draw_boxes

TILE = 8  # side of the permuted tiles of shuffled crops, in pixels; patch sides are multiples of it

Photographs = Callable[[int, int, int, torch.Generator], Tensor]  # count, height, width, generator


def draw_patches(
    config: NegativesConfig,
    size: tuple[int, int],
    *,
    image: Tensor,
    valid: Tensor,
    flow: Flow | None,
    photographs: Photographs | None,
    generator: torch.Generator,
) -> Tensor:
    """Draw patches (B, C, h, w) of `size` (h, w), one for each image (B, C, H, W) of a batch.

    Values are in [0, 1], except those of flow samples without a tint: the loss is to see what lies outside. `valid`
    (B, H, W) bool marks the pixels with data.

    Raises:
        ValueError: the config's source is not available.
    """
    patches = _drawn(config, size, image=image, valid=valid, flow=flow, photographs=photographs, generator=generator)
    return _tinted(patches, config.tint, generator).clamp(0, 1) if config.tint else patches


def _drawn(
    config: NegativesConfig,
    size: tuple[int, int],
    *,
    image: Tensor,
    valid: Tensor,
    flow: Flow | None,
    photographs: Photographs | None,
    generator: torch.Generator,
) -> Tensor:
    """Draw patches from the config's source, without a tint."""
    (count, bands), (height, width) = image.shape[:2], size
    if config.source == "flow" and flow is not None:
        return flow.sample(count, height, width, temperature=config.temperature, generator=generator)
    if config.source == "folder" and photographs is not None:
        return photographs(count, height, width, generator).to(image)
    if config.source == "shuffled":
        return _shuffled(image, valid, size, generator)
    shape = {"noise": (count, bands, height, width), "colour": (count, bands, 1, 1)}.get(config.source)
    if shape is None:
        raise ValueError(f"no patches of source {config.source!r} can be drawn here")
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=image.dtype).to(image.device)
    return drawn.expand(count, bands, height, width)


def _tinted(patches: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """Stretch each band of each patch (B, C, h, w) about its mean by e^(spread n), and shift it by spread n / 2."""
    shape = (2, *patches.shape[:2], 1, 1)
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=patches.dtype)
    stretch, shift = (spread * drawn).to(patches.device)
    mean = patches.mean((2, 3), keepdim=True)
    tinted: Tensor = (patches - mean) * stretch.exp() + mean + shift / 2
    return tinted


def _shuffled(image: Tensor, valid: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Cut crops from the batch, each for another image than its own (if two have one), with tiles in random order.

    An image without room for a crop provides none; if no image has room, patches are constant (0.5).
    """
    boxes = draw_boxes(valid, size, generator)
    cut = {i: image[i, :, b[0] : b[0] + size[0], b[1] : b[1] + size[1]] for i, b in enumerate(boxes) if b is not None}
    if not cut:
        return image.new_full((len(image), image.shape[1], *size), 0.5)
    sources = [next((j for j in sorted(cut) if j > i), min(cut)) for i in range(len(image))]
    crops = torch.stack([cut[j] for j in sources])
    tiles = functional.unfold(crops, TILE, stride=TILE)
    order = torch.rand((len(tiles), tiles.shape[2]), generator=generator, device=generator.device).argsort(1)
    mixed = tiles.gather(2, order.to(tiles.device)[:, None].expand_as(tiles))
    return functional.fold(mixed, size, TILE, stride=TILE)
