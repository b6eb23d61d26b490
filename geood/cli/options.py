"""Options that several commands of the command line have, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geood.cli.terminal import not_infinite

Overview = Annotated[
    bool, typer.Option("--overview", help="Also draw scene, scores, polygons and verdict: NAME.overview.png.")
]
UnreadableOption = Annotated[
    str,
    typer.Option(
        "--unreadable", metavar="WHAT", help="A scene that cannot be read: error, or skip (map the others, list it)."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
DiscardVerdicts = Annotated[
    bool, typer.Option("--discard-verdicts", help="With --overwrite: also replace polygons that a person has judged.")
]
Model = Annotated[
    Path | None,
    typer.Option("--model", help="The model.safetensors of a training run; default: the newest below runs/."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one config value; repeatable.")
]
Uses = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Override a key of the model's score or predict section; repeatable."
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes on this machine; 0: threads in one process.")]
MaxRam = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory limit of all processes together, such as 2GB; tiles shrink to fit."),
]
BandsOption = Annotated[
    str | None,
    typer.Option("--bands", metavar="NAMES", help="Bands to read as the model's: red=3,green=2,blue=1; or 3,2,1."),
]
NoData = Annotated[
    float | None, typer.Option(metavar="VALUE", help="Nodata value of the scene.", callback=not_infinite)
]
NoResample = Annotated[
    bool, typer.Option("--no-resample", help="Read images at their own resolution or width, not the model's.")
]
Aoi = Annotated[Path | None, typer.Option(metavar="FILE", help="Score only within the polygons of a vector file.")]
Bbox = Annotated[
    str | None, typer.Option(metavar="W,S,E,N", help="Score only within a box, in the scene's CRS (or ...,EPSG:4326).")
]
Mosaic = Annotated[
    bool, typer.Option("--mosaic", help="Treat the rasters, or those of a folder, as tiles of one scene.")
]
TlsFile = Annotated[Path | None, typer.Option(metavar="FILE", help="For a --scheduler at tls://, in PEM format.")]
