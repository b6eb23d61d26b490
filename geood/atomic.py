"""Atomic outputs: checked before any work, written under a hidden name, renamed when complete.

A file that is written in place is half a file for a while, and what ends the process then leaves it so. Here every
output is made beside its target (a rename within one folder cannot be half done) and what is there stays until then.
This room knows nothing of formats. A whole run with many outputs is published in `prediction.outputs`.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from geood.errors import OutputError


def check_output(path: str | Path, *, overwrite: bool) -> None:
    """Check that a file can be written, before work is spent on it.

    Raises:
        OutputError: it exists and `overwrite` is not set, it is a folder, or its folder is missing or not writable.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; add --overwrite to replace it, or choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; make it first, or choose another place")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OutputError(f"{path}: its folder cannot be written to ({error.strerror}); choose another place") from None


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Translate each `OSError` of the block to an `OutputError` that names `path`, and what else could not be opened.

    Raises:
        OutputError: something in the block could not be written.
    """
    try:
        yield
    except OSError as error:
        why, named = error.strerror or str(error), Path(str(error.filename or path))
        if named != path and ".partial" not in named.name:
            why = f"{why}: {named}"
        raise OutputError(
            f"{path}: cannot be written ({why}); free space on that disk, or choose another --out"
        ) from None


@contextmanager
def atomic_write(path: Path, *, alone: bool = False, keep_same: bool = False) -> Iterator[Path]:
    """Yield a hidden name beside `path`, of the same suffix; the file made there replaces `path` when the block ends.

    After an error `path` is as it was before, and nothing is left beside it. A process that is killed leaves the hidden
    file; where the caller is `alone` in writing `path`, as in a run folder, that has one name and the next write
    replaces it. Errors of the block pass unchanged. With `keep_same` a file of the same bytes stays as it is, with the
    time it was written.

    Raises:
        OSError: the file cannot be put in place.
    """
    writer = "" if alone else f".{os.getpid()}"
    partial = path.with_name(f".{path.stem}{writer}.partial{path.suffix}")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        settle(partial)
        if not (keep_same and path.exists() and filecmp.cmp(partial, path, shallow=False)):
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def settle(made: Path) -> None:
    """Give a finished file the mode that the umask gives new files, and return when its bytes are on the disk.

    A library that makes files for its owner alone would hide an output from everybody else, and a file that is renamed
    before its bytes are written may be empty after a power cut.

    Raises:
        OSError: the file is not there, or the disk cannot hold it.
    """
    with made.open("rb+") as file:
        probe = made.with_name(f"{made.name}.mode")
        probe.unlink(missing_ok=True)
        try:
            probe.touch()
            mode = stat.S_IMODE(probe.stat().st_mode)
        finally:
            probe.unlink(missing_ok=True)
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
            made.chmod(mode)
        os.fsync(file.fileno())


@contextmanager
def atomic_files(
    folder: Path, name: str, *, alone: bool = False, before: Callable[[Path], None] = lambda _: None
) -> Iterator[Path]:
    """Yield a hidden folder in `folder`; the files made in it move to `folder` when the block ends.

    They replace files of the same names one after the other, after `before` was called with the hidden folder. `name`
    is part of the hidden folder's name. After an error none of them has moved and nothing is left. Where the caller is
    `alone` in writing `name`, what a killed process left is removed first.

    Raises:
        OSError: a file cannot be put in place.
    """
    if alone:
        staging = folder / f".{name}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
    else:
        staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
    try:
        yield staging
        before(staging)
        for made in staging.iterdir():
            os.replace(made, folder / made.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path` that takes its place, contents and all, when the block ends.

    After an error the folder that was there before is there again, and nothing is left beside it. Errors of the block
    pass unchanged.

    Raises:
        OutputError: the folder cannot be made or put in place.
    """
    place = path.resolve()
    partial, before = (place.with_name(f".{place.name}.{os.getpid()}.{what}") for what in ("partial", "before"))
    try:
        with output_errors(path):
            partial.mkdir()
        yield partial
        with output_errors(path):
            if place.exists():
                os.replace(place, before)
            os.replace(partial, place)
    finally:
        if before.exists() and not place.exists():
            os.replace(before, place)
        for folder in (partial, before):
            shutil.rmtree(folder, ignore_errors=True)
