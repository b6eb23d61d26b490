"""Laws of training photographs: whole images on one side, clean crops, masks that lie on their images."""

import csv
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from geood.datasets import open_crops
from geood.datasets.photo_crops import Gallery
from geood.errors import ConfigError, DataError
from support.bundles import small_config
from support.rasters import picture

HEIGHT, WIDTH = 90, 120


def truth(image):
    """Class ids 0 to 2, a function of the image alone."""
    return (image[0] % 3).astype("uint8")


def make_photos(folder, count=12, *, odd=()):
    """Write photographs and their labels; those numbered in `odd` hold an anomaly in their left third."""
    for i in range(count):
        image = picture(HEIGHT, WIDTH, seed=i)
        ids = truth(image)
        if i in odd:
            ids[:, : WIDTH // 3] = 7
        for kind, array in (("images", image.transpose(1, 2, 0)), ("labels", ids)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"frame_{i:03d}.png")
    return folder


def config(folder, *, train=None, **keys):
    data = {"kind": "photos", "root": str(folder), "images": ["images"], "labels": ["labels"], "crop_px": 64}
    data |= {"crops": 40, "quarter_turns": False, "flips": "sideways", "scale_min": 1.0, "scale_max": 1.0}
    data |= {"brightness": 0.0, "contrast": 0.0, "validation": 0.2} | keys
    return small_config(data=data, bands={"low_percentile": 0.0, "high_percentile": 100.0}, train=train or {})


def digital(crops, image):
    low, high = (np.array(v)[:, None, None] for v in (crops.bands.low, crops.bands.high))
    return np.rint(image.numpy() * (high - low) + low)


def test_masks_lie_on_their_images(tmp_path):
    crops = open_crops(config(make_photos(tmp_path)))
    training, validation = crops.training(0, 12), crops.validation()
    for sample in [training[i] for i in range(12)] + [validation[i] for i in range(len(validation))]:
        assert sample["image"].shape == (3, 64, 64) and sample["name"].startswith("frame_")
        inside = ((sample["image"][0] > 0) & (sample["image"][0] < 1) & sample["valid"]).numpy()
        known = (sample["mask"] != 255).numpy()
        assert inside.mean() > 0.6 and np.array_equal(known, sample["valid"].numpy())
        assert np.array_equal(truth(digital(crops, sample["image"]))[inside], sample["mask"].numpy()[inside])


def test_an_image_is_on_one_side_and_the_split_is_written_down(tmp_path):
    crops = open_crops(config(make_photos(tmp_path)))
    gallery = crops.ground
    assert isinstance(gallery, Gallery) and 0 < len(gallery.validation) < 12
    assert not {c.frame for c in crops.training_boxes} & gallery.validation
    assert {c.frame for c in crops.validation_boxes} <= gallery.validation
    with pytest.raises(ValueError, match="side"):
        gallery.read(crops.training_boxes[0], validation=True)
    crops.write_split(tmp_path)
    with (tmp_path / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] == "validation" for row in rows] == [i in gallery.validation for i in range(12)]
    assert sum(int(row["crops"]) for row in rows) == len(crops.training_boxes) + len(crops.validation_boxes)


def test_validation_takes_runs_of_neighbours(tmp_path):
    crops = open_crops(config(make_photos(tmp_path, 40)))
    held = sorted(crops.ground.validation)
    assert len(held) == 8 and all(i ^ 1 in held for i in held)  # twenty runs of two


def test_validation_images_may_be_named(tmp_path):
    make_photos(tmp_path)
    make_photos(tmp_path / "held", 3)
    named = {"validation_images": ["held/images"], "validation_labels": ["held/labels"]}
    crops = open_crops(config(tmp_path, **named, images=["images/*.png"], labels=["labels/*.png"]))
    assert crops.ground.validation == {12, 13, 14}
    with pytest.raises(ConfigError, match="validation_images"):
        open_crops(config(tmp_path, validation_images=["images"], validation_labels=["labels"]))


def test_a_crop_with_an_anomaly_pixel_is_left_out_whole(tmp_path):
    crops = open_crops(config(make_photos(tmp_path, odd=range(6)), crop_px=64))
    assert crops.report.dropped_anomaly > 0
    for box in crops.training_boxes:
        assert 7 not in crops.ground.read(box, validation=False).ids


def test_the_same_seed_gives_the_same_crops_wherever_they_are_read(tmp_path):
    settings = config(make_photos(tmp_path))
    one, two = open_crops(settings), open_crops(settings)
    copy = pickle.loads(pickle.dumps(two.training(3, 5)))
    assert one.training_boxes == two.training_boxes
    assert all(torch.equal(one.training(3, 5)[i]["image"], copy[i]["image"]) for i in range(5))
    assert open_crops(config(tmp_path, train={"seed": 1})).training_boxes != one.training_boxes


def test_a_photograph_smaller_than_a_crop_is_filled_up_with_nothing(tmp_path):
    crops = open_crops(config(make_photos(tmp_path), crop_px=96, min_valid=0.1))
    sample = crops.training(0, 1)[0]
    assert sample["image"].shape == (3, 96, 96) and not sample["valid"][HEIGHT:].any()
    assert (sample["mask"][~sample["valid"]] == 255).all()


def test_photographs_take_no_vector_labels(tmp_path):
    make_photos(tmp_path)
    (tmp_path / "l.gpkg").write_bytes(b"")
    with pytest.raises(DataError, match=r"l\.gpkg: photographs take rasters of class ids as labels, not vector files"):
        open_crops(config(tmp_path, labels=["l.gpkg"], label_attribute="kind"))


def test_masked_pixels_of_labels_have_no_id_whatever_the_table(tmp_path):
    """A mask of 0 and 255 with a transparent border: 255 is a class by the table, the border is none."""
    make_photos(tmp_path)
    for i in range(12):
        ids = np.where(truth(picture(HEIGHT, WIDTH, seed=i)) == 1, 255, 0).astype("uint8")
        alpha = np.full_like(ids, 255)
        alpha[:, :20], ids[:, :20] = 0, 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.merge("LA", [Image.fromarray(ids), Image.fromarray(alpha)]).save(tmp_path / f"masks/frame_{i:03d}.png")
    crops = open_crops(config(tmp_path, labels=["masks"], classes={0: "land", 1: "road"}, label_ids={255: 1}))
    ids = crops.ground._decoded(0).ids
    assert (ids[:, :20] == 255).all()
    np.testing.assert_array_equal(ids[:, 20:], truth(picture(HEIGHT, WIDTH, seed=0))[:, 20:] == 1)


def test_what_does_not_fit_is_explained(tmp_path):
    make_photos(tmp_path, 3)
    with pytest.raises(
        DataError,
        match=r"do not pair by name: no image for frame_002\.png; the labels of frame_000\.png must be called",
    ):
        open_crops(config(tmp_path, images=["images/frame_000.png", "images/frame_001.png"]))
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(tmp_path / "labels" / "frame_001.png")
    with pytest.raises(DataError, match=r"frame_001\.png: 10 x 10 pixels for a scene of 90 x 120"):
        open_crops(config(tmp_path))
    with pytest.raises(DataError, match=r"one photograph cannot both train and validate"):
        open_crops(config(tmp_path, images=["images/frame_000.png"], labels=["labels/frame_000.png"]))
    with pytest.raises(DataError, match=r"has no CRS.*set data\.kind to photos"):
        open_crops(config(tmp_path, kind="scenes", images=["images/*.png"], labels=["labels/*.png"]))


# Orientation

TURNS = {  # what a camera stores of a picture, by the tag that tells viewers to undo it
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def tagged(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def turned_photos(folder, turns, *, suffix="png", labels_too=False, stored_labels=False):
    """Write a photograph for each orientation, with labels drawn on what viewers show."""
    for i, turn in enumerate(turns):
        image = picture(HEIGHT, WIDTH, seed=i).transpose(1, 2, 0)
        ids = truth(image.transpose(2, 0, 1))
        for kind, array, tag in (("images", image, turn), ("labels", ids, turn if labels_too else 1)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            stored = TURNS[turn if stored_labels else tag](array)
            ending = suffix if kind == "images" else "png"
            Image.fromarray(np.ascontiguousarray(stored)).save(folder / kind / f"p{i}.{ending}", exif=tagged(tag))
    return folder


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("labels_too", [False, True])
def test_photographs_are_read_as_viewers_show_them(tmp_path, suffix, labels_too, caplog):
    turned_photos(tmp_path, TURNS, suffix=suffix, labels_too=labels_too)
    with caplog.at_level("WARNING", "geood"):
        crops = open_crops(config(tmp_path))
    assert "7 of 8 photographs are read turned, as viewers show them by their EXIF orientation" in caplog.text
    for crop in [*crops.training_boxes, *crops.validation_boxes]:
        pixels = crops.ground.read(crop, validation=crop in crops.validation_boxes)
        known = pixels.ids != 255
        assert known.all(), "the size is the one that viewers show"
        np.testing.assert_array_equal(truth(pixels.image)[known], pixels.ids[known])


def test_labels_that_fit_the_stored_pixels_alone_are_refused(tmp_path):
    turned_photos(tmp_path, [1, 6, 1], stored_labels=True)
    with pytest.raises(DataError, match=r"p1\.png: 90 x 120 px, but p1\.png is shown turned .*exiftool -Orientation="):
        open_crops(config(tmp_path))


def test_the_name_without_a_partner_is_told(tmp_path):
    make_photos(tmp_path, 4)
    (tmp_path / "labels" / "frame_002.png").rename(tmp_path / "labels" / "Frame_002.png")
    with pytest.raises(DataError, match=r"no labels for frame_002\.png.*Frame_002\.png and frame_002\.png differ in"):
        open_crops(config(tmp_path))


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_transparent_colour_of_labels_is_how_they_are_shown(tmp_path, mode):
    make_photos(tmp_path, 4)
    for path in (tmp_path / "labels").iterdir():
        with Image.open(path) as labels:
            ids = labels.convert("L")
        shown = ids.copy() if mode == "L" else Image.frombytes("P", ids.size, ids.tobytes())
        if mode == "P":
            shown.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        shown.save(path, transparency=0)
    crops = open_crops(config(tmp_path))
    for crop in crops.training_boxes[:5]:
        pixels = crops.ground.read(crop, validation=False)
        np.testing.assert_array_equal(truth(pixels.image), pixels.ids)
