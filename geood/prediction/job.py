"""Values that travel between client and workers: a job, its tiles, and their results."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from geood.config import PredictConfig, ScoreConfig
from geood.geo.aoi import AreaOfInterest
from geood.geo.grid import Grid, Tile, Window, tile_grid
from geood.geo.scene import SceneSource
from geood.prediction.journal import Chunk, TileFigures


@dataclasses.dataclass(frozen=True)
class Job:
    """What workers need to know of the run over one scene; paths and values only, so it travels.

    `state` tells a scene from an older file of the same name, `identity` the bundle; `weights` holds the bundle's bytes
    where workers do not see its path. `tile_px` is the side of the tiles, `computing` how many tiles a process computes
    at a time, `process_bytes` what it may hold in memory, `classes` whether a class raster is wanted.
    """

    source: SceneSource
    state: str
    bundle_path: str
    identity: str
    score: ScoreConfig
    predict: PredictConfig
    tile_px: int
    area: AreaOfInterest | None
    classes: bool
    computing: int
    cache_bytes: int
    process_bytes: int | None = None
    weights: bytes | None = None


class NumberedTile(NamedTuple):
    """A tile and its number in the grid of tiles, row by row."""

    number: int
    tile: Tile


class ScoredTile(NamedTuple):
    """A finished tile: its figures, and its packed scores and classes (empty where there is nothing in them).

    Chunks hold arrays of bytes, which Dask sends without a copy; `bytes` it would copy thrice.
    """

    number: int
    figures: TileFigures
    chunks: tuple[Chunk, Chunk]


class FailedTile(NamedTuple):
    """A tile whose valid pixels have no score, and why."""

    number: int
    window: Window
    reason: str


def tiles_of(grid: Grid, job: Job, *, halo_px: int) -> Iterator[NumberedTile]:
    """The tiles of a scene that a run is about, in reading order."""
    tiles = tile_grid(grid.height, grid.width, tile_px=job.tile_px, halo_px=halo_px, scale=job.source.scale)
    for number, tile in enumerate(tiles):
        if job.area is None or job.area.touches(tile.write):
            yield NumberedTile(number, tile)
