"""Gallery of the polygons of a map: for each a close picture, one of its surroundings, its outline, and its figures.

Pictures are cut from the scene, or from the score raster where the scene is not at hand. The outline is a path of its
own, so that it can be hidden to see what it covers. Bytes are budgeted: so many polygons fit on a page.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from matplotlib import colormaps
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from geood.geo.display import DisplayRange, Picture, open_parts
from geood.geo.gdal import open_raster, rasterio_window, reading
from geood.geo.grid import Grid, Window
from geood.polygons import in_pixels
from geood.reporting.maps import SceneMap
from geood.reporting.pictures import jpeg
from geood.reporting.reasons import number, reasons, text

SIDE = 208  # pixels of a picture's side
LEAST_PX, LEAST_CONTEXT_PX = 40, 160  # sides of the windows, pixels of the scene
CLOSE, WIDE = 1.5, 4.0  # side of the close window by that of the polygon, and of the wide one by the close one
MOST_POINTS = 160  # of an outline
Reader = Callable[[Window, int], Picture]


@dataclass(frozen=True)
class View:
    """Picture of a square of ground: data URI, outline as an SVG path in a square of SIDE, side in metres or pixels."""

    uri: str
    path: str
    ground: str


@dataclass(frozen=True)
class Card:
    """All that the page shows of one polygon."""

    key: str
    rank: int
    scene: str
    title: str
    views: tuple[View, ...]
    facts: tuple[tuple[str, str], ...]
    reasons: tuple[str, ...]
    coordinates: str
    place: str
    verdict: str
    comment: str
    excess: float


def cards(scene: SceneMap, number_of_scene: int, *, stretch: DisplayRange | None, budget: int) -> list[Card]:
    """Return the cards of a map's polygons, each picture within `budget` bytes; `stretch` is that of the scene.

    Raises:
        DataError: a raster cannot be read, or the polygons do not lie on its grid.
    """
    if scene.frame is None or not len(scene.frame):
        return []
    rows = scene.frame.drop(columns=scene.frame.geometry.name).to_dict("records")
    highest = max((number(row, "score_max") or 0.0 for row in rows), default=0.0)
    keys = keys_of(rows, number_of_scene)
    if scene.grid is None:
        none = ("", "")
        return [_card(scene, key, row, (), place=none, highest=highest) for key, row in zip(keys, rows, strict=True)]
    shapes, places = in_pixels(scene.frame, scene.grid), _places(scene, scene.grid)
    with _reader(scene, stretch) as read:
        return [
            _card(scene, key, row, _views(shape, scene.grid, read, budget), place=place, highest=highest)
            for key, row, shape, place in zip(keys, rows, shapes, places, strict=True)
        ]


def keys_of(rows: Sequence[Mapping[str, Any]], number_of_scene: int) -> list[str]:
    """Return the ids of a map's polygons on the page, by their ranks; copies that a person made differ by a number."""
    keys, seen = list[str](), Counter[int]()
    for i, row in enumerate(rows):
        rank = int(number(row, "rank") or i + 1)
        seen[rank] += 1
        keys.append(f"s{number_of_scene}p{rank}" + (f"-{seen[rank]}" if seen[rank] > 1 else ""))
    return keys


@contextmanager
def _reader(scene: SceneMap, stretch: DisplayRange | None) -> Iterator[Reader]:
    """Yield a function that reads pictures of the scene, or of its scores."""
    if scene.scene is not None and stretch is not None:
        with open_parts(scene.scene, stretch) as part:
            yield part
        return
    assert scene.scores is not None
    with reading(scene.scores), open_raster(scene.scores) as raster:
        low, high = scene.threshold or 0.0, scene.threshold or 1.0
        low, high = low - abs(low) - 0.5, high + abs(high) * 0.5 + 0.5

        def scores(window: Window, side: int) -> Picture:
            shape = max(1, min(side, window.height)), max(1, min(side, window.width))
            values = raster.read(1, window=rasterio_window(window), out_shape=shape)
            share = np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)
            return np.asarray(colormaps["inferno"](share)[..., :3], np.float32)

        yield scores


def _card(
    scene: SceneMap,
    key: str,
    row: Mapping[str, Any],
    views: tuple[View, ...],
    *,
    place: tuple[str, str],
    highest: float,
) -> Card:
    rank = int(number(row, "rank") or 0)
    top, excess = number(row, "score_max"), number(row, "threshold_excess")
    floor = scene.threshold if scene.threshold is not None else (number(row, "score_mean") or 0.0) - (excess or 0.0)
    span = highest - floor
    return Card(
        key=key,
        rank=rank,
        scene=scene.label,
        title=text(row, "class_name") or "no class",
        views=views,
        facts=tuple(_facts(row)),
        reasons=tuple(reasons(row)),
        coordinates=place[0],
        place=place[1],
        verdict=text(row, "verdict"),
        comment=", ".join(part for part in (text(row, "true_class"), text(row, "comment")) if part),
        excess=0.0 if top is None or span <= 0 else min(1.0, max(0.0, (top - floor) / span)),
    )


def _facts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    top, mean = number(row, "score_max"), number(row, "score_mean")
    if top is not None:
        yield "score", f"{top:.4g} highest" + (f", {mean:.4g} mean" if mean is not None else "")
    area, pixels = number(row, "area_m2"), number(row, "area_px")
    if area is not None:
        yield "area", f"{area:,.0f} m²" if area >= 10 else f"{area:.2g} m²"
    elif pixels is not None:
        yield "area", f"{pixels:,.0f} px"
    if second := text(row, "runner_up"):
        yield "second class", second


def _views(shape: Any, grid: Grid, read: Reader, budget: int) -> tuple[View, ...]:
    """Return the close and the wide picture of a polygon."""
    left, top, right, bottom = shapely.bounds(shape)
    centre = (left + right) / 2, (top + bottom) / 2
    close = max(LEAST_PX, CLOSE * max(right - left, bottom - top))
    sides = close, max(LEAST_CONTEXT_PX, WIDE * close)
    made = []
    for side in sides:
        window = _square(centre, side, grid)
        picture = read(window, SIDE)
        scale = SIDE / max(window.height, window.width)
        outline = _path(shape, window, scale)
        metres = grid.resolution_m
        longest = max(window.height, window.width)
        ground = f"{longest} px" if metres is None else f"{longest * metres:.3g} m"
        made.append(View(jpeg(_padded(picture), budget), outline, ground))
    return tuple(made)


def _square(centre: tuple[float, float], side: float, grid: Grid) -> Window:
    """Return a square window around a point, moved into the raster, and cut only where that is smaller."""
    width = math.ceil(side)
    left = min(max(0, round(centre[0] - width / 2)), max(0, grid.width - width))
    top = min(max(0, round(centre[1] - width / 2)), max(0, grid.height - width))
    return Window(top, left, width, width).within(grid.window)


def _padded(picture: Picture) -> Picture:
    """Return a square picture, white as without data below and to the right of what there is."""
    height, width = picture.shape[:2]
    side = max(height, width)
    return np.pad(picture, ((0, side - height), (0, side - width), (0, 0)), constant_values=1.0)


def _path(shape: Any, window: Window, scale: float) -> str:
    """Return an outline as an SVG path in a square of SIDE, simplified until it has few points."""
    placed = shapely.transform(shape, lambda points: (points - (window.col, window.row)) * scale)
    placed = shapely.clip_by_rect(placed, -20, -20, SIDE + 20, SIDE + 20)
    simple, tolerance = placed, 0.4
    while shapely.get_num_coordinates(simple) > MOST_POINTS and tolerance < SIDE:
        simple = shapely.simplify(placed, tolerance, preserve_topology=False)
        tolerance *= 2
    return path_of(simple)


def path_of(shape: Any, digits: int = 0) -> str:
    """Return polygons as an SVG path, coordinates with so many digits behind the point."""
    parts = []
    for ring in shapely.get_rings(shapely.get_parts(shape)):
        points = shapely.get_coordinates(ring)[:-1]
        if len(points) > 2:
            parts.append("M" + " ".join(f"{x:.{digits}f},{y:.{digits}f}" for x, y in points) + "Z")
    return "".join(parts)


def _places(scene: SceneMap, grid: Grid) -> list[tuple[str, str]]:
    """Return for each polygon a point inside as people copy it, and in words: latitude and longitude, or the pixel.

    A CRS that is not tied to the earth (a local grid) has neither latitudes nor longitudes.
    """
    assert scene.frame is not None
    points = shapely.point_on_surface(in_pixels(scene.frame, grid))
    pixels: NDArray[np.float64] = np.stack([shapely.get_x(points), shapely.get_y(points)], axis=1)
    here = [(f"{y:.0f}, {x:.0f}", f"row {y:.0f}, column {x:.0f}") for x, y in pixels]
    if grid.crs is None:
        return here
    crs, (east, north) = pyproj.CRS.from_user_input(grid.crs), _applied(grid.transform, pixels)
    digits = 6 if crs.is_geographic else 1
    own = [f"in the scene's CRS {x:.{digits}f}, {y:.{digits}f}" for x, y in zip(east, north, strict=True)]
    try:
        to_earth = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    except ProjError:
        return [(copied, f"{place}; {more}") for (copied, place), more in zip(here, own, strict=True)]
    longitudes, latitudes = to_earth.transform(east, north)
    earth = [f"{lat:.6f}, {lon:.6f}" for lat, lon in zip(latitudes, longitudes, strict=True)]
    return [(copied, f"{copied}; {more}") for copied, more in zip(earth, own, strict=True)]


def _applied(t: Affine, pixels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return t.a * pixels[:, 0] + t.b * pixels[:, 1] + t.c, t.d * pixels[:, 0] + t.e * pixels[:, 1] + t.f
