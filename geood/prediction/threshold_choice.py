"""Choice of a threshold: by number, by rate on inlier ground, by false polygons per km2, or the best polygons alone.

`predict` chooses with the record in the bundle, `polygonize` with the part of it that `predict` wrote into the tags of
a score raster. A threshold that no score can reach is refused before any work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from geood.calibration import PolygonTable, least_area, own_record
from geood.config import SCORES, PredictConfig
from geood.errors import ConfigError, DataError, shown
from geood.geo.score_raster import SCORE_TAG, TABLE_TAG
from geood.models import ModelBundle

OPTIONS = {"threshold": "--threshold", "fpr": "--fpr", "false_per_km2": "--false-per-km2", "top": "--top"}


@dataclass(frozen=True)
class ThresholdChoice:
    """The user's choice, at most one of four; without any it is the default.

    `threshold` is a score; `fpr` the share of inlier ground above it; `false_per_km2` the false polygons per km2 on
    inlier ground; `top` keeps so many polygons of each scene, the first by rank, above the default threshold.

    Raises:
        ConfigError: two are given, or one makes no sense.
    """

    threshold: float | None = None
    fpr: float | None = None
    false_per_km2: float | None = None
    top: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        given = [option for name, option in OPTIONS.items() if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other; give one of them")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError(f"--threshold {self.threshold}: not a finite number; give a score")
        if self.fpr is not None and not 0 < self.fpr < 1:
            raise ConfigError(f"--fpr {self.fpr}: not a share; give one between 0 and 1, such as 0.01")
        if self.false_per_km2 is not None and not 0 <= self.false_per_km2 < math.inf:
            raise ConfigError(f"--false-per-km2 {self.false_per_km2}: not a number of polygons; give 0 or more")
        if self.top is not None and self.top < 1:
            raise ConfigError(f"--top {self.top}: not a number of polygons; give 1 or more")

    def settle(self, bundle: ModelBundle) -> float:
        """Return the threshold for a bundle, whose least area of a polygon must be settled (`with_least_area`).

        Raises:
            ConfigError: it is not of the score's range, or the bundle does not hold what the choice needs.
        """
        kind, thresholds, table = bundle.config.score.kind, bundle.thresholds, table_of(bundle)
        if table is None and self.fpr is not None and (known := thresholds.get(f"{self.fpr:g}")) is not None:
            return known
        return self._chosen(kind, table, bundle.config.predict, default=lambda: bundle.threshold)

    def settle_by_tags(
        self, tags: dict[str, str], table: PolygonTable | None, predict: PredictConfig, *, default: float
    ) -> float:
        """Return the threshold for a score raster, given its tags, its table, its settings and its own threshold.

        Raises:
            ConfigError: as `settle`.
        """
        return self._chosen(tags.get(SCORE_TAG, ""), table, predict, default=lambda: default)

    def _chosen(
        self, kind: str, table: PolygonTable | None, predict: PredictConfig, *, default: Callable[[], float]
    ) -> float:
        if self.threshold is not None:
            if kind in SCORES and (why := SCORES[kind].refusal(self.threshold)):
                raise ConfigError(f"--threshold {why}")
            return self.threshold
        if self.fpr is None and self.false_per_km2 is None:
            return default()
        if table is None:
            option = "--fpr" if self.fpr is not None else "--false-per-km2"
            raise ConfigError(
                f"{option}: no record of a calibration of this score and its settings; train with this geood, take the "
                "model's own score, or give a --threshold"
            )
        if self.fpr is not None:
            return table.at_rate(self.fpr)
        assert self.false_per_km2 is not None
        return table.at_budget(self.false_per_km2, predict.min_area_m2 or 0.0)


def with_least_area(bundle: ModelBundle) -> ModelBundle:
    """Return a bundle whose `predict.min_area_m2` is a number, by default one that 9 pixels of the model pass."""
    predict = bundle.config.predict
    least = least_area(predict.min_area_m2, bundle.resolution)
    return bundle.with_predict(predict.model_copy(update={"min_area_m2": least}))


def table_of(bundle: ModelBundle) -> PolygonTable | None:
    """Return the table of a bundle's own score with the settings it was calibrated with, else None.

    Where pixels are connected otherwise than in the calibration it has rates alone.
    """
    record = own_record(bundle)
    return None if record is None else PolygonTable.of(record, connectivity=bundle.config.predict.connectivity)


def table_in(tags: dict[str, str], path: object) -> PolygonTable | None:
    """Return the table in the tags of a score raster, None if there is none.

    Raises:
        DataError: the tag is damaged.
    """
    if TABLE_TAG not in tags:
        return None
    try:
        return PolygonTable.from_text(tags[TABLE_TAG])
    except ValueError:
        raise DataError(
            f"{path}: its tag {TABLE_TAG} is {shown(tags[TABLE_TAG])}; needed is the table that `geood predict` wrote; "
            "another program may have changed it: give a --threshold, or predict again"
        ) from None
