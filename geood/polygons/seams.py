"""Components that reach the edge of a window and may continue in a later one.

Along the windows processed so far runs a seam of pixels: the last row of the strip of windows above, the last row of
this strip, and the last column to the left. Each holds the component id and the label of its pixel. A component is open
while a window beside one of its seam pixels is still to come; after that it is complete and is closed. Components that
meet are merged. Label equivalences, which say which labels form one polygon, are recorded as pairs and resolved when
the component is closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geood.errors import ConfigError
from geood.geo.grid import Grid, Window
from geood.polygons.evidence import Tally
from geood.polygons.quantiles import Tail
from geood.polygons.runs import (
    PaddedWindow,
    Runs,
    Vertices,
    WindowComponents,
    concatenate_vertices,
    resolve_equivalences,
)
from geood.polygons.statistics import ComponentPart, WindowStatistics, empty_boxes, split_by_component

MAX_VERTICES = 2**24  # of one component: a polygon of a quarter of a gigabyte, which few programs open

SeamPixels = NDArray[np.int64]  # (2, n): component id and label; -1 where the mask is empty


@dataclass(slots=True, eq=False)
class OpenComponent:
    """An open component and what has been accumulated of it.

    `ids` are its own id and those of the components merged into it; `pending` counts how often a window still to come
    lies beside one of its pixels; `min_px` is the smallest size at which it is kept; `tally` is the evidence on it;
    `equivalences` are pairs (n, 2) of its labels that belong to one polygon.
    """

    ids: list[int]
    tail: Tail
    tally: Tally
    box: NDArray[np.int64] = field(default_factory=lambda: empty_boxes(1)[0])
    min_px: float = np.inf
    pending: int = 0
    score_sum: float = 0.0
    score_max: float = -np.inf
    vertex_count: int = 0
    vertices: list[Vertices] = field(default_factory=list)
    equivalences: list[NDArray[np.int64]] = field(default_factory=list)

    def merge(self, other: OpenComponent) -> None:
        """Merge another component into this one; the other must not be used any more."""
        self.ids += other.ids
        self.tail.merge(other.tail)
        self.tally.merge(other.tally)
        self._widen(other.box)
        self.min_px, self.score_max = min(self.min_px, other.min_px), max(self.score_max, other.score_max)
        self.pending, self.score_sum = self.pending + other.pending, self.score_sum + other.score_sum
        self.vertex_count += other.vertex_count
        self.vertices += other.vertices
        self.equivalences += other.equivalences

    def add(self, stats: WindowStatistics, part: ComponentPart, *, label_offset: int) -> None:
        """Add the component's part in a window; `label_offset` turns labels of the window into labels of the raster.

        Raises:
            ConfigError: the component has too many vertices for a polygon.
        """
        self.tail.add(part.scores)
        self._widen(stats.box[part.component])
        self.score_sum += float(stats.score_sum[part.component])
        self.score_max = max(self.score_max, float(stats.score_max[part.component]))
        self.tally.add(part.evidence)
        x, y, label = part.vertices  # views, which would keep the vertices of the whole window alive
        self.vertices.append(Vertices(x.copy(), y.copy(), label + label_offset))
        self.vertex_count += len(x)
        if self.vertex_count > MAX_VERTICES:
            raise ConfigError(
                f"one component has more than {MAX_VERTICES:,} vertices, too many for a polygon: the threshold cuts "
                "through noise; raise --threshold, smooth the scores (score.smooth_px), or set predict.connectivity=4"
            )

    def take_vertices(self) -> Vertices:
        """Return its vertices, with one label for each polygon, and drop them here."""
        (x, y, label), self.vertices = concatenate_vertices(self.vertices), []
        if not self.equivalences:
            return Vertices(x, y, label)
        equivalences = np.concatenate(self.equivalences)
        labels = np.unique(equivalences)
        _, group = resolve_equivalences(len(labels), np.searchsorted(labels, equivalences))
        lowest = np.empty(len(labels), np.int64)
        lowest[group[::-1]] = labels[::-1]
        index = np.searchsorted(labels, label).clip(max=len(labels) - 1)
        return Vertices(x, y, np.where(labels[index] == label, lowest[group[index]], label))

    def _widen(self, box: NDArray[np.int64]) -> None:
        np.minimum(self.box[:2], box[:2], out=self.box[:2])
        np.maximum(self.box[2:], box[2:], out=self.box[2:])


class Seams:
    """The seam pixels and the open components of a grid whose windows come in reading order."""

    def __init__(self, grid: Grid, *, threshold: float, class_count: int) -> None:
        self._width, self._threshold, self._class_count = grid.width, threshold, class_count
        self._open: dict[int, OpenComponent] = {}
        self._next_id, self._label_offset = 0, 0
        self._above, self._below = (np.full((2, grid.width + 1), -1, np.int64) for _ in range(2))
        self._left = np.full((2, 0), -1, np.int64)

    def neighbours(self, window: Window) -> SeamPixels:
        """Return the seam pixels above a window, from one column before it on, followed by those to its left."""
        if window.col == 0:
            self._left = np.full((2, window.height), -1, np.int64)
        return np.concatenate([self._above[:, window.col : window.col + window.width + 1], self._left], axis=1)

    def skip(self, window: Window) -> None:
        """Pass a window that neither holds nor touches a component."""
        self._store_seam(window, np.full((2, window.width), -1, np.int64), np.full((2, window.height), -1, np.int64))

    def add(
        self, padded: PaddedWindow, labelled: WindowComponents, stats: WindowStatistics, *, min_px: float
    ) -> tuple[NDArray[np.int64], list[OpenComponent]]:
        """Add the components of a window that reach its edge; return the indexes of the others, and those now closed.

        Raises:
            ConfigError: a component has too many vertices for a polygon.
        """
        ids = self._resolve_ids(padded, labelled.runs, stats)
        for part in split_by_component(stats, labelled.vertices, ids >= 0):
            component = self._open[int(ids[part.component])]
            component.add(stats, part, label_offset=self._label_offset)
            component.min_px = min(component.min_px, min_px)
        self._update_seam(padded, labelled.runs, stats, ids)
        self._label_offset += labelled.label_count
        touched = {id(component): component for component in map(self._open.__getitem__, ids[ids >= 0].tolist())}
        closed = [component for component in touched.values() if not component.pending]
        for component in closed:
            for component_id in component.ids:
                del self._open[component_id]
        return np.flatnonzero(ids < 0), closed

    def _resolve_ids(self, padded: PaddedWindow, runs: Runs, stats: WindowStatistics) -> NDArray[np.int64]:
        """Return the id of each component of a window, -1 if it lies inside; merge open components that it joins."""
        (row, start, end, label), window = runs, padded.window
        ids = np.full(len(stats.area_px), -1, np.int64)
        above, left = np.flatnonzero(row == 0), np.flatnonzero((start == 0) & (row > 0))
        run = np.concatenate([np.repeat(above, (end - start)[above]), left])
        position = np.concatenate([np.flatnonzero(padded.above), window.width + row[left]])
        seam = self.neighbours(window)[:, position]
        seam_ids, seam_index = np.unique(seam[0], return_inverse=True)
        # The pixel above the last column touches the next window diagonally, so it stays pending for that one.
        passed = (position != window.width) | padded.last_col
        for seam_id, count in zip(seam_ids.tolist(), np.bincount(seam_index, weights=passed).tolist(), strict=True):
            self._open[seam_id].pending -= int(count)
        links = np.unique(stats.of_run[run].astype(np.int64) * len(seam_ids) + seam_index)
        n = max(len(seam_ids), 1)
        for component, seam_id in zip(links // n, seam_ids[links % n], strict=True):
            ids[component] = seam_id if ids[component] < 0 else self._merge(int(ids[component]), int(seam_id))
        exits = ((end == window.width + 1) & (not padded.last_col)) | ((row == window.height) & (not padded.last_row))
        for component in np.unique(stats.of_run[exits]).tolist():
            ids[component] = self._open_new() if ids[component] < 0 else ids[component]
        pairs = np.stack([label[run] + self._label_offset, seam[1]], axis=1)
        new = np.flatnonzero((pairs[1:] != pairs[:-1]).any(axis=1)) + 1
        for i in [0, *new.tolist()] if len(pairs) else []:
            self._open[int(ids[stats.of_run[run[i]]])].equivalences.append(pairs[i : i + 1].copy())
        return ids

    def _open_new(self) -> int:
        """Open a component and return its id."""
        new_id, self._next_id = self._next_id, self._next_id + 1
        self._open[new_id] = OpenComponent([new_id], Tail(self._threshold), Tally(self._class_count))
        return new_id

    def _merge(self, first: int, second: int) -> int:
        """Merge two components unless they are one already; return an id of the result."""
        large, small = self._open[first], self._open[second]
        if large is not small:
            if len(large.ids) + len(large.vertices) < len(small.ids) + len(small.vertices):
                large, small = small, large
            self._open.update(dict.fromkeys(small.ids, large))
            large.merge(small)
        return first

    def _update_seam(self, padded: PaddedWindow, runs: Runs, stats: WindowStatistics, ids: NDArray[np.int64]) -> None:
        """Replace the seam pixels beside a window by those along its lower and right edge."""
        (row, _, end, label), window = runs, padded.window
        bottom, right = (np.full((2, n), -1, np.int64) for n in (window.width, window.height))
        id_and_label = np.stack([ids[stats.of_run], label + self._label_offset])
        bottom_runs = np.flatnonzero(row == window.height) if not padded.last_row else np.zeros(0, np.int64)
        right_runs = (
            np.flatnonzero((end == window.width + 1) & (row > 0)) if not padded.last_col else np.zeros(0, np.int64)
        )
        if len(bottom_runs):
            bottom[:, padded.mask[-1]] = np.repeat(id_and_label[:, bottom_runs], stats.run_px[bottom_runs], axis=1)
        right[:, row[right_runs] - 1] = id_and_label[:, right_runs]
        components = np.concatenate([stats.of_run[bottom_runs], stats.of_run[right_runs]])
        weights = np.concatenate([stats.run_px[bottom_runs], np.ones(len(right_runs), np.int64)])
        counts = np.bincount(components, weights=weights, minlength=0)
        for component in np.flatnonzero(counts).tolist():
            self._open[int(ids[component])].pending += int(counts[component])
        self._store_seam(window, bottom, right)

    def _store_seam(self, window: Window, bottom: SeamPixels, right: SeamPixels) -> None:
        self._below[:, window.col + 1 : window.col + window.width + 1] = bottom
        self._left = right
        if window.col + window.width == self._width:
            self._above, self._below = self._below, self._above
            self._below[:] = -1
