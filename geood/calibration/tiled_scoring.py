"""Scoring of scenes and photographs tile by tile in memory: exactly the scores that `predict` writes.

Bands are matched, images resampled and tiles cut as in prediction (`geo.scene_reading`); all kinds of score come from
one forward pass per tile. Training calibrates through this room, and evaluation measures through it, so what is
promised, measured and written are scores of one kind. Photographs are decoded as a whole and read from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geood.calibration.cells import CellMaps, pooled_features, tile_cells
from geood.geo.cog.encoding import rounded
from geood.geo.grid import Tile, Window, mirrored, tile_grid
from geood.geo.resampling import resample, resized, taps
from geood.geo.scene_reading import PixelSource, WayBack, read_tile, tile_side
from geood.models import WHOLE, ModelBundle, Region, SegmenterOutput, autocast, cut

Known = TypeVar("Known")


class TileScores(NamedTuple):
    """Scores (h, w) float32 by kind, and class channels (h, w) uint8, of one tile's write window.

    `cells` (n, S) are the statistics of its cells, where they are asked for.
    """

    scores: dict[str, NDArray[np.float32]]
    classes: NDArray[np.uint8]
    cells: NDArray[np.float32] | None = None


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


class TilePass(NamedTuple):
    """One forward pass: a tile as read, image (1, C, H, W) and validity (1, H, W), and the network's output.

    The output covers `region` of the image, in which `inner` is what lies within the halo.
    """

    tile: Tile
    image: Tensor
    seen: Tensor
    output: SegmenterOutput
    region: Region
    inner: Region

    def scores_of(self, bundle: ModelBundle, kinds: Sequence[str], core: Region) -> dict[str, Tensor]:
        """Return scores (1, h, w) by kind in the rows and columns `core` of the region."""
        image, seen = (cut(each, self.region) for each in (self.image, self.seen))
        return bundle.scores_of(self.output, image, seen, kinds=kinds, core=core)


def passed_tiles(
    bundle: ModelBundle,
    source: PixelSource,
    tiles: Iterable[Tile],
    known: Callable[[Tile, NDArray[np.bool_]], Known | None],
    *,
    kinds: Sequence[str],
    device: torch.device | None = None,
) -> Iterator[tuple[TilePass, Known]]:
    """Read tiles and pass them through the networks, for scores of `kinds`; arguments are those of `scored_tiles`.

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
        halo, size = tile.halo_px, image.shape[-2:]
        within = slice(halo, size[0] - halo), slice(halo, size[1] - halo)
        region, inner = bundle.region_of(within, size, kinds)
        if source.scale != 1:  # what is resampled refers to pixels of the halo
            region, inner = (slice(0, size[0]), slice(0, size[1])), within
        with autocast(bundle.config.predict.precision, image.device):
            output = bundle.infer(image, kinds, region)
        yield TilePass(tile, image, seen, output, region, inner), data


def scored_tiles(
    bundle: ModelBundle,
    source: PixelSource,
    tiles: Iterable[Tile],
    known: Callable[[Tile, NDArray[np.bool_]], Known | None],
    *,
    kinds: Sequence[str],
    device: torch.device | None = None,
    cells_within: Callable[[Known], NDArray[np.bool_]] | None = None,
) -> Iterator[tuple[Tile, Known, TileScores]]:
    """Read and score tiles by each of `kinds`, with one forward pass per tile.

    Args:
        bundle: the bundle, its networks on `device`.
        source: the pixels.
        tiles: the tiles of the source.
        known: returns the caller's data of a tile, such as its labels, given its validity (h, w); None: skip the tile.
        kinds: the kinds of score.
        device: where the networks compute; None: the CPU.
        cells_within: returns, of the caller's data, the pixels (h, w) of the tile that cells are measured on; None: no
            cells are measured. Their score is that of the bundle's config, which must be among `kinds`.

    Yields:
        Each tile that is scored, the caller's data of it, and its scores.

    Raises:
        DataError: the pixels cannot be read.
    """
    for one, data in passed_tiles(bundle, source, tiles, known, kinds=kinds, device=device):
        tile, output, core = one.tile, one.output, WHOLE
        if source.scale == 1:
            rows, cols = (side.start for side in one.inner)
            core = slice(rows, rows + tile.write.height), slice(cols, cols + tile.write.width)
        classes = output.logits[0, :, core[0], core[1]].argmax(0).to(torch.uint8).cpu().numpy()
        scores = one.scores_of(bundle, kinds, core)
        each = {kind: rounded(score[0].float()).cpu().numpy() for kind, score in scores.items()}
        cells = None
        if cells_within is not None:
            maps = CellMaps(
                one.image[0].cpu().numpy(),
                each[bundle.config.score.kind],
                classes,
                pooled_features(cut(output.features, one.inner, stride=4))[0].cpu().numpy(),
                len(bundle.class_ids),
            )
            cells = tile_cells(maps, tile, cells_within(data), scale=source.scale, every=1)
        if source.scale != 1:
            back = WayBack(tile, source.scale)
            each, classes = {kind: rounded(back.scores(score)) for kind, score in each.items()}, back.classes(classes)
        yield tile, data, TileScores(each, classes, cells)
