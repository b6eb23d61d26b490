"""Scenes: rasters read by integer windows, always together with what is valid.

Windows may overhang the scene (it is mirrored there). Pixels come in the scene's own digital numbers; `Bands` brings
those to [0, 1]. A scene may be read at another resolution than its own: then windows are of its `working` grid, while
its own `grid` stays the one that answers are written on. Overviews are never read, as they may be made in any way, so
the answer does not depend on whether a file has them. This room knows nothing of tensors or models.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags

from geood.errors import DataError
from geood.geo.bands import Bands
from geood.geo.gdal import display_name, rasterio_window, reading
from geood.geo.grid import Grid, Window, mirrored
from geood.geo.opener import STRIPS_PX, BlockLayout, Opened, open_measurements
from geood.geo.resampling import resample, resized, taps

log = logging.getLogger("geood")
PIECE_PX = 2**21  # of the scene that are resampled at a time, to bound the memory


@dataclass(frozen=True)
class SceneSource:
    """How a scene is read; it travels to other processes.

    `name` as GDAL opens it (a path or /vsi...); `indexes` of the bands in the model's order (empty: all but alpha);
    `nodata` stands for the file's own; `scale` is working pixels per scene pixel (0.5: read at half the resolution).
    """

    name: str
    indexes: tuple[int, ...] = ()
    nodata: float | None = None
    scale: float = 1.0


class Scene:
    """A raster, open for reading; a context manager, made with `Scene.open`.

    `grid` carries transform and CRS as stored (identity and None for a photo; a north-up grid where ground control
    points alone place the file); `working` is the grid of the windows that are read. `count`, `band_names` and
    `band_indexes` (from 1) leave out the `alpha` bands: GDAL calls the fourth of four 8-bit bands so unless it is told
    otherwise, so one that the source asks for is a band like any. A scene belongs to the thread that opened it; where
    `strips` is true it may serve several, one at a time, which spares each of them to decode all rows again.
    """

    def __init__(self, source: SceneSource, opened: Opened) -> None:
        self.source, self.path, self.nodata = source, display_name(source.name), source.nodata
        self._opened, self._dataset = opened, (dataset := opened.dataset)
        self.layout = BlockLayout.of(opened.file)
        self.grid = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
        self.working = self.grid if source.scale == 1 else _scaled(self.grid, source.scale)
        self.dtype = np.dtype(dataset.dtypes[0])
        roles, described = dataset.colorinterp, opened.file.descriptions
        asked_for = () if self.layout.points else source.indexes  # a footprint is told by its alpha alone
        self.alpha = tuple(i for i, role in enumerate(roles, 1) if role == ColorInterp.alpha and i not in asked_for)
        self.band_indexes = tuple(i for i in dataset.indexes if i not in self.alpha)
        self.band_names = tuple(
            described[i - 1] or (roles[i - 1].name if roles[i - 1] in _COLOURS else f"band_{i}")
            for i in self.band_indexes
        )
        self.indexes = source.indexes or self.band_indexes
        flags = {i: dataset.mask_flag_enums[i - 1] for i in self.band_indexes}
        every = {flag for of_band in flags.values() for flag in of_band}
        overruled = self.nodata is not None
        own = [i for i, of_band in flags.items() if not of_band or (MaskFlags.nodata in of_band and not overruled)]
        self._masked_bands = own  # each has a nodata value or a mask of its own
        self._masked = MaskFlags.per_dataset in every and not every & {MaskFlags.alpha}
        self._masked &= not (overruled and MaskFlags.nodata in every)

    @classmethod
    def open(cls, path: str | Path | SceneSource, nodata: float | None = None) -> Self:
        """Open a raster by its path or name; `nodata` stands for the file's own nodata value where it is given.

        Raises:
            DataError: if the file is missing, is no raster, or holds pixels that are no measurements per band
                (palette, complex numbers, mixed types) or no place that could be told (see `intake`).
        """
        source = path if isinstance(path, SceneSource) else SceneSource(str(path), nodata=nodata)
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
        if scene.layout.points and source is not path:
            size = f"{scene.grid.width} x {scene.grid.height}"
            log.info("%s: brought onto a north-up grid of %s px by its ground control points", scene.path, size)
        return scene

    @property
    def scale(self) -> float:
        """Pixels of the working grid per pixel of the scene's own, along each axis."""
        return self.source.scale

    @property
    def count(self) -> int:
        """How many bands there are, alpha aside."""
        return len(self.band_indexes)

    @property
    def strips(self) -> bool:
        """Whether the file can only be decoded by rows so long that tiles must share what is decoded."""
        return self.layout.whole_rows and self.layout.block[1] > STRIPS_PX

    def rows_cache_bytes(self, rows: int) -> int:
        """The GDAL block cache that holds so many full rows of a scene of strips; 0 for any other."""
        if not self.strips:
            return 0
        height, width = self.layout.block
        per_pixel: int = self._opened.file.count * self.dtype.itemsize + bool(self._masked)
        return (-(-rows // height) + 1) * height * width * per_pixel

    def check_bands(self, bands: Bands) -> None:
        """See that the scene has the bands a model wants.

        Raises:
            DataError: naming the bands of both, if it has not.
        """
        fits = set(bands.indexes) <= set(self.band_indexes)
        if bands.scene_count is not None:
            fits = fits and self.count == bands.scene_count
        if not fits:
            wanted = bands.count if bands.scene_count is None else bands.scene_count
            used = ", ".join(f"{i}: {name}" for i, name in zip(bands.indexes, bands.names, strict=True))
            raise DataError(
                f"{self.path}: has {self.count} bands ({', '.join(self.band_names)}), but the model was trained on "
                f"scenes with {wanted} ({used}); give a scene with these bands in this order"
            )

    def read(self, window: Window, indexes: Sequence[int] = ()) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (C, h, w) of a window of the working grid, and which of them are valid (h, w).

        Where the window overhangs the scene, the scene is mirrored about its border pixels (as by `numpy.pad` with
        "reflect"), as often as it takes. Digital numbers are as stored, or floats where they are resampled (see
        `resampling`). Without `indexes`, the bands are those of the source.

        Raises:
            DataError: if the pixels cannot be read.
        """
        rows = mirrored(window.row, window.height, self.working.height)
        cols = mirrored(window.col, window.width, self.working.width)
        top, left = int(rows.min()), int(cols.min())
        inner = Window(top, left, int(rows.max()) + 1 - top, int(cols.max()) + 1 - left)
        scaled = self.source.scale != 1
        array, valid = (self._resampled if scaled else self.stored)(inner, indexes or self.indexes)
        if (inner.height, inner.width) != (window.height, window.width) or inner[:2] != window[:2]:
            place = np.ix_(rows - top, cols - left)
            return np.ascontiguousarray(array[:, place[0], place[1]]), valid[place]
        return array, valid

    def valid(self, window: Window, indexes: Sequence[int] = ()) -> NDArray[np.bool_]:
        """Which pixels (h, w) are valid in a window of the scene's own grid, which must lie in it.

        A pixel is valid where the mask band and alpha are above 0, not all bands equal their nodata, and every band
        that is read is finite; with a nodata override, not all read bands equal that.

        Raises:
            DataError: if the pixels cannot be read.
        """
        if self.nodata is not None or self.dtype.kind == "f":
            return self.stored(window, indexes or self.indexes)[1]
        with reading(self.source.name):
            return self._validity(window)

    @property
    def wholly_valid(self) -> bool:
        """Whether nothing in the file could make a pixel invalid."""
        marked = self._masked or self.alpha or self._masked_bands or self.nodata is not None
        return not marked and self.dtype.kind != "f"

    def stored(self, window: Window, indexes: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels and validity of a window of the scene's own grid, which must lie in it, whatever the scale."""
        with reading(self.source.name):
            array = self._dataset.read(list(indexes), window=rasterio_window(window))
            valid = self._validity(window)
        if self.nodata is not None:
            valid &= ~(array == self.nodata).all(axis=0)
        if array.dtype.kind == "f":
            valid &= np.isfinite(array).all(axis=0)
        return array, valid

    def _validity(self, window: Window) -> NDArray[np.bool_]:
        """What mask band, alpha and nodata values say of a window."""
        place = rasterio_window(window)
        valid = np.ones((window.height, window.width), np.bool_)
        if self._masked:
            valid &= self._dataset.read_masks(self.band_indexes[0], window=place) > 0
        for index in self.alpha:
            valid &= self._dataset.read(index, window=place) > 0
        if self._masked_bands:
            valid &= self._dataset.read_masks(self._masked_bands, window=place).any(axis=0)
        return valid

    def _resampled(self, window: Window, indexes: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels and validity of a window in the working grid, made piece by piece."""
        scale = self.source.scale
        across = taps(window.col, window.width, scale=scale, size=self.grid.width)
        step = max(1, int(PIECE_PX * scale / (across.stop - across.start)))
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
