"""Before a training: a first config from images and labels, what can be known of a config in seconds, this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.preflight.checking import check_config
    from geood.preflight.config_text import config_lines, write_config
    from geood.preflight.drafting import FirstConfig, Inputs, Wishes, first_config
    from geood.preflight.environment import Fact, facts
    from geood.preflight.picture import check_picture

__all__ = [
    "Fact",
    "FirstConfig",
    "Inputs",
    "Wishes",
    "check_config",
    "check_picture",
    "config_lines",
    "facts",
    "first_config",
    "write_config",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Fact": "environment",
        "FirstConfig": "drafting",
        "Inputs": "drafting",
        "Wishes": "drafting",
        "check_config": "checking",
        "check_picture": "picture",
        "config_lines": "config_text",
        "facts": "environment",
        "first_config": "drafting",
        "write_config": "config_text",
    },
)
