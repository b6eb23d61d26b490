"""Laws of the check before training: it names what training would find, all of it, and draws what it saw."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from geood.cli.process import _run
from geood.config.loading import to_yaml
from geood.datasets.samples import CropPixels
from geood.errors import ConfigError, DataError
from geood.preflight.checking import _crops, check_config
from geood.preflight.picture import LINE, _fitting, _laid_over, _telling
from geood.preflight.trial import Trial, quietly, try_crops
from geood.training.first_checks import check_first
from support.bundles import small_config
from support.rasters import picture, write_raster


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for i in range(2):
        image = picture(200, 200, seed=i)
        ids = np.digitize(image[0], [90, 160]).astype("uint8")
        ids[:20, :20] = 9
        ids[-5:] = 4
        write_raster(folder / f"im_{i}.tif", image)
        write_raster(folder / f"lab_{i}.tif", ids)
    return folder


def config(folder, *, segmenter=None, train=None, **keys):
    data = {"root": str(folder), "images": ["im_*.tif"], "labels": ["lab_*.tif"], "crop_px": 64, "crops": 40}
    data |= {"classes": {0: "land", 1: "road", 2: "roof"}, "anomaly": [9], "block_m": 30.0, "validation_crops": 4}
    lengths = {"batch": 2, "third_stage": "head", **(train or {})}
    segmenter = {"encoder": "resnet10t", "outlier": "head"} | (segmenter or {})
    return small_config(data=data | keys, segmenter=segmenter, train=lengths, negatives={"source": "phase"})


def test_a_check_tells_what_training_would_find(folder, tmp_path):
    lines = list(check_config(config(folder, anomaly={9: "slum"}), tmp_path / "seen.png"))
    labels = [label for label, _ in lines]
    for label in ("encoder", "images", "labels", "class", "anomaly", "split", "crops", "picture", "stage", "time"):
        assert label in labels, label
    assert labels.index("anomaly") > max(i for i, label in enumerate(labels) if label == "class")
    said = " ".join(text for _, text in lines)
    assert "resnet10t" in said and "WGS 84 / UTM" in said and "0 land:" in said and "roof" in said
    assert "9 slum: " in said and "4: " in said and "neither a class nor an anomaly" in said
    with Image.open(tmp_path / "seen.png") as drawn:
        assert drawn.width > 1000


def test_the_picture_shows_crops_of_several_classes_and_whole_ones_first():
    def pixels(ids, data):
        valid = np.zeros((8, 8), bool)
        valid[:, :data] = True
        return CropPixels(np.zeros((3, 8, 8), np.float32), valid, np.asarray(ids))

    bare, plain, mixed = np.full((8, 8), 255), np.zeros((8, 8), int), np.arange(64).reshape(8, 8) // 22
    order = [pixels(mixed, 8), pixels(mixed, 4), pixels(plain, 8), pixels(plain, 2), pixels(bare, 8)]
    told = [_telling(each) for each in order]
    assert told == sorted(told, reverse=True) and len(set(told)) == len(told)


def test_labels_in_the_picture_have_an_outline_that_tells_them_from_ground_of_their_colour():
    ids = np.full((9, 12), 255)
    ids[2:7, 1:6], ids[2:7, 6:10], ids[8, 11] = 0, 1, 7  # 7: a number that no colour is for
    green = np.full((9, 12, 3), (0.2, 0.5, 0.2), np.float32)
    seen = _laid_over(green, ids, {0: "#338033", 1: "#338033"})
    line = np.zeros(ids.shape, bool)
    line[2:7, 1:10] = True
    line[3:6, 2:5] = line[3:6, 7:9] = False  # inside of each; both have a border where they meet
    assert np.array_equal((seen == LINE).all(axis=2), line)
    assert np.allclose(seen[~line], green[0, 0], atol=0.01)


@pytest.mark.parametrize("cut", ["im_0.tif", "lab_0.tif"])
def test_files_that_a_training_leaves_out_end_no_check(folder, tmp_path, cut):
    for path in folder.glob("*.tif"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / cut).write_bytes((tmp_path / cut).read_bytes()[:900])
    with pytest.raises(DataError, match=cut):
        list(check_config(config(tmp_path), tmp_path / "seen.png"))
    lines = list(check_config(config(tmp_path, unreadable="skip"), tmp_path / "seen.png"))
    assert ("note", f"files that cannot be read and are left out: 1, {cut} first") in lines
    assert {"images", "labels", "crops", "time"} <= {label for label, _ in lines}


@pytest.mark.parametrize("fault", [ConfigError, DataError])
@pytest.mark.parametrize("cut", ["im_0.tif", "lab_0.tif"])
def test_files_that_a_training_leaves_out_are_no_fault_beside_another_one(folder, tmp_path, monkeypatch, cut, fault):
    for path in folder.glob("*.tif"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / cut).write_bytes((tmp_path / cut).read_bytes()[:900])

    def failing(_):
        raise fault("no crop can be drawn")

    monkeypatch.setattr("geood.preflight.checking.try_crops", failing)
    lines = []
    with pytest.raises(fault, match=r"^no crop can be drawn$"):
        lines.extend(check_config(config(tmp_path, unreadable="skip"), tmp_path / "seen.png"))
    assert ("note", f"files that cannot be read and are left out: 1, {cut} first") in lines
    assert {"images", "labels"} <= {label for label, _ in lines}


def test_too_few_blocks_of_validation_for_a_promise_are_told_before_a_training(folder):
    def told(**keys):
        return [text for label, text in _crops(config(folder, **keys), []) if "blocks of validation" in text]

    assert told(block_m=50.0, validation=0.2)[0].startswith(
        "labelled blocks of validation ground: 1; with fewer than 8"
    )
    assert told(block_m=50.0, validation=0.2)[0].endswith("label more places, or make data.block_m smaller")
    assert not told(block_m=20.0, validation=0.5)
    photos = config(folder).model_copy(update={"data": config(folder).data.model_copy(update={"kind": "photos"})})
    few = Trial.few_blocks.fget(SimpleNamespace(blocks=3, config=photos))
    assert few.startswith("labelled images of validation ground: 3;") and few.endswith("or raise data.validation")


def test_long_names_of_scenes_do_not_run_into_each_other():
    title = f"left out, has an anomaly: {'drone ' * 20}scene.tif at x 4368502.62, y -674050.23"
    assert len(_fitting(title)) == 74 and _fitting(title).endswith("at x 4368502.62, y -674050.23")
    assert _fitting("a.tif at x 1, y 2") == "a.tif at x 1, y 2"


def test_all_that_is_wrong_is_told_at_once(folder, tmp_path):
    bad = config(folder, segmenter={"encoder": "resnet19"}, labels=["none_*.tif"])
    lines = []
    with pytest.raises(ConfigError, match=r"2 things would end a training:\n.*resnet19.*\n.*none_\*\.tif"):
        lines.extend(check_config(bad, tmp_path / "x.png"))
    assert ("images" in dict(lines)) and not (tmp_path / "x.png").exists()


def test_classes_that_are_not_there_end_a_screening_early(folder, tmp_path):
    lost = config(folder, classes={20: "land", 21: "road"}, anomaly=[])
    with pytest.raises(DataError, match=r"hold no pixel of the classes \[20, 21\]"):
        list(check_config(lost, tmp_path / "x.png"))


def test_the_command_to_type_next_has_the_values_that_were_checked(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.yaml").write_text(to_yaml(config(folder, root="gone")))
    settings = [f"data.root={folder}", "data.classes={0: land, 1: road, 2: roof}"]
    line = ["check", "a b.yaml", *(part for setting in settings for part in ("--set", setting))]
    assert _run(line, debug=False) == 0
    [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next")]
    assert said == f"next       geood train 'a b.yaml' --set data.root={folder} --set '{settings[1]}'"


def test_what_needs_no_data_is_checked_first(folder):
    assert check_first(config(folder)) > 1e6
    with pytest.raises(ConfigError, match="did you mean resnet18"):
        check_first(config(folder, segmenter={"encoder": "resnet19"}))
    with pytest.raises(ConfigError, match="imagnet does not exist"):
        check_first(config(folder, segmenter={"encoder": "resnet18", "weights": "imagnet"}))
    for key in ("stages_from", "tune_from"):
        with pytest.raises(ConfigError, match=f"train.{key}: gone does not exist"):
            check_first(config(folder, train={key: "gone"}))


def test_a_trial_draws_few_crops_and_keeps_quiet(folder, caplog):
    with caplog.at_level(logging.INFO, "geood"):
        with quietly():
            tried = try_crops(config(folder), number=10)
        assert logging.getLogger("geood").level == logging.INFO
    assert tried.crops.report.drawn - tried.crops.report.dropped_invalid == 10
    assert tried.config.data.crops == 40 and tried.expected == round(40 * tried.clean)
    assert len(tried.crops.report.with_anomaly) == min(8, tried.crops.report.dropped_anomaly)
    assert not [record for record in caplog.records if record.levelno < logging.WARNING]


def test_the_verb_prints_and_ends_with_the_code_of_the_fault(folder, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config(folder, segmenter={"encoder": "resnet19"})), encoding="utf-8")
    assert _run(["check", str(path)], debug=False) == 2
    told = capsys.readouterr()
    assert "crops      " in told.out and "resnet19" in told.err and (tmp_path / "c.check.png").exists()
    before = path.read_bytes()
    assert _run(["check", str(path), "--out", str(path)], debug=False) == 2 and path.read_bytes() == before
    assert "end its name in .png" in capsys.readouterr().err


def test_the_picture_replaces_an_earlier_one_and_nothing_else(folder, tmp_path, capsys):
    path, mine = tmp_path / "c.yaml", tmp_path / "mine.png"
    path.write_text(to_yaml(config(folder, segmenter={"encoder": "resnet19"})), encoding="utf-8")
    line = ["check", str(path), "--out", str(mine)]
    mine.write_text("notes")
    assert _run(line, debug=False) == 2 and "mine.png: is there already" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(mine)
    before = mine.read_bytes()
    assert _run(line, debug=False) == 2 and "mine.png: is there already" in capsys.readouterr().err
    assert mine.read_bytes() == before
    text = PngInfo()
    text.add_text("Software", "a" * 2_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(mine, pnginfo=text)  # more than Pillow unpacks
    assert _run(line, debug=False) == 2 and "mine.png: is there already" in capsys.readouterr().err
    Image.new("1", (20_000, 20_000)).save(mine)  # more pixels than it opens
    assert _run(line, debug=False) == 2 and "mine.png: is there already" in capsys.readouterr().err
    mine.unlink()
    for _ in range(2):
        _run(line, debug=False)
        told = capsys.readouterr()
        assert f"picture    {mine}" in told.out and "resnet19" in told.err and "is there already" not in told.err
