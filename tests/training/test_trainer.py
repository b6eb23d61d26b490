"""Laws of training: same seed same weights, a killed run ends as an unbroken one, gradients go where they should."""

import csv
import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from PIL import Image

from geood._version import __version__ as geood_version
from geood.calibration.measurement import sample_ground
from geood.cli.process import _run
from geood.config.loading import load_config, to_yaml
from geood.config.sections import Config, FlowConfig, NegativesConfig, ScoreConfig
from geood.datasets.scene_crops import open_scenes
from geood.datasets.validation_ground import _SceneIds
from geood.errors import ConfigError, DataError, OutputError, TrainingError
from geood.models.bundle import ModelBundle
from geood.models.flows.flow import Flow
from geood.models.score_maps import EXPERTS
from geood.models.segmenter import Segmenter
from geood.prediction.pipeline import predict
from geood.training.calibration import _offsets, calibrated
from geood.training.callbacks import quiet_lightning
from geood.training.plans import Plan, plans
from geood.training.run_folder import (
    append_metrics,
    as_begun,
    check_run,
    kept_defaults,
    last_metrics,
    make_run,
    take_stages,
    trim_metrics,
)
from geood.training.stage import Stage, troubles
from geood.training.trainer import _told_to_resume, train
from support.apart import run_pair_apart, train_apart
from support.bundles import small_config
from support.rasters import picture, write_raster

TESTS = Path(__file__).parents[1]
LENGTHS = {"segmenter_steps": 4, "flow_steps": 2, "joint_steps": 4, "validate_every": 2, "batch": 2}
ONE_EPOCH = {"segmenter_steps": 2, "joint_steps": 2}  # where no law asks for a second


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory) -> Path:
    """Two scenes of 160 x 160 pixels with labels: classes are what the first band says."""
    folder = tmp_path_factory.mktemp("scenes")
    for i in range(2):
        image = picture(160, 160, seed=i)
        labels = np.digitize(image[0], [90, 160]).astype("uint8")
        write_raster(folder / f"im_{i}.tif", image)
        write_raster(folder / f"lab_{i}.tif", labels)
    return folder


def config(folder, *, outlier="head", **train):
    data = {
        "root": str(folder),
        "images": ["im_*.tif"],
        "labels": ["lab_*.tif"],
        "crop_px": 64,
        "crops": 12,
        "block_m": 40.0,
        "validation_crops": 2,
    }
    lengths = {**LENGTHS, "accelerator": "cpu", "average_decay": 0.5}
    return small_config(data=data, segmenter={"outlier": outlier}, train=lengths | train)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def unbroken(scenes_folder, tmp_path_factory) -> Path:
    """The bundle of a run from beginning to end."""
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    assert train_apart(config(scenes_folder), run) == 0
    return run / "model.safetensors"


def test_a_run_leaves_all_that_it_promises(unbroken, scenes_folder):
    run = unbroken.parent
    files = {
        "config.yaml",
        "split.gpkg",
        "metrics.csv",
        "confusion.csv",
        "versions.json",
        "inputs.json",
        "model.safetensors",
    }
    assert files | {"samples", "tensorboard"} <= {p.name for p in run.iterdir()}
    with (run / "confusion.csv").open(newline="") as file:
        head, *rows = list(csv.reader(file))
    assert head[1:] == [row[0] for row in rows] == ["land", "road", "roof"]
    counts = np.array([row[1:] for row in rows], int)
    iou = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
    assert np.nanmean(iou) == pytest.approx(last_metrics(run / "metrics.csv", "joint")["joint/miou"], abs=1e-5)
    assert json.loads((run / "versions.json").read_text())["geood"] == geood_version
    assert set(gpd.read_file(run / "split.gpkg", layer="blocks")["split"]) == {"train", "validation"}
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    figures = {(r["stage"], r["figure"]) for r in rows}
    assert {
        ("segmenter", "val/miou"),
        ("flow", "val/bpd"),
        ("joint", "train/negative"),
        ("joint", "val/outside"),
        ("flow", "val/corr_8"),
        ("flow", "val/real_corr_8"),
        ("joint", "val/real_border"),
        ("joint", "val/pasted_corr_4"),
        ("joint", "val/real_pasted_corr_4"),
    } <= figures
    assert len(list((run / "samples").glob("joint_*.png"))) == 2
    assert list((run / "tensorboard").rglob("events*"))


OTHERS = {
    "bfloat16, the paper's optimizers, no average of the weights, two faded patches": {
        "segmenter": {"encoder": "test_resnet", "decoder_channels": 16, "outlier": "head", "checkpointing": True},
        "flow": {"steps": 1, "layers": 1, "growth": 8, "checkpointing": True},
        "train": {
            "precision": "bf16-mixed",
            "average_decay": 0.0,
            "flow_optimizer": "adamax",
            "encoder_lr_factor": 0.25,
        },
        "score": {"kind": "hybrid", "feature_bank": 100},
        "negatives": {"patches": 2, "feather_px": 2, "patch_min_px": 16, "patch_max_px": 24},
    },
    "the paper's networks and optimizers, an outlier head": {
        "segmenter": {"network": "ldn121", "outlier": "head", "checkpointing": True},
        "flow": {"network": "denseflow-small", "checkpointing": True},
        "data": {"validation_crops": 1},
        "train": {
            "flow_optimizer": "adamax",
            "encoder_lr_factor": 0.25,
            "segmenter_steps": 1,
            "flow_steps": 1,
            "joint_steps": 1,
            "average_decay": 0.0,
        },
        "score": {"kind": "hybrid", "feature_bank": 100},
    },
    "two classes, the head by its likelihood ratio, sizes of the paper": {
        "data": {"classes": {0: "land", 1: "road"}, "label_ids": {2: 1}},
        "negatives": {"source": {"flow": 1.0, "attribution": 1.0}, "sizes": "uniform"},
        "loss": {"outlier": "ratio"},
        "train": {"third_stage": "head", "head_steps": 2},
        "score": {"kind": "ratio"},
    },
    "an outlier class, a flow that stays as it is": {
        "segmenter": {"encoder": "test_resnet", "decoder_channels": 16, "outlier": "class"},
        "train": {"joint_flow_lr": 0.0},
        "score": {"kind": "uno", "smooth_px": 3},
    },
}


QUICK = "bfloat16, the paper's optimizers, no average of the weights, two faded patches"


@pytest.mark.parametrize(
    "sections",
    [pytest.param(made, id=name, marks=[pytest.mark.slow] * (name != QUICK)) for name, made in OTHERS.items()],
)
def test_other_arithmetic_networks_and_outputs_train(scenes_folder, tmp_path, sections):
    settings = config(scenes_folder, **ONE_EPOCH).model_dump(exclude={"version"})
    settings = {section: keys | sections.get(section, {}) for section, keys in settings.items()}
    if "segmenter" in sections:
        settings["segmenter"] = sections["segmenter"]
    if "flow" in sections:
        settings["flow"] = sections["flow"]
    bundle = ModelBundle.load(train(Config.model_validate(settings), tmp_path / "run"))
    assert all(torch.isfinite(tensor).all() for tensor in bundle.flow.state_dict().values())
    assert all(tensor.dtype == torch.float32 for tensor in bundle.segmenter.parameters())
    assert set(bundle.calibration) == set(bundle.scores) and bundle.config.score.kind in bundle.scores
    low, high = bundle.thresholds["0.05"], bundle.thresholds["0.001"]
    assert np.isfinite([low, high]).all() and low <= high
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    bits = [float(row["value"]) for row in rows if row["figure"].endswith("bpd")]
    assert len(bits) >= 2 and all(0 < value < 12 for value in bits)
    assert any(row["figure"] == "train/gap" for row in rows)


@pytest.mark.parametrize(
    ("source", "third"),
    [
        ("phase", "head"),
        pytest.param("folder", "head", marks=pytest.mark.slow),
        pytest.param("crop", "joint", marks=pytest.mark.slow),
        pytest.param("none", "joint", marks=pytest.mark.slow),
    ],
)
def test_other_negatives_need_no_flow(scenes_folder, unbroken, tmp_path, source, third, caplog):
    keys = {"source": source, "folder": "." if source == "folder" else None, "patch_max_px": 32}
    outlier, lengths = "none" if source == "none" else "head", {"third_stage": third, "head_steps": 2, "joint_steps": 2}
    settings = config(scenes_folder, outlier=outlier, stages_from=str(unbroken.parent), **lengths)
    settings = settings.model_copy(update={"negatives": NegativesConfig(**keys)})
    caplog.set_level("INFO", logger="geood")
    bundle = ModelBundle.load(train(settings, tmp_path / "run"))
    assert bundle.flow is None
    assert (tmp_path / "run" / "samples").exists() == (source != "none")  # images with negatives pasted
    with (tmp_path / "run" / "metrics.csv").open() as file:
        figures = {row["figure"]: float(row["value"]) for row in csv.DictReader(file)}
    assert (figures["train/negative"] > 0) == (source != "none") == ("train/gap" in figures)
    assert re.search(rf"{third}: \d+\.\d crops/s, \d+ % of the time waiting for data", caplog.text)


@pytest.mark.usefixtures("forked_loaders")
def test_stages_taken_over_end_in_the_same_bundle_with_any_number_of_workers(unbroken, scenes_folder, tmp_path):
    taken = config(scenes_folder, stages_from=str(unbroken.parent))
    taken = taken.model_copy(update={"data": taken.data.model_copy(update={"workers": 1})})
    train(taken, tmp_path / "run")
    first, second = ModelBundle.load(unbroken), ModelBundle.load(tmp_path / "run" / "model.safetensors")
    assert first.metrics == second.metrics and first.calibration == second.calibration
    for name in ("segmenter", "flow", "inliers"):
        a, b = getattr(first, name).state_dict(), getattr(second, name).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_stages_of_another_run_that_do_not_fit_are_refused(unbroken, scenes_folder, tmp_path):
    from_it = {"stages_from": str(unbroken.parent)}
    for settings, match in (
        (config(scenes_folder, stages_from=str(tmp_path)), "not the folder of a run"),
        (config(scenes_folder, **from_it, seed=1), r"other values of train\.seed"),
        (config(scenes_folder, **from_it).model_copy(update={"flow": FlowConfig(steps=3)}), r"values of flow\.steps"),
    ):
        with pytest.raises(ConfigError, match=match):
            train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    bare = config(scenes_folder, outlier="none", flow_steps=0, joint_steps=0, segmenter_steps=2)
    train(bare, tmp_path / "bare")
    taking = config(scenes_folder, stages_from=str(tmp_path / "bare"))
    with pytest.raises(ConfigError, match=r"has no stage flow; .* afresh here with train\.flow_steps: 0"):
        train(taking, tmp_path / "run")
    longer = tmp_path / "bare" / "config.yaml"
    longer.write_text(longer.read_text().replace("segmenter_steps: 2", "segmenter_steps: 9"))
    with pytest.raises(ConfigError, match="has done 2 of 9 steps of its stage segmenter"):
        train(taking, tmp_path / "run")
    longer.write_text(longer.read_text().replace("segmenter_steps: 9", "segmenter_steps: 2"))
    begun, checkpoint = longer.read_text(), tmp_path / "bare" / "checkpoints" / "segmenter.ckpt"
    longer.write_text(begun.replace("segmenter_steps: 2", "segmenter_steps: 41").replace("every: 2", "every: 5"))
    stored = torch.load(checkpoint, weights_only=True)
    torch.save({**stored, "global_step": 42}, checkpoint)  # seven of eight epochs of six steps
    with pytest.raises(ConfigError, match="has done 42 of 48 steps of its stage segmenter"):
        train(taking, tmp_path / "run")
    longer.write_text(begun)
    afresh = config(scenes_folder, stages_from=str(tmp_path / "bare"), flow_steps=0)
    flow = Flow(3, afresh.flow, (1 / 255,) * 3)
    figures = take_stages(tmp_path / "bare", afresh, segmenter=Segmenter(3, 3, afresh.segmenter), flow=flow)
    assert "segmenter/miou" in figures and not flow.initialized


@pytest.fixture(scope="module")
def headed(scenes_folder, unbroken, tmp_path_factory) -> Path:
    """The bundle of a run with the stage head, on samples of the flow and other negatives, after the first stages."""
    run = tmp_path_factory.mktemp("runs") / "headed"
    assert train_apart(with_head(scenes_folder, stages_from=str(unbroken.parent)), run) == 0
    return run / "model.safetensors"


def with_head(folder, *, source=None, **train):
    """A config whose third stage is `head`; the default source is a mixture with a flow that learns."""
    settings = config(folder, **{"third_stage": "head", "head_steps": 4} | train)
    keys = {"source": source or {"flow": 2.0, "phase": 1.0, "scaled": 1.0}, "decoys": 1}
    return settings.model_copy(update={"negatives": settings.negatives.model_copy(update=keys)})


def test_the_stage_head_leaves_the_classes_as_they_are_to_the_last_bit(scenes_folder, unbroken, headed, tmp_path):
    """Weights and statistics of norms, logits, mIoU; with an average of the weights as well."""
    shut = config(scenes_folder, outlier="none", joint_steps=0, stages_from=str(unbroken.parent))
    closed, open_ = ModelBundle.load(train(shut, tmp_path / "closed")), ModelBundle.load(headed)
    classes = closed.segmenter.state_dict()
    assert all(torch.equal(open_.segmenter.state_dict()[name], tensor) for name, tensor in classes.items())
    assert len(open_.segmenter.state_dict()) > len(classes) and any("running_mean" in name for name in classes)
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(open_.infer(image).logits, closed.infer(image).logits)
    assert open_.metrics["head/miou"] == closed.metrics["segmenter/miou"]
    assert open_.calibration["energy"] == closed.calibration["energy"]
    head = open_.segmenter.outlier_head
    assert head.last.weight.any() and head.norms[0].running_mean.any()
    before = ModelBundle.load(unbroken).flow.state_dict()
    assert not all(torch.equal(tensor, before[name]) for name, tensor in open_.flow.state_dict().items())


def test_combined_iscalibrated_on_validation_inliers(scenes_folder, unbroken, tmp_path):
    settings = with_head(scenes_folder, head_steps=2, stages_from=str(unbroken.parent))
    settings = settings.model_copy(update={"score": ScoreConfig(kind="combined", encoder_bank=200, smooth_px=0)})
    bundle = ModelBundle.load(train(settings, tmp_path / "run"))
    assert len(bundle.inliers.encoder_near) == 200 and set(bundle.scores) >= {"encoder_knn", "combined"}
    # Each expert exceeds a surprisal of s on a share e^-s of inliers. So the first plus the others, weighted, exceeds s
    # on a share of e^-s at least, and at most on one of n e^(-s / W), W the sum of n weights: one exceeds s / W there.
    weights = [weight for kind, weight in EXPERTS.items() if bundle.inliers.knows_tail(kind)]
    for rate in (0.05, 0.01):
        surprisal = bundle.calibration["combined"][str(rate)]
        assert -math.log(rate) - 0.2 < surprisal < sum(weights) * math.log(len(weights) / rate) + 0.2


@pytest.mark.slow
def test_a_run_killed_in_the_stage_head_goes_on_and_ends_as_the_unbroken_one(scenes_folder, unbroken, headed, tmp_path):
    run, settings = tmp_path / "run", with_head(scenes_folder, stages_from=str(unbroken.parent))
    deadly = """
step = Stage.training_step
def deadly(self, batch, index):
    if self.global_step == 3:
        os._exit(9)
    return step(self, batch, index)
Stage.training_step = deadly
"""
    assert train_apart(settings, run, before=deadly) == 9
    assert train_apart(settings, run, resume=True) == 0
    assert digest(run / "model.safetensors") == digest(headed)
    assert (run / "metrics.csv").read_text() == (headed.parent / "metrics.csv").read_text()


def test_an_average_is_what_the_bundle_keeps(unbroken):
    stored = torch.load(unbroken.parent / "checkpoints" / "joint.ckpt", weights_only=True)
    bundle, weight = ModelBundle.load(unbroken), "head.2.weight"
    assert torch.equal(bundle.segmenter.state_dict()[weight], stored["state_dict"][f"segmenter.{weight}"])
    assert not torch.equal(bundle.segmenter.state_dict()[weight], stored["current_model_state"][f"segmenter.{weight}"])


@pytest.mark.parametrize(
    ("section", "keys", "match"),
    [
        ("score", {"kind": "knn"}, "score.kind knn: .*feature_bank"),
        ("score", {"kind": "hybrid"}, "segmenter.outlier: head"),
        ("segmenter", {"outlier": "head"}, "learns from negatives in the third stage, and there are none"),
        ("train", {"third_stage": "head"}, "trains the outlier head, and segmenter.outlier is none; set that to head"),
    ],
)
def test_a_score_or_output_that_nothing_will_serve_is_refused_before_training(
    scenes_folder, tmp_path, section, keys, match
):
    settings = config(scenes_folder, outlier="none", joint_steps=0)
    changed = getattr(settings, section).model_copy(update=keys)
    with pytest.raises(ConfigError, match=match):
        train(settings.model_copy(update={section: changed}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_troubles_are_told_with_what_helps():
    before = {"segmenter/miou": 0.6, "flow/bpd": 3.0}
    fine = {"miou": 0.59, "bpd": 3.1, "outside": 0.02, "spread": 0.1, "real_spread": 0.11}
    assert troubles(fine, before) == [] == troubles({}, {}) == troubles({"miou": 0.1}, {})
    for change, said in (
        ({"outside": 0.5}, "leave the range"),
        ({"spread": 0.001}, "all alike"),
        ({"bpd": 3.9}, "forgets the images"),
        ({"miou": 0.5}, "drown inlier classes"),
    ):
        [trouble] = troubles(fine | change, before)
        assert said in trouble and "lower" in trouble


@pytest.mark.parametrize(
    ("bands", "dtype"),
    [
        (4, "uint16"),
        *(pytest.param(bands, dtype, marks=pytest.mark.slow) for bands, dtype in ((1, "uint8"), (13, "uint16"))),
    ],
)
def test_one_to_thirteen_bands_of_8_or_16_bit_train_and_score(tmp_path, bands, dtype):
    for i in range(2):
        image = picture(160, 160, bands=bands, seed=i, dtype=dtype, high=255 if dtype == "uint8" else 12_000)
        write_raster(tmp_path / f"im_{i}.tif", image)
        write_raster(tmp_path / f"lab_{i}.tif", np.digitize(image[0] / image[0].max(), [0.35, 0.6]).astype("uint8"))
    settings = config(tmp_path, segmenter_steps=1, flow_steps=1, joint_steps=1)
    bundle = ModelBundle.load(train(settings, tmp_path / "run"))
    assert bundle.bands.count == bands and len(bundle.flow.sample(1, 16, 16)[0]) == bands
    with (tmp_path / "run" / "metrics.csv").open() as file:
        bits = [float(row["value"]) for row in csv.DictReader(file) if row["figure"] == "val/bpd"]
    assert all(0 < value < (10 if dtype == "uint8" else 18) for value in bits)


def test_the_bundle_of_a_run_is_usable(unbroken, scenes_folder):
    bundle = ModelBundle.load(unbroken)
    assert bundle.class_ids == (0, 1, 2) and bundle.config == config(scenes_folder)
    assert bundle.resolution == pytest.approx(0.5, rel=1e-2)
    low, middle, high = (bundle.thresholds[rate] for rate in ("0.05", "0.01", "0.001"))
    assert 0 <= low <= middle <= high <= 1
    assert bundle.flow.initialized and {"joint/miou", "flow/bpd"} <= set(bundle.metrics)


def test_a_model_keeps_the_width_at_which_it_saw_photographs(tmp_path, capsys):
    for i in range(4):
        image = picture(96, 128, seed=i)
        for kind, array in (("images", image.transpose(1, 2, 0)), ("labels", np.digitize(image[0], [90, 160]))):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / kind / f"{i}.png")
    data = {"kind": "photos", "root": str(tmp_path), "images": ["images"], "labels": ["labels"], "crop_px": 64}
    lengths = LENGTHS | {"flow_steps": 0, "joint_steps": 0, "segmenter_steps": 2, "accelerator": "cpu"}
    for width in (None, 80):
        sections = {"data": data | {"crops": 4, "width_px": width}, "negatives": {"source": "none"}}
        path = train(small_config(**sections, train=lengths), tmp_path / f"run{width}")
        assert ModelBundle.load(path).photo_width == (width or 128)
        assert _run(["info", str(path)], debug=False) == 0
        assert f"{width or 128} px wide" in capsys.readouterr().out


def validation_inliers(folder, bundle_path, kind, tmp_path):
    """Scores that predict writes of the validation blocks' labelled pixels."""
    blocks = gpd.read_file(bundle_path.parent / "split.gpkg", layer="blocks")
    blocks = blocks[blocks["split"] == "validation"].geometry.union_all()
    found = []
    for path in sorted(folder.glob("im_*.tif")):
        made = [f"score.kind={kind}", "score.smooth_px=0"]
        [written] = predict(
            [path], tmp_path / f"{kind}_{path.name}", bundle_path=bundle_path, threshold=0.0, settings=made
        )
        with rasterio.open(written.scores) as raster:
            rows, cols = np.mgrid[: raster.height, : raster.width] + 0.5
            x, y = raster.transform @ (cols, rows)
            found.append(raster.read(1)[shapely.contains_xy(blocks, x, y)])
    return np.concatenate(found)


def test_thresholds_leave_their_share_of_the_ground_that_predict_writes_above(unbroken, scenes_folder, tmp_path):
    """Of all validation blocks, read as predict reads them, not of some crops."""
    bundle = ModelBundle.load(unbroken)
    scores = validation_inliers(scenes_folder, unbroken, bundle.config.score.kind, tmp_path)
    assert len(scores) == bundle.record.pixels == sum(bundle.record.block_px)
    for rate, threshold in bundle.thresholds.items():
        assert (scores > threshold).mean() <= float(rate)
        below = np.nextafter(np.float16(threshold), np.float16(-1))
        assert (scores > below).mean() > float(rate)  # and no lower threshold would do
    counted = np.array(bundle.record.above).sum(0)
    assert counted.tolist() == [(scores > step).sum() for step in bundle.record.thresholds]


def test_offsets_leave_their_share_of_inlier_pixels_to_the_outlier_head(headed, scenes_folder, tmp_path):
    bundle = ModelBundle.load(headed)
    inliers = validation_inliers(scenes_folder, headed, "outlier", tmp_path).astype(
        np.float16
    )  # as they are drawn from
    assert list(bundle.offsets) == sorted(bundle.offsets, key=float) and bundle.offset == bundle.offsets["0.05"]
    for share, offset in bundle.offsets.items():
        assert (inliers > np.float16(-offset)).mean() <= float(share)
        assert (inliers >= np.float16(-offset)).mean() > float(share)  # and no larger offset would do


def test_without_inliers_to_validate_on_nothing_is_promised_and_it_is_said(headed, scenes_folder, caplog, monkeypatch):
    """No offset, no tails, no threshold, no record."""
    crops, bundle = open_scenes(with_head(scenes_folder)), ModelBundle.load(headed)
    monkeypatch.setattr(_SceneIds, "read", lambda _, part: (np.zeros(part.window[2:], bool),) * 2)
    assert sample_ground(bundle, crops) is None
    assert _offsets(bundle, None) == {} and "no inlier pixel" in caplog.text and "0 is taken" in caplog.text
    bare = calibrated(bundle, crops)
    assert bare.record is None and not any(bare.calibration.values()) and "promises nothing" in caplog.text
    assert dataclasses.replace(bundle, offsets={}).offset == 0.0
    with pytest.raises(ConfigError, match="has no threshold"):
        _ = bare.threshold


def test_a_killed_run_goes_on_and_ends_as_the_unbroken_one(unbroken, scenes_folder, tmp_path):
    run, settings = tmp_path / "run", config(scenes_folder)
    deadly = """
step = Stage.training_step
def deadly(self, batch, index):
    if (self.plan.stage, self.global_step) == ({!r}, {}):
        os._exit(9)
    return step(self, batch, index)
Stage.training_step = deadly
"""
    before = deadly.format("joint", 3)  # and in all stages in the slow tests below
    assert train_apart(settings, run, before=before) == 9
    assert not (run / "model.safetensors").exists()
    assert train_apart(settings, run, resume=True) == 0
    assert digest(run / "model.safetensors") == digest(unbroken)
    assert (run / "metrics.csv").read_text() == (unbroken.parent / "metrics.csv").read_text()


RENAMES = 14  # of a run: its config, then a row and a checkpoint for each epoch of each stage, pictures, the bundle


@pytest.mark.slow
@pytest.mark.parametrize("number", range(RENAMES))
def test_a_run_killed_as_any_of_its_files_gets_its_name_goes_on(unbroken, scenes_folder, tmp_path, number):
    run, settings = tmp_path / "run", config(scenes_folder)
    deadly = f"""
import signal, sys
renames = iter(range({number}))
def hook(event, arguments):
    if event == "os.rename" and {str(run)!r} in str(arguments[1]) and next(renames, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""
    ended = train_apart(settings, run, before=deadly)
    assert ended == -9 or number == RENAMES - 1
    assert train_apart(settings, run, resume=run.exists()) == 0
    assert digest(run / "model.safetensors") == digest(unbroken)
    assert (run / "metrics.csv").read_text() == (unbroken.parent / "metrics.csv").read_text()
    assert not [p for p in run.rglob("*") if "partial" in p.name]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["segmenter", "flow", "joint"])
def test_a_run_killed_by_the_system_in_a_stage_goes_on(unbroken, scenes_folder, tmp_path, stage):
    """By SIGKILL, also in the validation that ends an epoch and while the bundle is completed."""
    settings = config(scenes_folder)
    for place in ("Stage.training_step", "Stage.validation_step"):
        run = tmp_path / place.lower()
        deadly = f"""
import signal
step = {place}
def deadly(self, *arguments):
    if self.plan.stage == {stage!r} and self.global_step:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments)
{place} = deadly
"""
        assert train_apart(settings, run, before=deadly) == -9
        assert train_apart(settings, run, resume=True) == 0
        assert digest(run / "model.safetensors") == digest(unbroken)
        assert not [p for p in run.rglob("*") if "partial" in p.name]


@pytest.mark.slow
def test_a_damaged_run_goes_on_from_what_is_whole_and_ends_as_the_unbroken_one(unbroken, scenes_folder, tmp_path):
    """From the stage before, from a later one that holds all weights, and with a bundle that was cut."""
    run, settings = tmp_path / "run", config(scenes_folder)
    shutil.copytree(unbroken.parent, run)
    (run / "model.safetensors").write_bytes(unbroken.read_bytes()[:-100])
    (run / "checkpoints" / "joint.ckpt").write_bytes(b"cut")
    assert train_apart(settings, run, resume=True) == 0
    assert digest(run / "model.safetensors") == digest(unbroken)
    (run / "model.safetensors").unlink()
    for stage in ("segmenter", "flow"):
        (run / "checkpoints" / f"{stage}.ckpt").write_bytes(b"cut")
    never = "Stage.training_step = lambda *_: os._exit(9)"
    assert train_apart(settings, run, before=never, resume=True) == 0
    assert digest(run / "model.safetensors") == digest(unbroken)


def test_a_checkpoint_of_other_networks_is_told(unbroken, scenes_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(unbroken.parent, run)
    (run / "model.safetensors").unlink()
    path = run / "checkpoints" / "segmenter.ckpt"
    stored = torch.load(path, weights_only=True)
    stored["state_dict"]["segmenter.more"] = torch.zeros(1)
    torch.save(stored, path)
    with pytest.raises(
        TrainingError, match=r"segmenter\.ckpt: does not fit this run .*; remove it, .* segmenter again"
    ):
        train(config(scenes_folder), run, resume=True)
    shutil.copy(unbroken.parent / "checkpoints" / "segmenter.ckpt", path)
    for name in ("flow.ckpt", "joint.ckpt"):  # as of a geood with another flow: one round names both
        stored = torch.load(run / "checkpoints" / name, weights_only=True)
        stored["state_dict"]["flow.more"] = torch.zeros(1)
        torch.save(stored, run / "checkpoints" / name)
    told = r"flow\.ckpt: does not fit .* remove it and joint\.ckpt, which .* begins the stages flow and joint again"
    with pytest.raises(TrainingError, match=told):
        train(config(scenes_folder), run, resume=True)


def test_a_run_is_neither_replaced_nor_continued_with_another_config(unbroken, scenes_folder):
    before = digest(unbroken)
    with pytest.raises(OutputError, match="holds a run already; add --resume"):
        train(config(scenes_folder), unbroken.parent)
    with pytest.raises(OutputError, match=r"other values of train\.seed"):
        train(config(scenes_folder, seed=5), unbroken.parent, resume=True)
    assert train(config(scenes_folder), unbroken.parent, resume=True) == unbroken
    assert digest(unbroken) == before


def test_a_run_is_not_continued_with_other_files_nor_said_to_go_on(
    unbroken, scenes_folder, tmp_path, caplog, monkeypatch
):
    """What it keeps of an older default is told once nothing refuses it."""
    run, labels = tmp_path / "run", scenes_folder / "lab_0.tif"
    shutil.copytree(unbroken.parent, run)
    (run / "model.safetensors").unlink()
    begun = load_config(run / "config.yaml")
    make_run(run, begun.model_copy(update={"predict": begun.predict.model_copy(update={"batch": 3})}))
    caplog.set_level("INFO", "geood")
    with pytest.raises(OutputError, match=r"other values of train\.seed"):
        train(config(scenes_folder, seed=5), run, resume=True)
    state = labels.stat()
    os.utime(labels, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    try:
        with pytest.raises(OutputError, match=r"begun with other files, 1 of 4 .*lab_0\.tif"):
            train(config(scenes_folder), run, resume=True)
    finally:
        os.utime(labels, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert "goes on" not in caplog.text
    monkeypatch.setattr("geood.training.trainer.plans", None)
    with pytest.raises(TypeError):
        train(config(scenes_folder), run, resume=True)
    assert "goes on as it was begun, with predict.batch: 3" in caplog.text


def test_a_folder_with_other_things_is_left_alone(tmp_path, scenes_folder):
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(OutputError, match="not a run"):
        train(config(scenes_folder), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_burnt_labels_alone_are_no_run_and_stand_in_no_ones_way(tmp_path):
    (tmp_path / "run" / "labels").mkdir(parents=True)
    check_run(tmp_path / "run", small_config(), resume=False)
    (tmp_path / "run" / "notes.txt").write_text("")
    with pytest.raises(OutputError, match="exists and is not a run"):
        check_run(tmp_path / "run", small_config(), resume=False)


def test_data_that_cannot_be_used_leaves_no_run(tmp_path, scenes_folder):
    broken = config(scenes_folder)
    broken = broken.model_copy(update={"data": broken.data.model_copy(update={"images": ["nothing_*.tif"]})})
    with pytest.raises(DataError, match="nothing_"):
        train(broken, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_and_says_where(scenes_folder, tmp_path, monkeypatch):
    step = Stage._segmenter_step

    def poisoned(self, batch):
        figures = step(self, batch)
        return {"loss": figures["loss"] * float("nan")} if self.global_step == 3 else figures

    settings = config(scenes_folder, outlier="none", flow_steps=0, joint_steps=0)
    monkeypatch.setattr(Stage, "_segmenter_step", poisoned)
    with pytest.raises(TrainingError) as error:
        train(settings, tmp_path / "run")
    for part in ("stage segmenter", "step 3", "im_", "segmenter.ckpt (step 2)"):
        assert part in str(error.value)
    monkeypatch.setattr(Stage, "_segmenter_step", step)
    assert train(settings, tmp_path / "run", resume=True).exists()


def test_each_term_of_the_joint_step_moves_the_networks_that_it_is_to_move(scenes_folder):
    settings = config(scenes_folder)
    sample = open_scenes(settings).training(0, 2)
    batch = torch.utils.data.default_collate([sample[0], sample[1]])

    def gradients(**keys):
        """Gradients of segmenter and flow after one joint step."""
        torch.manual_seed(0)
        chosen = settings.model_copy(update={"loss": settings.loss.model_copy(update=keys)})
        segmenter, flow = Segmenter(3, 3, chosen.segmenter), Flow(3, chosen.flow, (1 / 255,) * 3)
        flow.initialize(batch["image"])
        Stage(Plan("joint", 1, 2), chosen, segmenter=segmenter, flow=flow)._third_step(batch)["loss"].backward()
        return [
            {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in network.named_parameters()}
            for network in (segmenter, flow)
        ]

    def same(a, b):
        return all(torch.allclose(a[k], b[k], rtol=1e-3, atol=1e-7) for k in a)

    def total(*parts):
        return {k: sum(part[k] for part in parts) for k in parts[0]}

    both = {"negative_to_flow": True, "class_to_flow": True}
    plain, flow_plain = gradients(negative_weight=0.0, flow_weight=0.0)
    with_flow, flow_term = gradients(negative_weight=0.0, flow_weight=1.0)
    with_negative, negative_term = gradients(negative_weight=1.0, flow_weight=0.0)
    all_in, through_all = gradients(negative_weight=1.0, flow_weight=0.0, **both)
    _, class_term = gradients(negative_weight=0.0, flow_weight=0.0, **both)
    assert same(plain, with_flow) and not same(plain, with_negative) and same(with_negative, all_in)
    assert all(not gradient.any() for gradient in flow_plain.values())  # by default the class term is kept out
    assert any(gradient.any() for gradient in class_term.values()) and not same(negative_term, flow_term)
    assert same(through_all, total(negative_term, class_term))  # what is kept out is just what plain autograd adds
    _, kept_out = gradients(negative_weight=1.0, flow_weight=0.0, negative_to_flow=False)
    assert all(not gradient.any() for gradient in kept_out.values())


@pytest.mark.parametrize(("steps", "every"), [(350, 100), (300, 100), (400, 100), (1, 500), (20_000, 500), (999, 250)])
def test_stages_do_the_steps_that_were_asked(scenes_folder, steps, every):
    [made] = plans(config(scenes_folder, segmenter_steps=steps, validate_every=every, flow_steps=0, joint_steps=0))
    assert made.steps == steps and (0.5 <= made.epochs * every / steps <= 2 or steps < every)


def test_a_prime_number_of_steps_is_rounded_up_to_whole_epochs(scenes_folder):
    [made] = plans(config(scenes_folder, segmenter_steps=353, validate_every=100, flow_steps=0, joint_steps=0))
    assert (made.epochs, made.steps, made.asked) == (4, 356, 353)


def test_stages_are_whole_epochs_at_least_as_long_as_asked(scenes_folder):
    lengths = {"segmenter_steps": 1000, "validate_every": 300, "flow_steps": 0, "joint_steps": 10}
    made = plans(config(scenes_folder, **lengths, joint_batch=3))
    assert [(p.stage, p.epochs, p.batch) for p in made] == [("segmenter", 4, 2), ("joint", 1, 3)]
    assert [p.steps for p in made] == [1000, 10]
    lengths |= {"flow_steps": 9}
    sampled = plans(config(scenes_folder, **lengths, batch=8))
    assert [(p.stage, p.batch) for p in sampled] == [("segmenter", 8), ("flow", 3), ("joint", 8)]
    headed = plans(with_head(scenes_folder, **lengths, joint_batch=3, source="phase"))
    assert [(p.stage, p.steps, p.batch) for p in headed] == [("segmenter", 1000, 2), ("head", 4, 3)]


@pytest.mark.parametrize(
    ("third", "launcher"),
    [
        ("head", "torchrun"),
        pytest.param("joint", "torchrun", marks=pytest.mark.slow),
        pytest.param("joint", "lightning", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_one_model_on_different_crops(scenes_folder, unbroken, tmp_path, third, launcher):
    """One process without a place for a patch in the third stage must not make the other wait.

    All stages with `joint`; with `head` that one alone, after stages of another run.
    """
    path, script = tmp_path / "c.yaml", tmp_path / "pair.py"
    taken, stages = str(unbroken.parent), {"segmenter", "flow", "joint"} if third == "joint" else {"head"}
    made = config(scenes_folder, devices=2, **ONE_EPOCH)
    if third == "head":
        made = with_head(scenes_folder, devices=2, head_steps=2, stages_from=taken)
    path.write_text(to_yaml(made), encoding="utf-8")
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import hashlib, json, os, torch
from geood.config.loading import load_config
from geood.training.stage import Stage
from geood.training.trainer import train
from support.apart import spare_effort
spare_effort()
rank, seen, nets = os.environ.get("LOCAL_RANK", "0"), [], {{}}
step, end = Stage.training_step, Stage.on_train_end
def spying(self, batch, index):
    seen.append(hashlib.sha256(batch["image"].numpy().tobytes()).hexdigest())
    if self.plan.stage == "{third}" and rank == "1" and index == 0:
        batch["valid"] = torch.zeros_like(batch["valid"])
    return step(self, batch, index)
def note(self):
    weights = torch.cat([p.detach().flatten() for p in self.parameters()])
    nets[self.plan.stage] = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
Stage.training_step, Stage.on_train_end = spying, note
train(load_config("{path}"), "{tmp_path / "run"}")
with open("{tmp_path}/" + rank + ".json", "w") as file:
    json.dump({{"seen": seen, "nets": nets}}, file)
"""
    )
    if launcher == "lightning":  # which starts the second process
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    else:
        assert run_pair_apart(script) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["nets"] == second["nets"] and set(first["nets"]) == stages
    assert not set(first["seen"]) & set(second["seen"]) and len(set(first["seen"])) == len(first["seen"])
    assert ModelBundle.load(tmp_path / "run" / "model.safetensors").flow.initialized


@pytest.mark.parametrize(
    ("section", "key", "value", "match"),
    [("segmenter", "encoder", "resnt18", "resnet18"), ("train", "accelerator", "gpu", "no GPU")],
)
def test_a_config_that_cannot_run_leaves_no_run(scenes_folder, tmp_path, section, key, value, match):
    if value == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    chosen = config(scenes_folder)
    chosen = chosen.model_copy(update={section: getattr(chosen, section).model_copy(update={key: value})})
    with pytest.raises(ConfigError, match=match):
        train(chosen, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_does_not_change_the_training_may_change_on_resume(unbroken, scenes_folder, tmp_path):
    run, first = tmp_path / "run", config(scenes_folder)
    make_run(run, first)
    eased = first.model_copy(update={"data": first.data.model_copy(update={"workers": 1})})
    check_run(run, eased, resume=True)
    with pytest.raises(OutputError, match=r"loss\.negative_weight"):
        check_run(
            run, first.model_copy(update={"loss": first.loss.model_copy(update={"negative_weight": 1.0})}), resume=True
        )


def test_other_defaults_of_another_version_do_not_change_a_run_that_goes_on(scenes_folder, tmp_path):
    now = config(scenes_folder)
    was = {"loss": {"negative_weight": 0.7}, "predict": {"batch": 3}, "train": {"segmenter_steps": 6}}
    make_run(tmp_path / "run", now.model_copy(update={k: getattr(now, k).model_copy(update=v) for k, v in was.items()}))
    found = as_begun(tmp_path / "run", now, given=now)
    assert (found.loss.negative_weight, found.predict.batch) == (0.7, 3)
    told = kept_defaults(now, found)
    assert f"loss.negative_weight: 0.7 (the default is {now.loss.negative_weight})" in told and "steps" not in told
    assert kept_defaults(now, now) == ""
    with pytest.raises(OutputError, match=r"other values of train\.segmenter_steps;"):  # which was given
        check_run(tmp_path / "run", found, resume=True)
    assert as_begun(tmp_path / "none", now, given=now) is now


def test_a_run_that_was_begun_before_there_was_a_key_goes_on_as_it_began(scenes_folder, tmp_path):
    now, run = config(scenes_folder), tmp_path / "run"
    make_run(run, now)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    before = re.sub(r"  head_light: .*\n|  outlier_strides:\n(  - \d+\n)+", "", text)
    assert before.count("\n") == text.count("\n") - 4
    (run / "config.yaml").write_text(before, encoding="utf-8")
    found = as_begun(run, now, given=now)
    assert (found.train.head_light, now.train.head_light) == (0.0, 1.0)
    assert (found.segmenter.outlier_strides, now.segmenter.outlier_strides) == ([4, 8], [8, 16])
    check_run(run, found, resume=True)
    given = config(scenes_folder, head_light=1.0)
    with pytest.raises(OutputError, match=r"other values of train\.head_light;"):
        check_run(run, as_begun(run, given, given=given), resume=True)
    make_run(run, found)  # as it is then written down, it is known
    assert as_begun(run, now, given=now).train.head_light == 0.0


def test_lightning_speaks_again_after_a_training_that_failed():
    log = logging.getLogger("lightning.pytorch")
    before = log.level
    with pytest.raises(TrainingError), quiet_lightning():
        assert log.level == logging.ERROR
        raise TrainingError("lost")
    assert log.level == before


def test_a_kind_of_score_that_follows_from_a_run_goes_on_with_it_and_its_folder_of_data_stays(scenes_folder, tmp_path):
    tree = config(scenes_folder).model_dump()
    del tree["segmenter"]["outlier"], tree["score"]["kind"]
    now = Config.model_validate(tree)
    assert now.score.kind == "combined"
    was = now.model_copy(
        update={
            "segmenter": now.segmenter.model_copy(update={"outlier": "none"}),
            "score": now.score.model_copy(update={"kind": "jsd"}),
            "data": now.data.model_copy(update={"root": "elsewhere"}),
        }
    )
    make_run(tmp_path / "run", was)
    found = as_begun(tmp_path / "run", now, given=now)
    assert (found.segmenter.outlier, found.score.kind) == ("none", "jsd")
    assert found.data.root == now.data.root


def test_a_run_that_goes_on_with_other_versions_says_so(tmp_path, caplog):
    make_run(tmp_path, small_config())
    make_run(tmp_path, small_config())
    assert not caplog.records
    noted = json.loads((tmp_path / "versions.json").read_text())
    (tmp_path / "versions.json").write_text(json.dumps(noted | {"torch": "1.0", "system": "another"}))
    make_run(tmp_path, small_config())
    assert "torch: 1.0 before" in caplog.text and "another" not in caplog.text


@pytest.mark.parametrize("small_disk", ["1M"], indirect=True)
def test_a_full_disk_stops_the_training_and_keeps_what_is_whole(scenes_folder, small_disk):
    with pytest.raises(OutputError, match="free space"):
        train(config(scenes_folder), small_disk / "run")
    assert not list(small_disk.rglob("*.partial")) and not (small_disk / "run" / "model.safetensors").exists()


def test_metrics_rows_of_undone_work_are_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    append_metrics(path, "flow", 10, {"val/bpd": 4.0, "train/loss": 3.0})
    append_metrics(path, "flow", 20, {"val/bpd": 3.5})
    append_metrics(path, "joint", 5, {"val/miou": 0.5})
    trim_metrics(path, "flow", 10)
    assert last_metrics(path, "flow") == {"flow/bpd": 4.0}
    assert last_metrics(path, "joint") == {"joint/miou": 0.5}


def test_plans_are_values():
    assert dataclasses.is_dataclass(Plan) and Plan("flow", 2, 3) == Plan("flow", 2, 3)


def test_ctrl_c_says_how_to_go_on(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt), _told_to_resume(tmp_path):
        raise KeyboardInterrupt
    assert f"kept in {tmp_path}: add --resume" in caplog.text
