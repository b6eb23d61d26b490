"""Crops ready for a network, wherever they are cut from: shuffled and changed to train on, as they are to validate.

Where pixels lie and who may see them is the matter of a `Ground`: scenes on one lattice of blocks (`scenes`), or
photographs without a place (`photos`). What is the same for both stands here: a training item is a pure function of
seed and number, whatever process reads it, and every crop of the pool comes once before any comes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from geood.config.sections import Config
from geood.constants import IGNORE
from geood.datasets.augment import augment
from geood.datasets.samples import Ground, Sample, seed_of
from geood.geo.bands import Bands

if TYPE_CHECKING:
    from geood.datasets.screening import Screening


@dataclass(frozen=True)
class Crops:
    """Screened training and validation crops of a config. Channel i of a network is the class `class_ids[i]`."""

    config: Config
    bands: Bands
    class_ids: tuple[int, ...]
    report: Screening
    resolution_m: float | None
    ground: Ground
    training_boxes: tuple[Any, ...]
    validation_boxes: tuple[Any, ...]

    def training(self, seed: int, length: int, *, rank: int = 0, world: int = 1) -> Dataset[Sample]:
        """`length` augmented training samples for one of `world` processes; sample i depends on seed, rank and i only.

        A sample holds `image` float32 (C, S, S) in [0, 1], `mask` int64 (S, S) of channel numbers with 255 to ignore,
        `valid` bool (S, S) and `name`, S = data.crop_px.
        """
        return TrainingCrops(self, seed, length, rank, world)

    def validation(self) -> Dataset[Sample]:
        """The validation crops, in the form of `training`, always the same and unchanged by augmentation."""
        return ValidationCrops(self)

    def sample(self, place: Any, *, validation: bool) -> Sample:
        """The sample of one place, as seen from one side of the split.

        Raises:
            DataError: a file cannot be read.
        """
        pixels = self.ground.read(place, validation=validation)
        mask = np.full(pixels.ids.shape, IGNORE, np.int64)
        for channel, class_id in enumerate(self.class_ids):
            mask[pixels.ids == class_id] = channel
        return {
            "image": torch.from_numpy(self.bands.scale(pixels.image, pixels.valid)),
            "mask": torch.from_numpy(mask),
            "valid": torch.from_numpy(pixels.valid),
            "name": self.ground.name(place),
        }

    def write_split(self, folder: Path) -> None:
        """Write down the split, in a form that suits the ground, as `folder/split.*`."""
        self.ground.write_split(folder, self.training_boxes, self.validation_boxes)


class TrainingCrops(Dataset[Sample]):
    """Item i of process `rank`: a crop of the pool, augmented; see `Crops.training`."""

    def __init__(self, crops: Crops, seed: int, length: int, *place: int) -> None:
        self.crops, self.seed, self.length = crops, seed, length
        self.rank, self.world = place
        self._round = -1

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.length:
            raise IndexError(i)
        position = i * self.world + self.rank
        generator = torch.Generator().manual_seed(seed_of(self.seed, 1, position))
        box = self.crops.training_boxes[self._crop(position)]
        return augment(self.crops.sample(box, validation=False), self.crops.config.data, generator=generator)

    def _crop(self, position: int) -> int:
        """Number of the crop at a position of the endless stream of shuffled pools."""
        pool = len(self.crops.training_boxes)
        if self._round != position // pool:
            self._round = position // pool
            self._order = np.random.default_rng([self.seed, 0, self._round]).permutation(pool)
        return int(self._order[position % pool])


class ValidationCrops(Dataset[Sample]):
    """The validation crops of a `Crops`, in order."""

    def __init__(self, crops: Crops) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops.validation_boxes)

    def __getitem__(self, i: int) -> Sample:
        return self.crops.sample(self.crops.validation_boxes[i], validation=True)
