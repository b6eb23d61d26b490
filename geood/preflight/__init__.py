"""Before a training: a first config from images and labels, what can be known of a config in seconds, this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.preflight.checking import check_config
    from geood.preflight.environment import Fact, facts
    from geood.preflight.first_config import FirstConfig, Wishes, first_config
    from geood.preflight.found_classes import FoundClass

__all__ = ["Fact", "FirstConfig", "FoundClass", "Wishes", "check_config", "facts", "first_config"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Fact": "environment",
        "FirstConfig": "first_config",
        "FoundClass": "found_classes",
        "Wishes": "first_config",
        "check_config": "checking",
        "facts": "environment",
        "first_config": "first_config",
    },
)
