"""Figures as people and programs read them: names of scores, per cent, JSON without NaN."""

from __future__ import annotations

import math
from typing import Any


def percent(share: float) -> str:
    """A share in eight places of per cent, a dash if it is undefined; below 1 % with one decimal more."""
    if math.isnan(share):
        return f"{'-':>8}"
    return f"{100 * share:8.2f}" if 0 < share < 0.01 else f"{100 * share:8.1f}"


def without_nan(value: Any) -> Any:
    """The same value with None for each number that is not finite, as JSON needs it."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
