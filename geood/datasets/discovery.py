"""Discovery of the frames of a named data set: its path templates, matched against the files below a root.

Images and labels have separate templates and are joined on the placeholders that both share, so that a missing half of
a pair is noticed on either side. A root without the set is rejected with the nearest folder that holds it.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from geood.catalog import DataSet, PathLayout, Split
from geood.datasets.frames import FoundFrames, Frame
from geood.errors import DataError, counted
from geood.geo.listing import files_matching, same_name

PLACEHOLDER = re.compile(r"\{(\w+)\}")
PATTERNS = {"number": r"\d+"}  # of placeholders; any other matches one path component
HEADERS = {"image", "images", "name", "names", "file", "filename", "file_name", "frame", "id"}  # of a list's column


def find_frames(data_set: DataSet, root: Path, split: Split) -> FoundFrames:
    """Find the frames of one split below `root`, with the set's layout that matches most pairs, the first of equals.

    Label files are not read.

    Raises:
        DataError: nothing below the root looks like the set (the message names the nearest folder that does), or the
            images are overlays and a base image is missing.
    """
    best: FoundFrames | None = None
    for layout in data_set.layouts:
        found = _matched(data_set, root, layout, split)
        if _usable(found, split) and (best is None or _whole(found) > _whole(best)):
            best = found
        if best and _whole(best) == len(best.frames):
            break
    if best is None or (split.labelled and not _whole(best) and _nearest(data_set, root, split, whole=True)):
        raise DataError(_nothing(data_set, root, split, pairs=best is not None))
    bare = [frame.image for frame in best.frames if frame.base is None] if best.layout.base else []
    if bare:
        raise DataError(
            f"{bare[0]}: {counted(len(bare), 'overlay lacks', 'overlays lack')} the image to be added to, this one "
            f"first; needed: {root / _filled(best.layout.base, split)}"
        )
    best.frames, best.not_found = _chosen(best.frames, root, split)
    if not best.frames:
        raise DataError(f"{root}: none of the frames of {data_set.name} belongs to its split {split.name}")
    names = Counter(frame.name for frame in best.frames)
    twice = [frame.image for frame in best.frames if names[frame.name] > 1]
    if twice:
        raise DataError(f"{twice[0]}, {twice[1]}: two images of {data_set.name} have one name; keep one of them")
    best.without_labels = [frame.image for frame in best.frames if frame.labels is None]
    return best


def drop_unlabelled(found: FoundFrames, data_set: DataSet, root: Path, *, split: Split) -> list[Frame]:
    """Remove the frames without labels from `found` and return them.

    Raises:
        DataError: no frame has labels.
    """
    bare = [frame for frame in found.frames if frame.labels is None]
    found.frames = [frame for frame in found.frames if frame.labels is not None]
    if not found.frames:
        raise DataError(
            f"{root}: no image of {data_set.name}, split {split.name}, has labels; look for "
            f"{' and '.join(filter(None, (found.layout.labels, found.layout.segments)))}"
        )
    return bare


def _usable(found: FoundFrames, split: Split) -> bool:
    """Return True if any frame has its base image, where needed, and labels, where they put it in the split."""
    return any((f.base or not found.layout.base) and (f.labels or not split.by_labels) for f in found.frames)


def _whole(found: FoundFrames) -> int:
    """Count the complete frames: those with labels, and with a base image where the layout has one."""
    return sum(f.labels is not None and (f.base is not None or not found.layout.base) for f in found.frames)


def _matched(data_set: DataSet, root: Path, layout: PathLayout, split: Split) -> FoundFrames:
    """Match one layout below a root, before the split's rules on names."""
    images = dict(_files(root, layout.images, split))
    labels = {path: values for path, values in _files(root, layout.labels, split) if path not in images}
    bases = dict(_files(root, layout.base, split))
    names = [set(PLACEHOLDER.findall(_filled(t, split))) for t in (layout.images, layout.labels, layout.base)]
    shared = tuple(sorted(names[0] & names[1]))
    to_base = tuple(sorted(names[0] & names[2]))
    by_key = {_key(values, shared): path for path, values in labels.items()}
    by_base = {_key(values, to_base): path for path, values in bases.items()}
    segments = root / layout.segments if layout.segments else None
    if segments and not segments.is_file():  # labels are useless without the index of their segments
        labels, by_key = {}, {}
    frames = [
        Frame(
            layout.name.format_map(values),
            path,
            by_key.get(_key(values, shared)),
            data_set,
            by_base.get(_key(values, to_base)) if layout.base else None,
            segments,
        )
        for path, values in images.items()
    ]
    frames.sort(key=lambda frame: (frame.name, frame.image))
    found = {_key(values, shared) for values in images.values()}
    without_image = sorted(path for path, values in labels.items() if _key(values, shared) not in found)
    return FoundFrames(layout, frames, without_image=without_image)


def _key(values: dict[str, str], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(same_name(values[name]) for name in names)


def _files(root: Path, template: str, split: Split) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the files that match a template, with the values of its placeholders."""
    if not template:
        return
    template = _filled(template, split)
    seen: set[str] = set()
    pattern = ""
    for i, part in enumerate(PLACEHOLDER.split(template)):
        if i % 2 == 0:
            pattern += re.escape(part)
        else:  # a repeated placeholder must have the same value
            pattern += f"(?P={part})" if part in seen else f"(?P<{part}>{PATTERNS.get(part, '[^/]+')})"
            seen.add(part)
    whole = re.compile(pattern)
    for path in files_matching(root, PLACEHOLDER.sub("*", template)) if root.is_dir() else ():
        match = whole.fullmatch(path.relative_to(root).as_posix())
        if match:
            yield path, match.groupdict()


def _filled(template: str, split: Split) -> str:
    """Fill in the placeholders that the split defines."""
    return PLACEHOLDER.sub(lambda match: split.places.get(match[1], match[0]), template)


def _chosen(frames: list[Frame], root: Path, split: Split) -> tuple[list[Frame], list[str]]:
    """Apply a split's rules on names; return the frames left, and the names in its list that no frame has."""
    not_found: list[str] = []
    if split.undropped in (None, len(frames)):  # else the set is incomplete and its indexes are shifted
        frames = [frame for i, frame in enumerate(frames) if i not in split.drop]
    if split.by_labels:
        frames = [frame for frame in frames if frame.labels]
    if split.listed:
        there = {same_name(frame.name) for frame in frames}
        listed = {name: {name, Path(name).name, Path(name).stem} & there for name in _listed(root / split.listed)}
        chosen = set().union(*listed.values())
        frames = [frame for frame in frames if same_name(frame.name) in chosen]
        not_found = [
            name for i, (name, names) in enumerate(listed.items()) if not names and (i or name.lower() not in HEADERS)
        ]
    if split.ids:
        frames = [frame for frame in frames if re.fullmatch(split.ids, frame.name)]
    if split.hashed:
        low, high = split.hashed
        frames = [frame for frame in frames if low <= _hashed(frame.name) < high]
    return frames, not_found


def _hashed(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone, on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32


def _listed(path: Path) -> list[str]:
    """Read the first column of a list: names or paths, with or without suffix.

    Raises:
        DataError: the list is missing or not a text file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [same_name(row[0].split()[0]) for row in csv.reader(file) if row and row[0].strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: the list of the split's frames cannot be read ({error}); it must name one per line"
        ) from None


def _nothing(data_set: DataSet, root: Path, split: Split, *, pairs: bool) -> str:
    """Say that a root does not hold the set, and where it may be; `pairs`: there are images, but none has labels."""
    pairs = pairs or split.by_labels
    needed = [(layout.images, layout.base, layout.labels if pairs else "") for layout in data_set.layouts]
    wanted = " or ".join(dict.fromkeys(_filled(" with ".join(filter(None, each)), split) for each in needed))
    if not root.is_dir():
        return f"{root}: no such folder; give the folder of {data_set.title} that holds {wanted}"
    near = _nearest(data_set, root, split, whole=True) or _nearest(data_set, root, split, whole=False)
    if near:
        return f"{root}: holds no {wanted}, but {near} does; give that folder"
    inside = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
    return (
        f"{root}: holds no image of {data_set.name}, split {split.name}; needed: {wanted}; found: {inside}. "
        f"`geood data list {data_set.name}` shows its layout"
    )


def _nearest(data_set: DataSet, root: Path, split: Split, *, whole: bool) -> Path | None:
    """Return the nearest folder that holds an image of the set (`whole`: a complete frame); None without one."""
    for folder in _near(root):
        try:
            found = [_matched(data_set, folder, layout, split) for layout in data_set.layouts]
        except DataError:  # a folder that may not be read, which nobody named
            continue
        if any(_usable(each, split) and (_whole(each) or not whole) for each in found):
            return folder
    return None


def _near(root: Path) -> Iterator[Path]:
    """Yield folders that a user may have meant: up to two levels below the root, and above it."""
    for depth in ("*", "*/*"):
        yield from sorted(p for p in root.glob(depth) if p.is_dir())[:200]
    yield from list(root.resolve().parents)[:4]
