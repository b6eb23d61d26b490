"""`predict` and `polygonize` from start to end: check, plan, score, extract polygons, publish.

All outputs are named and checked before any work. Everything is made in a hidden work folder beside the outputs and
renamed only when all of it is complete; nothing is replaced before. A run that ends early leaves its finished tiles in
that folder, for `--resume`, and nothing else. How a scene is read is decided in `plan`; its tiles are scored through
`dispatch`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from geood.atomic import check_output
from geood.config import PredictConfig
from geood.errors import ConfigError, DataError, TilesFailedError
from geood.geo.grid import Window
from geood.geo.mosaic import write_mosaic
from geood.geo.paths import ScenePath
from geood.geo.score_raster import read_tags
from geood.models import ModelBundle
from geood.polygons import OUTPUT_SUFFIXES, PolygonSource, write_anomalies, write_together
from geood.prediction.budget import budget, check_disk, config_budget, parse_bytes
from geood.prediction.cluster import TlsFiles, dask_client
from geood.prediction.outputs import (
    Prediction,
    Target,
    check_outputs,
    new_folder,
    publish,
    published,
    sources_of,
    targets_of,
    write_summary,
)
from geood.prediction.plan import SceneOptions, ScenePlan, plan_scene
from geood.prediction.rasters import FAILED_TAG, SAME_RUN, ScoredScene, assemble_rasters
from geood.prediction.workdir import PUBLISHING, work_dir
from geood.prediction.worker import STATE

log = logging.getLogger("geood")
SUMMARY = "summary.csv"
MOSAIC = "mosaic.vrt"


def predict(  # noqa: PLR0913 - the options of a verb
    scenes: Sequence[str | Path],
    out: str | Path,
    *,
    bundle_path: str | Path,
    threshold: float | None = None,
    options: SceneOptions | None = None,
    mosaic: bool = False,
    workers: int = 0,
    scheduler: str | None = None,
    tls: TlsFiles | None = None,
    max_ram: str | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
) -> list[Prediction]:
    """Score scenes with a bundle; write score rasters, class rasters and polygons.

    Args:
        scenes: rasters that GDAL reads (files, http(s)://, s3:// and other addresses, members of zip files), or folders
            of them (not of their subfolders).
        out: `x.gpkg`, `.geojson`, `.parquet` or `.fgb` for polygons, with the scores beside them as `x.tif` and the
            classes as `x.classes.tif`; `x.tif` for the scores alone; a folder for a GeoPackage and rasters per scene.
            Several scenes with one polygon file share it, told apart by a column `scene`. A folder of scenes has a
            folder of outputs, with a table `summary.csv` beside them.
        bundle_path: the `model.safetensors` of a training run.
        threshold: score above which a pixel belongs to a polygon; None: the bundle's default.
        options: how the scenes are read.
        mosaic: treat all scenes together, or those of a folder, as tiles of one scene.
        workers: 0: threads in this process (several GPUs: a process for each); N: that many processes on this machine.
        scheduler: address of a running Dask scheduler (tcp://host:8786) whose workers see the scenes by the same names.
            Whoever answers there, or can get between, can run code in this process.
        tls: certificate files for a scheduler at tls://, see `geood.prediction.TlsFiles`.
        max_ram: memory limit of all processes on this machine together, such as "2GB"; None: what the config's tiles
            need.
        settings: overrides of the bundle's sections score and predict, such as `score.kind=energy`.
        resume: continue an interrupted run of the same outputs from its finished tiles.
        overwrite: replace outputs that exist.

    Returns:
        The outputs of each scene and their figures.

    Raises:
        BundleError: the bundle cannot be read.
        ConfigError: a setting is invalid, or asks for a score that the bundle does not support.
        DataError: a scene cannot be read or does not fit the bundle.
        OutputError: an output exists or cannot be written, or the run to be resumed had other inputs.
        RunLostError: the scheduler went away, or there were no workers for a minute.
        TilesFailedError: some tiles have no scores; all outputs are written and listed in its `made`.

    Example:
        >>> import geood
        >>> [prediction] = geood.predict(["scene.tif"], "anomalies.gpkg", bundle_path="model.safetensors")
        >>> prediction.scores.name, prediction.valid_pixels
        ('anomalies.tif', 12288)
    """
    out, folders = Path(out), any(Path(s).is_dir() for s in scenes) and not mosaic
    sources = sources_of(scenes, mosaic=mosaic)
    targets, together = targets_of(sources, out, folder=folders)
    summary = out / SUMMARY if folders and targets[0].scores.parent == out else None
    finals = [p for t in targets for p in t.files] + [p for p in (together, summary) if p]
    options, folder = options or SceneOptions(), finals[0].parent / f".{out.name}.geood"
    if resume and (folder / PUBLISHING).exists():
        with work_dir(folder, resume=True, overwrite=False) as work:
            work.used.update(target.scores.stem for target in targets)
            return published(folder)
    others = [Path(bundle_path), *([options.area] if options.area else [])]
    check_outputs(finals, [str(s) for s in scenes], out, others=others, overwrite=overwrite)
    bundle = ModelBundle.load(bundle_path).with_settings(settings)
    chosen = bundle.threshold if threshold is None else _finite(threshold)
    if max_ram is not None:
        limits = budget(bundle, workers=workers, max_ram=parse_bytes(max_ram))
    else:
        limits = config_budget(bundle, workers=workers)
    with new_folder(finals[0].parent), work_dir(folder, resume=resume, overwrite=overwrite) as work:
        nodata = options.reading.nodata_for(bundle.bands)
        tiles = write_mosaic([str(s) for s in scenes], work.folder / MOSAIC, nodata=nodata) if mosaic else None
        plan_of = partial(plan_scene, bundle=bundle, options=options, bundle_path=Path(bundle_path), limits=limits)
        plans = [plan_of(target.scene, mosaic=tiles, classes=bool(target.classes)) for target in targets]
        _log_warnings(plans, together=bool(together))
        check_disk(work.folder, sum(plan.disk_bytes for plan in plans) - _held(work.folder))
        STATE.preload(Path(bundle_path), bundle)
        scored: list[ScoredScene] = []
        with dask_client(workers, scheduler, computing=limits.computing, tls=tls) as client:
            for target, plan in zip(targets, plans, strict=True):
                scored.append(assemble_rasters(target, plan, bundle, work=work, threshold=chosen, client=client))
        counts = _polygons(targets, scored, bundle, folder=work.folder, together=together, threshold=chosen)
        made = [
            Prediction(t.scene.given, t.scores, t.polygons or together, t.classes, chosen, s.valid, count, s.failed)
            for t, s, count in zip(targets, scored, counts, strict=True)
        ]
        if summary:
            write_summary(work.folder / summary.name, made, work.folder)
        publish(work.folder, finals, made)
        work.unfinished = any(scene.failed for scene in scored)
    _raise_failed(made, scored)
    return made


def polygonize(
    scores: str | Path,
    out: str | Path,
    *,
    threshold: float | None = None,
    min_area_m2: float | None = None,
    overwrite: bool = False,
) -> int:
    """Extract polygons again from a score raster of `predict`, without the model.

    Class names come from the class raster that `predict` wrote beside the scores, if it is still there.

    Args:
        scores: the score raster.
        out: `x.gpkg`, `.geojson`, `.parquet` or `.fgb`.
        threshold: score above which a pixel belongs to a polygon; None: that of the prediction.
        min_area_m2: least area of a polygon, square metres; None: that of the prediction.
        overwrite: replace outputs that exist.

    Returns:
        The number of polygons.

    Raises:
        ConfigError: the suffix of `out` is not that of a polygon format.
        DataError: `scores` is not a score raster of geood.
        OutputError: `out` exists or cannot be written.

    Example:
        >>> import geood
        >>> geood.polygonize("scores.tif", "high.geojson", threshold=1.0)
        0
    """
    scores, out = Path(scores), Path(out)
    if out.suffix not in OUTPUT_SUFFIXES:
        raise ConfigError(f"{out}: polygons are written as {', '.join(OUTPUT_SUFFIXES)}; choose one of these suffixes")
    check_output(out, overwrite=overwrite)
    tags = read_tags(scores)
    chosen = float(tags["GEOOD_THRESHOLD"]) if threshold is None else _finite(threshold)
    settings = PredictConfig.model_validate_json(tags["GEOOD_PREDICT"])
    if min_area_m2 is not None:
        settings = settings.model_copy(update={"min_area_m2": min_area_m2})
    classes = scores.with_suffix(".classes.tif")
    if classes.exists() and any(read_tags(classes, dtype="uint8").get(k) != tags[k] for k in SAME_RUN):
        raise DataError(f"{classes}: is not of the same prediction as {scores.name}; move it away, or predict again")
    return write_anomalies(
        scores,
        out,
        threshold=chosen,
        classes=classes if classes.exists() else None,
        class_names={int(k): v for k, v in json.loads(tags["GEOOD_CLASSES"]).items()},
        predict=settings,
        model=tags["GEOOD_MODEL"],
        overwrite=overwrite,
        failed=[Window(*window) for window in json.loads(tags.get(FAILED_TAG, "[]"))],
    )


def _log_warnings(plans: list[ScenePlan], *, together: bool) -> None:
    """Log the warnings of all plans.

    Raises:
        ConfigError: the scenes are to share a polygon file, and only some of them have a CRS.
    """
    for plan in plans:
        for warning in plan.warnings:
            log.warning("%s: %s", plan.scene.label, warning)
    bare = [plan.scene.label for plan in plans if plan.grid.crs is None]
    if bare:
        others = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        log.warning("%s%s: no CRS, so none in the outputs: coordinates are pixels (y: minus the row)", bare[0], others)
    if together and 0 < len(bare) < len(plans):
        raise ConfigError(
            "some scenes have a CRS and some have none: they cannot share one file, predict them separately"
        )


def _polygons(
    targets: list[Target],
    scored: list[ScoredScene],
    bundle: ModelBundle,
    *,
    folder: Path,
    together: Path | None,
    threshold: float,
) -> list[int | None]:
    """Extract the polygons of all scenes from their finished rasters; return their numbers (None: not asked for)."""
    names, settings = bundle.class_names, bundle.config.predict
    if together:
        sources = [
            PolygonSource(folder / t.scores.name, folder / t.classes.name, names, t.scene.label, s.failed)
            for t, s in zip(targets, scored, strict=True)
            if t.classes
        ]
        shared = folder / together.name
        return [
            *write_together(
                sources, shared, threshold=threshold, predict=settings, model=bundle.identity, overwrite=True
            )
        ]
    counts: list[int | None] = []
    for target, scene in zip(targets, scored, strict=True):
        if not (target.polygons and target.classes):
            counts.append(None)
            continue
        count = write_anomalies(
            folder / target.scores.name,
            folder / target.polygons.name,
            threshold=threshold,
            classes=folder / target.classes.name,
            class_names=names,
            predict=settings,
            model=bundle.identity,
            overwrite=True,
            failed=scene.failed,
        )
        counts.append(count)
    return counts


def _raise_failed(made: list[Prediction], scored: list[ScoredScene]) -> None:
    """Raise an error that names the first tile without scores and counts all, if there are any."""
    incomplete = [(m, s) for m, s in zip(made, scored, strict=True) if s.failed]
    if not incomplete:
        return
    prediction, scene = incomplete[0]
    tiles, window = sum(len(s.failed) for _, s in incomplete), scene.failed[0]
    raise TilesFailedError(
        f"{ScenePath(prediction.scene).label}: {tiles} tiles could not be scored, the first at row {window.row}, "
        f"column {window.col}: {scene.reason}. They are nodata in the map, and listed in its tag {FAILED_TAG} and in "
        "failed_tiles. If the failure was transient, run again with --resume --overwrite; otherwise repair the scene "
        "and predict again",
        made,
    )


def _finite(threshold: float) -> float:
    if not math.isfinite(threshold):
        raise ConfigError(
            f"--threshold {threshold}: not a finite number; scores lie in [0, 1] unless score.kind is unbounded"
        )
    return threshold


def _held(folder: Path) -> int:
    """Return the bytes that the files of an earlier run take in the folder."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
