"""Tables and bars of a page, as plain values: what the templates show without computing anything.

Shares are turned into per cent here, and intervals into places on a scale, so that page and text agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood.calibration import Verdict
from geood.errors import counted
from geood.reporting.reasons import plain
from geood.reporting.runs import Run

LAGS = (1, 4, 8, 16)
FEW_COLUMNS = 25  # classes of a confusion that is shown


class Bar(NamedTuple):
    """Figure of a map on a scale of 100: `at` is what is there, `promised` what was to be, between `low` and `high`."""

    title: str
    seen: str
    expected: str
    at: float
    promised: float | None
    low: float | None
    high: float | None
    outside: bool


class ClassRow(NamedTuple):
    """Class and its IoU in per cent; None where it does not occur."""

    name: str
    iou: float | None


class ConfusionRow(NamedTuple):
    """True class, and for each predicted class the share of its pixels in per cent, and how dark that is, 0 to 100."""

    name: str
    pixels: int
    cells: list[tuple[float, int, bool]]


class Compared(NamedTuple):
    """Figure of negatives beside that of real pixels, and how far apart they are: near, some, far."""

    name: str
    negatives: float
    real: float
    how: str


def verdict_bars(verdict: Verdict) -> list[Bar]:
    """Return what lies above the threshold and the polygons per km2, each beside what was promised."""
    bars = []
    if verdict.above is not None:
        promised = None if verdict.promised is None else 100 * verdict.promised
        low, high = (None if v is None else 100 * v for v in (verdict.low, verdict.high))
        bars.append(
            _bar("of the scene above the threshold", 100 * verdict.above, promised, limits=(low, high), unit=" %")
        )
    if verdict.polygons_per_km2 is not None:
        limits = (verdict.false_low, verdict.false_high)
        bars.append(_bar("polygons per km²", verdict.polygons_per_km2, verdict.false_per_km2, limits=limits, unit=""))
    return bars


def _bar(
    title: str, seen: float, promised: float | None, *, limits: tuple[float | None, float | None], unit: str
) -> Bar:
    low, high = limits
    top = 1.12 * max(v for v in (seen, promised, high, 1e-9) if v is not None)
    expected = "nothing was promised" if promised is None else f"{plain(promised)}{unit or ' false ones'} expected"
    if low is not None and high is not None:
        expected += f", {plain(low)} to {plain(high)}{unit} in a scene of this size"
    at, *others = (None if v is None else min(100.0, 100 * v / top) for v in (seen, promised, low, high))
    outside = high is not None and seen > max(high, promised or 0.0)
    return Bar(title, f"{plain(seen)}{unit}", expected, at or 0.0, others[0], others[1], others[2], outside)


def class_table(iou: Mapping[str, float]) -> list[ClassRow]:
    """Return the classes with their IoU, the best first."""
    rows = [ClassRow(name, None if math.isnan(value) else 100 * value) for name, value in iou.items()]
    return sorted(rows, key=lambda row: -1.0 if row.iou is None else row.iou, reverse=True)


def confusion_table(names: Sequence[str], counts: NDArray[np.int64]) -> list[ConfusionRow] | None:
    """Return a confusion in shares of each true class; None of more classes than can be shown."""
    if len(names) > FEW_COLUMNS:
        return None
    rows = []
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        total = int(row.sum())
        shares = [100 * float(cell) / total if total else 0.0 for cell in row]
        rows.append(ConfusionRow(name, total, [(share, round(share), i == j) for j, share in enumerate(shares)]))
    return rows


def run_facts(run: Run) -> list[tuple[str, str]]:
    """Return the headline of a run: mIoU, score, encoder, stages, ground of the calibration."""
    config, header = run.config, run.header
    facts = [] if run.miou is None else [("mIoU on validation ground", f"{100 * run.miou:.1f} %")]
    facts.append(("encoder", config.segmenter.encoder))
    facts.append(("negatives", config.negatives.told))
    steps = [f"{stage} {max(p.step for p in run.history[key]):,}" for stage in run.stages if (key := _any(run, stage))]
    facts.append(("steps", ", ".join(steps) or "none"))
    if header is not None and header.record is not None:
        record = header.record
        area = counted(record.pixels, "pixel") if record.km2 is None else f"{record.km2:.3g} km²"
        facts.append(
            ("calibrated on", f"{area}, {counted(record.blocks, 'block')} of {counted(record.images, 'image')}")
        )
    if header is not None and header.reach is not None:
        facts.append(("halo", f"{header.reach.halo_px} px"))
    return facts


def _any(run: Run, stage: str) -> tuple[str, str] | None:
    return next((key for key in run.history if key[0] == stage), None)


def negative_table(run: Run) -> list[Compared]:
    """Return how pasted negatives, and samples of the flow, compare with real pixels in the last validation."""
    rows = []
    pairs = [("pasted_corr", "pasted negatives, correlation of pixels {} px apart")]
    pairs += [("corr", "samples of the flow, correlation of pixels {} px apart")]
    for stage in (run.third, "flow"):
        if stage is None:
            continue
        for figure, title in pairs:
            for lag in LAGS:
                rows += _compared(run, stage, f"{figure}_{lag}", title.format(lag))
        rows += _compared(run, stage, "border", "samples of the flow, steps at borders of 8 px")
        rows += _compared(run, stage, "spread", "samples of the flow, standard deviation")
    seen: dict[str, Compared] = {}
    for row in rows:
        seen.setdefault(row.name, row)
    return list(seen.values())


def _compared(run: Run, stage: str, figure: str, title: str) -> list[Compared]:
    given, real = run.last(stage, f"val/{figure}"), run.last(stage, f"val/real_{figure}")
    if given is None or real is None or not (math.isfinite(given) and math.isfinite(real)):
        return []
    apart = abs(given - real) / max(abs(real), 0.1)
    return [Compared(title, given, real, "near" if apart < 0.15 else "some way off" if apart < 0.5 else "far off")]
