"""Components that reach the edge of a window and may go on in a later one.

Along the windows gone through so far lie the cells of the seam: the last row of pixels of the strip above, that of this
strip, and the last column to the left, each with the component and the piece it belongs to. A component is open while a
window at one of its cells is still to come; then what it has gathered is all there is. Components that meet become one;
which of their pieces are one polygon is written down as pairs and settled when the component is closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geood.errors import ConfigError
from geood.geo.grid import Grid, Window
from geood.polygons.quantiles import Tail
from geood.polygons.runs import FramedWindow, Runs, Vertices, WindowComponents, end_to_end, joined
from geood.polygons.statistics import ComponentPart, WindowStatistics, empty_boxes, shares

MOST_CORNERS = 2**24  # of one component: a polygon of a quarter of a gigabyte, which few programs open

Cells = NDArray[np.int64]  # (2, n): name of the component, number of the piece; -1 where there is none


@dataclass(slots=True, eq=False)
class Growing:
    """An open component: what has been gathered of it.

    `names` are its own and those of the components it has absorbed; `cells` counts how often a window still to come
    lies at one of its pixels; `least_px` is the size from which on it is not too small; `counts` tells how often each
    class occurs in it; `joins` are pairs (n, 2) of its pieces that are one polygon.
    """

    names: list[int]
    tail: Tail
    counts: NDArray[np.int64]
    box: NDArray[np.int64] = field(default_factory=lambda: empty_boxes(1)[0])
    least_px: float = np.inf
    cells: int = 0
    total: float = 0.0
    high: float = -np.inf
    corner_count: int = 0
    corners: list[Vertices] = field(default_factory=list)
    joins: list[NDArray[np.int64]] = field(default_factory=list)

    def absorb(self, other: Growing) -> None:
        """Become one with another component, which must not be used any more."""
        self.names += other.names
        self.tail.absorb(other.tail)
        self.counts += other.counts
        self._widen(other.box)
        self.least_px, self.high = min(self.least_px, other.least_px), max(self.high, other.high)
        self.cells, self.total = self.cells + other.cells, self.total + other.total
        self.corner_count += other.corner_count
        self.corners += other.corners
        self.joins += other.joins

    def gather(self, found: WindowStatistics, share: ComponentPart, *, pieces_before: int) -> None:
        """Take in what it has in a window; `pieces_before` is added to the numbers of its pieces.

        Raises:
            ConfigError: it has too many corners for a polygon.
        """
        self.tail.add(share.values)
        self._widen(found.box[share.component])
        self.total += float(found.total[share.component])
        self.high = max(self.high, float(found.high[share.component]))
        if share.classes is not None:
            self.counts += np.bincount(share.classes, minlength=256)[: len(self.counts)]
        x, y, piece = share.corners  # views, which would keep the corners of the whole window
        self.corners.append(Vertices(x.copy(), y.copy(), piece + pieces_before))
        self.corner_count += len(x)
        if self.corner_count > MOST_CORNERS:
            raise ConfigError(
                f"one component has more than {MOST_CORNERS:,} corners, too many for a polygon: the threshold cuts "
                "through noise; raise --threshold, smooth the scores (score.smooth_px), or set predict.connectivity=4"
            )

    def outline(self) -> Vertices:
        """All its corners, under one number for the pieces that are one polygon; it forgets them."""
        (x, y, piece), self.corners = end_to_end(self.corners), []
        if not self.joins:
            return Vertices(x, y, piece)
        joins = np.concatenate(self.joins)
        ids = np.unique(joins)
        _, group = joined(len(ids), np.searchsorted(ids, joins))
        lowest = np.empty(len(ids), np.int64)
        lowest[group[::-1]] = ids[::-1]
        at = np.searchsorted(ids, piece).clip(max=len(ids) - 1)
        return Vertices(x, y, np.where(ids[at] == piece, lowest[group[at]], piece))

    def _widen(self, box: NDArray[np.int64]) -> None:
        np.minimum(self.box[:2], box[:2], out=self.box[:2])
        np.maximum(self.box[2:], box[2:], out=self.box[2:])


class Seams:
    """The cells and the open components of a grid whose windows come in reading order."""

    def __init__(self, grid: Grid, *, low: float, kinds: int) -> None:
        self._width, self._low, self._kinds = grid.width, low, kinds
        self._open: dict[int, Growing] = {}
        self._names, self._pieces = 0, 0
        self._above, self._below = (np.full((2, grid.width + 1), -1, np.int64) for _ in range(2))
        self._left = np.full((2, 0), -1, np.int64)

    @property
    def open_components(self) -> int:
        """How many components may still grow."""
        return len({id(component) for component in self._open.values()})

    def before(self, window: Window) -> Cells:
        """The cells at a window: those above it from one column before on, then those to the left of it."""
        if window.col == 0:
            self._left = np.full((2, window.height), -1, np.int64)
        return np.concatenate([self._above[:, window.col : window.col + window.width + 1], self._left], axis=1)

    def skip(self, window: Window) -> None:
        """Leave a window behind that neither holds nor meets any component."""
        self._leave(window, np.full((2, window.width), -1, np.int64), np.full((2, window.height), -1, np.int64))

    def take(
        self, frame: FramedWindow, pieces: WindowComponents, found: WindowStatistics, *, least_px: float
    ) -> tuple[NDArray[np.int64], list[Growing]]:
        """Take in what of a window's components is not inside it; which are inside, and what is closed with this.

        Raises:
            ConfigError: a component has too many corners for a polygon.
        """
        names = self._enter(frame, pieces.stretches, found)
        for share in shares(found, pieces.corners, names >= 0):
            component = self._open[int(names[share.component])]
            component.gather(found, share, pieces_before=self._pieces)
            component.least_px = min(component.least_px, least_px)
        self._go_on(frame, pieces.stretches, found, names)
        self._pieces += pieces.number
        there = {id(c): c for c in map(self._open.__getitem__, names[names >= 0].tolist())}
        closed = [component for component in there.values() if not component.cells]
        for component in closed:
            for name in component.names:
                del self._open[name]
        return np.flatnonzero(names < 0), closed

    def _enter(self, frame: FramedWindow, stretches: Runs, found: WindowStatistics) -> NDArray[np.int64]:
        """Names of a window's components, -1 for those inside it; makes one of those that it connects."""
        (row, start, end, piece), window = stretches, frame.window
        names = np.full(len(found.pixels), -1, np.int64)
        above, left = np.flatnonzero(row == 0), np.flatnonzero((start == 0) & (row > 0))
        stretch = np.concatenate([np.repeat(above, (end - start)[above]), left])
        at = np.concatenate([np.flatnonzero(frame.above), window.width + row[left]])
        met = self.before(window)[:, at]
        known, index = np.unique(met[0], return_inverse=True)
        done = (at != window.width) | frame.last_col  # above the last column the next window lies too, at a corner
        for name, count in zip(known.tolist(), np.bincount(index, weights=done).tolist(), strict=True):
            self._open[name].cells -= int(count)
        links = np.unique(found.of_stretch[stretch].astype(np.int64) * len(known) + index)
        for component, name in zip(links // max(len(known), 1), known[links % max(len(known), 1)], strict=True):
            names[component] = name if names[component] < 0 else self._unite(int(names[component]), int(name))
        reaching = ((end == window.width + 1) & (not frame.last_col)) | ((row == window.height) & (not frame.last_row))
        for component in np.unique(found.of_stretch[reaching]).tolist():
            names[component] = self._begin() if names[component] < 0 else names[component]
        pairs = np.stack([piece[stretch] + self._pieces, met[1]], axis=1)
        new = np.flatnonzero((pairs[1:] != pairs[:-1]).any(axis=1)) + 1
        for i in [0, *new.tolist()] if len(pairs) else []:
            self._open[int(names[found.of_stretch[stretch[i]]])].joins.append(pairs[i : i + 1].copy())
        return names

    def _begin(self) -> int:
        """The name of a new component."""
        name, self._names = self._names, self._names + 1
        self._open[name] = Growing([name], Tail(self._low), np.zeros(self._kinds, np.int64))
        return name

    def _unite(self, one: int, other: int) -> int:
        """Make two components one, unless they are; a name of it."""
        large, small = self._open[one], self._open[other]
        if large is not small:
            if len(large.names) + len(large.corners) < len(small.names) + len(small.corners):
                large, small = small, large
            self._open.update(dict.fromkeys(small.names, large))
            large.absorb(small)
        return one

    def _go_on(self, frame: FramedWindow, stretches: Runs, found: WindowStatistics, names: NDArray[np.int64]) -> None:
        """Put the cells along a window's lower and right edge in the place of those before it."""
        (row, _, end, piece), window = stretches, frame.window
        bottom, right = (np.full((2, n), -1, np.int64) for n in (window.width, window.height))
        cells = np.stack([names[found.of_stretch], piece + self._pieces])
        last = np.flatnonzero(row == window.height) if not frame.last_row else np.zeros(0, np.int64)
        far = np.flatnonzero((end == window.width + 1) & (row > 0)) if not frame.last_col else np.zeros(0, np.int64)
        if len(last):
            bottom[:, frame.mask[-1]] = np.repeat(cells[:, last], found.inner[last], axis=1)
        right[:, row[far] - 1] = cells[:, far]
        which = np.concatenate([found.of_stretch[last], found.of_stretch[far]])
        weights = np.concatenate([found.inner[last], np.ones(len(far), np.int64)])
        counts = np.bincount(which, weights=weights, minlength=0)
        for component in np.flatnonzero(counts).tolist():
            self._open[int(names[component])].cells += int(counts[component])
        self._leave(window, bottom, right)

    def _leave(self, window: Window, bottom: Cells, right: Cells) -> None:
        self._below[:, window.col + 1 : window.col + window.width + 1] = bottom
        self._left = right
        if window.col + window.width == self._width:
            self._above, self._below = self._below, self._above
            self._below[:] = -1
