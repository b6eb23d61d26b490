"""Graph of a bundle for other programs: digital numbers in, score and class out, in one module that can be traced.

All that `predict` does with a tile after reading it happens inside: scaling of the bands, the network, the score of the
config with its statistics and its smoothing. So another program needs to know nothing of the model but its bands and
its threshold. What it has to do itself is to cut tiles, with a halo, and to leave invalid pixels as NaN.

Encoders from TensorFlow pad as much as a size needs, which is a formula of formulas where sizes are symbols: the tracer
would work on it for an hour. For multiples of 32 it is a number, which is put in its place. Tensors only.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn

from geood.constants import NO_CLASS
from geood.errors import ConfigError
from geood.models import ModelBundle, Segmenter

SAME = "Conv2dSame"  # timm's convolution that pads as TensorFlow does
BYTE = 255.0  # what one is, of a program that hands on bytes as numbers in [0, 1]


class ScoreGraph(nn.Module):
    """A bundle as one module: digital numbers (B, C, H, W) to a score (B, H, W) and a class id (B, H, W).

    The input is float32, in the bands and digital numbers of the scenes that the model was trained on, NaN (or
    infinite) where a pixel is invalid; H and W are multiples of 32. The score is float32, NaN at invalid pixels. The
    class is the id of the most likely one, uint8, 255 at invalid pixels.

    Raises:
        ConfigError: the network cannot be a graph of any size.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        super().__init__()
        check_traceable(bundle)
        self.segmenter, self.inliers = with_fixed_padding(bundle.segmenter), bundle.inliers
        self._bundle = dataclasses.replace(bundle, segmenter=self.segmenter)
        self._kind = bundle.config.score.kind
        bands = bundle.bands
        gain = [1 / (high - low) for low, high in zip(bands.low, bands.high, strict=True)]
        for name, values in (("low", bands.low), ("gain", gain), ("fill", bands.fill)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])
        self.register_buffer("ids", torch.tensor(bundle.class_ids, dtype=torch.uint8))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return score and class id of digital numbers (B, C, H, W)."""
        valid = torch.isfinite(image).all(1)
        low, gain, fill, ids = (getattr(self, name) for name in ("low", "gain", "fill", "ids"))
        scaled = torch.where(valid[:, None], ((image - low) * gain).clamp(0, 1), fill)
        answer = self._bundle.infer(scaled, (self._kind,))
        score = self._bundle.score_of(answer, scaled, valid)
        taken = ids[answer.logits.argmax(1)]
        nothing = torch.full_like(taken, NO_CLASS)
        return torch.where(valid, score, torch.full_like(score, math.nan)), torch.where(valid, taken, nothing)


class ByteGraph(nn.Module):
    """A `ScoreGraph` for programs that divide bytes by 255 and look for a share: (B, C, H, W) in [0, 1] to (B, H, W).

    The share is 1 / (1 + exp(-(score - threshold) / nat)): it is 0.5 at the threshold, and rises with the score. `nat`
    is by how much the threshold rises where e times fewer inliers are to reach it, so that a share of 0.9 stands for
    about a ninth of the inliers that 0.5 stands for.
    """

    def __init__(self, graph: ScoreGraph, *, threshold: float, nat: float) -> None:
        super().__init__()
        self.scores, self.threshold, self.nat = graph, threshold, nat  # `graph` is a name of torch.fx

    def forward(self, image: Tensor) -> Tensor:
        """Return the share of bytes divided by 255."""
        score, _ = self.scores(image * BYTE)
        return torch.sigmoid((score - self.threshold) / self.nat)


def with_fixed_padding(segmenter: Segmenter) -> Segmenter:
    """Return a copy of a segmenter whose convolutions pad by fixed numbers, those of sizes that are multiples of 32."""
    copied = copy.deepcopy(segmenter)
    for name, module in list(copied.named_modules()):
        if isinstance(module, nn.Conv2d) and type(module).__name__ == SAME:
            parent, _, last = name.rpartition(".")
            setattr(copied.get_submodule(parent), last, fixed(module))
    return copied


def fixed(conv: nn.Conv2d) -> nn.Sequential:
    """Return a convolution with `same` padding as one with fixed padding, for sizes that its stride divides."""
    sides: list[int] = []
    for kernel, stride, step in reversed([*zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)]):
        pad = max((kernel - 1) * step + 1 - stride, 0)
        sides += [pad // 2, pad - pad // 2]
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        stride=(conv.stride[0], conv.stride[1]),
        dilation=(conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    plain.load_state_dict(conv.state_dict())
    left, right, top, bottom = sides
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), plain.to(conv.weight.device)).train(conv.training)


def check_traceable(bundle: ModelBundle) -> None:
    """Check that a bundle's network can be a graph for images of any size.

    Raises:
        ConfigError: it cannot.
    """
    if bundle.config.segmenter.network == "ldn121":
        raise ConfigError(
            "segmenter.network ldn121: its pyramid pools over the whole image, into grids that depend on its size; "
            "ONNX has no operator for that; train with segmenter.network: ladder, encoder densenet121"
        )
