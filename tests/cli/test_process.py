"""The command line: help without torch, exit codes, errors on one screen."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from geood._version import __version__
from geood.cli.process import _run
from support.rasters import picture, write_raster

ROOT = Path(__file__).parents[2]


def geood(*arguments, cwd=None):
    command = [sys.executable, "-m", "geood", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.parametrize("verb", [[], ["predict"], ["export"], ["data", "list"]])
def test_help_has_a_short_name(verb, capsys):
    assert _run([*verb, "-h"], debug=False) == 0
    short = capsys.readouterr().out
    assert _run([*verb, "--help"], debug=False) == 0
    assert short == capsys.readouterr().out and "Usage: geood" in short


def test_a_shell_completes_verbs_and_options():
    for line, wanted in (
        ("geood pol", "polygonize"),
        ("geood export --t", "--to"),
        ("geood export x --to d", "deepness"),
    ):
        env = {"_GEOOD_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        command = [sys.executable, "-m", "geood"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | env)
        assert wanted in done.stdout.split(), done.stderr
    # Without this, typer looks for the shell among the parents of the process, whatever they are.
    named = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "geood", "--show-completion", "bash"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=named)
    assert "_GEOOD_COMPLETE=complete_bash" in shown.stdout, shown.stderr


def test_version_and_help():
    done = geood("--version")
    assert done.returncode == 0 and done.stdout.strip() == f"geood {__version__} (distribution geood-toolkit)"
    shown = geood("--help").stdout
    for verb in ("demo", "train", "predict", "polygonize", "evaluate", "info"):
        assert re.search(rf"^\W*{verb}\b", shown, re.MULTILINE), verb


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["predict"], 2, "SCENE"),
        (["nonsense"], 2, "nonsense"),
        (["train", "none.yaml"], 2, "none.yaml: no such config file"),
        (["info", "none.safetensors"], 3, "none.safetensors"),
        (["info", "none.tif"], 3, "none.tif"),
        (["predict", "none.tif", "--out", "x.gpkg", "--model", "none.safetensors"], 3, "none.safetensors"),
        (["predict", "none.tif", "--out", "x.gpkg"], 2, "no model"),
        (["evaluate", "nothing", "."], 2, "no such data set"),
        (["polygonize", "none.tif", "--out", "x.png"], 2, ".gpkg"),
    ],
)
def test_errors_are_one_message_and_a_code(tmp_path, monkeypatch, capsys, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    assert _run(arguments, debug=False) == code
    text = capsys.readouterr().err
    assert said in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_a_bug_is_called_one_and_debug_shows_where(monkeypatch, capsys):
    import geood.models

    monkeypatch.setattr(geood.models, "read_header", lambda path: 1 / 0)
    assert _run(["info", str(ROOT / "README.md")], debug=False) == 1
    assert "bug in geood" in capsys.readouterr().err
    assert _run(["info", str(ROOT / "README.md")], debug=True) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_debug_is_taken_anywhere_on_the_line(tmp_path):
    done = geood("info", tmp_path / "none.safetensors", "--debug")
    assert done.returncode == 3 and "Traceback" in done.stderr


def test_the_newest_bundle_is_taken_and_said(tmp_path, bundle_path, monkeypatch, capsys):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(bundle_path.read_bytes())
    scene = write_raster(tmp_path / "s.tif", picture(64, 64))
    monkeypatch.chdir(tmp_path)
    assert _run(["predict", str(scene), "--out", "o.tif"], debug=False) == 0
    assert "runs/mine/model.safetensors (the newest" in capsys.readouterr().out


COLLECTED = """
import gc, sys, weakref
import geood.cli.process as process

usual, runs, watching = gc.get_threshold(), [], len(gc.callbacks)
sys.argv[1:] = ["--version"]
try:
    process.main()
except SystemExit:
    pass
gc.callbacks.append(lambda phase, told: runs.append(told["generation"]))
start = [[] for _ in range(process.LOADED - 100_000)]
print(len(runs), gc.isenabled())
later = [[] for _ in range(200_000)]
print(gc.get_threshold() == usual, gc.get_freeze_count() > len(start), len(gc.callbacks) == watching + 1, bool(runs))

class Loop:
    pass

loop = Loop()
loop.own, found = loop, weakref.ref(loop)
del loop
later += [[] for _ in range(1_000)]
print(found() is None)
"""


def test_garbage_is_looked_for_after_the_start_and_then_as_usual():
    done = subprocess.run([sys.executable, "-c", COLLECTED], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[1:-1] == ["0 True", "True True True True", "True"]
