"""Optimizers, parameter groups and learning-rate schedules: Adam for the segmenter, Adam or Adamax for the flow.

The encoder, the rest of the segmenter, and the flow are groups with learning rates of their own. A rate warms up
linearly, then decays to its last value along a cosine (the flow's exponentially, if the config says so). The schedules
are those of the paper's group (DenseHybrid's scripts for the segmenter, DenseFlow's for the flow). AdamW with a weight
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
    """Return one optimizer for the networks that a stage (segmenter, flow or joint) trains; None is left out.

    Each group carries `first_lr` and `last_lr`, the ends of its schedule, and `flow`, True for the flow's weights.
    """
    parts: list[Optimizer] = []
    joint = stage == "joint"
    if segmenter is not None:
        first, factor = config.joint_segmenter_lr if joint else config.segmenter_lr, config.encoder_lr_factor
        encoder = list(segmenter.encoder.parameters())
        inside = {id(p) for p in encoder}
        rest = [p for p in segmenter.parameters() if id(p) not in inside]
        groups = [
            _group(encoder, factor * first, factor * config.segmenter_last_lr, flow=False),
            _group(rest, first, config.segmenter_last_lr, flow=False),
        ]
        parts.append(AdamW(groups, weight_decay=config.weight_decay, eps=config.adam_epsilon))
    if flow is not None:
        first = config.joint_flow_lr if joint else config.flow_lr
        groups = [_group(flow.parameters(), first, config.flow_last_lr, flow=True)]
        if config.flow_optimizer == "adamax":
            parts.append(Adamax(groups, eps=config.adam_epsilon))
        else:
            parts.append(AdamW(groups, weight_decay=0.0, eps=config.adam_epsilon))
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)


def schedules(optimizer: Optimizer, config: TrainConfig, stage: str, *, steps: int) -> list[Callable[[int], float]]:
    """Return for each group a function of the step: the factor on its first rate, in a stage of `steps` steps."""
    warm_up = config.flow_warmup_steps if stage == "flow" else config.warmup_steps
    rise = min(warm_up, steps // 10)
    return [_schedule(group, config, steps=steps, rise=rise) for group in optimizer.param_groups]


def _schedule(group: dict[str, Any], config: TrainConfig, *, steps: int, rise: int) -> Callable[[int], float]:
    last: float = min(1.0, group["last_lr"] / group["first_lr"])
    exponential = group["flow"] and config.flow_schedule == "exponential"

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, steps - rise))
        if exponential:
            return math.pow(last, done)
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def _group(parameters: Any, first: float, last: float, *, flow: bool) -> dict[str, Any]:
    chosen: list[nn.Parameter | Tensor] = list(parameters)
    return {"params": chosen, "lr": first, "first_lr": first, "last_lr": last, "flow": flow}
