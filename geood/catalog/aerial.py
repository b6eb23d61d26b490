"""Catalog entries of aerial data sets; none has an official anomaly split, so classes are held out by name."""

from __future__ import annotations

from geood.catalog import taxonomies as t
from geood.catalog.entry import DataSet, PathLayout, Split
from geood.constants import IGNORE

POTSDAM_TRAIN = (
    "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12"
)
VAIHINGEN_TRAIN = "1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37"
ISPRS_NOTE = "Clutter and the eroded borders are void. Hold out one class, for example data.hold_out [car]."

uavid = DataSet(
    name="uavid",
    title="UAVid, oblique street scenes from a drone",
    source="https://uavid.nl",
    licence="CC BY-NC-SA 4.0; registration",
    taxonomy=t.UAVID,
    layouts=tuple(
        PathLayout(
            f"{prefix}{{split}}/{{seq}}/Images/{{id}}.png",
            f"{prefix}{{split}}/{{seq}}/Labels/{{id}}.png",
            name="{seq}/{id}",
        )
        for prefix in ("", "uavid_")
    ),
    splits=(
        Split("train", {"split": "train"}, 200),
        Split("val", {"split": "v{any}"}, 70),
    ),
    ids=t.same(t.UAVID),
    colours=t.UAVID_COLOURS,
    encoding="colours",
    note="The labels of the test split are withheld. Hold out, for example, [human] or [moving car].",
)
potsdam = DataSet(
    name="potsdam",
    title="ISPRS Potsdam, orthophotos at 5 cm",
    source="https://www.isprs.org/education/benchmarks/UrbanSemLab",
    licence="research use; request form",
    taxonomy=t.ISPRS,
    layouts=tuple(
        PathLayout(f"{ortho}/top_potsdam_{{id}}_{bands}.tif", labels)
        for ortho, bands in (("2_Ortho_RGB", "RGB"), ("4_Ortho_RGBIR", "RGBIR"), ("3_Ortho_IRRG", "IRRG"))
        for labels in (
            "5_Labels_all_noBoundary/top_potsdam_{id}_label_noBoundary.tif",
            "top_potsdam_{id}_label_noBoundary.tif",
            "5_Labels_all/top_potsdam_{id}_label.tif",
            "top_potsdam_{id}_label.tif",
        )
    ),
    splits=(
        Split("train", {}, 24, ids="|".join(POTSDAM_TRAIN.split())),
        Split("test", {}, 14, ids=f"(?!(?:{'|'.join(POTSDAM_TRAIN.split())})$).*"),
    ),
    ids=t.same(t.ISPRS),
    colours=t.ISPRS_COLOURS,
    encoding="colours",
    size=(6000, 6000),
    resolution_m=0.05,
    note=ISPRS_NOTE,
)
vaihingen = DataSet(
    name="vaihingen",
    title="ISPRS Vaihingen, orthophotos at 9 cm (near infrared, red, green)",
    source="https://www.isprs.org/education/benchmarks/UrbanSemLab",
    licence="research use; request form",
    taxonomy=t.ISPRS,
    layouts=tuple(
        PathLayout("top/top_mosaic_09cm_area{id}.tif", labels)
        for labels in (
            "{gt}/top_mosaic_09cm_area{id}_noBoundary.tif",
            "top_mosaic_09cm_area{id}_noBoundary.tif",
            "{gt}/top_mosaic_09cm_area{id}.tif",
            "top_mosaic_09cm_area{id}.tif",
        )
    ),
    splits=(
        Split("train", {}, 16, ids="|".join(VAIHINGEN_TRAIN.split())),
        Split("test", {}, 17, ids=f"(?!(?:{'|'.join(VAIHINGEN_TRAIN.split())})$).*"),
    ),
    ids=t.same(t.ISPRS),
    colours=t.ISPRS_COLOURS,
    encoding="colours",
    resolution_m=0.09,
    note=ISPRS_NOTE,
)
loveda = DataSet(
    name="loveda",
    title="LoveDA, urban and rural scenes at 30 cm",
    source="https://zenodo.org/records/5706578",
    licence="CC BY-NC-SA 4.0 and the terms of Google Earth: academic use only",
    taxonomy=t.LOVEDA,
    layouts=(PathLayout("{split}/{scene}/images_png/{id}.png", "{split}/{scene}/masks_png/{id}.png"),),
    splits=(Split("train", {"split": "Train"}, 2522), Split("val", {"split": "Val"}, 1669)),
    ids={0: IGNORE, IGNORE: IGNORE} | {i + 1: i for i in t.LOVEDA.classes},
    size=(1024, 1024),
    resolution_m=0.3,
    note="Id 0 means no data. The labels of the test split are withheld.",
)
landcoverai = DataSet(
    name="landcoverai",
    title="LandCover.ai 1, orthophotos of Poland at 25 and 50 cm",
    source="https://landcover.ai",
    licence="CC BY-NC-SA 4.0",
    taxonomy=t.LANDCOVERAI,
    layouts=(PathLayout("output/{id}.jpg", "output/{id}_m.png"),),
    splits=(
        Split("train", {}, 7470, listed="train.txt"),
        Split("val", {}, 1602, listed="val.txt"),
        Split("test", {}, 1602, listed="test.txt"),
    ),
    ids=t.same(t.LANDCOVERAI),
    size=(512, 512),
    note="The chips and lists that the set's own script makes. The orthophotos are georeferenced: train on them as "
    "scenes (images: [images], labels: [masks]).",
)
openearthmap = DataSet(
    name="openearthmap",
    title="OpenEarthMap, 97 regions at 25 to 50 cm",
    source="https://open-earth-map.org",
    licence="differs by source; CC BY-NC-SA 4.0 where unspecified",
    taxonomy=t.OPENEARTHMAP,
    layouts=(PathLayout("{region}/images/{id}.tif", "{region}/labels/{id}.tif"),),
    splits=(Split("train", {}, listed="train.txt"), Split("val", {}, listed="val.txt")),
    ids={0: IGNORE, IGNORE: IGNORE} | {i + 1: i for i in t.OPENEARTHMAP.classes},
    note="Id 0 means unknown. Images from xBD are not in the archive and are reported as missing by name.",
)
AERIAL = (uavid, potsdam, vaihingen, loveda, landcoverai, openearthmap)
