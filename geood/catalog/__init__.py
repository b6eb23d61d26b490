"""Catalog of published data sets: source, licence, folder layout, splits and label encoding of each.

Entries are data, not code: layouts are path templates, label encodings are tables, splits are folder names, lists or
rules. `datasets.discovery` finds the files, `datasets.frames` decodes them, `geood data list` shows the entries.
TorchGeo has classes for some of the aerial sets. They read whole images without georeferencing, silently drop missing
pairs and map unknown colours to class 0, so these entries replace them, with the same splits and colours. Sets with
georeferenced images can also be used for training as scenes, through TorchGeo's own layers.
"""

from __future__ import annotations

from geood.catalog.entry import DataSet, PathLayout, Protocol, Split, mask_set
from geood.catalog.lookup import CATALOG, data_set, measured_set
from geood.catalog.vocabulary import shared_vocabulary

__all__ = [
    "CATALOG",
    "DataSet",
    "PathLayout",
    "Protocol",
    "Split",
    "data_set",
    "mask_set",
    "measured_set",
    "shared_vocabulary",
]
