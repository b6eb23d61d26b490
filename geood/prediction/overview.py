"""Overview of a map as one PNG: the scene with its polygons and their ranks, the scores, and the verdict in a line.

It is for a first look without a GIS, and for a mail. Rasters are read at the size at which they are drawn and polygons
only as many as can be told apart, so memory stays small for any scene. Drawn on matplotlib's file canvas: no window, no
global state. A page with every polygon is `geood report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
import shapely
from geopandas import GeoDataFrame
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from geood.atomic import atomic_write, output_errors
from geood.calibration import FAILS, HOLDS, Verdict
from geood.errors import counted, printable
from geood.geo.display import LONGEST_PX, Picture, drawn_shape, grid_of, read_average, read_photo, score_range
from geood.polygons import in_pixels, read_anomalies, upper_right

MOST = 2000  # polygons that are drawn
NUMBERED = 30  # polygons whose rank is written beside them
FIRST, OTHER = "#ff2d95", "#ffd23f"  # outlines of numbered polygons, and of the others
COLOURS = {HOLDS: "#1b7f3b", FAILS: "#b3261e"}  # of the verdict; grey if nothing can be told
WIDE_IN, ALONE_IN, DPI = 7.0, 12.0, 110  # width of a panel: beside the other, above it


def draw_map(
    out: Path,
    *,
    scene: str,
    scores: Path,
    polygons: Path | None,
    label: str,
    threshold: float,
    verdict: Verdict | None,
) -> None:
    """Draw a scene, its scores and its polygons as one PNG; an existing file is replaced.

    Args:
        out: the PNG.
        scene: the raster that was searched, as GDAL names it.
        scores: its score raster.
        polygons: the file of its polygons; None: only scores are drawn. Of a file of several scenes those of `label`.
        label: name of the scene.
        threshold: score above which a pixel counts as anomalous.
        verdict: verdict on the map.

    Raises:
        DataError: a file cannot be read.
        OutputError: the picture cannot be written.
    """
    grid = grid_of(scores)
    frame, shapes = None, None
    if polygons is not None:
        frame = read_anomalies(polygons, most=MOST)
        frame = frame[frame["scene"] == label] if "scene" in frame else frame
        shapes = in_pixels(frame, grid)
    shape = drawn_shape(grid.height, grid.width)
    ratio, shrink = shape[0] / shape[1], shape[1] / grid.width
    side_by_side = ratio > 0.45
    rows, columns = (1, 2) if side_by_side else (2, 1)
    wide = WIDE_IN if side_by_side else ALONE_IN
    size = wide * columns * 1.03, (wide * min(ratio, 3.0) + 0.35) * rows + 1.3
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    left, right = (figure.add_subplot(rows, columns, i + 1) for i in range(2))
    left.imshow(read_photo(scene, LONGEST_PX), interpolation="nearest", vmin=0, vmax=1)
    _title(left, "scene" if shapes is None else f"scene and {_counted(len(shapes))}")
    _show_scores(right, read_average(scores, shape), threshold)
    if frame is not None and shapes is not None:
        _outline(left, shapes, ranks=_ranks(frame), shrink=shrink, drawn=(shape[1], shape[0]))
    _head(figure, label, verdict)
    with output_errors(out), atomic_write(out) as partial:
        figure.savefig(partial, format="png")


def _counted(count: int) -> str:
    return ("its first " if count >= MOST else "") + counted(count, "polygon")


def _ranks(frame: GeoDataFrame) -> Sequence[int]:
    return frame["rank"].tolist() if "rank" in frame else range(1, len(frame) + 1)


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=11)
    ax.set_axis_off()


def _show_scores(ax: Axes, score: Picture, threshold: float) -> None:
    """Show the score map; its colours reach to the threshold at least."""
    low, high = score_range(score, least_high=threshold)
    image = ax.imshow(score, cmap="inferno", vmin=low, vmax=high, interpolation="nearest")
    _title(ax, "anomaly score; the line in the scale is the threshold")
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    bar.ax.axhline(threshold, color="#00e5ff", linewidth=2.5)
    bar.ax.tick_params(labelsize=8)


def _outline(ax: Axes, shapes: NDArray[Any], *, ranks: Sequence[int], shrink: float, drawn: tuple[int, int]) -> None:
    """Draw the outlines of polygons in pixels of the scene, and the rank beside the first, on the picture of a size."""
    dark = [effects.withStroke(linewidth=2.6, foreground="black", alpha=0.75)]
    first = np.argsort(np.asarray(ranks), kind="stable")[:NUMBERED]
    for chosen, colour, width in (
        (np.setdiff1d(np.arange(len(shapes)), first), OTHER, 1.0),
        (first, FIRST, 1.6),
    ):
        lines = [shapely.get_coordinates(ring) * shrink - 0.5 for ring in _rings(shapes[chosen])]
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=width, path_effects=dark), autolim=False)
    corners, (width, height) = upper_right(shapes) * shrink, drawn
    for i in first:
        ax.annotate(
            str(ranks[i]),
            (min(corners[i, 0], 0.96 * width), max(corners[i, 1], 0.03 * height)),
            xytext=(2, 2),
            textcoords="offset points",
            fontsize=9,
            fontweight="bold",
            color="white",
            path_effects=[effects.withStroke(linewidth=2.5, foreground=to_hex("black"))],
            annotation_clip=True,
        )
    listed = [(FIRST, f"first {len(first)} by rank, numbered")]
    listed += [(OTHER, f"{len(shapes) - len(first):,} others")] if len(shapes) > len(first) else []
    handles = [Line2D([], [], color=colour, linewidth=2, label=text) for colour, text in listed]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=0.4, ncols=2, fontsize=8)


def _rings(shapes: NDArray[Any]) -> NDArray[Any]:
    """Return the boundary lines of polygons, holes too."""
    rings: NDArray[Any] = shapely.get_rings(shapely.get_parts(shapes))
    return rings


def _head(figure: Figure, label: str, verdict: Verdict | None) -> None:
    """Write the name of the scene, and the verdict in its colour."""
    said, colour = "no verdict: the model was not calibrated", "#555555"
    if verdict is not None:
        said = f"budget {verdict.answer}: {verdict.why}"
        colour = COLOURS.get(verdict.answer, colour)
    name = printable(label)
    figure.suptitle(f"{name}\n{said}", x=0.012, ha="left", fontsize=12, color=colour, parse_math=False, wrap=True)
