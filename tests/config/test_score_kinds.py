"""The score table and the functions that compute the scores know the same rows."""

import pytest
import torch

from geood.config.score_kinds import SCORES, check_known, scores_from, title_of, why_not
from geood.models import inlier_statistics, scores
from geood.models.scores import anomaly_score

COMPUTED = {
    "logits": scores._OF_LOGITS,
    "class statistics": inlier_statistics._OF_CLASSES,
    "feature bank": inlier_statistics._OF_FEATURES,
}


@pytest.mark.parametrize("needs", COMPUTED)
def test_each_row_has_one_function_where_its_need_is_served(needs):
    assert tuple(COMPUTED[needs]) == scores_from(needs)


def test_rows_of_outlier_outputs_have_one_function_each():
    assert tuple(scores._OF_OUTLIER) == scores_from("head", "class")


@pytest.mark.parametrize("kind", [kind for kind, row in SCORES.items() if row.needs == "logits"])
def test_bounds_and_temperature_are_as_the_row_says(kind):
    logits = 30 * torch.randn(1, 5, 40, 40, generator=torch.Generator().manual_seed(0))
    logits[0, :, 0, 0], logits[0, :, 0, 1] = 0.0, torch.tensor([1e3, 0, 0, 0, 0])
    score = anomaly_score(logits, kind)
    inside = float(score.min()) >= 0 and float(score.max()) <= 1
    assert inside == SCORES[kind].bounded
    assert SCORES[kind].tempered == bool((anomaly_score(logits, kind, 3.0) != score).any())


def test_titles_are_different_and_other_names_are_their_own():
    assert len({row.title for row in SCORES.values()}) == len(SCORES)
    assert title_of("jsd") == "Jensen-Shannon" and title_of("scores") == "scores"


def test_an_unknown_score_is_refused_with_the_nearest():
    assert check_known("energy") == "energy"
    with pytest.raises(ValueError, match=r"got 'enrgy'.*'jsd'.*did you mean energy\?"):
        check_known("enrgy")


@pytest.mark.parametrize("kind", SCORES)
def test_a_score_that_is_not_given_is_refused_with_the_remedy(kind):
    assert why_not(kind, tuple(SCORES), "none") is None
    if SCORES[kind].needs != "logits":
        why = why_not(kind, ("jsd", "energy"), "none")
        assert why.startswith(f"score.kind {kind}: ") and why.endswith("take one of jsd, energy") and "train" in why
