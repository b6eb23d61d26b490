"""Taxonomies (numbered classes) of the data sets, and tables that map label files to them.

A taxonomy uses the training ids of its authors. Data sets that share one can be mixed, and a model trained on one can
be evaluated on another. The tables map the numbers or colours in label files to class ids; an unlisted number is
counted and becomes 255 (ignore index), never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from geood.constants import IGNORE

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Taxonomy:
    """Numbered classes. `anomalies` are ids that no model is trained on; `colours` (RGB) are used in figures."""

    name: str
    classes: Mapping[int, str]
    anomalies: frozenset[int] = frozenset()
    colours: Mapping[int, Colour] = field(default_factory=dict)

    def id_of(self, class_name: str) -> int:
        """Return the id of a class.

        Raises:
            KeyError: there is no class of that name.
        """
        return {name: i for i, name in self.classes.items()}[class_name]


def _numbered(text: str, start: int = 0) -> dict[int, str]:
    return dict(enumerate((name.strip() for name in text.split(",")), start))


CITYSCAPES = Taxonomy(
    "cityscapes",
    _numbered(
        "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
        "rider, car, truck, bus, train, motorcycle, bicycle"
    ),
    colours=dict(
        enumerate(
            (
                (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
                (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
                (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
            )
        )
    ),
)  # fmt: skip
CAMVID = Taxonomy(
    "camvid",
    _numbered("sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist"),
    colours=dict(
        enumerate(
            (
                (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
                (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
            )
        )
    ),
)  # fmt: skip
STREETHAZARDS = Taxonomy(
    "streethazards",
    _numbered(
        "background, building, fence, other, pedestrian, pole, road line, road, sidewalk, vegetation, car, wall, "
        "traffic sign, anomaly"
    ),
    anomalies=frozenset({13}),
)
LUMS = Taxonomy("lums", _numbered("background, obstacle, road, sidewalk, speed breaker"), anomalies=frozenset({1}))
ANOMALY = Taxonomy("anomaly", {0: "inlier", 1: "anomaly"}, anomalies=frozenset({1}))
UAVID = Taxonomy("uavid", _numbered("clutter, building, road, static car, tree, low vegetation, human, moving car"))
ISPRS = Taxonomy("isprs", _numbered("impervious surface, building, low vegetation, tree, car"))
LOVEDA = Taxonomy("loveda", _numbered("background, building, road, water, barren, forest, agriculture"))
LANDCOVERAI = Taxonomy("landcoverai", _numbered("background, building, woodland, water, road"))
OPENEARTHMAP = Taxonomy(
    "openearthmap", _numbered("bareland, rangeland, pavement, road, tree, water, cropland, building")
)


def same(taxonomy: Taxonomy, *void: int) -> dict[int, int]:
    """Return the label table of files that use the taxonomy's own ids, 255, and further ids that are `void`."""
    return {i: i for i in taxonomy.classes} | {IGNORE: IGNORE} | dict.fromkeys(void, IGNORE)


CITYSCAPES_LABEL_IDS: dict[int, int] = dict.fromkeys(range(34), IGNORE) | {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18, -1: IGNORE, IGNORE: IGNORE,
}  # fmt: skip

# Mapillary Vistas 1.2 as in the Vistas-NP lists (Grcić et al.), which map ambiguous ids to a class.
VISTAS_NP: dict[int, int] = dict.fromkeys(range(66), IGNORE) | {
    2: 1, 3: 4, 4: 4, 6: 3, 7: 0, 8: 0, 9: 1, 10: 0, 11: 1, 12: 0, 13: 0, 14: 0, 15: 1, 16: 2, 17: 2, 18: 2, 19: 11,
    20: 12, 21: 12, 22: 12, 23: 0, 24: 0, 26: 9, 27: 10, 28: 9, 29: 9, 30: 8, 45: 5, 46: 7, 47: 5, 48: 6, 50: 7,
    52: 18, 54: 15, 55: 13, 57: 17, 58: 16, 61: 14, IGNORE: IGNORE,
}  # fmt: skip

# Mapillary Vistas 1.2 by the unified policy of WildDash 2, which maps ambiguous ids to void.
VISTAS_WILDDASH: dict[int, int] = VISTAS_NP | {
    4: IGNORE, 5: 3, 10: IGNORE, 11: 0, 12: IGNORE, 16: IGNORE, 18: IGNORE, 26: IGNORE, 28: IGNORE, 36: 0, 41: 0, 43: 0,
    46: 5,
}  # fmt: skip

WILDDASH_IDS: dict[int, int] = dict.fromkeys(range(81), IGNORE) | CITYSCAPES_LABEL_IDS | {
    34: 14, 35: 13, 38: 0, 41: 0, 43: 0, 45: 5, 46: 5, 47: 12, 48: 12, 49: 12, 52: 1, 56: 3, 58: 17, 61: 0, 64: 0,
    65: 1, 70: 0, 74: 0, 75: 0, 76: 0, 77: 1, 78: 9, 79: 0, 80: 1,
}  # fmt: skip

# 0: off the road, 1: free road, 2 to 43: objects, including the seven non-hazard ones, which count as anomalies too.
LOST_AND_FOUND_IDS: dict[int, int] = {0: IGNORE, 1: 0, IGNORE: IGNORE} | dict.fromkeys(range(2, 44), 1)

UAVID_COLOURS: dict[Colour, int] = {
    (0, 0, 0): 0, (128, 0, 0): 1, (128, 64, 128): 2, (192, 0, 192): 3, (0, 128, 0): 4, (128, 128, 0): 5,
    (64, 64, 0): 6, (64, 0, 128): 7,
}  # fmt: skip

# Clutter and the eroded black borders are void, as in the leave-one-class-out protocols for these two cities.
ISPRS_COLOURS: dict[Colour, int] = {
    (255, 255, 255): 0, (0, 0, 255): 1, (0, 255, 255): 2, (0, 255, 0): 3, (255, 255, 0): 4, (255, 0, 0): IGNORE,
    (0, 0, 0): IGNORE,
}  # fmt: skip
