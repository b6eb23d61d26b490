"""Score and class rasters of one scene, assembled from its journal, with tags, statistics and QGIS styles.

Tiles are scored into the journal first (`dispatch`); their packed chunks then become cloud-optimized GeoTIFFs. The tags
say which bundle, scene and settings a raster comes from, so `polygonize` needs no bundle. Everything is written in the
work folder; publishing is left to `pipeline`.
"""

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
from geood.geo.score_raster import (
    CLASSES_TAG,
    FAILED_TAG,
    INLIERS_TAG,
    MODEL_TAG,
    PREDICT_TAG,
    SCENE_TAG,
    SIGNALS_TAG,
    THRESHOLD_TAG,
)
from geood.models import EVIDENCE, EXPERTS, ModelBundle
from geood.prediction.dispatch import have_gpu, score_scene
from geood.prediction.journal import TileFigures
from geood.prediction.outputs import Target
from geood.prediction.plan import ScenePlan
from geood.prediction.workdir import WorkDir

log = logging.getLogger("geood")


class ScoredScene(NamedTuple):
    """Result of one scene: its number of scored pixels, the windows of failed tiles, and the first reason."""

    valid: int
    failed: tuple[Window, ...]
    reason: str


def assemble_rasters(
    target: Target, plan: ScenePlan, bundle: ModelBundle, *, work: WorkDir, threshold: float, client: Any
) -> ScoredScene:
    """Score one scene and assemble its rasters and their styles in the work folder."""
    name = target.scores.stem
    on_gpu, title = have_gpu(client), target.scene.label
    tiles = -(-plan.grid.height // plan.job.tile_px) * -(-plan.grid.width // plan.job.tile_px)
    with work.journal(name, plan.key | {"gpu": on_gpu}, tiles=tiles) as journal:
        failed = score_scene(
            plan.job, plan.grid, halo_px=plan.halo_px, journal=journal, client=client, on_gpu=on_gpu, title=title
        )
        figures = journal.total()
        windows = tuple(tile.window for tile in failed)
        tags = _tags(target.scene, bundle, threshold) | ({FAILED_TAG: json.dumps(windows)} if failed else {})
        write = partial(assemble, grid=plan.grid, journal=journal.path, tile_px=plan.job.tile_px, tags=tags)
        scores = work.folder / target.scores.name
        write(
            scores,
            places=journal.places[0],
            dtype="float32",
            nodata=float("nan"),
            overview="average",
            bands=["anomaly score"],
            statistics=_statistics(figures, plan.grid),
        )
        if target.classes:
            write(
                work.folder / target.classes.name,
                places=journal.places[1],
                dtype="uint8",
                nodata=NO_CLASS,
                overview="mode",
                bands=["class", *EVIDENCE],
                statistics={},
            )
    with open_raster(scores) as written:
        if written.crs is None and plan.grid.crs is not None:
            log.warning("%s: a GeoTIFF cannot store its CRS: the rasters have none, assign them the scene's", title)
    (work.folder / target.scores.with_suffix(".qml").name).write_text(_style(scores, bundle, threshold), "utf-8")
    if target.classes:
        style = qgis.class_style(bundle.class_names)
        (work.folder / target.classes.with_suffix(".qml").name).write_text(style, encoding="utf-8")
    reason = failed[0].reason if failed else ""
    return ScoredScene(figures.scored, windows, reason)


def _statistics(figures: TileFigures, grid: Grid) -> dict[str, str]:
    """Return band statistics over all scored pixels, as GDAL's metadata items, which QGIS reads too."""
    share = {"STATISTICS_VALID_PERCENT": f"{100 * figures.scored / (grid.height * grid.width):.4g}"}
    if not figures.scored:
        return share
    deviation = (figures.squares / figures.scored) ** 0.5
    values = {"MINIMUM": figures.low, "MAXIMUM": figures.high, "MEAN": figures.mean, "STDDEV": deviation}
    return share | {f"STATISTICS_{name}": repr(value) for name, value in values.items()}


def _style(scores: Path, bundle: ModelBundle, threshold: float) -> str:
    """Return the style of a finished score raster; unbounded scores are coloured over their range in this raster."""
    if SCORES[bundle.config.score.kind].bounded:
        return qgis.score_style(threshold)
    with open_raster(scores) as raster:
        tags = raster.tags(1)
    if "STATISTICS_MINIMUM" not in tags:
        return qgis.score_style(threshold)
    return qgis.score_style(threshold, float(tags["STATISTICS_MINIMUM"]), float(tags["STATISTICS_MAXIMUM"]))


def _tags(scene: ScenePath, bundle: ModelBundle, threshold: float) -> dict[str, str]:
    score = bundle.config.score
    kind = SCORES[score.kind]
    own = {"GEOOD_TEMPERATURE": str(score.temperature_of(score.kind))} if kind.tempered else {}
    own |= {"GEOOD_VETO_SHARE": str(score.veto_share), "GEOOD_OFFSET": repr(bundle.offset)} if kind.shifted else {}
    return {
        "GEOOD_VERSION": __version__,
        MODEL_TAG: bundle.identity,
        SCENE_TAG: scene.label,
        "GEOOD_SCORE": score.kind,
        **own,
        "GEOOD_SMOOTH_PX": str(score.smooth_px),
        "GEOOD_SMOOTH_CONTRAST": str(score.smooth_contrast),
        THRESHOLD_TAG: repr(threshold),
        CLASSES_TAG: json.dumps(bundle.class_names),
        INLIERS_TAG: json.dumps([[at, float(rate)] for rate, at in bundle.thresholds.items()]),
        **({SIGNALS_TAG: json.dumps(EXPERTS)} if score.kind == "combined" else {}),
        PREDICT_TAG: bundle.config.predict.model_dump_json(),
    }
