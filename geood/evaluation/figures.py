"""Formatting of figures: per cent in tables, JSON without NaN.

Everywhere else figures are shares in [0, 1], NaN if undefined; JSON has no NaN, and tables read better in per cent.
"""

from __future__ import annotations

import math
from typing import Any


def percent(share: float) -> str:
    """Format a share as per cent, eight characters wide: one decimal, two below 1 %, a dash if it is NaN."""
    if math.isnan(share):
        return f"{'-':>8}"
    return f"{100 * share:8.2f}" if 0 < share < 0.01 else f"{100 * share:8.1f}"


def without_nan(value: Any) -> Any:
    """Return a copy of nested dicts and lists with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
