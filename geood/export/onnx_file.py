"""ONNX file of a bundle: traced by torch's exporter, checked against torch by ONNX Runtime, and only then written.

Sizes are free: any number of images, and any height and width that are multiples of 32. What a program has to know to
use the file stands in its metadata. The three packages that this needs are an extra of geood; nothing else does.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geood._version import DISTRIBUTION, __version__
from geood.atomic import atomic_write, output_errors
from geood.errors import ConfigError, DataError, OutputError, shown
from geood.models import ModelBundle

log = logging.getLogger("geood")
NEEDED = ("onnx", "onnxscript", "onnxruntime")
STRIDE = 32  # of the network: height and width are multiples of it
MOST_SIDE, MOST_IMAGES = 512, 1024  # height and width in strides, and images, for which the graph is traced
CLOSE, ODD = 1e-4, 1e-3  # difference from torch that is none, relative from 1 on; share of pixels that may differ more
TRACED, TRIED = (2, 64, 96), (1, 96, 160)  # images, height and width that the graph is traced with, and checked with
TALKERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class ScoreDifference(NamedTuple):
    """Difference of two score maps: the largest, and the share of pixels that differ by more than CLOSE."""

    largest: float
    share: float


def check_packages(needed: Sequence[str] = NEEDED, what: str = "an ONNX file is made with") -> None:
    """Check that the packages that an ONNX file is made with, or those that are named, are installed.

    Raises:
        ConfigError: one is missing.
    """
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ConfigError(f"{what} {', '.join(missing)}, which this Python lacks; pip install '{DISTRIBUTION}[export]'")


def write_onnx(
    graph: nn.Module,
    out: Path,
    *,
    sample: Tensor,
    outputs: tuple[str, ...],
    metadata: Mapping[str, str],
    side_px: int | None = None,
    overwrite: bool = False,
) -> ScoreDifference:
    """Trace a module, check what ONNX Runtime makes of it, and write it atomically; return the difference from torch.

    Args:
        graph: maps images (B, C, H, W) to one (B, H, W), or several, the first of them a score.
        out: the file to write.
        sample: images (B, C, H, W) of the values that the graph takes, H and W at least those of TRACED and TRIED.
        outputs: names of what the graph returns.
        metadata: text by key, for the file's metadata.
        side_px: height and width of images, for programs that have to know; None: any.
        overwrite: replace a file.

    Raises:
        ConfigError: a package is missing.
        OutputError: the graph computes something else than torch, or the file cannot be written.
    """
    check_packages()
    with _quiet():
        program = _traced(graph.eval(), _cut(sample, TRACED), outputs)
        program.model.metadata_props.update(metadata)
        program.model.producer_name, program.model.producer_version = DISTRIBUTION, __version__
        if side_px is not None:
            _fix_sizes(program.model, side_px)
        tried = _cut(sample, TRIED if side_px is None else (1, side_px, side_px))
        with output_errors(out), atomic_write(out, overwrite=overwrite) as partial:
            program.save(partial)
            found = difference(graph, partial, tried)
            if found.share > ODD:
                raise OutputError(
                    f"{out}: not written, as ONNX Runtime computes other scores than torch on {found.share:.2%} of the "
                    f"pixels, by up to {found.largest:.3g}; install the versions of torch, onnx, onnxscript and "
                    "onnxruntime in constraints.txt, or export another score (--set score.kind=jsd)"
                )
    return found


def difference(graph: nn.Module, path: Path, images: Tensor) -> ScoreDifference:
    """Return how the first output of an ONNX file differs from that of a module, on images (B, C, H, W)."""
    from onnxruntime import InferenceSession

    with torch.inference_mode():
        answer = graph.eval()(images)
    ours: NDArray[np.float32] = (answer[0] if isinstance(answer, tuple) else answer).numpy()
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"image": images.numpy()})[0]
    alike = np.isnan(ours) & np.isnan(theirs)
    apart = np.where(alike, 0.0, np.abs(ours - theirs) / np.maximum(1.0, np.abs(ours)))
    return ScoreDifference(float(np.nanmax(apart)), float((~(apart <= CLOSE)).mean()))


def score_metadata(bundle: ModelBundle) -> dict[str, str]:
    """Return what a program has to know to use a bundle's graph, as text by key."""
    config = bundle.config
    known = {
        "model": bundle.identity,
        "written_by": f"{DISTRIBUTION} {__version__}",
        "score": config.score.kind,
        "thresholds": json.dumps(bundle.thresholds),
        "threshold": json.dumps(bundle.thresholds.get(str(config.score.fpr))),
        "bands": json.dumps(bundle.bands.names),
        "low": json.dumps(bundle.bands.low),
        "high": json.dumps(bundle.bands.high),
        "resolution_m": json.dumps(bundle.resolution),
        "photo_width_px": json.dumps(bundle.photo_width),
        "class_names": json.dumps({str(i): config.data.classes[i] for i in bundle.class_ids}),
        "halo_px": json.dumps(bundle.halo_px),
        "multiple_of_px": json.dumps(STRIDE),
    }
    return {f"geood_{key}": text for key, text in known.items()}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return what an exported ONNX file tells of itself, by key.

    Raises:
        ConfigError: a package is missing.
        DataError: the file cannot be read, or geood did not write it.
    """
    check_packages(("onnx",), f"{path}: what is in an ONNX file is read with")
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of protobuf, whatever its implementation
        raise DataError(f"{path}: cannot be read as an ONNX file ({shown(error)}); export it again") from None
    held = {entry.key: entry.value for entry in model.metadata_props}
    if "geood_model" not in held:
        raise DataError(f"{path}: an ONNX file, but not one that geood exported; Netron shows what is in it")
    return held


def _cut(sample: Tensor, size: tuple[int, int, int]) -> Tensor:
    images, height, width = size
    return sample[:images, :, :height, :width].contiguous()


def _traced(graph: nn.Module, images: Tensor, outputs: tuple[str, ...]) -> Any:
    """Return the ONNX program of a graph, of any size."""
    high, wide = (STRIDE * torch.export.Dim(name, min=1, max=MOST_SIDE) for name in ("rows", "cols"))
    free = {0: torch.export.Dim("images", min=1, max=MOST_IMAGES), 2: high, 3: wide}
    log.info("tracing the network for ONNX, which takes a minute or two")
    with torch.no_grad():
        return torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            verbose=False,
            dynamic_shapes={"image": free},
            input_names=["image"],
            output_names=list(outputs),
        )


def _fix_sizes(model: Any, side_px: int) -> None:
    """Give the inputs and outputs of an ONNX program one height and width, in place."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = type(value.shape)([*value.shape[:-2], side_px, side_px])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of its own workings."""
    loggers = [logging.getLogger(name) for name in TALKERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
