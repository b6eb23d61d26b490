"""Settings proposed for a ground and a machine: crop and block size, encoder, lengths of the stages.

They are rules of thumb, told as such: those of the benchmarks for a CPU, the defaults for a GPU. What a step really
takes is measured afterwards, in `trial`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from geood.preflight.imagery import Imagery
from geood.preflight.machine import Machine, Start

CPU_CROP_PX, GPU_CROP_PX, LEAST_CROP_PX = 128, 256, 64
SCALE_MIN = 0.75  # of augmentation: a crop is read this much larger
BLOCKS = 60  # blocks to divide the ground into, if it is large enough
SCREENED_S = 600.0  # reading crops for screening should not take longer


@dataclass(frozen=True)
class Proposal:
    """Settings for a ground and a machine; sizes in pixels, block_m in metres (None: photographs)."""

    encoder: str
    weights: str | None
    crop_px: int
    block_m: float | None
    crops: int
    segmenter_steps: int
    segmenter_lr: float
    encoder_lr_factor: float
    decoder_channels: int
    validate_every: int
    workers: int

    @property
    def patch_max_px(self) -> int:
        """Longest side of a negative patch: at most 72 px, less than half of a crop."""
        return min(72, 8 * (7 * self.crop_px // 128))

    def tree(self) -> dict[str, dict[str, Any]]:
        """Return the settings as sections and keys of a config."""
        block = {} if self.block_m is None else {"block_m": self.block_m}
        return {
            "data": {"crop_px": self.crop_px, "crops": self.crops, **block, "workers": self.workers},
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
    pretrained = start.weights is not None
    if machine.gpu:
        steps, rate, channels = 8000, 4e-4, 128
    else:
        steps, rate, channels = (600 if pretrained else 1500), 1e-3, 96
    return Proposal(
        encoder=start.encoder,
        weights=start.weights,
        crop_px=crop_px,
        block_m=block_for(imagery, crop_px),
        crops=10_000,
        segmenter_steps=steps,
        segmenter_lr=rate,
        encoder_lr_factor=0.25 if pretrained else 1.0,
        decoder_channels=channels,
        validate_every=max(100, steps // 16 // 50 * 50),
        workers=min(8, machine.cores - 1) if machine.gpu else 0,
    )


def block_for(imagery: Imagery, crop_px: int) -> float | None:
    """Return the side of the blocks of the spatial split in metres, rounded to two digits; None for photographs.

    Some dozens of blocks, each between one and a half and six crops wide.
    """
    if imagery.km2 is None or imagery.resolution_m is None:
        return None
    crop_m = crop_px / SCALE_MIN * imagery.resolution_m
    wished = math.sqrt(imagery.km2 * 1e6 / BLOCKS)
    return float(f"{min(max(wished, 1.5 * crop_m), 6 * crop_m):.2g}")


def smaller_crops(proposal: Proposal, imagery: Imagery) -> Proposal | None:
    """Return the proposal with crops of half the side, of which more lack a held-out class; None at the least."""
    crop_px = max(LEAST_CROP_PX, 32 * (proposal.crop_px // 64))
    if crop_px >= proposal.crop_px:
        return None
    return replace(proposal, crop_px=crop_px, block_m=block_for(imagery, crop_px))


def fewer_crops(proposal: Proposal, read_s: float) -> Proposal:
    """Return the proposal with no more crops than can be screened in ten minutes, but at least 2,000."""
    most = max(2000, int(SCREENED_S / max(read_s, 1e-6) // 500 * 500))
    return replace(proposal, crops=min(proposal.crops, most))
