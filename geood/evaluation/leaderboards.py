"""Published figures of the benchmarks, shown beside measured ones: in per cent, as their sources print them.

They were measured on the benchmarks' hidden test sets unless a title says otherwise; beside a figure of a validation
split they serve for orientation, not for a ranking. `negatives` tells whether real images of anomalies, or of anything
beyond the training set, were used in training, as declared by the authors. Figures that could not be checked are left
out.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One method on one benchmark; None if the source gives no figure. The last three are component metrics."""

    method: str
    negatives: bool
    average_precision: float | None
    fpr95: float | None
    auroc: float | None = None
    siou: float | None = None
    ppv: float | None = None
    mean_f1: float | None = None


class Table(NamedTuple):
    """Published figures of one benchmark; the method that geood implements comes first."""

    title: str
    source: str
    rows: tuple[Published, ...]


def _smiyc(*rows: tuple[str, bool, float, float, float, float, float]) -> tuple[Published, ...]:
    return tuple(Published(m, n, ap, fpr, None, siou, ppv, f1) for m, n, ap, fpr, siou, ppv, f1 in rows)


LEADERBOARD = "segmentmeifyoucan.com, leaderboard of April 2026"
PUBLISHED: dict[str, Table] = {
    "AnomalyTrack": Table(
        "AnomalyTrack, hidden test",
        LEADERBOARD,
        _smiyc(
            ("NFlowJS", False, 56.9, 34.7, 36.9, 18.0, 14.9),
            ("max softmax", False, 28.0, 72.0, 15.5, 15.3, 5.4),
            ("DenseHybrid", True, 78.0, 9.8, 54.2, 24.1, 31.1),
            ("UNO, synthetic negatives", False, 96.1, 2.3, 68.0, 51.9, 58.9),
            ("UNO", True, 96.3, 2.0, 68.5, 55.8, 62.6),
        ),
    ),
    "ObstacleTrack": Table(
        "ObstacleTrack, hidden test",
        LEADERBOARD,
        _smiyc(
            ("NFlowJS", False, 85.5, 0.41, 45.5, 49.5, 50.4),
            ("max softmax", False, 15.7, 16.6, 19.7, 15.9, 6.3),
            ("DenseHybrid", True, 87.1, 0.24, 45.7, 50.1, 50.7),
            ("UNO, synthetic negatives", False, 89.0, 0.61, 66.9, 74.9, 76.3),
            ("FlowCLAS", False, 94.2, 0.08, 42.0, 79.2, 62.8),
            ("AnomDINO+RbA", True, 97.1, 0.03, 76.7, 93.9, 92.8),
        ),
    ),
    "LostAndFound-NoKnown": Table(
        "LostAndFound-NoKnown",
        LEADERBOARD,
        _smiyc(
            ("NFlowJS", False, 89.3, 0.65, 54.6, 59.7, 61.8),
            ("max softmax", False, 30.1, 33.2, 14.2, 62.2, 10.3),
            ("PixOOD", False, 85.1, 4.46, 30.2, 78.5, 44.4),
            ("DenseHybrid", True, 78.7, 2.12, 46.9, 52.1, 52.3),
            ("RAOS", True, 89.8, 0.95, 53.1, 57.9, 60.2),
        ),
    ),
    "Fishyscapes Lost & Found": Table(
        "Fishyscapes Lost & Found, hidden test",
        "Grcić et al., Sensors 2024, table 1; for UNO the benchmark's pull requests 69 and 71",
        (
            Published("NFlowJS", False, 39.4, None),
            Published("NFlowJS-GF, three training sets", False, 69.4, 2.0),
            Published("max softmax", False, 1.8, 44.9),
            Published("standardized max logits", False, 31.7, 21.9),
            Published("SynBoost", True, 43.2, 15.8),
            Published("UNO, synthetic negatives (public validation)", False, 74.5, 6.9),
            Published("UNO (public validation)", True, 81.8, 1.3),
        ),
    ),
    "Fishyscapes Static": Table(
        "Fishyscapes Static, hidden test",
        "Grcić et al., Sensors 2024",
        (
            Published("max softmax", False, 12.9, 39.8),
            Published("standardized max logits", False, 52.1, 20.5),
            Published("OOD head", True, 96.8, 0.3),
        ),
    ),
    "RoadAnomaly": Table(
        "RoadAnomaly",
        "the authors' own tables (cDNP; model zoo of RbA; repository of UEM)",
        (
            Published("cDNP", False, 85.6, 9.8),
            Published("RbA, inliers only", False, 79.7, 15.0),
            Published("UEM", True, 93.8, 6.3),
            Published("RbA", True, 90.3, 4.9),
        ),
    ),
    "StreetHazards": Table(
        "StreetHazards test, means over images",
        "Grcić et al., Sensors 2024",
        (Published("NFlowJS", False, 22.2, None),),
    ),
}
