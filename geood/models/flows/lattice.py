"""Lattice levels: pixels predicted from coarser pixels on all sides of them, so that no block has a border.

A level parts the pixels of its input by the parity of row and column. Those on even rows and columns are the coarse
image, which goes on to the next level. Those between four of them are predicted from these, then the rest from both:
linear filters and convolutional networks give shift and log-scale, for all channels at once (the lifting scheme of
wavelets with the affine couplings of Real NVP, arXiv 1605.08803). What is left, three pixels per coarse one, passes
through flow steps that see the coarse image too, is made less heavy-tailed, and is factored out. The last level goes on
to predict the pixels of its coarse image from each other, until only a few far apart are drawn by themselves.

Sampling is the way back: pixels far apart, then those between, each between neighbours that are there already. A
squeeze with couplings between channels cannot do that: a channel never depends on itself next door, and samples are
mosaics of independent blocks. On the first batch the filters are set by least squares, and the log-scales by the
contrast around a pixel, so that even an untrained flow draws images with the correlations of that batch. Any height and
width divisible by 2 will do. Tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from geood.models.flows.coupling import LEAST_SPREAD, CouplingNet, FlowStep, bounded, recomputed
from geood.models.flows.elementwise import SMALL, Ends, Stretch, Tails

BOUND = 2.0  # of the absolute log-scale
LEAST = 0.005  # least contrast, in standard deviations of a band
RIDGE = 1e-4  # of least squares, as a part of the mean square


class LatticeLevel(nn.Module):
    """Flow level from `channels` channels to as many at half the resolution; `halved` = 3 `channels` become a latent.

    `steps` flow steps work on the latent. `spacings` are those of the lattices on which the coarse image is halved
    further, none where another level follows. Coupling networks have `layers` layers of `growth` channels. The first
    level is told the `step` (`channels`,) of one digital number of each band, and keeps to the range of the images.
    """

    steps: Sequence[FlowStep]

    def __init__(
        self,
        channels: int,
        *,
        steps: int,
        layers: int,
        growth: int,
        step: Sequence[float] = (),
        spacings: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.outputs, self.halved = channels, 3 * channels
        self.ends = Ends(step) if step else None
        self.stretch = Stretch(channels) if step else None
        self.mixing = FlowStep(channels, None, bound=BOUND)
        self.centres = SitePrediction(_between_four(channels), layers=layers, growth=growth)
        self.edges = SitePrediction(_between_two(channels), layers=layers, growth=growth)
        seen, rest = 2 * channels + -(-self.halved // 2), self.halved // 2
        nets = (CouplingNet(seen, 2 * rest, layers=layers, growth=growth) for _ in range(steps))
        self.steps = cast("Sequence[FlowStep]", nn.ModuleList(FlowStep(self.halved, net, bound=BOUND) for net in nets))
        self.tails = Tails(self.halved)
        self.lattices = Lattices(channels, spacings, layers=layers, growth=growth) if spacings else None

    def encode(self, hidden: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, channels, H, W) to the coarse image, the latent that is factored out, and ln |det| (B,).

        The first two are (B, channels, H / 2, W / 2) and (B, halved, H / 2, W / 2); the generator is not used.
        """
        hidden, log_det = self._mixed(hidden)
        coarse, detail, change = self._predicted(hidden)
        log_det, around = log_det + change, torch.cat([coarse, contrast(coarse)], dim=1)
        for step in self.steps:
            detail, change = step.encode(detail, around)
            log_det = log_det + change
        detail, change = self.tails.encode(detail)
        log_det = log_det + change
        if self.lattices is not None:
            coarse, change = self.lattices.encode(coarse)
            log_det = log_det + change
        return coarse, detail, log_det

    def decode(self, hidden: Tensor, out: Tensor | None) -> Tensor:
        """Invert `encode`: return (B, channels, H, W) from the coarse image and the latent `out`."""
        assert out is not None
        coarse = hidden if self.lattices is None else self.lattices.decode(hidden)
        around, out = torch.cat([coarse, contrast(coarse)], dim=1), self.tails.decode(out)
        for step in reversed(self.steps):
            out = step.decode(out, around)
        centres, edges = out.tensor_split([self.outputs], dim=1)
        centres = self.centres.decode(centres, coarse)
        edges = self.edges.decode(edges, torch.cat([coarse, centres], dim=1))
        right, below = edges.chunk(2, dim=1)
        sites = torch.stack([coarse, right, below, centres], dim=2)
        hidden = self.mixing.decode(functional.pixel_shuffle(sites.flatten(1, 2), 2))
        if self.ends is None or self.stretch is None:
            return hidden
        return self.ends.decode(self.stretch.decode(hidden))

    def data_dependent_init(self, hidden: Tensor) -> None:
        """Initialize all that a batch tells of the level, from the level's input (B, channels, H, W)."""
        stretched, _ = self._stretched(hidden)
        least = SMALL if self.stretch is None else LEAST_SPREAD  # later levels see standard deviations
        self.mixing.data_dependent_init(stretched, leading_first=True, least=least)
        hidden, _ = self._mixed(hidden)
        coarse, centres, edges = self._parted(hidden)
        self.centres.data_dependent_init(centres, coarse)
        self.edges.data_dependent_init(edges, torch.cat([coarse, centres], dim=1))
        _, detail, _ = self._predicted(hidden)
        self.steps[0].data_dependent_init(detail, leading_first=True, least=SMALL)
        around = torch.cat([coarse, contrast(coarse)], dim=1)
        for step in self.steps:
            detail, _ = step.encode(detail, around)
        self.tails.data_dependent_init(detail)
        if self.lattices is not None:
            self.lattices.data_dependent_init(coarse)

    def _mixed(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the level's input stretched, if it is the first level, with mixed channels, and ln |det| (B,)."""
        hidden, change = self._stretched(hidden)
        hidden, log_det = self.mixing.encode(hidden)
        return hidden, log_det + change

    def _stretched(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first level's input without ends and stretched, and ln |det| (B,); another's as it is."""
        if self.ends is None or self.stretch is None:
            return hidden, hidden.new_zeros(len(hidden))
        hidden, log_det = self.ends.encode(hidden)
        hidden, change = self.stretch.encode(hidden)
        return hidden, log_det + change

    def _parted(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coarse image, the pixels between four of its own, and those between two (right, then below)."""
        sites = functional.pixel_unshuffle(hidden, 2).unflatten(1, (self.outputs, 4))
        coarse, right, below, centres = sites.unbind(2)
        return coarse, centres, torch.cat([right, below], dim=1)

    def _predicted(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coarse image, what is left of the other pixels after their prediction, and ln |det| (B,)."""
        coarse, centres, edges = self._parted(hidden)
        edges, change = self.edges.encode(edges, torch.cat([coarse, centres], dim=1))
        centres, log_det = self.centres.encode(centres, coarse)
        return coarse, torch.cat([centres, edges], dim=1), log_det + change


class SitePrediction(nn.Module):
    """Affine coupling of the channels of some pixels on those of others: a linear filter plus a coupling network.

    `kernel` (targets, seen, 3, 3) is the filter before the first batch, which sets it to the best for that batch. The
    network sees the contrast of the pixels beside them. The image continues at its border with its last pixels.
    """

    def __init__(self, kernel: Tensor, *, layers: int, growth: int) -> None:
        super().__init__()
        self.checkpointing = False
        self.kernel = nn.Parameter(kernel)
        self.net = CouplingNet(2 * kernel.shape[1], 2 * kernel.shape[0], layers=layers, growth=growth)

    def encode(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (B, targets, H, W), given `seen` (B, seen, H, W), to what is left of it, and ln |det| (B,)."""
        shift, log_scale = self._coupling(seen)
        return (x - shift) * log_scale.exp(), log_scale.sum((1, 2, 3))

    def decode(self, y: Tensor, seen: Tensor) -> Tensor:
        """Invert `encode`: return the pixels (B, targets, H, W)."""
        shift, log_scale = self._coupling(seen)
        return y * (-log_scale).exp() + shift

    @torch.no_grad()
    def data_dependent_init(self, x: Tensor, seen: Tensor) -> None:
        """Fit the filter to the pixels `x` (B, targets, H, W), and the log-scale to what it leaves, given `seen`.

        Both by least squares: the filter on the pixels, the log of what is left on the contrast around it.
        """
        patches, left = functional.unfold(_continued(seen), 3), self.encode(x, seen)[0]
        self.kernel.add_(_least_squares(patches, left.flatten(2))[0].reshape(self.kernel.shape))
        left = (x - functional.conv2d(_continued(seen), self.kernel)).abs().add(LEAST).log()
        slopes, offset = _least_squares(contrast(seen).flatten(2), left.flatten(2))
        targets, count = x.shape[1], seen.shape[1]
        assert self.net.last.bias is not None
        self.net.last.weight[targets:, count : 2 * count] = -slopes[:, :, None, None]
        self.net.last.bias[targets:] = left.mean((0, 2, 3)) - offset

    def _coupling(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        around = torch.cat([seen, contrast(seen)], dim=1)
        shift, log_scale = bounded(recomputed(self.net, around, self.checkpointing), BOUND)
        return shift + functional.conv2d(_continued(seen), self.kernel), log_scale


class Lattices(nn.Module):
    """Couplings between the pixels of an image of any size, on lattices that grow coarser with each spacing.

    Of the pixels on every `spacing`-th row and column, those of odd parity are predicted from those of even parity,
    then those on odd rows and columns of the lattice from the rest, and so on: from the mean of the neighbours that are
    there, plus what a coupling network adds.
    """

    nets: Sequence[CouplingNet]

    def __init__(self, channels: int, spacings: Sequence[int], *, layers: int, growth: int) -> None:
        super().__init__()
        self.turns, self.checkpointing = [(spacing, odd) for spacing in spacings for odd in (True, False)], False
        self.mixing = FlowStep(channels, None, bound=BOUND)
        self.slopes = nn.Parameter(torch.eye(channels).repeat(len(self.turns), 1, 1))
        self.first = nn.Parameter(torch.zeros(2, channels))  # shift and log-scale of the pixels that none foretells
        shape = {"layers": layers, "growth": growth}
        nets = (CouplingNet(2 * channels + 2, 2 * channels, dilation=turn[0], **shape) for turn in self.turns)
        self.nets = cast("Sequence[CouplingNet]", nn.ModuleList(nets))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (B, channels, H, W) to the output of the same shape and ln |det| (B,)."""
        x, log_det = self.mixing.encode(x)
        for turn in range(len(self.turns)):
            shift, log_scale = self._coupling(turn, x)
            x = (x - shift) * log_scale.exp()
            log_det = log_det + log_scale.sum((1, 2, 3))
        shift, log_scale = self._first(x)
        return (x - shift) * log_scale.exp(), log_det + log_scale.sum()

    def decode(self, y: Tensor) -> Tensor:
        """Invert `encode`: return the input (B, channels, H, W) that it maps to `y` (B, channels, H, W)."""
        shift, log_scale = self._first(y)
        y = y * (-log_scale).exp() + shift
        for turn in reversed(range(len(self.turns))):
            shift, log_scale = self._coupling(turn, y)
            y = y * (-log_scale).exp() + shift
        return self.mixing.decode(y)

    @torch.no_grad()
    def data_dependent_init(self, x: Tensor) -> None:
        """Initialize the mixing, and the prediction at each turn by least squares, from `x` (B, channels, H, W)."""
        self.mixing.data_dependent_init(x, leading_first=True, least=SMALL)
        x, _ = self.mixing.encode(x)
        channels = x.shape[1]
        for turn, net in enumerate(self.nets):
            _, moved, mean = self._around(turn, x)
            here = moved.flatten() > 0
            if here.any():
                slopes, offset = _least_squares(mean.flatten(2)[..., here], x.flatten(2)[..., here])
                left = x - torch.einsum("ij,bjhw->bihw", slopes, mean) - offset[:, None, None]
                spread = left.flatten(2)[..., here].std((0, 2), correction=0)
                assert net.last.bias is not None
                self.slopes[turn] = slopes
                net.last.bias[:channels] = offset
                net.last.bias[channels:] = -spread.clamp_min(SMALL).log()
            shift, log_scale = self._coupling(turn, x)
            x = (x - shift) * log_scale.exp()
        first = x.flatten(2)[..., self.alone(x).flatten() > 0]
        if first.numel() > channels:  # a single pixel tells no spread
            self.first[0], self.first[1] = first.mean((0, 2)), -first.std((0, 2), correction=0).clamp_min(SMALL).log()

    def alone(self, x: Tensor) -> Tensor:
        """Return which pixels (H, W) of `x` (B, channels, H, W) no other foretells, as 0 and 1 of its dtype."""
        row, col = (torch.arange(side, device=x.device) % (2 * self.turns[-1][0]) == 0 for side in x.shape[2:])
        return (row[:, None] & col).to(x.dtype)

    def _first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and log-scale (channels, H, W) of the pixels that no other foretells; 0 for all others.

        They vary more than what predictions leave, and share a prior with that.
        """
        shift, log_scale = self.first[:, :, None, None] * self.alone(x)
        return shift, log_scale

    def _coupling(self, turn: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and log-scale of all pixels at a turn; 0 for those that stay."""
        seen, moved, mean = self._around(turn, x)
        marks = torch.stack([seen, moved]).expand(len(x), -1, -1, -1)
        around = torch.cat([x * seen, mean, marks], dim=1)
        shift, log_scale = bounded(recomputed(self.nets[turn], around, self.checkpointing), BOUND)
        shift = shift + torch.einsum("ij,bjhw->bihw", self.slopes[turn], mean)
        return shift * moved, log_scale * moved

    def _around(self, turn: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pixels (H, W) seen and moved at a turn, and the mean (B, C, H, W) of the seen around each."""
        spacing, odd = self.turns[turn]
        seen, moved = sites(x.shape[2], x.shape[3], spacing, odd=odd, like=x)
        taps = x.new_ones(1, 1, 3, 3)
        count = functional.conv2d(seen[None, None], taps, padding=spacing, dilation=spacing)
        total = functional.conv2d((x * seen).flatten(0, 1)[:, None], taps, padding=spacing, dilation=spacing)
        return seen, moved, total.reshape(x.shape) / count[0].clamp_min(1)


def sites(height: int, width: int, spacing: int, *, odd: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return which pixels (H, W) are seen and which predicted on a lattice, each as 0 and 1 with dtype of `like`.

    Of the pixels on every `spacing`-th row and column: with `odd`, those of odd parity from those of even parity, else
    those on odd rows and columns from those on even rows and columns.
    """
    row, col = torch.arange(height, device=like.device)[:, None], torch.arange(width, device=like.device)
    here = (row % spacing == 0) & (col % spacing == 0)
    row, col = row // spacing % 2, col // spacing % 2
    seen = (row + col) % 2 == 0 if odd else (row == 0) & (col == 0)
    moved = (row + col) % 2 == 1 if odd else (row == 1) & (col == 1)
    return (here & seen).to(like.dtype), (here & moved).to(like.dtype)


def contrast(image: Tensor) -> Tensor:
    """Return the log of the mean absolute difference to the mean of 3 x 3 pixels, over 3 x 3 pixels: (B, C, H, W)."""
    apart = image - functional.avg_pool2d(_continued(image), 3, stride=1)
    return functional.avg_pool2d(_continued(apart.abs()), 3, stride=1).add(LEAST).log()


def _continued(image: Tensor) -> Tensor:
    """Return an image with a frame of one pixel that repeats its last pixels."""
    return functional.pad(image, (1, 1, 1, 1), mode="replicate")


def _least_squares(seen: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return slopes (C, N) and offset (C,) of the best linear map from `seen` (B, N, P) to `x` (B, C, P).

    The squares of the slopes weigh a little, and more where there are few pixels for many slopes.
    """
    given, wanted = seen.movedim(1, 0).flatten(1).double(), x.movedim(1, 0).flatten(1).double()
    means = given.mean(1, keepdim=True), wanted.mean(1, keepdim=True)
    given, wanted = given - means[0], wanted - means[1]
    square = given @ given.T
    part = RIDGE + (given.shape[0] / given.shape[1]) ** 2
    ridge = part * (square.diagonal().mean() + SMALL**2 * given.shape[1])
    square += ridge * torch.eye(len(square), dtype=square.dtype, device=square.device)
    slopes = torch.linalg.solve(square, given @ wanted.T).T
    return slopes.to(x.dtype), (means[1] - slopes @ means[0]).flatten().to(x.dtype)


def _between_four(channels: int) -> Tensor:
    """Return the kernel (channels, channels, 3, 3) of the mean of the four coarse pixels around a centre."""
    kernel = torch.zeros(channels, channels, 3, 3)
    for k in range(channels):
        kernel[k, k, 1:, 1:] = 1 / 4
    return kernel


def _between_two(channels: int) -> Tensor:
    """Return the kernel (2 channels, 2 channels, 3, 3) of the mean of the four pixels around an edge.

    Those are two coarse pixels and two centres; the first half of the targets lies right of a coarse pixel, the second
    half below one.
    """
    kernel = torch.zeros(2 * channels, 2 * channels, 3, 3)
    for k in range(channels):
        right, below, coarse, centre = k, channels + k, k, channels + k
        kernel[right, coarse, 1, 1:] = kernel[right, centre, :2, 1] = 1 / 4
        kernel[below, coarse, 1:, 1] = kernel[below, centre, 1, :2] = 1 / 4
    return kernel
