"""Laws of evidence on pixels: it is what a softmax of each pixel says, above the floor alone."""

import dataclasses

import numpy as np
import pytest
import torch

from geood.models.evidence import EVIDENCE, SIGNALS, class_bands
from geood.models.inlier_statistics import Inliers
from geood.models.score_maps import EXPERTS
from geood.models.segmenter import SegmenterOutput
from support.bundles import make_bundle

CORE = (slice(2, 30), slice(4, 31))


def answer_of(classes, seed=0):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (2, classes, 32, 32)).astype(np.float32))
    outlier = torch.from_numpy(rng.normal(0, 2, (2, 32, 32)).astype(np.float32))
    return SegmenterOutput(logits, outlier, logits, logits, logits)


@pytest.mark.parametrize("floor", [-np.inf, 0.5, 9.0])
def test_the_second_class_and_the_margin_are_those_of_the_softmax(tmp_path, floor):
    bundle, answer = make_bundle(tmp_path / "m.safetensors"), answer_of(3)
    score = bundle.score_of(answer, answer.logits, core=CORE)
    classes, *bands = class_bands(bundle, answer, score, floor=floor, core=CORE).numpy().transpose(3, 0, 1, 2)
    assert classes.shape == (2, 28, 27) and len(bands) == len(EVIDENCE) and classes.dtype == np.uint8
    share = answer.logits.double().softmax(1)[:, :, CORE[0], CORE[1]].numpy()
    order = np.argsort(share, axis=1)
    ranked = np.sort(share, axis=1)
    above = score.numpy() > floor
    assert (classes == order[:, -1]).all() and all((band[~above] == 255).all() for band in bands)
    assert (bands[0][above] == order[:, -2][above]).all()
    margin = (ranked[:, -1] - ranked[:, -2])[above]
    assert np.abs(bands[1][above] / 254 - margin).max(initial=0) < 0.5 / 254 + 1e-5
    assert (bands[2] == 255).all()  # nothing is fused in this score


@pytest.mark.parametrize("smooth_px", [0, 3, None])
def test_the_signal_is_the_expert_that_most_of_the_score_comes_from(tmp_path, smooth_px):
    bundle = make_bundle(tmp_path / "m.safetensors", segmenter={"outlier": "head"}, score={"kind": "hybrid"})
    knots = torch.linspace(-10, 5, 61)
    answer = answer_of(3)
    first = bundle.score_of(answer, answer.logits, kind="hybrid", core=CORE)
    own = Inliers({"tail_hybrid": knots}).surprisal("hybrid", first)
    other = own.flip(2)
    fused = dataclasses.replace(bundle, inliers=Inliers({"tail_hybrid": knots}))
    settings = bundle.config.score.model_copy(update={"kind": "combined", "smooth_px": smooth_px})
    bands = class_bands(fused.with_score(settings), answer, own + other, floor=-1e9, core=CORE)
    clear = (own - other).abs() > 0.01
    assert SIGNALS[0] == "hybrid" and EXPERTS["hybrid"] == 1 and clear.float().mean() > 0.5
    assert (bands[..., 3] == (other > own))[clear].all()
