"""Classes that labels hold, for a config that leaves them to its labels (`data.classes: auto`).

Texts are classes by their most common spelling, in the order of the alphabet; numbers keep themselves as ids. What the
config calls an anomaly is none of them. The classes found are written into the config before anything else looks at
it, so that a run, its checkpoints and its bundle hold them as if a person had listed them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geood.config import Config, config_from_tree, folded
from geood.constants import IGNORE, UNSTATED
from geood.datasets.files import RASTERS, find_files
from geood.errors import DataError
from geood.geo.gdal import pieces
from geood.geo.labels.drawings import LABELS, chosen_layers
from geood.geo.labels.id_rasters import IdRaster
from geood.geo.labels.reading import are_vectors
from geood.geo.labels.rules import is_number, rules_of
from geood.geo.vector import read_layer
from geood.progress import Progress

log = logging.getLogger("geood")
PICTURES = (".png", *RASTERS)
NAMES_OF_NONE = ("unlabeled", "unlabelled", "void", "ignore", "nodata", "no data", "none", "unknown", "")


def settle_classes(config: Config) -> Config:
    """Return the config with the classes that its labels hold, if it leaves them to the labels; else as it is.

    Raises:
        ConfigError: other keys do not fit the classes found.
        DataError: the labels cannot be read, or hold fewer than two classes.
    """
    data = config.data
    if data.classes:
        return config
    files = find_files(
        data.root, data.labels, what="data.labels", suffixes=PICTURES if data.kind == "photos" else RASTERS
    )
    values = _texts_and_ids(files, config) if are_vectors(files) else _ids_of_rasters(files, config)
    classes = _classes(values, config)
    if len(classes) < 2:
        held = ", ".join(map(repr, values)) or "nothing"
        raise DataError(
            f"{files[0]}: data.classes is auto, and the labels hold {held}, where two classes at least are needed "
            "besides the anomalies; draw more, or choose another data.label_attribute"
        )
    log.info("classes found in the labels: %s", ", ".join(f"{i} {name}" for i, name in classes.items()))
    tree = config.model_dump(mode="python")
    tree["data"] |= {"classes": classes}
    return config_from_tree(tree, source="data.classes: auto")


def _classes(values: Counter[Any], config: Config) -> dict[int, str]:
    """Return ids and names of classes from the values that labels hold, those of anomalies apart."""
    anomaly, held = config.data.anomaly, {folded(name) for name in config.data.ids_by_name}
    texts = {value: number for value, number in values.items() if isinstance(value, str)}
    if not texts:
        ids = sorted(i for i in values if 0 <= i < IGNORE and i not in anomaly)
        return {i: f"class {i}" for i in ids}
    return ids_of_names(texts, what=str(config.data.label_attribute), without=held, taken=anomaly)


def ids_of_names(
    counts: Mapping[str, int], *, what: str = "the attribute", without: Container[str] = (), taken: Container[int] = ()
) -> dict[int, str]:
    """Return ids and names of the classes that texts of labels name: in the order of the alphabet, from 0 on.

    A first config and `data.classes: auto` both give ids so. Texts that differ in case or blanks are one class, by its
    usual spelling; names such as `void` are none.

    Args:
        counts: how often each text occurs.
        what: the attribute, for a message.
        without: names, folded, that are no classes.
        taken: ids that are not given.

    Raises:
        DataError: there are more names than ids.
    """
    names: dict[str, str] = {}
    for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        names.setdefault(folded(value), " ".join(value.split()))
    chosen = [name for fold, name in sorted(names.items()) if fold not in NAMES_OF_NONE and fold not in without]
    free = [i for i in range(UNSTATED) if i not in taken]
    if len(chosen) > len(free):
        raise DataError(
            f"{what} of the labels holds {len(chosen)} texts, and there are ids for {len(free)} classes; choose "
            "another data.label_attribute, or list data.classes"
        )
    return dict(zip(free, chosen, strict=False))


def _texts_and_ids(files: Sequence[Path], config: Config) -> Counter[Any]:
    """Count the values of the attribute in vector files: texts, or ids if all of them are numbers."""
    rules, values = rules_of(config.data), Counter[Any]()
    for path, layers in chosen_layers(files, rules):
        for layer in layers:
            found = read_layer(path, LABELS, layer=layer, attribute=rules.attribute).values.tolist()
            values.update(value if isinstance(value, Hashable) else str(value) for value in found)
    if all(is_number(value) for value in values):
        return _mapped({float(value): number for value, number in values.items()}.items(), config)
    return Counter({value: number for value, number in values.items() if isinstance(value, str)})


def _ids_of_rasters(files: Sequence[Path], config: Config) -> Counter[Any]:
    """Count the pixels of each class id in rasters; all of them are read."""
    values: Counter[Any] = Counter()
    with Progress("looking for classes", len(files)) as progress:
        for path in files:
            with IdRaster(path, config.data.label_ids) as raster:
                for window in pieces(raster.grid):
                    ids, counts = np.unique(raster.onto(raster.grid[window]), return_counts=True)
                    values.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
            progress.advance()
    return values


def _mapped(values: Iterable[tuple[float, int]], config: Config) -> Counter[Any]:
    """Return counts by the class ids that numbers mean; what is no whole number is refused when labels are read."""
    counts: Counter[Any] = Counter()
    for value, number in values:
        if value.is_integer():
            counts[config.data.label_ids.get(int(value), int(value))] += number
    return counts
