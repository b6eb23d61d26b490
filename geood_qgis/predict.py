"""Algorithm `geood:predict`: anomaly scores of scenes, and polygons cut from them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputRasterLayer,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsProcessingUtils,
    QgsVectorFileWriter,
)

from .algorithm import INTEGER, GeoodAlgorithm, source_of
from .results import load_when_done

POLYGONS = QgsProcessing.SourceType.TypeVectorPolygon
RASTERS = QgsProcessing.SourceType.TypeRaster
BEHAVIOUR = QgsProcessingParameterFile.Behavior.File
RESUME = (
    "Finished tiles are kept in a hidden folder beside the output: run again with the same parameters and Resume "
    "ticked. Of a temporary output nothing is kept for long: name a file."
)


class Predict(GeoodAlgorithm):
    """Algorithm that maps the anomalies of scenes."""

    NAME, TITLE = "predict", "Map anomalies (predict)"
    HELP = (
        "Scores every pixel of the scenes with a trained model, and cuts polygons where the score is above the "
        "threshold. Beside x.gpkg lie the scores x.tif and the classes x.classes.tif, each with its style; beside "
        "GeoJSON, FlatGeobuf and GeoParquet the scores are x.scores.tif. Give at most one of threshold, share, false "
        "polygons per km2; all empty: the model's own threshold.\n\nCancel keeps finished tiles: run again with the "
        "same parameters and Resume ticked.\n\nThe program geood runs outside QGIS; where it is, is set in the options "
        "of Processing under Providers."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        """Define the parameters."""
        self.add(QgsProcessingParameterMultipleLayers("SCENES", "Scenes", RASTERS))
        self.add(QgsProcessingParameterFile("MODEL", "Model (model.safetensors)", BEHAVIOUR, "safetensors"))
        self.add_number("THRESHOLD", "Score above which a pixel is anomalous")
        self.add_number("FPR", "Or share of ground without anomalies above it", minValue=0, maxValue=1)
        self.add_number("FALSE_PER_KM2", "Or false polygons per km2 on ground without anomalies", minValue=0)
        self.add_number("TOP", "Keep this many polygons of a scene, the first by rank", type=INTEGER, minValue=1)
        self.add(QgsProcessingParameterFeatureSource("AOI", "Score only within polygons", [POLYGONS], optional=True))
        self.add(QgsProcessingParameterExtent("EXTENT", "Score only within a box", optional=True))
        self.add(QgsProcessingParameterBoolean("MOSAIC", "The scenes are tiles of one", False), advanced=True)
        text = QgsProcessingParameterString("BANDS", "Bands to read as the model's: red=3,green=2", optional=True)
        self.add(text, advanced=True)
        text = QgsProcessingParameterString("MAX_RAM", "Memory limit, such as 4GB", optional=True)
        self.add(text, advanced=True)
        text = QgsProcessingParameterString("SETTINGS", "Further settings: score.kind=energy ...", optional=True)
        self.add(text, advanced=True)
        self.add(QgsProcessingParameterBoolean("RESUME", "Resume an interrupted run", False))
        self.add(QgsProcessingParameterBoolean("OVERWRITE", "Replace outputs that exist", False))
        self.add(QgsProcessingParameterVectorDestination("OUTPUT", "Anomalies", POLYGONS))
        self.addOutput(QgsProcessingOutputRasterLayer("SCORES", "Scores"))

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run `geood predict`."""
        scenes = self.parameterAsLayerList(parameters, "SCENES", context)
        out = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        wanted = take_back(context, out)
        sources = [source_of(scene, "Scenes") for scene in scenes]
        arguments = ["predict", f"--out={out}", f"--model={self.parameterAsFile(parameters, 'MODEL', context)}"]
        arguments += self.number_options(
            parameters, context, THRESHOLD="--threshold", FPR="--fpr", FALSE_PER_KM2="--false-per-km2", TOP="--top"
        )
        if parameters.get("EXTENT"):
            box = self.parameterAsExtent(parameters, "EXTENT", context, scenes[0].crs())
            sides = (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum())
            arguments.append(f"--bbox={','.join(map(repr, sides))}")
        if parameters.get("AOI"):
            arguments.append(f"--aoi={self._area(parameters, context)}")
        for name, option in (("BANDS", "--bands"), ("MAX_RAM", "--max-ram")):
            if text := self.parameterAsString(parameters, name, context).strip():
                arguments.append(f"{option}={text}")
        try:
            settings = shlex.split(self.parameterAsString(parameters, "SETTINGS", context))
        except ValueError as error:
            raise QgsProcessingException(f"Further settings: cannot be parted ({error}); close what is open") from None
        arguments += [f"--set={setting}" for setting in settings]
        for name, option in (("MOSAIC", "--mosaic"), ("RESUME", "--resume"), ("OVERWRITE", "--overwrite")):
            arguments += [option] if self.parameterAsBool(parameters, name, context) else []
        lines = self.call_geood([*arguments, "--", *sources], feedback, how_to_resume=RESUME)
        scores = written(lines, "scores")
        if wanted:
            load_when_done(context, layers_of(out) | {path: Path(path).stem + " scores" for path in scores})
        return {"OUTPUT": out, "SCORES": scores[0] if scores else ""}

    def _area(self, parameters: dict[str, Any], context: QgsProcessingContext) -> str:
        """Write the area of interest, which may be a layer in memory or some selected features, to a file."""
        source = self.parameterAsSource(parameters, "AOI", context)
        path = QgsProcessingUtils.generateTempFilename("aoi.gpkg")
        options = QgsVectorFileWriter.SaveVectorOptions()
        options.driverName, options.layerName = "GPKG", "aoi"
        writer = QgsVectorFileWriter.create(
            path, source.fields(), source.wkbType(), source.sourceCrs(), context.transformContext(), options
        )
        for feature in source.getFeatures():
            writer.addFeature(feature)
        del writer  # which closes the file
        return path


def take_back(context: QgsProcessingContext, out: str) -> bool:
    """Return whether an output is to be loaded, and let this be done with its styles instead of by Processing."""
    layers = context.layersToLoadOnCompletion()
    wanted = layers.pop(out, None) is not None
    if wanted:
        context.setLayersToLoadOnCompletion(layers)
    return wanted


def layers_of(out: str) -> dict[str, str]:
    """Return the layers of a file of polygons with their titles, those that belong on top first."""
    title = Path(out).stem
    if not out.endswith(".gpkg"):
        return {out: title}
    return {f"{out}|layername=anomalies": f"{title} anomalies"}


def written(lines: list[str], what: str) -> list[str]:
    """Return the files of a kind that geood says it wrote."""
    return [line[len(what) :].strip() for line in lines if line.startswith(f"{what} ")]
