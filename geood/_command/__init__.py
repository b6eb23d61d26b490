"""Entry point of the `geood` command, installed as the top-level package `geood_toolkit` as well.

Another package, distributed as `geood`, is imported by the same name as this one. Installed in one environment, the
later of the two overwrites files of the earlier, and importing `geood` may fail. The command therefore starts here,
outside the name that both claim, and imports nothing of `geood` before it has looked.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

__all__ = ["DISTRIBUTION", "main", "other_package"]

DISTRIBUTION = "geood-toolkit"


def other_package() -> str | None:
    """Return the version of the other package called geood if it is installed in this environment, else None."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        found = metadata("geood")
    except PackageNotFoundError:
        return None
    own = "aerial and satellite scenes" in (found["Summary"] or "")  # this one, installed under its name of before
    return None if own else str(found["Version"])


def main() -> NoReturn:
    """Run the command line and exit with its code; exit with 2 if the other package has taken this one's place."""
    _open_standard_streams()
    other = other_package()
    if other is not None:
        replaced = _is_replaced()
        said = (
            f"another package called geood ({other}) is installed in this environment and uses the same files"
            f"{', and has overwritten some of them' if replaced else ''}; keep them apart, or leave this one alone: "
            f"pip uninstall geood, then pip install --force-reinstall --no-deps {DISTRIBUTION}"
        )
        sys.stderr.write(f"geood: {said}\n")
        if replaced:
            sys.exit(2)
    from geood.cli import main as run

    run()


def _open_standard_streams() -> None:
    """Put the null device in the place of standard streams that are closed.

    The next file that is opened would take the number of a closed one, and receive what libraries write there.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the life of the process


def _is_replaced() -> bool:
    """Tell whether what is imported as geood is not this package, by what it holds: versions may be equal."""
    try:
        import geood
    except Exception:  # whatever the other package raises where parts of it are missing
        return True
    return "lazy_exports" not in vars(geood)
