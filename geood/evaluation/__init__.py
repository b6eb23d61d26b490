"""Measures bundles, and score files of any tool, on labelled scenes and published data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.evaluation.by_name import evaluate
    from geood.evaluation.catalog_sets import evaluate_set
    from geood.evaluation.class_mapping import data_settings
    from geood.evaluation.pairs import evaluate_pairs
    from geood.evaluation.pictures import draw_overview
    from geood.evaluation.results import Evaluation, SetEvaluation, staged, write_metrics, write_scene_figures
    from geood.evaluation.scenes import evaluate_scenes
    from geood.evaluation.submission import submit

__all__ = [
    "Evaluation",
    "SetEvaluation",
    "data_settings",
    "draw_overview",
    "evaluate",
    "evaluate_pairs",
    "evaluate_scenes",
    "evaluate_set",
    "staged",
    "submit",
    "write_metrics",
    "write_scene_figures",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Evaluation": "results",
        "SetEvaluation": "results",
        "data_settings": "class_mapping",
        "draw_overview": "pictures",
        "evaluate": "by_name",
        "evaluate_pairs": "pairs",
        "evaluate_scenes": "scenes",
        "evaluate_set": "catalog_sets",
        "staged": "results",
        "submit": "submission",
        "write_metrics": "results",
        "write_scene_figures": "results",
    },
)
