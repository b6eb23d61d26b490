"""Networks, anomaly scores and the bundle file that holds a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.models.bundle import TILE_PX, ModelBundle
    from geood.models.bundle_header import BundleHeader, Reach, read_header
    from geood.models.bundle_upgrades import OLD_STRIDES
    from geood.models.calibration_record import CalibrationRecord
    from geood.models.encoder import check_encoder
    from geood.models.encoder_weights import PACKAGE_ENCODER, PACKAGE_NAME, weights_at_hand
    from geood.models.evidence import EVIDENCE, SIGNALS, class_bands
    from geood.models.flows.elementwise import half_step
    from geood.models.flows.flow import Flow
    from geood.models.given_bundle import AnyBundle, bundle_of, bundle_path_of, takes_bundle
    from geood.models.inference import autocast, for_inference
    from geood.models.inlier_statistics import InlierFit, Inliers
    from geood.models.reach import LOST, effort_for, measured_reach, outputs_of
    from geood.models.region import WHOLE, Region, cut
    from geood.models.score_maps import EXPERTS
    from geood.models.scores import anomaly_score, jensen_shannon_to_uniform, outlier_score
    from geood.models.segmenter import Segmenter, SegmenterOutput
    from geood.models.tails import fit_tail

__all__ = [
    "EVIDENCE",
    "EXPERTS",
    "LOST",
    "OLD_STRIDES",
    "PACKAGE_ENCODER",
    "PACKAGE_NAME",
    "SIGNALS",
    "TILE_PX",
    "WHOLE",
    "AnyBundle",
    "BundleHeader",
    "CalibrationRecord",
    "Flow",
    "InlierFit",
    "Inliers",
    "ModelBundle",
    "Reach",
    "Region",
    "Segmenter",
    "SegmenterOutput",
    "anomaly_score",
    "autocast",
    "bundle_of",
    "bundle_path_of",
    "check_encoder",
    "class_bands",
    "cut",
    "effort_for",
    "fit_tail",
    "for_inference",
    "half_step",
    "jensen_shannon_to_uniform",
    "measured_reach",
    "outlier_score",
    "outputs_of",
    "read_header",
    "takes_bundle",
    "weights_at_hand",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "AnyBundle": "given_bundle",
        "BundleHeader": "bundle_header",
        "CalibrationRecord": "calibration_record",
        "EVIDENCE": "evidence",
        "SIGNALS": "evidence",
        "EXPERTS": "score_maps",
        "OLD_STRIDES": "bundle_upgrades",
        "TILE_PX": "bundle",
        "Flow": "flows.flow",
        "InlierFit": "inlier_statistics",
        "Inliers": "inlier_statistics",
        "LOST": "reach",
        "ModelBundle": "bundle",
        "Reach": "bundle_header",
        "Region": "region",
        "WHOLE": "region",
        "cut": "region",
        "Segmenter": "segmenter",
        "SegmenterOutput": "segmenter",
        "anomaly_score": "scores",
        "autocast": "inference",
        "PACKAGE_ENCODER": "encoder_weights",
        "PACKAGE_NAME": "encoder_weights",
        "check_encoder": "encoder",
        "bundle_of": "given_bundle",
        "bundle_path_of": "given_bundle",
        "effort_for": "reach",
        "class_bands": "evidence",
        "fit_tail": "tails",
        "for_inference": "inference",
        "half_step": "flows.elementwise",
        "jensen_shannon_to_uniform": "scores",
        "measured_reach": "reach",
        "outputs_of": "reach",
        "outlier_score": "scores",
        "read_header": "bundle_header",
        "weights_at_hand": "encoder_weights",
        "takes_bundle": "given_bundle",
    },
)
