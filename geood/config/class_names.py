"""Names of classes in a config: the ways to write them down, all of which become ids and names.

Networks and masks know ids; people know names. Classes may be a map of ids to names, a list of names, whose ids are
then their places, or `auto`: what the labels hold. Anomalies may be a list of ids, a map, or a list of names. Those
have no place among the classes, so their ids are counted down from the highest: they stay what they are when a class is
added. Whether a name occurs in any label is not known here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import PurePath
from typing import Any

from geood.constants import UNSTATED, VECTOR_SUFFIXES
from geood.errors import counted

AUTO_CLASSES = "auto"


def folded(name: str) -> str:
    """Return the one spelling of a name under which its spellings of other case and other blanks are equal."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def numbered_classes(given: Any) -> Any:
    """Return classes as a map of ids to names; empty for `auto`. What is neither is left to validation.

    Raises:
        ValueError: it is a list of anything but names, or names no class.
    """
    if given == AUTO_CLASSES:
        return {}
    if isinstance(given, list):
        if not all(isinstance(name, str) for name in given):
            raise ValueError(f"got {given!r}; give names, such as [land, road], or ids and names, such as {{0: land}}")
        given = dict(enumerate(given))
    if isinstance(given, dict) and len(given) < 2:
        raise ValueError(
            f"got {counted(len(given), 'class', 'classes')}; give two at least, or auto: those that the labels hold"
        )
    return given


def numbered_anomalies(given: Any, taken: Collection[int], labels: Sequence[Any]) -> Any:
    """Return a list of names as a map of ids to names; ids, and what is none of both, as they are.

    Args:
        given: the value of `data.anomaly`.
        taken: ids of the classes.
        labels: patterns of the label files, which have texts to be matched only if they are vector files.

    Raises:
        ValueError: ids and names are mixed, or the labels are rasters, which hold no names.
    """
    if not isinstance(given, list) or not any(isinstance(name, str) for name in given):
        return given
    if not all(isinstance(name, str) for name in given):
        raise ValueError(f"got {given!r}; give ids, or names, or both as a map such as {{6: boat}}")
    rasters = [p for p in labels if isinstance(p, str) and PurePath(p).suffix.lower() not in VECTOR_SUFFIXES]
    if rasters:
        raise ValueError(
            f"names are matched with texts in vector labels, and {rasters[0]} names rasters of ids; give the ids too, "
            f"such as {{6: {given[0]}}}"
        )
    free = (i for i in range(UNSTATED - 1, -1, -1) if i not in taken)
    return dict(zip(free, given, strict=False))


def schema_of(*kinds: dict[str, Any]) -> Any:
    """Return a change of a key's JSON schema that allows any of several kinds of values."""

    def change(schema: dict[str, Any]) -> None:
        for key in ("type", "additionalProperties", "items", "oneOf", "anyOf"):
            schema.pop(key, None)
        schema["anyOf"] = list(kinds)

    return change


NAME = {"type": "string", "minLength": 1}
BY_ID = {"type": "object", "additionalProperties": NAME}
NAMES = {"type": "array", "items": NAME}
IDS = {"type": "array", "items": {"type": "integer"}}
