"""Laws of scenes that cannot be read: by default nothing is done without them; on request all others are mapped."""

import csv
import hashlib
import itertools
from pathlib import Path

import pytest
from affine import Affine
from PIL import Image

import geood.prediction.pipeline
import geood.prediction.publication
from geood.cli.process import _run
from geood.errors import ConfigError, DataError, OutputError, SceneChangedError, ScenesSkippedError, TilesFailedError
from geood.prediction import scored_scenes, unreadable
from geood.prediction.pipeline import predict
from support.rasters import picture, write_raster, write_torn


@pytest.fixture
def folder(tmp_path):
    """A folder of three scenes, and of two files that are called so."""
    for number in range(3):
        write_raster(tmp_path / "in" / f"s{number}.tif", picture(40, 50, seed=number))
    (tmp_path / "in" / "empty.tif").touch()
    (tmp_path / "in" / "s1b.jpg").write_bytes(b"\xff\xd8\xff and no more")
    return tmp_path / "in"


def digests(folder):
    """Return the bytes of all rasters of a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tif"))}


def whole(folder, out, bundle_path):
    """Return the maps of the scenes that can be read, predicted without the others."""
    predict(sorted(folder.glob("s?.tif")), out, bundle_path=bundle_path)
    return digests(out)


def test_all_that_cannot_be_read_are_named_before_any_work(tmp_path, folder, bundle_path):
    with pytest.raises(DataError, match=r"2 of 5 scenes cannot be read") as error:
        predict([folder], tmp_path / "out", bundle_path=bundle_path)
    said = str(error.value)
    assert "empty.tif" in said and "s1b.jpg" in said and "--unreadable skip" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("memory", [None, "8GB"])
def test_the_others_are_mapped_and_those_left_out_are_listed(tmp_path, folder, bundle_path, memory):
    with pytest.raises(ScenesSkippedError, match=r"2 of 5 scenes .*left out.*empty\.tif.*s1b\.jpg") as error:
        predict([folder], tmp_path / "out", bundle_path=bundle_path, unreadable="skip", max_ram=memory)
    assert error.value.exit_code == 4
    assert [Path(made.scene).name for made in error.value.made] == ["s0.tif", "s1.tif", "s2.tif"]
    assert {name for name, _ in error.value.skipped} == {str(folder / "empty.tif"), str(folder / "s1b.jpg")}
    assert digests(tmp_path / "out") == whole(folder, tmp_path / "whole", bundle_path)
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["skipped"]) for row in rows] == [False, False, False, True, True]
    assert [row["valid_pixels"] for row in rows] == ["2000"] * 3 + [""] * 2
    assert {row["scene"]: row["scores"] for row in rows[3:]} == {"empty.tif": "", "s1b.jpg": ""}


def test_a_shared_polygon_file_is_of_the_others(tmp_path, folder, bundle_path):
    with pytest.raises(ScenesSkippedError):
        predict([folder], tmp_path / "x.gpkg", bundle_path=bundle_path, unreadable="skip", threshold=0.5)
    predict(sorted(folder.glob("s?.tif")), tmp_path / "y.gpkg", bundle_path=bundle_path, threshold=0.5)
    assert len(digests(tmp_path)) == 12


def test_a_file_that_can_only_be_opened_is_left_out_and_one_damaged_further_on_is_mapped(tmp_path, folder, bundle_path):
    Image.fromarray(picture(300, 64).transpose(1, 2, 0)).save(folder / "torn.png")
    whole = (folder / "torn.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:2000])
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    told = r"3 of 7 scenes .*empty\.tif.*s1b\.jpg.*cut\.png.*; torn\.png: \d+ tiles? could not be scored"
    with pytest.raises(ScenesSkippedError, match=told) as error:
        predict([folder], tmp_path / "out", bundle_path=bundle_path, unreadable="skip", settings=["predict.tile_px=64"])
    assert [bool(made.failed_tiles) for made in error.value.made] == [False, False, False, True]
    assert not [path for path in (tmp_path / "out").iterdir() if "cut" in path.name]


def test_a_damaged_scene_is_warned_of_as_others_are(tmp_path, bundle_path, caplog):
    degrees = Affine(6.3e-6, 0, 15, 0, -6.3e-6, 60)
    scene = write_torn(tmp_path / "a.tif", picture(192, 256), torn=[(1, 1)], crs="EPSG:4326", transform=degrees)
    with pytest.raises(TilesFailedError):
        predict([scene], tmp_path / "m.tif", bundle_path=bundle_path, settings=["predict.tile_px=64"])
    assert "were not compared" in caplog.text and "look stretched" in caplog.text


@pytest.mark.parametrize("step", ["write_summary", "put_in_place"])
def test_a_run_that_left_some_out_is_resumed(tmp_path, folder, bundle_path, monkeypatch, step):
    module = geood.prediction.pipeline if step == "write_summary" else geood.prediction.publication

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, step, interrupted)
        predict([folder], tmp_path / "out", bundle_path=bundle_path, unreadable="skip")
    with pytest.raises(ScenesSkippedError):
        predict([folder], tmp_path / "out", bundle_path=bundle_path, unreadable="skip", resume=True)
    assert digests(tmp_path / "out") == whole(folder, tmp_path / "whole", bundle_path)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def losing(monkeypatch, gone, *, when):
    """Delete a scene when that of number `when` is scored, before (its own number) or after it."""
    number = itertools.count()

    def scored(*arguments, **named):
        if next(number) != when:
            return real(*arguments, **named)
        if int(gone.stem[1:]) == when:
            gone.unlink()
        made = real(*arguments, **named)
        gone.unlink(missing_ok=True)
        return made

    real = scored_scenes.assemble_rasters
    monkeypatch.setattr(scored_scenes, "assemble_rasters", scored)


@pytest.mark.parametrize(("name", "when"), [("s1", 1), ("s2", 1), ("s0", 2)])
@pytest.mark.parametrize("out", ["out", "x.gpkg"])
def test_a_scene_that_goes_while_others_are_scored_is_left_out_too(
    tmp_path, folder, bundle_path, monkeypatch, out, name, when
):
    losing(monkeypatch, folder / f"{name}.tif", when=when)
    out = tmp_path / out
    with pytest.raises(ScenesSkippedError, match=rf"3 of 5 scenes .*{name}\.tif") as error:
        predict([folder], out, bundle_path=bundle_path, unreadable="skip", threshold=0.5)
    left = sorted(path.stem for path in folder.glob("s?.tif"))
    assert [Path(made.scene).stem for made in error.value.made] == left and len(left) == 2
    again = tmp_path / "again" / out.name
    again.parent.mkdir()
    predict(sorted(folder.glob("s?.tif")), again, bundle_path=bundle_path, threshold=0.5)
    place, other = (out, again) if out.is_dir() else (tmp_path, again.parent)
    assert digests(place) == digests(other) and len(digests(place)) == 4
    table = out / "summary.csv" if out.is_dir() else tmp_path / "x.summary.csv"
    with table.open(newline="") as file:
        assert [row["scene"] for row in csv.DictReader(file) if row["skipped"]].count(f"{name}.tif") == 1
    assert not [path for path in (*tmp_path.iterdir(), *place.iterdir()) if path.name.startswith(".")]


def test_a_scene_that_goes_while_others_are_scored_ends_the_run_by_default(tmp_path, folder, bundle_path, monkeypatch):
    losing(monkeypatch, folder / "s2.tif", when=1)
    with pytest.raises(DataError, match=r"s2\.tif"):
        predict(sorted(folder.glob("s?.tif")), tmp_path / "out", bundle_path=bundle_path)
    assert not digests(tmp_path / "out")


def after_scoring(monkeypatch, deed, *, scenes=3):
    """Do something once all scenes are scored."""
    scored = []

    def assembled(*arguments, **named):
        scored.append(real(*arguments, **named))
        if len(scored) == scenes:
            deed()
        return scored[-1]

    real = scored_scenes.assemble_rasters
    monkeypatch.setattr(scored_scenes, "assemble_rasters", assembled)


@pytest.mark.parametrize("overview", [False, True])
def test_a_scene_that_goes_once_it_was_asked_for_is_mapped(tmp_path, folder, bundle_path, monkeypatch, overview):
    """All its pixels were read, and its state was asked for once: a second question, or a picture, ended the run."""

    def stated(name):
        found = real(name)
        if Path(name).stem == "s1":
            Path(name).unlink()
        return found

    real = scored_scenes.fingerprint
    modules = (scored_scenes, unreadable)
    after_scoring(monkeypatch, lambda: [monkeypatch.setattr(module, "fingerprint", stated) for module in modules])
    with pytest.raises(ScenesSkippedError, match="2 of 5 scenes") as error:
        predict([folder], tmp_path / "out", bundle_path=bundle_path, unreadable="skip", overview=overview)
    assert [Path(made.scene).stem for made in error.value.made] == ["s0", "s1", "s2"]
    drawn = [made.overview is not None and made.overview.exists() for made in error.value.made]
    assert drawn == ([True, False, True] if overview else [False] * 3)


@pytest.mark.parametrize("skip", [False, True])
def test_a_scene_that_went_is_told_before_one_that_changed(tmp_path, folder, bundle_path, monkeypatch, caplog, skip):
    def change():
        write_raster(folder / "s0.tif", picture(40, 50, seed=9))
        (folder / "s2.tif").unlink()

    after_scoring(monkeypatch, change)
    expected, told = (SceneChangedError, r"s0\.tif: changed while") if skip else (DataError, r"s2\.tif")
    with pytest.raises(expected, match=told):
        predict(
            sorted(folder.glob("s?.tif")),
            tmp_path / "out",
            bundle_path=bundle_path,
            unreadable="skip" if skip else "error",
        )
    assert ("1 of 3 scenes cannot be read and are left out" in caplog.text) == skip
    assert not digests(tmp_path / "out")
    [left] = [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert {path.stem for path in left.glob("*.journal")} == ({"s1"} if skip else {"s1", "s2"})


def test_each_warning_counts_all_scenes_that_were_asked_for(tmp_path, folder, bundle_path, monkeypatch, caplog):
    Image.fromarray(picture(300, 64).transpose(1, 2, 0)).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])
    losing(monkeypatch, folder / "s2.tif", when=1)
    with pytest.raises(ScenesSkippedError, match="4 of 6 scenes"):
        predict([folder], tmp_path / "out", bundle_path=bundle_path, unreadable="skip")
    told = [text for text in caplog.messages if "cannot be read and are left out" in text]
    assert [text.partition(" cannot")[0] for text in told] == ["2 of 6 scenes", "1 of 6 scenes", "1 of 6 scenes"]
    for path in folder.glob("s?.tif"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 3 scenes can be read"):
        predict([folder], tmp_path / "none", bundle_path=bundle_path, unreadable="skip")


def test_an_archive_that_is_none_is_left_out(tmp_path, folder, bundle_path):
    (tmp_path / "odd.zip").write_bytes(b"PK and no more")
    with pytest.raises(ScenesSkippedError, match=r"1 of 2 scenes .*odd\.zip"):
        predict([folder / "s0.tif", tmp_path / "odd.zip"], tmp_path / "out", bundle_path=bundle_path, unreadable="skip")


def test_an_interrupted_publication_after_a_scene_went_is_finished(tmp_path, folder, bundle_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    how = {"bundle_path": bundle_path, "unreadable": "skip"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        losing(patch, folder / "s1.tif", when=2)
        patch.setattr(geood.prediction.publication, "put_in_place", interrupted)
        predict([folder], tmp_path / "out", **how)
    with pytest.raises(ScenesSkippedError, match=r"2 of 4 scenes"):
        predict([folder], tmp_path / "out", resume=True, **how)
    assert digests(tmp_path / "out") == whole(folder, tmp_path / "whole", bundle_path)


def test_an_older_map_of_a_scene_that_is_left_out_stays_and_is_told(tmp_path, folder, bundle_path):
    predict(sorted(folder.glob("s?.tif")), tmp_path / "out", bundle_path=bundle_path)
    older = (tmp_path / "out" / "s1.gpkg").read_bytes()
    (folder / "s1.tif").write_bytes(b"II*\0")
    with pytest.raises(ScenesSkippedError, match=r"s1\.tif.*its older map s1\.gpkg stays\)") as error:
        predict([folder], tmp_path / "out", bundle_path=bundle_path, unreadable="skip", overwrite=True)
    assert str(error.value).count("older map") == 1 and (tmp_path / "out" / "s1.gpkg").read_bytes() == older
    assert (tmp_path / "out" / "summary.csv").read_text().count("its older map s1.gpkg stays") == 1


def test_nothing_is_passed_over_that_can_be_read_and_does_not_fit(tmp_path, folder, bundle_path):
    write_raster(folder / "one.tif", picture(40, 50, bands=1))
    with pytest.raises(DataError, match=r"one\.tif: .*band"):
        predict([folder], tmp_path / "out", bundle_path=bundle_path, unreadable="skip")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_asked_for(tmp_path, folder, bundle_path):
    for match, how in (("--unreadable", {"unreadable": "ignore"}), ("mosaic", {"unreadable": "skip", "mosaic": True})):
        with pytest.raises(ConfigError, match=match):
            predict([folder], tmp_path / "x.gpkg", bundle_path=bundle_path, **how)
    for path in folder.glob("s?.tif"):
        path.unlink()
    with pytest.raises(DataError, match=r"none of the 2 scenes can be read"):
        predict([folder], tmp_path / "out", bundle_path=bundle_path, unreadable="skip")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "empty.gpkg").touch()
    with pytest.raises(OutputError, match=r"empty\.gpkg: exists"):  # a map of it may be an older one
        predict([folder], tmp_path / "out", bundle_path=bundle_path, unreadable="skip")


def test_the_command_prints_the_maps_and_ends_with_4(tmp_path, folder, bundle_path, capsys):
    line = ["predict", str(folder), "--out", str(tmp_path / "out"), "--model", str(bundle_path)]
    assert _run([*line, "--unreadable", "skip"], debug=False) == 4
    said = capsys.readouterr()
    assert said.out.count("pixels scored") == 3 and "2 of 5 scenes" in said.err
