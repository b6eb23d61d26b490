"""Building blocks of the flows: invertible steps, coupling networks and the normal prior.

A step is an invertible 1x1 convolution, activation norm and an affine coupling (arXiv 1807.03039). The convolution
comes before the norm, so that on the first batch the first step of a flow can be set to the principal axes and standard
deviations of its input. The convolutions of later steps are initialized to reverse the channels, so that each half is
transformed in turn. Tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

LEAST_SPREAD = 1e-4  # least initial standard deviation of a channel, in scaled units; a constant band would have 0


class Steps(nn.Module):
    """Sequence of flow steps."""

    steps: Sequence[FlowStep]

    def __init__(self, steps: Iterable[FlowStep]) -> None:
        super().__init__()
        self.steps = cast("Sequence[FlowStep]", nn.ModuleList(steps))

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Map `x` (B, C, H, W) to the output (B, C, H, W) and ln |det| (B,); the generator is not used."""
        log_det = x.new_zeros(len(x))
        for step in self.steps:
            x, change = step.encode(x)
            log_det = log_det + change
        return x, log_det

    def decode(self, y: Tensor) -> Tensor:
        """Invert `encode`: return the input (B, C, H, W) that it maps to `y` (B, C, H, W)."""
        for step in reversed(self.steps):
            y = step.decode(y)
        return y

    def data_dependent_init(self, x: Tensor, *, later: int = 0) -> None:
        """Initialize the first step from its input `x` (B, C, H, W).

        The leading principal axes come first after all channel reversals of these steps and `later` further ones.
        """
        self.steps[0].data_dependent_init(x, leading_first=(len(self.steps) + later) % 2 == 1)


class FlowStep(nn.Module):
    """Flow step on `channels` channels: 1x1 convolution, activation norm, affine coupling.

    `net` maps the first half of the channels (the larger, if they are odd), and a context behind them where one is
    given, to the shift and the log-scale of the second half, concatenated in this order; `bound` limits the absolute
    log-scale. Without a net there is no coupling. With `checkpointing` only the net's input is stored and the net is
    recomputed in the backward pass.
    """

    def __init__(self, channels: int, net: nn.Module | None, *, bound: float) -> None:
        super().__init__()
        self.bound, self.checkpointing = bound, False
        self.weight = nn.Parameter(torch.eye(channels).flip(0))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.net = net

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map `x` (B, C, H, W), given a `context` (B, N, H, W), to the output (B, C, H, W) and ln |det| (B,)."""
        mixing = self.log_scale.exp()[:, None] * self.weight
        x = functional.conv2d(x, mixing[:, :, None, None], self.shift)
        log_det = (self.log_scale.sum() + torch.linalg.slogdet(self.weight)[1]) * math.prod(x.shape[2:])
        if self.net is None:
            return x, log_det.expand(len(x))
        first, second = x.chunk(2, dim=1)
        shift, log_scale = self._coupling(self.net, first, context)
        return torch.cat([first, second * log_scale.exp() + shift], dim=1), log_det + log_scale.sum((1, 2, 3))

    def decode(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Invert `encode`: return the input (B, C, H, W) that it maps to `y` (B, C, H, W), given the same context."""
        if self.net is not None:
            first, second = y.chunk(2, dim=1)
            shift, log_scale = self._coupling(self.net, first, context)
            y = torch.cat([first, (second - shift) * (-log_scale).exp()], dim=1)
        unmixing = torch.linalg.inv(self.weight) * (-self.log_scale).exp()
        return functional.conv2d(y, unmixing[:, :, None, None], -(unmixing @ self.shift))

    @torch.no_grad()
    def data_dependent_init(self, x: Tensor, *, leading_first: bool, least: float = LEAST_SPREAD) -> None:
        """Initialize the step to whiten `x` (B, C, H, W): each principal axis gets mean 0 and standard deviation 1.

        An axis counts as having the standard deviation `least` at the least.

        Few pixels for many channels leave small variances undetermined; the covariance is then shrunk towards a
        multiple of the identity.
        """
        values = x.movedim(1, 0).flatten(1)
        channels, pixels = values.shape
        mean = values.mean(1, keepdim=True)
        covariance = (values - mean) @ (values - mean).T / pixels
        shrinkage = (channels / (channels + pixels)) ** 2
        sphere = torch.eye(channels, dtype=x.dtype, device=x.device) * covariance.diagonal().mean()
        variances, axes = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * sphere)
        if leading_first:
            variances, axes = variances.flip(0), axes.flip(1)
        scale = variances.clamp_min(least**2).rsqrt()
        self.weight.copy_(axes.T)
        self.log_scale.copy_(scale.log())
        self.shift.copy_(-(scale[:, None] * (axes.T @ mean)).flatten())

    def _coupling(self, net: nn.Module, first: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        seen = first if context is None else torch.cat([first, context], dim=1)
        return bounded(recomputed(net, seen, self.checkpointing), self.bound)


def recomputed(net: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    """Return `net(x)`; with `checkpointing` only `x` is stored, and the net is computed again in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        return cast("Tensor", checkpoint(net, x, use_reentrant=False))
    return cast("Tensor", net(x))


def bounded(out: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Part the output of a coupling network (B, 2 C, H, W) into the shift and the log-scale, that within +- `bound`."""
    shift, raw = out.chunk(2, dim=1)
    return shift, bound * torch.tanh(raw / bound)


class CouplingNet(nn.Module):
    """Densely connected 3x3 convolutions from `inputs` to `outputs` channels; the last layer is initialized to zero.

    `dilation` is the distance in pixels between the taps of a convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, layers: int, growth: int, dilation: int = 1) -> None:
        super().__init__()
        widths = [inputs + i * growth for i in range(layers)]
        self.layers = nn.ModuleList(
            nn.Conv2d(width, growth, 3, padding=dilation, dilation=dilation) for width in widths
        )
        self.last = zero_conv(inputs + layers * growth, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        for layer in self.layers:
            x = torch.cat([x, functional.relu(layer(x))], dim=1)
        out: Tensor = self.last(x)
        return out


class ChannelNormal(nn.Module):
    """Normal distribution with a learned mean and log-scale per channel, shared by all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the ln density (B,) of `z` (B, C, H, W), in nats."""
        standard = (z - self.mean[:, None, None]) * (-self.log_scale).exp()[:, None, None]
        pixels = math.prod(z.shape[2:])
        constant = (self.log_scale.sum() + 0.5 * z.shape[1] * math.log(2 * math.pi)) * pixels
        return -0.5 * standard.square().sum((1, 2, 3)) - constant

    def sample(
        self, shape: tuple[int, int, int, int], *, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Draw reparametrized samples of `shape` (B, C, H, W); `temperature` multiplies the standard deviation."""
        noise = standard_normal(shape, generator, like=self.mean)
        return self.mean[:, None, None] + (self.log_scale.exp() * temperature)[:, None, None] * noise


def standard_normal(shape: Sequence[int], generator: torch.Generator | None, *, like: Tensor) -> Tensor:
    """Draw standard normal samples of `shape`, with device and dtype of `like`, on the generator's device."""
    device = generator.device if generator is not None else like.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def zero_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 1x1 convolution initialized to zero, so that the coupling it feeds starts as the identity."""
    layer = nn.Conv2d(inputs, outputs, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
