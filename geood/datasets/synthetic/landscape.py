"""Landscape of the demo's scenes: fields with furrows, water, roads with bends and markings, houses, trees.

A `Canvas` is a scene being painted: albedo, height above ground and class of each pixel, with positions in metres from
its upper left corner. Shading and shadows are not painted; they are rendered later, from all heights at once. Colours
are those of a vertical photograph of central Europe in June. This module writes no files and renders nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from shapely import LineString, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import substring

Array = NDArray[np.float32]
Point = tuple[float, float]

CLASSES = {0: "land", 1: "road", 2: "building", 3: "tree", 4: "water"}
LAND, ROAD, BUILDING, TREE, WATER = CLASSES
UNKNOWN = 9
PIXEL_M = 0.25

CROPS = (  # colour of a field, and depth of its furrows (0: meadow)
    ((0.40, 0.49, 0.27), 0.06),
    ((0.47, 0.52, 0.30), 0.05),
    ((0.72, 0.65, 0.47), 0.05),
    ((0.55, 0.45, 0.35), 0.07),
    ((0.43, 0.50, 0.31), 0.0),
    ((0.64, 0.60, 0.38), 0.04),
    ((0.36, 0.45, 0.25), 0.0),
    ((0.60, 0.50, 0.40), 0.06),
)
ROOFS = (
    (0.66, 0.36, 0.28),
    (0.60, 0.31, 0.24),
    (0.50, 0.36, 0.30),
    (0.42, 0.42, 0.44),
    (0.33, 0.33, 0.36),
    (0.70, 0.44, 0.34),
)
LEAVES = ((0.25, 0.36, 0.20), (0.30, 0.40, 0.21), (0.22, 0.33, 0.22), (0.36, 0.42, 0.22))
ROAD_WIDTHS = (7.0, 5.0, 4.6)  # metres: the main road, then the two that branch off


@dataclass
class Canvas:
    """Scene being painted: albedo (H, W, 3) in [0, 1], height in metres, class ids, and its random generator."""

    rng: np.random.Generator
    size: int
    albedo: Array = field(init=False)
    height: Array = field(init=False)
    labels: NDArray[np.uint8] = field(init=False)
    blotches: Array = field(init=False)
    roads: list[LineString] = field(default_factory=list)
    hedges: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.albedo = np.zeros((self.size, self.size, 3), np.float32)
        self.height = np.zeros((self.size, self.size), np.float32)
        self.labels = np.zeros((self.size, self.size), np.uint8)
        self.blotches = fractal(self.rng, self.size, 1.3)

    @property
    def side_m(self) -> float:
        return self.size * PIXEL_M

    def frame(self, centre: Point, angle: float, reach_m: float) -> tuple[tuple[slice, slice], Array, Array]:
        """Return slices of the pixels within `reach_m` of `centre` (metres), and their rotated coordinates (u, v)."""
        x, y = centre
        rows = slice(max(0, int((y - reach_m) / PIXEL_M)), max(0, min(self.size, int((y + reach_m) / PIXEL_M) + 1)))
        cols = slice(max(0, int((x - reach_m) / PIXEL_M)), max(0, min(self.size, int((x + reach_m) / PIXEL_M) + 1)))
        dy = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5)[:, None] * PIXEL_M - y
        dx = (np.arange(cols.start, cols.stop, dtype=np.float32) + 0.5)[None, :] * PIXEL_M - x
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return (rows, cols), dx * cos + dy * sin, dy * cos - dx * sin

    def mask(self, shape: BaseGeometry) -> NDArray[np.bool_]:
        """Rasterize a shape given in metres to (H, W) bool."""
        if shape.is_empty:
            return np.zeros((self.size, self.size), bool)
        burned = rasterize([shape], (self.size, self.size), transform=Affine.scale(PIXEL_M))
        return np.asarray(burned, bool)

    def paint(
        self, where: NDArray[np.bool_], colour: tuple[float, ...], *, grain: float, label: int | None = None
    ) -> None:
        """Paint pixels with one colour, varied by the scene's blotches."""
        self.albedo[where] = np.array(colour, np.float32) * (1 + grain * self.blotches[where])[:, None]
        if label is not None:
            self.labels[where] = label


def fractal(rng: np.random.Generator, size: int, beta: float) -> Array:
    """Draw noise (size, size) of mean 0 and deviation 1 whose amplitude falls as frequency to the power `beta`."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), np.float32)) / frequency**beta
    noise = np.fft.irfft2(spectrum, (size, size))
    return np.asarray(noise / noise.std(), np.float32)


def blur(image: Array, times: int) -> Array:
    """Smooth the first two axes `times` times with the binomial kernel 1 2 1."""
    for _ in range(times):
        for axis in (0, 1):
            padded = np.pad(image, [(1, 1) if i == axis else (0, 0) for i in range(image.ndim)], mode="edge")
            n = image.shape[axis]
            before, here, after = (np.take(padded, range(i, i + n), axis) for i in range(3))
            image = (before + 2 * here + after) * np.float32(0.25)
    return image


def _bend(points: list[Point]) -> LineString:
    """Round the corners of a polyline into a road-like curve, by Chaikin's corner cutting."""
    line = np.array(points, float)
    for _ in range(5):
        cut = np.stack([0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]], 1).reshape(-1, 2)
        line = np.concatenate([line[:1], cut, line[-1:]])
    return LineString(line)


def paint_landscape(rng: np.random.Generator, size: int) -> Canvas:
    """Paint everything but trees and objects: fields, water, roads, gardens, houses."""
    canvas = Canvas(rng, size)
    _lay_fields(canvas)
    side, upright = canvas.side_m, rng.random() < 0.5

    def place(along: float, across: float) -> Point:
        return (side * across, side * along) if upright else (side * along, side * across)

    start, end = rng.uniform(0.35, 0.65, 2)
    bends = [place(a, float(rng.uniform(0.33, 0.67))) for a in (0.25, 0.5, 0.75)]
    main = _bend([place(-0.1, start), *bends, place(1.1, end)])
    streets = []
    for fork, outward in ((rng.uniform(0.2, 0.4), -0.1), (rng.uniform(0.6, 0.8), 1.1)):
        at = main.interpolate(fork, normalized=True)
        along = (at.y if upright else at.x) / side
        across = (at.x if upright else at.y) / side
        middle = place(along + rng.uniform(-0.12, 0.12), (across + outward) / 2)
        streets.append(_bend([(at.x, at.y), middle, place(along + rng.uniform(-0.2, 0.2), outward)]))
    canvas.roads = [main, *streets]
    _fill_water(canvas, place)
    plots = _plan_houses(canvas)
    for plot in plots:
        _lay_garden(canvas, plot)
    _lay_roads(canvas)
    for plot in plots:
        _build_house(canvas, plot)
    return canvas


def _lay_fields(canvas: Canvas) -> None:
    """Give each parcel a crop and a direction of furrows with tramlines; grassy margins and hedges lie between."""
    rng, size = canvas.rng, canvas.size
    ys, xs = np.mgrid[:size, :size].astype(np.float32) * np.float32(PIXEL_M)
    grain = float(rng.uniform(0, np.pi))
    parcels = _cut_parcels(canvas, xs, ys, grain=grain)
    count = int(parcels.max()) + 1
    warp = 0.8 * fractal(rng, size, 1.8)
    for parcel, pick in enumerate(np.resize(rng.permutation(len(CROPS)), count)):
        inside = parcels == parcel
        colour, furrow = CROPS[int(pick)]
        canvas.paint(inside, tuple(np.array(colour) + rng.normal(0, 0.02, 3)), grain=0.05 if furrow else 0.09)
        if furrow:
            angle = grain + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.05)
            across = xs[inside] * np.cos(angle) + ys[inside] * np.sin(angle) + warp[inside]
            stripes = 1 + furrow * np.sin(2 * np.pi * across / rng.uniform(1.3, 2.4))
            wheel = np.abs((across + 40) % 18 - 9)
            stripes -= 0.16 * ((wheel > 0.6) & (wheel < 1.1))
            canvas.albedo[inside] *= stripes.astype(np.float32)[:, None]
    edge = np.zeros((size, size), np.float32)
    edge[1:] += parcels[1:] != parcels[:-1]
    edge[:, 1:] += parcels[:, 1:] != parcels[:, :-1]
    canvas.paint(blur(edge, 6) > 0.05, (0.46, 0.50, 0.30), grain=0.12)
    canvas.hedges = (edge > 0) & np.isin(parcels, rng.permutation(count)[: count // 3])


def _cut_parcels(canvas: Canvas, xs: Array, ys: Array, *, grain: float) -> NDArray[np.int32]:
    """Number the pixels by parcel: the largest parcel is cut in two, across its longer side, until there are enough."""
    rng = canvas.rng
    parcels = np.zeros(xs.shape, np.int32)
    for new in range(1, max(3, round(14 * (canvas.side_m / 256) ** 2))):
        inside = parcels == int(np.bincount(parcels.ravel()).argmax())
        x, y = xs[inside], ys[inside]
        along, across = (np.ptp(x * np.cos(grain + t) + y * np.sin(grain + t)) for t in (0, np.pi / 2))
        angle = grain + (0 if along > across else np.pi / 2) + rng.normal(0, 0.07)
        offset = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
        inside[inside] = offset > np.quantile(offset, rng.uniform(0.35, 0.65))
        parcels[inside] = new
    return parcels


def _fill_water(canvas: Canvas, place: Callable[[float, float], Point]) -> None:
    """Paint a stream that crosses the main road, and a pond."""
    rng = canvas.rng
    at = rng.uniform(0.42, 0.58)
    bends = [place(at + rng.uniform(-0.13, 0.13), a) for a in (0.2, 0.4, 0.6, 0.8)]
    stream = _bend([place(at, -0.1), *bends, place(at + rng.uniform(-0.1, 0.1), 1.1)]).buffer(rng.uniform(3.5, 6))
    theta = np.linspace(0, 2 * np.pi, 90)[:-1]
    radius = canvas.side_m * rng.uniform(0.07, 0.1) * np.ones_like(theta)
    for wave in (2, 3, 4, 5):
        radius *= 1 + rng.uniform(0, 0.5 / wave) * np.sin(wave * theta + rng.uniform(0, 2 * np.pi))
    x, y = place(rng.uniform(0.1, 0.9), rng.choice([0.16, 0.84]))
    water = stream.union(Polygon(np.stack([x + radius * np.cos(theta), y + radius * np.sin(theta)], 1)).buffer(0))
    canvas.paint(canvas.mask(water.buffer(2.2)), (0.42, 0.46, 0.30), grain=0.15)
    canvas.paint(canvas.mask(water.buffer(0.6)), (0.58, 0.53, 0.42), grain=0.08)
    colours = np.linspace((0.34, 0.38, 0.32), (0.19, 0.27, 0.29), 6)
    for depth, colour in zip((0, 0.5, 1.2, 2.2, 4, 7), colours, strict=True):
        canvas.paint(canvas.mask(water.buffer(-depth)), tuple(colour), grain=0.02, label=WATER)
    canvas.height[canvas.labels == WATER] = -0.4


def _lay_roads(canvas: Canvas) -> None:
    """Paint asphalt with worn lanes and verges; the main road is wider, with a dashed centre line and edge lines."""
    rng = canvas.rng
    for line, width in zip(canvas.roads, ROAD_WIDTHS, strict=True):
        canvas.paint(canvas.mask(line.buffer(width / 2 + 1.0)) & (canvas.labels == LAND), (0.55, 0.52, 0.42), grain=0.1)
    for line, width in reversed(list(zip(canvas.roads, ROAD_WIDTHS, strict=True))):
        tone = rng.uniform(0.47, 0.58)
        surface = canvas.mask(line.buffer(width / 2))
        canvas.paint(surface, (tone, tone, tone * 1.02), grain=0.035, label=ROAD)
        canvas.height[surface] = 0.0
        for lane in (-width / 4, width / 4):
            canvas.albedo[canvas.mask(line.offset_curve(lane).buffer(0.8))] *= 0.94
        for _ in range(2):  # a patch where the road was mended
            begin = rng.uniform(0, line.length)
            canvas.albedo[canvas.mask(substring(line, begin, begin + 9).buffer(1.5)) & surface] *= 0.86
    main, width = canvas.roads[0], ROAD_WIDTHS[0]
    marks = [substring(main, begin, begin + 5).buffer(0.16) for begin in np.arange(0, main.length, 11)]
    marks += [main.offset_curve(side * (width / 2 - 0.35)).buffer(0.13) for side in (-1, 1)]
    for mark in marks:
        canvas.albedo[canvas.mask(mark) & (canvas.labels == ROAD)] = 0.86


@dataclass(frozen=True)
class _Plot:
    centre: Point
    angle: float
    length: float
    width: float
    towards_road: Point

    def covers(self, u: Array, v: Array, margin: float) -> NDArray[np.bool_]:
        """Return which local coordinates lie in the footprint, grown by a margin in metres."""
        return (np.abs(u) <= self.length / 2 + margin) & (np.abs(v) <= self.width / 2 + margin)


def _plan_houses(canvas: Canvas) -> list[_Plot]:
    """Choose positions for houses on both sides of the roads, more densely on the small ones, without overlap."""
    rng, plots = canvas.rng, list[_Plot]()
    blocked = canvas.labels == WATER
    for line in canvas.roads:
        blocked |= canvas.mask(line.buffer(5.5))
    for line, density in zip(canvas.roads[::-1], (0.72, 0.72, 0.25), strict=True):
        for distance in np.arange(14, line.length - 12, 21):
            for side in (-1, 1):
                if rng.random() > density:
                    continue
                plot = _draw_plot(rng, line, distance=distance + rng.uniform(-3, 3), side=side)
                where, u, v = canvas.frame(plot.centre, plot.angle, plot.length + 6)
                footprint = plot.covers(u, v, 2.5)
                whole = footprint.sum() > 0.7 * (plot.length + 5) * (plot.width + 5) / PIXEL_M**2
                if whole and not blocked[where][footprint].any():
                    blocked[where] |= footprint
                    plots.append(plot)
    return plots


def _draw_plot(rng: np.random.Generator, line: LineString, *, distance: float, side: int) -> _Plot:
    """Draw the plot of a house, or now and then a barn, set back from a road and parallel or perpendicular to it."""
    barn = rng.random() < 0.18
    length = rng.uniform(19, 28) if barn else rng.uniform(10, 15)
    width = rng.uniform(11, 14) if barn else rng.uniform(7.5, 10)
    at, ahead = line.interpolate(distance), line.interpolate(distance + 2)
    angle = float(np.arctan2(ahead.y - at.y, ahead.x - at.x))
    back = side * (width / 2 + rng.uniform(7.5, 12))
    centre = (at.x - back * np.sin(angle), at.y + back * np.cos(angle))
    turned = angle + (np.pi / 2 if not barn and rng.random() < 0.3 else 0) + rng.normal(0, 0.04)
    return _Plot(centre, turned, length, width, (at.x, at.y))


def _lay_garden(canvas: Canvas, plot: _Plot) -> None:
    """Paint a lawn around the house, and a paved drive to the road."""
    rng = canvas.rng
    where, u, v = canvas.frame(plot.centre, plot.angle, plot.length + 12)
    lawn = plot.covers(u, v, rng.uniform(5, 8)) & (canvas.labels[where] == LAND)
    tint = np.array((0.44, 0.51, 0.31)) + rng.normal(0, 0.025, 3)
    canvas.albedo[where][lawn] = tint.astype(np.float32) * (1 + 0.07 * canvas.blotches[where][lawn])[:, None]
    canvas.hedges[where] &= ~lawn
    drive = canvas.mask(LineString([plot.centre, plot.towards_road]).buffer(1.5)) & (canvas.labels == LAND)
    canvas.paint(drive, (0.62, 0.60, 0.57), grain=0.04, label=ROAD)


def _build_house(canvas: Canvas, plot: _Plot) -> None:
    """Build a house with a gabled or hipped roof, rows of tiles, a ridge and a chimney."""
    rng = canvas.rng
    where, u, v = canvas.frame(plot.centre, plot.angle, plot.length)
    colour = np.array(ROOFS[rng.integers(len(ROOFS))]) * rng.uniform(0.9, 1.1)
    half_l, half_w = plot.length / 2, plot.width / 2
    rise = half_w * rng.uniform(0.55, 0.9)
    slope = 1 - np.abs(v) / half_w
    if rng.random() < 0.35:
        slope = np.minimum(slope, (half_l - np.abs(u)) / half_w)
    inside = plot.covers(u, v, 0)
    height = rng.uniform(3.2, 5.5) + rise * slope
    tiles = 1 + 0.05 * np.sin(2 * np.pi * np.abs(v) / 0.75) + 0.035 * canvas.blotches[where]
    tiles = np.where(slope > 1 - 0.35 / half_w, 1.12, tiles)
    albedo = colour * tiles[..., None]
    chimney = (np.abs(u - half_l * rng.uniform(-0.6, 0.6)) < 0.5) & (np.abs(v - half_w * 0.3) < 0.5)
    height, albedo[chimney] = np.where(chimney, height + 1.4, height), (0.55, 0.42, 0.38)
    canvas.height[where][inside] = height[inside]
    canvas.albedo[where][inside] = albedo[inside]
    canvas.labels[where][inside] = BUILDING


def grow_trees(canvas: Canvas) -> None:
    """Grow woods where a smooth noise is high, hedgerows between parcels, and single trees; the highest crown shows."""
    rng, size = canvas.rng, canvas.size
    cover = fractal(rng, size, 2.0)
    woods = cover > np.quantile(cover, 0.86)
    leaves = fractal(rng, size, 0.7)
    step = int(4.5 / PIXEL_M)
    grid = np.mgrid[: size + step : step, : size + step : step].reshape(2, -1).T
    grid = rng.permutation(grid + rng.uniform(-7, 7, grid.shape)).round().astype(int)
    for row, col in grid:
        if not (0 <= row < size and 0 <= col < size) or canvas.labels[row, col] not in (LAND, TREE):
            continue
        hedge = canvas.hedges[max(0, row - 9) : row + 10, max(0, col - 9) : col + 10].any()
        if not (woods[row, col] or (hedge and rng.random() < 0.75) or rng.random() < 0.02):
            continue
        radius = float(rng.uniform(1.8, 4.8) if woods[row, col] else rng.uniform(1.3, 3.2))
        _grow_tree(canvas, ((col + 0.5) * PIXEL_M, (row + 0.5) * PIXEL_M), radius=radius, leaves=leaves)


def _grow_tree(canvas: Canvas, centre: Point, *, radius: float, leaves: Array) -> None:
    rng = canvas.rng
    where, u, v = canvas.frame(centre, 0.0, 1.35 * radius)
    if np.isin(canvas.labels[where], (UNKNOWN, BUILDING)).any():
        return
    theta = np.arctan2(v, u)
    lobes = 1 + 0.1 * np.sin(3 * theta + rng.uniform(0, 6)) + 0.08 * np.sin(5 * theta + rng.uniform(0, 6))
    near = (np.hypot(u, v) / (radius * lobes)) ** 2 + 0.10 * leaves[where]
    crown = 1.6 * radius + 1.1 * radius * np.sqrt(np.clip(1 - near, 0, 1)) + 0.28 * leaves[where]
    inside = (near < 1) & (crown > canvas.height[where])
    colour = np.array(LEAVES[rng.integers(len(LEAVES))]) * rng.uniform(0.88, 1.12)
    tone = 1 + 0.10 * leaves[where][inside]
    canvas.height[where][inside] = crown[inside]
    canvas.albedo[where][inside] = (colour * tone[:, None]).astype(np.float32)
    canvas.labels[where][inside] = TREE
