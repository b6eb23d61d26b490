"""Puts the rasters of one scene together from its journal: scores, classes, tags, statistics, styles."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from geood._version import __version__
from geood.config import SCORES
from geood.constants import NO_CLASS
from geood.geo import qgis
from geood.geo.cog import assemble
from geood.geo.gdal import open_raster
from geood.geo.grid import Grid, Window
from geood.geo.paths import ScenePath
from geood.models import ModelBundle
from geood.prediction.dispatch import have_gpu, score_scene
from geood.prediction.journal import TileFigures
from geood.prediction.outputs import Target
from geood.prediction.plan import ScenePlan
from geood.prediction.workdir import WorkDir

log = logging.getLogger("geood")
SAME_RUN = ("GEOOD_MODEL", "GEOOD_SCENE")  # tags that score raster and class raster of one prediction share
FAILED_TAG = "GEOOD_FAILED_TILES"  # windows [row, col, height, width] that hold no scores because they failed


class ScoredScene(NamedTuple):
    """What came of one scene's tiles."""

    valid: int
    failed: tuple[Window, ...]
    reason: str


def assemble_rasters(
    target: Target, plan: ScenePlan, bundle: ModelBundle, *, place: WorkDir, threshold: float, client: Any
) -> ScoredScene:
    """Score one scene and put its rasters together with their styles, all in the work folder."""
    name = target.scores.stem
    on_gpu, title = have_gpu(client), target.scene.label
    with place.journal(name, plan.key | {"gpu": on_gpu}) as journal:
        how = {"halo_px": plan.halo_px, "client": client, "on_gpu": on_gpu, "title": title}
        failed = score_scene(plan.job, plan.grid, journal=journal, **how)
        figures = journal.total()
        windows = tuple(one.window for one in failed)
        tags = _tags(target.scene, bundle, threshold) | ({FAILED_TAG: json.dumps(windows)} if failed else {})
        put = partial(assemble, grid=plan.grid, journal=journal.path, tile_px=plan.job.tile_px, tags=tags)
        scores = place.folder / target.scores.name
        put(
            scores,
            places=journal.places[0],
            dtype="float32",
            nodata=float("nan"),
            overview="average",
            description="anomaly score",
            statistics=_statistics(figures, plan.grid),
        )
        if target.classes:
            put(
                place.folder / target.classes.name,
                places=journal.places[1],
                dtype="uint8",
                nodata=NO_CLASS,
                overview="mode",
                description="class",
                statistics={},
            )
    with open_raster(scores) as written:
        if written.crs is None and plan.grid.crs is not None:
            log.warning("%s: a GeoTIFF has no words for its CRS: the maps have none, give them the scene's", title)
    (place.folder / target.scores.with_suffix(".qml").name).write_text(_style(scores, bundle, threshold), "utf-8")
    if target.classes:
        style = qgis.class_style(bundle.class_names)
        (place.folder / target.classes.with_suffix(".qml").name).write_text(style, encoding="utf-8")
    reason = failed[0].reason if failed else ""
    return ScoredScene(figures.scored, windows, reason)


def _statistics(figures: TileFigures, grid: Grid) -> dict[str, str]:
    """Band statistics as GDAL and QGIS keep them, over all valid pixels."""
    share = {"STATISTICS_VALID_PERCENT": f"{100 * figures.scored / (grid.height * grid.width):.4g}"}
    if not figures.scored:
        return share
    deviation = (figures.squares / figures.scored) ** 0.5
    found = {"MINIMUM": figures.low, "MAXIMUM": figures.high, "MEAN": figures.mean, "STDDEV": deviation}
    return share | {f"STATISTICS_{name}": repr(value) for name, value in found.items()}


def _style(scores: Path, bundle: ModelBundle, threshold: float) -> str:
    """The style of a finished score raster; scores without bounds are coloured over the range they have there."""
    if SCORES[bundle.config.score.kind].bounded:
        return qgis.score_style(threshold)
    with open_raster(scores) as raster:
        found = raster.tags(1)
    if "STATISTICS_MINIMUM" not in found:
        return qgis.score_style(threshold)
    return qgis.score_style(threshold, float(found["STATISTICS_MINIMUM"]), float(found["STATISTICS_MAXIMUM"]))


def _tags(scene: ScenePath, bundle: ModelBundle, threshold: float) -> dict[str, str]:
    score = bundle.config.score
    return {
        "GEOOD_VERSION": __version__,
        "GEOOD_MODEL": bundle.identity,
        "GEOOD_SCENE": scene.label,
        "GEOOD_SCORE": score.kind,
        "GEOOD_TEMPERATURE": str(score.temperature),
        "GEOOD_SMOOTH_PX": str(score.smooth_px),
        "GEOOD_SMOOTH_CONTRAST": str(score.smooth_contrast),
        "GEOOD_THRESHOLD": repr(threshold),
        "GEOOD_CLASSES": json.dumps(bundle.class_names),
        "GEOOD_PREDICT": bundle.config.predict.model_dump_json(),
    }
