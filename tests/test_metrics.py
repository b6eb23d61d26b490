import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve

from geood.metrics import Confusion, PixelCurve, _from_codes, _to_codes


def draw(rng, kind, n=20_000):
    truth = (rng.random(n) < 0.03).astype(np.uint8)
    score = rng.normal(0, 1, n) + 1.5 * truth
    if kind == "unit":
        score = 1 / (1 + np.exp(-score))
    elif kind == "ties":
        score = np.round(score * 3) / 3
    elif kind == "saturated":
        score = np.minimum(score, 1.0)
    elif kind == "constant":
        score = np.zeros(n)
    elif kind == "logits":
        score = 40 * score - 300
    return score.astype(np.float32), truth


def curve_of(score, truth):
    curve = PixelCurve()
    curve.update(score, truth)
    return curve


@pytest.mark.parametrize("kind", ["normal", "unit", "ties", "saturated", "constant", "logits"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_scikit_learn_on_float16_scores(kind, seed):
    score, truth = draw(np.random.default_rng(seed), kind)
    rounded = score.astype(np.float16).astype(np.float64)
    curve = curve_of(score, truth)
    assert curve.average_precision == pytest.approx(average_precision_score(truth, rounded), abs=1e-12)
    assert curve.auroc == pytest.approx(roc_auc_score(truth, rounded), abs=1e-12)
    fpr, tpr, _ = roc_curve(truth, rounded, drop_intermediate=False)
    assert curve.fpr95 == pytest.approx(fpr[np.searchsorted(tpr, 0.95 - 1e-12)], abs=1e-12)
    assert curve.base_rate == truth.mean()


def test_tiles_in_any_order_give_the_same_curve():
    rng = np.random.default_rng(3)
    score, truth = draw(rng, "unit")
    truth[rng.random(truth.size) < 0.1] = 255
    whole = curve_of(score, truth)
    pieces = [curve_of(score[i : i + 1111], truth[i : i + 1111]) for i in range(0, score.size, 1111)]
    total = PixelCurve()
    for piece in rng.permutation(np.array(pieces, dtype=object)):
        total += piece
    for figure in ("positives", "negatives", "base_rate", "average_precision", "auroc", "fpr95"):
        assert getattr(total, figure) == getattr(whole, figure)


def test_metrics_ignore_monotone_changes_of_the_score():
    score, truth = draw(np.random.default_rng(4), "ties")
    one, other = curve_of(score, truth), curve_of(4 * score - 8, truth)
    assert (one.average_precision, one.auroc, one.fpr95) == (other.average_precision, other.auroc, other.fpr95)


def test_void_pixels_never_count_even_when_their_score_is_nan():
    score, truth = draw(np.random.default_rng(5), "normal")
    plain = curve_of(score, truth)
    padded = curve_of(
        np.append(score, [np.nan, np.inf, 9]).astype(np.float32), np.append(truth, [255] * 3).astype(np.uint8)
    )
    assert padded.average_precision == plain.average_precision
    assert padded.negatives == plain.negatives


def test_codes_are_in_the_order_of_all_finite_float16_numbers():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = np.unique(every[np.isfinite(every)])
    codes = _to_codes(every.astype(np.float32))
    assert (np.diff(codes.astype(int)) > 0).all()
    np.testing.assert_array_equal(_from_codes(codes), every)
    assert (
        _to_codes(np.array([-0.0, 0.0, 1e9, -1e9], np.float32)).tolist()
        == _to_codes(np.array([0.0, 0.0, 65504, -65504], np.float32)).tolist()
    )


@pytest.mark.parametrize("fpr", [0.001, 0.01, 0.05, 0.5])
@pytest.mark.parametrize("kind", ["unit", "ties", "normal"])
def test_threshold_is_the_smallest_that_holds_the_rate(kind, fpr):
    score, _ = draw(np.random.default_rng(6), kind)
    score = score.astype(np.float16).astype(np.float32)
    threshold = curve_of(score, np.zeros(score.size, np.uint8)).fpr_threshold(fpr)
    assert (score > threshold).mean() <= fpr
    lower = score[score < threshold].max()
    assert (score > lower).mean() > fpr


def test_threshold_extremes():
    curve = curve_of(np.array([0.25, 0.5, 0.75], np.float32), np.zeros(3, np.uint8))
    assert curve.fpr_threshold(0.0) == 0.75
    assert curve.fpr_threshold(1.0) == 0.25


def test_rates_at_a_threshold_count_what_is_strictly_above():
    score = np.array([0.1, 0.5, 0.5, 0.9, 0.2, 0.7], np.float32)
    truth = np.array([0, 0, 1, 1, 1, 0], np.uint8)
    rates = curve_of(score, truth).rates(0.5)
    assert rates == {"recall": pytest.approx(1 / 3), "fpr": pytest.approx(1 / 3), "precision": 0.5}
    assert np.isnan(curve_of(score, truth).rates(1.0)["precision"])


def test_twenty_anomalies_reach_ninety_five_percent_exactly():
    score = np.concatenate([np.arange(20), [-0.5, 0.5, 18.5]]).astype(np.float32)
    truth = np.concatenate([np.ones(20), np.zeros(3)]).astype(np.uint8)
    assert curve_of(score, truth).fpr95 == pytest.approx(1 / 3)


def test_undefined_figures_are_nan():
    inliers = curve_of(np.ones(5, np.float32), np.zeros(5, np.uint8))
    assert np.isnan([inliers.average_precision, inliers.auroc, inliers.fpr95]).all()
    anomalies = curve_of(np.ones(5, np.float32), np.ones(5, np.uint8))
    assert anomalies.average_precision == 1
    assert np.isnan([anomalies.auroc, anomalies.fpr95, anomalies.fpr_threshold(0.1)]).all()
    empty = curve_of(np.ones(5, np.float32), np.full(5, 255, np.uint8))
    assert np.isnan([empty.base_rate, empty.average_precision, empty.auroc, empty.fpr95]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="1 scores of counted pixels are not finite"):
        curve_of(np.array([0.1, bad], np.float32), np.zeros(2, np.uint8))


def test_truth_and_shapes_are_checked():
    with pytest.raises(ValueError, match="0, 1 or 255"):
        curve_of(np.zeros(2, np.float32), np.array([0, 2], np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        curve_of(np.zeros(2, np.float32), np.zeros(3, np.uint8))


def test_confusion_equals_scikit_learn_and_adds_up():
    rng = np.random.default_rng(7)
    mask, predicted = rng.integers(0, 4, (2, 64, 64))
    mask[:8] = 255
    whole, parts = Confusion(4), Confusion(4)
    whole.update(predicted, mask)
    for half in (slice(0, 30), slice(30, 64)):
        part = Confusion(4)
        part.update(predicted[half], mask[half])
        parts += part
    expected = confusion_matrix(mask[8:].ravel(), predicted[8:].ravel(), labels=range(4))
    np.testing.assert_array_equal(whole.counts, expected)
    np.testing.assert_array_equal(parts.counts, expected)


def test_miou_leaves_out_a_class_that_is_absent():
    confusion = Confusion(3)
    confusion.update(np.array([0, 0, 1]), np.array([0, 1, 1]))
    np.testing.assert_allclose(confusion.iou, [0.5, 0.5, np.nan])
    assert confusion.miou == 0.5
    assert np.isnan(Confusion(3).miou)
    with pytest.raises(ValueError, match="0 to 2"):
        confusion.update(np.array([3]), np.array([0]))
