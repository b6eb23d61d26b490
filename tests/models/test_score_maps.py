"""Laws of what lowers score combined: near reviewed false alarms it falls, and nothing else changes in a single bit."""

import pytest
import torch

from geood.errors import ConfigError
from geood.models.bundle import ModelBundle
from geood.models.region import cut
from support.bundles import make_bundle, with_false_alarms, with_statistics

HEAD = {"segmenter": {"outlier": "head"}, "score": {"kind": "combined"}}


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    plain = make_bundle(folder / "a.safetensors", segmenter={"outlier": "head"}, data={"anomaly": [7]})
    with_statistics(plain, folder / "b.safetensors")
    return ModelBundle.load(folder / "b.safetensors").with_settings(["score.kind=combined"])


@pytest.fixture(scope="module")
def after(before, image, tmp_path_factory):
    """The bundle with one false alarm, the place of 8 x 8 pixels from row 16 and column 24, which reaches not far."""
    false = torch.zeros(1, 64, 96, dtype=torch.bool)
    false[:, 16:24, 24:32] = True
    path = tmp_path_factory.mktemp("after") / "model.safetensors"
    with_false_alarms(before, path, image, false=false, reach=1e-2)
    return ModelBundle.load(path)


def test_the_score_falls_by_the_strength_at_a_false_alarm_and_stays_to_the_bit_elsewhere(before, after, image):
    less, strength = before.score(image) - after.score(image), after.config.score.false_alarm_nats
    assert float(less[0, 19:21, 27:29].mean()) == pytest.approx(strength, rel=0.2) and float(less.min()) >= 0
    around = torch.zeros_like(less, dtype=torch.bool)
    around[:, :60, :68] = True  # four places on, as far as these are interpolated
    assert torch.equal(after.score(image)[~around], before.score(image)[~around]) and float(less[~around].max()) == 0
    half = after.with_settings([f"score.false_alarm_nats={strength / 2}"])
    torch.testing.assert_close(before.score(image) - half.score(image), less / 2, rtol=0, atol=1e-3)


@torch.inference_mode()
def test_a_false_alarm_beyond_a_tiles_core_lowers_it_as_in_the_whole_scene(before, tmp_path):
    image = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(2))
    false = torch.zeros(1, 192, 192, dtype=torch.bool)
    false[:, 88:96, 80:88] = True
    path = tmp_path / "model.safetensors"
    with_false_alarms(before, path, image, false=false, reach=1e-2)
    for smooth in (0, 4):
        bundle = ModelBundle.load(path).with_settings([f"score.smooth_px={smooth}"])
        for core in ((slice(32, 96), slice(117, 160)), (slice(32, 59), slice(40, 160)), (slice(128, 160),) * 2):
            region, inner = bundle.region_of(core, image.shape[-2:], bundle.scores)
            answer = bundle.infer(image, bundle.scores, region)
            found = bundle.scores_of(answer, cut(image, region), kinds=bundle.scores, core=inner)
            whole = bundle.scores_of(bundle.infer(image), image, kinds=bundle.scores, core=core)
            for kind, score in found.items():
                torch.testing.assert_close(score, whole[kind], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("smooth", [0, 4])
def test_a_halo_holds_what_the_score_looks_at_beyond_the_network(after, smooth):
    """Features that the network cannot know, as its own halo is cut off there, change nothing in the core of a tile."""
    bundle = after.with_settings([f"score.smooth_px={smooth}", "predict.halo_px=32"])
    image = torch.rand(1, 3, 320, 320, generator=torch.Generator().manual_seed(3))
    whole = bundle.infer(image)
    halo, blind, core = bundle.halo_px, bundle.network_halo_px, slice(128, 192)
    assert (halo, blind) == (96, 32)
    tile = slice(core.start - halo, core.stop + halo)
    answer = whole._replace(
        **{
            name: cut(getattr(whole, name), (tile, tile), stride=stride).clone()
            for name, stride in (("logits", 1), ("outlier", 1), ("features", 4), ("encoder", 8), ("coarser", 16))
        }
    )
    at_false_alarm = bundle.inliers.encoder_shift + (
        bundle.inliers.encoder_false[0] @ torch.linalg.pinv(bundle.inliers.encoder_axes)
    )
    parts = at_false_alarm.split([answer.encoder.shape[1], answer.coarser.shape[1]])
    for features, part, stride in zip((answer.encoder, answer.coarser), parts, (8, 16), strict=True):
        known = torch.zeros(features.shape[-2:], dtype=torch.bool)
        known[blind // stride : -blind // stride, blind // stride : -blind // stride] = True
        features[0, :, ~known] = part[:, None]
    inner = slice(halo, halo + 64)
    found = bundle.score_of(answer, cut(image, (tile, tile)), core=(inner, inner))
    torch.testing.assert_close(found, bundle.score_of(whole, image, core=(core, core)), rtol=1e-4, atol=1e-4)
    for calm in ("score.false_alarm_nats=0", "score.kind=hybrid"):
        assert bundle.with_settings([calm]).halo_px == 32 + (32 if smooth else 0)


def test_other_scores_and_a_strength_of_0_are_as_without_a_review(before, after, image):
    off = after.with_settings(["score.false_alarm_nats=0"])
    assert torch.equal(off.score(image), before.score(image))
    others = [kind for kind in before.scores if kind != "combined"]
    was, now = (bundle.scores_of(bundle.infer(image), image, kinds=others) for bundle in (before, after))
    assert all(torch.equal(was[kind], now[kind]) for kind in others)


def test_without_places_of_false_alarms_the_strength_means_nothing(before, image):
    changed = before.with_settings(["score.false_alarm_nats=9"])
    assert torch.equal(changed.score(image), before.score(image)) and changed.thresholds == before.thresholds


def test_part_of_a_tile_is_that_part_of_the_whole(after, image):
    core = (slice(8, 40), slice(16, 64))
    answer = after.infer(image)
    torch.testing.assert_close(after.score_of(answer, image, core=core), after.score(image)[:, 8:40, 16:64])


def test_thresholds_hold_for_the_strength_that_they_were_measured_with(after):
    known = dict.fromkeys(("0.001", "0.01", "0.05"), 1.0)
    bundle = ModelBundle(**{**vars(after), "calibration": {"combined": known}, "calibrated": after.config.score})
    assert bundle.threshold == 1.0
    with pytest.raises(ConfigError, match=r"score\.false_alarm_nats"):
        _ = bundle.with_settings(["score.false_alarm_nats=2"]).threshold
