"""Catalog of published data sets: source, licence, folder layout, splits and label encoding of each.

Entries are data, not code: layouts are path templates, label encodings are tables, splits are folder names, lists or
rules. `datasets.discovery` finds the files, `datasets.frames` decodes them, `geood data list` shows the entries.
TorchGeo has classes for some of the aerial sets. They read whole images without georeferencing, silently drop missing
pairs and map unknown colours to class 0, so these entries replace them, with the same splits and colours. Sets with
georeferenced images can also be used for training as scenes, through TorchGeo's own layers.
"""

from __future__ import annotations

import difflib

from geood.catalog.aerial import AERIAL
from geood.catalog.entry import DataSet, PathLayout, Split
from geood.catalog.roads import ROADS
from geood.errors import ConfigError

__all__ = ["CATALOG", "DataSet", "PathLayout", "Split", "data_set"]
CATALOG: dict[str, DataSet] = {entry.name: entry for entry in (*ROADS, *AERIAL)}


def data_set(name: str) -> DataSet:
    """Return the data set of this name, as listed by `geood data list`.

    Raises:
        ConfigError: there is no such data set; the message suggests the closest name.
    """
    if name in CATALOG:
        return CATALOG[name]
    near = difflib.get_close_matches(name, CATALOG, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"{name}: no such data set; {hint}`geood data list` shows all")
