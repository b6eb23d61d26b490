"""Verbs of a review: `geood audit` tells what the verdicts say of a map, `geood feedback` hands them to a training."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geood.cli.terminal import finite
from geood.cli.threshold_options import check_json_file
from geood.errors import counted, printable

if TYPE_CHECKING:
    from geood.review import Audit

Reviewed = Annotated[
    list[Path], typer.Argument(metavar="REVIEWED...", help="Reviewed polygons; several copies are taken together.")
]
Layer = Annotated[str | None, typer.Option(metavar="NAME", help="Layer of the polygons; default: anomalies.")]
VerdictColumn = Annotated[str, typer.Option(metavar="NAME", help="Column of the verdicts: real, false, unsure, skip.")]
ScoreColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of the scores; default: score_max or score.")
]


def audit(
    reviewed: Reviewed,
    scores: Annotated[
        Path | None, typer.Option(metavar="RASTER", help="The score raster, of any tool; default: X.tif beside X.gpkg.")
    ] = None,
    area_km2: Annotated[
        float | None, typer.Option(metavar="KM2", help="Ground that was searched, without a raster.", callback=finite)
    ] = None,
    false_per_km2: Annotated[
        float | None,
        typer.Option(metavar="N", help="Find the threshold that keeps false polygons to this.", callback=finite),
    ] = None,
    promised_per_km2: Annotated[
        float | None, typer.Option(metavar="N", help="False polygons per km2 that the map promised.", callback=finite)
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Compare with the rate of pixels that this bundle promises.")
    ] = None,
    layer: Layer = None,
    verdict_column: VerdictColumn = "verdict",
    score_column: ScoreColumn = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all figures as JSON too.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
) -> None:
    """Tell what a person's verdicts say of a map: precision, misses, recall, a threshold for a budget."""
    from geood.atomic import atomic_write, output_errors
    from geood.review import ReviewNames
    from geood.review import audit as run

    if json is not None:
        check_json_file(json, inputs=[*reviewed, *filter(None, (scores, model))], overwrite=overwrite)
    found = run(
        reviewed,
        names=ReviewNames(layer, verdict_column, score_column),
        scores=scores,
        area_km2=area_km2,
        false_per_km2=false_per_km2,
        promised_per_km2=promised_per_km2,
        bundle=model,
    )
    for line in audit_lines(found):
        print(printable(line))
    if json is not None:
        with output_errors(json), atomic_write(json, overwrite=overwrite) as partial:
            partial.write_text(found.to_json() + "\n", encoding="utf-8")
        print(f"figures    {json}")
    if found.overall.judged:
        named = [] if layer is None else ["--layer", layer]
        named += [] if verdict_column == "verdict" else ["--verdict-column", verdict_column]
        maps = printable(shlex.join([*map(str, reviewed), *named]))
        print(
            f"next       geood feedback {maps} --config CONFIG --out next.yaml hands the verdicts to the next training"
        )


def feedback(
    reviewed: Reviewed,
    config: Annotated[Path, typer.Option(metavar="CONFIG", help="The config that the model was trained with.")],
    out: Annotated[Path, typer.Option(metavar="NEXT.yaml", help="The config of the next training.")],
    scene: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="SCENE", help="The scene of the polygons, or its folder; repeatable; default: looked for."
        ),
    ] = None,
    layer: Layer = None,
    verdict_column: VerdictColumn = "verdict",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of another feedback.")] = False,
) -> None:
    """Hand verdicts to the next training: false alarms as labelled ground, real things as a set to measure it on."""
    from geood.review import ReviewNames
    from geood.review import feedback as run

    made = run(reviewed, config, out, scenes=scene or (), names=ReviewNames(layer, verdict_column), overwrite=overwrite)
    for line in made.lines():
        print(printable(line))
    trained = Path("runs") / config.stem
    begin = shlex.quote(str(trained)) if trained.is_dir() else "RUN, the run folder of the model"
    print(printable(f"next       geood train {shlex.quote(str(out))} --from {begin}"))


def audit_lines(found: Audit) -> Iterator[str]:
    """Yield the lines of an audit as people read them."""
    from geood.review import misspelt_lines

    yield f"polygons   {found.polygons} in {', '.join(found.files)}: " + ", ".join(
        f"{count} {verdict}" for verdict, count in found.verdicts.items()
    )
    for line in misspelt_lines(found.misspelt):
        yield f"misspelt   {line}; none of real, false, unsure, skip, so left out"
    for conflict in found.conflicts:
        yield f"conflict   {conflict}; left out"
    for note in found.notes:
        yield f"note       {note}"
    if found.area_km2 is not None:
        yield f"ground     {found.area_km2:.4g} km2"
    yield f"precision  {_part(found.overall)}, of the judged polygons alone"
    for part in found.tops:
        yield f"  {part.name:<18} {_part(part)}"
    if not found.ranked and found.tops:
        yield "  (ranked by score, as no column rank tells polygons apart)"
    for part in found.bands:
        yield f"  {part.name:<18} {_part(part)} ({counted(part.polygons, 'polygon')})"
    yield from _ground_lines(found)
    yield from (f"promise    {text}" for text in found.promises)


def _ground_lines(found: Audit) -> Iterator[str]:
    if found.cells is not None:
        searched = f"{found.cells['complete']} of {counted(found.cells['cells'], 'cell')} complete"
        misses = counted(found.cells["misses"], "miss", "misses")
        yield f"sample     {searched}, {found.cells['area_km2']:.4g} km2, {misses}"
    if found.misses_per_km2 is not None:
        yield f"misses     {_interval(found.misses_per_km2)} per km2, from the sample alone"
    if found.recall is not None:
        yield f"recall     {_interval(found.recall, percent=True)}, if each real polygon is one thing"
    else:
        yield f"recall     cannot be told: {found.no_recall}"
    if (budget := found.budget) is None:
        return
    from geood.calibration import in_digits

    if budget.threshold is None:
        yield f"budget     {budget.per_km2:g} false polygons per km2 cannot be met at any score that was judged"
        return
    kept = counted(budget.polygons, "polygon")
    yield (
        f"budget     {budget.per_km2:g} false polygons per km2: --threshold {budget.threshold:.9g} keeps {kept} "
        f"({budget.real} judged real), {in_digits(budget.expected)} false per km2, at most "
        f"{in_digits(budget.at_most)}"
    )
    if budget.sure is not None and budget.sure != budget.threshold:
        yield f"           to be sure of it: --threshold {budget.sure:.9g}"
    elif budget.sure is None:
        yield "           to be sure of it, more polygons have to be judged"


def _part(part: Any) -> str:
    return f"{_interval(part.precision, percent=True)}: {part.real} real of {part.judged} judged"


def _interval(value: Any, *, percent: bool = False) -> str:
    """Return an estimate with its limits; `?` where nothing was seen."""
    from geood.calibration import in_digits

    scale, unit = (100, " %") if percent else (1, "")
    shown = [in_digits(scale * number) if math.isfinite(number) else "?" for number in value]
    return f"{shown[0]}{unit} ({shown[1]} to {shown[2]})"
