"""Bundles as files of other programs: ONNX, ONNX for QGIS's Deepness plugin, and a STAC item that describes the model.

`graph` is what is computed, `onnx_file` traces, checks and writes it, `deepness` says what that plugin has to be told,
and `stac_item` describes a bundle for catalogs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.export.formats import EXPORTS, Exported, export_bundle
    from geood.export.onnx_file import read_metadata

__all__ = ["EXPORTS", "Exported", "export_bundle", "read_metadata"]

__getattr__, __dir__ = lazy_exports(
    __name__, {"EXPORTS": "formats", "Exported": "formats", "export_bundle": "formats", "read_metadata": "onnx_file"}
)
