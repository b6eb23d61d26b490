"""Reading a scene for a model: which bands, at which resolution, tile by tile, and the way back to the scene's grid.

`predict` and `evaluate` both read through this room, so they give one answer: bands are matched by name or place,
scenes of another resolution are resampled to the model's, and what was computed there comes back to the scene's own
pixels. It knows the bands of a model, not the model; arrays only, no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from geood.errors import DataError
from geood.geo.band_matching import match_bands
from geood.geo.bands import Bands
from geood.geo.grid import Grid, Tile, Window, resampled
from geood.geo.scene import Scene

log = logging.getLogger("geood")
SAME = 0.05  # by which resolutions may differ and count as one: well within what training varies (data.scale_min)
SHRINK = 8  # times at most: 64 pixels are read for each one looked at; beyond, a smaller file is the better way
ENLARGE = 4  # times at most: beyond, next to nothing that the model was trained to see is in the pixels
WIDEST = 2  # times the config's tile, the side of tiles on the grid of a scene that is read at a lower resolution
STEP_PX = 128  # of which such sides are multiples, for whole blocks


class SceneReading(NamedTuple):
    """The decision how a scene is read: its `indexes` in the model's band order, the `scale`, a sentence on each.

    `scale` is working pixels per scene pixel along each axis (0.5: read at half the resolution).
    """

    indexes: tuple[int, ...]
    scale: float
    bands_note: str
    resolution_note: str


class PixelSource(Protocol):
    """Pixels that are read by windows of the working grid: a `Scene`, or an image in memory."""

    @property
    def scale(self) -> float:
        """Working pixels per own pixel along each axis."""

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return digital numbers (C, h, w) and validity (h, w) of a window of the working grid, mirrored outside."""

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """Return the validity (h, w) of a window of the own grid."""


class TilePixels(NamedTuple):
    """One tile as read: digital numbers (C, H, W), their validity (H, W), and the pixels to score (h, w).

    The first two cover `tile.read` on the working grid, the last `tile.write` on the own one.
    """

    image: NDArray[Any]
    valid: NDArray[np.bool_]
    wanted: NDArray[np.bool_]


def settle_reading(
    scene: Scene,
    bands: Bands,
    resolution: float | None,
    *,
    given: Mapping[str, int] | None = None,
    resample: bool = True,
    advise: bool = True,
) -> SceneReading:
    """Decide how a scene is read for a model of these bands, trained at `resolution` metres a pixel (None: unknown).

    Args:
        scene: the scene, open.
        bands: the model's.
        resolution: metres a pixel of the model's training crops.
        given: the scene's band for each of the model's by name, from the user.
        resample: whether to bring the scene to the model's resolution.
        advise: whether messages name the options of `geood predict`.

    Raises:
        DataError: the bands cannot be matched, or the resolutions lie too far apart.
    """
    indexes, bands_note = match_bands(scene, bands, given, advise=advise)
    try:
        scale, resolution_note = resampling_of(scene.grid, resolution, resample=resample, advise=advise)
    except DataError as error:
        raise DataError(f"{scene.path}: {error}") from None
    return SceneReading(indexes, scale, bands_note, resolution_note)


def tile_side(budgeted: int, scale: float) -> int:
    """Return the side of tiles on the scene's own grid: about the `budgeted` side is read on the working grid."""
    if scale == 1:
        return budgeted
    side = min(budgeted / scale, WIDEST * budgeted)
    step = STEP_PX if side >= STEP_PX else 32
    return max(32, int(side) // step * step)


def read_tile(source: PixelSource, tile: Tile) -> TilePixels:
    """Read one tile.

    Raises:
        DataError: the pixels cannot be read.
    """
    pixels, valid = source.read(tile.read)
    return TilePixels(pixels, valid, valid[tile.core] if source.scale == 1 else source.valid(tile.write))


def to_own_grid(
    score: NDArray[np.float32], classes: NDArray[np.uint8], tile: Tile, scale: float
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Bring scores (linearly between pixels) and classes (the nearest) of a resampled tile to the scene's own grid.

    Both come as (H, W) of `tile.read` and leave as (h, w) of `tile.write`.
    """
    write, read = tile.write, tile.read
    top, below, down = resampled(write.row, write.height, scale, origin=read.row, size=read.height)
    left, right, across = resampled(write.col, write.width, scale, origin=read.col, size=read.width)
    down32, across32 = down.astype(np.float32)[:, None], across.astype(np.float32)
    rows = score[top] + (score[below] - score[top]) * down32
    spread = rows[:, left] + (rows[:, right] - rows[:, left]) * across32
    near = classes[np.where(down < 0.5, top, below)][:, np.where(across < 0.5, left, right)]
    return spread, near


def resampling_of(
    scene_grid: Grid, resolution: float | None, *, resample: bool, advise: bool = True
) -> tuple[float, str]:
    """Return the scale at which a scene is read for a model trained at `resolution` metres a pixel, and a sentence.

    Within 5 % of a whole ratio that one is taken (1 above all, which is no resampling): pixels then fall on pixels.

    Raises:
        DataError: the scene's pixels are too small or too large to be brought to the model's.
    """
    own = scene_grid.resolution_m
    if own is None or resolution is None:
        return 1.0, "read as it is: " + ("the scene has no CRS" if own is None else "the model's is not known")
    ratio = own / resolution
    both = f"the scene has {own:.3g} m a pixel, the model {resolution:.3g} m"
    times, shrinks = max(ratio, 1 / ratio), ratio < 1
    whole = round(times)
    times = float(whole) if abs(times / whole - 1) <= SAME else float(f"{times:.4g}")
    if times == 1:
        return 1.0, f"read as it is: {both}"
    if not resample:
        log.warning("%s, and it is read as it is (--no-resample): expect worse scores", both)
        return 1.0, f"read as it is, as asked for: {both}"
    most, word, kernel = (SHRINK, "shrunk", "average") if shrinks else (ENLARGE, "enlarged", "bilinear")
    if times > most:
        x, y = (side / ratio for side in scene_grid.pixel_size)
        other = ", or read it as it is (--no-resample)" if advise else ""
        raise DataError(
            f"{both}: it would have to be {word} {times:.3g} times, and {most} is the most; bring it nearer to the "
            f"model's resolution (gdalwarp -r {kernel} -tr {x:.4g} {y:.4g} IN OUT){other}"
        )
    how = f"shrunk {times:.4g} times, averaged" if shrinks else f"enlarged {times:.4g} times, between pixels linearly"
    return (1 / times if shrinks else times), f"{how}: {both}"
