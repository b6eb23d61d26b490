"""Sources of negative patches: samples of the flow, textures made of real crops, and plainer ones to compare with.

A patch is (C, h, w) in the scaled units of the images, drawn with one generator, and each image of a batch has its own:
`flow` samples; `phase`, a real crop with its Fourier phases drawn anew, the same for all bands: a texture with the
crop's colours, spectrum and ties between bands, and none of its things; `crop`, a real crop as it is, in a wrong place;
`scaled`, one shrunk two to four times, turned and mirrored; `shuffled`, one with its tiles permuted; `attribution`, one
whose pixels that the classes are told by have changed places (after ASCOOD, CVPR 2026); `noise` (independent uniform
values); `colour` (one colour a patch); `folder` (cut from photographs: classic outlier exposure,
arXiv 1812.04606). Sources may be mixed, with weights. Real crops come from valid pixels of another image of the batch
than the one they go into, unless no other has room. Each patch then gets a tint: contrast and level of every band
change at random, so that negatives also differ from inliers as unknown materials do. Only the flow's patches carry a
gradient. This module handles tensors only; photographs come from a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from geood.config import NegativesConfig
from geood.models import Flow
from geood.training.pasting import Size, draw_boxes, rounded_up

TILE = 8  # largest side of the permuted tiles of shuffled crops, in pixels; at most half a side of the patch
MOVED = 0.1  # share of the pixels that attribution moves
SPECTRUM_PX = 32  # least sides of the crop whose spectrum a texture has
SHRUNK = (2.0, 4.0)  # least and largest factor by which scaled crops are made smaller

Photographs = Callable[[int, int, int, torch.Generator], Tensor]  # count, height, width, generator


class Images(NamedTuple):
    """Images (B, C, H, W) of a batch, their validity (B, H, W) bool, and how much each pixel tells of its class.

    `telling` (B, H, W) is needed by the source attribution alone.
    """

    image: Tensor
    valid: Tensor
    telling: Tensor | None = None


def draw_patches(
    config: NegativesConfig,
    sizes: Sequence[Size],
    given: Images,
    *,
    flow: Flow | None,
    photographs: Photographs | None,
    generator: torch.Generator,
) -> list[Tensor]:
    """Draw a patch (C, h, w) for each image of a batch, of its size (h, w) in `sizes`.

    Values are in [0, 1], except those of flow samples without a tint: the loss is to see what lies outside.

    Raises:
        ValueError: a source of the config is not available.
    """
    patches = dict[int, Tensor]()
    chosen = _chosen(config, len(sizes), generator)
    for source in config.sources:
        which = [i for i, name in enumerate(chosen) if name == source]
        if source == "flow" and flow is not None:
            patches |= _sampled(flow, {i: sizes[i] for i in which}, config.temperature, generator)
        elif source == "folder" and photographs is not None:
            patches |= {i: photographs(1, *sizes[i], generator)[0].to(given.image) for i in which}
        elif source in DRAWN:
            patches |= {i: DRAWN[source](given, i, sizes[i], generator) for i in which}
        else:
            raise ValueError(f"no patches of source {source!r} can be drawn here")
    drawn = [patches[i] for i in range(len(sizes))]
    return [_tinted(patch, config.tint, generator).clamp(0, 1) for patch in drawn] if config.tint else drawn


def cut_from_another(given: Images, i: int, size: Size, generator: torch.Generator) -> tuple[int, int, int] | None:
    """Draw a valid place of `size` (h, w) in another image than `i`: image, row, col; in `i` if no other has room.

    None if there is no room at all.
    """
    order = torch.randperm(len(given.image), generator=generator, device=generator.device).tolist()
    for j in (*(j for j in order if j != i), i):
        [box] = draw_boxes(given.valid[j : j + 1], [size], generator)
        if box is not None:
            return j, *box
    return None


def _chosen(config: NegativesConfig, count: int, generator: torch.Generator) -> list[str]:
    """Draw a source for each of `count` images, by their weights."""
    names, weights = list(config.sources), list(config.sources.values())
    if len(names) == 1:
        return names * count
    shares = torch.tensor(weights, device=generator.device)
    drawn = torch.multinomial(shares, count, replacement=True, generator=generator)
    return [names[i] for i in drawn.tolist()]


def _sampled(flow: Flow, sizes: dict[int, Size], temperature: float, generator: torch.Generator) -> dict[int, Tensor]:
    """Sample the flow at the next larger sizes that it has, those of one size together, and cut to `sizes`."""
    alike: dict[Size, list[int]] = {}
    for i, size in sizes.items():
        alike.setdefault(rounded_up(size, flow.multiple), []).append(i)
    patches: dict[int, Tensor] = {}
    for whole, which in alike.items():
        samples = flow.sample(len(which), *whole, temperature=temperature, generator=generator)
        patches |= {i: sample[:, : sizes[i][0], : sizes[i][1]] for i, sample in zip(which, samples, strict=True)}
    return patches


def _tinted(patch: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """Stretch each band of a patch (C, h, w) about its mean by e^(spread n), and shift it by spread n / 2."""
    drawn = torch.randn((2, len(patch), 1, 1), generator=generator, device=generator.device, dtype=patch.dtype)
    stretch, shift = (spread * drawn).to(patch.device)
    mean = patch.mean((1, 2), keepdim=True)
    tinted: Tensor = (patch - mean) * stretch.exp() + mean + shift / 2
    return tinted


def _crop(given: Images, i: int, size: Size, generator: torch.Generator) -> Tensor:
    """Cut a crop (C, h, w) for image `i`; an even grey (0.5) if no image has room for it."""
    return _at(given, cut_from_another(given, i, size, generator), size)


def _at(given: Images, place: tuple[int, int, int] | None, size: Size) -> Tensor:
    """Return the crop (C, h, w) at a place (image, row, col); an even grey if it is None."""
    if place is None:
        return given.image.new_full((given.image.shape[1], *size), 0.5)
    j, row, col = place
    return given.image[j, :, row : row + size[0], col : col + size[1]]


def _phase(given: Images, i: int, size: Size, generator: torch.Generator) -> Tensor:
    """Draw a Gaussian texture with mean, spread and spectrum of a crop, bands tied as they are in it.

    The crop fades to its mean along a Hann window, else its jump from border to border would be in the spectrum. That
    window blurs the spectrum, the more the narrower it is, and a texture of a small crop would be rougher than the
    crop; so a small patch is a part of the texture of what surrounds it. One white noise turns the phases of all bands
    (random phase noise: Galerne et al., IEEE TIP 20(1), 2011).
    """
    crop = _surroundings(given, i, size, generator)
    whole = crop.shape[1:]
    mean = crop.mean((1, 2), keepdim=True)
    rows, cols = (torch.hann_window(side, periodic=False, dtype=crop.dtype, device=crop.device) for side in whole)
    spectrum = torch.fft.rfft2((crop - mean) * rows[:, None] * cols)
    noise = torch.randn(whole, generator=generator, device=generator.device, dtype=crop.dtype).to(crop.device)
    turn = torch.fft.rfft2(noise)
    texture = torch.fft.irfft2(spectrum * turn / turn.abs().clamp_min(1e-6), s=whole)
    gain = (crop - mean).std() / texture.std().clamp_min(1e-4)
    patch: Tensor = (mean + texture * gain).clamp(0, 1)
    return patch[:, : size[0], : size[1]]


def _surroundings(given: Images, i: int, size: Size, generator: torch.Generator) -> Tensor:
    """Cut a crop (C, h, w) for image `i` with sides of at least `SPECTRUM_PX`, or as near to that as there is room."""
    own: Tensor | None = None
    for least in (SPECTRUM_PX, SPECTRUM_PX // 2, 0):
        height, width = (min(max(side, least), room) for side, room in zip(size, given.image.shape[2:], strict=True))
        place = cut_from_another(given, i, (height, width), generator)
        if place is not None and (place[0] != i or len(given.image) == 1):
            return _at(given, place, (height, width))
        if place is not None and own is None:
            own = _at(given, place, (height, width))
    return _at(given, None, size) if own is None else own


def _scaled(given: Images, i: int, size: Size, generator: torch.Generator) -> Tensor:
    """Shrink, turn and mirror a crop: real things at a wrong scale; less shrunk where no image has room for more."""
    factor, turns, mirrored = torch.rand(3, generator=generator, device=generator.device).tolist()
    drawn, quarter = SHRUNK[0] * (SHRUNK[1] / SHRUNK[0]) ** factor, int(4 * turns)
    sides, most = size[::-1] if quarter % 2 else size, given.image.shape[2:]
    for times in (drawn, drawn**0.5, 1.0):
        height, width = (min(round(side * times), whole) for side, whole in zip(sides, most, strict=True))
        place = cut_from_another(given, i, (height, width), generator)
        if place is not None:
            break
    crop = torch.rot90(_at(given, place, (height, width)), quarter, (1, 2))
    crop = crop.flip(2) if mirrored < 0.5 else crop
    small = functional.interpolate(crop[None], size=size, mode="bilinear", antialias=True, align_corners=False)
    return small[0].clamp(0, 1)


def _shuffled(given: Images, i: int, size: Size, generator: torch.Generator) -> Tensor:
    """Permute the tiles of a crop: real textures, senseless layout."""
    tile = max(1, min(TILE, min(size) // 2))
    whole = rounded_up(size, tile)
    tiles = functional.unfold(_crop(given, i, whole, generator)[None], tile, stride=tile)
    order = torch.randperm(tiles.shape[2], generator=generator, device=generator.device).to(tiles.device)
    mixed: Tensor = functional.fold(tiles[:, :, order], whole, tile, stride=tile)
    return mixed[0, :, : size[0], : size[1]]


def _attribution(given: Images, i: int, size: Size, generator: torch.Generator) -> Tensor:
    """Permute the tenth of a crop's pixels that tell most of their class: the things go, the rest stays."""
    if given.telling is None:
        raise ValueError("the source attribution needs to know which pixels are telling")
    place = cut_from_another(given, i, size, generator)
    crop = _at(given, place, size).flatten(1).clone()
    if place is not None:
        j, row, col = place
        telling = given.telling[j, row : row + size[0], col : col + size[1]].flatten()
        which = telling.topk(max(2, round(MOVED * telling.numel()))).indices
        order = torch.randperm(len(which), generator=generator, device=generator.device).to(which.device)
        crop[:, which] = crop[:, which[order]]
    return crop.reshape(-1, *size)


def _noise(given: Images, _: int, size: Size, generator: torch.Generator) -> Tensor:
    return _uniform(given, size, generator)


def _colour(given: Images, _: int, size: Size, generator: torch.Generator) -> Tensor:
    return _uniform(given, (1, 1), generator).expand(-1, *size)


def _uniform(given: Images, size: Size, generator: torch.Generator) -> Tensor:
    shape, like = (given.image.shape[1], *size), given.image
    return torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


# One function per source of `negatives.source` that needs nothing from outside: a patch for image i of a batch.
DRAWN: dict[str, Callable[[Images, int, Size, torch.Generator], Tensor]] = {
    "phase": _phase,
    "crop": _crop,
    "scaled": _scaled,
    "shuffled": _shuffled,
    "attribution": _attribution,
    "noise": _noise,
    "colour": _colour,
}
