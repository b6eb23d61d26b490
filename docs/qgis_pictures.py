"""Draw the pictures of QGIS for the pages, from the demo's results; run by `pictures.py` with QGIS's own Python.

    QT_QPA_PLATFORM=offscreen /usr/bin/python3 docs/qgis_pictures.py DEMO OUT

No window is opened. What is drawn is what QGIS draws with the styles that geood wrote: nothing is set here.
"""

import os
import sys
from pathlib import Path

from qgis.core import (
    QgsApplication,
    QgsFeatureRequest,
    QgsMapLayer,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsAttributeEditorContext, QgsAttributeForm, QgsGui, QgsMapCanvas
from qgis.PyQt.QtCore import QRect, QSize, Qt
from qgis.PyQt.QtGui import QColor, QFont, QImage, QPainter
from qgis.PyQt.QtWidgets import QApplication

WIDE = QSize(1200, 640)  # pixels
SQUARE = QSize(596, 596)
TITLE = 28  # height of a title
GAP = 8  # between pictures side by side


def drawn(layers: list[QgsMapLayer], extent: QgsRectangle, size: QSize) -> QImage:
    """Draw layers, the first on top, as QGIS does."""
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[-1].crs())
    settings.setExtent(extent)
    settings.setOutputSize(size)
    settings.setBackgroundColor(QColor("white"))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    return job.renderedImage()


def form_of_first(polygons: QgsVectorLayer) -> QImage:
    """Draw the form of the polygon of rank 1."""
    polygons.startEditing()
    first = next(polygons.getFeatures(QgsFeatureRequest().setFilterExpression('"rank" = 1')))
    form = QgsAttributeForm(polygons, first, QgsAttributeEditorContext())
    form.resize(560, 640)
    form.show()
    for _ in range(20):
        QApplication.processEvents()
    picture = form.grab().toImage()
    polygons.rollBack()
    return picture


def side_by_side(images: list[QImage], titles: list[str]) -> QImage:
    """Join pictures of one height, with titles above them."""
    width = sum(image.width() + GAP for image in images) - GAP
    sheet = QImage(width, images[0].height() + TITLE, QImage.Format.Format_RGB32)
    sheet.fill(QColor("white"))
    painter, left = QPainter(sheet), 0
    painter.setFont(QFont("Sans Serif", 12))
    for image, title in zip(images, titles, strict=True):
        painter.drawText(QRect(left + 2, 0, image.width(), TITLE), int(Qt.AlignmentFlag.AlignVCenter), title)
        painter.drawImage(left, TITLE, image)
        left += image.width() + GAP
    painter.end()
    return sheet


def save(image: QImage, path: Path) -> None:
    if not image.save(str(path)):
        sys.exit(f"{path}: cannot be written")


def main(demo: Path, out: Path) -> None:
    """Draw all pictures."""
    scene = QgsRasterLayer(str(demo / "world" / "test.tif"), "scene")
    scores = QgsRasterLayer(str(demo / "anomalies.tif"), "scores")
    polygons, sample = (
        QgsVectorLayer(f"{demo / 'anomalies.gpkg'}|layername={name}", name, "ogr") for name in ("anomalies", "sample")
    )
    if missing := [layer.name() for layer in (scene, scores, polygons, sample) if not layer.isValid()]:
        sys.exit(f"{demo}: no {', '.join(missing)} of the demo there; run geood demo --out {demo}")
    whole = scene.extent()
    height = whole.height() * 0.53
    left = whole.xMaximum() - height * WIDE.width() / WIDE.height()
    corner = QgsRectangle(left, whole.yMaximum() - height, whole.xMaximum(), whole.yMaximum())
    save(drawn([polygons, scene], corner, WIDE), out / "qgis-map.png")
    save(form_of_first(polygons), out / "qgis-form.png")
    save(drawn([sample, polygons, scene], whole, SQUARE), out / "qgis-sample.png")
    ramp = drawn([scores], whole, SQUARE)
    scores.loadNamedStyle(str(demo / "anomalies.above.qml"))
    above = drawn([scores, scene], whole, SQUARE)
    save(side_by_side([ramp, above], ["whole range", "above the threshold"]), out / "qgis-scores.png")


if __name__ == "__main__":
    application = QgsApplication([], True)
    application.initQgis()
    QgsGui.editorWidgetRegistry().initEditors(QgsMapCanvas())
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # QGIS may crash when its objects are taken down in Python's order
