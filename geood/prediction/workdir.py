"""Work folder of a prediction: the hidden folder beside the outputs in which everything is made.

All outputs that share a name share a folder. One run at a time holds it, by a lock of the operating system that ends
with the process, however it ends. Afterwards the folder is removed, unless it holds finished tiles that a later run can
resume from. Whoever else may write beside the outputs could have laid something there, so the folder has to be a real
one of the same user, no link in it is followed, and only files that geood makes are removed. This module knows nothing
of rasters or models.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from geood.atomic import giving_up, hidden_name, lock_file, output_errors
from geood.errors import OutputError
from geood.prediction.journal import SUFFIX, Journal, has_tiles

log = logging.getLogger("geood")

ENDING = ".geood"  # of the folder's name
LOCK = "lock"
BUSY = "another run is writing this output now; wait for it, or choose another --out"
PUBLISHING = "publishing.json"  # note in a work folder: all outputs are made, and are being put in place
# What geood makes in it: hidden files and folders, lock, note, journals, outputs, and what SQLite leaves of those.
_MADE = re.compile(
    r"\..+|lock|publishing\.json|.+\.(?:journal|tif|qml|gpkg(?:-\w+)?|geojson|parquet|fgb|csv|vrt|overview\.png)",
    re.S,
)


def work_folder(parent: Path, name: str) -> Path:
    """Return the path of the work folder of the outputs in `parent` that share `name`."""
    return parent / hidden_name(name, ENDING)


class WorkDir:
    """The folder in which the outputs of one run are made, as yielded by `work_dir`.

    `unfinished` is set if tiles failed, so that a later run may try them again; `discard` names the scenes whose tiles
    are of no use any more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[str] = set()
        self.discard: set[str] = set()
        self.unfinished = False

    @property
    def held_bytes(self) -> int:
        """Bytes that files take in the folder, which are those of an earlier run before any work."""
        return sum(p.stat().st_size for p in self.folder.iterdir() if p.is_file())

    def journal(self, name: str, key: Mapping[str, Any], *, tiles: int | None = None) -> Journal:
        """Open the journal of one scene of so many tiles."""
        self.used.add(name)
        return Journal(self.folder / f"{name}{SUFFIX}", key, tiles=tiles)


@contextmanager
def work_dir(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[WorkDir]:
    """Hold the work folder; remove it afterwards, unless the run failed or was interrupted with finished tiles.

    Raises:
        OutputError: another run holds the folder; it is a link, another user's, or holds what geood does not make; it
            holds earlier work and neither `resume` nor `overwrite` is set; or it cannot be made.
    """
    with output_errors(folder):
        existed = _settle(folder)
    try:
        lock = lock_file(folder / LOCK, busy=BUSY)
    except BaseException:
        if not existed:
            with suppress(OSError):
                folder.rmdir()
        raise
    work, done, refused = WorkDir(folder), False, True
    try:
        with output_errors(folder):
            if existed:
                _check_contents(folder)
            held = existed and _work_in(folder)
        if held and not resume and not overwrite:
            raise OutputError(
                f"{folder}: holds an unfinished run; add --resume to continue it, or --overwrite to start over"
            )
        with output_errors(folder):  # what a killed run had half made takes room that this one may need
            _remove(path for path in folder.iterdir() if path.name != LOCK and not (resume and path.is_file()))
        refused = False
        yield work
        done = True
    finally:
        _leave(work, lock, done=done, refused=refused)


def _leave(work: WorkDir, lock: int, *, done: bool, refused: bool) -> None:
    """Give up a work folder: remove it if nothing in it is of use for a later run; a refused one stays as it is."""
    with giving_up(lock):
        _remove(work.folder / f"{name}{SUFFIX}" for name in work.discard)
        if not refused and done:
            if not work.unfinished:
                _remove(path for path in work.folder.iterdir() if _is_done(path, work.used))
            _remove([work.folder / PUBLISHING])  # last, so that a run killed meanwhile can be finished
        if not refused and not _work_in(work.folder):
            _remove(work.folder.iterdir())
            work.folder.rmdir()
        elif not refused and not done:
            log.warning("finished tiles are kept in %s: add --resume to continue the run", work.folder)


def _settle(folder: Path) -> bool:
    """Make the folder, or check that the one there is a real folder of this user; return whether it was there.

    Raises:
        OSError: it cannot be made.
        OutputError: something else lies there.
    """
    try:
        folder.mkdir(mode=0o755)
        return False
    except FileExistsError:
        found = os.lstat(folder)
    what = "a link" if stat.S_ISLNK(found.st_mode) else "" if stat.S_ISDIR(found.st_mode) else "no folder"
    with tempfile.TemporaryFile(dir=folder.parent) as mine:  # a disk may show one owner for everything
        if not what and found.st_uid != os.fstat(mine.fileno()).st_uid:
            what = "another user's"
    if what:
        raise OutputError(f"{folder}: is {what}, where this run would work; remove it, or choose another --out")
    return True


def _check_contents(folder: Path) -> None:
    """Check that a folder holds only what geood makes, and no link.

    Raises:
        OutputError: it holds something else.
    """
    for path in folder.iterdir():
        mode = os.lstat(path).st_mode
        if not _MADE.fullmatch(path.name) or not (stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and path.name[0] == ".")):
            raise OutputError(
                f"{path}: is nothing that geood makes in its work folder, and is left alone; remove the folder, or "
                "choose another --out"
            )


def _work_in(folder: Path) -> bool:
    """Return whether the folder holds a finished tile, or outputs that only have to be published."""
    return (folder / PUBLISHING).exists() or any(has_tiles(path) for path in folder.glob(f"*{SUFFIX}"))


def _is_done(path: Path, used: set[str]) -> bool:
    """Return whether a file is of no use after the work on the scenes `used`; lock and note are kept."""
    return path.name.removesuffix(SUFFIX) in used if path.suffix == SUFFIX else path.name not in (LOCK, PUBLISHING)


def _remove(paths: Iterable[Path]) -> None:
    """Remove files and folders that geood made; a link goes itself, not what it leads to."""
    for path in list(paths):
        if not _MADE.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
