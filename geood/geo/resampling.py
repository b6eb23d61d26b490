"""Resampling of arrays by windows: area average for downsampling, bilinear for upsampling.

Downsampling takes the mean over the area of the new pixel. Upsampling is bilinear: unlike cubic it never leaves the
range of its neighbours, which matters next to nodata. Only valid pixels contribute. A pixel is the same sum in the same
order whatever window it is computed in, so windows put together equal the whole, byte for byte; GDAL's warper, which
works block by block and chooses among overviews, does not guarantee that. Works on arrays only, not on files.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_TURNS = 8  # of a window that is copied by runs of columns
MAJORITY = 0.4999  # fraction of a pixel's area that must be valid: half, with a margin for rounding


class Taps(NamedTuple):
    """Filter taps of `n` new pixels along one axis, up to K source pixels each.

    The source pixels lie in `start` to `stop` (excluded); `places` (K, n) are their indices relative to `start`.
    `weights` (K, n) make the value, `shares` (K, n) are the fractions of the new pixel's length that they cover.
    """

    start: int
    stop: int
    places: NDArray[np.intp]
    weights: NDArray[np.float32]
    shares: NDArray[np.float32]


def resized(size: int, scale: float) -> int:
    """Return the number of pixels of an axis of `size` after resampling; the last may extend beyond its end."""
    return max(1, math.ceil(size * scale - 1e-3))


def taps(first: int, length: int, *, scale: float, size: int) -> Taps:
    """Compute the taps of `length` new pixels from `first` on, for an axis of `size` source pixels.

    `scale` is new pixels per source pixel. Nothing outside the axis contributes: the last new pixel is made of the
    source pixels that it covers.
    """
    pitch = 1 / scale
    new = np.arange(first, first + length)
    low, high = new * pitch, np.minimum((new + 1) * pitch, size)
    if pitch >= 1:
        below = np.floor(low + 1e-6).astype(np.intp)
        most = round(pitch) if abs(pitch - round(pitch)) < 1e-9 else math.ceil(pitch) + 1
        places = below + np.arange(most)[:, None]
    else:
        below = np.floor((new + 0.5) * pitch - 0.5).astype(np.intp)
        places = below + np.arange(2)[:, None]
    covered = np.clip(np.minimum(high, places + 1) - np.maximum(low, places), 0, None)
    covered[covered < 1e-6] = 0
    places = places.clip(0, size - 1)
    shares = (covered / np.maximum(high - low, 1e-6)).astype(np.float32)
    if pitch >= 1:
        weights = shares
    else:
        beside = (new + 0.5) * pitch - 0.5 - below
        weights = np.stack([1 - beside, beside]).astype(np.float32)
    start = int(places.min())
    return Taps(start, int(places.max()) + 1, places - start, weights, shares)


def nearest(first: int, length: int, *, scale: float, size: int) -> NDArray[np.intp]:
    """Return the source pixel (n,) under the centre of each of `length` new pixels from `first` on, for class ids.

    A centre between two source pixels takes the latter. `scale` and `size` are as for `taps`, whose source pixels
    include these.
    """
    centres = (np.arange(first, first + length) + 0.5) / scale
    under: NDArray[np.intp] = np.floor(centres + 1e-6).astype(np.intp).clip(0, size - 1)
    return under


def spread(array: NDArray[Any], rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[Any]:
    """Return the pixels (..., h, w) at `rows` (h,) and `cols` (w,) of an array (..., H, W), for both of which most
    follow each other: a window that is reflected at the edge of a scene.

    Runs of rows and columns are copied as slices, ten times as fast as column by column.
    """
    down, across = _runs(rows), _runs(cols)
    if down is None or across is None:
        return array.take(rows, axis=-2).take(cols, axis=-1)
    wide = np.empty((*array.shape[:-2], len(rows), len(cols)), array.dtype)
    for to_rows, from_rows in down:
        for to_cols, from_cols in across:
            wide[..., to_rows, to_cols] = array[..., from_rows, from_cols]
    return wide


def _runs(places: NDArray[np.intp]) -> list[tuple[slice, slice]] | None:
    """Return the slices of a window and of the axis under it whose `places` follow each other; None: too many."""
    turns = np.flatnonzero(np.diff(places, 2)) + 2  # a run ends where the step changes
    if len(turns) > MOST_TURNS or (len(places) > 1 and not np.diff(places).all()):
        return None
    runs = []
    for start, stop in pairwise([0, *turns.tolist(), len(places)]):
        first, step = int(places[start]), -1 if places[start] > places[stop - 1] else 1
        last = first + step * (stop - start)
        runs.append((slice(start, stop), slice(first, None if last < 0 else last, step)))
    return runs


def resample(
    array: NDArray[Any], valid: NDArray[np.bool_], down: Taps, across: Taps
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Resample pixels (C, H, W) and their validity (H, W), cut to the taps' `start` and `stop` on both axes.

    Returns new pixels (C, h, w) and their validity (h, w). A new pixel is valid if at least half of its area is. The
    dtype is float32, or float64 for 32-bit integers and 64-bit types.
    """
    kind = np.float64 if array.dtype.itemsize > 4 or array.dtype in (np.int32, np.uint32) else np.float32
    shape = down.places.shape[1], across.places.shape[1]
    whole = bool(valid.all())
    pixels = array.astype(kind) if whole else np.where(valid, array, 0).astype(kind)
    out = np.stack([_summed(band, down, across, weights=True) for band in pixels])
    if whole:
        total = _product(down.weights.astype(kind), across.weights.astype(kind))
        return out / total, np.ones(shape, np.bool_)
    known = valid.astype(kind)
    total = _summed(known, down, across, weights=True)
    share = _summed(known, down, across, weights=False)
    enough = share >= MAJORITY
    return np.divide(out, total, out=np.zeros_like(out), where=enough), enough


def _summed(plane: NDArray[Any], down: Taps, across: Taps, *, weights: bool) -> NDArray[Any]:
    """Compute the weighted sum of a plane (H, W) under each new pixel, rows first."""
    along = [(t.weights if weights else t.shares).astype(plane.dtype) for t in (down, across)]
    rows = _one_way(plane, down.places, along[0], axis=0)
    return _one_way(rows, across.places, along[1], axis=1)


def _one_way(plane: NDArray[Any], places: NDArray[np.intp], weights: NDArray[Any], *, axis: int) -> NDArray[Any]:
    total: NDArray[Any] | None = None
    for place, weight in zip(places, weights, strict=True):
        part = plane.take(place, axis=axis)
        part *= weight[:, None] if axis == 0 else weight
        if total is None:
            total = part
        else:
            total += part
    assert total is not None
    return total


def _product(down: NDArray[Any], across: NDArray[Any]) -> NDArray[Any]:
    """Compute the sum of all weights under each new pixel, in the summation order of `_summed`."""
    ones = np.ones((1, down.shape[1]), down.dtype)
    rows = sum(ones * weight for weight in down)
    return np.asarray(sum(rows.T * weight for weight in across))
