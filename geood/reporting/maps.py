"""Maps that `geood predict` wrote, read for people: the polygons first by rank, their rasters, the scene, the verdict.

A map may come alone: polygons without their raster, or with a scene that has moved. What is not found is noted, and
the page goes without it. Nothing is judged anew: the verdict is that of the map's own tags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from geopandas import GeoDataFrame

from geood.calibration import PolygonTable, Verdict
from geood.config import Config
from geood.datasets import find_files
from geood.errors import ConfigError, DataError
from geood.geo.display import grid_of
from geood.geo.grid import Grid
from geood.geo.score_raster import (
    MODEL_TAG,
    PREDICT_TAG,
    RUN_TAG,
    SCENE_TAG,
    SCORE_TAG,
    TABLE_TAG,
    THRESHOLD_TAG,
    read_tags,
    tagged_number,
)
from geood.polygons import (
    OUTPUT_SUFFIXES,
    is_anomalies,
    maps_in,
    raster_of,
    raster_of_scene,
    read_anomalies,
    run_rows,
    scores_beside,
)

MOST = 500  # polygons on a page, of each scene


@dataclass(frozen=True)
class SceneMap:
    """Map of one scene: `frame` holds its first polygons by rank (None: scores alone), in the CRS of their file.

    `scores` is None where the raster is not beside the polygons, `scene` where the image that was searched is not
    found, or is of other ground, as `other_scene` is then; `notes` say why. `least_m2` is the least area of a polygon,
    `whole` is False if the file may hold more. Of polygons that were cut again `cut` is the file's record of it; the
    verdict stays that of the map.
    """

    label: str
    polygons: Path | None
    scores: Path | None
    scene: Path | None
    grid: Grid | None
    frame: GeoDataFrame | None
    verdict: Verdict | None = None
    table: PolygonTable | None = None
    threshold: float | None = None
    least_m2: float | None = None
    whole: bool = True
    score: str = ""
    model: str = ""
    cut: Mapping[str, Any] | None = None
    other_scene: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int | None:
        """Number of polygons in the file; None where only the first were read, and the map does not tell."""
        verdict = self.verdict
        if self.cut is None and verdict is not None and verdict.polygons_per_km2 is not None and verdict.km2:
            return round(verdict.polygons_per_km2 * verdict.km2)
        return None if self.frame is None or not self.whole else len(self.frame)

    @property
    def per_km2(self) -> float | None:
        """Polygons per square kilometre in the file, as it tells them; None where it does not."""
        if self.cut is not None:
            return tagged_number({key: str(value) for key, value in self.cut.items()}, "polygons_per_km2")
        return None if self.verdict is None else self.verdict.polygons_per_km2


def is_map(path: Path) -> bool:
    """Return whether a path is polygons or scores by its suffix, or a folder that holds such files."""
    if path.is_dir():
        return any(maps_in(path))
    return path.suffix in (*OUTPUT_SUFFIXES, ".tif")


def read_maps(
    path: Path, *, scenes: Sequence[Path] = (), config: Config | None = None, most: int = MOST, alone: bool = True
) -> list[SceneMap]:
    """Read a file of polygons, a score raster, or a folder of them, scene by scene.

    Args:
        path: what `predict` wrote.
        scenes: images that were searched, or folders in which they are looked for by name; those not given are looked
            for beside the map, in the current folder, and among the images of `config`.
        config: the config of the training.
        most: polygons that are read of each scene.
        alone: no other map is read, so that a scene that was given may have any name.

    Raises:
        ConfigError: a scene that was given is not there.
        DataError: a file is damaged, or not of geood.
    """
    if missing := [scene for scene in scenes if not scene.exists()]:
        raise ConfigError(f"--scene {missing[0]}: no such file; give the image that was searched, or its folder")
    if path.is_dir():
        files, rasters = maps_in(path)
        alone = alone and len(files) + len(rasters) == 1
        read = partial(read_maps, scenes=scenes, config=config, most=most, alone=alone)
        maps = [each for inner in files for each in read(inner)]
        bare = set(rasters) - {each.scores for each in maps}  # the others are of scenes that share their polygons
        return maps + [each for inner in sorted(bare) for each in read(inner)]
    places = _Places(list(scenes), path, config, most=most, alone=alone)
    if path.suffix == ".tif":
        stem_of = path.with_suffix("") if path.stem.endswith(".scores") else path
        beside = [stem_of.with_suffix(suffix) for suffix in OUTPUT_SUFFIXES]
        polygons = next((other for other in beside if raster_of(other) == path and is_anomalies(other)), None)
        frame = None if polygons is None else read_anomalies(polygons, most=most)
        return [_scene_map(path, polygons, frame, places=places)]
    frame = read_anomalies(path, most=most)
    if "scene" not in frame:
        return [_scene_map(raster_of(path) or scores_beside(path), path, frame, places=places)]
    parts = list(frame.groupby("scene", sort=True))
    places = replace(places, alone=alone and len(parts) == 1)
    return [
        _scene_map(raster_of_scene(path, str(label)), path, part, places=places, label=str(label))
        for label, part in parts
    ]


@dataclass(frozen=True)
class _Places:
    """Places where the image of a scene may lie: those given, beside the map, and where the training found its own."""

    given: list[Path]
    map_path: Path
    config: Config | None
    most: int
    alone: bool  # there is one map, so a scene that was given is its own, whatever its name

    def find(self, label: str, scores: Path) -> Path | None:
        """Return the image of a scene, which is not its scores, though they may have its name."""
        name = Path(label).name
        images = [path for path in self.given if path.is_file()]
        if len(self.given) == len(images) == 1 and (self.alone or images[0].name == name):
            return images[0]
        given = [place / name if place.is_dir() else place for place in self.given]
        named = [path for path in given if name and path.name == name and path.is_file()]
        only = images if self.alone and len(images) == 1 else []
        beside = [self.map_path.with_name(name), Path(name)] if name else []
        near = [*(path for path in beside if path.is_file()), *self._of_training()]
        likely = [*named, *only, *(path for path in near if path.name == name)]
        return next((path for path in likely if not path.samefile(scores)), None)

    def _of_training(self) -> list[Path]:
        if self.config is None or self.config.data.kind != "scenes":
            return []
        found: list[Path] = []
        for key in ("test_images", "images"):
            patterns = getattr(self.config.data, key)
            try:
                found += find_files(Path(self.config.data.root), patterns, what=f"data.{key}") if patterns else []
            except DataError:  # the data of a training may have moved since: then the scene is not found there
                continue
        return found


def _scene_map(
    raster: Path, polygons: Path | None, frame: GeoDataFrame | None, *, places: _Places, label: str = ""
) -> SceneMap:
    """Put together what belongs to one scene."""
    notes, whole = list[str](), frame is None or len(frame) < places.most
    if not raster.is_file():
        notes.append(f"The score raster {raster.name} is not beside the polygons: no scores, no verdict. Put it there.")
        model = "" if frame is None or not len(frame) else str(frame["model"].iloc[0])
        return SceneMap(label or raster.stem, polygons, None, None, None, frame, model=model, whole=whole, notes=notes)
    tags, grid = read_tags(raster), grid_of(raster)
    label = label or tags.get(SCENE_TAG, raster.stem)
    scene, other = places.find(label, raster), None
    if scene is None:
        notes.append(f"The scene {label} was not found, so pictures show scores alone; name it with --scene.")
    elif why := _why_not_of(grid_of(scene), grid):
        notes.append(f"{scene.name} {why}.")
        scene, other = None, scene
    threshold, least, cut = tagged_number(tags, THRESHOLD_TAG), _least(tags), _cut(polygons)
    if cut is not None:
        threshold, least = cut["threshold"], cut["min_area_m2"]
        notes.append(f"{label}: the polygons were cut again at {threshold:.4g}; the verdict is that of the whole map.")
    return SceneMap(
        label=label,
        polygons=polygons,
        scores=raster,
        scene=scene,
        grid=grid,
        frame=frame,
        verdict=_verdict(tags),
        table=_table(tags),
        threshold=threshold,
        least_m2=least,
        whole=whole,
        score=tags.get(SCORE_TAG, ""),
        model=tags.get(MODEL_TAG, ""),
        cut=cut,
        other_scene=other,
        notes=notes,
    )


def _cut(polygons: Path | None) -> dict[str, Any] | None:
    """Return the record of polygons that `polygonize` cut, with numbers for threshold and least area; else None."""
    for row in [] if polygons is None else run_rows(polygons):
        if "connectivity" in row and all(
            isinstance(row.get(key), (int, float)) for key in ("threshold", "min_area_m2")
        ):
            return row
    return None


def _why_not_of(scene: Grid, scores: Grid) -> str:
    """Return why an image cannot be the one that scores are of; empty if it can."""
    if (scene.height, scene.width) != (scores.height, scores.width):
        return f"has {scene.width} x {scene.height} pixels and the map {scores.width} x {scores.height}"
    if scene.crs is None or scores.crs is None:
        return ""
    pixel = max(map(abs, tuple(scores.transform)[:2] + tuple(scores.transform)[3:5]))
    apart = max(abs(one - other) for one, other in zip(scene.bounds, scores.bounds, strict=True))
    return "" if apart <= pixel else "lies elsewhere than the map"


def _verdict(tags: dict[str, str]) -> Verdict | None:
    """Return the verdict that a raster carries; None if it has none, or one of another geood."""
    try:
        return Verdict.from_text(tags[RUN_TAG])
    except (KeyError, ValueError):
        return None


def _table(tags: dict[str, str]) -> PolygonTable | None:
    try:
        return PolygonTable.from_text(tags[TABLE_TAG])
    except (KeyError, ValueError):
        return None


def _least(tags: dict[str, str]) -> float | None:
    """Return the least area of the map's polygons in square metres, by its tag."""
    try:
        value = json.loads(tags[PREDICT_TAG])["min_area_m2"]
        return None if value is None else float(value)
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        return None
