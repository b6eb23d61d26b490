"""Networks, anomaly scores and the bundle file that holds a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.models.bundle import EXPERTS, ModelBundle, autocast
    from geood.models.bundle_header import BundleHeader, read_header
    from geood.models.calibration_record import CalibrationRecord
    from geood.models.flow import Flow
    from geood.models.inlier_statistics import InlierFit, Inliers
    from geood.models.scores import anomaly_score, jensen_shannon_to_uniform, outlier_score
    from geood.models.segmenter import Segmenter, SegmenterOutput
    from geood.models.tails import fit_tail

__all__ = [
    "EXPERTS",
    "BundleHeader",
    "CalibrationRecord",
    "Flow",
    "InlierFit",
    "Inliers",
    "ModelBundle",
    "Segmenter",
    "SegmenterOutput",
    "anomaly_score",
    "autocast",
    "fit_tail",
    "jensen_shannon_to_uniform",
    "outlier_score",
    "read_header",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "BundleHeader": "bundle_header",
        "CalibrationRecord": "calibration_record",
        "EXPERTS": "bundle",
        "Flow": "flow",
        "InlierFit": "inlier_statistics",
        "Inliers": "inlier_statistics",
        "ModelBundle": "bundle",
        "Segmenter": "segmenter",
        "SegmenterOutput": "segmenter",
        "anomaly_score": "scores",
        "autocast": "bundle",
        "fit_tail": "tails",
        "jensen_shannon_to_uniform": "scores",
        "outlier_score": "scores",
        "read_header": "bundle_header",
    },
)
