"""geood finds what a model was never taught, in aerial and satellite scenes and in road-driving images.

The public names live here and are resolved on first use, so `import geood` costs nothing. Inside, imports only go down:

    cli > training | prediction | evaluation | review | export > calibration > polygons | datasets > models > geo
        > config > catalog | metrics | atomic > errors | constants | progress | _torch_compat | _lazy | _version

Packages of one floor never import each other, and across a border only names of a package's face (its `__init__`) are
used; `geo` is a library, whose rooms are imported by name. docs/architecture.md names every room.
"""

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports
from geood._version import __version__

if TYPE_CHECKING:
    from geood.catalog import data_set
    from geood.config import Config, load_config
    from geood.evaluation import evaluate_pairs, evaluate_scenes, evaluate_set
    from geood.geo.score_raster import open_scores
    from geood.models import ModelBundle, anomaly_score
    from geood.prediction import polygonize, predict
    from geood.training import train

__all__ = [
    "Config",
    "ModelBundle",
    "__version__",
    "anomaly_score",
    "data_set",
    "evaluate_pairs",
    "evaluate_scenes",
    "evaluate_set",
    "load_config",
    "open_scores",
    "polygonize",
    "predict",
    "train",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Config": "config",
        "ModelBundle": "models",
        "anomaly_score": "models",
        "data_set": "catalog",
        "evaluate_pairs": "evaluation",
        "evaluate_scenes": "evaluation",
        "evaluate_set": "evaluation",
        "load_config": "config",
        "open_scores": "geo.score_raster",
        "polygonize": "prediction",
        "predict": "prediction",
        "train": "training",
    },
)
