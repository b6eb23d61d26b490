"""From a scene to its score raster and polygons: plan, dispatch, score, journal, publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.prediction.cluster import TlsFiles
    from geood.prediction.estimate import plan_run
    from geood.prediction.malloc import keep_freed_memory
    from geood.prediction.outputs import Prediction
    from geood.prediction.pipeline import predict
    from geood.prediction.plan import SceneOptions
    from geood.prediction.polygonizing import polygonize

__all__ = ["Prediction", "SceneOptions", "TlsFiles", "keep_freed_memory", "plan_run", "polygonize", "predict"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Prediction": "outputs",
        "SceneOptions": "plan",
        "TlsFiles": "cluster",
        "keep_freed_memory": "malloc",
        "plan_run": "estimate",
        "polygonize": "polygonizing",
        "predict": "pipeline",
    },
)
