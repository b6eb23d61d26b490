"""Laws of the bundle: what is saved comes back, whole or not at all, and nothing else passes for a bundle."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from geood.config.score_kinds import SCORES
from geood.errors import BundleError, ConfigError, OutputError
from geood.models.bundle import ModelBundle
from geood.models.bundle_header import FORMAT, read_header
from geood.models.guided_filter import guided_filter
from geood.models.inlier_statistics import Inliers
from geood.models.score_maps import EXPERTS, Scorer
from support.bundles import make_bundle, with_statistics


def test_a_bundle_comes_back_as_it_was_saved(tmp_path):
    saved = make_bundle(tmp_path / "model.safetensors")
    loaded = ModelBundle.load(tmp_path / "model.safetensors")
    assert loaded.header() == saved.header()
    assert loaded.identity == saved.identity and len(loaded.identity) == 12
    image = torch.rand(2, 3, 64, 96)
    assert torch.equal(loaded.infer(image).logits, saved.infer(image).logits)
    assert torch.equal(loaded.score(image), saved.score(image))
    noise = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(
        loaded.flow.sample(1, 16, 16, generator=noise[0]), saved.flow.sample(1, 16, 16, generator=noise[1])
    )


def test_loading_the_networks_of_scores_draws_no_random_numbers(full, tmp_path):
    path = tmp_path / "model.safetensors"
    full.save(path)
    state = torch.get_rng_state()
    ModelBundle.load(path, flow=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    first, second = (make_bundle(tmp_path / f"{name}.safetensors") for name in "ab")
    assert first.identity == second.identity  # a digest of all bytes


def test_the_header_says_what_the_model_is(bundle_path, bundle):
    header = read_header(bundle_path)
    assert header.class_ids == (0, 1, 2)
    assert bundle.class_names == {0: "land", 1: "road", 2: "roof"}
    assert bundle.threshold == header.calibration["jsd"]["0.01"] == 0.7
    assert header.config.segmenter.encoder == "test_resnet"


def test_scores_lie_in_the_unit_interval_and_vary(bundle):
    score = bundle.score(torch.rand(1, 3, 64, 64)).numpy()
    assert score.dtype == np.float32 and score.min() >= 0 and score.max() <= 1 and score.std() > 0.01


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A bundle with an outlier head and statistics for every score."""
    path = tmp_path_factory.mktemp("full") / "model.safetensors"
    saved = make_bundle(path, segmenter={"encoder": "resnet10t", "decoder_channels": 16, "outlier": "head"})
    with_statistics(saved, path)
    return ModelBundle.load(path)


def test_every_score_comes_from_one_answer_and_may_be_cut_to_a_core(full):
    assert set(full.scores) == set(SCORES) - {"uno"}
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    answer, core = full.infer(image), (slice(8, 50), slice(3, 70))
    for kind in full.scores:
        whole = full.score_of(answer, image, kind=kind)
        assert whole.shape == (1, 64, 96) and torch.isfinite(whole).all()
        torch.testing.assert_close(full.score_of(answer, image, kind=kind, core=core), whole[:, core[0], core[1]])
        asked = full.with_settings([f"score.kind={kind}"])
        assert torch.equal(asked.score(image), whole)


def test_a_smoothed_score_follows_the_image_and_needs_a_wider_halo(full):
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    smooth = full.with_settings(["score.smooth_px=9", "score.smooth_contrast=0.5"])
    assert (full.halo_px, smooth.halo_px) == (32, 64)
    valid = torch.ones(1, 64, 96, dtype=torch.bool)
    valid[:, 20:30] = False
    plain = full.score(image, valid)
    expected = guided_filter(plain, image, valid, radius=9, evenness=0.5)
    assert torch.equal(smooth.score(image, valid), expected)


def test_a_bundle_is_used_otherwise_only_as_far_as_it_can(full, bundle):
    assert full.with_settings(["predict.tile_px=96"]).config.predict.tile_px == 96
    for settings, match in (
        (["train.seed=1"], "sections score and predict can be changed"),
        (["score.kind"], "the form is section.key=value"),
        (["score.kind=unos"], "did you mean uno"),
        (["score.kind=uno"], "segmenter.outlier head, and that score needs class; train with segmenter.outlier: class"),
    ):
        with pytest.raises(ConfigError, match=match):
            full.with_settings(settings)
    for kind, remedy in (("knn", "feature_bank: 4096"), ("kl_matching", "train it again"), ("hybrid", "outlier: head")):
        with pytest.raises(ConfigError, match=rf"score.kind {kind}: .*{remedy}.*or take one of jsd, max_softmax"):
            bundle.with_settings([f"score.kind={kind}"])
    with pytest.raises(ValueError, match="cannot give the score knn"):
        bundle.score_of(bundle.infer(torch.zeros(1, 3, 32, 32)), torch.zeros(1, 3, 32, 32), kind="knn")


def test_thresholds_of_every_score_are_those_of_the_scores_that_predict_would_write(full):
    """Each is calibrated on one image as training does it, and asked for there."""
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    answer = full.infer(image)
    found = {kind: {"0.01": float(full.score_of(answer, image, kind=kind).quantile(0.99))} for kind in full.scores}
    whole = dataclasses.replace(full, calibration=found)
    for kind in full.scores:
        unsmoothed = [] if full.config.score.smooth_of(kind) else ["score.smooth_contrast=0.2"]
        asked = whole.with_settings([f"score.kind={kind}", *unsmoothed])
        above = (asked.score(image) > asked.threshold).float().mean()
        assert float(above) == pytest.approx(0.01, abs=2e-3), kind
    with pytest.raises(ConfigError, match="--threshold"):
        whole.with_settings(["score.kind=energy", "score.temperature=2"]).threshold  # noqa: B018
    with pytest.raises(ConfigError, match=r"feature_bank.*train with that value"):
        whole.with_settings(["score.feature_bank=500"])
    with pytest.raises(ConfigError, match=r"encoder_bank.*train with that value"):
        whole.with_settings(["score.encoder_bank=500"])


def test_hybrid_takes_the_offset_of_its_share_and_no_other_score_does(full, tmp_path):
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    shifted = dataclasses.replace(full, offsets={"0.05": -1.5, "0.2": 0.75})
    assert (full.offset, shifted.offset) == (0.0, -1.5)
    answer = shifted.infer(image)
    for settings, offset in (([], -1.5), (["score.veto_share=0.2"], 0.75), (["score.veto_share=null"], 0.0)):
        asked = shifted.with_settings(["score.kind=hybrid", *settings])
        expected = (answer.outlier + offset).sigmoid().log() - answer.logits.logsumexp(1)
        torch.testing.assert_close(asked.score(image), expected, rtol=1e-4, atol=1e-4)
        for kind in set(full.scores) - {"hybrid", "combined"}:  # that has it as an expert
            assert torch.equal(asked.score_of(answer, image, kind=kind), full.score_of(answer, image, kind=kind))
    shifted.save(tmp_path / "model.safetensors")
    assert ModelBundle.load(tmp_path / "model.safetensors").offsets == shifted.offsets
    calibrated = dataclasses.replace(shifted, calibration={"hybrid": {"0.01": 1.0}, "outlier": {"0.01": 2.0}})
    assert calibrated.with_settings(["score.kind=hybrid"]).threshold == 1.0
    with pytest.raises(ConfigError, match="temperature, smoothing or offset"):
        calibrated.with_settings(["score.kind=hybrid", "score.veto_share=0.2"]).threshold  # noqa: B018
    assert calibrated.with_settings(["score.kind=outlier", "score.veto_share=0.2"]).threshold == 2.0
    with pytest.raises(ConfigError, match=r"got 0.3; a bundle has offsets for the shares"):
        full.with_settings(["score.veto_share=0.3"])


def test_the_outlier_output_is_computed_only_for_scores_that_need_it(full):
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    assert full.infer(image, ("jsd", "kl_matching")).outlier is None
    for kinds in (None, ("jsd", "hybrid"), ("outlier",)):
        assert full.infer(image, kinds).outlier is not None
    assert torch.equal(full.infer(image, ("jsd",)).logits, full.infer(image).logits)


def test_a_threshold_counts_only_for_the_score_that_it_was_found_for(bundle):
    assert bundle.with_settings(["score.fpr=0.05"]).threshold == 0.5
    for setting in ("score.temperature=1.0", "score.smooth_px=4", "score.kind=energy"):
        with pytest.raises(ConfigError, match="--threshold"):
            bundle.with_settings([setting]).threshold  # noqa: B018


def refuse(path, match):
    for read in (ModelBundle.load, read_header):
        with pytest.raises(BundleError, match=match) as error:
            read(path)
        assert str(path) in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    refuse(tmp_path / "model.safetensors", "no such bundle")


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("I am no model")
    refuse(path, "not a readable safetensors file")


def test_a_file_cut_short_is_refused(tmp_path, bundle_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bundle_path.read_bytes()[:-1000])
    refuse(path, "cut short")


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    refuse(path, "no geood bundle")


def rewrite(source, path, change):
    """Copy a bundle with its header or tensors changed."""
    with safe_open(source, framework="pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["geood"])
    change(header, tensors)
    save_file(tensors, path, metadata={"geood": json.dumps(header)})


def test_a_newer_format_is_refused_with_both_versions(tmp_path, bundle_path):
    path = tmp_path / "model.safetensors"
    rewrite(bundle_path, path, lambda header, _: header.update(format=FORMAT + 1, geood="9.0"))
    refuse(path, rf"geood 9\.0 in format {FORMAT + 1}.*upgrade geood")


def test_an_older_format_is_refused_with_the_remedy(tmp_path, bundle_path):
    path = tmp_path / "model.safetensors"
    for old in (1, 2):
        rewrite(bundle_path, path, lambda header, _, old=old: header.update(format=old, geood="0.1"))
        refuse(path, rf"geood 0\.1 in format {old}, which this geood no longer reads; train it again")


def test_a_bundle_without_a_flow_comes_back_without_one(tmp_path, bundle):
    saved = dataclasses.replace(bundle, flow=None).save(tmp_path / "model.safetensors")
    assert ModelBundle.load(tmp_path / "model.safetensors").flow is None and saved.identity != bundle.identity


def test_a_missing_tensor_is_refused(tmp_path, bundle_path):
    path = tmp_path / "model.safetensors"
    rewrite(bundle_path, path, lambda _, tensors: tensors.pop(next(k for k in tensors if k.startswith("flow."))))
    with pytest.raises(BundleError, match="damaged"):
        ModelBundle.load(path)


def test_an_unwritable_place_leaves_nothing(tmp_path, bundle):
    with pytest.raises(OutputError, match="cannot be written"):
        bundle.save(tmp_path / "missing" / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_combined_is_the_weighted_sum_of_its_experts_surprisals_smoothed(full):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    answer = full.infer(image)
    each = [w * full.inliers.surprisal(kind, full.score_of(answer, image, kind=kind)) for kind, w in EXPERTS.items()]
    raw = full.with_settings(["score.smooth_px=0"]).score_of(answer, image, kind="combined")
    assert torch.equal(raw, sum(each))
    everywhere = torch.ones(1, 64, 64, dtype=torch.bool)
    smooth = guided_filter(raw, image, everywhere, radius=4, evenness=full.config.score.smooth_contrast)
    assert torch.equal(full.score_of(answer, image, kind="combined"), smooth)
    other = full.with_settings(["score.veto_share=0.5"])  # its tails hold for the share that they were calibrated with
    assert torch.equal(other.score_of(answer, image, kind="combined"), smooth)


def test_a_bank_of_stride_8_alone_is_used_as_the_formats_before_5_did(full, tmp_path):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    answer, held = full.infer(image), full.inliers.state_dict()
    depth = answer.encoder.shape[1]
    narrow = {"shift": held["encoder_shift"][:depth], "axes": torch.eye(depth)[:, :32], "near": torch.rand(50, depth)}
    narrow |= {"near": narrow["near"][:, :32], "classes": torch.arange(50) // 25 * 1.0}
    inliers = Inliers(held | {f"encoder_{name}": tensor for name, tensor in narrow.items()})
    dataclasses.replace(full, inliers=inliers).save(tmp_path / "model.safetensors")
    older = ModelBundle.load(tmp_path / "model.safetensors").with_settings(["score.smooth_px=0"])
    hybrid, near = (older.score_of(answer, image, kind=kind) for kind in ("hybrid", "encoder_knn"))
    other = answer._replace(coarser=torch.full_like(answer.coarser, torch.nan))
    assert torch.equal(older.score_of(other, image, kind="encoder_knn"), near)  # blind to stride 16
    parts = inliers.surprisal("hybrid", hybrid) + 0.35 * inliers.surprisal("encoder_knn", near)
    assert torch.equal(older.score_of(answer, image, kind="combined"), parts)


def test_without_a_third_tail_combined_stays_the_sum_of_two_as_in_the_formats_before_7(full, tmp_path):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    full.with_settings(["score.smooth_px=0"]).save(tmp_path / "now.safetensors")

    def before(header, tensors):
        header["format"] = 6
        del tensors["inliers.tail_encoder_ratio"]

    rewrite(tmp_path / "now.safetensors", tmp_path / "model.safetensors", before)
    older = ModelBundle.load(tmp_path / "model.safetensors")
    answer = older.infer(image)
    hybrid, near, ratio = (older.score_of(answer, image, kind=kind) for kind in EXPERTS)
    parts = older.inliers.surprisal("hybrid", hybrid) + 0.5 * older.inliers.surprisal("encoder_knn", near)
    assert torch.equal(older.score_of(answer, image, kind="combined"), parts)
    assert torch.equal(full.score_of(answer, image, kind="encoder_ratio"), ratio) and ratio.std() > 0


@pytest.mark.parametrize("written", [3, 7])
def test_plain_flows_of_formats_before_8_are_left_out_and_all_else_is_read(tmp_path, bundle_path, written):
    def as_written(header, tensors):
        header["format"] = written
        del tensors["flow.levels.2.lattices.first"]

    rewrite(bundle_path, tmp_path / "then.safetensors", as_written)
    now, then = (ModelBundle.load(path, tell=False) for path in (bundle_path, tmp_path / "then.safetensors"))
    assert then.flow is None and now.flow is not None
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(now.score(image), then.score(image))


def test_where_the_bank_is_of_one_class_no_ratio_is_offered(full):
    held = full.inliers.state_dict() | {"encoder_classes": torch.zeros(len(full.inliers.encoder_near))}
    del held["tail_encoder_ratio"]
    alike = dataclasses.replace(full, inliers=Inliers(held))
    assert "encoder_ratio" not in alike.scores and {"encoder_knn", "combined"} <= set(alike.scores)
    image = torch.rand(1, 3, 64, 64)
    assert torch.isfinite(alike.score_of(alike.infer(image), image, kind="combined")).all()
    with pytest.raises(ConfigError, match="no bank of encoder features of two classes"):
        alike.with_settings(["score.kind=encoder_ratio"])


def test_only_combined_is_smoothed_unless_the_config_says_how(full):
    radii = {kind: full.config.score.smooth_of(kind) for kind in full.scores}
    assert {kind for kind, radius in radii.items() if radius} == {"combined"}
    assert full.with_settings(["score.kind=combined"]).halo_px == full.halo_px + 32
    for settings, radius in ((["score.smooth_px=0"], 0), (["score.smooth_px=7"], 7)):
        score = full.with_settings(settings).config.score
        assert {score.smooth_of(kind) for kind in full.scores} == {radius}


def test_scores_asked_for_together_are_those_asked_for_alone_and_each_expert_is_computed_once(full, monkeypatch):
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    valid, core = torch.rand(1, 64, 96) > 0.1, (slice(8, 50), slice(3, 70))
    shifted = dataclasses.replace(full, offsets={"0.05": -1.5, "0.2": 0.75})
    for settings in ([], ["score.smooth_px=3"], ["score.veto_share=0.2"]):
        bundle = shifted.with_settings(settings)
        answer = bundle.infer(image)
        together = bundle.scores_of(answer, image, valid, kinds=bundle.scores, core=core)
        for kind, score in together.items():
            assert torch.equal(score, bundle.score_of(answer, image, valid, kind=kind, core=core)), kind
    asked, computed = [], Scorer._computed

    def counted(self, answer, kind, *rest):
        asked.append(kind)
        return computed(self, answer, kind, *rest)

    monkeypatch.setattr(Scorer, "_computed", counted)
    full.scores_of(full.infer(image), image, kinds=full.scores)
    assert sorted(asked) == sorted(full.scores)


def _forgeries():
    """Changes of a bundle with a head, bank and tails that leave parts without what they need, and what is said."""

    def headless(header, tensors):
        header["config"]["segmenter"]["outlier"] = "none"
        header["offsets"] = {}
        for name in [name for name in tensors if name.startswith("segmenter.outlier_head.")]:
            del tensors[name]

    def no_head_but_offsets(header, tensors):
        headless(header, tensors)
        header["offsets"] = {"0.05": 1.0}

    def without(*names):
        return lambda _, tensors: [tensors.pop(f"inliers.{name}") for name in names]

    def default(kind, *names):
        def change(header, tensors):
            header["config"]["score"]["kind"] = kind
            without(*names)(header, tensors)

        return change

    def narrower(name):
        def change(_, tensors):
            tensors[f"inliers.{name}"] = tensors[f"inliers.{name}"][:, :-1].contiguous()

        return change

    def falling(_, tensors):
        tensors["inliers.tail_hybrid"] = tensors["inliers.tail_hybrid"].flip(0)

    def classes_of(value):
        def change(_, tensors):
            tensors["inliers.encoder_classes"][-1] = value

        return change

    def false_alarms(reach):
        def change(_, tensors):
            tensors["inliers.encoder_false"] = tensors["inliers.encoder_near"][:3].clone()
            tensors["inliers.encoder_reach"] = torch.tensor([reach])

        return change

    def no_reach(header, tensors):
        false_alarms(1.0)(header, tensors)
        del tensors["inliers.encoder_reach"]

    def reviewed(value, *, rows=None, bare=False):
        def change(_, tensors):
            tensors["inliers.encoder_reviewed"] = torch.zeros(len(tensors["inliers.encoder_near"]))[:rows].clone()
            tensors["inliers.encoder_reviewed"][-1] = value
            if bare:
                del tensors["inliers.encoder_classes"]

        return change

    def no_number(_, tensors):
        tensors["inliers.tail_encoder_knn"][3] = torch.nan

    def one_class(_, tensors):
        tensors["inliers.encoder_classes"].zero_()

    bank = ("encoder_near", "encoder_axes", "encoder_shift", "encoder_classes")
    tails = ("tail_hybrid", "tail_encoder_knn", "tail_encoder_ratio")
    return {
        "tails without a head": (headless, r"tail_encoder_knn, and its segmenter has no outlier head"),
        "offsets without a head": (no_head_but_offsets, r"offsets: its segmenter.outlier is none"),
        "one tail": (without("tail_hybrid"), r"lacks the tensor inliers.tail_hybrid"),
        "the other tail": (without("tail_encoder_knn"), r"holds a tensor inliers.tail_"),
        "tails without a bank": (without(*bank), r"holds a tensor inliers.tail_"),
        "half a bank": (without("encoder_shift"), r"lacks the tensor inliers.encoder_shift"),
        "combined without tails": (default("combined", *tails), "score.kind combined"),
        "a default without its bank": (
            default("encoder_knn", *bank, *tails),
            "score.kind encoder_knn",
        ),
        "a default that needs a class": (default("uno"), "score.kind uno"),
        "a bank of fewer channels": (narrower("encoder_near"), r"inliers.encoder_near is F32"),
        "features of fewer channels": (narrower("bank"), r"inliers.bank is F32"),
        "templates of fewer classes": (narrower("log_templates"), r"inliers.log_templates is F32"),
        "a class of no bound": (classes_of(torch.inf), r"encoder_classes does not hold classes in order"),
        "a third tail with one class": (one_class, r"tail_encoder_ratio, and its bank is of one class"),
        "a third tail without classes": (
            without("encoder_classes"),
            r"tail_encoder_ratio, and its bank is of one class",
        ),
        "half a class": (classes_of(1.5), r"encoder_classes does not hold classes in order"),
        "false alarms without a reach": (no_reach, r"lacks the tensor inliers.encoder_reach"),
        "false alarms that reach nowhere": (false_alarms(0.0), r"encoder_reach is no distance"),
        "false alarms of no bound": (false_alarms(torch.inf), r"encoder_reach is no distance"),
        "half a reviewed row": (reviewed(0.5), r"encoder_reviewed holds other values than 0 and 1"),
        "a reviewed row of no number": (reviewed(torch.nan), r"encoder_reviewed holds other values than 0 and 1"),
        "reviewed rows without classes": (reviewed(1.0, bare=True), r"holds a tensor inliers.encoder_reviewed"),
        "reviewed rows of a part": (reviewed(1.0, rows=9), r"inliers.encoder_reviewed is F32 \[9\]"),
        "a tail that falls": (falling, r"inliers.tail_hybrid do not increase"),
        "a tail of no numbers": (no_number, r"inliers.tail_encoder_knn do not increase"),
    }


@pytest.mark.parametrize("what", _forgeries())
def test_parts_without_what_they_need_are_refused(tmp_path, full, what):
    full.save(tmp_path / "whole.safetensors")
    path = tmp_path / "model.safetensors"
    change, said = _forgeries()[what]
    rewrite(tmp_path / "whole.safetensors", path, change)
    with pytest.raises(BundleError, match=said) as error:
        ModelBundle.load(path)
    assert str(path) in str(error.value)
