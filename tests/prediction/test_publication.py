"""Laws of publication: outputs get their names together, replace nothing unasked, and only for the run they are of."""

import errno
import hashlib
import json
import os
import sqlite3
import threading
import zipfile
from contextlib import closing

import numpy as np
import pyogrio
import pytest
import rasterio

import geood.prediction.pipeline
import geood.prediction.publication
from geood.errors import ConfigError, OutputError, SceneChangedError
from geood.prediction.estimate import plan_run
from geood.prediction.pipeline import predict
from geood.prediction.plan import SceneOptions
from geood.prediction.polygonizing import polygonize
from geood.prediction.workdir import PUBLISHING
from support.bundles import make_bundle
from support.cpu import slow
from support.http_server import serving
from support.rasters import picture, write_raster

NAMES = ["x.above.qml", "x.classes.qml", "x.classes.tif", "x.gpkg", "x.qml", "x.tif"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_raster(tmp_path_factory.mktemp("in") / "scene.tif", picture(70, 90))


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "x.gpkg"


@pytest.fixture
def run(scene, bundle_path):
    """A function of the output: predict the scene."""

    def of(out, *, scenes=(scene,), bundle=bundle_path, **options):
        return predict(list(scenes), out, bundle_path=bundle, **{"threshold": 0.5, **options})

    return of


@pytest.fixture
def meanwhile(monkeypatch):
    """A function of a callable: it is called once when the outputs of a run are complete, before they get names."""

    def call(what):
        begin = geood.prediction.publication.Publication.begin

        def watched(self, *args):
            begin(self, *args)
            what()

        monkeypatch.setattr(geood.prediction.publication.Publication, "begin", watched)
        return lambda: monkeypatch.setattr(geood.prediction.publication.Publication, "begin", begin)

    return call


@pytest.fixture
def killed(run, monkeypatch):
    """A function of the output and of a count: a run that ends when so many of its files have their names."""
    put = geood.prediction.publication.put_in_place

    def after(out, count, *, between=False, **options):
        left = iter(range(count))

        def limited(made, final, **how):
            if next(left, None) is None:
                if between:
                    os.link(made, final)
                raise KeyboardInterrupt
            put(made, final, **how)

        monkeypatch.setattr(geood.prediction.publication, "put_in_place", limited)
        with pytest.raises(KeyboardInterrupt):
            run(out, **options)
        monkeypatch.setattr(geood.prediction.publication, "put_in_place", put)

    return after


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def note_of(out):
    return out.parent / ".x.geood" / PUBLISHING


def count_of(path):
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return database.execute("SELECT count(*) FROM anomalies").fetchone()[0]


@pytest.mark.parametrize("suffixes", [(".gpkg",), *slow(((".gpkg", ".fgb", ".parquet", ".geojson"),))])
def test_equal_runs_have_equal_bytes(tmp_path, run, suffixes):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for suffix in suffixes:
            run(tmp_path / name / f"x{suffix[1:]}{suffix}")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    info = pyogrio.read_info(tmp_path / "a" / "xgpkg.gpkg", layer="anomalies")
    assert info["features"] > 0
    with closing(sqlite3.connect(tmp_path / "a" / "xgpkg.gpkg")) as database:
        times = database.execute("SELECT last_change FROM gpkg_contents UNION SELECT update_time FROM layer_styles")
        assert {time for (time,) in times} == {"2000-01-01T00:00:00.000Z"}


@pytest.mark.parametrize("name", ["x.tif", "x.gpkg", *slow("x.classes.qml")])
def test_a_file_that_appeared_meanwhile_is_kept_and_so_is_the_work(out, run, meanwhile, name):
    restore = meanwhile(lambda: (out.parent / name).write_text("somebody else's"))
    with pytest.raises(OutputError, match=rf"{name}: exists already; add --overwrite"):
        run(out)
    restore()
    assert sorted(os.listdir(out.parent)) == sorted([".x.geood", name])
    assert (out.parent / name).read_text() == "somebody else's"
    with pytest.raises(OutputError, match="exists already"):
        run(out, resume=True)
    (out.parent / name).unlink()
    [made] = run(out, resume=True)
    assert sorted(os.listdir(out.parent)) == NAMES and made.anomalies == count_of(out)


def test_two_runs_that_share_a_name_do_not_share_a_moment(out, run, meanwhile):
    said = []

    def other():
        for name in ("x.tif", "x.geojson", "x.gpkg"):
            with pytest.raises(OutputError, match="another run is writing this output now") as error:
                run(out.with_name(name), overwrite=True)
            said.append(str(error.value))

    meanwhile(other)
    run(out)
    assert len(said) == 3 and sorted(os.listdir(out.parent)) == NAMES


def test_publications_in_one_folder_wait_for_each_other(tmp_path, run, meanwhile, monkeypatch):
    """A run stops in the middle of its publication; another one into the same folder waits until it is through."""
    put, order, at, go = geood.prediction.publication.put_in_place, [], threading.Event(), threading.Event()

    def watched(made, final, **how):
        if final.name == "a.tif":
            at.set()
            go.wait(60)
        order.append(final.stem[0])
        put(made, final, **how)

    monkeypatch.setattr(geood.prediction.publication, "put_in_place", watched)
    finish = geood.prediction.publication.Publication.finish
    first = threading.Thread(target=run, args=(tmp_path / "a.gpkg",))

    def second(self):
        if "b.tif" in self._finals:
            threading.Timer(0.2, go.set).start()
        finish(self)

    monkeypatch.setattr(geood.prediction.publication.Publication, "finish", second)
    first.start()
    assert at.wait(120)
    run(tmp_path / "b.gpkg")
    first.join()
    assert "".join(order) == "aaaaaabbbbbb"


@pytest.mark.parametrize(("count", "between"), [(0, False), (2, False), *slow((0, True), (4, True))])
def test_a_publication_is_finished_whenever_it_ended(out, run, killed, count, between):
    killed(out, count, between=between)
    [made] = run(out, resume=True)
    assert sorted(os.listdir(out.parent)) == NAMES and made.anomalies == count_of(out) and made.valid_pixels == 6300


def test_a_publication_is_finished_for_the_same_run_alone(tmp_path, out, scene, run, killed):
    killed(out, 2)
    before = digests(out.parent)
    other = write_raster(tmp_path / "other" / "scene.tif", picture(70, 90, seed=3))
    model = tmp_path / "other.safetensors"
    make_bundle(model, flow={"steps": 2})
    for match, options in (
        ("threshold: was 0.5, is 0.6", {"threshold": 0.6}),
        ("predict: was", {"settings": ["predict.min_area_m2=3"]}),
        ("scenes: was", {"scenes": [other]}),
        ("scenes: was", {"bundle": model}),
    ):
        with pytest.raises(OutputError, match=match):
            run(out, resume=True, **options)
    for name in ("x.tif", "x.geojson"):
        with pytest.raises(OutputError, match=r"outputs: was|exists already|lies beside it"):
            run(out.with_name(name), resume=True)
    assert digests(out.parent) == before
    run(out, resume=True)
    assert sorted(os.listdir(out.parent)) == NAMES


def test_a_publication_is_finished_from_another_folder(tmp_path, run, killed, monkeypatch):
    (tmp_path / "here" / "out").mkdir(parents=True)
    (tmp_path / "there" / "out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    relative = tmp_path.__class__("out/x.gpkg")
    killed(relative, 1)
    monkeypatch.chdir(tmp_path / "there")
    run(tmp_path / "here" / "out" / "x.gpkg", resume=True)
    assert sorted(os.listdir(tmp_path / "here" / "out")) == NAMES and not os.listdir(tmp_path / "there" / "out")


def crafted(out, note, **files):
    """A work folder in which somebody laid a note and files."""
    note_of(out).parent.mkdir()
    for name, text in files.items():
        (note_of(out).parent / name).write_text(text)
    note_of(out).write_text(note)


DAMAGED = ("[]", "", "null", '{"finals": []}', "\x00\xff", '{"key": {}, "files": [], "scenes": [], "more": 1}')
DAMAGED += ('{"key": {}, "files": [["x.tif", 1e400, 0]], "scenes": []}',)


@pytest.mark.parametrize(
    "note",
    [
        "{",
        *slow(*DAMAGED),
        '{"finals": ["../home/keys", "../home/x.failed_tiles.y"], "made": []}',
        '{"key": {}, "files": [["x.tif", -1, 0]], "scenes": []}',
        "[" * 100_000,
    ],
)
def test_a_damaged_note_is_an_error_of_the_output(tmp_path, out, run, note):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "x.failed_tiles.y").write_text("mine")
    crafted(out, note)
    with pytest.raises(OutputError, match=r"publishing\.json: this note of an unfinished run is damaged"):
        run(out, resume=True)
    run(out, overwrite=True)
    assert os.listdir(tmp_path / "home") == ["x.failed_tiles.y"] and sorted(os.listdir(out.parent)) == NAMES


def test_a_note_leads_to_no_other_path(tmp_path, out, run):
    (tmp_path / "keys").write_text("mine")
    files = [["../../keys", 4, 0], ["/etc/passwd", 1, 1], ["x.tif", 4, 0]]
    crafted(out, json.dumps({"key": {}, "files": files, "scenes": []}), **{"x.tif": "theirs"})
    with pytest.raises(OutputError, match="unfinished run with other inputs"):
        run(out, resume=True)
    assert (tmp_path / "keys").read_text() == "mine" and os.listdir(out.parent) == [".x.geood"]


def test_a_run_without_one_of_its_files_is_no_finished_run(out, run, monkeypatch):
    monkeypatch.setattr(geood.polygons, "write_anomalies", lambda *_, **__: 7)
    with pytest.raises(OutputError, match=r"x\.gpkg: was not made"):
        run(out)
    assert not (out.parent / "x.tif").exists()


ODD = ["q;1", "a?b#c%20d", "a!b", "a\tb\nc", "'q\" naïve 🌍", "a" * 220]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        (ODD[4], ".gpkg"),
        ("q;1\n?", ".parquet"),
        *slow(*((name, ".gpkg") for name in (*ODD[:4], ODD[5])), *(("q;1\n?", s) for s in (".geojson", ".fgb"))),
    ],
)
def test_outputs_have_the_names_that_were_asked_for(tmp_path, run, name, suffix):
    (tmp_path / "q").write_text("mine")
    [made] = run(tmp_path / f"{name}{suffix}")
    raster = f"{name}.scores" if suffix != ".gpkg" else name  # as its style may not have the stem of another file
    wanted = {f"{raster}{end}" for end in (".tif", ".qml", ".above.qml", ".classes.tif", ".classes.qml")}
    wanted |= {f"{name}{end}" for end in ((suffix,) if suffix == ".gpkg" else (suffix, ".qml"))}
    assert set(os.listdir(tmp_path)) == {"q", *wanted} and (tmp_path / "q").read_text() == "mine"
    again = tmp_path / f"again{name[:200]}{suffix}"
    assert polygonize(made.scores, again, threshold=0.5) == made.anomalies > 0
    if suffix == ".gpkg":
        assert count_of(again) == count_of(made.polygons) == made.anomalies


@pytest.mark.parametrize("folder", ["a;b!c", "c\td.zip"])
def test_outputs_lie_in_folders_of_any_name(tmp_path, run, folder):
    (tmp_path / folder).mkdir()
    run(tmp_path / folder / "x.gpkg")
    assert sorted(os.listdir(tmp_path / folder)) == NAMES and os.listdir(tmp_path) == [folder]


@pytest.mark.parametrize("name", ["a" * 250 + ".gpkg", "é" * 124 + ".gpkg", "a" * 240 + ".geojson", "a\udcff.gpkg"])
def test_names_that_cannot_be_written_are_refused_before_work(tmp_path, run, name):
    with pytest.raises(OutputError) as error:
        run(tmp_path / name, bundle="never read")
    str(error.value).encode()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("ending", ["-wal", *slow("-journal")])
def test_what_lay_beside_an_older_file_does_no_harm_to_the_new_one(out, run, ending):
    run(out)
    with closing(sqlite3.connect(out)) as database:
        database.execute("PRAGMA journal_mode=wal")
        database.execute("CREATE TABLE notes(a)")
        out.with_name("kept").write_bytes(out.with_name("x.gpkg-wal").read_bytes())
    out.with_name("kept").rename(out.with_name(f"x.gpkg{ending}"))
    [made] = run(out, threshold=0.4, overwrite=True)
    assert sorted(os.listdir(out.parent)) == NAMES and count_of(out) == made.anomalies
    for name in NAMES:
        out.with_name(name).unlink()
    out.with_name(f"x.gpkg{ending}").write_text("left alone")
    with pytest.raises(OutputError, match=rf"x\.gpkg{ending} lies beside it"):
        run(out)


def test_statistics_and_masks_of_an_older_raster_go_with_it(out, run):
    [before] = run(out)
    for ending in (".aux.xml", ".msk", ".ovr"):
        before.scores.with_name(f"x.tif{ending}").write_text("of the older raster")
    [made] = run(out, overwrite=True)
    assert sorted(os.listdir(out.parent)) == NAMES
    with rasterio.open(made.scores) as raster:
        assert raster.files == [str(made.scores)] and np.isfinite(raster.read(1)).all()


def test_polygons_are_not_left_beside_the_raster_of_another_run(out, run):
    run(out)
    before = digests(out.parent)
    for name, match in (
        ("x.tif", r"belongs to the polygons in x\.gpkg"),
        ("x.parquet", r"x\.tif lies beside it, and QGIS"),
    ):
        with pytest.raises(OutputError, match=match):
            run(out.with_name(name), overwrite=True)
    assert digests(out.parent) == before
    out.with_name("x.geojson").write_text('{"type": "FeatureCollection", "features": []}')  # of the user's own
    run(out, overwrite=True)
    assert out.with_name("x.geojson").exists()
    for name in NAMES:
        out.with_name(name).unlink()
    run(out.with_suffix(".parquet"), overwrite=True)
    for name, match in (
        ("x.gpkg", r"x\.tif: belongs to the polygons in x\.parquet"),
        ("x.scores.tif", r"x\.scores\.tif: belongs to the polygons in x\.parquet"),
    ):
        with pytest.raises(OutputError, match=match):  # their style, or their raster
            run(out.with_name(name), overwrite=True)
    assert out.with_name("x.geojson").exists()


def test_a_file_beside_the_output_asks_no_server(out, run):
    run(out.with_name("x.tif"))
    with serving(out.parent) as server:
        for suffix in (".gpkg", ".fgb", ".geojson"):
            path = out.with_suffix(suffix)
            path.write_text(f"<OGRWFSDataSource><URL>{server.url('wfs')}</URL></OGRWFSDataSource>")
        run(out.with_name("x.tif"), overwrite=True)
        assert not server.requests


@pytest.mark.parametrize("count", [None, *slow(0, 3)])
def test_a_run_goes_on_with_its_own_tiles_where_another_machine_would_choose_others(out, tmp_path, killed, run, count):
    """`count` files have their names when it is stopped; None: it is stopped before its rasters are made."""
    made = make_bundle(tmp_path / "m.safetensors", predict={"tile_px": "auto"})
    how = {"bundle": tmp_path / "m.safetensors"}
    run(out.with_stem("y"), **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geood.prediction.plan.scene_side", lambda *_, **__: (2048, False))
        if count is None:
            patch.setattr("geood.prediction.rasters.Assembly.finish", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(out, **how)
        else:
            killed(out, count, **how)
    assert made.tile_px == 1024
    with pytest.raises(OutputError, match="holds an unfinished run with other inputs"):
        run(out, resume=True, max_ram="8GB", **how)
    [result] = run(out, resume=True, **how)
    assert result.valid_pixels and sorted(os.listdir(out.parent)) == sorted([*NAMES, *(f"y{n[1:]}" for n in NAMES)])


def test_a_plan_tells_the_tiles_of_an_unfinished_run(out, tmp_path, scene, killed, run):
    """Those of the same outputs, whether it was stopped before or after its rasters were made."""
    make_bundle(tmp_path / "m.safetensors", predict={"tile_px": "auto"})
    how = {"bundle_path": tmp_path / "m.safetensors", "options": SceneOptions()}
    assert "resume" not in (fresh := dict(plan_run(str(scene), out=out, **how)))
    assert fresh["tiles"].startswith("1 of 1024 px")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geood.prediction.plan.scene_side", lambda *_, **__: (1536, False))
        killed(out, 2, bundle=how["bundle_path"])
        patch.setattr("geood.prediction.rasters.Assembly.finish", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(out.with_stem("y"), bundle=how["bundle_path"])
    for begun in (out, out.with_stem("y")):
        said = dict(plan_run(str(scene), out=begun, **how))
        assert said["tiles"].startswith("1 of 1536 px") and said["resume"].startswith("in tiles of 1536 px")
    assert dict(plan_run(str(scene), out=out.with_stem("z"), **how))["tiles"] == fresh["tiles"]
    assert "1536" not in dict(plan_run(str(scene), out=out, max_ram="8GB", **how))["tiles"]


def _interrupted(*_, **__):
    raise KeyboardInterrupt


def test_another_member_of_an_archive_is_another_scene(tmp_path, scene, run, killed):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("x.tif", "y.tif"):
            archive.write(scene, name)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "o.tif"
    killed(out, 1, scenes=[tmp_path / "a.zip" / "x.tif"])
    with pytest.raises(OutputError, match="scenes: was"):
        run(out, resume=True, scenes=[tmp_path / "a.zip" / "y.tif"])


@pytest.mark.parametrize("step", ["scored_scenes.assemble_rasters", *slow("plan._check_sample")])
def test_a_scene_that_changes_while_it_is_read_has_no_map(tmp_path, out, run, monkeypatch, step):
    scene = write_raster(tmp_path / "in" / "s.tif", picture(70, 90))
    room, name = step.split(".")
    before = getattr(getattr(geood.prediction, room), name)

    def changed(*args, **kwargs):
        result = before(*args, **kwargs)
        write_raster(scene, picture(70, 90, seed=1))
        return result

    monkeypatch.setattr(f"geood.prediction.{step}", changed)
    with pytest.raises(SceneChangedError, match=r"s\.tif: changed while it was read") as error:
        run(out, scenes=[scene])
    assert error.value.exit_code == 4 and not os.listdir(out.parent)
    monkeypatch.setattr(f"geood.prediction.{step}", before)
    run(out, scenes=[scene])


def test_a_disk_that_is_full_for_a_style_is_told_and_the_tiles_are_kept(out, run, monkeypatch):
    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        with pytest.raises(OutputError, match=r"x\.classes\.qml: cannot be written \(No space left"):
            run(out)
    assert os.listdir(out.parent) == [".x.geood"]
    run(out, resume=True)
    assert sorted(os.listdir(out.parent)) == NAMES


def test_a_link_in_place_of_an_output_is_replaced_and_not_what_it_leads_to(tmp_path, out, run):
    (tmp_path / "kept").write_text("kept")
    out.symlink_to(tmp_path / "kept")
    out.with_name("x.tif").symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists already"):
        run(out)
    run(out, overwrite=True)
    assert (tmp_path / "kept").read_text() == "kept" and not any(p.is_symlink() for p in out.parent.iterdir())


def test_a_name_without_a_suffix_is_a_folder(tmp_path, run):
    run(tmp_path / "results")
    assert sorted(os.listdir(tmp_path / "results"))[-1] == "scene.tif"
    with pytest.raises(ConfigError, match=r"results\.v1: cannot tell what to write.*or make a folder of that name"):
        run(tmp_path / "results.v1")
    (tmp_path / "results.v1").mkdir()
    run(tmp_path / "results.v1")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="link"):
        run(tmp_path / "link", overwrite=True)
