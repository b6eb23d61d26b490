import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve

from geood.metrics.pixels import _BLOCK_PX, PixelCurve, _from_codes, _to_codes
from geood.metrics.segmentation import Confusion, OpenSetConfusion


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_blocks_and_types_do_not_matter(dtype):
    rng = np.random.default_rng(8)
    score, truth = draw(rng, "normal", 2 * _BLOCK_PX + 77)
    score = score.astype(np.float16)
    whole = curve_of(score.astype(dtype)[::-1], truth[::-1])
    scores, inliers, anomalies = whole.distribution()
    expected, where = np.unique(score + np.float16(0), return_inverse=True)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(anomalies, np.bincount(where, truth))
    np.testing.assert_array_equal(inliers, np.bincount(where, 1 - truth))


def test_scores_beyond_float16_are_clipped_and_minus_zero_is_zero():
    curve = curve_of(np.array([1e30, -1e30, 65519.0, -0.0, 0.0]), np.array([1, 0, 1, 0, 1], np.uint8))
    scores, inliers, anomalies = curve.distribution()
    assert scores.tolist() == [-65504, 0, 65504]
    assert (inliers.tolist(), anomalies.tolist()) == ([1, 1, 0], [0, 1, 2])


def test_truth_of_any_integers_is_checked_as_such():
    assert curve_of(np.ones(2, np.float32), np.array([0, 1], np.int64)).positives == 1
    with pytest.raises(ValueError, match="0, 1 or 255"):
        curve_of(np.ones(2, np.float32), np.array([0, 256], np.int64))


@pytest.mark.parametrize("kind", ["normal", "unit", "ties", "saturated", "constant", "logits"])
def test_best_f1_is_what_its_threshold_gives(kind):
    score, truth = draw(np.random.default_rng(9), kind, 2_000)
    score = score.astype(np.float16)
    curve = curve_of(score, truth)
    every = [2 * truth[score >= t].sum() / ((score >= t).sum() + truth.sum()) for t in np.unique(score)]
    assert curve.best_f1 == pytest.approx(max(every), abs=1e-12)
    called = score > curve.best_f1_threshold
    assert 2 * truth[called].sum() / (called.sum() + truth.sum()) == pytest.approx(curve.best_f1, abs=1e-12)
    rates = curve.rates(curve.best_f1_threshold)
    harmonic = 2 * rates["precision"] * rates["recall"] / (rates["precision"] + rates["recall"])
    assert harmonic == pytest.approx(curve.best_f1, abs=1e-12)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 0), (-65504, 65504)])
def test_a_mask_of_two_values_is_cut_between_them(low, high):
    truth = np.array([0, 1, 0, 1], np.uint8)
    curve = curve_of(np.where(truth, high, low).astype(np.float32), truth)
    assert curve.best_f1 == 1
    assert low <= curve.best_f1_threshold < high
    assert curve.rates(curve.best_f1_threshold) == {"recall": 1, "fpr": 0, "precision": 1}


def test_rules_of_the_false_positive_rate():
    score = np.concatenate([np.arange(20), np.arange(-0.5, 19.5)]).astype(np.float32)
    curve = curve_of(score, np.array([1] * 20 + [0] * 20, np.uint8))
    assert curve.fpr_at() == curve.fpr95 == curve.fpr_at(0.95, "first_ge") == 0.9
    assert curve.fpr_at(0.95, "first_gt") == curve.fpr_at(0.95, "closest") == 0.95
    assert curve.fpr_at(0.93, "interp") == pytest.approx(0.9)  # the plateaus' slopes: up at 0.9, along, up at 0.95
    assert curve.fpr_at(0.5) == 0.45


def open_set(predicted, score, mask, truth, threshold=0.5):
    confusion = OpenSetConfusion(3, threshold)
    confusion.update(predicted, score, mask=mask, truth=truth)
    return confusion


def tile(rng, n=4_000):
    truth = rng.choice(np.array([0, 1, 255], np.uint8), n, p=[0.8, 0.15, 0.05])
    mask = rng.choice([0, 1, 2, 255], n, p=[0.4, 0.3, 0.2, 0.1])
    score = (rng.random(n) + 0.4 * (truth == 1)).astype(np.float32)
    return np.where(rng.random(n) < 0.8, mask % 3, rng.integers(0, 3, n)), score, mask, truth


def test_open_set_equals_scikit_learn_and_adds_up():
    rng = np.random.default_rng(10)
    tiles = [tile(rng) for _ in range(3)]
    total = open_set(*tiles[2])
    for one in tiles[:2]:
        total += open_set(*one)
    predicted, score, mask, truth = (np.concatenate(part) for part in zip(*tiles, strict=True))
    whole = open_set(predicted, score, mask, truth)
    counted = (truth == 1) | ((truth == 0) & (mask != 255))
    true = np.where(truth == 1, 3, mask)[counted]
    expected = confusion_matrix(true, np.where(score > 0.5, 3, predicted)[counted], labels=range(4))
    np.testing.assert_array_equal(whole.counts, expected)
    np.testing.assert_array_equal(total.counts, expected)
    hits = np.diag(expected)
    iou = hits / (expected.sum(0) + expected.sum(1) - hits)
    assert whole.open_miou == pytest.approx(iou[:3].mean(), abs=1e-12)
    assert whole.anomaly_iou == iou[3]
    inlier = counted & (truth == 0)
    closed = Confusion(3)
    closed.update(predicted[inlier], mask[inlier])
    assert whole.closed_miou == total.closed_miou == closed.miou
    assert whole.gap == closed.miou - whole.open_miou


def test_a_threshold_above_all_scores_costs_the_missed_anomalies_alone():
    predicted, score, mask, truth = tile(np.random.default_rng(11))
    never = open_set(predicted, score, mask, np.where(truth == 1, 255, truth).astype(np.uint8), threshold=9)
    assert never.gap == 0 and np.isnan(never.anomaly_iou)
    missed = open_set(predicted, score, mask, truth, threshold=9)
    assert missed.gap > 0 and missed.anomaly_iou == 0


def test_open_set_checks_what_it_counts():
    predicted, score, mask, truth = tile(np.random.default_rng(12))
    bad, total = score.copy(), open_set(predicted, score, mask, truth)
    bad[(truth == 0) & (mask == 255)] = np.nan
    assert (open_set(predicted, bad, mask, truth).counts == total.counts).all()
    bad[truth == 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        open_set(predicted, bad, mask, truth)
    with pytest.raises(ValueError, match="one shape"):
        open_set(predicted[:1], score, mask, truth)
    before = total.counts.copy()
    with pytest.raises(ValueError, match="class indexes"):
        total.update(predicted + 1, score, mask=mask, truth=truth)
    np.testing.assert_array_equal(total.counts, before)
    with pytest.raises(ValueError, match="threshold"):
        total += OpenSetConfusion(3, 0.25)
