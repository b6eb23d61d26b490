"""Laws of the lock of a run folder: one training at a time writes it, and what was made in vain goes."""

import pytest

from geood.errors import OutputError
from geood.training.run_folder import LOCK, alone_in, check_run, make_run
from geood.training.trainer import train
from support.bundles import small_config


def config_of(folder):
    config = small_config()
    return config.model_copy(update={"data": config.data.model_copy(update={"root": str(folder)})})


def test_a_run_that_is_being_trained_is_not_written_by_another_training(tmp_path):
    run, config = tmp_path / "run", config_of(tmp_path)
    with alone_in(run):
        make_run(run, config)
        before = sorted(path.name for path in run.iterdir())
        with pytest.raises(OutputError, match="another training writes this run now"):
            train(config, run, resume=True)
        assert sorted(path.name for path in run.iterdir()) == before
    assert not (run / LOCK).exists() and (run / "config.yaml").exists()


def test_a_run_that_is_being_begun_is_not_begun_twice(tmp_path):
    with alone_in(tmp_path / "run"), pytest.raises(OutputError, match="another training writes this run now"):
        train(small_config(), tmp_path / "run")


def test_folders_that_were_made_in_vain_go_and_others_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    for run in (tmp_path / "mine" / "deep" / "run", tmp_path / "mine"):
        with pytest.raises(OutputError, match="in vain"), alone_in(run):
            raise OutputError("in vain")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_the_lock_that_a_killed_training_left_locks_nothing(tmp_path):
    run, config = tmp_path / "run", config_of(tmp_path)
    run.mkdir()
    (run / LOCK).touch()
    check_run(run, config, resume=False)
    with alone_in(run):
        make_run(run, config)
    check_run(run, config, resume=True)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(OutputError), alone_in(run):
        raise AssertionError("the training began")
    assert not (tmp_path / "thesis.txt").exists()
