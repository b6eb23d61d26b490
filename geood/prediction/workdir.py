"""Work folder of a prediction: the hidden folder beside the outputs in which everything is made.

One run at a time holds it, by a lock of the operating system that ends with the process, however it ends. Afterwards
the folder is removed, unless it holds finished tiles that a later run can resume from. This module knows nothing of
rasters or models.
"""

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

PUBLISHING = "publishing.json"  # note in a work folder: all outputs are made, and being renamed to their final paths


class WorkDir:
    """The folder in which the outputs of one run are made, as yielded by `work_dir`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[str] = set()
        self.unfinished = False  # set if tiles failed, so that a later run may try them again

    def journal(self, name: str, key: Mapping[str, Any]) -> Journal:
        """Open the journal of one scene."""
        self.used.add(name)
        return Journal(self.folder / f"{name}{SUFFIX}", key)


@contextmanager
def work_dir(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[WorkDir]:
    """Hold the work folder; remove it afterwards, unless the run failed or was interrupted with finished tiles.

    Raises:
        OutputError: another run holds the folder; it holds earlier work and neither `resume` nor `overwrite` is set; or
            it cannot be made.
    """
    existed = folder.is_dir()
    with output_errors(folder):
        folder.mkdir(exist_ok=True)
    try:
        lock = _locked(folder / "lock")
    except BaseException:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    refused = existed and not resume and not overwrite and _work_in(folder)
    work, done = WorkDir(folder), False
    try:
        if refused:
            raise OutputError(
                f"{folder}: holds an unfinished run; add --resume to continue it, or --overwrite to start over"
            )
        if not resume:
            _empty(folder)
        yield work
        done = True
    finally:
        kept = _others(folder, work.used) if done and not work.unfinished else _work_in(folder)
        if os.name == "nt":  # where an open file cannot be removed
            os.close(lock)
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
        elif not done and not refused:
            log.warning("finished tiles are kept in %s: add --resume to continue the run", folder)
        if os.name != "nt":
            os.close(lock)


def _work_in(folder: Path) -> bool:
    """Return whether the folder holds a finished tile, or outputs that only have to be published."""
    return (folder / PUBLISHING).exists() or any(has_tiles(path) for path in folder.glob(f"*{SUFFIX}"))


def _others(folder: Path, used: set[str]) -> bool:
    """Delete the work on the scenes `used`; return whether work on other scenes remains."""
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
    """Lock a file; return its descriptor, which holds the lock until it is closed or the process ends.

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
        log.warning("%s: cannot be locked (%s); make sure that no other run writes this output", path, error.strerror)
    return descriptor
