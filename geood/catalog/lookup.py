"""Data sets by name: the catalog as one table, and the closest name where one is misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from geood.catalog.aerial import AERIAL
from geood.catalog.entry import DataSet
from geood.catalog.roads import ROADS
from geood.errors import ConfigError

BESIDE = "scenes", "pairs"  # what is measured besides data sets
CATALOG: dict[str, DataSet] = {entry.name: entry for entry in (*ROADS, *AERIAL)}


def measured_set(name: str, protocol: str | None = None) -> DataSet:
    """Return the data set of this name, under a protocol if one is given, for an evaluation.

    Raises:
        ConfigError: there is no such data set or protocol; the message suggests the closest name, `scenes` among them.
    """
    entry = data_set(name, beside=BESIDE)
    return entry.under(protocol) if protocol else entry


def data_set(name: str, *, beside: Sequence[str] = ()) -> DataSet:
    """Return the data set of this name, as listed by `geood data list`.

    Args:
        name: such as "camvid" or "fishyscapes-laf".
        beside: what may be asked for in place of a data set, and may be meant by a name that is none.

    Returns:
        Its entry of the catalog: source, licence, folder layout, splits, label encoding, protocol.

    Raises:
        ConfigError: there is no such data set; the message suggests the closest name.

    Example:
        >>> import geood
        >>> camvid = geood.data_set("camvid")
        >>> camvid.protocol, [split.name for split in camvid.splits]
        ('pooled', ['train', 'val', 'test'])
    """
    if name in CATALOG:
        return CATALOG[name]
    near = difflib.get_close_matches(name, [*beside, *CATALOG], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"{name}: no such data set; {hint}`geood data list` shows all")
