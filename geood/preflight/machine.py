"""Machine that a training would run on, and the encoder that suits it: GPU, cores, weights that are at hand."""

from __future__ import annotations

import os
from typing import NamedTuple

from geood.models import PACKAGE_ENCODER, weights_at_hand

ON_GPU = ("densenet121", "resnet50", PACKAGE_ENCODER, "resnet18")  # encoders to try, the best first
ON_CPU = (PACKAGE_ENCODER, "resnet18", "densenet121")


class Machine(NamedTuple):
    """GPU that torch sees (None: none), and the CPU cores that this process may use."""

    gpu: str | None
    cores: int

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.gpu} and {self.cores} CPU cores" if self.gpu else f"{self.cores} CPU cores, no GPU"


class Start(NamedTuple):
    """Encoder, and the word for its weights (None: random)."""

    encoder: str
    weights: str | None


def this_machine() -> Machine:
    """Return what torch and the system tell of this machine."""
    import torch

    return Machine(torch.cuda.get_device_name(0) if torch.cuda.is_available() else None, cores())


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def best_start(machine: Machine) -> Start:
    """Return the best encoder for a machine whose ImageNet weights need no network; else one with random weights."""
    names = ON_GPU if machine.gpu else ON_CPU
    for name in names:
        weights = weights_at_hand(name)
        if weights is not None:
            return Start(name, weights)
    return Start("densenet121" if machine.gpu else "resnet18", None)
