"""False polygons per square kilometre: counted on inlier ground, by threshold and least area; budgets and intervals.

On ground without an anomaly every polygon is false. They are counted with the product's own components. The rate has
the exact Poisson interval of Garwood; for a new scene the count is taken for negative binomial, since rates differ from
image to image beyond chance: mean m = r a for an area a, variance m + m^2 (s (1 + 1 / i) + 1 / N), with s the spread
between i images, and N the count that r comes from. A table is small enough to travel in the tags of a score raster.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple, Self

import numpy as np
import scipy  # whose packages load on first use: before the first tile none is needed
from numpy.typing import NDArray

from geood.calibration.rates import LEVEL, garwood
from geood.errors import ConfigError
from geood.models import CalibrationRecord, ModelBundle

LEAST_PX = (1, 2, 4, 8, 16, 32, 64)  # least areas that are counted
NEARLY = 0.95  # of a share that is asked for: a threshold of the table with as much is taken as it is
# Default least area of a polygon, in pixels of the model: nine, three by three, with half a pixel to spare. Those of
# a scene differ from them by some parts in a million at least, as the scale of its projection does from place to place.
AUTO_PX = 8.5
LEAST_LEFT = 0.25  # of squared distances of counts, that is left where their means are those of the same counts


def least_area(given: float | None, pixel_m: float | None) -> float:
    """Return the least area of a polygon in square metres: the one given, else one that 9 pixels of the model pass."""
    return float(f"{AUTO_PX * (pixel_m or 0.0) ** 2:.6g}") if given is None else given


def own_record(bundle: ModelBundle) -> CalibrationRecord | None:
    """Return the record of a bundle's calibration; None if it has none of its score with its settings."""
    record = bundle.record
    return record if record is not None and bundle.thresholds and record.kind == bundle.config.score.kind else None


class FalsePolygons(NamedTuple):
    """Polygons per km2 on inlier ground at a threshold and a least area: rate, its interval, and that of a new scene.

    `scene` is None where the area is unknown, or there are too few images to tell how much they differ.
    """

    rate: float
    interval: tuple[float, float]
    scene: tuple[float, float] | None


class PolygonTable(NamedTuple):
    """Pixels and polygons above each of T thresholds, on inlier ground of `km2` (None: of unknown size).

    `rates` (T,) are shares of pixels; `polygons` (A, T) and `spread` (A, T) belong to `least_px` (A,) pixels of a side
    of `pixel_m` metres.
    """

    kind: str
    thresholds: tuple[float, ...]
    rates: tuple[float, ...]
    km2: float | None
    pixel_m: float | None
    images: int
    least_px: tuple[int, ...]
    polygons: tuple[tuple[int, ...], ...]
    spread: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, record: CalibrationRecord, *, connectivity: int | None = None) -> Self:
        """Return the table of a record, without polygons if they were counted with another connectivity."""
        above = np.asarray(record.above, np.int64).sum(0)
        rates = tuple(float(rate) for rate in above / max(1, record.pixels))
        table = cls(
            record.kind,
            record.thresholds,
            rates,
            record.km2 if record.least_px else None,
            record.pixel_m,
            record.images,
            record.least_px,
            record.polygons,
            record.spread,
        )
        return table if connectivity in (None, record.connectivity) else table.without_polygons()

    def without_polygons(self) -> Self:
        """Return the table of rates alone, for polygons that are cut otherwise than those that were counted."""
        return self._replace(km2=None, least_px=(), polygons=(), spread=())

    def to_text(self) -> str:
        """Return the table as JSON, for a tag."""
        short = self._replace(
            rates=tuple(float(f"{rate:.4g}") for rate in self.rates),
            spread=tuple(tuple(float(f"{s:.3g}") for s in row) for row in self.spread),
        )
        return json.dumps(short._asdict(), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the table of a tag.

        Raises:
            ValueError: it is none.
        """
        try:
            given: dict[str, Any] = json.loads(text)
            deep = {name: tuple(tuple(row) for row in given[name]) for name in ("polygons", "spread")}
            flat = {name: tuple(given[name]) for name in ("thresholds", "rates", "least_px")}
            table = cls(**(given | deep | flat))
            numbers = [*table.thresholds, *table.rates, *table.least_px, table.images]
            numbers += [1 if each is None else each for each in (table.km2, table.pixel_m)]
            numbers += [number for row in (*table.polygons, *table.spread) for number in row]
            fine = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            wide = all(len(row) == len(table.thresholds) for row in (*table.polygons, *table.spread, table.rates))
            fine = fine and wide and len(table.polygons) == len(table.spread) == len(table.least_px)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            fine = False
        if not fine or not table.thresholds:
            raise ValueError("not a table of false polygons")
        return table

    def at_rate(self, fpr: float) -> float:
        """Return the threshold that a share `fpr` of inlier pixels exceeds, one of the table or between two.

        Raises:
            ConfigError: the share lies outside the table.
        """
        rates = np.asarray(self.rates)
        if not rates[rates > 0].min(initial=1) <= fpr <= rates.max(initial=0):
            low, high = rates[rates > 0].min(initial=1), rates.max(initial=0)
            raise ConfigError(
                f"--fpr {fpr:g}: the ground that the model was calibrated on tells thresholds for {low:.2g} to "
                f"{high:.2g}; choose a share in that range, or give a --threshold"
            )
        fits = int(np.argmax(rates <= fpr))
        if rates[fits] >= NEARLY * fpr:
            return self.thresholds[fits]
        seen = rates > 0
        order = np.argsort(rates[seen])
        logs, scores = np.log(rates[seen][order]), np.asarray(self.thresholds)[seen][order]
        return float(np.interp(math.log(fpr), logs, scores))

    def at_budget(self, per_km2: float, min_area_m2: float) -> float:
        """Return the lowest threshold from which on there are at most so many false polygons per km2.

        Raises:
            ConfigError: polygons were not counted, or there are more at every threshold.
        """
        counts = self._row(min_area_m2, self.polygons)
        if counts is None and self.least_px and self.pixel_m:
            least_m2 = self.least_px[0] * self.pixel_m**2
            raise ConfigError(
                f"--false-per-km2: this model counted no polygons of less than {least_m2:.3g} m2; leave such small "
                "ones out (--set predict.min_area_m2=..., or --min-area of polygonize), train it again, or choose "
                "--fpr or --threshold"
            )
        if counts is None or not self.km2:
            raise ConfigError(
                "--false-per-km2: no false polygons were counted for this score, because the training images have no "
                "size in metres, it is not the model's own, or pixels are connected otherwise (predict.connectivity); "
                "choose --fpr or --threshold"
            )
        over = np.flatnonzero(counts > per_km2 * self.km2)
        first = int(over[-1]) + 1 if len(over) else 0
        if first == len(counts):
            raise ConfigError(
                f"--false-per-km2 {per_km2:g}: even the highest threshold of the table leaves "
                f"{counts[-1] / self.km2:.3g} per km2 on the model's own ground; allow more, or larger polygons alone "
                "(--set predict.min_area_m2=..., or --min-area of polygonize)"
            )
        return self.thresholds[first]

    def at(self, threshold: float, min_area_m2: float, km2: float | None = None) -> FalsePolygons | None:
        """Return the false polygons per km2 at a threshold, and the interval for a scene of `km2`; None if not counted.

        Between two thresholds of the table the lower one counts; below all of them nothing was counted.
        """
        counts, spread = self._row(min_area_m2, self.polygons), self._row(min_area_m2, self.spread)
        at = self._place(threshold)
        if counts is None or spread is None or not self.km2 or at is None:
            return None
        count = float(counts[at])
        low, high = garwood(count)
        scene = _of_scene(count, self.km2, spread=float(spread[at]), images=self.images, area=km2) if km2 else None
        return FalsePolygons(count / self.km2, (low / self.km2, high / self.km2), scene)

    def share_above(self, threshold: float) -> float | None:
        """Return the share of inlier pixels above the threshold of the table that is next below; None if none is."""
        at = self._place(threshold)
        return None if at is None else self.rates[at]

    def _place(self, threshold: float) -> int | None:
        at = int(np.searchsorted(self.thresholds, threshold, "right")) - 1
        return None if at < 0 else at

    def _row(self, min_area_m2: float, rows: tuple[tuple[float, ...], ...]) -> NDArray[np.float64] | None:
        """Return the row of the largest least area that is not above `min_area_m2`; None if such were not counted."""
        if not rows or not self.pixel_m:
            return None
        px = max(1, math.floor(min_area_m2 / self.pixel_m**2 + 1e-6))
        at = int(np.searchsorted(self.least_px, px, "right")) - 1
        return None if at < 0 else np.asarray(rows[at], np.float64)


def _of_scene(count: float, km2: float, *, spread: float, images: int, area: float) -> tuple[float, float] | None:
    """Return the 90 % interval of polygons per km2 for a new scene of `area` km2; None with fewer than two images."""
    if images < 2:
        return None
    mean = max(count, 0.5) / km2 * area
    more = mean**2 * (spread * (1 + 1 / images) + 1 / max(count, 0.5))
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = (_quantile(tail, mean, more) for tail in tails)
    return low / area, high / area


def _quantile(share: float, mean: float, more: float) -> float:
    """Return the least count that at least a share of counts do not exceed, of a negative binomial law.

    Its variance is `more` above the mean; with next to nothing it is a Poisson law. `scipy.stats` has both, but takes
    half a second to import.
    """
    if more > 1e-9 * mean:
        size, p = mean**2 / more, mean / (mean + more)
        count = math.ceil(scipy.special.nbdtrik(share, size, p))
        below = float(scipy.special.betainc(size, count, p)) if count else 0.0
    else:
        count = math.ceil(scipy.special.pdtrik(share, mean))
        below = float(scipy.special.pdtr(count - 1, mean)) if count else 0.0
    return count - 1.0 if count and below >= share else float(count)


def spread_of(counts: NDArray[np.int64], areas: NDArray[np.float64]) -> float:
    """Return how much the rates of images differ beyond chance: variance by squared mean, at least 0.

    It is that with which the squared distances of the counts from their means are what is expected. As the means are
    those of the same counts, these distances are smaller than from the true ones: of two images they are half as large.
    Of a small image beside large ones hardly anything is left, and then a quarter is taken.

    Args:
        counts: polygons of each image (i,).
        areas: inlier ground of each image (i,), in any unit.
    """
    total, shares = float(counts.sum()), areas / areas.sum()
    if not total:
        return 0.0
    squares, cubes = (float((shares**power).sum()) for power in (2, 3))
    left = max(LEAST_LEFT, 1 - 2 * cubes / squares + squares)
    apart = float(((counts - total * shares) ** 2).sum())
    return max(0.0, apart - total * (1 - squares)) / (total**2 * squares * left)
