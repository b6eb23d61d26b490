"""Laws of the report: one file that asks for nothing, escapes everything, says what is absent, and stays small."""

import base64
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from geopandas import GeoDataFrame
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from geood.calibration import Verdict
from geood.calibration.verdict import FAILS, HOLDS, UNKNOWN
from geood.cli.process import _run
from geood.cli.report import print_training
from geood.config.loading import to_yaml
from geood.errors import ConfigError, DataError, OutputError, TilesFailedError
from geood.geo.grid import Grid
from geood.models import ModelBundle
from geood.polygons.reading import read_anomalies
from geood.prediction.pipeline import predict
from geood.prediction.polygonizing import polygonize
from geood.reporting import scenes
from geood.reporting.gallery import keys_of
from geood.reporting.maps import SceneMap, read_maps
from geood.reporting.page import PAGE_BYTES, Sources, read_sources, render, report
from geood.reporting.pictures import score_layer
from geood.reporting.runs import config_differences, read_run, run_lines
from geood.training.run_folder import write_confusion, write_versions
from support.browser import PROGRAM, browser
from support.bundles import make_bundle, small_config
from support.rasters import picture, write_raster, write_torn

HOSTILE = "<script>document.title='taken'</script>"
CLASSES = {0: HOSTILE, 1: "road & $x$", 2: '"roof" onload=alert(1)'}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, a map and an evaluation whose names, classes and comments would all be markup."""
    folder = tmp_path_factory.mktemp("made")
    run = folder / "run"
    (run / "samples").mkdir(parents=True)
    make_bundle(run / "model.safetensors", data={"classes": CLASSES}, segmenter={"encoder": "resnet10t"})
    scene = write_raster(folder / "<img src=x onerror=alert(1)>.tif", picture(150, 180))
    [prediction] = predict(
        [scene], folder / "<b>map.gpkg", bundle_path=run / "model.safetensors", threshold=0.6, overview=True
    )
    judge(prediction.polygons)
    (run / "config.yaml").write_text(to_yaml(small_config(data={"classes": CLASSES})), encoding="utf-8")
    rows = [
        ("segmenter", 10, "train/loss", 1.5),
        ("segmenter", 20, "train/loss", 0.5),
        ("segmenter", 20, "val/miou", 0.4),
    ]
    rows += [("joint", 8, "val/miou", 0.45), ("joint", 8, "val/bpd", 3.5), ("joint", 8, "val/pasted_corr_1", 0.2)]
    rows += [("joint", 8, "val/real_pasted_corr_1", 0.9)]
    lines = ["stage,step,figure,value", *(",".join(map(str, row)) for row in rows)]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    write_confusion(run / "confusion.csv", list(CLASSES.values()), np.array([[8, 1, 1], [0, 5, 5], [0, 0, 0]]))
    write_versions(run)
    Image.new("RGB", (64, 40), "teal").save(run / "samples" / "joint_000008.png")
    squares = GeoDataFrame({"split": ["train", "validation"]}, geometry=[shapely.box(i, 0, i + 1, 1) for i in range(2)])
    squares.to_file(run / "split.gpkg", layer="blocks", engine="pyogrio")
    curve = [[0.9, 0.5, 1.0], [0.1, 1.0, 0.25]]
    row = {"score": "jsd", "average_precision": 0.75, "fpr95": None, "auroc": 0.9}
    found = {"things": 4, "polygons": 3, "false_polygons": 1, "score": "jsd"}
    objects = [{**found, "at": f"fpr {i}", "threshold": i, "found": i, "false_per_km2": 10.0 * i} for i in (1, 2)]
    figures = {"model": "0" * 12, "score": "jsd", "rows": [row], "base_rate": 0.01, "pixels": 100, "curve": curve}
    figures |= {"objects": objects, "class_iou": {HOSTILE: 0.5}, "confusion": [[7]], "miou": 0.5}
    (folder / "metrics.json").write_text(json.dumps(figures))
    return folder, run, prediction


def judge(path):
    """Type a verdict and a comment that is markup."""
    with sqlite3.connect(path) as database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):  # of the triggers of the index
            database.create_function(name, 1, lambda _: 0)
        database.execute("UPDATE anomalies SET verdict = 'real', comment = ? WHERE rank = 1", [HOSTILE])
    database.close()


@pytest.fixture(scope="module")
def page(made):
    folder, run, prediction = made
    out = folder / "all.html"
    return report([run, prediction.polygons, folder / "metrics.json"], out)


class Reader(HTMLParser):
    """Counts tags, and collects addresses and what stands in scripts."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.images, self.inside, self.scripts = [], [], [], None, []
        self.ids = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        given = dict(attrs)
        self.addresses += [given[key] for key in ("src", "href", "xlink:href", "action", "data") if key in given]
        self.images += [given] if tag == "img" else []
        self.ids += [given["id"]] if "id" in given else []
        assert not [key for key in given if key.startswith("on")], (tag, attrs)

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)

    def handle_endtag(self, tag):
        self.inside = None


def read(path):
    reader = Reader()
    reader.feed(Path(path).read_text(encoding="utf-8"))
    return reader


def test_everything_from_a_file_is_escaped(page):
    reader, text = read(page), page.read_text(encoding="utf-8")
    assert reader.tags.count("script") == 1 and "taken" not in "".join(reader.scripts)
    assert HOSTILE not in text and "&lt;script&gt;document.title" in text and "<img src=x" not in text
    assert text.count("&lt;script&gt;document.title") >= 5  # title of a card, filter, classes, comment, config
    assert "&lt;b&gt;map.gpkg" in text


def test_the_page_asks_for_nothing_and_its_ids_are_its_own(page):
    reader = read(page)
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert not re.search(r"url\((?!#)", page.read_text(encoding="utf-8"))
    assert len(reader.ids) == len(set(reader.ids))
    assert {address[1:] for address in reader.addresses if address.startswith("#")} <= set(reader.ids)


def test_every_picture_is_told_in_words(page):
    reader = read(page)
    assert reader.images and all(image.get("alt") for image in reader.images)


def test_the_policy_names_the_digest_of_the_script(page):
    text = page.read_text(encoding="utf-8")
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text


def test_all_sections_tell_what_they_have(page, made):
    text = page.read_text(encoding="utf-8")
    for told in (
        "of the scene above the threshold",
        "polygons per km",
        "Precision by recall",
        "Things found",
        "Loss",
        "mIoU of the classes",
    ):
        assert told in text, told
    assert "another model (" in text  # of the figures, which are not of this run's model
    assert "far off" in text and "Map of the split" in text
    frame = read_anomalies(made[2].polygons, most=500)
    assert text.count('<article class="card"') == len(frame) >= 2
    assert "<strong>1</strong> real." in text and "correlation of pixels 1 px apart</td>" in text
    assert 'class="badge real"' in text and "$\\mathdefault" not in text


@pytest.mark.parametrize(
    ("answer", "said"),
    [(HOLDS, "Its budget holds"), (FAILS, "Its budget does not hold"), (UNKNOWN, "It cannot be told")],
)
def test_the_page_answers_in_the_words_of_predict(made, answer, said):
    [map_read] = read_maps(made[2].polygons)
    judged = dataclasses.replace(map_read.verdict, answer=answer)
    text = render(Sources(None, [dataclasses.replace(map_read, verdict=judged)], []), title="x")
    assert f'<div class="answer">{said}</div>' in text and judged.lines()[0].startswith(f"budget     {answer}:")


def test_what_is_not_there_is_said_to_be_absent(made, tmp_path, caplog):
    """One source alone: every other section says so, and none shows a figure that it has not."""
    folder, run, prediction = made
    for source, absent in ((run, 4), (prediction.polygons, 7), (folder / "metrics.json", 9)):
        text = render(read_sources([source]), title="one")
        assert text.count("<b>Absent.</b>") >= absent, source
    bare = tmp_path / "bare.gpkg"
    bare.write_bytes(prediction.polygons.read_bytes())
    text = render(read_sources([bare]), title="bare")
    assert "bare.tif is not beside the polygons" in text and "No verdict in" in text
    with caplog.at_level("INFO", "geood"):
        report([bare], tmp_path / "bare.html")
    assert "bare.tif is not beside the polygons: no scores, no verdict. Put it there." in caplog.text
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text((run / "config.yaml").read_text())
    text = render(read_sources([tmp_path / "begun"]), title="begun")
    assert "not finished" in text and "no figures yet" in text and "was not kept" in text


def test_the_scene_is_looked_for_and_its_absence_is_said(made, tmp_path):
    folder, _, prediction = made
    for path in (prediction.polygons, prediction.scores):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    [lonely] = read_maps(tmp_path / prediction.polygons.name)
    assert lonely.scene is None and "name it with --scene" in lonely.notes[0]
    assert "data:image/jpeg" in render(read_sources([tmp_path / prediction.polygons.name]), title="x")  # of the scores
    [given] = read_maps(tmp_path / prediction.scores.name, scenes=[Path(prediction.scene)])
    assert given.scene == Path(prediction.scene) and given.frame is not None
    [found] = read_maps(tmp_path / prediction.polygons.name, scenes=[Path(prediction.scene).parent])
    assert found.scene == Path(prediction.scene)
    (tmp_path / "empty").mkdir()
    [none] = read_maps(tmp_path / prediction.polygons.name, scenes=[tmp_path / "empty"])
    assert none.scene is None and "name it with --scene" in none.notes[0]
    other = write_raster(tmp_path / "other.tif", picture(30, 30))
    [wrong] = read_maps(tmp_path / prediction.polygons.name, scenes=[other])
    assert wrong.scene is None and "30 x 30" in wrong.notes[0]
    assert [each.label for each in read_maps(folder)] == [given.label]
    with pytest.raises(ConfigError, match=r"--scene none\.tif: no such file"):
        read_maps(prediction.polygons, scenes=[Path("none.tif")])


def test_an_image_of_another_name_is_shown_beside_a_folder_that_has_none_or_is_named(made, tmp_path):
    _, run, prediction = made
    for path in (prediction.polygons, prediction.scores):
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "empty").mkdir()
    lonely = tmp_path / prediction.polygons.name
    renamed = Path(shutil.copy(prediction.scene, tmp_path / "renamed.tif"))
    [shown] = read_maps(lonely, scenes=[renamed, tmp_path / "empty"])
    assert shown.scene == renamed
    [named] = read_maps(lonely, scenes=[renamed, Path(prediction.scene).parent])
    assert named.scene == Path(prediction.scene)
    both = read_sources([lonely, prediction.scores], scenes=[renamed, Path(prediction.scene)])
    assert [each.scene for each in both.maps] == [Path(prediction.scene)] * 2
    for sources in (both, read_sources([run], scenes=[renamed])):
        assert f"it is of {renamed}, so it is not shown" in render(sources, title="x")
    part = Path(shutil.copy(prediction.scene, tmp_path / Path(prediction.scene).name[1:]))  # of a name that is told
    assert read_sources([lonely, prediction.scores], scenes=[part]).unused == [part]
    again = tmp_path / "empty" / ".." / ".." / Path(prediction.scene).parent.name / Path(prediction.scene).name
    assert again.samefile(prediction.scene)
    assert read_sources([lonely], scenes=[Path(prediction.scene), again]).unused == []


def test_a_damaged_scene_is_shown_as_far_as_it_can_be_read(bundle_path, tmp_path):
    scene = write_torn(tmp_path / "torn.tif", picture(256, 256), torn=[(1, 1)])
    with pytest.raises(TilesFailedError) as error:
        predict([scene], tmp_path / "m.gpkg", bundle_path=bundle_path, threshold=0.6, settings=["predict.tile_px=64"])
    [made] = error.value.made
    text = render(read_sources([made.polygons], scenes=[scene]), title="x")
    assert text.count("data:image/jpeg") > made.anomalies > 0 and "was not found" not in text


def test_polygons_that_were_cut_again_are_shown_with_the_scores_they_were_cut_from(made, tmp_path):
    _, _, prediction = made
    scores = tmp_path / "m.tif"
    scores.write_bytes(prediction.scores.read_bytes())
    count = polygonize(scores, tmp_path / "cut.gpkg", threshold=0.5, min_area_m2=0)
    [cut] = read_maps(tmp_path / "cut.gpkg", scenes=[Path(prediction.scene)])
    [whole] = read_maps(scores)
    assert (cut.scores, cut.threshold, cut.total, cut.least_m2) == (scores, 0.5, count, 0)
    assert cut.verdict == whole.verdict and whole.threshold == pytest.approx(0.6)
    assert cut.per_km2 == pytest.approx(count / cut.verdict.km2) and "cut again at 0.5" in cut.notes[0]
    text = render(read_sources([tmp_path / "cut.gpkg"], scenes=[Path(prediction.scene)]), title="x")
    assert f"{count} polygon" in text and "this map has" not in text


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_500_polygons_fit_on_a_page(tmp_path, monkeypatch, count):
    """The worst scene is noise, which no picture format makes smaller. A tenth of it fits into a tenth of the bytes."""
    for name in ("SCENE_BYTES", "CARD_BYTES"):
        monkeypatch.setattr(scenes, name, getattr(scenes, name) * count // 500)
    noise = np.random.default_rng(0).integers(0, 256, (3, 900, 900)).astype("uint8")
    scene = write_raster(tmp_path / "noise.tif", noise)
    rng = np.random.default_rng(1)
    centres = rng.uniform(40, 860, (count, 2))
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    shapes = [
        shapely.Polygon(np.stack([x + r * np.cos(angles), y + r * np.sin(angles)], 1))
        for (x, y), r in zip(centres, rng.uniform(5, 30, (count, 60)), strict=True)
    ]
    columns = {
        "rank": range(1, count + 1),
        "class_name": "land",
        "score_max": 1.0,
        "score_mean": 0.9,
        "area_px": 9,
        "model": "m",
    }
    columns |= {"runner_up": "road", "margin": 0.1, "contrast": 0.5, "p_value": 0.001, "on_edge": 0.6, "area_m2": 3.0}
    placed = GeoDataFrame(columns, geometry=shapely.transform(np.array(shapes), lambda points: points * (1, -1)))
    grid = Grid(900, 900, Affine.identity())
    scores = write_raster(tmp_path / "scores.tif", noise[:1].astype("float32"))
    each = SceneMap("noise.tif", None, scores, scene, grid, placed, threshold=0.5)
    text = render(Sources(None, [each], []), title="500")
    assert text.count('<article class="card"') == count and len(text.encode()) < PAGE_BYTES * count / 500


def test_lines_and_differences_of_a_run(made):
    _, run, _ = made
    lines = run_lines(run)
    assert lines[0] == "mIoU       45.0 % on the validation ground"
    assert lines[1] == f"classes    {HOSTILE} 80, road & $x$ 45, {CLASSES[2]} 0 (IoU in %)"
    assert any(line.startswith("threshold  0.7: 1 %") and line.endswith("the default") for line in lines)
    told = {row.key: row for row in config_differences(read_run(run).config)}
    assert told["data.classes"].default is None and told["data.images"].value == "*.tif"
    assert told["flow.steps"].value == "1" and "train.batch" not in told


def test_steps_that_a_resumed_run_repeated_are_drawn_once(made, tmp_path):
    """A run that was interrupted after its last checkpoint has written losses of steps that it takes again."""
    run = Path(shutil.copytree(made[1], tmp_path / "run"))
    for suffix, losses in ((".1", {9: 1.5, 19: 1.2, 29: 1.0}), (".2", {9: 1.4, 19: 1.1})):
        with SummaryWriter(str(run / "tensorboard" / "segmenter"), filename_suffix=suffix) as writer:
            for step, loss in losses.items():
                writer.add_scalar("train/loss", loss, step)
        time.sleep(1.1)  # files are read in the order of the seconds in their names
    points = read_run(run).losses["segmenter"]
    assert [(step, round(value, 3)) for step, value in points] == [(10, 1.4), (20, 1.1), (30, 1.0)]


@pytest.mark.parametrize(
    ("photo_width", "said"), [(None, "SCENE.tif --out anomalies.gpkg"), (64, "PHOTOS --out found")]
)
def test_a_training_ends_with_what_its_model_maps(made, tmp_path, capsys, photo_width, said):
    run = Path(shutil.copytree(made[1], tmp_path / "run"))
    path = run / "model.safetensors"
    dataclasses.replace(ModelBundle.load(path), photo_width=photo_width).save(path)
    print_training(path)
    after, then = capsys.readouterr().out.splitlines()[-2:]
    assert after == f"next       geood predict {said} --model {path}"
    assert then.startswith(f"then       geood report {run} {'anomalies.gpkg' if photo_width is None else 'found'} --")


def test_the_verb_says_where_the_page_is(made, tmp_path, capsys):
    _, run, prediction = made
    out = tmp_path / "r.html"
    arguments = ["report", str(run), str(prediction.polygons), "--out", str(out)]
    assert _run(arguments, debug=False) == 0 and f"report     {out} (" in capsys.readouterr().out
    assert _run(arguments, debug=False) == 2 and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sources", "out", "error", "said"),
    [
        ([], "r.html", ConfigError, "nothing to report on"),
        (["none.gpkg"], "r.html", DataError, r"none\.gpkg: no such file"),
        (["run"], "r.pdf", OutputError, r"end its name in \.html"),
        (["run", "run"], "r.html", ConfigError, "two runs"),
        (["notes.txt"], "r.html", DataError, "neither a run"),
        (["odd.json"], "r.html", DataError, "no figures of an evaluation"),
        (["odd.gpkg"], "r.html", DataError, r"odd\.gpkg: cannot be read"),
    ],
)
def test_each_wrong_source_is_one_message(made, tmp_path, sources, out, error, said):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "odd.json").write_text('{"rows": 3}')
    (tmp_path / "odd.gpkg").write_bytes(b"SQLite format 3\0 and no more")
    paths = [made[1] if name == "run" else tmp_path / name for name in sources]
    with pytest.raises(error, match=said):
        report(paths, tmp_path / out)
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize(
    "name", ["metrics.csv", "confusion.csv", "versions.json", "samples/joint_000008.png", "split.gpkg"]
)
def test_a_damaged_file_of_a_run_is_named(made, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(made[1], run)
    (run / name).write_bytes(b"stage,step,figure,value\nflow,one,val/bpd,x\n")
    with pytest.raises(DataError, match=re.escape(name)):
        render(read_sources([run]), title="damaged")


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here")
def test_in_a_browser_it_runs_its_own_script_alone_fits_and_takes_keys(page):
    with browser() as tab:
        tab.look(width=400)
        tab.open(page)
        assert tab.requests() == [page.resolve().as_uri()] and not tab.complaints()
        assert "taken" not in tab.value("document.title").partition(" ")[0]
        for width in (400, 1280):
            tab.look(width=width)
            assert tab.value("document.documentElement.scrollWidth") <= width
        light = tab.value("getComputedStyle(document.body).backgroundColor")
        tab.look(width=1280, scheme="dark")
        assert tab.value("getComputedStyle(document.body).backgroundColor") != light
        tab("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "ink is dear"
        tab.look(width=1280, scheme="dark")
        tab.press("j")
        tab.press("j")
        assert tab.value("document.activeElement.dataset.copy && document.activeElement.id") == "s0p2"
        assert tab.value("document.querySelector('.map .on').id") == "o-s0p2"
        tab.press("k")
        assert tab.value("document.activeElement.id") == "s0p1"
        tab.press("o")
        assert tab.value("getComputedStyle(document.querySelector('.map svg')).visibility") == "hidden"
        tab.value("document.getElementById('judged').value = 'real'")
        tab.value("document.getElementById('judged').dispatchEvent(new Event('change'))")
        assert tab.value("document.querySelectorAll('.card:not([hidden])').length") == 1


def test_scores_are_found_beside_polygons_of_every_format_and_in_a_folder(made, tmp_path):
    _, _, prediction = made
    frame = read_anomalies(prediction.polygons, most=9)
    for name in ("a.geojson", "b.fgb"):
        frame.to_file(tmp_path / name, engine="pyogrio")
        (tmp_path / name).with_suffix(".scores.tif").write_bytes(prediction.scores.read_bytes())
    (tmp_path / "c.tif").write_bytes(prediction.scores.read_bytes())
    read = read_maps(tmp_path, most=1)
    assert [each.scores.name for each in read] == ["a.scores.tif", "b.scores.tif", "c.tif"]
    assert [each.polygons and each.polygons.name for each in read] == ["a.geojson", "b.fgb", None]
    assert [each.total for each in read[:2]] == [None, None] or read[0].verdict.polygons_per_km2
    [again] = read_maps(tmp_path / "a.scores.tif")
    assert again.polygons.name == "a.geojson" and len(again.frame) == min(9, len(frame))


def test_the_scores_of_a_scene_are_never_taken_for_the_scene(made, tmp_path):
    """`predict scenes/x.tif --out maps/x.gpkg` gives both the same name."""
    _, _, prediction = made
    name = Path(prediction.scene).name
    (tmp_path / name).write_bytes(prediction.scores.read_bytes())
    [alone] = read_maps(tmp_path / name)
    assert alone.scores == tmp_path / name and alone.scene is None
    [given] = read_maps(tmp_path / name, scenes=[Path(prediction.scene)])
    assert given.scene == Path(prediction.scene)


def test_a_scene_of_the_same_size_elsewhere_is_not_that_of_the_map(made, tmp_path):
    _, _, prediction = made
    moved = write_raster(tmp_path / "moved.tif", picture(150, 180), transform=Affine(0.5, 0, 7000, 0, -0.5, 9000))
    [other] = read_maps(prediction.polygons, scenes=[moved])
    assert other.scene is None and other.notes == ["moved.tif lies elsewhere than the map."]
    [one_of_two] = read_maps(prediction.polygons, scenes=[moved], alone=False)
    assert one_of_two.scene == Path(prediction.scene)


@pytest.mark.parametrize("record", ['{"answer": 1}', "[[[", '"x"', None])
def test_a_record_that_is_no_verdict_is_none(made, record):
    _, _, prediction = made
    fields = prediction.verdict.fields()
    assert Verdict.from_text(json.dumps(fields)).fields() == fields
    with pytest.raises(ValueError, match="not the record"):
        Verdict.from_text(json.dumps(fields | {"above": "x"}) if record is None else record)
    with pytest.raises(ValueError, match="not the record"):  # a number that no figure can be
        Verdict.from_text(json.dumps(fields | {"valid_px": 10**400}))


def test_rows_that_a_person_left_without_shape_or_rank_are_no_polygons_and_odd_outlines_are_shown(made, tmp_path):
    """In QGIS shapes are deleted, outlines cross themselves, and rows are added."""
    _, _, prediction = made
    frame = read_anomalies(prediction.polygons, most=2)[["rank", "score_max", "area_px", "model", "geometry"]]
    x, y = shapely.get_coordinates(frame.geometry.iloc[0])[0]
    bow_tie = shapely.Polygon([(x, y), (x + 9, y - 9), (x + 9, y), (x, y - 9)])
    shapes = [frame.geometry.iloc[0], None, shapely.Polygon(), bow_tie, frame.geometry.iloc[0]]
    rows = {"rank": [1, 2, 3, 4, None], "score_max": [0.9, 0.9, 0.9, None, 0.8], "area_px": 4, "model": "m"}
    GeoDataFrame({**rows, "scene": "s"}, geometry=shapes, crs=frame.crs).to_file(tmp_path / "a.gpkg", layer="anomalies")
    (tmp_path / "a_s.tif").write_bytes(prediction.scores.read_bytes())
    text = render(read_sources([tmp_path / "a.gpkg"]), title="x")
    assert text.count('<article class="card"') == 2 and 'id="s0p4"' in text


def test_a_run_whose_name_is_no_text_has_a_page(made, tmp_path):
    _, run, _ = made
    odd = tmp_path / os.fsdecode(b"run \xff")
    odd.mkdir()
    (odd / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert "run \\udcff" in report([odd], tmp_path / "r.html").read_text(encoding="utf-8")


def test_copies_of_a_polygon_have_ids_of_their_own():
    rows = [{"rank": 2}, {"rank": 1}, {"rank": 2}, {}]
    assert keys_of(rows, 3) == ["s3p2", "s3p1", "s3p2-2", "s3p4"]


@pytest.mark.parametrize("shape", [(1400, 1), (1, 1400)])
def test_scores_of_a_scene_one_pixel_wide_fit_into_any_budget(shape):
    uri, low, high = score_layer(np.random.default_rng(0).random(shape).astype(np.float32), 100)
    assert uri.startswith("data:image/png;base64,") and 0 <= low < high <= 1


@pytest.mark.parametrize(
    ("crs", "transform", "place"),
    [
        ('LOCAL_CS["site", UNIT["metre", 1]]', Affine(0.5, 0, 0, 0, -0.5, 75), r"row \d+, column \d+; .* \d+\.\d, "),
        ("EPSG:4326", Affine(5e-6, 0, 11.1, 0, -5e-6, 48.1), r"48\.\d{6}, 11\.\d{6}; .* 11\.\d{6}, 48\.\d{6}"),
    ],
)
def test_places_are_told_in_systems_of_degrees_and_in_those_that_are_nowhere_on_earth(
    made, tmp_path, crs, transform, place
):
    scene = write_raster(tmp_path / "scene.tif", picture(150, 180), crs=crs, transform=transform)
    predict([scene], tmp_path / "map.gpkg", bundle_path=made[1] / "model.safetensors", threshold=0.6)
    html = report([tmp_path / "map.gpkg"], tmp_path / "page.html", scenes=[scene]).read_text(encoding="utf-8")
    assert re.search(place, html)
