"""Laws of the bundle: what is saved comes back, whole or not at all, and nothing else passes for a bundle."""

import json

import numpy as np
import pytest
import torch
from conftest import make_bundle
from safetensors import safe_open
from safetensors.torch import save_file

from geood.bundle import FORMAT, ModelBundle, read_header
from geood.errors import BundleError, OutputError


def test_a_bundle_comes_back_as_it_was_saved(tmp_path):
    saved = make_bundle(tmp_path / "model.safetensors")
    loaded = ModelBundle.load(tmp_path / "model.safetensors")
    assert loaded.header() == saved.header()
    assert loaded.identity == saved.identity and len(loaded.identity) == 12
    image = torch.rand(2, 3, 64, 96)
    assert torch.equal(loaded.answer(image).logits, saved.answer(image).logits)
    assert torch.equal(loaded.score(image), saved.score(image))
    noise = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(
        loaded.flow.sample(1, 16, 16, generator=noise[0]), saved.flow.sample(1, 16, 16, generator=noise[1])
    )


def test_the_same_model_gives_the_same_bytes(tmp_path):
    first, second = (make_bundle(tmp_path / f"{name}.safetensors") for name in "ab")
    assert first.identity == second.identity  # a digest of all bytes


def test_the_header_says_what_the_model_is(bundle_path, bundle):
    header = read_header(bundle_path)
    assert header["class_ids"] == [0, 1, 2]
    assert bundle.class_names == {0: "land", 1: "road", 2: "roof"}
    assert bundle.threshold == header["calibration"]["jsd"]["0.01"] == 0.7
    assert header["config"]["segmenter"]["encoder"] == "resnet10t"


def test_scores_lie_in_the_unit_interval_and_vary(bundle):
    score = bundle.score(torch.rand(1, 3, 64, 64)).numpy()
    assert score.dtype == np.float32 and score.min() >= 0 and score.max() <= 1 and score.std() > 0.01


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


def test_a_missing_tensor_is_refused(tmp_path, bundle_path):
    path = tmp_path / "model.safetensors"
    rewrite(bundle_path, path, lambda _, tensors: tensors.pop(next(k for k in tensors if k.startswith("flow."))))
    with pytest.raises(BundleError, match="damaged"):
        ModelBundle.load(path)


def test_an_unwritable_place_leaves_nothing(tmp_path, bundle):
    with pytest.raises(OutputError, match="cannot be written"):
        bundle.save(tmp_path / "missing" / "model.safetensors")
    assert not list(tmp_path.iterdir())
