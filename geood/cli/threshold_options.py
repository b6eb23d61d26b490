"""Options of `predict` and `polygonize` that choose a threshold, and what is done about a scene that is unlike.

They are types for Typer; what they mean is in `prediction`. The verdicts of a run are written here as JSON.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from geood.cli.terminal import finite

MAP_SUFFIXES = (".tif", ".gpkg", ".geojson", ".parquet", ".fgb", ".qml", ".csv", ".png")

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


def check_json_file(path: Path, *, inputs: Sequence[str | Path], overwrite: bool) -> None:
    """Check before any work that figures can be written to a file, and that it is no input and no file of a map.

    Raises:
        OutputError: it is one of the inputs, has the ending of a map's file, exists or cannot be written.
    """
    from geood.atomic import check_output
    from geood.errors import OutputError

    if path.suffix.lower() in MAP_SUFFIXES:
        raise OutputError(f"--json {path}: a map has files of that ending; give a name that ends in .json")
    if path.exists() and any(os.path.exists(file) and path.samefile(file) for file in inputs):
        raise OutputError(f"--json {path}: this output would replace an input; choose another name")
    check_output(path, overwrite=overwrite)


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
