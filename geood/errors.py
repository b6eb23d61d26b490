"""The errors geood raises on purpose, and the exit code each one ends a command with.

Every message names the file, says what came and what was needed, and ends with what to do. The command line prints
the message alone; `--debug` adds the traceback. Anything that is not a `GeoodError` is a bug of ours and exits with 1.
"""

from collections.abc import Sequence
from typing import Any


class GeoodError(Exception):
    """Root of all errors that geood explains to its user."""

    exit_code = 1


class ConfigError(GeoodError):
    """A config, an option or a combination of them cannot be used."""

    exit_code = 2


class OutputError(GeoodError):
    """An output cannot be written where it was asked for."""

    exit_code = 2


class DataError(GeoodError):
    """An input file is missing, unreadable or does not fit."""

    exit_code = 3


class BundleError(DataError):
    """A model bundle is not one, is damaged, or is from a newer geood."""


class TrainingError(GeoodError):
    """Training cannot go on: a loss is not finite, or a run cannot be continued."""

    exit_code = 3


class RunLostError(GeoodError):
    """A run ended early through no fault of its inputs; what it finished is kept for `--resume`."""

    exit_code = 130


class TilesFailedError(GeoodError):
    """Prediction finished, but some tiles could not be scored; `made` are the predictions with the tiles listed."""

    exit_code = 4

    def __init__(self, message: str, made: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.made = made
