"""Squeeze-excitation with local means: gates that depend on the ground around a place, not on the whole tile.

Squeeze-excitation weighs each channel by its mean over all that the network is shown (Hu et al. 2018), so the scores of
a place depend on the tile that it is read in, and no halo helps. Here the mean is that of the 3 x 3 blocks of 32 pixels
around, whose gates are interpolated between the blocks. Blocks lie on the lattice of the deepest features, on which
tiles and halos lie too, so all tiles have the same. Weights keep their names and shapes: those of ImageNet fit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK_PX = 32
AROUND = 3  # blocks along either axis
# The parts of timm's two kinds of squeeze-excitation, in the order in which a mean passes through them.
PARTS = {
    "SqueezeExcite": ("conv_reduce", "act1", "conv_expand", "gate"),
    "SEModule": ("fc1", "bn", "act", "fc2", "gate"),
}


class LocalGates(nn.Module):
    """Squeeze-excitation of maps (B, C, h, w) by the means around each place.

    Args:
        gated: timm's module, whose parts are taken over.
        block: side of a block on these maps, 32 by their stride.
    """

    def __init__(self, gated: nn.Module, block: int) -> None:
        super().__init__()
        self.block = block
        self._order = PARTS[type(gated).__name__]
        for name, part in gated.named_children():
            self.add_module(name, part)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps, each channel weighed place by place."""
        gates = functional.avg_pool2d(maps, self.block) if self.block > 1 else maps
        gates = functional.avg_pool2d(gates, AROUND, stride=1, padding=AROUND // 2, count_include_pad=False)
        for name in self._order:
            gates = self.get_submodule(name)(gates)
        if self.block > 1:
            gates = functional.interpolate(gates, scale_factor=float(self.block), mode="bilinear", align_corners=False)
        return maps * gates


@torch.no_grad()
def use_local_gates(encoder: nn.Module, bands: int) -> int:
    """Give every squeeze-excitation of an encoder local means, in place; return how many there are."""
    gated = {name: module for name, module in encoder.named_modules() if _is_gated(module)}
    strides: dict[str, int] = {}
    side = 2 * BLOCK_PX
    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: strides.update({name: side // given[0].shape[2]}))
        for name, module in gated.items()
    ]
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()(torch.zeros(1, bands, side, side, device=device))
    encoder.train(training)
    for hook in hooks:
        hook.remove()
    for name, stride in strides.items():
        parent, _, last = name.rpartition(".")
        setattr(encoder.get_submodule(parent), last, LocalGates(gated[name], BLOCK_PX // stride))
    return len(strides)


def has_global_gates(network: nn.Module) -> bool:
    """Return whether a network has squeeze-excitation by means of all that it is shown, which could be local."""
    return any(_is_gated(module) for module in network.modules())


def _is_gated(module: nn.Module) -> bool:
    parts = PARTS.get(type(module).__name__, ())
    return bool(parts) and all(hasattr(module, part) for part in parts) and not getattr(module, "add_maxpool", False)
