"""Outputs are checked before any work, and appear whole or not at all."""

import os

import pytest

from geood.atomic import atomic_files, atomic_folder, atomic_write, check_output, output_errors
from geood.errors import OutputError


def test_outputs_are_checked_before_work(tmp_path):
    check_output(tmp_path / "new.tif", overwrite=False)
    (tmp_path / "old.tif").write_text("keep me")
    with pytest.raises(OutputError, match=r"old\.tif: exists already; add --overwrite"):
        check_output(tmp_path / "old.tif", overwrite=False)
    check_output(tmp_path / "old.tif", overwrite=True)
    with pytest.raises(OutputError, match="there is no folder"):
        check_output(tmp_path / "none" / "a.tif", overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_output("/proc/a.tif", overwrite=False)
    assert (tmp_path / "old.tif").read_text() == "keep me" and os.listdir(tmp_path) == ["old.tif"]


def test_a_file_is_replaced_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.suffix == ".csv" and partial.name.startswith(".")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.csv"]


def test_an_error_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.csv"]


def test_a_file_of_the_same_bytes_can_be_kept(tmp_path):
    path = tmp_path / "a.vrt"
    path.write_text("same")
    os.utime(path, (1, 1))
    with atomic_write(path, keep_same=True) as partial:
        partial.write_text("same")
    assert path.stat().st_mtime == 1 and os.listdir(tmp_path) == ["a.vrt"]
    with atomic_write(path, keep_same=True) as partial:
        partial.write_text("more")
    assert path.read_text() == "more"


@pytest.mark.parametrize("alone", [False, True])
def test_files_of_one_output_move_together(tmp_path, alone):
    (tmp_path / "a.fgb").write_text("old")
    with pytest.raises(KeyError), atomic_files(tmp_path, "a.fgb", alone=alone) as staging:
        (staging / "a.fgb").write_text("half")
        raise KeyError
    assert (tmp_path / "a.fgb").read_text() == "old" and os.listdir(tmp_path) == ["a.fgb"]
    seen = []
    with atomic_files(
        tmp_path, "a.fgb", alone=alone, before=lambda staging: seen.extend(os.listdir(staging))
    ) as staging:
        (staging / "a.fgb").write_text("new")
        (staging / "a.qml").write_text("style")
    assert sorted(os.listdir(tmp_path)) == sorted(seen) == ["a.fgb", "a.qml"]
    assert (tmp_path / "a.fgb").read_text() == "new"


def test_what_a_killed_writer_left_goes_first(tmp_path):
    (tmp_path / ".a.tif.partial").mkdir()
    (tmp_path / ".a.tif.partial" / "b.tif").write_text("left over")
    with atomic_files(tmp_path, "a.tif", alone=True) as staging:
        (staging / "a.tif").write_text("new")
    assert os.listdir(tmp_path) == ["a.tif"]


def test_a_folder_takes_its_place_whole(tmp_path):
    place = tmp_path / "figures"
    place.mkdir()
    (place / "old.json").write_text("{}")
    with pytest.raises(KeyError), atomic_folder(place):
        raise KeyError
    assert os.listdir(place) == ["old.json"]
    with atomic_folder(place) as folder:
        (folder / "new.json").write_text("{}")
        assert os.listdir(place) == ["old.json"]
    assert os.listdir(place) == ["new.json"] and os.listdir(tmp_path) == ["figures"]


def test_errors_of_writing_are_told_as_such(tmp_path):
    with pytest.raises(OutputError, match=r"a\.csv: cannot be written \(Not a directory\); free space"):
        (tmp_path / "file").write_text("")
        with output_errors(tmp_path / "a.csv"), atomic_write(tmp_path / "file" / "a.csv") as partial:
            partial.write_text("")


def test_what_kills_leave_in_a_run_folder_has_one_name_and_goes(tmp_path):
    (tmp_path / ".joint.partial.ckpt").write_text("left by a kill")
    with atomic_write(tmp_path / "joint.ckpt", alone=True) as partial:
        assert partial.name == ".joint.partial.ckpt" and not partial.exists()
        partial.write_text("new")
    assert os.listdir(tmp_path) == ["joint.ckpt"]


def test_an_error_of_the_body_is_not_one_of_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "figures"):
        (tmp_path / "labels.png").read_bytes()
    with pytest.raises(OutputError, match=r"figures: cannot be written"), atomic_folder(tmp_path / "no" / "figures"):
        pass
    other = pytest.raises(OutputError, match=r"a\.csv: cannot be written \(No such file or directory: .*b\.csv\)")
    with other, output_errors(tmp_path / "a.csv"):
        (tmp_path / "b.csv").read_text()
