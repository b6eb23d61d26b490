"""The law of the fuzzing sees what breaks it: other errors, odd messages, files left or written elsewhere, hangs."""

import os
import re
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fuzz.law import Case, examine
from fuzz.mutations import damage, edited, odd_json
from geood.errors import ConfigError, GeoodError


def held(run, tmp_path, *, files=None, limit_s=20.0):
    """How one case ends that runs a function of its box."""
    kind = SimpleNamespace(
        case=lambda rng, stock: Case({"given/x": b"of value"} | (files or {}), {}),
        run=lambda box, options, stock: run(box) or [],
        kept=lambda name: name == ".kept",
    )
    before = Path.cwd(), tempfile.tempdir
    ending = examine("made up", kind, 0, stock=None, folder=tmp_path, limit_s=limit_s)
    assert (Path.cwd(), tempfile.tempdir) == before and not list(tmp_path.iterdir())
    return ending


def test_results_and_own_errors_are_within_the_law(tmp_path):
    assert held(lambda box: None, tmp_path)[1:3] == ("fine", None)
    assert held(lambda box: write(box / "made" / "y") or ["y"], tmp_path)[1:3] == ("fine", None)

    def refused(box):
        write(box / "made" / ".kept")
        raise ConfigError("x: got 5; give a 6")

    assert held(refused, tmp_path)[1:3] == ("ConfigError", None)


def write(path):
    path.write_text("y", encoding="utf-8")


def refusal(error, place=None):
    def run(box):
        if place:
            write(box / place)
        raise error

    return run


BROKEN = {
    "another error": (refusal(KeyError("x")), "KeyError at"),
    "an exit": (refusal(SystemExit(1)), "SystemExit at"),
    "no exit code of its own": (refusal(GeoodError("x")), "exit code 1"),
    "a long message": (refusal(ConfigError("x" * 4001)), "4001 characters"),
    "a message that is no text": (refusal(ConfigError("\ud800")), "cannot be written as text"),
    "an output left": (refusal(ConfigError("x"), "made/y"), "left over after ConfigError"),
    "a stray in the current folder": (refusal(ConfigError("x"), "here/y"), r"left over: \['y'\]"),
    "a stray beside the input": (refusal(ConfigError("x"), "given/y"), r"inputs changed or added: \['y'\]"),
    "a changed input": (lambda box: write(box / "given" / "x"), r"inputs changed or added: \['x'\]"),
    "an output too many": (lambda box: write(box / "made" / "y"), r"outputs: \['y'\] where \[\]"),
    "an output too few": (lambda box: ["y"], r"outputs: \[\] where \['y'\]"),
    "a temporary file left": (lambda box: Path(tempfile.mkdtemp()) and [], "left over: "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_the_law_is_seen(what, tmp_path):
    run, told = BROKEN[what]
    fault = held(run, tmp_path).fault
    assert fault and re.search(told, fault)


OUTSIDE = {
    "a file": lambda box, other: write(other / "y"),
    "a descriptor": lambda box, other: os.open(other / "y", os.O_CREAT),
    "a name": lambda box, other: os.rename(box / "given" / "x", other / "y"),
    "a removal": lambda box, other: os.unlink(other / "victim"),
    "a folder": lambda box, other: (other / "y").mkdir(),
    "by a link": lambda box, other: os.symlink(other / "victim", "link") or write(Path("link")),
    "though it is caught": lambda box, other: swallowed(lambda: write(other / "y")),
    "a connection": lambda box, other: connect(),
}


def connect():
    with socket.socket() as opened:
        opened.connect(("127.0.0.1", 9))


def swallowed(run):
    with suppress(BaseException):
        run()


@pytest.mark.parametrize("what", OUTSIDE)
def test_nothing_is_written_outside_the_box(what, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write(other / "victim")
    (tmp_path / "boxes").mkdir()
    assert held(lambda box: OUTSIDE[what](box, other), tmp_path / "boxes").fault.startswith("outside the box: ")
    assert [p.name for p in other.iterdir()] == ["victim"] and (other / "victim").read_text() == "y"


def test_a_hang_is_ended(tmp_path):
    assert "TooSlowError" in held(lambda box: time.sleep(20), tmp_path, limit_s=0.1).fault


def test_mutations_change_something_and_are_the_same_for_the_same_seed():
    data, tree = bytes(range(256)), {"a": [1, 2, {"b": "c"}], "d": 1.5}
    for change, given in ((damage, data), (edited, tree), (odd_json, b'{"a": [1]}')):
        made = [repr(change(given, np.random.default_rng(seed))) for seed in range(50)]
        assert made == [repr(change(given, np.random.default_rng(seed))) for seed in range(50)]
        assert len({*made} - {repr(given)}) > 20
    assert tree == {"a": [1, 2, {"b": "c"}], "d": 1.5}
