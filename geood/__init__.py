"""geood finds what a model was never taught, in aerial and satellite scenes and in road-driving images.

The public names live here and are resolved on first use, so `import geood` costs nothing. Inside, imports only go
down; CONTRIBUTING.md draws the floors.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geood._version import __version__

if TYPE_CHECKING:
    from geood.catalog import data_set
    from geood.config.loading import load_config
    from geood.config.sections import Config
    from geood.evaluation.catalog_sets import evaluate_set
    from geood.evaluation.scenes import evaluate_scenes
    from geood.geo.score_raster import open_scores
    from geood.models.bundle import ModelBundle
    from geood.models.scores import anomaly_score
    from geood.prediction.pipeline import polygonize, predict
    from geood.training.trainer import train

_HOMES = {
    "Config": "config.sections",
    "ModelBundle": "models.bundle",
    "anomaly_score": "models.scores",
    "data_set": "catalog",
    "evaluate_scenes": "evaluation.scenes",
    "evaluate_set": "evaluation.catalog_sets",
    "load_config": "config.loading",
    "open_scores": "geo.score_raster",
    "polygonize": "prediction.pipeline",
    "predict": "prediction.pipeline",
    "train": "training.trainer",
}

__all__ = [
    "Config",
    "ModelBundle",
    "__version__",
    "anomaly_score",
    "data_set",
    "evaluate_scenes",
    "evaluate_set",
    "load_config",
    "open_scores",
    "polygonize",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'geood' has no attribute {name!r}")
    value = getattr(import_module(f"geood.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
