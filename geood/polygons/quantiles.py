"""95th percentiles of many small sets of numbers at once, and of one set that grows and may get large.

Small sets are sorted, which is exact. A growing set keeps the numbers that may still lie above the percentile and, from
a certain size on, a histogram instead. The bins are powers of two wide and merge in pairs as the range grows, so the
result depends on the numbers alone, never on their order or on how they were split into chunks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILE = 0.95
EXACT_BELOW = 2**20  # from this many numbers on, the percentile comes from a histogram
MAX_KEPT = 2**17  # numbers kept before they are thinned
BINS = 8192  # at least half of them are in use, so a bin is at most 1/4096 of the range


def percentiles(ids: NDArray[Any], values: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Compute the 95th percentile (linear) of the values of each id from 0 to `count` - 1; each has at least one."""
    bits = values.view(np.int32)
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))  # integers that sort as the numbers do
    key = np.sort(ids.astype(np.int64) << 32 | (ordered.astype(np.int64) + 2**31), kind="stable")
    ordered = ((key & 0xFFFFFFFF) - 2**31).astype(np.int32)
    values = (ordered ^ ((ordered >> 31) & np.int32(0x7FFFFFFF))).view(np.float32).astype(np.float64)
    counts = np.bincount(ids, minlength=count)
    ends = np.cumsum(counts)
    position = QUANTILE * (counts - 1)
    below = ends - counts + position.astype(np.int64)
    above = np.minimum(below + 1, ends - 1)
    with np.errstate(invalid="ignore"):  # of infinite values
        result: NDArray[np.float64] = values[below] + (values[above] - values[below]) * (position % 1)
    return result


class Tail:
    """Upper tail of a growing set of numbers above `low`."""

    __slots__ = ("_bins", "_exponent", "_kept", "_kept_count", "count", "low")

    def __init__(self, low: float) -> None:
        self.low, self.count, self._kept_count = low, 0, 0
        self._kept: list[NDArray[np.float32]] = []
        self._bins: NDArray[np.int64] | None = None
        self._exponent = -200  # bins are 2 ** this wide

    def add(self, values: NDArray[np.float32]) -> None:
        """Add numbers; they are copied."""
        self.count += len(values)
        if self._bins is not None:
            self._bin(values)
        if self.count < EXACT_BELOW or self._bins is None:
            self._kept.append(values.copy())
            self._kept_count += len(values)
        self._thin()

    def merge(self, other: Tail) -> None:
        """Merge another set into this one; the other must not be used any more."""
        if self._bins is not None or other._bins is not None:
            for tail in (self, other):
                if tail._bins is None:
                    tail._start_histogram()
            assert self._bins is not None and other._bins is not None
            exponent = max(self._exponent, other._exponent)
            self._widen(exponent)
            other._widen(exponent)
            self._bins += other._bins
        self.count += other.count
        self._kept += other._kept
        self._kept_count += other._kept_count
        self._thin()

    def percentile(self) -> float:
        """Compute the 95th percentile; from EXACT_BELOW numbers on, within 1/4096 of their range above `low`."""
        position = QUANTILE * (self.count - 1)
        if self.count < EXACT_BELOW:
            kept = np.concatenate(self._kept)
            below = len(kept) - self.count + int(position)
            pair = np.partition(kept, [below, min(below + 1, len(kept) - 1)]).astype(np.float64)
            return float(pair[below] + (pair[min(below + 1, len(kept) - 1)] - pair[below]) * (position % 1))
        assert self._bins is not None
        middle = float(np.searchsorted(np.cumsum(self._bins), QUANTILE * self.count)) + 0.5
        return self.low + math.ldexp(middle, self._exponent)

    def _thin(self) -> None:
        """Drop the numbers that can no longer matter."""
        if self._kept_count <= MAX_KEPT and self.count < EXACT_BELOW:
            return
        if self._bins is None:
            self._start_histogram()
        top = EXACT_BELOW - int(QUANTILE * (EXACT_BELOW - 1)) + 1
        if self.count >= EXACT_BELOW:
            self._kept, self._kept_count = [], 0
        elif self._kept_count > top:
            self._kept = [np.partition(np.concatenate(self._kept), -top)[-top:]]
            self._kept_count = top

    def _start_histogram(self) -> None:
        self._bins = np.zeros(BINS, np.int64)
        for values in self._kept:
            self._bin(values)

    def _bin(self, values: NDArray[np.float32]) -> None:
        assert self._bins is not None
        if not len(values):
            return
        above = np.minimum(values, np.finfo(np.float32).max).astype(np.float64) - self.low
        self._widen(math.frexp(float(above.max()))[1] - int(math.log2(BINS)))
        self._bins += np.bincount(np.ldexp(above, -self._exponent).astype(np.int64), minlength=BINS)

    def _widen(self, exponent: int) -> None:
        """Widen bins to at least 2 ** exponent."""
        assert self._bins is not None
        steps = exponent - self._exponent
        if steps <= 0:
            return
        self._exponent = exponent
        used = np.flatnonzero(self._bins)
        merged = np.zeros(BINS, np.int64)
        np.add.at(merged, used >> min(steps, 62), self._bins[used])
        self._bins = merged
