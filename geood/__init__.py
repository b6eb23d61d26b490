"""geood finds what a model was never taught, in aerial and satellite scenes and in road-driving images.

The public names live here and are resolved on first use, so `import geood` costs nothing. Inside, imports only go
down; CONTRIBUTING.md draws the floors.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geood.version import __version__

if TYPE_CHECKING:
    from geood.benchmark import evaluate_set
    from geood.bundle import ModelBundle
    from geood.catalog import data_set
    from geood.config import Config
    from geood.config_file import load_config
    from geood.evaluation import evaluate_scenes
    from geood.prediction import polygonize, predict
    from geood.raster import open_scores
    from geood.scores import anomaly_score
    from geood.training import train

_HOMES = {
    "Config": "config",
    "ModelBundle": "bundle",
    "anomaly_score": "scores",
    "data_set": "catalog",
    "evaluate_scenes": "evaluation",
    "evaluate_set": "benchmark",
    "load_config": "config_file",
    "open_scores": "raster",
    "polygonize": "prediction",
    "predict": "prediction",
    "train": "training",
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
