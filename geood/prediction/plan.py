"""Plan of a prediction, made before any work: a scene's bands, resolution, area, tiles, and the disk space needed.

`predict` follows the same `ScenePlan` that `geood plan` prints. A plan takes bounded time for a scene of any size: it
is made from the scene's header and a small sample of its pixels. The running time, which takes trial tiles, is in
`estimate`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geood._version import __version__
from geood.calibration import cells_key
from geood.errors import ConfigError, DataError
from geood.geo.addresses import display_name
from geood.geo.aoi import AreaOfInterest
from geood.geo.band_matching import listed
from geood.geo.bands import Bands
from geood.geo.border import undeclared_nodata
from geood.geo.gdal import compression, may_ask_servers
from geood.geo.grid import Grid
from geood.geo.paths import ScenePath, fingerprint, gdal_name
from geood.geo.scene import Scene
from geood.geo.scene_reading import ReadingOptions, settle_reading, tile_side
from geood.models import TILE_PX, ModelBundle
from geood.prediction.budget import (
    LEAST_CACHE,
    TO_SMALL_BLOCKS,
    Budget,
    SceneMemory,
    budget,
    config_budget,
    disk_needed,
    parse_bytes,
)
from geood.prediction.cluster import threads_of
from geood.prediction.job import Job, tiles_of
from geood.prediction.scene_checks import far_from_training, oblong_pixels, turned_by_viewers, valid_share
from geood.prediction.tile_memory import machine_holds
from geood.prediction.tile_size import scene_side

log = logging.getLogger("geood")


@dataclass(frozen=True)
class SceneOptions:
    """Options for reading scenes.

    Args:
        bands: as on the command line, `red=3,green=2,blue=1` or `3,2,1`; None: by name, else by position.
        nodata: the nodata value, in place of the file's own.
        resample: resample to the model's resolution.
        area: a vector file, within whose polygons is scored; None: the whole scene.
        box: `west,south,east,north` in the scene's CRS, within which is scored; None: the whole scene.

    Raises:
        ConfigError: of `predict`: the bands, the area or the box do not fit a scene.

    Example:
        >>> import geood
        >>> options = geood.SceneOptions(box="500010.25,4649740.75,500030.25,4649760.75")
        >>> [made] = geood.predict(["scene.tif"], "part.tif", bundle="model.safetensors", options=options)
        >>> made.valid_pixels
        1600
    """

    bands: str | None = None
    nodata: float | None = None
    resample: bool = True
    area: Path | None = None
    box: str | None = None

    @property
    def reading(self) -> ReadingOptions:
        """The options that evaluation has as well."""
        return ReadingOptions(self.bands, self.nodata, self.resample)


@dataclass(frozen=True)
class ScenePlan:
    """One scene as it will be scored; `notes` and `warnings` tell the user what was decided and what is suspicious.

    `state` is the fingerprint of the scene's file, `valid_share` the estimated share of valid pixels, 0 to 1, `cells`
    tells how the scene's cells are measured, `tile_px` is the side of a tile at the model's resolution, `memory` tells
    what reading the scene takes.
    """

    scene: ScenePath
    grid: Grid
    job: Job
    state: dict[str, str]
    valid_share: float
    notes: dict[str, str]
    warnings: tuple[str, ...]
    cells: str
    tile_px: int
    memory: SceneMemory

    @property
    def key(self) -> dict[str, Any]:
        """Everything that finished tiles depend on: equal keys mean equal tiles."""
        source, crs = self.job.source, self.grid.crs
        return {
            "scene": self.state,
            "grid": [self.grid.height, self.grid.width, *self.grid.transform[:6], crs.to_wkt() if crs else None],
            "bands": list(source.indexes),
            "nodata": None if source.nodata is None else repr(source.nodata),
            "scale": source.scale,
            "area": self.job.area.digest() if self.job.area else None,
            "model": self.job.identity,
            "score": self.job.score.model_dump(mode="json"),
            "tile_px": self.job.tile_px,
            "halo_px": self.job.halo_px,
            "precision": self.job.predict.precision,
            "compile": self.job.predict.compile,
            "torch": torch.__version__,
            "compression": compression(),
            "classes": self.job.classes,
            "cells": self.cells,
            "geood": __version__,
        }

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return sum(1 for _ in tiles_of(self.grid, self.job))

    @property
    def halo_share(self) -> float:
        """Share of the pixels that are computed for halos, 0 to 1: in other tiles again, or beyond the scene's edge."""
        read = kept = 0.0
        for _, tile in tiles_of(self.grid, self.job):
            read += tile.read.height * tile.read.width
            kept += tile.write.height * tile.write.width * self.job.source.scale**2
        return 1 - kept / read if read else 0.0

    @property
    def pixels(self) -> int:
        """Number of pixels of the area to be scored, valid or not."""
        window = self.job.area.window if self.job.area else self.grid.window
        return window.height * window.width

    @property
    def disk_bytes(self) -> int:
        """Upper bound of the bytes that journal and rasters take."""
        return disk_needed(min(1.0, self.valid_share * 1.1 + 0.01) * self.pixels, classes=self.job.classes)


def limits_of(
    bundle: ModelBundle,
    scenes: Sequence[ScenePath],
    *,
    mosaic: Path | None = None,
    workers: int = 0,
    max_ram: str | None = None,
    here: bool = True,
) -> Budget:
    """Return tile size and concurrency for scenes, from their headers; `mosaic` is as for `plan_scene`.

    `here` tells whether this machine computes; without a memory limit its cores and memory count for nothing else.

    Raises:
        ConfigError: the memory limit is no size, or nothing fits it.
        DataError: a scene cannot be opened.
    """
    if max_ram is None:
        return config_budget(bundle, workers=workers, here=here)
    most, each = parse_bytes(max_ram), []
    for scene in scenes:
        with Scene.open(scene.opened if mosaic is None else gdal_name(mosaic)) as opened:
            each.append(SceneMemory.of(opened))
    return budget(bundle, workers=workers, max_ram=most, scenes=each)


def plan_scene(  # noqa: PLR0913 - what is planned, by what, and within which limits
    scene: ScenePath,
    bundle: ModelBundle,
    options: SceneOptions,
    *,
    bundle_path: Path,
    limits: Budget,
    classes: bool,
    mosaic: Path | None = None,
    begun: Mapping[str, Any] | None = None,
) -> ScenePlan:
    """Plan how a scene is scored; `mosaic` is the file to open in its place if the scene is a mosaic.

    `begun` is the `key` of a run that is to be resumed.

    Raises:
        ConfigError: an option does not fit the scene.
        DataError: the scene cannot be read or does not fit the bundle.
    """
    name = scene.opened if mosaic is None else gdal_name(mosaic)
    nodata = options.reading.nodata_for(bundle.bands)
    state = fingerprint(name)  # before anything is taken from it: what changes from here on is noticed
    with Scene.open(name, nodata) as opened:
        grid = opened.grid
        reading = settle_reading(
            opened, bundle.bands, bundle.resolution, options.reading, photo_width=bundle.photo_width
        )
        if reading.indexes != bundle.bands.indexes:
            trained = listed(bundle.bands.indexes, bundle.bands.names)
            log.info("%s: bands %s (in the training scenes: %s)", scene.label, reading.bands_note, trained)
        warnings, share = _check_sample(opened, bundle.bands, reading.indexes)
        layout = opened.layout
        dtype, names = opened.dtype, ", ".join(opened.band_names)
        area = _area(options, grid)
        tile_px, resumed, more = _tile(bundle, grid, limits, begun, scale=reading.scale, area=area)
        warnings += more
        memory = SceneMemory.of(opened)
        cache = _cache(opened, memory, limits, rows=math.ceil((tile_px + 2 * bundle.halo_px) / reading.scale))
    source = dataclasses.replace(reading.source(name, nodata), servers=may_ask_servers(name))
    job = Job(
        source=source,
        state=" ".join(f"{fact} {value}" for fact, value in sorted(state.items())),
        bundle_path=str(bundle_path.resolve()),
        identity=bundle.identity,
        score=bundle.config.score,
        predict=bundle.config.predict,
        tile_px=tile_side(tile_px, reading.scale),
        halo_px=bundle.halo_px,
        area=area,
        classes=classes,
        computing=limits.computing,
        cache_bytes=cache,
        process_bytes=limits.process_bytes,
    )
    size = f"{grid.width:,} x {grid.height:,} px"
    metres = f", {grid.resolution_m:.3g} m per pixel" if grid.resolution_m else ""
    notes = {
        "scene": f"{display_name(name)}: {size}{metres}, {dtype}, {names}, {layout}",
        "bands": reading.bands_note,
        "resolution": reading.resolution_note,
    } | ({"resume": resumed} if resumed else {})
    cells = cells_key(bundle.bands.names, len(bundle.class_ids))
    return ScenePlan(scene, grid, job, state, share, notes, tuple(warnings), cells, tile_px, memory)


def _tile(
    bundle: ModelBundle,
    grid: Grid,
    limits: Budget,
    begun: Mapping[str, Any] | None,
    *,
    scale: float,
    area: AreaOfInterest | None,
) -> tuple[int, str, list[str]]:
    """Return the side of a scene's tiles at the model's resolution, what is said of it, and warnings of it."""
    if limits.limit is not None:
        return limits.tile_px, "", []
    here = limits.computing > 0
    side, kept = scene_side(bundle, grid, least=limits.tile_px, begun=begun, here=here, scale=scale, area=area)
    if not kept:
        return side, "", []
    note, large = f"in tiles of {side} px, as the unfinished run has", side > max(limits.tile_px, TILE_PX)
    warning = f"tiles of {side} px, as the run began; if memory runs out, resume with fewer --workers"
    return side, note, [warning] if large and here and not machine_holds(bundle, side) else []


def _cache(opened: Scene, memory: SceneMemory, limits: Budget, *, rows: int) -> int:
    """Return the size of GDAL's block cache, in bytes: large enough to decode a scene of strips only once.

    Tiles of other scenes share the blocks at their edges alone, with tiles that another thread reads from a file of its
    own. So beyond two tiles for each thread a cache is memory that is touched for nothing.

    Raises:
        ConfigError: the memory limit has no room for it, as a scene that is resampled takes more rows.
    """
    threads = threads_of(limits.workers, limits.computing)[1]
    more = (memory.bytes(limits.cache_bytes, rows, threads) - limits.reading) * max(1, limits.workers)
    if limits.limit is not None and limits.bytes + more > limits.limit:
        raise ConfigError(
            f"{memory.why}, which takes {(limits.bytes + more) / 1e9:.2f} GB with these "
            f"tiles; allow as much with --max-ram, or {TO_SMALL_BLOCKS}"
        )
    window, least = opened.window_cache_bytes(rows), limits.cache_bytes
    if window is not None and limits.computing:
        least = min(least, max(LEAST_CACHE, 2 * threads * window))
    return memory.cache(least, rows)


def _check_sample(opened: Scene, bands: Bands, indexes: tuple[int, ...]) -> tuple[list[str], float]:
    """Return warnings about the digital numbers of a scene, from a sample of them, and its share of valid pixels."""
    warnings = [*filter(None, [turned_by_viewers(opened), oblong_pixels(opened)])]
    try:
        warnings += far_from_training(opened, bands, indexes)
        if (value := undeclared_nodata(opened)) is not None:
            warnings.append(f"much of its border is {value:g} in its bands: if that is nodata, add --nodata {value:g}")
        return warnings, valid_share(opened)
    except DataError as error:
        return [*warnings, f"its digital numbers were not compared with those of training: {error}"], 1.0


def _area(options: SceneOptions, grid: Grid) -> AreaOfInterest | None:
    """Return the area to be scored; an empty option is an error, never the whole scene."""
    if options.area is not None and options.box is not None:
        raise ConfigError("--aoi and --bbox exclude each other; give one of them")
    if options.area is not None:
        return AreaOfInterest.from_file(options.area, grid)
    return None if options.box is None else AreaOfInterest.from_bbox(options.box, grid)
