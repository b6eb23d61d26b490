"""What will be done with a scene, settled before any work: its bands, resolution, area, tiles, and what that takes.

`predict` follows the same `ScenePlan` that `geood plan` prints. Everything here is found in bounded time for a scene of
any size: from its header, from a small sample of its pixels, and (for `geood plan` alone) from a few tiles scored on
trial.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geood._version import __version__
from geood.errors import ConfigError, DataError, OutputError
from geood.geo.aoi import Area
from geood.geo.bands import Bands
from geood.geo.gdal import compression, spoken
from geood.geo.grid import Grid
from geood.geo.paths import gdal_name, identity
from geood.geo.scene import Scene, SceneSource, resampling_of, undeclared_nodata, valid_share
from geood.models.bundle import ModelBundle
from geood.prediction.band_matching import far_from_training, match_bands, parse_bands
from geood.prediction.budget import Budget, budget, check_disk, disk_needed, parse_bytes
from geood.prediction.dispatch import tiles_of
from geood.prediction.worker import FailedTile, Job, offer_model, score_tiles

log = logging.getLogger("geood")
WIDEST = 2  # times the config's tile, the side of tiles on the grid of a scene that is read at a lower resolution
STEP_PX = 128  # of which such sides are multiples, for whole blocks
PROBE_TILES = 4  # scored on trial for each thread


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are to be read.

    `bands` as on the command line (red=3,green=2,blue=1 or 3,2,1; None: by name, else by place), `nodata` in place of
    the file's own, `resample` to the model's resolution or not, and the part to be scored: within the polygons of the
    vector file `area`, within `box` (west,south,east,north in the scene's CRS), or all.
    """

    bands: str | None = None
    nodata: float | None = None
    resample: bool = True
    area: Path | None = None
    box: str | None = None


@dataclass(frozen=True)
class ScenePlan:
    """One scene as it will be scored; `notes` and `warnings` say in words what was decided and what is odd."""

    scene: str
    grid: Grid
    job: Job
    state: dict[str, str]
    halo_px: int
    valid_share: float
    notes: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def key(self) -> dict[str, Any]:
        """All that the finished tiles depend on: equal keys, equal tiles."""
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
            "halo_px": self.halo_px,
            "precision": self.job.predict.precision,
            "compile": self.job.predict.compile,
            "torch": torch.__version__,
            "compression": compression(),
            "classes": self.job.classes,
            "geood": __version__,
        }

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return sum(1 for _ in tiles_of(self.grid, self.job, halo_px=self.halo_px))

    @property
    def pixels(self) -> int:
        """How many pixels lie in the part to be scored, valid or not."""
        window = self.job.area.window if self.job.area else self.grid.window
        return window.height * window.width

    @property
    def disk_bytes(self) -> int:
        """The most that journal and rasters take."""
        return disk_needed(min(1.0, self.valid_share * 1.1 + 0.01) * self.pixels, classes=self.job.classes)


def plan_scene(
    scene: str,
    model: ModelBundle,
    options: SceneOptions,
    *,
    bundle: Path,
    limits: Budget,
    classes: bool,
    read: str | None = None,
) -> ScenePlan:
    """Settle how a scene is scored; `read` is what is opened in its place (the tiles of a mosaic put together).

    Raises:
        ConfigError: if an option does not fit the scene.
        DataError: if the scene cannot be read or does not fit the bundle.
    """
    name = gdal_name(read or scene)
    nodata = model.bands.nodata if options.nodata is None else options.nodata
    with Scene.open(name, nodata) as opened:
        grid = opened.grid
        given = parse_bands(options.bands, model.bands) if options.bands else None
        indexes, bands_note = match_bands(opened, model.bands, given)
        try:
            scale, resolution_note = resampling_of(grid, model.resolution, resample=options.resample)
        except DataError as error:
            raise DataError(f"{spoken(name)}: {error}") from None
        warnings, share = _looked_at(opened, model.bands, indexes)
        layout = opened.layout
        dtype, names = opened.dtype, ", ".join(opened.band_names)
        cache = _cache(opened, limits, rows=math.ceil((limits.tile_px + 2 * model.halo_px) / scale))
    source = SceneSource(name, indexes, nodata, scale)
    state = identity(name)
    job = Job(
        source=source,
        state=" ".join(f"{fact} {value}" for fact, value in sorted(state.items())),
        bundle=str(bundle.resolve()),
        identity=model.identity,
        score=model.config.score,
        predict=model.config.predict,
        tile_px=_tile_px(limits.tile_px, scale),
        area=_area(options, grid),
        classes=classes,
        computing=limits.computing,
        cache_bytes=cache,
        process_bytes=limits.process_bytes,
    )
    size = f"{grid.width:,} x {grid.height:,} px"
    metres = f", {grid.resolution_m:.3g} m a pixel" if grid.resolution_m else ""
    notes = {
        "scene": f"{spoken(name)}: {size}{metres}, {dtype}, {names}, {layout}",
        "bands": bands_note,
        "resolution": resolution_note,
    }
    return ScenePlan(scene, grid, job, state, model.halo_px, share, notes, tuple(warnings))


def _cache(opened: Scene, limits: Budget, *, rows: int) -> int:
    """GDAL's block cache, large enough to decode a scene of strips once.

    Raises:
        ConfigError: if the memory that is allowed has no room for it.
    """
    more = max(0, opened.rows_cache_bytes(rows) - limits.cache_bytes)
    if limits.limit is not None and limits.bytes + more > limits.limit:
        raise ConfigError(
            f"{spoken(opened.source.name)}: can only be decoded by whole rows, which takes "
            f"{(limits.bytes + more) / 1e9:.2f} GB with these tiles; allow as much with --max-ram, or bring it into "
            "tiles first: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IN OUT"
        )
    return limits.cache_bytes + more


def _looked_at(opened: Scene, bands: Bands, indexes: tuple[int, ...]) -> tuple[list[str], float]:
    """What is odd about the numbers of a scene by a sample of them, and the share of them that is valid."""
    try:
        warnings = far_from_training(opened, bands, indexes)
        if (looks := undeclared_nodata(opened)) is not None:
            warnings.append(f"much of its border is {looks:g} in all bands: if that is no data, add --nodata {looks:g}")
        return warnings, valid_share(opened)
    except DataError as error:
        return [f"its numbers were not compared with those of training: {error}"], 1.0


def trial_seconds(plan: ScenePlan, model: ModelBundle, *, bundle: Path) -> float | None:
    """Expected seconds for the whole scene in this process, from a few tiles scored on trial; None if none has data.

    Raises:
        DataError: if the first tiles cannot be read.
    """
    offer_model(bundle, model)
    numbered = list(tiles_of(plan.grid, plan.job, halo_px=plan.halo_px))
    middle = itertools.chain(numbered[len(numbered) // 2 :], numbered[: len(numbered) // 2])
    wanted = plan.job.computing
    with concurrent.futures.ThreadPoolExecutor(wanted) as pool:
        found = []
        for one in itertools.islice(middle, PROBE_TILES * wanted * 4):  # the first with data; they also warm up
            (result,) = score_tiles(plan.job, [one])
            if isinstance(result, FailedTile):
                raise DataError(result.reason)
            if result.figures.scored:
                found.append(one)
            if len(found) == wanted:
                break
        if not found:
            return None
        began = time.perf_counter()
        list(pool.map(lambda one: score_tiles(plan.job, [one]), found))
        each = (time.perf_counter() - began) / len(found)
    return each * max(1.0, len(numbered) * plan.valid_share)


def _tile_px(budgeted: int, scale: float) -> int:
    """Side of the tiles on the scene's grid, so that about the budgeted side is read."""
    if scale == 1:
        return budgeted
    side = min(budgeted / scale, WIDEST * budgeted)
    step = STEP_PX if side >= STEP_PX else 32
    return max(32, int(side) // step * step)


def _area(options: SceneOptions, grid: Grid) -> Area | None:
    if options.area and options.box:
        raise ConfigError("--aoi and --bbox exclude each other; give one of them")
    if options.area:
        return Area.from_file(options.area, grid)
    return Area.from_bbox(options.box, grid) if options.box else None


def plan_run(
    scene: str,
    *,
    bundle: Path,
    options: SceneOptions,
    workers: int = 0,
    max_ram: str | None = None,
    settings: Sequence[str] = (),
    folder: Path = Path(),
) -> list[tuple[str, str]]:
    """What `predict` would do with a scene and what it would take, a label and a text for each line.

    Raises:
        BundleError, ConfigError, DataError: as `predict` would, before any work.
    """
    model = ModelBundle.load(bundle).with_settings(settings)
    limits = budget(model, workers=workers, max_ram=parse_bytes(max_ram) if max_ram else None)
    plan = plan_scene(scene, model, options, bundle=bundle, limits=limits, classes=True)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    lines = describe(plan, limits, folder=there, seconds=trial_seconds(plan, model, bundle=bundle))
    try:
        check_disk(there, plan.disk_bytes)
    except OutputError as error:
        lines.append(("warning", str(error)))
    return lines


def describe(plan: ScenePlan, limits: Budget, *, folder: Path, seconds: float | None) -> list[tuple[str, str]]:
    """The plan in words, a label and a text for each line."""
    free = shutil.disk_usage(folder).free
    kept = f"{plan.job.tile_px} px, read with {plan.halo_px} px about them"
    at_once = f"{plan.job.computing} at a time" if not torch.cuda.is_available() else torch.cuda.get_device_name()
    lines = [
        *plan.notes.items(),
        ("valid", f"about {100 * plan.valid_share:.0f} % of {plan.pixels:,} pixels"),
        ("tiles", f"{plan.tiles:,} of {kept}; {at_once}"),
        ("memory", f"up to {limits.bytes / 1e9:.2f} GB"),
        ("disk", f"up to {plan.disk_bytes / 1e9:.2f} GB in {folder} ({free / 1e9:.1f} GB free)"),
        ("time", "nothing to score" if seconds is None else f"about {_duration(seconds)}, by tiles scored on trial"),
    ]
    if limits.gpu_bytes is not None:
        lines.insert(-2, ("GPU", f"about {limits.gpu_bytes / 1e9:.2f} GB for each tile of a batch"))
    return lines + [("warning", warning) for warning in plan.warnings]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
