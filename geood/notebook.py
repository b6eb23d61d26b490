"""Values as small HTML tables, which notebooks show in place of a value's text.

Names in files may hold anything, so every text is escaped and cut. There are no styles, scripts or images, as a
notebook has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from geood.errors import shown

LONGEST = 300  # characters of a value


def html_table(title: str, pairs: Mapping[str, Any]) -> str:
    """Return a table of names and values as HTML, under a title.

    Args:
        title: what the table is of.
        pairs: values by name; numbers are shown with six digits, and None as nothing.
    """
    rows = "".join(f"<tr><th>{_cell(name)}</th><td>{_cell(value)}</td></tr>" for name, value in pairs.items())
    return f"<table><caption>{_cell(title)}</caption>{rows}</table>"


def html_text(title: str, text: str) -> str:
    """Return a text of several lines as HTML, under a title, its columns kept."""
    lines = "\n".join(escape(line) for line in text.splitlines())
    return f"<p><b>{_cell(title)}</b></p><pre>{lines}</pre>"


def _cell(value: Any) -> str:
    """Return a value as HTML text: numbers short, and nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return escape(shown(value if isinstance(value, str) else str(value), most=LONGEST))
