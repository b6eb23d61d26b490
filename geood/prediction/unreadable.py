"""Scenes that cannot be read: all are named before any work, or left out, told and listed (`--unreadable skip`).

Among hundreds of photographs a few are empty or cut. What cannot be opened is known at once, what can only be opened
by its first tiles; a file that is damaged further on has a map with failed tiles. What can be read and does not fit,
such as a scene of other bands, stays an error: that is not chance but a mistake. A run that left something out, or some
tiles, ends with an error all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, get_args

from geood.errors import ConfigError, DataError, ScenesSkippedError, TilesFailedError, counted, shown
from geood.geo.grid import Tile
from geood.geo.paths import ScenePath, fingerprint, with_retries
from geood.geo.scene import Scene
from geood.geo.scene_reading import read_tile
from geood.geo.score_raster import FAILED_TAG
from geood.prediction.dispatch import first_of
from geood.prediction.job import tiles_of
from geood.prediction.outputs import LeftOut, Prediction, RunOutputs, Target
from geood.prediction.plan import ScenePlan

log = logging.getLogger("geood")
Unreadable = Literal["error", "skip"]
NAMED = 10  # scenes that a message names


def check_unreadable(unreadable: str, *, mosaic: bool) -> None:
    """Check the choice of what is done about scenes that cannot be read.

    Raises:
        ConfigError: it is none, or scenes of a mosaic are to be left out.
    """
    if unreadable not in get_args(Unreadable):
        raise ConfigError(f"--unreadable {shown(unreadable)}: choose {' or '.join(get_args(Unreadable))}")
    if unreadable == "skip" and mosaic:
        raise ConfigError("--unreadable skip: the tiles of a mosaic are one scene, which would have holes; repair them")


def without_unreadable(outputs: RunOutputs) -> tuple[RunOutputs, list[LeftOut]]:
    """Return the outputs of the scenes that can be opened, and the scenes that cannot.

    Raises:
        DataError: none can be opened.
    """
    return without(outputs, _unreadable(outputs.targets))


def without_torn(outputs: RunOutputs, plans: Sequence[ScenePlan]) -> tuple[RunOutputs, list[ScenePlan], list[LeftOut]]:
    """Return outputs and plans of the scenes of which a tile can be read, and the scenes that can only be opened.

    Of each as many tiles are tried as fail before a run gives it up, until one can be read: mostly the first.

    Raises:
        DataError: no scene is left.
    """
    pairs, found = [*zip(outputs.targets, plans, strict=True)], {}
    for target, plan in pairs:
        if (why := _why_torn(plan)) is not None:
            found[target] = LeftOut(target.scene.public, why)
    left, told = without(outputs, found)
    return left, [plan for target, plan in pairs if target not in found], told


def without(outputs: RunOutputs, found: Mapping[Target, LeftOut]) -> tuple[RunOutputs, list[LeftOut]]:
    """Return the outputs of a run without scenes that cannot be read, and these with what stays of an older map.

    Nothing of such a scene is made, so nothing is replaced, with `--overwrite` too: its older map may be the only one.

    Raises:
        DataError: no scene is left.
    """
    left = tuple(target for target in outputs.targets if target not in found)
    if not left:
        scenes = counted(outputs.asked, "scene")
        raise DataError(f"{next(iter(found.values())).why}; and none of the {scenes} can be read")
    told = [one._replace(why=f"{one.why}{_older(target)}") for target, one in found.items()]
    if told:
        log.warning("%s", _told(told, outputs.asked))
    return outputs._replace(targets=left), told


def _older(target: Target) -> str:
    """Return that an older map of a scene stays; nothing if there is none."""
    main = next((path for path in (target.polygons, target.scores) if path and path.exists()), None)
    return f" (its older map {main.name} stays)" if main else ""


def _why_torn(plan: ScenePlan) -> str | None:
    """Return why none of the first tiles of a scene can be read; None if one can."""
    name, why = plan.job.source.name, None
    for _, tile in first_of(tiles_of(plan.grid, plan.job), plan.job):

        def attempt(tile: Tile = tile) -> None:
            with Scene.open(plan.job.source) as scene:
                read_tile(scene, tile)

        try:
            return with_retries(attempt, name=name)
        except DataError as error:
            why = why or str(error)
    return why


@contextmanager
def naming_unreadable(targets: Sequence[Target]) -> Iterator[None]:
    """Name all scenes that cannot be opened where one of several ends the run, lest they are met one by one.

    Raises:
        DataError: one ended it; the message is that error's own if each can be opened.
    """
    try:
        yield
    except DataError as error:
        found = tuple(_unreadable(targets).values()) if len(targets) > 1 else ()
        if str(error) not in {why for _, why in found}:
            raise
        raise DataError(
            f"{len(found)} of {len(targets)} scenes cannot be read: {_listed(found)}; repair them, move them away, or "
            "add --unreadable skip to map the others"
        ) from error


def refuse_incomplete(made: Sequence[Prediction], skipped: Sequence[LeftOut]) -> None:
    """Raise an error that names what is missing in the maps of a run, if anything is.

    Raises:
        ScenesSkippedError: scenes were left out.
        TilesFailedError: tiles have no scores, and no scene was left out.
    """
    tiles = _failed(made)
    if skipped:
        told = _told(skipped, len(made) + len(skipped))
        raise ScenesSkippedError("; ".join([told, "the others are mapped", *tiles]), made, skipped)
    if tiles:
        raise TilesFailedError(tiles[0], made)


def _failed(made: Sequence[Prediction]) -> list[str]:
    """Return a sentence on the tiles without scores: all counted, the first named; none if there are none."""
    incomplete = [prediction for prediction in made if prediction.failed_tiles]
    if not incomplete:
        return []
    first, tiles = incomplete[0], sum(len(prediction.failed_tiles) for prediction in incomplete)
    window = first.failed_tiles[0]
    others = [ScenePath(prediction.scene).label for prediction in incomplete[1:]]
    more = f", others in {_some(others)}" if others else ""
    return [
        f"{ScenePath(first.scene).label}: {counted(tiles, 'tile')} could not be scored, the first at row {window.row}, "
        f"column {window.col}: {first.reason}{more}. They are nodata in the map, and listed in its tag {FAILED_TAG} "
        "and in failed_tiles. If the failure was transient, run again with --resume --overwrite; otherwise repair the "
        "scene and predict again"
    ]


def _unreadable(targets: Sequence[Target]) -> dict[Target, LeftOut]:
    found = {target: why_unreadable(target) for target in targets}
    return {target: left_out for target, left_out in found.items() if left_out is not None}


def why_unreadable(target: Target) -> LeftOut | None:
    """Return a scene that cannot be opened with the reason; None if it can."""
    try:
        name = target.scene.opened
        with_retries(partial(fingerprint, name), name=name)
    except DataError as error:
        return LeftOut(target.scene.public, str(error))
    return None


def _told(skipped: Sequence[LeftOut], count: int) -> str:
    return f"{len(skipped)} of {counted(count, 'scene')} cannot be read and are left out: {_listed(skipped)}"


def _listed(skipped: Sequence[LeftOut]) -> str:
    return _some([why for _, why in skipped], "; ")


def _some(texts: Sequence[str], join: str = ", ") -> str:
    more = [f"and {len(texts) - NAMED} more"] if len(texts) > NAMED else []
    return join.join([*texts[:NAMED], *more])
