"""Promises of a model about its maps, measured on ground kept apart, and the verdict on each map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.calibration.cells import (
        CellMaps,
        cells_key,
        pooled_features,
        read_cells,
        statistic_count,
        statistic_names,
        tile_cells,
    )
    from geood.calibration.exchangeability import Drift, drift_of
    from geood.calibration.false_polygons import FalsePolygons, PolygonTable, least_area, own_record
    from geood.calibration.judgement import verdict_of
    from geood.calibration.measurement import GroundSample, measure_ground, sample_ground
    from geood.calibration.rates import LEAST_BLOCKS, MORE_BLOCKS, garwood, guaranteed, rate_interval
    from geood.calibration.tiled_scoring import ImageSource, TileScores, prediction_tiles, scored_tiles
    from geood.calibration.verdict import FAILS, HOLDS, UNKNOWN, SceneFacts, Verdict, in_digits

__all__ = [
    "FAILS",
    "HOLDS",
    "LEAST_BLOCKS",
    "MORE_BLOCKS",
    "UNKNOWN",
    "CellMaps",
    "Drift",
    "FalsePolygons",
    "GroundSample",
    "ImageSource",
    "PolygonTable",
    "SceneFacts",
    "TileScores",
    "Verdict",
    "cells_key",
    "drift_of",
    "garwood",
    "guaranteed",
    "in_digits",
    "least_area",
    "measure_ground",
    "own_record",
    "pooled_features",
    "prediction_tiles",
    "rate_interval",
    "read_cells",
    "sample_ground",
    "scored_tiles",
    "statistic_count",
    "statistic_names",
    "tile_cells",
    "verdict_of",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "UNKNOWN": "verdict",
        "HOLDS": "verdict",
        "FAILS": "verdict",
        "CellMaps": "cells",
        "cells_key": "cells",
        "Drift": "exchangeability",
        "FalsePolygons": "false_polygons",
        "GroundSample": "measurement",
        "ImageSource": "tiled_scoring",
        "LEAST_BLOCKS": "rates",
        "MORE_BLOCKS": "rates",
        "SceneFacts": "verdict",
        "PolygonTable": "false_polygons",
        "TileScores": "tiled_scoring",
        "Verdict": "verdict",
        "drift_of": "exchangeability",
        "garwood": "rates",
        "guaranteed": "rates",
        "in_digits": "verdict",
        "least_area": "false_polygons",
        "own_record": "false_polygons",
        "measure_ground": "measurement",
        "pooled_features": "cells",
        "prediction_tiles": "tiled_scoring",
        "rate_interval": "rates",
        "read_cells": "cells",
        "sample_ground": "measurement",
        "scored_tiles": "tiled_scoring",
        "statistic_count": "cells",
        "statistic_names": "cells",
        "tile_cells": "cells",
        "verdict_of": "judgement",
    },
)
