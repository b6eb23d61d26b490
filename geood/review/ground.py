"""Ground of a map that was reviewed: its area, its valid pixels, and what the map promised of itself.

A score raster of any tool tells the ground; without one the table `run` that `predict` writes does, else the cells of
the sample, each of which stands for a part of the scene, or a number that the user gives. Polygons of tools that write
no scores get theirs from that raster, the highest in their outline. What the map promised of polygons cut so is found
in `promises`, or in its bundle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.features import geometry_mask

from geood.errors import ConfigError, DataError, counted
from geood.geo.gdal import open_raster, pieces, rasterio_window, reading
from geood.geo.grid import Grid, Window
from geood.geo.qgis.form import SAMPLE_LAYER
from geood.geo.scene import Scene
from geood.geo.score_raster import SCORE_TAG
from geood.geo.vector import crs_of
from geood.models import read_header
from geood.polygons import raster_of, run_rows
from geood.review.promises import NOTHING, CutPromise, number_of, promise_of
from geood.review.reading import Review

SIX_DIGITS = 1e-5  # relative difference of a threshold from the one that a table `run` of an older geood tells


@dataclass(frozen=True)
class MapGround:
    """The ground of a review: square kilometres and valid pixels (None: not known), the tags of its raster, promises.

    `threshold` is that which cut the polygons (None: not known), `promise` what the map promised of polygons cut so.
    """

    review: Review
    area_km2: float | None
    valid_px: int | None
    tags: dict[str, str]
    notes: tuple[str, ...] = ()
    threshold: float | None = None
    promise: CutPromise = NOTHING

    @property
    def promised_per_km2(self) -> float | None:
        """False polygons for each square kilometre that the map was to have; None where they were not counted."""
        return self.promise.per_km2

    def promised_share(self, bundle_path: str | Path | None) -> float | None:
        """Return the share of inlier pixels above the polygons' threshold that the bundle, or the map, promised.

        None: not known.

        Raises:
            BundleError: the bundle cannot be read.
            ConfigError: the map has no threshold in its tags.
        """
        if bundle_path is None:
            return self.promise.share
        if self.threshold is None:
            raise ConfigError("--model needs the score raster that its `predict` wrote; give it with --scores")
        header = read_header(Path(bundle_path))
        rates = header.calibration.get(self.tags.get(SCORE_TAG, header.config.score.kind), {})
        own = told = self.threshold
        near = min(rates.values(), key=lambda at: abs(at - told), default=own)
        own = near if math.isclose(near, told, rel_tol=SIX_DIGITS) else own
        kept = [float(rate) for rate, at in rates.items() if at <= own]
        return min(kept) if kept else None


def ground_of(review: Review, paths: list[Path], *, scores: str | Path | None, area_km2: float | None) -> MapGround:
    """Return the ground of reviewed files; polygons without a score get theirs from the score raster.

    Raises:
        ConfigError: there are neither scores of polygons nor a raster of them.
        DataError: the raster cannot be read, has several bands, or another CRS than the polygons can be brought to.
    """
    found = [Path(scores)] if scores is not None else filter(None, map(raster_of, paths))
    raster = next(iter(found), None)
    told = next((path for path in paths if run_rows(path)), paths[0])  # a copy may be saved without what the map tells
    bare = not np.isfinite(review.polygons["score"].to_numpy(np.float64)).any() and len(review.polygons) > 0
    if raster is None:
        if bare:
            numbers = [str(name) for name in review.polygons.select_dtypes("number").columns if name != "fid"]
            raise ConfigError(
                f"{paths[0]}: no column of scores; name it with --score-column, or give the raster with --scores; "
                f"columns of numbers: {', '.join(name for name in numbers if name != 'score') or 'none'}"
            )
        area, valid = _told_by_run(told)
        area, notes = (area, ()) if area or area_km2 else _area_of_cells(review)
        at, promise, said = promise_of(told, {}, review)
        return MapGround(review, area_km2 if area_km2 is not None else area, valid, {}, (*notes, *said), at, promise)
    area, valid, tags = _measured(raster)
    if bare:
        review = replace(review, polygons=_with_scores(review.polygons, raster))
    at, promise, said = promise_of(told, tags, review)
    return MapGround(review, area_km2 if area_km2 is not None else area, valid, tags, said, at, promise)


def searched_ground(review: Review) -> tuple[dict[str, Any] | None, list[str]]:
    """Return cells, complete ones, their misses and square kilometres (None: there is no sample), and a note.

    Where others have an area, complete cells without one count nowhere: their misses would, and their ground not.
    """
    cells, notes = review.cells, list[str]()
    if cells is None:
        return None, notes
    done = cells[cells["complete"]]
    areas = done["area_m2"] if "area_m2" in done else done["complete"] * np.nan
    if areas.notna().any() and areas.isna().any():
        what = counted(int(areas.isna().sum()), "complete cell")
        notes.append(f"layer {SAMPLE_LAYER}: {what} without an area, as if drawn by hand; left out")
        done = done[areas.notna()]
    misses = int(done["misses"].sum())
    return {"cells": len(cells), "complete": len(done), "misses": misses, "area_km2": float(areas.sum()) / 1e6}, notes


def empty_cells(review: Review, notes: list[str]) -> geopandas.GeoDataFrame | None:
    """Return the cells that were searched to their end and hold no miss; None if there are none."""
    if review.cells is None:
        return None
    cells = review.cells[review.cells["complete"] & (review.cells["misses"] == 0)]
    whole = cells[cells.geometry.is_valid & has_area(cells.geometry)]
    if len(whole) < len(cells):
        notes.append(f"{counted(len(cells) - len(whole), 'cell')} without a valid outline; left out")
    return whole if len(whole) else None


def has_area(shapes: Any) -> Any:
    """Return which shapes (n,) are polygons, or hold one."""
    return (shapely.get_dimensions(shapes.values) == 2) & ~shapes.is_empty


def beside_scenes(judged: geopandas.GeoDataFrame, scenes: list[Path], *, what: str, needed: bool = True) -> list[str]:
    """Return a note on judged polygons, or what they are, that lie on none of their scenes, by the extents of these.

    Raises:
        ConfigError: none lies on one, and that is `needed`.
        DataError: a scene cannot be read.
    """
    on_one = np.zeros(len(judged), np.bool_)
    for path in scenes:
        with Scene.open(str(path)) as scene:
            grid = scene.grid
        if grid.crs is None:  # nothing is known of its place
            return []
        on_one |= judged.geometry.to_crs(crs_of(grid)).intersects(shapely.box(*grid.bounds)).to_numpy()
    lost = int((~on_one).sum())
    if lost and not on_one.any() and needed:
        raise ConfigError(
            f"{scenes[0]}: holds none of the {counted(len(judged), what)}; give the image that was searched with "
            "--scene, or save the polygons with the CRS of the map"
        )
    lies = "lies" if lost == 1 else "lie"
    return [f"{counted(lost, what)} {lies} on none of the scenes, so nothing is learned there"] if lost else []


def _told_by_run(path: Path) -> tuple[float | None, int | None]:
    """Return square kilometres and valid pixels of all scenes by the table `run`; None where it does not tell them."""
    rows = run_rows(path)
    area, valid = ([number_of(row, name) for row in rows] for name in ("km2", "valid_px"))
    return _sum_of(area), None if (pixels := _sum_of(valid)) is None else int(pixels)


def _sum_of(numbers: list[float | None]) -> float | None:
    """Return the sum of numbers, None if one of them is not known or there is none."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known and len(known) == len(numbers) else None


def _area_of_cells(review: Review) -> tuple[float | None, tuple[str, ...]]:
    """Return the ground that the cells of the sample stand for, in square kilometres."""
    cells = review.cells
    if cells is None or "stands_for_m2" not in cells:
        return None, ()
    total = float(cells["stands_for_m2"].sum()) / 1e6
    note = "the ground is what the cells of the sample stand for: without those that hold data in less than half"
    return (total, (note,)) if total else (None, ())


def _measured(raster: Path) -> tuple[float | None, int, dict[str, str]]:
    """Return area, valid pixels and tags of a raster of scores.

    Raises:
        DataError: it cannot be read, or has several bands.
    """
    with open_raster(raster) as dataset:
        if dataset.count > 1:
            raise DataError(f"{raster}: has {dataset.count} bands, and scores are one; give the raster of the scores")
        grid = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
        valid = sum(int(_known(dataset, window, raster)[1].sum()) for window in pieces(grid))
        tags = {str(key): str(value) for key, value in dataset.tags().items()}
    pixel_m2 = grid.pixel_m2
    return (None if pixel_m2 is None else valid * pixel_m2 / 1e6), valid, tags


def _known(dataset: Any, window: Window, raster: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    with reading(raster):
        scores = dataset.read(1, window=rasterio_window(window))
        known = np.isfinite(scores) & (dataset.read_masks(1, window=rasterio_window(window)) > 0)
    return scores, known


def _with_scores(frame: geopandas.GeoDataFrame, raster: Path) -> geopandas.GeoDataFrame:
    """Give each polygon the highest score in its outline; NaN where it holds none."""
    with open_raster(raster) as dataset:
        grid = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
        shapes = frame.geometry
        if frame.crs is not None and grid.crs is not None:
            shapes = shapes.to_crs(pyproj.CRS.from_user_input(grid.crs))
        elif (frame.crs is None) != (grid.crs is None):
            raise DataError(
                f"{raster}: polygons and scores need a CRS both or neither; give the raster of these polygons"
            )
        if grid.transform.is_identity:
            shapes = shapes.affine_transform([1, 0, 0, -1, 0, 0])
        highest = [_highest(shape, dataset, grid, raster) for shape in shapes]
    return frame.assign(score=highest)


def _highest(shape: Any, dataset: Any, grid: Grid, raster: Path) -> float:
    if shape is None or shape.is_empty:
        return float("nan")
    west, south, east, north = shape.bounds
    corners = [~grid.transform @ point for point in ((west, north), (east, south), (west, south), (east, north))]
    cols, rows = (np.array(axis) for axis in zip(*corners, strict=True))
    if not (np.isfinite(cols).all() and np.isfinite(rows).all()):  # it has no place in the CRS of the raster
        return float("nan")
    top, left = int(np.floor(rows.min())), int(np.floor(cols.min()))
    window = Window(top, left, int(np.ceil(rows.max())) - top, int(np.ceil(cols.max())) - left).within(grid.window)
    if not window.height or not window.width:
        return float("nan")
    scores, known = _known(dataset, window, raster)
    transform = grid.transform @ rasterio.Affine.translation(window.col, window.row)
    for touched in (False, True):  # a polygon thinner than a pixel holds no centre of one
        inside = ~geometry_mask([shape], scores.shape, transform, all_touched=touched) & known
        if inside.any():
            return float(scores[inside].max())
    return float("nan")
