"""Score table: one row per anomaly score, read by config, bundle, tables, styles and `geood info`.

A row gives the score's title, what it is computed from, and whether it is bounded and takes a temperature. The
computation is under the same name in `models.scores` or `models.inlier_statistics`, so that this module needs no torch.
"""

from __future__ import annotations

import difflib
import math
from typing import Literal, NamedTuple

Need = Literal[
    "logits", "class statistics", "feature bank", "encoder bank", "encoder classes", "head", "class", "experts"
]


class ScoreKind(NamedTuple):
    """Row of the score table.

    Attributes:
        title: name in tables.
        needs: what the score is computed from: class logits only, statistics of inlier logits, a bank of inlier
            features of the decoder or of the encoder, such a bank of several classes, a segmenter's outlier output of
            this kind (`head`, `class`), or the outlier head and the encoder's bank with tails (`experts`).
        bounded: the score is in [0, 1].
        low: no score is lower.
        high: no score is higher.
        tempered: the logits are divided by `score.temperature`.
        shifted: the outlier logit is shifted by the offset of `score.veto_share`.
        smooth_px: radius of the filter that smooths it unless `score.smooth_px` says otherwise, in pixels.
    """

    title: str
    needs: Need
    bounded: bool = False
    tempered: bool = False
    shifted: bool = False
    low: float = -math.inf
    high: float = math.inf
    smooth_px: int = 0

    def refusal(self, threshold: float) -> str | None:
        """Return why a threshold makes no sense for this score, None if it does."""
        if self.low <= threshold <= self.high:
            return None
        span = f"from {self.low:g} to {self.high:g}" if math.isfinite(self.high) else f"of {self.low:g} or more"
        return f"{threshold:g}: scores of {self.title} are numbers {span}; choose one of these"


SCORES: dict[str, ScoreKind] = {
    "jsd": ScoreKind("Jensen-Shannon", "logits", bounded=True, tempered=True, low=0, high=1),
    "max_softmax": ScoreKind("max softmax", "logits", bounded=True, tempered=True, low=0, high=1),
    "max_logit": ScoreKind("max logit", "logits", tempered=True),
    "entropy": ScoreKind("entropy", "logits", bounded=True, tempered=True, low=0, high=1),
    "energy": ScoreKind("energy", "logits", tempered=True),
    "standardized_max_logit": ScoreKind("standardized max logit", "class statistics"),
    "kl_matching": ScoreKind("KL matching", "class statistics"),
    "knn": ScoreKind("nearest neighbours", "feature bank", low=0),
    "gmm": ScoreKind("Gaussian mixture", "feature bank"),
    "residual": ScoreKind("residual", "feature bank", low=0),
    "outlier": ScoreKind("outlier head", "head"),
    "hybrid": ScoreKind("hybrid", "head", shifted=True),
    "ratio": ScoreKind("likelihood ratio", "head"),
    "uno": ScoreKind("UNO", "class", low=0, high=2),
    "encoder_knn": ScoreKind("encoder neighbours", "encoder bank", low=0),
    "encoder_ratio": ScoreKind("encoder class ratio", "encoder classes"),
    "combined": ScoreKind("combined", "experts", smooth_px=4),
}
OF_ENCODER: tuple[Need, ...] = ("encoder bank", "encoder classes")  # what scores of the encoder's bank need
LACKS: dict[Need, str] = {
    "class statistics": "no statistics of its classes; train it again with this geood, or",
    "feature bank": "no bank of features; train with score.feature_bank: 4096, or",
    "encoder bank": "no bank of encoder features; train with score.encoder_bank: 2048, or",
    "encoder classes": "no bank of encoder features of two classes; train with score.encoder_bank: 2048, or",
    "experts": (
        "not the experts and their tails; train with segmenter.outlier: head, score.encoder_bank: 2048 and validation "
        "data, or"
    ),
}


def scores_from(*needs: str) -> tuple[str, ...]:
    """Return the scores that can be computed if these needs are met, in the order of the table."""
    return tuple(kind for kind, row in SCORES.items() if row.needs in needs)


def title_of(kind: str) -> str:
    """Return the title of a score; any other name, such as that of a score file, is returned unchanged."""
    return SCORES[kind].title if kind in SCORES else kind


def check_known(kind: str) -> str:
    """Return `kind` if it is a row of the table.

    Raises:
        ValueError: `kind` is unknown; the message lists all scores and suggests the nearest.
    """
    if kind not in SCORES:
        near = difflib.get_close_matches(kind, SCORES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"got {kind!r}; input should be {', '.join(map(repr, SCORES))}{hint}")
    return kind


def why_not(kind: str, given: tuple[str, ...], outlier: str) -> str | None:
    """Return why a model cannot compute a score, with the remedy; None if it can.

    Args:
        kind: a row of the table.
        given: the scores that the model can compute.
        outlier: the kind of its outlier output (`segmenter.outlier`).
    """
    if kind in given:
        return None
    needs = SCORES[kind].needs
    lacks = LACKS.get(needs) or (
        f"segmenter.outlier {outlier}, and that score needs {needs}; train with segmenter.outlier: {needs}, or"
    )
    return f"score.kind {kind}: this model has {lacks} take one of {', '.join(given)}"
