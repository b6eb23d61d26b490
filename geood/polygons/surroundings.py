"""Surroundings of the pixels of a window that exceed the threshold: neighbouring classes, and scores further out.

Both need pixels beyond the window, which are read with it, and both are told pixel by pixel: so the windows in which a
component lies add up, and their size does not show. Beyond the scene there is nothing: no class, and no score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geood.constants import NO_CLASS
from geood.geo.grid import Grid, Window
from geood.polygons.evidence import PixelEvidence

OUTSIDE_PX = 6  # pixels beyond the outline at which surroundings are looked at: nearer, scores are still raised
BANDS = 4  # of a class raster with evidence: class, runner-up, margin, signal

Read = Callable[[Window], NDArray[Any]]


def evidence_of_pixels(
    score: NDArray[np.float32],
    above: NDArray[np.bool_],
    bands: NDArray[np.uint8] | None,
    *,
    threshold: float,
) -> PixelEvidence:
    """Return the evidence on the pixels of `above` (h, w), in reading order.

    `score` (h + 2 OUTSIDE_PX, w + 2 OUTSIDE_PX) and `bands` (B, h + 2, w + 2) reach beyond the window, NaN and NO_CLASS
    outside the scene; the bands are those of a class raster, the first its classes.
    """
    outside, sides = _outside(score, above, threshold)
    if bands is None:
        return PixelEvidence(outside=outside, sides=sides)
    held = [band[1:-1, 1:-1][above] for band in bands[:BANDS]]
    more = dict(zip(("classes", "runner", "margin", "signal"), held, strict=False))
    return PixelEvidence(**more, on_edge=_on_edge(bands[0], above), outside=outside, sides=sides)


def widened(inside: NDArray[Any], window: Window, grid: Grid, read: Read, *, by: int, fill: float) -> NDArray[Any]:
    """Return the pixels (..., h, w) of a window with `by` more on all sides, read from the raster; `fill` beyond it."""
    height, width = window.height, window.width
    wide = np.full((*inside.shape[:-2], height + 2 * by, width + 2 * by), fill, inside.dtype)
    wide[..., by:-by, by:-by] = inside
    top, left = window.row - by, window.col - by
    strips = (
        Window(top, left, by, width + 2 * by),
        Window(window.row + height, left, by, width + 2 * by),
        Window(window.row, left, height, by),
        Window(window.row, window.col + width, height, by),
    )
    for strip in strips:
        shared = strip.within(grid.window)
        if shared.height > 0 and shared.width > 0:
            target = shared._replace(row=shared.row - top, col=shared.col - left)
            wide[(..., *target.slices)] = read(shared)
    return wide


def _steps(pitch: int) -> tuple[int, ...]:
    """Return the steps to the four neighbours of a pixel in a flattened array of that width."""
    return -pitch, -1, 1, pitch


def _places(above: NDArray[np.bool_], margin: int) -> tuple[NDArray[np.intp], int]:
    """Return the indexes of the pixels in the flattened array that reaches `margin` further, and its width."""
    rows, cols = np.nonzero(above)
    pitch = above.shape[1] + 2 * margin
    return (rows + margin) * pitch + cols + margin, pitch


def _outside(
    score: NDArray[np.float32], above: NDArray[np.bool_], threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return the sum of the scores OUTSIDE_PX beyond the outer sides of each pixel, and how many there are.

    A side is an outer one if the pixel beyond it does not exceed the threshold; scores that exceed it themselves belong
    to this or another component and do not count, nor do those of pixels without data.
    """
    at, pitch = _places(above, OUTSIDE_PX)
    flat = score.ravel()
    total, number = np.zeros(len(at)), np.zeros(len(at), np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        for step in _steps(pitch):
            outline = np.flatnonzero(~(flat[at + step] > threshold))
            seen = flat[at[outline] + OUTSIDE_PX * step]
            counts = np.isfinite(seen) & ~(seen > threshold)
            total[outline[counts]] += seen[counts]
            number[outline[counts]] += 1
    return total, number


def _on_edge(classes: NDArray[np.uint8], above: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for each pixel whether one of its four neighbours has another class; without a class there is none."""
    at, pitch = _places(above, 1)
    flat = classes.ravel()
    own, other = flat[at], np.zeros(len(at), np.bool_)
    for step in _steps(pitch):
        beside = flat[at + step]
        other |= (beside != own) & (beside != NO_CLASS)
    return np.asarray(other & (own != NO_CLASS))
