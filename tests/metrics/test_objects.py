"""Laws of object figures: things and polygons are counted as their definitions say, and planted ones exactly."""

import math

import numpy as np
import pytest
import scipy.ndimage

from geood.metrics.objects import (
    SIZES_M2,
    count_polygons,
    is_real,
    precision_at,
    recall_by_size,
    things_of,
    threshold_at_recall,
)


def planted():
    """A scene of four things (of 20, 16, 15 and 100 px) and scores that meet them in known ways."""
    truth = np.zeros((40, 50), np.uint8)
    truth[2:6, 2:7] = truth[10:14, 2:6] = truth[20:23, 2:7] = truth[25:35, 20:30] = 1
    truth[:, 45:] = 255
    score = np.zeros(truth.shape, np.float32)
    score[2:3, 2:7] = 0.9  # 5 of 20 px: a quarter, found
    score[10:11, 2:5] = 0.9  # 3 of 16 px: less than a quarter
    score[25:35, 20:25] = 0.7  # half of 100 px
    score[36:38, 30:34] = 0.8  # nothing there
    score[30:34, 44:48] = 0.8  # 4 px on labelled ground, the rest ignored
    return score, truth


def test_planted_things_are_found_at_the_right_thresholds():
    score, truth = planted()
    things, rest = things_of(truth)
    assert sorted(things.size_px.tolist()) == [16, 20, 100]
    assert (rest == 255).sum() == 15 + 5 * 40  # the thing of 15 px is too small to count
    by_size = dict(zip(things.size_px.tolist(), things.reach(score).tolist(), strict=True))
    assert by_size == {20: pytest.approx(0.9), 16: 0.0, 100: pytest.approx(0.7)}
    assert [things.row[0], things.col[0]] == [3.5, 4.0]


def test_planted_polygons_are_real_or_false():
    score, truth = planted()
    _, rest = things_of(truth)
    assert count_polygons(score, rest, threshold=0.5) == (3, 2, 2 * 4 + 4)
    assert count_polygons(score, rest, threshold=0.75)[:2] == (2, 2)
    assert count_polygons(score, rest, threshold=0.5, least_px=5)[:2] == (2, 1)
    assert count_polygons(score, rest, threshold=0.95) == (0, 0, 0)
    assert is_real(np.array([1, 0, 25]), np.array([4, 9, 101])).tolist() == [True, False, False]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("connectivity", [4, 8])
def test_counts_are_those_of_each_component_on_its_own(seed, connectivity):
    rng = np.random.default_rng(seed)
    score = rng.random((30, 33), dtype=np.float32)
    score[rng.random(score.shape) < 0.1] = np.nan
    truth = rng.choice([0, 1, 255], (15, 17), p=[0.6, 0.3, 0.1]).astype(np.uint8).repeat(2, 0).repeat(2, 1)[:, :33]
    things, rest = things_of(truth, least_px=5)
    labels, count = scipy.ndimage.label(truth == 1, np.ones((3, 3)))
    large = [labels == i for i in range(1, count + 1) if (labels == i).sum() >= 5]
    assert len(things.size_px) == len(large)
    for threshold in (0.2, 0.6, 0.9):
        above = score > threshold
        found = [above[thing].mean() >= 0.25 for thing in large]
        assert (things.reach(score) > threshold).tolist() == found
        parts, number = scipy.ndimage.label(above & (rest != 255), np.ones((3, 3)) if connectivity == 8 else None)
        each = [parts == i for i in range(1, number + 1) if (parts == i).sum() >= 3]
        real = sum((rest[part] == 1).mean() >= 0.25 for part in each)
        counted = count_polygons(score, rest, threshold=threshold, connectivity=connectivity, least_px=3)
        assert counted == (real, len(each) - real, (above & (rest == 0)).sum())


def test_a_recall_is_met_at_its_threshold_and_missed_above_it():
    reach = np.array([0.9, 0.2, 0.5, 0.5, -np.inf, 0.7])
    for recall in (0.1, 0.25, 0.5, 0.75):
        threshold = threshold_at_recall(reach, recall)
        assert (reach > threshold).mean() >= recall
        higher = reach[reach > threshold].min()
        assert (reach > higher).mean() < recall
    assert math.isnan(threshold_at_recall(np.zeros(0), 0.5))


def test_the_threshold_of_a_recall_holds_for_score_maps_of_few_values():
    truth, score = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.float32)
    truth[2:8, 2:8] = 1
    score[2:8, 2:8] = score[20:26, 20:26] = 0.7
    things, rest = things_of(truth)
    threshold = threshold_at_recall(things.reach(score), 0.5)
    assert count_polygons(score, rest, threshold=threshold) == (1, 1, 36)


def test_recall_by_size_and_precision():
    size = np.array([1.0, 25.0, 99.0, 2000.0])
    figures = recall_by_size(np.array([True, False, True, True]), size)
    assert len(figures["things"]) == len(SIZES_M2) - 1 and figures["things"] == [1, 2, 0, 0, 1]
    assert figures["recall"][:2] == [1.0, 0.5] and math.isnan(figures["recall"][2]) and figures["recall"][4] == 1.0
    assert recall_by_size(np.array([True]), np.array([math.nan]))["things"] == [0, 0, 0, 0, 0]
    assert precision_at([True, False, True, True], 2) == 0.5 and precision_at([True], 10) == 1.0
    assert math.isnan(precision_at([], 10))
