"""Elementwise invertible maps of a flow: the range of the images, its dark and bright ends, and heavy tails.

Each maps values channel by channel and tells ln |det|. Tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SMALL = 0.01  # least standard deviation of what was divided by standard deviations before, at the start
WEIGHTS = (0.01, 0.25, 0.5)  # of tails at the start, per standard deviation; 1 and 2 drew wild values
STRETCH = 3.0  # at the start; the slope at the ends of the range is then 2.4 times that in the middle
END = 0.03  # width of the part of the range, at each end, into which all that lies beyond is pressed


class Ends(nn.Module):
    """Elementwise map from the range of images about 0 to all numbers: the identity but at the ends of the range.

    The range is that of dequantized images, half a digital number wider on each side than -0.5 to 0.5; `step` (C,) is
    the size of one, at least that of 8 bits. On the way back all that lies beyond is pressed into the last `END` of the
    range, so that no sample leaves it. What is encoded counts as lying within.
    """

    edge: Tensor

    def __init__(self, step: Sequence[float]) -> None:
        super().__init__()
        edges = torch.tensor([0.5 + half_step(size) for size in step], dtype=torch.float64)
        self.register_buffer("edge", edges[:, None, None].float(), persistent=False)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (B, C, H, W) to the output (B, C, H, W) and ln |det| (B,)."""
        inner = self.edge - END
        beyond = ((x.abs() - inner) / END).clamp(0, 1 - torch.finfo(x.dtype).eps)
        out = torch.where(beyond > 0, x.sign() * (inner + END * torch.atanh(beyond)), x)
        return out, -torch.log1p(-beyond.square()).sum((1, 2, 3))

    def decode(self, y: Tensor) -> Tensor:
        """Invert `encode`: return the input (B, C, H, W) that it maps to `y` (B, C, H, W)."""
        inner = self.edge - END
        beyond = ((y.abs() - inner) / END).clamp_min(0)
        return torch.where(beyond > 0, y.sign() * (inner + END * torch.tanh(beyond)), y)


def half_step(size: float) -> float:
    """Return how far beyond 0 and 1 dequantized values of a band may lie, whose digital numbers have this size.

    Half a digital number and a hundredth more, for rounding; at least that of 8 bits, so that a band of floating-point
    values, which is not dequantized, may hold 0 and 1 as well.
    """
    return 0.505 * max(size, 1 / 255)


class Stretch(nn.Module):
    """Elementwise map y = sinh(weight x) / weight per channel, of images about 0: dark and bright ends drawn out.

    On the way back what lies beyond the ends of the range is pressed towards them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.full((channels,), math.log(STRETCH)))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (B, C, H, W) to the output (B, C, H, W) and ln |det| (B,)."""
        weight = self.log_weight.exp()[:, None, None]
        bent = torch.sinh(weight * x)
        return bent / weight, 0.5 * bent.square().log1p().sum((1, 2, 3))

    def decode(self, y: Tensor) -> Tensor:
        """Invert `encode`: return the input (B, C, H, W) that it maps to `y` (B, C, H, W)."""
        weight = self.log_weight.exp()[:, None, None]
        return torch.asinh(weight * y) / weight


class Tails(nn.Module):
    """Elementwise map y = scale asinh(weight x) per channel: what is heavy-tailed comes closer to a normal."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.full((channels,), math.log(WEIGHTS[0])))
        self.log_scale = nn.Parameter(torch.full((channels,), -math.log(WEIGHTS[0])))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (B, C, H, W) to the output (B, C, H, W) and ln |det| (B,)."""
        bent = self.log_weight.exp()[:, None, None] * x
        log_det = (self.log_weight + self.log_scale).sum() * math.prod(x.shape[2:])
        return torch.asinh(bent) * self.log_scale.exp()[:, None, None], log_det - 0.5 * bent.square().log1p().sum(
            (1, 2, 3)
        )

    def decode(self, y: Tensor) -> Tensor:
        """Invert `encode`."""
        return torch.sinh(y * (-self.log_scale).exp()[:, None, None]) * (-self.log_weight).exp()[:, None, None]

    @torch.no_grad()
    def data_dependent_init(self, x: Tensor) -> None:
        """Choose for each channel of `x` (B, C, H, W) the weight after which it is likeliest under a normal."""
        values = x.movedim(1, 0).flatten(1)
        spread = values.std(1, correction=0).clamp_min(SMALL)
        bent = torch.stack([weight * values / spread[:, None] for weight in WEIGHTS])
        scale = torch.asinh(bent).std(2, correction=0).clamp_min(SMALL)
        weights = torch.tensor(WEIGHTS, dtype=x.dtype, device=x.device)
        likelihood = weights.log()[:, None] - scale.log() - 0.5 * bent.square().log1p().mean(2)
        best = likelihood.argmax(0)
        self.log_weight.copy_(weights[best].log() - spread.log())
        self.log_scale.copy_(-scale.gather(0, best[None])[0].log())
