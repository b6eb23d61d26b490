"""Files that a training reads, noted in its run folder: a run goes on with those that it was begun with.

Crops are read until the last step, and a run that goes on draws them anew. With files that were replaced in between,
one part of its steps would be on the one and one on the other data, and nothing would tell. So `inputs.json` holds the
size and the time of writing of each file, those that a VRT is read from included. Labels that were burnt have a digest
of what was drawn in their names, which tells more: the programs that show a GeoPackage write into it. Contents are not
read, so other pixels of the same size and time are not noticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from geood.atomic import atomic_write
from geood.errors import DataError, OutputError, shown
from geood.geo.paths import files_of, gdal_name

NOTE = "inputs.json"
Inputs = dict[str, list[int]]  # size in bytes and time of writing in nanoseconds, by path; none of what was burnt


def inputs_of(run: Path, files: Iterable[Path]) -> Inputs:
    """Return what is noted of files; those below the run folder are the run's own, and are told by their names.

    Raises:
        DataError: a file is gone, or a VRT cannot be read any more.
    """
    found: Inputs = {}
    for path in dict.fromkeys(part for file in files for part in _parts(file)):
        if path.is_relative_to(run):
            found[path.relative_to(run).as_posix()] = []
            continue
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be looked at ({error.strerror}); is its drive still there?") from None
        found[str(path)] = [state.st_size, state.st_mtime_ns]
    return found


def _parts(path: Path) -> Iterator[Path]:
    """Yield a file, and those that a VRT is read from, without the statistics that programs write beside them."""
    yield path
    if path.suffix.lower() == ".vrt":
        yield from (part for part in files_of(gdal_name(path)) if not part.name.endswith(".aux.xml"))


def check_inputs(run: Path, now: Inputs) -> None:
    """Check that the files of a run are those that it was begun with, as far as it notes them.

    Raises:
        OutputError: they are not, or the note is damaged.
    """
    before = _noted(run)
    if before is None:
        return
    changed = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    if changed:
        raise OutputError(
            f"{run}: was begun with other files, {len(changed)} of {len({**before, **now})} differ by size or time of "
            f"writing, such as {shown(changed[0], most=500)}; put those back or give another --out, or remove "
            f"{run / NOTE} to go on with what is there now"
        )


def changed_since(run: Path, files: Iterable[Path]) -> list[str]:
    """Return which of `files` a run did not read as they are, and what it read and is gone; none without a note.

    Labels that were burnt are told by their names, which hold a digest of what was drawn.

    Raises:
        DataError: a file is gone, or a VRT cannot be read any more.
        OutputError: the note is damaged.
    """
    before = _noted(run)
    if before is None:
        return []
    burnt = {Path(path).name for path, state in before.items() if not state}
    now = inputs_of(run, files)
    others = [path for path, state in now.items() if state != before.get(path) and Path(path).name not in burnt]
    data = (path for path, state in before.items() if state and not path.endswith(".safetensors"))
    return others + [path for path in data if not Path(path).exists()]


def _noted(run: Path) -> Inputs | None:
    """Return what a run folder notes of its files; None without a note.

    Raises:
        OutputError: the note is damaged.
    """
    note = run / NOTE
    if not note.exists():
        return None
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError(f"it holds a {type(before).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(
            f"{note}: is damaged ({shown(error)}); remove it to go on with the files that are there"
        ) from None
    return before


def note_inputs(run: Path, now: Inputs) -> None:
    """Note the files of a run in its folder, unless that was done when it was begun."""
    note = run / NOTE
    if not note.exists():
        with atomic_write(note, alone=True) as partial:
            partial.write_text(json.dumps(now, indent=0) + "\n", encoding="utf-8")
