"""Laws of the verdict on a map: every figure is found again in the rasters, and is told alike wherever it is told."""

import csv
import dataclasses
import json
import os
import shutil
import sqlite3

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from geood.calibration import PolygonTable, Verdict, cells, in_digits
from geood.calibration.cells import CELL_PX
from geood.cli.app import app
from geood.cli.process import _run
from geood.datasets.scene_crops import open_scenes
from geood.errors import ConfigError, DataError, OutputError
from geood.geo.score_raster import RUN_TAG, VERDICT_TAG, read_tags
from geood.models.bundle import ModelBundle
from geood.prediction import scored_scenes
from geood.prediction.journal import Journal
from geood.prediction.pipeline import predict
from geood.prediction.polygonizing import polygonize
from geood.prediction.scene_verdict import ROOM, verdict_tags
from geood.prediction.threshold_choice import ThresholdChoice
from geood.review.ground import ground_of
from geood.review.reading import read_review
from geood.training.calibration import calibrated
from support.bundles import make_bundle
from support.cpu import slow
from support.places import write_raster as write_placed
from support.rasters import picture, write_raster
from support.scenery import config, truth

SIDE = 480


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder with a labelled scene, and a bundle with seeded weights that is calibrated on half of it."""
    folder = tmp_path_factory.mktemp("ground")
    image = picture(SIDE, SIDE)
    write_raster(folder / "a.tif", image)
    write_raster(folder / "truth.tif", truth(image), nodata=255)
    bare = make_bundle(folder / "bare.safetensors")
    crops = open_scenes(config(folder, block_m=40.0, validation=0.5, crops=4))
    bare = dataclasses.replace(bare, resolution=crops.resolution_m)
    calibrated(bare, crops).save(folder / "model.safetensors")
    bare.save(folder / "bare.safetensors")
    return folder


@pytest.fixture(scope="module")
def scene(ground):
    """Another scene of the same kind, with a hole."""
    array = picture(200, 270, seed=5)
    array[:, 40:90, 100:170] = 0
    return write_raster(ground / "scene.tif", array, nodata=0)


def scores_of(path):
    with rasterio.open(path) as file:
        return file.read(1)


def test_every_figure_that_is_told_is_found_again_in_the_raster(ground, scene, tmp_path):
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=ground / "model.safetensors")
    verdict, score = made.verdict, scores_of(made.scores)
    known = score[np.isfinite(score)]
    record = ModelBundle.load(ground / "model.safetensors").record
    assert verdict.valid_px == known.size and verdict.above == (known > made.threshold).mean()
    assert verdict.km2 == pytest.approx(known.size * 0.25 / 1e6, rel=1e-3)
    polygons = gpd.read_file(made.polygons, layer="anomalies")
    assert verdict.polygons_per_km2 == pytest.approx(len(polygons) / verdict.km2)
    at = record.thresholds.index(made.threshold)
    assert verdict.promised == np.array(record.above)[:, at].sum() / record.pixels
    assert verdict.low <= verdict.promised <= verdict.high <= 1 and verdict.promised <= verdict.at_most
    text = "\n".join(verdict.lines())
    for figure in (100 * verdict.above, 100 * verdict.promised, verdict.polygons_per_km2, verdict.km2):
        assert in_digits(figure) in text or f"{figure:.4g}" in text


def test_tags_table_summary_and_json_tell_one_verdict(ground, scene, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "s.tif").symlink_to(scene)
    out, told = tmp_path / "out", tmp_path / "told.json"
    line = [
        "predict",
        str(folder),
        "--out",
        str(out),
        "--model",
        str(ground / "model.safetensors"),
        "--json",
        str(told),
    ]
    shown = CliRunner().invoke(app, line, catch_exceptions=False)
    [row] = json.loads(told.read_text())
    fields = row["verdict"]
    assert f"budget     {fields['answer']}: {fields['why']}" in shown.output
    tags = read_tags(out / "s.tif")
    assert tags[VERDICT_TAG] == fields["answer"] and json.loads(tags[RUN_TAG]) == fields
    with rasterio.open(out / "s.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    with sqlite3.connect(out / "s.gpkg") as database:
        database.row_factory = sqlite3.Row
        [stored] = database.execute("SELECT * FROM run").fetchall()
        [said] = database.execute("SELECT description FROM gpkg_contents WHERE table_name = 'anomalies'").fetchone()
    assert {k: stored[k] for k in ("answer", "above", "km2", "why")} == {
        k: fields[k] for k in ("answer", "above", "km2", "why")
    }
    assert fields["answer"] in said
    with (out / "summary.csv").open() as file:
        [summary] = csv.DictReader(file)
    assert summary["budget"] == fields["answer"] and float(summary["promised"]) == fields["promised"]
    assert float(summary["above_threshold"]) == pytest.approx(fields["above"], rel=1e-5)


def test_a_verdict_fits_into_the_room_of_its_tag_whatever_classes_are_called(ground, scene, tmp_path, monkeypatch):
    name = '\u57ce\U0001f600<&>"\\' * 400
    monkeypatch.setattr("geood.calibration.judgement.in_words", lambda drift, names: f"other land cover ({name} 3 %)")
    [made] = predict([scene], tmp_path / "a.gpkg", bundle=ground / "model.safetensors")
    told = Verdict.from_text(read_tags(made.scores)[RUN_TAG])
    assert name in made.verdict.differs and told.differs.startswith("other land cover (\u57ce")
    assert told.differs.endswith("...") and len(json.dumps(told.differs)) > 1000
    whole = Verdict(**made.verdict.fields())
    assert dataclasses.replace(told, differs="") == dataclasses.replace(whole, differs="")
    for text in ("x" * 5000, "\u57ce" * 900, "", "short"):
        tags = verdict_tags(dataclasses.replace(whole, differs=text))
        assert all(len(tags[tag]) <= ROOM[tag] for tag in tags)
        kept = Verdict.from_text(tags[RUN_TAG]).differs
        assert kept == text if len(text) < 100 else text.startswith(kept.removesuffix("..."))


def test_verdicts_replace_nothing_that_a_run_reads_or_makes(bundle_path, tmp_path, capsys):
    model = shutil.copy(bundle_path, tmp_path / "m.json")
    scene = write_raster(tmp_path / "s.tif", picture(32, 32))
    for name, said in (("o.gpkg", "ends in .json"), ("s.tif", "ends in .json"), ("m.json", "would replace an input")):
        line = ["predict", str(scene), "--out", str(tmp_path / "o.gpkg"), "--model", str(model), "--overwrite"]
        assert _run([*line, "--json", str(tmp_path / name)], debug=False) == 2
        assert said in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["m.json", "s.tif"] and scene.read_bytes()[:2] == b"II"


def test_the_verdict_is_the_same_for_any_number_of_workers_and_after_a_resume(ground, scene, tmp_path):
    model = ground / "model.safetensors"
    (tmp_path / "a").mkdir()
    [one] = predict([scene], tmp_path / "a" / "out.gpkg", bundle_path=model)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no map is written"):
        predict([scene], tmp_path / "b" / "out.gpkg", bundle_path=model, settings=[], threshold=0.0, on_drift="refuse")
    [two] = predict([scene], tmp_path / "b" / "out.gpkg", bundle_path=model, resume=True)
    assert one.verdict == two.verdict
    assert one.scores.read_bytes() == two.scores.read_bytes() and one.polygons.read_bytes() == two.polygons.read_bytes()


@pytest.mark.parametrize("threshold", [*slow(None), 0.97])
def test_pixels_above_are_those_of_the_finished_raster_also_after_a_resume(
    ground, scene, tmp_path, monkeypatch, threshold
):
    """Tiles tell theirs while they are scored; a run that goes on reads the raster, whose threshold may be another."""
    model, out = ground / "model.safetensors", tmp_path / "out.gpkg"
    told = []
    assemble = scored_scenes.assemble_rasters
    monkeypatch.setattr(scored_scenes, "assemble_rasters", lambda *a, **k: told.append(assemble(*a, **k)) or told[-1])
    [whole] = predict([scene], out, bundle_path=model)
    assert told[0].above == (scores_of(whole.scores) > whole.threshold).sum()
    appended = Journal.append

    def stopped(self, *record):
        appended(self, *record)
        if len(self.figures) > len(told):
            raise KeyboardInterrupt

    again = tmp_path / "again.gpkg"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Journal, "append", stopped)
        predict([scene], again, bundle_path=model)
    with monkeypatch.context() as patched, pytest.raises(OutputError, match=r"cells: was 1: 64 px.*is 99: 64 px"):
        patched.setattr(cells, "REVISION", 99)  # measured otherwise: the two must not stand together
        predict([scene], again, bundle_path=model, resume=True)
    [made] = predict([scene], again, bundle_path=model, resume=True, threshold=threshold)
    score = scores_of(made.scores)
    assert told[-1].above is None and np.array_equal(score, scores_of(whole.scores), equal_nan=True)
    assert made.threshold == (threshold or whole.threshold)
    assert made.verdict.above == (score[np.isfinite(score)] > made.threshold).mean()
    assert (made.verdict == whole.verdict) == (threshold is None)


def test_polygons_that_were_counted_otherwise_promise_nothing(ground, scene, tmp_path):
    settings, model = ["predict.connectivity=4"], ground / "model.safetensors"
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=model, settings=settings)
    assert made.verdict.promised and made.verdict.polygons_per_km2 and made.verdict.false_per_km2 is None
    with pytest.raises(ConfigError, match=r"predict\.connectivity"):
        predict([scene], tmp_path / "no.gpkg", bundle_path=model, settings=settings, false_per_km2=100.0)


@pytest.mark.parametrize("setting", ["score.kind=energy", *slow("score.temperature=0.5")])
def test_scores_in_other_units_do_not_make_a_scene_unlike(ground, scene, tmp_path, setting):
    model = ground / "model.safetensors"
    [own] = predict([scene], tmp_path / "own.tif", bundle_path=model, threshold=0.5)
    [other] = predict([scene], tmp_path / "other.tif", bundle_path=model, settings=[setting], threshold=0.5)
    assert own.verdict.differs == other.verdict.differs == "" and other.verdict.distance <= own.verdict.distance


def test_too_few_blocks_give_no_interval_and_both_verbs_say_what_to_do(ground, scene, tmp_path):
    bundle = ModelBundle.load(ground / "model.safetensors")
    record, few = bundle.record, slice(5)
    cut = {name: getattr(record, name)[few] for name in ("block_px", "block_image", "above")}
    less = record.model_copy(update=cut | {"intervals": {}, "pixels": sum(cut["block_px"])})
    dataclasses.replace(bundle, record=less).save(tmp_path / "few.safetensors")
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=tmp_path / "few.safetensors")
    assert made.verdict.answer == "cannot be told" and made.verdict.promised and made.verdict.high is None
    told = CliRunner().invoke(app, ["info", str(tmp_path / "few.safetensors")], catch_exceptions=False).output
    for text in (made.verdict.why, told):
        assert "5 blocks" in text and "8" in text and "data.block_m" in text


def test_a_scene_that_is_mostly_above_is_told_loudly(ground, scene, tmp_path, caplog):
    [made] = predict([scene], tmp_path / "out.tif", bundle_path=ground / "model.safetensors", threshold=0.0)
    assert made.verdict.answer == "does not hold" and "does not tell strange from usual" in made.verdict.why
    assert "scene.tif: its budget does not hold; its verdict says why" in caplog.text
    [other] = predict([dark(scene, tmp_path)], tmp_path / "dark.tif", bundle_path=ground / "model.safetensors")
    assert other.verdict.differs and other.verdict.answer in ("does not hold", "cannot be told")


def test_the_reason_of_a_loud_verdict_is_printed_once(ground, scene, tmp_path, capsys, caplog):
    given = ["predict", str(scene), "--model", str(ground / "model.safetensors"), "--threshold", "0.0"]
    assert _run([*given, "--out", str(tmp_path / "out.tif")], debug=False) == 0
    said = capsys.readouterr().out + caplog.text
    assert said.count("does not tell strange from usual") == 1 and "does not hold" in caplog.text


def dark(scene, folder):
    """The scene by a sensor of a third of the gain."""
    with rasterio.open(scene) as file:
        array = file.read()
    return write_raster(folder / "other.tif", np.where(array > 0, array // 3 + 1, 0).astype(np.uint8), nodata=0)


def test_relative_takes_a_rank_in_the_scene_and_says_that_it_promises_nothing(ground, scene, tmp_path):
    path, model = dark(scene, tmp_path), ground / "model.safetensors"
    [made] = predict([path], tmp_path / "out.gpkg", bundle_path=model, on_drift="relative")
    score = scores_of(made.scores)
    known = score[np.isfinite(score)].astype(np.float16)
    assert made.verdict.relative and made.verdict.answer == "cannot be told" and "promises nothing" in made.verdict.why
    assert (known > np.float16(made.threshold)).mean() <= 0.011
    assert float(read_tags(made.scores)["GEOOD_THRESHOLD"]) == made.threshold
    assert polygonize(made.scores, tmp_path / "again.gpkg") == made.anomalies
    [like] = predict([ground / "a.tif"], tmp_path / "a.tif", bundle_path=model, on_drift="relative")
    assert not like.verdict.relative and like.threshold == ModelBundle.load(model).threshold
    with pytest.raises(ConfigError, match="share one polygon file"):
        predict([path, scene], tmp_path / "two.gpkg", bundle_path=model, on_drift="relative")


def test_without_a_record_nothing_can_be_told_and_the_remedy_is_named(ground, scene, tmp_path):
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=ground / "bare.safetensors", threshold=0.95)
    assert made.verdict.answer == "cannot be told" and "train it again" in made.verdict.why
    assert made.verdict.above is not None and made.verdict.high is None
    for choice in ({"fpr": 0.02}, {"false_per_km2": 5}):
        with pytest.raises(ConfigError, match="no record of a calibration"):
            predict([scene], tmp_path / "no.gpkg", bundle_path=ground / "bare.safetensors", **choice)


def test_a_scene_smaller_than_a_cell_cannot_be_told(ground, tmp_path):
    path = write_raster(tmp_path / "small.tif", picture(CELL_PX // 2, CELL_PX // 2))
    [made] = predict([path], tmp_path / "out.gpkg", bundle_path=ground / "model.safetensors")
    assert made.verdict.answer == "cannot be told" and "too few squares" in made.verdict.why


def test_a_scene_without_metres_or_pixels_is_judged_by_what_there_is(ground, tmp_path):
    bare = write_placed(tmp_path / "bare.tif", picture(200, 200), place=(rasterio.Affine.identity(), None))
    [made] = predict([bare], tmp_path / "out.gpkg", bundle_path=ground / "model.safetensors")
    assert made.verdict.km2 is None and made.verdict.polygons_per_km2 is None and made.verdict.above is not None
    empty = write_raster(tmp_path / "empty.tif", np.zeros((3, 80, 80), np.uint8), nodata=0)
    [none] = predict([empty], tmp_path / "none.gpkg", bundle_path=ground / "model.safetensors")
    assert none.verdict.answer == "cannot be told" and "no pixel" in none.verdict.why


@pytest.mark.parametrize("name", ["budget", *slow("fpr", "known")])
def test_a_budget_chosen_by_predict_is_that_of_polygonize_and_of_the_table(ground, scene, tmp_path, name):
    model = ground / "model.safetensors"
    table = PolygonTable.of(ModelBundle.load(model).record)
    rate = float(np.median(table.rates))
    area = 9 * 0.25  # of nine pixels
    choice, expected = {
        "fpr": ({"fpr": rate}, table.at_rate(rate)),
        "budget": ({"false_per_km2": 100.0}, table.at_budget(100.0, area)),
        "known": ({"fpr": 0.05}, ModelBundle.load(model).thresholds["0.05"]),
    }[name]
    settings = [f"predict.min_area_m2={area}"]
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=model, settings=settings, **choice)
    assert made.threshold == expected
    again = tmp_path / "again.gpkg"
    assert polygonize(made.scores, again, **choice) == made.anomalies
    assert polygonize(made.scores, again, **choice, bundle_path=model, overwrite=True) == made.anomalies


def test_an_audit_compares_polygons_with_the_promise_of_the_threshold_that_cut_them(ground, scene, tmp_path):
    model, settings = ground / "model.safetensors", [f"predict.min_area_m2={9 * 0.25}"]
    table = PolygonTable.of(ModelBundle.load(model).record)
    [made] = predict([scene], tmp_path / "map.gpkg", bundle_path=model, settings=settings)
    lower = table.thresholds[int(np.searchsorted(table.thresholds, made.threshold)) - 4]
    assert lower < made.threshold
    for path, at in (
        (made.polygons, made.threshold),
        (tmp_path / "again.gpkg", lower),
        (tmp_path / "a.parquet", lower),
    ):
        if path != made.polygons:
            polygonize(made.scores, path, threshold=at)
        frame = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path, layer="anomalies")
        found = ground_of(read_review([path]), [path], scores=made.scores, area_km2=None)
        assert found.threshold == pytest.approx(at) and len(frame)
        assert found.promised_per_km2 == pytest.approx(table.at(at, 9 * 0.25).rate, rel=1e-3)
        assert found.promised_share(None) == pytest.approx(table.share_above(at), rel=1e-3)
        assert any("cut at" in note for note in found.notes) == (path.suffix == ".parquet")
    for change in ({"top": 2}, {"connectivity": 4}):  # not what the table counts
        polygonize(made.scores, tmp_path / "again.gpkg", **change, overwrite=True)
        review = read_review([tmp_path / "again.gpkg"])
        assert ground_of(review, [tmp_path / "again.gpkg"], scores=made.scores, area_km2=None).promised_per_km2 is None


def test_the_first_by_rank_are_kept(ground, scene, tmp_path):
    model = ground / "model.safetensors"
    [every] = predict([scene], tmp_path / "every.gpkg", bundle_path=model)
    [some] = predict([scene], tmp_path / "some.gpkg", bundle_path=model, top=3)
    assert every.anomalies > 3 and some.anomalies == 3
    best, kept = (gpd.read_file(made.polygons, layer="anomalies") for made in (every, some))
    assert kept.geometry.geom_equals(best.geometry[:3]).all() and len(kept) == 3
    assert polygonize(every.scores, tmp_path / "top.geojson", top=2) == 2
    assert some.verdict.polygons_per_km2 is None  # it would be a figure of the choice


def test_outlines_and_connectivity_can_be_chosen_again(ground, scene, tmp_path):
    [made] = predict([scene], tmp_path / "every.gpkg", bundle_path=ground / "model.safetensors")
    out = tmp_path / "again.gpkg"
    assert polygonize(made.scores, out, connectivity=4, min_area_m2=0) >= made.anomalies
    polygonize(made.scores, out, simplify_m=2.0, overwrite=True)
    smooth, sharp = (gpd.read_file(path, layer="anomalies").get_coordinates() for path in (out, made.polygons))
    assert len(smooth) < len(sharp)
    budget = {"connectivity": 4, "false_per_km2": 100.0}  # which was counted for pixels that touch at corners
    for odd, said in (
        ({"connectivity": 6}, "choose 4 or 8"),
        ({"simplify_m": -1.0}, "not a length"),
        (budget, "connected otherwise"),
    ):
        with pytest.raises(ConfigError, match=said):
            polygonize(made.scores, out, overwrite=True, **odd)


BAD = {
    "two of them": ({"threshold": 0.5, "top": 3}, "exclude each other"),
    "no share": ({"fpr": 1.5}, "not a share"),
    "no number": ({"false_per_km2": float("nan")}, "not a number of polygons"),
    "none": ({"top": 0}, "1 or more"),
    "above all scores": ({"threshold": 1.5}, "from 0 to 1"),
    "below all scores": ({"threshold": -0.1}, "from 0 to 1"),
    "infinite": ({"threshold": float("inf")}, "finite"),
    "no such drift": ({"on_drift": "panic"}, "warn, refuse, relative"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_choice_that_makes_no_sense_is_refused_before_any_work(ground, scene, tmp_path, case):
    choice, said = BAD[case]
    with pytest.raises(ConfigError, match=said):
        predict([scene], tmp_path / "out.gpkg", bundle_path=ground / "model.safetensors", **choice)
    assert not list(tmp_path.iterdir())


def test_the_default_area_is_that_of_nine_pixels_of_the_model(ground, scene, tmp_path):
    settings = ["predict.min_area_m2=null"]
    [made] = predict([scene], tmp_path / "out.gpkg", bundle_path=ground / "model.safetensors", settings=settings)
    least = json.loads(read_tags(made.scores)["GEOOD_PREDICT"])["min_area_m2"]
    assert least == pytest.approx(8.5 * 0.25, rel=1e-3)  # half a pixel to spare, as pixels differ from scene to scene
    assert gpd.read_file(made.polygons, layer="anomalies").area_px.min() >= 9


def test_unbounded_scores_take_any_finite_threshold():
    assert ThresholdChoice(threshold=-40.0)._chosen("energy", None, None, default=None) == -40.0
    with pytest.raises(ConfigError, match="0 or more"):
        ThresholdChoice(threshold=-1.0)._chosen("encoder_knn", None, None, default=None)
