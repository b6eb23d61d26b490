"""Examples of docstrings as the site shows them: a section `Example` is code, as `Examples` is to Griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Extension of Griffe that reads sections `Example` as it reads `Examples`."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section in an object's docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
