"""Each protocol against its official evaluator's numbers, and the laws that all of them keep."""

from typing import get_args

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from geood.catalog.entry import Protocol
from geood.datasets.disparity import distance_of_disparity
from geood.metrics.curve import curve_of_counts, curve_of_scores
from geood.metrics.distance import DistanceCurves
from geood.metrics.pixels import PixelCurve
from geood.metrics.protocols import PROTOCOLS, protocol_named
from geood.metrics.segmentation import OpenSetConfusion
from support import oracles
from support.official import GOLDEN, official_now

FRAMES = oracles.frames()
KEYS = ("average_precision", "auroc", "fpr95", "best_f1", "best_f1_threshold")
OPTIONS = [(name, {}) for name in PROTOCOLS] + [("densehybrid", {"per_image": True})]


def figures_of(name, frames, **options):
    accumulator = protocol_named(name, **options)
    for score, truth in frames:
        accumulator.update(score, truth)
    return accumulator.figures()


def same(ours, official, tolerance=1e-9):
    assert [ours[key] for key in KEYS[: len(official)]] == pytest.approx(official, abs=tolerance)


def test_the_frames_are_those_of_the_golden_numbers():
    assert oracles.checksum() == GOLDEN["frames"]


@pytest.mark.parametrize("case", FRAMES)
def test_golden_numbers(case):
    answers = GOLDEN["answers"]
    same(figures_of("fishyscapes", FRAMES[case]), answers["fishyscapes"][case])
    same(figures_of("smiyc", FRAMES[case]), answers["smiyc"]["pixels"][case])
    same(figures_of("caos", FRAMES[case]), answers["caos"][case])
    same(figures_of("densehybrid", FRAMES[case]), answers["densehybrid"]["pooled"][case])
    if case in answers["densehybrid"]["per_image"]:
        each = figures_of("densehybrid", FRAMES[case], per_image=True)
        same(each, answers["densehybrid"]["per_image"][case])


@pytest.mark.parametrize("name", ["fishyscapes", "smiyc", "caos", "densehybrid"])
def test_the_users_own_checkout_says_the_golden_numbers(name):
    answers = official_now(name)
    groups = {
        "fishyscapes": [answers],
        "caos": [answers],
        "smiyc": [answers.get("pixels")],
        "densehybrid": [answers.get("pooled"), answers.get("per_image")],
    }
    for group, options in zip(groups[name], ({}, {"per_image": True}), strict=False):
        for case, official in group.items():
            same(figures_of(name, FRAMES[case], **options), official)
    if name == "densehybrid":
        assert open_set_figures() == answers["open_set"]


def open_set_figures():
    confusion = OpenSetConfusion(oracles.CLASSES, oracles.THRESHOLD)
    for predicted, score, mask, truth in oracles.labelled():
        confusion.update(predicted, score, mask=mask, truth=truth)
    return [confusion.open_miou, confusion.anomaly_iou, confusion.closed_miou]


def test_open_set_golden_numbers():
    assert open_set_figures() == GOLDEN["answers"]["densehybrid"]["open_set"]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_merged_in_any_order_the_figures_are_the_same(name, options, seed):
    rng = np.random.default_rng(seed)
    frames = [*FRAMES["one_without_anomaly"], *FRAMES["saturated"], *FRAMES["void_stripe"], *FRAMES["coarse"]]
    frames += [(np.minimum(score, 0.5), truth) for score, truth in FRAMES["continuous"]]  # one highest score for all
    whole = figures_of(name, frames, **options)
    merged = protocol_named(name, **options)
    for some in np.array_split(rng.permutation(len(frames)), 3):
        part = protocol_named(name, **options)
        for index in some:
            pixels = rng.permutation(frames[index][0].size)
            part.update(*(array.ravel()[pixels] for array in frames[index]))
        merged += part
    assert merged.figures() == whole


def test_pooled_is_fishyscapes_of_scores_rounded_to_float16():
    for case in ("continuous", "levels", "saturated", "float16"):
        rounded = [(score.astype(np.float16), truth) for score, truth in FRAMES[case]]
        exact = figures_of("fishyscapes", rounded)
        same(figures_of("pooled", FRAMES[case]), [exact[key] for key in KEYS[:3]], 1e-12)


def test_smiyc_bins_stay_close_to_the_exact_curve():
    rng = np.random.default_rng(5)
    frames = []
    for _ in range(3):
        truth = (rng.random((256, 512)) < 0.05).astype(np.uint8)
        frames.append(((rng.normal(0, 1, truth.shape) + 1.5 * truth).astype(np.float32), truth))
    exact = figures_of("fishyscapes", frames)
    same(figures_of("smiyc", frames), [exact[key] for key in KEYS[:3]], 2e-3)


def test_smiyc_moves_through_a_shared_highest_score_at_once():
    frames = [(np.minimum(score, 0.5).astype(np.float16), truth) for score, truth in FRAMES["continuous"]]
    exact = figures_of("fishyscapes", frames)
    same(figures_of("smiyc", frames), [exact[key] for key in KEYS[:3]], 1e-4)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_void_images_are_skipped_and_counted(name, options):
    score, truth = FRAMES["continuous"][0]
    void = np.full_like(truth, 255)
    plain, padded = protocol_named(name, **options), protocol_named(name, **options)
    plain.update(score, truth)
    padded.update(np.full_like(score, np.nan), void)
    padded.update(score, truth)
    assert padded.figures() == plain.figures() | {"skipped": 1}
    empty = protocol_named(name, **options)
    empty.update(score, void)
    figures = empty.figures()
    assert (figures.pop("images"), figures.pop("skipped")) == (0, 1)
    assert np.isnan(list(figures.values())).all()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("pooled", {}, [np.nan, np.nan, np.nan, np.nan, np.nan]),
        ("fishyscapes", {}, [np.nan, np.nan, 0.0]),
        ("smiyc", {}, [np.nan, np.nan, 0.0, 0.0, 3.0]),
        ("caos", {}, [np.nan, np.nan, np.nan]),
        ("densehybrid", {}, [np.nan, np.nan, 0.0]),
        ("densehybrid", {"per_image": True}, [np.nan, np.nan, 0.0]),
    ],
)
def test_without_anomalies(name, options, expected):
    figures = figures_of(name, [(np.array([1.0, 2, 3], np.float32), np.zeros(3, np.uint8))], **options)
    assert [figures[key] for key in KEYS[: len(expected)]] == pytest.approx(expected, nan_ok=True)
    assert figures["skipped"] == (name == "caos")


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_without_inliers(name, options):
    figures = figures_of(name, [(np.array([1.0, 2, 3], np.float32), np.ones(3, np.uint8))], **options)
    assert figures["average_precision"] == pytest.approx(np.nan if name == "caos" else 1, nan_ok=True)
    assert np.isnan([figures["auroc"], figures["fpr95"]]).all()


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_a_constant_score_is_worth_the_base_rate(name, options):
    truth = np.array([0] * 15 + [1] * 5, np.uint8)
    figures = figures_of(name, [(np.full(20, 0.25, np.float32), truth)], **options)
    assert [figures[key] for key in KEYS[:3]] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_where_they_count(name, options, bad):
    accumulator = protocol_named(name, **options)
    accumulator.update(np.array([bad, 0, 1], np.float32), np.array([255, 0, 1], np.uint8))
    with pytest.raises(ValueError, match="not finite"):
        accumulator.update(np.array([bad, 0, 1], np.float32), np.array([0, 0, 1], np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        accumulator.update(np.zeros(3, np.float32), np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="0, 1 or 255"):
        accumulator.update(np.zeros(3, np.float32), np.array([0, 1, 2], np.uint8))
    assert accumulator.figures()["images"] == 1


def test_a_score_that_its_protocol_cannot_hold_is_refused():
    truth = np.array([0, 1], np.uint8)
    with pytest.raises(ValueError, match="float16"):
        protocol_named("smiyc").update(np.array([0, 70000], np.float32), truth)
    with pytest.raises(ValueError, match="float32"):
        protocol_named("fishyscapes").update(np.array([0, 1e300]), truth)
    with pytest.raises(ValueError, match="one of pooled, fishyscapes"):
        protocol_named("coco")
    with pytest.raises(ValueError, match="per image"):
        pooled = protocol_named("densehybrid")
        pooled += protocol_named("densehybrid", per_image=True)


def test_twenty_anomalies_part_the_rules():
    score = np.concatenate([np.arange(20), np.arange(-0.5, 19.5)]).astype(np.float32)
    curve = curve_of_scores(score[20:], score[:20])
    assert curve.fpr_at(0.95) == 0.9
    assert curve.fpr_at(0.95, "closest") == curve.fpr_at(0.95, "first_gt") == curve.fpr_at(0.95, "interp") == 0.95


@pytest.mark.parametrize("levels", [3, 20, 400])
@pytest.mark.parametrize("seed", range(4))
def test_curves_equal_scikit_learn(levels, seed):
    rng = np.random.default_rng(seed)
    truth = (rng.random(400) < 0.3).astype(int)
    score = rng.integers(0, levels, 400).astype(np.float32) + (levels // 3) * truth
    curve = curve_of_scores(score[truth == 0], score[truth == 1])
    fpr, tpr, _ = roc_curve(truth, score, drop_intermediate=False)
    assert curve.average_precision == pytest.approx(average_precision_score(truth, score), abs=1e-12)
    assert curve.auroc == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    for recall in (0.2, 0.5, 0.95, 1):
        assert curve.fpr_at(recall) == fpr[np.argmax(tpr >= recall)]
        assert curve.fpr_at(recall, "interp") == pytest.approx(np.interp(recall, tpr, fpr), abs=1e-12)
        if recall < 1:
            assert curve.fpr_at(recall, "first_gt") == fpr[np.argmax(tpr > recall)]
            thinned_fpr, thinned_tpr, _ = roc_curve(truth, score)
            thinned = curve.without_collinear().fpr_at(recall, "first_gt")
            assert thinned == thinned_fpr[np.argmax(thinned_tpr > recall)]
        down = slice(int(np.argmax(tpr == 1)), 0, -1)  # from full recall, and without the origin
        assert curve.fpr_at(recall, "closest") == fpr[down][np.argmin(np.abs(tpr[down] - recall))]
    for at, recall, precision in curve.precision_recall():
        found = (score >= at) & (truth == 1)
        assert recall == found.sum() / truth.sum() and precision == found.sum() / (score >= at).sum()
    f1 = {t: 2 * (score[truth == 1] >= t).sum() / ((score >= t).sum() + truth.sum()) for t in np.unique(score)}
    assert curve.best_f1() == (pytest.approx(max(f1.values())), max(t for t in f1 if f1[t] == max(f1.values())))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_threshold_at_a_recall_leaves_95_percent_of_the_anomalies_above(name):
    scores = np.arange(100, dtype=np.float16)
    curve = curve_of_scores(scores, scores)
    cut = PROTOCOLS[name].recall_threshold(curve)
    found = int((scores > cut).sum())
    assert found == 95  # DenseHybrid: the first point with more than 95 % at or above it; 95 % lie strictly above that
    assert np.isnan(PROTOCOLS[name].recall_threshold(curve_of_scores(scores, scores[:0])))


def test_the_catalog_and_the_protocols_know_the_same_names():
    assert set(get_args(Protocol)) == set(PROTOCOLS)


def test_only_segment_me_if_you_can_has_components_of_its_own():
    assert {name: rules.components_px for name, rules in PROTOCOLS.items() if rules.components_px} == {
        "smiyc": (50, 10)
    }


def test_counts_of_repeated_scores_are_one_point():
    rng = np.random.default_rng(2)
    score, truth = rng.integers(0, 9, 300).astype(np.float32), rng.integers(0, 2, 300)
    one = curve_of_counts(score, inliers=1 - truth, anomalies=truth)
    other = curve_of_scores(score[truth == 0], score[truth == 1])
    np.testing.assert_array_equal(one.hits, other.hits)
    np.testing.assert_array_equal(one.false_alarms, other.false_alarms)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_rules_and_recalls_are_checked():
    curve = curve_of_scores(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="first_ge, first_gt, closest, interp"):
        curve.fpr_at(0.95, "last")
    for recall, rule in ((0, "first_ge"), (1.01, "closest"), (1, "first_gt")):
        with pytest.raises(ValueError, match="recall must be"):
            curve.fpr_at(recall, rule)


def test_distance_buckets_are_curves_of_their_pixels():
    rng = np.random.default_rng(4)
    score, truth = FRAMES["void_stripe"][0]
    distance = rng.uniform(0, 60, truth.shape).astype(np.float32)
    distance[:10] = np.nan
    distance[20, 40:43] = (5, 10, 50)
    whole, parts = DistanceCurves(), DistanceCurves()
    whole.update(score, truth, distance_m=distance)
    for rows in (slice(50, 120), slice(0, 50)):
        part = DistanceCurves()
        part.update(score[rows], truth[rows], distance_m=distance[rows])
        parts += part
    assert len(whole.figures()) == 9
    for row, again in zip(whole.figures(), parts.figures(), strict=True):
        assert row == again
        curve = PixelCurve()
        here = (distance >= row["from_m"]) & (distance < row["to_m"])
        curve.update(score[here], truth[here])
        assert row["average_precision"] == curve.average_precision
        assert row["fpr95"] == curve.fpr_at(0.95, "first_gt")
    counted = truth != 255
    assert whole.unknown_px == parts.unknown_px == (np.isnan(distance) & counted).sum()
    assert whole.outside_px == (((distance < 5) | (distance >= 50)) & counted).sum()
    with pytest.raises(ValueError, match="cannot add bins"):
        whole += DistanceCurves((0, 1))


def test_distance_of_disparity():
    distance = distance_of_disparity(np.array([50.0, 100, 0, -1, np.nan]), baseline_m=0.2, focal_px=2500)
    np.testing.assert_array_equal(distance, np.array([10, 5, np.nan, np.nan, np.nan], np.float32))
    with pytest.raises(ValueError, match="above 0"):
        distance_of_disparity(np.ones(1), baseline_m=0, focal_px=1)


@pytest.mark.parametrize("name", ["fishyscapes", "densehybrid"])
def test_counted_float16_scores_and_held_float32_ones_mix(name):
    rng = np.random.default_rng(3)
    images = [(rng.normal(size=(40, 50)).astype(np.float16), rng.integers(0, 2, (40, 50), np.uint8)) for _ in range(4)]
    wide, mixed, narrow = (protocol_named(name) for _ in range(3))
    for i, (score, truth) in enumerate(images):
        wide.update(score.astype(np.float32), truth)
        narrow.update(score, truth)
        mixed.update(score if i % 2 else score.astype(np.float32), truth)
    assert narrow.figures() == pytest.approx(wide.figures()) and mixed.figures() == pytest.approx(wide.figures())
    assert not narrow._pool._inliers  # nothing grows with the pixels
