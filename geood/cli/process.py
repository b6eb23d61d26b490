"""Runs the command line as a process: exit codes, signals, messages on stderr."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import traceback
from typing import NoReturn

import typer

from geood.cli.app import app
from geood.errors import GeoodError
from geood.prediction import keep_freed_memory

INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    keep_freed_memory()
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("geood").setLevel(logging.INFO)
    atexit.register(_heed_no_more)  # first of all, and so the last to be called
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(_run(arguments, debug=debug))


def _heed_no_more() -> None:
    """Ignore signals: Python drops its handlers before it ends, and one in between would take the exit code away."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _interrupt(*_: object) -> NoReturn:
    """Tidy up at the first Ctrl-C (or SIGTERM), end at once at the second: what lies on disk is whole at any moment."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


def _run(arguments: list[str], *, debug: bool) -> int:
    """Run one command line; returns its exit code, with whatever went wrong said on stderr."""
    try:
        result = app(arguments, prog_name="geood", standalone_mode=False)
        if result != INTERRUPTED:  # which is typer's own way of ending after Ctrl-C
            return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        pass
    except GeoodError as error:
        if debug:
            traceback.print_exc()
        print(f"geood: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of click, by whatever path
            error.show()
            return int(error.exit_code)
        if debug:
            traceback.print_exc()
        print(
            f"geood: {type(error).__name__}: {error}\n"
            "This is a bug in geood. Run again with --debug and report what it shows.",
            file=sys.stderr,
        )
        return 1
    print("geood: interrupted", file=sys.stderr)
    return INTERRUPTED
