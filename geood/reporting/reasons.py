"""Reasons why a polygon is on the map, in words: what its columns say of its class, its surroundings and its rarity.

The words follow the columns of `polygons/export` and say no more than they do. A polygon of an older geood has fewer
columns, and then fewer words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from geood.config import SCORES, title_of

UNDECIDED, SURE = 0.15, 0.5  # margins between the two best classes
ON_EDGE = 0.5  # share of pixels beside another class from which on a polygon is an edge
SIGNALS = {  # what the scores behind `combined` have seen
    "hybrid": "It stands out for the classes and the outlier head",
    "encoder_knn": "It looks unlike the training images of its class",
}
RARE = 1e-9  # shares of inliers below it are not told apart


def reasons(row: Mapping[str, Any]) -> list[str]:
    """Return sentences on a polygon, the most telling first."""
    said = [_taken_for(row), _stands_out(row), _rarity(row), _signal(row), _edge(row), _cut(row)]
    return [sentence for sentence in said if sentence]


def plain(value: float) -> str:
    """Return a number with three digits that count, never as a power of ten."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def number(row: Mapping[str, Any], name: str) -> float | None:
    """Return a column as a finite number; None where there is none."""
    value = row.get(name)
    if value is None or isinstance(value, str):
        return None
    return float(value) if math.isfinite(float(value)) else None


def text(row: Mapping[str, Any], name: str) -> str:
    """Return a column as text; empty where there is none."""
    value = row.get(name)
    return value.strip() if isinstance(value, str) else ""


def _taken_for(row: Mapping[str, Any]) -> str:
    name, second, margin = text(row, "class_name"), text(row, "runner_up"), number(row, "margin")
    if not name:
        return ""
    if not second or margin is None:
        return f"The classes took it for {name}."
    how = "undecided between" if margin < UNDECIDED else "fairly sure of" if margin < SURE else "sure of"
    if margin < UNDECIDED:
        return f"The classes were {how} {name} and {second} (margin {margin:.2f})."
    return f"The classes were {how} {name}, then {second} (margin {margin:.2f})."


def _stands_out(row: Mapping[str, Any]) -> str:
    contrast = number(row, "contrast")
    if contrast is None:
        return ""
    if contrast <= 0:
        return f"It does not stand out: what lies around scores as high ({contrast:+.3g})."
    return f"It scores {contrast:.3g} higher than what lies around."


def _rarity(row: Mapping[str, Any]) -> str:
    share = number(row, "p_value")
    if share is None:
        return ""
    if share <= RARE:
        return "Hardly any pixel of known ground scores as high."
    return f"One in {_round(1 / share)} pixels of known ground scores as high."


def _round(count: float) -> str:
    """Return a count with two digits that count."""
    digits = max(0, math.floor(math.log10(max(count, 1))) - 1)
    return f"{round(count / 10**digits) * 10**digits:,}"


def _signal(row: Mapping[str, Any]) -> str:
    name = text(row, "signal")
    if not name:
        return ""
    title = title_of(name) if name in SCORES else name
    return f"{SIGNALS.get(name, 'It stands out by its score')} ({title})."


def _edge(row: Mapping[str, Any]) -> str:
    share = number(row, "on_edge")
    if share is None or share < ON_EDGE:
        return ""
    return f"{100 * share:.0f} % of it lies beside another class: perhaps only an edge."


def _cut(row: Mapping[str, Any]) -> str:
    share = number(row, "valid_fraction")
    if share is None or round(100 * share) >= 100:
        return ""
    return f"Only {100 * share:.0f} % of the ground around it has data."
