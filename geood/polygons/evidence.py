"""Evidence on components: their classes, the runners-up and margins, class borders, surroundings, and what spoke.

All of it is a sum or a count over pixels, so the parts of a component in several windows add up, in any order. What a
raster does not tell (class rasters of other tools have one band) is unknown in the end, never zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood.constants import NO_CLASS

MARGIN_STEPS = 254.0  # value of a margin of 1 in its band
SIGNALS = 8  # values of the band of signals that are counted

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


class PixelEvidence(NamedTuple):
    """Evidence on n pixels: arrays (n,), None where there is no such band.

    `classes`, `runner`, `margin` and `signal` are values of the class raster's bands, 255 where unknown. `on_edge` says
    whether a neighbour has another class. `outside` is the sum of the scores that lie some pixels beyond those of a
    pixel's four sides that are part of the outline, `sides` their number.
    """

    classes: NDArray[np.uint8] | None = None
    runner: NDArray[np.uint8] | None = None
    margin: NDArray[np.uint8] | None = None
    signal: NDArray[np.uint8] | None = None
    on_edge: NDArray[np.bool_] | None = None
    outside: Floats | None = None
    sides: NDArray[np.uint8] | None = None

    def select(self, chosen: Any) -> PixelEvidence:
        """Return the evidence on the pixels at some indexes."""
        return PixelEvidence(*(None if band is None else band[chosen] for band in self))


class ComponentEvidence(NamedTuple):
    """Evidence on n components: arrays (n,); unknown are NO_CLASS in ids and NaN in the others.

    `class_id` is the most frequent class, `runner_id` the most frequent second class that is another, `signal_id` the
    most frequent signal, `margin` the mean margin in [0, 1], `on_edge` the share of pixels beside another class,
    `outside` the mean score around the component.
    """

    class_id: Ids
    runner_id: Ids
    signal_id: Ids
    margin: Floats
    on_edge: Floats
    outside: Floats


def summarize(ids: NDArray[Any], pixels: PixelEvidence, *, count: int, class_count: int) -> ComponentEvidence:
    """Return the evidence on the components 0 to `count` - 1, given the component and the evidence of each pixel."""
    class_id = most_frequent(ids, pixels.classes, count=count, values=class_count)

    def mean(values: NDArray[Any] | None, known: NDArray[Any] | None) -> Floats:
        if values is None or known is None:
            return np.full(count, np.nan)
        weights = known.astype(np.float64)
        return _mean(np.bincount(ids, values * weights, count), np.bincount(ids, weights, count))

    def known(band: NDArray[np.uint8] | None) -> NDArray[np.bool_] | None:
        return None if band is None else band != NO_CLASS

    sums = (None if values is None else np.bincount(ids, values, count) for values in (pixels.outside, pixels.sides))
    outside, sides = sums
    return ComponentEvidence(
        class_id=class_id,
        runner_id=most_frequent(ids, pixels.runner, count=count, values=class_count, but=class_id),
        signal_id=most_frequent(ids, pixels.signal, count=count, values=SIGNALS),
        margin=mean(pixels.margin, known(pixels.margin)) / MARGIN_STEPS,
        on_edge=mean(pixels.on_edge, known(pixels.classes)),
        outside=np.full(count, np.nan) if outside is None or sides is None else _mean(outside, sides),
    )


def most_frequent(
    ids: NDArray[Any], band: NDArray[np.uint8] | None, *, count: int, values: int, but: Ids | None = None
) -> Ids:
    """Return, for each id from 0 to `count` - 1, its most frequent value below `values` in a band, else NO_CLASS.

    The lowest of equally frequent ones is taken; the value `but` of an id does not count for it.
    """
    best, best_count = np.full(count, NO_CLASS, np.int64), np.zeros(count, np.int64)
    totals = np.zeros(1) if band is None else np.bincount(band, minlength=1)[:values]
    for value in np.flatnonzero(totals):  # one by one: a table of ids and values could be large
        counts = np.bincount(ids[band == value], minlength=count)
        if but is not None:
            counts[but == value] = 0
        better = counts > best_count
        best[better], best_count[better] = value, counts[better]
    return best


class Tally:
    """Evidence on one growing component: counts of values, and sums."""

    __slots__ = ("_classes", "_edge", "_margin", "_outside", "_runners", "_signals")

    def __init__(self, class_count: int) -> None:
        self._classes, self._runners = (np.zeros(class_count, np.int64) for _ in range(2))
        self._signals = np.zeros(SIGNALS, np.int64)
        self._margin, self._edge, self._outside = (np.zeros(2) for _ in range(3))  # sum, and number of pixels or sides

    def add(self, pixels: PixelEvidence) -> None:
        """Add pixels."""
        _count(self._classes, pixels.classes)
        _count(self._runners, pixels.runner)
        _count(self._signals, pixels.signal)
        if pixels.margin is not None:
            held = pixels.margin[pixels.margin != NO_CLASS]
            self._margin += (held.sum(dtype=np.float64), len(held))
        if pixels.on_edge is not None and pixels.classes is not None:
            known = pixels.classes != NO_CLASS
            self._edge += (np.count_nonzero(pixels.on_edge & known), np.count_nonzero(known))
        if pixels.outside is not None and pixels.sides is not None:
            self._outside += (pixels.outside.sum(), pixels.sides.sum(dtype=np.int64))

    def merge(self, other: Tally) -> None:
        """Add what another tally holds."""
        for name in ("_classes", "_runners", "_signals", "_margin", "_edge", "_outside"):
            mine: NDArray[Any] = getattr(self, name)
            mine += getattr(other, name)

    def result(self) -> ComponentEvidence:
        """Return the evidence on this one component."""
        class_id = _first(self._classes)
        runners = self._runners.copy()
        if class_id != NO_CLASS:
            runners[class_id] = 0
        return ComponentEvidence(
            class_id=np.array([class_id]),
            runner_id=np.array([_first(runners)]),
            signal_id=np.array([_first(self._signals)]),
            margin=_mean(self._margin[:1], self._margin[1:]) / MARGIN_STEPS,
            on_edge=_mean(self._edge[:1], self._edge[1:]),
            outside=_mean(self._outside[:1], self._outside[1:]),
        )


def joined(each: list[ComponentEvidence]) -> ComponentEvidence:
    """Return the evidence on several sets of components as that on one."""
    return ComponentEvidence(*(np.concatenate(arrays) for arrays in zip(*each, strict=True)))


def _count(counts: Ids, band: NDArray[np.uint8] | None) -> None:
    """Add the numbers of the values of a band to `counts`, those beyond its length left out."""
    if band is not None:
        counts += np.bincount(band, minlength=256)[: len(counts)]


def _first(counts: Ids) -> int:
    return int(counts.argmax()) if counts.any() else NO_CLASS


def _mean(total: NDArray[Any], number: NDArray[Any]) -> Floats:
    """Return total / number, NaN where the number is 0."""
    mean: Floats = np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)
    return mean
