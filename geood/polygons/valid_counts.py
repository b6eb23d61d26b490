"""Numbers of valid pixels in boxes that may span many windows.

Only one state is kept per window: all, none or some of its pixels are valid. That settles most boxes at once. For the
others, the windows with some valid pixels are read a second time in the end; an integral image of a strip of windows,
which would settle them at once, grows with the scene.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from geood.geo.grid import Grid, Window
from geood.polygons.block_windows import iter_windows

NONE, SOME, ALL = 0, 1, 2
UNKNOWN = -1  # a count that only `count_deferred` can give

Boxes = NDArray[np.int64]  # (n, 4): first row, first column, end row, end column


def expand_boxes(boxes: Boxes, grid: Grid) -> Boxes:
    """Expand boxes by one pixel on all sides, within the grid."""
    expanded: Boxes = np.clip(boxes + np.array([-1, -1, 1, 1]), 0, [grid.height, grid.width] * 2)
    return expanded


def box_areas(boxes: Boxes) -> NDArray[np.int64]:
    """Return the number of pixels in each box."""
    areas: NDArray[np.int64] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def count_valid(boxes: Boxes, window: Window, valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the valid pixels of a window in each box; `valid` (h, w) is the mask of the window."""
    local = np.clip(boxes - np.array([window.row, window.col] * 2), 0, [window.height, window.width] * 2)
    if not len(local):
        return np.zeros(0, np.int64)
    top, left = local[:, :2].min(axis=0)
    bottom, right = local[:, 2:].max(axis=0)
    sums = np.zeros((bottom - top + 1, right - left + 1), np.int32)
    np.cumsum(valid[top:bottom, left:right], axis=1, out=sums[1:, 1:])
    for row in range(1, len(sums)):  # numpy's cumsum along columns takes six times as long
        sums[row] += sums[row - 1]
    r0, c0, r1, c1 = (local - np.array([top, left] * 2)).T
    counts: NDArray[np.int64] = (sums[r1, c1] - sums[r0, c1] - sums[r1, c0] + sums[r0, c0]).astype(np.int64)
    return counts


class ValidCounts:
    """Valid-pixel states of the windows of a grid, all of one size."""

    def __init__(self, grid: Grid, size: tuple[int, int]) -> None:
        self.grid, self.size = grid, size
        self._state = np.full((-(-grid.height // size[0]), -(-grid.width // size[1])), SOME, np.uint8)

    def record(self, window: Window, state: int) -> None:
        """Record whether NONE, SOME or ALL pixels of a window are valid."""
        self._state[window.row // self.size[0], window.col // self.size[1]] = state

    def count_if_full(self, boxes: Boxes) -> NDArray[np.int64]:
        """Count the valid pixels in each box (n, 4) if all windows that it meets are fully valid, else give UNKNOWN."""
        height, width = self.size
        counts = box_areas(boxes)
        for i, (top, left, bottom, right) in enumerate(boxes):
            states = self._state[top // height : (bottom - 1) // height + 1, left // width : (right - 1) // width + 1]
            if (states != ALL).any():
                counts[i] = UNKNOWN
        return counts

    def count_deferred(self, boxes: Boxes, read: Callable[[Window], NDArray[np.bool_]]) -> NDArray[np.int64]:
        """Count the valid pixels in each box once all windows are recorded; `read` rereads a window's valid mask."""
        counts = np.zeros(len(boxes), np.int64)
        strip_row, in_strip = -1, np.zeros(0, np.int64)
        for window in iter_windows(self.grid, self.size) if len(boxes) else ():
            if window.row != strip_row:
                strip_row = window.row
                in_strip = np.flatnonzero((boxes[:, 0] < strip_row + window.height) & (boxes[:, 2] > strip_row))
            near = in_strip[(boxes[in_strip, 1] < window.col + window.width) & (boxes[in_strip, 3] > window.col)]
            state = self._state[window.row // self.size[0], window.col // self.size[1]]
            if len(near) and state == SOME:
                counts[near] += count_valid(boxes[near], window, read(window))
            elif len(near) and state == ALL:
                low, high = np.array(window[:2]), np.array(window[:2]) + window[2:]
                inside = np.clip(boxes[near], np.tile(low, 2), np.tile(high, 2))
                counts[near] += box_areas(inside)
        return counts
