"""Scores of frames for evaluation, and the readings of many frames.

Tiles are those of `predict`, by `calibration`. Photographs are decoded as a whole and read from memory; their scores
are float16, as benchmark servers take them. Score files of other tools are read in `score_files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geood.calibration import ImageSource, prediction_tiles, scored_tiles
from geood.datasets import Decoded, Frame
from geood.evaluation.score_files import LARGEST, Scores
from geood.geo.scene import Scene
from geood.geo.scene_reading import ReadingOptions, SceneReading, said_together, settle_reading
from geood.models import ModelBundle, for_inference


class ScoredFrame(NamedTuple):
    """Scores (H, W) by kind, higher is more anomalous, and the class channel (H, W) of each pixel (None: unknown)."""

    scores: dict[str, Scores]
    classes: NDArray[np.uint8] | None


def score_frame(
    bundle: ModelBundle,
    decoded: Decoded,
    *,
    kinds: Sequence[str],
    scale: float = 1.0,
) -> ScoredFrame:
    """Score a decoded frame by each of `kinds`; scores (H, W) are float16, clipped to its range."""
    height, width = decoded.valid.shape
    scores = {kind: np.empty((height, width), np.float16) for kind in kinds}
    classes = np.empty((height, width), np.uint8)
    source = ImageSource(decoded.image, decoded.valid, scale)
    tiles = prediction_tiles(height, width, scale, bundle)
    for tile, _, scored in scored_tiles(bundle, source, tiles, lambda *_: True, kinds=kinds, device=bundle.device):
        out = tile.write.slices
        classes[out] = scored.classes
        for kind, score in scored.scores.items():
            scores[kind][out] = np.clip(score, -LARGEST, LARGEST)
    return ScoredFrame(scores, classes)


def frame_readings(frames: Sequence[Frame], bundle: ModelBundle, options: ReadingOptions) -> Mapping[str, SceneReading]:
    """Choose how each frame is read for a bundle, by the frame's name, as `predict` would.

    Raises:
        ConfigError: the bands chosen by the user are not those of the bundle.
        DataError: an image cannot be read, has other bands, or lies too far from the bundle's resolution or width.
    """
    nodata, width = options.nodata_for(bundle.bands), bundle.photo_width
    readings, notes = {}, {}
    for frame in frames:
        with Scene.open(frame.base or frame.image, nodata) as scene:
            reading = settle_reading(scene, bundle.bands, bundle.resolution, options, photo_width=width)
            if not scene.grid.placed:
                notes[frame.name] = reading.resolution_note
        readings[frame.name] = reading
    said_together(notes)
    return readings


@contextmanager
def for_scoring(bundle: ModelBundle | None) -> Iterator[ModelBundle | None]:
    """Yield a bundle as `predict` computes with it, on a GPU if there is one; afterwards it is back on the CPU."""
    if bundle is None or not torch.cuda.is_available():
        yield None if bundle is None else for_inference(bundle)
        return
    try:
        yield bundle.to("cuda")
    finally:
        bundle.to("cpu")
