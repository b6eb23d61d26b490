"""Files that a config names: found by pattern, and checked to have the same bands and type.

Scenes and photographs share these rules; pixels and labels are not read here.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np

from geood.config import Config
from geood.datasets.samples import TrainingBands
from geood.errors import ConfigError, DataError
from geood.geo.listing import files_in, files_matching
from geood.geo.scene import Scene

RASTERS = (".tif", ".tiff")  # suffixes taken from a folder


def find_files(root: str | Path, patterns: list[str], *, what: str, suffixes: tuple[str, ...] = RASTERS) -> list[Path]:
    """Return the files that patterns name (a file, a glob, or a folder of rasters), sorted, without duplicates.

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


def check_images(paths: list[Path], config: Config) -> TrainingBands:
    """Check that all images can be used together; return the bands that the config selects.

    Raises:
        ConfigError: the config names other bands.
        DataError: an image cannot be read, lacks a CRS though it is a scene, or differs from the first.
    """
    first: tuple[Path, Scene] | None = None
    for path in paths:
        with Scene.open(path, nodata=config.bands.nodata) as scene:
            if scene.grid.crs is None and config.data.kind == "scenes":
                raise DataError(
                    f"{path}: this image has no CRS, and training on scenes needs one; set it (gdal_edit.py -a_srs "
                    "EPSG:...), or set data.kind to photos if its position does not matter"
                )
            if first is None:
                first = path, scene
            if (scene.count, np.dtype(scene.dtype)) != (first[1].count, np.dtype(first[1].dtype)):
                raise DataError(
                    f"{path} has {scene.count} bands of {scene.dtype}, {first[0]} has {first[1].count} of "
                    f"{first[1].dtype}; all training images need the same bands and the same type"
                )
    assert first is not None
    scene = first[1]
    indexes = tuple(config.bands.indexes or scene.band_indexes)
    if max(indexes) > max(scene.band_indexes):
        raise DataError(f"{first[0]} has bands 1 to {max(scene.band_indexes)}; bands.indexes asks for {max(indexes)}")
    names = tuple(_band_name(scene, i) for i in indexes)
    if config.bands.names and len(config.bands.names) != len(indexes):
        raise ConfigError(
            f"bands.names lists {len(config.bands.names)} names, but {len(indexes)} bands of {first[0]} are used "
            f"({', '.join(names)}); name each of them, or choose some with bands.indexes"
        )
    return TrainingBands(names, indexes, np.dtype(scene.dtype), None if config.bands.indexes else scene.count)


def _band_name(scene: Scene, index: int) -> str:
    known = dict(zip(scene.band_indexes, scene.band_names, strict=False))
    return str(known.get(index, f"band_{index}"))
