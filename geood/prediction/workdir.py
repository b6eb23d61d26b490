"""The work folder of a prediction: one run at a time, resumed or begun anew."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geood.atomic import output_errors
from geood.errors import OutputError
from geood.prediction.journal import SUFFIX, Journal, has_tiles

log = logging.getLogger("geood")

PUBLISHING = "publishing.json"  # in a work folder: all is made, and outputs are getting their names


class WorkDir:
    """The folder in which the outputs of one run are made; got from `work_dir`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[str] = set()
        self.unfinished = False  # set where tiles failed that a later run may try again

    def journal(self, name: str, key: Mapping[str, Any]) -> Journal:
        """The journal of one scene."""
        self.used.add(name)
        return Journal(self.folder / f"{name}{SUFFIX}", key)


@contextmanager
def work_dir(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[WorkDir]:
    """Hold the work folder; afterwards it is gone, unless the run failed or was interrupted with tiles to keep.

    Raises:
        OutputError: another run holds it; an earlier one left work there and neither `resume` nor `overwrite` says what
            to do with that; it cannot be made.
    """
    left = folder.is_dir()
    with output_errors(folder):
        folder.mkdir(exist_ok=True)
    try:
        lock = _locked(folder / "lock")
    except BaseException:
        if not left:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    asked = left and not resume and not overwrite and _work_in(folder)
    place, done = WorkDir(folder), False
    try:
        if asked:
            raise OutputError(
                f"{folder}: an unfinished run lies there; add --resume to go on with it, or --overwrite to begin anew"
            )
        if not resume:
            _empty(folder)
        yield place
        done = True
    finally:
        kept = _others(folder, place.used) if done and not place.unfinished else _work_in(folder)
        if os.name == "nt":  # where an open file cannot be removed
            os.close(lock)
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
        elif not done and not asked:
            log.warning("what is finished is kept in %s: add --resume to go on with it", folder)
        if os.name != "nt":
            os.close(lock)


def _work_in(folder: Path) -> bool:
    """Whether there is a finished tile in the folder, or a run that only has to be put in place."""
    return (folder / PUBLISHING).exists() or any(has_tiles(path) for path in folder.glob(f"*{SUFFIX}"))


def _others(folder: Path, used: set[str]) -> bool:
    """Whether there is work on other scenes than these; what is of these goes."""
    for path in folder.iterdir():
        done = path.name.removesuffix(SUFFIX) in used if path.suffix == SUFFIX else path.name != "lock"
        if done:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return _work_in(folder)


def _empty(folder: Path) -> None:
    with output_errors(folder):
        for path in folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _locked(path: Path) -> int:
    """A file descriptor that holds the lock until it is closed or the process ends.

    Raises:
        OutputError: another process holds it.
    """
    with output_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise OutputError(
            f"{path.parent}: another run is writing this output now; wait for it, or choose another --out"
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("%s: cannot be locked (%s); see that no other run writes this output", path, error.strerror)
    return descriptor
