"""Laws of EXIF orientation: the tag is found in every format, arrays and windows go to what viewers show, and back."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from geood.geo.grid import Window
from geood.geo.orientation import UPRIGHT, Orientation, orientation_of

STORED = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3) * 2


def save(path, array, orientation=None):
    exif = Image.Exif()
    exif[0x010F] = "a camera"  # a tag before it
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(array).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_an_image_is_turned_as_by_viewers(tmp_path, suffix, orientation):
    path = save(tmp_path / f"a.{suffix}", STORED, orientation)
    turn = orientation_of(path)
    with Image.open(path) as image:
        stored = STORED if suffix == "tif" else np.asarray(image)  # Pillow turns TIFF as it reads
        stored, wanted = (np.asarray(i).transpose(2, 0, 1) for i in (stored, ImageOps.exif_transpose(image)))
    np.testing.assert_array_equal(turn.shown(stored), wanted)
    np.testing.assert_array_equal(turn.back(wanted), stored)
    assert turn.size(5, 8) == wanted.shape[1:]
    for window in (Window(0, 0, *wanted.shape[1:]), Window(1, 2, 3, 2), Window(2, 0, 1, 4)):
        part = turn.stored(window, *wanted.shape[1:])
        np.testing.assert_array_equal(turn.shown(stored[:, *part.slices]), wanted[:, *window.slices])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_files_without_a_readable_tag_are_upright(tmp_path, suffix):
    for orientation in (None, 0, 9, 200):
        assert orientation_of(save(tmp_path / f"a.{suffix}", STORED, orientation)) == UPRIGHT == Orientation()
    whole = save(tmp_path / f"b.{suffix}", STORED, 6).read_bytes()
    assert orientation_of(tmp_path / f"b.{suffix}") != UPRIGHT
    seen = set()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        seen.add(orientation_of(tmp_path / "cut"))
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            damaged[place] = rng.integers(256)
        (tmp_path / "cut").write_bytes(damaged)
        seen.add(orientation_of(tmp_path / "cut"))
    assert UPRIGHT in seen and all(isinstance(turn, Orientation) for turn in seen)
    assert orientation_of(tmp_path / "nowhere.jpg") == UPRIGHT


@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xff", b"\xff\xff\xff", b"\xff\xe1", b"\xff\xe1\x00"])
def test_a_photograph_that_ends_in_its_head_is_upright(tmp_path, end):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8" + end)
    assert orientation_of(tmp_path / "a.jpg") == UPRIGHT
