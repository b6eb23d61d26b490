"""Algorithm `geood:polygonize`: polygons again from scores, with another threshold or area, without the model."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorDestination,
)

from .algorithm import INTEGER, GeoodAlgorithm, source_of
from .predict import POLYGONS, layers_of, take_back
from .results import load_when_done


class Polygonize(GeoodAlgorithm):
    """Algorithm that cuts polygons from scores."""

    NAME, TITLE = "polygonize", "Cut polygons again (polygonize)"
    HELP = (
        "Cuts polygons from a score raster that predict wrote, in seconds and without the model. What is left empty is "
        "as it was in the prediction; give at most one of threshold, share and false polygons per km2."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        """Define the parameters."""
        self.add(QgsProcessingParameterRasterLayer("SCORES", "Scores"))
        self.add_number("THRESHOLD", "Score above which a pixel is anomalous")
        self.add_number("FPR", "Or share of ground without anomalies above it", minValue=0, maxValue=1)
        self.add_number("FALSE_PER_KM2", "Or false polygons per km2 on ground without anomalies", minValue=0)
        self.add_number("TOP", "Keep this many polygons, the first by rank", type=INTEGER, minValue=1)
        self.add_number("MIN_AREA", "Omit smaller polygons (m²)", minValue=0)
        self.add_number("SIMPLIFY", "Remove details of this size from outlines (m)", minValue=0)
        self.add(QgsProcessingParameterBoolean("OVERWRITE", "Replace outputs that exist", False))
        self.add(QgsProcessingParameterVectorDestination("OUTPUT", "Anomalies", POLYGONS))

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run `geood polygonize`."""
        scores = source_of(self.parameterAsRasterLayer(parameters, "SCORES", context), "Scores")
        out = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        wanted = take_back(context, out)
        arguments = ["polygonize", f"--out={out}"]
        arguments += self.number_options(
            parameters,
            context,
            THRESHOLD="--threshold",
            FPR="--fpr",
            FALSE_PER_KM2="--false-per-km2",
            TOP="--top",
            MIN_AREA="--min-area",
            SIMPLIFY="--simplify",
        )
        arguments += ["--overwrite"] if self.parameterAsBool(parameters, "OVERWRITE", context) else []
        self.call_geood([*arguments, "--", scores], feedback)
        if wanted:
            load_when_done(context, layers_of(out))
        return {"OUTPUT": out}
