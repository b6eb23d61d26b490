"""Laws of the header of a bundle and of its tensors: what does not fit is refused by loading and by `info` alike."""

import dataclasses
import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from geood.cli.process import _run
from geood.errors import BundleError, GeoodError
from geood.models.bundle import ModelBundle
from geood.models.bundle_header import read_header
from geood.models.flows.flow import Flow
from geood.models.segmenter import Segmenter
from support.bundles import make_bundle


def changed(source, path, change, tensors=None):
    """Copy a bundle with a new header: a text, or the old one after `change`; `tensors` changes those."""
    with safe_open(source, framework="pt") as file:
        held = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["geood"])
    if tensors:
        tensors(held)
    if not isinstance(change, str):
        change(header)
        change = json.dumps(header)
    save_file(held, path, metadata={"geood": change})
    return path


def put(*keys, value):
    def change(tree):
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change


def drop(key):
    return lambda tree: tree.pop(key)


RECORD = {
    "kind": "jsd",
    "pixels": 30,
    "pixel_m": 0.5,
    "intervals": {"jsd": {"0.01": [0.0, 0.1]}},
    "thresholds": [0.5, 0.9],
    "block_px": [10, 20],
    "block_image": [0, 0],
    "above": [[5, 1], [6, 0]],
    "least_px": [1],
    "polygons": [[4, 1]],
    "spread": [[0.1, 0.0]],
    "connectivity": 8,
    "statistics": ["level red"],
    "cells": [[0.5]],
    "cell_image": [0],
    "drawn": False,
}
RECORDS = {
    "a list": [1],
    "empty": {},
    "of no score": RECORD | {"kind": "best"},
    "of an interval of no score": RECORD | {"intervals": {"best": {}}},
    "not ascending": RECORD | {"thresholds": [0.9, 0.5]},
    "ragged": RECORD | {"above": [[5, 1], [6]]},
    "short": RECORD | {"block_image": [0]},
    "without areas": RECORD | {"least_px": []},
    "without names": RECORD | {"statistics": []},
    "not finite": RECORD | {"thresholds": [0.5, float("nan")]},
    "negative": RECORD | {"block_px": [-1, 20]},
    "of text": RECORD | {"block_px": ["10", 20]},
    "of a share above 1": RECORD | {"intervals": {"jsd": {"0.01": [0.0, 1.5]}}},
    "of something else": RECORD | {"more": 1},
}

HEADERS = {
    "no JSON": "{",
    "a list": "[2]",
    "a text": '"2"',
    "no format": "{}",
    "format null": '{"format": null}',
    "format true": '{"format": true}',
    "format a fraction": '{"format": 2.0}',
    "5,000 digits": '{"format": ' + "1" * 5000 + "}",
    "too deep": '{"a":' * 50_000,
    "deep in the config": '{"format": 3, "config": ' + '{"data":' * 900 + "1" + "}" * 901,
    "an unknown key": put("more", value=1),
    **{f"a record that is {what}": put("record", value=value) for what, value in RECORDS.items()},
    **{
        f"no {key}": drop(key)
        for key in (
            "geood",
            "config",
            "bands",
            "class_ids",
            "resolution",
            "calibration",
            "calibrated",
            "metrics",
            "offsets",
        )
    },
    "geood a number": put("geood", value=1),
    "config a list": put("config", value=[]),
    "data a list": put("config", "data", value=[]),
    "an unknown section": put("config", "more", value={}),
    "an id that is no number": put("config", "data", "classes", "zz", value="a"),
    "classes a text": put("config", "data", "classes", value="x"),
    "bands a text": put("bands", value="x"),
    "a step short": lambda tree: tree["bands"]["step"].pop(),
    "low short": lambda tree: tree["bands"]["low"].pop(),
    "low text": put("bands", "low", value=["a"] * 3),
    "low infinite": put("bands", "low", value=[float("inf")] * 3),
    "low NaN": put("bands", "low", value=[float("nan")] * 3),
    "low is high": put("bands", "low", value=[255.0] * 3),
    "a range without end": lambda tree: tree["bands"].update(low=[-1.7e308] * 3, high=[1.7e308] * 3),
    "a range too narrow": lambda tree: tree["bands"].update(low=[0.0] * 3, high=[5e-324] * 3),
    "names lists": put("bands", "names", value=[[1]] * 3),
    "no bands": lambda tree: tree["bands"].update(
        {key: [] for key, of in tree["bands"].items() if isinstance(of, list)}
    ),
    "an index 0": put("bands", "indexes", value=[0, 1, 2]),
    "nodata a list": put("bands", "nodata", value=[]),
    "scene_count text": put("bands", "scene_count", value="3"),
    "resolution 0": put("resolution", value=0),
    "resolution infinite": put("resolution", value=float("inf")),
    "resolution text": put("resolution", value="x"),
    "photo_width 0": put("photo_width", value=0),
    "photo_width a fraction": put("photo_width", value=320.5),
    "photo_width without end": put("photo_width", value=10**12),
    "calibration a number": put("calibration", value=1),
    "an unknown score": put("calibration", "best", value={}),
    "a rate that is none": put("calibration", "jsd", "often", value=0.5),
    "a threshold text": put("calibration", "jsd", "0.01", value="x"),
    "a threshold NaN": put("calibration", "jsd", "0.01", value=float("nan")),
    "calibrated a number": put("calibrated", value=1),
    "calibrated cold": put("calibrated", "temperature", value=0.0),
    "offsets a list": put("offsets", value=[1]),
    "an offset NaN": put("offsets", "0.05", value=float("nan")),
    "an offset text": put("offsets", "0.05", value="x"),
    "a share that is none": put("offsets", "often", value=1.0),
    "metrics a list": put("metrics", value=[1]),
    "a metric text": put("metrics", "joint/miou", value="x"),
    "an id without a name": lambda tree: tree["config"]["data"]["classes"].pop("0"),
    "an id twice": put("class_ids", value=[0, 1, 1]),
    "an id a list": put("class_ids", value=[[1], 1, 2]),
    "an id true": put("class_ids", value=[0, True, 2]),
    "no ids": put("class_ids", value=[]),
    "steps without end": put("config", "flow", "steps", value=2**31),
    "a name that is no text": put("config", "data", "classes", "0", value=7),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_header_that_does_not_fit_is_refused_by_loading_and_by_info(bundle_path, tmp_path, change, capsys):
    path = changed(bundle_path, tmp_path / "evil.safetensors", change)
    for read in (read_header, ModelBundle.load):
        with pytest.raises(BundleError) as error:
            read(path)
        message = str(error.value)
        assert str(path) in message and len(message) < 600 and message.isprintable()
    assert _run(["info", str(path)], debug=False) == 3
    assert str(path) in capsys.readouterr().err


def test_any_part_of_the_header_replaced_by_anything_is_taken_or_refused(bundle_path, tmp_path):
    """Each value of the tree in turn; what is taken comes back and can be shown."""
    with safe_open(bundle_path, framework="pt") as file:
        header = json.loads(file.metadata()["geood"])

    def places(tree, at=()):
        yield at
        for key in tree if isinstance(tree, dict) else ():
            yield from places(tree[key], (*at, key))

    path, refused = tmp_path / "evil.safetensors", 0
    for at in places(header):
        for value in (None, [], "\ud800", 10**400):
            tree = json.loads(json.dumps(header))
            if at:
                put(*at, value=value)(tree)
            save_file({"x": torch.zeros(1)}, path, metadata={"geood": json.dumps(tree if at else value)})
            try:
                read_header(path)
            except BundleError:
                refused += 1
    assert refused > 150


TENSORS = {
    "one is missing": lambda held: held.pop("segmenter.head.2.weight"),
    "one too many": lambda held: held.update({"segmenter.more": torch.zeros(1)}),
    "of no network": lambda held: held.update({"more": torch.zeros(1)}),
    "of another shape": lambda held: held.update({"segmenter.mean": torch.zeros(4)}),
    "of another type": lambda held: held.update({"segmenter.mean": torch.zeros(3, dtype=torch.float64)}),
    "of an odd type": lambda held: held.update({"segmenter.mean": torch.zeros(3, dtype=torch.complex64)}),
    "a statistic alone": lambda held: held.update({"inliers.bank": torch.zeros(5, 16)}),
    "a statistic with a method's name": lambda held: held.update({"inliers.forward": torch.zeros(3)}),
    "a statistic of other classes": lambda held: held.update(
        {f"inliers.{k}": torch.zeros(s) for k, s in (("logit_mean", 4), ("logit_std", 4), ("log_templates", (1, 4)))}
    ),
    "the flow is cut": lambda held: held.pop("flow.step"),
}


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_not_those_of_the_networks_are_refused(bundle_path, tmp_path, change):
    path = changed(bundle_path, tmp_path / "evil.safetensors", lambda tree: tree, change)
    with pytest.raises(BundleError, match="damaged"):
        ModelBundle.load(path)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("segmenter", "encoder"), "vit_giant_patch14_dinov2"),
        (("segmenter", "encoder"), "convnext_xxlarge"),
        (("segmenter", "encoder"), "../model"),
        (("segmenter", "encoder"), "hf-hub:somebody/model"),
        (("segmenter", "decoder_channels"), 4096),
        (("flow", "growth"), 512),
    ],
)
def test_networks_that_the_file_does_not_hold_are_not_built(bundle_path, tmp_path, keys, value, monkeypatch):
    """Their tensors are compared with those of networks without memory."""
    path = changed(bundle_path, tmp_path / "evil.safetensors", put("config", *keys, value=value))
    made = []

    def spying(kind):
        def make(*args, **how):
            network = kind(*args, **how)
            made.append((kind.__name__, next(network.buffers()).device.type))
            return network

        return make

    for kind in (Segmenter, Flow):
        monkeypatch.setattr(f"geood.models.bundle.{kind.__name__}", spying(kind))
    with pytest.raises(BundleError):
        ModelBundle.load(path)
    assert (keys[0].title(), "cpu") not in made


def test_what_is_not_needed_is_not_built(bundle_path, tmp_path):
    """A flow is left out on demand, whatever its tensors are, and the scores are the same."""
    path = changed(bundle_path, tmp_path / "cut.safetensors", lambda tree: tree, lambda held: held.pop("flow.step"))
    whole, without = ModelBundle.load(bundle_path), ModelBundle.load(path, flow=False)
    assert whole.flow is not None and without.flow is None
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(whole.score(image), without.score(image))


def test_an_encoder_that_this_geood_lacks_is_told(bundle_path, tmp_path):
    path = changed(bundle_path, tmp_path / "evil.safetensors", put("config", "segmenter", "encoder", value="resnt10"))
    with pytest.raises(BundleError, match="did you mean") as error:
        ModelBundle.load(path)
    assert isinstance(error.value, GeoodError) and error.value.exit_code == 3


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_a_bundle_can_be_read_by_whom_the_umask_lets(tmp_path, bundle, mask):
    before = os.umask(mask)
    try:
        bundle.save(tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o666 & ~mask
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_threshold_of_no_pixels_is_left_out(tmp_path):
    """Validation without a labelled pixel has none, and JSON has no NaN."""
    saved = make_bundle(tmp_path / "model.safetensors")
    nan = {"jsd": {"0.01": float("nan"), "0.05": 0.5}}
    dataclasses.replace(saved, calibration=nan, metrics={"a": float("nan")}).save(tmp_path / "model.safetensors")
    loaded = ModelBundle.load(tmp_path / "model.safetensors")
    assert loaded.calibration == {"jsd": {"0.05": 0.5}} and loaded.metrics == {}


@pytest.mark.parametrize("connectivity", [4, 8])
def test_polygons_of_an_older_record_were_connected_as_its_config_says(bundle_path, tmp_path, connectivity):
    older = {key: value for key, value in RECORD.items() if key != "connectivity"}
    path = changed(bundle_path, tmp_path / "old.safetensors", put("record", value=older))
    path = changed(path, tmp_path / "set.safetensors", put("config", "predict", "connectivity", value=connectivity))
    assert ModelBundle.load(path).record.connectivity == connectivity


def test_a_record_comes_back_as_it_was_and_may_be_missing(bundle_path, tmp_path, capsys):
    path = changed(bundle_path, tmp_path / "with.safetensors", put("record", value=RECORD))
    record = ModelBundle.load(path).record
    assert record.model_dump(mode="json") == RECORD and (record.blocks, record.images) == (2, 1)
    assert record.km2 == pytest.approx(30 * 0.25 / 1e6)
    again = ModelBundle.load(path).save(tmp_path / "again.safetensors")
    assert again.record == read_header(tmp_path / "again.safetensors").record == record
    assert _run(["info", str(path)], debug=False) == 0
    shown = capsys.readouterr().out
    assert "2 blocks" in shown and "on other ground 0 to 10 %" in shown and "false polygons" in shown
    bare = changed(bundle_path, tmp_path / "bare.safetensors", drop("record"))
    assert ModelBundle.load(bare).record is None
    assert _run(["info", str(bare)], debug=False) == 0 and "train again" in capsys.readouterr().out
