"""Shapes of class ids that lie on a grid, burnt onto its pixels: what `id_rasters` is for rasters.

A pixel has the id of the last drawn shape that holds its centre. Ground without a shape is 255, not known, or the
background that the rules name. How files become shapes is in `drawings`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize

from geood.constants import IGNORE
from geood.geo.gdal import reading
from geood.geo.grid import Grid, Window
from geood.geo.labels.drawings import LABELS, read_drawings
from geood.geo.labels.rules import LabelRules
from geood.geo.vector import onto_grid


def shapes_on(paths: Sequence[Path], grid: Grid, rules: LabelRules) -> IdShapes | None:
    """Return the shapes of vector files that lie on a grid, in the order of drawing; None if none does.

    Raises:
        DataError: a file cannot be used, or not be brought to the CRS of the grid.
    """
    ids, shapes = [np.empty(0, np.int64)], [np.empty(0, object)]
    for polygons in read_drawings(paths, rules):
        placed = onto_grid(polygons, grid, LABELS)
        here = ~shapely.is_empty(placed) & shapely.intersects(shapely.box(*shapely.bounds(placed).T), _box_of(grid))
        ids.append(polygons.values[here])
        shapes.append(placed[here])
    if not sum(map(len, ids)):
        return None
    return IdShapes(paths[0], grid, (np.concatenate(ids), np.concatenate(shapes)), rules.background)


class IdShapes:
    """Class ids and shapes on a grid, rasterized onto parts of it; made by `shapes_on`."""

    def __init__(
        self,
        path: Path,
        grid: Grid,
        drawn: tuple[NDArray[np.int64], NDArray[Any]],
        background: int | None = None,
    ) -> None:
        self.path, self.grid, self._background = path, grid, IGNORE if background is None else background
        self._ids, self._shapes = drawn
        self._index = shapely.STRtree(self._shapes)

    @property
    def pairs(self) -> list[tuple[int, Any]]:
        """Class id and shape of each polygon that lies on the grid, in its coordinates, in the order of drawing."""
        return [(int(i), shape) for i, shape in zip(self._ids, self._shapes, strict=True)]

    @property
    def window(self) -> Window:
        """Window of the grid that its labels lie in: all of it with a background, else the bounding box of shapes."""
        if self._background != IGNORE:
            return self.grid.window
        xmin, ymin, xmax, ymax = shapely.total_bounds(self._shapes).tolist()
        corners = [~self.grid.transform @ (x, y) for x in (xmin, xmax) for y in (ymin, ymax)]
        cols, rows = ([corner[axis] for corner in corners] for axis in (0, 1))
        top, left = int(np.floor(min(rows))), int(np.floor(min(cols)))
        height, width = int(np.ceil(max(rows))) - top, int(np.ceil(max(cols))) - left
        return Window(top, left, height, width).within(self.grid.window)

    @property
    def digest(self) -> str:
        """Digest of everything that `onto` depends on, as hexadecimal digits."""
        grid = self.grid
        place = (grid.height, grid.width, tuple(grid.transform), "" if grid.crs is None else grid.crs.to_wkt())
        summed = hashlib.sha256(repr((place, self._background)).encode())
        summed.update(np.ascontiguousarray(self._ids).tobytes())
        for shape in shapely.to_wkb(self._shapes, byte_order=1):
            summed.update(shape)
        return summed.hexdigest()

    def onto(self, target: Grid) -> NDArray[np.int64]:
        """Return the ids (h, w) of the shapes that hold the pixel centres of a part of the grid.

        Raises:
            DataError: the shapes cannot be rasterized.
        """
        return self._burnt(target, self._near(target))

    def covered_twice(self, target: Grid, ids: NDArray[np.int64]) -> Counter[tuple[int, int]]:
        """Count the pixels of a part of the grid where shapes of different ids overlap, by (lowest, topmost) id.

        Args:
            target: a part of the grid.
            ids: the ids that `onto` gave for it.

        Raises:
            DataError: the shapes cannot be rasterized.
        """
        below = self._burnt(target, self._near(target)[::-1])
        over = below != ids
        pairs, counts = np.unique(np.stack([below[over], ids[over]]), axis=1, return_counts=True)
        return Counter({(int(a), int(b)): int(n) for (a, b), n in zip(pairs.T, counts, strict=True)})

    def _near(self, target: Grid) -> NDArray[np.intp]:
        return np.sort(self._index.query(_box_of(target)))

    def _burnt(self, target: Grid, order: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return the ids (h, w) of shapes burnt in an order, the last on top."""
        shape = (target.height, target.width)
        if not order.size:
            return np.full(shape, self._background, np.int64)
        burnt = [(self._shapes[i], int(self._ids[i])) for i in order]
        with reading(self.path):
            ids = rasterize(burnt, shape, fill=self._background, transform=target.transform, dtype="int32")
        return np.asarray(ids, np.int64)


def _box_of(grid: Grid) -> Any:
    return shapely.box(*grid.bounds)
