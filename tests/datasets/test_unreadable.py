"""Laws of files that cannot be read: an error by default; skipped, they are told, listed, and nowhere used."""

import csv
import logging

import pytest

from datasets.test_photo_crops import config, make_photos
from geood.datasets import open_crops
from geood.datasets.unreadable import why_unreadable
from geood.errors import DataError


def cut(path, share=0.6):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


def test_skipped_photographs_are_told_and_listed_and_nowhere_used(tmp_path, caplog):
    folder = make_photos(tmp_path)
    image, labels = cut(folder / "images" / "frame_003.png"), cut(folder / "labels" / "frame_007.png")
    (folder / "images" / "frame_009.png").write_text("")
    with pytest.raises(DataError):
        open_crops(config(folder))
    with caplog.at_level(logging.WARNING, "geood"):
        crops = open_crops(config(folder, unreadable="skip"))
    assert "3 of 12 photographs cannot be read and are left out: " in caplog.text
    assert [skipped.path for skipped in crops.skipped] == [image, labels, folder / "images" / "frame_009.png"]
    names = {frame.image.stem for frame in crops.ground.frames}
    assert len(names) == 9 and not names & {"frame_003", "frame_007", "frame_009"}
    crops.write_split(tmp_path)
    with (tmp_path / "skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(skipped.path) for skipped in crops.skipped]
    assert all(row["path"] in row["why"] for row in rows)


def test_nothing_is_listed_where_all_can_be_read(tmp_path):
    crops = open_crops(config(make_photos(tmp_path), unreadable="skip"))
    (tmp_path / "skipped.csv").write_text("of a run before")
    crops.write_split(tmp_path)
    assert not crops.skipped and not (tmp_path / "skipped.csv").exists()


def test_without_a_readable_file_the_first_is_said(tmp_path):
    folder = make_photos(tmp_path, 2)
    for path in (folder / "images").iterdir():
        cut(path, 0.5)
    with pytest.raises(DataError, match=r"frame_000\.png: .*; and none of the 2 photographs can be read"):
        open_crops(config(folder, unreadable="skip"))


def test_a_file_is_read_to_its_last_pixel(tmp_path):
    path = make_photos(tmp_path, 1) / "images" / "frame_000.png"
    assert why_unreadable(path) is None
    assert "cannot be read" in why_unreadable(cut(path, 0.9))
