"""Statistics of cells: how a square of 64 x 64 pixels looks, and how the model answers to it.

The same figures are taken of calibration ground when a model is finished, and of every scene while it is scored, so
that the two can be compared: level and contrast of each band, how alike the bands are and which is higher, the dark
channel, which haze lifts, fine detail and noise, quantiles of the score, shares of the classes, and means of the
decoder's features along a few fixed random directions (which keep distances, Johnson and Lindenstrauss 1984); of a few
bands and classes also the light within each class that the model takes pixels for, by which a change of light can be
told from other land cover (`telltales`). Cells lie on a lattice of a tile's own, at the model's resolution. To keep the
cost small, every third cell along either axis of a scene is measured, a ninth of its pixels. Which cells are compared,
and how, is in `exchangeability`.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from geood.calibration.class_light import band_pairs, class_light_names, is_measured, light_within
from geood.geo.bands import Bands
from geood.geo.grid import Tile

CELL_PX = 64  # side of a cell at the model's resolution
COARSE_PX = 32  # side of the squares that features are averaged over
STRIDE = 4  # of the decoder's features
LEAST_KNOWN = 0.5  # share of a cell's pixels that must be known
DIRECTIONS = 8
DIRECTIONS_SEED = 20_02  # fixed for ever: bundles hold what was measured along these directions
EVERY = 3  # of a scene's cells along either axis, one in so many is measured
DARK = 0.02  # share of a cell's pixels below its dark channel, the lowest band of each (He et al. 2009)
WITHIN_EVERY = 4  # pixels, of which one tells of light within classes: all would double the cost of cells
AT_ONCE = 16  # cells that are measured together, so that memory stays bounded
REVISION = 1  # of the statistics: counted up when one of them is computed otherwise under the same name
_NOISE = np.float32(np.sqrt(np.pi / 2) / 6)  # of the mean absolute Laplacian (Immerkaer 1996)
_LEAST = np.float32(1e-4)  # contrast below which shares of it say nothing


class CellMaps(NamedTuple):
    """Maps of a tile that its cells are measured on, at the model's resolution.

    `image` (C, H, W) covers what was read, in [0, 1] or as digital numbers that `bands` scale to it; `features`
    (P, H / 32, W / 32), `score` (h, w) and `classes` (h, w), channels below `class_count`, cover it too, or the part
    inside the halo.
    """

    image: NDArray[Any]
    score: NDArray[np.float32]
    classes: NDArray[np.uint8]
    features: NDArray[np.float32]
    class_count: int
    bands: Bands | None = None


def statistic_names(bands: tuple[str, ...], classes: int) -> tuple[str, ...]:
    """Return the names of a cell's statistics, in their order."""
    pairs = band_pairs(len(bands))
    return (
        *(f"level {band}" for band in bands),
        *(f"contrast {band}" for band in bands),
        *(f"likeness {bands[one]} {bands[other]}" for one, other in pairs),
        "detail",
        "noise",
        *(f"score {share}" for share in ("0.5", "0.9", "0.99")),
        *(f"class {channel}" for channel in range(classes)),
        *(f"feature {i}" for i in range(DIRECTIONS)),
        "dark",
        *(f"order {bands[one]} {bands[other]}" for one, other in pairs),
        *class_light_names(bands, classes),
    )


def statistic_count(bands: int, classes: int) -> int:
    """Return the number of a cell's statistics, that of `statistic_names`."""
    return len(statistic_names(tuple(map(str, range(bands))), classes))


def cells_key(bands: tuple[str, ...], classes: int) -> str:
    """Return a text that is the same only for cells that are measured in the same way, and so may stand together."""
    names = ", ".join(statistic_names(bands, classes))
    return f"{REVISION}: {CELL_PX} px, 1 of {EVERY**2}, {zlib.crc32(names.encode()):08x}"


@functools.lru_cache(maxsize=8)
def _directions(channels: int, device: torch.device) -> Tensor:
    """Return the directions (P, D) on a device, made once: a recorded pass on a GPU may not copy from the host."""
    generator = torch.Generator().manual_seed(DIRECTIONS_SEED)
    drawn: Tensor = torch.randn(DIRECTIONS, channels, generator=generator) / channels**0.5
    return drawn.to(device)


@torch.inference_mode()
def pooled_features(features: Tensor) -> Tensor:
    """Return the decoder's features (B, D, H / 4, W / 4) as means of 32 x 32 pixels along fixed directions.

    The result is (B, P, H / 32, W / 32), float32.
    """
    means = functional.avg_pool2d(features.float(), COARSE_PX // STRIDE)
    along: Tensor = torch.einsum("pd,bdhw->bphw", _directions(features.shape[1], means.device), means)
    return along


def tile_cells(
    maps: CellMaps, tile: Tile, within: NDArray[np.bool_], *, scale: float, every: int = EVERY
) -> NDArray[np.float32]:
    """Return the statistics (n, S) of the cells of a tile, of those pixels that are `within` (h, w) its write window.

    Args:
        maps: what is measured.
        tile: the tile; its halo is left out.
        within: pixels of the write window that count.
        scale: working pixels per pixel of the scene.
        every: of the cells along either axis, one in so many is measured.
    """
    halo = tile.halo_px
    rows, cols = (side - 2 * halo for side in maps.image.shape[1:])
    if scale == 1:
        rows, cols = min(rows, tile.write.height), min(cols, tile.write.width)
    inner = slice(halo, halo + rows), slice(halo, halo + cols)
    if maps.score.shape == maps.image.shape[1:] and halo:
        maps = maps._replace(score=maps.score[inner], classes=maps.classes[inner])
    whole = maps.features.shape[-1] * COARSE_PX == maps.image.shape[-1]
    near = slice(halo // COARSE_PX if whole else 0, None)
    maps = maps._replace(
        image=maps.image[:, *inner],
        score=maps.score[:rows, :cols],
        classes=maps.classes[:rows, :cols],
        features=maps.features[:, near, near],
    )
    return cell_statistics(maps, onto_working(within, tile, scale=scale, shape=(rows, cols)), every=every)


def onto_working(within: NDArray[np.bool_], tile: Tile, *, scale: float, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask of a tile's write window on its working grid without the halo, `shape`, nearest pixels."""
    starts, fits = {side.start for side in tile.core}, all(a <= b for a, b in zip(shape, within.shape, strict=True))
    if scale == 1 and starts == {tile.halo_px} and fits:
        return within[: shape[0], : shape[1]]
    axes = []
    for read, write, length, size in zip(tile.read[:2], tile.write[:2], shape, within.shape, strict=True):
        place = np.floor((read + tile.halo_px + np.arange(length) + 0.5) / scale).astype(int) - write
        axes.append((place.clip(0, size - 1), (place >= 0) & (place < size)))
    (rows, rows_in), (cols, cols_in) = axes
    mask: NDArray[np.bool_] = within[np.ix_(rows, cols)] & rows_in[:, None] & cols_in
    return mask


def cell_statistics(maps: CellMaps, known: NDArray[np.bool_], *, every: int = EVERY) -> NDArray[np.float32]:
    """Return the statistics (n, S) of the cells on maps of one size whose pixels are `known` (h, w) by half or more."""
    windows, counts = [], []
    for row in range(0, known.shape[0], CELL_PX * every):
        for col in range(0, known.shape[1], CELL_PX * every):
            window = slice(row, row + CELL_PX), slice(col, col + CELL_PX)
            if (count := np.count_nonzero(known[window])) >= LEAST_KNOWN * CELL_PX**2:
                windows.append(window)
                counts.append(count)
    found = np.empty((len(windows), statistic_count(len(maps.image), maps.class_count)), np.float32)
    whole = [n for n, count in enumerate(counts) if count == CELL_PX**2]
    for some in (whole[n : n + AT_ONCE] for n in range(0, len(whole), AT_ONCE)):
        found[some] = _statistics(maps, [windows[n] for n in some], None)
    for n in {*range(len(windows))} - {*whole}:
        found[n] = _statistics(maps, [windows[n]], known[windows[n]])
    return found


def _statistics(
    maps: CellMaps, windows: Sequence[tuple[slice, slice]], known: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """Return the statistics (n, S) of cells of one shape with the same `known` pixels (h, w); None: all of them.

    The cells go through each step together: one by one they would take twice as long, most of it under the GIL.
    """
    images = _images(maps, windows)
    scores, classes = (np.stack([each[window] for window in windows]) for each in (maps.score, maps.classes))
    values, ranked, flat = (_pixels(each, known) for each in (images, scores, classes))
    level = values.mean(2)
    centred = values - level[..., None]
    contrast = np.sqrt(np.square(centred).mean(2))
    centred /= np.maximum(contrast, _LEAST)[..., None]
    pairs, pixels = band_pairs(len(values)), values.shape[2]
    likeness: Any = [(centred[one] * centred[other]).mean(1) for one, other in pairs]
    order: Any = [[np.count_nonzero(cell) / pixels for cell in values[one] > values[other]] for one, other in pairs]
    dark = _ranked(values.min(0), (DARK,))
    ranked = _ranked(ranked, (0.5, 0.9, 0.99))
    ofs = [flat == channel for channel in range(maps.class_count)]
    shares: Any = [[np.count_nonzero(cell) / pixels for cell in of] for of in ofs]
    likeness, order, shares = (np.reshape(each, (-1, len(windows))).T for each in (likeness, order, shares))
    fine, features = _fineness(images, known), _features(maps, windows)
    columns: list[Any] = [level.T, contrast.T, likeness, fine, ranked, shares, features, dark, order]
    if is_measured(len(values), maps.class_count):
        some = np.ascontiguousarray(centred[..., ::WITHIN_EVERY])
        columns.append(light_within(some, level, contrast, np.stack([of[:, ::WITHIN_EVERY] for of in ofs])))
    return np.concatenate(columns, axis=1).astype(np.float32)


def _ranked(values: NDArray[np.float32], shares: tuple[float, ...]) -> NDArray[np.float32]:
    """Return the values (n, k) of the n rows (n, N) below which such shares of each row lie.

    They are selected as whole numbers of the same order, in three fifths of the time.
    """
    places = (np.array(shares) * (values.shape[1] - 1)).astype(int)
    words = values.view(np.int32)
    words = words ^ ((words >> 31) & 0x7FFFFFFF)  # of negative floats the larger word is the lower one
    words = np.partition(words, places)[:, places]
    found: NDArray[np.float32] = (words ^ ((words >> 31) & 0x7FFFFFFF)).view(np.float32)
    return found


def _images(maps: CellMaps, windows: Sequence[tuple[slice, slice]]) -> NDArray[np.float32]:
    """Return the images (C, n, h, w) of cells, in [0, 1]."""
    images = np.stack([maps.image[:, *window] for window in windows], axis=1)
    if maps.bands is None:
        return images
    rows = images.reshape(len(images), -1, images.shape[-1])
    return maps.bands.scale(rows, np.ones(rows.shape[1:], np.bool_)).reshape(images.shape)


def _features(maps: CellMaps, windows: Sequence[tuple[slice, slice]]) -> NDArray[np.float32]:
    """Return the means (n, P) of the features of cells."""
    side, found = CELL_PX // COARSE_PX, []
    for rows, cols in windows:
        row, col = rows.start // COARSE_PX, cols.start // COARSE_PX
        found.append(maps.features[:, row : row + side, col : col + side].mean((1, 2)))
    return np.stack(found)


def _fineness(images: NDArray[np.float32], known: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Return fine detail and noise (n, 2) of cells: steps between neighbours, and the Laplacian's part, of contrast."""
    grey: NDArray[Any] = images.mean(0)
    contrast = np.maximum(_pixels(grey, known).std(1), _LEAST)
    across, down = grey[..., 1:] - grey[..., :-1], grey[:, 1:] - grey[:, :-1]
    columns = grey[:, :-2] - 2 * grey[:, 1:-1]
    columns += grey[:, 2:]
    laplacian = columns[..., :-2] - 2 * columns[..., 1:-1]
    laplacian += columns[..., 2:]
    for steps in (across, down, laplacian):
        np.abs(steps, out=steps)
    beside = below = inside = None
    if known is not None:  # steps between known pixels alone
        beside, below = known[:, 1:] & known[:, :-1], known[1:] & known[:-1]
        inside = known[1:-1, 1:-1] & beside[1:-1, :-1] & beside[1:-1, 1:] & below[:-1, 1:-1] & below[1:, 1:-1]
    detail = (_mean(across, beside) + _mean(down, below)) / 2 / contrast
    fine: NDArray[np.float32] = np.stack([detail, _NOISE * _mean(laplacian, inside)], 1)
    return np.log(np.maximum(fine, _LEAST)).astype(np.float32)


def _pixels(maps: NDArray[Any], known: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Return the pixels (n, ..., N) of maps (n, ..., h, w) that are known, in one order whatever is known."""
    return np.ascontiguousarray(maps.reshape(*maps.shape[:-2], -1) if known is None else maps[..., known])


def _mean(maps: NDArray[Any], known: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Return the means (n,) of maps (n, h, w) over known places; 0 where there are none."""
    if known is not None and not known.any():
        return np.zeros(len(maps))
    mean: NDArray[Any] = _pixels(maps, known).mean(1)
    return mean


def read_cells(data: bytes, statistics: int) -> NDArray[np.float32]:
    """Return the statistics (n, S) that a tile's bytes hold; rows that are not finite are left out."""
    values = np.frombuffer(data[: len(data) - len(data) % 4], "<f4")
    cells: NDArray[np.float32] = values[: len(values) - len(values) % statistics].reshape(-1, statistics)
    return cells[np.isfinite(cells).all(1)]
