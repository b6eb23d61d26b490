"""Scenes of which something was reviewed: the images that a person gives, and others found by the names that maps tell.

A map knows the names of its scenes, not where they lie. They are looked for in folders that are given, beside the
reviewed files, in the current folder, and among the images of the config. What was reviewed is known in `reading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from geood.config import Config
from geood.datasets import find_files
from geood.errors import ConfigError, DataError, shown
from geood.geo.listing import files_in
from geood.geo.score_raster import SCENE_TAG, read_tags
from geood.polygons import raster_of, run_rows
from geood.review.ground import empty_cells
from geood.review.reading import Review

IMAGES = (".tif", ".tiff", ".vrt", ".jp2")


def scenes_of(review: Review, paths: Sequence[Path], given: Sequence[Path], config: Config) -> list[Path]:
    """Return the images of the scenes that the polygons are of: all those given, and those found by name.

    Raises:
        ConfigError: one is not found.
    """
    for path in given:
        if not path.exists():
            raise ConfigError(f"--scene {path}: no such file; give the image that was searched, or its folder")
    own_images = list(dict.fromkeys(sorted(path.absolute() for path in given if path.is_file())))
    if given and all(path.is_file() for path in given):
        return own_images
    labels = _labels_of(review)
    labels = labels or sorted({str(row["scene"]) for path in paths for row in run_rows(path) if row.get("scene")})
    rasters = [raster for path in paths if (raster := raster_of(path))]
    if not labels and rasters:
        labels = [read_tags(rasters[0]).get(SCENE_TAG, "")]
    root, data = config.data.root, config.data
    near: list[Path] = []
    own = {raster.absolute() for raster in rasters}
    beside = [file for path in paths for file in files_in(path.absolute().parent, IMAGES) if file not in own]
    for key in ("images", "test_images", "reviewed_images"):
        patterns = getattr(data, key)
        with suppress(DataError):  # the data of a training may have moved since: then the scene is not found there
            near += find_files(root, patterns, what=f"data.{key}") if patterns else []
    told = {Path(label).name for label in labels}
    renamed = [path for path in own_images if path.name not in told]  # each may be a scene that is found nowhere
    found, lost = list(own_images), list[str]()
    for label in labels:
        name = Path(label).name
        if not name or any(path.name == name for path in own_images):
            continue
        there = [path / name for path in given if path.is_dir()]
        hits = [path for path in there if path.is_file() and path.absolute() not in own]
        hits = hits or [path for path in beside if path.name == name]
        hits = hits or [path for path in (Path(name).absolute(),) if path.is_file() and path not in own]
        hits = hits or [path for path in near if path.name == name and path not in own]
        if len({path.resolve() for path in hits}) > 1:
            both = f"{hits[0]} or {hits[-1]}"
            raise ConfigError(f"the scene {shown(label)} of these polygons may be {both}; give its image with --scene")
        found += [hits[0].absolute()] if hits else []
        lost += [] if hits else [label]
    if len(lost) > len(renamed):
        raise ConfigError(
            f"the scene {shown(lost[0])} of these polygons is not found; give its image with --scene, or its folder"
        )
    if not found:
        raise ConfigError("these polygons do not tell of which scene they are; give its image with --scene")
    return found


def _labels_of(review: Review) -> list[str]:
    """Return the names of the scenes of which something was reviewed; of all where that is not told of each row."""
    judged = review.polygons[review.polygons["verdict"].isin(["real", "false"])]
    empty = empty_cells(review, [])
    parts = [judged, *([] if empty is None else [empty])]
    told = pd.concat([part.get("scene", pd.Series(None, part.index, dtype=object)) for part in parts])
    if told.isna().any() or told.empty:
        told = review.polygons.get("scene", pd.Series(dtype=object))
    return sorted({str(name) for name in told.dropna()})
