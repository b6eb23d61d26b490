"""Settings proposed for a ground and a machine: crop and block size, encoder, lengths of the stages.

They are rules of thumb, told as such: those of the benchmarks for a CPU, the defaults for a GPU. What a step really
takes is measured afterwards, in `trial`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from geood.calibration import LEAST_BLOCKS
from geood.preflight.imagery import Imagery
from geood.preflight.machine import Machine, Start

CPU_CROP_PX, GPU_CROP_PX, LEAST_CROP_PX = 128, 256, 64
SCALE_MIN = 0.75  # of augmentation: a crop is read this much larger
GROUND_M = 30.0  # a crop shows a house and what is around it
COARSER_BLOCKS = 9  # that a ground is divided into at a coarser resolution than its own
BLOCKS = 60  # blocks to divide the ground into, if it is large enough
SCREENED_S = 600.0  # reading crops for screening should not take longer


@dataclass(frozen=True)
class Proposal:
    """Settings for a ground and a machine; sizes in pixels, block_m in metres (None: photographs).

    `resolution` is in units of the CRS (None: that of the first image), `pixel_m` the same in metres.
    """

    encoder: str
    weights: str | None
    crop_px: int
    resolution: float | None
    pixel_m: float | None
    block_m: float | None
    crops: int
    segmenter_steps: int
    segmenter_lr: float
    encoder_lr_factor: float
    decoder_channels: int
    validate_every: int
    workers: int

    @property
    def ground(self) -> str:
        """Ground that a crop shows, in words; empty for photographs."""
        return "" if self.pixel_m is None else f"{self.crop_px * self.pixel_m:.3g} m"

    @property
    def patch_max_px(self) -> int:
        """Longest side of a negative patch: at most 72 px, less than half of a crop."""
        return min(72, 8 * (7 * self.crop_px // 128))

    def tree(self) -> dict[str, dict[str, Any]]:
        """Return the settings as sections and keys of a config."""
        ground = {} if self.block_m is None else {"block_m": self.block_m}
        coarser = {} if self.resolution is None else {"resolution": self.resolution}
        return {
            "data": {**coarser, "crop_px": self.crop_px, "crops": self.crops, **ground, "workers": self.workers},
            "segmenter": {
                "encoder": self.encoder,
                "weights": self.weights,
                "decoder_channels": self.decoder_channels,
            },
            "negatives": {"patch_max_px": self.patch_max_px},
            "train": {
                "segmenter_steps": self.segmenter_steps,
                "segmenter_lr": self.segmenter_lr,
                "encoder_lr_factor": self.encoder_lr_factor,
                "validate_every": self.validate_every,
            },
        }


def propose(imagery: Imagery, machine: Machine, start: Start) -> Proposal:
    """Propose settings for images on a machine, from an encoder and its weights."""
    fitting = 32 * int(imagery.shortest_px * SCALE_MIN // 32)
    crop_px = max(LEAST_CROP_PX, min(GPU_CROP_PX if machine.gpu else CPU_CROP_PX, fitting))
    resolution, pixel_m = pixel_for(imagery, crop_px)
    pretrained = start.weights is not None
    if machine.gpu:
        steps, rate, channels = 8000, 4e-4, 128
    else:
        steps, rate, channels = (600 if pretrained else 1500), 1e-3, 96
    return Proposal(
        encoder=start.encoder,
        weights=start.weights,
        crop_px=crop_px,
        resolution=resolution,
        pixel_m=pixel_m,
        block_m=block_for(imagery, crop_px, pixel_m),
        crops=10_000,
        segmenter_steps=steps,
        segmenter_lr=rate,
        encoder_lr_factor=0.25 if pretrained else 1.0,
        decoder_channels=channels,
        validate_every=max(100, steps // 16 // 50 * 50),
        workers=min(8, machine.cores - 1) if machine.gpu else 0,
    )


def pixel_for(imagery: Imagery, crop_px: int) -> tuple[float | None, float | None]:
    """Return the resolution to train at, in units of the CRS (None: the images' own), and its pixel in metres.

    It is coarser, by a whole number, where a crop would show less than `GROUND_M`, as far as a crop still fits into the
    smallest image, and some blocks into the ground. Pixels of photographs have no size: both are None.
    """
    if imagery.resolution is None or imagery.resolution_m is None or imagery.km2 is None:
        return None, None
    crop_m = crop_px * imagery.resolution_m
    roomy = math.sqrt(imagery.km2 * 1e6 / COARSER_BLOCKS) // (1.5 * crop_m / SCALE_MIN)
    times = int(min(math.ceil(GROUND_M / crop_m), imagery.shortest_px * SCALE_MIN // crop_px, roomy))
    if times <= 1:
        return None, imagery.resolution_m
    return float(f"{times * imagery.resolution:.9g}"), times * imagery.resolution_m


def block_for(imagery: Imagery, crop_px: int, pixel_m: float | None) -> float | None:
    """Return the side of the blocks of the spatial split in metres, rounded to two digits; None for photographs.

    Some dozens of blocks, each between one and a half and six crops wide.
    """
    if imagery.km2 is None or pixel_m is None:
        return None
    crop_m = crop_px / SCALE_MIN * pixel_m
    wished = math.sqrt(imagery.km2 * 1e6 / BLOCKS)
    return float(f"{min(max(wished, 1.5 * crop_m), 6 * crop_m):.2g}")


def smaller_crops(proposal: Proposal, imagery: Imagery) -> Proposal | None:
    """Return the proposal with crops of half the side, of which more lack a held-out class; None at the least."""
    crop_px = max(LEAST_CROP_PX, 32 * (proposal.crop_px // 64))
    if crop_px >= proposal.crop_px:
        return None
    return replace(proposal, crop_px=crop_px, block_m=block_for(imagery, crop_px, proposal.pixel_m))


def smaller_blocks(proposal: Proposal, validation: int) -> Proposal | None:
    """Return the proposal with smaller blocks, so that more than `validation` validate; None if they are the least.

    Where only a part of the images is labelled, the ground holds fewer blocks than its images.
    """
    if proposal.block_m is None or proposal.pixel_m is None:
        return None
    least = 1.5 * proposal.crop_px / SCALE_MIN * proposal.pixel_m
    wished = proposal.block_m * math.sqrt(max(1, validation) / (1.5 * LEAST_BLOCKS))
    block_m = float(f"{max(wished, least):.2g}")
    return replace(proposal, block_m=block_m) if block_m < proposal.block_m else None


def fewer_crops(proposal: Proposal, read_s: float) -> Proposal:
    """Return the proposal with no more crops than can be screened in ten minutes, but at least 2,000."""
    most = max(2000, int(SCREENED_S / max(read_s, 1e-6) // 500 * 500))
    return replace(proposal, crops=min(proposal.crops, most))
