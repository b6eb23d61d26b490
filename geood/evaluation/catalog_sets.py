"""Evaluation of a bundle, or of another tool's score files, on a data set of the catalog by its benchmark's protocol.

The frames of a split are found and screened here, as its authors define it; `measurement` does the rest. Classes of a
bundle and of a data set are matched by name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geood.catalog import DataSet, Split
from geood.constants import ANOMALY
from geood.datasets import Frame, drop_unlabelled, find_frames, screened
from geood.errors import counted
from geood.evaluation.class_mapping import ClassMapping
from geood.evaluation.measurement import Subject, measure
from geood.evaluation.results import SetEvaluation
from geood.geo.scene_reading import AUTOMATIC, PartOptions, ReadingOptions
from geood.models import AnyBundle, bundle_of

log = logging.getLogger("geood")


def evaluate_set(  # noqa: PLR0913 - the options of a verb
    data_set: DataSet,
    root: str | Path,
    *,
    bundle: AnyBundle | None = None,
    scores: Path | None = None,
    split: str | None = None,
    settings: Sequence[str] = (),
    options: ReadingOptions | PartOptions = AUTOMATIC,
    out: Path | None = None,
) -> SetEvaluation:
    """Measure a bundle, or score files, on a split of a data set.

    Args:
        data_set: an entry of the catalog.
        root: the folder that holds it.
        bundle: the bundle to measure (an object, its file or its run's folder); None: `scores` are measured.
        scores: a folder of score files, one for each image, higher is more anomalous.
        split: the split to measure on; None: the set's last.
        settings: `data.hold_out=[...]`, `data.label_ids={...}` and, for a bundle, `score.KEY=` and `predict.KEY=`.
        options: how the images are read for a bundle, as for `predict`.
        out: an empty folder for `metrics.json`, `images.csv`, pictures of the worst and best images, and the scores
            (float16) and classes of each image as `.npy`; None: nothing is written.

    Returns:
        The figures of the split.

    Raises:
        ConfigError: a setting is invalid, or neither or both of bundle and scores are given.
        DataError: files are missing or cannot be used, scores are not finite, or bundle and set share no class.

    Example:
        >>> import geood
        >>> from pathlib import Path
        >>> camvid, bundle = geood.data_set("camvid"), geood.ModelBundle.load("model.safetensors")
        >>> result = geood.evaluate_set(camvid, Path("CAMVID"), bundle=bundle)
        >>> result.split.name, sorted(row["score"] for row in result.rows)[:2]
        ('test', ['energy', 'entropy'])
    """
    subject = Subject.of(None if bundle is None else bundle_of(bundle), scores, settings=settings, options=options)
    mapping = ClassMapping.of(data_set, subject.bundle, subject.hold_out)
    chosen = data_set.split(split) if split else data_set.evaluated
    frames = _frames(data_set, Path(root), split=chosen, mapping=mapping, label_ids=subject.label_ids)
    return measure(subject, frames, mapping, data_set=data_set, split=chosen, out=out)


def _frames(
    data_set: DataSet, root: Path, *, split: Split, mapping: ClassMapping, label_ids: dict[int, int]
) -> list[Frame]:
    """Return the labelled frames of a split; log images without labels and labels without an image."""
    found = find_frames(data_set, root, split)
    bare = drop_unlabelled(found, data_set, root, split=split)
    if bare:
        log.warning("%s: no labels for %s, left out: %s first", root, counted(len(bare), "image"), bare[0].name)
    if found.without_image and not (split.ids or split.listed):
        first = found.without_image[0]
        log.warning("%s: no image for %s: %s first", root, counted(len(found.without_image), "label file"), first)
    if mapping.leaked:
        names = ", ".join(mapping.leaked)
        log.warning("%s: this model was trained on %s, which is an anomaly here", data_set.name, names)
    anomalies = {int(i) for i in np.flatnonzero(mapping.truth == ANOMALY)}
    frames = screened(found, anomalies, holds=split.holds, label_ids=label_ids)
    if split.count and len(frames) != split.count:
        log.warning(
            "%s: %s measured, where %s, split %s, has %d: figures do not compare with published ones",
            *(root, counted(len(frames), "image"), data_set.name, split.name, split.count),
        )
    return frames
