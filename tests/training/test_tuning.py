"""Going on with a model: its networks and bands are taken as they are, and only what fits is taken."""

import dataclasses
import json
import shutil

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from typer.testing import CliRunner

from geood.calibration import measure_ground
from geood.cli.app import app
from geood.config import SCORES
from geood.config.loading import load_config, to_yaml
from geood.config.sections import Config, LossConfig
from geood.constants import IGNORE, UNSTATED
from geood.datasets.sources import open_crops
from geood.errors import ConfigError
from geood.models.bundle import ModelBundle
from geood.models.encoder_bank import usual_distance
from geood.models.flows.flow import Flow
from geood.models.given_bundle import bundle_path_of
from geood.models.inlier_statistics import Inliers
from geood.models.score_maps import EXPERTS
from geood.models.segmenter import Segmenter, SegmenterOutput
from geood.training.first_checks import check_sense
from geood.training.losses import class_nll, joint_loss
from geood.training.pasting import PastedBatch
from geood.training.plans import plans
from geood.training.trainer import train
from geood.training.tuning import kept_bank, take_model
from support.bundles import make_bundle, small_config
from support.rasters import picture, write_raster

SECTIONS = {
    "segmenter": {"outlier": "head"},
    "negatives": {"source": "phase"},
    "score": {"kind": "hybrid", "encoder_bank": 0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene with labels, and the bundle of a run."""
    folder = tmp_path_factory.mktemp("tuning")
    image = picture(160, 160)
    write_raster(folder / "im.tif", image)
    write_raster(folder / "im_labels.tif", np.digitize(image[0], [90, 160]).astype("u1"))
    (folder / "first").mkdir()
    names = open_crops(config(folder)).bands.names
    make_bundle(folder / "first" / "model.safetensors", names=names, **SECTIONS)
    return folder


def config(folder, **train):
    data = {"root": str(folder), "images": ["im.tif"], "labels": ["im_labels.tif"], "crop_px": 64}
    data |= {"crops": 6, "block_m": 40.0, "validation_crops": 2}
    steps = {"head_steps": 2, "third_stage": "head", "batch": 2, "accelerator": "cpu"}
    return small_config(data=data, train=steps | train, **SECTIONS)


@pytest.fixture(scope="module")
def crops(folder):
    return open_crops(config(folder))


def test_a_run_goes_on_with_the_head_alone_and_keeps_bands_and_classes(folder, tmp_path):
    tuned = config(folder, tune_from=str(folder / "first"))
    assert [plan.stage for plan in plans(tuned)] == ["head"]
    before = ModelBundle.load(folder / "first" / "model.safetensors")
    after = ModelBundle.load(train(tuned, tmp_path / "run"))
    assert after.bands == before.bands and after.bands != open_crops(tuned).bands
    was, now = before.segmenter.state_dict(), after.segmenter.state_dict()
    assert {name.split(".")[0] for name in was if not torch.equal(was[name], now[name])} == {"outlier_head"}


def test_without_steps_the_head_is_kept_and_there_is_nothing_to_train(folder, crops):
    tuned = config(folder, tune_from=str(folder / "first"), head_steps=0)
    assert plans(tuned) == []
    segmenter = Segmenter(3, 3, tuned.segmenter)
    take_model(folder / "first", tuned, crops, segmenter=segmenter)
    kept, was = segmenter.state_dict(), ModelBundle.load(folder / "first" / "model.safetensors").segmenter.state_dict()
    assert all(torch.equal(was[name], kept[name]) for name in was)
    check_sense(tuned)
    with pytest.raises(ConfigError, match=r"--from.*head is kept with train\.head_steps 0"):
        check_sense(config(folder, head_steps=0))


def test_a_config_may_ask_for_every_score_that_its_training_makes():
    asked = {"feature_bank": 100, "encoder_bank": 100}
    for kind, row in SCORES.items():
        outlier = row.needs if row.needs in ("head", "class") else "head"
        check_sense(small_config(segmenter={"outlier": outlier}, score=asked | {"kind": kind}))
    for kind in ("encoder_knn", "encoder_ratio", "combined"):
        with pytest.raises(ConfigError, match=f"score.kind {kind}: .*encoder_bank: 2048"):
            check_sense(small_config(segmenter={"outlier": "head"}, score={"kind": kind, "encoder_bank": 0}))


def test_a_head_of_an_earlier_geood_is_kept_with_its_own_strides(folder, tmp_path):
    """Unless others are named: those are refused, as no head of theirs could be kept."""
    old = SECTIONS | {"segmenter": {"outlier": "head", "outlier_strides": [4, 8]}}
    names = ModelBundle.load(folder / "first" / "model.safetensors").bands.names
    make_bundle(tmp_path / "old.safetensors", names=names, **old)
    tuned = config(folder, tune_from=str(tmp_path / "old.safetensors"), head_steps=0)
    for resume in (False, True):
        after = ModelBundle.load(train(tuned, tmp_path / "run", resume=resume))
        assert after.config.segmenter.outlier_strides == [4, 8]
    was, now = ModelBundle.load(tmp_path / "old.safetensors").segmenter.state_dict(), after.segmenter.state_dict()
    assert all(torch.equal(was[name], now[name]) for name in was)
    named = tuned.segmenter.model_copy(update={"outlier_strides": [8, 16]})
    with pytest.raises(ConfigError, match=r"other values of segmenter\.outlier_strides"):
        train(tuned.model_copy(update={"segmenter": named}), tmp_path / "other")


def test_the_networks_are_those_of_the_model_and_the_head_starts_anew(folder, crops):
    torch.manual_seed(9)
    segmenter = Segmenter(3, 3, crops.config.segmenter)
    head = {name: part.clone() for name, part in segmenter.state_dict().items() if name.startswith("outlier_head.")}
    for source in (folder / "first", folder / "first" / "model.safetensors"):
        taken, _, figures, _ = take_model(source, crops.config, crops, segmenter=segmenter)
    bundle = ModelBundle.load(source)
    state = segmenter.state_dict()
    wanted = bundle.segmenter.state_dict() | head
    assert all(torch.equal(tensor, state[name]) for name, tensor in wanted.items())
    assert taken.bands == bundle.bands and taken.training_boxes == crops.training_boxes
    assert figures == {}  # of the first two stages it has none


def test_a_flow_keeps_the_range_of_values_that_it_was_trained_with(folder, crops, tmp_path):
    """That of the model's bands, which data with reviewed ground in it would give another one."""
    sections = SECTIONS | {"negatives": {"source": "flow"}}
    made = make_bundle(tmp_path / "model.safetensors", names=crops.bands.names, **sections)
    tree = crops.config.model_dump() | {"negatives": crops.config.negatives.model_dump() | {"source": "flow"}}
    wanted, segmenter = Config.model_validate(tree), Segmenter(3, 3, crops.config.segmenter)
    taken, flow, *_ = take_model(tmp_path / "model.safetensors", wanted, crops, segmenter=segmenter)
    assert taken.bands == made.bands and taken.bands.step != crops.bands.step

    def edge(of):
        return of.levels[0].ends.edge

    assert torch.equal(edge(flow), edge(made.flow))
    assert not torch.equal(edge(flow), edge(Flow(3, wanted.flow, crops.bands.step)))
    with torch.no_grad():
        drawn = [net.sample(1, 32, 32, generator=torch.Generator().manual_seed(0)) for net in (flow, made.flow)]
    assert torch.equal(*drawn)
    dataclasses.replace(made, flow=None).save(tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match=r"has no flow of this geood for negatives\.source"):
        take_model(tmp_path / "bare.safetensors", wanted, crops, segmenter=segmenter)
    train = wanted.train.model_copy(update={"head_steps": 0, "tune_from": str(tmp_path / "bare.safetensors")})
    kept = wanted.model_copy(update={"train": train})  # a round of review: nothing is drawn from a flow
    assert take_model(tmp_path / "bare.safetensors", kept, crops, segmenter=segmenter).flow is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": {"classes": {0: "land", 1: "road", 2: "house"}}}, "other values of data.classes"),
        ({"segmenter": {"decoder_channels": 24}}, "other values of segmenter.decoder_channels"),
        ({"crops": {"resolution_m": 1.0}}, r"at 0\.5 m per pixel, and these crops have 1; set data\.resolution"),
        ({"bands": {"names": ("one", "two", "three")}}, "other values of bands"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(folder, crops, changed, said):
    crops = dataclasses.replace(crops, **changed.pop("crops", {}))
    crops = dataclasses.replace(crops, bands=dataclasses.replace(crops.bands, **changed.pop("bands", {})))
    tree = crops.config.model_dump()
    for section, keys in changed.items():
        tree[section] |= keys
    altered = type(crops.config).model_validate(tree)
    segmenter = Segmenter(3, 3, crops.config.segmenter)
    with pytest.raises(ConfigError, match=said):
        take_model(folder / "first", altered, crops, segmenter=segmenter)
    with pytest.raises(ConfigError, match="does not exist; name a finished run"):
        take_model(folder / "second", crops.config, crops, segmenter=segmenter)


@pytest.mark.parametrize(
    ("trained", "now", "said"), [(800, 400, "set data.width_px to 800"), (800, 830, None), (None, 400, None)]
)
def test_photographs_of_another_width_are_refused(folder, crops, tmp_path, trained, now, said):
    bundle = ModelBundle.load(folder / "first" / "model.safetensors")
    dataclasses.replace(bundle, resolution=None, photo_width=trained).save(tmp_path / "model.safetensors")
    seen = dataclasses.replace(crops, resolution_m=None, photo_width=now)
    segmenter = Segmenter(3, 3, crops.config.segmenter)
    if said is None:
        take_model(tmp_path, crops.config, seen, segmenter=segmenter)
        return
    with pytest.raises(ConfigError, match=said):
        take_model(tmp_path, crops.config, seen, segmenter=segmenter)


@pytest.mark.parametrize("nodata", [None, 0.0])
def test_scenes_are_read_for_the_model_by_the_nodata_of_its_last_training(folder, crops, tmp_path, nodata):
    """It kept that of the first, so that ground which the crops held for void was scored, or the other way round."""
    bundle = ModelBundle.load(folder / "first" / "model.safetensors")
    first = dataclasses.replace(bundle.bands, nodata=255.0)
    dataclasses.replace(bundle, bands=first).save(tmp_path / "model.safetensors")
    read = dataclasses.replace(crops, bands=dataclasses.replace(crops.bands, nodata=nodata))
    taken, *_ = take_model(tmp_path, crops.config, read, segmenter=Segmenter(3, 3, crops.config.segmenter))
    assert taken.bands == dataclasses.replace(first, nodata=nodata)


def test_two_beginnings_are_one_too_many(folder):
    with pytest.raises(ValueError, match="stages_from and tune_from both say where to begin"):
        config(folder, tune_from="a", stages_from="b")


def test_the_command_names_the_run_to_go_on_with(folder, tmp_path, monkeypatch):
    path, seen = tmp_path / 'next "one".yaml', []
    path.write_text(to_yaml(config(folder)), encoding="utf-8")
    monkeypatch.setattr("geood.training.train", lambda checked, *_, **__: seen.append(checked) or path, raising=False)
    monkeypatch.setattr("geood.cli.app.print_training", seen.append)
    done = CliRunner().invoke(app, ["train", str(path), "--from", str(folder / "first")])
    assert done.exit_code == 0, done.output
    assert seen[0].train.tune_from == str(folder / "first") and load_config(path).train.tune_from is None


def test_inliers_of_no_stated_class_teach_the_head_alone():
    torch.manual_seed(0)
    logits, outlier = torch.randn(2, 3, 8, 8), torch.randn(2, 8, 8, requires_grad=True)
    mask = torch.full((2, 8, 8), IGNORE)
    mask[0, :4], mask[1, 6:] = 1, UNSTATED
    bare = mask.where(mask != UNSTATED, IGNORE)
    assert class_nll(logits, mask) == class_nll(logits, bare)
    nothing = torch.zeros(2, 8, 8, dtype=torch.bool)

    def slope(mask, **keys):
        answer = SegmenterOutput(logits, outlier, logits, logits, logits)
        batch = PastedBatch(logits, mask, nothing, nothing, ())
        loss = joint_loss(answer, batch, None, kind="head", config=LossConfig(**keys)).outlier
        return torch.autograd.grad(loss, outlier)[0]

    taught = slope(mask)
    assert (taught[1, 6:] != 0).all() and (taught[1, :6] == 0).all() and (slope(bare)[1] == 0).all()
    weights = [
        slope(mask, inliers_by_crop=True)[i].abs().sum() / outlier[i].detach()[mask[i] != IGNORE].sigmoid().mean()
        for i in range(2)
    ]
    assert float(weights[0]) == pytest.approx(float(weights[1]), rel=1e-5)


@pytest.fixture(scope="module")
def reviewed(folder):
    """A function of an origin, class id and other keys: a config that goes on, with such ground in the scene."""
    keys = {"segmenter": {"outlier": "head"}, "score": {"kind": "combined", "encoder_bank": 100}}

    def reviewed(origin, class_id, *, workers=0, **score):
        shapes = [shapely.box(500_010.25, 4_649_740.75, 500_022.25, 4_649_752.75)]
        path = folder / f"{origin}_{class_id}.gpkg"
        labels = geopandas.GeoDataFrame({"class_id": [class_id], "origin": [origin]}, geometry=shapes, crs=32633)
        labels.to_file(path, layer="labels")
        data = {"reviewed_images": ["im.tif"], "reviewed_labels": path.name, "workers": workers, "validation_crops": 4}
        base = config(folder, tune_from=str(folder / "first"), head_steps=0).model_dump()
        for section, more in (*keys.items(), ("data", data), ("score", score)):
            base[section] |= more
        return Config.model_validate(base)

    return reviewed


def test_a_round_lowers_the_score_near_false_alarms_and_calibrates_with_it(reviewed, folder, tmp_path):
    """Of any class; the thresholds are those of the lowered score, on validation ground that was not reviewed."""
    runs = {
        name: ModelBundle.load(train(reviewed("false", UNSTATED, **keys), tmp_path / name))
        for name, keys in {"on": {}, "off": {"false_alarm_nats": 0}}.items()
    }
    on, off = runs["on"], runs["off"]
    assert on.inliers.knows_false_alarms and not off.inliers.knows_false_alarms
    assert all(torch.equal(on.inliers.state_dict()[name], kept) for name, kept in off.inliers.state_dict().items())
    with rasterio.open(folder / "im.tif") as source:
        image = torch.from_numpy(on.bands.scale(source.read(), source.dataset_mask() > 0))[None]
    less = off.score(image) - on.score(image)
    assert float(less.min()) >= 0 and float(less[0, 52:68, 28:36].mean()) > 2 and on.threshold <= off.threshold
    crops = open_crops(reviewed("false", UNSTATED))
    again, _ = measure_ground(on, dataclasses.replace(crops, bands=on.bands))
    assert again["combined"] == on.calibration["combined"]


@pytest.mark.parametrize("origin", [pytest.param("left out", marks=pytest.mark.slow), "cell"])
def test_real_things_and_searched_ground_lower_nothing(reviewed, tmp_path, origin):
    asked = reviewed(origin, UNSTATED if origin == "cell" else 1)
    assert not ModelBundle.load(train(asked, tmp_path / "run")).inliers.knows_false_alarms


@pytest.mark.slow
@pytest.mark.usefixtures("forked_loaders")
def test_any_number_of_workers_gives_the_same_statistics(reviewed, tmp_path):
    one, two = (
        ModelBundle.load(train(reviewed("false", 1, workers=n), tmp_path / str(n))).inliers.state_dict() for n in (0, 2)
    )
    assert "encoder_false" in one and set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def rounds(reviewed, tmp_path_factory):
    """Bundles of trainings that keep a head: with a bank of its own, a round, another one, and back to no review."""
    folder, found = tmp_path_factory.mktemp("rounds"), {}
    for name, origin, before in (
        ("first", None, None),
        ("second", "false", "first"),
        ("third", "cell", "second"),
        ("last", None, "third"),
    ):
        asked = reviewed(origin or "false", UNSTATED)
        bare = {} if origin else {"reviewed_images": [], "reviewed_labels": None}
        train_keys = {} if before is None else {"tune_from": str(folder / before)}
        changed = {"data": asked.data.model_copy(update=bare), "train": asked.train.model_copy(update=train_keys)}
        found[name] = ModelBundle.load(train(asked.model_copy(update=changed), folder / name))
    return folder, found


def _bank_of(bundle):
    return {name: tensor for name, tensor in bundle.inliers.state_dict().items() if name.startswith("encoder_")}


def test_a_round_adds_reviewed_places_to_the_bank_of_the_model_and_the_next_replaces_them(rounds):
    _, found = rounds
    first, second, third, last = (_bank_of(found[name]) for name in ("first", "second", "third", "last"))
    assert set(first) == {f"encoder_{name}" for name in ("near", "classes", "shift", "axes")} == set(last)
    assert all(torch.equal(tensor, last[name]) for name, tensor in first.items())
    for bank in (second, third):
        told = bank["encoder_reviewed"] == 1
        assert 0 < int(told.sum()) <= 25 and len(told) == 100 + int(told.sum())
        assert all(torch.equal(bank[name][~told], first[name]) for name in ("encoder_near", "encoder_classes"))
        assert torch.equal(bank["encoder_axes"], first["encoder_axes"])
    assert found["second"].inliers.knows_false_alarms and not found["third"].inliers.knows_false_alarms
    torch.testing.assert_close(second["encoder_reach"], usual_distance(first["encoder_near"]).reshape(1))


def test_a_false_alarm_of_a_stated_class_adds_the_same_places_to_the_bank(rounds, reviewed, tmp_path):
    """It added none: its ground was taken for that of any training crop. Rows are filed under what it was taken for."""
    folder, found = rounds
    asked = reviewed("false", 1)
    asked = asked.model_copy(update={"train": asked.train.model_copy(update={"tune_from": str(folder / "first")})})
    after = _bank_of(ModelBundle.load(train(asked, tmp_path / "run")))
    wanted = _bank_of(found["second"])
    assert set(after) == set(wanted) and all(torch.equal(after[name], tensor) for name, tensor in wanted.items())


def test_a_model_with_two_experts_has_the_third_after_a_round(rounds, reviewed, tmp_path, monkeypatch):
    """Its bank is kept, so all is as if it had had that before; and it is read once."""
    _, found = rounds
    held = {name: tensor for name, tensor in found["first"].inliers.named_buffers() if name != "tail_encoder_ratio"}
    dataclasses.replace(found["first"], inliers=Inliers(held)).save(tmp_path / "model.safetensors")
    asked = reviewed("false", UNSTATED)
    asked = asked.model_copy(update={"train": asked.train.model_copy(update={"tune_from": str(tmp_path)})})
    read, load = [], ModelBundle.load
    with monkeypatch.context() as patch:
        patch.setattr(
            "geood.training.tuning.ModelBundle.load", lambda *given, **how: read.append(given) or load(*given)
        )
        made = train(asked, tmp_path / "run")
    assert len(read) == 1
    after, wanted = ModelBundle.load(made), found["second"]
    assert all(map(after.inliers.knows_tail, EXPERTS)) and after.calibration == wanted.calibration
    assert all(torch.equal(after.inliers.state_dict()[n], tensor) for n, tensor in wanted.inliers.state_dict().items())


def _kept(config, files=()):
    path = bundle_path_of(config.train.tune_from)
    return kept_bank(ModelBundle.load(path), path, config, files)


def test_the_bank_is_made_anew_where_head_size_or_ground_are_others_and_the_log_tells(rounds, reviewed, caplog):
    folder, found = rounds
    asked = reviewed("false", UNSTATED)
    asked = asked.model_copy(update={"train": asked.train.model_copy(update={"tune_from": str(folder / "first")})})

    def with_keys(**sections):
        return Config.model_validate(asked.model_dump() | {n: asked.model_dump()[n] | k for n, k in sections.items()})

    other = {
        "no outlier head is kept": with_keys(train={"head_steps": 2}),
        "score.encoder_bank is 120, and was 100": with_keys(score={"encoder_bank": 120}),
        "other values of data.images, data.anomaly": with_keys(data={"images": ["*.tif"], "anomaly": [9]}),
        "other values of train.seed": with_keys(train={"seed": 3}),
    }
    with caplog.at_level("INFO", "geood"):
        assert all(_kept(config) is None for config in other.values())
        for said, record in zip(other, caplog.records, strict=True):
            assert "is made anew" in record.getMessage() and said in record.getMessage()
        caplog.clear()
        kept = _kept(with_keys(data={"crops": 9, "workers": 1}))
        assert torch.equal(kept.encoder_near, found["first"].inliers.encoder_near) and "is kept" in caplog.text
        assert _kept(with_keys(score={"encoder_bank": 0, "kind": "hybrid"})) is None


def test_the_bank_is_made_anew_where_files_were_added_changed_or_removed(rounds, reviewed, folder, tmp_path, caplog):
    """Keys may be the same: they name folders and patterns, and a file is another where its size or time is."""
    runs, _ = rounds
    shutil.copytree(runs / "first", tmp_path / "first")
    note = tmp_path / "first" / "inputs.json"
    asked = reviewed("false", UNSTATED)
    asked = asked.model_copy(update={"train": asked.train.model_copy(update={"tune_from": str(tmp_path / "first")})})
    files = [folder / "im.tif"]
    assert _kept(asked, files) is not None
    (tmp_path / "added.tif").write_bytes(b"1")
    known = json.loads(note.read_text())
    gone, other = known | {str(tmp_path / "gone.tif"): [1, 1]}, known | {str(files[0]): [1, 1]}
    cases = {
        "added.tif": (known, [*files, tmp_path / "added.tif"]),
        "im.tif": (other, files),
        "gone.tif": (gone, files),
    }
    for name, (noted, given) in cases.items():
        note.write_text(json.dumps(noted))
        caplog.clear()
        with caplog.at_level("INFO", "geood"):
            assert _kept(asked, given) is None and f"{name} was not read then as it is" in caplog.text
    note.unlink()
    assert _kept(asked, files) is not None


def test_a_bank_that_cannot_tell_its_reviewed_rows_or_is_of_an_earlier_geood_is_made_anew(
    rounds, reviewed, tmp_path, caplog
):
    _, found = rounds
    asked, held = reviewed("false", UNSTATED), dict(found["second"].inliers.named_buffers())
    untold = {name: tensor for name, tensor in held.items() if name not in ("encoder_reviewed", "encoder_false")}
    del untold["encoder_reach"]
    narrow = untold | {"encoder_shift": held["encoder_shift"][:48], "encoder_axes": held["encoder_axes"][:48, :32]}
    narrow |= {"encoder_near": held["encoder_near"][:, :32]}
    unordered = {n: tensor for n, tensor in untold.items() if n not in ("encoder_classes", "tail_encoder_ratio")}
    said = {"does not tell which rows": untold, "one of an earlier geood": narrow, "has none, or": unordered}
    for why, tensors in said.items():
        parts = {name: tensor.contiguous() for name, tensor in tensors.items()}
        dataclasses.replace(found["second"], inliers=Inliers(parts)).save(tmp_path / "model.safetensors")
        train = asked.train.model_copy(update={"tune_from": str(tmp_path)})
        with caplog.at_level("INFO", "geood"):
            assert _kept(asked.model_copy(update={"train": train})) is None and why in caplog.text
        caplog.clear()
