"""Reading of reviews: as they are meant, whatever was done to the file."""

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import shapely

from geood.errors import DataError
from geood.review.reading import ReviewNames, misspelt_lines, read_review
from support.reviews import cells, reviewed, save, square


def verdicts(review):
    return review.polygons["verdict"].tolist()


def test_capitals_and_blanks_do_not_count_and_what_is_none_is_counted(tmp_path):
    path = save(tmp_path / "a.gpkg", reviewed(["real", " False ", "REAL", "flase", "flase", "ja", None, ""]))
    review = read_review([path])
    assert verdicts(review) == ["real", "false", "real", "", "", "", "", ""]
    assert review.misspelt == {"flase": 2, "ja": 1}
    assert misspelt_lines(review.misspelt) == ["'flase' (false?) in 2 rows", "'ja' in 1 row"]


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".parquet", ".shp"])
def test_every_format_is_read(tmp_path, suffix):
    frame = reviewed(["real", "false", None])
    if suffix == ".parquet":
        frame.to_parquet(tmp_path / "a.parquet")
    else:
        save(tmp_path / f"a{suffix}", frame, layer="a")
    names = ReviewNames(score="score_max")
    review = read_review([tmp_path / f"a{suffix}"], names)
    assert verdicts(review) == ["real", "false", ""] and review.polygons["score"].round(2).tolist() == [1, 0.99, 0.98]


def test_a_renamed_layer_is_found_where_it_can_be_told_and_listed_where_not(tmp_path):
    path = save(tmp_path / "a.gpkg", reviewed(["real"]), cells([1], [True]), layer="my own name")
    review = read_review([path])
    assert verdicts(review) == ["real"] and review.cells["misses"].tolist() == [1]
    save(path, reviewed(["false"]), layer="second")
    with pytest.raises(DataError, match=r"which layer .*--layer: my own name, sample, second"):
        read_review([path])
    assert verdicts(read_review([path], ReviewNames("second"))) == ["false"]
    with pytest.raises(DataError, match=r"no layer third.*second"):
        read_review([path], ReviewNames("third"))


@pytest.mark.parametrize("rank", [True, False])
def test_deleted_rows_are_told_and_change_nothing_else(tmp_path, rank):
    path = save(tmp_path / "a.gpkg", reviewed(["real", "false", "real", "false"], rank=rank))
    import sqlite3

    with sqlite3.connect(path) as database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
            database.create_function(name, 1, lambda _: 0)
        database.execute("DELETE FROM anomalies WHERE fid = 2")
    database.close()
    review = read_review([path])
    assert verdicts(review) == ["real", "real", "false"]
    what = "rank" if rank else "row number"
    assert review.notes == (f"a.gpkg: 1 {what} missing of those up to 4, so rows were deleted; none counts",)


def test_deleted_rows_of_several_scenes_are_told_whether_they_share_ranks_or_not(tmp_path):
    frame = reviewed(["real"] * 6, scene=["a", "b"] * 3)
    shared = read_review([save(tmp_path / "a.gpkg", frame.drop(index=[1, 2]))])
    assert shared.notes == ("a.gpkg: 2 ranks missing of those up to 6, so rows were deleted; none counts",)
    own = frame.assign(rank=[1, 1, 2, 2, 3, 3])
    assert read_review([save(tmp_path / "b.gpkg", own)]).notes == ()
    assert read_review([save(tmp_path / "c.gpkg", own.drop(index=[1]))]).notes == (
        "c.gpkg: 1 rank of b missing of those up to 3, so rows were deleted; none counts",
    )


@pytest.mark.parametrize("rank", [True, False])
def test_two_reviewers_agree_or_are_in_conflict(tmp_path, rank):
    one = reviewed(["real", "false", "real", None, "skip"], rank=rank, reviewer=["Ada"] * 5)
    other = reviewed(["real", "real", None, "false", "unsure"], rank=rank, reviewer=["Bo"] * 5)
    paths = [save(tmp_path / "a.gpkg", one), save(tmp_path / "b.gpkg", other)]
    apart = read_review(paths)
    merged = read_review([save(tmp_path / "c.gpkg", pd.concat([one, other], ignore_index=True))])
    for review in (apart, merged):
        assert verdicts(review) == ["real", "conflict", "real", "false", "unsure"]
        [conflict] = review.conflicts
        assert str(conflict).startswith("rank 2: false by Ada" if rank else "fid 2: false by Ada")
        assert "real by Bo" in str(conflict)


def test_an_outline_that_was_edited_is_still_the_same_polygon_where_it_has_a_rank(tmp_path):
    frame = reviewed(["real", "false"])
    edited = frame.set_geometry([shapely.box(0, 0, 1, 1), square(1)], crs=frame.crs)
    edited["verdict"] = ["false", None]
    review = read_review([save(tmp_path / "a.gpkg", frame), save(tmp_path / "b.gpkg", edited)])
    assert len(review.polygons) == 2 and len(review.conflicts) == 1


def test_a_polygon_that_was_cut_into_parts_is_one_with_all_parts_of_its_verdict(tmp_path):
    frame = reviewed(["false", "real", None])
    west, south, east, north = frame.geometry[0].bounds
    halves = [shapely.box(west, south, west + 4, north), shapely.box(west + 4, south, east, north)]
    cut = pd.concat([frame, frame.iloc[[0]]], ignore_index=True)
    cut = cut.set_geometry([halves[0], *frame.geometry[1:], halves[1]], crs=frame.crs)
    review = read_review([save(tmp_path / "a.gpkg", cut)])
    assert verdicts(review) == ["false", "real", ""]
    assert review.polygons.geometry.geom_equals(frame.geometry).all()
    assert review.notes == ("1 polygon cut into parts or copied, with one rank: each counts once",)
    partly = cut.assign(verdict=["false", "real", None, None])
    review = read_review([save(tmp_path / "b.gpkg", partly), save(tmp_path / "c.gpkg", frame)])
    assert review.polygons.geometry[0].equals(halves[0]), "the other part was not judged"
    torn = cut.assign(verdict=["false", "real", None, "real"])
    review = read_review([save(tmp_path / "d.gpkg", torn)])
    assert verdicts(review) == ["conflict", "real", ""]
    assert review.polygons.geometry[0].equals(frame.geometry[0]), "no part of it is ground"
    bow = shapely.Polygon([(west, south), (east, north), (east, south), (west, north)])
    broken = cut.set_geometry([halves[0], *frame.geometry[1:], bow], crs=frame.crs)
    assert not read_review([save(tmp_path / "e.gpkg", broken)]).polygons.geometry[0].is_valid
    gone = cut.set_geometry([halves[0], *frame.geometry[1:], None], crs=frame.crs)
    assert read_review([save(tmp_path / "f.gpkg", gone)]).polygons.geometry[0].equals(halves[0])


def test_cells_with_counts_that_are_none_are_left_out(tmp_path):
    sample = cells([2, -1, 1.5, None, 3], [True, True, True, True, False])
    review = read_review([save(tmp_path / "a.gpkg", reviewed(["real"]), sample)])
    assert review.cells["complete"].tolist() == [True, False, False, True, False]
    assert review.cells[review.cells["complete"]]["misses"].tolist() == [2, 0]
    assert any("2 counts of misses no whole number" in note for note in review.notes)
    endless = sample.assign(misses=["inf", "2", "-inf", "nan", "1e3"])
    assert read_review([save(tmp_path / "b.gpkg", reviewed(["real"]), endless)]).cells["complete"].tolist() == [
        False,
        True,
        False,
        False,
        False,
    ]
    assert any("1 cell complete without a count" in note for note in review.notes)


@pytest.mark.parametrize("lost", [["scene"], ["seed"], ["cell"], ["scene", "seed", "cell"]])
@pytest.mark.parametrize("whole", [True, False])
def test_a_cell_counts_once_though_a_copy_lost_the_columns_that_tell_it(tmp_path, lost, whole):
    """As a reviewer saved the layer with fewer columns: in one of two copies, or in both."""
    one = cells([1, 0, 0], [True, True, False]).assign(scene="a.tif")
    other = cells([1, 0, 2], [True, False, True]).assign(scene="a.tif").drop(columns=lost)
    one = one if whole else one.drop(columns=lost)
    paths = [save(tmp_path / "a.gpkg", reviewed(["real"]), one), save(tmp_path / "b.gpkg", reviewed(["real"]), other)]
    review = read_review(paths)
    assert review.cells["misses"].tolist() == [1, 0, 2] and review.cells["complete"].all()
    assert not any("differing" in note for note in review.notes)


def test_cells_of_a_copy_that_match_no_other_are_none_of_theirs(tmp_path):
    own = cells([1, 0], [True, True])
    other = cells([2, 3], [True, True], places=[square(300), square(301)]).drop(columns="cell")
    paths = [save(tmp_path / "a.gpkg", reviewed(["real"]), own), save(tmp_path / "b.gpkg", reviewed(["real"]), other)]
    assert read_review(paths).cells["misses"].tolist() == [1, 0, 2, 3]


def test_cells_whose_number_is_none_are_told_apart_by_their_outlines(tmp_path):
    numbers = ["inf", "1e300", "1.5", "4"]
    one = cells([1, 0, 2, 3], [True] * 4).assign(cell=numbers)
    paths = [save(tmp_path / f"{name}.gpkg", reviewed(["real"]), one) for name in "ab"]
    assert read_review(paths).cells["misses"].tolist() == [1, 0, 2, 3]


def test_a_cell_that_two_count_differently_is_not_complete(tmp_path):
    paths = [
        save(tmp_path / f"{name}.gpkg", reviewed(["real"]), cells([misses, 1], [True, done]))
        for name, misses, done in (("a", 2, True), ("b", 3, False))
    ]
    review = read_review(paths)
    assert review.cells["complete"].tolist() == [False, True] and "cell 1 has differing counts" in review.notes[-1]


@pytest.mark.parametrize("counts", [(None, None), (None, 0), (0, 0)])
def test_a_cell_that_two_searched_without_a_miss_counts_though_not_all_typed_the_zero(tmp_path, counts):
    paths = [
        save(tmp_path / f"{i}.gpkg", reviewed(["real"]), cells([count, 1.0], [True, True]))
        for i, count in enumerate(counts)
    ]
    review = read_review(paths)
    assert review.cells["complete"].tolist() == [True, True] and review.cells["misses"].tolist() == [0, 1]
    assert not any("differing" in note for note in review.notes)


@pytest.mark.parametrize("suffix", [".geojson", ".fgb", ".shp", ".parquet"])
def test_row_numbers_that_qgis_saved_as_a_column_are_read(tmp_path, suffix):
    frame, path = reviewed(["real", "false"]).assign(fid=[7, 9]), tmp_path / f"a{suffix}"
    frame = frame.rename_geometry("geom")  # as other tools call it
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_file(path, engine="pyogrio")
    review = read_review([path])
    assert verdicts(review) == ["real", "false"] and review.polygons["fid"].tolist() == [7, 9]


def test_copies_in_formats_with_other_notations_of_one_crs_and_of_ranks_are_copies(tmp_path):
    frame = reviewed(["real", None, None])
    esri = pyproj.CRS(pyproj.CRS(32633).to_wkt("WKT1_ESRI"))
    text = frame.assign(rank=["1.0", "2.0", "3.0"], verdict=["false", "real", None]).set_crs(esri, allow_override=True)
    text.to_parquet(tmp_path / "b.parquet")
    review = read_review([save(tmp_path / "a.gpkg", frame), tmp_path / "b.parquet"])
    assert verdicts(review) == ["conflict", "real", ""]
    assert [str(conflict) for conflict in review.conflicts] == ["rank 1: real by a.gpkg, false by b.parquet"]


@pytest.mark.parametrize("lacks", [["model"], ["scene"], ["rank"], ["scene", "model", "rank", "score_max", "area_px"]])
@pytest.mark.parametrize("several", [False, True])
def test_a_copy_that_was_saved_with_fewer_columns_is_a_copy(tmp_path, lacks, several):
    """Each of its polygons counted once more, and no conflict was seen."""
    scenes = {"scene": ["a", "a", "b", "b"], "rank": [1, 2, 1, 2]} if several else {"scene": "a"}
    frame = reviewed(["real", "false", None, "real"]).assign(**scenes)
    other = frame.assign(verdict=["real", None, "false", "false"]).drop(columns=lacks)
    for paths in (("a", frame), ("b", other)), (("c", other), ("d", frame)):
        review = read_review([save(tmp_path / f"{name}.gpkg", each) for name, each in paths])
        assert sorted(verdicts(review)) == ["conflict", "false", "false", "real"] and len(review.conflicts) == 1


def test_a_column_of_yes_and_no_is_no_column_of_verdicts(tmp_path):
    for values in ([True, False, True], [None, False, None]):
        frame = reviewed(["real"] * 3).assign(ok=pd.Series(values, dtype=object))
        frame.to_parquet(tmp_path / "a.parquet")
        with pytest.raises(DataError, match="the column ok holds yes and no"):
            read_review([tmp_path / "a.parquet"], ReviewNames(verdict="ok"))
    with pytest.raises(DataError, match="the column ok holds yes and no"):
        read_review([save(tmp_path / "a.gpkg", reviewed(["real"]).assign(ok=[False]))], ReviewNames(verdict="ok"))


def test_what_is_missing_is_named(tmp_path):
    path = save(tmp_path / "a.gpkg", reviewed(["real"]).drop(columns="verdict"))
    with pytest.raises(DataError, match=r"no column verdict.*--verdict-column.*score_max"):
        read_review([path])
    with pytest.raises(DataError, match="--score-column"):
        read_review([path], ReviewNames(verdict="class_name", score="none"))
    with pytest.raises(DataError, match=r"no such file; did you mean a\.gpkg"):
        read_review([tmp_path / "b.gpkg"])
    with pytest.raises(DataError, match="not a file of polygons"):
        read_review([tmp_path / "a.txt"])
    first, other = save(tmp_path / "d.gpkg", reviewed(["real"])), tmp_path / "c.gpkg"
    save(other, geopandas.GeoDataFrame(reviewed(["real"])).to_crs(4326))
    with pytest.raises(DataError, match=r"c\.gpkg: has another CRS than .*d\.gpkg"):
        read_review([first, first, other])


def test_cells_of_several_reviewers_may_be_in_several_systems(tmp_path):
    frame, sample = reviewed(["real"]), cells([0, 2], [True, True])
    paths = [save(tmp_path / "a.gpkg", frame, sample), save(tmp_path / "b.gpkg", frame, sample.to_crs(4326))]
    review = read_review(paths)
    assert review.cells.crs == frame.crs and review.cells["misses"].tolist() == [0, 2]


def test_files_of_two_maps_are_not_taken_for_copies_of_one(tmp_path):
    frame = reviewed(["real", "false", None, "real"])
    other = frame.assign(score_max=frame["score_max"] + 0.1, area_px=17).set_geometry(frame.translate(1000))
    paths = [save(tmp_path / "a.gpkg", frame), save(tmp_path / "b.gpkg", other)]
    with pytest.raises(DataError, match=r"b\.gpkg: is of another map than .*a\.gpkg"):
        read_review(paths)
    for without in ("score_max", "area_px"):
        for edited in (frame.assign(**{without: np.nan}), frame.drop(columns=without)):
            assert len(read_review([paths[0], save(tmp_path / "c.gpkg", edited)]).polygons) == 4
    with pytest.raises(DataError, match="of another map"):
        read_review([paths[0], save(tmp_path / "d.gpkg", other.drop(columns="score_max"))])


def test_a_polygon_drawn_by_hand_leaves_the_others_their_ranks(tmp_path):
    """Others are still the same by rank, though a reviewer moved an outline; what was drawn is the same by its own."""
    frame = reviewed(["real", "false", None], class_name=["land"] * 3)
    moved = frame.set_geometry([square(0, 9.0), *frame.geometry[1:]], crs=frame.crs)
    drawn = pd.concat([moved, frame.iloc[:1].assign(rank=None, score_max=None, area_px=None)], ignore_index=True)
    drawn = drawn.set_geometry([*moved.geometry, square(50)], crs=frame.crs)
    paths = [save(tmp_path / "a.gpkg", frame), save(tmp_path / "b.gpkg", drawn), save(tmp_path / "c.gpkg", drawn)]
    review = read_review(paths)
    assert review.ranked and review.polygons["verdict"].tolist() == ["real", "false", "", "real"]
    assert not review.conflicts and review.polygons.geometry.iloc[-1].equals(square(50))


def test_rows_drawn_by_hand_without_an_outline_are_no_parts_of_the_last_polygon(tmp_path):
    frame = reviewed(["real", "false", None])
    bare = pd.concat([frame, frame.iloc[:1].assign(rank=None, score_max=None)], ignore_index=True)
    bare = bare.set_geometry([*frame.geometry, None], crs=frame.crs)
    review = read_review([save(tmp_path / "a.gpkg", bare)])
    assert verdicts(review) == ["real", "false", "", "real"] and not review.notes


def test_a_conflict_over_a_polygon_that_has_no_rank_names_none(tmp_path):
    frame = reviewed(["real", "real"])
    drawn = pd.concat([frame, frame.iloc[:1].assign(rank=None, score_max=None)], ignore_index=True)
    drawn = drawn.set_geometry([*frame.geometry, square(50)], crs=frame.crs)
    other = drawn.assign(verdict=["real", "false", "false"])
    review = read_review([save(tmp_path / "a.gpkg", drawn), save(tmp_path / "b.gpkg", other)])
    assert [str(conflict) for conflict in review.conflicts] == [
        "rank 2: real by a.gpkg, false by b.gpkg",
        "fid 3: real by a.gpkg, false by b.gpkg",
    ]


@pytest.mark.parametrize(
    "ranks", [[3, 3, 1, 1, 2, 1], [30, 30, 10, 10, 20, 10], [0.5, 0.5, 0.25, 0.75, 0.5, 0.25], list("abcdef")]
)
def test_grades_of_another_tool_are_no_ranks(tmp_path, ranks):
    """Polygons of one grade were taken for parts of one polygon, so that three of six counted."""
    verdicts = ["real", "false", "real", "false", "real", "false"]
    frame = reviewed(verdicts, rank=False, score_max=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).assign(rank=ranks)
    review = read_review([save(tmp_path / "a.gpkg", frame.drop(columns=["model", "area_px"]), layer="theirs")])
    assert not review.ranked and review.polygons["verdict"].tolist() == verdicts[::-1]
    assert not review.conflicts and not review.notes


@pytest.mark.parametrize("odd", [np.inf, -np.inf, 1e300, 1.5])
def test_a_rank_that_is_no_whole_number_is_none(tmp_path, odd):
    frame = reviewed(["real", "false", "unsure"]).assign(rank=[1.0, 2.0, odd])
    review = read_review([save(tmp_path / "a.gpkg", frame)])
    assert review.ranked and not review.notes and review.polygons["verdict"].tolist() == ["real", "false", "unsure"]


@pytest.mark.parametrize("numbers", [["a1", "b", "c"], [1.5, np.inf, None]])
def test_a_column_fid_that_holds_no_row_numbers_tells_nothing(tmp_path, numbers):
    frame = reviewed(["real", "false", "real"], rank=False).assign(fid=numbers)
    pyogrio.write_dataframe(frame, tmp_path / "a.gpkg", layer="anomalies", layer_options={"FID": "ogc_fid"})
    review = read_review([tmp_path / "a.gpkg"])
    assert len(review.polygons) == 3 and not review.notes


def test_a_count_of_misses_beyond_whole_numbers_is_left_out(tmp_path):
    review = read_review([save(tmp_path / "a.gpkg", reviewed(["real"]), cells([2, 1e300], [True, True]))])
    assert review.cells["complete"].tolist() == [True, False]


def test_areas_of_cells_that_are_texts_are_read(tmp_path):
    sample = cells([0, 1], [True, True]).assign(area_m2=["100000", "no"], stands_for_m2=["1e6", "?"])
    held = read_review([save(tmp_path / "a.gpkg", reviewed(["real"]), sample)]).cells
    assert held["area_m2"].sum() == 1e5 and held["stands_for_m2"].sum() == 1e6


@pytest.mark.parametrize("rank", [True, False])
def test_a_class_that_one_reviewer_stated_is_that_of_all_and_two_are_none(tmp_path, rank):
    """The class was that of the first file, though nobody had typed one there."""
    classes = [
        [None, " ", "Road", "roof", None],
        ["road", "roof", "road ", "land", None],
        ["road", "roof", None, "x", ""],
    ]
    frames = [reviewed(["false"] * 4 + ["real"], rank=rank, true_class=each) for each in classes]
    review = read_review([save(tmp_path / f"{i}.gpkg", frame) for i, frame in enumerate(frames)])
    assert review.polygons["true_class"].tolist() == ["road", "roof", "Road", None, None]
    assert review.notes == ("1 polygon with one verdict and differing true_class: none is stated",)


def test_parts_of_a_cut_polygon_that_are_of_two_classes_state_none(tmp_path):
    frame = reviewed(["false", "false"], true_class=["road", "roof"])
    cut = pd.concat([frame, frame.iloc[:1].assign(true_class="land", geometry=[square(7)])], ignore_index=True)
    review = read_review([save(tmp_path / "a.gpkg", cut)])
    assert review.polygons["true_class"].tolist() == [None, "roof"] and "differing true_class" in review.notes[-1]


def test_parts_that_were_measured_anew_stay_one_polygon(tmp_path):
    """Their areas differ, which made grades of all ranks: each part counted, and no polygon had a rank."""
    frame = reviewed(["real", "false", "real", "false"])
    cut = pd.concat([frame, frame.iloc[:2]], ignore_index=True).assign(area_m2=[60, 70, 100, 100, 40, 30])
    review = read_review([save(tmp_path / "a.gpkg", cut)])
    assert review.ranked and len(review.polygons) == 4
    assert review.notes == ("2 polygons cut into parts or copied, with one rank: each counts once",)


@pytest.mark.parametrize("rank", [True, False])
def test_a_table_whose_index_has_a_number_twice_is_read(tmp_path, rank):
    frame = reviewed(["real", "false"] * 2, rank=rank, scene=["a", "a", "b", "b"])
    frame = frame.assign(rank=[1, 2, 1, None]) if rank else frame
    frame.set_index(pd.Index([0, 1, 0, 1])).to_parquet(tmp_path / "a.parquet")
    review = read_review([tmp_path / "a.parquet"])
    assert len(review.polygons) == 4 and review.ranked == rank and not review.notes


def test_a_sample_all_of_whose_cells_were_deleted_is_empty(tmp_path):
    review = read_review([save(tmp_path / "a.gpkg", reviewed(["real"]), cells([0], [True]).iloc[:0])])
    assert verdicts(review) == ["real"] and len(review.cells) == 0


def test_differing_classes_of_a_polygon_without_a_verdict_are_no_news(tmp_path):
    paths = [save(tmp_path / f"{word}.gpkg", reviewed([None], true_class=[word])) for word in ("road", "roof")]
    assert read_review(paths).notes == ()


def test_blank_counts_of_misses_are_none_typed(tmp_path):
    sample = cells(["1", "", " ", "one"], [True] * 4)
    review = read_review([save(tmp_path / "a.gpkg", reviewed(["real"]), sample)])
    assert review.cells["complete"].tolist() == [True, True, True, False]
    assert review.notes == (
        "layer sample: 1 count of misses no whole number; left out",
        "layer sample: 2 cells complete without a count of misses, which is taken for 0",
    )
