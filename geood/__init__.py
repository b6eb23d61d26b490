"""geood finds what a model was never taught, in aerial and satellite scenes and in road-driving images.

The public names live here and are resolved on first use, so `import geood` costs nothing. Inside, imports only go down:

    cli > preflight > training | prediction | evaluation | review | reporting | export > calibration
        > polygons | datasets > models > geo > config > catalog | metrics | atomic > errors | constants
        | notebook | progress | _torch_compat | _lazy | _version

Packages of one floor never import each other, and across a border only names of a package's face (its `__init__`) are
used; `geo` is a library, whose rooms are imported by name. docs/architecture.md names every room.

Functions take the same names for the same things: `bundle` is a ModelBundle, the path of its file or the folder of its
run, `out` what is written, `settings` overrides of a config, `options` how images are read.
"""

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports
from geood._version import __version__

if TYPE_CHECKING:
    from geood.catalog import data_set
    from geood.config import Config, load_config
    from geood.errors import (
        BundleError,
        ConfigError,
        DataError,
        GeoodError,
        OutputError,
        RunLostError,
        SceneChangedError,
        ScenesSkippedError,
        TilesFailedError,
        TrainingError,
    )
    from geood.evaluation import evaluate, evaluate_pairs, evaluate_scenes, evaluate_set
    from geood.export import export_bundle
    from geood.geo.score_raster import open_scores
    from geood.models import ModelBundle, anomaly_score
    from geood.prediction import SceneOptions, polygonize, predict
    from geood.reporting import report
    from geood.review import audit
    from geood.training import train

__all__ = [
    "BundleError",
    "Config",
    "ConfigError",
    "DataError",
    "GeoodError",
    "ModelBundle",
    "OutputError",
    "RunLostError",
    "SceneChangedError",
    "SceneOptions",
    "ScenesSkippedError",
    "TilesFailedError",
    "TrainingError",
    "__version__",
    "anomaly_score",
    "audit",
    "data_set",
    "evaluate",
    "evaluate_pairs",
    "evaluate_scenes",
    "evaluate_set",
    "export_bundle",
    "load_config",
    "open_scores",
    "polygonize",
    "predict",
    "report",
    "train",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "BundleError": "errors",
        "Config": "config",
        "ConfigError": "errors",
        "DataError": "errors",
        "GeoodError": "errors",
        "ModelBundle": "models",
        "OutputError": "errors",
        "RunLostError": "errors",
        "SceneChangedError": "errors",
        "SceneOptions": "prediction",
        "ScenesSkippedError": "errors",
        "TilesFailedError": "errors",
        "TrainingError": "errors",
        "anomaly_score": "models",
        "audit": "review",
        "data_set": "catalog",
        "evaluate": "evaluation",
        "evaluate_pairs": "evaluation",
        "evaluate_scenes": "evaluation",
        "evaluate_set": "evaluation",
        "export_bundle": "export",
        "load_config": "config",
        "open_scores": "geo.score_raster",
        "polygonize": "prediction",
        "predict": "prediction",
        "report": "reporting",
        "train": "training",
    },
)
