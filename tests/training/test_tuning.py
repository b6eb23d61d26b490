"""Going on with a model: its networks and bands are taken as they are, and only what fits is taken."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from geood.cli.app import app
from geood.config.loading import load_config, to_yaml
from geood.constants import IGNORE, UNSTATED
from geood.errors import ConfigError
from geood.models.bundle import ModelBundle
from geood.models.segmenter import SegmenterOutput
from geood.training.losses import LossConfig, class_nll, joint_loss
from geood.training.pasting import PastedBatch
from geood.training.plans import plans
from geood.training.trainer import train
from support.bundles import small_config
from support.rasters import picture, write_raster


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    for name, seed in (("im", 0), ("dark", 1)):
        image = picture(160, 160, seed=seed) // (2 if name == "dark" else 1)
        write_raster(folder / f"{name}.tif", image)
        write_raster(
            folder / f"{name}_labels.tif", np.digitize(picture(160, 160, seed=seed)[0], [90, 160]).astype("u1")
        )
    return folder


def config(folder, image="im", **train):
    data = {"root": str(folder), "images": [f"{image}.tif"], "labels": [f"{image}_labels.tif"], "crop_px": 64}
    data |= {"crops": 8, "block_m": 40.0, "validation_crops": 2}
    steps = {"segmenter_steps": 2, "head_steps": 2, "third_stage": "head", "batch": 2, "accelerator": "cpu"}
    return small_config(
        data=data,
        segmenter={"outlier": "head"},
        negatives={"source": "phase"},
        train=steps | train,
        score={"kind": "hybrid", "encoder_bank": 0},
    )


@pytest.fixture(scope="module")
def first(folder):
    """The bundle of a run."""
    return train(config(folder), folder / "first")


def test_networks_and_bands_of_the_model_are_taken_and_the_classes_stay_as_they_are(folder, first, tmp_path):
    tuned = config(folder, "dark", tune_from=str(first.parent))
    assert [plan.stage for plan in plans(tuned)] == ["head"]
    before, after = ModelBundle.load(first), ModelBundle.load(train(tuned, tmp_path / "run"))
    assert after.bands == before.bands  # the new images are darker, and would be scaled otherwise
    was, now = before.segmenter.state_dict(), after.segmenter.state_dict()
    moved = {name.split(".")[0] for name in was if not torch.equal(was[name], now[name])}
    assert moved == {"outlier_head"}
    assert load_config(tmp_path / "run" / "config.yaml").train.tune_from == str(first.parent)


def test_without_a_step_the_head_is_that_of_the_model(folder, first, tmp_path):
    tuned = config(folder, tune_from=str(first), head_lr=1e-30)
    was, now = (ModelBundle.load(path).segmenter.state_dict() for path in (first, train(tuned, tmp_path / "run")))
    assert all(torch.allclose(was[name].float(), now[name].float(), atol=1e-6) for name in was)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": {"classes": {0: "land", 1: "road", 2: "house"}}}, "data.classes"),
        ({"segmenter": {"decoder_channels": 24}}, "segmenter.decoder_channels"),
        ({"bands": {"indexes": [1, 2]}}, "bands"),
        ({"data": {"resolution": 1.0}}, "at 0.5 m per pixel"),
        ({"train": {"tune_from": "nowhere"}}, "does not exist"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_training(folder, first, tmp_path, changed, said):
    tree = config(folder, tune_from=str(first)).model_dump()
    for section, keys in changed.items():
        tree[section] |= keys
    with pytest.raises(ConfigError, match=said):
        train(type(config(folder)).model_validate(tree), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_beginnings_are_one_too_many(folder):
    with pytest.raises(ValueError, match="stages_from and tune_from both say where to begin"):
        config(folder, tune_from="a", stages_from="b")


def test_the_command_goes_on_with_a_run(folder, first, tmp_path):
    path = tmp_path / 'next "one".yaml'
    path.write_text(to_yaml(config(folder)), encoding="utf-8")
    done = CliRunner().invoke(app, ["train", str(path), "--from", str(first.parent), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert load_config(tmp_path / "run" / "config.yaml").train.tune_from == str(first.parent)


def test_inliers_of_no_stated_class_teach_the_head_alone():
    torch.manual_seed(0)
    logits, outlier = torch.randn(2, 3, 8, 8), torch.randn(2, 8, 8, requires_grad=True)
    mask = torch.full((2, 8, 8), IGNORE)
    mask[0, :4], mask[1, 6:] = 1, UNSTATED
    bare = mask.where(mask != UNSTATED, IGNORE)
    assert class_nll(logits, mask) == class_nll(logits, bare)
    nothing = torch.zeros(2, 8, 8, dtype=torch.bool)

    def slope(mask, **keys):
        answer = SegmenterOutput(logits, outlier, logits, logits)
        batch = PastedBatch(logits, mask, nothing, nothing, ())
        loss = joint_loss(answer, batch, None, kind="head", config=LossConfig(**keys)).outlier
        return torch.autograd.grad(loss, outlier)[0]

    taught = slope(mask)
    assert (taught[1, 6:] != 0).all() and (taught[1, :6] == 0).all() and (slope(bare)[1] == 0).all()
    weights = [
        slope(mask, inliers_by_crop=True)[i].abs().sum() / torch.sigmoid(outlier[i][mask[i] != IGNORE]).mean()
        for i in range(2)
    ]
    assert weights[0] == pytest.approx(float(weights[1]), rel=1e-5)
