"""Scored frames: photographs of a benchmark scored by a bundle, or scores that any other tool left in files.

A frame is scored in the tiles of `predict`, mirrored beyond its border as scenes are, so both give the same scores.
Those are float16, as benchmark servers take them; scores from files keep their precision, up to float32. Score files
bear the name of their frame or of its image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geood.datasets.frames import Decoded, Frame
from geood.evaluation.score_files import LARGEST, Scores
from geood.geo.grid import mirrored, tile_grid
from geood.geo.scene import Scene
from geood.models.bundle import ModelBundle


class ScoredFrame(NamedTuple):
    """Scores (H, W) by kind, higher is more anomalous, and the class channel (H, W) of each pixel (None: not known)."""

    scores: dict[str, Scores]
    classes: NDArray[np.uint8] | None


def score_frame(
    bundle: ModelBundle, decoded: Decoded, *, kinds: Sequence[str], device: torch.device | None = None
) -> ScoredFrame:
    """Score a decoded frame by each of `kinds`, in one pass of the network."""
    height, width = decoded.valid.shape
    scores = {kind: np.empty((height, width), np.float16) for kind in kinds}
    classes = np.empty((height, width), np.uint8)
    tiles = tile_grid(height, width, tile_px=bundle.config.predict.tile_px, halo_px=bundle.halo_px)
    for tile in tiles:
        place = np.ix_(
            mirrored(tile.read.row, tile.read.height, height), mirrored(tile.read.col, tile.read.width, width)
        )
        valid = decoded.valid[place]
        pixels = decoded.image[:, place[0], place[1]]
        image = torch.from_numpy(bundle.bands.scale(pixels, valid)[None]).to(device)
        answer, known = bundle.infer(image), torch.from_numpy(valid[None]).to(device)
        out = tile.write.slices
        classes[out] = answer.logits[0, :, tile.core[0], tile.core[1]].argmax(0).cpu().numpy()
        for kind in kinds:
            score = bundle.score_of(answer, image, known, kind=kind, core=tile.core)[0].cpu().numpy()
            scores[kind][out] = np.clip(score, -LARGEST, LARGEST)
    return ScoredFrame(scores, classes)


def check_bands(frames: Sequence[Frame], bundle: ModelBundle) -> None:
    """See that all frames have the bands that a bundle takes.

    Raises:
        DataError: an image cannot be read, or has other bands.
    """
    for frame in frames:
        with Scene.open(frame.base or frame.image) as scene:
            scene.check_bands(bundle.bands)


@contextmanager
def on_best_device(bundle: ModelBundle | None) -> Iterator[torch.device]:
    """A GPU if there is one; the bundle is back on the CPU afterwards."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    moved = bundle is not None and device.type == "cuda"
    if bundle is not None and moved:
        bundle.to(device)
    try:
        yield device
    finally:
        if bundle is not None and moved:
            bundle.to("cpu")
