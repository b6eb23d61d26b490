"""Judgement of one map: does the promise of its threshold hold there?

The promise is a rate on ground without anomalies, and a scene may have some; so a share above the promise is no proof
of its breach, and a share within is none of its truth where the scene is unlike calibration ground. Three answers:

- *holds*: the scene is like calibration ground, and what lies above the threshold is within the interval promised.
- *does not hold*: more lies above than the interval allows, and the scene is unlike; or most of it lies above.
- *cannot be told*: nothing was measured to compare with; or the two signs contradict each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geood.calibration.exchangeability import Drift, in_words
from geood.calibration.false_polygons import FalsePolygons, PolygonTable, own_record
from geood.calibration.rates import LEAST_BLOCKS, MORE_BLOCKS, guaranteed, rate_interval
from geood.calibration.verdict import FAILS, HOLDS, UNKNOWN, SceneFacts, Verdict, percent
from geood.errors import counted
from geood.models import CalibrationRecord, ModelBundle

MOST = 0.5  # share of a scene above which it cannot all be strange
REMEDY = "take its own score and settings, or train it again with these"


def verdict_of(facts: SceneFacts, bundle: ModelBundle, drift: Drift | None) -> Verdict:
    """Return the verdict on a map: from its figures, the bundle, and how far the scene lies from calibration ground."""
    own = own_record(bundle)
    above = facts.above_px / facts.valid_px if facts.valid_px else None
    promise = _Promise() if facts.relative else _promise(facts, own, bundle)
    polygons = None
    if own is not None and facts.km2 and not facts.relative:
        table = PolygonTable.of(own, connectivity=bundle.config.predict.connectivity)
        polygons = table.at(facts.threshold, facts.min_area_m2, facts.km2)
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

    @property
    def limit(self) -> float | None:
        """Share above which a scene has more than is promised: the interval's end, of a rate of 0 what is guaranteed.

        The interval ends below the rate where less than a twentieth of the ground has all that lies above.
        """
        if self.rate == 0 and self.blocks is not None and self.blocks >= LEAST_BLOCKS:
            return self.at_most
        return None if self.high is None or self.rate is None else max(self.high, self.rate)


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
        return FAILS, f"{percent(above)} of the scene lies above the threshold: it does not tell strange from usual"
    if why := _why_unknown(facts, above, promise, drift):
        return UNKNOWN, why
    assert above is not None and promise.limit is not None and drift is not None
    within = above <= promise.limit
    return {
        (True, False): (HOLDS, "the scene is like calibration ground, and no more lies above than the promise allows"),
        (True, True): (
            UNKNOWN,
            "no more lies above than the promise allows, but the scene is unlike calibration ground",
        ),
        (False, True): (FAILS, "more lies above than the promise allows, and the scene is unlike calibration ground"),
        (False, False): (
            UNKNOWN,
            "more lies above than the promise allows, though the scene is like calibration ground: real things, or "
            "errors",
        ),
    }[within, drift.unlike]


def _why_unknown(facts: SceneFacts, above: float | None, promise: _Promise, drift: Drift | None) -> str | None:
    """Return why nothing can be told, None if it can."""
    blocks = promise.blocks
    few = f"calibration ground of {counted(blocks or 0, 'block')}"
    reasons = {
        "no pixel has a score": above is None,
        "the threshold is a rank in this scene (--on-drift relative) and promises nothing": facts.relative,
        f"the model has no record of a calibration of this score and its settings; {REMEDY}": blocks is None,
        "the threshold is below all that were measured on calibration ground": promise.rate is None,
        f"{few}, and an interval needs {LEAST_BLOCKS}; {MORE_BLOCKS}": promise.limit is None,
        "no pixel of calibration ground lies above the threshold, so how many may is not known": promise.rate == 0
        and above is not None
        and promise.limit is not None
        and 0 < above <= promise.limit,
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
