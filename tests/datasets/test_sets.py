"""Laws of training on published data sets by name: right pixels, own validation, clean crops, shares by weight."""

import logging
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

import geood.datasets.photo_crops as room
from geood.catalog import CATALOG, data_set
from geood.config.sections import Config
from geood.datasets import open_crops
from geood.datasets.frames import decode
from geood.errors import ConfigError, DataError
from geood.evaluation.catalog_sets import evaluate_set
from support.bundles import make_bundle, small_config
from support.miniatures import CAMVID, HEIGHT, WIDTH, Sketch, each_set

TRAINED = [name for name, entry in CATALOG.items() if entry.trains]
CAR = 8


def config(root, *sets, **keys):
    """A small config of data sets: names, or names with what else stands under `data.sets`."""
    data = {"root": str(root), "sets": [{"name": s} if isinstance(s, str) else s for s in sets], "crop_px": 64}
    data |= {"crops": 12, "quarter_turns": False, "flips": "none", "scale_min": 1.0, "scale_max": 1.0} | keys
    bands = {"low_percentile": 0.0, "high_percentile": 100.0}
    return Config.model_validate(small_config().model_dump() | {"data": data, "bands": bands})


def names(gallery, *, validation):
    return [frame.name for i, frame in enumerate(gallery.frames) if (i in gallery.validation) == validation]


def padded(array, box, fill):
    part = array[..., box.row : box.row + box.side, box.col : box.col + box.side]
    beside = [(0, 0)] * (array.ndim - 2) + [(0, box.side - n) for n in part.shape[-2:]]
    return np.pad(part, beside, constant_values=fill)


@pytest.mark.parametrize("name", TRAINED)
def test_a_set_opens_by_its_name_and_masks_lie_on_their_images(name, miniature):
    root, tree = miniature(name)
    crops, entry = open_crops(config(root, name)), data_set(name)
    gallery = crops.ground
    own = "val" in tree
    if own:
        assert names(gallery, validation=False) == sorted(tree["train"])
        assert names(gallery, validation=True) == sorted(tree["val"])
    else:
        assert sorted(frame.name for frame in gallery.frames) == sorted(tree["train"])
        assert 0 < len(gallery.validation) < len(tree["train"])
    assert len(crops.training_boxes) == 12 and crops.validation_boxes
    assert crops.resolution_m == entry.resolution_m
    held = {entry.taxonomy.id_of(n) for n in entry.held_out} | entry.taxonomy.anomalies
    assert set(crops.class_ids) == set(entry.taxonomy.classes) - held
    for validation, boxes in ((False, crops.training_boxes), (True, crops.validation_boxes)):
        for box in boxes:
            frame = gallery.frames[box.frame]
            want = tree["val" if validation and own else "train"][frame.name]
            got = gallery.read(box, validation=validation)
            assert np.array_equal(got.ids, padded(want.ids, box, 255)) and got.valid.all()
            assert np.abs(got.image - padded(want.image, box, 0)).mean() < (2 if want.lossy else 1e-6)
            assert validation or not held & set(np.unique(got.ids).tolist())
    sample = crops.training(0, 1)[0]
    assert sample["image"].shape == (3, 64, 64) and sample["mask"].shape == (64, 64)
    assert not gallery.unknown and not crops.report.unknown_ids


@pytest.mark.parametrize("name", [name for name in CATALOG if name not in TRAINED])
def test_a_set_for_evaluation_alone_is_refused(name, tmp_path):
    with pytest.raises(ValidationError, match=f"{name} has nothing to train on; it is for evaluation"):
        config(tmp_path, name)


@pytest.mark.parametrize("name", ["potsdam", "openearthmap"])
def test_geotiffs_are_read_by_windows_and_give_the_same_pixels(name, miniature, monkeypatch):
    root, _ = miniature(name)
    crops = open_crops(config(root, name, crop_px=128, min_valid=0.1))  # crops that overhang the lower border
    windows = []

    def spied(frame, window=None, **options):
        windows.append(window)
        return decode(frame, window, **options)

    monkeypatch.setattr(room, "decode", spied)
    for box in crops.training_boxes:
        whole, part = (
            decode(crops.ground.frames[box.frame], indexes=(1, 2, 3)),
            crops.ground.read(box, validation=False),
        )
        assert np.array_equal(part.image, padded(whole.image, box, 0)) and part.image.dtype == np.float32
        assert np.array_equal(part.ids, padded(whole.ids, box, 255))
        assert np.array_equal(part.valid, padded(whole.valid, box, False)) and not part.valid[HEIGHT:].any()
    assert windows and None not in windows


@pytest.fixture(scope="module")
def cars(tmp_path_factory):
    """CamVid with a car in the left sixteen columns of every other frame."""
    root = tmp_path_factory.mktemp("cars")
    sketch = Sketch(root, CAMVID, without=(CAR,))
    for split, count in (("train", 6), ("val", 4)):
        for i in range(count):
            labels = f"{split}annot/f{i}.png"
            sketch.frame(f"{split}/f{i}.png", labels)
            if i % 2:
                ids = np.array(Image.open(root / labels))
                ids[:, :16] = CAR
                Image.fromarray(ids).save(root / labels)
    return root


def test_a_class_is_held_out_by_crop(cars):
    crops = open_crops(config(cars, "camvid", crops=60, hold_out=["car"]))
    assert CAR not in crops.class_ids and crops.config.data.anomaly == [CAR]
    assert names(crops.ground, validation=False) == [f"f{i}" for i in range(6)]
    assert crops.report.dropped_anomaly > 0
    odd = [box for box in crops.training_boxes if box.frame % 2]
    assert odd and all(box.col >= 16 for box in odd)
    for box in crops.training_boxes:
        assert CAR not in crops.ground.read(box, validation=False).ids


def test_a_class_is_held_out_by_image(cars):
    crops = open_crops(config(cars, "camvid", hold_out=["car"], hold_out_by="image"))
    assert names(crops.ground, validation=False) == ["f0", "f2", "f4"]
    assert names(crops.ground, validation=True) == ["f0", "f2"]
    assert not crops.report.dropped_anomaly
    every = open_crops(config(cars, "camvid", hold_out_by="image"))  # nothing is held out
    assert len(every.ground.frames) == 10 and CAR in every.class_ids
    with pytest.raises(DataError, match="no frame holds no anomaly"):
        open_crops(config(cars, "camvid", hold_out=["road"], hold_out_by="image"))


def test_sets_are_mixed_in_the_proportion_of_their_weights(miniature, tmp_path):
    for name in ("cityscapes", "vistas"):
        shutil.copytree(miniature(name)[0], tmp_path / name)
    sets = [{"name": "cityscapes", "folder": "cityscapes", "weight": 3.0}, {"name": "vistas", "folder": "vistas"}]
    crops = open_crops(config(tmp_path, *sets, crops=400))
    drawn = Counter(crops.ground.frames[box.frame].data_set.name for box in crops.training_boxes)
    assert sum(drawn.values()) == 400 and abs(drawn["cityscapes"] - 300) < 4 * np.sqrt(400 * 0.75 * 0.25)
    both = [*miniature("cityscapes")[1]["val"], *miniature("vistas")[1]["val"]]
    assert sorted(names(crops.ground, validation=True)) == sorted(both)
    own = Counter(box.frame for box in crops.training_boxes if box.frame < 3)
    assert all(abs(own[i] - 100) < 4 * np.sqrt(300 / 3 * 2 / 3) for i in range(3))


def test_shares_do_not_depend_on_the_number_and_size_of_the_images():
    sizes = [(100, 100)] * 2 + [(1000, 2000)] * 30 + [(70, 65)]
    shares = [room.SetShare(0, 1.0)] * 2 + [room.SetShare(1, 2.0)] * 30 + [room.SetShare(2, 1.0)]
    frames = [i for i in range(33) if i != 5]  # one is kept for validation
    drawn = room._drawn_crops(frames, sizes, 64, shares=shares, number=4000, seed=1)
    count = Counter(shares[crop.frame].data_set for crop in drawn)
    for number, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert abs(count[number] - 4000 * share) < 4 * np.sqrt(4000 * share * (1 - share))
    for crop in drawn:
        height, width = sizes[crop.frame]
        assert 0 <= crop.row <= height - 64 and 0 <= crop.col <= width - 64 and crop.frame != 5


def test_another_split_may_be_trained_on(miniature):
    root, tree = miniature("camvid")
    crops = open_crops(config(root, {"name": "camvid", "split": "test"}))
    assert names(crops.ground, validation=False) == sorted(tree["test"])
    assert names(crops.ground, validation=True) == sorted(tree["val"])
    crops = open_crops(config(root, {"name": "camvid", "split": "val"}))  # of which runs are then drawn
    assert sorted(frame.name for frame in crops.ground.frames) == sorted(tree["val"])
    assert len(crops.ground.validation) == 1


def test_what_is_missing_or_unknown_is_said(miniature, tmp_path, caplog):
    root = shutil.copytree(miniature("camvid")[0], tmp_path / "camvid")
    labels = sorted((root / "trainannot").iterdir())
    Image.fromarray(np.where(np.arange(WIDTH) < 99, 77, np.zeros((HEIGHT, 1))).astype(np.uint8)).save(labels[0])
    labels[1].unlink()
    with caplog.at_level(logging.WARNING, "geood"):
        crops = open_crops(config(tmp_path, {"name": "camvid", "folder": "camvid"}))
    assert "1 of 3 images of camvid have no labels and are not used" in caplog.text
    assert "label files hold 1 undefined number, 77 (" in caplog.text
    assert len(names(crops.ground, validation=False)) == 2
    for path in labels[2:] + labels[:1]:
        path.unlink()
    with pytest.raises(DataError, match=r"no image of camvid, split train, has labels; look for \{split\}annot"):
        open_crops(config(root, "camvid"))
    with pytest.raises(DataError, match=r"but .*camvid does; give that folder"):
        open_crops(config(tmp_path, "camvid"))
    root = shutil.copytree(miniature("wilddash2")[0], tmp_path / "wilddash2")
    (root / "panoptic.json").unlink()
    with pytest.raises(DataError, match=r"look for panoptic/\{id\}\.png and panoptic\.json"):
        open_crops(config(root, "wilddash2"))


@pytest.mark.parametrize("name", each_set())
def test_a_set_is_evaluated_on_its_last_split(tmp_path, name, miniature):
    root, tree = miniature(name)
    entry = data_set(name)
    held = {entry.taxonomy.id_of(n) for n in entry.held_out} | entry.taxonomy.anomalies
    known = {i: n for i, n in entry.taxonomy.classes.items() if i not in held}
    classes = {0: "land", 1: "water"} if entry.taxonomy.name == "anomaly" else known
    bundle = make_bundle(tmp_path / "m.safetensors", data={"classes": classes, "anomaly": []})
    result = evaluate_set(entry, root, bundle=bundle)
    frames = [frame for frame in tree[entry.evaluated.name].values() if frame.ids is not None]
    masks = np.concatenate([frame.ids.ravel() for frame in frames])
    assert result.pixels == np.isin(masks, list(held | set(known))).sum() > 0
    assert result.anomaly_pixels == np.isin(masks, list(held)).sum()
    assert len(result.rows) == len(bundle.scores) and len(result.images) == len(frames)
    assert np.isfinite(result.rows[0]["average_precision"]) == (result.anomaly_pixels > 0)
    assert np.isfinite(result.miou) == (entry.taxonomy.name != "anomaly")
    assert result.table()


def test_an_image_is_never_on_both_sides_nor_twice_on_one(miniature):
    root, _ = miniature("camvid")
    with pytest.raises(ConfigError, match="trains on it, and one validates"):
        open_crops(config(root, "camvid", {"name": "camvid", "split": "val"}))
    with pytest.raises(ConfigError, match=r"two of data\.sets train on it"):
        open_crops(config(root, "camvid", "camvid"))
    roads, _ = miniature("vistas")
    with pytest.raises(ConfigError, match=r"training/images/.*\.jpg: two of data\.sets train on it"):
        open_crops(config(roads, "vistas", "vistas-wilddash"))
    with pytest.raises(ConfigError, match=r"validation/images/.*\.jpg: one of data\.sets trains on it"):
        open_crops(config(roads, "vistas", {"name": "vistas-wilddash", "split": "val"}))


def test_two_splits_of_one_set_share_its_validation(miniature):
    root, tree = miniature("camvid")
    crops = open_crops(config(root, "camvid", {"name": "camvid", "split": "test"}))
    assert names(crops.ground, validation=False) == sorted(tree["train"]) + sorted(tree["test"])
    assert names(crops.ground, validation=True) == sorted(tree["val"])


def test_small_images_are_drawn_as_their_area_says():
    sizes = [(60, 80), (90, 120), (300, 400)]
    drawn = room._drawn_crops([0, 1, 2], sizes, 80, shares=[room.SetShare(0, 1.0)] * 3, number=20_000, seed=0)
    counts, areas = Counter(crop.frame for crop in drawn), np.array([4_800, 10_800, 120_000])
    assert np.allclose([counts[i] / 20_000 for i in range(3)], areas / areas.sum(), atol=0.01)
    for crop in drawn:
        height, width = sizes[crop.frame]
        assert 0 <= crop.row <= max(0, height - 80) and 0 <= crop.col <= max(0, width - 80)
