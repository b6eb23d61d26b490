"""Outputs are checked before any work, and appear whole or not at all."""

import os

import pytest

from geood.atomic import atomic_files, atomic_folder, atomic_write, check_output, output_errors, put_in_place
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
    with atomic_files(tmp_path, "a.fgb", alone=alone) as staging:
        (staging / "a.fgb").write_text("new")
        (staging / "a.qml").write_text("style")
    assert sorted(os.listdir(tmp_path)) == ["a.fgb", "a.qml"]
    assert (tmp_path / "a.fgb").read_text() == "new"


def test_files_made_under_plain_names_get_their_own_and_what_is_not_made_again_goes(tmp_path):
    out, companion = tmp_path / "a;b\n.fgb", tmp_path / "a;b\n.failed.fgb"
    finals = {"main.fgb": out, "failed.fgb": companion}
    with atomic_files(tmp_path, out.name, finals=finals) as staging:
        for name in (*finals, "scratch"):
            (staging / name).write_text(name)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {out.name: "main.fgb", companion.name: "failed.fgb"}
    with atomic_files(tmp_path, out.name, finals=finals) as staging:
        (staging / "main.fgb").write_text("again")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {out.name: "again"}
    with pytest.raises(FileNotFoundError), atomic_files(tmp_path, out.name, finals=finals):
        pass
    assert out.read_text() == "again"


@pytest.fixture(params=["links", "no links"])
def disk(request, monkeypatch):
    """A disk with hard links, and one without."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_appeared_meanwhile_is_not_replaced_unasked(tmp_path, disk, kind):
    path = tmp_path / "a.csv"
    with pytest.raises(OutputError, match="exists now"), atomic_write(path, overwrite=False) as partial:
        partial.write_text("new")
        if kind == "file":
            path.write_text("somebody else's")
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("nowhere")
    assert os.listdir(tmp_path) == ["a.csv"] and not (kind == "file" and path.read_text() == "new")
    assert kind != "dangling link" or os.readlink(path) == "nowhere"


def test_a_name_that_is_free_is_taken_without_overwrite(tmp_path, disk):
    with atomic_write(tmp_path / "a.csv", overwrite=False) as partial:
        partial.write_text("new")
    assert os.listdir(tmp_path) == ["a.csv"] and (tmp_path / "a.csv").read_text() == "new"
    assert (tmp_path / "a.csv").stat().st_nlink == 1


def test_taking_a_name_can_be_finished_after_it_was_interrupted(tmp_path):
    (tmp_path / "made").write_text("new")
    os.link(tmp_path / "made", tmp_path / "final")
    put_in_place(tmp_path / "made", tmp_path / "final", overwrite=False)
    assert os.listdir(tmp_path) == ["final"]


BESIDE = {
    "x.gpkg": ["x.gpkg-wal", "x.gpkg-shm", "x.gpkg-journal"],
    "x.tif": ["x.tif.aux.xml", "x.tif.ovr", "x.tif.msk"],
}


@pytest.mark.parametrize(("name", "beside"), [(name, other) for name, others in BESIDE.items() for other in others])
def test_what_would_be_read_as_part_of_an_output_is_replaced_with_it_or_refused(tmp_path, name, beside):
    for other in (beside, "y.gpkg-wal", "x.txt"):
        (tmp_path / other).write_text("of an older file")
    with pytest.raises(OutputError, match=rf"{beside} lies beside it.*--overwrite"):
        check_output(tmp_path / name, overwrite=False)
    with pytest.raises(OutputError, match="exists now"), atomic_write(tmp_path / name, overwrite=False) as partial:
        partial.write_text("new")
    check_output(tmp_path / name, overwrite=True)
    with atomic_write(tmp_path / name) as partial:
        partial.write_text("new")
    assert sorted(os.listdir(tmp_path)) == sorted([name, "x.txt", "y.gpkg-wal"])


def test_a_world_file_beside_an_output_is_never_removed(tmp_path):
    for other in ("x.tfw", "x.tab", "x.aux"):
        (tmp_path / other).write_text("of another image")
    with pytest.raises(OutputError, match=r"x\.tfw lies beside it and would be read as its place"):
        check_output(tmp_path / "x.tif", overwrite=True)
    with atomic_write(tmp_path / "x.tif") as partial:
        partial.write_text("new")
    assert sorted(os.listdir(tmp_path)) == ["x.aux", "x.tab", "x.tfw", "x.tif"]


def test_what_lay_beside_a_file_is_there_again_if_it_could_not_be_replaced(tmp_path, monkeypatch):
    for name in ("x.gpkg", "x.gpkg-wal"):
        (tmp_path / name).write_text("rows")
    real = os.replace

    def failing(source, target):
        if str(target).endswith("x.gpkg"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="No space"), atomic_write(tmp_path / "x.gpkg") as partial:
        partial.write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x.gpkg": "rows", "x.gpkg-wal": "rows"}


def test_a_name_that_was_taken_for_nothing_is_given_back(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), atomic_write(tmp_path / "x.tif", overwrite=False) as partial:
        partial.write_text("new")
    assert not os.listdir(tmp_path)


def test_a_file_for_its_owner_alone_is_that_from_the_first(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "replace", lambda made, final: seen.append(made.stat().st_mode & 0o777))
    with atomic_write(tmp_path / "x.vrt", mode=0o600) as partial:
        partial.write_text("new")
    assert seen == [0o600]


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "a.csv").symlink_to("kept")
    (tmp_path / "b.csv").symlink_to("nowhere")
    for name in ("a.csv", "b.csv"):
        with pytest.raises(OutputError, match="exists already"):
            check_output(tmp_path / name, overwrite=False)
        check_output(tmp_path / name, overwrite=True)
        with atomic_write(tmp_path / name) as partial:
            partial.write_text("new")
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "new"
    assert (tmp_path / "kept").read_text() == "kept"


@pytest.mark.parametrize("name", ["a" * 260, "ä" * 130, "a\udcff.tif", "a\0.tif"])
def test_names_that_no_disk_takes_are_refused_before_work(tmp_path, name):
    with pytest.raises(OutputError) as error:
        check_output(tmp_path / name, overwrite=False)
    str(error.value).encode()


@pytest.mark.parametrize("length", [200, 240, 251])
def test_long_names_are_written(tmp_path, length):
    path = tmp_path / ("a" * length + ".csv")
    check_output(path, overwrite=False)
    for alone in (True, False):
        with atomic_write(path, alone=alone) as partial:
            partial.write_text("new")
        with atomic_files(tmp_path, path.name, alone=alone) as staging:
            (staging / path.name).write_text("new")
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_appeared_meanwhile_is_not_replaced_unasked(tmp_path):
    place = tmp_path / "figures"
    with pytest.raises(OutputError, match="exists now"), atomic_folder(place, overwrite=False) as folder:
        (folder / "new.json").write_text("{}")
        place.mkdir()
        (place / "old.json").write_text("{}")
    assert os.listdir(tmp_path) == ["figures"] and os.listdir(place) == ["old.json"]


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
    for ending in ("partial", "before"):  # left by a killed process of the same number
        (tmp_path / f".figures.{os.getpid()}.{ending}" / "left").mkdir(parents=True)
    with atomic_folder(place) as folder:
        (folder / "newer.json").write_text("{}")
    assert os.listdir(place) == ["newer.json"] and os.listdir(tmp_path) == ["figures"]


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
