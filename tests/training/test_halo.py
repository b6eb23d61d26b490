"""Laws of the measured halo: its views are the imagery around validation crops, and the bundle comes to know it."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from affine import Affine
from PIL import Image

from geood.datasets import open_crops
from geood.models.bundle import ModelBundle
from geood.models.bundle_header import Reach
from geood.models.reach import LOST, MOST_HALO
from geood.training.halo import with_reach
from support.bundles import make_bundle, small_config
from support.cpu import slow
from support.rasters import HALF_METRE, picture, write_raster

HEIGHT, WIDTH = 200, 240


def make_crops(folder, kind, **predict):
    """Training data of two images, and the images (2, C, H, W)."""
    images = [picture(HEIGHT, WIDTH, seed=i) for i in range(2)]
    for i, image in enumerate(images):
        labels = np.digitize(image[0], [90, 160]).astype("uint8")
        if kind == "scenes":
            place = HALF_METRE @ Affine.translation(i * WIDTH, 0)
            write_raster(folder / f"im_{i}.tif", image, transform=place)
            write_raster(folder / f"lab_{i}.tif", labels, transform=place)
        else:
            for name, array in (("im", image.transpose(1, 2, 0)), ("lab", labels)):
                (folder / name).mkdir(exist_ok=True)
                Image.fromarray(array).save(folder / name / f"{i}.png")
    named = (
        {"images": ["im_*.tif"], "labels": ["lab_*.tif"]} if kind == "scenes" else {"images": ["im"], "labels": ["lab"]}
    )
    data = {
        "kind": kind,
        "root": str(folder),
        "crop_px": 64,
        "crops": 8,
        "block_m": 40.0,
        "validation_crops": 4,
    } | named
    return open_crops(small_config(data=data, predict=predict)), np.stack(images)


def digital(crops, view):
    low, high = (np.array(v)[:, None, None] for v in (crops.bands.low, crops.bands.high))
    return np.rint(view[0].numpy() * (high - low) + low), ((view[0] > 0) & (view[0] < 1)).numpy()


def holds(image, part, known):
    """Whether an image (C, H, W) holds a part (C, h, w) somewhere, where its pixels are known."""
    windows = np.lib.stride_tricks.sliding_window_view(image, part.shape)[0]
    return any(
        ((windows[r, c] == part) | ~known).all() for r in range(windows.shape[0]) for c in range(windows.shape[1])
    )


@pytest.mark.parametrize("kind", ["scenes", *slow("photos")])
def test_views_are_imagery_around_validation_crops_of_either_side(kind, tmp_path):
    crops, images = make_crops(tmp_path, kind)
    views = crops.views(128, 160, number=3, seed=1)
    assert all(view.shape == (1, 3, 128, 160) and view.dtype == torch.float32 for view in views)
    for view in views:
        pixels, known = digital(crops, view)
        assert known.mean() > 0.9 and any(holds(image, pixels, known) for image in images)
    again = crops.views(128, 160, number=3, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(views, again, strict=True))


@pytest.mark.parametrize("kind", ["scenes", "photos"])
def test_beyond_an_image_its_views_are_mirrored(kind, tmp_path):
    crops, images = make_crops(tmp_path, kind)
    [view] = crops.views(320, 512, number=1, seed=0)
    pixels, known = digital(crops, view)
    top, left = (320 - HEIGHT) // 2, (512 - WIDTH) // 2
    expected = [np.pad(i, ((0, 0), (top, top), (left, left)), mode="reflect") for i in images]
    assert any(((pixels == one) | ~known).all() for one in expected)


def test_a_trained_bundle_knows_its_reach_and_takes_its_halo(tmp_path, caplog):
    crops, _ = make_crops(tmp_path, "scenes", halo_px="auto")
    bundle = dataclasses.replace(make_bundle(tmp_path / "m.safetensors"), config=crops.config)
    assert bundle.reach is None and bundle.halo_px == 64
    with caplog.at_level(logging.INFO, "geood"):
        measured = with_reach(bundle, crops)
    reach = measured.reach
    assert measured.halo_px == reach.halo_px <= MOST_HALO and reach.changed >= 0 and reach.seam > 0
    assert f"needs a halo of {reach.halo_px} px" in caplog.text
    assert with_reach(bundle, crops).reach == reach  # measured again it is the same
    loaded = ModelBundle.load(measured.save(tmp_path / "m.safetensors") and tmp_path / "m.safetensors")
    assert loaded.reach == reach and loaded.halo_px == reach.halo_px
    smoothed = loaded.with_settings(["score.smooth_px=20"])
    assert smoothed.halo_px == reach.halo_px + 64  # two windows of 41 px, in steps of 32


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("energy", 1), ("knn", 1), ("hybrid", 2), ("encoder_knn", 3), ("encoder_ratio", 3), ("combined", 4)],
)
def test_the_halo_is_that_of_all_outputs_that_the_score_is_made_of(tmp_path, monkeypatch, kind, outputs):
    """The logits, the outlier logit, and the encoder's two maps."""
    score, seen = {"kind": kind, "feature_bank": 100}, []
    bundle = make_bundle(tmp_path / "m.safetensors", segmenter={"outlier": "head"}, score=score)
    monkeypatch.setattr(
        "geood.training.halo.measured_reach",
        lambda network, *_, **__: seen.append(network(torch.rand(1, 3, 64, 64))) or Reach(halo_px=32, beyond=(0.0,)),
    )
    with_reach(bundle, None)
    assert [len(found) for found in seen] == [outputs]


@pytest.mark.parametrize(
    ("encoder", "seam", "changed", "said"),
    [
        ("mobilenetv3_small_050", 4.0, 0.0, "segmenter.gates: local"),
        ("resnet10t", 1.0, 0.01, "look at a first map"),
        ("mobilenetv3_small_050", None, None, None),
        ("mobilenetv3_small_050", 1.4, 0.004, None),
    ],
)
def test_seams_that_no_halo_mends_are_told_when_training_ends(
    tmp_path, monkeypatch, caplog, encoder, seam, changed, said
):
    bundle = make_bundle(tmp_path / "m.safetensors", segmenter={"encoder": encoder})
    reach = Reach(halo_px=352, beyond=(0.0,) * 11, seam=seam, changed=changed)
    monkeypatch.setattr("geood.training.halo.measured_reach", lambda *_, **__: reach)
    with_reach(bundle, None)
    found = [record.getMessage() for record in caplog.records if "show as seams in maps of" in record.getMessage()]
    assert [said in text for text in found] == ([True] if said else [])


def test_a_config_with_a_narrower_halo_is_warned_of_when_training_ends(tmp_path, caplog):
    crops, _ = make_crops(tmp_path, "scenes", halo_px=0)
    bundle = dataclasses.replace(make_bundle(tmp_path / "m.safetensors"), config=crops.config)
    measured = with_reach(bundle, crops)
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert f"predict.halo_px 0 is less than the {measured.reach.halo_px} px" in record.getMessage()
    assert "100.0 % of what a pixel depends on lies beyond" in record.getMessage()
    assert measured.halo_px == 0 and measured.cut_off == 1 > LOST
