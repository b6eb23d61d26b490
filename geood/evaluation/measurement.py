"""Measurement of frames with masks or class labels: a bundle, or another tool's score files, by a protocol.

Frames are scored once. Figures that need no threshold come from that first pass, whatever the protocol; those that need
one (components, open-set mIoU) take it from the first pass and read the scores again from disk, so memory does not grow
with the number of frames. Thresholds chosen on test labels, as benchmarks do, are reported as such: they compare
methods and are of no use on new images. Which frames there are is settled in `catalog_sets` and `pairs`.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from geood.atomic import output_errors
from geood.catalog import DataSet, Split
from geood.constants import IGNORE
from geood.datasets import Decoded, Frame, decode, distance_of, has_distance
from geood.errors import ConfigError, DataError, OutputError
from geood.evaluation.class_mapping import ClassMapping, data_settings
from geood.evaluation.pictures import draw_frame
from geood.evaluation.results import SetEvaluation, write_figures
from geood.evaluation.score_files import ScoreFiles, Scores
from geood.evaluation.tile_scores import ScoredFrame, for_scoring, frame_readings, score_frame
from geood.geo.scene import Scene
from geood.geo.scene_reading import AUTOMATIC, PartOptions, ReadingOptions, SceneReading, of_whole_images
from geood.metrics import (
    PROTOCOLS,
    ComponentScores,
    Confusion,
    DistanceCurves,
    OpenSetConfusion,
    PixelCurve,
    PixelProtocol,
    mean_of_known,
    protocol_named,
)
from geood.models import ModelBundle
from geood.progress import Progress

log = logging.getLogger("geood")
GIVEN = "scores"  # the kind of scores from files, in tables
SCORES, CLASSES = "scores", "classes"  # folders of what is kept of each frame
DRAWN = 3  # worst images drawn, and as many of the best


class Subject(NamedTuple):
    """Subject of a measurement: a bundle or a folder of score files, and how images and labels are read for it.

    `hold_out` names classes that count as anomalies, `label_ids` maps numbers in label files to others.
    """

    bundle: ModelBundle | None
    scores: Path | None
    options: ReadingOptions
    hold_out: list[str]
    label_ids: dict[int, int]

    @classmethod
    def of(
        cls,
        bundle: ModelBundle | None,
        scores: Path | None,
        *,
        settings: Sequence[str],
        options: ReadingOptions | PartOptions,
    ) -> Self:
        """Return the subject of these options of a verb, the bundle with its settings.

        Raises:
            ConfigError: a setting is invalid or of no use, or neither or both of bundle and scores are given.
        """
        if (bundle is None) == (scores is None):
            raise ConfigError("give a model or --scores with a folder of score files, one of the two")
        options = of_whole_images(options)
        hold_out, label_ids, rest = data_settings(settings)
        if bundle:
            bundle = bundle.with_settings(rest)
        elif options != AUTOMATIC:
            raise ConfigError(
                "scores from files are not read from images; --bands, --nodata and --no-resample are for a model"
            )
        elif rest:
            raise ConfigError(
                f"--set {rest[0]}: scores from files have no settings; only data.hold_out and data.label_ids"
            )
        return cls(bundle, scores, options, hold_out, label_ids)


class _Job(NamedTuple):
    """Inputs of both passes."""

    mapping: ClassMapping
    bundle: ModelBundle | None
    own: str
    label_ids: dict[int, int]
    folder: Path
    readings: Mapping[str, SceneReading]
    options: ReadingOptions


@dataclass
class _Pass:
    """Accumulators of the first pass."""

    protocols: dict[str, PixelProtocol]
    pooled: PixelCurve
    confusion: Confusion | None
    unknown: Counter[str]
    images: list[dict[str, Any]]
    skipped: list[str]
    groups: dict[str, PixelCurve] = field(default_factory=dict)  # one per folder of a crossed set, else one
    distances: DistanceCurves = field(default_factory=DistanceCurves)


def measure(
    subject: Subject, frames: list[Frame], mapping: ClassMapping, *, data_set: DataSet, split: Split, out: Path | None
) -> SetEvaluation:
    """Measure a bundle, or score files, on frames by the protocol of their data set.

    Args:
        subject: what is measured, and how images and labels are read for it.
        frames: labelled frames with distinct names.
        mapping: what each class id of the labels is as truth and as a channel of the bundle.
        data_set: names, protocol and least component sizes.
        split: names, and the number of images that are expected.
        out: an empty folder for figures, pictures, and the scores (float16) and classes of each image; None: nothing
            is written.

    Raises:
        DataError: an image, labels or scores cannot be used.
    """
    bundle, label_ids = subject.bundle, subject.label_ids
    files = ScoreFiles(subject.scores, frames) if subject.scores else None
    readings = frame_readings(frames, bundle, subject.options) if bundle else {}
    kinds = bundle.scores if bundle else (GIVEN,)
    own = bundle.config.score.kind if bundle else GIVEN
    with _scratch(out) as folder, for_scoring(bundle) as ready:
        job = _Job(mapping, bundle, own, label_ids, folder, readings, subject.options)
        counted = _Pass(
            {kind: protocol_named(data_set.protocol, crossed=data_set.crossed) for kind in kinds},
            PixelCurve(),
            Confusion(len(bundle.class_ids)) if bundle and (mapping.channel != IGNORE).any() else None,
            Counter(),
            [],
            [],
        )
        with Progress("evaluating", len(frames)) as progress:
            for frame in frames:
                decoded = _decoded(frame, job)
                if ready:
                    scored = score_frame(ready, decoded, kinds=kinds, scale=readings[frame.name].scale)
                else:
                    assert files is not None
                    scored = ScoredFrame({GIVEN: files.read(frame, decoded.ids.shape)}, None)
                _count(frame, decoded, scored, job=job, counted=counted)
                _save(folder, frame, scored, own)
                progress.advance()
        if files and (lost := files.lost_in_rounding()):
            log.warning("%s: %s", subject.scores, lost)
        result = _evaluation(data_set, split, counted, job=job, source=str(subject.scores or ""))
        result, threshold = _with_thresholds(result, frames, job=job, counted=counted)
        if out:
            write_figures(result, out)
            for stem, frame in _extremes(result, frames):
                _draw(out / "pictures" / f"{stem}.png", frame, job=job, threshold=threshold, rows=result.images)
    return result


def _shown_bands(frame: Frame) -> tuple[int, ...]:
    """Return the indexes of three bands to display, or of one if there are fewer."""
    with Scene.open(frame.base or frame.image) as scene:
        return scene.band_indexes[:3] if scene.count >= 3 else scene.band_indexes[:1]


def _decoded(frame: Frame, job: _Job) -> Decoded:
    """Decode the bands that the bundle takes; for scores from files one band, which tells the validity."""
    if job.bundle is None:
        return decode(frame, indexes=(1,), label_ids=job.label_ids)
    reading, nodata = job.readings[frame.name], job.options.nodata_for(job.bundle.bands)
    return decode(frame, indexes=reading.indexes, nodata=nodata, measured=reading.measured, label_ids=job.label_ids)


def _count(frame: Frame, decoded: Decoded, scored: ScoredFrame, *, job: _Job, counted: _Pass) -> None:
    """Add the pixels of one frame to the accumulators."""
    truth = job.mapping.truth[decoded.ids]
    counted.unknown.update(decoded.unknown)
    if (truth == IGNORE).all():
        counted.skipped.append(frame.name)
    here = PixelCurve()
    try:
        here.update(scored.scores[job.own], truth)
        for kind, score in scored.scores.items():
            counted.protocols[kind].update(score, truth)
    except ValueError as error:
        raise DataError(f"{frame.name}: its scores cannot be used ({error}); score this image again") from None
    counted.pooled += here
    group = counted.groups.setdefault(_group(frame), PixelCurve())
    group += here
    if frame.data_set and frame.data_set.stereo and has_distance(frame):
        counted.distances.update(scored.scores[job.own], truth, distance_m=distance_of(frame))
    if counted.confusion is not None and scored.classes is not None:
        counted.confusion.update(scored.classes, job.mapping.channel[decoded.ids])
    curve = here.curve
    counted.images.append(
        {
            "image": frame.name,
            "pixels": here.positives + here.negatives,
            "anomaly_pixels": here.positives,
            "average_precision": curve.average_precision,
            "fpr95": curve.fpr_at(),
            "auroc": curve.auroc,
        }
    )


def _evaluation(data_set: DataSet, split: Split, counted: _Pass, *, job: _Job, source: str) -> SetEvaluation:
    """Return the figures of the first pass."""
    if counted.skipped:
        first = ", ".join(counted.skipped[:3])
        log.warning("void in every pixel, which counts for nothing: %d of the images, %s", len(counted.skipped), first)
    if not counted.pooled.positives:
        log.warning("%s, split %s: no anomaly pixel: AP, AUROC and FPR95 are undefined", data_set.name, split.name)
    bundle, rows = job.bundle, []
    for kind, protocol in counted.protocols.items():
        row: dict[str, Any] = {"score": kind}
        if bundle:
            row["temperature"] = bundle.config.score.temperature_of(kind)
        rows.append(row | protocol.figures())
    shared, names = job.mapping.shared, bundle.class_names if bundle else {}
    iou = counted.confusion.iou if counted.confusion else np.full(len(names), np.nan)
    return SetEvaluation(
        data_set=data_set,
        split=split,
        source=bundle.identity if bundle else source,
        own=job.own,
        rows=rows,
        pixels=counted.pooled.positives + counted.pooled.negatives,
        anomaly_pixels=counted.pooled.positives,
        miou=mean_of_known(iou[shared]),
        class_iou={names[i]: float(iou[i]) for i in shared} if counted.confusion else {},
        images=counted.images,
        left_out=job.mapping.left_out,
        leaked=job.mapping.leaked,
        skipped=counted.skipped,
        unknown=dict(counted.unknown.most_common()),
        distances=counted.distances.figures() if counted.distances.images else [],
    )


def _with_thresholds(
    result: SetEvaluation, frames: list[Frame], *, job: _Job, counted: _Pass
) -> tuple[SetEvaluation, float]:
    """Return the evaluation with what needs a threshold: components at the best F1, open set at 95 % recall.

    Beside it the threshold of the best F1; NaN if there are no anomaly or no inlier pixels.
    """
    data_set, pooled, groups = result.data_set, counted.pooled, counted.groups
    sizes = data_set.components or PROTOCOLS[data_set.protocol].components_px
    if not pooled.positives or not pooled.negatives:
        return result, math.nan
    [own] = [row for row in result.rows if row["score"] == result.own]
    best = float(own.get("best_f1_threshold", pooled.best_f1_threshold))
    components = ComponentScores(*sizes) if sizes else None
    opened = _open_sets(groups, job.bundle, data_set.protocol) if job.bundle and counted.confusion else {}
    with Progress("components and open set", len(frames)) as progress:
        for frame in frames if components or opened else ():
            ids = _decoded(frame, job).ids
            truth = job.mapping.truth[ids]
            score: Scores = np.load(_kept(job.folder, frame, SCORES))
            if components is not None:
                components.update(score, truth, threshold=best)
            if opened:
                classes = np.load(_kept(job.folder, frame, CLASSES))
                opened[_group(frame)].update(classes, score, mask=job.mapping.channel[ids], truth=truth)
            progress.advance()
    found = {} if components is None else components.figures() | {"threshold": best}
    open_set = _mean_open_set(opened, frames, job.mapping.shared) if opened else {}
    return replace(result, components=found, open_set=open_set), best


def _group(frame: Frame) -> str:
    """Return the folder of a frame, which has a threshold of its own in a crossed set; else an empty string."""
    return frame.image.parent.name if frame.data_set and frame.data_set.crossed else ""


def _open_sets(groups: dict[str, PixelCurve], bundle: ModelBundle, protocol: str) -> dict[str, OpenSetConfusion]:
    """Return an accumulator for each group, with the threshold of the other groups, or its own if there are none."""
    opened = {}
    for name, own in groups.items():
        others = PixelCurve()
        for other, curve in groups.items():
            if other != name:
                others += curve
        pooled = others if others.positives else own
        cut = PROTOCOLS[protocol].recall_threshold(pooled.curve)
        opened[name] = OpenSetConfusion(len(bundle.class_ids), cut)
    return opened


def _mean_open_set(
    opened: dict[str, OpenSetConfusion], frames: list[Frame], shared: NDArray[np.intp]
) -> dict[str, float]:
    """Return the mean figures of all groups, weighted by their numbers of frames, over the classes of the set."""
    weights = [sum(_group(frame) == name for frame in frames) for name in opened]
    each = []
    for confusion in opened.values():
        open_miou, closed = mean_of_known(confusion.iou[shared]), mean_of_known(confusion.closed.iou[shared])
        row = {"open_miou": open_miou, "anomaly_iou": confusion.anomaly_iou, "gap": closed - open_miou}
        each.append(row | {"threshold": confusion.threshold})
    return {key: float(np.average([row[key] for row in each], weights=weights)) for key in each[0]}


def _extremes(result: SetEvaluation, frames: list[Frame]) -> list[tuple[str, Frame]]:
    """Return the images of lowest and highest average precision, or the first if none has one, with file names."""
    by_name = {frame.name: frame for frame in frames}
    known = [row for row in result.images if not math.isnan(row["average_precision"])]
    if not known:
        return [(f"image_{i}_{Path(frame.name).name}", frame) for i, frame in enumerate(frames[: 2 * DRAWN], 1)]
    ranked = [row["image"] for row in sorted(known, key=lambda row: row["average_precision"])]
    worst, best = ranked[:DRAWN], ranked[max(DRAWN, len(ranked) - DRAWN) :][::-1]
    named = [(f"worst_{i}", name) for i, name in enumerate(worst, 1)]
    named += [(f"best_{i}", name) for i, name in enumerate(best, 1)]
    return [(f"{stem}_{Path(name).name}", by_name[name]) for stem, name in named]


def _draw(out: Path, frame: Frame, *, job: _Job, threshold: float, rows: list[dict[str, Any]]) -> None:
    """Draw a picture of a frame: image, classes, scores, pixels above the threshold."""
    out.parent.mkdir(parents=True, exist_ok=True)
    shown = decode(frame, indexes=_shown_bands(frame), label_ids=job.label_ids)
    photo = np.where(shown.valid, shown.image, 0).astype(np.float32).transpose(1, 2, 0)
    photo = np.repeat(photo, 3, axis=2) if photo.shape[2] == 1 else photo
    white = 255 if shown.image.dtype == np.uint8 else max(float(np.percentile(photo, 99)), 1e-9)
    classes = (np.load(_kept(job.folder, frame, CLASSES)), job.bundle.class_names) if job.bundle else None
    score: Scores = np.load(_kept(job.folder, frame, SCORES))
    [row] = [row for row in rows if row["image"] == frame.name]
    figures = {"AP": row["average_precision"], "FPR95": row["fpr95"]}
    listed = "   ".join(f"{name} {100 * value:.1f} %" for name, value in figures.items() if math.isfinite(value))
    draw_frame(
        out,
        np.clip(photo / np.float32(white), 0, 1),
        score=score,
        truth=job.mapping.truth[shown.ids],
        classes=classes,
        threshold=threshold if math.isfinite(threshold) else float(np.nanmax(score)),
        title=f"{frame.name}    {listed}",
    )


@contextmanager
def _scratch(out: Path | None) -> Iterator[Path]:
    """Yield the folder that holds scores and classes between the two passes."""
    if out is not None:
        with output_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="geood-scores-") as folder:
        yield Path(folder)


def _kept(folder: Path, frame: Frame, what: str) -> Path:
    """Return the file of a frame's scores or classes: in a folder for each, so that no two frames share a file."""
    return folder / what / f"{frame.name}.npy"


def _save(folder: Path, frame: Frame, scored: ScoredFrame, own: str) -> None:
    """Write a frame's default score and classes as `.npy`.

    Raises:
        OutputError: the disk is full.
    """
    maps: dict[str, NDArray[Any]] = {SCORES: scored.scores[own].astype(np.float16)}
    if scored.classes is not None:
        maps[CLASSES] = scored.classes
    try:
        for what, pixels in maps.items():
            path = _kept(folder, frame, what)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, pixels)
    except OSError as error:
        raise OutputError(f"{folder}: scores cannot be kept there ({error}); free space, or choose --out") from None
