"""Components of a score raster: what hangs together above a threshold, and the figures of each, all in pixels.

GDAL polygonizes a mask that lies on disk, so a component is whole however the scene was tiled. The figures are then
gathered in one pass of windows over the scores: the polygons are painted back onto the pixels they came from (their
edges are pixel edges, so this is exact), and only what a window holds is in memory. No geography here.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray

from geood.gdal import open_raster, pieces, rasterio_window, reading
from geood.grid import Grid, Window
from geood.raster import NO_CLASS, ScoreWriter

LARGE_PX = 2**20  # from this size on the 95th percentile comes from a histogram, to bound memory
BINS = 4096
AT_ONCE = 10_000  # polygons made of plain coordinates at a time

Ring = list[tuple[float, float]]  # column and row of each corner, the first one again at the end


def find_components(dataset: Any, grid: Grid, *, threshold: float, connectivity: int) -> tuple[NDArray[Any], float]:
    """Components of pixels above the threshold, MultiPolygons in pixels (column, row), and the highest score.

    GDAL joins pixels over their sides; with connectivity 8 those polygons are then joined that meet at corners.
    """
    top = threshold
    with tempfile.TemporaryDirectory(prefix="geood-") as folder:
        mask_path = Path(folder) / "mask.tif"
        plain = Grid(grid.height, grid.width, Affine.identity())
        with ScoreWriter(mask_path, plain, dtype="uint8", nodata=0) as writer:
            for window in pieces(grid):
                with reading(Path(dataset.name)), np.errstate(invalid="ignore"):
                    array = dataset.read(1, window=rasterio_window(window))
                    above = array > threshold
                if above.any():
                    top = max(top, float(array[above].max()))
                    writer.write(window, above.astype(np.uint8))
        with open_raster(mask_path) as mask, reading(mask_path):
            band = rasterio.band(mask, 1)
            found = rasterio.features.shapes(band, mask=band, connectivity=4, transform=Affine.identity())
            traced, made = (shape["coordinates"] for shape, _ in found), [np.empty(0, object)]
            while batch := list(itertools.islice(traced, AT_ONCE)):
                made.append(_polygons(batch))
    patches = np.concatenate(made)
    owner = np.arange(len(patches)) if connectivity == 4 else _joined_at_corners(patches)
    order = np.argsort(owner, kind="stable")
    _, component = np.unique(owner[order], return_inverse=True)
    shapes = np.empty(len(np.unique(owner)), dtype=object)
    shapely.multipolygons(patches[order], indices=component, out=shapes)
    return shapes, top


def _polygons(traced: list[list[Ring]]) -> NDArray[Any]:
    """Valid polygons from what GDAL traced: for each its rings, the outer one first."""
    rings = [ring for polygon in traced for ring in polygon]
    owner = np.repeat(np.arange(len(traced)), [len(polygon) for polygon in traced])
    corners = np.concatenate([np.empty((0, 2)), *rings])
    closed = shapely.linearrings(corners, indices=np.repeat(np.arange(len(rings)), [len(ring) for ring in rings]))
    polygons: NDArray[Any] = shapely.polygons(closed, indices=owner)
    for i in np.flatnonzero(~shapely.is_valid(polygons)):
        polygons[i] = _untangled(traced[i])
    return polygons


def _untangled(rings: list[Ring]) -> Any:
    """A valid polygon from rings that pass a corner twice, as GDAL's do where two empty pixels meet there."""
    loops = sorted((loop for ring in rings[:1] for loop in _loops(ring)), key=lambda r: -shapely.Polygon(r).area)
    return shapely.Polygon(loops[0], loops[1:] + [loop for ring in rings[1:] for loop in _loops(ring)])


def _loops(ring: Ring) -> list[Ring]:
    """A closed ring cut wherever it passes a point again, into loops that do not."""
    loops: list[Ring] = []
    way: Ring = []
    seen: dict[tuple[float, float], int] = {}
    for point in ring:
        if point in seen:
            first = seen[point]
            loops.append([*way[first:], point])
            for passed in way[first + 1 :]:
                del seen[passed]
            del way[first + 1 :]
        else:
            seen[point] = len(way)
            way.append(point)
    return loops


def _joined_at_corners(patches: NDArray[Any]) -> NDArray[np.intp]:
    """For each polygon the lowest number among those it hangs together with, over shared corners."""
    points, owner = shapely.get_coordinates(patches, return_index=True)
    order = np.lexsort((owner, points[:, 0], points[:, 1]))
    points, owner = points[order], owner[order]
    shared = (points[1:] == points[:-1]).all(axis=1) & (owner[1:] != owner[:-1])
    one, other = owner[:-1][shared], owner[1:][shared]
    lowest = np.arange(len(patches))
    while (lowest[one] != lowest[other]).any():
        low = np.minimum(lowest[one], lowest[other])
        np.minimum.at(lowest, lowest[one], low)
        np.minimum.at(lowest, lowest[other], low)
        while (lowest[lowest] != lowest).any():
            lowest = lowest[lowest]
    return lowest


class Figures:
    """Running figures of n polygons, fed window by window in reading order."""

    def __init__(self, shapes: NDArray[Any], grid: Grid, span: tuple[float, float], classes: int) -> None:
        n = len(shapes)
        bounds = shapely.bounds(shapes).reshape(n, 4).astype(np.int64)
        self.boxes = bounds[:, [1, 0, 3, 2]]  # first row, first column, end row, end column
        self._around = np.clip(self.boxes + np.array([-1, -1, 1, 1]), 0, [grid.height, grid.width] * 2)
        self.pixels = np.rint(shapely.area(shapes)).astype(np.int64)
        self.sum, self.high, self.p95 = np.zeros(n), np.full(n, -np.inf), np.full(n, np.nan)
        self.valid, self.class_counts = np.zeros(n, np.int64), np.zeros((n, classes), np.int32)
        self._edges, self._carry = _vertical_edges(shapes), np.zeros(0, np.int32)
        large = np.flatnonzero(self.pixels >= LARGE_PX)
        self._span, self._large = span, np.full(n, -1)
        self._large[large] = np.arange(len(large))
        self._histograms = np.zeros((len(large), BINS), np.int64)
        self._pending_ids, self._pending = np.zeros(0, np.int64), np.zeros(0, np.float32)

    def add(self, window: Window, score: NDArray[np.float32], classes: NDArray[Any] | None) -> None:
        """Take in the pixels of a window; windows come row by row, from left to right."""
        painted = self._paint(window)
        place = painted > 0
        ids, values = painted[place].astype(np.int64) - 1, score[place]
        present, local = np.unique(ids, return_inverse=True)
        self.sum[present] += np.bincount(local, weights=values, minlength=len(present))
        np.maximum.at(self.high, ids, values)
        self._count_valid(window, np.isfinite(score))
        if classes is not None and self.class_counts.size:
            known = classes[place] < self.class_counts.shape[1]
            np.add.at(self.class_counts, (ids[known], classes[place][known]), 1)
        slot = self._large[ids]
        in_large = slot >= 0
        low, top = self._span
        bins = ((values[in_large] - low) / max(top - low, 1e-30) * BINS).astype(np.int64).clip(0, BINS - 1)
        np.add.at(self._histograms, (slot[in_large], bins), 1)
        self._pending_ids = np.concatenate([self._pending_ids, ids[~in_large]])
        self._pending = np.concatenate([self._pending, values[~in_large]])

    def settle(self, row: int) -> None:
        """Finish the polygons that end above `row`, so that their pixels can be forgotten."""
        done = self.boxes[self._pending_ids, 2] <= row
        ids, values = self._pending_ids[done], self._pending[done]
        self._pending_ids, self._pending = self._pending_ids[~done], self._pending[~done]
        order = np.lexsort((values, ids))
        present, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
        place = 0.95 * (counts - 1)
        below, values = starts + place.astype(np.int64), values[order].astype(np.float64)
        above = np.minimum(below + 1, starts + counts - 1)
        self.p95[present] = values[below] + (values[above] - values[below]) * (place % 1)

    def columns(self, class_names: dict[int, str] | None) -> dict[str, Any]:
        """The figures by name, after the last window."""
        low, top = self._span
        for index in np.flatnonzero(self._large >= 0):
            counts = np.cumsum(self._histograms[self._large[index]])
            middle = np.searchsorted(counts, 0.95 * counts[-1]) + 0.5
            self.p95[index] = min(low + (top - low) * middle / BINS, self.high[index])
        around = self._around
        share = self.valid / np.maximum((around[:, 2] - around[:, 0]) * (around[:, 3] - around[:, 1]), 1)
        names: list[str | None] = [None] * len(self.high)
        if class_names and self.class_counts.size:
            best = np.where(self.class_counts.any(axis=1), self.class_counts.argmax(axis=1), NO_CLASS)
            names = [class_names.get(int(value)) for value in best]
        return {
            "score_max": self.high,
            "score_mean": self.sum / np.maximum(self.pixels, 1),
            "score_p95": self.p95,
            "class_name": names,
            "area_px": self.pixels,
            "valid_fraction": share,
        }

    def _paint(self, window: Window) -> NDArray[np.int32]:
        """Number of the polygon (from 1) that each pixel of a window lies in, 0 for none.

        Going along a row, each vertical edge enters or leaves its polygon: an exclusive or with its number does both.
        """
        if window.col == 0:
            self._carry = np.zeros(window.height, np.int32)
        number, col, top, bottom = self._edges
        here = (col >= window.col) & (col < window.col + window.width)
        here &= (top < window.row + window.height) & (bottom > window.row)
        top = np.maximum(top[here] - window.row, 0)
        length = np.minimum(bottom[here] - window.row, window.height) - top
        rows = np.repeat(top - np.cumsum(length) + length, length) + np.arange(length.sum())
        painted = np.zeros((window.height, window.width), np.int32)
        painted[:, 0] = self._carry
        np.bitwise_xor.at(painted, (rows, np.repeat(col[here] - window.col, length)), np.repeat(number[here], length))
        np.bitwise_xor.accumulate(painted, axis=1, out=painted)
        self._carry = painted[:, -1].copy()
        return painted

    def _count_valid(self, window: Window, valid: NDArray[np.bool_]) -> None:
        """Add the valid pixels around each polygon that lie in a window, from the window's integral image."""
        origin, size = np.array([window.row, window.col] * 2), np.array([window.height, window.width] * 2)
        box = np.clip(self._around - origin, 0, size)
        near = np.flatnonzero((box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1]))
        r0, c0, r1, c1 = box[near].T
        if valid.all():
            self.valid[near] += (r1 - r0) * (c1 - c0)
            return
        sums = np.zeros((window.height + 1, window.width + 1), np.int32)
        sums[1:, 1:] = valid.cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
        self.valid[near] += sums[r1, c1] - sums[r0, c1] - sums[r1, c0] + sums[r0, c0]


def measure(dataset: Any, class_dataset: Any | None, grid: Grid, figures: Figures) -> None:
    """Go through the scores (and classes) window by window."""
    for window in pieces(grid):
        place = rasterio_window(window)
        with reading(Path(dataset.name)):
            score = dataset.read(1, window=place)
        classes = None
        if class_dataset is not None:
            with reading(Path(class_dataset.name)):
                classes = class_dataset.read(1, window=place)
        figures.add(window, score, classes)
        if window.col + window.width == grid.width:
            figures.settle(window.row + window.height)


def _vertical_edges(shapes: NDArray[Any]) -> tuple[NDArray[np.int32], ...]:
    """Vertical edges of polygons in pixel coordinates: polygon number from 1, column, first row, end row."""
    parts, polygon = shapely.get_parts(shapes, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    points = np.rint(points).astype(np.int32)
    upright = (ring[1:] == ring[:-1]) & (points[1:, 0] == points[:-1, 0])
    start, end = points[:-1][upright], points[1:][upright]
    number = (polygon[part[ring[:-1][upright]]] + 1).astype(np.int32)
    return number, start[:, 0], np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
