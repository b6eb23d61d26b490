"""Bands declared as alpha: masks, or measurements that a writer declared so.

GDAL by default declares the fourth of four 8-bit bands as alpha, so infrared often comes as alpha; taken for a mask, it
would be lost, and its zeros would be nodata. A mask is told by its values: where it is not 0, most of it is opaque, so
at the highest number of a mask. A band of measurements spreads. The declaration stands unless the values contradict it;
an order by the user (`bands.indexes`, `--bands`) goes before both. Knows nothing of scenes and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from geood.geo.gdal import GDAL_FAILURES, rasterio_window
from geood.geo.grid import Grid, sample_windows

OPAQUE = (1, 255, 32767, 65535)  # what writers of masks call opaque; 32767 is GDAL's for 16 bit with sign
NEAR = 0.98  # share of it from which a number counts as opaque: lossy compression moves them
# Least share of a mask's numbers, other than 0, that are opaque. Of real alpha bands all are, of a disc whose rim fades
# over a twelfth of its width 0.63; of 600 real bands of measurements 0.37 at most (docs/decisions/reading.md).
MOSTLY = 0.5
SAMPLES = (32, 128, 512)  # numbers of windows: more where a band is mostly 0
ENOUGH = 4096  # numbers other than 0


class AlphaBands(NamedTuple):
    """Bands declared as alpha, by their values: `masks`, `measured`, and those of the masks that are `dark`, all 0."""

    masks: tuple[int, ...]
    measured: tuple[int, ...]
    dark: tuple[int, ...]


def told_apart(dataset: Any, declared: Sequence[int]) -> AlphaBands:
    """Tell masks from measurements among the bands of a dataset that are declared as alpha, by a sample of windows.

    Windows that cannot be read are passed over: the scene itself is read later, where that is an error.
    """
    masks: list[int] = []
    measured: list[int] = []
    dark = []
    for index in declared:
        opaque = _opaque_share(dataset, index)
        (masks if opaque is None or opaque >= MOSTLY else measured).append(index)
        if opaque is None:
            dark.append(index)
    return AlphaBands(tuple(masks), tuple(measured), tuple(dark))


def declared_so(measured: Sequence[int]) -> str:
    """Return a sentence on bands that are declared as alpha and taken for measurements."""
    numbers = ", ".join(map(str, measured))
    many = len(measured) > 1
    return (
        f"band{'s' if many else ''} {numbers} {'are' if many else 'is'} declared as alpha, but hold"
        f"{'' if many else 's'} measurements by {'their' if many else 'its'} values: read as data, not as a mask"
    )


def _opaque_share(dataset: Any, index: int) -> float | None:
    """Return the share of a band's numbers other than 0 that are opaque, 1 if all are alike; None if all are 0."""
    grid = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
    parts: list[Any] = []
    done = count = 0
    for most in SAMPLES:
        for window in sample_windows(grid, most, skip=done):
            with suppress(*GDAL_FAILURES):
                numbers = dataset.read(index, window=rasterio_window(window)).ravel()
                parts.append(numbers[np.nan_to_num(numbers, copy=False) != 0])
                count += parts[-1].size
        done = most
        if count >= ENOUGH:
            break
    if not count:
        return None
    numbers = np.concatenate(parts)
    low, high = float(numbers.min()), float(numbers.max())
    top = next((top for top in OPAQUE if NEAR * top <= high <= top), None)
    if low == high:  # two numbers, or one, measure nothing
        return 1.0
    return 0.0 if top is None or low < 0 else float((numbers >= NEAR * top).mean())
