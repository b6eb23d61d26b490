"""Plots of a report: matplotlib figures, as SVG that takes its colours from the page, or as one PNG in a run folder.

Colours stand for roles (ink, grid, series) and are replaced by the page's variables in SVG, so one plot serves light
and dark. Texts from files never reach matplotlib's math. Figures are drawn on the file canvas: no window.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from geood.atomic import atomic_write, output_errors
from geood.calibration import PolygonTable
from geood.reporting.evaluations import Measured
from geood.reporting.reasons import plain
from geood.reporting.runs import Point, Run, read_run

INK, GRID, ACCENT, FAINT = "#010203", "#010204", "#010205", "#010206"
SERIES = ("#0101f0", "#0101f1", "#0101f2", "#0101f3")
VARIABLES = {INK: "--ink", GRID: "--line", ACCENT: "--accent", FAINT: "--faint"}
VARIABLES |= {colour: f"--c{i + 1}" for i, colour in enumerate(SERIES)}
PLAIN = {INK: "#222222", GRID: "#dddddd", ACCENT: "#c2185b", FAINT: "#888888"}
PLAIN |= dict(zip(SERIES, ("#1f5fbf", "#d9730d", "#2a8c4a", "#7a4fbf"), strict=True))
SIZE_IN = (4.8, 3.0)
STYLE = {"svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif", "text.parse_math": False}
PLAIN_NUMBERS = FuncFormatter(lambda value, _: f"{value:g}")  # the usual one of a log scale writes formulas
STAGE_COLOURS = dict(zip(("segmenter", "flow", "joint", "head"), SERIES, strict=True))


class Chart(NamedTuple):
    """Plot of a page: title, SVG, and what it shows in words."""

    title: str
    svg: str
    told: str


def curves_of(run: Run) -> list[Chart]:
    """Return the plots of a training: loss, mIoU, bits per dimension; those without figures are left out."""
    made = []
    for title, draw, figure_name in (
        ("Loss", _draw_loss, "loss"),
        ("mIoU of the classes", _draw_miou, "val/miou"),
        ("Bits per dimension of the flow", _draw_bits, "val/bpd"),
    ):
        if _is_there(run, figure_name):
            figure, ax = _figure()
            told = draw(ax, run)
            made.append(Chart(title, as_svg(figure, f"{figure_name}".replace("/", "-")), told))
    return made


def _is_there(run: Run, name: str) -> bool:
    return (
        bool(run.losses) if name == "loss" and run.losses else any(figure.endswith(name) for _, figure in run.history)
    )


def draw_curves(folder: Path) -> Path | None:
    """Draw the curves of a run as `curves.png` in its folder and return that path; None if it has no figures.

    Raises:
        DataError: a file of the run is damaged.
        OutputError: the picture cannot be written.
    """
    run = read_run(folder)
    wanted = [
        (title, draw)
        for title, draw, name in (
            ("loss", _draw_loss, "loss"),
            ("mIoU of the classes on validation ground", _draw_miou, "val/miou"),
            ("bits per dimension of the flow", _draw_bits, "val/bpd"),
        )
        if _is_there(run, name)
    ]
    if not wanted:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(wanted), 3.8), dpi=120, layout="constrained", facecolor="white")
        for i, (title, draw) in enumerate(wanted):
            ax = figure.add_subplot(1, len(wanted), i + 1)
            draw(ax, run)
            ax.set_title(title, loc="left", fontsize=11)
            _finish(ax)
        for artist in figure.findobj():
            _plain(artist)
        out = folder / "curves.png"
        with output_errors(out), atomic_write(out, alone=True) as partial:
            figure.savefig(partial, format="png")
    return out


def _plain(artist: Any) -> None:
    """Replace the colours that stand for roles by those of a white page."""
    for kind in ("color", "edgecolor", "facecolor", "markerfacecolor", "markeredgecolor"):
        getter, setter = getattr(artist, f"get_{kind}", None), getattr(artist, f"set_{kind}", None)
        if getter is None or setter is None:
            continue
        given = getter()
        if isinstance(given, str) and given in PLAIN:
            setter(PLAIN[given])


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_IN, dpi=100, layout="constrained")
    return figure, figure.add_subplot()


def _finish(ax: Axes) -> None:
    """Give axes the quiet look of the page."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(GRID)
    ax.tick_params(colors=INK, labelsize=9, length=0)
    ax.grid(True, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    for label in (ax.xaxis.label, ax.yaxis.label, ax.title):
        label.set_color(INK)
    if legend := ax.get_legend():
        legend.get_frame().set_alpha(0)
        for entry in legend.get_texts():
            entry.set_color(INK)


def as_svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element whose colours are variables of the page, and whose ids begin with `name`."""
    for ax in figure.axes:
        _finish(ax)
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|href="|url\()#', rf"\1#{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 aria-hidden="true" focusable="false"', svg, count=1)


def _offsets(run: Run) -> dict[str, int]:
    """Return at which step of the whole training each stage begins."""
    offsets, so_far = {}, 0
    for stage in run.stages:
        offsets[stage] = so_far
        so_far += max(points[-1].step for (name, _), points in run.history.items() if name == stage and points)
    return offsets


def _series(ax: Axes, points: Sequence[Point], offset: int, **style: Any) -> None:
    ax.plot([offset + p.step for p in points], [p.value for p in points], **style)


def _legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=9, loc="best", handlelength=1.4)


def _draw_loss(ax: Axes, run: Run) -> str:
    """Draw the training loss of each stage over the steps of the whole training."""
    told, offsets = [], _offsets(run)
    for stage in run.stages:
        points = run.losses.get(stage) or run.history.get((stage, "train/loss"), [])
        if not points:
            continue
        colour = STAGE_COLOURS[stage]
        marker = {"marker": "o", "markersize": 3} if len(points) < 12 else {}
        if len(points) >= 12:
            _series(ax, points, offsets[stage], color=colour, linewidth=0.8, alpha=0.35)
            points = _smooth(points)
        _series(ax, points, offsets[stage], color=colour, linewidth=1.8, label=stage, **marker)
        told.append(f"{stage} from {points[0].value:.3g} to {points[-1].value:.3g}")
    ax.set_xlabel("steps")
    _legend(ax)
    return "Training loss by step: " + "; ".join(told) + "."


def _smooth(points: Sequence[Point]) -> list[Point]:
    """Return a running mean over a tenth of the points."""
    span = max(3, len(points) // 10)
    values = np.array([p.value for p in points])
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - span)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    return [Point(p.step, float(mean)) for p, mean in zip(points, means, strict=True)]


def _draw_figure(ax: Axes, run: Run, name: str, *, scale: float, unit: str) -> str:
    told, offsets = [], _offsets(run)
    for stage in run.stages:
        points = [Point(p.step, scale * p.value) for p in run.history.get((stage, name), []) if math.isfinite(p.value)]
        if points:
            style = {"color": STAGE_COLOURS[stage], "linewidth": 1.8, "marker": "o", "markersize": 4}
            _series(ax, points, offsets[stage], label=stage, **style)
            told.append(f"{stage} ends at {points[-1].value:.3g}{unit}")
    ax.set_xlabel("steps")
    _legend(ax)
    return "; ".join(told)


def _draw_miou(ax: Axes, run: Run) -> str:
    """Draw the mean IoU of each validation."""
    told = _draw_figure(ax, run, "val/miou", scale=100, unit=" %")
    ax.set_ylabel("mIoU, %")
    return f"Mean IoU of the classes on validation ground: {told}."


def _draw_bits(ax: Axes, run: Run) -> str:
    """Draw the flow's bits per dimension of each validation."""
    told = _draw_figure(ax, run, "val/bpd", scale=1, unit="")
    ax.set_ylabel("bits per dimension")
    return f"Bits per dimension of the flow on validation crops, lower is better: {told}."


def false_polygons(
    table: PolygonTable, number: int, *, least_m2: float, threshold: float | None, seen: float | None
) -> Chart | None:
    """Return the plot of false polygons per km2 by threshold; None where they were not counted.

    `seen` is the number of polygons per km2 on the map.
    """
    found = [(at, table.at(at, least_m2)) for at in table.thresholds]
    rates = [(at, each.rate, *each.interval) for at, each in found if each is not None]
    if not rates:
        return None
    at, rate, low, high = (np.array(column) for column in zip(*rates, strict=True))
    figure, ax = _figure()
    ax.fill_between(at, np.maximum(low, 1e-3), np.maximum(high, 1e-3), color=SERIES[0], alpha=0.18, linewidth=0)
    ax.plot(at, np.where(rate > 0, rate, np.nan), color=SERIES[0], linewidth=1.8, label="false, on known ground")
    positive = np.append(rate[rate > 0], [seen] if seen else [])
    if positive.size:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(PLAIN_NUMBERS)
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(positive.min() / 3, positive.max() * 2)
    told = (
        f"False polygons per square kilometre fall from {plain(rate[0])} at {at[0]:.3g} to {plain(rate[-1])} "
        f"at {at[-1]:.3g}"
    )
    if threshold is not None:
        ax.axvline(threshold, color=ACCENT, linewidth=1.4, linestyle=(0, (4, 3)), label="threshold of the map")
    if threshold is not None and seen:
        ax.plot([threshold], [seen], color=ACCENT, marker="o", markersize=6, linestyle="", label="polygons on the map")
        told += f"; this map has {plain(seen)} per square kilometre at {threshold:.4g}"
    ax.set_xlabel("threshold")
    ax.set_ylabel("polygons per km²")
    _legend(ax)
    return Chart("False polygons per km² by threshold", as_svg(figure, f"false{number}"), told + ".")


def precision_recall(measured: Measured, number: int) -> Chart | None:
    """Return the plot of precision by recall of pixels; None where the curve was not kept."""
    if not len(measured.curve):
        return None
    recall, precision = measured.curve[:, 1], measured.curve[:, 2]
    figure, ax = _figure()
    ax.plot(100 * recall, 100 * precision, color=SERIES[0], linewidth=1.8, label="this model")
    told = f"Precision is {100 * _at(recall, precision, 0.5):.0f} % at a recall of half the anomaly pixels"
    if measured.base_rate is not None:
        base = 100 * measured.base_rate
        ax.axhline(base, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)), label="random scores")
        told += f", and {base:.3g} % with random scores"
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 102)
    ax.set_xlabel("recall of anomaly pixels, %")
    ax.set_ylabel("precision, %")
    _legend(ax)
    return Chart("Precision by recall", as_svg(figure, f"pr{number}"), told + ".")


def _at(recall: Any, precision: Any, wanted: float) -> float:
    return float(precision[min(int(np.searchsorted(recall, wanted)), len(recall) - 1)])


def found_by_false(measured: Measured, number: int) -> Chart | None:
    """Return the plot of things found by false polygons per km2; None without such figures."""
    rows = sorted(
        (row.per_km2, 100 * row.found / row.things, row.at) for row in measured.found if row.things and row.per_km2
    )
    if len(rows) < 2:
        return None
    figure, ax = _figure()
    ax.plot([r[0] for r in rows], [r[1] for r in rows], color=SERIES[2], linewidth=1.8, marker="o", markersize=5)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(PLAIN_NUMBERS)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(0, 102)
    ax.set_xlabel("false polygons per km²")
    ax.set_ylabel("things found, %")
    told = f"Things found rise from {rows[0][1]:.0f} % at {plain(rows[0][0])} false polygons per square kilometre "
    told += f"to {rows[-1][1]:.0f} % at {plain(rows[-1][0])}."
    return Chart("Things found by false polygons", as_svg(figure, f"found{number}"), told)
