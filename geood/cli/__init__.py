"""Command line: verbs that parse arguments, call one function, and print what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.cli.process import main

__all__ = ["main"]

__getattr__, __dir__ = lazy_exports(__name__, {"main": "process"})
