"""The score table: one row for each anomaly score, read by config, bundle, tables, styles and `geood info`.

A row says what people call the score, what it is computed from, and whether it is bounded and takes a temperature. How
it is computed stands under the same name in `models.scores` or `models.inlier_statistics`. No torch here.
"""

from __future__ import annotations

import difflib
from typing import Literal, NamedTuple

Need = Literal["logits", "class statistics", "feature bank", "head", "class"]


class ScoreKind(NamedTuple):
    """One row of the score table.

    `title` stands in tables. `needs` is what the score is computed from: the class logits alone, statistics of the
    inliers' logits, a bank of inlier features, or a segmenter's outlier output of that kind (`head`, `class`).
    `bounded` scores lie in [0, 1]. Of `tempered` ones the logits are divided by `score.temperature`.
    """

    title: str
    needs: Need
    bounded: bool = False
    tempered: bool = False


SCORES: dict[str, ScoreKind] = {
    "jsd": ScoreKind("Jensen-Shannon", "logits", bounded=True, tempered=True),
    "max_softmax": ScoreKind("max softmax", "logits", bounded=True, tempered=True),
    "max_logit": ScoreKind("max logit", "logits", tempered=True),
    "entropy": ScoreKind("entropy", "logits", bounded=True, tempered=True),
    "energy": ScoreKind("energy", "logits", tempered=True),
    "standardized_max_logit": ScoreKind("standardized max logit", "class statistics"),
    "kl_matching": ScoreKind("KL matching", "class statistics"),
    "knn": ScoreKind("nearest neighbours", "feature bank"),
    "gmm": ScoreKind("Gaussian mixture", "feature bank"),
    "hybrid": ScoreKind("hybrid", "head"),
    "uno": ScoreKind("UNO", "class"),
}
LACKS: dict[Need, str] = {
    "class statistics": "no statistics of its classes; train it again with this geood, or",
    "feature bank": "no bank of features; train with score.feature_bank: 4096, or",
}


def scores_from(*needs: str) -> tuple[str, ...]:
    """Return the scores that these needs serve, in the order of the table."""
    return tuple(kind for kind, row in SCORES.items() if row.needs in needs)


def title_of(kind: str) -> str:
    """Return a score's title; any other name, as of score files, is its own."""
    return SCORES[kind].title if kind in SCORES else kind


def check_known(kind: str) -> str:
    """Return `kind` if it is a row of the table.

    Raises:
        ValueError: it is none; the message names all and the nearest.
    """
    if kind not in SCORES:
        near = difflib.get_close_matches(kind, SCORES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"got {kind!r}; input should be {', '.join(map(repr, SCORES))}{hint}")
    return kind


def why_not(kind: str, given: tuple[str, ...], outlier: str) -> str | None:
    """Return why a model cannot give a score, and the remedy; None if it can.

    Args:
        kind: a row of the table.
        given: the scores that the model gives.
        outlier: the kind of its segmenter's outlier output (`segmenter.outlier`).
    """
    if kind in given:
        return None
    needs = SCORES[kind].needs
    lacks = LACKS.get(needs) or (
        f"segmenter.outlier {outlier}, and that score needs {needs}; train with segmenter.outlier: {needs}, or"
    )
    return f"score.kind {kind}: this model has {lacks} take one of {', '.join(given)}"
