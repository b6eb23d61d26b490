"""Run-based connected components of one window of a mask, and the vertices of their boundaries.

Everything is computed from runs, the maximal horizontal sequences of mask pixels: there are far fewer runs than pixels,
numpy finds them at memory speed, and two runs are connected when they overlap in neighbouring rows. A window is padded
with the row above and the column to its left, so each grid point lies inside exactly one window. A boundary is
described by its vertices alone, so no seam leaves a trace in it. Labels are 4-connected; where the pixels of two labels
meet diagonally, that is a contact. Knows no raster, scores or georeferencing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from geood.geo.grid import Window

RIGHT, FIRST = 2, 1  # flag bits of Vertices.x
DOWN, CONTACT = 2, 1  # flag bits of Vertices.y


class Vertices(NamedTuple):
    """Grid points where a boundary turns; where two mask pixels meet only diagonally, one for each of them.

    `x` is four times the column, plus RIGHT if the horizontal edge at the vertex leads to the right, plus FIRST if that
    edge starts here when the boundary is walked with the mask on the right. `y` is four times the row, plus DOWN if the
    vertical edge leads down, plus CONTACT at a diagonal contact. `label` is the label whose boundary it is.
    """

    x: NDArray[np.int32]
    y: NDArray[np.int32]
    label: NDArray[np.int64]

    def select(self, chosen: NDArray[Any] | slice) -> Vertices:
        """Return the vertices at some indexes."""
        return Vertices(self.x[chosen], self.y[chosen], self.label[chosen])


def concatenate_vertices(vertices: list[Vertices]) -> Vertices:
    """Concatenate sets of vertices."""
    if len(vertices) == 1:  # it may be large: no copy
        return vertices[0]
    x, y, label = (np.concatenate(arrays) for arrays in zip(*vertices, strict=True))
    return Vertices(x, y, label)


class Runs(NamedTuple):
    """Runs in reading order: row and half-open column range in the padded window, and label."""

    row: NDArray[np.int32]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    label: NDArray[np.int32]


class WindowComponents(NamedTuple):
    """The labels 0 to `label_count` - 1 of a padded window; `contacts` (n, 2) are pairs that meet diagonally."""

    label_count: int
    runs: Runs
    vertices: Vertices
    contacts: NDArray[np.int32]


class PaddedWindow:
    """Mask of a window, padded with the row above, the column to the left and an empty column that ends each row.

    At the scene's last row an empty row is added, and at its last column the empty column counts as inside, so that the
    grid points on the scene's lower and right edges lie inside a window too.
    """

    def __init__(self, window: Window, *, last_row: bool, last_col: bool) -> None:
        self.window, self.last_row, self.last_col = window, last_row, last_col
        self.pitch = window.width + 2
        rows = window.height + 1 + last_row
        self._flat = np.zeros(1 + rows * self.pitch, np.bool_)
        self.pixels = self._flat[1:].reshape(rows, self.pitch)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask (h, w) of the window itself, to be filled in place; so are `above` and `left`."""
        return self.pixels[1 : self.window.height + 1, 1:-1]

    @property
    def above(self) -> NDArray[np.bool_]:
        """The row above (w + 1,), which begins one column before the window."""
        return self.pixels[0, :-1]

    @property
    def left(self) -> NDArray[np.bool_]:
        """The column to the left (h,)."""
        return self.pixels[1 : self.window.height + 1, 0]

    def label(self) -> WindowComponents:
        """Label the 4-connected components of the padded mask."""
        changes = self._flat[1:] != self._flat[:-1]
        edges = np.flatnonzero(changes).astype(np.int32)  # start and end of each run, in turn
        starts, ends = edges[0::2], edges[1::2]
        first = np.searchsorted(ends, starts + np.int32(self.pitch), "right")
        overlap_counts = np.maximum(np.searchsorted(starts, ends + np.int32(self.pitch), "left") - first, 0)
        offsets = np.concatenate([[0], np.cumsum(overlap_counts)])
        below = np.repeat(first - offsets[:-1], overlap_counts) + np.arange(offsets[-1])
        count, label = connected_groups(len(starts), offsets, below)
        row = starts // np.int32(self.pitch)
        row_start = row * np.int32(self.pitch)
        vertices, contacts = self._vertices(changes, edges, label)
        return WindowComponents(count, Runs(row, starts - row_start, ends - row_start, label), vertices, contacts)

    def _vertices(
        self, changes: NDArray[np.bool_], edges: NDArray[np.int32], label: NDArray[np.int32]
    ) -> tuple[Vertices, NDArray[np.int32]]:
        """Return the vertices at the upper and lower ends of vertical edges, and the pairs of labels in contact."""
        pitch, flat = np.int32(self.pitch), self._flat[1:]
        row = edges // pitch
        col = edges - row * pitch
        inside = (col >= 1) & (col <= self.window.width + self.last_col)
        xs, ys, labels, contacts = [], [], [], np.zeros((0, 2), np.int32)
        for down in (True, False):
            in_window = row >= 1 if down else row < self.window.height + self.last_row
            index = np.flatnonzero(inside & in_window)
            neighbour = edges[index] - pitch if down else edges[index] + pitch
            continues, filled, is_start = changes[neighbour], flat[neighbour], index % 2 == 0
            contact = continues & (filled != is_start)
            turns = ~continues | contact
            index, filled, is_start, contact = index[turns], filled[turns], is_start[turns], contact[turns]
            right, first = is_start ^ (filled & ~contact), is_start == down
            xs.append((col[index] + np.int32(self.window.col - 1)) * np.int32(4) + right * np.int32(2) + first)
            line = row[index] + np.int32(self.window.row - down)
            ys.append(line * np.int32(4) + np.int32(2 * down) + contact)
            labels.append(label[index // 2])
            if down and contact.any():
                other = np.searchsorted(edges, neighbour[turns][contact])
                contacts = np.stack([label[index[contact] // 2], label[other // 2]], axis=1)
        vertices = Vertices(np.concatenate(xs), np.concatenate(ys), np.concatenate(labels).astype(np.int64))
        return vertices, contacts


def connected_groups(count: int, offsets: NDArray[Any], neighbours: NDArray[Any]) -> tuple[int, NDArray[np.int32]]:
    """Return the number of connected components of a graph of `count` nodes, and the component (count,) of each node.

    Node i is adjacent to neighbours[offsets[i]:offsets[i + 1]]; components are numbered by their first node.
    """
    if not len(neighbours):
        return count, np.arange(count, dtype=np.int32)
    graph = csr_array((np.ones(len(neighbours), np.int8), neighbours, offsets), shape=(count, count))
    group_count, groups = connected_components(graph, directed=False)
    return int(group_count), groups


def resolve_equivalences(count: int, pairs: NDArray[Any]) -> tuple[int, NDArray[np.int32]]:
    """Return the number of equivalence classes of `count` labels and the class of each, from pairs (n, 2) of labels.

    Classes are numbered by their first label.
    """
    order = np.argsort(pairs[:, 0], kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=count))])
    return connected_groups(count, offsets, pairs[order, 1])
