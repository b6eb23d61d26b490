"""Laws of damaged runs: nothing in them runs, what is whole is gone on from, and the rest is told in one sentence."""

import os
import pickle
import shutil
import zipfile

import pytest
import torch

from geood.errors import ConfigError, OutputError, TrainingError
from geood.models.flows.flow import Flow
from geood.models.segmenter import Segmenter
from geood.training.checkpoints import DamagedCheckpoint, read_checkpoint, steps_at, unfit
from geood.training.run_folder import check_run, make_run, take_stages
from support.bundles import small_config

STAGES = ("segmenter", "flow", "joint")


class Evil:
    """Something that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write(path, **changes):
    """Write a checkpoint like those of Lightning."""
    stored = {
        "epoch": 1,
        "global_step": 4,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {"segmenter.a": torch.arange(5000.0)},
        **dict.fromkeys(("loops", "callbacks", "optimizer_states", "lr_schedulers")),
    } | changes
    path.parent.mkdir(exist_ok=True)
    torch.save({k: v for k, v in stored.items() if v != "left out"}, path)
    return path


def test_a_whole_checkpoint_tells_its_steps_and_weights(tmp_path):
    read = read_checkpoint(write(tmp_path / "a.ckpt"))
    assert read.steps == 4 and torch.equal(read.weights["segmenter.a"], torch.arange(5000.0))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the weights, which torch would take as they are
    path.write_bytes(data)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "half": lambda path: path.write_bytes(path.read_bytes()[:10_000]),
    "flipped": flip,
    "text": lambda path: path.write_text("hello"),
    "another archive": lambda path: zipfile.ZipFile(path, "w").close(),
    "a bare pickle": lambda path: path.write_bytes(pickle.dumps({"global_step": 4})),
    "a list": lambda path: torch.save([1], path),
    "an older version": lambda path: write(path, loops="left out"),
    "no weights": lambda path: write(path, state_dict={"a": 1}),
    "steps of text": lambda path: write(path, global_step="4"),
    "steps below 0": lambda path: write(path, global_step=-1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_told_from_a_whole_one(tmp_path, damage):
    path = write(tmp_path / "a.ckpt")
    damage(path)
    with pytest.raises(DamagedCheckpoint) as error:
        read_checkpoint(path)
    assert 0 < len(str(error.value)) < 150 and str(error.value).isprintable()


def test_every_flipped_byte_of_the_contents_is_noticed(tmp_path):
    path = write(tmp_path / "a.ckpt", state_dict={"a": torch.arange(8.0)})
    with zipfile.ZipFile(path) as archive:
        last = max(info.header_offset for info in archive.infolist())
    data, wanted, missed = path.read_bytes(), read_checkpoint(path), 0
    for i in range(0, last, 37):
        path.write_bytes(data[:i] + bytes([data[i] ^ 16]) + data[i + 1 :])
        try:
            read = read_checkpoint(path)
        except DamagedCheckpoint:
            continue
        assert read.steps == wanted.steps and torch.equal(read.weights["a"], wanted.weights["a"])  # in the padding
        missed += 1
    assert missed < last / 37


@pytest.mark.parametrize("protocol", ["torch", "old torch", "pickle"])
def test_a_checkpoint_of_others_runs_nothing(tmp_path, protocol):
    path, made = tmp_path / "a.ckpt", tmp_path / "made"
    if protocol == "pickle":
        path.write_bytes(pickle.dumps(Evil(made)))
    else:
        torch.save({"state_dict": Evil(made)}, path, _use_new_zipfile_serialization=protocol == "torch")
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(path)
    assert not made.exists()
    torch.load(path, weights_only=False) if protocol != "pickle" else pickle.loads(path.read_bytes())
    assert made.exists()  # so it was a danger


@pytest.mark.parametrize("third", ["joint", "head"])
def test_a_damaged_stage_begins_again_unless_the_third_one_holds_its_weights(tmp_path, caplog, third):
    stages = ("segmenter", "flow", third)
    for stage in stages:
        write(tmp_path / f"{stage}.ckpt")
    assert steps_at(tmp_path, stages) == dict.fromkeys(stages, 4) and not caplog.text
    flip(tmp_path / "segmenter.ckpt")
    assert steps_at(tmp_path, stages) == {"segmenter": None, "flow": 4, third: 4}
    assert "segmenter.ckpt is damaged" in caplog.text and f"goes on from {third}.ckpt" in caplog.text
    caplog.clear()
    flip(tmp_path / f"{third}.ckpt")
    assert steps_at(tmp_path, stages) == {"segmenter": 0, "flow": 4, third: 0}
    assert "stage segmenter begins again" in caplog.text and f"stage {third} begins again" in caplog.text
    (tmp_path / "flow.ckpt").unlink()
    assert steps_at(tmp_path, stages)["flow"] == 0


@pytest.fixture
def run(tmp_path):
    """A run folder that was begun."""
    make_run(tmp_path / "run", small_config())
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.csv", "split.gpkg", "model.safetensors", "checkpoints/flow.ckpt"]
)
def test_a_folder_in_the_place_of_a_file_is_told_before_any_work(run, name):
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    with pytest.raises(OutputError, match=r"is no file, as it is in a run; move it away"):
        check_run(run, small_config(), resume=True)


@pytest.mark.parametrize("name", ["checkpoints", "samples", "tensorboard"])
def test_a_file_in_the_place_of_a_folder_too(run, name):
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).touch()
    with pytest.raises(OutputError, match="is no folder"):
        check_run(run, small_config(), resume=True)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"a,b\n1,2\n", *(b"stage,step,figure,value\n" + row for row in (b"flow,x,val/a,1\n", b"flow\n"))],
)
def test_damaged_metrics_are_told_before_any_work(run, content):
    (run / "metrics.csv").write_bytes(content)
    with pytest.raises(TrainingError, match=r"metrics\.csv: is damaged .*; restore it, or remove it"):
        check_run(run, small_config(), resume=True)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"data: {", b"[1]", b"data: {images: 1}\n"])
def test_a_damaged_config_is_told_with_its_name(run, content):
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run/config\.yaml"):
        check_run(run, small_config(), resume=True)


def test_a_run_without_its_config_is_not_taken_for_one(run):
    (run / "config.yaml").unlink()
    with pytest.raises(OutputError, match=r"not a run of geood, it has no config\.yaml; give another --out"):
        check_run(run, small_config(), resume=True)
    (run / "checkpoints").rmdir()
    (run / "versions.json").unlink()
    (run / ".config.partial.yaml").touch()  # all that is left by a run killed in its first moment
    check_run(run, small_config(), resume=False)


def test_stages_of_a_damaged_run_are_refused(run):
    settings = small_config(train={"segmenter_steps": 4, "flow_steps": 0}, data={"root": str(run)})
    make_run(run, settings)
    path = write(run / "checkpoints" / "segmenter.ckpt")

    def take():
        take_stages(run, settings, segmenter=Segmenter(3, 3, settings.segmenter), flow=None)

    with pytest.raises(ConfigError, match="has other weights than this config's network"):
        take()
    flip(path)
    with pytest.raises(ConfigError, match=r"segmenter\.ckpt cannot be read .* with train\.segmenter_steps: 0"):
        take()


def test_all_stages_of_another_geood_are_named_at_once(run):
    settings = small_config(train={"segmenter_steps": 4, "flow_steps": 4}, data={"root": str(run)})
    make_run(run, settings)
    for stage in ("segmenter", "flow"):
        write(run / "checkpoints" / f"{stage}.ckpt", state_dict={f"{stage}.a": torch.zeros(1)})
    networks = {"segmenter": Segmenter(3, 3, settings.segmenter), "flow": Flow(3, settings.flow, [1 / 255] * 3)}
    with pytest.raises(
        ConfigError, match=r"of its stage segmenter has .* and that of its stage flow has other weights"
    ):
        take_stages(run, settings, **networks)


def test_checkpoints_that_fit_no_network_are_found_by_what_they_hold_of_each(tmp_path):
    networks = {"segmenter": torch.nn.Linear(2, 3), "flow": torch.nn.Linear(1, 1), "none": None}
    held = {
        name: {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name, network in networks.items()
        if network is not None
    }
    write(tmp_path / "c" / "segmenter.ckpt", state_dict=held["segmenter"])
    write(tmp_path / "c" / "flow.ckpt", state_dict=held["flow"] | {"flow.more": torch.zeros(1)})
    write(tmp_path / "c" / "joint.ckpt", state_dict=held["segmenter"] | held["flow"] | {"flow.bias": torch.zeros(2)})
    write(tmp_path / "c" / "head.ckpt", state_dict=held["segmenter"] | held["flow"] | {"none.a": torch.zeros(1)})
    assert unfit(tmp_path / "c", [*STAGES, "head", "missing"], networks) == ["flow", "joint"]
