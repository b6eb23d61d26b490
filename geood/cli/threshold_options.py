"""Options of `predict` and `polygonize` that choose a threshold, and what is done about a scene that is unlike.

They are types for Typer; what they mean is in `prediction`. The verdicts of a run are written here as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from geood.cli.terminal import finite

Threshold = Annotated[
    float | None,
    typer.Option(help="Score above which a pixel is anomalous; default: the model's.", callback=finite),
]
Fpr = Annotated[
    float | None,
    typer.Option("--fpr", metavar="SHARE", help="Or the share of ground without anomalies above it, such as 0.01."),
]
FalsePerKm2 = Annotated[
    float | None,
    typer.Option("--false-per-km2", metavar="N", help="Or the false polygons per km2 on ground without anomalies."),
]
Top = Annotated[int | None, typer.Option("--top", metavar="N", help="Or keep the N best-ranked polygons of a scene.")]
OnDriftOption = Annotated[
    str,
    typer.Option(
        "--on-drift",
        metavar="WHAT",
        help="A scene unlike the model's ground: warn, refuse, or relative (a threshold by rank in it).",
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the verdicts as JSON, too.")]
MinArea = Annotated[float | None, typer.Option(metavar="M2", min=0, help="Omit smaller polygons.", callback=finite)]
Simplify = Annotated[
    float | None, typer.Option(metavar="M", min=0, help="Remove details of this size from outlines.", callback=finite)
]
Connectivity = Annotated[
    int | None, typer.Option(metavar="4|8", help="8: pixels that touch at corners are connected; 4: not.")
]


def write_verdicts(path: Path, made: Sequence[Any], *, overwrite: bool) -> None:
    """Write the outputs and verdicts of a run as JSON.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    import json

    from geood.atomic import atomic_write, check_output, output_errors

    check_output(path, overwrite=overwrite)
    rows = [
        {
            "scene": prediction.scene,
            "scores": str(prediction.scores),
            "classes": None if prediction.classes is None else str(prediction.classes),
            "polygons": None if prediction.polygons is None else str(prediction.polygons),
            "anomalies": prediction.anomalies,
            "failed_tiles": len(prediction.failed_tiles),
            "verdict": None if prediction.verdict is None else prediction.verdict.fields(),
        }
        for prediction in made
    ]
    with output_errors(path), atomic_write(path) as partial:
        partial.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
