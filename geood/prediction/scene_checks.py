"""Checks a scene by a small sample of its pixels: valid share, undeclared nodata, distance from training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from geood.geo.band_matching import listed
from geood.geo.bands import Bands
from geood.geo.grid import Grid, Window
from geood.geo.scene import Scene

PLACE_PX = 64  # side of the windows that samples are read of; blocks of files are mostly multiples of it
PLACES = 1024  # windows at most for an estimate of the valid share
PATIENCE = 2.0  # seconds after which that estimate makes do with what it has
BORDER_PLACES = 24  # on each side of a scene
BORDER_SHARE = 0.2


def places(grid: Grid, count: int, *, skip: int = 0) -> Iterator[Window]:
    """Small windows spread evenly over a grid, in reading order; `skip` those that came with a smaller `count`.

    They lie on a lattice of their own size, so that a window mostly touches one block of the file. Reading order
    matters for files that can only be decoded from the top.
    """
    rows, cols = -(-grid.height // PLACE_PX), -(-grid.width // PLACE_PX)

    def lattice(most: int) -> set[tuple[int, int]]:
        if rows * cols <= most:
            return {(r, c) for r in range(rows) for c in range(cols)}
        # The R2 sequence: any stretch of it is spread evenly over the square (M. Roberts, 2018).
        down, across = ((0.5 + step * np.arange(most)) % 1 for step in (0.7548776662466927, 0.5698402909980532))
        return set(zip((down * rows).astype(int).tolist(), (across * cols).astype(int).tolist(), strict=True))

    for row, col in sorted(lattice(count) - lattice(skip)):
        yield Window(row * PLACE_PX, col * PLACE_PX, PLACE_PX, PLACE_PX).within(grid.window)


def valid_share(scene: Scene) -> float:
    """An estimate of the share of pixels that are valid, in bounded time for a scene of any size."""
    if scene.wholly_valid:
        return 1.0
    began, seen, pixels, done = time.monotonic(), 0, 0, 0
    for count in (32, 128, 512, PLACES):
        for window in places(scene.grid, count, skip=done):
            seen += int(scene.valid(window).sum())
            pixels += window.height * window.width
            if done and time.monotonic() - began > PATIENCE:
                return seen / pixels
        done = count
    return seen / pixels


def undeclared_nodata(scene: Scene) -> float | None:
    """A number that much of the scene's border has in all bands, as if it meant no data, but counts as valid."""
    grid, whole = scene.grid, scene.grid.window
    down, across = (np.linspace(0, side - 1, BORDER_PLACES).astype(int) for side in (grid.height, grid.width))
    sides = {Window(row, int(c), 1, 16) for row in (0, grid.height - 1) for c in across}
    sides |= {Window(int(r), col, 16, 1) for col in (0, grid.width - 1) for r in down}
    parts = [scene.stored(window.within(whole), scene.band_indexes) for window in sorted(sides)]
    numbers = np.concatenate([array.reshape(scene.count, -1) for array, _ in parts], axis=1)
    alike = np.concatenate([valid.ravel() for _, valid in parts]) & (numbers == numbers[0]).all(axis=0)
    if scene.dtype.kind == "f":
        usual = [0.0, -9999.0, -32768.0, float(np.finfo(scene.dtype).min)]
    else:
        limits = np.iinfo(scene.dtype)
        usual = [0.0, float(limits.max), *([-9999.0, float(limits.min)] if limits.min < -9999 else [])]
    share = {value: float((alike & (numbers[0] == value)).mean()) for value in usual}
    likely = max(usual, key=lambda value: share[value])
    return likely if share[likely] >= BORDER_SHARE else None


SAMPLES = (64, 256, 1024)  # windows, more of them where a scene is mostly empty
ENOUGH = 20_000  # valid pixels of a sample
OUTSIDE = 0.25  # of a band's pixels beyond the training range; 0.01 by construction at home
SHIFTED = 0.35  # of the training range between the scene's mean and the training mean


# By how much another order of bands must lower the sum of both over all bands, in itself and as a share, to be named.
# Right orders of real scenes gained 0.08 at most, red swapped with infrared at least 0.30, and a third.
GAIN = 0.18
GAINED = 0.3


def far_from_training(scene: Scene, bands: Bands, indexes: Sequence[int]) -> list[str]:
    """Sentences about bands whose numbers lie far from those the model was trained on, by a sample of the scene."""
    looked_at = sorted({*scene.band_indexes, *indexes})
    sample = _sample(scene, looked_at)
    if not sample.shape[1]:
        return []
    rows = dict(zip(looked_at, sample, strict=True))
    sentences = []
    for i, index in enumerate(indexes):
        outside, shift = _misfit(rows[index], bands, i)
        if outside > OUTSIDE:
            what = f"{100 * outside:.0f} % of its pixels lie outside what the model was trained on"
        elif abs(shift) > SHIFTED:
            what = f"it is far {'brighter' if shift > 0 else 'darker'} than what the model was trained on"
        else:
            continue
        low, middle, high = np.percentile(rows[index], [1, 50, 99])
        sentences.append(
            f"band {index} ({bands.names[i]}): {what} ({bands.low[i]:.6g} to {bands.high[i]:.6g}); here 98 % lie in "
            f"{low:.6g} to {high:.6g}, half below {middle:.6g}; {_cause(scene, bands, rows[index], i)}"
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
    """Valid digital numbers (C, N) of the scene's own pixels, from windows spread over it."""
    found: list[NDArray[Any]] = []
    done = count = 0
    for most in SAMPLES:
        for window in places(scene.grid, most, skip=done):
            array, valid = scene.stored(window, indexes)
            found.append(array[:, ::2, ::2][:, valid[::2, ::2]])
            count += found[-1].shape[1]
        done = most
        if count >= ENOUGH:
            break
    return np.concatenate(found, axis=1).astype(np.float64)


def _misfit(numbers: NDArray[np.float64], bands: Bands, band: int) -> tuple[float, float]:
    """The share of numbers outside a band's range, and how far their scaled mean lies from that of training."""
    scaled = (numbers - bands.low[band]) / (bands.high[band] - bands.low[band])
    outside = float(((scaled < 0) | (scaled > 1)).mean())
    return outside, float(np.clip(scaled, 0, 1).mean()) - bands.fill[band]


def _cause(scene: Scene, bands: Bands, numbers: NDArray[np.float64], band: int) -> str:
    """What most likely makes a band lie far from training."""
    middle, most = float(np.median(numbers)), float(np.percentile(numbers, 99))
    if scene.dtype.kind in "iu" and scene.dtype.itemsize > 1 and max(bands.high) <= 255 < most:
        return f"the model knows numbers of 8 bit, the scene is {scene.dtype}: bring it to 8 bit as in training"
    if scene.dtype.kind == "f" and most <= 2 and min(bands.high) > 50:
        return "the scene looks like reflectance from 0 to 1: bring it to the scale of the training scenes"
    if middle > 2 * bands.high[band] or most < bands.low[band] + (bands.high[band] - bands.low[band]) / 8:
        return "check its bit depth, and the scale of its numbers"
    return "check the order and the scale of its bands; if they are right, the place is unlike those of the training"


def _better_order(
    bands: Bands, indexes: Sequence[int], rows: Mapping[int, NDArray[np.float64]]
) -> tuple[int, ...] | None:
    """Other bands of the scene, or these in another order, if they are clearly more like the training."""
    cost = np.array([[_distance(rows[j], bands, i) for j in rows] for i in range(bands.count)])
    now = sum(_distance(rows[index], bands, i) for i, index in enumerate(indexes))
    taken = linear_sum_assignment(cost)
    if len(taken[0]) < bands.count:
        return None
    best = float(cost[taken].sum())
    return tuple(list(rows)[j] for j in taken[1]) if now - best > max(GAIN, GAINED * now) else None


def _distance(numbers: NDArray[np.float64], bands: Bands, band: int) -> float:
    outside, shift = _misfit(numbers, bands, band)
    return outside + abs(shift)
