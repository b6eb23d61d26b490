"""Evaluation of a bundle on labelled scenes: every score that it supports, and closed-set IoU.

Scenes are read exactly as in prediction (bands by name, at the model's resolution, in the same tiles). All scores of a
tile come from one forward pass, so their figures differ by the score alone. Pixels are pooled over all scenes: every
anomaly id is positive, every learned class negative; all other ids and all invalid pixels are ignored. The bundle's
default score takes the bundle's temperature; the other baselines take 1, as in their papers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood.calibration import prediction_tiles, scored_tiles
from geood.config import folded, load_config
from geood.constants import ANOMALY, IGNORE, INLIER, VECTOR_SUFFIXES
from geood.datasets import find_files
from geood.errors import ConfigError, DataError, counted
from geood.evaluation.class_mapping import folder_settings
from geood.evaluation.objects import MOST_PX, ObjectFigures, SceneMaps
from geood.evaluation.results import Evaluation
from geood.evaluation.tile_scores import for_scoring
from geood.geo.grid import Tile
from geood.geo.labels.reading import mask_hint, open_labels, why_not_shared
from geood.geo.labels.rules import LabelRules, rules_of
from geood.geo.listing import files_in, pair_by_name, same_name, some_of, why_no_pairs
from geood.geo.orientation import UPRIGHT, orientation_of
from geood.geo.paths import gdal_name
from geood.geo.scene import Scene, SceneSource
from geood.geo.scene_reading import (
    AUTOMATIC,
    PartOptions,
    ReadingOptions,
    of_whole_images,
    said_together,
    settle_reading,
)
from geood.metrics import Confusion, PixelCurve
from geood.models import AnyBundle, ModelBundle, bundle_of
from geood.progress import Progress

log = logging.getLogger("geood")
RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".png")
MARK = "_labels"  # end of the name of a label file beside its scene


class _Case(NamedTuple):
    """One scene and its label files."""

    image: Path
    labels: list[Path]
    rules: LabelRules


class _Ids(NamedTuple):
    """Lookup tables (257,) from label ids to truth and class channel; index 256 is any id outside 0 to 255."""

    truth: NDArray[np.uint8]
    channel: NDArray[np.int64]

    @classmethod
    def of(cls, class_ids: Sequence[int], anomaly: Sequence[int]) -> _Ids:
        truth, channel = np.full(257, IGNORE, np.uint8), np.full(257, IGNORE, np.int64)
        truth[list(anomaly)], truth[list(class_ids)] = ANOMALY, INLIER
        channel[list(class_ids)] = np.arange(len(class_ids))
        return cls(truth, channel)

    def unknown(self, held: Counter[int]) -> dict[int, int]:
        """Return the pixels of each id that is neither a class nor an anomaly nor 255."""
        known = {int(i) for i in np.flatnonzero(self.truth != IGNORE)} | {IGNORE}
        return {i: pixels for i, pixels in sorted(held.items()) if i not in known}


class _Measured(NamedTuple):
    """Curves of one scene by kind of score, and its maps if they were kept."""

    curves: dict[str, PixelCurve]
    maps: SceneMaps | None


class _Labelled(NamedTuple):
    """Ground truth (h, w) and class channels (h, w) of one tile, IGNORE where unknown."""

    truth: NDArray[np.uint8]
    channel: NDArray[np.int64]


@dataclass
class _Counts:
    """Accumulators over all scenes: the class confusion, and the valid pixels of each label id, 255 included."""

    ids: _Ids
    confusion: Confusion
    held: Counter[int] = field(default_factory=Counter)


def evaluate_scenes(
    config_or_root: str | Path,
    bundle: AnyBundle,
    *,
    settings: Sequence[str] = (),
    options: ReadingOptions | PartOptions = AUTOMATIC,
    objects: bool = True,
    pictures: Path | None = None,
) -> Evaluation:
    """Measure a bundle on the test scenes of a config, or on a folder of scenes with labels.

    A config names `data.test_images`, `data.test_labels` and `data.anomaly`. Labels belong to the image whose name
    theirs begins with (`X.tif`, `X_gt.tif`); otherwise one file, or adjacent rasters, serve all images. In a folder the
    labels of `X.tif` are `X_labels.tif`, `labels/X.tif`, or for `images/X.tif` `labels/X.tif`; the anomaly ids are then
    those of the bundle's config, if none are set. Numbers in label files that mean other ids are mapped by
    `data.label_ids`.

    Args:
        config_or_root: a config file, or a folder.
        bundle: the bundle to measure: an object, its file, or the folder of its run.
        settings: `data.KEY=value` for the config, `score.KEY=value` and `predict.KEY=value` for the bundle; for
            a folder `data.label_ids={...}` and `data.anomaly=[...]` alone.
        options: how the scenes are read, as for `predict`.
        objects: count things found and false polygons too, which takes all scores of all scenes on a temporary disk.
        pictures: a folder for an overview of each scene; None: none are drawn. They come with the object figures.

    Returns:
        The figures of every score, pooled and by scene.

    Raises:
        ConfigError: the config does not fit the bundle or names no test scenes.
        DataError: scenes or labels are missing, unreadable, or do not fit the bundle.

    Example:
        >>> import geood
        >>> bundle = geood.ModelBundle.load("model.safetensors")
        >>> evaluation = geood.evaluate_scenes("labelled", bundle)
        >>> evaluation.score, list(evaluation.headline())
        ('jsd', ['AP', 'FPR95', 'AUROC', 'base rate', 'mIoU'])
    """
    path, bundle, options = Path(config_or_root), bundle_of(bundle), of_whole_images(options)
    if path.is_dir():
        label_ids, given = folder_settings(settings, class_ids=bundle.class_ids)
        anomaly = list(bundle.config.data.anomaly) if given is None else given
        cases = _pair_folder(path, LabelRules(label_ids=label_ids))
    else:
        bundle = bundle.with_settings([s for s in settings if not s.startswith("data.")])
        cases, anomaly = _read_cases(path, bundle, [s for s in settings if s.startswith("data.")])
    own = bundle.config.score
    curves = {kind: PixelCurve() for kind in bundle.scores}
    counts, scenes = _Counts(_Ids.of(bundle.class_ids, anomaly), Confusion(len(bundle.class_ids))), []
    sources, tiles, pixels = _settled(cases, bundle, options)
    found = ObjectFigures(bundle, pictures) if objects and _counted(pixels) else None
    with ExitStack() as stack:
        ready = stack.enter_context(for_scoring(bundle))
        assert ready is not None
        progress = stack.enter_context(Progress("evaluating", tiles))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="geood-"))) if found else None
        for number, (case, source) in enumerate(zip(cases, sources, strict=True)):
            maps = folder / str(number) if folder else None
            measured = _measure(case, source, ready, counts=counts, progress=progress, folder=maps)
            for kind, curve in measured.curves.items():
                curves[kind] += curve
            more = found.add(measured.maps) if found and measured.maps else {}
            scenes.append({"scene": str(case.image), **_figures(measured.curves[own.kind]), **more})
        rows, ranking, things = (found.rows(), found.ranking(), found.things()) if found else ([], {}, [])
    pooled = curves[own.kind]
    if not pooled.positives:
        said = "no anomaly pixel (ids %s) in the labels: AP, AUROC and FPR95 are undefined%s"
        strange = ",".join(map(str, counts.ids.unknown(counts.held)))
        named = f"; [{strange}] in them are of no class: --set data.anomaly=[{strange}] says what is to be found"
        log.warning(said, list(anomaly), mask_hint(counts.held) or (named if strange else ""))
    return Evaluation(
        model=bundle.identity,
        score=own.kind,
        rows=[
            {"score": kind, "temperature": bundle.config.score.temperature_of(kind), **_figures(curve, brief=True)}
            for kind, curve in curves.items()
        ],
        at_threshold=_at_threshold(bundle, pooled),
        pixels=pooled.positives + pooled.negatives,
        anomaly_pixels=pooled.positives,
        base_rate=pooled.base_rate,
        miou=counts.confusion.miou,
        class_iou={bundle.class_names[i]: float(iou) for i, iou in enumerate(counts.confusion.iou)},
        unknown_ids=counts.ids.unknown(counts.held),
        scenes=scenes,
        objects=rows,
        ranking=ranking,
        things=things,
        curve=[list(point) for point in pooled.curve.precision_recall()],
        confusion=counts.confusion.counts.tolist(),
    )


def _at_threshold(bundle: ModelBundle, pooled: PixelCurve) -> dict[str, float]:
    """Return rates at the bundle's default threshold, achieved and promised; empty if it has none."""
    if not bundle.thresholds:
        return {}
    record, rate = bundle.record, bundle.config.score.fpr
    interval = record.intervals.get(bundle.config.score.kind, {}).get(str(rate)) if record else None
    told = {} if record is None else {"promised": rate}
    told |= {} if interval is None else {"low": interval[0], "high": interval[1]}
    return {"threshold": bundle.threshold, **pooled.rates(bundle.threshold), **told}


def _measure(
    case: _Case,
    source: SceneSource,
    bundle: ModelBundle,
    *,
    counts: _Counts,
    progress: Progress,
    folder: Path | None,
) -> _Measured:
    """Score one scene tile by tile, add its pixels to `counts`, and return its curves; its maps too, in a `folder`."""
    curves, maps = {kind: PixelCurve() for kind in bundle.scores}, None
    with Scene.open(source) as scene, open_labels(case.labels, scene.grid, case.rules) as labels:

        def labelled(tile: Tile, valid: NDArray[np.bool_]) -> _Labelled | None:
            """Return the labels of a tile; None if there is nothing to measure."""
            ids = np.where(valid, labels.read(tile.write), IGNORE)
            counts.held.update(dict(zip(*(v.tolist() for v in np.unique(ids[valid], return_counts=True)), strict=True)))
            progress.advance()
            label = _Labelled(counts.ids.truth[_bounded(ids)], counts.ids.channel[_bounded(ids)])
            return None if (label.truth == IGNORE).all() else label

        if folder is not None:
            maps = SceneMaps(case.image.stem, case.image, scene.grid, folder, bundle.scores)
        tiles = prediction_tiles(scene.grid.height, scene.grid.width, source.scale, bundle)
        for tile, label, scored in scored_tiles(
            bundle, scene, tiles, labelled, kinds=bundle.scores, device=bundle.device
        ):
            if maps is not None:
                maps.add(tile, label.truth, scored.classes, scored.scores)
            counts.confusion.update(scored.classes, label.channel)
            for kind, curve in curves.items():
                _count(curve, scored.scores[kind], label.truth, source=case.image)
    return _Measured(curves, maps)


def _counted(pixels: int) -> bool:
    """Return whether things and polygons of so many pixels are counted; log it if not."""
    if pixels > MOST_PX:
        log.warning("%s Mpx of scenes: too many to count things and polygons in, so only pixels are", pixels // 10**6)
    return pixels <= MOST_PX


def _count(curve: PixelCurve, score: NDArray[np.float32], truth: NDArray[np.uint8], *, source: Path) -> None:
    try:
        curve.update(score, truth)
    except ValueError as error:
        raise DataError(
            f"{source}: the model cannot score it ({error}); the bundle is damaged, train it again"
        ) from None


def _figures(curve: PixelCurve, *, brief: bool = False) -> dict[str, Any]:
    figures = {"average_precision": curve.average_precision, "fpr95": curve.fpr95, "auroc": curve.auroc}
    if brief:
        return figures
    return {"pixels": curve.positives + curve.negatives, "anomaly_pixels": curve.positives, **figures}


def _settled(cases: list[_Case], bundle: ModelBundle, options: ReadingOptions) -> tuple[list[SceneSource], int, int]:
    """Open every scene and its labels once, so that a mismatch is found before the work begins.

    Returns:
        How each scene is read, as by `predict`, and the total numbers of tiles and of pixels.
    """
    sources, notes, total, pixels = [], {}, 0, 0
    for case in cases:
        name, nodata = gdal_name(case.image), options.nodata_for(bundle.bands)
        with Scene.open(name, nodata=nodata) as scene:
            reading = settle_reading(scene, bundle.bands, bundle.resolution, options, photo_width=bundle.photo_width)
            if not scene.grid.placed:
                notes[case.image.name] = reading.resolution_note
            if scene.grid.crs is None and orientation_of(case.image) != UPRIGHT:
                said = (
                    "%s: viewers show it turned, by its EXIF orientation; it is read as stored, as its labels must be"
                )
                log.warning(said, case.image)
            try:
                open_labels(case.labels, scene.grid, case.rules).close()
            except DataError as error:
                raise DataError(f"{case.image.name}: its labels do not fit; {error}") from None
            pixels += scene.grid.height * scene.grid.width
            total += sum(1 for _ in prediction_tiles(scene.grid.height, scene.grid.width, reading.scale, bundle))
        sources.append(reading.source(name, nodata))
    said_together(notes)
    return sources, total, pixels


def _read_cases(path: Path, bundle: ModelBundle, settings: Sequence[str]) -> tuple[list[_Case], list[int]]:
    """Return the test scenes of a config with their labels: paired by name if names match, else all labels for each.

    Raises:
        ConfigError: the config does not fit the bundle, or the pairing would be a guess.
    """
    data = load_config(path, settings).data
    if not data.test_images:
        raise ConfigError(
            f"{path}: data.test_images is empty; name the scenes to evaluate, and data.test_labels, there or by "
            "--set 'data.test_images=[\"kept.tif\"]' --set 'data.test_labels=[\"kept.gpkg\"]'"
        )
    if not data.classes:  # auto: those that the model was taught
        data = data.model_copy(update={"classes": {i: bundle.config.data.classes[i] for i in bundle.class_ids}})
    strange = sorted(set(data.classes) - set(bundle.class_ids))
    if strange:
        raise ConfigError(f"{path}: this model never learned the classes {strange}; drop them, or list them as anomaly")
    ids = {folded(name): i for i, name in bundle.config.data.classes.items() if i in bundle.class_ids}
    moved = [
        f"{name} is {i} here, {ids[folded(name)]} there"
        for i, name in data.classes.items()
        if ids.get(folded(name), i) != i
    ]
    if moved:
        raise ConfigError(
            f"{path}: this model numbers its classes otherwise ({'; '.join(moved)}); give its ids, or auto"
        )
    learned = sorted(set(data.anomaly) & set(bundle.class_ids))
    if learned:
        raise ConfigError(f"{path}: ids {learned} are under anomaly, but this model learned them as classes; drop them")
    root = Path(data.root)
    images = find_files(root, data.test_images, what="data.test_images")
    labels = find_files(root, data.test_labels, what="data.test_labels")
    chosen = pair_by_name(images, labels)
    if chosen is None:
        why = _why_not_all(images, labels)
        if why:
            name, alone = images[0].stem, why_no_pairs(images, labels)
            raise ConfigError(
                f"{path}: {counted(len(images), 'test image')} ({some_of(images)}) and "
                f"{counted(len(labels), 'label file')} ({some_of(labels)}) do not pair by name ({alone}), and not all "
                f"labels can serve every image: {why}; name the labels of {images[0].name} {name}_labels.tif or "
                f"{name}_*, or give one georeferenced file for all"
            )
        chosen = [labels] * len(images)
    rules = rules_of(data)
    cases = [_Case(i, files, rules) for i, files in zip(images, chosen, strict=True)]
    return cases, list(data.anomaly)


def _why_not_all(images: list[Path], labels: list[Path]) -> str | None:
    """Return the reason why labels that are not paired by name cannot serve every image; None if they can."""
    if len(labels) == 1 and (len(images) == 1 or labels[0].suffix.lower() in VECTOR_SUFFIXES):
        return None
    for image in images:
        with Scene.open(image) as scene:
            if scene.grid.crs is None:
                return f"{image.name} has no CRS"
    return why_not_shared(labels)


def _pair_folder(root: Path, rules: LabelRules) -> list[_Case]:
    """Return the scenes of a folder that have labels; log those without.

    Raises:
        DataError: there is no pair, or two files claim one place in a pair.
    """
    images = root / "images" if (root / "images").is_dir() else root
    scenes: dict[str, list[Path]] = {}
    labels: dict[str, list[Path]] = {}
    for path in _rasters(images):
        marked = path.stem.lower().endswith(MARK)
        stem = same_name(path.stem[: -len(MARK)] if marked else path.stem)
        (labels if marked else scenes).setdefault(stem, []).append(path)
    for path in _rasters(root / "labels"):
        labels.setdefault(same_name(path.stem), []).append(path)
    paired = [stem for stem in scenes if stem in labels]
    for stem in paired:
        for what, files in (("labels of one scene", labels[stem]), ("scenes with the same labels", scenes[stem])):
            if len(files) > 1:
                raise DataError(
                    f"{files[0]} and {files[1]}: {what}; move one of them away, or name the files in a config with "
                    "data.test_images and data.test_labels"
                )
    if not paired:
        raise DataError(
            f"{root}: {counted(len(scenes), 'scene')} and {counted(len(labels), 'label file')}, but no pair; name the "
            "labels of X.tif X_labels.tif or labels/X.tif, or give a config with data.test_images and data.test_labels"
        )
    bare = [path.name for stem, files in scenes.items() if stem not in labels for path in files]
    if bare:
        log.warning("%s: no labels for %s, left out: %s", root, counted(len(bare), "scene"), ", ".join(bare[:5]))
    return [_Case(scenes[stem][0], labels[stem], rules) for stem in paired]


def _rasters(folder: Path) -> list[Path]:
    return files_in(folder, RASTER_SUFFIXES) if folder.is_dir() else []


def _bounded(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where((ids >= 0) & (ids <= 255), ids, 256)
