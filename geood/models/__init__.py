"""Networks, anomaly scores and the bundle file that holds a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.models.bundle import EXPERTS, ModelBundle, autocast
    from geood.models.bundle_header import BundleHeader, read_header
    from geood.models.evidence import EVIDENCE, class_bands
    from geood.models.flow import Flow
    from geood.models.inlier_statistics import InlierFit, Inliers
    from geood.models.scores import anomaly_score, jensen_shannon_to_uniform
    from geood.models.segmenter import Segmenter, SegmenterOutput
    from geood.models.tails import fit_tail

__all__ = [
    "EVIDENCE",
    "EXPERTS",
    "BundleHeader",
    "Flow",
    "InlierFit",
    "Inliers",
    "ModelBundle",
    "Segmenter",
    "SegmenterOutput",
    "anomaly_score",
    "autocast",
    "class_bands",
    "fit_tail",
    "jensen_shannon_to_uniform",
    "read_header",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "BundleHeader": "bundle_header",
        "EVIDENCE": "evidence",
        "EXPERTS": "bundle",
        "Flow": "flow",
        "InlierFit": "inlier_statistics",
        "Inliers": "inlier_statistics",
        "ModelBundle": "bundle",
        "Segmenter": "segmenter",
        "SegmenterOutput": "segmenter",
        "anomaly_score": "scores",
        "autocast": "bundle",
        "class_bands": "evidence",
        "fit_tail": "tails",
        "jensen_shannon_to_uniform": "scores",
        "read_header": "bundle_header",
    },
)
