"""Scenes: rasters read by integer windows, always together with a validity mask.

Windows may extend beyond the scene, which is padded by reflection. Pixels are the scene's digital numbers; `Bands`
scales those to [0, 1]. A scene may be read at another resolution than its own: then windows are on its `working` grid,
while outputs are written on its own `grid`. Overviews are never read, as they may have been made by any method, so
results do not depend on whether a file has them. This module knows nothing of tensors or models.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags

from geood.errors import DataError, counted
from geood.geo.addresses import display_name
from geood.geo.alpha import declared_so, told_apart
from geood.geo.bands import Bands
from geood.geo.gdal import allow_servers, rasterio_window, reading
from geood.geo.grid import Grid, Window, mirrored
from geood.geo.opener import STRIPS_PX, BlockLayout, Opened, largest_block, open_measurements
from geood.geo.resampling import resample, resized, spread, taps

log = logging.getLogger("geood")
SHARED_BYTES = 2**26  # a block above this is decoded by one thread at a time
PIECE_PX, PIECE_BYTES = 2**21, 2**24  # most scene pixels that are resampled at a time, and bytes of them as numbers


@dataclass(frozen=True)
class SceneSource:
    """Picklable description of a scene and of the way to read it.

    `name` is the GDAL name (a path or /vsi...); `indexes` are the bands (from 1) in the model's order (empty: all but
    alpha); `nodata` overrides the file's own; `scale` is working pixels per scene pixel (0.5: half the resolution);
    `measured` are bands declared as alpha that hold measurements (None: told by their values, see `geo.alpha`);
    `servers` lets a local VRT name servers, as a mosaic of addresses does.
    """

    name: str
    indexes: tuple[int, ...] = ()
    nodata: float | None = None
    scale: float = 1.0
    measured: tuple[int, ...] | None = None
    servers: bool = False


class Scene:
    """Raster open for reading, and a context manager; create it with `Scene.open`.

    `grid` has transform and CRS as stored (identity and None for a photo; a north-up grid if ground control points
    alone georeference the file); `working` is the grid of the windows that are read. `count`, `band_names` and
    `band_indexes` (from 1) exclude the `alpha` bands, which are masks. A band `declared` as alpha that the source asks
    for, or that is `measured` by its values, counts as a normal band; `dark` alpha bands are 0 wherever they were
    looked at. A scene belongs to the thread that opened it; if `shared` is true, several threads may share it, one at a
    time, so that they do not each decode the same blocks.
    """

    def __init__(self, source: SceneSource, opened: Opened) -> None:
        self.source, self.path, self.nodata = source, display_name(source.name), source.nodata
        self._opened, self._dataset = opened, (dataset := opened.dataset)
        self.layout = BlockLayout.of(opened.file)
        self.grid = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
        self.working = self.grid if source.scale == 1 else _scaled(self.grid, source.scale)
        self.dtype = np.dtype(dataset.dtypes[0])
        roles, described = dataset.colorinterp, opened.file.descriptions
        self.declared = tuple(i for i, role in enumerate(roles, 1) if role == ColorInterp.alpha)
        settled = () if self.layout.points else source.measured  # with points, only alpha marks the footprint
        asked_for = () if self.layout.points else source.indexes
        open_to_doubt = tuple(i for i in self.declared if i not in asked_for)
        told = told_apart(dataset, open_to_doubt if settled is None else ())
        self.measured, self.dark = settled or told.measured, told.dark
        self.alpha = tuple(i for i in open_to_doubt if i not in self.measured)
        self.band_indexes = tuple(i for i in dataset.indexes if i not in self.alpha)
        self.band_names = tuple(
            described[i - 1] or (roles[i - 1].name if roles[i - 1] in _COLOURS else f"band_{i}")
            for i in self.band_indexes
        )
        self.indexes = source.indexes or self.band_indexes
        masks = dataset.mask_flag_enums
        flags = {i: masks[i - 1] for i in self.band_indexes}
        every = {flag for of_band in flags.values() for flag in of_band}
        overruled = self.nodata is not None
        own = [i for i, of_band in flags.items() if not of_band or (MaskFlags.nodata in of_band and not overruled)]
        self._masked_bands = own  # each has a nodata value or a mask of its own
        self._numbers = self._compared()
        self._masked = MaskFlags.per_dataset in every and not every & {MaskFlags.alpha}
        self._masked &= not (overruled and MaskFlags.nodata in every)

    @classmethod
    def open(cls, path: str | Path | SceneSource, nodata: float | None = None) -> Self:
        """Open a raster by its path or GDAL name; `nodata`, if given, overrides the file's own nodata value.

        Raises:
            DataError: the file is missing, is not a raster, lacks a band of the source, or is rejected by
                `open_measurements` (palette, complex numbers, mixed dtypes, no usable georeferencing).
        """
        source = path if isinstance(path, SceneSource) else SceneSource(str(path), nodata=nodata)
        if source.servers:
            allow_servers(source.name)
        opened = open_measurements(source.name, source.nodata)
        try:
            with reading(source.name):
                scene = cls(source, opened)
        except BaseException:
            opened.close()
            raise
        if strange := sorted(set(source.indexes) - set(scene.band_indexes)):
            scene.close()
            raise DataError(f"{scene.path}: has no bands {strange}, only {scene.band_indexes}; choose among these")
        if source is not path and scene.measured:
            log.warning("%s: %s", scene.path, declared_so(scene.measured))
        if scene.layout.points and source is not path:
            size = f"{scene.grid.width} x {scene.grid.height}"
            log.info("%s: warped to a north-up grid of %s px by its ground control points", scene.path, size)
        return scene

    @property
    def scale(self) -> float:
        """Pixels of the working grid per pixel of the scene's own, along each axis."""
        return self.source.scale

    @property
    def count(self) -> int:
        """Number of bands, alpha excluded."""
        return len(self.band_indexes)

    @property
    def strips(self) -> bool:
        """True if blocks span full rows so long that tiles should share the decoded rows."""
        return self.layout.whole_rows and self.layout.block[1] > STRIPS_PX

    @property
    def block_bytes(self) -> int:
        """Bytes that one thread holds while it decodes a block: what the codec returns, and its copy in the cache."""
        height, width = self.decoded_block
        together = self.layout.interleave == "pixel" or self.layout.driver == "VRT"  # whose sources may be
        bands: int = self._opened.file.count if together else 1
        return int(2 * height * width * bands * self.dtype.itemsize)

    @cached_property
    def decoded_block(self) -> tuple[int, int]:
        """Height and width of the blocks that are decoded: of a VRT the largest of its sources, where it tells them."""
        return largest_block(self._opened.file, self.layout.block)

    @property
    def shared(self) -> bool:
        """True if threads should share one open file: for strips, and blocks too large to decode several at once."""
        return self.strips or self.block_bytes > SHARED_BYTES

    def scale_tags(self, indexes: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the scale and offset tags of bands; pixels are read as stored, so they are never applied.

        A tag that is not finite is as good as none.
        """
        scales, offsets = self._opened.file.scales, self._opened.file.offsets
        return (
            tuple(float(scales[i - 1]) if math.isfinite(scales[i - 1]) else 1.0 for i in indexes),
            tuple(float(offsets[i - 1]) if math.isfinite(offsets[i - 1]) else 0.0 for i in indexes),
        )

    def rows_cache_bytes(self, rows: int) -> int:
        """Return the size in bytes of a GDAL block cache for this many full rows; 0 unless `strips` is true."""
        if not self.strips:
            return 0
        height, width = self.layout.block
        return (-(-rows // height) + 1) * height * width * self._pixel_bytes

    def window_cache_bytes(self, side: int) -> int | None:
        """Return the bytes that the blocks under any window of `side` x `side` pixels take in GDAL's cache.

        They are known of plain GeoTIFFs alone: None for mosaics and for what is warped as it is read.
        """
        if self.layout.driver != "GTiff" or self.layout.points:
            return None
        height, width = (math.ceil((side - 1) / block + 1) * block for block in self.layout.block)
        return height * width * self._pixel_bytes

    @property
    def _pixel_bytes(self) -> int:
        """Bytes of a pixel of all bands, and of its mask if the file has one, in GDAL's cache."""
        return int(self._opened.file.count * self.dtype.itemsize + bool(self._masked))

    def check_bands(self, bands: Bands) -> None:
        """Check that the scene has the bands that a model needs.

        Raises:
            DataError: it does not; the message lists the bands of both.
        """
        if not self._holds(bands):
            wanted = bands.count if bands.scene_count is None else bands.scene_count
            used = ", ".join(f"{i}: {name}" for i, name in zip(bands.indexes, bands.names, strict=True))
            raise DataError(
                f"{self.path}: has {counted(self.count, 'band')} ({', '.join(self.band_names)}), but the model was "
                f"trained on scenes with {wanted} ({used}); give a scene with these bands in this order"
            )

    def _holds(self, bands: Bands) -> bool:
        wanted, there = set(bands.indexes), set(self.band_indexes)
        if bands.scene_count is None:  # the user ordered these in training, whatever a file declares
            return wanted <= there | set(self.alpha)
        if bands.scene_count == self.count:
            return wanted <= there
        if self.dark and bands.scene_count == self.count + len(self.dark):
            return wanted <= there | set(self.dark)
        return bands.scene_count == self.count - len(self.measured) and wanted <= there - set(self.measured)

    def read(self, window: Window, indexes: Sequence[int] = ()) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read pixels (C, h, w) of a window of the working grid, and their validity (h, w).

        Beyond the scene, pixels are reflected about the border pixels (`numpy.pad` mode "reflect"), repeatedly if
        needed. Digital numbers are as stored, or floats if resampled (see `resampling`). Without `indexes`, the bands
        are those of the source.

        Raises:
            DataError: the pixels cannot be read.
        """
        rows = mirrored(window.row, window.height, self.working.height)
        cols = mirrored(window.col, window.width, self.working.width)
        top, left = int(rows.min()), int(cols.min())
        inner = Window(top, left, int(rows.max()) + 1 - top, int(cols.max()) + 1 - left)
        scaled = self.source.scale != 1
        array, valid = (self._resampled if scaled else self.stored)(inner, indexes or self.indexes)
        if (inner.height, inner.width) != (window.height, window.width) or inner[:2] != window[:2]:
            place = rows - top, cols - left
            return spread(array, *place), spread(valid, *place)
        return array, valid

    def valid(self, window: Window, indexes: Sequence[int] = ()) -> NDArray[np.bool_]:
        """Return the validity (h, w) of a window of the scene's own grid, which must lie within the scene.

        A pixel is valid if the mask band and alpha are above 0, every band read is finite, and none of them has the
        nodata value (its own or the override). In 8-bit scenes, where no number is to spare and each of them is a
        measurement too, a pixel is invalid only if all bands read that have a nodata value are at it.

        Raises:
            DataError: the pixels cannot be read.
        """
        if self._numbers or self.dtype.kind == "f":
            return self.stored(window, indexes or self.indexes)[1]
        with reading(self.source.name):
            return self._validity(window, indexes or self.indexes)

    @property
    def wholly_valid(self) -> bool:
        """True if no pixel can be invalid: no mask, alpha or nodata value, and no float data."""
        marked = self._masked or self.alpha or self._masked_bands or self.nodata is not None
        return not marked and self.dtype.kind != "f"

    def stored(self, window: Window, indexes: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read pixels (C, h, w) and validity (h, w) of a window within the scene's own grid, never resampled."""
        with reading(self.source.name):
            array = self._dataset.read(list(indexes), window=rasterio_window(window))
            valid = self._validity(window, indexes)
        with np.errstate(over="ignore"):  # a nodata value beyond the type is that of no pixel
            at_nodata = [array[k] == self._numbers[i] for k, i in enumerate(indexes) if i in self._numbers]
        if at_nodata:
            valid &= ~self._missing(at_nodata)
        if array.dtype.kind == "f":
            valid &= np.isfinite(array).all(axis=0)
        return array, valid

    def _compared(self) -> dict[int, float]:
        """Return the nodata values that pixels are compared with when read; GDAL's masks tell the others.

        These are the override, and those of a scene that control points place: the mask of the warped scene is only 0
        where all bands are at nodata.
        """
        if self.nodata is not None:
            return dict.fromkeys(self.band_indexes, self.nodata)
        values = self._opened.file.nodatavals if self.layout.points and self.dtype.itemsize > 1 else ()
        return {i: value for i, value in enumerate(values, 1) if value is not None}

    def _missing(self, at_nodata: Sequence[NDArray[np.bool_]] | NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the pixels (h, w) without data, given where each band (n, h, w) is at its nodata value."""
        rule = np.logical_and if self.dtype.itemsize == 1 else np.logical_or
        missing: NDArray[np.bool_] = rule.reduce(at_nodata, axis=0)
        return missing

    def _validity(self, window: Window, indexes: Sequence[int]) -> NDArray[np.bool_]:
        """Return the validity (h, w) of a window by mask band, alpha and the file's nodata values."""
        place = rasterio_window(window)
        valid = np.ones((window.height, window.width), np.bool_)
        if self._masked:
            valid &= self._dataset.read_masks(self.band_indexes[0], window=place) > 0
        for index in self.alpha:
            valid &= self._dataset.read(index, window=place) > 0
        if own := [i for i in self._masked_bands if i in indexes]:
            valid &= ~self._missing(self._dataset.read_masks(own, window=place) == 0)
        return valid

    def _resampled(self, window: Window, indexes: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Resample pixels and validity of a window of the working grid, in strips of rows that bound memory."""
        scale = self.source.scale
        across = taps(window.col, window.width, scale=scale, size=self.grid.width)
        most = min(PIECE_PX, PIECE_BYTES // (len(indexes) * max(4, self.dtype.itemsize)))
        step = max(1, int(most * scale / (across.stop - across.start)))
        parts = []
        for row in range(window.row, window.row + window.height, step):
            height = min(step, window.row + window.height - row)
            down = taps(row, height, scale=scale, size=self.grid.height)
            under = Window(down.start, across.start, down.stop - down.start, across.stop - across.start)
            parts.append(resample(*self.stored(under, indexes), down, across))
        arrays, valid = zip(*parts, strict=True)
        return np.concatenate(arrays, axis=1), np.concatenate(valid)

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.gray)


def _scaled(grid: Grid, scale: float) -> Grid:
    transform = grid.transform @ Affine.scale(1 / scale)
    return Grid(resized(grid.height, scale), resized(grid.width, scale), transform, grid.crs)
