"""Data sets for training and evaluation, under one sample format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.datasets.check import check_set
    from geood.datasets.class_finding import NAMES_OF_NONE, ids_of_names, settle_classes
    from geood.datasets.crops import Crops
    from geood.datasets.discovery import drop_unlabelled, find_frames
    from geood.datasets.disparity import distance_of, has_distance
    from geood.datasets.files import find_files
    from geood.datasets.frames import Decoded, Frame, decode, screened
    from geood.datasets.outlier_photos import PhotographFolder, open_photographs
    from geood.datasets.reviewed_ground import ReviewedScenes
    from geood.datasets.samples import CropPixels, seed_of
    from geood.datasets.sources import open_crops
    from geood.datasets.synthetic.world import make_world
    from geood.datasets.unreadable import without_unreadable
    from geood.datasets.validation_ground import (
        PartIds,
        ValidationPart,
        decoded_frame,
        labelled_blocks,
        open_ids,
        validation_parts,
    )

__all__ = [
    "NAMES_OF_NONE",
    "CropPixels",
    "Crops",
    "Decoded",
    "Frame",
    "PartIds",
    "PhotographFolder",
    "ReviewedScenes",
    "ValidationPart",
    "check_set",
    "decode",
    "decoded_frame",
    "distance_of",
    "drop_unlabelled",
    "find_files",
    "find_frames",
    "has_distance",
    "ids_of_names",
    "labelled_blocks",
    "make_world",
    "open_crops",
    "open_ids",
    "open_photographs",
    "screened",
    "seed_of",
    "settle_classes",
    "validation_parts",
    "without_unreadable",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CropPixels": "samples",
        "Crops": "crops",
        "Decoded": "frames",
        "Frame": "frames",
        "NAMES_OF_NONE": "class_finding",
        "PartIds": "validation_ground",
        "PhotographFolder": "outlier_photos",
        "ReviewedScenes": "reviewed_ground",
        "ValidationPart": "validation_ground",
        "check_set": "check",
        "decode": "frames",
        "decoded_frame": "validation_ground",
        "distance_of": "disparity",
        "drop_unlabelled": "discovery",
        "find_files": "files",
        "find_frames": "discovery",
        "has_distance": "disparity",
        "ids_of_names": "class_finding",
        "labelled_blocks": "validation_ground",
        "make_world": "synthetic.world",
        "open_crops": "sources",
        "open_ids": "validation_ground",
        "open_photographs": "outlier_photos",
        "screened": "frames",
        "seed_of": "samples",
        "settle_classes": "class_finding",
        "validation_parts": "validation_ground",
        "without_unreadable": "unreadable",
    },
)
