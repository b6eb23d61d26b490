"""Reading of scenes for a model: band assignment, resampling to the model's scale, tiles, and the way back.

`predict` and `evaluate` both read through this module, so their scores agree: bands are matched by name or position,
scenes of another resolution are resampled to the model's, photographs, which have none, to the width that the model was
trained at, and the results are resampled back to the image's own grid. Training reads photographs at the same scale.
It knows the bands of a model, not the model; it works on NumPy arrays, without torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from geood.errors import ConfigError, DataError
from geood.geo.band_matching import match_bands, parse_bands
from geood.geo.bands import Bands
from geood.geo.grid import Grid, Tile, Window, resampled
from geood.geo.orientation import orientation_of
from geood.geo.scene import Scene, SceneSource

log = logging.getLogger("geood")
SAME = 0.05  # relative difference at which resolutions count as equal, well within the training range (data.scale_min)
SHRINK = 8  # maximum downsampling factor: 64 pixels are read per pixel used; beyond, downsample the file instead
SHRINK_PHOTO = 16  # the same for photographs, which are small: from 8K frames to the 480 px of a small network
ENLARGE = 4  # maximum upsampling factor: beyond, the pixels hold hardly any detail that the model was trained on
WIDEST = 2  # maximum tile side on the own grid of a downsampled scene, as a multiple of the config's tile
AS_ASKED = "read as it is, as asked for"  # beginning of the note on an image whose scale is not the model's
STEP_PX = 128  # such sides are multiples of this, for whole blocks


Tags = tuple[tuple[float, ...], tuple[float, ...]]  # scales and offsets of bands


class SceneReading(NamedTuple):
    """Way to read a scene: band `indexes` (from 1) in the model's order, `scale`, and a sentence on each for the user.

    `scale` is working pixels per scene pixel along each axis (0.5: half the resolution). `measured` are bands declared
    as alpha that hold measurements.
    """

    indexes: tuple[int, ...]
    scale: float
    bands_note: str
    resolution_note: str
    measured: tuple[int, ...] = ()

    def source(self, name: str, nodata: float | None) -> SceneSource:
        """Return the description of a scene by its GDAL name, to be read this way wherever it is opened."""
        return SceneSource(name, self.indexes, nodata, self.scale, self.measured)


class PixelSource(Protocol):
    """Source of pixels by windows of the working grid: a `Scene`, or an image in memory."""

    @property
    def scale(self) -> float:
        """Working pixels per own pixel along each axis."""

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return digital numbers (C, h, w) and validity (h, w) of a window of the working grid, reflected outside."""

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """Return the validity (h, w) of a window of the own grid."""


class TilePixels(NamedTuple):
    """Pixels of one tile: digital numbers (C, H, W), their validity (H, W), and the pixels to score (h, w).

    The first two cover `tile.read` on the working grid, the last covers `tile.write` on the scene's own grid.
    """

    image: NDArray[Any]
    valid: NDArray[np.bool_]
    wanted: NDArray[np.bool_]


class ReadingOptions(NamedTuple):
    """The user's choice of how scenes are read.

    `bands` as on the command line, `red=3,green=2,blue=1` or `3,2,1` (None: matched by name, else by position);
    `nodata` in place of the file's own or the bundle's; `resample` to the model's resolution or not.
    """

    bands: str | None = None
    nodata: float | None = None
    resample: bool = True

    def nodata_for(self, bands: Bands) -> float | None:
        """Return the nodata value that takes the place of a file's own: the user's, else that of the model's bands."""
        return bands.nodata if self.nodata is None else self.nodata


class PartOptions(Protocol):
    """Options of reading that choose a part of a scene, too: `SceneOptions` of a prediction."""

    @property
    def area(self) -> Path | None:
        """Vector file, within whose polygons is scored."""

    @property
    def box(self) -> str | None:
        """Box, within which is scored."""

    @property
    def reading(self) -> ReadingOptions:
        """The options without the part."""


AUTOMATIC = ReadingOptions()


def of_whole_images(options: ReadingOptions | PartOptions) -> ReadingOptions:
    """Return how images are read by options that could choose a part of them.

    Raises:
        ConfigError: they choose one.
    """
    if isinstance(options, ReadingOptions):
        return options
    if options.area is not None or options.box is not None:
        raise ConfigError("options: area and box choose a part to map, and whole images are measured; leave both out")
    return options.reading


def settle_reading(
    scene: Scene,
    bands: Bands,
    resolution: float | None,
    options: ReadingOptions = AUTOMATIC,
    *,
    photo_width: int | None = None,
) -> SceneReading:
    """Choose the bands and the scale at which a scene, or a photograph, is read for a model.

    Args:
        scene: the open scene.
        bands: bands of the model.
        resolution: metres per pixel of the model's training crops; None if unknown.
        options: the user's choice.
        photo_width: width in pixels at which the model was trained on photographs; None if on none, or unknown.

    Raises:
        ConfigError: the bands chosen by the user are not those of the model.
        DataError: the bands cannot be matched, or the resolutions or widths differ by too large a factor.
    """
    given = None if options.bands is None else parse_bands(options.bands, bands)
    indexes, bands_note = match_bands(scene, bands, given)
    try:
        if scene.grid.placed or photo_width is None:
            scale, resolution_note = resampling_of(scene.grid, resolution, resample=options.resample)
        else:
            width = shown_width(scene)
            scale, resolution_note = resampling_of_photo(width, photo_width, resample=options.resample)
    except DataError as error:
        raise DataError(f"{scene.path}: {error}") from None
    _compare_tags(scene, bands, indexes)
    return SceneReading(indexes, scale, bands_note, resolution_note, scene.measured)


def _compare_tags(scene: Scene, bands: Bands, indexes: tuple[int, ...]) -> None:
    """Warn of scale and offset tags that differ from those of the training images."""
    own, trained = scene.scale_tags(indexes), (bands.scales, bands.offsets)
    if bands.scales and own != trained:
        log.warning("%s: %s", scene.path, other_tags(own, trained, "the training images have"))


def other_tags(own: Tags, others: Tags, have: str) -> str:
    """Return a sentence on scale and offset tags that differ; `have` says who has the others."""
    scales, offsets = (", ".join(dict.fromkeys(f"{number:g}" for number in numbers)) for numbers in own)
    other_scales, other_offsets = (", ".join(dict.fromkeys(f"{number:g}" for number in numbers)) for numbers in others)
    return (
        f"its bands have scale {scales} and offset {offsets} as tags, {have} scale {other_scales} and offset "
        f"{other_offsets}; the tags are not applied, so the same number means different values: bring them to one "
        "scale first (gdal_translate -unscale -ot Float32)"
    )


def tile_side(budgeted: int, scale: float) -> int:
    """Return the tile side on the scene's own grid at which about `budgeted` pixels are read on the working grid."""
    if scale == 1:
        return budgeted
    side = min(budgeted / scale, WIDEST * budgeted)
    step = STEP_PX if side >= STEP_PX else 32
    return max(32, int(side) // step * step)


def read_tile(source: PixelSource, tile: Tile) -> TilePixels:
    """Read the pixels and validity of one tile.

    Raises:
        DataError: the pixels cannot be read.
    """
    pixels, valid = source.read(tile.read)
    return TilePixels(pixels, valid, valid[tile.core] if source.scale == 1 else source.valid(tile.write))


class WayBack:
    """Way of one resampled tile to the scene's own grid, from (H, W) of `tile.read` to (h, w) of `tile.write`."""

    def __init__(self, tile: Tile, scale: float) -> None:
        write, read = tile.write, tile.read
        self._rows = resampled(write.row, write.height, scale, origin=read.row, size=read.height)
        self._cols = resampled(write.col, write.width, scale, origin=read.col, size=read.width)

    def scores(self, score: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resample scores, bilinear."""
        (top, below, down), (left, right, across) = self._rows, self._cols
        rows = score[top] + (score[below] - score[top]) * down.astype(np.float32)[:, None]
        spread: NDArray[np.float32] = rows[:, left] + (rows[:, right] - rows[:, left]) * across.astype(np.float32)
        return spread

    def classes(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resample classes, nearest."""
        (top, below, down), (left, right, across) = self._rows, self._cols
        return classes[np.where(down < 0.5, top, below)][:, np.where(across < 0.5, left, right)]


def shown_width(scene: Scene) -> int:
    """Return the width in pixels of a photograph as viewers show it, by its EXIF orientation."""
    return orientation_of(scene.source.name).size(scene.grid.height, scene.grid.width)[1]


def said_together(notes: Mapping[str, str]) -> None:
    """Log what was settled for the photographs of a run, given the sentence on the scale of each, by their names.

    Of those that are resampled one is told as an example, and of those read as they are against the model's width.
    """
    resampled = [name for name, note in notes.items() if not note.startswith("read as it is")]
    spared = [name for name, note in notes.items() if note.startswith(AS_ASKED)]
    if resampled:
        said = "%d of %d photographs are read at the model's width, such as %s, %s; scores have their own size"
        log.info(said, len(resampled), len(notes), resampled[0], notes[resampled[0]])
    if spared:
        said = "%d of %d photographs are not of the model's width, such as %s, %s (--no-resample): expect worse scores"
        log.warning(said, len(spared), len(notes), spared[0], notes[spared[0]])


def resampling_of(scene_grid: Grid, resolution: float | None, *, resample: bool) -> tuple[float, str]:
    """Return the scale at which to read a scene for a model trained at `resolution` metres per pixel, and a sentence.

    A ratio within 5 % of an integer is rounded to it, so that pixel edges coincide; 1 means no resampling.

    Raises:
        DataError: the resolutions of scene and model differ by too large a factor.
    """
    own = scene_grid.resolution_m
    if own is None or resolution is None:
        return 1.0, "read as it is: " + ("the scene has no CRS" if own is None else "the model's is not known")
    both = f"the scene has {own:.3g} m per pixel, the model {resolution:.3g} m"
    x, y = (side * resolution / own for side in scene_grid.upright_size)
    remedy = (
        f"bring it nearer to the model's resolution (gdalwarp -r {{kernel}} -tr {x:.4g} {y:.4g} IN OUT), or read it as "
        "it is (--no-resample)"
    )
    scale, note = _settled(own / resolution, both, resample=resample, most=SHRINK, remedy=remedy)
    if note.startswith(AS_ASKED):
        log.warning("%s, and it is read as it is (--no-resample): expect worse scores", both)
    return scale, note


def resampling_of_photo(width: int, trained: int, *, resample: bool = True) -> tuple[float, str]:
    """Return the scale at which to read a photograph for a model trained at a width in pixels, and a sentence.

    Both widths are as viewers show the photographs. A photograph has no metres: its width stands for what it shows, as
    the frames of one kind of camera show about the same. A ratio within 5 % of an integer is rounded to it, as for
    scenes, so the width that results is within 5 % of the model's. Callers say for all photographs of a run together
    what was settled, by `said_together`.

    Raises:
        DataError: the widths differ by too large a factor.
    """
    both = f"the photograph is {width} px wide, those of the model {trained} px"
    remedy = (
        f"bring it to that width first (gdal_translate -r {{kernel}} -outsize {trained} 0 IN OUT), or read it as it is "
        "(--no-resample; in training without data.width_px)"
    )
    return _settled(trained / width, both, resample=resample, most=SHRINK_PHOTO, remedy=remedy)


def _settled(ratio: float, both: str, *, resample: bool, most: int, remedy: str) -> tuple[float, str]:
    """Return the scale for a `ratio` of working pixels to own pixels, and a sentence that tells `both` sizes.

    Args:
        ratio: working pixels per own pixel that would fit the model exactly.
        both: the sizes of image and model, in words.
        resample: False: the user wants the image as it is.
        most: the largest factor of downsampling.
        remedy: what to do beyond that, in words with `{kernel}`.

    Raises:
        DataError: the factor is too large.
    """
    times, shrinks = max(ratio, 1 / ratio), ratio < 1
    whole = round(times)
    times = float(whole) if abs(times / whole - 1) <= SAME else float(f"{times:.4g}")
    if times == 1:
        return 1.0, f"read as it is: {both}"
    if not resample:
        return 1.0, f"{AS_ASKED}: {both}"
    most, word, kernel = (most, "downsampled", "average") if shrinks else (ENLARGE, "upsampled", "bilinear")
    if times > most:
        raise DataError(
            f"{both}: it would have to be {word} {times:.3g} times, and {most} is the most; "
            f"{remedy.format(kernel=kernel)}"
        )
    return (1 / times if shrinks else times), f"{word} {times:.4g} times ({kernel}): {both}"
