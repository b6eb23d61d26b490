"""The components of one window, and the figures of their pixels in it.

Figures of a part of a component that goes on elsewhere add up with those of its other parts; nothing here knows whether
it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood.constants import NO_CLASS
from geood.geo.grid import Window
from geood.polygons.runs import Vertices, WindowComponents, joined


class WindowPixels(NamedTuple):
    """A window and, where anything in it is above the threshold, its scores, which are above, and its classes."""

    window: Window
    score: NDArray[np.float32] | None = None
    above: NDArray[np.bool_] | None = None
    classes: NDArray[np.uint8] | None = None


class WindowStatistics(NamedTuple):
    """A window's components, numbered from 0, and its pixels above the threshold in reading order.

    `of_piece`, `of_stretch` and `of_pixel` tell the component of each; `inner` is the length of each stretch without
    the cells before the window. A component that consists of such cells alone has no pixels and an empty box.
    """

    of_piece: NDArray[np.int32]
    of_stretch: NDArray[np.int32]
    of_pixel: NDArray[np.int32]
    inner: NDArray[np.int32]
    box: NDArray[np.int64]
    pixels: NDArray[np.int64]
    total: NDArray[np.float64]
    high: NDArray[np.float64]
    values: NDArray[np.float32]
    classes: NDArray[np.uint8] | None


def window_statistics(pieces: WindowComponents, pixels: WindowPixels, *, connectivity: int) -> WindowStatistics:
    """Put pieces together to components, over corners too if `connectivity` is 8, and add up their figures."""
    if connectivity == 8:
        count, of_piece = joined(pieces.number, pieces.contacts)
    else:
        count, of_piece = pieces.number, np.arange(pieces.number, dtype=np.int32)
    row, start, end, piece = pieces.stretches
    of_stretch = of_piece[piece]
    inner = np.where(row > 0, end - np.maximum(start, 1), 0)
    of_pixel = np.repeat(of_stretch, inner)
    values, classes = np.zeros(0, np.float32), None
    if pixels.score is not None and pixels.above is not None:
        values = pixels.score[pixels.above]
        classes = None if pixels.classes is None else pixels.classes[pixels.above]
    box, there = empty_boxes(count), np.flatnonzero(inner)
    high = np.full(count, -np.inf, np.float32)
    if len(there):  # by stretches, of which there are fewer than pixels
        begins = np.cumsum(inner[there]) - inner[there]
        np.maximum.at(high, of_stretch[there], np.maximum.reduceat(values, begins))
    first_row, first_col = pixels.window.row - 1, pixels.window.col - 1  # of the frame
    np.minimum.at(box[:, 0], of_stretch[there], row[there] + first_row)
    np.minimum.at(box[:, 1], of_stretch[there], np.maximum(start[there], 1) + first_col)
    np.maximum.at(box[:, 2], of_stretch[there], row[there] + first_row + 1)
    np.maximum.at(box[:, 3], of_stretch[there], end[there] + first_col)
    total = np.asarray(np.bincount(of_pixel, weights=values, minlength=count), np.float64)
    counts = np.bincount(of_pixel, minlength=count)
    return WindowStatistics(
        of_piece, of_stretch, of_pixel, inner, box, counts, total, high.astype(np.float64), values, classes
    )


def empty_boxes(count: int) -> NDArray[np.int64]:
    """Boxes (first row, first column, end row, end column) that any other is larger than."""
    boxes = np.full((count, 4), -1, np.int64)
    boxes[:, :2] = np.iinfo(np.int64).max
    return boxes


def most_frequent(ids: NDArray[Any], classes: NDArray[np.uint8] | None, *, count: int, kinds: int) -> NDArray[np.int64]:
    """For each id from 0 to `count` - 1 the class below `kinds` that occurs most often with it, else NO_CLASS."""
    best, most = np.full(count, NO_CLASS, np.int64), np.zeros(count, np.int64)
    present = np.zeros(1) if classes is None else np.bincount(classes, minlength=1)[:kinds]
    for kind in np.flatnonzero(present):  # one by one: a table of all of them would be large where components are many
        counts = np.bincount(ids[classes == kind], minlength=count)
        better = counts > most
        best[better], most[better] = kind, counts[better]
    return best


class ComponentPart(NamedTuple):
    """What one component has in a window: its pixels and its corners."""

    component: int
    values: NDArray[np.float32]
    classes: NDArray[np.uint8] | None
    corners: Vertices


def shares(found: WindowStatistics, corners: Vertices, which: NDArray[np.bool_]) -> Iterator[ComponentPart]:
    """What each component marked in `which` has, one after the other."""
    rank = np.cumsum(which) - 1
    pixel, pixel_at = _grouped(found.of_pixel, which, rank)
    corner, corner_at = _grouped(found.of_piece[corners.piece], which, rank)
    values, classes = found.values[pixel], None if found.classes is None else found.classes[pixel]
    corners = corners.some(corner)
    for i, component in enumerate(np.flatnonzero(which).tolist()):
        here, there = slice(pixel_at[i], pixel_at[i + 1]), slice(corner_at[i], corner_at[i + 1])
        kinds = None if classes is None else classes[here]
        yield ComponentPart(component, values[here], kinds, corners.some(there))


def _grouped(owner: NDArray[Any], which: NDArray[np.bool_], rank: NDArray[Any]) -> tuple[NDArray[np.intp], list[int]]:
    """Indexes of what belongs to the marked ones, one after the other, and where each begins."""
    chosen = np.flatnonzero(which[owner])
    ranks = rank[owner[chosen]]
    order = np.argsort(ranks.astype(np.uint16) if len(which) < 2**16 else ranks, kind="stable")
    return chosen[order], [0, *np.cumsum(np.bincount(ranks, minlength=int(which.sum()))).tolist()]
