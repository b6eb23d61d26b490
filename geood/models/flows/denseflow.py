"""DenseFlow blocks: flow steps whose width grows by noise channels conditioned on earlier activations.

Follows arXiv 2106.04627 in the form in which its authors train it jointly with a segmenter: without attention, whose
fixed number of landmarks would tie it to one image size. A block is a sequence of units, each a sequence of steps.
Between units, noise channels are concatenated whose mean and scale are predicted from the inputs of all earlier units
of the block (cross-unit coupling). The likelihood is then a lower bound, and decoding drops the noise channels. A
densely connected network predicts shift and scale of each coupling. Tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from geood.models.flows.coupling import FlowStep, Steps, standard_normal, zero_conv

BOUND = 2.0  # of the absolute log-scale, as in the authors' code


class Shape(NamedTuple):
    """Architecture of a DenseFlow.

    `units` of each block, `steps` of each unit of a block, `noise` channels added between units; `width`, `depth` and
    `growth` of the coupling networks.
    """

    units: tuple[int, ...]
    steps: tuple[int, ...]
    noise: int
    width: int
    depth: int = 7
    growth: int = 64


# "L-g" has L steps in all and g noise channels between units. 25-6 and 74-10 are divided into blocks as in the authors'
# code; of 45-6 only the name is published, its division is ours. "small" is meant for two CPU cores.
SHAPES = {
    "denseflow-small": Shape((2, 2, 1), (2, 2, 4), 4, 16, depth=3, growth=16),
    "denseflow-25-6": Shape((3, 2, 1), (3, 4, 8), 6, 32),
    "denseflow-45-6": Shape((5, 3, 1), (3, 6, 12), 6, 32),
    "denseflow-74-10": Shape((6, 4, 1), (5, 6, 20), 10, 48),
}


class DenseLevel(nn.Module):
    """Flow level of DenseFlow: squeeze of 2 x 2 pixels into channels, then `body`.

    With `halve`, half of the channels are factored out before the body. `outputs` channels continue to the next level,
    `halved` channels become a latent (0: none).
    """

    def __init__(self, inputs: int, body: DenseBlock, *, halve: bool) -> None:
        super().__init__()
        self.body, self.halved, self.outputs = body, 2 * inputs if halve else 0, body.outputs

    def encode(self, hidden: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Map (B, inputs, H, W) to the next level's input, the latent that is factored out, and ln |det| (B,).

        The first two are (B, outputs, H / 2, W / 2) and (B, halved, H / 2, W / 2); the latent is None if `halved` is 0.
        """
        hidden, out = self._squeezed(hidden)
        hidden, log_det = self.body.encode(hidden, generator)
        return hidden, out, log_det

    def decode(self, hidden: Tensor, out: Tensor | None) -> Tensor:
        """Invert `encode`: return (B, inputs, H, W) from the next level's input and the latent."""
        hidden = self.body.decode(hidden)
        if out is not None:
            hidden = torch.cat([hidden, out], dim=1)
        return functional.pixel_shuffle(hidden, 2)

    def data_dependent_init(self, hidden: Tensor) -> None:
        """Initialize the body's first step from the level's input (B, inputs, H, W)."""
        self.body.data_dependent_init(self._squeezed(hidden)[0])

    def _squeezed(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = functional.pixel_unshuffle(hidden, 2)
        if not self.halved:
            return hidden, None
        hidden, out = hidden.chunk(2, dim=1)
        return hidden, out


class DenseBlock(nn.Module):
    """Block of units from `inputs` to `outputs` channels; each unit has `noise` more channels than the one before."""

    units: Sequence[Steps]
    noises: Sequence[CrossUnitCoupling]

    def __init__(self, inputs: int, shape: Shape, level: int) -> None:
        super().__init__()
        count, self.noise = shape.units[level], shape.noise
        self.outputs = inputs + shape.noise * (count - 1)
        widths = range(inputs, self.outputs + 1, shape.noise)
        units = (Steps(_step(width, shape) for _ in range(shape.steps[level])) for width in widths)
        before = [sum([inputs, *widths[: i - 1]]) for i in range(1, count)]
        self.units = cast("Sequence[Steps]", nn.ModuleList(units))
        self.noises = cast(
            "Sequence[CrossUnitCoupling]", nn.ModuleList(CrossUnitCoupling(width, shape.noise) for width in before)
        )

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Map `x` (B, inputs, H, W) to (B, outputs, H, W) and ln |det| minus the ln density of the noise (B,)."""
        seen: list[Tensor] = []
        log_det = x.new_zeros(len(x))
        for i, unit in enumerate(self.units):
            wider = x
            if i:
                noise, change = self.noises[i - 1].draw(torch.cat(seen, dim=1), generator)
                log_det = log_det + change
                wider = torch.cat([x, noise] if self._behind(i) else [noise, x], dim=1)
            seen.append(x)
            x, change = unit.encode(wider)
            log_det = log_det + change
        return x, log_det

    def decode(self, y: Tensor) -> Tensor:
        """Invert `encode`: map (B, outputs, H, W) to (B, inputs, H, W), whatever noise was drawn."""
        for i in reversed(range(len(self.units))):
            y = self.units[i].decode(y)
            if i:
                y = y[:, : -self.noise] if self._behind(i) else y[:, self.noise :]
        return y

    def data_dependent_init(self, x: Tensor) -> None:
        """Initialize the first step of the first unit from its input `x` (B, inputs, H, W)."""
        self.units[0].data_dependent_init(x, later=self._turns(1))

    def _behind(self, unit: int) -> bool:
        """Return whether a unit's noise is concatenated last, so that it ends up last after the initial reversals."""
        return self._turns(unit) % 2 == 0

    def _turns(self, unit: int) -> int:
        """Return the number of channel reversals (initially one per step) from `unit` to the end of the block."""
        return sum(len(later.steps) for later in self.units[unit:])


class CrossUnitCoupling(nn.Module):
    """Noise of `outputs` channels with mean and scale predicted from `inputs` channels; initially standard normal."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(inputs, 4 * inputs, 3, padding=1)
        self.last = zero_conv(4 * inputs, 2 * outputs)

    def draw(self, seen: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw noise (B, outputs, H, W) given `seen` (B, inputs, H, W); return it and minus its ln density (B,).

        Both are differentiable in the parameters.
        """
        mean, raw = self.last(functional.relu(self.hidden(seen))).chunk(2, dim=1)
        log_scale = BOUND * torch.tanh(raw / BOUND)
        normal = standard_normal(mean.shape, generator, like=seen)
        density = -0.5 * (normal.square() + math.log(2 * math.pi)) - log_scale
        return mean + log_scale.exp() * normal, -density.sum((1, 2, 3))


class GatedDenseNet(nn.Module):
    """Coupling network: 1x1 convolution to `shape.width` channels, gated residual dense block, zero-initialized end."""

    def __init__(self, inputs: int, outputs: int, shape: Shape) -> None:
        super().__init__()
        widths = [shape.width + i * shape.growth for i in range(shape.depth)]
        self.first = nn.Conv2d(inputs, shape.width, 1)
        self.mixes = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.grows = nn.ModuleList(nn.Conv2d(width, shape.growth, 3, padding=1) for width in widths)
        self.gate = nn.Conv2d(shape.width + shape.depth * shape.growth, 3 * shape.width, 1)
        self.last = zero_conv(shape.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        hidden = short = self.first(x)
        for mix, grow in zip(self.mixes, self.grows, strict=True):
            new = functional.relu(grow(functional.relu(mix(hidden))))
            hidden = torch.cat([hidden, new], dim=1)
        plain, gated, gate = self.gate(hidden).chunk(3, dim=1)
        out: Tensor = self.last(short + plain + gated * torch.sigmoid(gate))
        return out


def _step(channels: int, shape: Shape) -> FlowStep:
    return FlowStep(channels, GatedDenseNet(channels // 2, channels, shape), bound=BOUND)
