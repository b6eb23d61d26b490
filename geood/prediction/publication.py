"""Publication of a finished run: every file of the work folder gets its name, all of them or none.

Files move only once all are complete and none is in the way. A note of the run's inputs and of its files is written
first, so that an interrupted publication can be finished by a later command with the same inputs. No path is ever taken
from a note: the files are those that the present command names, and the note only tells which of them are in place.
What the files hold is not known here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from geood.atomic import atomic_write, check_output, output_errors, put_in_place, settle
from geood.calibration import Verdict
from geood.errors import OutputError
from geood.polygons import check_nothing_typed, companions_of
from geood.prediction.journal import SUFFIX, key_in, refuse_other
from geood.prediction.outputs import check_families
from geood.prediction.workdir import PUBLISHING


class SceneFigures(BaseModel):
    """Figures of one scene: scored pixels, polygons (None: not asked for), verdict, failed tiles, the first reason.

    A failed tile is (row, column, height, width) in pixels.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    valid: NonNegativeInt
    anomalies: NonNegativeInt | None
    verdict: Verdict
    failed: tuple[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt], ...] = ()
    reason: str = ""


class _Note(BaseModel):
    """Note of a publication under way.

    `key` are the run's inputs, as JSON values; `files` the (name, bytes, time of writing in ns) of its outputs, by
    which those in place are known; `scenes` the figures of the scenes in their order.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    key: dict[str, Any]
    files: tuple[tuple[str, NonNegativeInt, int], ...]
    scenes: tuple[SceneFigures, ...]


class Publication:
    """The outputs of a run on their way from the work folder to their names.

    Args:
        folder: the work folder.
        finals: final paths of all files.
        overwrite: whether files that exist are replaced.
        discard_verdicts: whether that holds for polygons with verdicts too.

    Raises:
        OutputError: the note that an interrupted run left in the folder is damaged.
    """

    def __init__(
        self, folder: Path, finals: Sequence[Path], *, overwrite: bool, discard_verdicts: bool = False
    ) -> None:
        self._note_path, self._folder, self._overwrite = folder / PUBLISHING, folder, overwrite
        self._discard_verdicts = discard_verdicts
        self._companions = {path.name: path for final in finals for path in companions_of(final)}
        self._finals = {path.name: path for path in finals} | self._companions
        self._note = _read(self._note_path)

    @property
    def interrupted(self) -> bool:
        """True if a run before this one was interrupted when its outputs were complete."""
        return self._note is not None

    def begun(self, name: str) -> Mapping[str, Any]:
        """Return what the tiles of a scene depend on in the run before this one, as JSON values; empty if none was.

        It is told by the note, else by the journal of that name.
        """
        if self._note is None:
            return key_in(self._folder / f"{name}{SUFFIX}")
        noted = self._note.key.get("scenes")
        found = noted.get(name) if isinstance(noted, dict) else None
        return found if isinstance(found, dict) else {}

    def check_begun(self, key: Mapping[str, Any]) -> None:
        """Check before anything is said or done that the run before this one, if any, had the inputs `key`.

        On what its tiles were scored is only compared when workers are there.

        Raises:
            OutputError: it had others; the message names the differences. Or its note is damaged.
        """
        if self._note is not None:
            self.figures(key)
            return
        for name, own in key["scenes"].items():
            if begun := key_in(self._folder / f"{name}{SUFFIX}"):
                refuse_other(self._folder, begun, {"gpu": begun.get("gpu"), **own})

    def in_place(self, final: Path) -> bool:
        """Return whether a path holds a file that the interrupted run has put there."""
        if self._note is None or not os.path.lexists(final):
            return False
        made = self._folder / final.name
        if os.path.lexists(made):  # the same file, if the run ended between the two steps of taking the name
            return os.path.samestat(os.lstat(made), os.lstat(final))
        return _state(final) in self._note.files

    def begin(self, key: Mapping[str, Any], scenes: Sequence[SceneFigures]) -> None:
        """Write the note of a run whose files are complete; `key` is what they depend on, as JSON values.

        Raises:
            OutputError: it cannot be written, or a file was not made.
        """
        made = [name for name in self._finals if (self._folder / name).exists()]
        with output_errors(self._note_path):
            for name in made:
                settle(self._folder / name)
        if missing := [final for name, final in self._finals.items() if name not in {*made, *self._companions}]:
            raise OutputError(f"{missing[0]}: was not made; free space on that disk, and predict again")
        files = tuple(_state(self._folder / name) for name in made)
        self._note = _Note(key=json.loads(json.dumps(key)), files=files, scenes=tuple(scenes))
        path = self._note_path
        with (
            output_errors(path),
            atomic_write(path, alone=True) as partial,
            partial.open("w", encoding="utf-8") as file,
        ):
            file.write(json.dumps(self._note.model_dump(mode="json")))
            file.flush()
            os.fsync(file.fileno())

    def figures(self, key: Mapping[str, Any]) -> Sequence[SceneFigures]:
        """Return the figures of the interrupted run, in the order of the scenes in `key`.

        Raises:
            OutputError: it had other inputs than `key`; the message names the differences. Or the note is damaged.
        """
        assert self._note is not None
        refuse_other(self._folder, self._note.key, key)
        needed = {*self._finals} - {*self._companions}
        if not needed <= {name for name, _, _ in self._note.files} or len(self._note.scenes) != len(key["scenes"]):
            raise _damaged(self._note_path)
        return self._note.scenes

    def finish(self) -> None:
        """Give every file its name, and remove an older list of failed tiles if there is no new one.

        All names are looked at first, so that no file moves if something is in the way. Publications in one folder
        wait for each other. The note stays until the work folder is given up.

        Raises:
            OutputError: a file cannot be put in place, or its name was taken meanwhile; all is kept for a later run.
        """
        assert self._note is not None
        listed = {name for name, _, _ in self._note.files}
        waiting = [final for name, final in self._finals.items() if name in listed and not self.in_place(final)]
        with ExitStack() as stack:
            for parent in sorted({final.parent for final in self._finals.values()}):
                stack.enter_context(_alone_in(parent))
            for final in waiting:
                if not (self._folder / final.name).exists():
                    raise OutputError(f"{final}: was made and is gone; start over: --overwrite without --resume")
                check_output(final, overwrite=self._overwrite)
                check_nothing_typed(final, discard=self._discard_verdicts)
            check_families([*self._finals.values()])
            for final in waiting:
                self._put(final)
            for name, final in self._companions.items():
                if name not in listed and self._overwrite:
                    final.unlink(missing_ok=True)  # it belongs to the file that was replaced

    def _put(self, final: Path) -> None:
        try:
            put_in_place(self._folder / final.name, final, overwrite=self._overwrite)
        except OSError as error:
            raise OutputError(
                f"{final}: cannot be put in place ({error.strerror}); close the program that uses it, then --resume"
            ) from None


def _read(path: Path) -> _Note | None:
    """Read the note of an interrupted run; None if there is none.

    Raises:
        OutputError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        note = _Note.model_validate_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise _damaged(path) from None
    return note


def _damaged(path: Path) -> OutputError:
    return OutputError(f"{path}: this note of an unfinished run is damaged; start over: --overwrite without --resume")


def _state(path: Path) -> tuple[str, int, int]:
    found = os.lstat(path)
    return path.name, found.st_size, found.st_mtime_ns


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other run publishes in a folder; go on at once where folders cannot be locked."""
    if os.name == "nt":
        yield
        return
    import fcntl

    with ExitStack() as held:
        with suppress(OSError):  # also where the folder may be written to but not be listed
            descriptor = os.open(folder, os.O_RDONLY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
