"""Laws of upgrades: a bundle of format 3 is read and says what it lacks, and no tree of another shape breaks a step."""

import json
import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from geood.errors import BundleError
from geood.models.bundle import ModelBundle
from geood.models.bundle_header import FORMAT, read_header
from geood.models.bundle_upgrades import OLD_HALO, UPGRADES, upgraded
from support.bundles import make_bundle, small_config


@pytest.fixture
def older(tmp_path, bundle_path):
    """A function of a change to the header of format 3: write that bundle, and return its path."""

    def older(change=lambda header: None):
        def as_it_was(header):
            del header["reach"], header["config"]["version"]
            header["format"] = 3
            change(header)

        path = tmp_path / "model.safetensors"
        rewrite(bundle_path, path, as_it_was)
        return path

    return older


def rewrite(source, path, change):
    """Write a bundle with another header, changed in place."""
    with safe_open(source, framework="pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["geood"])
    change(header)
    save_file(tensors, path, metadata={"geood": json.dumps(header)})


def test_a_bundle_of_format_3_is_read_and_says_once_what_it_lacks(older, caplog):
    path = older()
    with caplog.at_level(logging.WARNING, "geood"):
        bundle = ModelBundle.load(path)
    [record] = caplog.records
    assert str(path) in record.getMessage() and "with a halo of 32 px" in record.getMessage()
    assert "set predict.halo_px" in record.getMessage() and "train it again" in record.getMessage()
    assert bundle.reach is None and bundle.halo_px == 32
    header = read_header(path)
    assert (header.written, header.format) == (3, FORMAT) and len(header.missing) == 1
    caplog.clear()
    ModelBundle.load(path, tell=False)  # as workers do
    assert not caplog.records


def test_an_upgraded_bundle_is_saved_in_the_format_of_today(older, tmp_path, caplog):
    ModelBundle.load(older(), tell=False).save(tmp_path / "new.safetensors")
    header = read_header(tmp_path / "new.safetensors")
    assert (header.written, header.missing) == (FORMAT, ())


@pytest.mark.parametrize("written", [3, 4, 5])
def test_outlier_heads_of_formats_before_6_see_the_encoder_at_the_strides_of_their_time(tmp_path, written):
    config = small_config().segmenter.model_dump() | {"outlier": "head", "outlier_strides": [4, 8]}
    then = make_bundle(tmp_path / "now.safetensors", segmenter=config)

    def as_written(header):
        header["format"] = written
        del header["config"]["segmenter"]["outlier_strides"]

    rewrite(tmp_path / "now.safetensors", tmp_path / "then.safetensors", as_written)
    found = ModelBundle.load(tmp_path / "then.safetensors", tell=False)
    assert found.config.segmenter.outlier_strides == [4, 8]
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.infer(image).outlier, then.infer(image).outlier)


def test_a_config_without_a_halo_gets_that_of_its_time(older):
    path = older(lambda header: header["config"]["predict"].pop("halo_px"))
    assert f"halo of {OLD_HALO} px" in read_header(path).missing[0]
    assert ModelBundle.load(path, tell=False).halo_px == OLD_HALO


@pytest.mark.parametrize("version", [-1, 0, 1, 2])
def test_formats_without_a_way_are_refused(older, version):
    path = older(lambda header: header.update(format=version, geood="0.0.1"))
    with pytest.raises(BundleError, match=rf"geood 0\.0\.1 in format {version}.*no longer reads; train it again"):
        ModelBundle.load(path)


TREES = {
    "no config": {},
    "a config that is none": {"config": 3},
    "a section that is none": {"config": {"predict": [1]}},
    "a halo that is none": {"config": {"predict": {"halo_px": {"a": "\x1b[31m" + "x" * 9999}}}},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_every_step_leads_to_the_next_format_whatever_it_is_given(tree):
    for given in UPGRADES:
        newer, written, missing = upgraded(tree | {"format": given}, to=given + 1)
        assert newer["format"] == given + 1 and written == given
        assert all(len(said) < 500 and said.isprintable() for said in missing)
    assert upgraded(tree | {"format": FORMAT}, to=FORMAT) == (tree | {"format": FORMAT}, FORMAT, ())


def test_a_header_of_format_3_that_is_damaged_is_refused_like_any(older):
    with pytest.raises(BundleError, match="damaged"):
        ModelBundle.load(older(lambda header: header.update(config=3)))


@pytest.mark.parametrize(
    "reach",
    [
        3,
        {"halo_px": 33, "beyond": [0.5]},
        {"halo_px": 64, "beyond": []},
        {"halo_px": 64, "beyond": [2.0]},
        {"halo_px": 64},
        {"halo_px": 64, "beyond": [0.5], "seam": -1.0},
    ],
)
def test_a_reach_that_cannot_be_is_refused(older, reach):
    with pytest.raises(BundleError, match="reach"):
        read_header(older(lambda header: header.update(format=FORMAT, reach=reach)))
