"""Optimizers, parameter groups and learning-rate schedules: Adam for the segmenter, Adam or Adamax for the flow.

The encoder, the rest of the segmenter, its outlier head and the flow are groups with learning rates of their own. A
rate warms up linearly, then decays to its last value along a cosine (the flow's exponentially, if the config says so).
The schedules are those of the paper's group (DenseHybrid's scripts for the segmenter, DenseFlow's for the flow). The
head starts at zero on features that are there already, so it takes a high rate and few steps. AdamW with a weight
decay of 0 is plain Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adamax, AdamW, Optimizer

from geood.config import TrainConfig
from geood.models import Flow, Segmenter

HEAD_WARMUP = 10  # steps in which the rate of the outlier head rises
HEAD_LAST = 0.02  # its last value, as a share of the first
HEAD_DECAY = 1e-3  # their weight decay


class CombinedOptimizer(Optimizer):
    """Optimizers of different types that step as one; `param_groups` are theirs, concatenated."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Step all optimizers after one evaluation of the closure."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all optimizers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of `state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def make_optimizer(config: TrainConfig, stage: str, *, segmenter: Segmenter | None, flow: Flow | None) -> Optimizer:
    """Return one optimizer for the parts of these networks that a stage of `plans` trains; None is left out.

    Each group carries `first_lr` and `last_lr`, the ends of its schedule, and `of`, what it belongs to: segmenter,
    head or flow.
    """
    parts: list[Optimizer] = []
    if segmenter is not None:
        groups = _segmenter_groups(config, stage, segmenter)
        parts.append(AdamW(groups, weight_decay=config.weight_decay, eps=config.adam_epsilon))
    if flow is not None:
        first = config.flow_lr if stage == "flow" else config.joint_flow_lr
        groups = [_group(flow.parameters(), first, config.flow_last_lr, of="flow")]
        if config.flow_optimizer == "adamax":
            parts.append(Adamax(groups, eps=config.adam_epsilon))
        else:
            parts.append(AdamW(groups, weight_decay=0.0, eps=config.adam_epsilon))
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)


def _segmenter_groups(config: TrainConfig, stage: str, segmenter: Segmenter) -> list[dict[str, Any]]:
    """Return the segmenter's groups: encoder, rest, and in the third stage its outlier head; these alone in `head`."""
    head = segmenter.outlier_head if segmenter.outlier == "head" else None
    groups = []
    if stage != "head":
        first = config.joint_segmenter_lr if stage == "joint" else config.segmenter_lr
        factor, last = config.encoder_lr_factor, config.segmenter_last_lr
        encoder = list(segmenter.encoder.parameters())
        apart = {id(p) for p in (*encoder, *(head.parameters() if head is not None else ()))}
        rest = [p for p in segmenter.parameters() if id(p) not in apart]
        groups = [_group(encoder, factor * first, factor * last), _group(rest, first, last)]
    if head is not None and stage != "segmenter":
        first = config.head_lr
        groups.append(_group(head.parameters(), first, HEAD_LAST * first, of="head") | {"weight_decay": HEAD_DECAY})
    return groups


def schedules(optimizer: Optimizer, config: TrainConfig, stage: str, *, steps: int) -> list[Callable[[int], float]]:
    """Return for each group a function of the step: the factor on its first rate, in a stage of `steps` steps."""
    warm_up = config.flow_warmup_steps if stage == "flow" else config.warmup_steps
    return [
        _schedule(group, config, steps=steps, rise=min(HEAD_WARMUP if group["of"] == "head" else warm_up, steps // 10))
        for group in optimizer.param_groups
    ]


def _schedule(group: dict[str, Any], config: TrainConfig, *, steps: int, rise: int) -> Callable[[int], float]:
    last: float = min(1.0, group["last_lr"] / group["first_lr"])
    exponential = group["of"] == "flow" and config.flow_schedule == "exponential"

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, steps - rise))
        if exponential:
            return math.pow(last, done)
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def _group(parameters: Any, first: float, last: float, *, of: str = "segmenter") -> dict[str, Any]:
    chosen: list[nn.Parameter | Tensor] = list(parameters)
    return {"params": chosen, "lr": first, "first_lr": first, "last_lr": last, "of": of}
