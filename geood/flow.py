"""The normalizing flow: a density of image patches that can be sampled at any size, differentiably.

A multi-scale flow in the line of Glow and DenseFlow (arXiv 1807.03039, 2106.04627): each level squeezes 2 x 2 pixels
into channels, takes some steps of invertible 1x1 convolution, activation norm and affine coupling with a densely
connected net, and factors out half of its channels; what is factored out and what remains follow a learned normal for
each channel, the same at all places, hence any height and width that divide by 2^levels. `decode` returns a continuous
image and keeps the graph: the joint training moves the flow through the pixels of its samples (arXiv 2112.12833).

Two things differ from the papers, both for the sake of short training. The convolution stands before the activation
norm, and on the first batch each level's first pair is set to the principal axes and spreads of its input: smooth parts
come first, contrasts between pixels and bands later, and even an untrained flow is the best Gaussian of its pixels
rather than a checkerboard. Later steps start by turning the channels round, so that each half is transformed in turn.

This room knows tensors only. Arithmetic is float32 or wider also under autocast: log-determinants do not bear less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from geood.config import FlowConfig
from geood.operators import start_vector_functions

start_vector_functions()

# Of tanh. DenseFlow's 2 gave the same bits (3.78 against 3.77 after 300 steps on one aerial scene, one seed) and wilder
# samples (-4.8 to 3.9 against -0.8 to 2.4).
LOG_SCALE_BOUND = 1.0
LEAST_SPREAD = 1e-4  # of a channel at the start, in units of the scaled image; a constant band would have 0


class Flow(nn.Module):
    """A density over images (B, `bands`, H, W) scaled to [0, 1], with H and W multiples of `multiple`.

    `step` is one digital number of each band after scaling (0: a band of floats), the width of the dequantization
    noise. The first batch that a flow in training mode encodes sets its starting point, see `initialize`.
    """

    step: Tensor
    initialized: Tensor
    levels: Sequence[Sequence[Step]]
    normals: Sequence[ChannelNormal]

    def __init__(self, bands: int, config: FlowConfig, step: Sequence[float]) -> None:
        super().__init__()
        if len(step) != bands:
            raise ValueError(f"a step for each of the {bands} bands is needed, got {len(step)}")
        self.bands, self.multiple = bands, 2**config.levels
        self.register_buffer("step", torch.tensor(list(step), dtype=torch.float32))
        self.register_buffer("initialized", torch.tensor(False))
        levels, normals, channels = nn.ModuleList(), nn.ModuleList(), bands
        for level in range(config.levels):
            channels *= 4
            levels.append(nn.ModuleList(Step(channels, config) for _ in range(config.steps)))
            channels = channels if level == config.levels - 1 else channels // 2
            normals.append(ChannelNormal(channels))
        self.levels = cast("Sequence[Sequence[Step]]", levels)
        self.normals = cast("Sequence[ChannelNormal]", normals)

    def encode(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Latents of `image` (B, C, H, W), finest level first, and ln |det| of the map, (B,).

        Raises:
            ValueError: if bands or size do not fit.
        """
        self._check(tuple(image.shape))
        if self.training and not self.initialized:
            self.initialize(image)
        with torch.autocast(image.device.type, enabled=False):
            hidden = image.to(self.step.dtype) - 0.5
            log_det = hidden.new_zeros(len(hidden))
            latents = []
            for steps in self.levels[:-1]:
                hidden, log_det = _through(steps, hidden, log_det)
                hidden, out = hidden.chunk(2, dim=1)
                latents.append(out)
            hidden, log_det = _through(self.levels[-1], hidden, log_det)
        return [*latents, hidden], log_det

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """The image (B, C, H, W) that `encode` maps to `latents`; continuous, not clipped, differentiable."""
        hidden = latents[-1]
        with torch.autocast(hidden.device.type, enabled=False):
            for level in reversed(range(len(self.levels))):
                if level < len(self.levels) - 1:
                    hidden = torch.cat([hidden, latents[level]], dim=1)
                for step in reversed(self.levels[level]):
                    hidden = step.decode(hidden)
                hidden = functional.pixel_shuffle(hidden, 2)
            return hidden + 0.5

    def log_prob(self, image: Tensor) -> Tensor:
        """ln density of `image` (B, C, H, W) scaled to [0, 1], in nats, (B,)."""
        latents, log_det = self.encode(image)
        with torch.autocast(image.device.type, enabled=False):
            for normal, latent in zip(self.normals, latents, strict=True):
                log_det = log_det + normal.log_prob(latent)
        return log_det

    def sample(
        self,
        count: int,
        height: int,
        width: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`count` images (count, C, height, width), differentiable in the flow's parameters.

        `temperature` stretches the latents' spread; 1 samples the learned density. Values may leave [0, 1].

        Raises:
            ValueError: if the size is not a multiple of `multiple`.
        """
        self._check((count, self.bands, height, width))
        latents = []
        for level, normal in enumerate(self.normals, start=1):
            shape = (count, len(normal.mean), height >> level, width >> level)
            latents.append(normal.sample(shape, temperature=temperature, generator=generator))
        return self.decode(latents)

    def dequantize(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`image` (B, C, H, W) with uniform noise one digital number wide about each value (arXiv 1511.01844)."""
        device = generator.device if generator is not None else image.device
        noise = torch.rand(image.shape, generator=generator, device=device, dtype=self.step.dtype).to(image.device)
        return image + (noise - 0.5) * self.step[:, None, None]

    def bits_per_dimension(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bits for each value of `image` (B, C, H, W) at the resolution of its digital numbers, (B,).

        An upper bound (uniform dequantization).
        """
        log_prob = self.log_prob(self.dequantize(image, generator))
        return bits_per_dimension(log_prob, math.prod(image.shape[1:]), self.step)

    @torch.no_grad()
    def initialize(self, image: Tensor) -> None:
        """Set each level's starting point from a batch of (B, C, H, W); training calls this once on its first batch.

        With several processes each starts from what the first one found.
        """
        with torch.autocast(image.device.type, enabled=False):
            hidden = image.to(self.step.dtype) - 0.5
            for steps in self.levels:
                steps[0].align(functional.pixel_unshuffle(hidden, 2), leading_first=len(steps) % 2 == 1)
                hidden, _ = _through(steps, hidden, hidden.new_zeros(len(hidden)))
                hidden = hidden.chunk(2, dim=1)[0]
        self.initialized.fill_(True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for steps in self.levels:
                for start in (steps[0].weight, steps[0].log_scale, steps[0].shift):
                    torch.distributed.broadcast(start.data, src=0)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4 or shape[1] != self.bands:
            raise ValueError(f"this flow takes images (B, {self.bands}, H, W), got {shape}")
        if min(shape[2:]) < self.multiple or shape[2] % self.multiple or shape[3] % self.multiple:
            raise ValueError(f"height and width must be multiples of {self.multiple}, got {shape[2]} x {shape[3]}")


def bits_per_dimension(log_prob: Tensor, dims: int, step: Tensor) -> Tensor:
    """Bits for each of `dims` values of an image at the resolution of its digital numbers; (B,) to (B,).

    `log_prob` is in nats, of the image scaled to [0, 1]; `step` (C,) is one digital number after scaling. A band of
    floats has step 0 and is counted without correction, so its bits depend on its scale.
    """
    log_step = torch.log(torch.where(step > 0, step, torch.ones_like(step))).mean()
    return -(log_prob / dims + log_step) / math.log(2)


class Step(nn.Module):
    """One step on `channels` channels: 1x1 convolution, activation norm, affine coupling."""

    def __init__(self, channels: int, config: FlowConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(channels).flip(0))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.net = DenseNet(channels // 2, channels, config)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (B, C, H, W) and ln |det|, (B,)."""
        mixing = self.log_scale.exp()[:, None] * self.weight
        x = functional.conv2d(x, mixing[:, :, None, None], self.shift)
        log_det = (self.log_scale.sum() + torch.linalg.slogdet(self.weight)[1]) * math.prod(x.shape[2:])
        first, second = x.chunk(2, dim=1)
        shift, log_scale = self._coupling(first)
        return torch.cat([first, second * log_scale.exp() + shift], dim=1), log_det + log_scale.sum((1, 2, 3))

    def decode(self, y: Tensor) -> Tensor:
        """The input that `encode` maps to `y`."""
        first, second = y.chunk(2, dim=1)
        shift, log_scale = self._coupling(first)
        y = torch.cat([first, (second - shift) * (-log_scale).exp()], dim=1)
        unmixing = torch.linalg.inv(self.weight) * (-self.log_scale).exp()
        return functional.conv2d(y, unmixing[:, :, None, None], -(unmixing @ self.shift))

    @torch.no_grad()
    def align(self, x: Tensor, *, leading_first: bool) -> None:
        """Start on the principal axes of `x` (B, C, H, W), each axis centred and of spread 1.

        Few places for many channels leave small spreads undetermined; the covariance is then drawn towards a sphere.
        """
        values = x.movedim(1, 0).flatten(1)
        channels, places = values.shape
        mean = values.mean(1, keepdim=True)
        covariance = (values - mean) @ (values - mean).T / places
        doubt = (channels / (channels + places)) ** 2
        sphere = torch.eye(channels, dtype=x.dtype, device=x.device) * covariance.diagonal().mean()
        variances, axes = torch.linalg.eigh((1 - doubt) * covariance + doubt * sphere)
        if leading_first:
            variances, axes = variances.flip(0), axes.flip(1)
        scale = variances.clamp_min(LEAST_SPREAD**2).rsqrt()
        self.weight.copy_(axes.T)
        self.log_scale.copy_(scale.log())
        self.shift.copy_(-(scale[:, None] * (axes.T @ mean)).flatten())

    def _coupling(self, first: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self.net(first).chunk(2, dim=1)
        return shift, LOG_SCALE_BOUND * torch.tanh(raw / LOG_SCALE_BOUND)


class DenseNet(nn.Module):
    """Densely connected 3x3 layers from `inputs` to `outputs` channels; the last layer starts at zero."""

    def __init__(self, inputs: int, outputs: int, config: FlowConfig) -> None:
        super().__init__()
        widths = [inputs + i * config.growth for i in range(config.layers)]
        self.layers = nn.ModuleList(nn.Conv2d(width, config.growth, 3, padding=1) for width in widths)
        self.last = nn.Conv2d(inputs + config.layers * config.growth, outputs, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        for layer in self.layers:
            x = torch.cat([x, functional.relu(layer(x))], dim=1)
        out: Tensor = self.last(x)
        return out


class ChannelNormal(nn.Module):
    """A normal distribution with a learned mean and log-scale for each channel, the same at all places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def log_prob(self, z: Tensor) -> Tensor:
        """ln density of each of (B, C, H, W), in nats, (B,)."""
        standard = (z - self.mean[:, None, None]) * (-self.log_scale).exp()[:, None, None]
        places = math.prod(z.shape[2:])
        constant = (self.log_scale.sum() + 0.5 * z.shape[1] * math.log(2 * math.pi)) * places
        return -0.5 * standard.square().sum((1, 2, 3)) - constant

    def sample(
        self, shape: tuple[int, int, int, int], *, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Reparametrized draws of `shape` (B, C, H, W)."""
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(shape, generator=generator, device=device, dtype=self.mean.dtype).to(self.mean.device)
        return self.mean[:, None, None] + (self.log_scale.exp() * temperature)[:, None, None] * noise


def _through(steps: Sequence[Step], hidden: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    """Squeeze, then all steps of one level."""
    hidden = functional.pixel_unshuffle(hidden, 2)
    for step in steps:
        hidden, change = step.encode(hidden)
        log_det = log_det + change
    return hidden, log_det
