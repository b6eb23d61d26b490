"""Laws of the folded segmenter: for each family of encoders it answers as the trained one, which stays as it was."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from geood.config.sections import SegmenterConfig
from geood.models import inference
from geood.models.folded import FoldedConv
from geood.models.inference import folded_segmenter, for_inference
from geood.models.segmenter import Segmenter
from support.bundles import make_bundle

FAMILIES = (
    "densenet121",
    "resnet10t",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "regnety_002",
    "test_resnet",
    "convnext_atto",
)


def _trained(*, bands=3, outlier="head", **keys):
    """A segmenter whose batch norms and last layer are those of no beginning, dead and turned channels among them."""
    torch.manual_seed(0)
    segmenter = Segmenter(bands, 4, SegmenterConfig(outlier=outlier, **keys)).eval()
    for module in segmenter.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.4)
            nn.init.normal_(module.bias, 0, 0.2)
            with torch.no_grad():
                module.weight[0], module.weight[1] = 0, -0.7
    for name, weight in segmenter.named_parameters():
        if name == "outlier_head.last.weight":
            nn.init.normal_(weight)
    return segmenter


@torch.inference_mode()
def _assert_same(segmenter, image):
    folded = folded_segmenter(segmenter)
    for name, ours, theirs in zip(
        ("logits", "outlier", "features", "encoder", "coarser"), folded(image), segmenter(image), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()), msg=name)
    return folded


@pytest.mark.parametrize("encoder", FAMILIES)
def test_a_folded_segmenter_answers_as_the_trained_one(encoder):
    folded = _assert_same(_trained(encoder=encoder, decoder_channels=8), torch.rand(1, 3, 96, 64))
    assert any(isinstance(part, FoldedConv) for part in folded.encoder.modules())
    assert sum(isinstance(part, nn.BatchNorm2d) for part in folded.modules()) <= 1  # DenseNet's last one stands alone


@pytest.mark.parametrize("keys", [{"network": "ldn121"}, {"encoder": "test_resnet", "outlier": "class"}])
def test_so_do_other_networks_and_heads(keys):
    _assert_same(_trained(bands=5, **keys), torch.rand(2, 5, 64, 160))


def test_without_fused_operators_the_same_weights_go_through_plain_ones(monkeypatch):
    monkeypatch.setattr("geood.models.folded.fused_operators", lambda: False)
    _assert_same(_trained(encoder="tf_efficientnet_lite0", decoder_channels=8), torch.rand(1, 3, 64, 64))


def test_a_segmenter_is_left_as_it_was():
    segmenter = _trained(encoder="densenet121", decoder_channels=8)
    state, kinds = copy.deepcopy(segmenter.state_dict()), [type(part) for part in segmenter.modules()]
    folded_segmenter(segmenter)
    assert [type(part) for part in segmenter.modules()] == kinds
    assert all(torch.equal(tensor, state[name]) for name, tensor in segmenter.state_dict().items())


def test_an_encoder_whose_features_would_be_others_stays_unfolded(monkeypatch, caplog):
    segmenter = _trained(encoder="test_resnet", decoder_channels=8)
    right = inference.gain_and_shift
    monkeypatch.setattr(inference, "gain_and_shift", lambda norm: (right(norm)[0] * 1.1, right(norm)[1]))
    assert folded_segmenter(segmenter).encoder is segmenter.encoder
    assert "unfolded" in caplog.text


@torch.inference_mode()
def test_in_bfloat16_maps_are_rounded_and_logits_are_not(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "model.safetensors").with_settings(["predict.precision=bfloat16"])
    image = torch.rand(1, bundle.bands.count, 64, 64)
    folded = for_inference(bundle)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        wide, narrow = bundle.segmenter(image), folded.segmenter(image)
        assert narrow.features.dtype == torch.bfloat16
        assert narrow.logits.dtype == torch.float32
        largest = wide.logits.abs().max()
        assert 0 < (narrow.logits - wide.logits).abs().max() < 0.05 * largest
    assert all(p.dtype == torch.float32 for p in bundle.segmenter.parameters())
    monkeypatch.setattr(inference, "_has_bfloat16", lambda: False)
    assert for_inference(bundle) is bundle


def test_only_float32_and_bfloat16_on_a_cpu_are_folded(tmp_path):
    bundle = make_bundle(tmp_path / "model.safetensors")
    assert for_inference(bundle).segmenter is not bundle.segmenter
    for setting in ("predict.precision=float16", "predict.compile=true"):
        kept = bundle.with_settings([setting])
        assert for_inference(kept) is kept
    assert dataclasses.replace(for_inference(bundle), segmenter=bundle.segmenter) == bundle


def test_a_damaged_segmenter_is_not_folded(tmp_path):
    bundle = make_bundle(tmp_path / "model.safetensors")
    assert for_inference(bundle) is not bundle
    for part in (bundle.segmenter.encoder, bundle.segmenter.decoder):
        weight = next(part.parameters())
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[(0,) * weight.ndim] = torch.nan
        assert for_inference(bundle) is bundle
        with torch.no_grad():
            weight.copy_(kept)
