"""Metrics of score maps: pixel curves, connected components, open-set segmentation, benchmark protocols."""

from __future__ import annotations

from geood.metrics.components import ComponentScores
from geood.metrics.distance import DistanceCurves
from geood.metrics.pixels import PixelCurve
from geood.metrics.protocols import PROTOCOLS, PixelProtocol, protocol_named
from geood.metrics.segmentation import Confusion, OpenSetConfusion, mean_of_known

__all__ = [
    "PROTOCOLS",
    "ComponentScores",
    "Confusion",
    "DistanceCurves",
    "OpenSetConfusion",
    "PixelCurve",
    "PixelProtocol",
    "mean_of_known",
    "protocol_named",
]
