"""Text to and from the terminal: lines that are safe to show, and values that are not empty or infinite.

Names in bundles, tags and archives may hold control characters, which a terminal would obey, and letters that its
encoding cannot spell. An option of an unset shell variable is empty, and would silently be taken for one left out.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import typer

from geood.errors import ConfigError, OutputError, printable


class Shown:
    """Text stream in front of another, through which all lines of the command line go.

    Control characters are escaped, and so is what the encoding cannot spell. A reader that went away (`| head`) is no
    error: the work goes on, unseen.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream.stream if isinstance(stream, Shown) else stream
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    @property
    def stream(self) -> Any:
        """The stream behind this one."""
        return self._stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text at once, made printable line by line.

        Raises:
            OutputError: it cannot be written.
        """
        if not isinstance(text, str):
            raise TypeError(f"text was needed, got {type(text).__name__}")  # by which click tells text from binary
        if not text:  # of which click makes a trial
            return 0
        try:
            self._stream.write(printable(text, keep="\n\t"))
            self._stream.flush()
        except OSError as error:
            self._abandon()
            if error.errno != errno.EPIPE:
                raise OutputError(
                    f"standard output: cannot be written ({os.strerror(error.errno or 0)}); free space there, or "
                    "send it elsewhere"
                ) from None
        return len(text)

    def _abandon(self) -> None:
        """Let the rest go to the null device: Python would try once more at its end, and change the exit code."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def flush(self) -> None:
        """Do nothing: each text was written at once."""


def check_not_empty(arguments: Sequence[str]) -> None:
    """Check that no value on a command line is empty, by whatever option or place.

    Raises:
        ConfigError: one is, as from a shell variable that is not set.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option = argument[:-1] if re.fullmatch(r"--[a-z-]+=", argument) else before.partition("=")[0]
        if argument.strip() and option != argument[:-1]:
            continue
        where = option if option.startswith("-") else "an argument"
        raise ConfigError(
            f"{where}: the value is empty, as that of a shell variable that is not set; give a value, or leave it out"
        )


def not_infinite(value: float | None) -> float | None:
    """Refuse infinity as the value of an option; 1e400 is that as well."""
    if value is not None and math.isinf(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def finite(value: float | None) -> float | None:
    """Refuse infinity and NaN as the value of an option."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return not_infinite(value)
