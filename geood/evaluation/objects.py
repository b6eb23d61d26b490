"""Object figures of scenes: recall of things by size, false polygons per km2, and how well polygons are ranked.

Scores and truth of one scene at a time lie on disk, so that things and polygons are whole whatever the tiles. Polygons
are those that `predict` would write, with its settings, except that pixels without a label have no score: they neither
make polygons nor join them. What is counted and how is defined in `metrics.objects`. Scenes of more than MOST_PX pixels
have no object figures: their components would fill the memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
from numpy.typing import NDArray

from geood.calibration import PolygonTable, least_area, own_record
from geood.constants import ANOMALY, IGNORE, INLIER, NO_CLASS
from geood.evaluation.pictures import draw_overview
from geood.geo.gdal import pieces, rasterio_window, writing
from geood.geo.grid import Grid, Tile
from geood.geo.score_raster import INLIERS_TAG, MODEL_TAG
from geood.metrics import (
    Things,
    count_polygons,
    is_real,
    precision_at,
    ratio,
    recall_by_size,
    things_of,
    threshold_at_recall,
)
from geood.models import ModelBundle
from geood.polygons import anomalies, priority

MOST_PX = 100_000_000
RECALLS = (0.25, 0.5, 0.75)  # at which scores are compared
SHOWN = (10, 50, 100)  # polygons that a person looks at


@dataclass
class SceneMaps:
    """Maps of one scene on its own grid while its tiles are scored: scores by kind on disk, classes and truth."""

    name: str
    image: Path
    grid: Grid
    folder: Path
    kinds: Sequence[str]
    truth: NDArray[np.uint8] = field(init=False)
    classes: NDArray[np.uint8] = field(init=False)
    scores: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        shape = self.grid.height, self.grid.width
        self.folder.mkdir()
        self.truth, self.classes = (np.full(shape, value, np.uint8) for value in (IGNORE, NO_CLASS))
        self.scores = {kind: _blank(self.folder / f"{kind}.npy", shape) for kind in self.kinds}

    def add(
        self, tile: Tile, truth: NDArray[np.uint8], classes: NDArray[np.uint8], scores: Mapping[str, NDArray[Any]]
    ) -> None:
        """Add the truth, classes and scores of a tile."""
        at = tile.write.slices
        self.truth[at], self.classes[at] = truth, classes
        for kind, score in scores.items():
            self.scores[kind][at] = np.where(truth == IGNORE, np.float32(np.nan), score)


@dataclass
class _Scene:
    """Things of a scene with the score that each reaches, its maps, and its polygons by rank."""

    name: str
    km2: float
    size_m2: NDArray[np.floating]
    things: Things
    reach: dict[str, NDArray[np.float64]]
    truth: NDArray[np.uint8]
    scores: dict[str, Any]
    least_px: float
    order: list[tuple[float, bool]]  # polygons at the default threshold: ranking figure, whether real


def _blank(path: Path, shape: tuple[int, int]) -> Any:
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    array[:] = np.nan
    return array


class ObjectFigures:
    """Accumulator of object figures over scenes; `pictures` is a folder for one overview of each, or None."""

    def __init__(self, bundle: ModelBundle, pictures: Path | None = None) -> None:
        self._bundle, self._pictures = bundle, pictures
        self._scenes: list[_Scene] = []

    def add(self, maps: SceneMaps) -> dict[str, Any]:
        """Add a scene whose tiles are all scored; return its own figures at the default threshold."""
        own = self._bundle.config.score.kind
        things, truth = things_of(maps.truth)
        for score in maps.scores.values():
            score[truth == IGNORE] = np.nan
        metres = maps.grid.resolution_m
        pixel_m2 = maps.grid.pixel_m2 or math.nan
        labelled = int((truth != IGNORE).sum())
        least_px = 0.0 if metres is None else self._least_m2 / pixel_m2
        scene = _Scene(
            name=maps.name,
            km2=labelled * pixel_m2 / 1e6,
            size_m2=things.size_px * pixel_m2,
            things=things,
            reach={kind: things.reach(score) for kind, score in maps.scores.items()},
            truth=truth,
            scores=maps.scores,
            least_px=least_px,
            order=[],
        )
        self._scenes.append(scene)
        if not self._bundle.thresholds:
            return {}
        scene.order = self._ranked(maps, truth)
        self._draw(maps, truth)
        figures = self._row([scene], own, self._bundle.threshold) | self._promised(scene.km2)
        return {"km2": scene.km2, **figures, **_precisions([scene])}

    def rows(self) -> list[dict[str, Any]]:
        """Return the figures of every score over all scenes: at each calibrated threshold, and at equal recall."""
        found = []
        for kind in self._scenes[0].scores if self._scenes else ():
            own = self._bundle.config.score
            settings = own.model_copy(update={"kind": kind, "temperature": own.temperature_of(kind)})  # as it is scored
            wanted = [(f"fpr {fpr}", at) for fpr, at in self._bundle.with_score(settings).thresholds.items()]
            reach = np.concatenate([scene.reach[kind] for scene in self._scenes])
            wanted += [(f"recall {recall}", threshold_at_recall(reach, recall)) for recall in RECALLS]
            found += [
                {"score": kind, "at": name, **self._row(self._scenes, kind, threshold)}
                for name, threshold in wanted
                if math.isfinite(threshold)
            ]
        return found

    def ranking(self) -> dict[str, Any]:
        """Return the precision of the first polygons of all scenes in one order, and the mean of the scenes'."""
        each = [_precisions([scene]) for scene in self._scenes if scene.order]
        mean = {f"mean_{name}": float(np.mean([row[name] for row in each])) for name in (each[0] if each else ())}
        return {"polygons": sum(len(scene.order) for scene in self._scenes), **_precisions(self._scenes), **mean}

    def things(self) -> list[dict[str, Any]]:
        """Return a dict for each thing: where it lies, its size, the score it reaches, and whether it is found."""
        own, bundle = self._bundle.config.score.kind, self._bundle
        threshold = bundle.threshold if bundle.thresholds else math.nan
        return [
            {
                "scene": scene.name,
                "row": round(float(scene.things.row[i]), 1),
                "col": round(float(scene.things.col[i]), 1),
                "area_px": int(scene.things.size_px[i]),
                "area_m2": float(scene.size_m2[i]),
                "reach": float(scene.reach[own][i]),
                "found": bool(scene.reach[own][i] > threshold),
            }
            for scene in self._scenes
            for i in range(len(scene.things.size_px))
        ]

    def _row(self, scenes: Sequence[_Scene], kind: str, threshold: float) -> dict[str, Any]:
        """Return the figures of some scenes together at one threshold."""
        connectivity = self._bundle.config.predict.connectivity
        found = np.concatenate([scene.reach[kind] > threshold for scene in scenes])
        size_m2, km2 = np.concatenate([scene.size_m2 for scene in scenes]), sum(scene.km2 for scene in scenes)
        counts = [
            count_polygons(
                scene.scores[kind],
                scene.truth,
                threshold=threshold,
                connectivity=connectivity,
                least_px=scene.least_px,
            )
            for scene in scenes
        ]
        false = sum(count.false for count in counts)
        inliers = sum(int((scene.truth == INLIER).sum()) for scene in scenes)
        return {
            "threshold": threshold,
            "things": len(found),
            "found": int(found.sum()),
            "recall": ratio(int(found.sum()), len(found)),
            "polygons": false + sum(count.real for count in counts),
            "false_polygons": false,
            "false_per_km2": false / km2 if km2 > 0 else math.nan,
            "false_ground": ratio(sum(count.inlier_px for count in counts), inliers),
            "by_size": recall_by_size(found, size_m2),
        }

    def _promised(self, km2: float) -> dict[str, float]:
        """Return the false polygons per km2 promised at the default threshold, and their interval in `km2` of ground.

        What is not known is NaN.
        """
        bundle, told = self._bundle, None
        if (record := own_record(bundle)) is not None and km2 > 0:
            table = PolygonTable.of(record, connectivity=bundle.config.predict.connectivity)
            told = table.at(bundle.threshold, self._least_m2, km2)
        rate, scene = (math.nan, None) if told is None else (told.rate, told.scene)
        low, high = scene or (math.nan, math.nan)
        return {"false_promised": rate, "false_low": low, "false_high": high}

    @property
    def _least_m2(self) -> float:
        """The least area of a polygon in square metres, as `predict` has it: 0 of a model that knows no metres."""
        return least_area(self._bundle.config.predict.min_area_m2, self._bundle.resolution)

    def _ranked(self, maps: SceneMaps, truth: NDArray[np.uint8]) -> list[tuple[float, bool]]:
        """Return the polygons of the default score and threshold by rank: their ranking figure, and whether real."""
        bundle, grid = self._bundle, maps.grid
        inliers = json.dumps([[at, float(rate)] for rate, at in bundle.thresholds.items()])
        tags = {MODEL_TAG: bundle.identity or "model", INLIERS_TAG: inliers}
        scores, classes = maps.folder / "scores.tif", maps.folder / "classes.tif"
        write_band(scores, grid, maps.scores[bundle.config.score.kind], nodata=math.nan, tags=tags)
        write_band(classes, grid, maps.classes, nodata=NO_CLASS, tags=tags)
        frame = anomalies(
            scores,
            threshold=bundle.threshold,
            classes=classes,
            class_names=bundle.class_names,
            predict=bundle.config.predict.model_copy(update={"simplify_m": 0.0, "min_area_m2": self._least_m2}),
            model=bundle.identity,
        )
        shapes = zip(frame.geometry, frame["rank"], strict=True)
        place = grid.transform if not grid.transform.is_identity else rasterio.Affine.scale(1, -1)
        burnt = np.zeros(truth.shape, np.int32)
        if len(frame):
            burnt = rasterio.features.rasterize(shapes, truth.shape, transform=place, dtype="int32")
        anomaly = np.bincount(burnt[truth == ANOMALY], minlength=len(frame) + 1)[1:]
        real = is_real(anomaly, frame.area_px.to_numpy())
        figures = priority({name: frame[name].to_numpy() for name in frame.columns if name != "geometry"})
        return list(zip(figures.tolist(), real.tolist(), strict=True))

    def _draw(self, maps: SceneMaps, truth: NDArray[np.uint8]) -> None:
        if self._pictures is None:
            return
        self._pictures.mkdir(exist_ok=True)
        labels, out = maps.folder / "truth.tif", self._pictures / f"{maps.name}.png"
        write_band(labels, maps.grid, truth, nodata=IGNORE, tags={})
        draw_overview(
            out if not out.exists() else out.with_stem(f"{maps.name}_{maps.folder.name}"),
            scene=maps.image,
            scores=maps.folder / "scores.tif",
            classes=maps.folder / "classes.tif",
            labels=labels,
            class_names=self._bundle.class_names,
            anomaly=[ANOMALY],
            negatives=None,
            threshold=self._bundle.threshold,
            metrics={},
        )


def write_band(path: Path, grid: Grid, array: NDArray[Any], *, nodata: float, tags: Mapping[str, str]) -> None:
    """Write one band as a plain GeoTIFF on a grid.

    Raises:
        OutputError: it cannot be written.
    """
    size = {"height": grid.height, "width": grid.width, "count": 1, "dtype": array.dtype.name, "nodata": nodata}
    place = {"crs": grid.crs, "transform": None if grid.transform.is_identity else grid.transform}
    with writing(path):
        with rasterio.open(path, "w", driver="GTiff", tiled=True, **size, **place) as file:
            file.write(array, 1)
            file.update_tags(**tags)
        with rasterio.open(path) as file:  # as GDAL tells nobody of a disk that was full when the file was closed
            for part in pieces(grid):
                if not np.array_equal(file.read(1, window=rasterio_window(part)), array[part.slices], equal_nan=True):
                    raise OSError("it does not hold what was written")


def _precisions(scenes: Sequence[_Scene]) -> dict[str, float]:
    order = sorted((polygon for scene in scenes for polygon in scene.order), key=lambda polygon: -polygon[0])
    return {f"precision_{first}": precision_at([real for _, real in order], first) for first in SHOWN}
