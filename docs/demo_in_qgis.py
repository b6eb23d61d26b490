"""Draw the pictures of QGIS for the pages, from the demo's results; run by `pictures.py` with QGIS's own Python.

    QT_QPA_PLATFORM=offscreen /usr/bin/python3 docs/demo_in_qgis.py DEMO OUT

No window is opened. What is drawn is what QGIS draws with the styles that geood wrote: nothing is set here.
"""

import os
import sys
from pathlib import Path

from qgis.core import (
    QgsApplication,
    QgsFeatureRequest,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsAttributeEditorContext, QgsAttributeForm, QgsGui, QgsMapCanvas
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtWidgets import QApplication

SIZE = QSize(1200, 640)


def draw_map(out, layers, extent):
    """Draw layers, the first on top, as QGIS does."""
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[-1].crs())
    settings.setOutputSize(SIZE)
    settings.setExtent(extent)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    save(job.renderedImage(), out)


def draw_form(out, layer):
    """Draw the form of the polygon of rank 1."""
    layer.startEditing()
    feature = next(layer.getFeatures(QgsFeatureRequest().setFilterExpression('"rank" = 1')))
    form = QgsAttributeForm(layer, feature, QgsAttributeEditorContext())
    form.resize(560, 640)
    form.show()
    for _ in range(20):
        QApplication.processEvents()
    save(form.grab().toImage(), out)
    layer.rollBack()


def save(image, out):
    if not image.save(str(out), quality=88 if out.suffix == ".jpg" else -1):
        sys.exit(f"{out}: cannot be written")


def main():
    demo, out = Path(sys.argv[1]), Path(sys.argv[2])
    app = QgsApplication([], True)
    app.initQgis()
    QgsGui.editorWidgetRegistry().initEditors(QgsMapCanvas())
    scene = QgsRasterLayer(str(demo / "world" / "test.tif"), "scene")
    polygons = QgsVectorLayer(f"{demo / 'anomalies.gpkg'}|layername=anomalies", "anomalies", "ogr")
    scores = QgsRasterLayer(str(demo / "anomalies.tif"), "scores")
    if not all(layer.isValid() for layer in (scene, polygons, scores)):
        sys.exit(f"{demo}: holds no results of `geood demo`")
    whole = scene.extent()
    half = whole.height() * 0.53
    left = whole.xMaximum() - half * SIZE.width() / SIZE.height()
    corner = QgsRectangle(left, whole.yMaximum() - half, whole.xMaximum(), whole.yMaximum())
    draw_map(out / "qgis-map.jpg", [polygons, scene], corner)
    draw_form(out / "qgis-form.png", polygons)
    os._exit(0)  # QGIS may crash when its objects are taken down in Python's order


if __name__ == "__main__":
    main()
