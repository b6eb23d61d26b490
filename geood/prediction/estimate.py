"""Estimates for `geood plan`: tiles, memory, disk space and running time of a prediction.

The running time is extrapolated from a few tiles that are scored on trial in this process, since it differs too much
between machines and encoders to be computed. Everything else is read off the plan and the budget that `predict` would
use. Nothing is written.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from geood.errors import DataError, OutputError
from geood.geo.paths import ScenePath
from geood.models import ModelBundle
from geood.prediction.budget import Budget, check_disk, tiles_budget
from geood.prediction.job import FailedTile, Job, NumberedTile, tiles_of
from geood.prediction.outputs import outputs_of
from geood.prediction.plan import SceneOptions, ScenePlan, limits_of, plan_scene
from geood.prediction.publication import Publication
from geood.prediction.worker import STATE, score_tiles

PROBE_TILES = 4  # the search for tiles with data ends after four times as many for each thread


def trial_seconds(plan: ScenePlan, bundle: ModelBundle, *, bundle_path: Path) -> float | None:
    """Return the expected seconds for the whole scene in this process, from a few trial tiles; None if none has data.

    Raises:
        DataError: one of the trial tiles cannot be read or scored.
    """
    tiles = list(tiles_of(plan.grid, plan.job))
    with STATE.holding(bundle_path, bundle):
        each = _seconds_each(plan.job, tiles)
    return None if each is None else each * max(1.0, len(tiles) * plan.valid_share)


def _seconds_each(job: Job, tiles: Sequence[NumberedTile]) -> float | None:
    """Return the seconds of a tile with data while all threads compute; None if none was found that has data."""
    from_middle = itertools.chain(tiles[len(tiles) // 2 :], tiles[: len(tiles) // 2])
    wanted = job.computing
    with concurrent.futures.ThreadPoolExecutor(wanted) as pool:
        trial = []
        for tile in itertools.islice(from_middle, PROBE_TILES * wanted * 4):  # the first with data; also a warm-up
            (result,) = score_tiles(job, [tile])
            if isinstance(result, FailedTile):
                raise DataError(result.reason)
            if result.figures.scored:
                trial.append(tile)
            if len(trial) == wanted:
                break
        if not trial:
            return None
        began = time.perf_counter()
        list(pool.map(lambda tile: score_tiles(job, [tile]), trial))
        return (time.perf_counter() - began) / len(trial)


def plan_run(
    scene: str,
    *,
    bundle_path: Path,
    options: SceneOptions,
    workers: int = 0,
    max_ram: str | None = None,
    settings: Sequence[str] = (),
    out: Path = Path(),
) -> list[tuple[str, str]]:
    """Return what `predict` would do with a scene and what it would take, as (label, text) lines.

    `out` is as for `predict`: an unfinished run of these outputs keeps its tiles.

    Raises:
        BundleError, ConfigError, DataError: as in `predict`, before any work.
    """
    bundle = ModelBundle.load(bundle_path, flow=False).with_settings(settings)
    outputs = outputs_of([scene], out, mosaic=False)
    publication = Publication(outputs.work_folder, outputs.finals, overwrite=False)
    begun = publication.begun(outputs.targets[0].scores.stem)
    path = ScenePath(scene)
    limits = limits_of(bundle, [path], workers=workers, max_ram=max_ram)
    plan = plan_scene(path, bundle, options, bundle_path=bundle_path, limits=limits, classes=True, begun=begun)
    limits = _memory(bundle, plan, limits, workers=workers)
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    lines = describe(
        plan, limits, halo=_halo(bundle), folder=existing, seconds=trial_seconds(plan, bundle, bundle_path=bundle_path)
    )
    try:
        check_disk(existing, plan.disk_bytes)
    except OutputError as error:
        lines.append(("warning", str(error)))
    return lines


def describe(
    plan: ScenePlan, limits: Budget, *, halo: str, folder: Path, seconds: float | None
) -> list[tuple[str, str]]:
    """Return the plan as (label, text) lines."""
    free = shutil.disk_usage(folder).free
    size = f"{plan.job.tile_px} px"
    at_once = f"{plan.job.computing} at a time" if not torch.cuda.is_available() else torch.cuda.get_device_name()
    lines = [
        *plan.notes.items(),
        ("valid", f"about {100 * plan.valid_share:.0f} % of {plan.pixels:,} pixels"),
        ("tiles", f"{plan.tiles:,} of {size}; {at_once}"),
        ("halo", f"{halo}; {100 * plan.halo_share:.0f} % of the pixels computed are halo"),
        ("memory", f"up to {limits.bytes / 1e9:.2f} GB"),
        ("disk", f"up to {plan.disk_bytes / 1e9:.2f} GB in {folder} ({free / 1e9:.1f} GB free)"),
        ("time", "nothing to score" if seconds is None else f"about {_duration(seconds)}, estimated from trial tiles"),
    ]
    if limits.gpu_bytes is not None:
        lines.insert(-2, ("GPU", f"about {limits.gpu_bytes / 1e9:.2f} GB for each tile of a batch"))
    return lines + [("warning", warning) for warning in plan.warnings]


def _memory(bundle: ModelBundle, plan: ScenePlan, limits: Budget, *, workers: int) -> Budget:
    """Return limits with the memory of the tiles that a plan has."""
    tiles = [tile for _, tile in tiles_of(plan.grid, plan.job)]
    return tiles_budget(bundle, tiles, replace(limits, workers=workers, cache_bytes=plan.job.cache_bytes), plan.memory)


def _halo(bundle: ModelBundle) -> str:
    """Return the halo of tiles in words: whose it is, and what it cuts off."""
    given, reach, score = bundle.config.predict.halo_px, bundle.reach, bundle.halo_px - bundle.network_halo_px
    origin = "as predict.halo_px says" if given != "auto" else "as the model needs" if reach else "not measured"
    if given != "auto" and reach is not None:
        origin += f", the model needs {reach.halo_px}"
    lost = "" if bundle.cut_off is None else f", {100 * bundle.cut_off:.3g} % of what a pixel depends on lies beyond"
    more = f" and {score} px more for what the score looks around a pixel" if score else ""
    return f"{bundle.network_halo_px} px, {origin}{more}{lost}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
