"""DenseFlow's blocks: flows that grow wider by noise which depends on all that came before it.

After arXiv 2106.04627, in the form in which its authors train it beside a segmenter: no attention, whose fixed number
of landmarks would tie it to a size. A block has some units of steps. Between units noise channels are appended, whose
mean and scale come from the inputs of all earlier units of the block (cross-unit coupling); the likelihood is then a
lower bound, and decoding drops them again. Inside a step a densely connected net steers the coupling. Tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from geood.models.coupling import FlowStep, Steps, standard_normal, zero_conv

BOUND = 2.0  # of log-scales, as in the authors' code


class Shape(NamedTuple):
    """Units of each block, steps of each unit of a block, noise channels between units; then the coupling nets'."""

    units: tuple[int, ...]
    steps: tuple[int, ...]
    noise: int
    width: int
    depth: int = 7
    growth: int = 64


# "L-g" has L steps in all and g noise channels at a time. 25-6 and 74-10 are divided as in the authors' code; of 45-6
# only the name is known, its division is ours. "small" is meant for two CPU cores.
SHAPES = {
    "denseflow-small": Shape((2, 2, 1), (2, 2, 4), 4, 16, depth=3, growth=16),
    "denseflow-25-6": Shape((3, 2, 1), (3, 4, 8), 6, 32),
    "denseflow-45-6": Shape((5, 3, 1), (3, 6, 12), 6, 32),
    "denseflow-74-10": Shape((6, 4, 1), (5, 6, 20), 10, 48),
}


class DenseBlock(nn.Module):
    """Units of steps from `inputs` channels to `outputs`, with `noise` more channels from each unit to the next."""

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
        """Outputs (B, outputs, H, W), and ln |det| less the ln density of the noise that was drawn, (B,)."""
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
        """The input that `encode` maps to `y`, whatever noise it drew."""
        for i in reversed(range(len(self.units))):
            y = self.units[i].decode(y)
            if i:
                y = y[:, : -self.noise] if self._behind(i) else y[:, self.noise :]
        return y

    def data_dependent_init(self, x: Tensor) -> None:
        """Set the first step of the first unit to its input `x`."""
        self.units[0].data_dependent_init(x, later=self._turns(1))

    def _behind(self, unit: int) -> bool:
        """Whether the noise before a unit goes behind the rest, so that after all turns it lies behind at the start."""
        return self._turns(unit) % 2 == 0

    def _turns(self, unit: int) -> int:
        """How often the channels are turned round from a unit on, each step of which starts by doing so."""
        return sum(len(later.steps) for later in self.units[unit:])


class CrossUnitCoupling(nn.Module):
    """Noise of `outputs` channels whose mean and scale depend on `inputs` channels; standard normal at the start."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(inputs, 4 * inputs, 3, padding=1)
        self.last = zero_conv(4 * inputs, 2 * outputs)

    def draw(self, seen: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Noise (B, outputs, H, W) and minus its ln density, (B,); differentiable in the net."""
        mean, raw = self.last(functional.relu(self.hidden(seen))).chunk(2, dim=1)
        log_scale = BOUND * torch.tanh(raw / BOUND)
        normal = standard_normal(mean.shape, generator, like=seen)
        density = -0.5 * (normal.square() + math.log(2 * math.pi)) - log_scale
        return mean + log_scale.exp() * normal, -density.sum((1, 2, 3))


class GatedDenseNet(nn.Module):
    """The net of a coupling: into `shape.width` channels, a residual dense block with a gated end, out from zero."""

    def __init__(self, inputs: int, outputs: int, shape: Shape) -> None:
        super().__init__()
        widths = [shape.width + i * shape.growth for i in range(shape.depth)]
        self.first = nn.Conv2d(inputs, shape.width, 1)
        self.mixes = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.grows = nn.ModuleList(nn.Conv2d(width, shape.growth, 3, padding=1) for width in widths)
        self.gate = nn.Conv2d(shape.width + shape.depth * shape.growth, 3 * shape.width, 1)
        self.last = zero_conv(shape.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        hidden = short = self.first(x)
        for mix, grow in zip(self.mixes, self.grows, strict=True):
            new = functional.relu(grow(functional.relu(mix(hidden))))
            hidden = torch.cat([hidden, new], dim=1)
        plain, gated, gate = self.gate(hidden).chunk(3, dim=1)
        out: Tensor = self.last(short + plain + gated * torch.sigmoid(gate))
        return out


def _step(channels: int, shape: Shape) -> FlowStep:
    return FlowStep(channels, GatedDenseNet(channels // 2, channels, shape), bound=BOUND)
