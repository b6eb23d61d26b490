"""Upgrades of bundle headers: from each format that can still be read to the next.

An upgrade is a function from the JSON tree of one format to that of the next. It adds what it can, leaves tensors and
what configs say as they are (a config has a version of its own), and says what remains missing, since a bundle that was
trained before something was measured cannot know it. The trees come from files of others and are not checked yet: an
upgrade must take whatever JSON can hold. What cannot be upgraded has no step here and is refused in `bundle_header`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from geood.errors import shown

OLD_HALO = 64  # pixels: what formats before 4 had in their configs unless told otherwise
OLD_STRIDES = [4, 8]  # of the encoder's maps that outlier heads of formats before 6 see
PLAIN_FLOWS = 8  # the format since which the tensors of a plain flow are those of now
AGAIN = "train it again in another run folder (its own counts as finished, with --resume too)"
Tree = dict[str, Any]


class Upgraded(NamedTuple):
    """Header tree of the newest format, the format of the file, and a sentence on each thing that is missing."""

    tree: Tree
    written: int
    missing: tuple[str, ...] = ()


def upgraded(tree: Tree, *, to: int) -> Upgraded | None:
    """Return a header tree of an older format in format `to`; None if there is no way."""
    written: int = tree["format"]
    missing: tuple[str, ...] = ()
    for given in range(written, to):
        if given not in UPGRADES:
            return None
        tree, *more = UPGRADES[given](tree)
        tree, missing = tree | {"format": given + 1}, (*missing, *more)
    return Upgraded(tree, written, missing)


def _of_format_3(tree: Tree) -> tuple[Tree, *tuple[str, ...]]:
    """Upgrade format 3, whose halo was a number in the config, chosen before anything was known of the network.

    Its bank of the encoder knew no classes, and `combined` was the larger of both surprisals: its thresholds go.
    """
    predict = tree["config"].get("predict") if isinstance(tree.get("config"), dict) else None
    halo = predict.get("halo_px", OLD_HALO) if isinstance(predict, dict) else OLD_HALO
    lacks = (
        f"how far its network looks was not measured, so tiles are read with a halo of {shown(halo)} px, and seams may "
        f"show; take a wider one (--set predict.halo_px=320) if they do, or {AGAIN}"
    )
    known = tree.get("calibration")
    if not isinstance(known, dict) or "combined" not in known:
        return tree | {"reach": None}, lacks
    kept = {kind: thresholds for kind, thresholds in known.items() if kind != "combined"}
    other = (
        "its neighbours in the encoder are those of all classes, and its score combined has no thresholds; give "
        f"--threshold, take score.kind=hybrid, or {AGAIN}"
    )
    return tree | {"reach": None, "calibration": kept}, lacks, other


def _of_format_4(tree: Tree) -> tuple[Tree, *tuple[str, ...]]:
    """Upgrade format 4, whose bank holds features of stride 8 alone; scores weigh it as they did then."""
    return (tree,)


def _of_format_5(tree: Tree) -> tuple[Tree, *tuple[str, ...]]:
    """Upgrade format 5, whose outlier head sees the encoder at strides 4 and 8."""
    config = tree.get("config")
    segmenter = config.get("segmenter", {}) if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(segmenter, dict):
        return (tree,)
    return (tree | {"config": config | {"segmenter": segmenter | {"outlier_strides": OLD_STRIDES}}},)


def _of_format_6(tree: Tree) -> tuple[Tree, *tuple[str, ...]]:
    """Upgrade format 6, whose score combined has two experts: without the tail of a third one it stays as it was."""
    return (tree,)


def _of_format_7(tree: Tree) -> tuple[Tree, *tuple[str, ...]]:
    """Upgrade format 7, whose plain flow has other tensors: it is left out, and no score needs it."""
    return (tree,)


UPGRADES: dict[int, Callable[[Tree], tuple[Tree, *tuple[str, ...]]]] = {  # by the format that they take
    3: _of_format_3,
    4: _of_format_4,
    5: _of_format_5,
    6: _of_format_6,
    7: _of_format_7,
}
