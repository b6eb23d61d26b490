"""Evaluation on a plain folder of images and masks, by the protocol of any benchmark.

Copies of a benchmark that lost its official layout, and one's own images with masks of their anomalies, are such
folders. A mask is paired with an image by name and holds 0 for not anomalous, 1 for anomalous, 255 for not counted. The
frames are found here; `measurement` does the rest, as for the data sets of the catalog.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from geood.catalog import DataSet, mask_set
from geood.datasets import Frame, find_files
from geood.errors import ConfigError, DataError, counted
from geood.evaluation.class_mapping import ClassMapping
from geood.evaluation.measurement import Subject, measure
from geood.evaluation.results import SetEvaluation
from geood.geo.listing import partners, same_name, some_of, why_no_pairs
from geood.geo.scene_reading import AUTOMATIC, PartOptions, ReadingOptions
from geood.models import AnyBundle, bundle_of

log = logging.getLogger("geood")
MASKS = (".png", ".tif", ".tiff", ".bmp", ".webp")  # of a folder of masks
PHOTOS = (*MASKS, ".jpg", ".jpeg")
IMAGE_FOLDER = "images"
LABEL_FOLDERS = ("labels", "labels_masks")


def evaluate_pairs(  # noqa: PLR0913 - the options of a verb
    root: str | Path,
    *,
    protocol: str = "pooled",
    images: str | None = None,
    labels: str | None = None,
    bundle: AnyBundle | None = None,
    scores: Path | None = None,
    settings: Sequence[str] = (),
    options: ReadingOptions | PartOptions = AUTOMATIC,
    out: Path | None = None,
) -> SetEvaluation:
    """Measure a bundle, or score files, on a folder of images and masks.

    The stem of a mask is that of its image, optionally with a suffix after `_`, `-` or `.`. In masks 0 is not
    anomalous, 1 anomalous, and 255 is not counted; `data.label_ids` maps other numbers to these.

    Args:
        root: the folder.
        protocol: the benchmark whose metrics are computed, a name of `PROTOCOLS`.
        images: the images, a folder or a pattern below the root; None: `images`.
        labels: their masks; None: `labels` or `labels_masks`.
        bundle: the bundle to measure (an object, its file or its run's folder); None: `scores` are measured.
        scores: a folder of score files, one for each image, higher is more anomalous.
        settings: `data.label_ids={...}` and, for a bundle, `score.KEY=` and `predict.KEY=`.
        options: how the images are read for a bundle, as for `predict`.
        out: an empty folder for `metrics.json`, `images.csv`, pictures and scores, as `evaluate_set` writes them; None:
            nothing is written.

    Returns:
        The figures of all pairs.

    Raises:
        ConfigError: a setting is invalid, there is no such protocol, or neither or both of bundle and scores are given.
        DataError: files are missing, do not pair or cannot be used, or scores are not finite.

    Example:
        >>> import geood
        >>> from pathlib import Path
        >>> bundle = geood.ModelBundle.load("model.safetensors")
        >>> result = geood.evaluate_pairs(Path("PAIRS"), protocol="smiyc", bundle=bundle)
        >>> result.data_set.protocol, len(result.images), "mean_siou" in result.components
        ('smiyc', 2, True)
    """
    root = Path(root)
    data_set = mask_set(root.resolve().name or "pairs", protocol)
    subject = Subject.of(None if bundle is None else bundle_of(bundle), scores, settings=settings, options=options)
    if subject.hold_out:
        raise ConfigError("--set data.hold_out: the masks of pairs say what is an anomaly, by 1; leave it out")
    mapping = ClassMapping.of(data_set, subject.bundle)
    frames = _frames(data_set, root, images, labels)
    result = measure(subject, frames, mapping, data_set=data_set, split=data_set.evaluated, out=out)
    if not result.anomaly_pixels:
        said = "%s: masks hold 1 where there is an anomaly; if another number means that in these, say so with "
        log.warning(said + "--set 'data.label_ids={255: 1}'", root)
    return result


def _frames(data_set: DataSet, root: Path, images: str | None, labels: str | None) -> list[Frame]:
    """Find images and masks and pair them by name; log those without a partner.

    Raises:
        DataError: a folder is missing, no image has a mask, one has several, or two images have one name.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds images and masks")
    masks = find_files(root, [labels or _label_folder(root)], what="--labels", suffixes=MASKS)
    if images is None and not (root / IMAGE_FOLDER).is_dir():
        raise DataError(f"{root}: holds no folder {IMAGE_FOLDER}/; say where the images are with --images")
    found = find_files(root, [images or IMAGE_FOLDER], what="--images", suffixes=PHOTOS)
    known = set(masks)
    photos = [path for path in found if path not in known]
    pairs, alone = partners(photos, masks)
    names = Counter(same_name(path.stem) for path in photos)
    for photo, own in zip(photos, pairs, strict=True):
        if names[same_name(photo.stem)] > 1:
            raise DataError(f"{photo}: another image has the name {photo.stem} too; make --images narrower")
        if len(own) > 1:
            end = own[0].name.removeprefix(photo.stem)
            such = f", such as --labels '{own[0].parent.name}/*{end}'" if end != own[0].suffix else ""
            raise DataError(f"{photo}: {len(own)} masks have its name ({some_of(own)}); make --labels narrower{such}")
    bare = [photo for photo, own in zip(photos, pairs, strict=True) if not own]
    if len(bare) == len(photos):
        raise DataError(
            f"{root}: {counted(len(photos), 'image')} and {counted(len(masks), 'mask')}, but no pair "
            f"({why_no_pairs(photos, masks)}); the mask of a.jpg is a.png or a_*.png, see --images and --labels"
        )
    if bare:
        log.warning("%s: no mask for %s, left out: %s first", root, counted(len(bare), "image"), bare[0].name)
    if alone:
        log.warning("%s: no image for %s: %s first", root, counted(len(alone), "mask"), alone[0].name)
    return [Frame(photo.stem, photo, own[0], data_set) for photo, own in zip(photos, pairs, strict=True) if own]


def _label_folder(root: Path) -> str:
    """Return the folder of the masks.

    Raises:
        DataError: there is none of the usual names, or several.
    """
    there = [name for name in LABEL_FOLDERS if (root / name).is_dir()]
    if len(there) == 1:
        return there[0]
    what = "both" if there else "no folder"
    raise DataError(f"{root}: holds {what} {' and '.join(LABEL_FOLDERS)}; say where the masks are with --labels")
