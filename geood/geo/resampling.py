"""Pixels brought to another size, so that a pixel's value never depends on the window it is asked for with.

Shrinking, a pixel is the mean of the area it covers; enlarging, it lies on the straight line between the two nearest
on each axis (bilinear: unlike cubic it makes no number that is not between its neighbours', which matters beside
missing data). Only valid pixels count. Every pixel is the same sum in the same order whatever else is computed, so
windows put together equal the whole, byte for byte; GDAL's warper, which works block by block and chooses among
overviews, does not promise that. Arrays alone: no files here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAJORITY = 0.4999  # of a pixel's area must be valid: half, and room for rounding


class Taps(NamedTuple):
    """Which pixels of an axis make up each new one: from `start`, `stop` excluded; (K, n) places counted from `start`.

    `weights` make the value, `shares` (K, n) are the parts of the new pixel's length that they cover.
    """

    start: int
    stop: int
    places: NDArray[np.intp]
    weights: NDArray[np.float32]
    shares: NDArray[np.float32]


def resized(size: int, scale: float) -> int:
    """How many pixels an axis of `size` has at a scale: the last may reach beyond the end."""
    return max(1, math.ceil(size * scale - 1e-3))


def taps(first: int, length: int, *, scale: float, size: int) -> Taps:
    """What makes up `length` new pixels from `first` on, of an axis that has `size` pixels before it is resized.

    Nothing outside the axis counts, so the last new pixel is made of what there is under it.
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


def resample(
    array: NDArray[Any], valid: NDArray[np.bool_], down: Taps, across: Taps
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """New pixels (C, h, w) and their validity (h, w) from the pixels (C, H, W) between the taps' starts and stops.

    A new pixel is valid where at least half of its area is. The type is float32, or float64 where the digital numbers
    have more than 24 bits.
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
    """The weighted sum of a plane (H, W) under each new pixel, rows first."""
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
    """The sum of all weights under each new pixel, added up in the order of `_summed`."""
    ones = np.ones((1, down.shape[1]), down.dtype)
    rows = sum(ones * weight for weight in down)
    return np.asarray(sum(rows.T * weight for weight in across))
