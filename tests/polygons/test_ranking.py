"""Laws of the ranking figure and of p-values: finite, monotonic, and exact at the knots of a calibration."""

import numpy as np
import pytest

from geood.polygons.ranking import priority, share_of_inliers

KNOTS = [(0.9, 0.001), (0.5, 0.05), (0.7, 0.01)]


def test_shares_are_those_of_the_calibration_at_its_thresholds_and_fall_between_and_beyond():
    at = np.array([0.5, 0.7, 0.9])
    assert share_of_inliers(at, KNOTS) == pytest.approx([0.05, 0.01, 0.001])
    scores = np.linspace(-1, 2, 300)
    shares = share_of_inliers(scores, KNOTS)
    assert (np.diff(shares) <= 0).all() and shares.max() == 1 and shares.min() > 0
    assert share_of_inliers(np.array([0.6]), KNOTS) == pytest.approx([np.sqrt(0.05 * 0.01)])
    assert share_of_inliers(np.array([1.1]), KNOTS) == pytest.approx([0.0001])


@pytest.mark.parametrize("knots", [[], [(0.5, 0.01)], [(0.5, 0.01), (0.5, 0.05)], [(0.5, 0.0), (0.4, 0.1)]])
def test_a_share_is_unknown_without_two_different_knots(knots):
    assert np.isnan(share_of_inliers(np.array([0.1, 0.6]), knots)).all()


def test_equal_shares_at_different_scores_do_not_rise():
    shares = share_of_inliers(np.linspace(0, 1, 50), [(0.2, 0.05), (0.4, 0.01), (0.6, 0.01)])
    assert (np.diff(shares) <= 0).all() and np.isfinite(shares).all()
    assert np.isfinite(share_of_inliers(np.array([1e30, -1e30]), KNOTS)).all()


def test_a_ranking_figure_is_finite_whatever_the_scores():
    excess = np.array([np.inf, np.nan, -np.inf, 0.5])
    columns = dict.fromkeys(("threshold_excess", "score_mean", "score_p95", "score_max", "contrast"), excess)
    figure = priority(columns | {"area_px": np.array([1, 2, 3, 4]), "on_edge": np.array([np.nan, 0, 0.5, 1])})
    assert np.isfinite(figure).all() and figure.argmax() == 0
