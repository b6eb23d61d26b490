"""Completeness check of a published data set: counts files, joins pairs and reads every label file.

Faults are returned as sentences that name the remedy. Nothing is repaired, and nothing is downloaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from geood.catalog import DataSet, Split
from geood.constants import IGNORE
from geood.datasets.discovery import find_frames
from geood.datasets.frames import FoundFrames, Frame, frame_size, held_ids
from geood.errors import DataError, counted
from geood.progress import Progress


@dataclass
class SplitCheck:
    """Findings in the files of one split.

    Labelled pixels are counted in three groups: those of each class by its name, those that the set defines as void,
    and those of unknown numbers. `not_found` are names in the split's list that no image has.
    """

    split: Split
    images: int = 0
    labelled: int = 0
    without_labels: list[Path] = field(default_factory=list)
    without_image: list[Path] = field(default_factory=list)
    not_found: list[str] = field(default_factory=list)
    odd_sizes: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    pixels: Counter[str] = field(default_factory=Counter)
    void: int = 0
    unknown: Counter[str] = field(default_factory=Counter)

    def lines(self, data_set: DataSet) -> Iterator[str]:
        """Yield a summary for people: number of images, and the share of each class in their labels."""
        yield f"{self.split.name}: {counted(self.images, 'image')}, {self.labelled} with labels"
        labelled = sum(self.pixels.values()) + self.void + sum(self.unknown.values())
        for name, pixels in [(name, self.pixels[name]) for name in data_set.taxonomy.classes.values()]:
            if pixels:
                yield f"  {name:<20}{100 * pixels / labelled:7.2f} %"
        if labelled:
            yield f"  {'void':<20}{100 * self.void / labelled:7.2f} %"

    def faults(self, data_set: DataSet) -> Iterator[str]:
        """Yield each fault with its remedy, one sentence each."""
        name, expected = self.split.name, self.split.count
        if expected and self.images != expected:
            source = data_set.source
            found = counted(self.images, "image")
            yield f"{name}: {found}, {expected} in the complete set; unpack all archives of {source}"
        if self.without_labels and self.split.labelled:
            first = self.without_labels[0]
            yield f"{name}: {counted(len(self.without_labels), 'image')} without labels, {first} first; fetch them"
        if self.without_image:
            found, first = counted(len(self.without_image), "label file"), self.without_image[0]
            yield f"{name}: {found} without image, {first} first; fetch them"
        if self.not_found:
            names = ", ".join(self.not_found[:3]) + (", ..." if len(self.not_found) > 3 else "")
            found = counted(len(self.not_found), "name")
            yield f"{name}: {found} in {self.split.listed} that no image has: {names}; fetch them"
        if self.odd_sizes and data_set.size:
            height, width = data_set.size
            found = ", ".join(f"{size} ({n})" for size, n in self.odd_sizes.most_common(3))
            yield f"{name}: images are not {width} x {height} px but {found}; take the files as published"
        for reason in self.unreadable[:5]:
            yield f"{name}: {reason}"
        if len(self.unreadable) > 5:
            yield f"{name}: {counted(len(self.unreadable) - 5, 'more file')} of this kind"
        if self.unknown:
            found = ", ".join(f"{number} ({pixels:,} px)" for number, pixels in self.unknown.most_common(5))
            yield (
                f"{name}: label files hold {found}, undefined in {data_set.name} and ignored; take "
                "the label files as published, or say what they mean with data.label_ids"
            )


def check_set(
    data_set: DataSet, root: Path, *, label_ids: Mapping[int, int] | None = None
) -> tuple[list[SplitCheck], list[str]]:
    """Check every split of a data set below `root`; return the findings by split, and all faults.

    Raises:
        DataError: no split of the set is there.
    """
    found: dict[str, FoundFrames] = {}
    missing: dict[str, DataError] = {}
    for split in data_set.splits:
        try:
            found[split.name] = find_frames(data_set, root, split)
        except DataError as error:
            missing[split.name] = error
    if not found:
        raise next(iter(missing.values()))
    checks = [_checked(data_set, data_set.split(name), f, label_ids) for name, f in found.items()]
    faults = [f"{name}: {error}" for name, error in missing.items()]
    return checks, [fault for check in checks for fault in check.faults(data_set)] + faults


def _checked(data_set: DataSet, split: Split, found: FoundFrames, label_ids: Mapping[int, int] | None) -> SplitCheck:
    check = SplitCheck(split, without_labels=found.without_labels, not_found=found.not_found)
    if not (split.ids or split.listed):  # else labels of other splits' frames are among them
        check.without_image = found.without_image
    held = {i for i, name in data_set.taxonomy.classes.items() if name in data_set.held_out}
    held |= data_set.taxonomy.anomalies
    with Progress(f"checking {split.name}", len(found.frames)) as progress:
        for frame in found.frames:
            _count(frame, check, held, label_ids)
            progress.advance()
    return check


def _count(frame: Frame, check: SplitCheck, held: set[int], label_ids: Mapping[int, int] | None) -> None:
    """Count one frame and its labels, unless its labels put it in another split."""
    data_set, holds = frame.data_set, check.split.holds
    assert data_set is not None
    try:
        height, width = frame_size(frame)
        counts, unknown = held_ids(frame, label_ids)
    except DataError as error:
        check.images += 1
        check.unreadable.append(str(error))
        return
    if frame.labels and holds != "anything" and held.isdisjoint(counts) == (holds == "anomalous"):
        return
    check.images += 1
    if data_set.size and (height, width) != data_set.size:
        check.odd_sizes[f"{width} x {height}"] += 1
    if frame.labels:
        check.labelled += 1
        check.void += counts.pop(IGNORE, 0) - unknown.total()
        check.unknown += unknown
        check.pixels.update({data_set.taxonomy.classes[i]: pixels for i, pixels in counts.items()})
