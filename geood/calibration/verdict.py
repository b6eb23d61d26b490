"""Verdict on one map: does the promise of its threshold hold there? In fields, and in words for an analyst.

The promise is a rate on ground without anomalies, and a scene may have some; so a share above the promise is no proof
of its breach, and a share within is none of its truth where the scene is unlike calibration ground. Three answers:

- *holds*: the scene is like calibration ground, and what lies above the threshold is within the interval promised.
- *does not hold*: more lies above than the interval allows, and the scene is unlike; or most of it lies above.
- *cannot be told*: nothing was measured to compare with; or the two signs contradict each other.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from geood.calibration.exchangeability import Drift, in_words
from geood.calibration.false_polygons import FalsePolygons, Table
from geood.calibration.rates import LEAST_BLOCKS, guaranteed, rate_interval
from geood.models import CalibrationRecord, ModelBundle

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"
LOUD = 3.0  # times the promised share from which on it is said loudly
MOST = 0.5  # share of a scene above which it cannot all be strange
REMEDY = "take its own score and settings, or train it again with this geood"


@dataclass(frozen=True)
class SceneFacts:
    """Figures of a scene's rasters: valid pixels, those above the threshold, km2 (None: unknown), polygons or None."""

    valid_px: int
    above_px: int
    km2: float | None
    polygons: int | None
    threshold: float
    min_area_m2: float
    pixel_m: float | None
    relative: bool = False
    limited: bool = False


@dataclass(frozen=True)
class Verdict:
    """Verdict on a map. Shares are of valid pixels, intervals are of 90 %; None where nothing is known.

    `answer` is *holds*, *does not hold* or *cannot be told*; `why` says the reason. `promised` is the share of inlier
    ground above the threshold, `low` to `high` the interval of that share in a scene of this size, `at_most` what is
    guaranteed in expectation. `polygons_per_km2` is compared with the false ones of inlier ground, `false_per_km2` with
    its interval. `p` and `distance` are of the comparison with calibration ground, `differs` what it found, in words.
    """

    answer: str
    why: str
    threshold: float
    valid_px: int
    km2: float | None
    above: float | None
    promised: float | None
    low: float | None
    high: float | None
    at_most: float | None
    polygons_per_km2: float | None
    false_per_km2: float | None
    false_low: float | None
    false_high: float | None
    p: float | None
    distance: float | None
    differs: str
    relative: bool

    @property
    def loud(self) -> bool:
        """True if far more lies above the threshold than promised."""
        return bool(self.above and self.promised is not None and self.above > LOUD * max(self.promised, self.high or 0))

    def fields(self) -> dict[str, Any]:
        """Return the fields as plain values, rounded to six digits."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in asdict(self).items()
        }

    def lines(self) -> list[str]:
        """Return the verdict as lines for a terminal."""
        said = [f"{'budget':<11}{self.answer}: {self.why}"]
        area = f"{self.km2:.4g} km2" if self.km2 is not None else f"{self.valid_px:,} pixels"
        if self.above is not None:
            promise = "nothing promised" if self.promised is None else f"{_percent(self.promised)} promised"
            bounds = (
                f" ({_percent(self.low)} to {_percent(self.high)} in such a scene)" if self.high is not None else ""
            )
            said.append(f"{'above':<11}{_percent(self.above)} of {area}, {promise}{bounds}")
        if self.polygons_per_km2 is not None:
            line = f"{'per km2':<11}{self.polygons_per_km2:.3g} polygons"
            if self.false_per_km2 is not None:
                line += f", {self.false_per_km2:.3g} false ones expected"
                if self.false_high is not None:
                    line += f" ({self.false_low:.3g} to {self.false_high:.3g} in such a scene)"
            said.append(line)
        if self.distance is not None:
            line = f"{'likeness':<11}"
            line += (
                f"unlike the ground it was calibrated on: {self.differs}"
                if self.differs
                else (
                    f"like the ground it was calibrated on ({self.distance:.2f} of the distance that would be too far)"
                )
            )
            said.append(line)
        if self.loud:
            assert self.above is not None and self.promised is not None
            times = f", {self.above / self.promised:.0f} times what is promised" if self.promised else ""
            said.append(f"{'WARNING':<11}{_percent(self.above)} of this scene lies above the threshold{times}")
        return said


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.3g} %"


def verdict_of(facts: SceneFacts, bundle: ModelBundle, drift: Drift | None) -> Verdict:
    """Return the verdict on a map: from its figures, the bundle, and how far the scene lies from calibration ground."""
    record = bundle.record if bundle.thresholds and bundle.record else None
    own = record if record is not None and record.kind == bundle.config.score.kind else None
    above = facts.above_px / facts.valid_px if facts.valid_px else None
    promise = _promise(facts, own, bundle)
    polygons = None if own is None or not facts.km2 else Table.of(own).at(facts.threshold, facts.min_area_m2, facts.km2)
    counted = None if facts.polygons is None or not facts.km2 else facts.polygons / facts.km2
    differs = in_words(drift, bundle.class_names) if drift is not None else ""
    answer, why = _answer(facts, above, promise, drift)
    answer, why = _with_polygons(answer, why, counted, polygons)
    return Verdict(
        answer=answer,
        why=why,
        threshold=facts.threshold,
        valid_px=facts.valid_px,
        km2=facts.km2,
        above=above,
        promised=promise.rate,
        low=promise.low,
        high=promise.high,
        at_most=promise.at_most,
        polygons_per_km2=counted,
        false_per_km2=None if polygons is None else polygons.rate,
        false_low=None if polygons is None or polygons.scene is None else polygons.scene[0],
        false_high=None if polygons is None or polygons.scene is None else polygons.scene[1],
        p=None if drift is None else drift.p,
        distance=None if drift is None else drift.distance,
        differs=differs,
        relative=facts.relative,
    )


@dataclass(frozen=True)
class _Promise:
    """Rate on inlier ground at a threshold, its interval in a scene, what is guaranteed, and by how many blocks.

    None where unknown.
    """

    rate: float | None = None
    low: float | None = None
    high: float | None = None
    at_most: float | None = None
    blocks: int | None = None


def _promise(facts: SceneFacts, own: CalibrationRecord | None, bundle: ModelBundle) -> _Promise:
    """Return what is promised at a threshold; between two of the record the lower one counts."""
    if own is None:
        rates = [float(rate) for rate, threshold in bundle.thresholds.items() if threshold == facts.threshold]
        return _Promise(rates[0]) if rates else _Promise()
    at = int(np.searchsorted(own.thresholds, facts.threshold, "right")) - 1
    if at < 0:
        return _Promise(blocks=own.blocks)
    above = np.asarray(own.above, np.int64)[:, at]
    pixels, image = np.asarray(own.block_px, np.int64), np.asarray(own.block_image, np.int64)
    size = facts.valid_px * ((facts.pixel_m / own.pixel_m) ** 2 if facts.pixel_m and own.pixel_m else 1.0)
    interval = rate_interval(above, pixels, image, blocks=size / max(1.0, float(pixels.mean())))
    rate = float(above.sum() / max(1, pixels.sum()))
    low, high = interval or (None, None)
    return _Promise(rate, low, high, guaranteed(above, pixels), own.blocks)


def _answer(facts: SceneFacts, above: float | None, promise: _Promise, drift: Drift | None) -> tuple[str, str]:
    """Return the answer by pixels, and the reason."""
    if above is not None and above > MOST and not facts.relative:
        return FAILS, f"{_percent(above)} of the scene lies above the threshold: it does not tell strange from usual"
    if why := _why_unknown(facts, above, promise, drift):
        return UNKNOWN, why
    assert above is not None and promise.high is not None and drift is not None
    within = above <= promise.high
    return {
        (True, False): (HOLDS, "the scene is like calibration ground, and no more lies above than promised"),
        (True, True): (UNKNOWN, "no more lies above than promised, but the scene is unlike calibration ground"),
        (False, True): (FAILS, "more lies above than promised, and the scene is unlike calibration ground"),
        (False, False): (UNKNOWN, "more lies above than promised in a scene like calibration ground: strange or false"),
    }[within, drift.unlike]


def _why_unknown(facts: SceneFacts, above: float | None, promise: _Promise, drift: Drift | None) -> str | None:
    """Return why nothing can be told, None if it can."""
    blocks = promise.blocks
    reasons = {
        "no pixel has a score": above is None,
        "the threshold is a rank in this scene (--on-drift relative) and promises nothing": facts.relative,
        f"the model has no record of a calibration of this score and its settings; {REMEDY}": blocks is None,
        "the threshold is below all that were measured on calibration ground": promise.rate is None,
        f"calibration ground of {blocks} blocks, and an interval needs {LEAST_BLOCKS}": promise.high is None,
        "too few squares of 64 x 64 pixels of the model to compare with calibration ground": drift is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _with_polygons(answer: str, why: str, counted: float | None, polygons: FalsePolygons | None) -> tuple[str, str]:
    """Return the answer and the reason with regard to the number of polygons, if pixels alone would let it hold."""
    if answer != HOLDS or counted is None or polygons is None or polygons.scene is None:
        return answer, why
    if counted > polygons.scene[1] and not math.isclose(counted, polygons.scene[1]):
        return UNKNOWN, "the share above is as promised, but there are more polygons: strange things, or false ones"
    return answer, why
