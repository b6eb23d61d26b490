"""Every published data set in miniature: trees as the official archives have them, and what they should decode to.

Paths, encodings and tables are spelled out here from the sets' own documentation, apart from geood's catalog, so that
one is a check of the other. A frame holds every raw number of its set; classes that count as anomalies stand only where
a frame says so. `MINIATURES` maps names of the catalog to functions that write a tree and return its frames by split.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from support.cpu import slow
from support.rasters import write_raster

HEIGHT, WIDTH = 96, 160
VOID = 255


class Expected(NamedTuple):
    """A frame: image (3, H, W) as bytes, class ids (H, W) or None without labels; lossy: as JPEG or WebP."""

    image: np.ndarray
    ids: np.ndarray | None
    lossy: bool = False


Tree = dict[str, dict[str, Expected]]

# What raw numbers mean: "raw class" pairs; a class "-" is void.


def table(text, raw=range(0)):
    """A dictionary of such pairs, and void for the rest of `raw`."""
    cells = text.split()
    assert len(cells) % 2 == 0
    meant = {int(n): VOID if c == "-" else int(c) for n, c in zip(cells[::2], cells[1::2], strict=True)}
    return dict.fromkeys(raw, VOID) | meant


CITYSCAPES = table(
    "7 0  8 1  11 2  12 3  13 4  17 5  19 6  20 7  21 8  22 9  23 10  24 11  25 12  26 13  27 14  28 15  31 16  32 17"
    "  33 18",
    range(34),
)
VISTAS_ROWS = """
2 1 1
3 4 4
4 4 -
5 - 3
6 3 3
7 0 0
8 0 0
9 1 1
10 0 -
11 1 0
12 0 -
13 0 0
14 0 0
15 1 1
16 2 -
18 2 -
17 2 2
19 11 11
20 12 12
21 12 12
22 12 12
23 0 0
24 0 0
26 9 -
28 9 -
27 10 10
29 9 9
30 8 8
36 - 0
41 - 0
43 - 0
45 5 5
47 5 5
46 7 5
48 6 6
50 7 7
52 18 18
54 15 15
55 13 13
57 17 17
58 16 16
61 14 14
"""  # index of version 1.2, class of the Vistas-NP lists, class of the policy of WildDash 2
VISTAS_NP, VISTAS_WILDDASH = (
    table(" ".join(f"{row.split()[0]} {row.split()[i]}" for row in VISTAS_ROWS.split("\n") if row), range(66))
    for i in (1, 2)
)
WILDDASH = (
    dict.fromkeys(range(81), VOID)
    | CITYSCAPES
    | table(
        "34 14  35 13  38 0  41 0  43 0  61 0  64 0  70 0  74 0  75 0  76 0  79 0  45 5  46 5  47 12  48 12  49 12"
        "  52 1  65 1  77 1  80 1  56 3  58 17  78 9"
    )
)
TRAIN_IDS = table(" ".join(f"{i} {i}" for i in range(19)), [VOID])
STREETHAZARDS = {raw: raw - 1 for raw in range(1, 15)}  # 14 is the anomaly, 4 is other
CAMVID = table(" ".join(f"{i} {i}" for i in range(11)), [11])
LUMS = {i: i for i in range(5)}  # 1 is the obstacle
LOST_AND_FOUND = {0: VOID, 1: 0} | dict.fromkeys(range(2, 44), 1)
BINARY = {0: 0, 1: 1, VOID: VOID}
LOVEDA = {0: VOID} | {i: i - 1 for i in range(1, 8)}
LANDCOVERAI = {i: i for i in range(5)}
OPENEARTHMAP = {0: VOID} | {i: i - 1 for i in range(1, 9)}
UAVID = {
    (0, 0, 0): 0,
    (128, 0, 0): 1,
    (128, 64, 128): 2,
    (192, 0, 192): 3,
    (0, 128, 0): 4,
    (128, 128, 0): 5,
    (64, 64, 0): 6,
    (64, 0, 128): 7,
}
ISPRS = {
    (255, 255, 255): 0,
    (0, 0, 255): 1,
    (0, 255, 255): 2,
    (0, 255, 0): 3,
    (255, 255, 0): 4,
    (255, 0, 0): VOID,
    (0, 0, 0): VOID,
}


def photo(seed):
    """A smooth picture (3, H, W) as bytes, another for each seed, that JPEG hardly changes."""
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    phase, slope = np.random.default_rng([7, seed]).random((2, 3, 1, 1))
    waves = np.sin(2 * np.pi * (phase + rows / 90 + (0.5 + slope) * cols / 120))
    return (128 + 110 * waves).astype(np.uint8)


def spread(raw, seed, side=8):
    """Raw numbers, all of them, in blocks (H, W), in another order for each seed."""
    rows, cols = HEIGHT // side, WIDTH // side
    order = np.random.default_rng([8, seed]).permutation(np.resize(np.arange(len(raw)), rows * cols))
    return np.array(list(raw))[np.kron(order.reshape(rows, cols), np.ones((side, side), int))]


def meant(raw, meaning):
    """Class ids of raw numbers (H, W), or colours (H, W, 3)."""
    cells = raw.reshape(HEIGHT * WIDTH, -1)
    found, place = np.unique(cells, axis=0, return_inverse=True)
    ids = [meaning[tuple(int(v) for v in c) if len(c) > 1 else int(c[0])] for c in found]
    return np.array(ids, np.uint8)[place].reshape(HEIGHT, WIDTH)


def write(path, array, *, palette=False):
    """An image (H, W) or (H, W, C) by the suffix of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        write_raster(path, array.transpose(2, 0, 1) if array.ndim == 3 else array)
        return
    picture = Image.fromarray(array)
    if palette:  # colours that have nothing to do with the indices
        picture = picture.copy()
        picture.putpalette([255 - i // 4 for i in range(768)])
        assert picture.mode == "P"
    options = {".jpg": {"quality": 97, "subsampling": 0}, ".webp": {"quality": 97}}
    picture.save(path, **options.get(path.suffix, {}))


class Sketch:
    """Writes the frames of a tree and remembers them, each with a picture and labels of its own."""

    def __init__(self, root, meaning, without=()):
        self.root, self.meaning, self.without, self.number = root, meaning, set(without), 0

    def frame(self, image, labels=None, *, holds=(), rgba=False, **options):
        """Write one frame; its labels hold what means anything but `without`, and `holds` of those as well."""
        self.number += 1
        picture = photo(self.number)
        colour = picture.transpose(1, 2, 0)
        if rgba:
            colour = np.dstack([colour, np.full((HEIGHT, WIDTH), 255, np.uint8)])
        write(self.root / image, colour)
        lossy = Path(image).suffix in (".jpg", ".webp")
        if labels is None:
            return Expected(picture, None, lossy)
        raw = spread([n for n in self.meaning if n not in self.without or n in holds], self.number)
        write(self.root / labels, raw.astype(np.uint8), **options)
        return Expected(picture, meant(raw, self.meaning), lossy)

    def trap(self, path, value=1):
        """A file beside the labels that is to be left alone."""
        write(self.root / path, np.full((HEIGHT, WIDTH), value, np.uint8))


def cityscapes(root):
    sketch, tree = Sketch(root, CITYSCAPES), {}
    frames = {
        "train": ("aachen_000000_000019", "aachen_000001_000019", "zurich_000000_000019"),
        "val": ("frankfurt_000000_000294", "lindau_000000_000019"),
    }
    for split, names in frames.items():
        tree[split] = {}
        for name in names:
            city = name.split("_")[0]
            images, labels = f"leftImg8bit/{split}/{city}/{name}", f"gtFine/{split}/{city}/{name}"
            tree[split][name] = sketch.frame(f"{images}_leftImg8bit.png", f"{labels}_gtFine_labelIds.png")
            for kind in ("color", "instanceIds", "labelTrainIds"):
                sketch.trap(f"{labels}_gtFine_{kind}.png")
    sketch.frame("leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    return tree


def vistas(meaning):
    def write_tree(root):
        sketch = Sketch(root, meaning)
        (root / "config_v1.2.json").write_text("{}")
        tree = {}
        for split, folder, names in (
            ("train", "training", ("_-p4yoSUJOSyCa", "0035fkbjWljhaf", "00CYyMQHWD")),
            ("val", "validation", ("0abc_-", "1DEF")),
        ):
            tree[split] = {}
            for name in names:
                labels = f"{folder}/v1.2/labels/{name}.png"
                tree[split][name] = sketch.frame(f"{folder}/images/{name}.jpg", labels, palette=True)
                sketch.trap(f"{folder}/v1.2/instances/{name}.png")
                sketch.trap(f"{folder}/v2.0/labels/{name}.png")
        sketch.frame("testing/images/xyz.jpg")
        return tree

    return write_tree


def wilddash2(root):
    sketch, frames, annotations = Sketch(root, WILDDASH), {}, []
    for name in ("aa0000", "ab0001", "ac0002", "aa0011"):
        image = sketch.frame(f"images/{name}.jpg").image
        raw = spread(WILDDASH, sketch.number)
        numbers = (raw + 1) * 70_003 % 2**24  # segment ids that need all three bytes
        numbers[:8, :8] = 0  # of no segment
        write(root / f"panoptic/{name}.png", np.dstack([numbers >> s & 255 for s in (0, 8, 16)]).astype(np.uint8))
        segments = [{"id": int((c + 1) * 70_003 % 2**24), "category_id": c, "area": 64} for c in WILDDASH]
        annotations.append({"file_name": f"{name}.png", "image_id": name, "segments_info": segments})
        ids = meant(raw, WILDDASH)
        ids[:8, :8] = VOID
        frames[name] = Expected(image, ids, lossy=True)
    (root / "panoptic.json").write_text(json.dumps({"images": [], "annotations": annotations, "categories": []}))
    held = {"aa0011": frames.pop("aa0011")}  # by the hash of its name
    return {"train": frames, "val": held}


def bdd100k(root):
    sketch, tree = Sketch(root, TRAIN_IDS), {}
    for split, names in (
        ("train", ("0004a4c0-d4dff0ad", "00054602-3bf57337", "00067cfb-e535423e")),
        ("val", ("7d06fefd", "7d128593")),
    ):
        tree[split] = {
            n: sketch.frame(f"images/10k/{split}/{n}.jpg", f"labels/sem_seg/masks/{split}/{n}.png") for n in names
        }
        for name in names:
            sketch.trap(f"labels/sem_seg/colormaps/{split}/{name}.png")
    sketch.frame("images/10k/test/ac517380.jpg")
    return tree


def bdd_anomaly(anomalies):
    """Images of BDD100K beside the labels that come with the code of CAOS; `anomalies` are those of the variant."""

    def write_tree(root):
        sketch = Sketch(root, TRAIN_IDS, without=(16, 17, 18))
        frames: Tree = {"train": {}, "val": {}, "test": {}}
        for part, name, holds in (
            ("train", "0000f77c-6257be58", ()),
            ("train", "0000f77c-62c2a288", (16, 17, 18)),
            ("train", "0001542f-ec815219", ()),
            ("train", "00067cfb-caba8a02", (18,)),
            ("val", "7d06fefd-f7be05a6", (17,)),
            ("val", "7d128593-0ccfea4c", ()),
        ):
            labels = f"seg/labels/{part}/{name}_train_id.png"
            frame = sketch.frame(f"images/10k/{part}/{name}.jpg", labels, holds=holds)
            sketch.trap(f"seg/train_labels/{part}/{name}_train_id.png")
            sketch.trap(f"seg/color_labels/{part}/{name}_train_color.png")
            frames["test" if anomalies.intersection(holds) else part][name] = frame
        sketch.frame("images/10k/test/cabc30fc-e7726578.jpg")
        return frames

    return write_tree


def streethazards(meaning):
    def write_tree(root):
        sketch, tree = Sketch(root, meaning, without=(14,)), {}
        for split, archive, part, names in (
            ("train", "train", "training", ("t1/300", "t1/301", "t2/300", "t3/7")),
            ("val", "train", "validation", ("t4/12", "t4/13")),
            ("test", "test", "test", ("t5/300", "t6/300")),
        ):
            tree[split] = {
                name: sketch.frame(
                    f"{archive}/images/{part}/{name}.png",
                    f"{archive}/annotations/{part}/{name}.png",
                    holds=(14,) if split == "test" else (),
                    rgba=sketch.number % 2 == 0,
                )
                for name in names
            }
            (root / archive / f"{part}.odgt").write_text("[]")
        return tree

    return write_tree


def camvid(root):
    sketch, tree = Sketch(root, CAMVID), {}
    for split, names in (
        ("train", ("0001TP_006690", "0001TP_006720", "0016E5_00390")),
        ("val", ("0016E5_07959", "0016E5_07961")),
        ("test", ("0001TP_008550", "0001TP_008580")),
    ):
        tree[split] = {n: sketch.frame(f"{split}/{n}.png", f"{split}annot/{n}.png") for n in names}
        lines = [f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png\n" for n in names]
        (root / f"{split}.txt").write_text("".join(lines))
    return tree


def camvid_ood(root):
    camvid(root)
    sketch = Sketch(root, CAMVID | {12: 12})
    sketch.number = 50
    names = ("0001TP_008550", "0001TP_008580")
    return {"test": {n: sketch.frame(f"test_ood/{n}.png", f"testannot_ood/{n}.png") for n in names}}


def lums(root):
    sketch, tree = Sketch(root, LUMS, without=(1,)), {"train": {}, "test": {}}
    for i in range(6):
        name = f"color_{i}_png.rf.7417ca547f8454e4e8e5ef53e360d90{i}"
        frame = sketch.frame(f"images/{name}.jpg", f"labels/{name}.png", holds=(1,) if i % 2 else ())
        tree["test" if i % 2 else "train"][name] = frame
    return tree


def _lost_and_found(root, frames):
    """Frames by part, their names as published; the parts of the tree."""
    sketch, tree = Sketch(root, LOST_AND_FOUND), {}
    for part, names in frames.items():
        tree[part] = {}
        for name in names:
            scene = name.rsplit("_", 2)[0]
            labels = f"gtCoarse/{part}/{scene}/{name}_gtCoarse"
            image = f"leftImg8bit/{part}/{scene}/{name}_leftImg8bit.png"
            tree[part][name] = sketch.frame(image, f"{labels}_labelIds.png")
            for kind in ("labelTrainIds", "instanceIds", "color"):
                sketch.trap(f"{labels}_{kind}.png")
    return tree


LOST_FRAMES = {
    "train": (
        "04_Maurener_Weg_8_000000_000030",
        "04_Maurener_Weg_8_000004_000180",
        "13_Elly_Beinhorn_Str_000001_000210",
    ),
    "test": (
        "01_Hanns_Klemm_Str_45_000005_000110",
        "01_Hanns_Klemm_Str_45_000006_000030",
        "02_Hanns_Klemm_Str_44_000000_000200",
        "10_Schlossberg_9_000003_000100",
        "10_Schlossberg_9_000004_000060",
        "15_Rechbergstr_Deckenpfronn_000001_000020",
    ),
}


def lost_and_found(root):
    tree = _lost_and_found(root, LOST_FRAMES)
    return {"trainval": tree["train"], "test": tree["test"]}


def lost_and_found_noknown(root):
    tree = _lost_and_found(root, LOST_FRAMES)["test"]
    return {"test": {name: tree[name] for name in (LOST_FRAMES["test"][i] for i in (0, 2, 3))}}


def _smiyc(root, suffix, frames):
    """Frames of a track, with labels or without; all of them."""
    sketch, found = Sketch(root, BINARY), {}
    for name, labelled in frames:
        labels = f"labels_masks/{name}_labels_semantic"
        found[name] = sketch.frame(f"images/{name}.{suffix}", f"{labels}.png" if labelled else None)
        if labelled:
            sketch.trap(f"{labels}_color.png")
    return found


def smiyc_anomaly(root):
    every = _smiyc(
        root, "jpg", [("airplane0000", False), ("bear0001", False), ("validation0000", True), ("validation0009", True)]
    )
    return {"all": every, "val": {name: every[name] for name in ("validation0000", "validation0009")}}


def smiyc_obstacle(root):
    names = ("curvy-street_1", "darkasphalt2_dog_1", "snowstorm1_00_00_1", "driveway_12")
    held = ("validation_1", "validation_2", "validation_20", "validation_19", "validation_21", "validation_29")
    every = _smiyc(root, "webp", [(n, False) for n in names] + [(n, True) for n in held])
    return {"all": every, "val": {name: every[name] for name in held[:3]}}


def fishyscapes_laf(root):
    tree = _lost_and_found(root, LOST_FRAMES)
    chosen = (LOST_FRAMES["train"][1], LOST_FRAMES["test"][0], LOST_FRAMES["test"][5])
    frames = {}
    for i, name in enumerate(chosen):
        raw = spread(BINARY, 100 + i)
        write(root / f"fishyscapes_lostandfound/{i:04d}_{name}_labels.png", raw.astype(np.uint8))
        image = (tree["train"] | tree["test"])[name].image
        frames[name] = Expected(image, meant(raw, BINARY))
    return {"val": frames}


def fishyscapes_static(version):
    def write_tree(root):
        base, frames = cityscapes(root)["val"], {}
        for i, (city_name, frame) in enumerate(base.items()):
            wanted = photo(200 + i).astype(np.int16)
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[20:50, 30:90], labels[50:60] = 1, VOID
            pasted = labels == 1
            if version == 3:
                pasted = pasted.copy()
                pasted[70:90, 100:150] = True  # objects of Cityscapes, which are no anomalies
            added = np.where(pasted, wanted - frame.image, 0).astype(np.int16)
            added[:, 22:26, 32:40] += 300  # beyond the range of bytes, as blending leaves it
            added[:, 30:34, 32:40] -= 300
            name = f"{i:04d}_{city_name}"
            write(root / f"fs_val_v{version}/{name}_labels.png", labels)
            np.savez_compressed(root / f"fs_val_v{version}/{name}_rgb.npz", rgb=added.transpose(1, 2, 0))
            image = np.clip(frame.image + added.astype(int), 0, 255).astype(np.uint8)
            frames[name] = Expected(image, labels)
        return {"val": frames}

    return write_tree


def road_anomaly(root):
    sketch, frames = Sketch(root, {0: 0, 2: 1}), {}
    for name in ("animals01_Guiana_Shield", "tires30_tyre_fire"):
        folder = "RoadAnomaly_jpg/frames"
        frames[name] = sketch.frame(f"{folder}/{name}.jpg", f"{folder}/{name}.labels/labels_semantic.png")
        sketch.trap(f"{folder}/{name}.labels/labels_semantic_color.png")
    (root / "RoadAnomaly_jpg/frame_list.json").write_text(json.dumps([f"{n}.jpg" for n in frames]))
    return {"test": frames}


def wd_pascal(root):
    sketch = Sketch(root, BINARY)
    frames = {n: sketch.frame(f"images/{n}.png", f"labels/{n}.png") for n in ("wd_cow_01", "wd_sheep_02")}
    sketch.frame("images/wd_not_listed.png", "labels/wd_not_listed.png")
    (root / "manifest.csv").write_text("".join(f"{n},120,44,0.5\n" for n in frames))
    return {"test": frames}


def coloured(sketch, image, labels):
    """A frame whose labels are colours."""
    picture = sketch.frame(image).image
    raw = np.array(list(sketch.meaning))[spread(range(len(sketch.meaning)), sketch.number)]
    write(sketch.root / labels, raw.astype(np.uint8))
    return Expected(picture, meant(raw, sketch.meaning))


def uavid(root):
    sketch, tree = Sketch(root, UAVID), {}
    for split, folder, names in (
        ("train", "train", ("seq1/000000", "seq1/000100", "seq2/000000")),
        ("val", "valid", ("seq16/000000", "seq17/000000")),
    ):
        tree[split] = {}
        for name in names:
            sequence, number = name.split("/")
            image, labels = (f"{folder}/{sequence}/{kind}/{number}.png" for kind in ("Images", "Labels"))
            tree[split][name] = coloured(sketch, image, labels)
    sketch.frame("test/seq21/Images/000000.png")
    return tree


def potsdam(root):
    sketch, tree = Sketch(root, ISPRS), {}
    bare = [colour for colour in ISPRS if colour != (0, 0, 0)]
    for split, tiles in (("train", ("2_10", "6_7", "7_12")), ("test", ("2_13", "7_13"))):
        tree[split] = {}
        for tile in tiles:
            whole = np.array(bare, np.uint8)[spread(range(len(bare)), 300)]  # another picture without borders
            write(root / f"5_Labels_all/top_potsdam_{tile}_label.tif", whole)
            image = f"2_Ortho_RGB/top_potsdam_{tile}_RGB.tif"
            labels = f"5_Labels_all_noBoundary/top_potsdam_{tile}_label_noBoundary.tif"
            tree[split][tile] = coloured(sketch, image, labels)
    return tree


def vaihingen(root):
    sketch, tree = Sketch(root, ISPRS), {}
    archive = "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE"
    for split, areas in (("train", (1, 3, 37)), ("test", (2, 38))):
        tree[split] = {}
        for area in areas:
            image, labels = (
                f"top/top_mosaic_09cm_area{area}.tif",
                f"{archive}/top_mosaic_09cm_area{area}_noBoundary.tif",
            )
            tree[split][str(area)] = coloured(sketch, image, labels)
    return tree


def loveda(root):
    sketch, tree = Sketch(root, LOVEDA), {}
    for split, folder, names in (
        ("train", "Train", ("Urban/1366", "Rural/0", "Rural/1")),
        ("val", "Val", ("Urban/3514", "Rural/2522")),
    ):
        tree[split] = {}
        for name in names:
            scene, number = name.split("/")
            image, labels = (f"{folder}/{scene}/{kind}_png/{number}.png" for kind in ("images", "masks"))
            tree[split][number] = sketch.frame(image, labels)
    sketch.frame("Test/Urban/images_png/4191.png")
    return tree


def landcoverai(root):
    sketch, tree = Sketch(root, LANDCOVERAI), {}
    for split, names in (
        ("train", ("M-33-20-D-c-4-2_0", "M-33-20-D-c-4-2_1", "N-34-97-D-c-2-4_7")),
        ("val", ("M-33-20-D-c-4-2_2",)),
        ("test", ("M-33-20-D-c-4-2_10", "N-34-97-D-c-2-4_8")),
    ):
        tree[split] = {n: sketch.frame(f"output/{n}.jpg", f"output/{n}_m.png") for n in names}
        (root / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
    return tree


def openearthmap(root):
    sketch, tree = Sketch(root, OPENEARTHMAP), {}
    for split, names in (("train", ("aachen_1", "aachen_3", "kyoto_12")), ("val", ("aachen_2", "dowa_1"))):
        tree[split] = {}
        for name in names:
            region = name.split("_")[0]
            tree[split][name] = sketch.frame(f"{region}/images/{name}.tif", f"{region}/labels/{name}.tif")
        (root / f"{split}.txt").write_text("".join(f"{n}.tif\n" for n in names))
    sketch.frame("kyoto/images/kyoto_99.tif")
    (root / "test.txt").write_text("kyoto_99.tif\n")
    return tree


MINIATURES: dict[str, Callable[[Path], Tree]] = {
    "cityscapes": cityscapes,
    "vistas": vistas(VISTAS_NP),
    "vistas-wilddash": vistas(VISTAS_WILDDASH),
    "wilddash2": wilddash2,
    "bdd100k": bdd100k,
    "bdd-anomaly": bdd_anomaly({16, 17, 18}),
    "bdd-anomaly-361": bdd_anomaly({16, 17}),
    "streethazards": streethazards(STREETHAZARDS),
    "streethazards-densehybrid": streethazards(STREETHAZARDS | {4: VOID}),
    "camvid": camvid,
    "camvid-ood": camvid_ood,
    "lums": lums,
    "lost-and-found": lost_and_found,
    "smiyc-lost-and-found": lost_and_found_noknown,
    "smiyc-anomaly": smiyc_anomaly,
    "smiyc-obstacle": smiyc_obstacle,
    "fishyscapes-laf": fishyscapes_laf,
    "fishyscapes-static-v1": fishyscapes_static(1),
    "fishyscapes-static-v2": fishyscapes_static(2),
    "fishyscapes-static-v3": fishyscapes_static(3),
    "road-anomaly": road_anomaly,
    "wd-pascal": wd_pascal,
    "uavid": uavid,
    "potsdam": potsdam,
    "vaihingen": vaihingen,
    "loveda": loveda,
    "landcoverai": landcoverai,
    "openearthmap": openearthmap,
}

SOME = ("wilddash2", "bdd-anomaly", "streethazards-densehybrid", "camvid-ood", "smiyc-anomaly", "uavid", "loveda")


def each_set():
    """Return all sets as values of a parameter: one of each encoding and kind of held-out class, the others if slow."""
    return [*SOME, *slow(*(name for name in MINIATURES if name not in SOME))]
