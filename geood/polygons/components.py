"""Components of a score raster: what hangs together above a threshold, with its figures and outline, all in pixels.

The raster is gone through once, window by window. A component that lies inside one window is finished with it; those
that reach an edge grow along the seams and are closed when no window at them is left. So memory holds a window, two
rows of pixels and what is open: no mask, no statistics of the scene. What is joined are numbers, never geometry, so
windows of any size give the same. No geography here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood.constants import NO_CLASS
from geood.geo.grid import Grid, Window
from geood.polygons.block_windows import ahead, is_absent, read, window_size, windows
from geood.polygons.quantiles import LARGE, Tail, percentiles
from geood.polygons.runs import FramedWindow, Vertices, WindowComponents, end_to_end
from geood.polygons.seams import Growing, Seams
from geood.polygons.statistics import WindowPixels, WindowStatistics, most_frequent, window_statistics
from geood.polygons.valid_counts import ALL, NONE, SOME, UNKNOWN, Boxes, Validity, counted, grown, sizes
from geood.progress import tracked

AT_ONCE = 200_000  # corners that are handed over together, about


class Cut(NamedTuple):
    """How to cut: `kinds` classes are counted; in a window, fewer pixels than `least_px(window)` are too few."""

    threshold: float
    connectivity: int
    kinds: int
    least_px: Callable[[Window], float]


class ClosedComponents(NamedTuple):
    """Closed components: their figures, one each, and the corners of all of them.

    `box` is first row, first column, end row, end column; `kind` the most frequent class (NO_CLASS: none); `valid` the
    number of pixels with data in the box grown by one pixel (UNKNOWN: `Components.late` tells it in the end); `number`
    counts components over the whole raster. `owner` is the index here of the component that a corner belongs to.
    """

    number: NDArray[np.int64]
    box: Boxes
    pixels: NDArray[np.int64]
    mean: NDArray[np.float64]
    high: NDArray[np.float64]
    p95: NDArray[np.float64]
    kind: NDArray[np.int64]
    valid: NDArray[np.int64]
    corners: Vertices
    owner: NDArray[np.int64]


class Components:
    """The components of a raster, in batches as they are closed: iterate once, then call `late`.

    `scores` and `classes` (None: there are none) are rasterio datasets of the size of `grid`.

    Raises:
        ConfigError: while iterated, if a component has too many corners for a polygon.
        DataError: if a raster cannot be read.
    """

    def __init__(self, scores: Any, classes: Any | None, grid: Grid, cut: Cut) -> None:
        self._scores, self._classes, self._grid, self._cut = scores, classes, grid, cut
        self._size = window_size(scores)
        self._validity = Validity(grid, self._size)
        self._seams = Seams(grid, low=cut.threshold, kinds=cut.kinds)
        self._numbers, self._pieces = 0, 0
        self._late: list[tuple[NDArray[np.int64], Boxes]] = []

    def __iter__(self) -> Iterator[ClosedComponents]:
        waiting: list[ClosedComponents] = []
        places, title = list(windows(self._grid, self._size)), f"polygons of {Path(self._scores.name).name}"
        for pixels, state in tracked(title, ahead(places, self._look), len(places)):
            taken = self._take(pixels, state)
            waiting += [found for found in taken if len(found.owner) < AT_ONCE]
            large = [found for found in taken if len(found.owner) >= AT_ONCE]
            del taken
            while large:
                yield large.pop()  # nothing here holds on to it
            if sum(len(found.owner) for found in waiting) >= AT_ONCE:
                yield _as_one(waiting)
                waiting = []
        if waiting:
            yield _as_one(waiting)

    def late(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers, rising, of the components whose `valid` was UNKNOWN, and what it is; reads some windows again."""
        numbers = np.concatenate([np.zeros(0, np.int64), *(number for number, _ in self._late)])
        boxes = np.concatenate([np.zeros((0, 4), np.int64), *(box for _, box in self._late)])
        return numbers, self._validity.later(boxes, lambda window: np.isfinite(read(self._scores, window)))

    def _look(self, window: Window) -> tuple[WindowPixels, int]:
        """What is above the threshold in a window, and whether NONE, SOME or ALL of it holds data."""
        if is_absent(self._scores, window):
            return WindowPixels(window), NONE
        score = read(self._scores, window)
        valid = np.isfinite(score)
        state = ALL if valid.all() else SOME if valid.any() else NONE
        with np.errstate(invalid="ignore"):
            above = score > self._cut.threshold
        if not above.any():
            return WindowPixels(window), state
        classes = None if self._classes is None else read(self._classes, window)
        return WindowPixels(window, score, above, classes), state

    def _take(self, pixels: WindowPixels, state: int) -> list[ClosedComponents]:
        """Go on by one window; what is closed with it."""
        window, grid = pixels.window, self._grid
        self._validity.see(window, state)
        cells = self._seams.before(window)[0] >= 0
        if pixels.above is None and not cells.any():
            self._seams.skip(window)
            return []
        last_row, last_col = window.row + window.height == grid.height, window.col + window.width == grid.width
        frame = FramedWindow(window, last_row=last_row, last_col=last_col)
        frame.above[:], frame.left[:] = cells[: window.width + 1], cells[window.width + 1 :]
        if pixels.above is not None:
            frame.mask[:] = pixels.above
        pieces, least_px = frame.pieces(), self._cut.least_px(window)
        local = window_statistics(pieces, pixels, connectivity=self._cut.connectivity)
        inside, closed = self._seams.take(frame, pieces, local, least_px=least_px)
        found = [
            self._inside(pieces, local, pixels, inside[local.pixels[inside] >= least_px]),
            self._grown([component for component in closed if component.tail.count >= component.least_px]),
        ]
        self._pieces += pieces.number
        return [each for each in found if each is not None]

    def _inside(
        self, pieces: WindowComponents, local: WindowStatistics, pixels: WindowPixels, which: NDArray[np.int64]
    ) -> ClosedComponents | None:
        """Components that lie inside a window."""
        if not len(which):
            return None
        count, rank = len(which), np.full(len(local.pixels), -1, np.int64)
        rank[which] = np.arange(count)
        ids = rank[local.of_pixel]
        chosen = ids >= 0
        ids, values = ids[chosen], local.values[chosen]
        classes = None if local.classes is None else local.classes[chosen]
        p95 = percentiles(ids, values, count)
        for large in np.flatnonzero(local.pixels[which] >= LARGE):
            tail = Tail(self._cut.threshold)
            tail.add(values[ids == large])
            p95[large] = tail.percentile()
        number, box = self._number(count), local.box[which]
        owner = rank[local.of_piece[pieces.corners.piece]]
        ours = owner >= 0
        corners = pieces.corners.some(ours)
        return ClosedComponents(
            number=number,
            box=box,
            pixels=local.pixels[which],
            mean=local.total[which] / local.pixels[which],
            high=local.high[which],
            p95=np.minimum(p95, local.high[which]),
            kind=most_frequent(ids, classes, count=count, kinds=self._cut.kinds),
            valid=self._valid(number, box, pixels),
            corners=corners._replace(piece=corners.piece + self._pieces),
            owner=owner[ours],
        )

    def _grown(self, closed: list[Growing]) -> ClosedComponents | None:
        """Components that lay in several windows."""
        if not closed:
            return None
        number, box = self._number(len(closed)), np.stack([component.box for component in closed])
        pixels = np.array([component.tail.count for component in closed])
        high = np.array([component.high for component in closed])
        outlines = [component.outline() for component in closed]
        return ClosedComponents(
            number=number,
            box=box,
            pixels=pixels,
            mean=np.array([component.total for component in closed]) / pixels,
            high=high,
            p95=np.minimum([component.tail.percentile() for component in closed], high),
            kind=np.array([c.counts.argmax() if c.counts.any() else NO_CLASS for c in closed]),
            valid=self._valid(number, box),
            corners=end_to_end(outlines),
            owner=np.repeat(np.arange(len(closed)), [len(corners.x) for corners in outlines]),
        )

    def _valid(self, number: NDArray[np.int64], box: Boxes, pixels: WindowPixels | None = None) -> NDArray[np.int64]:
        """Pixels with data around each component; `pixels` is the window in which they lie, if it is one."""
        around = grown(box, self._grid)
        valid, within = sizes(around), np.zeros(len(box), np.bool_)
        if pixels is not None and pixels.score is not None:
            within |= (around[:, :2] >= pixels.window[:2]).all(axis=1)
            if not (complete := np.isfinite(pixels.score)).all():
                valid[within] = counted(around[within], pixels.window, complete)
        valid[~within] = self._validity.at_once(around[~within])
        if len(unknown := np.flatnonzero(valid == UNKNOWN)):
            self._late.append((number[unknown], around[unknown]))
        return valid

    def _number(self, count: int) -> NDArray[np.int64]:
        """Numbers of so many components more."""
        self._numbers += count
        return np.arange(self._numbers - count, self._numbers)


def _as_one(batches: list[ClosedComponents]) -> ClosedComponents:
    """One batch of several."""
    if len(batches) == 1:
        return batches[0]
    shifts = np.cumsum([0, *(len(found.number) for found in batches)])
    owner = np.concatenate([found.owner + shift for found, shift in zip(batches, shifts, strict=False)])
    figures = {
        name: np.concatenate([getattr(found, name) for found in batches]) for name in ClosedComponents._fields[:-2]
    }
    return ClosedComponents(**figures, corners=end_to_end([found.corners for found in batches]), owner=owner)
