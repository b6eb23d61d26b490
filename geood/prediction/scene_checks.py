"""Checks of a scene by a small sample of its pixels: valid share, orientation, distance from training data.

Samples are small windows spread over the scene, so a check takes bounded time for a scene of any size. Findings are
sentences for the user; nothing is corrected. This module knows the bands that a model was trained on, not the model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import scipy  # whose packages load on first use: optimize takes longer than all else before a tile
from numpy.typing import NDArray

from geood.geo.band_matching import listed
from geood.geo.bands import Bands
from geood.geo.grid import oblong, sample_windows
from geood.geo.orientation import UPRIGHT, orientation_of
from geood.geo.scene import Scene

MOST_WINDOWS = 1024  # for an estimate of the valid share
PATIENCE = 2.0  # seconds after which that estimate stops early


def valid_share(scene: Scene) -> float:
    """Estimate the share of valid pixels, 0 to 1, in bounded time for a scene of any size."""
    if scene.wholly_valid:
        return 1.0
    began, seen, pixels, done = time.monotonic(), 0, 0, 0
    for count in (32, 128, 512, MOST_WINDOWS):
        for window in sample_windows(scene.grid, count, skip=done):
            seen += int(scene.valid(window).sum())
            pixels += window.height * window.width
            if done and time.monotonic() - began > PATIENCE:
                return seen / pixels
        done = count
    return seen / pixels


SAMPLES = (64, 256, 1024)  # numbers of windows: more where a scene is mostly empty
ENOUGH = 20_000  # valid pixels of a sample
FEW_BANDS = 4  # of which all orders are tried
OUTSIDE = 0.25  # share of a band's pixels outside the training range; 0.01 by construction on training data
SHIFTED = 0.35  # distance of the scene's mean from the training mean, as a share of the training range


# How much another band order must lower the sum of both over all bands, absolutely and as a share, to be suggested.
# Correct orders of real scenes gained 0.08 at most, red swapped with infrared at least 0.30, and a third.
GAIN = 0.18
GAINED = 0.3


def turned_by_viewers(scene: Scene) -> str | None:
    """Return a warning if viewers show a photograph turned, which is not how it is read; else None."""
    if scene.grid.placed or orientation_of(scene.source.name) == UPRIGHT:
        return None
    return (
        "viewers show this photograph turned, by its EXIF orientation; it is read as stored, and so are its outputs, "
        "as GDAL and QGIS do; a model of upright photographs finds less there: turn the file first (exiftran -a, "
        "magick -auto-orient)"
    )


def oblong_pixels(scene: Scene) -> str | None:
    """Return a warning if the pixels of a scene are no squares on the ground; else None."""
    if (sides := oblong(scene.grid)) is None:
        return None
    return (
        f"its pixels are {sides}, so all things look stretched to a model that was trained on squares; bring it to a "
        "CRS in metres first (gdalwarp -r bilinear -t_srs, with the UTM zone of the scene), unless the model was "
        "trained on such pixels"
    )


def far_from_training(scene: Scene, bands: Bands, indexes: Sequence[int]) -> list[str]:
    """Return warnings about bands whose digital numbers lie far from those of training, by a sample of the scene."""
    looked_at = sorted({*scene.band_indexes, *indexes})
    sample = _sample(scene, looked_at)
    if not sample.shape[1]:
        return []
    rows = dict(zip(looked_at, sample, strict=True))
    sentences = []
    for i, index in enumerate(indexes):
        outside, shift = _misfit(rows[index], bands, i)
        if outside > OUTSIDE:
            finding = f"{100 * outside:.0f} % of its pixels lie outside the range that the model was trained on"
        elif abs(shift) > SHIFTED:
            finding = f"it is far {'brighter' if shift > 0 else 'darker'} than what the model was trained on"
        else:
            continue
        low, middle, high = np.percentile(rows[index], [1, 50, 99])
        sentences.append(
            f"band {index} ({bands.names[i]}): {finding} ({bands.low[i]:.6g} to {bands.high[i]:.6g}); here 98 % lie in "
            f"{low:.6g} to {high:.6g}, the median is {middle:.6g}; {_cause(scene, bands, rows[index], i)}"
        )
    better = _better_order(bands, indexes, rows)
    if better:
        now, then = listed(indexes, bands.names), listed(better, bands.names)
        choice = ",".join(f"{name}={index}" for name, index in zip(bands.names, better, strict=True))
        sentences.append(
            f"its bands look mixed up: {now} are read, {then} would fit the training better (--bands {choice})"
        )
    return sentences


def _sample(scene: Scene, indexes: Sequence[int]) -> NDArray[np.float64]:
    """Return valid digital numbers (C, N) of the scene's own pixels, from windows spread over it."""
    samples: list[NDArray[Any]] = []
    done = count = 0
    for most in SAMPLES:
        for window in sample_windows(scene.grid, most, skip=done):
            array, valid = scene.stored(window, indexes)
            samples.append(array[:, ::2, ::2][:, valid[::2, ::2]])
            count += samples[-1].shape[1]
        done = most
        if count >= ENOUGH:
            break
    return np.concatenate(samples, axis=1).astype(np.float64)


def _misfit(numbers: NDArray[np.float64], bands: Bands, band: int) -> tuple[float, float]:
    """Return the share of numbers outside a band's range, and the shift of their scaled mean from that of training."""
    scaled = (numbers - bands.low[band]) / (bands.high[band] - bands.low[band])
    outside = float(((scaled < 0) | (scaled > 1)).mean())
    return outside, float(np.clip(scaled, 0, 1).mean()) - bands.fill[band]


def _cause(scene: Scene, bands: Bands, numbers: NDArray[np.float64], band: int) -> str:
    """Return the most likely reason why a band lies far from training, and what to do."""
    middle, most = float(np.median(numbers)), float(np.percentile(numbers, 99))
    if scene.dtype.kind in "iu" and scene.dtype.itemsize > 1 and max(bands.high) <= 255 < most:
        return f"the model was trained on 8-bit scenes, this one is {scene.dtype}: convert it to 8 bit as for training"
    if scene.dtype.kind == "f" and most <= 2 and min(bands.high) > 50:
        return "the scene looks like reflectance from 0 to 1: scale it like the training scenes"
    if middle > 2 * bands.high[band] or most < bands.low[band] + (bands.high[band] - bands.low[band]) / 8:
        return "check its bit depth, and the scale of its numbers"
    return "check the order and the scale of its bands; if they are right, the area is unlike the training areas"


def _better_order(
    bands: Bands, indexes: Sequence[int], rows: Mapping[int, NDArray[np.float64]]
) -> tuple[int, ...] | None:
    """Return other bands of the scene, or another order, if they fit the training clearly better; else None."""
    if len(rows) < bands.count:
        return None
    cost = np.array([[_distance(rows[j], bands, i) for j in rows] for i in range(bands.count)])
    now = sum(_distance(rows[index], bands, i) for i, index in enumerate(indexes))
    order = _cheapest(cost)
    best = float(cost[range(bands.count), order].sum())
    return tuple(list(rows)[j] for j in order) if now - best > max(GAIN, GAINED * now) else None


def _cheapest(cost: NDArray[np.float64]) -> tuple[int, ...]:
    """Return another column for each row, of least cost together."""
    wanted, given = cost.shape
    if given <= FEW_BANDS:
        return min(permutations(range(given), wanted), key=lambda order: float(cost[range(wanted), order].sum()))
    return tuple(int(column) for column in scipy.optimize.linear_sum_assignment(cost)[1])


def _distance(numbers: NDArray[np.float64], bands: Bands, band: int) -> float:
    outside, shift = _misfit(numbers, bands, band)
    return outside + abs(shift)
