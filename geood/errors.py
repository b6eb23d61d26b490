"""Exceptions of geood and the exit codes of the command line.

Every message names the file, states what was found and what was expected, and ends with a remedy. Names that come from
files pass through `printable` before they are shown, and other values through `shown`. The command line prints only the
message; `--debug` adds the traceback. Any other exception is a bug in geood and exits with 1.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

SHOWN = 80  # characters of a value that a message repeats


def printable(text: object, *, keep: str = "") -> str:
    """Return a text with control characters, direction marks and lone surrogates escaped, except those in `keep`.

    A terminal would obey them: a name in a file could move the cursor, recolour what follows or hide it.
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    odd = ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp")
    keep += "\u200c\u200d"  # joiners, which some scripts need to be read
    return "".join(
        c if c in keep or unicodedata.category(c) not in odd else c.encode("unicode_escape").decode() for c in plain
    )


def shown(value: object, *, most: int = SHOWN) -> str:
    """Return a value as printable text for a message, cut after `most` characters."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, Exception) else repr(value)
    return printable(text if len(text) <= most else f"{text[:most]}...")


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: 1 row, 2 rows; `many` is the plural of a noun that takes no s alone."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


class GeoodError(Exception):
    """Base class of all errors that geood raises on purpose."""

    exit_code = 1


class ConfigError(GeoodError):
    """Error in a config, an option or a combination of them."""

    exit_code = 2


class OutputError(GeoodError):
    """Failure to write an output at the requested path."""

    exit_code = 2


class DataError(GeoodError):
    """Input file that is missing, unreadable or unsuitable."""

    exit_code = 3


class ElsewhereError(DataError):
    """Labels that lie on other ground than the scene."""


class BundleError(DataError):
    """Model bundle that is damaged, from a newer geood, or not a bundle at all."""


class TrainingError(GeoodError):
    """Failure of training: a loss is not finite, or a run cannot be resumed."""

    exit_code = 3


class RunLostError(GeoodError):
    """Early end of a run for a reason other than its inputs; finished work is kept for `--resume`."""

    exit_code = 130


class SceneChangedError(GeoodError):
    """Scene that was changed while it was read; no map of it is written."""

    exit_code = 4


class ScenesSkippedError(GeoodError):
    """Prediction that finished without scenes that cannot be read, as was asked for.

    `made` holds the predictions of all others, some of whose tiles may have failed, `skipped` the scenes that were left
    out, with the reason of each.
    """

    exit_code = 4

    def __init__(self, message: str, made: Sequence[Any] = (), skipped: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.made, self.skipped = made, skipped


class TilesFailedError(GeoodError):
    """Prediction that finished with failed tiles; `made` holds the predictions, which list those tiles."""

    exit_code = 4

    def __init__(self, message: str, made: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.made = made
