"""Laws of the table of false polygons: a budget is kept on its own ground, and it survives its way through a tag."""

import re

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from scipy.stats import nbinom, poisson

from geood.calibration.false_polygons import PolygonTable, _quantile, least_area, spread_of
from geood.config import PredictConfig
from geood.errors import ConfigError
from geood.geo.grid import Grid
from geood.polygons import anomalies
from support.rasters import write_scores

STEPS = (0.1, 0.2, 0.3, 0.4)


def table(**changes):
    given = {
        "kind": "jsd",
        "thresholds": STEPS,
        "rates": (0.2, 0.05, 0.01, 0.0),
        "km2": 2.0,
        "pixel_m": 0.5,
        "images": 4,
        "least_px": (1, 4),
        "polygons": ((10, 30, 8, 0), (6, 12, 4, 0)),
        "spread": ((0.1, 0.1, 0.2, 0.0), (0.1, 0.1, 0.2, 0.0)),
    }
    return PolygonTable(**(given | changes))


@pytest.mark.parametrize(
    ("budget", "area", "expected"),
    [(20, 0.0, 0.1), (15, 0.0, 0.1), (14.9, 0.0, 0.3), (4, 0.0, 0.3), (3, 0.0, 0.4), (3, 1.0, 0.3), (0, 0.0, 0.4)],
)
def test_a_budget_takes_the_lowest_threshold_that_keeps_it_from_there_on(budget, area, expected):
    """At a low threshold polygons merge, so fewer of them are no sign of rest."""
    assert table().at_budget(budget, area) == expected


def test_a_least_area_between_two_that_were_counted_takes_the_smaller():
    assert table().at(0.2, 0.99).rate == 15.0 and table().at(0.2, 1.0).rate == 6.0 and table().at(0.25, 5.0).rate == 6.0


@pytest.mark.parametrize("east", [500_000, 640_000, 780_000])  # metres; the scale grows from the middle of a zone
def test_nine_pixels_are_a_polygon_wherever_a_scene_lies_and_eight_are_none(tmp_path, east):
    """They were one or not by the scale of the projection, from scene to scene and within one."""
    middle, place = (Grid(40, 40, Affine(0.5, 0, x, 0, -0.5, 2_300_000), CRS.from_epsg(32643)) for x in (640_000, east))
    score = np.zeros((40, 40), np.float32)
    score[4:7, 4:7] = score[20:22, 20:24] = 1
    write_scores(tmp_path / "s.tif", place, score)
    settings = PredictConfig(min_area_m2=least_area(None, middle.resolution_m))
    found = anomalies(
        tmp_path / "s.tif", threshold=0.5, classes=None, class_names=None, predict=settings, model="of another place"
    )
    assert found.area_px.tolist() == [9]


def test_rates_are_read_between_two_thresholds_and_none_beyond():
    assert table().at_rate(0.05) == pytest.approx(0.2)
    assert 0.2 < table().at_rate(0.02) < 0.3
    for rate in (0.3, 0.001):
        with pytest.raises(ConfigError, match="tells thresholds for"):
            table().at_rate(rate)


def test_what_was_not_counted_is_refused_or_unknown():
    for bare in (table(km2=None), table(least_px=(), polygons=(), spread=()), table(pixel_m=None)):
        assert bare.at(0.2, 0.0) is None
        with pytest.raises(ConfigError, match="no false polygons were counted"):
            bare.at_budget(5, 0.0)
    with pytest.raises(ConfigError, match="even the highest threshold"):
        table(polygons=((9, 9, 9, 9), (9, 9, 9, 9))).at_budget(1, 0.0)


def test_polygons_smaller_than_those_that_were_counted_have_no_rate_and_no_budget():
    """They were taken for as many as the larger ones, by models of images finer than they read them."""
    finer = table(least_px=(4, 16))
    assert finer.at(0.2, 0.99) is None and finer.at(0.2, 0.0) is None and finer.at(0.2, 1.0).rate == 15.0
    with pytest.raises(ConfigError, match="no polygons of less than 1 m2"):
        finer.at_budget(5, 0.0)
    assert finer.at_budget(20, 1.0) == 0.1


def test_intervals_hold_the_rate_and_need_two_images_for_a_scene():
    small, large = (table().at(0.2, 0.0, km2) for km2 in (0.5, 50.0))
    for found in (small, large):
        assert found.interval[0] < found.rate < found.interval[1]
        assert found.scene[0] <= found.rate <= found.scene[1]
    assert small.scene[1] > large.scene[1]
    assert table(images=1).at(0.2, 0.0, 1.0).scene is None and table().at(0.2, 0.0).scene is None


def test_a_table_comes_back_from_its_tag_and_no_other_text_does():
    assert PolygonTable.from_text(table().to_text()) == table()
    text = table().to_text()
    for damaged in (
        "",
        "[]",
        "{}",
        text[:-1],
        text.replace("[0.1,0.2", '["a",0.2'),
        text.replace("0.01,", ""),
        re.sub(r'"images":\d+', f'"images":{10**400}', text),
        re.sub(r'"pixel_m":[^,]+', '"pixel_m":"wide"', text),
        re.sub(r'"km2":[^,]+', '"km2":NaN', text),
        re.sub(r'"polygons":\[\[\d+', '"polygons":[["many"', text),
        re.sub(r'"spread":\[\[[^,]+', '"spread":[[null', text),
        "[" * 9999,
    ):
        with pytest.raises(ValueError, match="not a table"):
            PolygonTable.from_text(damaged)


def test_counts_that_differ_by_chance_alone_have_little_spread():
    rng = np.random.default_rng(0)
    areas = np.full(200, 1.0)
    assert spread_of(rng.poisson(10, 200), areas) < 0.05
    assert spread_of(rng.poisson(rng.gamma(2.0, 5.0, 200)), areas) == pytest.approx(0.5, abs=0.2)
    assert spread_of(np.zeros(3, np.int64), areas[:3]) == 0.0


@pytest.mark.parametrize("areas", [(1.0, 1.0), (1.0, 1.0, 1.0), (0.2, 1.0, 3.0, 0.5)])
def test_the_spread_of_few_images_is_on_average_that_of_many(areas):
    """Means of the same counts lie nearer to them than the true ones: of two images half of the spread was seen."""
    rng, areas = np.random.default_rng(0), np.array(areas)
    rates = rng.gamma(1 / 0.04, 0.04, (4000, len(areas)))
    found = [spread_of(counts, areas) for counts in rng.poisson(rates * areas * 2000)]
    assert np.mean(found) == pytest.approx(0.04, rel=0.08)


def test_a_small_image_beside_a_large_one_tells_no_spread():
    """A polygon in a sliver of ground is a rate a hundredfold, and says nothing of how much images differ."""
    assert spread_of(np.array([100, 1]), np.array([1.0, 1e-4])) < 0.01
    assert spread_of(np.array([7]), np.array([1.0])) == 0.0


@pytest.mark.parametrize("mean", [1e-4, 0.3, 7.0, 2500.0])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_counts_follow_the_laws_of_scipy(mean, share):
    assert _quantile(share, mean, 0.0) == poisson.ppf(share, mean)
    for more in (0.01 * mean, mean, 4 * mean**2):
        assert _quantile(share, mean, more) == nbinom.ppf(share, mean**2 / more, mean / (mean + more))
