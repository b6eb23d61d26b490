"""Score and class rasters of one scene, assembled from its journal, with tags, statistics and QGIS styles.

Tiles are scored into the journal (`dispatch`); meanwhile their packed chunks become cloud-optimized GeoTIFFs. The tags
say which bundle, scene and settings a raster comes from, so `polygonize` needs no bundle. Everything is written in the
work folder; publishing is left to `pipeline`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood._version import __version__
from geood.atomic import output_errors
from geood.calibration import Verdict, read_cells, statistic_count
from geood.config import SCORES
from geood.constants import NO_CLASS
from geood.geo.cog.assembly import Assembly
from geood.geo.gdal import open_raster
from geood.geo.grid import Grid, Window
from geood.geo.paths import ScenePath
from geood.geo.qgis import styles
from geood.geo.score_raster import (
    CLASSES_TAG,
    FAILED_TAG,
    INLIERS_TAG,
    MODEL_TAG,
    PREDICT_TAG,
    RUN_TAG,
    SCENE_TAG,
    SCORE_TAG,
    SETTING_TAGS,
    SIGNALS_TAG,
    TABLE_TAG,
    THRESHOLD_TAG,
    VERDICT_TAG,
)
from geood.models import EVIDENCE, SIGNALS, ModelBundle
from geood.prediction.dispatch import have_gpu, score_scene
from geood.prediction.journal import Journal, TileFigures
from geood.prediction.outputs import Target
from geood.prediction.plan import ScenePlan
from geood.prediction.scene_verdict import fill_tags, room_for, verdict_tags
from geood.prediction.threshold_choice import table_of
from geood.prediction.workdir import WorkDir

log = logging.getLogger("geood")
OWN_TAGS = (THRESHOLD_TAG, VERDICT_TAG, RUN_TAG, TABLE_TAG)  # of score rasters, not of class rasters


class ScoredScene(NamedTuple):
    """Result of one scene: its number of scored pixels, the windows of failed tiles, and the first reason.

    `above` is the number of pixels above the threshold, None if it was not counted tile by tile. `cells` (n, S) are the
    statistics of its cells, tile by tile.
    """

    valid: int
    above: int | None
    failed: tuple[Window, ...]
    reason: str
    cells: NDArray[np.float32]


def assemble_rasters(
    target: Target, plan: ScenePlan, bundle: ModelBundle, *, work: WorkDir, threshold: float | None, client: Any
) -> ScoredScene:
    """Score one scene and assemble its rasters in the work folder, with the style of its classes.

    Room is left in the tags for the verdict, and for the threshold if it is None: not settled yet.
    """
    name = target.scores.stem
    on_gpu, title = have_gpu(client), target.scene.label
    tiles = -(-plan.grid.height // plan.job.tile_px) * -(-plan.grid.width // plan.job.tile_px)
    with work.journal(name, plan.key | {"gpu": on_gpu}, tiles=tiles) as journal, ExitStack() as stack:
        rasters = [stack.enter_context(raster) for raster in _rasters(target, plan, journal, work.folder)]

        def take(rows: int) -> None:
            for raster in rasters:
                raster.take(rows)

        job = dataclasses.replace(plan.job, threshold=threshold)
        failed = score_scene(job, plan.grid, journal=journal, client=client, on_gpu=on_gpu, title=title, finished=take)
        journal.flush()  # while the rasters are put together
        figures = journal.total()
        cells = _cells(journal, bundle)
        windows = tuple(tile.window for tile in failed)
        tags = _tags(target.scene, bundle, threshold) | ({FAILED_TAG: json.dumps(windows)} if failed else {})
        rasters[0].finish(tags=tags, statistics=_statistics(figures, plan.grid))
        for classes in rasters[1:]:
            classes.finish(tags={tag: text for tag, text in tags.items() if tag not in OWN_TAGS}, statistics={})
    scores = work.folder / target.scores.name
    with open_raster(scores) as written:
        if written.crs is None and plan.grid.crs is not None:
            log.warning("%s: a GeoTIFF cannot store its CRS: the rasters have none, assign them the scene's", title)
    if target.classes:
        style = work.folder / styles.style_beside(target.classes).name
        with output_errors(style):
            style.write_text(styles.class_style(bundle.class_names), encoding="utf-8")
    reason = failed[0].reason if failed else ""
    return ScoredScene(figures.scored, figures.above, windows, reason, cells)


def _rasters(target: Target, plan: ScenePlan, journal: Journal, folder: Path) -> Iterator[Assembly]:
    """Yield the score raster and, if it is asked for, the class raster of a scene, to be made in a folder."""
    raster = partial(Assembly, grid=plan.grid, journal=journal.path, tile_px=plan.job.tile_px)
    scores, classes = journal.places[:2]
    form: dict[str, Any] = {"dtype": "float32", "nodata": float("nan"), "overview": "average"}
    yield raster(folder / target.scores.name, places=scores, bands=["anomaly score"], **form)
    if target.classes:
        form = {"dtype": "uint8", "nodata": NO_CLASS, "overview": "mode"}
        yield raster(folder / target.classes.name, places=classes, bands=["class", *EVIDENCE], **form)


def finish_raster(scores: Path, bundle: ModelBundle, verdict: Verdict, *, open_threshold: bool) -> None:
    """Write the styles of a finished score raster, and fill in the tags that were left open.

    Raises:
        OutputError: they cannot be written.
    """
    threshold = {THRESHOLD_TAG: repr(verdict.threshold)} if open_threshold else {}
    fill_tags(scores, verdict_tags(verdict) | threshold)
    with output_errors(scores):
        _write_styles(scores, bundle, verdict.threshold)


def _cells(journal: Journal, bundle: ModelBundle) -> NDArray[np.float32]:
    """Return the statistics (n, S) of a scene's cells, tile by tile in their order."""
    size = statistic_count(bundle.bands.count, len(bundle.class_ids))
    found = [read_cells(journal.chunk(2, tile), size) for tile in sorted(journal.figures)]
    return np.concatenate([np.zeros((0, size), np.float32), *found])


def _statistics(figures: TileFigures, grid: Grid) -> dict[str, str]:
    """Return band statistics over all scored pixels, as GDAL's metadata items, which QGIS reads too."""
    share = {"STATISTICS_VALID_PERCENT": f"{100 * figures.scored / (grid.height * grid.width):.4g}"}
    if not figures.scored:
        return share
    deviation = (figures.squares / figures.scored) ** 0.5
    values = {"MINIMUM": figures.low, "MAXIMUM": figures.high, "MEAN": figures.mean, "STDDEV": deviation}
    return share | {f"STATISTICS_{name}": repr(value) for name, value in values.items()}


def _write_styles(scores: Path, bundle: ModelBundle, threshold: float) -> None:
    """Write the two styles of a finished score raster: its whole range, which QGIS loads, and above the threshold.

    Unbounded scores are coloured over their range in this raster.
    """
    limits: dict[str, float] = {}
    if not SCORES[bundle.config.score.kind].bounded:
        with open_raster(scores) as raster:
            tags = raster.tags(1)
        names = {"low": "STATISTICS_MINIMUM", "high": "STATISTICS_MAXIMUM"}
        limits = {end: float(tags[name]) for end, name in names.items() if name in tags}
    styles.style_beside(scores).write_text(styles.ramp_style(threshold, **limits), "utf-8")
    scores.with_suffix(styles.ABOVE).write_text(styles.above_style(threshold, **limits), "utf-8")


def _tags(scene: ScenePath, bundle: ModelBundle, threshold: float | None) -> dict[str, str]:
    score = bundle.config.score
    kind = SCORES[score.kind]
    own = {SETTING_TAGS["temperature"]: str(score.temperature_of(score.kind))} if kind.tempered else {}
    own |= (
        {SETTING_TAGS["veto_share"]: str(score.veto_share), "GEOOD_OFFSET": repr(bundle.offset)} if kind.shifted else {}
    )
    table = table_of(bundle)
    return {
        "GEOOD_VERSION": __version__,
        MODEL_TAG: bundle.identity,
        SCENE_TAG: scene.label,
        SCORE_TAG: score.kind,
        **own,
        SETTING_TAGS["smooth_px"]: str(score.smooth_of(score.kind)),
        SETTING_TAGS["smooth_contrast"]: str(score.smooth_contrast),
        THRESHOLD_TAG: room_for(THRESHOLD_TAG) if threshold is None else repr(threshold),
        CLASSES_TAG: json.dumps(bundle.class_names),
        INLIERS_TAG: json.dumps([[at, float(rate)] for rate, at in bundle.thresholds.items()]),
        **({SIGNALS_TAG: json.dumps(list(SIGNALS))} if score.kind == "combined" else {}),
        PREDICT_TAG: bundle.config.predict.model_dump_json(),
        VERDICT_TAG: room_for(VERDICT_TAG),
        RUN_TAG: room_for(RUN_TAG),
        **({} if table is None else {TABLE_TAG: table.to_text()}),
    }
