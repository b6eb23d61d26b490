"""A scene in, an anomaly map out: what `predict` and `polygonize` do from checking to publishing.

All outputs are named and checked before any work. Everything is made in a hidden folder beside the target and gets its
name only when all of it is whole; whatever goes wrong before, nothing is left behind and nothing was replaced. How
tiles are scored is the matter of `scoring`.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from geopandas import GeoDataFrame

from geood import qgis
from geood.bundle import ModelBundle
from geood.config import PredictConfig
from geood.errors import ConfigError, DataError, OutputError
from geood.gdal import open_raster, pieces, rasterio_window, reading
from geood.grid import Grid
from geood.raster import NO_CLASS, ScoreWriter, check_output, finish_cog, read_tags
from geood.scene import Scene
from geood.scoring import dask_client, score_scene
from geood.vector import OUTPUT_SUFFIXES, anomalies, write_anomalies
from geood.version import __version__

log = logging.getLogger("geood")
SAME_RUN = ("GEOOD_MODEL", "GEOOD_SCENE")  # tags that score raster and class raster of one prediction share
SUMMARY = "summary.csv"
SCENES = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".webp")  # what is taken from a folder
OTHER_SCALE = 1.5  # beyond this ratio of pixel sizes to those of training, the user is warned


@dataclass(frozen=True)
class Prediction:
    """The outputs of one scene and what is in them; `polygons` is None where only scores were asked for."""

    scene: Path
    scores: Path
    polygons: Path | None
    classes: Path | None
    threshold: float
    valid_pixels: int
    anomalies: int | None


class _Target(NamedTuple):
    """Final names of one scene's outputs; `layer` tells whether the scene has polygons of its own."""

    scene: Path
    scores: Path
    classes: Path | None
    polygons: Path | None

    @property
    def files(self) -> list[Path]:
        rasters = [p for p in (self.scores, self.classes) if p]
        return [*rasters, *(p.with_suffix(".qml") for p in rasters), *([self.polygons] if self.polygons else [])]


def predict(  # noqa: PLR0913 - the options of a verb
    scenes: Sequence[str | Path],
    out: str | Path,
    *,
    bundle: str | Path,
    threshold: float | None = None,
    workers: int = 0,
    scheduler: str | None = None,
    settings: Sequence[str] = (),
    overwrite: bool = False,
) -> list[Prediction]:
    """Score scenes with a bundle; write score rasters, class rasters and polygons.

    Args:
        scenes: rasters that GDAL reads, with the bands of the bundle, or folders of them (not of their subfolders).
        out: `x.gpkg`, `.geojson`, `.parquet` or `.fgb` for polygons, with the scores beside them as `x.tif` and the
            classes as `x.classes.tif`; `x.tif` for the scores alone; a folder for a GeoPackage and rasters per scene.
            Several scenes with one polygon file share it, told apart by a column `scene`. A folder of scenes has a
            folder of outputs, with a table `summary.csv` beside them.
        bundle: the `model.safetensors` of a training.
        threshold: score above which a pixel belongs to a polygon; None: the bundle's default.
        workers: 0: threads in this process; N: that many processes on this machine.
        scheduler: address of a running Dask scheduler (tcp://host:8786) whose workers see the same paths.
        settings: other values than the bundle's in its sections score and predict, as `score.kind=energy`.
        overwrite: replace outputs that exist.

    Raises:
        BundleError: the bundle cannot be read.
        ConfigError: a setting is none, or asks for a score that the bundle cannot give.
        DataError: a scene cannot be read or does not fit the bundle.
        OutputError: an output exists or cannot be written.
        TilesFailedError: a valid pixel came back without a score.
    """
    out, folders = Path(out), any(Path(s).is_dir() for s in scenes)
    sources = [source for s in scenes for source in _scenes_of(Path(s))]
    targets, together = _targets(sources, out, folder=folders)
    summary = out / SUMMARY if folders and targets[0].scores.parent == out else None
    finals = [p for t in targets for p in t.files] + [p for p in (together, summary) if p]
    if len(set(finals)) < len(finals):
        raise ConfigError("two of the scenes would have outputs of the same name; predict them one by one")
    for path in finals:
        if any(path.resolve() == source.resolve() for source in sources):
            raise OutputError(f"{path}: this output would replace the scene itself; choose another name for --out")
        if path.parent == out and not out.exists():
            check_output(out, overwrite=overwrite)
        else:
            check_output(path, overwrite=overwrite)
    model = ModelBundle.load(bundle).with_settings(settings)
    placed = [_check_scene(source, model) for source in sources]
    if not all(placed):
        bare = [str(source) for source, has_crs in zip(sources, placed, strict=True) if not has_crs]
        others = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        log.warning("%s%s: no CRS, so none in the outputs: coordinates are pixels (y as minus row)", bare[0], others)
    if together and len(set(placed)) > 1:
        raise ConfigError("some scenes have a CRS and some have none: they cannot share one file, predict them apart")
    cut = model.threshold if threshold is None else _finite(threshold)
    with _new_folder(finals[0].parent), _staging(finals[0].parent) as staging:
        frames: list[GeoDataFrame] = []
        made: list[Prediction] = []
        with dask_client(workers, scheduler) as client:
            for target in targets:
                valid = _score_to_staging(target, staging, model, bundle=Path(bundle), threshold=cut, client=client)
                frame = _cut(target, staging, model, threshold=cut) if target.classes else None
                if frame is not None and target.polygons:
                    write_anomalies(frame, staging / target.polygons.name, threshold=cut, overwrite=False)
                elif frame is not None:
                    frames.append(frame.assign(scene=target.scene.name))
                count = None if frame is None else len(frame)
                polygons = target.polygons or together
                made.append(Prediction(target.scene, target.scores, polygons, target.classes, cut, valid, count))
        if together:
            write_anomalies(_one_frame(frames), staging / together.name, threshold=cut, overwrite=False)
        if summary:
            _write_summary(staging / summary.name, made, staging)
        _publish(staging, finals)
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
    frame = anomalies(
        scores,
        threshold=cut,
        classes=classes if classes.exists() else None,
        class_names={int(k): v for k, v in json.loads(tags["GEOOD_CLASSES"]).items()},
        predict=settings,
        model=tags["GEOOD_MODEL"],
    )
    write_anomalies(frame, out, threshold=cut, overwrite=overwrite)
    return len(frame)


def _scenes_of(path: Path) -> list[Path]:
    """The scene itself, or the scenes in a folder.

    Raises:
        DataError: there is none in it.
    """
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.glob("*") if p.suffix.lower() in SCENES and p.is_file())
    if not found:
        raise DataError(f"{path}: no scene in this folder; needed: files ending in {', '.join(SCENES)}")
    return found


def _targets(scenes: list[Path], out: Path, *, folder: bool) -> tuple[list[_Target], Path | None]:
    """Names of all outputs, and the polygon file that several scenes share (None if they do not)."""
    if not scenes:
        raise ConfigError("no scene to predict; give at least one raster")
    stems = [s.stem for s in scenes]
    if len(set(stems)) < len(stems):
        raise ConfigError("two scenes have the same name, so their outputs would too; predict them one by one")
    if out.is_dir() or (out.suffix == "" and (folder or len(scenes) > 1)):
        return [_beside(s, out / f"{s.stem}.gpkg") for s in scenes], None
    if out.suffix == ".tif" and len(scenes) == 1:
        return [_Target(scenes[0], out, None, None)], None
    if out.suffix not in OUTPUT_SUFFIXES:
        kinds = ", ".join(OUTPUT_SUFFIXES)
        raise ConfigError(
            f"{out}: cannot tell what to write; end the name in {kinds}, .tif (one scene), or name a folder"
        )
    if len(scenes) == 1:
        return [_beside(scenes[0], out)], None
    shared = [_beside(s, out.with_name(f"{out.stem}_{s.stem}.gpkg")) for s in scenes]
    return [t._replace(polygons=None) for t in shared], out


def _beside(scene: Path, polygons: Path) -> _Target:
    return _Target(scene, polygons.with_suffix(".tif"), polygons.with_suffix(".classes.tif"), polygons)


def _check_scene(scene: Path, model: ModelBundle) -> bool:
    """See that a scene fits the model, say what is odd about it; returns whether it has a CRS."""
    with Scene.open(scene, nodata=model.bands.nodata) as opened:
        opened.check_bands(model.bands)
        found, known = opened.grid.resolution_m, model.resolution
    if found and known and not 1 / OTHER_SCALE < found / known < OTHER_SCALE:
        log.warning(
            "%s has pixels of %.3g m, the model was trained at %.3g m: things look %.2g times as large to it and its "
            "scores mean little; resample the scene first (gdalwarp -tr)",
            scene,
            found,
            known,
            known / found,
        )
    return opened.grid.crs is not None


def _score_to_staging(
    target: _Target, staging: Path, model: ModelBundle, *, bundle: Path, threshold: float, client: Any
) -> int:
    """Score one scene into finished rasters with their styles, all in the staging folder."""
    with Scene.open(target.scene, nodata=model.bands.nodata) as opened:
        grid = opened.grid
    work, work_classes = staging / "scores.partial.tif", staging / "classes.partial.tif"
    with (
        ScoreWriter(work, grid, dtype="float32", nodata=float("nan")) as score_writer,
        ScoreWriter(work_classes, grid, dtype="uint8", nodata=NO_CLASS) as class_writer,
    ):
        writers = (score_writer, class_writer)
        valid = score_scene(target.scene, bundle, model=model, writers=writers, client=client)
    tags = _tags(target.scene, model, threshold)
    finish_cog(work, staging / target.scores.name, description="anomaly score", tags=tags, overview="average")
    style = _style(staging / target.scores.name, model, threshold)
    (staging / target.scores.with_suffix(".qml").name).write_text(style, encoding="utf-8")
    if target.classes:
        finish_cog(work_classes, staging / target.classes.name, description="class", tags=tags, overview="mode")
        style = qgis.class_style(model.class_names)
        (staging / target.classes.with_suffix(".qml").name).write_text(style, encoding="utf-8")
    work.unlink(missing_ok=True)
    work_classes.unlink(missing_ok=True)
    return valid


def _style(scores: Path, model: ModelBundle, threshold: float) -> str:
    """The style of a finished score raster; scores without bounds are coloured over the range they have there."""
    if model.config.score.kind in ("jsd", "max_softmax", "entropy"):
        return qgis.score_style(threshold)
    with open_raster(scores) as raster:
        found = raster.tags(1)
    if "STATISTICS_MINIMUM" not in found:
        return qgis.score_style(threshold)
    return qgis.score_style(threshold, float(found["STATISTICS_MINIMUM"]), float(found["STATISTICS_MAXIMUM"]))


def _cut(target: _Target, staging: Path, model: ModelBundle, *, threshold: float) -> GeoDataFrame:
    """The polygons of one scene, from its finished rasters."""
    assert target.classes is not None
    return anomalies(
        staging / target.scores.name,
        threshold=threshold,
        classes=staging / target.classes.name,
        class_names=model.class_names,
        predict=model.config.predict,
        model=model.identity,
    )


def _one_frame(frames: list[GeoDataFrame]) -> GeoDataFrame:
    """Polygons of several scenes in the CRS of the first."""
    crs = frames[0].crs
    moved = [f if f.crs == crs else f.to_crs(crs) for f in frames]
    if any(m is not f for m, f in zip(moved, frames, strict=True)):
        log.warning("the scenes have different CRSs: all polygons are written in that of the first, %s", crs)
    filled = [f for f in moved if len(f)] or moved[:1]
    return GeoDataFrame(pd.concat(filled, ignore_index=True), crs=crs)


def _write_summary(out: Path, made: list[Prediction], staging: Path) -> None:
    """One row for each scene: what its scores are, and how much of it lies above the threshold."""
    rows = []
    for one in made:
        counted, total, above, highest = 0, 0.0, 0, math.nan
        with reading(one.scores), open_raster(staging / one.scores.name) as raster:
            grid = Grid(raster.height, raster.width, raster.transform, raster.crs)
            for window in pieces(grid):
                scores = raster.read(1, window=rasterio_window(window))
                scores = scores[np.isfinite(scores)]
                counted += scores.size
                total += float(scores.sum(dtype=np.float64))
                above += int((scores > one.threshold).sum())
                highest = float(np.fmax(highest, scores.max(initial=-np.inf))) if scores.size else highest
        rows.append(
            {
                "scene": one.scene.name,
                "scores": one.scores.name,
                "valid_pixels": one.valid_pixels,
                "score_mean": total / counted if counted else math.nan,
                "score_max": highest,
                "above_threshold": above / counted if counted else math.nan,
                "threshold": one.threshold,
                "anomalies": one.anomalies,
            }
        )
    pd.DataFrame(rows).to_csv(out, index=False)


def _tags(scene: Path, model: ModelBundle, threshold: float) -> dict[str, str]:
    score = model.config.score
    return {
        "GEOOD_VERSION": __version__,
        "GEOOD_MODEL": model.identity,
        "GEOOD_SCENE": scene.name,
        "GEOOD_SCORE": score.kind,
        "GEOOD_TEMPERATURE": str(score.temperature),
        "GEOOD_SMOOTH_PX": str(score.smooth_px),
        "GEOOD_SMOOTH_CONTRAST": str(score.smooth_contrast),
        "GEOOD_THRESHOLD": repr(threshold),
        "GEOOD_CLASSES": json.dumps(model.class_names),
        "GEOOD_PREDICT": model.config.predict.model_dump_json(),
    }


def _finite(threshold: float) -> float:
    if not math.isfinite(threshold):
        raise ConfigError(
            f"--threshold {threshold}: a number is needed; scores lie in [0, 1] unless score.kind is a logit"
        )
    return threshold


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make the folder of the outputs if only that is missing; take it away again if nothing came of it."""
    made = not folder.exists()
    if made:
        folder.mkdir()
    try:
        yield
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the outputs that is gone afterwards, whatever happened."""
    try:
        staging = Path(tempfile.mkdtemp(prefix=".geood-", dir=folder))
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror}); choose another --out") from None
    try:
        yield staging
    except OSError as error:
        full = error.errno == errno.ENOSPC
        remedy = "free space and run again" if full else "see that the folder stays there and can be written"
        raise OutputError(f"{folder}: writing failed ({error.strerror or error}); {remedy}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, finals: list[Path]) -> None:
    """Give every finished file its name."""
    for final in finals:
        os.replace(staging / final.name, final)
