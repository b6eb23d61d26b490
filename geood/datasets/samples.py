"""Values of training data: where crops come from, and one sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class CropPixels(NamedTuple):
    """One crop as read: digital numbers (C, H, W) float32, valid (H, W) bool, ids (H, W) int64, 255 unlabelled."""

    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    ids: NDArray[np.int64]


class Ground(Protocol):
    """What crops are cut from; a place is whatever it takes for one."""

    def read(self, place: Any, *, validation: bool) -> CropPixels:
        """The pixels of a place, those that the other side of the split owns invalid and unlabelled."""

    def name(self, place: Any) -> str:
        """What a place is called in messages."""

    def write_split(self, folder: Path, training: tuple[Any, ...], validation: tuple[Any, ...]) -> None:
        """Write down which ground and which crops belong to which side."""


def seed_of(*parts: int) -> int:
    """One seed of 63 bits for several numbers: what is drawn for one combination says nothing about another."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


Sample = dict[str, Any]
