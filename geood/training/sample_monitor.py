"""Monitor of negatives: figures that tell images from mosaics and noise, limits to them, and a picture.

The likelihood says little about samples: a flow whose samples are mosaics of independent blocks may have fewer bits per
dimension than one whose samples hang together. So each validation measures samples and as many real crops of the same
size in the same way, and shows them below each other. Negatives of any source are measured where they are pasted,
beside the pixels that were there before. Nothing here draws samples or knows a stage. Tensors in, numbers and pictures
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from geood._torch_compat import declare_missing_operators
from geood.models import half_step

LAGS = (1, 4, 8, 16)  # pixels
BLOCK = 8  # side of the blocks whose borders are looked for, in pixels
REAL = "real_"  # before the names of the figures of real crops
# Beyond these, samples are far from real crops; the first four as parts or multiples of the figure of these.
LEAST_CORRELATION, LEAST_SPREAD, MOST_SPREAD, MOST_BORDER = 0.7, 0.5, 1.5, 1.5
MOST_OUTSIDE = 0.1
SHOWN = 8  # images in a row of the picture
LINE = (255, 220, 0)  # colour of the outline of a pasted negative
TITLE_PX = 13  # height of the letters of a title
PASTED_LAGS = LAGS[:3]  # patches are small
LEAST_SIDE = 128  # images of a picture are shown at least that large, in pixels


def sample_figures(images: Tensor, step: Tensor) -> dict[str, float]:
    """Measure images (N, C, h, w): samples of a flow, or real crops scaled to [0, 1].

    Args:
        images: at least two pixels high and wide.
        step: (C,), the size of one digital number.

    Returns:
        `corr_1`, `corr_4`, `corr_8`, `corr_16`: correlation of pixels that many pixels apart, along rows and columns,
        about the mean of each band over all images, -1 to 1; a lag that is not below both sides is left out.
        `border`: mean absolute difference across the borders of blocks of 8 x 8 pixels, relative to that between other
        neighbours; 1 without visible borders, left out without a border. `spread`: standard deviation about those
        means. `outside`: share of values outside [0, 1] by more than half a digital number, which is the width of the
        noise that a flow learns with; digital numbers count as no finer than those of 8 bits. The others are measured
        on values clipped to [0, 1].
    """
    images = images.detach().double()
    half = torch.tensor([1.001 * half_step(size) for size in step.tolist()]).to(images)[:, None, None]
    outside = float(((images < -half) | (images > 1 + half)).double().mean())
    clipped = images.clamp(0, 1)
    centred = clipped - clipped.mean((0, 2, 3), keepdim=True)
    variance = centred.square().mean((0, 2, 3))
    figures = {f"corr_{lag}": _correlation(centred, lag) for lag in LAGS if lag < min(images.shape[2:])}
    if min(images.shape[2:]) > BLOCK:
        figures["border"] = (_border(centred) + _border(centred.transpose(2, 3))) / 2
    return figures | {"spread": float(variance.mean().sqrt()), "outside": outside}


def _correlation(centred: Tensor, lag: int) -> float:
    """Return the mean correlation at a lag over both directions and all bands; 1 in a band that is constant."""
    pairs = ((centred[..., lag:], centred[..., :-lag]), (centred[..., lag:, :], centred[..., :-lag, :]))
    variance = centred.square().mean((0, 2, 3))
    found = [torch.where(variance > 0, (a * b).mean((0, 2, 3)) / variance, 1.0).mean() for a, b in pairs]
    return float(torch.stack(found).mean())


def pasted_figures(pasted: Tensor, before: Tensor, negative: Tensor) -> dict[str, float]:
    """Measure negatives where they are pasted, and under the same outlines the pixels that they replaced.

    Args:
        pasted: images (N, C, H, W) with negatives.
        before: the same images without them.
        negative: (N, H, W) bool, True on negatives.

    Returns:
        `pasted_corr_1`, `pasted_corr_4`, `pasted_corr_8`: correlation of pixels that many apart along rows and columns,
        both on negatives, -1 to 1, about the mean of each band; and after `REAL` those of the images. Empty where there
        are no such pixels.
    """
    figures = dict[str, float]()
    for prefix, images in (("", pasted), (REAL, before)):
        shown = images.detach().double().clamp(0, 1)
        within = negative[:, None].expand_as(shown)
        count = within.sum((0, 2, 3)).clamp(min=1)
        centred = (shown - ((shown * within).sum((0, 2, 3)) / count)[:, None, None]) * within
        variance = centred.square().sum((0, 2, 3)) / count
        for lag in PASTED_LAGS:
            found = [_masked(centred, within, lag), _masked(centred.transpose(2, 3), within.transpose(2, 3), lag)]
            pairs = [part / variance.clamp(min=1e-12) for part in found if part is not None]
            if pairs and bool((variance > 0).all()):
                figures[f"{prefix}pasted_corr_{lag}"] = float(torch.stack(pairs).mean())
    return figures


def _masked(centred: Tensor, within: Tensor, lag: int) -> Tensor | None:
    """Return the mean product (C,) of pixels `lag` columns apart that both lie within; None if there are none."""
    both = within[..., lag:] & within[..., :-lag]
    if not both.any():
        return None
    return (centred[..., lag:] * centred[..., :-lag] * both).sum((0, 2, 3)) / both.sum((0, 2, 3)).clamp(min=1)


def _border(images: Tensor) -> float:
    """Return the mean step between columns on two sides of a block's border over that between other columns."""
    step = images.diff(dim=3).abs().mean((0, 1, 2))
    border = torch.arange(1, len(step) + 1, device=step.device) % BLOCK == 0
    inside = float(step[~border].mean())
    return float(step[border].mean()) / inside if inside else 1.0


def far_off(figures: Mapping[str, float]) -> list[str]:
    """Compare the figures of samples with those of real crops (their names after `REAL`); return what is far, told.

    Figures that are missing are passed over.
    """
    found = []

    def pair(name: str) -> tuple[float, float] | None:
        return (figures[name], figures[REAL + name]) if name in figures and REAL + name in figures else None

    for lag in LAGS[1:]:
        given = pair(f"corr_{lag}")
        if given and given[0] < LEAST_CORRELATION * given[1]:
            found.append(f"samples of the flow hang together less than images (correlation at {lag} px {_told(given)})")
            break
    if (given := pair("border")) and given[0] > MOST_BORDER * max(1.0, given[1]):
        found.append(f"samples of the flow show blocks (step at borders of {BLOCK} px over others {_told(given)})")
    if (given := pair("spread")) and given[0] < LEAST_SPREAD * given[1]:
        found.append(f"samples of the flow have become all alike (standard deviation {_told(given)})")
    if given and given[0] > MOST_SPREAD * given[1]:
        found.append(f"samples of the flow vary more than images (standard deviation {_told(given)})")
    if figures.get("outside", 0.0) > MOST_OUTSIDE:
        found.append(
            f"samples of the flow leave the range of the images ({100 * figures['outside']:.0f} % of their values)"
        )
    return found


def _told(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f}, of real crops {pair[1]:.2f}"


def sample_picture(rows: Mapping[str, Tensor]) -> Image.Image:
    """Draw rows of images (N, C, h, w) in [0, 1], each row under its title, the first few of each.

    Shows bands 1-2-3, or the first as grey if there are fewer. Small images are enlarged by whole numbers.
    """
    declare_missing_operators()
    from torchvision.utils import make_grid

    parts = []
    for title, images in rows.items():
        shown = images[:SHOWN, :3] if images.shape[1] >= 3 else images[:SHOWN, :1].expand(-1, 3, -1, -1)
        times = max(1, LEAST_SIDE // max(1, *images.shape[2:]))
        shown = shown.detach().float().clamp(0, 1).cpu().repeat_interleave(times, 2).repeat_interleave(times, 3)
        grid = make_grid(shown, nrow=SHOWN, padding=2, pad_value=1.0)
        parts.append((title, Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).numpy())))
    font = ImageFont.load_default(TITLE_PX)
    wide = [part.width for _, part in parts] + [round(font.getlength(title)) + 8 for title, _ in parts]
    width, line = max(wide, default=1), TITLE_PX + 9
    whole = Image.new("RGB", (width, sum(part.height + line for _, part in parts) or 1), "white")
    pen, top = ImageDraw.Draw(whole), 0
    for title, part in parts:
        pen.text((4, top + 3), title, fill="black", font=font)
        whole.paste(part, (0, top + line))
        top += part.height + line
    return whole


def outlined(images: Tensor, covered: Tensor) -> Tensor:
    """Draw a line one pixel wide around what is covered (N, H, W) bool in images (N, C, H, W): (N, 3, H, W).

    The line lies outside of what it surrounds.
    """
    grown = functional.max_pool2d(covered[:, None].float(), 3, stride=1, padding=1) > 0
    around = grown & ~covered[:, None]
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    colour = torch.tensor(LINE, dtype=images.dtype, device=images.device)[:, None, None] / 255
    return torch.where(around, colour, shown)


def stacked(parts: Sequence[Tensor], most: int) -> Tensor | None:
    """Join batches of images (N, C, h, w) and keep the first `most`; None of none."""
    return torch.cat(list(parts))[:most] if parts else None
