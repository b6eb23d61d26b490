"""Metrics of score maps: pixel curves, connected components, open-set segmentation, benchmark protocols."""

from __future__ import annotations

from geood.metrics.components import ComponentScores
from geood.metrics.curve import ratio
from geood.metrics.distance import DistanceCurves
from geood.metrics.objects import (
    SIZES_M2,
    Things,
    count_polygons,
    is_real,
    precision_at,
    recall_by_size,
    things_of,
    threshold_at_recall,
)
from geood.metrics.pixels import PixelCurve
from geood.metrics.protocols import PROTOCOLS, PixelProtocol, protocol_named
from geood.metrics.segmentation import Confusion, OpenSetConfusion, mean_of_known

__all__ = [
    "PROTOCOLS",
    "SIZES_M2",
    "ComponentScores",
    "Confusion",
    "DistanceCurves",
    "OpenSetConfusion",
    "PixelCurve",
    "PixelProtocol",
    "Things",
    "count_polygons",
    "is_real",
    "mean_of_known",
    "precision_at",
    "protocol_named",
    "ratio",
    "recall_by_size",
    "things_of",
    "threshold_at_recall",
]
