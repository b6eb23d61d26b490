"""Is a data set whole and as it should be? Files counted, pairs joined, every label file read.

What is wrong comes back as sentences that say what to do. Nothing is repaired, and nothing is fetched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from geood.catalog import DataSet, Split
from geood.config import IGNORE
from geood.datasets.frames import frame_size, read_labels
from geood.datasets.layout import Found, Frame, find_frames
from geood.errors import DataError
from geood.grid import Window
from geood.progress import Progress


@dataclass
class SplitCheck:
    """What is there of one split. `pixels` counts labelled pixels by class name, `unknown` those of strange numbers."""

    split: Split
    images: int = 0
    labelled: int = 0
    without_labels: list[Path] = field(default_factory=list)
    without_image: list[Path] = field(default_factory=list)
    odd_sizes: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    pixels: Counter[str] = field(default_factory=Counter)
    void: int = 0
    unknown: Counter[str] = field(default_factory=Counter)

    def faults(self, data_set: DataSet) -> Iterator[str]:
        """What is wrong, and what to do about it, a sentence each."""
        name, expected = self.split.name, self.split.count
        if expected and self.images != expected:
            source = data_set.source
            yield f"{name}: {self.images} images, {expected} in the complete set; unpack all archives of {source}"
        if self.without_labels and self.split.labelled:
            first = self.without_labels[0]
            yield f"{name}: {len(self.without_labels)} images without labels, {first} first; fetch them"
        if self.without_image:
            yield f"{name}: {len(self.without_image)} labels without image, {self.without_image[0]} first; fetch them"
        if self.odd_sizes and data_set.size:
            height, width = data_set.size
            found = ", ".join(f"{size} ({n})" for size, n in self.odd_sizes.most_common(3))
            yield f"{name}: images are not {width} x {height} px but {found}; take the files as published"
        for reason in self.unreadable[:5]:
            yield f"{name}: {reason}"
        if len(self.unreadable) > 5:
            yield f"{name}: {len(self.unreadable) - 5} more files of this kind"
        if self.unknown:
            found = ", ".join(f"{number} ({pixels:,} px)" for number, pixels in self.unknown.most_common(5))
            yield (
                f"{name}: label files hold {found}, which stand for nothing in {data_set.name} and are ignored; take "
                "the label files as published, or say what they mean with data.label_ids"
            )


def check_set(
    data_set: DataSet, root: Path, *, label_ids: Mapping[int, int] | None = None
) -> tuple[list[SplitCheck], list[str]]:
    """Look at every split of a data set below `root`; returns what is there, and all that is wrong.

    Raises:
        DataError: nothing of the set is there.
    """
    found: dict[str, Found] = {}
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


def _checked(data_set: DataSet, split: Split, found: Found, label_ids: Mapping[int, int] | None) -> SplitCheck:
    check = SplitCheck(split)
    ruled = split.holds != "anything"
    wanted = {i for i, name in data_set.taxonomy.classes.items() if name in data_set.held_out}
    wanted |= data_set.taxonomy.anomalies
    with Progress(f"checking {split.name}", len(found.frames)) as progress:
        for frame in found.frames:
            progress.advance()
            counts = _counted(frame, check, label_ids)
            if ruled and counts is not None and bool(wanted & set(counts)) != (split.holds == "anomalous"):
                continue
            check.images += 1
            if counts is None:
                continue
            check.labelled += 1
            for class_id, pixels in counts.items():
                if class_id == IGNORE:
                    check.void += pixels
                else:
                    check.pixels[data_set.taxonomy.classes[class_id]] += pixels
    check.without_labels = [f.image for f in found.frames if f.labels is None]
    check.without_image = found.without_image
    if split.ids or split.listed:  # the labels of the frames that the rules leave out are none of this split
        check.without_image = []
    return check


def _counted(frame: Frame, check: SplitCheck, label_ids: Mapping[int, int] | None) -> dict[int, int] | None:
    """Pixels of each class id in the labels of a frame; None without labels that can be read."""
    try:
        height, width = frame_size(frame)
        if frame.data_set and frame.data_set.size and (height, width) != frame.data_set.size:
            check.odd_sizes[f"{width} x {height}"] += 1
        if frame.labels is None:
            return None
        ids = read_labels(frame, Window(0, 0, height, width), label_ids=label_ids, unknown=check.unknown)
    except DataError as error:
        check.unreadable.append(str(error))
        return None
    values, counts = np.unique(ids, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts, strict=True)}
