"""Verb `geood report`: one page of HTML on a run, a map, an evaluation, or all of them.

It parses its options, calls one function and says where the page is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geood.cli.options import Overwrite

MEBI = 2**20


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
        typer.Option(metavar="SCENE", help="The scene that a map is of; repeatable; default: looked for by name."),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=5000, metavar="N", help="Polygons that are shown of each map.")] = 500,
    overwrite: Overwrite = False,
) -> None:
    """Write a page to look at: verdict, map, ranked polygons, curves, classes, negatives, config."""
    from geood.report import report as run

    path = run(sources, out, scenes=scene or (), most=most, overwrite=overwrite)
    print(f"report     {path} ({path.stat().st_size / MEBI:.1f} MB; open it in any browser)")
