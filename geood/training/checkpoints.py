"""Checkpoints of a run: read as tensors and plain values only, checked whole, and chosen to go on from.

A checkpoint is a zip archive with a pickle. It is read without running anything (torch's `weights_only`), after the
checksum of every member was compared, which torch itself leaves out. A damaged one is never loaded: its stage begins
again, from the stage before, or is passed over where a later one holds what it would give. Of training nothing but the
names of its stages is known.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from geood.errors import shown
from geood.training.plans import THIRD

log = logging.getLogger("geood")
NEEDED = ("epoch", "global_step", "state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers")
VERSION = "pytorch-lightning_version"
UNREADABLE = (  # what zipfile and torch raise for damaged archives
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


class DamagedCheckpoint(Exception):
    """Checkpoint that is damaged or of another program; the message says how."""


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoint that is whole: the steps done in its stage, and the weights by name."""

    steps: int
    weights: dict[str, Tensor]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, and check that all of it is there and as it was written.

    Raises:
        DamagedCheckpoint: it is not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:
                raise DamagedCheckpoint(f"{shown(member)} in it is not as it was written")
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise DamagedCheckpoint("it holds more than tensors and plain values, or is cut") from None
    except UNREADABLE as error:
        first = str(error).partition("\n")[0] or type(error).__name__
        raise DamagedCheckpoint(shown(first)) from None
    if not isinstance(stored, dict) or VERSION not in stored:
        raise DamagedCheckpoint("it is no checkpoint of a run")
    if missing := [key for key in NEEDED if key not in stored]:
        raise DamagedCheckpoint(f"it is of another version, without {missing[0]}")
    steps, weights = stored["global_step"], stored["state_dict"]
    if type(steps) is not int or steps < 0 or not isinstance(weights, Mapping) or not _are_weights(weights):
        raise DamagedCheckpoint("its steps or weights are none")
    return Checkpoint(steps, dict(weights))


def _are_weights(weights: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items())


def steps_at(folder: Path, stages: Sequence[str]) -> dict[str, int | None]:
    """Return the steps done at the checkpoint of each stage, in order; 0: begin the stage, None: pass over it.

    A damaged checkpoint counts as none: its stage begins again from the stage before. It is passed over where the third
    stage has a checkpoint that is whole, which holds the weights of all.
    """
    found: dict[str, int | None] = {}
    damaged: dict[str, str] = {}
    for stage in stages:
        path = folder / f"{stage}.ckpt"
        try:
            found[stage] = read_checkpoint(path).steps if path.exists() else 0
        except DamagedCheckpoint as error:
            found[stage], damaged[stage] = 0, str(error)
    for i, stage in enumerate(stages):
        if stage not in damaged:
            continue
        later = [other for other in stages[i + 1 :] if other in THIRD and found[other]]
        said = f"goes on from {later[0]}.ckpt, which holds its weights" if later else f"stage {stage} begins again"
        log.warning("%s is damaged (%s): %s", folder / f"{stage}.ckpt", damaged[stage], said)
        if later:
            found[stage] = None
    return found


def unfit(folder: Path, stages: Sequence[str], networks: Mapping[str, Module | None]) -> list[str]:
    """Return those of the stages whose checkpoint holds other weights than the networks have, by names and shapes.

    Of each network as much is compared as a checkpoint holds; one that is missing or damaged is told elsewhere.
    """
    found = []
    for stage in stages:
        try:
            held = read_checkpoint(folder / f"{stage}.ckpt").weights
        except DamagedCheckpoint:
            continue
        for name, network in networks.items():
            stored = {key.removeprefix(f"{name}."): w.shape for key, w in held.items() if key.startswith(f"{name}.")}
            own = {} if network is None else {key: weight.shape for key, weight in network.state_dict().items()}
            if stored and own and stored != own:
                found.append(stage)
                break
    return found
