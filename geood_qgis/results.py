"""Results in the project: each with its style from geood, polygons above the scores that they are cut from.

Processing loads results without their styles, in the order of their names. The object that changes this is called once
a layer lies in the project; Python has to keep it until then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    QgsMapLayer,
    QgsMapLayerStyle,
    QgsProcessingContext,
    QgsProcessingLayerPostProcessorInterface,
    QgsRasterLayer,
)

RAMP, ABOVE = "whole range", "above the threshold"
_kept: list[Styled] = []


class Styled(QgsProcessingLayerPostProcessorInterface):
    """Layer of a run, to be styled and put in its place: `rank` counts from the top down."""

    def __init__(self, rank: int, others: list[Styled]) -> None:
        super().__init__()
        self.rank, self.others, self.layer_id = rank, others, ""

    def postProcessLayer(self, layer: QgsMapLayer, context: QgsProcessingContext, feedback: Any) -> None:
        """Style a layer that has just been loaded."""
        layer.loadDefaultStyle()
        if isinstance(layer, QgsRasterLayer):
            add_above(layer)
        layer.triggerRepaint()
        self.layer_id = layer.id()
        project = context.project()
        node = project.layerTreeRoot().findLayer(layer.id()) if project is not None else None
        if node is not None:
            self._put_below(node)

    def _put_below(self, node: Any) -> None:
        """Move the layer below those of its run that belong above it."""
        parent = node.parent()
        ids = [child.layerId() if hasattr(child, "layerId") else "" for child in parent.children()]
        above = [ids.index(o.layer_id) for o in self.others if o.rank < self.rank and o.layer_id in ids]
        if above and max(above) > ids.index(self.layer_id):
            parent.insertChildNode(max(above) + 1, node.clone())
            parent.removeChildNode(node)


def add_above(layer: QgsRasterLayer) -> None:
    """Give a score raster its second style, to be chosen in its menu under Styles, if that lies beside it."""
    path = Path(layer.source()).with_suffix(".above.qml")
    if not path.is_file():
        return
    manager = layer.styleManager()
    manager.renameStyle(manager.currentStyle(), RAMP)
    manager.addStyle(ABOVE, QgsMapLayerStyle(path.read_text(encoding="utf-8")))


def load_when_done(context: QgsProcessingContext, sources: dict[str, str]) -> None:
    """Let Processing load layers (titles by source, the first on top) when the algorithm has ended."""
    run: list[Styled] = []
    for rank, (source, title) in enumerate(sources.items()):
        details = QgsProcessingContext.LayerDetails(title, context.project(), "")
        details.forceName = True
        if hasattr(details, "layerSortKey"):
            details.layerSortKey = -rank
        styled = Styled(rank, run)
        run.append(styled)
        details.setPostProcessor(styled)
        context.addLayerToLoadOnCompletion(source, details)
    _kept.extend(run)
    del _kept[:-100]
