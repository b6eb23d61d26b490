"""Training, from a config to a bundle: stages, losses, pasting, sources of negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.training.first_checks import check_first, uses_gpu
    from geood.training.negative_examples import example_negatives
    from geood.training.pace import LONG_S, Pace, measure_pace, shortcuts
    from geood.training.trainer import train

__all__ = [
    "LONG_S",
    "Pace",
    "check_first",
    "example_negatives",
    "measure_pace",
    "shortcuts",
    "train",
    "uses_gpu",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "LONG_S": "pace",
        "Pace": "pace",
        "check_first": "first_checks",
        "example_negatives": "negative_examples",
        "measure_pace": "pace",
        "shortcuts": "pace",
        "train": "trainer",
        "uses_gpu": "first_checks",
    },
)
