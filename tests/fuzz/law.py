"""The law that every case is held to, and the guards that see when it is broken.

A case runs in a box, a folder with `given/` (its inputs), `made/` (its outputs), `here/` (the current folder) and
`tmp/` (for temporary files). Python's audit hook tells of files that are opened for writing, renamed, removed or linked
outside the box, and of connections; those raise before they happen. What C libraries write is seen afterwards, where it
lies in the box.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geood.errors import GeoodError

LONGEST_MESSAGE = 4000  # characters
MOST_MEMORY = 1 << 30  # bytes by which a case may raise this process's peak
FINE = "fine"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ONE_PATH = {"os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.rmtree"}
_TWO_PATHS = {"os.rename", "os.link", "os.symlink"}


class Case(NamedTuple):
    """Inputs of one run: files by their place in the box (`given/x.tif`), and options, which are JSON values."""

    files: dict[str, bytes]
    options: dict[str, Any]


class Ending(NamedTuple):
    """How a case ended: `fine` or the name of geood's error, and how it broke the law (None: it did not)."""

    seed: int
    outcome: str
    fault: str | None
    seconds: float


class TrespassError(BaseException):
    """Write outside the box, or connection to another machine."""


class TooSlowError(BaseException):
    """Case beyond its time."""


def examine(name: str, kind: Any, seed: int, *, stock: Any, folder: Path, limit_s: float) -> Ending:
    """Run one case of a kind in a box in `folder`, which is removed afterwards."""
    case, box = case_of(name, kind, seed, stock), folder / f"{name}_{seed}"
    lay(case, box)
    before, peak, start = _contents(box / "given"), _peak(), time.monotonic()
    try:
        outcome, fault = _outcome(kind, case, box, stock, limit_s)
        fault = (
            fault
            or _left(box, before)
            or ("memory: the peak rose by a gigabyte" if _peak() - peak > MOST_MEMORY else None)
        )
    finally:
        shutil.rmtree(box, ignore_errors=True)
    return Ending(seed, outcome, fault, time.monotonic() - start)


def case_of(name: str, kind: Any, seed: int, stock: Any) -> Case:
    """Return the case of a seed, which is the same on every machine."""
    with warnings.catch_warnings():  # of odd numbers
        warnings.simplefilter("ignore")
        case: Case = kind.case(np.random.default_rng([zlib.crc32(name.encode()), seed]), stock)
    return case


def lay(case: Case, box: Path) -> None:
    """Write the files of a case into its box."""
    for part in ("given", "made", "here", "tmp"):
        (box / part).mkdir(parents=True)
    for place, data in case.files.items():
        path = box / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _outcome(kind: Any, case: Case, box: Path, stock: Any, limit_s: float) -> tuple[str, str | None]:
    strays: list[str] = []
    try:
        with _alarm(limit_s), _guarded(box, strays), _inside(box), _quiet():
            expected = kind.run(box, case.options, stock)
        outcome, fault = FINE, None
        if (found := {p.name for p in (box / "made").iterdir()}) != set(expected):
            fault = f"outputs: {sorted(found)} where {sorted(expected)} were to be"
    except GeoodError as error:
        outcome, fault = type(error).__name__, _fault_of(error)
        kept = getattr(kind, "kept", lambda _: False)
        if others := sorted(p.name for p in (box / "made").iterdir() if not kept(p.name)):
            fault = fault or f"left over after {outcome} ({str(error)[:200]}): {others}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        outcome = type(error).__name__
        fault = f"{outcome} at {_place(error)}: {str(error)[:300]}"
    return outcome, f"outside the box: {strays[0]}" if strays else fault


def _fault_of(error: GeoodError) -> str | None:
    """Return what is wrong with one of geood's own errors: its exit code or its message."""
    text, name = str(error), type(error).__name__
    if error.exit_code not in (2, 3, 4, 130):
        return f"{name} at {_place(error)} has exit code {error.exit_code}"
    if not text or len(text) > LONGEST_MESSAGE:
        return f"length of the message of {name} at {_place(error)}: {len(text)} characters, {text[:200]!r}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"message of {name} at {_place(error)} cannot be written as text: {text[:200]!r}"
    return None


def _place(error: BaseException) -> str:
    """Return the last line of geood that an error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"{os.sep}geood{os.sep}" in f.filename and "site-packages" not in f.filename]
    last = (own or frames)[-1]
    return f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno}"


def _left(box: Path, before: dict[str, bytes]) -> str | None:
    """Return what a case changed in its inputs, or left in the current folder or that of temporary files."""
    after = _contents(box / "given")
    if changed := sorted(name for name in {*before, *after} if before.get(name) != after.get(name)):
        return f"inputs changed or added: {changed}"
    left = sorted(p.name for part in ("here", "tmp") for p in (box / part).iterdir() if p.name != "dask-scratch-space")
    return f"left over: {left}" if left else None


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _alarm(limit_s: float) -> Iterator[None]:
    """Raise in the block after a time, if this is the main thread."""

    def late(*_: Any) -> None:
        raise TooSlowError(f"not done after {limit_s:g} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what is logged."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _inside(box: Path) -> Iterator[None]:
    """Make the box's folders the current one and that of temporary files."""
    folder, temporary = os.getcwd(), tempfile.tempdir
    os.chdir(box / "here")
    tempfile.tempdir = str(box / "tmp")
    try:
        yield
    finally:
        os.chdir(folder)
        tempfile.tempdir = temporary


_box: str | None = None
_strays: list[str] = []
_hooked = False


@contextmanager
def _guarded(box: Path, strays: list[str]) -> Iterator[None]:
    """Keep this process from writing outside a box, and from connecting anywhere; note each try in `strays`."""
    global _box, _strays, _hooked
    if not _hooked:  # a hook cannot be taken back
        sys.addaudithook(_audit)
        _hooked = True
    _box, _strays = os.path.realpath(box), strays
    try:
        yield
    finally:
        _box = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _box is None:
        return
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, int) and flags & _WRITES:
            _check(event, os.path.realpath(os.fspath(path)))
    elif event in _ONE_PATH or event in _TWO_PATHS:
        within = [argument for argument in arguments if isinstance(argument, int) and argument >= 0]
        for path in arguments[: 2 if event in _TWO_PATHS else 1]:
            if isinstance(path, int) or (within and not os.path.isabs(os.fspath(path))):
                continue  # an open file, or a name within an open folder
            if event == "os.symlink" and path is arguments[0]:
                continue  # what a link says
            folder, name = os.path.split(os.fspath(path))
            _check(event, os.path.join(os.path.realpath(folder), name))
    elif event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[0].type == 1:
        _check(event, str(arguments[1]))


def _check(event: str, place: str | bytes) -> None:
    text = os.fsdecode(place)
    if _box and not text.startswith(_box + os.sep) and text != os.devnull and "__pycache__" not in text:
        _strays.append(f"{event} {text}")
        raise TrespassError(f"{event} {text}")
