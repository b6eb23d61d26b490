"""`predict` from start to end: check, plan, score, extract polygons, judge, publish.

All outputs are named and checked before any work. Everything is made in a hidden work folder beside the outputs and
renamed only when all of it is complete; nothing is replaced before. A run that ends early leaves its finished tiles in
that folder, for `--resume`, and nothing else; one that is killed also what was half made, which the next one removes.
How a scene is read is decided in `plan`; all are scored in `scored_scenes`, their tiles through `dispatch`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from geood.calibration import FAILS, Verdict
from geood.errors import ConfigError, DataError
from geood.geo.grid import Window
from geood.geo.mosaic import write_mosaic
from geood.geo.paths import ScenePath
from geood.geo.scene_reading import said_together
from geood.models import AnyBundle, ModelBundle, bundle_path_of, takes_bundle
from geood.prediction.budget import check_disk
from geood.prediction.cluster import TlsFiles, dask_client
from geood.prediction.outputs import (
    LeftOut,
    Prediction,
    RunOutputs,
    check_outputs,
    new_folder,
    outputs_of,
    write_summary,
)
from geood.prediction.plan import SceneOptions, ScenePlan, limits_of, plan_scene
from geood.prediction.publication import Publication, SceneFigures
from geood.prediction.rasters import ScoredScene, finish_raster
from geood.prediction.run_table import write_run
from geood.prediction.scene_verdict import OnDrift, check_drift, judged, state_of
from geood.prediction.scored_scenes import score_scenes
from geood.prediction.threshold_choice import ThresholdChoice, with_least_area
from geood.prediction.unreadable import (
    Unreadable,
    check_unreadable,
    naming_unreadable,
    refuse_incomplete,
    without_torn,
    without_unreadable,
)
from geood.prediction.workdir import WorkDir, work_dir
from geood.prediction.worker import STATE

log = logging.getLogger("geood")
MOSAIC = "mosaic.vrt"


@takes_bundle
def predict(  # noqa: PLR0913 - the options of a verb
    scenes: Sequence[str | Path],
    out: str | Path,
    *,
    bundle: AnyBundle | None = None,
    threshold: float | None = None,
    fpr: float | None = None,
    false_per_km2: float | None = None,
    top: int | None = None,
    on_drift: OnDrift = "warn",
    options: SceneOptions | None = None,
    mosaic: bool = False,
    workers: int = 0,
    scheduler: str | None = None,
    tls: TlsFiles | None = None,
    max_ram: str | None = None,
    settings: Sequence[str] = (),
    overview: bool = False,
    unreadable: Unreadable = "error",
    resume: bool = False,
    overwrite: bool = False,
    discard_verdicts: bool = False,
    bundle_path: str | Path | None = None,
) -> list[Prediction]:
    """Score scenes with a bundle; write score rasters, class rasters and polygons.

    Args:
        scenes: rasters that GDAL reads (files, http(s)://, s3:// and other addresses, members of zip files), or folders
            of them (not of their subfolders).
        out: `x.gpkg`, `.geojson`, `.parquet` or `.fgb` for polygons, with the scores beside them as `x.tif` and the
            classes as `x.classes.tif`; `x.tif` for the scores alone; a folder for a GeoPackage and rasters per scene.
            Several scenes with one polygon file share it, told apart by a column `scene`. Several scenes, and a folder
            of them, have a table beside their outputs: `summary.csv` in a folder, `x.summary.csv` beside `x.gpkg`.
        bundle: a ModelBundle, its file `model.safetensors`, or the folder of its run.
        threshold: score above which a pixel belongs to a polygon; None: the bundle's default.
        fpr: choose the threshold that this share of inlier validation ground exceeds.
        false_per_km2: choose the threshold at which inlier validation ground has so many polygons per km2.
        top: keep so many polygons of each scene, the first by rank, above the default threshold.
        on_drift: `warn` of a scene that is unlike the ground of the calibration; `refuse` to write its map; `relative`:
            take as its threshold a rank among its own scores, which promises nothing.
        options: how the scenes are read.
        mosaic: treat all scenes together, or those of a folder, as tiles of one scene.
        workers: 0: threads in this process (several GPUs: a process for each); N: that many processes on this machine.
        scheduler: address of a running Dask scheduler (tcp://host:8786) whose workers see the scenes by the same names.
            Whoever answers there, or can get between, can run code in this process.
        tls: certificate files for a scheduler at tls://, see `geood.prediction.TlsFiles`.
        max_ram: memory limit of all processes on this machine together, such as "2GB"; None: what the config's tiles
            need.
        settings: overrides of the bundle's sections score and predict, such as `score.kind=energy`.
        overview: also draw each scene with its scores, its polygons and the verdict, as `NAME.overview.png`.
        unreadable: `error`: a scene that cannot be read ends the run before any work; `skip`: it is left out, and all
            others are mapped before the run ends with an error that lists what was left out.
        resume: continue an interrupted run of the same outputs from its finished tiles.
        overwrite: replace outputs that exist.
        discard_verdicts: replace also polygons in which a person has typed verdicts.
        bundle_path: the former name of `bundle`.

    Returns:
        The outputs of each scene and their figures.

    Raises:
        BundleError: the bundle cannot be read.
        ConfigError: a setting is invalid, or asks for a score or a threshold that the bundle does not support.
        DataError: a scene cannot be read or does not fit the bundle, or drifted and is to be refused.
        OutputError: an output exists or cannot be written, or the run to be resumed had other inputs.
        RunLostError: the scheduler went away, or there were no workers for a minute.
        SceneChangedError: a scene was changed while it was read; nothing is written.
        ScenesSkippedError: scenes were left out; all outputs of the others are written and listed in its `made`.
        TilesFailedError: some tiles have no scores; all outputs are written and listed in its `made`.

    Example:
        >>> import geood
        >>> [prediction] = geood.predict(["scene.tif"], "anomalies.gpkg", bundle="model.safetensors")
        >>> prediction.scores.name, prediction.valid_pixels
        ('anomalies.tif', 12288)
    """
    bundle_path, out, options = bundle_path_of(bundle), Path(out), options or SceneOptions()
    choice = ThresholdChoice(threshold, fpr, false_per_km2, top)
    outputs = outputs_of(scenes, out, mosaic=mosaic, overview=overview)
    check_drift(on_drift, together=outputs.together is not None)
    check_unreadable(unreadable, mosaic=mosaic)
    others = [Path(bundle_path), *([options.area] if options.area else [])]
    check = partial(
        check_outputs,
        sources=[str(s) for s in scenes],
        out=out,
        others=others,
        overwrite=overwrite,
        discard_verdicts=discard_verdicts,
    )
    if not (resume and outputs.work_folder.exists()):
        check(outputs.finals)
    outputs, skipped = without_unreadable(outputs) if unreadable == "skip" else (outputs, [])
    with new_folder(outputs.folder), work_dir(outputs.work_folder, resume=resume, overwrite=overwrite) as work:
        published = partial(Publication, work.folder, overwrite=overwrite, discard_verdicts=discard_verdicts)
        publication = published(outputs.finals)
        check([path for path in outputs.finals if not publication.in_place(path)])
        bundle = with_least_area(ModelBundle.load(bundle_path, flow=False).with_settings(settings))
        rule = _Rule(choice.settle(bundle), top, on_drift)
        nodata = options.reading.nodata_for(bundle.bands)
        tiles = write_mosaic([str(s) for s in scenes], work.folder / MOSAIC, nodata=nodata) if mosaic else None
        opened, here = [t.scene for t in outputs.targets], scheduler is None
        with naming_unreadable(outputs.targets):
            limits = limits_of(bundle, opened, mosaic=tiles, workers=workers, max_ram=max_ram, here=here)
            plan_of = partial(plan_scene, bundle=bundle, options=options, bundle_path=Path(bundle_path), limits=limits)
            plans = [
                plan_of(t.scene, mosaic=tiles, classes=bool(t.classes), begun=publication.begun(t.scores.stem))
                for t in outputs.targets
            ]
        if unreadable == "skip":
            outputs, plans, torn = without_torn(outputs, plans)
            skipped, publication = [*skipped, *torn], published(outputs.finals)
        key = _key(plans, outputs, bundle, rule)
        publication.check_begun(key)
        _log_warnings(plans, together=bool(outputs.together))
        if publication.interrupted:
            work.used.update(target.scores.stem for target in outputs.targets)
            made = _predictions(outputs, publication.figures(key))
        else:
            client_of = partial(dask_client, workers, scheduler, computing=limits.computing, tls=tls)
            planned = outputs
            with STATE.holding(Path(bundle_path), bundle):
                outputs, plans, figures, gone = _scored(
                    outputs, plans, bundle, work=work, rule=rule, client_of=client_of, skip=unreadable == "skip"
                )
            skipped = [*skipped, *gone]
            if outputs != planned:
                publication, key = published(outputs.finals), _key(plans, outputs, bundle, rule)
            made = _predictions(outputs, figures)
            if outputs.summary:
                write_summary(work.folder / outputs.summary.name, made, work.folder, skipped)
            publication.begin(key, figures)
        publication.finish()
        work.unfinished = any(prediction.failed_tiles for prediction in made)
    _log_verdicts(made)
    refuse_incomplete(made, skipped)
    return made


class _Rule(NamedTuple):
    """Rule by which polygons are cut: the threshold, the most polygons of a scene, and what drift does to both."""

    threshold: float
    top: int | None
    on_drift: OnDrift


def _scored(
    outputs: RunOutputs,
    plans: list[ScenePlan],
    bundle: ModelBundle,
    *,
    work: WorkDir,
    rule: _Rule,
    client_of: Callable[[], AbstractContextManager[Any]],
    skip: bool,
) -> tuple[RunOutputs, list[ScenePlan], list[SceneFigures], list[LeftOut]]:
    """Score all scenes, and make their rasters and polygons in the work folder.

    Returns outputs, plans and figures of the scenes that could be read to their end, and the others, if `skip` allows.
    """
    check_disk(work.folder, sum(plan.disk_bytes for plan in plans) - work.held_bytes)
    settled = None if rule.on_drift == "relative" else rule.threshold
    with client_of() as client:
        outputs, pairs, gone = score_scenes(
            outputs, plans, bundle, work=work, threshold=settled, client=client, skip=skip
        )
    plans, scored = [plan for plan, _ in pairs], [one for _, one in pairs]
    rasters = [work.folder / target.scores.name for target in outputs.targets]
    state = partial(state_of, bundle=bundle, threshold=rule.threshold, on_drift=rule.on_drift)
    each = zip(rasters, scored, strict=True)
    states = [state(raster, valid=one.valid, above=one.above, cells=one.cells) for raster, one in each]
    thresholds = [state.facts.threshold for state in states]
    counts = _polygons(outputs, scored, bundle, folder=work.folder, thresholds=thresholds, most=rule.top)
    numbers = [None if rule.top else count for count in counts]
    verdicts = [judged(state, bundle, polygons=one) for state, one in zip(states, numbers, strict=True)]
    for raster, verdict in zip(rasters, verdicts, strict=True):
        finish_raster(raster, bundle, verdict, open_threshold=rule.on_drift == "relative")
    _write_runs(outputs, verdicts, work.folder)
    outputs = _draw(outputs, plans, verdicts, folder=work.folder, skip=skip)
    figures = [
        SceneFigures(valid=scene.valid, anomalies=count, verdict=verdict, failed=scene.failed, reason=scene.reason)
        for scene, count, verdict in zip(scored, counts, verdicts, strict=True)
    ]
    return outputs, plans, figures, gone


def _write_runs(outputs: RunOutputs, verdicts: Sequence[Verdict], folder: Path) -> None:
    """Write the verdicts into the GeoPackages of polygons."""
    rows = [(target.scene.label, verdict) for target, verdict in zip(outputs.targets, verdicts, strict=True)]
    files = [(outputs.together, rows)] if outputs.together else []
    files += [(target.polygons, [row]) for target, row in zip(outputs.targets, rows, strict=True) if target.polygons]
    for file, its_rows in files:
        if file is not None and file.suffix == ".gpkg" and (folder / file.name).exists():
            write_run(folder / file.name, its_rows)


def _draw(
    outputs: RunOutputs, plans: Sequence[ScenePlan], verdicts: Sequence[Verdict], *, folder: Path, skip: bool
) -> RunOutputs:
    """Draw the overviews that were asked for; return the outputs with those that there are.

    A map is finished by then, so a scene that has gone since costs no more than its overview, if `skip` allows.
    """
    left = []
    for target, plan, verdict in zip(outputs.targets, plans, verdicts, strict=True):
        left.append(target)
        if target.overview is None:
            continue
        from geood.prediction.overview import draw_map

        polygons = target.polygons or outputs.together
        try:
            draw_map(
                folder / target.overview.name,
                scene=plan.job.source.name,
                scores=folder / target.scores.name,
                polygons=polygons and folder / polygons.name,
                label=target.scene.label,
                threshold=verdict.threshold,
                verdict=verdict,
            )
        except DataError as error:
            if not skip:
                raise
            log.warning("%s: its map is whole, but has no overview (%s)", target.scene.label, error)
            left[-1] = target._replace(overview=None)
    return outputs._replace(targets=tuple(left))


def _log_verdicts(made: Sequence[Prediction]) -> None:
    """Warn of maps whose budget does not hold, or that are far above it."""
    for prediction in made:
        verdict = prediction.verdict
        if verdict is not None and (verdict.loud or verdict.answer == FAILS):
            label = ScenePath(prediction.scene).label
            log.warning("%s: its budget %s; its verdict says why", label, verdict.answer)


def _log_warnings(plans: list[ScenePlan], *, together: bool) -> None:
    """Log the warnings of all plans, and how photographs are read.

    Raises:
        ConfigError: the scenes are to share a polygon file, and only some of them have a CRS.
    """
    for plan in plans:
        for warning in plan.warnings:
            log.warning("%s: %s", plan.scene.label, warning)
    said_together({plan.scene.label: plan.notes["resolution"] for plan in plans if not plan.grid.placed})
    bare = [plan.scene.label for plan in plans if plan.grid.crs is None]
    if bare:
        others = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        log.warning("%s%s: no CRS, so none in the outputs: coordinates are pixels (y: minus the row)", bare[0], others)
    if together and 0 < len(bare) < len(plans):
        raise ConfigError(
            "some scenes have a CRS and some have none: they cannot share one file, predict them separately"
        )


def _polygons(
    outputs: RunOutputs,
    scored: list[ScoredScene],
    bundle: ModelBundle,
    *,
    folder: Path,
    thresholds: Sequence[float],
    most: int | None,
) -> list[int | None]:
    """Extract the polygons of all scenes from their finished rasters; return their numbers (None: not asked for)."""
    if not outputs.together and not any(target.polygons and target.classes for target in outputs.targets):
        return [None] * len(scored)
    from geood.polygons import PolygonSource, write_anomalies, write_together  # here: geopandas loads for a second

    names, settings = bundle.class_names, bundle.config.predict
    if together := outputs.together:
        sources = [
            PolygonSource(folder / t.scores.name, folder / t.classes.name, names, t.scene.label, s.failed)
            for t, s in zip(outputs.targets, scored, strict=True)
            if t.classes
        ]
        together_of = partial(write_together, predict=settings, model=bundle.identity, most=most, overwrite=True)
        return [*together_of(sources, folder / together.name, threshold=thresholds[0])]
    counts: list[int | None] = []
    for target, scene, threshold in zip(outputs.targets, scored, thresholds, strict=True):
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
            most=most,
        )
        counts.append(count)
    return counts


def _key(plans: list[ScenePlan], outputs: RunOutputs, bundle: ModelBundle, rule: _Rule) -> dict[str, Any]:
    """Return everything that the outputs of a run depend on, as JSON values."""
    return {
        "scenes": {t.scores.stem: plan.key for t, plan in zip(outputs.targets, plans, strict=True)},
        "outputs": [path.name for path in outputs.finals],
        **rule._asdict(),
        "predict": bundle.config.predict.model_dump(mode="json"),
    }


def _predictions(outputs: RunOutputs, figures: Sequence[SceneFigures]) -> list[Prediction]:
    return [
        Prediction(
            scene=t.scene.public,
            scores=t.scores,
            polygons=t.polygons or outputs.together,
            classes=t.classes,
            overview=t.overview,
            threshold=scene.verdict.threshold,
            verdict=scene.verdict,
            valid_pixels=scene.valid,
            anomalies=scene.anomalies,
            failed_tiles=tuple(Window(*window) for window in scene.failed),
            reason=scene.reason,
        )
        for t, scene in zip(outputs.targets, figures, strict=True)
    ]
