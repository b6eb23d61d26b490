"""Normalizing flow: a density over image patches with differentiable sampling at any size.

A multi-scale flow after Glow and DenseFlow (arXiv 1807.03039, 2106.04627): each level halves the resolution and factors
out a part of its values. The latents follow a learned normal per channel, shared by all pixels, so any height and width
divisible by 2^levels will do. `decode` returns a continuous image and keeps the graph: in joint training the gradient
reaches the flow through the pixels of its samples (arXiv 2112.12833). Levels are either lattice levels (network plain)
or DenseFlow blocks.

On the first batch each level is initialized from its input, which shortens training.

Tensors only. Arithmetic is float32 or wider even under autocast, because log-determinants need the precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from geood._torch_compat import start_vector_functions
from geood.config import FlowConfig
from geood.models.flows.coupling import ChannelNormal, FlowStep
from geood.models.flows.denseflow import SHAPES, DenseBlock, DenseLevel
from geood.models.flows.lattice import LatticeLevel, Lattices, SitePrediction

start_vector_functions()

# Of the lattices on the coarse image of the last level: of three levels every 128th pixel is drawn by itself.
SPACINGS = (1, 2, 4, 8)

Level = DenseLevel | LatticeLevel


class Flow(nn.Module):
    """Density over images (B, `bands`, H, W) scaled to [0, 1], with H and W multiples of `multiple`.

    `step` (`bands`,) is the size of one digital number of each band after scaling (0: a floating-point band), the width
    of the dequantization noise. The first batch encoded in training mode initializes the flow, see `initialize`.
    """

    step: Tensor
    initialized: Tensor
    levels: Sequence[Level]
    normals: Sequence[ChannelNormal]

    def __init__(self, bands: int, config: FlowConfig, step: Sequence[float]) -> None:
        super().__init__()
        if len(step) != bands:
            raise ValueError(f"a step for each of the {bands} bands is needed, got {len(step)}")
        self.register_buffer("step", torch.tensor(list(step), dtype=torch.float32))
        self.register_buffer("initialized", torch.tensor(False))
        dense = config.network in SHAPES
        levels = list[Level](_dense_levels(bands, config) if dense else _plain_levels(bands, config, step))
        normals = [(level.halved, i) for i, level in enumerate(levels, start=1) if level.halved]
        normals.append((levels[-1].outputs, len(levels)))
        self.bands, self.multiple = bands, 2 ** len(levels)
        self.scales = [scale for _, scale in normals]  # of each latent: number of squeezes, log2 of its stride
        self.levels = cast("Sequence[Level]", nn.ModuleList(levels))
        self.normals = cast("Sequence[ChannelNormal]", nn.ModuleList(ChannelNormal(width) for width, _ in normals))
        for module in self.modules():
            if isinstance(module, (FlowStep, SitePrediction, Lattices)):
                module.checkpointing = config.checkpointing

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> tuple[list[Tensor], Tensor]:
        """Map `image` (B, C, H, W) to latents, finest level first, and ln |det| (B,).

        Latent i has shape (B, C_i, H >> scales[i], W >> scales[i]). DenseFlow draws noise with `generator`, whose ln
        density is subtracted from ln |det|.

        Raises:
            ValueError: the number of bands or the size does not fit.
        """
        self._check(tuple(image.shape))
        if self.training and not self.initialized:
            self.initialize(image)
        with torch.autocast(image.device.type, enabled=False):
            hidden = image.to(self.step.dtype) - 0.5
            log_det, latents = hidden.new_zeros(len(hidden)), []
            for level in self.levels:
                hidden, out, change = level.encode(hidden, generator)
                log_det = log_det + change
                latents += [] if out is None else [out]
        return [*latents, hidden], log_det

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Invert `encode`: map `latents` to an image (B, C, H, W), continuous, not clipped, differentiable."""
        *outs, hidden = latents
        with torch.autocast(hidden.device.type, enabled=False):
            for level in reversed(self.levels):
                hidden = level.decode(hidden, outs.pop() if level.halved else None)
            return hidden + 0.5

    def log_prob(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the ln density (B,) of `image` (B, C, H, W) scaled to [0, 1], in nats.

        With DenseFlow it depends on the drawn noise and is a lower bound in expectation.

        Raises:
            ValueError: the number of bands or the size does not fit.
        """
        latents, log_det = self.encode(image, generator)
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
        """Draw images (count, C, height, width), differentiable in the flow's parameters.

        `temperature` multiplies the standard deviation of the latents; 1 samples the learned density. Values of network
        plain lie outside [0, 1] by no more than half a digital number, those of DenseFlow anywhere.

        Raises:
            ValueError: the size is not a multiple of `multiple`.
        """
        self._check((count, self.bands, height, width))
        latents = []
        for scale, normal in zip(self.scales, self.normals, strict=True):
            shape = (count, len(normal.mean), height >> scale, width >> scale)
            latents.append(normal.sample(shape, temperature=temperature, generator=generator))
        return self.decode(latents)

    def dequantize(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Add uniform noise one digital number wide, centred on 0, to `image` (B, C, H, W) (arXiv 1511.01844)."""
        device = generator.device if generator is not None else image.device
        noise = torch.rand(image.shape, generator=generator, device=device, dtype=self.step.dtype).to(image.device)
        return image + (noise - 0.5) * self.step[:, None, None]

    def bits_per_dimension(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the bits per dimension (B,) of `image` (B, C, H, W) at the resolution of its digital numbers.

        An upper bound, because of the uniform dequantization.
        """
        log_prob = self.log_prob(self.dequantize(image, generator), generator)
        return bits_per_dimension(log_prob, math.prod(image.shape[1:]), self.step)

    @torch.no_grad()
    def initialize(self, image: Tensor) -> None:
        """Initialize each level from a batch (B, C, H, W); `encode` calls this on the first batch in training mode."""
        with torch.autocast(image.device.type, enabled=False):
            hidden = image.to(self.step.dtype) - 0.5
            generator = torch.Generator().manual_seed(0)
            for level in self.levels:
                level.data_dependent_init(hidden)
                hidden, _, _ = level.encode(hidden, generator)
        self.initialized.fill_(True)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4 or shape[1] != self.bands:
            raise ValueError(f"this flow takes images (B, {self.bands}, H, W), got {shape}")
        if min(shape[2:]) < self.multiple or shape[2] % self.multiple or shape[3] % self.multiple:
            raise ValueError(f"height and width must be multiples of {self.multiple}, got {shape[2]} x {shape[3]}")


def bits_per_dimension(log_prob: Tensor, dims: int, step: Tensor) -> Tensor:
    """Convert a ln density (B,) to bits per dimension (B,) at the resolution of the image's digital numbers.

    Args:
        log_prob: (B,), in nats, of images scaled to [0, 1].
        dims: number of values in an image, C * H * W.
        step: (C,), size of one digital number after scaling. A floating-point band has step 0 and no correction, so its
            bits depend on its scale.
    """
    log_step = torch.log(torch.where(step > 0, step, torch.ones_like(step))).mean()
    return -(log_prob / dims + log_step) / math.log(2)


def _plain_levels(bands: int, config: FlowConfig, step: Sequence[float]) -> Iterator[LatticeLevel]:
    """Yield lattice levels, the last with the lattices of its coarse image."""
    shape = {"steps": config.steps, "layers": config.layers, "growth": config.growth}
    for i in range(config.levels):
        last = i == config.levels - 1
        yield LatticeLevel(bands, **shape, step=() if i else step, spacings=SPACINGS if last else ())


def _dense_levels(channels: int, config: FlowConfig) -> Iterator[DenseLevel]:
    """Yield levels of DenseFlow blocks; each but the first factors out half of its channels before its body."""
    shape = SHAPES[config.network]
    for i in range(len(shape.units)):
        body = DenseBlock(2 * channels if i else 4 * channels, shape, i)
        yield DenseLevel(channels, body, halve=i > 0)
        channels = body.outputs
