"""The command line as a process: exit codes, signals, and messages on stderr.

The commands themselves are in `app`; here one of them is run, and whatever ends it becomes an exit code and one
message. What is printed is made fit to be shown in `terminal`. Signal handlers and glibc's settings concern a whole
process, so they are set in `main` alone.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

import typer

from geood.cli.app import app
from geood.cli.terminal import Shown, check_not_empty
from geood.errors import GeoodError, OutputError
from geood.prediction import keep_freed_memory

INTERRUPTED = 130
LOADED = 450_000  # objects for the collector; `predict` has 420,000 at its first tile, of which 267,000 are torch's
# Ctrl-C, a polite end, and on Windows what another program sends in the place of Ctrl-C.
ENDINGS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    keep_freed_memory()
    collect_later()
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    sys.stdout = Shown(sys.stdout)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=Shown(sys.stderr))
    logging.getLogger("geood").setLevel(logging.INFO)
    atexit.register(_ignore_signals)  # registered first, so called last
    for number in ENDINGS:
        signal.signal(number, _interrupt)
    sys.exit(_run(arguments, debug=debug))


def collect_later() -> None:
    """Let Python look for cyclic garbage only after the start, and then as usual, but not among what was there.

    What a command loads is no garbage, and every full collection walks through all of it (0.1 s of a core).
    """
    usual = gc.get_threshold()

    def at_first(*_: object) -> None:
        gc.callbacks.remove(at_first)
        gc.freeze()
        gc.set_threshold(*usual)

    gc.callbacks.append(at_first)
    gc.set_threshold(LOADED, *usual[1:])


def _ignore_signals() -> None:
    """Ignore signals: Python removes its handlers before it ends, and one after that would change the exit code."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(*_: object) -> NoReturn:
    """Clean up at the first Ctrl-C (or SIGTERM), end at once at the second: files on disk are complete at any time."""
    for number in ENDINGS:
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


def _run(arguments: list[str], *, debug: bool) -> int:
    """Run one command line; print any error to stderr, and return the exit code."""
    try:
        check_not_empty(arguments)
        result = app(arguments, prog_name="geood", standalone_mode=False)
        if result != INTERRUPTED:  # which is typer's own way of ending after Ctrl-C
            return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        pass
    except GeoodError as error:
        if debug:
            traceback.print_exc()
        _say(f"geood: {error}")
        return error.exit_code
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of click, by whatever path
            error.show(file=Shown(sys.stderr))
            return int(error.exit_code)
        if debug:
            traceback.print_exc()
        _say(
            f"geood: {type(error).__name__}: {error}\n"
            "This is a bug in geood. Run again with --debug and report what it shows."
        )
        return 1
    _say("geood: interrupted")
    return INTERRUPTED


def _say(message: str) -> None:
    """Print a message on stderr; if that cannot be written, the exit code has to do."""
    with suppress(OutputError):
        print(message, file=Shown(sys.stderr))
