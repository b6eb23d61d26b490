"""Promises for polygons as they were cut, which may be another cut than that of the map.

`predict` and `polygonize` write into a GeoPackage, in its table `run`, what the threshold that cut it promises. Other
formats have no room for that; there the polygons tell the threshold themselves (mean score less excess), and the
raster's tags tell what is promised at it: the map's own record where it is the map's threshold, else its table of false
polygons.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from geood.calibration import PolygonTable
from geood.geo.score_raster import PREDICT_TAG, RUN_TAG, TABLE_TAG, THRESHOLD_TAG, tagged_number
from geood.polygons import run_rows
from geood.review.reading import Review

MOSTLY = 0.9  # of the polygons have to tell the same threshold
SAME = 1e-4  # relative difference of thresholds that are one, as polygons tell it from rounded means


class CutPromise(NamedTuple):
    """Share of inlier pixels above a threshold, and false polygons per km2 at it; None where nothing is promised.

    `share_limit` and `per_km2_limit` are how far both may rise in a scene as large as the map's: ground differs, so a
    mean is exceeded oftener than by chance alone.
    """

    share: float | None = None
    per_km2: float | None = None
    share_limit: float | None = None
    per_km2_limit: float | None = None


NOTHING = CutPromise()


def promise_of(path: Path, tags: Mapping[str, str], review: Review) -> tuple[float | None, CutPromise, tuple[str, ...]]:
    """Return the threshold that cut a file of polygons, what is promised for polygons cut so, and notes.

    Args:
        path: the reviewed file.
        tags: those of the score raster, empty without one.
        review: what is in the file.
    """
    rows = run_rows(path)
    if rows:
        return _of_rows(rows)
    own, table = tagged_number(tags, THRESHOLD_TAG), _table(tags)
    cut = _threshold_of(review, [] if own is None else [own, *(table.thresholds if table else ())])
    if cut is None or cut == own:
        return own, _of_record(_json(tags.get(RUN_TAG, ""))), ()
    if own is None:
        return cut, NOTHING, ()
    if table is None:
        note = f"polygons were cut at {cut:.6g}, and the map's promise is for {own:.6g}: nothing is told of theirs"
        return cut, NOTHING, (note,)
    settings = _json(tags.get(PREDICT_TAG, ""))
    least = number_of(settings, "min_area_m2") if isinstance(settings, dict) else None
    found = table.at(cut, least or 0.0)
    note = (
        f"polygons were cut at {cut:.6g}, the map at {own:.6g}: compared with what its calibration tells for "
        f"{cut:.6g}, with the map's least area"
    )
    return cut, CutPromise(table.share_above(cut), None if found is None else found.rate), (note,)


def _of_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[float | None, CutPromise, tuple[str, ...]]:
    """Return threshold and promise that all scenes of a file share; nothing where they differ."""
    thresholds = {row.get("threshold") for row in rows}
    whole = [_of_record(row) for row in rows]  # limits are of one scene, not of several together
    promises = {each if len(rows) == 1 else CutPromise(each.share, each.per_km2) for each in whole}
    if len(thresholds) > 1 or len(promises) > 1:
        return None, NOTHING, ("its scenes have thresholds or promises of their own, so no promise is compared",)
    [at], [promise] = thresholds, promises
    return (float(at) if isinstance(at, (int, float)) else None), promise, ()


def _of_record(record: Any) -> CutPromise:
    """Return what a map's record promised; nothing for the best-ranked alone, and for a threshold by rank."""
    if not isinstance(record, Mapping) or record.get("relative"):
        return NOTHING
    share, limit = number_of(record, "promised"), number_of(record, "high")
    if number_of(record, "polygons_per_km2") is None:
        return CutPromise(share, share_limit=limit)
    return CutPromise(share, number_of(record, "false_per_km2"), limit, number_of(record, "false_high"))


def number_of(record: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a record, 0 or more; None where there is none."""
    value = record.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max:
        return float(value)
    return None


def _threshold_of(review: Review, known: Sequence[float]) -> float | None:
    """Return the threshold that polygons tell by their columns; None where they have none, or tell several.

    Columns are rounded, so of the `known` thresholds the nearest is taken, if it may be the one that they tell.
    """
    frame = review.polygons
    if not {"score_mean", "threshold_excess"} <= set(frame.columns):
        return None
    mean, excess = (pd.to_numeric(frame[name], errors="coerce") for name in ("score_mean", "threshold_excess"))
    told = (mean - excess).dropna().to_numpy(np.float64)
    if not len(told):
        return None
    middle = float(np.median(told))
    if np.isclose(told, middle, rtol=SAME, atol=SAME * 1e-2).mean() <= MOSTLY:
        return None
    near = min(known, key=lambda threshold: abs(threshold - middle), default=middle)
    return near if math.isclose(near, middle, rel_tol=SAME, abs_tol=SAME * 1e-2) else middle


def _table(tags: Mapping[str, str]) -> PolygonTable | None:
    try:
        return PolygonTable.from_text(tags[TABLE_TAG])
    except (KeyError, ValueError):
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
