"""Audit of a map by verdicts: precision by score and rank, misses, recall, a threshold for a budget, promises.

Every figure says on how many judged polygons it stands, and its interval holds for a random sample of those it speaks
of; a ranked list that was judged from its top is none, so precision is told by rank and by score. Misses come from the
cells of the sample that were searched to their end and from nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from geood.calibration import in_digits
from geood.constants import DIGITS
from geood.errors import ConfigError, DataError, counted
from geood.models import AnyBundle, bundle_path_of, takes_bundle
from geood.notebook import html_text
from geood.review.ground import MapGround, ground_of, searched_ground
from geood.review.intervals import (
    LEVEL,
    Interval,
    chance_of_at_least,
    chance_of_at_most,
    count_limits,
    least_total,
    rate_of,
    share_of,
)
from geood.review.reading import Review, ReviewNames, misspelt_lines, read_review

BANDS = 5  # bands of score, each with about as many judged polygons
TOPS = (10, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
WITHIN = "more than expected, within the limits that the map told"
SURE = 0.05  # a promise is called broken where what was found has a smaller chance under it


class Part(NamedTuple):
    """Some of the polygons: how many there are, how many were judged real or false, and the share of real ones."""

    name: str
    polygons: int
    judged: int
    real: int
    precision: Interval


class BudgetThreshold(NamedTuple):
    """Threshold at which false polygons stay within a budget for each square kilometre; None where none does.

    `expected` and `at_most` are false polygons for each square kilometre at it; `sure` is the threshold at which the
    upper limit stays within the budget too.
    """

    per_km2: float
    threshold: float | None
    polygons: int
    real: int
    expected: float
    at_most: float
    sure: float | None


@dataclass(frozen=True)
class Audit:
    """Figures of a review, to be printed, written as JSON, or used."""

    files: tuple[str, ...]
    polygons: int
    verdicts: dict[str, int]
    misspelt: dict[str, int]
    conflicts: tuple[str, ...]
    notes: tuple[str, ...]
    ranked: bool
    area_km2: float | None
    overall: Part
    bands: tuple[Part, ...]
    tops: tuple[Part, ...]
    cells: dict[str, Any] | None
    misses_per_km2: Interval | None
    recall: Interval | None
    no_recall: str
    budget: BudgetThreshold | None
    promises: tuple[str, ...]

    def _repr_html_(self) -> str:
        judged, real = self.overall.judged, self.overall.real
        lines = [
            f"{judged} of {counted(self.polygons, 'polygon')} judged, {real} of them real",
            *self.promises,
            *self.notes,
        ]
        return html_text(f"Audit of {', '.join(self.files)}", "\n".join(lines))

    def to_json(self) -> str:
        """Return all figures as JSON; what is not known, or has no limit, is null."""
        return json.dumps(_finite(asdict(self) | {"level": LEVEL}), indent=1, ensure_ascii=False)


@takes_bundle
def audit(  # noqa: PLR0913 - the options of a verb
    paths: Sequence[str | Path],
    *,
    names: ReviewNames = ReviewNames(),  # noqa: B008  # frozen
    scores: str | Path | None = None,
    area_km2: float | None = None,
    false_per_km2: float | None = None,
    promised_per_km2: float | None = None,
    bundle: AnyBundle | None = None,
    bundle_path: str | Path | None = None,
) -> Audit:
    """Return what the verdicts in reviewed files say of the map.

    Args:
        paths: reviewed copies of one polygon file, of geood or of another tool.
        names: names of layer and columns.
        scores: the score raster, of any tool; None: the first that lies beside a file, `x.tif` beside `x.gpkg`.
        area_km2: the ground that was searched, where no score raster tells it.
        false_per_km2: a budget, for which a threshold is sought.
        promised_per_km2: false polygons for each square kilometre that the map was to have; the ground must be known.
        bundle: the bundle that made the map (an object, its file or its run's folder), whose promised rate of pixels is
            compared.
        bundle_path: the former name of `bundle`.

    Returns:
        The figures: precision by score and rank, misses, recall, and what they say of promises.

    Raises:
        ConfigError: a number is none, or what it needs is missing.
        DataError: a file cannot be read, or nothing in it was judged.

    Example:
        >>> import geood
        >>> found = geood.audit(["reviewed.gpkg"], area_km2=0.5)
        >>> found.polygons, found.verdicts["real"]
        (2, 1)
    """
    bundle_path = None if bundle is None else bundle_path_of(bundle)
    for option, number in {"--area-km2": area_km2, "--false-per-km2": false_per_km2}.items():
        if number is not None and not (math.isfinite(number) and number > 0):
            raise ConfigError(f"{option} {number}: not a number above 0; give one")
    if promised_per_km2 is not None and not 0 <= promised_per_km2 < math.inf:
        raise ConfigError(f"--promised-per-km2 {promised_per_km2}: not a number of polygons; give 0 or more")
    review = read_review(paths, names)
    ground = ground_of(review, [Path(path) for path in paths], scores=scores, area_km2=area_km2)
    review = ground.review
    frame = review.polygons
    judged = frame["verdict"].isin(["real", "false"]).to_numpy()
    real = (frame["verdict"] == "real").to_numpy()
    cells, bare = searched_ground(review)
    if not judged.any() and not (cells and cells["complete"]):
        others = "; ".join(misspelt_lines(review.misspelt))
        raise DataError(
            f"{paths[0]}: no polygon has a verdict yet{f' ({others})' if others else ''}, and no cell is complete; "
            "type real or false in the column verdict, in QGIS or elsewhere, and save"
        )
    score, mapped = frame["score"].to_numpy(np.float64), _mapped(frame)
    for option, number in {"--false-per-km2": false_per_km2, "--promised-per-km2": promised_per_km2}.items():
        if number is not None and ground.area_km2 is None:
            raise ConfigError(f"{option} needs the ground that was searched; give --scores RASTER or --area-km2")
    bands = _bands(score, judged, real)
    misses = rate_of(cells["misses"], cells["area_km2"]) if cells and cells["complete"] else None
    recall, why = _recall(bands, misses, ground, sampled=cells is not None)
    return Audit(
        files=tuple(Path(path).name for path in paths),
        polygons=len(frame),
        verdicts={str(k) or "none yet": int(v) for k, v in frame["verdict"].value_counts().items()},
        misspelt=review.misspelt,
        conflicts=tuple(map(str, review.conflicts)),
        notes=(*review.notes, *bare, *_odd_outlines(review), *_without_score(score, judged), *ground.notes),
        ranked=review.ranked,
        area_km2=ground.area_km2,
        overall=_part("all", judged, real),
        bands=bands,
        tops=_tops(judged[mapped], real[mapped]),
        cells=cells,
        misses_per_km2=misses,
        recall=recall,
        no_recall=why,
        budget=None if false_per_km2 is None else _budget(score, judged, real, ground, per_km2=false_per_km2),
        promises=_promises(review, ground, promised_per_km2, bundle_path),
    )


def _odd_outlines(review: Review) -> list[str]:
    """Return a note on outlines that are gone, or no longer valid, since they were written."""
    shapes = review.polygons.geometry
    bare = shapes.isna() | shapes.is_empty
    wrong = ~bare & ~shapes.is_valid
    odd = {"without an outline": bare, "whose outline is not valid": wrong}
    told = [f"{counted(int(some.sum()), 'polygon')} {what}" for what, some in odd.items() if some.any()]
    why = f" (the first: {shapely.is_valid_reason(shapes[wrong].iloc[0])})" if wrong.any() else ""
    return [f"{' and '.join(told)}{why}: counted by what its row tells"] if told else []


def _mapped(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which polygons (n,) are of the map: those with a finite score, all where none has one."""
    known = np.isfinite(frame["score"].to_numpy(np.float64))
    return known if known.any() else np.ones(len(frame), np.bool_)


def _without_score(score: NDArray[np.float64], judged: NDArray[np.bool_]) -> list[str]:
    """Return a note on judged polygons that have no score, as those drawn by hand, or an infinite one."""
    count = int((judged & ~np.isfinite(score)).sum())
    what = f"{counted(count, 'judged polygon')} without a finite score, as if drawn by hand"
    return [f"{what}: in the precision overall, and in nothing else"] if count else []


def _part(name: str, judged: NDArray[np.bool_], real: NDArray[np.bool_]) -> Part:
    cases, hits = int(judged.sum()), int((real & judged).sum())
    return Part(name, len(judged), cases, hits, share_of(hits, cases))


def _bands(score: NDArray[np.float64], judged: NDArray[np.bool_], real: NDArray[np.bool_]) -> tuple[Part, ...]:
    """Cut the polygons into bands of score at quantiles of the judged ones."""
    known = np.isfinite(score)
    if not (judged & known).any():
        return ()
    edges = np.unique(np.quantile(score[judged & known], np.linspace(0, 1, BANDS + 1)[1:-1]))
    band = np.searchsorted(edges, score, side="right")
    limits = [-math.inf, *edges.tolist(), math.inf]
    digits = next((n for n in (4, 6) if len({f"{edge:.{n}g}" for edge in edges}) == len(edges)), 9)
    parts = []
    for i in reversed(range(len(limits) - 1)):
        inside = known & (band == i)
        if not inside.any():
            continue
        low, high = (f"{limit:.{digits}g}" for limit in limits[i : i + 2])
        name = f"from {low}" if limits[i + 1] == math.inf else f"{low} to {high}"
        name = f"below {high}" if limits[i] == -math.inf else name
        parts.append(_part("all scores" if len(limits) == 2 else name, judged[inside], real[inside]))
    return tuple(parts)


def _tops(judged: NDArray[np.bool_], real: NDArray[np.bool_]) -> tuple[Part, ...]:
    """Take the best ranked polygons, as far as any of those were judged."""
    last = int(np.flatnonzero(judged).max()) + 1 if judged.any() else 0
    sizes = [size for size in TOPS if size <= len(judged)]
    useful = [size for i, size in enumerate(sizes) if i == 0 or sizes[i - 1] < last]
    return tuple(_part(f"top {size}", judged[:size], real[:size]) for size in useful)


def _recall(
    bands: Sequence[Part], misses: Interval | None, ground: MapGround, *, sampled: bool
) -> tuple[Interval | None, str]:
    """Estimate the share of real things that polygons mark, with limits that join those of both counts."""
    if misses is None:
        lack = "no cell of the sample is complete" if sampled else "there is no layer sample"
        return None, f"{lack}, and polygons alone can never tell what they miss"
    if math.isnan(misses.value):
        return None, "the cells of the sample have no area in square metres"
    if ground.area_km2 is None:
        return None, "the ground that was searched is not known; give --scores RASTER or --area-km2"
    bare = [part.name for part in bands if part.polygons and not part.judged]
    if bare or not bands:
        return None, f"no polygon was judged with a score {bare[0] if bare else 'at all'}"
    shares = [share_of(part.real, part.judged, level=1 - (1 - LEVEL) / len(bands)) for part in bands]
    found = [sum(part.polygons * share[k] for part, share in zip(bands, shares, strict=True)) for k in range(3)]
    low, high = (sum(part.real for part in bands), sum(p.polygons - p.judged + p.real for p in bands))
    found[1], found[2] = max(found[1], low), min(found[2], high)  # what was judged is known
    missed = [rate * ground.area_km2 for rate in misses]
    value = found[0] / (found[0] + missed[0]) if found[0] + missed[0] else math.nan
    least = found[1] / (found[1] + missed[2]) if found[1] + missed[2] else 0.0
    most = found[2] / (found[2] + missed[1]) if found[2] + missed[1] else 1.0
    return Interval(value, least, most), ""


def _budget(
    score: NDArray[np.float64], judged: NDArray[np.bool_], real: NDArray[np.bool_], ground: MapGround, *, per_km2: float
) -> BudgetThreshold:
    """Find the lowest threshold within a budget: polygons whose best pixel is not above it go.

    Where not all above a threshold were judged, those that were stand for the others.
    """
    assert ground.area_km2 is not None
    order = np.argsort(-score, kind="stable")
    order = order[np.isfinite(score[order])]
    ranked, seen, good = score[order], judged[order], real[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.empty(0, int)
    ends = ends[ends <= (np.flatnonzero(seen).max() if seen.any() else -1)]
    best = sure = None
    met = [True, True]
    judged_so_far, real_so_far = seen.cumsum(), good.cumsum()
    false_so_far = (seen & ~good).cumsum()
    for end in ends:
        cases, false = int(judged_so_far[end]), int(false_so_far[end])
        scale = (end + 1) / cases / ground.area_km2 if cases else math.inf
        limits = count_limits(false)
        expected, most = false * scale if cases else math.inf, limits.high * scale
        at = _between(ranked[end + 1 :], float(ranked[end]))
        row = BudgetThreshold(per_km2, at, int(end) + 1, int(real_so_far[end]), expected, most, None)
        met = [met[0] and (expected <= per_km2 or not cases), met[1] and (most <= per_km2 or not cases)]
        best = row if met[0] and cases else best
        sure = at if met[1] and cases else sure
    nothing = BudgetThreshold(per_km2, None, 0, 0, math.nan, math.nan, None)
    return (best or nothing)._replace(sure=sure)


def _between(dropped: NDArray[np.float64], kept: float) -> float:
    """Return a threshold that a polygon's score `kept` is above, and the first of those `dropped`, if any, is not.

    Files tell scores by `DIGITS`, which lie up to half of the last one beside, and are of float32.
    """
    if not len(dropped):
        return float(np.nextafter(np.float32(kept - _half_digit(kept)), np.float32(-np.inf)))
    least = float(dropped[0])
    at = min(least + _half_digit(least), (least + kept) / 2)
    near = np.float32(at)
    return float(near if float(near) <= at else np.nextafter(near, np.float32(-np.inf)))


def _half_digit(score: float) -> float:
    """Return half of the last digit that files tell of a score."""
    return 0.5 * 10.0 ** (math.floor(math.log10(abs(score))) + 1 - DIGITS) if score else 0.0


def _promises(
    review: Review, ground: MapGround, promised_per_km2: float | None, bundle_path: str | Path | None
) -> tuple[str, ...]:
    """Compare what was promised with what was found, in words."""
    frame = review.polygons[_mapped(review.polygons)]
    false = (frame["verdict"] == "false").to_numpy()
    open_yet = int((~frame["verdict"].isin(["real", "false"])).sum())
    said: list[str] = []
    if len(frame) and open_yet == len(frame):
        return ()  # nothing was looked at, so nothing can agree
    own = ground.promise
    promised, limit = (own.per_km2, own.per_km2_limit) if promised_per_km2 is None else (promised_per_km2, None)
    if promised is not None and ground.area_km2 is not None:
        said.append(_of_polygons(promised, int(false.sum()), open_yet, area_km2=ground.area_km2, limit=limit))
    share = ground.promised_share(bundle_path)
    if share is not None and ground.valid_px and "area_px" in frame:
        pixels = pd.to_numeric(frame["area_px"], errors="coerce").to_numpy(np.float64)
        limit = own.share_limit if bundle_path is None else None
        said.append(_of_pixels(share, pixels[false], ground.valid_px, limit))
    elif bundle_path is not None:
        lacks = "polygons have no column area_px" if "area_px" not in frame else "the map's valid pixels are not known"
        why = lacks if share is not None else f"the bundle has no rate for their threshold {ground.threshold:.6g}"
        said.append(f"cannot be compared with the calibration of {Path(bundle_path).name}: {why}")
    return tuple(said)


def _of_polygons(promised: float, false: int, open_yet: int, *, area_km2: float, limit: float | None) -> str:
    mean = promised * area_km2
    more, fewer = chance_of_at_least(false, mean), chance_of_at_most(false + open_yet, mean)
    found = f"{counted(false, 'false polygon')} on {area_km2:.3g} km2, {in_digits(false / area_km2)} per km2"
    found += f" and {open_yet} not decided" if open_yet else ""
    text = f"{in_digits(promised)} false polygons per km2 promised, found {found}"
    if more < SURE and limit is not None and false / area_km2 <= limit:
        return f"{WITHIN}: {text}; up to {in_digits(limit)} in such a scene"
    if more < SURE:
        return f"contradicts the calibration: {text} (p {more:.2g})"
    if fewer < SURE:
        return f"better than the calibration: {text} (p {fewer:.2g})"
    return f"agrees with the calibration: {text}"


def _of_pixels(promised: float, false_px: NDArray[np.float64], valid_px: int, limit: float | None) -> str:
    found = float(np.nansum(false_px)) / valid_px
    least = least_total(false_px[np.isfinite(false_px)].tolist()) / valid_px
    text = f"{100 * promised:.3g} % of inlier pixels promised above the threshold, "
    text += f"{100 * found:.3g} % of all lie in false polygons"
    if least > promised and limit is not None and found <= limit:
        return f"{WITHIN}: {text}; up to {100 * limit:.3g} % in such a scene"
    if least > promised:
        return f"contradicts the calibration: {text} ({100 * least:.3g} % at the least)"
    return f"does not contradict the calibration: {text} ({100 * least:.3g} % at the least, as chance may have it)"


def _finite(value: Any) -> Any:
    """Return a tree of values in which numbers that JSON has not are None."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (Interval, Part, BudgetThreshold)):
        return _finite(value._asdict())
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
