"""Algorithm `geood:audit`: what the verdicts of a review say of a map."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputString,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterRasterLayer,
)

from .algorithm import GeoodAlgorithm, source_of

VECTORS = QgsProcessing.SourceType.TypeVectorPolygon


class Audit(GeoodAlgorithm):
    """Algorithm that tells precision, misses and a threshold for a budget, from verdicts."""

    NAME, TITLE = "audit", "Tell what verdicts say of a map (audit)"
    HELP = (
        "Tells from the column verdict of reviewed polygons how many of them are real, and from the cells of the layer "
        "sample what was missed. Save your edits first; the layers may stay open. Several copies are taken together."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        """Define the parameters."""
        self.add(QgsProcessingParameterMultipleLayers("REVIEWED", "Reviewed polygons", VECTORS))
        self.add(QgsProcessingParameterRasterLayer("SCORES", "Scores, if not beside the polygons", optional=True))
        self.add_number("FALSE_PER_KM2", "Find the threshold that keeps false polygons per km2 to", minValue=0)
        self.addOutput(QgsProcessingOutputString("AUDIT", "Audit"))

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run `geood audit`."""
        files: dict[str, None] = {}
        for layer in self.parameterAsLayerList(parameters, "REVIEWED", context):
            if layer.providerType() != "ogr":
                raise QgsProcessingException(
                    f"Reviewed polygons: the layer {layer.name()} is not a file; save it first"
                )
            if layer.isEditable() and layer.isModified():
                feedback.pushWarning(f"{layer.name()} has changes that are not saved, and are not counted")
            files[layer.source().partition("|")[0]] = None
        arguments = ["audit", *self.number_options(parameters, context, FALSE_PER_KM2="--false-per-km2")]
        scores = self.parameterAsRasterLayer(parameters, "SCORES", context)
        arguments += [f"--scores={source_of(scores, 'Scores')}"] if scores is not None else []
        return {"AUDIT": "\n".join(self.call_geood([*arguments, "--", *files], feedback))}
