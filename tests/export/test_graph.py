"""The graph computes from digital numbers what a bundle computes from a scaled image, also when it is traced."""

import numpy as np
import pytest
import torch

from geood._torch_compat import declare_missing_operators
from geood.config import SCORES
from geood.errors import ConfigError
from geood.export.deepness import byte_graph, deepness_metadata, rise_per_nat, tile_side
from geood.export.graph import SAME, ScoreGraph, fixed
from geood.models.tails import _count_below
from support.bundles import make_bundle, with_false_alarms, with_statistics


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    plain = make_bundle(folder / "a.safetensors", segmenter={"outlier": "head"}, data={"anomaly": [7]})
    return with_statistics(plain, folder / "b.safetensors")


@pytest.fixture(scope="module")
def numbers():
    """Digital numbers (1, 3, 64, 96) with a hole, beyond the range of the bands too."""
    image = 300 * torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) - 20
    image[0, 1, 10:20, 30:50] = torch.nan
    return image


def expected(bundle, numbers):
    """What the bundle makes of the numbers: scores and class ids, with holes."""
    array = numbers[0].numpy()
    valid = np.isfinite(array).all(0)
    scaled, known = torch.from_numpy(bundle.bands.scale(array, valid))[None], torch.from_numpy(valid)[None]
    score = bundle.score(scaled, known)
    ids = torch.tensor(bundle.class_ids, dtype=torch.uint8)[bundle.infer(scaled).logits.argmax(1)]
    return torch.where(known, score, torch.nan), torch.where(known, ids, 255)


@pytest.mark.parametrize("kind", [kind for kind in SCORES if kind != "uno"])
def test_the_graph_is_the_bundle(bundle, numbers, kind):
    chosen = bundle.with_settings([f"score.kind={kind}"])
    score, ids = ScoreGraph(chosen).eval()(numbers)
    wanted, wanted_ids = expected(chosen, numbers)
    assert torch.allclose(score, wanted, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert score.isnan().sum() == 200 and torch.equal(ids, wanted_ids) and ids.dtype == torch.uint8


def test_the_graph_of_a_bundle_with_a_class_of_outliers_is_the_bundle(numbers, tmp_path):
    """Score uno needs one more class in place of a head of its own."""
    chosen = make_bundle(tmp_path / "a.safetensors", segmenter={"outlier": "class"}, score={"kind": "uno"})
    score, ids = ScoreGraph(chosen).eval()(numbers)
    wanted, wanted_ids = expected(chosen, numbers)
    assert torch.allclose(score, wanted, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert score.nan_to_num(0).max() > 1 and torch.equal(ids, wanted_ids)


def _traced(bundle):
    rows, cols = (32 * torch.export.Dim(name, min=1, max=32) for name in ("rows", "cols"))
    free = {"image": {0: torch.export.Dim("images", min=1, max=8), 2: rows, 3: cols}}
    with torch.no_grad():
        graph = ScoreGraph(bundle).eval()
        return torch.export.export(graph, (torch.zeros(2, 3, 96, 128),), dynamic_shapes=free, strict=False).module()


@pytest.mark.slow
def test_a_traced_graph_of_any_size_is_the_bundle(bundle, numbers):
    chosen = bundle.with_settings(["score.kind=energy"])
    score, ids = _traced(chosen)(numbers)
    wanted, wanted_ids = expected(chosen, numbers)
    assert torch.allclose(score, wanted, atol=1e-4, rtol=1e-4, equal_nan=True) and torch.equal(ids, wanted_ids)


@pytest.mark.parametrize("made", [ScoreGraph, pytest.param(_traced, marks=pytest.mark.slow)])
def test_the_graph_lowers_the_score_near_false_alarms(bundle, numbers, tmp_path, made):
    """Score combined has all that is computed otherwise when sizes are symbols, but the banks of the decoder."""
    false = torch.zeros(1, 64, 96, dtype=torch.bool)
    false[:, 32:64, 64:] = True
    scaled = torch.from_numpy(bundle.bands.scale(numbers[0].numpy(), np.isfinite(numbers[0].numpy()).all(0)))[None]
    chosen = bundle.with_settings(["score.kind=combined"])
    lowered = with_false_alarms(chosen, tmp_path / "c.safetensors", scaled, false=false)
    score, ids = made(lowered)(numbers)
    (plain, _), (wanted, wanted_ids) = (expected(each, numbers) for each in (chosen, lowered))
    assert torch.equal(ids, wanted_ids)
    assert torch.allclose(score, wanted, atol=1e-3, rtol=1e-4, equal_nan=True)
    far = torch.isclose(plain, wanted, atol=1e-6, equal_nan=True)  # from false alarms
    assert far.float().mean() > 0.1 and torch.allclose(score[far], plain[far], atol=1e-4, rtol=1e-4, equal_nan=True)
    assert float((plain - wanted)[0, 48, 80]) > 3


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (1, 1), (2, 4)])
def test_fixed_padding_is_that_of_sizes_that_the_stride_divides(kernel, stride):
    declare_missing_operators()
    from timm.layers.conv2d_same import Conv2dSame

    conv, image = Conv2dSame(4, 6, kernel, stride=stride, groups=2), torch.rand(1, 4, 16, 24)
    assert type(conv).__name__ == SAME
    assert torch.equal(fixed(conv)(image), conv(image))


def test_knots_are_counted_as_bucketize_counts_them():
    knots = torch.arange(60).float()
    score = torch.cat([torch.linspace(-3, 63, 500), knots, torch.tensor([torch.inf, -torch.inf])])
    assert torch.equal(_count_below(score, knots), torch.bucketize(score, knots))


def test_a_share_is_half_at_the_threshold_and_keeps_the_order(bundle, numbers):
    whole = numbers.nan_to_num(0).clamp(0, 255)
    share = byte_graph(bundle)(whole / 255)
    score, _ = ScoreGraph(bundle)(whole)
    assert torch.equal(share > 0.5, score > bundle.threshold) and share.min() >= 0 and share.max() <= 1
    nat = rise_per_nat(bundle)
    assert nat == pytest.approx((0.9 - 0.5) / np.log(50))
    assert torch.allclose(share, 1 / (1 + torch.exp((bundle.threshold - score) / nat)), atol=1e-5)


def test_deepness_is_told_tile_overlap_and_ground(bundle):
    keys = deepness_metadata(bundle)
    side = tile_side(bundle)
    assert side == 128 + 2 * bundle.halo_px and side % 32 == 0
    assert keys["tile_size"] == str(side) and keys["resolution"] == "50.0" and keys["model_type"] == '"Segmentor"'
    stride = side * (1 - int(keys["tiles_overlap"]) / 100)
    assert (side - stride) / 2 >= bundle.halo_px  # so that what the plugin keeps of a tile is as `predict` has it
    free = bundle.with_settings(["predict.tile_px=auto", "predict.halo_px=320"])
    assert tile_side(free) == 4 * 320


def test_what_deepness_or_onnx_cannot_run_is_refused_by_name(tmp_path):
    wide = make_bundle(tmp_path / "wide.safetensors", high=10_000.0)
    with pytest.raises(ConfigError, match="band band_1 ranges from 0 to 10000, and Deepness hands on bytes"):
        byte_graph(wide)
    paper = {"network": "ldn121"}
    ldn = make_bundle(tmp_path / "ldn.safetensors")
    config = ldn.config.model_copy(update={"segmenter": ldn.config.segmenter.model_copy(update=paper)})
    object.__setattr__(ldn, "config", config)
    with pytest.raises(ConfigError, match=r"segmenter\.network ldn121"):
        ScoreGraph(ldn)
