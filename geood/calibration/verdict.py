"""Verdict on one map as a value: its fields, and its words for an analyst.

How it is found is in `judgement`. Nothing heavy is imported here, as every output of a run carries one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from geood.errors import counted

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"
LARGEST = 2**63  # of an integer in a record
LOUD = 3.0  # times the promised share from which on it is said loudly


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

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the verdict of a tag.

        Raises:
            ValueError: it is none.
        """
        try:
            verdict = cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError):
            raise ValueError("not the record of a verdict") from None
        words, needed = ("answer", "why", "differs"), ("threshold", "valid_px")
        for name, value in asdict(verdict).items():
            kinds = str if name in words else bool if name == "relative" else (int, float)
            if not isinstance(value, kinds) and not (value is None and kinds == (int, float) and name not in needed):
                raise ValueError("not the record of a verdict")
            if isinstance(value, int) and abs(value) > LARGEST:  # JSON has integers of any length
                raise ValueError("not the record of a verdict")
        return verdict

    @property
    def loud(self) -> bool:
        """True if far more lies above the threshold than promised, and of a promise of 0 than guaranteed."""
        if not self.above or self.promised is None:
            return False
        return self.above > LOUD * (max(self.promised, self.high or 0) or self.at_most or 0)

    def fields(self) -> dict[str, Any]:
        """Return the fields as plain values, rounded to six digits; the threshold exactly, for another cut."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) and name != "threshold" else value
            for name, value in asdict(self).items()
        }

    def lines(self) -> list[str]:
        """Return the verdict as lines for a terminal."""
        said = [f"{'budget':<11}{self.answer}: {self.why}"]
        area = f"{self.km2:.4g} km2" if self.km2 is not None else counted(self.valid_px, "pixel")
        if self.above is not None:
            promise = "nothing promised" if self.promised is None else f"{percent(self.promised)} promised"
            bounds = f" ({percent(self.low)} to {percent(self.high)} in such a scene)" if self.high is not None else ""
            said.append(f"{'above':<11}{percent(self.above)} of {area}, {promise}{bounds}")
        if self.polygons_per_km2 is not None:
            line = f"{'per km2':<11}{in_digits(self.polygons_per_km2)} polygons"
            if self.false_per_km2 is not None:
                line += f", {in_digits(self.false_per_km2)} false ones expected"
                if self.false_low is not None and self.false_high is not None:
                    line += f" ({in_digits(self.false_low)} to {in_digits(self.false_high)} in such a scene)"
            said.append(line)
        if self.distance is not None:
            said.append(f"{'likeness':<11}{self._likeness(self.distance)}")
        if self.loud:
            assert self.above is not None and self.promised is not None
            times = f"{self.above / self.promised:.0f} times what is promised" if self.promised else "and 0 is promised"
            said.append(f"{'WARNING':<11}{percent(self.above)} of this scene lies above the threshold, {times}")
        return said

    def _likeness(self, distance: float) -> str:
        """Return in words whether the scene is like calibration ground; one that lies far by chance may be."""
        if self.differs:
            return f"unlike the ground it was calibrated on: {self.differs}"
        few = "" if distance <= 1 else ", as far as so few squares tell"
        return f"like the ground it was calibrated on{few} ({distance:.2f} of the distance that would be too far)"


def in_digits(number: float) -> str:
    """Return a number with three digits that count, large ones without a power of ten: 0.0123, 5.4, 4,560."""
    return f"{float(f'{number:.3g}'):,.0f}" if 1000 <= abs(number) < 1e15 else f"{number:.3g}"


def percent(share: float | None) -> str:
    """Return a share in per cent."""
    return "?" if share is None else f"{100 * share:.3g} %"
