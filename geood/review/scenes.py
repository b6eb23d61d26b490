"""Scenes of which something was reviewed: the images that a person gives, and others found by the names that maps tell.

A map knows the names of its scenes, not where they lie. They are looked for in folders that are given, beside the
reviewed files, in the current folder, and among the images of the config. What was reviewed is known in `reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path

import geopandas
import pandas as pd

from geood.config import Config
from geood.datasets import find_files
from geood.errors import ConfigError, DataError, shown
from geood.geo.listing import files_in
from geood.geo.score_raster import SCENE_TAG, read_tags
from geood.polygons import raster_of, run_rows
from geood.review.reading import Review

IMAGES = (".tif", ".tiff", ".vrt", ".jp2")


def scenes_of(
    review: Review,
    cells: geopandas.GeoDataFrame | None,
    *,
    paths: Sequence[Path],
    given: Sequence[Path],
    config: Config,
) -> list[Path]:
    """Return the images of the scenes that polygons and searched cells are of: all those given, and others by name.

    Raises:
        ConfigError: one is not found.
    """
    for path in given:
        if not path.exists():
            raise ConfigError(f"--scene {path}: no such file; give the image that was searched, or its folder")
    own_images = list(dict.fromkeys(sorted(path.absolute() for path in given if path.is_file())))
    if given and all(path.is_file() for path in given):
        return own_images
    rasters = [raster for path in paths if (raster := raster_of(path))]
    labels = _labels_of(review, cells, paths=paths, rasters=rasters)
    told = {Path(label).name for label in labels}
    renamed = [path for path in own_images if path.name not in told]  # each may be a scene that is found nowhere
    places = _places(paths, given, config, maps={raster.absolute() for raster in rasters})
    found, lost = list(own_images), list[str]()
    for label in labels:
        name = Path(label).name
        if not name or any(path.name == name for path in own_images):
            continue
        hits = next(filter(None, ([path for path in place if path.name == name] for place in places(name))), [])
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


def _places(
    paths: Sequence[Path], given: Sequence[Path], config: Config, *, maps: Set[Path]
) -> Callable[[str], Iterator[list[Path]]]:
    """Return what lists the files that may be the scene of a name, place by place, the likeliest first; none of `maps`.

    The places are the folders given, those of the reviewed files, the current one, and the images of the config.
    """
    beside = [file for path in paths for file in files_in(path.absolute().parent, IMAGES)]
    known: list[Path] = []
    for key in ("images", "test_images", "reviewed_images"):
        patterns = getattr(config.data, key)
        with suppress(DataError):  # the data of a training may have moved since: then the scene is not found there
            known += find_files(config.data.root, patterns, what=f"data.{key}") if patterns else []

    def places(name: str) -> Iterator[list[Path]]:
        named = [path / name for path in given if path.is_dir()], beside, [Path(name).absolute()], known
        for place in named:
            yield [path for path in place if path.absolute() not in maps and path.is_file()]

    return places


def _labels_of(
    review: Review, cells: geopandas.GeoDataFrame | None, *, paths: Sequence[Path], rasters: Sequence[Path]
) -> list[str]:
    """Return the names of the scenes of which something was reviewed; of all where that is not told of each row."""
    judged = review.polygons[review.polygons["verdict"].isin(["real", "false"])]
    parts = [judged, *([] if cells is None else [cells])]
    told = pd.concat([part.get("scene", pd.Series(None, part.index, dtype=object)) for part in parts])
    if told.isna().any() or told.empty:
        told = review.polygons.get("scene", pd.Series(dtype=object))
    labels = {str(name) for name in told.dropna()}
    labels = labels or {str(row["scene"]) for path in paths for row in run_rows(path) if row.get("scene")}
    return sorted(labels) or [read_tags(raster).get(SCENE_TAG, "") for raster in rasters[:1]]
