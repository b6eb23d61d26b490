"""Lazy exports: names of a package's face, resolved from its rooms on first use (PEP 562).

A Dask worker imports `geood.prediction` and must not load what only training or reports need; `import geood` must cost
nothing. A face with heavy rooms therefore maps its names to rooms, and imports a room when one of them is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, rooms: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose exported names live in `rooms`.

    Args:
        package: the package's `__name__`.
        rooms: exported name to the room that defines it, relative to the package.
    """

    def resolve(name: str) -> Any:
        """Import the room of an exported name and return the object.

        Raises:
            AttributeError: the package exports no such name.
        """
        if name not in rooms:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{rooms[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return resolve, lambda: sorted({*rooms, *vars(sys.modules[package])})
