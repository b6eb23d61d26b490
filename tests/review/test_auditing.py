"""What an audit says, against counts by hand; and that it says nothing that the verdicts do not carry."""

import dataclasses
import json
import math
import shlex
import sqlite3
from contextlib import closing

import geopandas
import numpy as np
import pytest
import shapely
from typer.testing import CliRunner

from geood.calibration import PolygonTable
from geood.cli.app import app
from geood.errors import ConfigError, DataError
from geood.geo.cog.encoding import rounded
from geood.geo.grid import Grid
from geood.polygons import raster_of
from geood.review.auditing import audit
from geood.review.ground import ground_of
from geood.review.intervals import count_limits, share_of
from geood.review.reading import ReviewNames, read_review
from support.bundles import make_bundle
from support.cpu import slow
from support.rasters import HALF_METRE, picture, write_raster, write_scores
from support.reviews import SOUTH, WEST, cells, reviewed, save

GRID = Grid(200, 200, HALF_METRE, "EPSG:32633")
KINDS = ["real", "false", "real", "real", "false", "false", "real", "false", "false", "false", None, None, "unsure"]


def with_run(path, rows):
    """Add the table `run` of scenes to a GeoPackage, and return its path."""
    with closing(sqlite3.connect(path)) as database, database:
        kinds = (f"{name} {'TEXT' if isinstance(value, str) else 'REAL'}" for name, value in rows[0].items())
        database.execute(f"CREATE TABLE run ({', '.join(kinds)})")
        marks = ", ".join("?" * len(rows[0]))
        database.executemany(f"INSERT INTO run VALUES ({marks})", [tuple(row.values()) for row in rows])
    return path


def test_precision_is_that_of_the_judged_polygons_overall_by_rank_and_by_score(tmp_path):
    found = audit([save(tmp_path / "a.gpkg", reviewed(KINDS))], area_km2=2.0)
    assert found.verdicts == {"false": 6, "real": 4, "none yet": 2, "unsure": 1}
    assert found.overall.precision == share_of(4, 10)
    assert [(part.name, part.judged, part.real) for part in found.tops] == [("top 10", 10, 4)]
    assert sum(part.polygons for part in found.bands) == 13
    assert sum(part.judged for part in found.bands) == 10 and sum(part.real for part in found.bands) == 4
    assert found.bands[0].name.startswith("from") and found.bands[-1].name.startswith("below")


def test_ranks_come_from_the_column_and_from_scores_without_one(tmp_path):
    kinds = ["false"] * 10 + ["real"] * 10
    turned = reviewed(kinds, rank=False)
    by_score = audit([save(tmp_path / "a.gpkg", turned)], area_km2=1)
    by_rank = audit([save(tmp_path / "b.gpkg", turned.assign(rank=range(20, 0, -1)))], area_km2=1)
    assert (by_score.tops[0].real, by_score.ranked) == (0, False)
    assert (by_rank.tops[0].real, by_rank.ranked) == (10, True)


def test_misses_and_recall_come_from_complete_cells_alone(tmp_path):
    sample = cells([3, 0, 7, None], [True, True, False, None])
    found = audit([save(tmp_path / "a.gpkg", reviewed(["real"] * 6 + ["false"] * 4), sample)])
    assert found.cells == {"cells": 4, "complete": 2, "misses": 3, "area_km2": 0.2}
    assert found.misses_per_km2 == pytest.approx(tuple(x / 0.2 for x in count_limits(3)))
    assert found.area_km2 == pytest.approx(4.0)
    assert found.recall.value == pytest.approx(6 / (6 + 15 * 4))
    missed = count_limits(3)
    assert found.recall.low == pytest.approx(6 / (6 + missed.high / 0.2 * 4))


@pytest.mark.parametrize("area", [None, 0.0, np.inf])
def test_a_cell_without_an_area_is_left_out_where_others_have_one(tmp_path, area):
    """As one that a person drew: its misses counted, and its ground did not."""
    sample = cells([0, 1, 7], [True, True, True]).assign(area_m2=[1e5, 1e5, area], cell=[1, 2, None])
    found = audit([save(tmp_path / "a.gpkg", reviewed(["real"]), sample)])
    assert found.cells == {"cells": 3, "complete": 2, "misses": 1, "area_km2": 0.2}
    assert "1 complete cell without an area, as if drawn by hand; left out" in found.notes[0]
    none = audit([save(tmp_path / "b.gpkg", reviewed(["real"]), sample.assign(area_m2=area))])
    assert none.cells["complete"] == 3 and "have no area in square metres" in none.no_recall


def test_without_a_complete_cell_no_recall_is_told(tmp_path):
    found = audit([save(tmp_path / "a.gpkg", reviewed(["real"]), cells([1], [False]))])
    assert found.misses_per_km2 is None and found.recall is None and "can never tell" in found.no_recall


def test_a_threshold_keeps_false_polygons_within_the_budget(tmp_path):
    kinds = ["real", "false", "real", "false", "false", "false"]
    path = save(tmp_path / "a.gpkg", reviewed(kinds))
    budget = audit([path], area_km2=1.0, false_per_km2=1.0).budget
    assert (budget.polygons, budget.real, budget.expected) == (3, 2, 1.0)
    assert budget.threshold == pytest.approx(0.97)  # the score of the fourth, which is not above it
    all_kept = audit([path], area_km2=1.0, false_per_km2=4.0).budget
    assert all_kept.polygons == 6 and all_kept.threshold < 0.95
    none = audit([save(tmp_path / "b.gpkg", reviewed(["false"]))], area_km2=1.0, false_per_km2=0.5).budget
    assert none.threshold is None and none.sure is None
    with pytest.raises(ConfigError, match="--scores RASTER or --area-km2"):
        audit([path], false_per_km2=1.0)


def test_a_file_whose_rows_were_all_deleted_is_one_message(tmp_path):
    path = save(tmp_path / "a.gpkg", reviewed(["real"]).iloc[:0], cells([0], [False]))
    with pytest.raises(DataError, match="no polygon has a verdict yet, and no cell is complete"):
        audit([path], area_km2=1.0)
    found = audit([save(tmp_path / "b.gpkg", reviewed(["real"]).iloc[:0], cells([2], [True]))], area_km2=1.0)
    assert found.polygons == 0 and found.misses_per_km2.value == 20 and not found.bands


def test_bands_of_close_scores_have_names_of_their_own_and_none_is_empty(tmp_path):
    scores = [0.99981, 0.99967, 0.99963, 0.99959, 0.99958]
    found = audit([save(tmp_path / "a.gpkg", reviewed(["real"] * 5, score_max=scores))], area_km2=1.0)
    assert len({part.name for part in found.bands}) == len(found.bands) and all(part.polygons for part in found.bands)
    assert sum(part.polygons for part in found.bands) == 5


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_judged_polygons_without_a_finite_score_are_told_and_found_nothing(tmp_path, odd):
    """A person who draws what was missed gives it no score, and the map did not find it."""
    kinds, scores = ["real", "real", "false", "real", None], [0.9, odd, odd, 0.8, odd]
    path = save(tmp_path / "a.gpkg", reviewed(kinds, score_max=scores), cells([2], [True]))
    found = audit([path], area_km2=1.0, false_per_km2=5.0)
    assert found.overall.judged == 4 and sum(part.judged for part in found.bands) == 2
    assert found.recall.value == pytest.approx(2 / (2 + 20))
    [note] = found.notes
    assert note.startswith("2 judged polygons without a finite score") and "in nothing else" in note
    assert (found.budget.polygons, found.budget.real) == (2, 2)
    bare = audit([save(tmp_path / "b.gpkg", reviewed(["real", None], score_max=[0.9, odd]))], area_km2=1.0)
    assert not bare.notes and len(bare.bands) == 1


@pytest.mark.parametrize("rank", [True, False])
def test_what_a_person_drew_breaks_no_promise_and_is_not_among_the_best_ranked(tmp_path, rank):
    """As ground that is drawn to be learned: 9 false ones were found where 1 was, with 8 drawn."""
    kinds = ["real"] * 8 + ["false"] + ["false"] * 8
    scores = [1 - i / 100 for i in range(9)] + [None] * 8
    frame = reviewed(kinds, rank=rank, score_max=scores, area_px=[400] * 9 + [5000] * 8)
    if rank:
        frame["rank"] = frame["rank"].astype(float).where(frame.index < 9)
    found = audit([save(tmp_path / "a.gpkg", frame)], area_km2=1.0, promised_per_km2=1.0)
    assert found.promises == (
        "agrees with the calibration: 1 false polygons per km2 promised, found 1 false polygon on 1 km2, 1 per km2",
    )
    assert not found.tops and found.overall.judged == 17


def test_outlines_that_are_gone_or_not_valid_are_told_and_count_as_their_rows(tmp_path):
    frame = reviewed(["real", "false", "real"])
    bow = shapely.Polygon([(0, 0), (9, 9), (9, 0), (0, 9)])
    edited = frame.set_geometry([bow, None, frame.geometry.iloc[2]], crs=frame.crs)
    found = audit([save(tmp_path / "a.gpkg", edited)], area_km2=1.0)
    whole = audit([save(tmp_path / "b.gpkg", frame)], area_km2=1.0)
    assert found.overall == whole.overall and not whole.notes and "no layer sample" in found.no_recall
    assert found.notes == (
        "1 polygon without an outline and 1 polygon whose outline is not valid (the first: Self-intersection[4.5 4.5])"
        ": counted by what its row tells",
    )


def test_where_only_some_were_judged_they_stand_for_the_others(tmp_path):
    kinds = ["false", None, "real", None]
    budget = audit([save(tmp_path / "a.gpkg", reviewed(kinds))], area_km2=1.0, false_per_km2=100).budget
    assert (budget.polygons, budget.expected) == (3, 1.5)  # the last is below all that was judged
    assert budget.at_most == pytest.approx(count_limits(1).high * 3 / 2)


@pytest.mark.parametrize(
    ("promised", "said"), [(2.0, "contradicts"), (10.0, "agrees"), (40.0, "better than the calibration")]
)
def test_a_promise_is_compared_with_what_was_found(tmp_path, promised, said):
    path = save(tmp_path / "a.gpkg", reviewed(["false"] * 10))
    [text] = audit([path], area_km2=1.0, promised_per_km2=promised).promises
    assert text.startswith(said)


def test_polygons_that_are_not_decided_do_not_make_a_map_better(tmp_path):
    path = save(tmp_path / "a.gpkg", reviewed(["false"] + [None] * 9))
    [text] = audit([path], area_km2=1.0, promised_per_km2=10.0).promises
    assert text.startswith("agrees") and "9 not decided" in text
    untouched = save(tmp_path / "b.gpkg", reviewed([None] * 10), cells([0], [True]))
    assert audit([untouched], area_km2=1.0, promised_per_km2=10.0).promises == ()


@pytest.mark.parametrize("close", [None, 5e-7])
def test_a_threshold_for_a_budget_cuts_the_raster_itself_so_though_polygons_tell_seven_digits(tmp_path, close):
    """Scores of a raster of geood, and of another tool, whose scores may differ in the eighth digit."""
    drawn = np.random.default_rng(0).random(14).astype(np.float32)
    scores = np.unique(
        rounded(drawn) if close is None else np.float32(7) + np.float32(close) * np.arange(14, dtype="f4")
    )
    for sign in (1, -1):
        best = np.sort(np.float32(sign) * scores)[::-1]
        told = [float(f"{score:.7g}") for score in best]
        path = save(tmp_path / f"{sign}.gpkg", reviewed(["false"] * len(best), score_max=told))
        for kept in range(3, len(best) + 1):  # at most three tell the same
            budget = audit([path], area_km2=1.0, false_per_km2=float(kept)).budget
            printed = np.float32(f"{budget.threshold:.9g}")
            assert int((best > printed).sum()) == budget.polygons


def test_the_promise_of_a_bundle_is_its_rate_at_the_threshold_of_the_map(tmp_path, bundle_path):
    scores = np.full((200, 200), 0.1, np.float32)
    write_scores(tmp_path / "a.tif", Grid(200, 200, HALF_METRE, "EPSG:32633"), scores, GEOOD_THRESHOLD="0.7")
    path = save(tmp_path / "a.gpkg", reviewed(["false"] * 10))  # 4,000 of 40,000 pixels
    [text] = audit([path], bundle_path=bundle_path).promises
    assert text.startswith("contradicts") and "1 % of inlier pixels promised" in text and "10 % of all" in text
    fine = audit([save(tmp_path / "b.gpkg", reviewed(["real"]))], scores=tmp_path / "a.tif", bundle_path=bundle_path)
    assert fine.promises[0].startswith("does not contradict")
    with pytest.raises(ConfigError, match="--scores"):
        audit([save(tmp_path / "c.gpkg", reviewed(["real"]))], bundle_path=bundle_path)


@pytest.mark.parametrize("at", [0.56640625, 7.0000004, *slow(0.7, -0.56640625, -0.7)])
@pytest.mark.parametrize("place", ["table", "tag"])
def test_the_promise_of_a_bundle_is_that_of_its_threshold_though_a_table_tells_six_digits_of_it(tmp_path, at, place):
    bundle = make_bundle(tmp_path / "plain.safetensors", score={"kind": "energy"})
    rates = {"0.001": at + 1, "0.01": at, "0.05": at - 1}
    dataclasses.replace(bundle, calibration={"energy": rates}).save(tmp_path / "model.safetensors")
    path = save(tmp_path / "a.gpkg", reviewed(["false"] * 10))
    tags = {"GEOOD_THRESHOLD": repr(at)} if place == "tag" else {}
    write_scores(tmp_path / "a.tif", GRID, np.zeros((200, 200), np.float32), GEOOD_SCORE="energy", **tags)
    if place == "table":
        with_run(path, [{"threshold": float(f"{at:.6g}")}])
    [text] = audit([path], bundle=tmp_path / "model.safetensors").promises
    assert "1 % of inlier pixels promised" in text


def test_of_thresholds_that_hardly_differ_the_nearest_is_that_of_the_map(tmp_path):
    bundle = make_bundle(tmp_path / "plain.safetensors", score={"kind": "energy"})
    rates = {"0.001": 9.99998, "0.01": 9.99992, "0.05": 9.9}
    dataclasses.replace(bundle, calibration={"energy": rates}).save(tmp_path / "model.safetensors")
    path = save(tmp_path / "a.gpkg", reviewed(["false"] * 10))
    for at, promised in ((9.99992, "1 %"), (9.99998, "0.1 %"), (9.9, "5 %"), (9.95, "5 %")):
        tags = {"GEOOD_SCORE": "energy", "GEOOD_THRESHOLD": repr(at)}
        write_scores(tmp_path / "a.tif", GRID, np.zeros((200, 200), np.float32), **tags)
        assert (
            f" {promised} of inlier pixels promised"
            in audit([path], bundle=tmp_path / "model.safetensors").promises[-1]
        )


def test_a_map_of_several_scenes_tells_its_ground_and_its_promise_itself(tmp_path):
    promise = {"threshold": 0.7, "promised": 0.001, "polygons_per_km2": 9.0, "false_per_km2": 2.0}
    rows = [{"scene": scene, "km2": km2, "valid_px": px, **promise} for scene, km2, px in (("a", 2, 80), ("b", 3, 40))]
    frame, sample = reviewed(["false"] * 10), cells([0, 0], [True, True])
    found = audit([with_run(save(tmp_path / "a.gpkg", frame, sample), rows)])
    assert found.area_km2 == 5 and found.recall is not None and not found.notes
    polygons, pixels = found.promises
    assert "2 false polygons per km2 promised, found 10 false polygons on 5 km2" in polygons
    assert "0.1 % of inlier pixels promised" in pixels
    given = audit([tmp_path / "a.gpkg"], area_km2=7.0)
    assert given.area_km2 == 7
    rows[1]["km2"] = None
    partly = audit([with_run(save(tmp_path / "b.gpkg", frame, sample), rows)])
    assert partly.area_km2 == 2 and "cells of the sample" in partly.notes[0]  # a square kilometre for each cell


def test_the_ground_and_promise_are_those_that_any_copy_tells(tmp_path):
    """A copy that was saved from QGIS has no table of the run; given first, it hid that of the other."""
    paths = [save(tmp_path / f"{name}.gpkg", reviewed(["real", "false"])) for name in ("copy", "map")]
    record = {"scene": "s.tif", "threshold": 0.5, "km2": 2.0, "valid_px": 10**5, "promised": 0.01, "high": 0.03}
    record |= {"polygons_per_km2": 2.5, "false_per_km2": 1.0, "false_high": 3.0}
    with closing(sqlite3.connect(paths[1])) as database, database:
        database.execute(f"CREATE TABLE run ({' REAL, '.join(record)} REAL)")
        database.execute(f"INSERT INTO run VALUES ({', '.join('?' * len(record))})", [*record.values()])
    one, other = audit(paths), audit(paths[::-1])
    assert one.area_km2 == other.area_km2 == 2.0 and one.promises == other.promises and len(one.promises) == 2


def test_what_was_asked_for_is_compared_or_it_is_said_why_not(tmp_path, bundle_path):
    write_scores(tmp_path / "a.tif", GRID, np.zeros((200, 200), np.float32), GEOOD_THRESHOLD="0.2")
    path = save(tmp_path / "a.gpkg", reviewed(["false"]))
    [text] = audit([path], bundle=bundle_path).promises
    assert text == "cannot be compared with the calibration of model.safetensors: the bundle has no rate for their " + (
        "threshold 0.2"
    )
    write_scores(tmp_path / "b.tif", GRID, np.zeros((200, 200), np.float32), GEOOD_THRESHOLD="0.7")
    bare = save(tmp_path / "b.gpkg", reviewed(["false"]).drop(columns="area_px"))
    [text] = audit([bare], bundle=bundle_path).promises
    assert text.endswith("polygons have no column area_px")
    lone = with_run(save(tmp_path / "c.gpkg", reviewed(["false"])), [{"threshold": 0.7}])
    [text] = audit([lone], bundle=bundle_path, area_km2=1.0).promises
    assert text.endswith("the map's valid pixels are not known")
    with pytest.raises(ConfigError, match="--promised-per-km2 needs the ground"):
        audit([save(tmp_path / "d.gpkg", reviewed(["false"]))], promised_per_km2=3.0)
    for odd in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"--promised-per-km2 .* not a number of polygons"):
            audit([path], promised_per_km2=odd)


def test_areas_typed_as_words_and_outlines_beyond_the_earth_are_passed_over(tmp_path):
    record = '{"polygons_per_km2": 9.0, "false_per_km2": 1.0, "promised": 0.001}'
    write_scores(tmp_path / "a.tif", GRID, np.zeros((200, 200), np.float32), GEOOD_RUN=record)
    path = save(tmp_path / "a.gpkg", reviewed(["false"] * 3, area_px=["400", "some", None]))
    assert "1 % of all lie in false polygons" in audit([path]).promises[-1]
    far = geopandas.GeoDataFrame(
        {"verdict": ["real", "false"]},
        geometry=[shapely.box(1e12, 1e12, 2e12, 2e12), shapely.box(WEST, SOUTH, WEST + 9, SOUTH + 9)],
        crs=32633,
    )
    raster = write_raster(tmp_path / "s.tif", np.ones((40, 40), np.float32), crs="EPSG:3857")
    assert audit([save(tmp_path / "b.gpkg", far)], scores=raster).overall.judged == 2


PROMISED = '"false_per_km2": 1.0, "promised": 0.001'


@pytest.mark.parametrize(
    ("record", "compared"),
    [
        ('{"polygons_per_km2": 9.0, ' + PROMISED + "}", 2),
        ('{"polygons_per_km2": null, ' + PROMISED + "}", 1),  # the best-ranked alone: false ones were not to be counted
        ('{"polygons_per_km2": 9.0, "relative": true, ' + PROMISED + "}", 0),
        ("{}", 0),
        ("[", 0),
        ("[1]", 0),
        ('{"promised": "x"}', 0),
        ('{"promised": 1' + 400 * "0" + "}", 0),  # beyond all floats
    ],
)
def test_a_map_says_itself_what_it_promised(tmp_path, record, compared):
    scores = np.full((200, 200), 0.1, np.float32)
    write_scores(tmp_path / "a.tif", Grid(200, 200, HALF_METRE, "EPSG:32633"), scores, GEOOD_RUN=record)
    said = audit([save(tmp_path / "a.gpkg", reviewed(["false"] * 10))]).promises
    assert len(said) == compared
    assert all(text.startswith("contradicts") for text in said)


@pytest.mark.parametrize("place", ["tag", "table"])
def test_what_a_map_allowed_for_a_scene_of_its_size_is_no_contradiction(tmp_path, place):
    """Its verdict counted that ground differs: an audit by chance alone said the contrary of the same map."""
    scores = np.full((200, 200), 0.1, np.float32)
    record = {"polygons_per_km2": 2000.0, "false_per_km2": 1.0, "promised": 0.001, "high": 0.2, "false_high": 1200.0}
    for limits, told in (
        ({}, "more than expected, within the limits that the map told: "),
        ({"high": 0.09, "false_high": 900.0}, "contradicts the calibration: "),
    ):
        row = record | limits
        tags = {"GEOOD_RUN": json.dumps(row)} if place == "tag" else {}
        write_scores(tmp_path / "a.tif", Grid(200, 200, HALF_METRE, "EPSG:32633"), scores, **tags)
        (tmp_path / "a.gpkg").unlink(missing_ok=True)
        path = save(tmp_path / "a.gpkg", reviewed(["false"] * 10))  # 1,000 per km2, a tenth of all pixels
        if place == "table":
            with_run(path, [{"threshold": 0.7, **row}])
        polygons, pixels = audit([path]).promises
        assert polygons.startswith(told) and pixels.startswith(told)
    [own, _] = audit([path], promised_per_km2=1.0).promises
    assert own.startswith("contradicts")  # a promise of one's own has no such limits


@pytest.mark.parametrize("number", [2, 3, *slow(0, 1, 4)])
def test_polygons_tell_the_threshold_that_cut_them_though_their_columns_have_seven_digits(tmp_path, number):
    cuts = (0.5, 0.56640625, 0.566421, 0.9999, 0.99996)  # two pairs of neighbours; the map was cut at the last but one
    rates = tuple(0.1 / (i + 1) for i in range(5))
    table = PolygonTable("jsd", cuts, rates, 1.0, 0.5, 3, (1,), ((50, 40, 30, 20, 10),), ((0.0,) * 5,))
    tags = {"GEOOD_THRESHOLD": repr(cuts[3]), "GEOOD_FALSE_POLYGONS": table.to_text()}
    record = '{"polygons_per_km2": 1.0, "false_per_km2": 20.0, "promised": 0.025}'
    write_scores(tmp_path / "a.scores.tif", GRID, np.zeros((200, 200), np.float32), **tags, GEOOD_RUN=record)
    seven = np.vectorize(lambda value: float(f"{value:.7g}"))
    for seed in range(4):
        mean = cuts[number] + (1.0001 - cuts[number]) * np.random.default_rng(seed).random(5)
        columns = {"score_mean": seven(mean), "threshold_excess": seven(mean - cuts[number])}
        path = tmp_path / f"{seed}.parquet"
        reviewed(["false"] * 5, **columns).to_parquet(path)
        ground = ground_of(read_review([path]), [path], scores=tmp_path / "a.scores.tif", area_km2=None)
        assert (ground.threshold, ground.promised_per_km2) == (cuts[number], (50, 40, 30, 20, 10)[number])
        assert ground.promised_share(None) == pytest.approx(rates[number], rel=1e-3)


def test_polygons_and_scores_of_other_tools_will_do(tmp_path):
    frame = reviewed(["yes"] * 3).rename(columns={"verdict": "ok"})[["ok", "geometry"]].assign(ok=["real", "false", ""])
    path = save(tmp_path / "theirs.geojson", frame.to_crs(4326), layer="theirs")
    with pytest.raises(ConfigError, match=r"--score-column, or give the raster with --scores"):
        audit([path], names=ReviewNames(verdict="ok"))
    scores = np.full((40, 120), -9999, np.float32)
    scores[:20, :20], scores[:20, 40:60], scores[:20, 80:100] = 5, 7, 3
    transform = HALF_METRE.translation(WEST, SOUTH + 10) * HALF_METRE.scale(0.5, -0.5)
    raster = write_raster(tmp_path / "theirs.tif", scores, transform=transform, nodata=-9999)
    found = audit([path], names=ReviewNames(verdict="ok"), scores=raster, false_per_km2=1e5)
    assert found.area_km2 == pytest.approx(1200 * 0.25 / 1e6, rel=1e-2)
    assert found.tops == () and found.overall.judged == 2 and found.budget.real == 1
    assert not math.isnan(found.bands[0].precision.value)


@pytest.mark.parametrize(
    ("polygons", "raster"), [("x.gpkg", "x.tif"), ("x.fgb", "x.scores.tif"), ("x.fgb", "x.tif"), ("x.fgb", None)]
)
def test_the_scores_are_found_beside_polygons_also_those_of_an_older_geood(tmp_path, polygons, raster):
    for name in filter(None, (raster, "y.tif")):
        (tmp_path / name).touch()
    assert raster_of(tmp_path / polygons) == (tmp_path / raster if raster else None)


@pytest.mark.parametrize("pixels", [picture(20, 240), picture(20, 240, bands=1, dtype="uint16", high=4000)])
def test_the_image_beside_polygons_of_another_tool_is_not_taken_for_scores(tmp_path, pixels):
    path = save(tmp_path / "x.gpkg", reviewed(["real", "false"], rank=False).drop(columns="score_max"))
    transform = HALF_METRE.translation(WEST, SOUTH + 10) * HALF_METRE.scale(0.5, -0.5)
    write_raster(path.with_suffix(".tif"), pixels, transform=transform)
    with pytest.raises(ConfigError, match="no column of scores"):
        audit([path])
    if len(pixels) > 1:
        with pytest.raises(DataError, match="has 3 bands, and scores are one"):
            audit([path], scores=path.with_suffix(".tif"))


@pytest.mark.parametrize("name", ["y.tif", "../y.tif", "/y.tif", "gone.tif"])
def test_polygons_that_were_cut_again_name_the_raster_beside_them_and_no_other(tmp_path, name):
    (tmp_path / "below").mkdir()
    path = save(tmp_path / "below" / "x.gpkg", reviewed(["real"]))
    for folder in (tmp_path, path.parent):
        (folder / "y.tif").touch()
    assert raster_of(path) is None
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE run (scores TEXT)")
        database.execute("INSERT INTO run VALUES (?)", (name,))
    assert raster_of(path) == (path.with_name("y.tif") if name == "y.tif" else None)


def test_nothing_judged_is_said(tmp_path):
    path = save(tmp_path / "a.gpkg", reviewed([None, "rael"]))
    with pytest.raises(DataError, match=r"no polygon has a verdict yet \('rael' \(real\?\) in 1 row\)"):
        audit([path])
    searched = save(tmp_path / "b.gpkg", reviewed([None]), cells([1], [True]))
    assert audit([searched]).misses_per_km2.value == pytest.approx(10)


def test_the_command_prints_and_writes_the_same_figures(tmp_path):
    path = save(tmp_path / "a.gpkg", reviewed([*KINDS, "flase"]), cells([1, 0], [True, True]))
    out = tmp_path / "figures.json"
    done = CliRunner().invoke(app, ["audit", str(path), "--json", str(out), "--false-per-km2", "3"])
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text())
    assert figures["overall"]["real"] == 4 and figures["misspelt"] == {"flase": 1}
    assert figures["overall"]["precision"]["value"] == pytest.approx(0.4) and figures["level"] == 0.95
    assert figures["misses_per_km2"]["value"] == pytest.approx(5)
    for text in ("4 real of 10 judged", "'flase' (false?) in 1 row", "top 10", "from the sample alone", "budget"):
        assert text in done.output
    for name in (path, path.with_suffix(".tif")):
        refused = CliRunner().invoke(app, ["audit", str(path), "--json", str(name), "--overwrite"])
        assert "give a name that ends in .json" in str(refused.exception)
    again = CliRunner().invoke(app, ["audit", str(path), "--json", str(out)])
    assert again.exit_code != 0


def test_the_next_command_can_be_typed_as_it_is(tmp_path):
    frame = reviewed(["real", "false"]).rename(columns={"verdict": "my word"})
    path = save(tmp_path / "a b.gpkg", frame, layer="of mine")
    save(path, frame, layer="another")
    named = ["--layer", "of mine", "--verdict-column", "my word"]
    said = CliRunner().invoke(app, ["audit", str(path), *named]).output.splitlines()[-1]
    line = ["geood", "feedback", str(path), *named, "--config", "CONFIG", "--out", "next.yaml"]
    assert shlex.split(said)[1 : len(line) + 1] == line
