"""Connected components of a score raster above a threshold, with statistics and boundaries, all in pixels.

The raster is read once, window by window. A component that lies inside one window is closed with it; those that reach
an edge grow along the seams and are closed when no window beside them is left. Memory therefore holds one window, two
rows of pixels and the open components, but no mask or statistics of the scene. Windows are joined by labels, never by
geometry, so windows of any size give the same result. Knows no georeferencing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood.constants import NO_CLASS
from geood.geo.grid import Grid, Window
from geood.polygons.block_windows import is_absent, iter_windows, read_ahead, read_band, read_bands, window_size
from geood.polygons.evidence import ComponentEvidence, PixelEvidence, joined, summarize
from geood.polygons.quantiles import EXACT_BELOW, Tail, percentiles
from geood.polygons.runs import PaddedWindow, Vertices, WindowComponents, concatenate_vertices
from geood.polygons.seams import OpenComponent, Seams
from geood.polygons.statistics import WindowPixels, WindowStatistics, window_statistics
from geood.polygons.surroundings import OUTSIDE_PX, evidence_of_pixels, widened
from geood.polygons.valid_counts import (
    ALL,
    NONE,
    SOME,
    UNKNOWN,
    Boxes,
    ValidCounts,
    box_areas,
    count_valid,
    expand_boxes,
)
from geood.progress import tracked

BATCH_VERTICES = 200_000  # vertices in a batch, about


class ComponentOptions(NamedTuple):
    """Threshold, connectivity (4 or 8) and number of classes; components under `min_px(window)` pixels are dropped."""

    threshold: float
    connectivity: int
    class_count: int
    min_px: Callable[[Window], float]


class ClosedComponents(NamedTuple):
    """Closed components: arrays (n,) of their statistics, and the vertices of all of them.

    `number` counts components over the whole raster. `box` (n, 4) is first row, first column, end row, end column;
    `evidence` is that on each component; `valid_px` is the number of valid pixels in the box expanded
    by one pixel (UNKNOWN: `Components.deferred_counts` gives it in the end). `owner` is, for each vertex, the index of
    its component in these arrays.
    """

    number: NDArray[np.int64]
    box: Boxes
    area_px: NDArray[np.int64]
    score_mean: NDArray[np.float64]
    score_max: NDArray[np.float64]
    score_p95: NDArray[np.float64]
    evidence: ComponentEvidence
    valid_px: NDArray[np.int64]
    vertices: Vertices
    owner: NDArray[np.int64]


class Components:
    """The components of a raster, in batches as they are closed: iterate once, then call `deferred_counts`.

    `scores` and `classes` (None if there are none) are rasterio datasets of the size of `grid`; further bands of
    `classes` are evidence on its pixels.

    Raises:
        ConfigError: a component has too many vertices for a polygon (while iterated).
        DataError: a raster cannot be read.
    """

    def __init__(self, scores: Any, classes: Any | None, grid: Grid, options: ComponentOptions) -> None:
        self._scores, self._classes, self._grid, self._options = scores, classes, grid, options
        self._size = window_size(scores)
        self._valid_counts = ValidCounts(grid, self._size)
        self._seams = Seams(grid, threshold=options.threshold, class_count=options.class_count)
        self._next_number, self._label_offset = 0, 0
        self._deferred: list[tuple[NDArray[np.int64], Boxes]] = []

    def __iter__(self) -> Iterator[ClosedComponents]:
        pending: list[ClosedComponents] = []
        all_windows, title = list(iter_windows(self._grid, self._size)), f"polygons of {Path(self._scores.name).name}"
        for pixels, state in tracked(title, read_ahead(all_windows, self._read), len(all_windows)):
            closed = self._process(pixels, state)
            pending += [batch for batch in closed if len(batch.owner) < BATCH_VERTICES]
            large = [batch for batch in closed if len(batch.owner) >= BATCH_VERTICES]
            del closed
            while large:
                yield large.pop()  # so that no reference to it stays here
            if sum(len(batch.owner) for batch in pending) >= BATCH_VERTICES:
                yield _concatenate(pending)
                pending = []
        if pending:
            yield _concatenate(pending)

    def deferred_counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ascending numbers of components with UNKNOWN `valid_px`, and the counts; rereads some windows."""
        numbers = np.concatenate([np.zeros(0, np.int64), *(number for number, _ in self._deferred)])
        boxes = np.concatenate([np.zeros((0, 4), np.int64), *(box for _, box in self._deferred)])
        return numbers, self._valid_counts.count_deferred(
            boxes, lambda window: np.isfinite(read_band(self._scores, window))
        )

    def _read(self, window: Window) -> tuple[WindowPixels, int]:
        """Read a window and threshold it; the state says whether NONE, SOME or ALL of its pixels are valid."""
        if is_absent(self._scores, window):
            return WindowPixels(window), NONE
        score = read_band(self._scores, window)
        valid = np.isfinite(score)
        state = ALL if valid.all() else SOME if valid.any() else NONE
        with np.errstate(invalid="ignore", over="ignore"):  # NaN; a threshold beyond float32
            above = score > self._options.threshold
        if not above.any():
            return WindowPixels(window), state
        return WindowPixels(window, score, above, self._evidence(window, score, above)), state

    def _evidence(self, window: Window, score: NDArray[np.float32], above: NDArray[np.bool_]) -> PixelEvidence:
        """Read what lies around a window and in its class bands, for the evidence on its pixels above the threshold."""
        threshold, classes = self._options.threshold, self._classes
        wide = widened(score, window, self._grid, partial(read_band, self._scores), by=OUTSIDE_PX, fill=np.nan)
        if classes is None:
            return evidence_of_pixels(wide, above, None, threshold=threshold)
        read = partial(read_bands, classes)
        bands = widened(read(window), window, self._grid, read, by=1, fill=NO_CLASS)
        return evidence_of_pixels(wide, above, bands, threshold=threshold)

    def _process(self, pixels: WindowPixels, state: int) -> list[ClosedComponents]:
        """Process the next window; return the components closed with it."""
        window, grid = pixels.window, self._grid
        self._valid_counts.record(window, state)
        occupied = self._seams.neighbours(window)[0] >= 0
        if pixels.above is None and not occupied.any():
            self._seams.skip(window)
            return []
        last_row, last_col = window.row + window.height == grid.height, window.col + window.width == grid.width
        padded = PaddedWindow(window, last_row=last_row, last_col=last_col)
        padded.above[:], padded.left[:] = occupied[: window.width + 1], occupied[window.width + 1 :]
        if pixels.above is not None:
            padded.mask[:] = pixels.above
        labelled, min_px = padded.label(), self._options.min_px(window)
        stats = window_statistics(labelled, pixels, connectivity=self._options.connectivity)
        inside, closed = self._seams.add(padded, labelled, stats, min_px=min_px)
        batches = [
            self._close_inside(labelled, stats, pixels, inside[stats.area_px[inside] >= min_px]),
            self._close_grown([component for component in closed if component.tail.count >= component.min_px]),
        ]
        self._label_offset += labelled.label_count
        return [batch for batch in batches if batch is not None]

    def _close_inside(
        self, labelled: WindowComponents, stats: WindowStatistics, pixels: WindowPixels, inside: NDArray[np.int64]
    ) -> ClosedComponents | None:
        """Build the components that lie inside one window."""
        if not len(inside):
            return None
        count, rank = len(inside), np.full(len(stats.area_px), -1, np.int64)
        rank[inside] = np.arange(count)
        ids = rank[stats.of_pixel]
        chosen = ids >= 0
        ids, values = ids[chosen], stats.scores[chosen]
        p95 = percentiles(ids, values, count)
        for large in np.flatnonzero(stats.area_px[inside] >= EXACT_BELOW):
            tail = Tail(self._options.threshold)
            tail.add(values[ids == large])
            p95[large] = tail.percentile()
        number, box = self._new_numbers(count), stats.box[inside]
        owner = rank[stats.of_label[labelled.vertices.label]]
        kept = owner >= 0
        vertices = labelled.vertices.select(kept)
        return ClosedComponents(
            number=number,
            box=box,
            area_px=stats.area_px[inside],
            score_mean=stats.score_sum[inside] / stats.area_px[inside],
            score_max=stats.score_max[inside],
            score_p95=np.minimum(p95, stats.score_max[inside]),
            evidence=summarize(ids, stats.evidence.select(chosen), count=count, class_count=self._options.class_count),
            valid_px=self._valid_px(number, box, pixels),
            vertices=vertices._replace(label=vertices.label + self._label_offset),
            owner=owner[kept],
        )

    def _close_grown(self, closed: list[OpenComponent]) -> ClosedComponents | None:
        """Build the components that span several windows."""
        if not closed:
            return None
        number, box = self._new_numbers(len(closed)), np.stack([component.box for component in closed])
        area_px = np.array([component.tail.count for component in closed])
        score_max = np.array([component.score_max for component in closed])
        vertices = [component.take_vertices() for component in closed]
        return ClosedComponents(
            number=number,
            box=box,
            area_px=area_px,
            score_mean=np.array([component.score_sum for component in closed]) / area_px,
            score_max=score_max,
            score_p95=np.minimum([component.tail.percentile() for component in closed], score_max),
            evidence=joined([component.tally.result() for component in closed]),
            valid_px=self._valid_px(number, box),
            vertices=concatenate_vertices(vertices),
            owner=np.repeat(np.arange(len(closed)), [len(each.x) for each in vertices]),
        )

    def _valid_px(self, number: NDArray[np.int64], box: Boxes, pixels: WindowPixels | None = None) -> NDArray[np.int64]:
        """Count the valid pixels around each component; `pixels` is the window that holds them all, if there is one."""
        expanded = expand_boxes(box, self._grid)
        valid_px, within = box_areas(expanded), np.zeros(len(box), np.bool_)
        if pixels is not None and pixels.score is not None:
            within |= (expanded[:, :2] >= pixels.window[:2]).all(axis=1)
            if not (valid := np.isfinite(pixels.score)).all():
                valid_px[within] = count_valid(expanded[within], pixels.window, valid)
        valid_px[~within] = self._valid_counts.count_if_full(expanded[~within])
        if len(unknown := np.flatnonzero(valid_px == UNKNOWN)):
            self._deferred.append((number[unknown], expanded[unknown]))
        return valid_px

    def _new_numbers(self, count: int) -> NDArray[np.int64]:
        """Return the numbers of the next `count` components."""
        self._next_number += count
        return np.arange(self._next_number - count, self._next_number)


def _concatenate(batches: list[ClosedComponents]) -> ClosedComponents:
    """Concatenate batches."""
    if len(batches) == 1:
        return batches[0]
    shifts = np.cumsum([0, *(len(batch.number) for batch in batches)])
    owner = np.concatenate([batch.owner + shift for batch, shift in zip(batches, shifts, strict=False)])
    columns = {
        name: np.concatenate([getattr(batch, name) for batch in batches])
        for name in ClosedComponents._fields
        if name not in ("evidence", "vertices", "owner")
    }
    return ClosedComponents(
        **columns,
        evidence=joined([batch.evidence for batch in batches]),
        vertices=concatenate_vertices([batch.vertices for batch in batches]),
        owner=owner,
    )
