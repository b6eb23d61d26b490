"""First config for images and labels: what was found, what was guessed, and how long it would train on this machine.

`first_config` looks at the files, proposes settings, tries them on the data, and returns a `FirstConfig`, which
`config_text` writes as a commented YAML file. Questions are asked by whoever calls: the answers come in as `Wishes`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from geood.config import Config, config_from_tree, folded
from geood.constants import IGNORE, VECTOR_SUFFIXES
from geood.datasets import NAMES_OF_NONE, find_files, ids_of_names
from geood.errors import ConfigError, DataError, counted
from geood.preflight.found_classes import FoundClass, FoundLabels, area_text, find_classes
from geood.preflight.imagery import Imagery, look_at
from geood.preflight.machine import Machine, Start, best_start, this_machine
from geood.preflight.settings import Proposal, fewer_crops, propose, smaller_blocks, smaller_crops
from geood.preflight.trial import Trial, quietly, try_crops
from geood.training import Pace

IMAGES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".vrt", ".jp2")
LISTED = 12  # more images or labels than this are named by a pattern, if there is one
FEW_CLEAN = 0.15  # share of clean crops below which smaller ones are tried
MUCH = 1.1  # times the ground of the images from which shapes are said to cover too much
BACKGROUND = "background"  # class of ground without a shape, where labels are shapes of one class
BUFFER_M = 3.0  # metres on each side of lines and points: about half a road
MORE_LAYERS = "name each that holds classes with --label-layer, from the lowest to the one on top"
log = logging.getLogger("geood")


@dataclass(frozen=True)
class Wishes:
    """Wishes of a person: classes to hold out, names of classes by id, layers and attribute of vector labels."""

    hold_out: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    attribute: str | None = None


@dataclass(frozen=True)
class FirstConfig:
    """Proposed config, with all that it was made from; `config_text` writes it down.

    Attributes:
        tree: sections and keys that the file will hold.
        imagery, labels: what was found in the files.
        classes: names of the classes to learn, by id.
        anomaly: the classes that are held out.
        left_out: values in the labels that are not used, such as `void` or -1.
        machine, start, proposal: what the settings were made for.
        trial, pace: crops that were looked at, and the time expected.
    """

    tree: dict[str, dict[str, object]]
    imagery: Imagery
    labels: FoundLabels
    classes: dict[int, str]
    anomaly: tuple[FoundClass, ...]
    left_out: tuple[FoundClass, ...]
    machine: Machine
    start: Start
    proposal: Proposal
    trial: Trial
    pace: Pace

    @property
    def config(self) -> Config:
        """The config itself."""
        return self.trial.config


@dataclass(frozen=True)
class Inputs:
    """Images and labels that were found for a first config, and what is in them."""

    root: Path
    imagery: Imagery
    labels: FoundLabels

    @classmethod
    def of(cls, images: Sequence[str], labels: Sequence[str], wishes: Wishes) -> Inputs:
        """Find images and labels by files, folders or patterns; a file that is named as both is a label.

        Raises:
            ConfigError: layer or attribute are not there, or a name is given to an id that is not in the labels.
            DataError: files are missing or cannot be read.
        """
        truth = find_files(Path(), list(labels), what="--labels", suffixes=(*IMAGES, *VECTOR_SUFFIXES))
        found = find_files(Path(), list(images), what="--images", suffixes=IMAGES)
        pictures = sorted({*found} - {*truth})
        if not pictures:
            raise DataError(
                f"{found[0]}: every image is named by --labels as well; narrow it, such as --labels 'DIR/*_labels.tif'"
            )
        absolute = [path.absolute() for path in (*pictures, *truth)]
        root = _common_folder(absolute)
        imagery = look_at([path.absolute() for path in pictures])
        labels_at = [path.absolute() for path in truth]
        listed = find_classes(labels_at, layers=wishes.layers, attribute=wishes.attribute, buffer_m=BUFFER_M)
        numbers = [found.class_id for found in listed.classes if found.name is None]
        if listed.text and numbers:
            [first, *_] = (found.name for found in listed.classes if found.name is not None)
            raise DataError(
                f"{truth[0]}: the labels hold classes as names, such as {first}, and as numbers, such as {numbers[0]}; "
                "give each class its name, or its number, everywhere"
            )
        _check_wishes(wishes, listed)
        return cls(root, imagery, replace(listed, given_names=wishes.names))

    def lines(self) -> list[tuple[str, str]]:
        """Return what was found, as (label, text) lines."""
        labels, said = self.labels, [("images", line) for line in self.imagery.lines()]
        if self.imagery.suspected is not None:
            value = f"{self.imagery.suspected:g}"
            said.append(("guessed", f"nodata {value}: it fills the border of an image and is not declared"))
        said.append(("labels", labels.kinds))
        if labels.attribute:
            among = "guessed among several" if labels.chosen else "the only one that fits"
            plural = "" if len(labels.layers) == 1 else "s"
            layer = f"layer{plural} {', '.join(labels.layers)}; column " if labels.layers else ""
            said.append(("attribute", f"{layer}{labels.attribute}: {among}"))
        for found in sorted(labels.classes, key=lambda found: -found.share):
            area = "" if found.km2 is None else f", {area_text(found.km2)}"
            name = labels.name_of(found) or ""
            named = name if found.name is not None else f"{found.class_id} {name}".strip()
            said.append(("class", f"{named}: {100 * found.share:.3g} % of the labelled ground{area}"))
        drawn, seen = sum(found.km2 or 0 for found in labels.classes), self.imagery.km2
        if labels.vector and seen and drawn > MUCH * seen:
            text = (
                f"the shapes cover {area_text(drawn)}, and the images {area_text(seen)}: the shares count shapes that"
            )
            said.append(("note", f"{text} lie beside the images, or on each other, as well"))
        said += [("note", text) for text in labels.likely_slips()]
        if labels.unread:
            said.append(("note", f"layers that are not read: {', '.join(labels.unread)}; {MORE_LAYERS}"))
        return said + [("note", problem) for problem in dict.fromkeys(labels.problems)]


def _common_folder(paths: Sequence[Path]) -> Path:
    """Return the folder that absolute paths share; the root of the first if they lie on several drives."""
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:
        return Path(paths[0].anchor)


def _check_wishes(wishes: Wishes, labels: FoundLabels) -> None:
    """Refuse wishes that nothing in the labels would fulfil.

    Raises:
        ConfigError: there is one.
    """
    if not labels.vector and (wishes.layers or wishes.attribute):
        option = "--label-layer" if wishes.layers else "--label-attribute"
        raise ConfigError(f"{option} is for vector files, and {labels.paths[0]} is a raster of class ids; leave it out")
    if wishes.names and labels.text:
        first = labels.classes[0].name
        raise ConfigError(
            f"--name is for labels that hold numbers, and these hold names, such as {first}; leave it out"
        )
    known = [0, 1, IGNORE] if labels.masks else [found.class_id for found in labels.classes]
    whole = labels.counted == len(labels.paths)  # of a sample others may hold an id
    if strange := [class_id for class_id in wishes.names if whole and class_id not in known]:
        held = ", ".join(map(str, known))
        raise ConfigError(
            f"--name {strange[0]}={wishes.names[strange[0]]}: the labels hold no {strange[0]}, but {held}"
        )


def first_config(inputs: Inputs, wishes: Wishes) -> FirstConfig:
    """Make a config for images and labels, and try it on some of their crops.

    Raises:
        ConfigError: a class to be held out is not in the labels, or fewer than two are left to be learned.
        DataError: images and labels do not fit each other, or no crop can be trained on.
    """
    inputs = replace(inputs, labels=replace(inputs.labels, given_names=wishes.names))
    imagery, labels = inputs.imagery, inputs.labels
    held = tuple(dict.fromkeys(labels.find(name) for name in wishes.hold_out))
    left_out = tuple(found for found in labels.classes if _is_none(labels, found) and found not in held)
    classes = _named(labels, {*held, *left_out}, {**labels.id_names, **wishes.names})
    machine = this_machine()
    start = best_start(machine)
    proposal = propose(imagery, machine, start)
    data = _data(inputs, classes, held)
    with quietly():
        trial = try_crops(_config(data, proposal, inputs))
        while trial.clean < FEW_CLEAN and trial.with_anomaly > 0.5:
            smaller = smaller_crops(proposal, imagery)
            if smaller is None or (again := _tried(_config(data, smaller, inputs))) is None:
                break
            proposal, trial = smaller, again
        if trial.few_blocks and (narrower := smaller_blocks(proposal, trial.blocks)):
            other = _tried(_config(data, narrower, inputs))
            proposal, trial = (narrower, other) if other and other.blocks > trial.blocks else (proposal, trial)
        pace = trial.pace()
    proposal = fewer_crops(proposal, pace.read_s)
    trial = replace(trial, config=_config(data, proposal, inputs))
    return FirstConfig(
        tree=_tree(data, proposal, imagery),
        imagery=imagery,
        labels=labels,
        classes=classes,
        anomaly=held,
        left_out=left_out,
        machine=machine,
        start=start,
        proposal=proposal,
        trial=trial,
        pace=pace,
    )


def _tried(config: Config) -> Trial | None:
    """Try a config that may be better than one that works; None if it leaves nothing to train on or to validate."""
    try:
        return try_crops(config)
    except DataError:
        return None


def _is_none(labels: FoundLabels, found: FoundClass) -> bool:
    """Tell whether a value in labels means no class: its name is such as `void`, or no class may have its number."""
    name = labels.name_of(found)
    unusable = found.name is None and not 0 <= found.class_id < IGNORE
    return unusable or (name is not None and folded(name) in NAMES_OF_NONE)


def _named(labels: FoundLabels, without: set[FoundClass], names: Mapping[int, str]) -> dict[int, str]:
    """Return the names of the classes to be learned, by id.

    Raises:
        ConfigError: there are fewer than two.
    """
    if labels.masks:
        return {0: names.get(0, "background"), 1: names.get(1, names.get(255, "class_1"))}
    chosen = [found for found in labels.classes if found not in without]
    if labels.vector and len(chosen) == 1:  # what is not drawn is the other class
        [only] = chosen
        if only.name is not None:
            return {0: only.name, 1: BACKGROUND}
        name = names.get(only.class_id, f"class_{only.class_id}")
        return {only.class_id: name, max(found.class_id for found in labels.classes) + 1: BACKGROUND}
    if len(chosen) < 2:
        held = ", ".join(found.name or str(found.class_id) for found in chosen) or "none"
        raise ConfigError(
            f"the labels leave {counted(len(chosen), 'class', 'classes')} to be learned ({held}), and a segmenter "
            "needs two at least: label other ground as well, or hold out less"
        )
    if labels.text:
        return ids_of_names({found.name: found.number for found in chosen if found.name is not None})
    return {found.class_id: names.get(found.class_id, f"class_{found.class_id}") for found in chosen}


def _data(inputs: Inputs, classes: dict[int, str], held: Sequence[FoundClass]) -> dict[str, object]:
    """Return the data section as far as it follows from the files."""
    imagery, labels, root = inputs.imagery, inputs.labels, inputs.root
    data: dict[str, object] = {
        "kind": imagery.kind,
        "root": str(root),
        "images": patterns(imagery.paths, root, apart=labels.paths),
        "labels": patterns(labels.paths, root, apart=imagery.paths),
        "classes": classes,
        "anomaly": _anomaly(labels, held, {*classes.values()}),
    }
    if labels.vector:
        data |= {"label_attribute": labels.attribute}
        data |= (
            {"label_layer": labels.layers[0] if len(labels.layers) == 1 else [*labels.layers]} if labels.layers else {}
        )
        data |= {"label_buffer_m": BUFFER_M} if labels.thin else {}
        data |= {"background": BACKGROUND} if BACKGROUND in classes.values() else {}
    if labels.masks:
        data["label_ids"] = {255: 1}
    if imagery.kind == "photos":
        data |= {"flips": "sideways", "quarter_turns": False}
    return data


def _anomaly(labels: FoundLabels, held: Sequence[FoundClass], taken: set[str]) -> list[object] | dict[int, str]:
    """Return what is held out: names of texts; ids of numbers, with their names where one is known and not `taken`."""
    if labels.text:
        return [found.name for found in held]
    names = {found.class_id: labels.name_of(found) for found in held}
    known = {class_id: name for class_id, name in names.items() if name and name not in taken}
    return {class_id: known.get(class_id, f"class_{class_id}") for class_id in names} if known else [*names]


def patterns(paths: Sequence[Path], root: Path, *, apart: Sequence[Path]) -> list[str]:
    """Return patterns relative to a folder that name these files and none of others; file by file if there are none.

    Tried are the ending of the names (`*_labels.tif`), and names that do not end as the others do (`*[!s].tif`), in one
    folder or in all that lie side by side (`*/*.tif`). Below the root of the file system, which is no folder that the
    files share, patterns are absolute.
    """
    whole = root == Path(root.anchor)
    names = sorted((path if whole else path.relative_to(root)).as_posix() for path in paths)
    if len(names) <= LISTED:
        return names
    folders = {path.parent for path in paths}
    above = folders if len(folders) == 1 else {folder.parent for folder in folders}
    if len(above) != 1:
        return names
    [folder], deep = above, "" if above == folders else "*/"
    beside = (folder if whole else folder.relative_to(root)).as_posix()
    prefix = "" if beside == "." else f"{beside.rstrip('/')}/"
    endings = {path.suffix for path in paths}
    tails = {path.stem[-1] for path in apart if path.parent in folders}
    tried = [f"*{ending}" for ending in endings]
    tried += [f"*{_common_end([path.stem for path in paths])}{ending}" for ending in endings]
    tried += [f"*[!{tail}]{ending}" for tail in tails for ending in endings if tail.isalnum()]
    for pattern in tried:
        if set(folder.glob(deep + pattern)) == set(paths):
            return [prefix + deep + pattern]
    return names


def _common_end(stems: Sequence[str]) -> str:
    """Return the longest text that all names end in, with `?` for what a pattern would take for something else."""
    end = ""
    for letters in zip(*(stem[::-1] for stem in stems), strict=False):
        if len(set(letters)) > 1:
            break
        end = ("?" if letters[0] in "[]*?" else letters[0]) + end
    return end


def _tree(data: dict[str, object], proposal: Proposal, imagery: Imagery) -> dict[str, dict[str, object]]:
    tree: dict[str, dict[str, object]] = proposal.tree()
    bands: dict[str, dict[str, object]] = {}
    if imagery.suspected is not None:
        bands = {"bands": {"nodata": float(imagery.suspected)}}
    return {"data": data | tree.pop("data"), **bands, **tree}


def _config(data: dict[str, object], proposal: Proposal, inputs: Inputs) -> Config:
    """Return the config of data and settings.

    Raises:
        ConfigError: they do not make one.
    """
    return config_from_tree(_tree(data, proposal, inputs.imagery), source="the first config")
