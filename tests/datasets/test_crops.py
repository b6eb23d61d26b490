"""Laws of the recipe that scenes and photographs share: what is kept, in which order, what is refused and reported."""

import inspect
import logging

import numpy as np
import pytest
from PIL import Image

from geood.datasets import open_crops, photo_crops, scene_crops
from geood.datasets.crops import Crops, TrainingCrops, build_crops
from geood.datasets.samples import CropPixels, TrainingBands
from geood.errors import DataError
from support.bundles import small_config
from support.rasters import picture
from support.scenery import config as scene_config
from support.scenery import make_scene

BANDS = TrainingBands(("red", "green"), (1, 2), np.dtype("uint8"), 2)
CLEAN, ANOMALY, UNLABELLED, EMPTY, UNKNOWN = "caue?"


class Strip:
    """A ground whose crops are numbers: one letter each says what a crop holds. It notes what is read."""

    def __init__(self, letters):
        self.letters, self.read_crops = letters, []

    def read(self, crop, *, validation):
        self.read_crops.append((crop, validation))
        letter = self.letters[crop]
        ids = np.zeros((8, 8), np.int64)
        ids[0, :] = 2
        if letter == UNLABELLED:
            ids[:] = 255
        ids[1, 1] = {ANOMALY: 7, UNKNOWN: 9}.get(letter, ids[1, 1])
        valid = np.full((8, 8), letter != EMPTY)
        return CropPixels(np.full((2, 8, 8), crop, np.float32), valid, np.where(valid, ids, 255))

    def name(self, crop):
        return f"crop {crop}"

    def resolution_m(self, crop):
        return 0.5 + crop

    def write_split(self, folder, training, validation):
        (folder / "split.txt").write_text(f"{training} {validation}")


def build(letters, *, crops, grid=(), validation_crops=3):
    """Crops of a strip: all of it is drawn, then comes one labelled crop for each of the validation grid's."""
    ground = Strip(letters + CLEAN * 20)
    keys = {"crop_px": 64, "scale_min": 1.0, "scale_max": 1.0, "crops": crops, "validation_crops": validation_crops}
    grid = list(grid) or [len(letters)]
    return ground, build_crops(small_config(data=keys), ground, bands=BANDS, drawn=range(len(letters)), grid=grid)


def test_clean_crops_are_kept_in_the_order_they_were_drawn():
    _, crops = build("cacueacc", crops=6)
    assert isinstance(crops, Crops)
    # six crops with enough data are looked at: 0, 1, 2, 3, 5, 6; the empty one is replaced by the next
    assert crops.training_boxes == (0, 2, 6)
    report = crops.report
    assert (report.drawn, report.kept) == (7, 3)
    assert (report.dropped_anomaly, report.dropped_invalid, report.dropped_unlabelled) == (2, 1, 1)
    assert report.drawn - report.kept == report.dropped_anomaly + report.dropped_invalid + report.dropped_unlabelled
    assert report.class_pixels == {0: 3 * 56, 1: 0, 2: 3 * 8}


def test_no_more_is_read_than_the_config_asks_for():
    ground, _ = build(CLEAN * 12, crops=5)
    assert [crop for crop, validation in ground.read_crops if not validation] == [0, 1, 2, 3, 4]


def test_bands_and_resolution_come_from_the_crops_that_are_kept():
    _, crops = build("eacc", crops=4)
    assert crops.training_boxes == (2, 3)
    assert (crops.bands.names, crops.bands.indexes, crops.bands.scene_count) == (("red", "green"), (1, 2), 2)
    assert all(2 <= low < high <= 3 for low, high in zip(crops.bands.low, crops.bands.high, strict=True))
    assert crops.resolution_m == 2.5


@pytest.mark.parametrize(
    ("letters", "reason"),
    [("aaaa", "4 hold an anomaly pixel"), ("eeee", "4 hold data in less than"), ("uuuu", "4 hold no pixel of the cl")],
)
def test_nothing_left_is_refused_with_the_reason_before_validation_is_read(letters, reason):
    ground = Strip(letters + CLEAN)
    settings = small_config(data={"crop_px": 64, "crops": 4})
    with pytest.raises(DataError, match=f"none of the 4 crops drawn can be trained on: {reason}"):
        build_crops(settings, ground, bands=BANDS, drawn=range(4), grid=[4])
    assert [validation for _, validation in ground.read_crops] == [False] * 4


def test_the_validation_grid_is_thinned_evenly_and_stays_in_order():
    ground, crops = build("c", crops=1, grid=range(1, 21))
    first, middle, last = crops.validation_boxes
    assert (first, last) == (1, 20) and 8 < middle < 13 and crops.report.validation_crops == 3
    assert sum(validation for _, validation in ground.read_crops) == 4 * 3  # only some of a large grid are read
    _, crops = build("c", crops=1, grid=[3, 1], validation_crops=3)
    assert crops.validation_boxes == (3, 1)


def test_a_validation_grid_without_labels_is_refused():
    ground = Strip("cuu")
    with pytest.raises(DataError, match="none of the 2 validation crops holds a labelled pixel"):
        build_crops(small_config(data={"crop_px": 64, "crops": 1}), ground, bands=BANDS, drawn=[0], grid=[1, 2])


def test_the_screening_is_reported(caplog):
    with caplog.at_level(logging.INFO, "geood"):
        build("c?a", crops=3)
    said = [record.getMessage() for record in caplog.records]
    [counts] = [line for line in said if "training crops drawn" in line]
    assert counts.startswith(
        "3 training crops drawn: 2 kept; left out: 1 with an anomaly pixel, 0 with too little data"
    )
    assert any("9 (1 pixel)" in line for line in said) and any("class 1 (road) occurs in no" in line for line in said)


def test_rank_and_world_are_named():
    """Two integers in a row change places too easily."""
    parameters = inspect.signature(TrainingCrops).parameters
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ("rank", "world"))


def make_photos(folder):
    for i in range(4):
        image = picture(70, 80, seed=i)
        for kind, array in (("images", image.transpose(1, 2, 0)), ("labels", (image[0] % 3).astype("uint8"))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{i}.png")
    data = {"kind": "photos", "root": str(folder), "images": ["images"], "labels": ["labels"], "crop_px": 64}
    return small_config(data=data | {"crops": 8})


@pytest.mark.parametrize("kind", ["scenes", "photos"])
def test_scenes_and_photos_go_through_the_one_recipe(kind, tmp_path, monkeypatch):
    settings = make_photos(tmp_path) if kind == "photos" else scene_config(make_scene(tmp_path))
    asked = []

    def spy(config, ground, *, bands, drawn, grid):
        asked.append((list(drawn), list(grid)))
        return build_crops(config, ground, bands=bands, drawn=drawn, grid=grid)

    monkeypatch.setattr(scene_crops if kind == "scenes" else photo_crops, "build_crops", spy)
    crops = open_crops(settings)
    [(drawn, grid)] = asked
    assert len(drawn) == 4 * settings.data.crops
    assert list(crops.training_boxes) == [box for box in drawn[: crops.report.drawn] if box in crops.training_boxes]
    assert set(crops.validation_boxes) <= set(grid)
