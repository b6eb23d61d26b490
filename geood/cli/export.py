"""Verb `geood export`: a trained model as a file of another program.

What each format needs and leaves out is known in `export`; here its name is parsed, and what was written is told.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from geood.cli.options import Overwrite, Uses


class To(StrEnum):
    """Formats by name."""

    onnx = "onnx"
    deepness = "deepness"
    stac = "stac"


def export(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The model.safetensors of a training run, or the run's folder.")
    ],
    to: Annotated[
        To,
        typer.Option(
            help="onnx: digital numbers in, score and class out; deepness: for that plugin of QGIS; stac: an item."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write: x.onnx, or x.json for stac.")],
    settings: Uses = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as a file of another program: ONNX, ONNX for QGIS's plugin Deepness, or a STAC item."""
    from geood.export import export_bundle

    made = export_bundle(bundle, to.value, out, settings=settings or (), overwrite=overwrite)
    print(f"{to.value:<11}{made.path}")
    if made.difference is not None:
        largest, share = made.difference
        told = f"; by more than 0.0001 on {100 * share:.3g} % of its pixels" if share else ""  # where classes are level
        print(f"checked    scores differ from torch's by at most {largest:.2g} on noise{told}")
