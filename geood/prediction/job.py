"""Values exchanged between client and workers: a job, its tiles, and their results.

They hold paths, windows, figures and packed bytes, never pixels as read or open files, so any process on any machine
can take them.
"""

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
    """Everything that workers need to know about the run over one scene: paths and values only, so it can be sent.

    `state` tells the scene from an older file of the same name, `identity` does so for the bundle; `weights` holds the
    bundle's bytes for workers that cannot see its path. `tile_px` is the side of a tile without halo on the scene's
    grid, `halo_px` the width of the halo on the grid that is read, `computing` the number of tiles that a process
    computes at a time (0: one for each of its cores), `cache_bytes` the size of GDAL's block cache, `process_bytes` a
    process's memory limit (None: no limit), `classes` whether a class raster is written. Pixels above `threshold` are
    counted, unless it is None; tiles do not depend on it.
    """

    source: SceneSource
    state: str
    bundle_path: str
    identity: str
    score: ScoreConfig
    predict: PredictConfig
    tile_px: int
    halo_px: int
    area: AreaOfInterest | None
    classes: bool
    computing: int
    cache_bytes: int
    process_bytes: int | None = None
    weights: bytes | None = None
    threshold: float | None = None


class NumberedTile(NamedTuple):
    """A tile and its number in the tile grid, in row-major order."""

    number: int
    tile: Tile


class ScoredTile(NamedTuple):
    """A finished tile: its figures, packed scores and classes, and statistics of its cells (empty chunks if none).

    Chunks hold NumPy buffers, which Dask sends zero-copy; `bytes` would be copied three times.
    """

    number: int
    figures: TileFigures
    chunks: tuple[Chunk, Chunk, Chunk]


class FailedTile(NamedTuple):
    """A tile whose valid pixels have no score, and the reason."""

    number: int
    window: Window
    reason: str


def tiles_of(grid: Grid, job: Job) -> Iterator[NumberedTile]:
    """Yield the tiles of a scene that a job scores, in row-major order."""
    tiles = tile_grid(grid.height, grid.width, tile_px=job.tile_px, halo_px=job.halo_px, scale=job.source.scale)
    for number, tile in enumerate(tiles):
        if job.area is None or job.area.touches(tile.write):
            yield NumberedTile(number, tile)
