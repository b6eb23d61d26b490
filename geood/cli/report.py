"""Verb `geood report`: one page of HTML on runs, maps and evaluations; and what `geood train` tells at its end.

Both call the package `report` and say where its pictures are.
"""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from geood.cli.options import Overwrite
from geood.errors import printable

MEBI = 2**20
RUN_FILES = ("config.yaml", "split.gpkg", "split.csv", "metrics.csv", "confusion.csv", "samples", "tensorboard")


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="A run folder; polygons (or scores, or a folder) of predict; figures of evaluate. In any order.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page, ending in .html; one file that needs no network.")],
    scene: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="SCENE", help="The scene that a map is of, or its folder; repeatable; default: looked for."
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=5000, metavar="N", help="Polygons that are shown of each map.")] = 500,
    overwrite: Overwrite = False,
) -> None:
    """Write a page to look at: verdict, map, ranked polygons, curves, classes, negatives, config."""
    from geood.reporting import report as run

    path = run(sources, out, scenes=scene or (), most=most, overwrite=overwrite)
    print(f"report     {path} ({path.stat().st_size / MEBI:.1f} MB; open it in any browser)")


def print_training(bundle_path: Path) -> None:
    """Draw the curves of a finished run; print what it has to say, where its files are, and what to type next."""
    from geood.models import read_header
    from geood.reporting import draw_curves, run_lines

    if os.environ.get("LOCAL_RANK", "0") != "0":  # of several processes that train, the first speaks and writes
        return
    run = bundle_path.parent
    curves = draw_curves(run)
    for line in run_lines(run):
        print(printable(line))
    pictures = sorted((run / "samples").glob("*.png"), key=lambda path: path.stat().st_mtime)
    for what, path in (("curves", curves), ("negatives", pictures[-1] if pictures else None)):
        if path is not None:
            print(f"{what:<11}{path}")
    print(f"model      {bundle_path}")
    held = (name for name in RUN_FILES if (run / name).exists())
    print(f"run        {run} ({', '.join(held)})")
    photographs = read_header(bundle_path).photo_width is not None
    scene, out = ("PHOTOS", "found") if photographs else ("SCENE.tif", "anomalies.gpkg")
    shown, model = "" if photographs else f" --scene {scene}", quote(str(bundle_path))
    print(printable(f"next       geood predict {scene} --out {out} --model {model}"))
    print(printable(f"then       geood report {quote(str(run))} {out}{shown} --out report.html"))
