"""Scenes of a page: each as a picture with its scores to be laid over it and its polygons as outlines to be clicked.

All pictures of a page share its bytes: those of the scenes a quarter, those of the polygons the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from geood.calibration import Verdict
from geood.errors import counted
from geood.geo.display import DisplayRange, drawn_shape, read_average, read_stretched
from geood.polygons import in_pixels, upper_right
from geood.reporting.gallery import Card, cards, keys_of, path_of
from geood.reporting.maps import SceneMap
from geood.reporting.pictures import jpeg, score_layer
from geood.reporting.reasons import number, text

LONGEST_PX = 1400  # side of a scene's picture
SCENE_BYTES, CARD_BYTES = 1_800_000, 6_600_000  # of JPEG and PNG, a third less than as text in the page
MOST_SCENE_BYTES, MOST_CARD_BYTES = 600_000, 16_000  # of one picture
LEAST_BYTES = 2_500
NUMBERED, NUMBERED_SMALL = 60, 20  # polygons whose rank is written on the picture, and on that of a small screen


@dataclass(frozen=True)
class Outline:
    """Polygon on the picture of a scene: SVG path, key of its card, words, and where its rank is written.

    That of a `late` one is left out on small screens.
    """

    path: str
    key: str
    told: str
    rank: int
    x: float
    y: float
    numbered: bool
    late: bool


@dataclass(frozen=True)
class SceneView:
    """Scene on the page; `photo` and `score` are data URIs, empty where there is none. Sizes are in drawn pixels."""

    label: str
    photo: str
    score: str
    low: float
    high: float
    threshold: float | None
    width: int
    height: int
    outlines: list[Outline]
    total: int | None
    count: int
    verdict: Verdict | None
    alt: str
    share: float


def shown_scenes(maps: Sequence[SceneMap]) -> tuple[list[SceneView], list[Card]]:
    """Return the pictures of all scenes that have a raster, and the cards of all polygons.

    Raises:
        DataError: a raster cannot be read.
    """
    polygons = sum(0 if each.frame is None else len(each.frame) for each in maps)
    of_scene = min(MOST_SCENE_BYTES, SCENE_BYTES // max(1, len(maps)) // 2)
    of_card = max(LEAST_BYTES, min(MOST_CARD_BYTES, CARD_BYTES // max(1, 2 * polygons)))
    shown, made = list[SceneView](), list[Card]()
    for i, each in enumerate(maps):
        stretch = None
        if each.grid is not None and each.scores is not None:
            scene, stretch = _shown(each, i, of_scene)
            shown.append(scene)
        made += cards(each, i, stretch=stretch, budget=of_card)
    return shown, sorted(made, key=lambda card: card.rank)  # scenes of one file share its ranks


def _shown(each: SceneMap, number: int, budget: int) -> tuple[SceneView, DisplayRange | None]:
    assert each.grid is not None and each.scores is not None
    shape = drawn_shape(each.grid.height, each.grid.width, LONGEST_PX)
    photo, stretch = "", None
    if each.scene is not None:
        picture, stretch = read_stretched(each.scene, LONGEST_PX)
        photo = jpeg(picture, budget)
    score, low, high = score_layer(read_average(each.scores, shape), budget)
    outlines = [] if each.frame is None else _outlines(each, number, shape[1] / each.grid.width)
    at = 0.5 if each.threshold is None else (each.threshold - low) / (high - low)
    scene = SceneView(
        label=each.label,
        photo=photo,
        score=score,
        low=low,
        high=high,
        threshold=each.threshold,
        width=shape[1],
        height=shape[0],
        outlines=outlines,
        total=each.total,
        count=len(outlines),
        verdict=each.verdict,
        alt=f"{each.label} with the outlines of {counted(len(outlines), 'polygon')}"
        if photo
        else f"anomaly scores of {each.label}",
        share=float(np.clip(at, 0, 1)),
    )
    return scene, stretch


def _outlines(each: SceneMap, scene: int, shrink: float) -> list[Outline]:
    """Return the outlines of a scene's polygons in drawn pixels, the last by rank first: the first lie on top."""
    assert each.frame is not None and each.grid is not None
    shapes = shapely.transform(in_pixels(each.frame, each.grid), lambda points: points * shrink)
    simple = shapely.simplify(shapes, 0.5)
    bounds, corners = shapely.bounds(shapes), upper_right(shapes)
    made, rows = [], each.frame.drop(columns=each.frame.geometry.name).to_dict("records")
    for i, (row, key, shape) in enumerate(zip(rows, keys_of(rows, scene), simple, strict=True)):
        rank = int(number(row, "rank") or i + 1)
        told, top = text(row, "class_name") or "no class", number(row, "score_max")
        outline = Outline(
            path=path_of(shape, 1) or path_of(shapely.box(*bounds[i]), 1),
            key=key,
            told=f"{rank}: {told}" + ("" if top is None else f", score {top:.3g}"),
            rank=rank,
            x=float(corners[i, 0]),
            y=float(corners[i, 1]),
            numbered=i < NUMBERED,
            late=i >= NUMBERED_SMALL,
        )
        made.append(outline)
    return made[::-1]
