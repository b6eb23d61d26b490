"""A scene in, an anomaly map out: what `predict` and `polygonize` do from checking to publishing.

All outputs are named and checked before any work. Everything is made in a hidden folder beside the target and gets its
name only when all of it is whole; nothing is replaced before. What ends a run early leaves the finished tiles in that
folder, for `--resume`, and nothing else. What is decided about a scene is the matter of `planning`, how its tiles are
scored that of `scoring`.
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
from geood.prediction.budget import as_told, budget, check_disk, parse_bytes
from geood.prediction.cluster import dask_client
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
        bundle_path: the `model.safetensors` of a training.
        threshold: score above which a pixel belongs to a polygon; None: the bundle's default.
        options: how the scenes are read.
        mosaic: take all scenes together, or a folder, as the tiles of one.
        workers: 0: threads in this process (several GPUs: a process for each); N: that many processes on this machine.
        scheduler: address of a running Dask scheduler (tcp://host:8786) whose workers see the scenes by the same names.
        max_ram: memory that all processes on this machine may take together, as "2GB"; None: as the config's tiles ask.
        settings: other values than the bundle's in its sections score and predict, as `score.kind=energy`.
        resume: go on with what an interrupted run of the same outputs has finished.
        overwrite: replace outputs that exist.

    Raises:
        BundleError: the bundle cannot be read.
        ConfigError: a setting is none, or asks for a score that the bundle cannot give.
        DataError: a scene cannot be read or does not fit the bundle.
        OutputError: an output exists or cannot be written, or what is to be resumed was another run.
        RunLostError: the scheduler went away, or all workers did and none came.
        TilesFailedError: some tiles have no scores; all outputs are written, and in its `made`.
    """
    out, folders = Path(out), any(Path(s).is_dir() for s in scenes) and not mosaic
    sources = sources_of(scenes, mosaic=mosaic)
    targets, together = targets_of(sources, out, folder=folders)
    summary = out / SUMMARY if folders and targets[0].scores.parent == out else None
    finals = [p for t in targets for p in t.files] + [p for p in (together, summary) if p]
    options, folder = options or SceneOptions(), finals[0].parent / f".{out.name}.geood"
    if resume and (folder / PUBLISHING).exists():
        with work_dir(folder, resume=True, overwrite=False) as place:
            place.used.update(target.scores.stem for target in targets)
            return published(folder)
    others = [Path(bundle_path), *([options.area] if options.area else [])]
    check_outputs(finals, [str(s) for s in scenes], out, others=others, overwrite=overwrite)
    bundle = ModelBundle.load(bundle_path).with_settings(settings)
    cut = bundle.threshold if threshold is None else _finite(threshold)
    if max_ram:
        limits = budget(bundle, workers=workers, max_ram=parse_bytes(max_ram))
    else:
        limits = as_told(bundle, workers=workers)
    with new_folder(finals[0].parent), work_dir(folder, resume=resume, overwrite=overwrite) as place:
        nodata = bundle.bands.nodata if options.nodata is None else options.nodata
        tiles = write_mosaic([str(s) for s in scenes], place.folder / MOSAIC, nodata=nodata) if mosaic else None
        settle = partial(plan_scene, bundle=bundle, options=options, bundle_path=Path(bundle_path), limits=limits)
        plans = [settle(target.scene, mosaic=tiles, classes=bool(target.classes)) for target in targets]
        _say_odd(plans, together=bool(together))
        check_disk(place.folder, sum(plan.disk_bytes for plan in plans) - _held(place.folder))
        STATE.preload(Path(bundle_path), bundle)
        scored: list[ScoredScene] = []
        with dask_client(workers, scheduler, computing=limits.computing) as client:
            for target, plan in zip(targets, plans, strict=True):
                scored.append(assemble_rasters(target, plan, bundle, place=place, threshold=cut, client=client))
        counts = _polygons(targets, scored, bundle, folder=place.folder, together=together, threshold=cut)
        made = [
            Prediction(t.scene.given, t.scores, t.polygons or together, t.classes, cut, s.valid, count, s.failed)
            for t, s, count in zip(targets, scored, counts, strict=True)
        ]
        if summary:
            write_summary(place.folder / summary.name, made, place.folder)
        publish(place.folder, finals, made)
        place.unfinished = any(one.failed for one in scored)
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
    """Cut polygons again from a score raster of `predict`, without the model; returns how many there are.

    Class names come from the class raster that `predict` wrote beside the scores, where it still lies there.

    Raises:
        ConfigError: if the ending of `out` is none that polygons are written in.
        DataError: if `scores` is not a score raster of geood.
        OutputError: if `out` exists or cannot be written.
    """
    scores, out = Path(scores), Path(out)
    if out.suffix not in OUTPUT_SUFFIXES:
        raise ConfigError(f"{out}: polygons are written as {', '.join(OUTPUT_SUFFIXES)}; choose one of these endings")
    check_output(out, overwrite=overwrite)
    tags = read_tags(scores)
    cut = float(tags["GEOOD_THRESHOLD"]) if threshold is None else _finite(threshold)
    settings = PredictConfig.model_validate_json(tags["GEOOD_PREDICT"])
    if min_area_m2 is not None:
        settings = settings.model_copy(update={"min_area_m2": min_area_m2})
    classes = scores.with_suffix(".classes.tif")
    if classes.exists() and any(read_tags(classes, dtype="uint8").get(k) != tags[k] for k in SAME_RUN):
        raise DataError(f"{classes}: is not of the same prediction as {scores.name}; move it away, or predict again")
    return write_anomalies(
        scores,
        out,
        threshold=cut,
        classes=classes if classes.exists() else None,
        class_names={int(k): v for k, v in json.loads(tags["GEOOD_CLASSES"]).items()},
        predict=settings,
        model=tags["GEOOD_MODEL"],
        overwrite=overwrite,
        failed=[Window(*window) for window in json.loads(tags.get(FAILED_TAG, "[]"))],
    )


def _say_odd(plans: list[ScenePlan], *, together: bool) -> None:
    """Say what is odd about the scenes.

    Raises:
        ConfigError: if they are to share a file but cannot.
    """
    for plan in plans:
        for warning in plan.warnings:
            log.warning("%s: %s", plan.scene.label, warning)
    bare = [plan.scene.label for plan in plans if plan.grid.crs is None]
    if bare:
        others = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        log.warning("%s%s: no CRS, so none in the outputs: coordinates are pixels (y as minus row)", bare[0], others)
    if together and 0 < len(bare) < len(plans):
        raise ConfigError("some scenes have a CRS and some have none: they cannot share one file, predict them apart")


def _polygons(
    targets: list[Target],
    scored: list[ScoredScene],
    bundle: ModelBundle,
    *,
    folder: Path,
    together: Path | None,
    threshold: float,
) -> list[int | None]:
    """Cut the polygons of all scenes from their finished rasters; how many there are of each."""
    names, settings = bundle.class_names, bundle.config.predict
    if together:
        parts = [
            PolygonSource(folder / t.scores.name, folder / t.classes.name, names, t.scene.label, s.failed)
            for t, s in zip(targets, scored, strict=True)
            if t.classes
        ]
        shared = folder / together.name
        return [
            *write_together(parts, shared, threshold=threshold, predict=settings, model=bundle.identity, overwrite=True)
        ]
    counts: list[int | None] = []
    for target, one in zip(targets, scored, strict=True):
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
            failed=one.failed,
        )
        counts.append(count)
    return counts


def _raise_failed(made: list[Prediction], scored: list[ScoredScene]) -> None:
    """Say which tiles have no scores, after all outputs are written."""
    bad = [(m, s) for m, s in zip(made, scored, strict=True) if s.failed]
    if not bad:
        return
    first, one = bad[0]
    tiles, window = sum(len(s.failed) for _, s in bad), one.failed[0]
    raise TilesFailedError(
        f"{ScenePath.of(first.scene).label}: {tiles} tiles could not be scored, the first at row {window.row}, "
        f"column {window.col}: {one.reason}. They are no data in the map, and listed in its tag {FAILED_TAG} and in "
        "failed_tiles. If the failure was transient, run again with --resume --overwrite; otherwise repair the scene "
        "and predict again",
        made,
    )


def _finite(threshold: float) -> float:
    if not math.isfinite(threshold):
        raise ConfigError(
            f"--threshold {threshold}: a number is needed; scores lie in [0, 1] unless score.kind is a logit"
        )
    return threshold


def _held(folder: Path) -> int:
    """Bytes that earlier work in a folder takes already."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
