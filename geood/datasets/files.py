"""Files that a config names: found by pattern, and checked to have the same bands and type.

Scenes and photographs share these rules; pixels and labels are not read here.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geood.config import Config
from geood.datasets.samples import TrainingBands
from geood.errors import ConfigError, DataError, counted
from geood.geo.alpha import declared_so
from geood.geo.border import undeclared_nodata
from geood.geo.listing import files_in, files_matching
from geood.geo.scene import Scene, SceneSource
from geood.geo.scene_reading import Tags, other_tags

log = logging.getLogger("geood")
BORDERS = 16  # scenes whose border is looked at
RASTERS = (".tif", ".tiff")  # suffixes taken from a folder


def find_files(root: str | Path, patterns: list[str], *, what: str, suffixes: tuple[str, ...] = RASTERS) -> list[Path]:
    """Return the files that patterns name (a file, a glob, or a folder of rasters), sorted, without duplicates.

    Hidden files, and those in hidden folders such as `.ipynb_checkpoints`, are taken only if named.

    Args:
        root: folder that patterns are relative to.
        patterns: patterns as in a config.
        what: config key of the patterns, for the error message.
        suffixes: suffixes taken from a folder.

    Raises:
        DataError: a pattern matches no file, a folder cannot be listed, or a link leads nowhere.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(root) / pattern
        hits = files_in(path, suffixes, deep=True) if path.is_dir() else files_matching(root, pattern)
        if not hits:
            raise DataError(f"{what}: {pattern!r} names no file under {root}{_near(Path(root), pattern)}")
        found.update(hits)
    return sorted(found)


def _near(root: Path, pattern: str) -> str:
    """Return a hint for the error message: similar names, or the first files of the folder."""
    if not root.is_dir():
        return "; that folder does not exist, check data.root"
    names = [str(p.relative_to(root)) for p in sorted(root.rglob("*"))[:5000] if p.is_file()]
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
    return f"; near it: {', '.join(near)}" if near else "; the folder is empty"


class _Image(NamedTuple):
    """Facts of one training image: bands in all, those declared as alpha, and those of them that are measurements."""

    path: Path
    bands: int
    dtype: np.dtype[Any]
    declared: tuple[int, ...]
    measured: tuple[int, ...]
    tags: Tags


def check_images(paths: list[Path], config: Config) -> TrainingBands:
    """Check that all images can be used together; return the bands that the config selects.

    A band that files declare as alpha is data if the config orders it, or if its values are no mask's in any image.

    Raises:
        ConfigError: the config names other bands.
        DataError: an image cannot be read, lacks a CRS though it is a scene, or differs from the first.
    """
    images = [_looked_at(path, config) for path in paths]
    _report_border(paths, config)
    ordered = tuple(config.bands.indexes or ())
    measured = _measured(images, ordered)
    for image in images:
        masks = set(image.declared) - set(measured)
        first_masks = set(images[0].declared) - set(measured)
        counts = image.bands - len(masks), images[0].bands - len(first_masks)
        if counts[0] != counts[1] or image.dtype != images[0].dtype:
            raise DataError(
                f"{image.path} has {counted(counts[0], 'band')} of {image.dtype}, {paths[0]} has {counts[1]} of "
                f"{images[0].dtype}; all training images need the same bands and the same type"
            )
    with Scene.open(SceneSource(str(paths[0]), (), config.bands.nodata, measured=measured)) as scene:
        known = dict(zip(scene.band_indexes, scene.band_names, strict=True))
    indexes = ordered or tuple(known)
    if max(indexes) > max(known):
        raise DataError(f"{paths[0]} has bands 1 to {max(known)}; bands.indexes asks for {max(indexes)}")
    names = tuple(known.get(i, f"band_{i}") for i in indexes)
    if config.bands.names and len(config.bands.names) != len(indexes):
        raise ConfigError(
            f"bands.names lists {counted(len(config.bands.names), 'name')}, but "
            f"{counted(len(indexes), 'band is', 'bands are')} used of {paths[0]} ({', '.join(names)}); name each "
            "of them, or choose some with bands.indexes"
        )
    scales, offsets = _tags(images, indexes)
    return TrainingBands(names, indexes, images[0].dtype, None if ordered else len(known), measured, scales, offsets)


def _tags(images: Sequence[_Image], indexes: Sequence[int]) -> Tags:
    """Return the scale and offset tags of the bands that are used; warn of images that differ from the first."""
    tags = [(tuple(i.tags[0][b - 1] for b in indexes), tuple(i.tags[1][b - 1] for b in indexes)) for i in images]
    different = [(image.path, own) for image, own in zip(images, tags, strict=True) if own != tags[0]]
    if different:
        path, own = different[0]
        why = other_tags(own, tags[0], f"{images[0].path.name} has")
        said = "%d of %d training images have other tags than the first, such as %s: %s"
        log.warning(said, len(different), len(images), path, why)
    return tags[0]


def _looked_at(path: Path, config: Config) -> _Image:
    """Open one image and return its facts.

    Raises:
        DataError: it cannot be read, or lacks a CRS though it is a scene.
    """
    with Scene.open(SceneSource(str(path), nodata=config.bands.nodata)) as scene:
        if scene.grid.crs is None and config.data.kind == "scenes":
            raise DataError(
                f"{path}: this image has no CRS, and training on scenes needs one; set it (gdal_edit.py -a_srs "
                "EPSG:...), or set data.kind to photos if its position does not matter"
            )
        count = len(scene.band_indexes) + len(scene.alpha)
        tags = scene.scale_tags(range(1, count + 1))
        return _Image(path, count, np.dtype(scene.dtype), scene.declared, scene.measured, tags)


def _report_border(paths: Sequence[Path], config: Config) -> None:
    """Warn of scenes that are framed by what looks like nodata and counts as data, by a sample of the scenes."""
    if config.data.kind != "scenes":
        return
    for path in paths[:: -(-len(paths) // BORDERS)]:
        with Scene.open(SceneSource(str(path), nodata=config.bands.nodata)) as scene:
            value = undeclared_nodata(scene)
        if value is not None:
            said = "%s: much of its border is %g in its bands and counts as data; if that is nodata, set bands.nodata"
            log.warning(said, path, value)
            return


def _measured(images: Sequence[_Image], ordered: tuple[int, ...]) -> tuple[int, ...]:
    """Return the bands that any image declares as alpha and that are data; say what their values, not an order, tell.

    If the values of one image are no mask's, the band is data in all: in a scene of water, infrared looks like a mask.
    """
    declared = {i for image in images for i in image.declared}
    by_values = {i for image in images for i in image.measured} - set(ordered)
    masks = declared - by_values - set(ordered)
    if by_values:
        showing = next(image.path for image in images if by_values & set(image.measured))
        advice = "bands.indexes tells which bands to use"
        log.warning("%s: %s, in all training images; %s", showing, declared_so(sorted(by_values)), advice)
    if masks:
        numbers = ", ".join(map(str, sorted(masks)))
        said = "band %s of the training images is declared as alpha and marks their footprint; if it is data, name it "
        log.info(said + "in bands.indexes", numbers)
    return tuple(sorted(by_values | (set(ordered) & declared)))
