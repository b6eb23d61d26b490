"""Side of a scene's tiles: as large as saves time on its pixels, and as the memory of this machine holds.

With a halo around each tile, large tiles compute fewer pixels twice; but a scene of few tiles may leave cores without
work. So the time of a scene is reckoned by the pixels that its busiest core would read. Tiles never get smaller than
those that the model was calibrated on, and are left at that if more than a hundredth of what a pixel depends on lies
beyond the halo: then a score depends on its tile. Cores and memory are those of the machine, however many of them are
used: a map does not depend on the number of workers.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from geood.geo.aoi import AreaOfInterest
from geood.geo.grid import Grid, tile_grid
from geood.geo.scene_reading import tile_side
from geood.models import TILE_PX, ModelBundle
from geood.prediction.budget import TILES_PX, machine_holds

CUT_OFF = 0.01  # share of what a pixel depends on that may lie beyond the halo, for tiles to be of any size
WORTH = 0.97  # of the time: larger tiles that save less only take memory
MANY = 4096  # tiles of which each core has its share, in whatever order


def grown_tile(
    bundle: ModelBundle,
    grid: Grid,
    *,
    scale: float = 1.0,
    area: AreaOfInterest | None = None,
    holds: Callable[[int], bool] | None = None,
) -> int:
    """Return the side of tiles at the model's resolution that take least time for a scene, from `bundle.tile_px` up.

    On a GPU, where tiles are computed in batches, and where the config names a side or the halo already asked for a
    larger one, that is `bundle.tile_px`.

    Args:
        bundle: the bundle, whose config may name a side.
        grid: the scene's grid.
        scale: working pixels per pixel of the scene.
        area: the part of the scene to score; None: all of it.
        holds: tells whether the memory holds tiles of a side, asked only of sides that pay; None: `machine_holds`.
    """
    least = bundle.tile_px
    if bundle.config.predict.tile_px != "auto" or least != TILE_PX or torch.cuda.is_available():
        return least
    if bundle.cut_off is None or bundle.cut_off > CUT_OFF:
        return least
    tiles_of = partial(tile_grid, grid.height, grid.width, halo_px=bundle.halo_px, scale=scale)
    times = {}
    for px in (px for px in TILES_PX if px >= least):
        tiles = tiles_of(tile_px=tile_side(px, scale))
        reads = [tile.read.height * tile.read.width for tile in tiles if area is None or area.touches(tile.write)]
        times[px] = _busiest(reads)
    paying = sorted((time, px) for px, time in times.items() if time < WORTH * times[least])
    held = holds or partial(machine_holds, bundle)
    return next((px for _, px in paying if held(px)), least)


def begun_tile(side: Any, scale: float) -> int | None:
    """Return the side at the model's resolution of tiles of a run that was begun, `side` pixels of the scene wide.

    The machine may be another now, or its memory: a run goes on with the tiles that it has. None: no side that tiles
    have by themselves.
    """
    return next((px for px in TILES_PX if tile_side(px, scale) == side), None)


def _busiest(pieces: Sequence[int]) -> float:
    """Return the work of the core that has most, where each takes the next piece as soon as it is free."""
    cores = os.cpu_count() or 1
    if len(pieces) > MANY:
        return sum(pieces) / cores
    loads = [0] * cores
    for piece in pieces:
        heapq.heapreplace(loads, loads[0] + piece)
    return max(loads)
