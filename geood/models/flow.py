"""The normalizing flow: a density of image patches that can be sampled at any size, differentiably.

A multi-scale flow in the line of Glow and DenseFlow (arXiv 1807.03039, 2106.04627): each level squeezes 2 x 2 pixels
into channels, takes some invertible steps and lets half of the channels go; what goes and what remains follow a learned
normal for each channel, the same at all places, hence any height and width that divide by 2^levels. `decode` returns a
continuous image and keeps the graph: the joint training moves the flow through the pixels of its samples (arXiv
2112.12833). What stands in a level is either some plain steps or a block of DenseFlow.

On the first batch each level's first step is set to the principal axes and spreads of its input, for the sake of short
training: smooth parts come first, contrasts between pixels and bands later, and even an untrained plain flow is the
best Gaussian of its pixels rather than a checkerboard.

This room knows tensors only. Arithmetic is float32 or wider also under autocast: log-determinants do not bear less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from geood._torch_compat import start_vector_functions
from geood.config.sections import FlowConfig
from geood.models.coupling import ChannelNormal, CouplingNet, FlowStep, Steps
from geood.models.denseflow import SHAPES, DenseBlock

start_vector_functions()

# Of log-scales in plain steps. DenseFlow's 2 gave the same bits (3.78 against 3.77 after 300 steps on one aerial scene,
# one seed) and wilder samples (-4.8 to 3.9 against -0.8 to 2.4).
BOUND = 1.0


class Flow(nn.Module):
    """A density over images (B, `bands`, H, W) scaled to [0, 1], with H and W multiples of `multiple`.

    `step` is one digital number of each band after scaling (0: a band of floats), the width of the dequantization
    noise. The first batch that a flow in training mode encodes sets its starting point, see `initialize`.
    """

    step: Tensor
    initialized: Tensor
    levels: Sequence[FlowLevel]
    normals: Sequence[ChannelNormal]

    def __init__(self, bands: int, config: FlowConfig, step: Sequence[float]) -> None:
        super().__init__()
        if len(step) != bands:
            raise ValueError(f"a step for each of the {bands} bands is needed, got {len(step)}")
        self.register_buffer("step", torch.tensor(list(step), dtype=torch.float32))
        self.register_buffer("initialized", torch.tensor(False))
        levels, normals, channels = [], [], bands
        for level in _dense_levels(bands, config) if config.network in SHAPES else _plain_levels(bands, config):
            levels.append(level)
            channels = level.outputs
            if level.halved:
                normals.append((level.halved, len(levels)))
        normals.append((channels, len(levels)))
        self.bands, self.multiple = bands, 2 ** len(levels)
        self.scales = [scale for _, scale in normals]  # of each latent: how often its pixels were squeezed
        self.levels = cast("Sequence[FlowLevel]", nn.ModuleList(levels))
        self.normals = cast("Sequence[ChannelNormal]", nn.ModuleList(ChannelNormal(width) for width, _ in normals))
        for module in self.modules():
            if isinstance(module, FlowStep):
                module.checkpointing = config.checkpointing

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> tuple[list[Tensor], Tensor]:
        """Latents of `image` (B, C, H, W), finest level first, and ln |det| of the map, (B,).

        DenseFlow draws noise on the way, whose ln density is taken off ln |det|.

        Raises:
            ValueError: if bands or size do not fit.
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
        """The image (B, C, H, W) that `encode` maps to `latents`; continuous, not clipped, differentiable."""
        *outs, hidden = latents
        with torch.autocast(hidden.device.type, enabled=False):
            for level in reversed(self.levels):
                hidden = level.decode(hidden, outs.pop() if level.halved else None)
            return hidden + 0.5

    def log_prob(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """ln density of `image` (B, C, H, W) scaled to [0, 1], in nats, (B,); of DenseFlow a lower bound on average."""
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
        """`count` images (count, C, height, width), differentiable in the flow's parameters.

        `temperature` stretches the latents' spread; 1 samples the learned density. Values may leave [0, 1].

        Raises:
            ValueError: if the size is not a multiple of `multiple`.
        """
        self._check((count, self.bands, height, width))
        latents = []
        for scale, normal in zip(self.scales, self.normals, strict=True):
            shape = (count, len(normal.mean), height >> scale, width >> scale)
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
        log_prob = self.log_prob(self.dequantize(image, generator), generator)
        return bits_per_dimension(log_prob, math.prod(image.shape[1:]), self.step)

    @torch.no_grad()
    def initialize(self, image: Tensor) -> None:
        """Set each level's starting point from a batch of (B, C, H, W); training calls this once on its first batch."""
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
    """Bits for each of `dims` values of an image at the resolution of its digital numbers; (B,) to (B,).

    `log_prob` is in nats, of the image scaled to [0, 1]; `step` (C,) is one digital number after scaling. A band of
    floats has step 0 and is counted without correction, so its bits depend on its scale.
    """
    log_step = torch.log(torch.where(step > 0, step, torch.ones_like(step))).mean()
    return -(log_prob / dims + log_step) / math.log(2)


class FlowLevel(nn.Module):
    """Pixels squeezed 2 x 2 into channels, then `body`; half of the channels may go, before the body or after it.

    `outputs` channels go on to the next level, `halved` go out (0: none).
    """

    def __init__(self, inputs: int, body: Steps | DenseBlock, *, halve: str, outputs: int) -> None:
        super().__init__()
        self.body, self.halve = body, halve
        self.halved = {"before": 2 * inputs, "after": outputs, "": 0}[halve]
        self.outputs = outputs

    def encode(self, hidden: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """What goes on, what goes out, and ln |det|, (B,)."""
        hidden, out = self._squeezed(hidden)
        hidden, log_det = self.body.encode(hidden, generator)
        if self.halve == "after":
            hidden, out = hidden.chunk(2, dim=1)
        return hidden, out, log_det

    def decode(self, hidden: Tensor, out: Tensor | None) -> Tensor:
        """The input of `encode`."""
        if out is not None and self.halve == "after":
            hidden = torch.cat([hidden, out], dim=1)
        hidden = self.body.decode(hidden)
        if out is not None and self.halve == "before":
            hidden = torch.cat([hidden, out], dim=1)
        return functional.pixel_shuffle(hidden, 2)

    def data_dependent_init(self, hidden: Tensor) -> None:
        """Set the body's first step to the level's input."""
        self.body.data_dependent_init(self._squeezed(hidden)[0])

    def _squeezed(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = functional.pixel_unshuffle(hidden, 2)
        if self.halve != "before":
            return hidden, None
        hidden, out = hidden.chunk(2, dim=1)
        return hidden, out


def _plain_levels(channels: int, config: FlowConfig) -> Iterator[FlowLevel]:
    """Levels of plain steps; half goes after each but the last."""
    for i in range(config.levels):
        width, last = 4 * channels, i == config.levels - 1
        nets = (CouplingNet(width // 2, width, layers=config.layers, growth=config.growth) for _ in range(config.steps))
        body = Steps(FlowStep(width, net, bound=BOUND) for net in nets)
        outputs = width if last else width // 2
        yield FlowLevel(channels, body, halve="" if last else "after", outputs=outputs)
        channels = outputs


def _dense_levels(channels: int, config: FlowConfig) -> Iterator[FlowLevel]:
    """DenseFlow's blocks; half goes before each but the first."""
    shape = SHAPES[config.network]
    for i in range(len(shape.units)):
        body = DenseBlock(2 * channels if i else 4 * channels, shape, i)
        yield FlowLevel(channels, body, halve="before" if i else "", outputs=body.outputs)
        channels = body.outputs
