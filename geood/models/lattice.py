"""Lattice levels: pixels predicted from coarser pixels on all sides of them, so that no block has a border.

A level parts the pixels of its input by the parity of their row and column (the lifting scheme, Sweldens 1998, with
affine couplings of Real NVP, arXiv 1605.08803, as predictions). Those on even rows and columns are the coarse image and
go on to the next level. Those between four of them are predicted from these, then the rest from both: shift and
log-scale come from linear interpolation and a convolutional network, for all channels at once. Flow steps on what is
left (three pixels per coarse one), which see the coarse image too, take up what the channels have in common.
It is factored out. The last level goes on to halve its coarse image in the same manner, without another latent, until
only every 16th of its pixels (with the default spacings) is drawn by itself.

Sampling is the way back: few pixels far apart, then between them, each between neighbours that are there already. A
squeeze with couplings between channels cannot do that: it never lets a channel depend on itself next door, and its
samples are mosaics of independent blocks. Any height and width divisible by 2 will do. Tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from geood.models.coupling import CouplingNet, FlowStep, bounded, recomputed

BOUND = 3.0  # of the absolute log-scale
ROUNDS = 1


class LatticeLevel(nn.Module):
    """Flow level from `channels` channels to as many at half the resolution; `halved` = 3 `channels` become a latent.

    `steps` flow steps work on the latent. `spacings` are those of the lattices on which the coarse image is halved
    further, none where another level follows. Coupling networks have `layers` layers of `growth` channels.
    """

    steps: Sequence[FlowStep]

    def __init__(self, channels: int, *, steps: int, layers: int, growth: int, spacings: Sequence[int] = ()) -> None:
        super().__init__()
        self.outputs, self.halved = channels, 3 * channels
        self.mixing = FlowStep(channels, None, bound=BOUND)
        self.centres = SitePrediction(_between_four(channels), layers=layers, growth=growth)
        self.edges = SitePrediction(_between_two(channels), layers=layers, growth=growth)
        seen, rest = channels + -(-self.halved // 2), self.halved // 2
        nets = (CouplingNet(seen, 2 * rest, layers=layers, growth=growth) for _ in range(steps))
        self.steps = cast("Sequence[FlowStep]", nn.ModuleList(FlowStep(self.halved, net, bound=BOUND) for net in nets))
        self.lattices = Lattices(channels, spacings, layers=layers, growth=growth) if spacings else None

    def encode(self, hidden: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, channels, H, W) to the coarse image, the latent that is factored out, and ln |det| (B,).

        The first two are (B, channels, H / 2, W / 2) and (B, halved, H / 2, W / 2); the generator is not used.
        """
        hidden, log_det = self.mixing.encode(hidden)
        coarse, detail, change = self._predicted(hidden)
        log_det = log_det + change
        for step in self.steps:
            detail, change = step.encode(detail, coarse)
            log_det = log_det + change
        if self.lattices is not None:
            coarse, change = self.lattices.encode(coarse)
            log_det = log_det + change
        return coarse, detail, log_det

    def decode(self, hidden: Tensor, out: Tensor | None) -> Tensor:
        """Invert `encode`: return (B, channels, H, W) from the coarse image and the latent `out`."""
        assert out is not None
        coarse = hidden if self.lattices is None else self.lattices.decode(hidden)
        for step in reversed(self.steps):
            out = step.decode(out, coarse)
        centres, edges = out.tensor_split([self.outputs], dim=1)
        centres = self.centres.decode(centres, coarse)
        edges = self.edges.decode(edges, torch.cat([coarse, centres], dim=1))
        right, below = edges.chunk(2, dim=1)
        sites = torch.stack([coarse, right, below, centres], dim=2)
        return self.mixing.decode(functional.pixel_shuffle(sites.flatten(1, 2), 2))

    def data_dependent_init(self, hidden: Tensor) -> None:
        """Initialize the mixing, the first step and the lattices from the level's input (B, channels, H, W)."""
        self.mixing.data_dependent_init(hidden, leading_first=True)
        coarse, detail, _ = self._predicted(self.mixing.encode(hidden)[0])
        self.steps[0].data_dependent_init(detail, leading_first=True)
        if self.lattices is not None:
            self.lattices.data_dependent_init(coarse)

    def _predicted(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coarse image, what is left of the other pixels after their prediction, and ln |det| (B,)."""
        sites = functional.pixel_unshuffle(hidden, 2).unflatten(1, (self.outputs, 4))
        coarse, right, below, centres = sites.unbind(2)
        edges, change = self.edges.encode(torch.cat([right, below], 1), torch.cat([coarse, centres], 1))
        centres, log_det = self.centres.encode(centres, coarse)
        return coarse, torch.cat([centres, edges], dim=1), log_det + change


class SitePrediction(nn.Module):
    """Affine coupling of the channels of some pixels on those of others: a linear filter plus a coupling network.

    `kernel` (targets, seen, 3, 3) is the filter at the start; the image continues at its border with its last pixels.
    """

    def __init__(self, kernel: Tensor, *, layers: int, growth: int) -> None:
        super().__init__()
        self.checkpointing = False
        self.kernel = nn.Parameter(kernel)
        self.net = CouplingNet(kernel.shape[1], 2 * kernel.shape[0], layers=layers, growth=growth)

    def encode(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (B, targets, H, W), given `seen` (B, seen, H, W), to what is left of it, and ln |det| (B,)."""
        shift, log_scale = self._coupling(seen)
        return (x - shift) * log_scale.exp(), log_scale.sum((1, 2, 3))

    def decode(self, y: Tensor, seen: Tensor) -> Tensor:
        """Invert `encode`: return the pixels (B, targets, H, W)."""
        shift, log_scale = self._coupling(seen)
        return y * (-log_scale).exp() + shift

    def _coupling(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = bounded(recomputed(self.net, seen, self.checkpointing), BOUND)
        around = functional.pad(seen, (1, 1, 1, 1), mode="replicate")
        return shift + functional.conv2d(around, self.kernel), log_scale


class Lattices(nn.Module):
    """Couplings between the pixels of an image of any size, on lattices that grow coarser with each spacing.

    Of the pixels on every `spacing`-th row and column, those of odd parity are predicted from those of even parity,
    then those on odd rows and columns of the lattice from the rest, and so on.
    """

    mixings: Sequence[FlowStep]
    nets: Sequence[CouplingNet]

    def __init__(self, channels: int, spacings: Sequence[int], *, layers: int, growth: int) -> None:
        super().__init__()
        self.spacings, self.checkpointing = tuple(spacings), False
        mixings = (FlowStep(channels, None, bound=BOUND) for _ in range(ROUNDS))
        nets = (
            CouplingNet(channels + 2, 2 * channels, layers=layers, growth=growth, dilation=spacing)
            for spacing in spacings * ROUNDS
            for _ in range(2)
        )
        self.mixings = cast("Sequence[FlowStep]", nn.ModuleList(mixings))
        self.nets = cast("Sequence[CouplingNet]", nn.ModuleList(nets))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (B, channels, H, W) to the output of the same shape and ln |det| (B,)."""
        log_det = x.new_zeros(len(x))
        for i, net in enumerate(self.nets):
            if i % self._each == 0:
                x, change = self.mixings[i // self._each].encode(x)
                log_det = log_det + change
            shift, log_scale = self._coupling(net, x, i % self._each)
            x = (x - shift) * log_scale.exp()
            log_det = log_det + log_scale.sum((1, 2, 3))
        return x, log_det

    def decode(self, y: Tensor) -> Tensor:
        """Invert `encode`: return the input (B, channels, H, W) that it maps to `y` (B, channels, H, W)."""
        for i in reversed(range(len(self.nets))):
            shift, log_scale = self._coupling(self.nets[i], y, i % self._each)
            y = y * (-log_scale).exp() + shift
            if i % self._each == 0:
                y = self.mixings[i // self._each].decode(y)
        return y

    def data_dependent_init(self, x: Tensor) -> None:
        """Initialize the first mixing from its input `x` (B, channels, H, W)."""
        self.mixings[0].data_dependent_init(x, leading_first=True)

    @property
    def _each(self) -> int:
        """Number of couplings in a round."""
        return 2 * len(self.spacings)

    def _coupling(self, net: CouplingNet, x: Tensor, turn: int) -> tuple[Tensor, Tensor]:
        """Return shift and log-scale of all pixels at a turn of a round; 0 for those that stay."""
        seen, moved = sites(x.shape[2], x.shape[3], self.spacings[turn // 2], odd=turn % 2 == 0, like=x)
        marks = torch.stack([seen, moved]).expand(len(x), -1, -1, -1)
        shift, log_scale = bounded(recomputed(net, torch.cat([x * seen, marks], dim=1), self.checkpointing), BOUND)
        return shift * moved, log_scale * moved


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
