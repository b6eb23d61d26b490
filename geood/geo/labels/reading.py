"""Labels of a scene as class ids on the scene's pixel grid, read from rasters or vector files.

Training, validation and evaluation read labels through the same two sources, which put the ids of a file onto any grid:
`IdRaster` for rasters, nearest pixel, and `IdShapes` for the shapes of vector files; of overlapping shapes the later
one counts. Of several files the first that has a label counts. Pixels without a label are 255, or a class that the
rules name. Class ids are those of the files, or what `LabelRules` makes of them; their meaning is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.warp import transform_bounds

from geood.constants import IGNORE, VECTOR_SUFFIXES
from geood.errors import DataError, ElsewhereError
from geood.geo.gdal import GDAL_FAILURES
from geood.geo.grid import Grid, Window
from geood.geo.labels.drawings import SEAM
from geood.geo.labels.id_rasters import IdRaster
from geood.geo.labels.id_shapes import shapes_on
from geood.geo.labels.rules import PLAIN, LabelRules


class LabelSource(Protocol):
    """File of labels that is read onto any grid."""

    def onto(self, target: Grid) -> NDArray[np.int64]:
        """Return the class ids (h, w) at the pixel centres of a grid, 255 where there is no label."""


def first_labels(sources: Iterable[LabelSource], target: Grid) -> NDArray[np.int64]:
    """Return the class ids (h, w) on a grid; of several labels of a pixel that of the first source counts."""
    ids: NDArray[np.int64] | None = None
    for source in sources:
        found = source.onto(target)
        ids = found if ids is None else np.where(ids == IGNORE, found, ids)
        if not (ids == IGNORE).any():
            break
    return np.full((target.height, target.width), IGNORE, np.int64) if ids is None else ids


class LabelReader:
    """Reader of a scene's class ids by windows, and a context manager; create it with `open_labels`."""

    def __init__(self, sources: Sequence[LabelSource], grid: Grid, files: ExitStack) -> None:
        self._sources, self._grid, self._files = sources, grid, files

    def read(self, window: Window) -> NDArray[np.int64]:
        """Return the class ids (h, w) of a window of the scene's grid; of several labels the first file's counts.

        Unlabelled pixels, and those outside the scene, are 255.

        Raises:
            DataError: a file cannot be read, or contains numbers that are not class ids.
        """
        ids = np.full((window.height, window.width), IGNORE, np.int64)
        inner = window.within(self._grid.window)
        if inner.height and inner.width:
            place = Window(inner.row - window.row, inner.col - window.col, inner.height, inner.width)
            ids[place.slices] = first_labels(self._sources, self._grid[inner])
        return ids

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_labels(paths: Sequence[str | Path], grid: Grid, rules: LabelRules = PLAIN) -> LabelReader:
    """Open the labels of a scene with this grid: rasters of class ids, or vector files with a class attribute.

    Rasters that do not overlap the scene are skipped. If raster or scene has no CRS, their sizes must be equal.

    Raises:
        DataError: a file is missing or unreadable, contains no class ids, or lacks the attribute.
        ElsewhereError: none overlaps the scene.
    """
    files = [Path(p) for p in paths]
    if not files:
        raise DataError("no labels for this scene; give rasters of class ids or vector files")
    if are_vectors(files):
        shapes = shapes_on(files, grid, rules)
        if shapes is None:
            raise ElsewhereError(_elsewhere(files, f"no shape with a {rules.attribute} overlaps", grid))
        return LabelReader([shapes], grid, ExitStack())
    with ExitStack() as opened:
        rasters = [opened.enter_context(_raster_of(path, grid, rules)) for path in files]
        near = [r for r in rasters if r.grid == grid or _shared_area(r.grid, grid) > 0]
        if not near:
            raise ElsewhereError(_elsewhere(files, "these labels do not overlap", grid))
        return LabelReader(near, grid, opened.pop_all())


def are_vectors(files: Sequence[Path]) -> bool:
    """Return whether label files are vector files, True, or rasters, False.

    Raises:
        DataError: they are of both kinds.
    """
    vectors = [path for path in files if path.suffix.lower() in VECTOR_SUFFIXES]
    if vectors and len(vectors) < len(files):
        other = next(path for path in files if path not in vectors)
        raise DataError(
            f"{vectors[0]} and {other.name}: labels are vector files or rasters, not both; burn the vectors into a "
            "raster (gdal_rasterize), or give one of them"
        )
    return bool(vectors)


def _elsewhere(files: Sequence[Path], said: str, grid: Grid) -> str:
    names = ", ".join(path.name if len(files) > 1 else str(path) for path in files[:3])
    return (
        f"{names}: {said} the scene, which spans {_span(grid.bounds)} in {_name(grid.crs)}; give the labels of this "
        "scene, or check their CRS"
    )


def _raster_of(path: Path, grid: Grid, rules: LabelRules) -> IdRaster:
    """Open a raster of class ids; without a CRS on both sides its pixels are those of the scene."""
    raster = IdRaster(path, rules.label_ids)
    own = raster.grid
    if own.crs is not None and grid.crs is not None:
        return raster
    if (own.height, own.width) == (grid.height, grid.width):
        raster.grid = grid
        return raster
    raster.close()
    raise DataError(
        f"{path}: {own.height} x {own.width} pixels for a scene of {grid.height} x {grid.width}, and without a CRS on "
        "both they can only be matched pixel by pixel; georeference them, or give labels of that size"
    )


def mask_hint(held: Iterable[int]) -> str:
    """Return what to do about labels that hold no ids but 255, or 0 and 255, as black and white masks do; else ""."""
    ids = set(held)
    if IGNORE not in ids or not ids <= {0, IGNORE}:
        return ""
    return (
        "; the labels hold 255, which means unlabelled, and "
        + ("0 alone beside it" if 0 in ids else "nothing else")
        + ": if they are masks of 0 and 255, say what 255 means with data.label_ids, such as {255: 1}"
    )


def why_not_shared(labels: Sequence[Path]) -> str | None:
    """Return the reason why label files cannot be used side by side on one scene; None if they can.

    Vector files can. Rasters can if all have a CRS and no two overlap by more than `SEAM`, so that a pixel has at most
    one label.

    Raises:
        DataError: a file cannot be read as a raster of class ids, or there are both vector files and rasters.
    """
    if are_vectors(labels):
        return None
    grids: list[Grid] = []
    for path in labels:
        with IdRaster(path) as raster:
            grids.append(raster.grid)
        if grids[-1].crs is None:
            return f"{path.name} has no CRS"
        for other, grid in zip(labels, grids[:-1], strict=False):
            if _shared_area(grid, grids[-1]) > SEAM * min(_area(grid.bounds), _area(_bounds_in(grids[-1], grid))):
                return f"{other.name} and {path.name} cover the same ground"
    return None


def _bounds_in(grid: Grid, other: Grid) -> tuple[float, float, float, float]:
    """Transform the bounds of a grid to the CRS of another; an empty box at the origin if that fails."""
    try:
        xmin, ymin, xmax, ymax = transform_bounds(grid.crs, other.crs, *grid.bounds)
    except GDAL_FAILURES:
        return (0.0, 0.0, 0.0, 0.0)
    return xmin, ymin, xmax, ymax


def _shared_area(own: Grid, grid: Grid) -> float:
    """Return the area, in squared CRS units of `own`, in which the bounds of two grids overlap."""
    return float(shapely.box(*_bounds_in(grid, own)).intersection(_box_of(own)).area)


def _box_of(grid: Grid) -> Any:
    return shapely.box(*grid.bounds)


def _area(bounds: tuple[float, float, float, float]) -> float:
    return (bounds[2] - bounds[0]) * (bounds[3] - bounds[1])


def _span(bounds: Sequence[float]) -> str:
    return f"x {bounds[0]:.7g} to {bounds[2]:.7g}, y {bounds[1]:.7g} to {bounds[3]:.7g}"


def _name(crs: Any) -> str:
    if crs is None:
        return "pixels (no CRS)"
    return str(pyproj.CRS.from_wkt(crs.to_wkt()).name)
