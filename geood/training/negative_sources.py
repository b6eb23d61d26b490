"""What is pasted for a negative: samples of the flow, or one of the simpler things it is compared with.

All sources give patches (B, C, h, w) in the scaled units of the images, out of one generator: `flow` samples, `noise`
without any structure, `colour` (one even colour a patch), `shuffled` (crops of the batch itself, cut into tiles that
change places: real textures, senseless layout) and `folder` (cut from photographs, the classic outlier exposure, arXiv
1812.04606). Each patch then gets a tint: contrast and level of every band change at random, so that negatives also
differ from inliers as unknown materials do. Only the flow's patches carry a gradient. Tensors only: photographs come in
as a function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from geood.config.sections import NegativesConfig
from geood.models.flow import Flow
from geood.training.pasting import draw_boxes

TILE = 8  # side of the tiles that change places in shuffled crops; patch sides are multiples of it

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
    """A patch (B, C, h, w) of `size` (h, w) for each image (B, C, H, W) of a batch.

    In [0, 1], but for samples of the flow without a tint: what those have outside, the loss is to see. `valid`
    (B, H, W) is where the images hold data.

    Raises:
        ValueError: if the source is one that is not there.
    """
    patches = _drawn(config, size, image=image, valid=valid, makers=(flow, photographs), generator=generator)
    return _tinted(patches, config.tint, generator).clamp(0, 1) if config.tint else patches


def _drawn(
    config: NegativesConfig,
    size: tuple[int, int],
    *,
    image: Tensor,
    valid: Tensor,
    makers: tuple[Flow | None, Photographs | None],
    generator: torch.Generator,
) -> Tensor:
    """The patches as their source gives them."""
    (flow, photographs), (count, bands), (height, width) = makers, image.shape[:2], size
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
    """Each band of each patch (B, C, h, w) stretched about its mean by a factor e^(spread n), moved by spread n / 2."""
    shape = (2, *patches.shape[:2], 1, 1)
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=patches.dtype)
    stretch, shift = (spread * drawn).to(patches.device)
    mean = patches.mean((2, 3), keepdim=True)
    tinted: Tensor = (patches - mean) * stretch.exp() + mean + shift / 2
    return tinted


def _shuffled(image: Tensor, valid: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Crops of the batch, each for another image than its own (where two have one), their tiles in random order.

    An image without a place for a crop lends none; where none has, patches are empty of content (0.5).
    """
    boxes = draw_boxes(valid, size, generator)
    cut = {i: image[i, :, b[0] : b[0] + size[0], b[1] : b[1] + size[1]] for i, b in enumerate(boxes) if b is not None}
    if not cut:
        return image.new_full((len(image), image.shape[1], *size), 0.5)
    lenders = [next((j for j in sorted(cut) if j > i), min(cut)) for i in range(len(image))]
    crops = torch.stack([cut[j] for j in lenders])
    tiles = functional.unfold(crops, TILE, stride=TILE)
    order = torch.rand((len(tiles), tiles.shape[2]), generator=generator, device=generator.device).argsort(1)
    mixed = tiles.gather(2, order.to(tiles.device)[:, None].expand_as(tiles))
    return functional.fold(mixed, size, TILE, stride=TILE)
