"""Draw the pictures of docs/qgis.md by QGIS, from the outputs of the demo: `make demo`, then `make qgis-pictures`."""

import os
import sys
from pathlib import Path

from qgis.core import (
    QgsApplication,
    QgsMapLayer,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsAttributeForm, QgsGui
from qgis.PyQt.QtCore import QCoreApplication, QRect, QSize, Qt
from qgis.PyQt.QtGui import QColor, QFont, QImage, QPainter

SIDE = 400  # pixels of a map


def drawn(layers: list[QgsMapLayer], extent: QgsRectangle) -> QImage:
    """Draw layers, the first on top."""
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[-1].crs())
    settings.setExtent(extent)
    settings.setOutputSize(QSize(SIDE, SIDE))
    settings.setBackgroundColor(QColor("white"))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    return job.renderedImage()


def save(images: list[QImage], titles: list[str], path: Path) -> None:
    """Save images side by side, with titles above them."""
    height = max(image.height() for image in images)
    sheet = QImage(sum(i.width() + 8 for i in images) - 8, height + 24, QImage.Format.Format_RGB32)
    sheet.fill(QColor("white"))
    painter, left = QPainter(sheet), 0
    painter.setFont(QFont("Sans Serif", 10))
    for image, title in zip(images, titles, strict=True):
        painter.drawText(QRect(left, 0, image.width(), 22), int(Qt.AlignmentFlag.AlignVCenter), title)
        painter.drawImage(left, 24, image)
        left += image.width() + 8
    painter.end()
    if not sheet.save(str(path)):
        sys.exit(f"{path}: cannot be written")


def main(demo: Path, out: Path) -> None:
    """Draw all pictures."""
    out.mkdir(parents=True, exist_ok=True)
    scene = QgsRasterLayer(str(demo / "world" / "test.tif"), "scene")
    scores = QgsRasterLayer(str(demo / "anomalies.tif"), "scores")
    layers = [
        QgsVectorLayer(f"{demo / 'anomalies.gpkg'}|layername={name}", name, "ogr") for name in ("anomalies", "sample")
    ]
    missing = [layer.name() for layer in (scene, scores, *layers) if not layer.isValid()]
    if missing:
        sys.exit(f"{demo}: no {', '.join(missing)} of the demo there; run geood demo --out {demo}")
    anomalies, sample = layers
    whole = scene.extent()
    near = QgsRectangle(whole)
    near.scale(0.4)
    save(
        [drawn([anomalies, scene], whole), drawn([anomalies, scene], near)],
        ["anomalies.gpkg above the scene", "nearer: the labels are ranks, the colour is the score"],
        out / "qgis-polygons.png",
    )
    ramp = drawn([scores], whole)
    scores.loadNamedStyle(str(demo / "anomalies.above.qml"))
    save(
        [ramp, drawn([scores, scene], whole)],
        ["anomalies.tif, whole range", "its other style, above the threshold"],
        out / "qgis-scores.png",
    )
    QgsGui.editorWidgetRegistry().initEditors()
    QgsProject.instance().addMapLayers(layers)
    anomalies.startEditing()
    first = min(anomalies.getFeatures(), key=lambda feature: feature["rank"])
    form = QgsAttributeForm(anomalies, first)
    form.setStyleSheet("font-size: 7pt")
    form.resize(SIDE, SIDE)
    form.show()
    QCoreApplication.processEvents()
    picture = form.grab().toImage()
    save(
        [picture.copy(0, 0, picture.width(), min(picture.height(), SIDE)), drawn([sample, anomalies, scene], whole)],
        ["the form of a polygon", "the layer sample: cells to be searched"],
        out / "qgis-review.png",
    )


if __name__ == "__main__":
    application = QgsApplication([], True)
    application.initQgis()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # QGIS crashes now and then while it is taken down
