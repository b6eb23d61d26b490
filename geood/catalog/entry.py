"""Data model of the catalog: data sets with their path templates, splits and label encoding. Values only, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from geood.catalog.taxonomies import ANOMALY, Colour, Taxonomy, same
from geood.errors import ConfigError

Encoding = Literal["ids", "colours", "panoptic"]
Holds = Literal["anything", "clean", "anomalous"]
Protocol = Literal["pooled", "fishyscapes", "smiyc", "caos", "densehybrid"]


@dataclass(frozen=True)
class PathLayout:
    """Path templates of images and labels below the root, with placeholders in braces.

    Placeholders that the split does not fill in match any text without a slash; `{number}` matches digits only. An
    image and a label are a pair if all placeholders that both templates contain have equal values. `base` is an image
    to which the image is added; `segments` a COCO panoptic JSON file with the classes of the labels' segments; `name`
    the name of a frame, from placeholders of `images`.
    """

    images: str
    labels: str = ""
    base: str = ""
    segments: str = ""
    name: str = "{id}"


@dataclass(frozen=True)
class Split:
    """Split of a data set: values of the placeholders, and filters on the frames found.

    Attributes:
        name: name of the split.
        places: values of the placeholders in the path templates.
        count: number of frames of the complete split after all filters; None if it varies.
        ids: regular expression that the whole frame id must match.
        drop: positions of frames to leave out, in the order of their ids.
        undropped: number of frames of the complete split before `drop`.
        hashed: interval within [0, 1) that a hash of the frame name must lie in, for sets without an official split.
        listed: text file of frame names to keep.
        by_labels: keep the frames that have labels.
        holds: condition on the labels of the whole image.
        labelled: False if only some frames have labels.
    """

    name: str
    places: Mapping[str, str]
    count: int | None = None
    ids: str = ""
    drop: tuple[int, ...] = ()
    undropped: int | None = None
    hashed: tuple[float, float] | None = None
    listed: str = ""
    by_labels: bool = False
    holds: Holds = "anything"
    labelled: bool = True


@dataclass(frozen=True)
class DataSet:
    """Published data set: source, layouts, splits, label encoding and evaluation protocol.

    `ids` maps the numbers in its label files, or `colours` their colours, to ids of the taxonomy. `size` is (height,
    width) in pixels. `held_out` are the classes that count as anomalies, `components` the minimum pixels of a predicted
    and of a ground-truth component, `benchmark` the name in the tables of published results. A `stereo` set is also
    evaluated by distance if its disparities are present. In a `crossed` set, the open-set threshold of each image
    folder is cross-validated on the other folders.
    """

    name: str
    title: str
    source: str
    licence: str
    taxonomy: Taxonomy
    layouts: tuple[PathLayout, ...]
    splits: tuple[Split, ...]
    ids: Mapping[int, int]
    colours: Mapping[Colour, int] | None = None
    encoding: Encoding = "ids"
    size: tuple[int, int] | None = None
    held_out: tuple[str, ...] = ()
    protocol: Protocol = "pooled"
    components: tuple[int, int] | None = None
    benchmark: str = ""
    resolution_m: float | None = None
    stereo: bool = False
    crossed: bool = False
    note: str = ""

    def under(self, protocol: str) -> DataSet:
        """Return this data set with another evaluation protocol.

        Raises:
            ConfigError: there is no such protocol.
        """
        for known in get_args(Protocol):
            if known == protocol:
                benchmark = self.benchmark if known == self.protocol else ""
                return replace(self, protocol=known, benchmark=benchmark)
        raise ConfigError(f"{protocol}: no such protocol; choose one of {', '.join(get_args(Protocol))}")

    def description(self) -> str:
        """Describe as text how to obtain the data set and how its folder must be laid out."""
        lines = [self.title, "", f"source    {self.source}", f"licence   {self.licence}"]
        classes = [f"{i} {name}" for i, name in self.taxonomy.classes.items()]
        lines.append(f"classes   {', '.join(classes)}")
        if self.held_out:
            lines.append(f"held out  {', '.join(self.held_out)}")
        lines.append(f"protocol  {self.protocol}")
        for split in self.splits:
            lines.append(f"split     {split.name}" + (f": {split.count} images" if split.count else ""))
        for i, layout in enumerate(self.layouts):
            lines += [f"{'layout' if i == 0 else '    or':<10}{layout.images}"]
            lines += [f"{'':<10}{path}" for path in (layout.labels, layout.base, layout.segments) if path]
        return "\n".join([*lines, "", self.note]).rstrip()

    @property
    def trains(self) -> bool:
        """True if the data set has a training split."""
        return any(split.name == "train" for split in self.splits)

    @property
    def evaluated(self) -> Split:
        """Split on which models are evaluated: the last one."""
        return self.splits[-1]

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            ConfigError: there is no split of that name.
        """
        for split in self.splits:
            if split.name == name:
                return split
        raise ConfigError(f"{self.name} has no split {name}; it has {', '.join(s.name for s in self.splits)}")


def mask_set(name: str, protocol: str) -> DataSet:
    """Return an entry for a folder of images and masks that the catalog does not hold, under a protocol.

    Masks hold 0 for not anomalous, 1 for anomalous and 255 for not counted. Its only split is `all`.

    Raises:
        ConfigError: there is no such protocol.
    """
    splits = (Split("all", {}),)
    return DataSet(name, f"images and masks in {name}", "", "", ANOMALY, (), splits, same(ANOMALY)).under(protocol)
