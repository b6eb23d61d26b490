"""All scenes of a run, scored one after another, and what became of each while it was read.

A scene that was written to meanwhile has no map: it would be one of two scenes. One that is gone, or has become
unreadable, ends the run too, or is left out where the run leaves out such scenes. Each is asked for its state once: a
second question might have another answer. How one is scored is known in `rasters`, what cannot be read before any work
in `unreadable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from geood.errors import DataError, SceneChangedError
from geood.geo.paths import fingerprint, with_retries
from geood.models import ModelBundle
from geood.prediction.outputs import LeftOut, RunOutputs, Target
from geood.prediction.plan import ScenePlan
from geood.prediction.rasters import ScoredScene, assemble_rasters
from geood.prediction.unreadable import why_unreadable, without
from geood.prediction.workdir import WorkDir


def score_scenes(
    outputs: RunOutputs,
    plans: Sequence[ScenePlan],
    bundle: ModelBundle,
    *,
    work: WorkDir,
    threshold: float | None,
    client: Any,
    skip: bool,
) -> tuple[RunOutputs, list[tuple[ScenePlan, ScoredScene]], list[LeftOut]]:
    """Score all scenes and assemble their rasters in the work folder.

    Args:
        outputs: their final paths.
        plans: how each is read.
        bundle: the model.
        work: the work folder.
        threshold: of the rasters' tags; None: not settled yet.
        client: Dask's.
        skip: leave out scenes that cannot be read any more.

    Returns:
        Outputs, and plans with figures, of the scenes that could be read to their end, and the others.

    Raises:
        DataError: a scene cannot be read, or none of them.
        SceneChangedError: a scene was changed meanwhile.
    """
    made: dict[Target, tuple[ScenePlan, ScoredScene]] = {}
    gone: dict[Target, LeftOut] = {}
    for target, plan in zip(outputs.targets, plans, strict=True):
        try:
            made[target] = plan, assemble_rasters(target, plan, bundle, work=work, threshold=threshold, client=client)
        except DataError:
            if not skip or (left_out := why_unreadable(target)) is None:
                raise
            gone[target] = left_out
    changed: list[Target] = []
    for target, (plan, _) in made.items():
        name = plan.job.source.name
        try:
            if with_retries(partial(fingerprint, name), name=name) != plan.state:
                changed.append(target)
                work.discard.add(target.scores.stem)
        except DataError as error:
            if not skip:
                raise
            gone[target] = LeftOut(target.scene.public, str(error))
    left, told = without(outputs, gone)
    work.discard.update(target.scores.stem for target in gone)
    if changed:
        raise SceneChangedError(
            f"{changed[0].scene.label}: changed while it was read, so the map would be of two scenes, and is not "
            "written; wait until nothing writes to it, and predict again"
        )
    return left, [made[target] for target in left.targets], told
