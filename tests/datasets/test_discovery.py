"""Laws of finding frames: a set laid out as published is found whole, and what is missing is named."""

import dataclasses
import os
import re
import shutil

import pytest

from geood.catalog import CATALOG, PathLayout, Split, data_set
from geood.datasets.discovery import find_frames
from geood.errors import DataError
from support.miniatures import BINARY, LOST_FRAMES, MINIATURES, Sketch


def copied(miniature, name, to):
    """A miniature that a test may change."""
    return shutil.copytree(miniature(name)[0], to / name)


def found(name, root, split=None):
    entry = data_set(name)
    return find_frames(entry, root, entry.split(split) if split else entry.splits[0])


def by_rule(split):
    return dataclasses.replace(split, holds="anything")


@pytest.mark.parametrize("name", CATALOG)
def test_a_set_laid_out_as_published_is_found_whole(name, miniature):
    root, tree = miniature(name)
    entry = data_set(name)
    assert set(tree) == {split.name for split in entry.splits}
    for split in entry.splits:
        here = find_frames(entry, root, split)
        names = [frame.name for frame in here.frames]
        wanted = tree[split.name]
        assert names == sorted(names) and len(set(names)) == len(names)
        if split.holds == "anything":
            assert set(names) == set(wanted)
        else:  # which the labels decide, not the names
            assert set(wanted) <= set(names)
        for frame in here.frames:
            assert frame.image.is_file() and frame.data_set is entry
            assert (frame.base is None) == (not here.layout.base) and (frame.base is None or frame.base.is_file())
            if frame.name in wanted:
                assert (frame.labels is None) == (wanted[frame.name].ids is None)
        assert here.without_labels == [frame.image for frame in here.frames if frame.labels is None]
        assert not here.not_found


@pytest.mark.parametrize("name", CATALOG)
def test_a_missing_half_is_listed_on_its_side(name, miniature, tmp_path):
    root, entry = copied(miniature, name, tmp_path), data_set(name)
    shutil.rmtree(root / "5_Labels_all", ignore_errors=True)  # which would stand in
    split = dataclasses.replace(entry.splits[-1], holds="anything", ids="", listed="", hashed=None)
    before = find_frames(entry, root, split)
    one, two = [frame for frame in before.frames if frame.labels][:2]
    one.labels.unlink()
    two.image.unlink()
    after = find_frames(entry, root, split)
    assert two.name not in {frame.name for frame in after.frames}
    assert set(after.without_image) - set(before.without_image) == {two.labels}
    kept = {frame.name: frame for frame in after.frames}
    if split.by_labels:
        assert one.name not in kept
    else:
        assert kept[one.name].labels is None and one.image in after.without_labels
    assert {f.name for f in after.frames} >= {f.name for f in before.frames} - {one.name, two.name}


@pytest.mark.parametrize("name", CATALOG)
def test_a_wrong_root_names_the_nearest_right_folder(name, miniature):
    root, tree = miniature(name)
    split = next(iter(tree))
    good = {root}
    if name == "road-anomaly":  # which may be given with its outer folder or without
        good.add(root / "RoadAnomaly_jpg")
    for wrong in (root.parent, next(p for p in sorted(root.rglob("*")) if p.is_dir() and not any(p.glob("*/*")))):
        with pytest.raises(DataError) as raised:
            found(name, wrong, split)
        named = re.search(r"but (\S+) does; give that folder", str(raised.value))
        assert str(raised.value).startswith(f"{wrong}: holds no ")
        if wrong != root.parent:  # above it, where other tests' trees may lie beside, any right one will do
            assert named and any(str(g.resolve()) == named[1] for g in good)
        else:
            assert named


def test_no_folder_and_a_folder_of_something_else(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; give the folder of Cityscapes, fine annotations"):
        found("cityscapes", tmp_path / "nowhere")
    deep = tmp_path / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    (deep / "notes.txt").write_text("nothing")
    with pytest.raises(
        DataError, match=r"holds no image of cityscapes, split train; needed: leftImg8bit/train/\{city\}"
    ):
        found("cityscapes", deep)
    with pytest.raises(DataError, match=r"found: notes\.txt\. `geood data list cityscapes` shows its layout"):
        found("cityscapes", deep)


def test_the_other_layouts(miniature, tmp_path):
    root = copied(miniature, "vistas", tmp_path)  # the old archive has no folder of the version
    for part in ("training", "validation"):
        (root / part / "v1.2" / "labels").rename(root / part / "labels")
    assert len(found("vistas", root).frames) == 3 and not found("vistas", root, "val").without_labels
    assert len(found("road-anomaly", miniature("road-anomaly")[0] / "RoadAnomaly_jpg").frames) == 2

    root = copied(miniature, "fishyscapes-static-v2", tmp_path)  # the frames of Cityscapes in a folder of their own
    (root / "cityscapes").mkdir()
    (root / "leftImg8bit").rename(root / "cityscapes" / "leftImg8bit")
    assert all(frame.base and frame.labels for frame in found("fishyscapes-static-v2", root).frames)

    root = copied(miniature, "bdd-anomaly", tmp_path)  # labels of BDD100K itself
    for part in ("train", "val"):
        (root / "labels/sem_seg/masks" / part).mkdir(parents=True)
        for path in (root / "seg/labels" / part).glob("*_train_id.png"):
            path.rename(root / "labels/sem_seg/masks" / part / path.name.replace("_train_id", ""))
    assert len(found("bdd-anomaly", root, "test").frames) == 6
    assert len(found("bdd100k", root).frames) == 4


def test_labels_of_vaihingen_wherever_they_are_unpacked(miniature, tmp_path):
    root, tree = copied(miniature, "vaihingen", tmp_path), miniature("vaihingen")[1]
    [eroded] = root.glob("*_eroded_COMPLETE")
    whole = root / "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"
    whole.mkdir()
    for path in eroded.iterdir():
        shutil.copy(path, whole / path.name.replace("_noBoundary", ""))

    def labels(split="train"):
        here = found("vaihingen", root, split)
        assert {frame.name for frame in here.frames} == set(tree[split]) and not here.without_labels
        return {frame.labels.parent for frame in here.frames}

    assert labels() == {eroded}
    shutil.rmtree(eroded)
    assert labels() == {whole}  # and not top, whose images have names of the same form
    for path in whole.iterdir():
        path.rename(root / path.name)
    whole.rmdir()
    assert labels() == {root}  # as TorchGeo has it


def test_the_best_layout_counts_and_the_first_of_equals(miniature, tmp_path):
    root = copied(miniature, "potsdam", tmp_path)
    here = found("potsdam", root)
    assert here.layout is data_set("potsdam").layouts[0]
    assert {frame.labels.parent.name for frame in here.frames} == {"5_Labels_all_noBoundary"}
    next((root / "5_Labels_all_noBoundary").iterdir()).unlink()
    assert {frame.labels.parent.name for frame in found("potsdam", root).frames} == {"5_Labels_all"}


def test_a_list_that_is_missing_and_names_without_an_image(miniature, tmp_path):
    root = copied(miniature, "landcoverai", tmp_path)
    (root / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt: the list of the split's frames cannot be read"):
        found("landcoverai", root, "val")
    root = copied(miniature, "openearthmap", tmp_path)
    with (root / "train.txt").open("a") as file:
        file.write("\nsanta-rosa-wildfire_7.tif\nkyoto/images/kyoto_99.tif\n")
    here = found("openearthmap", root)
    assert here.not_found == ["santa-rosa-wildfire_7.tif"] and "kyoto_99" in {frame.name for frame in here.frames}
    (root / "val.txt").write_bytes(b"\xff\xfe\x00\x00")
    with pytest.raises(DataError, match="it must name one per line"):
        found("openearthmap", root, "val")
    (root / "val.txt").write_text("nothing_1.tif\n")
    with pytest.raises(DataError, match="none of the frames of openearthmap belongs to its split val"):
        found("openearthmap", root, "val")


def test_labels_without_their_segments_are_none(miniature, tmp_path):
    root = copied(miniature, "wilddash2", tmp_path)
    (root / "panoptic.json").unlink()
    here = found("wilddash2", root)
    assert len(here.without_labels) == len(here.frames) == 3 and not here.without_image


def test_an_overlay_without_its_image_is_refused(miniature, tmp_path):
    root = copied(miniature, "fishyscapes-static-v1", tmp_path)
    next((root / "leftImg8bit/val/lindau").iterdir()).unlink()
    with pytest.raises(
        DataError, match=r"0001_lindau_000000_000019_rgb\.npz: 1 overlay lacks the image .*/leftImg8bit"
    ):
        found("fishyscapes-static-v1", root)


def test_masks_choose_the_images_of_fishyscapes(miniature, tmp_path):
    root = copied(miniature, "fishyscapes-laf", tmp_path)
    shutil.rmtree(root / "fishyscapes_lostandfound")
    with pytest.raises(
        DataError, match=r"holds no image .*_leftImg8bit\.png with \{fs\}/\{number\}_\{id\}_labels\.png"
    ):
        found("fishyscapes-laf", root)


def test_validation_frames_of_the_tracks():
    obstacle, anomaly = (data_set(f"smiyc-{track}").split("val").ids for track in ("obstacle", "anomaly"))
    chosen = [n for n in range(41) if re.fullmatch(obstacle, f"validation_{n}")]
    assert chosen == [n for n in range(41) if n not in (19, *range(21, 30))]
    assert not re.fullmatch(obstacle, "darkasphalt2_dog_1") and not re.fullmatch(obstacle, "snowstorm1_00_validation")
    assert all(re.fullmatch(anomaly, f"validation000{n}") for n in range(10))
    assert not re.fullmatch(anomaly, "airplane0000")


def test_scenes_with_what_cityscapes_knows_are_left_out_of_noknown():
    rule = data_set("smiyc-lost-and-found").split("test").ids
    kept = [name for name in LOST_FRAMES["test"] if re.fullmatch(rule, name)]
    assert kept == [LOST_FRAMES["test"][i] for i in (0, 2, 3)]
    assert not re.fullmatch(rule, "01_Hanns_Klemm_Str_45_000007_000010")
    assert re.fullmatch(rule, "01_Hanns_Klemm_Str_45_000008_000010")


def test_frames_are_dropped_by_their_number_among_all(tmp_path):
    entry = data_set("wd-pascal")
    sketch = Sketch(tmp_path, BINARY)
    for i in (3, 1, 0, 2):
        sketch.frame(f"images/f{i}.png", f"labels/f{i}.png")
    split = Split("some", {}, drop=(1, 2), ids="f[0-3]")
    assert [frame.name for frame in find_frames(entry, tmp_path, split).frames] == ["f0", "f3"]
    whole, part = (dataclasses.replace(split, undropped=n) for n in (4, 5))
    assert [frame.name for frame in find_frames(entry, tmp_path, whole).frames] == ["f0", "f3"]
    assert len(find_frames(entry, tmp_path, part).frames) == 4  # one is missing: nobody knows which numbers are meant


def test_a_place_that_stands_twice_is_the_same_both_times(tmp_path):
    sketch = Sketch(tmp_path, BINARY)
    sketch.frame("a/a_1.png", "a/a_1_gt.png")
    sketch.frame("a/b_2.png")
    entry = dataclasses.replace(data_set("wd-pascal"), layouts=(PathLayout("{x}/{x}_{id}.png", "{x}/{x}_{id}_gt.png"),))
    here = find_frames(entry, tmp_path, Split("all", {}, ids=r"\d"))
    assert [frame.name for frame in here.frames] == ["1"]


def test_links_to_the_files_are_as_good(miniature, tmp_path):
    root, tree = miniature("camvid")
    os.symlink(root, tmp_path / "linked")
    assert {frame.name for frame in found("camvid", tmp_path / "linked").frames} == set(tree["train"])


def test_every_set_has_a_miniature():
    assert set(MINIATURES) == set(CATALOG)


def test_two_images_of_one_name_are_refused(miniature, tmp_path):
    root, entry = copied(miniature, "bdd-anomaly", tmp_path), data_set("bdd-anomaly")
    frame = find_frames(entry, root, entry.split("train")).frames[0]
    for path in (frame.image, frame.labels):
        shutil.copy(path, path.parent.parent / "val" / path.name)
    with pytest.raises(DataError, match="have one name"):
        find_frames(entry, root, entry.evaluated)


def test_a_wrong_root_names_the_folder_with_labels_below_it(miniature, tmp_path):
    root = copied(miniature, "lums", tmp_path / "X")
    for beside in (tmp_path / "X" / "a", tmp_path / "X" / "b" / "images", tmp_path / "beside"):
        beside.mkdir(parents=True)
        shutil.copy(next((root / "images").iterdir()), beside / "photo.jpg")  # images alone do not make it the set
    with pytest.raises(
        DataError, match=r"X: holds no images/\{id\}\.jpg with labels/\{id\}\.png or .*; give that"
    ) as raised:
        found("lums", tmp_path / "X")
    assert f"but {root} does" in str(raised.value)
    shutil.rmtree(root / "labels")  # and where there are no labels anywhere, the images are what is found
    assert len(found("lums", root).without_labels) == 6


def test_a_header_of_a_list_is_no_missing_frame(miniature, tmp_path):
    root = copied(miniature, "wd-pascal", tmp_path)
    path = root / "manifest.csv"
    names, listed = [frame.name for frame in found("wd-pascal", root).frames], path.read_text()
    path.write_text("image,row,column,scale\n" + listed)
    here = found("wd-pascal", root)
    assert [frame.name for frame in here.frames] == names and not here.not_found
    path.write_text(listed + "image,1,2,0.5\nwd_cow_99,1,2,0.5\n")
    assert found("wd-pascal", root).not_found == ["image", "wd_cow_99"]


def test_a_set_without_a_split_is_split_by_the_names_alone(miniature, tmp_path):
    entry, sketch = data_set("wilddash2"), Sketch(tmp_path, BINARY)
    names = [f"frame_{i:04d}" for i in range(300)]
    picture = sketch.frame("images/frame_0000.jpg") and tmp_path / "images/frame_0000.jpg"
    for name in names[1:]:
        (tmp_path / f"images/{name}.jpg").symlink_to(picture)
    train, val = ([f.name for f in find_frames(entry, tmp_path, split).frames] for split in entry.splits)
    assert sorted(train + val) == names and 0.09 < len(val) / 300 < 0.21
    (tmp_path / f"images/{train[0]}.jpg").rename(tmp_path / "images/other.jpg")
    assert [f.name for f in find_frames(entry, tmp_path, entry.split("val")).frames if f.name != "other"] == val
    assert [s.name for e in CATALOG.values() for s in e.splits if s is e.splits[-1]].count("train") == 0
