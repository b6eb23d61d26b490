"""Config sections, the score table, and loading of config files."""

from __future__ import annotations

from geood.config.class_names import folded
from geood.config.loading import (
    apply_override,
    change_config,
    config_from_tree,
    config_schema,
    load_config,
    reference_config,
    to_yaml,
)
from geood.config.score_kinds import OF_ENCODER, SCORES, Need, scores_from, title_of, why_not
from geood.config.sections import (
    FALSE_POSITIVE_RATES,
    LEAST_FEATURES,
    VETO_SHARES,
    BandsConfig,
    Config,
    DataConfig,
    FlowConfig,
    LossConfig,
    NegativesConfig,
    PredictConfig,
    ScoreConfig,
    SegmenterConfig,
    TrainConfig,
    default_kind,
)

__all__ = [
    "FALSE_POSITIVE_RATES",
    "LEAST_FEATURES",
    "OF_ENCODER",
    "SCORES",
    "VETO_SHARES",
    "BandsConfig",
    "Config",
    "DataConfig",
    "FlowConfig",
    "LossConfig",
    "Need",
    "NegativesConfig",
    "PredictConfig",
    "ScoreConfig",
    "SegmenterConfig",
    "TrainConfig",
    "apply_override",
    "change_config",
    "config_from_tree",
    "config_schema",
    "default_kind",
    "folded",
    "load_config",
    "reference_config",
    "scores_from",
    "title_of",
    "to_yaml",
    "why_not",
]
