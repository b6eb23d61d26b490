"""Rules by which label files are read, and the class ids that the values of an attribute mean.

A value is a class id, or the name of a class as a person types it: the names of a config are found whatever the case
and however many blanks are around or between the words, and every spelling that was forgiven is reported. A name that
no class has is not guessed at: its ground is not known, and it is reported with what it is close to. This room looks at
values alone, and knows nothing of shapes and files.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood.config import DataConfig, folded
from geood.constants import IGNORE
from geood.errors import DataError, counted, shown
from geood.geo.labels.id_rasters import renumbered


class LabelRules(NamedTuple):
    """Rules for label files, as the keys of the data section say.

    Attributes:
        attribute: the attribute of a vector file with the class.
        layer: the layer of a vector file, or several, of which later ones lie on top.
        label_ids: class ids that numbers in the files mean.
        names: class ids that texts in the attribute mean.
        buffer_m: metres of ground on each side of a line, and around a point, that are theirs; None: neither is taken.
        background: class id of the ground without a shape, in vector files; None: it is not known.
    """

    attribute: str | None = None
    layer: str | tuple[str, ...] | None = None
    label_ids: Mapping[int, int] | None = None
    names: Mapping[str, int] | None = None
    buffer_m: float | None = None
    background: int | None = None

    @property
    def layers(self) -> tuple[str | None, ...]:
        """The layers to read of each file, None for its only one."""
        return (self.layer,) if self.layer is None or isinstance(self.layer, str) else self.layer


PLAIN = LabelRules()


class Meanings(NamedTuple):
    """Class ids (N,) that values mean, 255 where none is known.

    `forgiven` counts the spellings that differ from the name of their class, `unknown` the names of no class.
    """

    ids: NDArray[np.int64]
    forgiven: dict[str, Counter[str]]
    unknown: dict[str, NDArray[np.intp]]


def rules_of(data: DataConfig) -> LabelRules:
    """Return the rules for label files that the data section of a config states."""
    layer = tuple(data.label_layer) if isinstance(data.label_layer, list) else data.label_layer
    return LabelRules(
        attribute=data.label_attribute,
        layer=layer,
        label_ids=data.label_ids,
        names=data.ids_by_name,
        buffer_m=data.label_buffer_m,
        background=data.background_id,
    )


def meanings_of(values: NDArray[Any], rules: LabelRules, *, file: str) -> Meanings:
    """Return the class ids that the values of an attribute mean: names if the rules have any, else numbers.

    Raises:
        DataError: a value is neither a class id from 0 to 254 nor 255, or none of the names is that of a class.
    """
    texts = np.array([isinstance(value, str) for value in values], np.bool_)
    if not texts.any() or not rules.names:
        return Meanings(_numbers(values, rules, file), {}, {})
    exact, loose = dict(rules.names), _loose(rules.names, file)
    ids = np.full(len(values), IGNORE, np.int64)
    forgiven: dict[str, Counter[str]] = {}
    unknown: dict[str, list[int]] = {}
    for i in np.flatnonzero(texts).tolist():
        value = values[i]
        name = value if value in exact else loose.get(folded(value))
        if name is None:
            unknown.setdefault(value, []).append(i)
            continue
        ids[i] = exact[name]
        if name != value:
            forgiven.setdefault(name, Counter())[value] += 1
    numeric = [i for name, places in unknown.items() if is_number(name) for i in places]
    for name in [name for name in unknown if is_number(name) or not name.strip()]:
        del unknown[name]
    plain = np.concatenate([np.flatnonzero(~texts), np.array(numeric, np.intp)])
    if plain.size:
        ids[plain] = _numbers(values[plain], rules, file)
    if (ids == IGNORE).all() and unknown:
        held = [f"{name!r} {counted(len(places), 'time')}" for name, places in unknown.items()]
        raise DataError(
            f"{file}: no text in {rules.attribute} is the name of a class ({_listed(list(exact))}); it holds "
            f"{_listed(held)}; correct data.classes and data.anomaly, or choose another data.label_attribute"
        )
    return Meanings(ids, forgiven, {name: np.array(places, np.intp) for name, places in unknown.items()})


def near_name(name: str, names: Mapping[str, int]) -> str | None:
    """Return the class whose name is close to one that no class has."""
    known = {folded(known): known for known in names}
    near = difflib.get_close_matches(folded(name), known, n=1)
    return known[near[0]] if near else None


def _loose(names: Mapping[str, int], file: str) -> dict[str, str]:
    """Return the name of each class by its folded spelling."""
    loose: dict[str, str] = {}
    for name in names:
        if (other := loose.setdefault(folded(name), name)) != name:
            raise DataError(
                f"{file}: the classes {other!r} and {name!r} differ by case or blanks alone, in which texts are "
                "forgiven; give them names that differ"
            )
    return loose


def is_number(value: Any) -> bool:
    """Return whether a value is a number, or a text of one, as some programs store ids."""
    try:
        return float(value) == float(value)
    except (TypeError, ValueError):
        return False


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, or a text of one."""
    return is_number(value) and float(value).is_integer()


def _numbers(values: NDArray[Any], rules: LabelRules, file: str) -> NDArray[np.int64]:
    """Return the class ids of numbers, 0 to 255."""
    try:
        numbers = values.astype(np.float64)
        wrong = ~((np.floor(numbers) == numbers) & (np.abs(numbers) < 2**31))
    except (TypeError, ValueError):
        wrong = np.ones(len(values), np.bool_)
    if not wrong.any():
        ids = renumbered(numbers.astype(np.int64), rules.label_ids)
        wrong = (ids < 0) | (ids > IGNORE)
    if wrong.any():
        got = values[wrong][0]
        said = f"{got:g}" if isinstance(got, (float, np.floating)) else got if isinstance(got, np.integer) else None
        raise DataError(
            f"{file}: attribute {rules.attribute} must hold class ids, integers from 0 to 254 (255: unlabelled); got "
            f"{shown(repr(got)) if said is None else said}"
        )
    return ids


def _listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return shown(", ".join(names[:most]), most=400) + more
