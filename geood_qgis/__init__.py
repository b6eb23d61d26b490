"""QGIS plugin: geood as algorithms of the Processing toolbox, run as a program of another environment."""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:
    """Return the plugin; `iface` is None where QGIS has no window."""
    from .plugin import GeoodPlugin

    return GeoodPlugin(iface)
