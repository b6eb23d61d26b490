"""Segmenter in the form that a CPU computes fastest: batch norms folded, activations and sums within convolutions.

A segmenter as it is trained and stored spends half of its time on a CPU on 1x1 convolutions that are not oneDNN's and
on passes through memory for batch norms, activations, sums and concatenations. `folded_segmenter` makes a second one of
its weights that answers the same within rounding. The encoder is traced (torch.fx), and convolutions take in the norms,
activations and sums behind them. DenseNet's blocks are recomposed: each layer writes its features into one map, where
they stay, and transitions average before their 1x1 convolution, which is the same and a quarter of the work. In the
decoder the norm of a rung becomes a gain of the two convolutions whose sum it sees. What is not known is left as it is.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import operator
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn

from geood.models.bundle import ModelBundle
from geood.models.decoder import Ladder, PyramidPooling, upsample
from geood.models.folded import (
    ACTIVATIONS,
    FoldedConv,
    after_relu,
    bn_relu_conv_folded,
    clamped,
    fused_operators,
    gain_and_shift,
    least_high,
    norm_and_conv,
    plain_weights,
    scaled,
)
from geood.models.outlier_head import FeatureMaps, OutlierHead, resized
from geood.models.region import Region, rungs_of
from geood.models.segmenter import Segmenter

log = logging.getLogger("geood")
TOLERANCE = 1e-3  # of a trial's features to their largest value; rounding gives a thousandth of that
TRIAL = (64, 96)  # pixels


def folded_segmenter(segmenter: Segmenter) -> Segmenter:
    """Return a segmenter with the same answers within rounding, folded for inference on a CPU in float32.

    The given one, in eval mode, is left as it is, and shares what is not folded. An encoder whose folded features are
    others in a trial, or that cannot be traced, stays unfolded.
    """
    folded: Any = copy.copy(segmenter)
    folded._modules = dict(segmenter._modules)
    folded.encoder = _folded_encoder(segmenter.encoder, segmenter.bands)
    folded.decoder = FoldedLadder(segmenter.decoder)
    folded.head = bn_relu_conv_folded(segmenter.head)
    head = segmenter.outlier_head
    if isinstance(head, OutlierHead):
        folded.outlier_head = FoldedOutlierHead(head)
    elif isinstance(head, nn.Sequential):
        folded.outlier_head = bn_relu_conv_folded(head)
    done: Segmenter = folded.eval()
    return done


def for_inference(bundle: ModelBundle) -> ModelBundle:
    """Return a bundle whose segmenter is folded, for a CPU; the bundle itself for a GPU, float16 and compilation.

    For bfloat16 the folded convolutions of encoder and decoder are rounded to it, where the CPU computes in it.

    A segmenter with weights that are not finite is left as it is: oneDNN's activations make 0 of NaN, and a damaged
    model would give scores.
    """
    config = bundle.config.predict
    if not isinstance(bundle.segmenter, Segmenter) or bundle.device.type != "cpu":
        return bundle
    half = config.precision == "bfloat16"
    if config.compile or config.precision == "float16" or (half and not _has_bfloat16()):
        return bundle
    if not _finite(bundle.segmenter):
        return bundle
    folded = folded_segmenter(bundle.segmenter)
    if half:
        _halve(folded)
    return dataclasses.replace(bundle, segmenter=folded)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which networks compute in a precision of `predict.precision`; auto: bfloat16 on a GPU."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bfloat16": torch.bfloat16, "float16": torch.float16}[precision])


def _has_bfloat16() -> bool:
    """Return whether oneDNN computes in bfloat16 on this CPU."""
    asked: Any = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return fused_operators() and asked is not None and bool(asked())


def _halve(folded: Segmenter) -> None:
    """Let the folded convolutions of encoder and decoder compute in bfloat16; logits are those of float32 layers."""
    for network in (folded.encoder, folded.decoder):
        for part in network.modules():
            if isinstance(part, FoldedConv | FoldedTransition):
                part.to(torch.bfloat16)


def _finite(network: nn.Module) -> bool:
    tensors = [*network.parameters(), *network.buffers()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())


class FoldedLadder(nn.Module):
    """Decoder of `decoder.Ladder`, folded: each rung is an upsampling, a 1x1 convolution that adds it, and a 3x3 one.

    A rung's batch norm sees the sum of what is upsampled and of the skip, so its gain goes to both and its shift to the
    skip.
    """

    def __init__(self, ladder: Ladder) -> None:
        super().__init__()
        rungs = [norm_and_conv(rung) for rung in ladder.rungs]
        norms = [gain_and_shift(norm) for norm, _ in rungs]
        gains = [gain for gain, _ in norms]
        self.top = _folded_top(ladder.top, gains[0])
        self.skips = nn.ModuleList(
            bn_relu_conv_folded(skip, gain=gain, shift=shift, activation="relu")
            for skip, (gain, shift) in zip(ladder.skips, norms, strict=True)
        )
        self.rungs = nn.ModuleList(
            FoldedConv(conv, *_scaled_if(plain_weights(conv), gain))
            for (_, conv), gain in zip(rungs, [*gains[1:], None], strict=True)
        )

    def forward(self, features: Sequence[Tensor], region: Region | None = None) -> Tensor:
        """Map features (B, widths[i], H / 2^i, W / 2^i) to (B, channels[-1], H, W), or to the part in a region."""
        hidden: Tensor = self.top(features[-1])
        for skip, rung, (feature, size, part) in zip(self.skips, self.rungs, rungs_of(features, region), strict=True):
            hidden = rung(skip(feature, upsample(hidden, size)[..., *part]))
        return hidden


class FoldedOutlierHead(nn.Module):
    """Head of `outlier_head.OutlierHead`, folded: the maps are summed within their convolutions."""

    def __init__(self, head: OutlierHead) -> None:
        super().__init__()
        self.strides = head.strides
        mixes: list[nn.Module] = []
        for i, (norm, mix) in enumerate(zip(head.norms, head.mixes, strict=True)):
            assert isinstance(norm, nn.BatchNorm2d) and isinstance(mix, nn.Conv2d)
            (weight, bias), (gain, shift) = plain_weights(mix), gain_and_shift(norm)
            mixed = weight * gain[:, None, None], bias + weight[:, :, 0, 0] @ shift
            mixes.append(FoldedConv(mix, *mixed, activation="none" if i else "relu"))
        self.mixes = nn.ModuleList(mixes)
        self.last = FoldedConv(head.last, *plain_weights(head.last))

    def forward(self, maps: FeatureMaps) -> Tensor:
        """Return the outlier logit (B, 1, H / 4, W / 4); above 0 it is more likely an outlier than not."""
        hidden: Tensor | None = None
        for mix, each in zip(reversed(self.mixes), reversed(maps.seen_at(self.strides)), strict=True):
            hidden = mix(each) if hidden is None else mix(each, resized(hidden, each))
        logit: Tensor = self.last(hidden)
        return logit


class FoldedDenseBlock(nn.Module):
    """Dense block of timm's DenseNet, folded, whose layers write their features behind one another into one map."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        squeezes, grows = [], []
        for layer in block.values():
            weights, bounds = after_relu(plain_weights(layer.conv1), layer.norm1)
            weights = scaled(weights, *gain_and_shift(layer.norm2))
            squeezes.append(FoldedConv(layer.conv1, *weights, bounds=bounds, activation="relu"))
            grows.append(FoldedConv(layer.conv2, *plain_weights(layer.conv2)))
        self.squeezes, self.grows = nn.ModuleList(squeezes), nn.ModuleList(grows)
        self.growth = sum(len(grow.weight) for grow in grows)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, H, W) to (B, C + growth, H, W)."""
        seen = features.shape[1]
        shape = features.shape[0], seen + self.growth, *features.shape[2:]
        whole = torch.empty(shape, dtype=features.dtype, memory_format=torch.channels_last)
        whole[:, :seen] = features
        for squeeze, grow in zip(self.squeezes, self.grows, strict=True):
            new = grow(squeeze(whole[:, :seen]))
            whole[:, seen : seen + new.shape[1]] = new
            seen += new.shape[1]
        return whole


class FoldedTransition(nn.Module):
    """Transition of timm's DenseNet, folded: clamped, averaged, and then convolved, which averaging commutes with."""

    low: Tensor
    high: Tensor | None

    def __init__(self, transition: Any) -> None:
        super().__init__()
        weights, (low, high) = after_relu(plain_weights(transition.conv), transition.norm)
        self.pool, self.conv = transition.pool, FoldedConv(transition.conv, *weights)
        self.register_buffer("low", low)
        self.register_buffer("high", least_high(high))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, H, W) to (B, C / 2, H / 2, W / 2)."""
        pooled: Tensor = self.conv(self.pool(clamped(features, self.low, self.high)))
        return pooled


def _scaled_if(weights: tuple[Tensor, Tensor], gain: Tensor | None) -> tuple[Tensor, Tensor]:
    return weights if gain is None else scaled(weights, gain)


def _folded_top(top: nn.Module, gain: Tensor) -> nn.Module:
    """Return the top of a decoder, folded, with a gain of its output."""
    if isinstance(top, nn.Sequential):
        return bn_relu_conv_folded(top, gain=gain)
    assert isinstance(top, PyramidPooling)
    folded: Any = copy.copy(top)
    folded._modules = dict(top._modules)
    folded.entry, folded.fuse = bn_relu_conv_folded(top.entry), bn_relu_conv_folded(top.fuse, gain=gain)
    folded.levels = nn.ModuleList(bn_relu_conv_folded(level) for level in top.levels)
    done: nn.Module = folded
    return done


def _folded_encoder(encoder: nn.Module, bands: int) -> nn.Module:
    """Return the encoder with folded convolutions, or itself where that is not possible."""
    try:
        folded = _Folding(encoder).result()
        trial = torch.rand(1, bands, *TRIAL, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            pairs = list(zip(folded(trial), encoder(trial), strict=True))
    except Exception as error:  # networks whose path depends on their input cannot be traced, and say so in many ways
        log.debug("encoder is not folded: %s: %s", type(error).__name__, error)
        return encoder
    if not all((ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max() for ours, theirs in pairs):
        log.warning("the encoder is computed unfolded: folded, its features are others")
        return encoder
    return folded


class _Tracer(fx.Tracer):
    """Tracer that takes timm's layers, and DenseNet's blocks and transitions, for operations."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kind = type(m)
        timms = kind.__module__.startswith("timm.layers") and kind.__name__ != "ConvNormAct"
        return timms or kind.__name__ in _BLOCKS or super().is_leaf_module(m, module_qualified_name)


_BLOCKS: dict[str, type[nn.Module]] = {"DenseBlock": FoldedDenseBlock, "DenseTransition": FoldedTransition}


class _Folding:
    """Graph of an encoder in which convolutions take in what is behind them, one after another."""

    def __init__(self, encoder: nn.Module) -> None:
        tracer = _Tracer()
        self.graph = tracer.trace(encoder)
        self.module = fx.GraphModule(tracer.root, self.graph)
        self.modules = dict(self.module.named_modules())

    def result(self) -> fx.GraphModule:
        """Return the folded encoder."""
        for node in list(self.graph.nodes):
            if isinstance(self._part(node), (nn.Identity, nn.Dropout)):
                node.replace_all_uses_with(node.args[0])
                self.graph.erase_node(node)
        used = Counter(str(node.target) for node in self.graph.nodes if node.op == "call_module")
        for node in list(self.graph.nodes):
            part = self._part(node)
            if part is None or used[str(node.target)] > 1:
                continue
            if isinstance(part, nn.Conv2d):
                self._fold(node, part)
            elif type(part).__name__ in _BLOCKS:
                self._put(node, _BLOCKS[type(part).__name__](part))
        self.graph.lint()
        self.module.recompile()
        self.module.delete_all_unused_submodules()
        return self.module

    def _part(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _put(self, node: fx.Node, part: nn.Module) -> None:
        self.module.set_submodule(str(node.target), part)
        self.modules[str(node.target)] = part

    def _fold(self, node: fx.Node, conv: nn.Conv2d) -> None:
        """Fold the norm behind a convolution into it, and then an activation, or a sum and an activation."""
        same = type(conv).__name__ == "Conv2dSame"
        if (type(conv) is not nn.Conv2d and not same) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            return
        activation, weights = "none", plain_weights(conv)
        behind, norm = self._only_user(node)
        if behind is not None and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            weights = scaled(weights, *gain_and_shift(norm))
            after = getattr(norm, "act", nn.Identity())  # timm's norms bring their activation
            if type(after) in ACTIVATIONS:
                activation = ACTIVATIONS[type(after)]
                self._absorb(node, behind)
            else:
                self._put(behind, after)
        if activation == "none":
            node = self._added(node)
            behind, after = self._only_user(node)
            if behind is not None and after is not None and type(after) in ACTIVATIONS:
                activation = ACTIVATIONS[type(after)]
                self._absorb(node, behind)
        self._put(node, FoldedConv(conv, *weights, activation=activation, same=same))

    def _only_user(self, node: fx.Node) -> tuple[fx.Node | None, nn.Module | None]:
        """Return the one node that sees the output of another, with its module; nothing if there are several."""
        users = list(node.users)
        return (users[0], self._part(users[0])) if len(users) == 1 else (None, None)

    def _absorb(self, node: fx.Node, behind: fx.Node) -> None:
        """Let a node stand for the one behind it as well."""
        behind.replace_all_uses_with(node)
        self.graph.erase_node(behind)

    def _added(self, node: fx.Node) -> fx.Node:
        """Return a convolution's node with the sum behind it taken in, moved there; itself if there is none."""
        total, _ = self._only_user(node)
        if total is None or total.op != "call_function" or total.target not in (operator.add, operator.iadd, torch.add):
            return node
        others = [term for term in total.args if term is not node]
        if len(others) != 1 or not isinstance(others[0], fx.Node) or total.kwargs:
            return node
        with self.graph.inserting_before(total):
            summed = self.graph.call_module(str(node.target), (node.args[0], others[0]))
        self._absorb(summed, total)
        self.graph.erase_node(node)
        return summed
