"""Side of tiles, by one rule: as named, else as begun, else as calibrated, changed for what this machine holds.

1. The side that `predict.tile_px` names; with `--max-ram`, the fastest that fits (`budget`).
2. That of the run that is resumed.
3. That of calibration (`ModelBundle.tile_px`): 1024 px, or 2048 px with a halo above 128 px. Two things change it:
   a. with a wide halo, it is 1536 or 1024 px if half of the memory does not hold more;
   b. with a narrow halo that cuts off next to nothing, it is 1536 or 2048 px for a scene whose busiest core would read
      less then, if half of the memory holds that: large tiles compute fewer pixels twice, but few leave cores idle.

Neither does where other machines compute (a scheduler), nor on a GPU, which computes tiles in batches. Cores and memory
are those of the machine, however many of them are used: a map does not depend on the number of workers.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from geood.geo.aoi import AreaOfInterest
from geood.geo.grid import Grid, tile_grid
from geood.geo.scene_reading import tile_side
from geood.models import TILE_PX, ModelBundle
from geood.prediction.tile_memory import machine_holds

TILES_PX = (2048, 1536, 1024, 768, 512, 384, 256, 192, 128)  # sides that tiles have by themselves
CUT_OFF = 0.01  # share of what a pixel depends on that may lie beyond the halo, for tiles to be of any size
WORTH = 0.97  # of the time: larger tiles that save less only take memory
MANY = 4096  # tiles of which each core has its share, in whatever order


def run_side(bundle: ModelBundle, *, here: bool = True) -> int:
    """Return the side at the model's resolution of the tiles of a run (rules 1, 3 and a), whatever its scenes.

    `here` tells whether this machine computes.
    """
    if not _may_change(bundle, here=here):
        return bundle.tile_px
    sides = [px for px in TILES_PX if TILE_PX < px <= bundle.tile_px]
    return next((px for px in sides if machine_holds(bundle, px)), TILE_PX)


def scene_side(
    bundle: ModelBundle,
    grid: Grid,
    *,
    least: int,
    begun: Mapping[str, Any] | None = None,
    here: bool = True,
    scale: float = 1.0,
    area: AreaOfInterest | None = None,
) -> tuple[int, bool]:
    """Return the side at the model's resolution of the tiles of a scene, and whether it is that of a run begun.

    Args:
        bundle: the bundle, whose config may name a side, which is kept.
        grid: the scene's grid.
        least: the side by `run_side`.
        begun: the `ScenePlan.key` of a run that is to be resumed; the machine may have been another then.
        here: whether this machine computes.
        scale: working pixels per pixel of the scene.
        area: the part of the scene to score; None: all of it.
    """
    if bundle.config.predict.tile_px != "auto":
        return least, False
    kept = next((px for px in TILES_PX if tile_side(px, scale) == (begun or {}).get("tile_px")), None)
    if kept is not None:
        return kept, True
    cut_off = 1.0 if bundle.cut_off is None else bundle.cut_off
    if not _may_change(bundle, here=here) or bundle.tile_px != TILE_PX or cut_off > CUT_OFF:
        return least, False
    times = {}
    for px in (px for px in TILES_PX if px >= least):
        tiles = tile_grid(grid.height, grid.width, tile_px=tile_side(px, scale), halo_px=bundle.halo_px, scale=scale)
        reads = [tile.read.height * tile.read.width for tile in tiles if area is None or area.touches(tile.write)]
        times[px] = _busiest(reads)
    paying = sorted((time, px) for px, time in times.items() if time < WORTH * times[least])
    return next((px for _, px in paying if machine_holds(bundle, px)), least), False


def _may_change(bundle: ModelBundle, *, here: bool) -> bool:
    """Return whether cores and memory of this machine have a say."""
    return bundle.config.predict.tile_px == "auto" and here and not torch.cuda.is_available()


def _busiest(pieces: Sequence[int]) -> float:
    """Return the work of the core that has most, where each takes the next piece as soon as it is free."""
    cores = os.cpu_count() or 1
    if len(pieces) > MANY:
        return sum(pieces) / cores
    loads = [0] * cores
    for piece in pieces:
        heapq.heapreplace(loads, loads[0] + piece)
    return max(loads)
