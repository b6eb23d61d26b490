"""Work in processes of their own, which may be killed: forks of one that has loaded torch and Lightning already.

Loading both takes longer than training on a few crops, or predicting a small scene.
"""

import gc
import multiprocessing
import os
import runpy
import socket
import sys
from multiprocessing import forkserver
from pathlib import Path

import psutil

from geood.config.loading import load_config, to_yaml

FIT_CROPS = 16  # training crops for the inlier statistics of tests
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        "geood.training.trainer",
        "geood.prediction.pipeline",
        "torch.utils.tensorboard",
        "timm",
        "torchgeo.datasets",
        "torchgeo.samplers",
        "distributed",
        "pyarrow.pandas_compat",
        "omegaconf",  # which Lightning loads where it is installed; what is missing is passed over
    ]
)


def start_server() -> int:
    """Start the process that is forked, if it does not run yet; its number."""
    forkserver.ensure_running()
    return forkserver._forkserver._forkserver_pid


def used() -> float:
    """Return the processor time of the process that is forked and of all forks that ended, in seconds."""
    server = forkserver._forkserver._forkserver_pid
    return sum(psutil.Process(server).cpu_times()[:4]) if server else 0.0


def spare_effort(put=setattr):
    """Let training measure the reach of networks on small views, and fit inlier statistics on few crops."""
    from geood.models import reach
    from geood.training import calibration, halo

    least = reach.Effort(128, 1, 1)
    put(halo, "effort_for", lambda _: least)  # which counts every operation of a network; see `test_reach`
    put(calibration, "FIT_CROPS", FIT_CROPS)


def train_apart(settings, run, *, before="", resume=False):
    """Train in a process of its own (with as many threads as any other has), after running some code; its exit code."""
    run.parent.mkdir(exist_ok=True)
    path = run.parent / "config_of_run.yaml"
    path.write_text(to_yaml(settings), encoding="utf-8")
    process = FORKING.Process(target=_train, args=(path, run, before, resume))
    process.start()
    process.join()
    return process.exitcode


def _train(path, run, before, resume):
    gc.freeze()  # objects of the process that was forked, which are shared until they are looked at
    from geood.training.stage import Stage
    from geood.training.trainer import train

    spare_effort()
    exec(before, {"os": os, "Stage": Stage})
    train(load_config(path), run, resume=resume)


def run_pair_apart(script):
    """Run a script in two processes as launchers of distributed training do; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = ({"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": "0"} for rank in "01")
    pair = [FORKING.Process(target=_script, args=(script, place | rank)) for rank in ranks]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    return [process.exitcode for process in pair]


def _script(path, environment):
    gc.freeze()
    os.environ |= environment
    runpy.run_path(str(path))


class CommandApart:
    """A command line (without `geood`) that runs in a process of its own; with the methods of a `Popen`."""

    def __init__(self, arguments, said: Path):
        self.said = said
        self.process = FORKING.Process(target=_command, args=(arguments, said))
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        """The exit code, or None while it runs."""
        return self.process.exitcode

    @property
    def returncode(self):
        """The exit code, or None while it runs."""
        return self.process.exitcode

    def communicate(self, timeout=None):
        """Wait for its end; nothing, and what it wrote to stderr."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, "still running"
        return None, self.said.read_text()


def _command(arguments, said):
    gc.freeze()
    from geood.cli.process import main

    os.setsid()
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["geood", *arguments]
    main()
