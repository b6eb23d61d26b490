"""What an entry of the catalog is: layouts as templates of paths, splits, and how label files are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from geood.catalog.taxonomies import Colour, Taxonomy
from geood.errors import ConfigError

Encoding = Literal["ids", "colours", "panoptic"]
Holds = Literal["anything", "clean", "anomalous"]
Protocol = Literal["pooled", "fishyscapes", "smiyc", "caos", "densehybrid"]


@dataclass(frozen=True)
class PathLayout:
    """Where images and labels lie below the root: templates of paths with places in braces.

    `{split}` and the like are filled in by the split; what a split does not fill in stands for any one name. Images and
    labels are a pair where all places that both templates have are equal. `base` is an image that the image is added
    to; `segments` a COCO panoptic file that says what the labels' segments are; `name` what a frame is called, of
    places of the images. What stands for `{number}` is digits alone.
    """

    images: str
    labels: str = ""
    base: str = ""
    segments: str = ""
    name: str = "{id}"


@dataclass(frozen=True)
class Split:
    """A part of a data set: `places` fills in the templates; the other keys choose among the frames found.

    `ids` is a regular expression that whole frame ids match, `drop` numbers of frames (out of `undropped` in all) in
    the order of their ids, `hashed` a part of [0, 1) in which a hash of their names lies, for sets that come without a
    split, `listed` a text file of frame names, `by_labels` takes the frames that have labels and `holds` is a rule on
    what the labels of a whole image hold. `count` is how many frames the complete split has after all this (None: it
    may differ); of a split that is not `labelled` only some frames have labels.
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
    """A published data set. `ids` maps the numbers in its label files, or `colours` their colours, to the taxonomy.

    `held_out` are classes that are anomalies in it, `components` the least pixels of a predicted and of a true
    component, `benchmark` a name in the tables of published figures. A `stereo` set is also measured by distance, where
    its disparities are there. A `crossed` set takes its open-set threshold for each folder of images from the others.
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
        """Return this set measured by another protocol.

        Raises:
            ConfigError: there is no such protocol.
        """
        for known in get_args(Protocol):
            if known == protocol:
                benchmark = self.benchmark if known == self.protocol else ""
                return replace(self, protocol=known, benchmark=benchmark)
        raise ConfigError(f"{protocol}: no such protocol; they are {', '.join(get_args(Protocol))}")

    def description(self) -> str:
        """All that a user needs to get the set and lay it out, as text."""
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
        """Whether there is something to train on."""
        return any(split.name == "train" for split in self.splits)

    @property
    def evaluated(self) -> Split:
        """The split that a model is measured on: the last one."""
        return self.splits[-1]

    def split(self, name: str) -> Split:
        """A split by name.

        Raises:
            ConfigError: there is none of that name.
        """
        for split in self.splits:
            if split.name == name:
                return split
        raise ConfigError(f"{self.name} has no split {name}; it has {', '.join(s.name for s in self.splits)}")
