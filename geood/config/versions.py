"""Versions of a config's keys: upgraders from each to the next.

A config says under `version` which keys it is written with; one without is of the first version. Each upgrader is a
function from the mapping of one version to that of the next, such as one that moves a key that got another name, and
knows nothing of the versions around it. They are applied before anything is validated, to files and to configs in
bundles alike, and so must take any value that YAML or JSON can hold.

There is one version so far. To change a key: count `CONFIG_VERSION` up, and add the upgrader of the version before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from geood.errors import ConfigError, shown

CONFIG_VERSION = 1
UPGRADERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # by the version that they take


def upgraded(tree: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Return a config's mapping with the keys of this version.

    Args:
        tree: the mapping as it was read, of any version.
        source: names the file in errors.

    Raises:
        ConfigError: its version is no number, or newer than this geood knows.
    """
    given = tree.get("version", 1)
    if type(given) is not int or given < 1:
        raise ConfigError(f"{source}: version: got {shown(given)}; write {CONFIG_VERSION}, or leave it out")
    if given > CONFIG_VERSION:
        raise ConfigError(
            f"{source}: version: got {shown(given)}, and this geood knows the keys up to version {CONFIG_VERSION}; "
            "upgrade geood"
        )
    newer = dict(tree)  # what was given stays as it is
    for version in range(given, CONFIG_VERSION):
        newer = UPGRADERS[version](newer)
    return newer | {"version": CONFIG_VERSION}
