"""The plugin as QGIS loads it: it adds the provider of algorithms, and nothing to menus or toolbars."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsApplication

from .provider import GeoodProvider


class GeoodPlugin:
    """Plugin that holds the provider while it is loaded."""

    def __init__(self, iface: Any) -> None:
        self.iface, self.provider = iface, None

    def initProcessing(self) -> None:
        """Add the algorithms; `qgis_process` calls this alone."""
        self.provider = GeoodProvider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self) -> None:
        """Add the algorithms to a QGIS with windows."""
        self.initProcessing()

    def unload(self) -> None:
        """Remove the algorithms."""
        if self.provider is not None:
            QgsApplication.processingRegistry().removeProvider(self.provider)
            self.provider = None
