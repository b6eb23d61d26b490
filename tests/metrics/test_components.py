"""Component metrics against the official evaluator's numbers and against a slow reading of the definition."""

import itertools

import numpy as np
import pytest

from geood.metrics.components import SIOU_THRESHOLDS, TRACKS_PX, ComponentScores, components_of
from support import oracles
from support.official import GOLDEN, official_now

SMIYC = GOLDEN["answers"]["smiyc"]
FRAMES, PARTS = oracles.frames(), oracles.parts()


def scores_of(frames, sizes, threshold=None):
    scores = ComponentScores(*sizes)
    for score, truth in frames:
        scores.update(score, truth, threshold=threshold)
    return scores


def agrees(key, official, thresholds):
    """One case of one track: exact counts, the same components, the same means."""
    case, track = key.split("/")
    score_frames = [(score.astype(np.float16), truth) for score, truth in (FRAMES | PARTS)[case]]
    scores = scores_of(score_frames, TRACKS_PX[track], thresholds[case][4] if case in thresholds else 0.5)
    assert scores.counts().T.tolist() == [official["tp"], official["fn"], official["fp"]]
    figures = scores.figures()
    for mean, each in (("mean_siou", "sIoU_gt"), ("mean_predicted_siou", "sIoU_pred"), ("mean_ppv", "prec_pred")):
        expected = np.mean(official[each]) if official[each] else np.nan
        assert figures[mean] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    if official["mean_f1"] is not None:
        assert figures["mean_f1"] == pytest.approx(official["mean_f1"], abs=1e-12)
    return scores


@pytest.mark.parametrize("key", SMIYC["parts"])
def test_golden_numbers(key):
    official = SMIYC["parts"][key]
    scores = agrees(key, official, SMIYC["pixels"])
    assert scores.figures()["true_components"] == len(official["sIoU_gt"])
    each = [scores._all("siou"), scores._all("predicted_siou"), scores._all("ppv")]
    for ours, theirs in zip(each, ("sIoU_gt", "sIoU_pred", "prec_pred"), strict=True):
        np.testing.assert_allclose(ours, official[theirs], rtol=0, atol=1e-12)


def test_the_users_own_checkout_says_the_golden_numbers():
    answers = official_now("smiyc")
    for key, official in answers["parts"].items():
        agrees(key, official, answers["pixels"])


def flood(mask):
    """Components of touching pixels, corners too, as sets, by walking from pixel to pixel."""
    left, found = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}, []
    while left:
        here, edge = set(), {left.pop()}
        while edge:
            here |= edge
            around = {(y + dy, x + dx) for y, x in edge for dy, dx in itertools.product((-1, 0, 1), repeat=2)}
            edge = around & left
            left -= edge
        found.append(here)
    return found


def brute(predicted, truth, least_predicted, least_true):
    """sIoU of the true, sIoU and PPV of the predicted components, sorted, as the definition reads."""
    everywhere = {(y, x) for y, x in np.ndindex(truth.shape)}
    void = {place for place in everywhere if truth[place] == 255}
    guesses = [part for part in flood(predicted & (truth != 255)) if len(part) >= least_predicted]
    true = flood(truth == 1)
    for part in [*true, everywhere - set().union(*true)]:
        void |= part if len(part) < least_true else set()
    true = [part - void for part in true if part - void]
    guesses = [part - void for part in guesses if part - void]

    def siou(part, others, kin):
        touching = set().union(*(other for other in others if other & part))
        elsewhere = touching & set().union(*(one for one in kin if one is not part))
        return len(part & touching) / (len(part | touching) - len(elsewhere))

    anomalous = set().union(*true)
    return (
        sorted(siou(part, guesses, true) for part in true),
        sorted(siou(part, true, guesses) for part in guesses),
        sorted(len(part & anomalous) / len(part) for part in guesses),
    )


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 16, 2)
    truth = (rng.random((height, width)) < rng.uniform(0.05, 0.95)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    predicted = rng.random(truth.shape) < rng.uniform(0.05, 0.6)
    sizes = (int(rng.integers(0, 5)), int(rng.integers(0, 6)))
    found = components_of(predicted, truth, minimum_predicted_px=sizes[0], minimum_true_px=sizes[1])
    siou, predicted_siou, ppv = brute(predicted, truth, *sizes)
    np.testing.assert_allclose(sorted(found.siou), siou, rtol=0, atol=1e-12)
    np.testing.assert_allclose(sorted(found.predicted_siou), predicted_siou, rtol=0, atol=1e-12)
    np.testing.assert_allclose(sorted(found.ppv), ppv, rtol=0, atol=1e-12)


def test_pairs_are_the_same_counted_or_sorted(monkeypatch):
    rng = np.random.default_rng(8)
    predicted, truth = rng.random((80, 80)) < 0.3, (rng.random((80, 80)) < 0.3).astype(np.uint8)
    counted = components_of(predicted, truth, minimum_predicted_px=2, minimum_true_px=2)
    monkeypatch.setattr("geood.metrics.components._DENSE_PAIRS", 0)
    listed = components_of(predicted, truth, minimum_predicted_px=2, minimum_true_px=2)
    for name in ("siou", "predicted_siou", "ppv"):
        np.testing.assert_array_equal(getattr(counted, name), getattr(listed, name))


def test_merged_in_any_order_the_figures_are_the_same():
    frames = PARTS["all"]
    whole, merged = scores_of(frames, (50, 10), 0.5), ComponentScores(50, 10)
    for some in np.array_split(np.random.default_rng(0).permutation(len(frames)), 4):
        merged += scores_of([frames[index] for index in some], (50, 10), 0.5)
    assert merged.figures() == whole.figures()
    np.testing.assert_array_equal(merged.counts(), whole.counts())
    with pytest.raises(ValueError, match="cannot add"):
        merged += ComponentScores(500, 100)


@pytest.mark.parametrize(("size", "kept"), [(99, 0), (100, 1)])
def test_the_least_true_size_stays(size, kept):
    truth = np.zeros((40, 40), np.uint8)
    truth[5:15, 5:15] = 1
    truth[14, 14] = size == 100
    figures = scores_of([(truth == 1, truth)], (1, 100)).figures()
    assert figures["true_components"] == kept
    assert figures["predicted_components"] == kept  # all of it lies on what became void


@pytest.mark.parametrize(("size", "kept"), [(499, 0), (500, 1)])
def test_the_least_predicted_size_stays(size, kept):
    predicted = np.zeros((40, 40), bool)
    predicted.ravel()[:size] = True
    figures = scores_of([(predicted, np.zeros((40, 40), np.uint8))], TRACKS_PX["anomaly"]).figures()
    assert figures["predicted_components"] == kept


def test_pixels_that_touch_at_a_corner_are_one_component():
    eye = np.eye(12, dtype=np.uint8)
    figures = scores_of([(eye == 1, eye)], (1, 1)).figures()
    assert (figures["true_components"], figures["predicted_components"], figures["mean_f1"]) == (1, 1, 1.0)


def test_figures_without_components():
    truth = np.zeros((20, 20), np.uint8)
    truth[:5, :5] = 1
    nothing = np.zeros((20, 20), bool)
    missed = scores_of([(nothing, truth)], (1, 1)).figures()
    assert (missed["mean_siou"], missed["mean_f1"]) == (0, 0) and np.isnan(missed["mean_ppv"])
    false = scores_of([(truth == 1, np.zeros_like(truth))], (1, 1)).figures()
    assert (false["mean_ppv"], false["mean_f1"]) == (0, 0) and np.isnan(false["mean_siou"])
    for nobody in (scores_of([(nothing, np.zeros_like(truth))], (1, 1)), ComponentScores(1, 1)):
        figures = nobody.figures()
        assert np.isnan([figures[f"mean_{name}"] for name in ("siou", "predicted_siou", "ppv", "f1")]).all()
    void = scores_of([(truth == 1, np.full_like(truth, 255))], (1, 1)).figures()
    assert (void["images"], void["true_components"], void["predicted_components"]) == (1, 0, 0)


def test_a_background_below_the_least_size_is_void():
    truth = np.ones((20, 20), np.uint8)
    truth[0] = 0
    found = components_of(np.ones((20, 20), bool), truth, minimum_predicted_px=1, minimum_true_px=21)
    assert found.ppv.tolist() == [1.0]


def test_the_threshold_is_rounded_to_the_type_of_the_score():
    score, truth = np.full((4, 4), 0.1, np.float16), np.zeros((4, 4), np.uint8)
    exactly = float(score[0, 0])
    for threshold, called in ((exactly, 0), (exactly - 1e-6, 0), (exactly - 1e-4, 1), (1e9, 0), (-1e9, 1)):
        figures = scores_of([(score, truth)], (1, 1), threshold).figures()
        assert figures["predicted_components"] == called
    wide = scores_of([(score.astype(np.float64), truth)], (1, 1), exactly - 1e-6)
    assert wide.figures()["predicted_components"] == 1


def test_found_at_a_threshold_that_is_just_reached():
    truth = np.zeros((10, 10), np.uint8)
    truth[0, :4] = 1
    predicted = np.zeros((10, 10), bool)
    predicted[0, 0] = True
    scores = scores_of([(predicted, truth)], (1, 1))
    assert scores.counts()[0].tolist() == [1, 0, 0]  # sIoU 1/4, and SIOU_THRESHOLDS begins there
    assert scores.counts()[1].tolist() == [0, 1, 0]
    assert SIOU_THRESHOLDS[0] == 0.25


def test_what_cannot_be_counted_is_refused():
    score, truth, scores = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint8), ComponentScores(1, 1)
    with pytest.raises(ValueError, match="needs a threshold"):
        scores.update(score, truth)
    with pytest.raises(ValueError, match="takes none"):
        scores.update(score > 0, truth, threshold=0.5)
    with pytest.raises(ValueError, match="one shape"):
        scores.update(score[:2], truth, threshold=0.5)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        scores.update(score.ravel(), truth.ravel(), threshold=0.5)
    with pytest.raises(ValueError, match="0, 1 or 255"):
        scores.update(score, truth + np.uint8(2), threshold=0.5)
    score[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        scores.update(score, truth, threshold=0.5)
    truth[0, 0] = 255
    scores.update(score, truth, threshold=0.5)
    assert scores.images == 1
