"""Training, from a config to a bundle: stages, losses, pasting, sources of negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.training.negative_examples import example_negatives
    from geood.training.trainer import train

__all__ = ["example_negatives", "train"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "example_negatives": "negative_examples",
        "train": "trainer",
    },
)
