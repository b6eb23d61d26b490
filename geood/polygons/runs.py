"""One window of a mask: what hangs together in it, and the corners of its outlines.

Everything is told from stretches, the pixels of one row that lie side by side: there are far fewer of them than pixels,
numpy finds them at the speed of memory, and two stretches hang together when they overlap in neighbouring rows. A
window comes framed by the row above and the column to the left of it, so each point between pixels lies inside exactly
one window, and an outline is known by its corners alone: no seam leaves a trace in it. Pieces hang together over the
sides of pixels; where two of them meet at a corner only, that is a contact. No raster, no score, no geography here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from geood.geo.grid import Window

RIGHT, FIRST = 2, 1  # bits of Corners.x
DOWN, CONTACT = 2, 1  # bits of Corners.y


class Vertices(NamedTuple):
    """Points where an outline turns; where two pixels meet at a corner only, there is one for each of them.

    `x` is four times the column, plus RIGHT where the horizontal edge of the outline leads to the right from here, plus
    FIRST where that edge begins here if one walks with the mask on the right hand. `y` is four times the row, plus DOWN
    where the vertical edge leads down, plus CONTACT. `piece` is the piece that is outlined.
    """

    x: NDArray[np.int32]
    y: NDArray[np.int32]
    piece: NDArray[np.int64]

    def some(self, chosen: NDArray[Any] | slice) -> Vertices:
        """Those of them."""
        return Vertices(self.x[chosen], self.y[chosen], self.piece[chosen])


def end_to_end(corners: list[Vertices]) -> Vertices:
    """All of several sets of corners."""
    if len(corners) == 1:  # which may be large
        return corners[0]
    x, y, piece = (np.concatenate(part) for part in zip(*corners, strict=True))
    return Vertices(x, y, piece)


class Runs(NamedTuple):
    """Stretches in reading order: row in the frame, columns in it from `start` to before `end`, and their piece."""

    row: NDArray[np.int32]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    piece: NDArray[np.int32]


class WindowComponents(NamedTuple):
    """The pieces of one framed window, so many; `contacts` are pairs (n, 2) of them."""

    number: int
    stretches: Runs
    corners: Vertices
    contacts: NDArray[np.int32]


class FramedWindow:
    """The mask of a window with the row above, the column to the left, and the emptiness that ends each row.

    At the last row and column of the scene it has an empty row and column more, so that the points there are inside.
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
        """The row above, from one column before the window on."""
        return self.pixels[0, :-1]

    @property
    def left(self) -> NDArray[np.bool_]:
        """The column to the left."""
        return self.pixels[1 : self.window.height + 1, 0]

    def pieces(self) -> WindowComponents:
        """What hangs together over sides."""
        changes = self._flat[1:] != self._flat[:-1]
        edges = np.flatnonzero(changes).astype(np.int32)  # the first pixel of a stretch and the one after it, in turn
        starts, ends = edges[0::2], edges[1::2]
        first = np.searchsorted(ends, starts + np.int32(self.pitch), "right")
        overlaps = np.maximum(np.searchsorted(starts, ends + np.int32(self.pitch), "left") - first, 0)
        offsets = np.concatenate([[0], np.cumsum(overlaps)])
        below = np.repeat(first - offsets[:-1], overlaps) + np.arange(offsets[-1])
        count, piece = together(len(starts), offsets, below)
        row = starts // np.int32(self.pitch)
        place = row * np.int32(self.pitch)
        corners, contacts = self._corners(changes, edges, piece)
        return WindowComponents(count, Runs(row, starts - place, ends - place, piece), corners, contacts)

    def _corners(
        self, changes: NDArray[np.bool_], edges: NDArray[np.int32], piece: NDArray[np.int32]
    ) -> tuple[Vertices, NDArray[np.int32]]:
        """Corners at the upper and lower ends of vertical edges, and the pairs of pieces that meet at one."""
        pitch, flat = np.int32(self.pitch), self._flat[1:]
        row = edges // pitch
        col = edges - row * pitch
        inside = (col >= 1) & (col <= self.window.width + self.last_col)
        xs, ys, owners, contacts = [], [], [], np.zeros((0, 2), np.int32)
        for down in (True, False):
            lines = row >= 1 if down else row < self.window.height + self.last_row
            which = np.flatnonzero(inside & lines)
            beyond = edges[which] - pitch if down else edges[which] + pitch
            goes_on, filled, begins = changes[beyond], flat[beyond], which % 2 == 0
            contact = goes_on & (filled != begins)
            turns = ~goes_on | contact
            which, filled, begins, contact = which[turns], filled[turns], begins[turns], contact[turns]
            right, leaving = begins ^ (filled & ~contact), begins == down
            xs.append((col[which] + np.int32(self.window.col - 1)) * np.int32(4) + right * np.int32(2) + leaving)
            line = row[which] + np.int32(self.window.row - down)
            ys.append(line * np.int32(4) + np.int32(2 * down) + contact)
            owners.append(piece[which // 2])
            if down and contact.any():
                other = np.searchsorted(edges, beyond[turns][contact])
                contacts = np.stack([piece[which[contact] // 2], piece[other // 2]], axis=1)
        corners = Vertices(np.concatenate(xs), np.concatenate(ys), np.concatenate(owners).astype(np.int64))
        return corners, contacts


def together(count: int, offsets: NDArray[Any], neighbours: NDArray[Any]) -> tuple[int, NDArray[np.int32]]:
    """Groups of `count` things, numbered by their first member: how many, and the number of each thing's group.

    Thing i hangs together with neighbours[offsets[i]:offsets[i + 1]].
    """
    if not len(neighbours):
        return count, np.arange(count, dtype=np.int32)
    graph = csr_array((np.ones(len(neighbours), np.int8), neighbours, offsets), shape=(count, count))
    found, groups = connected_components(graph, directed=False)
    return int(found), groups


def joined(count: int, pairs: NDArray[Any]) -> tuple[int, NDArray[np.int32]]:
    """The same from pairs (n, 2) of things that hang together."""
    order = np.argsort(pairs[:, 0], kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=count))])
    return together(count, offsets, pairs[order, 1])
