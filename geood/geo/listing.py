"""Files of a folder: found by suffix or by pattern, and matched by name.

One set of rules serves training, prediction and evaluation. What begins with a dot is no input (`._a.tif` of macOS,
`.ipynb_checkpoints`, work folders), nor is the folder `__MACOSX` that unpacked archives leave. A folder is none,
whatever its name. A link that leads nowhere is an error, as a file that is not there must not pass for one that was not
meant. A name is itself before it is a pattern, so `survey [2024]` is found; two spellings of one name in Unicode (NFC,
NFD) are the same name. Nothing is opened here.
"""

from __future__ import annotations

import fnmatch
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from geood.errors import DataError

_UNPACKED = "__MACOSX"


def files_in(folder: str | Path, suffixes: Sequence[str], *, deep: bool = False) -> list[Path]:
    """Return the files of a folder that have one of the suffixes (lower case), sorted; `deep`: of those below it too.

    Raises:
        DataError: a folder cannot be listed, or a link with such a suffix leads nowhere.
    """
    found: list[Path] = []
    for path in _entries(Path(folder)):
        if path.suffix.lower() in suffixes and _is_file(path):
            found.append(path)
        elif deep and path.is_dir() and not path.is_symlink():
            found += files_in(path, suffixes, deep=True)
    return sorted(found)


def files_matching(root: str | Path, pattern: str) -> list[Path]:
    """Return the files that a pattern with `*`, `?`, `[...]` and `**` names, relative to a root or absolute, sorted.

    A hidden file or folder is only found by a part of the pattern that names it or begins with a dot.

    Raises:
        DataError: a folder cannot be listed, or a link that fits the pattern leads nowhere.
    """
    given = Path(pattern)
    start, parts = (Path(given.anchor), given.parts[1:]) if given.anchor else (Path(root), given.parts)
    return sorted({found for found in _matching(start, parts) if _is_file(found)})


def same_name(name: str) -> str:
    """Return the one spelling of a name under which its spellings in Unicode are equal."""
    return unicodedata.normalize("NFC", name)


def pair_by_name(images: Sequence[Path], labels: Sequence[Path]) -> list[list[Path]] | None:
    """Pair each image with its label file; None if any image has no label or several, or a label has no image.

    The stem of a label is that of its image, optionally with a suffix after `_`, `-` or `.`. If the stems of several
    images match, the longest counts: `a_2_gt` belongs to `a_2`, not to `a`.
    """
    pairs, alone = partners(images, labels)
    whole = not alone and len(labels) == len(images) and all(len(files) == 1 for files in pairs)
    return pairs if whole else None


def partners(images: Sequence[Path], labels: Sequence[Path]) -> tuple[list[list[Path]], list[Path]]:
    """Return the labels that belong to each image, and those that belong to none, by the rule of `pair_by_name`."""
    stems: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        stems.setdefault(same_name(image.stem), []).append(i)
    pairs: list[list[Path]] = [[] for _ in images]
    alone = []
    for label in labels:
        stem = same_name(label.stem)
        ends = [len(stem), *(i for i in range(len(stem) - 1, 0, -1) if stem[i] in "_-.")]
        longest = next((stem[:end] for end in ends if stem[:end] in stems), None)
        if longest is None:
            alone.append(label)
        for i in stems.get(longest or "", ()):
            pairs[i].append(label)
    return pairs, alone


def why_no_pairs(images: Sequence[Path], labels: Sequence[Path]) -> str:
    """Return what keeps images and labels from being pairs: those without a partner, or with several, by name."""
    pairs, alone = partners(images, labels)
    bare = [image for image, files in zip(images, pairs, strict=True) if not files]
    twice = [(image, files) for image, files in zip(images, pairs, strict=True) if len(files) > 1]
    found = [f"no labels for {some_of(bare)}"] if bare else []
    found += [f"no image for {some_of(alone)}"] if alone else []
    found += [f"several labels for {image.name} ({some_of(files)})" for image, files in twice[:1]]
    stems = Counter(same_name(image.stem) for image in images)
    of_one_name = [image for image in images if stems[same_name(image.stem)] > 1]
    found += [f"{some_of(of_one_name)} have one name"] if of_one_name else []
    in_other_case = [
        f"{label.name} and {image.name} differ in upper and lower case"
        for image in bare[:100]
        for label in alone[:100]
        if same_name(label.stem).casefold().startswith(same_name(image.stem).casefold())
    ]
    return "; ".join([*found, *in_other_case[:1]])


def some_of(paths: Sequence[Path]) -> str:
    """Return the names of some of the files, for messages."""
    return ", ".join(p.name for p in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _matching(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield the paths below a folder that fit the parts of a pattern."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if os.path.lexists(folder / part):
        yield from _matching(folder / part, rest)
    elif part == "**" and folder.is_dir():
        yield from _matching(folder, rest or ("*",))
        for path in _entries(folder):
            if path.is_dir() and not path.is_symlink():
                yield from _matching(path, parts)
    elif folder.is_dir():
        wanted = same_name(part)
        for path in _entries(folder, hidden=part[0] == "."):
            if fnmatch.fnmatch(same_name(path.name), wanted) or same_name(path.name) == wanted:
                yield from _matching(path, rest)


def _entries(folder: Path, *, hidden: bool = False) -> list[Path]:
    """List a folder by name, without what is hidden unless that is asked for."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check that you may read it") from None
    return [folder / name for name in names if (hidden or name[0] != ".") and name != _UNPACKED]


def _is_file(path: Path) -> bool:
    """Check that a path is a file, or a link to one.

    Raises:
        DataError: it is a link that leads nowhere, or cannot be looked at.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path}: a link that leads nowhere ({os.readlink(path)}); repair it, or remove it")
        return path.is_file()
    except OSError as error:
        raise DataError(f"{path}: cannot be looked at ({error.strerror}); check that you may read its folder") from None
