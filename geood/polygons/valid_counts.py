"""How many pixels of a box hold data, for boxes that may reach over many windows.

Of each window one thing is remembered: whether all, none or some of its pixels hold data. That answers for most boxes
at once. For the others the windows that hold some are read a second time in the end; a sum for each pixel of a strip of
windows, which would answer at once, grows with the scene.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from geood.geo.grid import Grid, Window
from geood.polygons.block_windows import windows

NONE, SOME, ALL = 0, 1, 2
UNKNOWN = -1  # a count that only `later` can tell

Boxes = NDArray[np.int64]  # (n, 4): first row, first column, end row, end column


def grown(boxes: Boxes, grid: Grid) -> Boxes:
    """Boxes with one pixel more all around, within the grid."""
    wide: Boxes = np.clip(boxes + np.array([-1, -1, 1, 1]), 0, [grid.height, grid.width] * 2)
    return wide


def sizes(boxes: Boxes) -> NDArray[np.int64]:
    """Pixels in each box."""
    found: NDArray[np.int64] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return found


def counted(boxes: Boxes, window: Window, valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many pixels with data of a window each box holds; `valid` (h, w) is that of the window."""
    near = np.clip(boxes - np.array([window.row, window.col] * 2), 0, [window.height, window.width] * 2)
    if not len(near):
        return np.zeros(0, np.int64)
    top, left = near[:, :2].min(axis=0)
    bottom, right = near[:, 2:].max(axis=0)
    sums = np.zeros((bottom - top + 1, right - left + 1), np.int32)
    np.cumsum(valid[top:bottom, left:right], axis=1, out=sums[1:, 1:])
    for row in range(1, len(sums)):  # numpy's own sum along columns takes six times as long
        sums[row] += sums[row - 1]
    r0, c0, r1, c1 = (near - np.array([top, left] * 2)).T
    found: NDArray[np.int64] = (sums[r1, c1] - sums[r0, c1] - sums[r1, c0] + sums[r0, c0]).astype(np.int64)
    return found


class Validity:
    """What is remembered of a grid gone through in windows of one size."""

    def __init__(self, grid: Grid, size: tuple[int, int]) -> None:
        self.grid, self.size = grid, size
        self._state = np.full((-(-grid.height // size[0]), -(-grid.width // size[1])), SOME, np.uint8)

    def see(self, window: Window, state: int) -> None:
        """Remember whether NONE, SOME or ALL pixels of a window hold data."""
        self._state[window.row // self.size[0], window.col // self.size[1]] = state

    def at_once(self, boxes: Boxes) -> NDArray[np.int64]:
        """Pixels with data in each box (n, 4) where all windows that it meets are full, else UNKNOWN."""
        height, width = self.size
        found = sizes(boxes)
        for i, (top, left, bottom, right) in enumerate(boxes):
            met = self._state[top // height : (bottom - 1) // height + 1, left // width : (right - 1) // width + 1]
            if (met != ALL).any():
                found[i] = UNKNOWN
        return found

    def later(self, boxes: Boxes, read: Callable[[Window], NDArray[np.bool_]]) -> NDArray[np.int64]:
        """Pixels with data in each box, when all windows have been seen; `read` tells those of a window again."""
        found = np.zeros(len(boxes), np.int64)
        strip, in_strip = -1, np.zeros(0, np.int64)
        for window in windows(self.grid, self.size) if len(boxes) else ():
            if window.row != strip:
                strip = window.row
                in_strip = np.flatnonzero((boxes[:, 0] < strip + window.height) & (boxes[:, 2] > strip))
            near = in_strip[(boxes[in_strip, 1] < window.col + window.width) & (boxes[in_strip, 3] > window.col)]
            state = self._state[window.row // self.size[0], window.col // self.size[1]]
            if len(near) and state == SOME:
                found[near] += counted(boxes[near], window, read(window))
            elif len(near) and state == ALL:
                low, high = np.array(window[:2]), np.array(window[:2]) + window[2:]
                inside = np.clip(boxes[near], np.tile(low, 2), np.tile(high, 2))
                found[near] += sizes(inside)
        return found
