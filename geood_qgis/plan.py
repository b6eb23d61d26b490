"""Algorithm `geood:plan`: what a prediction would do with a scene, and what it would take."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputString,
    QgsProcessingParameterFile,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from .algorithm import GeoodAlgorithm, source_of
from .predict import BEHAVIOUR


class Plan(GeoodAlgorithm):
    """Algorithm that tells tiles, memory, disk and time of a prediction."""

    NAME, TITLE = "plan", "Plan a prediction (plan)"
    HELP = "Tells what predict would do with a scene, and what it would take: bands, tiles, memory, disk, time."

    def initAlgorithm(self, configuration: Any = None) -> None:
        """Define the parameters."""
        self.add(QgsProcessingParameterRasterLayer("SCENE", "Scene"))
        self.add(QgsProcessingParameterFile("MODEL", "Model (model.safetensors)", BEHAVIOUR, "safetensors"))
        text = QgsProcessingParameterString("MAX_RAM", "Memory limit, such as 4GB", optional=True)
        self.add(text, advanced=True)
        self.addOutput(QgsProcessingOutputString("PLAN", "Plan"))

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run `geood plan`."""
        scene = source_of(self.parameterAsRasterLayer(parameters, "SCENE", context), "Scene")
        arguments = ["plan", f"--model={self.parameterAsFile(parameters, 'MODEL', context)}"]
        if limit := self.parameterAsString(parameters, "MAX_RAM", context).strip():
            arguments.append(f"--max-ram={limit}")
        return {"PLAN": "\n".join(self.call_geood([*arguments, "--", scene], feedback))}
