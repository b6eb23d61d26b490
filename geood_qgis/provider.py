"""Provider of the algorithms, and the setting that tells where the program geood is."""

from __future__ import annotations

from pathlib import Path

from qgis.core import QgsProcessingProvider, QgsSettings
from qgis.PyQt.QtGui import QIcon

from .audit import Audit
from .plan import Plan
from .polygonize import Polygonize
from .predict import Predict

SETTING = "GEOOD_PROGRAM"


class GeoodProvider(QgsProcessingProvider):
    """Provider named `geood`."""

    def id(self) -> str:
        """Return the name in `geood:predict`."""
        return "geood"

    def name(self) -> str:
        """Return the name that people see."""
        return "geood"

    def icon(self) -> QIcon:
        """Return the icon in the toolbox."""
        return QIcon(str(Path(__file__).with_name("icon.svg")))

    def load(self) -> bool:
        """Add the setting to the options of Processing, where these can be changed."""
        try:
            from processing.core.ProcessingConfig import ProcessingConfig, Setting
        except ImportError:  # a QGIS without the Processing plugin, such as a script; the setting is still read
            self.refreshAlgorithms()
            return True
        ProcessingConfig.settingIcons[self.name()] = self.icon()
        title = "Program geood, or the folder of its environment (empty: searched for in PATH)"
        ProcessingConfig.addSetting(Setting(self.name(), SETTING, title, "", valuetype=Setting.FILE))
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        """Remove the setting from the options of Processing."""
        try:
            from processing.core.ProcessingConfig import ProcessingConfig
        except ImportError:
            return
        ProcessingConfig.removeSetting(SETTING)

    def loadAlgorithms(self) -> None:
        """Add all algorithms."""
        for kind in (Predict, Polygonize, Plan, Audit):
            self.addAlgorithm(kind(program_setting))

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        """Return the formats that geood writes, the default first."""
        return ["gpkg", "geojson", "fgb", "parquet"]

    def supportsNonFileBasedOutput(self) -> bool:
        """Return False: geood writes files."""
        return False


def program_setting() -> str:
    """Return what the setting holds; empty if nothing was set."""
    return str(QgsSettings().value(f"Processing/Configuration/{SETTING}", "") or "")
