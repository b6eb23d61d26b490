"""Trial of a config on its own data: some hundred crops are drawn and screened as training does, a few steps are timed.

The crops are drawn by the rules of training and tell the same shares; nothing is trained or written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from geood.calibration import LEAST_BLOCKS
from geood.config import Config
from geood.datasets import Crops, labelled_blocks, open_crops, open_photographs
from geood.models import Flow, Segmenter
from geood.training import Pace, measure_pace

TRIAL_CROPS = 200  # crops that are looked at
log = logging.getLogger("geood")


@dataclass(frozen=True)
class Trial:
    """Crops of a trial, with the config that they were drawn by."""

    config: Config
    crops: Crops

    @property
    def clean(self) -> float:
        """Share of the crops with enough data that can be trained on, 0 to 1."""
        report = self.crops.report
        return report.kept / max(1, report.drawn - report.dropped_invalid)

    @property
    def with_anomaly(self) -> float:
        """Share of the crops with enough data that hold an anomaly pixel, 0 to 1."""
        report = self.crops.report
        return report.dropped_anomaly / max(1, report.drawn - report.dropped_invalid)

    @property
    def expected(self) -> int:
        """Number of training crops to be expected of the config's own number."""
        return round(self.clean * self.config.data.crops)

    @cached_property
    def blocks(self) -> int:
        """Labelled blocks of validation ground, counted up to those that an interval needs."""
        return labelled_blocks(self.crops.ground, self.config, LEAST_BLOCKS)

    @property
    def few_blocks(self) -> str | None:
        """Note that validation has fewer blocks than an interval needs; None if it has enough."""
        if self.blocks >= LEAST_BLOCKS:
            return None
        scenes = self.config.data.kind == "scenes"
        what, remedy = ("blocks", "make data.block_m smaller") if scenes else ("images", "raise data.validation")
        return (
            f"labelled {what} of validation ground: {self.blocks}; with fewer than {LEAST_BLOCKS} it is not known how "
            f"far a promise holds elsewhere: label more places, or {remedy}"
        )

    def pace(self) -> Pace:
        """Measure how long the training would take on this machine.

        Raises:
            ConfigError: the networks cannot be made.
        """
        config, bands = self.config, self.crops.bands
        with torch.random.fork_rng():
            segmenter = Segmenter(bands.count, len(config.data.classes), config.segmenter)
            flow = Flow(bands.count, config.flow, bands.step) if "flow" in config.negatives.sources else None
        photographs = open_photographs(config, bands.count)
        return measure_pace(self.crops, segmenter=segmenter, flow=flow, photographs=photographs)


def try_crops(config: Config, *, number: int | None = None) -> Trial:
    """Open the data of a config as training does, but draw and screen only some crops: `number`, or 200.

    Raises:
        DataError: a file is missing or cannot be used, labels and images do not fit, or no crop can be trained on.
    """
    few = config.data.model_copy(update={"crops": min(number or TRIAL_CROPS, config.data.crops)})
    return Trial(config, open_crops(config.model_copy(update={"data": few})))


@contextmanager
def quietly(level: int = logging.WARNING) -> Iterator[None]:
    """Keep back what training would log of the crops; warnings are still shown."""
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)
