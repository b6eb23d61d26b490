"""Scenes: rasters read by integer windows, always together with what is valid.

Windows may overhang the scene (it is mirrored there). Pixels come in the scene's own digital numbers; `Bands` brings
those to [0, 1]. This room knows nothing of tensors or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags

from geood.bands import Bands
from geood.errors import DataError
from geood.gdal import open_raster, rasterio_window, reading
from geood.grid import Grid, Window, mirrored


class Scene:
    """A georeferenced raster, open for reading; a context manager, made with `Scene.open`.

    `grid` carries transform and CRS as stored (identity and None for a photo); `count`, `band_names` and `band_indexes`
    (from 1) leave out alpha bands. A scene belongs to the thread that opened it.
    """

    def __init__(self, path: Path, dataset: Any, nodata: float | None) -> None:
        self.path, self.nodata, self._dataset = path, nodata, dataset
        self.grid = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
        self.dtype = np.dtype(dataset.dtypes[0])
        roles = dataset.colorinterp
        self._alpha = [i for i, role in enumerate(roles, 1) if role == ColorInterp.alpha]
        self.band_indexes = tuple(i for i in dataset.indexes if i not in self._alpha)
        self.band_names = tuple(
            dataset.descriptions[i - 1] or (roles[i - 1].name if roles[i - 1] in _COLOURS else f"band_{i}")
            for i in self.band_indexes
        )
        flags = {flag for i in self.band_indexes for flag in dataset.mask_flag_enums[i - 1]}
        self._has_nodata = nodata is None and MaskFlags.nodata in flags
        overruled = nodata is not None and MaskFlags.nodata in flags
        self._masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags and not overruled

    @classmethod
    def open(cls, path: str | Path, nodata: float | None = None) -> Self:
        """Open a raster; `nodata` stands for the file's own nodata value where it is given.

        Raises:
            DataError: if the file is missing, is no raster, or holds pixels that are no measurements per band
                (palette, complex numbers, mixed types) or no place (ground control points alone).
        """
        path = Path(path)
        dataset = open_raster(path)
        try:
            with reading(path):
                _refuse_odd(path, dataset)
                return cls(path, dataset, nodata)
        except BaseException:
            dataset.close()
            raise

    @property
    def count(self) -> int:
        """How many bands there are, alpha aside."""
        return len(self.band_indexes)

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

    def read(self, window: Window, indexes: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (C, h, w) of a window in the scene's own dtype, and which of them are valid (h, w).

        Where the window overhangs the scene, the scene is mirrored about its border pixels (as by `numpy.pad` with
        "reflect"), as often as it takes. A pixel is valid where the mask band and alpha are above 0, not all bands
        equal nodata, and every band that is read is finite; with a nodata override, not all read bands equal that.

        Raises:
            DataError: if the pixels cannot be read.
        """
        rows = mirrored(window.row, window.height, self.grid.height)
        cols = mirrored(window.col, window.width, self.grid.width)
        top, left = int(rows.min()), int(cols.min())
        inner = Window(top, left, int(rows.max()) + 1 - top, int(cols.max()) + 1 - left)
        with reading(self.path):
            array = self._dataset.read(list(indexes), window=rasterio_window(inner))
            valid = self._valid(inner, array)
        if (inner.height, inner.width) != (window.height, window.width) or inner[:2] != window[:2]:
            place = np.ix_(rows - top, cols - left)
            return np.ascontiguousarray(array[:, place[0], place[1]]), valid[place]
        return array, valid

    def _valid(self, window: Window, array: NDArray[Any]) -> NDArray[np.bool_]:
        place = rasterio_window(window)
        valid = np.ones(array.shape[1:], np.bool_)
        if self._masked:
            valid &= self._dataset.read_masks(self.band_indexes[0], window=place) > 0
        for index in self._alpha:
            valid &= self._dataset.read(index, window=place) > 0
        if self._has_nodata:
            valid &= self._dataset.read_masks(list(self.band_indexes), window=place).any(axis=0)
        if self.nodata is not None:
            valid &= ~(array == self.nodata).all(axis=0)
        if array.dtype.kind == "f":
            valid &= np.isfinite(array).all(axis=0)
        return valid

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.gray)


def _refuse_odd(path: Path, dataset: Any) -> None:
    """Refuse rasters whose numbers or place would be misread."""
    types = sorted(set(dataset.dtypes))
    if any("complex" in t for t in types):
        raise DataError(f"{path}: holds complex numbers; save their amplitude as float32 first")
    if len(types) > 1:
        raise DataError(f"{path}: its bands are of different types ({', '.join(types)}); save them all as one type")
    if ColorInterp.palette in dataset.colorinterp:
        raise DataError(f"{path}: a palette image; turn it into colours first: gdal_translate -expand rgb IN OUT")
    if all(role == ColorInterp.alpha for role in dataset.colorinterp):
        raise DataError(f"{path}: its only band is an alpha band; give a scene with bands of measurements")
    if dataset.crs is None and dataset.transform.is_identity and dataset.gcps[0]:
        raise DataError(f"{path}: placed by ground control points alone; rectify it first: gdalwarp -tps IN OUT")
    if not dataset.transform.is_identity and abs(dataset.transform.determinant) == 0:
        raise DataError(f"{path}: its transform {tuple(dataset.transform)[:6]} has no area; georeference it again")
