"""Classes found in label files: ids or names, with their share of the labelled ground, and a choice among attributes.

Files are listed by `geo.labels.listing`; here the lists of many files are put together, and layer and attribute are
chosen where a person did not. A number is an id, a text a class name, which gets an id in the order of the alphabet.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import NamedTuple

from geood.config import folded
from geood.errors import ConfigError, DataError, counted, printable
from geood.geo.labels.listing import FoundAttribute, FoundLayer, LabelFile, list_labels
from geood.geo.labels.rules import is_whole
from geood.geo.vector import POLYGONAL, attribute_of
from geood.preflight.id_names import names_of_ids
from geood.progress import tracked

LIKELY = ("class", "label", "category", "type", "kind", "name", "landcover", "land_cover", "id", "class_id", "value")
CLOSE, SLIP = 0.8, 4  # likeness of two names, 0 to 1, and times the ground, from which one may be a slip
MOST_FILES, MOST_CLASSES = 400, 60  # files that are counted; values of an attribute that holds classes


class FoundClass(NamedTuple):
    """Class in label files: its id, the name in the files (None: numbers alone), shapes or pixels, and shares.

    `share` is that of the labelled ground, 0 to 1; `km2` is None where the CRS does not tell metres.
    """

    class_id: int
    name: str | None
    number: int
    share: float
    km2: float | None


class Pair(NamedTuple):
    """Layer and the attribute of it that holds classes."""

    layer: FoundLayer
    attribute: FoundAttribute


@dataclass(frozen=True)
class FoundLabels:
    """Classes of a group of label files, by id.

    Attributes:
        paths: the files.
        classes: what was found, by id.
        vector: True if they are polygons.
        layers: the layers that are read; none if each file has one alone, or for rasters.
        attribute: the attribute that was chosen; None for rasters.
        chosen: True if layer or attribute were chosen among several here.
        unread: layers that are not read, with their kinds of shapes, in words.
        masks: True if they hold 0 and 255 alone, as black and white masks do.
        thin: True if some shapes are lines or points.
        problems: what the files themselves tell of problems, with the number of files that have each.
        counted: the number of files that were counted.
        id_names: names of ids that lie beside rasters, by id.
        given_names: names of ids that a person gave, by id; they come before others.
    """

    paths: tuple[Path, ...]
    classes: tuple[FoundClass, ...]
    vector: bool
    layers: tuple[str, ...] = ()
    attribute: str | None = None
    chosen: bool = False
    unread: tuple[str, ...] = ()
    masks: bool = False
    thin: bool = False
    problems: tuple[str, ...] = ()
    counted: int = 0
    id_names: Mapping[int, str] = field(default_factory=dict)
    given_names: Mapping[int, str] = field(default_factory=dict)

    @property
    def kinds(self) -> str:
        """Number and kind of the files, in words."""
        return counted(len(self.paths), "vector file" if self.vector else "raster")

    @property
    def text(self) -> bool:
        """True if the files hold class names."""
        return any(found.name is not None for found in self.classes)

    def name_of(self, found: FoundClass) -> str | None:
        """Return the name of a class, from the labels, a person or beside them; None if it is a number alone."""
        return found.name or self.given_names.get(found.class_id) or self.id_names.get(found.class_id)

    def likely_slips(self) -> list[str]:
        """Return what looks like a slip of the pen: a rare name that is nearly that of a class drawn more often."""
        told = []
        for found in self.classes:
            more = [each.name for each in self.classes if each.name and each.share > SLIP * found.share]
            if found.name and (close := get_close_matches(found.name, more, 1, CLOSE)):
                told.append(
                    f"{found.name} is rare, and close to {close[0]}: if it is a slip of the pen, correct it in the "
                    "labels"
                )
        return told

    def find(self, wanted: str) -> FoundClass:
        """Return the class of a name or id.

        Raises:
            ConfigError: there is none.
        """
        for found in self.classes:
            if folded(wanted) in (str(found.class_id), folded(self.name_of(found) or str(found.class_id))):
                return found
        known = ", ".join(self.name_of(found) or str(found.class_id) for found in self.classes)
        raise ConfigError(f"--hold-out {printable(wanted)}: no such class in the labels; they hold {printable(known)}")


def area_text(km2: float) -> str:
    """Return an area in words: square kilometres, or square metres below 0.01 of them."""
    return f"{km2:.3g} km2" if km2 >= 0.01 else f"{1e6 * km2:,.0f} m2"


def find_classes(
    paths: Sequence[Path],
    *,
    layers: Sequence[str] = (),
    attribute: str | None = None,
    buffer_m: float | None = None,
) -> FoundLabels:
    """List label files and put together the classes that they hold.

    Args:
        paths: rasters of class ids, or vector files; of more than `MOST_FILES` an even sample is counted.
        layers: layers of vector files, all of which are read; default: of each file the one that looks like classes.
        attribute: attribute with the classes, in all files; default: the one that looks like classes.
        buffer_m: metres on each side of lines and points that are theirs; None: they have no ground.

    Raises:
        ConfigError: a layer or attribute of that name is not there.
        DataError: a file cannot be read, or holds no classes.
    """
    counted = list(paths)[:: -(-len(paths) // MOST_FILES)]
    files = list(tracked("counting labels", map(partial(list_labels, buffer_m=buffer_m), counted), len(counted)))
    kinds = {file.kind for file in files}
    if len(kinds) > 1:
        raise DataError(f"{files[0].path}: rasters and vector files are mixed; give labels of one kind")
    if kinds == {"raster"}:
        return _of_rasters(tuple(paths), files)
    _check_layers(files, layers)
    first = _choose(files[0], layers, attribute)
    pairs = list(first)
    for file in files[1:]:
        pairs += _choose(file, layers, first[0].attribute.name, like=(files[0].path, first[0].layer.name))
    read = {pair.layer.name for pair in pairs}
    unread = [own for file in files for own in file.layers if own.name not in read and own.shapes]
    among = len({(own.layer.name, own.attribute.name) for own in _likely(files[0], layers, attribute)})
    return FoundLabels(
        tuple(paths),
        _classes([pair.attribute for pair in pairs]),
        vector=True,
        layers=_in_order(read, layers or [pair.layer.name for pair in pairs], files),
        attribute=first[0].attribute.name,
        chosen=among > 1 and not (layers and attribute),
        unread=tuple(f"{own.name} ({_kinds(own)})" for own in unread),
        thin=any(not set(pair.layer.shapes) <= {*POLYGONAL} for pair in pairs),
        problems=tuple(problem for pair in pairs for problem in _problems(pair)),
        counted=len(files),
    )


def _check_layers(files: Sequence[LabelFile], layers: Sequence[str]) -> None:
    """Refuse layers that no file has, and a file that has none of them.

    Raises:
        ConfigError: there is one.
    """
    known = list(dict.fromkeys(own.name for file in files for own in file.layers))
    for layer in layers:
        if layer not in known:
            listed = printable(", ".join(known))
            raise ConfigError(f"{files[0].path}: has no layer {printable(layer)}; its layers are {listed}")
    for file in files:
        names = [own.name for own in file.layers]
        if layers and not set(names) & set(layers):
            raise ConfigError(
                f"{file.path}: has none of the layers that are wanted; its layers are {printable(', '.join(names))}: "
                "name one of them too"
            )


def _in_order(read: set[str], names: Sequence[str], files: Sequence[LabelFile]) -> tuple[str, ...]:
    """Return the layers that are read, the later on top; none if each file has one alone."""
    several = any(len(file.layers) > 1 for file in files)
    return tuple(dict.fromkeys(name for name in names if name in read)) if several else ()


def _kinds(layer: FoundLayer) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in layer.shapes.items())


def _problems(pair: Pair) -> list[str]:
    """Return what a layer tells of its problems, and how many of its shapes have no class."""
    bare = sum(pair.layer.shapes.values()) - sum(value.number for value in pair.attribute.values)
    return list(pair.layer.problems) + ([f"shapes without a class, which are no labels: {bare}"] if bare > 0 else [])


def _of_rasters(paths: tuple[Path, ...], files: Sequence[LabelFile]) -> FoundLabels:
    layers = [layer for file in files for layer in file.layers]
    classes = _classes([layer.attributes[0] for layer in layers])
    bare = any("unlabelled" in problem for layer in layers for problem in layer.problems)
    without = sum(layer.crs is None for layer in layers)
    some = 0 < without < len(layers)  # those of photographs have none
    problems = (f"no CRS in {without} of {len(layers)} label files",) if some else ()
    ids = {found.class_id for found in classes}
    names, wrong = names_of_ids([file.path for file in files])
    return FoundLabels(
        paths,
        classes,
        vector=False,
        masks=ids <= {0} and bare,
        problems=problems + wrong,
        counted=len(files),
        id_names=names,
    )


def _likely(file: LabelFile, layers: Sequence[str], attribute: str | None) -> list[Pair]:
    """Return the layers and attributes of a vector file that may hold classes, the likeliest first."""
    pairs = [
        Pair(own, found)
        for own in file.layers
        for found in own.attributes
        if (not layers or own.name in layers)
        and attribute_of([each.name for each in own.attributes], attribute) in (None, found.name)
        and 0 < len(found.values) <= MOST_CLASSES
    ]

    def order(pair: Pair) -> tuple[bool, int, bool]:
        name = pair.attribute.name.casefold()
        named = LIKELY.index(name) if name in LIKELY else len(LIKELY)
        return len(pair.attribute.values) < 2, named, not pair.attribute.text

    return sorted(pairs, key=order)


def _choose(
    file: LabelFile, layers: Sequence[str], attribute: str | None, *, like: tuple[Path, str] | None = None
) -> list[Pair]:
    """Choose the attribute of a vector file that holds its classes, and the layer, or all that are wanted.

    `like` is the file, and its layer, from which the attribute comes, if another one told it.

    Raises:
        ConfigError: there is none of that name.
        DataError: no attribute looks like classes.
    """
    pairs = _likely(file, layers, attribute)
    if like:  # the layer of the same name before others
        pairs.sort(key=lambda pair: pair.layer.name != like[1])
    if pairs and not layers:
        return pairs[:1]
    if pairs:
        name = pairs[0].attribute.name
        chosen = [own for layer in layers for own in file.layers if own.name == layer]
        return [pair for own in chosen for pair in _of_layer(file, own, name)]
    known = [found.name for own in file.layers for found in own.attributes if not layers or own.name in layers]
    if attribute is not None and attribute not in known:
        raise ConfigError(_no_attribute(file.path, attribute, known, like and like[0]))
    raise DataError(
        f"{file.path}: no attribute looks like classes, with 1 to {MOST_CLASSES} values; it has "
        f"{printable(', '.join(known) or 'no attributes')}: give each polygon its class, as a name or a whole number"
    )


def _of_layer(file: LabelFile, layer: FoundLayer, attribute: str) -> list[Pair]:
    """Return a layer with its attribute of the classes.

    Raises:
        ConfigError: it has no such attribute.
    """
    known = [found.name for found in layer.attributes]
    own = attribute_of(known, attribute)
    pairs = [Pair(layer, found) for found in layer.attributes if found.name == own]
    if not pairs:
        raise ConfigError(_no_attribute(file.path, attribute, known, f"another layer than {printable(layer.name)}"))
    return pairs


def _no_attribute(path: Path, wanted: str, known: Sequence[str], other: Path | str | None) -> str:
    """Return the message that an attribute is missing; `other` is the file or layer that has it, if any."""
    has = printable(", ".join(dict.fromkeys(known)) or "none")
    if other is None:
        return f"{path}: has no attribute {printable(wanted)}; it has {has}"
    return (
        f"{path}: has no attribute {printable(wanted)}, as {other} has; it has {has}. The classes must be in a column "
        "of one name everywhere: rename it, in QGIS under Layer Properties > Fields"
    )


def _classes(attributes: Sequence[FoundAttribute]) -> tuple[FoundClass, ...]:
    """Put the values of several files together; names that differ in case or blanks are one class.

    Raises:
        DataError: numbers are no class ids.
    """
    values = [value for found in attributes for value in found.values]
    numbers = all(is_whole(value.value) for value in values)  # or texts of them, as some programs store ids
    counts: Counter[str | int] = Counter()
    areas: dict[str | int, float] = defaultdict(float)
    spellings: dict[str | int, Counter[str]] = defaultdict(Counter)
    for value in values:
        is_id = numbers or not isinstance(value.value, str)
        key: str | int = _id_of(float(value.value)) if is_id else folded(str(value.value))
        if not is_id:
            spellings[key][" ".join(str(value.value).split())] += value.number
        counts[key] += value.number
        areas[key] += value.area_m2 or 0
    if not counts:
        return ()
    known = all(value.area_m2 is not None for value in values) and sum(areas.values()) > 0
    weights: dict[str | int, float] = dict(areas) if known else dict(counts)
    total = sum(weights.values())
    spelt = {key: sorted(texts.most_common(), key=_usual)[0][0] for key, texts in spellings.items()}
    ids = {key: i for i, key in enumerate(sorted(spelt, key=str))}
    found = [
        FoundClass(
            key if isinstance(key, int) else ids[key],
            spelt.get(key),
            counts[key],
            weights[key] / total,
            areas[key] / 1e6 if areas[key] else None,
        )
        for key in counts
    ]
    return tuple(sorted(found, key=lambda each: (each.class_id, each.name or "")))


def _usual(spelling: tuple[str, int]) -> tuple[int, str]:
    """Return the order of a spelling and its count: the most common first."""
    return -spelling[1], spelling[0]


def _id_of(value: float) -> int:
    if not float(value).is_integer():
        raise DataError(f"the attribute of the classes holds {value:g}; class ids are whole numbers, or names")
    return int(value)
