"""Formats that a bundle can be exported to, and the one function that does it.

A row of EXPORTS names the ending of its files and says what they are for. Whatever the format, the settings of a
bundle's score are chosen first, and the file appears under its name when it is complete and checked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from geood.atomic import atomic_write, check_output, output_errors
from geood.errors import ConfigError, OutputError, shown
from geood.export.deepness import byte_graph, check_bytes, deepness_metadata, tile_side
from geood.export.graph import BYTE, ScoreGraph, check_traceable
from geood.export.onnx_file import ScoreDifference, check_packages, score_metadata, write_onnx
from geood.export.stac_item import stac_item
from geood.models import ModelBundle, bundle_path_of


class Format(NamedTuple):
    """Format of an export: the ending of its files, and what they are for."""

    suffix: str
    meaning: str


class Exported(NamedTuple):
    """File that was exported, and how its scores differ from torch's; None for formats that compute nothing."""

    path: Path
    difference: ScoreDifference | None


EXPORTS = {
    "onnx": Format(".onnx", "ONNX file of any size: digital numbers in, score and class out"),
    "deepness": Format(".onnx", "ONNX file for QGIS's plugin Deepness"),
    "stac": Format(".json", "STAC item with the MLM extension, which describes the model"),
}
SAMPLE = (2, 96, 160)  # images, height and width of the noise that a graph is traced and checked with


def export_bundle(
    bundle: ModelBundle | str | Path,
    to: str,
    out: str | Path,
    *,
    settings: Sequence[str] = (),
    overwrite: bool = False,
) -> Exported:
    """Write a bundle as a file of another program.

    Args:
        bundle: a ModelBundle, its file, or the folder of its run; a STAC item needs one of the latter.
        to: `onnx`, `deepness` or `stac`.
        out: the file to write: x.onnx, or x.json.
        settings: overrides such as "score.kind=jsd", which choose the score.
        overwrite: replace a file.

    Returns:
        The file, and the largest difference of its scores from torch's on noise.

    Raises:
        ConfigError: the format is unknown, the ending is not its own, the model or score does not fit it, or a package
            of the extra `export` is missing.
        OutputError: the file exists, cannot be written, or computes something else.
        BundleError: the bundle cannot be read.

    Example:
        >>> import geood
        >>> geood.export_bundle("model.safetensors", "stac", "model.json").path.name
        'model.json'
    """
    out = Path(out)
    if to not in EXPORTS:
        raise ConfigError(f"--to {shown(to)}: choose one of {', '.join(EXPORTS)}")
    if out.suffix.lower() != EXPORTS[to].suffix:
        raise ConfigError(
            f"{out}: a file for {to} ends in {EXPORTS[to].suffix}; name it {out.stem}{EXPORTS[to].suffix}"
        )
    check_output(out, overwrite=overwrite)
    path = None if isinstance(bundle, ModelBundle) else bundle_path_of(bundle)
    if path is not None and out.exists() and path.exists() and out.samefile(path):
        raise OutputError(f"{out}: is the model itself, which would be lost; choose another --out")
    if to == "stac" and path is None:
        raise ConfigError("a STAC item tells where the bundle is: give the path of the bundle, not the object")
    if to != "stac":
        check_packages()
    loaded = (
        bundle
        if isinstance(bundle, ModelBundle)
        else ModelBundle.load(bundle_path_of(bundle), flow=to == "stac", tell=False)
    )
    loaded = loaded.with_settings(settings)
    if to == "stac":
        assert path is not None
        return _write_item(loaded, path.absolute(), out, overwrite=overwrite)
    return _write_graph(loaded.to("cpu"), to, out, overwrite=overwrite)


def _write_item(bundle: ModelBundle, path: Path, out: Path, *, overwrite: bool) -> Exported:
    item = stac_item(bundle, path, folder=out.absolute().parent)
    with output_errors(out), atomic_write(out, overwrite=overwrite) as partial:
        partial.write_text(json.dumps(item, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return Exported(out, None)


def _write_graph(bundle: ModelBundle, to: str, out: Path, *, overwrite: bool) -> Exported:
    check_traceable(bundle)
    metadata = score_metadata(bundle)
    if to == "onnx":
        found = write_onnx(
            ScoreGraph(bundle),
            out,
            sample=_noise(bundle, SAMPLE),
            outputs=("score", "class"),
            metadata=metadata,
            overwrite=overwrite,
        )
        return Exported(out, found)
    check_bytes(bundle)
    side = tile_side(bundle)
    found = write_onnx(
        byte_graph(bundle),
        out,
        sample=_noise(bundle, (2, side, side)) / BYTE,
        outputs=("share",),
        metadata=metadata | deepness_metadata(bundle),
        side_px=side,
        overwrite=overwrite,
    )
    return Exported(out, found)


def _noise(bundle: ModelBundle, size: tuple[int, int, int]) -> Tensor:
    """Return images (B, C, H, W) of seeded noise over the range of each band, in digital numbers."""
    images, height, width = size
    noise = torch.rand(images, bundle.bands.count, height, width, generator=torch.Generator().manual_seed(0))
    low, high = (torch.tensor(v)[:, None, None] for v in (bundle.bands.low, bundle.bands.high))
    return low + noise * (high - low)
