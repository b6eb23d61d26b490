"""Scoring of scenes and photographs tile by tile, for evaluation: exactly the scores that `predict` writes.

Bands are matched, images resampled and tiles cut as in prediction (`geo.scene_reading`); all kinds of score come from
one forward pass per tile. Photographs are decoded as a whole and read from memory; their scores are float16, as
benchmark servers take them. Score files of other tools are read in `score_files`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from geood.datasets import Decoded, Frame
from geood.evaluation.score_files import LARGEST, Scores
from geood.geo.grid import Tile, Window, mirrored, tile_grid
from geood.geo.resampling import resample, resized, taps
from geood.geo.scene import Scene
from geood.geo.scene_reading import (
    PixelSource,
    ReadingOptions,
    SceneReading,
    WayBack,
    read_tile,
    said_together,
    settle_reading,
    tile_side,
)
from geood.models import ModelBundle, autocast

Known = TypeVar("Known")
WHOLE = (slice(None), slice(None))


class TileScores(NamedTuple):
    """Scores (h, w) float32 by kind, and class channels (h, w) uint8, of one tile's write window."""

    scores: dict[str, NDArray[np.float32]]
    classes: NDArray[np.uint8]


class ScoredFrame(NamedTuple):
    """Scores (H, W) by kind, higher is more anomalous, and the class channel (H, W) of each pixel (None: unknown)."""

    scores: dict[str, Scores]
    classes: NDArray[np.uint8] | None


@dataclass(frozen=True)
class ImageSource:
    """An image in memory, read as a scene is: digital numbers `image` (C, H, W) and their validity `mask` (H, W)."""

    image: NDArray[Any]
    mask: NDArray[np.bool_]
    scale: float = 1.0

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return digital numbers (C, h, w) and validity (h, w) of a window of the working grid, mirrored outside."""
        image, valid = self._working
        rows, cols = valid.shape
        chosen = np.ix_(mirrored(window.row, window.height, rows), mirrored(window.col, window.width, cols))
        return image[:, chosen[0], chosen[1]], valid[chosen]

    @cached_property
    def _working(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The image and its validity on the working grid, resampled once for all windows."""
        if self.scale == 1:
            return self.image, self.mask
        sizes = [(size, resized(size, self.scale)) for size in self.mask.shape]
        down, across = (taps(0, new, scale=self.scale, size=size) for size, new in sizes)
        return resample(self.image, self.mask, down, across)

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """Return the validity (h, w) of a window of the image's own grid."""
        return self.mask[window.slices]


def prediction_tiles(height: int, width: int, scale: float, bundle: ModelBundle) -> Iterator[Tile]:
    """Yield the tiles of a scene of that size, those of `predict` with the bundle's config."""
    side = tile_side(bundle.tile_px, scale)
    return tile_grid(height, width, tile_px=side, halo_px=bundle.halo_px, scale=scale)


def scored_tiles(
    bundle: ModelBundle,
    source: PixelSource,
    tiles: Iterator[Tile],
    known: Callable[[Tile, NDArray[np.bool_]], Known | None],
    *,
    kinds: Sequence[str],
    device: torch.device | None = None,
) -> Iterator[tuple[Tile, Known, TileScores]]:
    """Read and score tiles by each of `kinds`, with one forward pass per tile.

    Args:
        bundle: the bundle, its networks on `device`.
        source: the pixels.
        tiles: the tiles of the source.
        known: returns the caller's data of a tile, such as its labels, given its validity (h, w); None: skip the tile.
        kinds: the kinds of score.
        device: where the networks compute; None: the CPU.

    Yields:
        Each tile that is scored, the caller's data of it, and its scores.

    Raises:
        DataError: the pixels cannot be read.
    """
    for tile in tiles:
        pixels, valid, wanted = read_tile(source, tile)
        data = known(tile, wanted)
        if data is None:
            continue
        image = torch.from_numpy(bundle.bands.scale(pixels, valid)[None]).to(device)
        seen = torch.from_numpy(valid[None]).to(device)
        with autocast(bundle.config.predict.precision, image.device):
            output = bundle.infer(image, kinds)
        core = tile.core if source.scale == 1 else WHOLE
        classes = output.logits[0, :, core[0], core[1]].argmax(0).to(torch.uint8).cpu().numpy()
        scores = bundle.scores_of(output, image, seen, kinds=kinds, core=core)
        each = {kind: score[0].float().cpu().numpy() for kind, score in scores.items()}
        if source.scale != 1:
            back = WayBack(tile, source.scale)
            each, classes = {kind: back.scores(score) for kind, score in each.items()}, back.classes(classes)
        yield tile, data, TileScores(each, classes)


def score_frame(
    bundle: ModelBundle,
    decoded: Decoded,
    *,
    kinds: Sequence[str],
    scale: float = 1.0,
    device: torch.device | None = None,
) -> ScoredFrame:
    """Score a decoded frame by each of `kinds`; scores (H, W) are float16, clipped to its range."""
    height, width = decoded.valid.shape
    scores = {kind: np.empty((height, width), np.float16) for kind in kinds}
    classes = np.empty((height, width), np.uint8)
    source = ImageSource(decoded.image, decoded.valid, scale)
    tiles = prediction_tiles(height, width, scale, bundle)
    for tile, _, scored in scored_tiles(bundle, source, tiles, lambda *_: True, kinds=kinds, device=device):
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
def on_best_device(bundle: ModelBundle | None) -> Iterator[torch.device]:
    """Yield a GPU if there is one, with the bundle on it; the bundle is back on the CPU afterwards."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    moved = bundle is not None and device.type == "cuda"
    if bundle is not None and moved:
        bundle.to(device)
    try:
        yield device
    finally:
        if bundle is not None and moved:
            bundle.to("cpu")
