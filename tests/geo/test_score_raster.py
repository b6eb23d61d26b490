"""Laws of score rasters on disk, opened in Python."""

import numpy as np
import pytest
import rasterio

from geood.cli.process import _run
from geood.config.sections import PredictConfig
from geood.errors import ConfigError, DataError
from geood.geo.grid import Grid, Window
from geood.geo.score_raster import ScoreTags, evidence_tags, open_scores, score_tags, tagged_number
from geood.prediction.polygonizing import polygonize
from support.places import NORTH_UP, UTM, noise, write_raster
from support.rasters import write_scores


def test_open_scores_gives_places_and_chunks(tmp_path):
    array = noise(300, 200).astype(np.float32)
    array[0, 0] = np.nan
    scores = open_scores(write_scores(tmp_path / "s.tif", Grid(300, 200, NORTH_UP, UTM), array), chunks=128)
    assert scores.name == "score" and scores.dims == ("y", "x") and scores.chunks == ((128, 128, 44), (128, 72))
    np.testing.assert_array_equal(scores.values, array)
    np.testing.assert_allclose(scores.x.values, 500000 + 0.25 * (np.arange(200) + 0.5))
    np.testing.assert_allclose(scores.y.values, 4500000 - 0.25 * (np.arange(300) + 0.5))
    assert scores.rio.crs == UTM and scores.attrs["GEOOD_MODEL"] == "abc"


def test_open_scores_wants_a_score_raster(tmp_path):
    with pytest.raises(DataError, match="not a score raster of geood"):
        open_scores(write_raster(tmp_path / "a.tif", noise(1, 3, 3).astype(np.uint8)))
    with pytest.raises(DataError, match="no such file"):
        open_scores(tmp_path / "b.tif")


PREDICT = PredictConfig().model_dump_json()
GOOD = {
    "GEOOD_SCENE": "s.tif",
    "GEOOD_THRESHOLD": "0.5",
    "GEOOD_PREDICT": PREDICT,
    "GEOOD_CLASSES": '{"0": "land"}',
}
BAD = {
    "GEOOD_MODEL": ["", None],
    "GEOOD_SCENE": ["", None],
    "GEOOD_THRESHOLD": ["", None, "nan", "inf", "-inf", "half", "0,5", "1" * 5000, "\x1b[31m"],
    "GEOOD_PREDICT": ["", None, "{", "[]", "{}x", PREDICT.replace("8", "5"), '{"more": 1}', '{"a":' * 50_000],
    "GEOOD_CLASSES": [
        "",
        None,
        "{",
        "[]",
        "1",
        '{"a": "land"}',
        '{"0": 1}',
        '{"0": ""}',
        '{"0": "\\u001b[31m"}',
        '{"0": "\\ud800"}',
        '{"300": "land"}',
        '{"0": "land", "00": "sea"}',
        "[" * 50_000,
        '{"' + "1" * 5000 + '": "land"}',
    ],
    "GEOOD_FAILED_TILES": [
        "{",
        "{}",
        "1",
        "[1]",
        "[[1, 2]]",
        "[[0, 0, 1, true]]",
        "[[0, 0, 1, 1.0]]",
        "[[0, 0, 8, 9]]",
        "[[-1, 0, 1, 1]]",
        "[[0, 0, 0, 1]]",
        "[" * 50_000,
    ],
}


@pytest.fixture
def scored(tmp_path):
    """A function of tags, which replace those of a good score raster (None: without it); it returns the raster."""

    def written(**tags):
        path = tmp_path / "scores.tif"
        profile = {"driver": "GTiff", "count": 1, "height": 8, "width": 8, "dtype": "float32", "crs": UTM}
        with rasterio.open(path, "w", transform=NORTH_UP, nodata=float("nan"), **profile) as file:
            file.write(np.full((1, 8, 8), 0.7, np.float32))
            both = {"GEOOD_MODEL": "abc", **GOOD, **tags}
            file.update_tags(**{k: v for k, v in both.items() if v is not None})
        return path

    return written


@pytest.mark.parametrize(("tag", "value"), [(tag, value) for tag, values in BAD.items() for value in values])
def test_a_tag_that_is_missing_or_wrong_is_named(scored, tag, value):
    path = scored(**{tag: value})
    with pytest.raises(DataError, match=f"its tag {tag} .*; needed is ") as error:
        score_tags(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 500 and str(error.value).isprintable()


def test_good_tags_come_back_as_values(scored):
    tags = score_tags(scored(GEOOD_FAILED_TILES="[[0, 4, 8, 4]]"))
    assert tags == ScoreTags("abc", "s.tif", 0.5, PredictConfig(), {0: "land"}, (Window(0, 4, 8, 4),))
    assert score_tags(scored(GEOOD_THRESHOLD="nan"), threshold=0.6).threshold == 0.6


def test_a_wrong_tag_makes_no_polygons_and_a_given_threshold_stands_in_for_its_own(scored, tmp_path):
    out = tmp_path / "x.geojson"
    with pytest.raises(DataError, match=r"GEOOD_THRESHOLD is nan; needed is a finite number.*--threshold"):
        polygonize(scored(GEOOD_THRESHOLD="nan"), out)
    assert not out.exists() and polygonize(scored(GEOOD_THRESHOLD="nan"), out, threshold=0.5) == 1
    for area in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match="--min-area"):
            polygonize(scored(), out, min_area_m2=area, overwrite=True)
    with pytest.raises(DataError, match="GEOOD_PREDICT"):  # has more than the least area
        polygonize(scored(GEOOD_PREDICT="{"), out, min_area_m2=1.0, overwrite=True)


def test_info_shows_a_raster_with_a_wrong_tag_and_says_so(scored, capsys):
    assert _run(["info", str(scored(GEOOD_THRESHOLD="nan"))], debug=False) == 3
    said = capsys.readouterr()
    assert "threshold              nan" in said.out and "GEOOD_THRESHOLD" in said.err
    assert _run(["info", str(scored(GEOOD_SCENE="\x1b[31mred"))], debug=False) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("score", ["1" + 400 * "0", "NaN", "Infinity", "true", '"1"'])
def test_an_inlier_s_score_that_is_no_number_is_named(scored, score):
    with pytest.raises(DataError, match=r"its tag GEOOD_INLIERS .*; needed is JSON pairs"):
        evidence_tags(scored(GEOOD_INLIERS=f"[[0.5, 0.1], [{score}, 0.01]]"))
    assert evidence_tags(scored(GEOOD_INLIERS="[[7, 0.01]]")).inliers == ((7.0, 0.01),)


def test_a_number_in_a_tag_is_finite_or_none():
    tags = {"a": "1.5", "b": "inf", "c": "nan", "d": "x"}
    assert [tagged_number(tags, tag) for tag in "abcde"] == [1.5, None, None, None, None]
