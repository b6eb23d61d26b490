"""ONNX Runtime computes from an exported file what torch computes, in any size; what is wrong is not written."""

import json

import numpy as np
import pytest
import torch

from geood.cli.process import _run
from geood.config import SCORES
from geood.errors import ConfigError, DataError, OutputError
from geood.export import export_bundle, onnx_file, read_metadata
from geood.export.graph import ScoreGraph
from geood.export.onnx_file import ScoreDifference
from support.bundles import make_bundle, with_statistics


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    plain = make_bundle(folder / "a.safetensors", segmenter={"outlier": "head"})
    return with_statistics(plain, folder / "model.safetensors")


def test_missing_packages_are_named_with_the_extra(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ConfigError, match=r"made with onnxscript, which .* pip install 'geood-toolkit\[export\]'"):
        export_bundle(bundle, "onnx", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_refused(tmp_path):
    pytest.importorskip("onnx")
    (tmp_path / "x.onnx").write_bytes(b"\xff no model")
    with pytest.raises(DataError, match="cannot be read as an ONNX file"):
        read_metadata(tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(DataError, match="not one that geood exported"):
        read_metadata(tmp_path / "x.onnx")


def run_onnx(path, images):
    from onnxruntime import InferenceSession

    return InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": images.numpy()})


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in SCORES if kind != "uno"])
def test_each_score_is_that_of_torch(bundle, tmp_path, kind):
    chosen = bundle.with_settings([f"score.kind={kind}"])
    made = export_bundle(chosen, "onnx", tmp_path / "x.onnx")
    image = 255 * torch.rand(1, 3, 128, 160, generator=torch.Generator().manual_seed(2))
    image[0, 2, :40, :30] = torch.nan
    score, ids = run_onnx(made.path, image)
    ours, our_ids = (part.numpy() for part in ScoreGraph(chosen).eval()(image))
    assert np.array_equal(np.isnan(score), np.isnan(ours))
    apart = np.abs(score - ours) / np.maximum(1, np.abs(ours))
    assert (np.nan_to_num(apart) > 1e-4).mean() <= 1e-3
    threshold = np.nanquantile(ours, 0.99)
    assert ((score > threshold) != (ours > threshold)).mean() <= 1e-3
    assert (ids != our_ids).mean() <= 1e-3


@pytest.mark.slow
def test_a_file_for_deepness_has_its_keys_and_one_size(bundle, tmp_path, capsys):
    out = tmp_path / "x.onnx"
    code = _run(["export", str(bundle_file(bundle, tmp_path)), "--to", "deepness", "--out", str(out)], debug=False)
    assert code == 0 and "checked    scores differ" in capsys.readouterr().out
    held = read_metadata(out)
    side = json.loads(held["tile_size"])
    share = run_onnx(out, torch.rand(2, 3, side, side))[0]
    assert share.shape == (2, side, side) and share.min() >= 0 and share.max() <= 1
    assert held["model_type"] == '"Segmentor"' and json.loads(held["geood_class_names"])["0"] == "land"
    assert _run(["info", str(out)], debug=False) == 0
    assert "tiles_overlap" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_with_other_scores_is_not_written(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "difference", lambda *_: ScoreDifference(0.5, 0.02))
    with pytest.raises(OutputError, match=r"other scores than torch on 2\.00% of the pixels"):
        export_bundle(bundle, "onnx", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def bundle_file(bundle, folder):
    bundle.save(folder / "model.safetensors")
    return folder / "model.safetensors"
