"""Rasters of class ids: opened and checked, and read onto any pixel grid.

Training, validation and evaluation all read label rasters through `IdRaster`, so a file means the same to each of them,
whatever its type, grid, CRS or cover. Ids are taken from the nearest pixel and never mixed. The file is read in its own
windows, with its own mask, and pixels are looked up there: a warper's mask would depend on the type of the numbers.
What the file does not cover, masks or declares as nodata is unlabelled, 255. The meaning of an id is not known here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.warp import transform as transform_points

from geood.constants import IGNORE
from geood.errors import DataError
from geood.geo.gdal import GDAL_FAILURES, open_raster, rasterio_window, reading, reason
from geood.geo.grid import Grid, Window

LIMITS = np.iinfo(np.int32)  # ids lie in this range; beyond it is what programs write for "nothing"
WINDOW_PX = 1 << 24  # label pixels read at once; targets of a finer file are read in parts
KNOTS_PX = 32  # a transform between CRSs is computed this often and interpolated between
CLOSE_PX = 1e-3  # where interpolation is off by more, every pixel is transformed
TIE_PX = 1e-6  # a centre this near to an edge between two label pixels takes the right or lower one, whatever rounding

Array = NDArray[Any]


class IdRaster:
    """Open raster of class ids, and a context manager; `grid` is its pixel grid."""

    def __init__(self, path: Path, label_ids: Mapping[int, int] | None = None, *, grid: Grid | None = None) -> None:
        """Open a raster; `label_ids` maps numbers in it to others, `grid` takes the place of its own.

        Raises:
            DataError: the file is not a raster with one band of numbers.
        """
        self.path, self._label_ids = path, label_ids
        self._dataset = open_id_raster(path)
        own = Grid(self._dataset.height, self._dataset.width, self._dataset.transform, self._dataset.crs)
        self.grid = grid or own

    def onto(self, target: Grid) -> NDArray[np.int64]:
        """Return the ids (h, w) of the nearest pixels at the pixel centres of a grid, 255 where there is none.

        Raises:
            DataError: the file cannot be read or not be reprojected, or holds numbers that are not class ids.
        """
        ids = np.full((target.height, target.width), IGNORE, np.int64)
        self._fill(ids, target)
        return ids

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self, ids: NDArray[np.int64], target: Grid) -> None:
        """Write the ids at the pixel centres of a grid into an array of its shape."""
        rows, cols = self._at(target)
        source = _around(rows, cols, self.grid)
        if source is None:
            return
        if source.height * source.width > WINDOW_PX and ids.size > 1:
            tall, wide = -(-target.height // 2), -(-target.width // 2)
            for row, col in itertools.product(range(0, target.height, tall), range(0, target.width, wide)):
                quarter = Window(row, col, tall, wide).within(target.window)
                self._fill(ids[quarter.slices], target[quarter])
            return
        stored = read_ids(self.path, self._dataset, source, self._label_ids)
        if stored.shape == ids.shape and _follow(rows, source.row) and _follow(cols, source.col):
            ids[:] = stored
            return
        inside = _inside(rows, self.grid.height) & _inside(cols, self.grid.width)
        down, across = (rows - source.row).clip(0, source.height - 1), (cols - source.col).clip(0, source.width - 1)
        ids[:] = np.where(inside, stored[down, across], IGNORE)

    def _at(self, target: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the row and the column under each pixel centre of a grid; they broadcast to its shape."""
        try:
            rows, cols = pixels_under(self.grid, target)
        except GDAL_FAILURES as error:
            raise DataError(
                f"{self.path}: cannot be reprojected to {target.crs} ({reason(error)}); check its CRS"
            ) from None
        return _whole(rows), _whole(cols)


def open_id_raster(path: Path) -> Any:
    """Open a raster with exactly one band of class ids, alpha excluded.

    Raises:
        DataError: the file cannot be read, has several bands, or is complex.
    """
    dataset = open_raster(path)
    bands, complex_numbers = _id_bands(dataset), "complex" in dataset.dtypes[0]
    if len(bands) == 1 and not complex_numbers:
        return dataset
    dataset.close()
    if complex_numbers:
        raise DataError(f"{path}: holds complex numbers, but labels are integer class ids")
    raise DataError(f"{path}: has {len(bands)} bands, but labels are one band of class ids; save only that band")


def read_ids(path: Path, dataset: Any, window: Window, label_ids: Mapping[int, int] | None = None) -> NDArray[np.int64]:
    """Read the class ids (h, w) of a window inside a raster of `open_id_raster`, 255 where there is none.

    There is none where the mask or the alpha band is 0, at the nodata value, and at NaN. The transparent colour of a
    PNG is a colour like any other. `label_ids` maps numbers in the file to others; if it names the nodata value, that
    is a number like any other too.

    Raises:
        DataError: the raster cannot be read, or contains numbers that are not class ids.
    """
    band, label_ids = _id_bands(dataset)[0], label_ids or {}
    alphas = [i for i, role in enumerate(dataset.colorinterp, 1) if role == ColorInterp.alpha]
    with reading(path):
        numbers = dataset.read(band, window=rasterio_window(window))
        known = np.ones(numbers.shape, np.bool_)
        if (dataset.nodata is None or dataset.nodata not in label_ids) and not _shown_transparent(dataset):
            known = dataset.read_masks(band, window=rasterio_window(window)) > 0
        for alpha in alphas:  # GDAL takes an alpha band for a mask in 8 and 16 bits only
            known &= dataset.read(alpha, window=rasterio_window(window)) > 0
    if numbers.dtype.kind == "f":
        known &= ~np.isnan(numbers)
    numbers = np.where(known, numbers, numbers.dtype.type(0))
    _refuse_no_ids(path, numbers)
    return np.where(known, renumbered(numbers.astype(np.int64), label_ids), IGNORE)


def renumbered(numbers: NDArray[np.int64], label_ids: Mapping[int, int] | None) -> NDArray[np.int64]:
    """Replace the numbers that a table lists, all at once."""
    if not label_ids:
        return numbers
    out = numbers.copy()
    for number, meant in label_ids.items():
        out[numbers == number] = meant
    return out


def _refuse_no_ids(path: Path, numbers: NDArray[Any]) -> None:
    """Reject numbers that are no integers of 32 bits, before a cast would turn them into others."""
    if numbers.dtype.kind in "biu" and numbers.dtype.itemsize < LIMITS.dtype.itemsize:
        return
    far = numbers[(numbers < LIMITS.min) | (numbers > LIMITS.max)]
    if far.size:
        raise DataError(
            f"{path}: holds {far[0]}, where class ids are integers from {LIMITS.min} to {LIMITS.max}; if it means that "
            f"there is no label, declare it (gdal_edit.py -a_nodata {far[0]} {path.name})"
        )
    if numbers.dtype.kind == "f":
        odd = numbers[np.floor(numbers) != numbers]
        if odd.size:
            raise DataError(f"{path}: holds fractions such as {odd[0]}, not class ids")


def pixels_under(own: Grid, target: Grid) -> tuple[Array, Array]:
    """Return where the pixel centres of a grid lie in another: rows and columns, fractional, that broadcast.

    Not finite where the one CRS has no place for a point of the other.

    Raises:
        RasterioError: the CRSs cannot be transformed to each other.
    """
    rows, cols = np.arange(target.height) + 0.5, np.arange(target.width) + 0.5
    if own.crs == target.crs:
        return _placed(~own.transform @ target.transform, rows[:, None], cols[None, :])
    down, across = _knots(target.height), _knots(target.width)
    knots = _transformed(own, target, down, across)
    middle = ((down[1:] + down[:-1]) / 2, (across[1:] + across[:-1]) / 2)
    guessed = [_weights(down, middle[0]) @ values @ _weights(across, middle[1]).T for values in knots]
    exact = _transformed(own, target, *middle)
    off = max(np.abs(guess - there).max() for guess, there in zip(guessed, exact, strict=True))
    if not off <= CLOSE_PX:  # beside a pole or the date line, or where a point has no place
        return _transformed(own, target, rows, cols)
    first, second = (_weights(down, rows) @ values @ _weights(across, cols).T for values in knots)
    return first, second


def _placed(change: Affine, rows: Array, cols: Array) -> tuple[Array, Array]:
    """Apply an affine of pixels; without rotation, rows depend on rows alone and stay a column."""
    down = change.e * rows + change.f
    across = change.a * cols + change.c
    return (down + change.d * cols if change.d else down), (across + change.b * rows if change.b else across)


def _knots(length: int) -> Array:
    return np.unique(np.append(np.arange(0.0, length, KNOTS_PX), float(length)))


def _weights(knots: Array, at: Array) -> Array:
    """Return the weights (n, knots) of linear interpolation at positions along one axis."""
    return np.stack([np.interp(at, knots, one) for one in np.eye(len(knots))], axis=1)


def _transformed(own: Grid, target: Grid, rows: Array, cols: Array) -> tuple[Array, Array]:
    """Return rows and columns (h, w) in `own` of the points at rows (h,) and columns (w,) of `target`."""
    col, row = np.meshgrid(cols, rows)
    x, y = target.transform @ (col.ravel(), row.ravel())
    there = [np.asarray(v) for v in transform_points(target.crs, own.crs, x, y)]
    with np.errstate(invalid="ignore"):
        across, down = ~own.transform @ (there[0], there[1])
    return down.reshape(row.shape), across.reshape(row.shape)


def _whole(positions: Array) -> NDArray[np.int64]:
    """Return the pixel of each position along an axis; -1 where it has none."""
    finite = np.isfinite(positions) & (np.abs(positions) < LIMITS.max)
    return np.where(finite, np.floor(np.where(finite, positions, 0) + TIE_PX), -1).astype(np.int64)


def _inside(places: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    return (places >= 0) & (places < length)


def _follow(places: NDArray[np.int64], first: int) -> bool:
    """Return whether positions along an axis are those from `first` on, one by one."""
    return np.array_equal(places.ravel(), np.arange(first, first + places.size))


def _around(rows: NDArray[np.int64], cols: NDArray[np.int64], grid: Grid) -> Window | None:
    """Return the window of a raster that holds these pixels; None if none is inside."""
    inside = _inside(rows, grid.height) & _inside(cols, grid.width)
    if not inside.any():
        return None
    row, col = (np.broadcast_to(places, inside.shape)[inside] for places in (rows, cols))
    top, left = int(row.min()), int(col.min())
    return Window(top, left, int(row.max()) - top + 1, int(col.max()) - left + 1)


def _id_bands(dataset: Any) -> list[int]:
    return [i for i, role in enumerate(dataset.colorinterp, 1) if role != ColorInterp.alpha]


def _shown_transparent(dataset: Any) -> bool:
    """Check whether the only mask of a PNG is a transparent colour, which is how it is shown, not what it holds.

    GDAL calls such a colour the nodata value; PNG itself has none, a file beside it may.
    """
    if dataset.driver != "PNG" or dataset.nodata is None:
        return False
    beside = [Path(name) for name in dataset.files if name.endswith(".aux.xml")]
    declared = any("<NoDataValue>" in path.read_text(encoding="utf-8", errors="replace") for path in beside)
    return not declared and not any(MaskFlags.per_dataset in flags for flags in dataset.mask_flag_enums)
