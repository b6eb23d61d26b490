"""Plans of a training: which stages run, and how each is cut into epochs.

The first two stages train the segmenter and, if negatives come from one, the flow, each alone. The third stage learns
from negatives: `head` trains the outlier head beside a segmenter that stays as it is, `joint` trains segmenter and flow
together, as the paper does (arXiv 2112.12833). The steps of a stage are in `stage` and `third_stage`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geood.config import Config, TrainConfig

THIRD = ("joint", "head")  # stages that learn from negatives; a run has one of them
STAGES = ("segmenter", "flow", *THIRD)
FLOW_PART = 3  # what part of a batch the flow learns from alone: about as many pixels as in patches of any size
MOST_TRIED = 100_000  # numbers of epochs that are tried, so that no length of a stage takes long to plan


@dataclass(frozen=True)
class Plan:
    """Stage cut into equal epochs: `epochs` times `epoch_steps` steps of `batch` crops; `asked` is what was wanted."""

    stage: str
    epochs: int
    epoch_steps: int
    batch: int = 8
    asked: int | None = None

    @property
    def steps(self) -> int:
        """Number of steps of the stage: that of the config, or a little more where that has no fitting divisor."""
        return self.epochs * self.epoch_steps


def plans(config: Config) -> list[Plan]:
    """Return the stages to run, in order; without those of 0 steps, those that are reused, and a flow not needed."""
    third = config.train.third_stage
    wanted = {third} if config.train.stages_from or config.train.tune_from else {"segmenter", "flow", third}
    if "flow" not in config.negatives.sources:
        wanted.discard("flow")
    chosen = []
    for stage in STAGES:
        steps: int = getattr(config.train, f"{stage}_steps")
        if steps and stage in wanted:
            epochs = _epochs(steps, config.train.validate_every)
            chosen.append(Plan(stage, epochs, math.ceil(steps / epochs), _batch(stage, config.train), asked=steps))
    return chosen


def _batch(stage: str, train: TrainConfig) -> int:
    """Return the crops of a step; the flow alone takes fewer, as its patches are all of the largest size."""
    if stage == "flow":
        return math.ceil(train.batch / FLOW_PART)
    return (train.joint_batch if stage in THIRD else None) or train.batch


def _epochs(steps: int, every: int) -> int:
    """Return into how many equal epochs a stage is cut, each of about `every` steps.

    Of the numbers that divide the steps, and give epochs of half to twice as many, the nearest is taken; where none
    does, as with a prime number of steps, the stage does a few steps more.
    """
    wanted = steps / every
    nearest = max(1, round(wanted))
    for away in range(min(nearest, MOST_TRIED)):
        for epochs in sorted((nearest - away, nearest + away), key=lambda epochs: abs(epochs - wanted)):
            if epochs >= 1 and steps % epochs == 0 and wanted / 2 <= epochs <= 2 * wanted:
                return epochs
    return nearest
