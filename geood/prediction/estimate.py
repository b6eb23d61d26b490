"""Estimates what a prediction takes, for `geood plan`: tiles, memory, disk, time."""

from __future__ import annotations

import concurrent.futures
import itertools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from geood.errors import DataError, OutputError
from geood.geo.paths import ScenePath
from geood.models import ModelBundle
from geood.prediction.budget import Budget, budget, check_disk, parse_bytes
from geood.prediction.job import FailedTile, tiles_of
from geood.prediction.plan import SceneOptions, ScenePlan, plan_scene
from geood.prediction.worker import STATE, score_tiles

PROBE_TILES = 4  # scored on trial for each thread


def trial_seconds(plan: ScenePlan, bundle: ModelBundle, *, bundle_path: Path) -> float | None:
    """Expected seconds for the whole scene in this process, from a few tiles scored on trial; None if none has data.

    Raises:
        DataError: if the first tiles cannot be read.
    """
    STATE.preload(bundle_path, bundle)
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


def plan_run(
    scene: str,
    *,
    bundle_path: Path,
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
    bundle = ModelBundle.load(bundle_path).with_settings(settings)
    limits = budget(bundle, workers=workers, max_ram=parse_bytes(max_ram) if max_ram else None)
    plan = plan_scene(ScenePath.of(scene), bundle, options, bundle_path=bundle_path, limits=limits, classes=True)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    lines = describe(plan, limits, folder=there, seconds=trial_seconds(plan, bundle, bundle_path=bundle_path))
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
