"""Datasets of crops ready for a network: shuffled and augmented for training, unchanged for validation.

A `Ground` knows where pixels are and which side of the split owns them: scenes on one lattice of blocks (`scene_crops`)
or photographs without georeference (`photo_crops`). This module holds what is the same for both: the recipe from drawn
crops to datasets, and the sampling. A training item is a pure function of seed and index, whatever process reads it,
and every crop of the pool comes once before any comes again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from geood.config import Config
from geood.constants import IGNORE, UNSTATED
from geood.datasets.augment import augment
from geood.datasets.reviewed_ground import ReviewedCrop, ReviewedScenes
from geood.datasets.samples import UNSTATED_ID, Ground, Sample, TrainingBands, seed_of
from geood.datasets.screening import Screening, labelled, report_screening, screen, why_nothing
from geood.datasets.unreadable import Skipped, write_skipped
from geood.errors import DataError
from geood.geo.bands import Bands, bands_from_samples


@dataclass(frozen=True)
class Crops:
    """Screened training and validation crops of a config. Channel i of a network is the class `class_ids[i]`.

    `photo_width` is the width in pixels at which photographs are read, None for scenes and where metres are known;
    `skipped` are the files that were left out because they cannot be read.
    """

    config: Config
    bands: Bands
    class_ids: tuple[int, ...]
    report: Screening
    resolution_m: float | None
    ground: Ground
    training_boxes: tuple[Any, ...]
    validation_boxes: tuple[Any, ...]
    photo_width: int | None = None
    skipped: tuple[Skipped, ...] = ()

    def training(self, seed: int, length: int, *, rank: int = 0, world: int = 1) -> Dataset[Sample]:
        """Return `length` augmented samples for one of `world` processes; sample i depends on seed, rank and i only.

        A sample holds `image` float32 (C, S, S) in [0, 1], `mask` int64 (S, S) of channel numbers with 255 to ignore
        and 254 for inliers of no stated class, `valid` bool (S, S), `name`, and `reviewed`, whether it is a crop of
        reviewed ground; S = data.crop_px.
        """
        return TrainingCrops(self, seed, length, rank=rank, world=world)

    def validation(self) -> Dataset[Sample]:
        """Return the validation crops in the format of `training`, always the same and not augmented."""
        return ValidationCrops(self)

    def sample(self, crop: Any, *, validation: bool) -> Sample:
        """Read one crop as a sample, as seen from one side of the split.

        Raises:
            DataError: a file cannot be read.
        """
        pixels = self.ground.read(crop, validation=validation)
        mask = np.full(pixels.ids.shape, IGNORE, np.int64)
        for channel, class_id in enumerate(self.class_ids):
            np.copyto(mask, channel, where=pixels.ids == class_id)
        np.copyto(mask, UNSTATED, where=pixels.ids == UNSTATED_ID)
        return {
            "image": torch.from_numpy(self.bands.scale(pixels.image, pixels.valid)),
            "mask": torch.from_numpy(mask),
            "valid": torch.from_numpy(pixels.valid),
            "name": self.ground.name(crop),
            "reviewed": isinstance(crop, ReviewedCrop),
        }

    def false_alarms(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (1, C, S, S) float32 in [0, 1] with what a person called false alarms on them (1, S, S) bool.

        There are none where the ground was not reviewed.

        Raises:
            DataError: a file cannot be read.
        """
        if isinstance(self.ground, ReviewedScenes):
            for (image, valid, _), false in self.ground.false_alarms():
                yield torch.from_numpy(self.bands.scale(image, valid))[None], torch.from_numpy(false)[None]

    def views(self, height: int, width: int, *, number: int, seed: int) -> list[Tensor]:
        """Return images (1, C, height, width) float32 in [0, 1] around `number` validation crops drawn with a seed.

        They are wider than crops and ignore the split: for measurements without labels, such as a network's reach.

        Raises:
            DataError: a file cannot be read.
        """
        boxes = self.validation_boxes
        drawn = np.random.default_rng(seed).permutation(len(boxes))
        views = []
        for i in range(number):
            pixels = self.ground.around(boxes[drawn[i % len(boxes)]], height, width)
            views.append(torch.from_numpy(self.bands.scale(pixels.image, pixels.valid))[None])
        return views

    def write_split(self, folder: Path) -> None:
        """Write the split to `folder/split.*`, in a format that suits the ground, and what was left out beside it."""
        self.ground.write_split(folder, self.training_boxes, self.validation_boxes)
        write_skipped(folder, self.skipped)


class TrainingCrops(Dataset[Sample]):
    """Augmented training samples of process `rank`; see `Crops.training`."""

    def __init__(self, crops: Crops, seed: int, length: int, *, rank: int, world: int) -> None:
        self.crops, self.seed, self.length = crops, seed, length
        self.rank, self.world = rank, world
        self._round = -1

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.length:
            raise IndexError(i)
        position = i * self.world + self.rank
        generator = torch.Generator().manual_seed(seed_of(self.seed, 1, position))
        crop = self.crops.training_boxes[self._crop(position)]
        return augment(self.crops.sample(crop, validation=False), self.crops.config.data, generator=generator)

    def _crop(self, position: int) -> int:
        """Return the index of the crop at a position of the endless stream of shuffled pools."""
        pool = len(self.crops.training_boxes)
        if self._round != position // pool:
            self._round = position // pool
            self._order = np.random.default_rng([self.seed, 0, self._round]).permutation(pool)
        return int(self._order[position % pool])


class ValidationCrops(Dataset[Sample]):
    """Validation samples of a `Crops`, in order."""

    def __init__(self, crops: Crops) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops.validation_boxes)

    def __getitem__(self, i: int) -> Sample:
        return self.crops.sample(self.crops.validation_boxes[i], validation=True)


def build_crops(
    config: Config, ground: Ground, *, bands: TrainingBands, drawn: Sequence[Any], grid: Sequence[Any]
) -> Crops:
    """Screen the drawn training crops, choose the validation crops and fit the bands to the pixels that are kept.

    Args:
        config: the config that the crops belong to.
        ground: reads a crop of either side of the split.
        bands: the bands of all training images.
        drawn: candidate training crops in the order they were drawn; those beyond `data.crops` replace crops with too
            little data.
        grid: candidate validation crops, in order; at most `data.validation_crops` of them are taken.

    Raises:
        DataError: no drawn crop can be trained on, no crop of the grid holds a label, or a file cannot be read.
    """
    kept, values, report = screen(drawn, partial(ground.read, validation=False), config=config)
    if not kept:
        raise DataError(why_nothing(report, config))
    shown = labelled(grid, partial(ground.read, validation=True), config=config)
    report.validation_crops = len(shown)
    report_screening(report, config)
    return Crops(
        config=config,
        bands=replace(
            bands_from_samples(
                config.bands,
                bands.names,
                indexes=bands.indexes,
                values=values,
                dtype=bands.dtype,
                scene_count=bands.scene_count,
            ),
            scales=bands.scales,
            offsets=bands.offsets,
        ),
        class_ids=tuple(sorted(config.data.classes)),
        report=report,
        resolution_m=ground.resolution_m(kept[0]),
        ground=ground,
        training_boxes=tuple(kept),
        validation_boxes=tuple(shown),
    )
