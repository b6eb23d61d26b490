"""Laws of the check: a complete set has no faults, and each kind of damage is named with what to do."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

import geood.catalog
from geood.catalog import CATALOG, data_set
from geood.cli.process import _run
from geood.datasets.check import check_set
from geood.errors import DataError, counted
from support.miniatures import CAMVID, HEIGHT, MINIATURES, WIDTH, each_set


def complete(name, tree):
    """The entry as it would be if the published set were its miniature."""
    entry = data_set(name)
    splits = tuple(dataclasses.replace(split, count=len(tree[split.name])) for split in entry.splits)
    return dataclasses.replace(entry, size=(HEIGHT, WIDTH), splits=splits)


@pytest.fixture
def damaged(miniature, tmp_path):
    """A copy of the miniature of CamVid to be damaged, and its entry with the miniature's counts."""
    root, tree = miniature("camvid")
    return shutil.copytree(root, tmp_path / "camvid"), complete("camvid", tree)


def faults(root, entry, **options):
    return check_set(entry, root, **options)[1]


@pytest.mark.parametrize("name", each_set())
def test_a_complete_set_has_no_faults_and_its_pixels_are_counted(name, miniature):
    root, tree = miniature(name)
    entry = complete(name, tree)
    checks, found = check_set(entry, root)
    assert not found
    assert [check.split.name for check in checks] == list(tree)
    for check in checks:
        labelled = [frame.ids for frame in tree[check.split.name].values() if frame.ids is not None]
        ids, counts = np.unique(labelled, return_counts=True)
        pixels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        assert (check.images, check.labelled) == (len(tree[check.split.name]), len(labelled))
        assert check.void == pixels.pop(255, 0) and not check.unknown
        assert {n: p for n, p in check.pixels.items() if p} == {entry.taxonomy.classes[i]: p for i, p in pixels.items()}


@pytest.mark.parametrize("name", [n for n, e in CATALOG.items() if e.size and all(s.count for s in e.splits)])
def test_counts_and_sizes_of_the_published_set_are_wanted(name, miniature):
    root, tree = miniature(name)
    entry = data_set(name)
    height, width = entry.size
    found = faults(root, entry)
    for split in entry.splits:
        images = counted(len(tree[split.name]), "image")
        text = f"{split.name}: {images}, {split.count} in the complete set; unpack all archives"
        assert any(fault.startswith(text) for fault in found)
        assert any(f"{split.name}: images are not {width} x {height} px but 160 x 96 (" in fault for fault in found)
    assert len(found) == 2 * len(entry.splits)


def test_missing_halves_are_named_with_the_first_file(damaged):
    root, entry = damaged
    (root / "trainannot/0001TP_006690.png").unlink()
    (root / "val/0016E5_07961.png").unlink()
    one, two, three = faults(root, entry)
    assert one == f"train: 1 image without labels, {root}/train/0001TP_006690.png first; fetch them"
    assert two.startswith("val: 1 image, 2 in the complete set; unpack all archives of https://")
    assert three == f"val: 1 label file without image, {root}/valannot/0016E5_07961.png first; fetch them"


def test_a_split_that_is_missing_is_a_fault_and_a_set_that_is_missing_an_error(damaged):
    root, entry = damaged
    shutil.rmtree(root / "val")
    [found] = faults(root, entry)
    assert found.startswith(
        f"val: {root}: holds no image of camvid, split val; needed: val/{{id}}.png or val/{{id}}.jpg"
    )
    for part in ("train", "test"):
        shutil.rmtree(root / part)
    with pytest.raises(DataError, match="holds no image of camvid, split train"):
        check_set(entry, root)


def test_sizes_unknown_numbers_and_files_that_cannot_be_read(damaged):
    root, entry = damaged
    labels = root / "trainannot"
    Image.fromarray(np.zeros((HEIGHT, WIDTH - 1), np.uint8)).save(labels / "0001TP_006690.png")
    (labels / "0001TP_006720.png").write_bytes((labels / "0001TP_006720.png").read_bytes()[:200])
    strange = np.full((HEIGHT, WIDTH), 4, np.uint8)
    strange[:3, :5] = 77
    Image.fromarray(strange).save(root / "valannot/0016E5_07959.png")
    for folder, value in (("test", 9), ("testannot", 3)):
        Image.fromarray(np.full((20, 30), value, np.uint8)).save(root / folder / "0001TP_008550.png")
    checks, found = check_set(entry, root)
    size, cut, unknown, odd = found
    assert size.startswith("train: ") and "labels of 159 x 96 px for an image of 160 x 96" in size
    assert cut.startswith("train: ") and "0001TP_006720.png: cannot be read" in cut
    assert unknown.startswith("val: label files hold 77 (15 px), undefined in camvid and ignored")
    assert odd.startswith("test: images are not 160 x 96 px but 30 x 20 (1); take the files as published")
    assert checks[0].images == 3 and checks[0].labelled == 1
    shares = sum(checks[1].pixels.values()) + checks[1].void + sum(checks[1].unknown.values())
    assert shares == 2 * HEIGHT * WIDTH  # each pixel once
    assert not [f for f in faults(root, entry, label_ids={77: 11}) if f.startswith("val")]


def test_many_files_that_cannot_be_read_are_five_lines_and_a_number(damaged):
    root, entry = damaged
    for i in range(8):
        shutil.copy(root / "train/0001TP_006690.png", root / f"train/extra_{i}.png")
        (root / f"trainannot/extra_{i}.png").write_text("nothing")
    found = [fault for fault in faults(root, entry) if "cannot be read" in fault or "of this kind" in fault]
    assert len(found) == 6 and found[-1] == "train: 3 more files of this kind"


def test_names_on_a_list_that_no_image_has_are_faults(miniature, tmp_path):
    root, tree = miniature("openearthmap")
    root = shutil.copytree(root, tmp_path / "openearthmap")
    with (root / "train.txt").open("a") as file:
        file.writelines(f"xbd-{i}_1.tif\n" for i in range(4))
    [found] = faults(root, complete("openearthmap", tree))
    assert found.startswith(
        "train: 4 names in train.txt that no image has: xbd-0_1.tif, xbd-1_1.tif, xbd-2_1.tif, ...;"
    )


def run(*arguments):
    return _run(["data", *map(str, arguments)], debug=False)


def test_the_list_has_every_set(capsys):
    assert run("list") == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line and not line.startswith("`")}
    assert set(lines) == set(CATALOG)
    for name, entry in CATALOG.items():
        assert entry.title in lines[name] and ("train, evaluate" in lines[name]) == entry.trains


@pytest.mark.parametrize("name", MINIATURES)
def test_the_list_says_all_about_one_set(name, capsys):
    assert run("list", name) == 0
    said = capsys.readouterr().out
    for fact in (CATALOG[name].source, CATALOG[name].licence, CATALOG[name].layouts[0].images):
        assert fact in said


def test_names_and_folders_that_are_none(capsys, tmp_path):
    assert run("list", "camvit") == 2
    assert "camvit: no such data set; did you mean camvid?" in capsys.readouterr().err
    assert run("check", "camvit", tmp_path) == 2
    assert run("check", "camvid", tmp_path / "nowhere") == 3
    assert "nowhere: no such folder; give the folder of CamVid" in capsys.readouterr().err


def test_the_check_on_the_command_line(miniature, monkeypatch, capsys, damaged):
    root, tree = miniature("camvid")
    assert run("check", "camvid", root) == 3  # a miniature is not the published set
    assert "problems found" in capsys.readouterr().err
    monkeypatch.setitem(geood.catalog.CATALOG, "camvid", complete("camvid", tree))
    assert run("check", "camvid", root) == 0
    said = capsys.readouterr().out
    assert "train: 3 images, 3 with labels" in said and "complete, as far as geood can tell" in said
    shares = [float(line.split()[-2]) for line in said.splitlines() if line.endswith(" %")]
    assert len(shares) == 3 * len(set(CAMVID.values())) and sum(shares) == pytest.approx(300, abs=0.3)
    (damaged[0] / "testannot/0001TP_008550.png").unlink()
    assert run("check", "camvid", damaged[0]) == 3
    assert "problems found: 1\n  test: 1 image without labels" in capsys.readouterr().err


def test_the_check_reads_labels_in_another_coding(miniature, tmp_path, capsys):
    root = shutil.copytree(miniature("road-anomaly")[0], tmp_path / "root")
    for path in root.rglob("labels_semantic.png"):
        ids = np.array(Image.open(path))
        ids[0, 0], ids[0, 1] = 1, 2
        Image.fromarray(ids).save(path)
    assert _run(["data", "check", "road-anomaly", str(root)], debug=False) == 3
    assert "data.label_ids={2: 255}" in capsys.readouterr().err
    _run(["data", "check", "road-anomaly", str(root), "--set", "data.label_ids={2: 255}"], debug=False)
    assert "label_ids" not in capsys.readouterr().err
    assert _run(["data", "check", "road-anomaly", str(root), "--set", "score.kind=jsd"], debug=False) == 2
