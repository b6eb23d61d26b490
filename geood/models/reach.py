"""Reach of a network: how far from a pixel its score still depends on the image, and the halo that tiles need for it.

Two things are measured, on float32 tensors. The *gradient*: the share of one pixel's input gradient (sum of its
absolute values) from beyond a square distance, after the effective receptive field of Luo et al. (arXiv 1701.04128). It
tells at once with which halo next to nothing is lost. The *seam*: the scores of two tiles that meet, against those of
one pass over both. A network that pools over its whole input has a gradient that never ends; there, only the seam tells
what a halo is worth, and that may be little.

The halo holds 99 % of the gradient, and is widened while the seam is rougher than asked. Where the gradient does not
end, it is the narrowest with a seam as smooth as asked. It is at most `MOST_HALO`, and the bundle tells what is left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from geood.models.bundle_header import Reach
from geood.models.segmenter import Segmenter, SegmenterOutput

STEP = 32  # of halos, pixels
MOST_HALO = 352  # pixels: with tiles of 2048 px, 45 % of the work is halo
LOST = 0.01  # share of the gradient that a halo may cut off
ROUGH = 1.5  # step of scores at a seam, as a multiple of that elsewhere
CHANGED = 0.005  # share of the pixels above the threshold that may change side
ANOMALOUS = 0.01  # share of pixels above the threshold for which that is asked
NEAR = 128  # pixels on either side of a seam in which sides are compared
FLAT = 1e-3  # of the spread of scores: a step that is none
PIXELS = 2  # whose gradients are taken in a field
WIDER = (0, 32, 64, 128)  # pixels by which a halo is widened in turn, until its seam is smooth
POOLING = (64, 128, 192, 256, MOST_HALO)  # halos to choose from where the gradient does not end
SHORT = 512  # pixels: side of the field in which most networks' gradients end
ENDED = LOST / 10  # share beyond which a gradient has ended
SEARCHED = 3  # of them, about: one or two, and at most five
OPERATIONS = 1.5e12  # floating-point, in all: 10 to 20 s on one core, which does 50 to 90 thousand millions a second

Scores = Callable[[Tensor], Tensor]  # images (B, C, H, W) to scores (B, H, W)


class Effort(NamedTuple):
    """Amount of measuring: side of the square fields, number of fields, and of strips with a seam in them."""

    side_px: int
    fields: int
    strips: int

    @property
    def strip_px(self) -> tuple[int, int]:
        """Height and width of a strip, in pixels: two halos of `MOST_HALO` and as much again, where it is full."""
        return 2 * self.side_px // 3 // STEP * STEP, 2 * self.side_px

    @property
    def passes_px(self) -> float:
        """Number of pixels that pass through the network forwards or backwards, about."""
        high, wide = self.strip_px
        return self.fields * (1 + 2 * PIXELS) * self.side_px**2 + self.strips * (1 + 1.4 * SEARCHED) * high * wide


EFFORTS = (Effort(768, 2, 2), Effort(768, 1, 1), Effort(SHORT, 1, 1))


class Seam(NamedTuple):
    """Look of a seam: `step` and `changed` of a `Reach`."""

    step: float
    changed: float

    @property
    def smooth(self) -> bool:
        """True if the seam is as smooth as asked."""
        return self.step <= ROUGH and self.changed <= CHANGED


def effort_for(segmenter: Segmenter) -> Effort:
    """Return the most that can be measured within `OPERATIONS`, by the network's operations on a pixel; the least else.

    It depends on the network alone, so the same network is measured in the same way on any machine.
    """
    network, side = copy.deepcopy(segmenter).to("meta"), 256
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.empty(1, segmenter.bands, side, side, device="meta"))
    each = counter.get_total_flops() / side**2
    return next((effort for effort in EFFORTS if effort.passes_px * each <= OPERATIONS), EFFORTS[-1])


def gradient_beyond(
    network: Callable[[Tensor], Sequence[Tensor]], image: Tensor, pixels: Sequence[tuple[int, int]]
) -> Tensor:
    """Return the shares (M,) of pixels' input gradients from beyond 32, 64, ... pixels, the largest of the outputs.

    Distances are square (the larger of rows and columns), as halos are. The last, M, is the last within the image.

    Args:
        network: image (1, C, H, W) to outputs (H, W), differentiable.
        image: (1, C, H, W).
        pixels: rows and columns of the output pixels, far from the image's edge.
    """
    given = image.detach().clone().requires_grad_()
    outputs = network(given)
    height, width = image.shape[-2:]
    rows, cols = (torch.arange(n, device=image.device) for n in (height, width))
    steps = (min(height, width) // 2 - 1) // STEP
    beyond = torch.zeros(len(outputs), steps, dtype=torch.float64)
    for row, col in pixels:
        away = torch.maximum((rows - row).abs()[:, None], (cols - col).abs()[None])
        ring = (away - 1).clamp_min(0).div(STEP, rounding_mode="floor").flatten().cpu()
        for i, output in enumerate(outputs):
            (gradient,) = torch.autograd.grad(output[row, col], given, retain_graph=True)
            size = gradient.abs().sum((0, 1)).double().flatten().cpu()
            rings = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add_(0, ring, size)
            total = float(rings.sum())
            if total > 0:
                beyond[i] += (rings.flip(0).cumsum(0).flip(0)[1:] / total)[:steps]
    return (beyond / len(pixels)).amax(0)


def outputs_of(segmenter: Segmenter, *, outlier: bool, encoder: bool) -> Callable[[Tensor], list[Tensor]]:
    """Return a function from an image (1, C, H, W) to the outputs (H, W) of a segmenter that its score is made of.

    These are the log-likelihood of its logits, and if asked for the outlier logit, and the encoder's features at
    strides 8 and 16, each place's spread over its block of pixels.
    """

    def outputs(image: Tensor) -> list[Tensor]:
        answer: SegmenterOutput = segmenter(image, outlier)
        chosen = [answer.logits[0].logsumexp(0)]
        if outlier and answer.outlier is not None:
            chosen.append(answer.outlier[0])
        for features in (answer.encoder, answer.coarser) if encoder else ():
            places = features[0].square().sum(0)
            block = image.shape[-1] // places.shape[-1]
            chosen.append(places.repeat_interleave(block, 0).repeat_interleave(block, 1))
        return chosen

    return outputs


@torch.no_grad()
def seam_of(score: Scores, strip: Tensor, *, halo_px: int, tile_px: int, whole: Tensor | None = None) -> Seam:
    """Return what is seen at a seam in the middle of a strip (1, C, H, W), between two tiles with a halo.

    Args:
        score: the score of images.
        strip: its sides and its half are multiples of 32.
        halo_px: a multiple of 32; one wider than half the strip sees all of it.
        tile_px: side of the tiles in use, which tells what share of their pixels is near a seam.
        whole: scores (H, W) of the strip in one pass; None: they are computed.
    """
    whole = score(strip)[0] if whole is None else whole
    middle = strip.shape[-1] // 2
    halo_px = min(halo_px, middle)
    before = score(strip[..., : middle + halo_px].contiguous())[0][:, :middle]
    after = score(strip[..., middle - halo_px :].contiguous())[0][:, halo_px:]
    tiled = torch.cat([before, after], 1)
    stepped, smooth = ((s[:, middle] - s[:, middle - 1]).abs().double().mean() for s in (tiled, whole))
    threshold = torch.quantile(_thinned(whole), 1 - ANOMALOUS)
    near = slice(max(0, middle - NEAR), middle + NEAR)
    changed = ((tiled[:, near] > threshold) != (whole[:, near] > threshold)).double().mean()
    share_near = 1 - max(0.0, 1 - 2 * NEAR / tile_px) ** 2
    rounding = FLAT * float(whole.std()) + torch.finfo(whole.dtype).eps  # of scores that are the same everywhere
    return Seam(float((stepped + rounding) / (smooth + rounding)), float(changed) * share_near / ANOMALOUS)


def chosen_halo(beyond: Sequence[float], seam: Callable[[int], Seam]) -> tuple[int, Seam]:
    """Return the halo of a network and what is seen at its seams.

    Args:
        beyond: shares of the gradient beyond 32, 64, ... pixels.
        seam: measures the seam of a halo.
    """
    least = next((STEP * (i + 1) for i, share in enumerate(beyond) if share <= LOST), None)
    if least is None or least > MOST_HALO:
        return _narrowest(seam)
    for more in WIDER:
        halo = min(least + more, MOST_HALO)
        found = seam(halo)
        if found.smooth or halo == MOST_HALO:
            break
    return halo, found  # the widest that was tried


def _narrowest(seam: Callable[[int], Seam]) -> tuple[int, Seam]:
    """Return the narrowest halo with a smooth seam, or the widest, and its seam; a wider one is taken for smoother."""
    found = seam(POOLING[0])
    if found.smooth:
        return POOLING[0], found
    low, high, best = 0, len(POOLING) - 1, seam(POOLING[-1])
    while best.smooth and high - low > 1:
        middle = (low + high) // 2
        found = seam(POOLING[middle])
        low, high, best = (low, middle, found) if found.smooth else (middle, high, best)
    return POOLING[high], best


def measured_reach(
    network: Callable[[Tensor], Sequence[Tensor]],
    score: Scores,
    views: Callable[[int, int, int], Sequence[Tensor]],
    *,
    effort: Effort,
    tile_px: Callable[[int], int],
) -> Reach:
    """Return the reach of a network in eval mode, and the halo that it needs.

    Args:
        network: image (1, C, H, W) to outputs (H, W), see `outputs_of`.
        score: images (B, C, H, W) to scores (B, H, W).
        views: returns images (1, C, H, W) of a height and width, as many as asked.
        effort: how much is measured.
        tile_px: side of the tiles that go with a halo.
    """
    short = min(SHORT, effort.side_px)
    beyond = _mean_beyond(network, views(short, short, 1))
    side = short if beyond[-1] <= ENDED else effort.side_px
    if (side, effort.fields) != (short, 1):
        beyond = _mean_beyond(network, views(side, side, effort.fields))
    least = next((STEP * (i + 1) for i, share in enumerate(beyond) if share <= LOST), None)
    high, wide = effort.strip_px
    if least is not None and least <= MOST_HALO:
        high, wide = min(high, 2 * least + 2 * NEAR), min(wide, 2 * (least + max(WIDER)) + 2 * NEAR)
    strips = views(high, wide, effort.strips)
    wholes = [score(strip)[0] for strip in strips]

    def seam(halo_px: int) -> Seam:
        one = [
            seam_of(score, strip, halo_px=halo_px, tile_px=tile_px(halo_px), whole=whole)
            for strip, whole in zip(strips, wholes, strict=True)
        ]
        return Seam(*(math.fsum(each) / len(one) for each in zip(*one, strict=True)))

    halo, left = chosen_halo(beyond, seam)
    shares = tuple(min(1.0, round(share, 6)) for share in beyond)
    known = math.isfinite(left.step) and math.isfinite(left.changed)  # not of scores that are not finite
    seen = (round(left.step, 4), round(left.changed, 6)) if known else (None, None)
    return Reach(halo_px=halo, beyond=shares, seam=seen[0], changed=seen[1])


def _mean_beyond(network: Callable[[Tensor], Sequence[Tensor]], fields: Sequence[Tensor]) -> list[float]:
    """Return the shares of `gradient_beyond`, the mean over pixels near the middle of several fields."""
    middle = fields[0].shape[-1] // 2
    pixels = [(middle + 5 * i, middle - 9 * i) for i in range(PIXELS)]  # at several phases of the strides
    return torch.stack([gradient_beyond(network, field, pixels) for field in fields]).mean(0).tolist()


def _thinned(scores: Tensor) -> Tensor:
    """Return every third score in either direction: a quantile takes no more than 16 million."""
    return scores[::3, ::3].flatten()
