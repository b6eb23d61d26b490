"""Split of a training into training and validation ground, as a map of its blocks, or as counts of photographs.

The split is that of the run folder: blocks and crops of scenes in `split.gpkg`, a row for each photograph in
`split.csv`. Scenes that lie far apart are drawn where they are.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyogrio
import shapely
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from geood.errors import DataError, shown
from geood.geo.ogr import local_file
from geood.reporting.charts import GRID, INK, SERIES, Chart, as_svg

SIDES = {"train": SERIES[0], "validation": SERIES[1]}
MOST_SHARP = 1500  # blocks; more are drawn as a picture inside the SVG
MOST_CROPS = 400


class SplitView(NamedTuple):
    """Counts by kind and side, such as blocks of training, and a map of them (None: photographs)."""

    counts: list[tuple[str, str, int]]
    chart: Chart | None


def read_split(run: Path) -> SplitView | None:
    """Read the split of a run; None if it has none.

    Raises:
        DataError: its file is damaged.
    """
    scenes, photos = run / "split.gpkg", run / "split.csv"
    if photos.is_file():
        return SplitView(_photographs(photos), None)
    if not scenes.is_file():
        return None
    try:
        with local_file(scenes) as plain:
            layers = [str(name) for name, _ in pyogrio.list_layers(plain)]
            wanted = [name for name in layers if name in ("blocks", "crops")]
            frames = {name: pyogrio.read_dataframe(plain, layer=name) for name in wanted}
        counts = [(name, side, int((frame["split"] == side).sum())) for name, frame in frames.items() for side in SIDES]
        if "blocks" not in frames or not len(frames["blocks"]):
            return SplitView(counts, None)
        return SplitView(counts, _map(frames, counts))
    except (OSError, RuntimeError, KeyError, ValueError, pyogrio.errors.DataSourceError) as error:
        raise DataError(f"{scenes}: is damaged ({shown(error)}); remove it to go on without") from None


def _photographs(path: Path) -> list[tuple[str, str, int]]:
    """Count the rows of each side: a column that says train or validation."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            sides = Counter(row["split"] for row in csv.DictReader(file))
    except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is damaged ({shown(error)}); remove it to go on without") from None
    return [("photographs", str(side), count) for side, count in sorted(sides.items())]


def _map(frames: dict[str, Any], counts: list[tuple[str, str, int]]) -> Chart:
    blocks = frames["blocks"]
    west, south, east, north = blocks.total_bounds
    ratio = np.clip((north - south) / max(east - west, 1e-9), 0.35, 1.4)
    figure = Figure(figsize=(5.6, 5.6 * ratio + 0.5), dpi=110, layout="constrained")
    ax = figure.add_subplot()
    for side, colour in SIDES.items():
        shapes = np.asarray(blocks.geometry[blocks["split"] == side].array)
        rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(shapely.get_parts(shapes))]
        squares = PolyCollection(rings, facecolors=colour, edgecolors=INK, linewidths=0.3, alpha=0.65)
        squares.set_rasterized(len(blocks) > MOST_SHARP)
        ax.add_collection(squares)
        ax.plot([], [], color=colour, linewidth=6, alpha=0.65, label=side)
    crops = frames.get("crops")
    if crops is not None:
        kept = crops[crops["split"] == "validation"].head(MOST_CROPS)
        boxes = [shapely.get_coordinates(shape) for shape in kept.geometry]
        ax.add_collection(PolyCollection(boxes, facecolors="none", edgecolors=INK, linewidths=0.6))
    ax.set_xlim(west, east)
    ax.set_ylim(south, north)
    ax.set_aspect("equal")
    ax.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_color(GRID)
    said = ", ".join(f"{count:,} {name} of {side}" for name, side, count in counts)
    return Chart("Training and validation ground", as_svg(figure, "split"), f"Map of the split: {said}.")
