"""Anomaly scores by name: titles, and what each needs."""

from __future__ import annotations

from typing import Literal, get_args

ScoreKind = Literal[
    "jsd",
    "max_softmax",
    "max_logit",
    "entropy",
    "energy",
    "standardized_max_logit",
    "kl_matching",
    "knn",
    "gmm",
    "hybrid",
    "uno",
]
SCORE_KINDS: tuple[ScoreKind, ...] = get_args(ScoreKind)
SCORE_NAMES = {
    "jsd": "Jensen-Shannon",
    "max_softmax": "max softmax",
    "max_logit": "max logit",
    "entropy": "entropy",
    "energy": "energy",
    "standardized_max_logit": "standardized max logit",
    "kl_matching": "KL matching",
    "knn": "nearest neighbours",
    "gmm": "Gaussian mixture",
    "hybrid": "hybrid",
    "uno": "UNO",
}
LOGIT_SCORES = ("jsd", "max_softmax", "max_logit", "entropy", "energy")
OUTLIER_SCORES = {"head": ("hybrid",), "class": ("uno",), "none": ()}  # by what the outlier output is
CLASS_SCORES = ("standardized_max_logit", "kl_matching")
FEATURE_SCORES = ("knn", "gmm")
