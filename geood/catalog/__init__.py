"""The data sets that geood knows by name: where each comes from, how its folder looks, and what its labels mean.

An entry is a value and no code: layouts are templates of paths, label encodings are tables, splits are folder names,
lists or rules. `datasets.layout` finds files by them, `datasets.frames` decodes pixels, `geood data list` shows them.
TorchGeo has classes for some of the aerial sets. They open whole images without a place, drop missing pairs in
silence and turn colours that match nothing into class 0, so these entries stand in for them; their splits and colours
are the same. Sets whose images have a place can be trained on as scenes as well, through TorchGeo's own layers.
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
    """A data set by its name in `geood data list`.

    Raises:
        ConfigError: there is none, with the nearest name.
    """
    if name in CATALOG:
        return CATALOG[name]
    near = difflib.get_close_matches(name, CATALOG, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"{name}: no such data set; {hint}`geood data list` shows all")
