"""A bundle, or the score files of any other tool, measured on a data set of the catalog by that benchmark's protocol.

Frames are scored once. Figures that need no threshold follow from that pass, whatever protocol; those that need one
(components, open-set mIoU) take it from the first pass and read the scores again from disk, so memory does not grow
with the number of frames. Thresholds found on test labels, as benchmarks do, are called by that name: they compare
methods and are of no use on new images. Classes of a bundle and of a data set are the same where their names are.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from geood.bundle import ModelBundle, temperature_of
from geood.catalog import DataSet, Split
from geood.component_metrics import ComponentScores
from geood.config import IGNORE
from geood.datasets.frames import Decoded, decode, screened
from geood.datasets.layout import Frame, find_frames
from geood.errors import ConfigError, DataError, OutputError
from geood.metrics import ANOMALY, INLIER, Confusion, OpenSetConfusion, PixelCurve
from geood.progress import Progress
from geood.protocols import PixelProtocol, protocol_named
from geood.raster import Scene
from geood.report import draw_frame
from geood.scoreboard import SetEvaluation, write_figures
from geood.scored import ScoredFrame, ScoreFiles, Scores, on_best_device, score_frame

log = logging.getLogger("geood")
GIVEN = "scores"  # what scores from files are called in tables
OUTPUTS = {"metrics.json", "images.csv", "scores", "pictures"}
DRAWN = 3  # images drawn of the worst, and of the best


@dataclass(frozen=True)
class Meaning:
    """What the class ids of a data set are to a bundle; both tables take ids of one byte.

    `truth` is 0, 1 or 255, `channel` the bundle's channel or 255. `left_out` are classes that the bundle never learned
    and nobody calls anomalies.
    """

    truth: NDArray[np.uint8]
    channel: NDArray[np.uint8]
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, data_set: DataSet, bundle: ModelBundle | None, hold_out: Sequence[str] = ()) -> Meaning:
        """The meaning of a set's classes, matched with those of a bundle by name; without one, all are inliers.

        Raises:
            ConfigError: `hold_out` names no class of the set.
            DataError: the bundle learned none of the set's classes.
        """
        classes = data_set.taxonomy.classes
        strange = sorted(set(hold_out) - set(classes.values()))
        if strange:
            raise ConfigError(
                f"data.hold_out: {strange[0]} is no class of {data_set.name}: {', '.join(classes.values())}"
            )
        channels = {name: i for i, name in bundle.class_names.items()} if bundle else {}
        held = {*hold_out, *data_set.held_out, *_held_by(data_set, bundle)}
        truth, channel = np.full(256, IGNORE, np.uint8), np.full(256, IGNORE, np.uint8)
        left_out = []
        for class_id, name in classes.items():
            if class_id in data_set.taxonomy.anomalies or name in held:
                truth[class_id] = ANOMALY
            elif bundle is None or data_set.taxonomy.name == "anomaly":
                truth[class_id] = INLIER
            elif name in channels:
                truth[class_id], channel[class_id] = INLIER, channels[name]
            else:
                left_out.append(name)
        if not (truth == INLIER).any():
            raise DataError(
                f"{data_set.name} and this model share no class: {', '.join(classes.values())} against "
                f"{', '.join(channels)}; classes are matched by name"
            )
        return cls(truth, channel, tuple(left_out))


def _held_by(data_set: DataSet, bundle: ModelBundle | None) -> list[str]:
    """Names of the classes that a bundle's training held out, where it numbers its classes as the set does."""
    if bundle is None:
        return []
    data, classes = bundle.config.data, data_set.taxonomy.classes
    if any(classes.get(class_id) != name for class_id, name in data.classes.items()):
        return [name for name in data.hold_out if name in classes.values()]
    return [classes[class_id] for class_id in data.anomaly if class_id in classes]


@dataclass
class _Pass:
    """What the first pass counts."""

    protocols: dict[str, PixelProtocol]
    pooled: PixelCurve
    confusion: Confusion | None
    unknown: Counter[str]
    images: list[dict[str, Any]]
    skipped: list[str]


def evaluate_set(
    data_set: DataSet,
    root: Path,
    *,
    bundle: ModelBundle | None = None,
    scores: Path | None = None,
    split: str | None = None,
    settings: Sequence[str] = (),
    out: Path | None = None,
) -> SetEvaluation:
    """Measure a bundle, or score files, on a split of a data set.

    Args:
        data_set: an entry of the catalog.
        root: the folder that holds it.
        bundle: the model; None: `scores` are measured.
        scores: a folder of score files, one for each image, higher is more anomalous.
        split: the split to measure on; None: the set's last.
        settings: `data.hold_out=[...]`, `data.label_ids={...}` and, for a bundle, `score.KEY=` and `predict.KEY=`.
        out: an empty folder for `metrics.json`, `images.csv`, pictures of the worst and best images, and the scores
            (float16) and classes of each image as `.npy`; None: nothing is left.

    Raises:
        ConfigError: a setting is none, or neither or both of bundle and scores are given.
        DataError: files are missing or cannot be used, scores are not finite, or bundle and set share no class.
    """
    if (bundle is None) == (scores is None):
        raise ConfigError("give a model or --scores with a folder of score files, one of the two")
    hold_out, label_ids, rest = _data_settings(settings)
    if bundle:
        bundle = bundle.with_settings(rest)
    elif rest:
        raise ConfigError(f"--set {rest[0]}: scores from files have no settings; only data.hold_out and data.label_ids")
    meaning = Meaning.of(data_set, bundle, hold_out)
    chosen = data_set.split(split) if split else data_set.evaluated
    frames = _frames(data_set, root, split=chosen, meaning=meaning, label_ids=label_ids)
    files = ScoreFiles(scores, frames) if scores else None
    kinds = bundle.scores if bundle else (GIVEN,)
    own = bundle.config.score.kind if bundle else GIVEN
    with _scratch(out) as folder, on_best_device(bundle) as device:
        counted = _Pass(
            {kind: _protocol(data_set) for kind in kinds},
            PixelCurve(),
            Confusion(len(bundle.class_ids)) if bundle and (meaning.channel != IGNORE).any() else None,
            Counter(),
            [],
            [],
        )
        with Progress("evaluating", len(frames)) as progress:
            for frame in frames:
                decoded = decode(frame, indexes=_indexes(bundle), nodata=_nodata(bundle), label_ids=label_ids)
                if bundle:
                    scored = score_frame(bundle, decoded, kinds=kinds, device=device)
                else:
                    assert files is not None
                    scored = ScoredFrame({GIVEN: files.read(frame, decoded.ids.shape)}, None)
                _count(frame, decoded, scored, meaning, own=own, counted=counted)
                _save(folder / frame.name, scored, own)
                progress.advance()
        result = _evaluation(data_set, chosen, counted, own=own, bundle=bundle, source=str(scores or ""))
        result.left_out = meaning.left_out
        threshold = _second_pass(result, frames, meaning, label_ids=label_ids, pooled=counted.pooled, folder=folder)
        if out:
            write_figures(result, out)
            extremes = _extremes(result, frames)
            for title, frame in extremes:
                path = out / "pictures" / f"{title}_{Path(frame.name).name}.png"
                _draw(path, frame, meaning, bundle=bundle, folder=folder, threshold=threshold)
    return result


def _protocol(data_set: DataSet) -> PixelProtocol:
    """An empty accumulator of the set's protocol."""
    options = {"per_image": True} if data_set.protocol == "densehybrid" else {}  # as for StreetHazards
    return protocol_named(data_set.protocol, **options)


def _data_settings(settings: Sequence[str]) -> tuple[list[str], dict[int, int], list[str]]:
    """`data.hold_out` and `data.label_ids` of settings, and the settings of other sections."""
    found: dict[str, Any] = {"hold_out": [], "label_ids": {}}
    rest = []
    for setting in settings:
        key, _, text = setting.partition("=")
        section, _, name = key.partition(".")
        if section != "data":
            rest.append(setting)
        elif name not in found:
            raise ConfigError(f"--set {setting}: of data only hold_out and label_ids can be set for a named data set")
        else:
            found[name] = yaml.safe_load(text)
    try:
        hold_out = TypeAdapter(list[str]).validate_python(found["hold_out"], strict=True)
        return hold_out, TypeAdapter(dict[int, int]).validate_python(found["label_ids"], strict=True), rest
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(
            f"--set data: got {fault['input']!r}; {fault['msg'].lower()}; for example data.hold_out=[car] or "
            "'data.label_ids={2: 255}'"
        ) from None


def _frames(data_set: DataSet, root: Path, *, split: Split, meaning: Meaning, label_ids: dict[int, int]) -> list[Frame]:
    """The labelled frames of a split, those without labels named in the log."""
    found = find_frames(data_set, root, split)
    bare = [frame.name for frame in found.frames if frame.labels is None]
    found.frames = [frame for frame in found.frames if frame.labels]
    if not found.frames:
        raise DataError(f"{root}: no image of {data_set.name}, split {split.name}, has labels ({found.layout.labels})")
    if bare:
        log.warning("%s: %d images have no labels and are left out, %s first", root, len(bare), bare[0])
    if found.without_image and not (split.ids or split.listed):
        first = found.without_image[0]
        log.warning("%s: %d label files have no image, %s first", root, len(found.without_image), first)
    anomalies = {int(i) for i in np.flatnonzero(meaning.truth == ANOMALY)}
    return screened(found, anomalies, holds=split.holds, label_ids=label_ids)


def _shown_bands(frame: Frame) -> tuple[int, ...]:
    """Three bands to look at, or the one there is."""
    with Scene.open(frame.base or frame.image) as scene:
        return scene.band_indexes[:3] if scene.count >= 3 else scene.band_indexes[:1]


def _indexes(bundle: ModelBundle | None) -> tuple[int, ...]:
    return bundle.bands.indexes if bundle else (1,)


def _nodata(bundle: ModelBundle | None) -> float | None:
    return bundle.bands.nodata if bundle else None


def _count(frame: Frame, decoded: Decoded, scored: ScoredFrame, meaning: Meaning, *, own: str, counted: _Pass) -> None:
    """Count the pixels of one frame."""
    truth = meaning.truth[decoded.ids]
    counted.unknown.update(decoded.unknown)
    if (truth == IGNORE).all():
        counted.skipped.append(frame.name)
    here = PixelCurve()
    try:
        here.update(scored.scores[own], truth)
        for kind, score in scored.scores.items():
            counted.protocols[kind].update(score, truth)
    except ValueError as error:
        raise DataError(f"{frame.name}: its scores cannot be used ({error}); score this image again") from None
    counted.pooled += here
    if counted.confusion is not None and scored.classes is not None:
        counted.confusion.update(scored.classes, meaning.channel[decoded.ids])
    counted.images.append(
        {
            "image": frame.name,
            "pixels": here.positives + here.negatives,
            "anomaly_pixels": here.positives,
            "average_precision": here.average_precision,
            "fpr95": here.fpr95,
            "auroc": here.auroc,
        }
    )


def _evaluation(
    data_set: DataSet, split: Split, counted: _Pass, *, own: str, bundle: ModelBundle | None, source: str
) -> SetEvaluation:
    """The figures of the first pass."""
    if counted.skipped:
        first = ", ".join(counted.skipped[:3])
        log.warning("%d images are void in every pixel and count for nothing: %s", len(counted.skipped), first)
    if not counted.pooled.positives:
        log.warning("%s, split %s: no anomaly pixel: AP, AUROC and FPR95 are undefined", data_set.name, split.name)
    rows = []
    for kind, protocol in counted.protocols.items():
        row: dict[str, Any] = {"score": kind}
        if bundle:
            row["temperature"] = temperature_of(kind, bundle.config.score)
        rows.append(row | protocol.figures())
    confusion = counted.confusion
    names = bundle.class_names if bundle else {}
    return SetEvaluation(
        data_set=data_set,
        split=split,
        source=bundle.identity if bundle else source,
        own=own,
        rows=rows,
        pixels=counted.pooled.positives + counted.pooled.negatives,
        anomaly_pixels=counted.pooled.positives,
        miou=confusion.miou if confusion else math.nan,
        class_iou={names[i]: float(iou) for i, iou in enumerate(confusion.iou)} if confusion else {},
        images=counted.images,
        skipped=counted.skipped,
        unknown=dict(counted.unknown.most_common()),
    )


def _second_pass(
    result: SetEvaluation,
    frames: list[Frame],
    meaning: Meaning,
    *,
    label_ids: dict[int, int],
    pooled: PixelCurve,
    folder: Path,
) -> float:
    """Figures that need a threshold: components at that of the best F1, which is returned, open set at 95 % recall."""
    sizes = result.data_set.components
    if not pooled.positives or not pooled.negatives:
        return math.nan
    [own] = [row for row in result.rows if row["score"] == result.own]
    best = float(own.get("best_f1_threshold", pooled.best_f1_threshold))
    components = ComponentScores(*sizes) if sizes else None
    opened = OpenSetConfusion(len(result.class_iou), _recall_threshold(pooled)) if result.class_iou else None
    with Progress("components and open set", len(frames)) as progress:
        for frame in frames if components or opened else ():
            ids = decode(frame, indexes=(1,), label_ids=label_ids).ids
            truth = meaning.truth[ids]
            score: Scores = np.load(folder / f"{frame.name}.npy")
            if components is not None:
                components.update(score, truth, threshold=best)
            if opened is not None:
                classes = np.load(folder / f"{frame.name}.classes.npy")
                opened.update(classes, score, mask=meaning.channel[ids], truth=truth)
            progress.advance()
    if components is not None:
        result.components = components.figures() | {"threshold": best}
    if opened is not None:
        result.open_set = {
            "open_miou": opened.open_miou,
            "anomaly_iou": opened.anomaly_iou,
            "gap": opened.gap,
            "threshold": opened.threshold,
        }
    return best


def _recall_threshold(pooled: PixelCurve) -> float:
    """The highest threshold with 95 % of the anomalies strictly above it, a float16 number."""
    curve = pooled.curve
    first = int(np.argmax(curve.hits * 20 >= curve.positives * 19))  # in integers: 0.95 is not a binary fraction
    return float(np.nextafter(np.float16(curve.scores[first]), np.float16(-np.inf)))


def _extremes(result: SetEvaluation, frames: list[Frame]) -> list[tuple[str, Frame]]:
    """The images with the lowest and the highest average precision, or some if none has one, with what to call them."""
    by_name = {frame.name: frame for frame in frames}
    known = [row for row in result.images if not math.isnan(row["average_precision"])]
    if not known:
        return [(f"image_{i}", frame) for i, frame in enumerate(frames[: 2 * DRAWN], 1)]
    ranked = [by_name[row["image"]] for row in sorted(known, key=lambda row: row["average_precision"])]
    worst, best = ranked[:DRAWN], ranked[max(DRAWN, len(ranked) - DRAWN) :][::-1]
    return [(f"worst_{i}", f) for i, f in enumerate(worst, 1)] + [(f"best_{i}", f) for i, f in enumerate(best, 1)]


def _draw(
    out: Path, frame: Frame, meaning: Meaning, *, bundle: ModelBundle | None, folder: Path, threshold: float
) -> None:
    """One picture of a frame: image, classes, score, what was found."""
    out.parent.mkdir(parents=True, exist_ok=True)
    shown = decode(frame, indexes=_shown_bands(frame))
    photo = shown.image.astype(np.float32).transpose(1, 2, 0)
    photo = np.repeat(photo, 3, axis=2) if photo.shape[2] == 1 else photo
    classes = (np.load(folder / f"{frame.name}.classes.npy"), bundle.class_names) if bundle else None
    score: Scores = np.load(folder / f"{frame.name}.npy")
    cut = threshold if math.isfinite(threshold) else float(np.nanmax(score))
    truth = meaning.truth[shown.ids]
    draw_frame(
        out,
        photo / np.float32(255),
        score=score,
        truth=truth,
        classes=classes,
        threshold=cut,
        title=f"{out.stem}    {frame.name}",
    )


@contextmanager
def staged(out: Path | None, *, overwrite: bool = False) -> Iterator[Path | None]:
    """A hidden folder beside `out` that takes its place once all is in it; None for None.

    Raises:
        OutputError: `out` exists, and is not to be replaced or holds other files than an evaluation's; or the folder
            cannot be made.
    """
    if out is None:
        yield None
        return
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; add --overwrite to replace it, or choose another name")
    if out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= OUTPUTS):
        raise OutputError(f"{out}: holds other things than an evaluation, and is left alone; choose another --out")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(partial, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}); free space, or choose another --out") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _scratch(out: Path | None) -> Iterator[Path]:
    """The folder in which scores lie between the two passes."""
    if out is not None:
        (out / "scores").mkdir(parents=True, exist_ok=True)
        yield out / "scores"
        return
    with tempfile.TemporaryDirectory(prefix="geood-scores-") as folder:
        yield Path(folder)


def _save(stem: Path, scored: ScoredFrame, own: str) -> None:
    """Leave a frame's own score and classes as `.npy`.

    Raises:
        OutputError: the disk is full.
    """
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        np.save(stem.with_name(stem.name + ".npy"), scored.scores[own])
        if scored.classes is not None:
            np.save(stem.with_name(stem.name + ".classes.npy"), scored.classes)
    except OSError as error:
        raise OutputError(
            f"{stem.parent}: scores cannot be kept there ({error}); free space, or choose --out"
        ) from None
