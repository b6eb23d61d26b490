"""Laws of decoding: every set's own coding becomes its taxonomy's ids, and what was foreseen by nobody becomes 255."""

import dataclasses
import json
import shutil
import zipfile
from collections import Counter

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from geood.catalog import CATALOG, data_set
from geood.datasets import frames
from geood.datasets.discovery import find_frames
from geood.datasets.frames import FoundFrames, Frame, decode, frame_size, held_ids, screened
from geood.errors import DataError
from geood.geo.grid import Window
from support.miniatures import BINARY, CAMVID, HEIGHT, VISTAS_NP, WIDTH, Sketch
from support.rasters import write_raster

RGB = (1, 2, 3)
WINDOWS = [Window(0, 0, 40, 70), Window(13, 51, 30, 64), Window(HEIGHT - 9, WIDTH - 33, 9, 33)]


def of(miniature, name, split=None):
    """The frames of a miniature's split by name, those that its rules on labels leave."""
    root, tree = miniature(name)
    entry = data_set(name)
    chosen = entry.split(split) if split else entry.splits[0]
    anomalies = {entry.taxonomy.id_of(n) for n in entry.held_out} | set(entry.taxonomy.anomalies)
    found = find_frames(entry, root, chosen)
    return {frame.name: frame for frame in screened(found, anomalies, holds=chosen.holds)}, tree[chosen.name]


def frame_of(tmp_path, name, labels, image=None):
    """A frame of a data set with labels as given: an array, or a path."""
    Sketch(tmp_path, BINARY).frame("image.png")
    if isinstance(labels, np.ndarray):
        Image.fromarray(labels).save(tmp_path / "labels.png")
        labels = tmp_path / "labels.png"
    return Frame("image", image or tmp_path / "image.png", labels, data_set(name))


def plain(value=0, dtype=np.uint8):
    return np.full((HEIGHT, WIDTH), value, dtype)


@pytest.mark.parametrize("name", CATALOG)
def test_a_set_decodes_as_its_documentation_says(name, miniature):
    for split in data_set(name).splits:
        decoded, wanted = of(miniature, name, split.name)
        assert set(decoded) == set(wanted)
        for key, frame in decoded.items():
            got, want = decode(frame, indexes=RGB), wanted[key]
            ids = np.full((HEIGHT, WIDTH), 255) if want.ids is None else want.ids
            assert got.ids.dtype == np.uint8 and np.array_equal(got.ids, ids)
            assert got.image.dtype == np.uint8 and got.valid.all() and not got.unknown
            off = np.abs(got.image.astype(int) - want.image)
            assert (off.mean() < 2 and off.max() < 20) if want.lossy else not off.any()
            assert frame_size(frame) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("name", CATALOG)
def test_windows_equal_the_whole(name, miniature):
    frame = next(f for f in of(miniature, name)[0].values() if f.labels)
    whole = decode(frame, indexes=RGB)
    for window in WINDOWS:
        part, at = decode(frame, window, indexes=RGB), (slice(None), *window.slices)
        assert np.array_equal(part.image, whole.image[at]) and np.array_equal(part.ids, whole.ids[window.slices])
        assert np.array_equal(part.valid, whole.valid[window.slices])
    one = decode(frame, indexes=(2,))
    assert np.array_equal(one.image, whole.image[1:2]) and np.array_equal(one.ids, whole.ids)


@pytest.mark.parametrize("name", CATALOG)
def test_held_ids_are_those_of_the_whole_whatever_the_strips(name, miniature, monkeypatch):
    frame = next(f for f in of(miniature, name)[0].values() if f.labels)
    values, counts = np.unique(decode(frame, indexes=RGB).ids, return_counts=True)
    for strip in (frames.STRIP_PX, 7 * WIDTH, 1):
        monkeypatch.setattr(frames, "STRIP_PX", strip)
        assert held_ids(frame) == (dict(zip(values.tolist(), counts.tolist(), strict=True)), Counter())
        if strip == 7 * WIDTH and name not in ("camvid", "uavid"):  # row by row is slow: two will do
            break


@pytest.mark.parametrize("name", [e.name for e in CATALOG.values() if e.encoding == "ids"])
def test_unknown_numbers_become_255_and_are_counted(name, tmp_path):
    entry = data_set(name)
    known = next(n for n in entry.ids if n >= 0)
    labels = plain(known)
    labels[:10, :10], labels[20:23, :7] = 200, 201
    got = decode(frame_of(tmp_path, name, labels), indexes=RGB)
    assert got.unknown == {"200": 100, "201": 21}
    assert (got.ids[:10, :10] == 255).all() and (got.ids[20:23, :7] == 255).all()
    assert set(np.unique(got.ids)) == {255, entry.ids[known]}
    read = decode(frame_of(tmp_path, name, labels), indexes=RGB, label_ids={200: known, 201: 255})
    assert not read.unknown and (read.ids[:10, :10] == entry.ids[known]).all()


@pytest.mark.parametrize("name", [e.name for e in CATALOG.values() if e.encoding == "colours"])
def test_unknown_colours_become_255_and_are_counted(name, tmp_path):
    colour, meant = next((c, i) for c, i in data_set(name).colours.items() if i != 255 and any(c))
    labels = np.full((HEIGHT, WIDTH, 3), colour, np.uint8)
    labels[:4, :5], labels[50, 60] = (1, 2, 3), (254, 255, 254)
    got = decode(frame_of(tmp_path, name, labels), indexes=RGB)
    assert got.unknown == {"1,2,3": 20, "254,255,254": 1}
    assert (got.ids[:4, :5] == 255).all() and got.ids[50, 60] == 255 and (got.ids == 255).sum() == 21
    assert (got.ids[60:] == meant).all()
    bare = frame_of(tmp_path, name, plain(3))  # ids that somebody made of the colours
    assert (decode(bare, indexes=RGB).ids == 3).all()


def test_palettes_are_read_by_index_and_16_bit_labels_as_numbers(tmp_path):
    labels = plain(30)
    labels[:30], labels[30:50] = 55, 65
    picture = Image.fromarray(labels).copy()
    picture.putpalette([0, 0, 0] * 256)  # every index looks the same
    picture.save(tmp_path / "palette.png")
    wide = tmp_path / "wide.png"
    Image.fromarray(labels.astype(np.uint16)).save(wide)
    tiff = write_raster(tmp_path / "wide.tif", labels.astype(np.uint16), crs=None)
    for path in (tmp_path / "palette.png", wide, tiff):
        got = decode(frame_of(tmp_path, "vistas", path), indexes=RGB)
        assert np.array_equal(got.ids, np.vectorize(VISTAS_NP.get)(labels)) and not got.unknown
    many = labels.astype(np.uint16)
    many[:2] = 26_001  # instance numbers, as cityscapesScripts has them
    Image.fromarray(many).save(wide)
    got = decode(frame_of(tmp_path, "vistas", wide), indexes=RGB)
    assert got.unknown == {"26001": 2 * WIDTH} and (got.ids[:2] == 255).all()


def test_labels_that_are_none_are_refused(tmp_path):
    coloured = frame_of(tmp_path, "cityscapes", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(DataError, match=r"labels\.png: has 3 bands, but labels are one band of class ids"):
        decode(coloured, indexes=RGB)
    small = frame_of(tmp_path, "camvid", plain()[:40, :50])
    with pytest.raises(DataError, match=r"labels of 50 x 40 px for an image of 160 x 96 \(image\.png\)"):
        decode(small, indexes=RGB)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(DataError, match=r"broken\.png: cannot be read as a raster"):
        decode(frame_of(tmp_path, "camvid", tmp_path / "broken.png"), indexes=RGB)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_file_that_was_cut_short_is_no_image(kind, part, miniature, tmp_path):
    frame = next(iter(of(miniature, "uavid" if kind == "png" else "road-anomaly")[0].values()))
    for which in ("image", "labels") if kind == "png" else ("image",):
        path = tmp_path / f"{which}.{kind}"
        content = getattr(frame, which).read_bytes()
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(DataError, match=rf"{which}\.{kind}: cannot be read"):
            decode(frame._replace(**{which: path}), indexes=RGB)


def test_a_frame_without_labels_is_void(tmp_path):
    got = decode(frame_of(tmp_path, "camvid", None), indexes=RGB)
    assert (got.ids == 255).all() and got.valid.all()
    assert held_ids(frame_of(tmp_path, "camvid", None)) == ({}, Counter())


ANOMALY_SETS = [e.name for e in CATALOG.values() if dict(e.ids) == BINARY]


@pytest.mark.parametrize("name", ANOMALY_SETS)
def test_masks_in_which_2_is_void_are_refused_and_read_when_said(name, tmp_path):
    labels = plain()
    labels[:20, :30], labels[50:, :] = 1, 2
    frame = frame_of(tmp_path, name, labels)
    with pytest.raises(DataError, match=r"holds 2, .*2 is void.*--set 'data\.label_ids=\{2: 255\}'"):
        decode(frame, indexes=RGB)
    got = decode(frame, indexes=RGB, label_ids={2: 255})
    assert np.array_equal(got.ids, np.where(labels == 2, 255, labels)) and not got.unknown


@pytest.mark.parametrize("name", ANOMALY_SETS)
def test_masks_in_which_minus_1_is_an_anomaly_are_refused_and_read_when_said(name, tmp_path):
    labels = plain(0, np.int16)
    labels[:20, :30], labels[50:, :] = -1, 1
    frame = frame_of(tmp_path, name, write_raster(tmp_path / "mask.tif", labels, crs=None))
    with pytest.raises(DataError, match=r"-1 is an anomaly and 1 is void; .*--set 'data\.label_ids=\{-1: 1, 1: 255\}'"):
        decode(frame, indexes=RGB)
    ids = decode(frame, indexes=RGB, label_ids={-1: 1, 1: 255}).ids
    assert (ids[:20, :30] == 1).all() and (ids[50:] == 255).all() and (ids[20:50] == 0).all()


def test_what_other_sets_mean_by_2_and_minus_1_is_theirs(tmp_path):
    assert (decode(frame_of(tmp_path, "road-anomaly", plain(2)), indexes=RGB).ids == 1).all()
    assert (decode(frame_of(tmp_path, "lost-and-found", plain(2)), indexes=RGB).ids == 1).all()
    plates = write_raster(tmp_path / "plates.tif", plain(-1, np.int16), crs=None)
    got = decode(frame_of(tmp_path, "cityscapes", plates), indexes=RGB)
    assert (got.ids == 255).all() and not got.unknown


def test_own_files_are_renumbered_too(tmp_path):
    labels = plain(2)
    labels[:9] = 7
    frame = frame_of(tmp_path, "camvid", labels)._replace(data_set=None)
    assert np.array_equal(decode(frame, indexes=RGB).ids, labels)
    assert np.array_equal(decode(frame, indexes=RGB, label_ids={2: 7, 7: 2}).ids, 9 - labels)
    with pytest.raises(DataError, match="outside 0 to 255"):
        decode(frame, indexes=RGB, label_ids={2: 300})


def test_a_panoptic_index_that_says_nothing_of_a_file(miniature, tmp_path):
    root = shutil.copytree(miniature("wilddash2")[0], tmp_path / "wilddash2")
    index = json.loads((root / "panoptic.json").read_text())
    index["annotations"] = index["annotations"][1:]
    (root / "panoptic.json").write_text(json.dumps(index))
    entry = data_set("wilddash2")
    first, second = find_frames(entry, root, entry.splits[0]).frames[:2]
    with pytest.raises(DataError, match=r"panoptic\.json: says nothing of aa0000\.png; download the set again"):
        decode(first, indexes=RGB)
    assert not decode(second, indexes=RGB).unknown
    other = root / "no_index.json"
    other.write_text('{"images": []}')
    with pytest.raises(DataError, match=r"no_index\.json: not a COCO panoptic index"):
        decode(second._replace(segments=other), indexes=RGB)


@pytest.mark.parametrize("fault", ["cut", "text", "no rgb", "small", "flat", "an array alone"])
def test_a_broken_overlay_is_a_data_error(fault, miniature, tmp_path):
    frame = next(iter(of(miniature, "fishyscapes-static-v2")[0].values()))
    path = tmp_path / "0000_x_rgb.npz"
    shutil.copy(frame.image, path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif fault == "text":
        path.write_text("not found")
    elif fault == "no rgb":
        np.savez(path, other=np.zeros(3))
    elif fault == "small":
        np.savez(path, rgb=np.zeros((HEIGHT, WIDTH - 1, 3), np.int16))
    elif fault == "flat":
        np.savez(path, rgb=np.zeros((HEIGHT, WIDTH), np.int16))
    else:
        np.save(tmp_path / "array.npy", np.zeros((HEIGHT, WIDTH, 3), np.int16))
        (tmp_path / "array.npy").rename(path)
    for window in (None, WINDOWS[0]):
        with pytest.raises(DataError, match=r"0000_x_rgb\.npz: .*download it again"):
            decode(frame._replace(image=path), window, indexes=RGB)


def test_an_overlay_with_a_wrong_sum_is_a_data_error(miniature, tmp_path):
    frame = next(iter(of(miniature, "fishyscapes-static-v2")[0].values()))
    content = bytearray(frame.image.read_bytes())
    with zipfile.ZipFile(frame.image) as archive:
        at = archive.infolist()[0].header_offset + 200
    content[at : at + 50] = bytes(50)
    (tmp_path / "rgb.npz").write_bytes(content)
    with pytest.raises(DataError, match="download it again"):
        decode(frame._replace(image=tmp_path / "rgb.npz"), indexes=RGB)


def test_anomalies_of_fishyscapes_static_are_those_of_the_labels_not_of_the_overlay(miniature):
    decoded, wanted = of(miniature, "fishyscapes-static-v3")
    for name, frame in decoded.items():
        got = decode(frame, indexes=RGB)
        pasted = np.load(frame.image)["rgb"].any(axis=2)
        assert np.array_equal(got.ids, wanted[name].ids)
        assert (pasted & (got.ids == 0)).sum() > 500  # objects of Cityscapes are pasted as well
        assert got.image.min() == 0 and got.image.max() == 255


def test_frames_are_kept_by_what_their_labels_hold(tmp_path):
    sketch = Sketch(tmp_path, CAMVID, without=(9,))
    for i in range(4):
        sketch.frame(f"test/f{i}.png", f"testannot/f{i}.png", holds=(9,) if i % 2 else ())
    sketch.frame("test/f4.png")
    entry = data_set("camvid")
    found = find_frames(entry, tmp_path, entry.split("test"))
    kept = {h: [f.name for f in screened(found, {9}, holds=h)] for h in ("anything", "clean", "anomalous")}
    assert kept == {"anything": ["f0", "f1", "f2", "f3", "f4"], "clean": ["f0", "f2"], "anomalous": ["f1", "f3"]}
    with pytest.raises(DataError, match=r"no frame holds an anomaly \(class ids \[12\]\)"):
        screened(found, {12}, holds="anomalous")
    with pytest.raises(DataError, match=r"no frame holds no anomaly \(class ids \[1\]\)"):
        screened(dataclasses.replace(found), {1}, holds="clean")


def labelled(tmp_path, name, ids, kind=np.uint8):
    """A frame of a named set with these raw labels."""
    Image.fromarray(np.full((*ids.shape, 3), 90, np.uint8)).save(tmp_path / "a.png")
    write_raster(tmp_path / "a_labels.tif", ids.astype(kind), crs=None)
    return Frame("a", tmp_path / "a.png", tmp_path / "a_labels.tif", data_set(name))


def test_wide_labels_of_other_numbers_are_refused_and_right_ones_are_not(tmp_path):
    ids = np.arange(48).reshape(6, 8) % 5
    assert np.array_equal(decode(labelled(tmp_path, "lums", ids, np.uint16), indexes=(1,)).ids, ids)
    with pytest.raises(DataError, match=r"uint16 that holds 257, 514, .*are bytes; save them .* data\.label_ids"):
        decode(labelled(tmp_path, "lums", ids * 257, np.uint16), indexes=(1,))
    stretched = {i * 257: i for i in range(5)}
    assert np.array_equal(
        decode(labelled(tmp_path, "lums", ids * 257, np.uint16), indexes=(1,), label_ids=stretched).ids, ids
    )


def test_a_window_of_strange_numbers_does_not_condemn_a_wide_file(tmp_path, monkeypatch):
    ids = np.arange(48).reshape(6, 8) % 5
    ids[:2] = 26_001
    frame = labelled(tmp_path, "lums", ids, np.uint16)
    got = decode(frame, Window(0, 0, 2, 8), indexes=(1,))
    assert (got.ids == 255).all() and got.unknown == {"26001": 16}
    monkeypatch.setattr(frames, "STRIP_PX", 8)
    assert held_ids(frame)[1] == {"26001": 16}


@pytest.mark.parametrize("name", ["uavid", "wilddash2"])
def test_label_ids_are_refused_where_labels_hold_no_ids(name, miniature):
    frame = next(iter(of(miniature, name)[0].values()))
    with pytest.raises(DataError, match=r"\.png: holds (colours|segments), not ids, .*leave data\.label_ids out"):
        decode(frame, indexes=RGB, label_ids={2: 255})


def test_masks_with_both_kinds_of_anomaly_and_shifted_labels_are_refused(tmp_path):
    both = np.arange(48).reshape(6, 8) % 3
    with pytest.raises(DataError, match=r"label_ids=\{2: 255\}"):
        decode(labelled(tmp_path, "road-anomaly", both), indexes=(1,))
    read = decode(labelled(tmp_path, "road-anomaly", both), indexes=(1,), label_ids={2: 255})
    assert np.array_equal(read.ids, np.where(both == 2, 255, both))
    shifted = np.arange(48).reshape(6, 8) % 14
    with pytest.raises(DataError, match=r"begin with 1.*label_ids=\{0: 1, 1: 2") as error:
        decode(labelled(tmp_path, "streethazards", shifted), indexes=(1,))
    mapping = yaml.safe_load(str(error.value).split("data.label_ids=")[1].rstrip("'"))
    assert np.array_equal(
        decode(labelled(tmp_path, "streethazards", shifted), indexes=(1,), label_ids=mapping).ids, shifted
    )


def test_a_frame_that_nobody_can_read_is_neither_clean_nor_anomalous(tmp_path, caplog):
    frame = labelled(tmp_path, "lums", np.full((6, 8), 99))
    found = FoundFrames(frame.data_set.layouts[0], [frame])
    for holds in ("clean", "anomalous"):
        with pytest.raises(DataError, match="holds 99, undefined in its data set"):
            screened(found, {1}, holds=holds)
    ids = np.zeros((6, 8))
    ids[0, 0] = 99
    frame = labelled(tmp_path, "lums", ids)
    assert screened(FoundFrames(frame.data_set.layouts[0], [frame]), {1}, holds="clean") == [frame]
    assert caplog.text.count("undefined numbers") == 1 and "99 (1 pixel)" in caplog.text


def tagged(path, array, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("own", [1, 6])
def test_frames_are_read_as_viewers_show_them_by_windows_too(tmp_path, orientation, own):
    stored = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    image = tagged(tmp_path / "image.png", stored, orientation)
    with Image.open(image) as opened:
        shown = np.asarray(ImageOps.exif_transpose(opened))
    ids = shown[..., 0] % 5
    kept = ids if own == 1 else np.rot90(ids, 1)  # what a viewer turns back
    labels = tagged(tmp_path / "labels.png", np.ascontiguousarray(kept), own)
    for data in (None, data_set("lums")):
        frame = Frame("image", image, labels, data)
        assert frame_size(frame) == ids.shape
        for window in (None, Window(3, 5, 40, 20), Window(ids.shape[0] - 9, ids.shape[1] - 33, 9, 33)):
            got, at = decode(frame, window, indexes=RGB), window.slices if window else (slice(None), slice(None))
            assert np.array_equal(got.image, shown.transpose(2, 0, 1)[:, *at])
            assert np.array_equal(got.ids, ids[at])
        assert np.array_equal(got.orientation.back(shown.transpose(2, 0, 1)), stored.transpose(2, 0, 1))
    assert sum(held_ids(frame)[0].values()) == ids.size
    if orientation > 4:
        fits_stored = tagged(tmp_path / "stored.png", stored[..., 0] % 5, 1)
        for data in (None, data_set("lums")):
            with pytest.raises(DataError, match=r"stored\.png: 160 x 96 px, but image\.png is shown turned .*96 x 160"):
                decode(Frame("image", image, fits_stored, data), indexes=RGB)
