"""Atomic outputs: checked before any work, written under a hidden name, put in place when complete.

A file that is written in place is half a file for a while, and what ends the process then leaves it so. Here every
output is made beside its target (a rename within one folder cannot be half done) and what is there stays until then.
Without leave to overwrite nothing is replaced, whenever it appeared; with it, the files that programs keep beside the
old one and read as part of it go with it. A link is replaced, never the file that it leads to. A run that takes long
locks a file of its own meanwhile; the lock is the operating system's and ends with the process, however that ends. This
room knows nothing of what is written. A whole run with many outputs is published in `prediction.outputs`.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from geood.errors import OutputError

log = logging.getLogger("geood")

NAME_BYTES = 255  # longest name of a file where the system tells no other limit
HIDDEN_BYTES = 200  # longest name of a hidden file, which leaves room for what libraries append
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_SQLITE = ("{name}-wal", "{name}-shm", "{name}-journal", "{name}.aux.xml")
_RASTER = ("{name}.aux.xml", "{name}.ovr", "{name}.msk")
SIDECARS = {".gpkg": _SQLITE, ".tif": _RASTER}  # what SQLite and GDAL read as part of a file, and which goes with it
WORLD_FILES = {".tif": ("{stem}.tfw", "{stem}.tifw", "{stem}.wld")}  # the same, but they may belong to another image


def check_output(path: str | Path, *, overwrite: bool) -> None:
    """Check that a file can be written, before work is spent on it.

    Raises:
        OutputError: it exists, or a file that would be read as part of it, and `overwrite` is not set; it is a folder;
            its name cannot be written; or its folder is missing or not writable.
    """
    path = Path(path)
    check_name(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path}: exists already; add --overwrite to replace it, or choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; make it first, or choose another place")
    if (beside := sidecars_of(path)) and not overwrite:
        raise OutputError(
            f"{path}: {beside[0].name} lies beside it and would be read as part of it; move it away, add --overwrite "
            "to remove it, or choose another name"
        )
    if beside := sidecars_of(path, WORLD_FILES):
        raise OutputError(
            f"{path}: {beside[0].name} lies beside it and would be read as its place; move it away, or choose another "
            "name"
        )
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OutputError(f"{path}: its folder cannot be written to ({error.strerror}); choose another place") from None


def check_name(path: Path) -> None:
    """Check that a file can have the name of `path`.

    Raises:
        OutputError: it is too long for the disk, or no valid text.
    """
    try:
        size = len(path.name.encode())
    except UnicodeEncodeError:
        raise OutputError(f"{str(path)!a}: its name is no valid text, so GDAL cannot write it; rename it") from None
    if "\0" in str(path):
        raise OutputError(f"{str(path)!a}: a name cannot hold a zero byte; rename it")
    longest = NAME_BYTES
    with suppress(OSError, AttributeError, ValueError):
        longest = os.pathconf(path.parent, "PC_NAME_MAX")
    if size > longest:
        raise OutputError(f"{path}: its name has {size} bytes, and that disk allows {longest}; choose a shorter name")


def sidecars_of(path: Path, patterns: Mapping[str, Sequence[str]] = SIDECARS) -> list[Path]:
    """Return the files beside `path` that programs read as part of it: journals of SQLite, statistics, masks."""
    names = (pattern.format(name=path.name, stem=path.stem) for pattern in patterns.get(path.suffix, ()))
    return [beside for name in names if os.path.lexists(beside := path.with_name(name))]


def hidden_name(name: str, ending: str) -> str:
    """Return the name of a hidden file or folder for the work on `name`; a long name is shortened to a digest."""
    if len(os.fsencode(name)) + len(ending) >= HIDDEN_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}{ending}"


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


def put_in_place(made: Path, final: Path, *, overwrite: bool) -> None:
    """Give a complete file its name on the same disk, and remove what lay beside the file that it replaces.

    Without `overwrite` the name is taken in one step that fails if it exists, so that nothing is replaced that
    appeared a moment ago.

    Raises:
        OSError: the file cannot be put in place.
        OutputError: `final` exists, or a file that would be read as part of it, and `overwrite` is not set.
    """
    beside = sidecars_of(final)
    if overwrite:
        _replace(made, final, beside)
        return
    if beside:
        raise _appeared(beside[0])
    try:
        os.link(made, final)
    except FileExistsError:
        same = os.path.samestat(os.lstat(final), os.lstat(made))  # if a run before was stopped between the two steps
        if not same:
            raise _appeared(final) from None
    except OSError:  # a disk without hard links: the name is taken by an empty file
        try:
            os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            raise _appeared(final) from None
        try:
            os.replace(made, final)
        except BaseException:
            final.unlink()
            raise
        return
    made.unlink()


def _replace(made: Path, final: Path, beside: Sequence[Path]) -> None:
    """Replace a file, and remove what lay beside it once the new one is in place; after an error all is as before."""
    aside = {old: old.with_name(hidden_name(old.name, f".{os.getpid()}.before")) for old in beside}
    try:
        for old, away in aside.items():
            os.replace(old, away)
        os.replace(made, final)
    except BaseException:
        for old, away in aside.items():
            if os.path.lexists(away):
                os.replace(away, old)
        raise
    for away in aside.values():
        away.unlink()


def _appeared(path: Path) -> OutputError:
    return OutputError(
        f"{path}: exists now, which it did not when the work began; move it away, or add --overwrite to replace it"
    )


@contextmanager
def atomic_write(
    path: Path, *, alone: bool = False, keep_same: bool = False, overwrite: bool = True, mode: int = 0o666
) -> Iterator[Path]:
    """Yield a hidden name beside `path`, of the same suffix; the file made there becomes `path` when the block ends.

    After an error `path` is as it was before, and nothing is left beside it. A process that is killed leaves the hidden
    file; where the caller is `alone` in writing `path`, as in a run folder, that has one name and the next write
    replaces it. Errors of the block pass unchanged. With `keep_same` a file of the same bytes stays as it is, with the
    time it was written. The umask takes from `mode` what it takes from the modes of all new files.

    Raises:
        OSError: the file cannot be put in place.
        OutputError: `path` exists and `overwrite` is not set.
    """
    writer = "" if alone else f".{os.getpid()}"
    partial = path.with_name(hidden_name(path.stem, f"{writer}.partial{path.suffix}"))
    partial.unlink(missing_ok=True)
    try:
        yield partial
        settle(partial, mode)
        if not (keep_same and path.exists() and filecmp.cmp(partial, path, shallow=False)):
            put_in_place(partial, path, overwrite=overwrite)
    finally:
        partial.unlink(missing_ok=True)


def settle(made: Path, mode: int = 0o666) -> None:
    """Give a finished file the mode that the umask leaves of `mode`, and return when its bytes are on the disk.

    A library that makes files for its owner alone would hide an output from everybody else, and a file that is renamed
    before its bytes are written may be empty after a power cut.

    Raises:
        OSError: the file is not there, or the disk cannot hold it.
    """
    with made.open("rb+") as file:
        probe = made.with_name(f".{os.getpid()}.mode")
        probe.unlink(missing_ok=True)
        try:
            probe.touch(mode)
            mode = stat.S_IMODE(probe.stat().st_mode)
        finally:
            probe.unlink(missing_ok=True)
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
            made.chmod(mode)
        os.fsync(file.fileno())


@contextmanager
def atomic_files(
    folder: Path, name: str, *, alone: bool = False, overwrite: bool = True, finals: Mapping[str, Path] | None = None
) -> Iterator[Path]:
    """Yield a hidden folder in `folder`; the files made in it get their names when the block ends.

    They move one after the other: to `folder` under their own names, or those named in `finals` to its paths, of which
    the first has to be made; what lies at the others goes if it is not made again. `name` is part of the hidden
    folder's name. After an error of the block none of them has moved and nothing is left. Where the caller is `alone`
    in writing `name`, what a killed process left is removed first.

    Raises:
        OSError: a file cannot be put in place, or was not made.
        OutputError: a file of that name exists and `overwrite` is not set.
    """
    if alone:
        staging = folder / hidden_name(name, ".partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
    else:
        staging = Path(tempfile.mkdtemp(prefix=hidden_name(name, "."), dir=folder))
    try:
        yield staging
        moves = finals or {made.name: folder / made.name for made in staging.iterdir()}
        for i, (made, final) in enumerate(moves.items()):
            if i == 0 or (staging / made).exists():
                settle(staging / made)
                put_in_place(staging / made, final, overwrite=overwrite)
            elif overwrite:
                final.unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a hidden folder beside `path` that takes its place, contents and all, when the block ends.

    After an error the folder that was there before is there again, and nothing is left beside it. Errors of the block
    pass unchanged.

    Raises:
        OutputError: the folder cannot be made or put in place, or it holds something and `overwrite` is not set.
    """
    place = path.resolve()
    endings = (f".{os.getpid()}.{what}" for what in ("partial", "before"))
    partial, before = (place.with_name(hidden_name(place.name, ending)) for ending in endings)
    try:
        for left in (partial, before) if place.exists() else (partial,):
            shutil.rmtree(left, ignore_errors=True)  # by a killed process of this number: in containers most have one
        with output_errors(path):
            partial.mkdir()
        yield partial
        with output_errors(path):
            if place.exists() and not overwrite and (not place.is_dir() or any(place.iterdir())):
                raise _appeared(place)
            if place.exists() and overwrite:
                os.replace(place, before)
            os.replace(partial, place)  # of folders only an empty one is replaced
    finally:
        if before.exists() and not place.exists():
            os.replace(before, place)
        for folder in (partial, before):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def giving_up(lock: int) -> Iterator[None]:
    """Give up a lock of `lock_file`; what was made under it, its file among that, is removed inside, as far as it can.

    The lock is held until then, lest another process takes what is being removed; Windows removes no open file.
    """
    if os.name == "nt":
        os.close(lock)
    try:
        with suppress(OSError):
            yield
    finally:
        if os.name != "nt":
            os.close(lock)


def lock_file(path: Path, *, busy: str) -> int:
    """Lock a file, which is made if need be; return its descriptor, which holds the lock until it is closed.

    A link is not followed. Where the file system has no locks, a warning is logged, and nothing is held.

    Args:
        path: the file, in a folder that exists.
        busy: what the error says if another process holds it.

    Raises:
        OutputError: another process holds it, or did so until just now and has removed the file; or it cannot be made.
    """
    with output_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o644)
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise OutputError(f"{path.parent}: {busy}") from None
    except OSError as error:  # a file system without locks
        log.warning("%s: cannot be locked (%s); make sure that no other run writes this output", path, error.strerror)
    try:
        same = os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        same = False
    if not same:  # the run that held it ended meanwhile, and its file is gone
        os.close(descriptor)
        raise OutputError(f"{path.parent}: another run ended just now; run the command again")
    return descriptor
