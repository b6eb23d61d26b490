"""Values that training data is made of: pixels of a crop, bands, the ground that crops are cut from, and a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from geood.geo.grid import mirrored

UNSTATED_ID = 1 << 32  # id of pixels that are no anomaly, of a class that nobody stated; no label file can hold it


class CropPixels(NamedTuple):
    """Pixels of a crop: digital numbers (C, H, W) float32, valid (H, W) bool, ids (H, W) int64, 255 unlabelled.

    The id UNSTATED_ID is that of inliers of no stated class.
    """

    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    ids: NDArray[np.int64]


class TrainingBands(NamedTuple):
    """Bands that all training images share; `scene_count` is the number a scene must have (None: any number).

    `measured` are bands that files declare as alpha and that hold measurements; `scales` and `offsets` are tags.
    """

    names: tuple[str, ...]
    indexes: tuple[int, ...]
    dtype: np.dtype[Any]
    scene_count: int | None
    measured: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()


class Ground(Protocol):
    """Imagery that crops are cut from; a crop is a value that the ground itself defines."""

    def read(self, crop: Any, *, validation: bool) -> CropPixels:
        """Read the pixels of a crop; those that the other side of the split owns are invalid and unlabelled."""

    def around(self, crop: Any, height: int, width: int) -> CropPixels:
        """Read `height` x `width` pixels around a crop, of either side of the split and without labels.

        They lie inside the image where it is large enough, and are mirrored beyond its edge where it is not.
        """

    def name(self, crop: Any) -> str:
        """Return a crop's image and position, for messages."""

    def resolution_m(self, crop: Any) -> float | None:
        """Return the size of a crop's pixels in metres, None if it is unknown."""

    def files(self) -> tuple[Path, ...]:
        """Return the files that images and labels are read from."""

    def write_split(self, folder: Path, training: tuple[Any, ...], validation: tuple[Any, ...]) -> None:
        """Write the ground and the crops of either side to `folder/split.*`."""


def span_around(centre: float, length: int, size: int) -> tuple[int, int]:
    """Return start and length of at most `length` pixels around a position of an axis of `size`, moved inside it."""
    inside = min(length, size)
    return min(max(0, round(centre - inside / 2)), size - inside), inside


def grown(pixels: CropPixels, height: int, width: int) -> CropPixels:
    """Return pixels of at least that size, mirrored on all sides, with the given ones in the middle."""
    rows, cols = (
        mirrored(-((side - size) // 2), side, size)
        for side, size in zip((height, width), pixels.valid.shape, strict=True)
    )
    chosen = np.ix_(rows, cols)
    return CropPixels(pixels.image[:, chosen[0], chosen[1]], pixels.valid[chosen], pixels.ids[chosen])


def seed_of(*parts: int) -> int:
    """Derive one seed of 63 bits from several numbers; different combinations give independent streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


Sample = dict[str, Any]
