"""Verdicts on the maps of a run: figures of finished rasters, the threshold that drift asks for, tags that tell them.

What lies above the threshold is counted in the scores as the map holds them, so every figure that is told can be found
again there: tile by tile as they are packed, or, after a run was resumed or where a scene chooses its own threshold, by
reading the map once more. The tags of a finished raster are filled in where room was left for them; its layout does not
change.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from geood.atomic import output_errors
from geood.calibration import FAILS, Drift, SceneFacts, Verdict, drift_of, own_record, statistic_names, verdict_of
from geood.errors import ConfigError, DataError, OutputError, shown
from geood.geo.gdal import open_raster, pieces, rasterio_window, reading
from geood.geo.grid import Grid
from geood.geo.score_raster import RUN_TAG, THRESHOLD_TAG, VERDICT_TAG
from geood.metrics import PixelCurve
from geood.models import ModelBundle

OnDrift = Literal["warn", "refuse", "relative"]
ROOM = {VERDICT_TAG: 40, RUN_TAG: 3000, THRESHOLD_TAG: 48}  # bytes kept for a tag that is filled in later
_LONGEST = 12  # bytes of a character in JSON: two escapes
_MARK = "{}:to be filled in"


def check_drift(on_drift: str, *, together: bool) -> None:
    """Check the choice of what drift does; `together` tells whether scenes share a polygon file.

    Raises:
        ConfigError: it is none, or does not fit the outputs.
    """
    if on_drift not in get_args(OnDrift):
        raise ConfigError(f"--on-drift {shown(on_drift)}: choose {', '.join(get_args(OnDrift))}")
    if on_drift == "relative" and together:
        raise ConfigError(
            "--on-drift relative: each scene may have a threshold of its own then, and they would share one polygon "
            "file; choose a folder for --out"
        )


class SceneState(NamedTuple):
    """One scene as scored: figures with its threshold, and its distance from calibration ground."""

    facts: SceneFacts
    drift: Drift | None


def room_for(tag: str) -> str:
    """Return what a tag holds until it is filled in."""
    return _MARK.format(tag).ljust(ROOM[tag], ".")


def fill_tags(path: Path, tags: Mapping[str, str]) -> None:
    """Fill in tags of a finished raster that were left open, in place; each is padded with blanks.

    Raises:
        OutputError: the raster cannot be written, or has no such room.
    """
    with output_errors(path), path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        for tag, text in tags.items():
            plain = text.replace("&", "+").replace("<", "(").replace(">", ")").encode("ascii", "replace")
            at, size = content.find(room_for(tag).encode()), ROOM[tag]
            if at < 0 or len(plain) > size:
                raise OutputError(f"{path}: its tag {tag} cannot be written; predict again")
            content[at : at + size] = plain.ljust(size)


def state_of(
    scores: Path,
    bundle: ModelBundle,
    cells: NDArray[np.float32],
    *,
    valid: int,
    above: int | None,
    threshold: float,
    on_drift: OnDrift,
) -> SceneState:
    """Return the figures of a finished score raster, and with `relative` of one that is unlike its own threshold.

    `valid` and `above` are the numbers of its scored pixels, and of those above the threshold; None: they are counted
    in the raster.

    Raises:
        DataError: the scene is unlike, and that is to be refused.
    """
    names = statistic_names(bundle.bands.names, len(bundle.class_ids))
    drift = drift_of(cells, bundle.record, names=names, scored=own_record(bundle) is not None)
    curve = PixelCurve() if on_drift == "relative" else None
    with reading(scores), open_raster(scores) as raster:
        grid = Grid(raster.height, raster.width, raster.transform, raster.crs)
    if above is None or curve is not None:
        valid, above = _count(scores, grid, threshold, curve)
    pixel_m2 = grid.pixel_m2
    facts = SceneFacts(
        valid_px=valid,
        above_px=above,
        km2=None if pixel_m2 is None else valid * pixel_m2 / 1e6,
        polygons=None,
        threshold=threshold,
        min_area_m2=bundle.config.predict.min_area_m2 or 0.0,
        pixel_m=grid.resolution_m,
    )
    if on_drift == "warn" or (on_drift == "relative" and bundle.record is None):
        return SceneState(facts, drift)
    so_far = verdict_of(facts, bundle, drift)
    if so_far.answer != FAILS and not (drift and drift.unlike):
        return SceneState(facts, drift)
    if curve is None:
        raise DataError(
            f"{scores.stem}: {so_far.why}{f' ({so_far.differs})' if so_far.differs else ''}; no map is written "
            "(--on-drift refuse), and the finished tiles are kept: --on-drift warn --resume writes it"
        )
    share = so_far.promised or bundle.config.score.fpr
    own = float(curve.fpr_threshold(share)) if curve.negatives else threshold
    _, above = _count(scores, grid, own, None)
    return SceneState(dataclasses.replace(facts, threshold=own, above_px=above, relative=True), drift)


def _count(scores: Path, grid: Grid, threshold: float, curve: PixelCurve | None) -> tuple[int, int]:
    """Return the valid pixels of a score raster and those above a threshold; add all to a curve, if one is given."""
    valid = above = 0
    with reading(scores), open_raster(scores) as raster:
        for window in pieces(grid):
            values = raster.read(1, window=rasterio_window(window))
            values = values[np.isfinite(values)]
            valid += values.size
            above += int((values > threshold).sum())
            if curve is not None:
                curve.update(values, np.zeros(values.shape, np.uint8))
    return valid, above


def judged(state: SceneState, bundle: ModelBundle, *, polygons: int | None) -> Verdict:
    """Return the verdict on a scene, given the number of its polygons (None: not cut, or not all of them)."""
    return verdict_of(dataclasses.replace(state.facts, polygons=polygons), bundle, state.drift)


def verdict_tags(verdict: Verdict) -> dict[str, str]:
    """Return the tags that tell a verdict: the answer, and all fields as JSON.

    What differs may name a class, whose name may be of any length: it is cut where the room of the tag ends.
    """
    fields, kept = verdict.fields(), verdict.differs
    while len(text := json.dumps(fields)) > ROOM[RUN_TAG] and kept:
        kept = kept[: -1 - (len(text) - ROOM[RUN_TAG]) // _LONGEST]
        fields["differs"] = f"{kept}..."
    return {VERDICT_TAG: verdict.answer, RUN_TAG: text}
