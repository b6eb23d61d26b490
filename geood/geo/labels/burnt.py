"""Burnt labels: the shapes of vector files as rasters of class ids, one for each image, made once and kept.

Training reads the same ground many times. Polygons would be rasterized for each crop, which takes ten times as long as
reading ids from a raster and lets the network wait. So they are burnt onto the pixels of each image, in a folder beside
the run, and read as label rasters from then on. The name of such a file holds a digest of the shapes and of the image's
grid: as long as both are the same the file is used again, and what was drawn since makes another.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio

from geood.atomic import atomic_write, output_errors
from geood.constants import IGNORE
from geood.errors import DataError, counted
from geood.geo.gdal import pieces, rasterio_window, writing
from geood.geo.grid import Grid
from geood.geo.labels.id_rasters import IdRaster
from geood.geo.labels.id_shapes import IdShapes, shapes_on
from geood.geo.labels.rules import LabelRules
from geood.progress import Progress

log = logging.getLogger("geood")

BLOCK_PX = 256  # side of the blocks of a raster; a crop reads few of them
DIGITS = 16  # of a digest in a name
DIGEST = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
STEM_BYTES = 80  # of the name of an image in that of its labels
_MOST = 6  # pairs of classes that a message lists


def burn_labels(
    labels: Sequence[Path], images: Mapping[Path, Grid], rules: LabelRules, folder: Path
) -> tuple[Path, ...]:
    """Burn the shapes of vector files onto the grids of images; return the rasters, of those images that hold any.

    Args:
        labels: vector files; of several the first lies on top.
        images: the grid of each image.
        rules: how the files are read.
        folder: where the rasters are kept; made if it is not there.

    Raises:
        DataError: a file cannot be used.
        OutputError: a raster cannot be written.
    """
    burnt: list[Path] = []
    twice: Counter[tuple[int, int]] = Counter()
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with Progress("burning labels", len(images)) as progress:
        for image, grid in images.items():
            shapes = shapes_on(labels, grid, rules)
            if shapes is not None and shapes.window.height and shapes.window.width:
                path = folder / f"{_short(image.stem)}.{shapes.digest[:DIGITS]}.tif"
                if not _is_whole(path, grid[shapes.window]):
                    twice += _burn(shapes, path)
                burnt.append(path)
            progress.advance()
    _remove_old(folder, images, {*burnt})
    _report(twice, rules)
    return tuple(burnt)


def _short(stem: str) -> str:
    """Return the name of an image, cut to the bytes that leave a disk room for digest and suffix."""
    return stem.encode("utf-8", "surrogateescape")[:STEM_BYTES].decode("utf-8", "ignore")


def _remove_old(folder: Path, images: Mapping[Path, Grid], burnt: set[Path]) -> None:
    """Remove the rasters of these images that hold what was drawn before."""
    names = {_short(image.stem) for image in images}
    for path in folder.glob("*.tif"):
        name, _, digest = path.stem.rpartition(".")
        if path not in burnt and name in names and DIGEST.fullmatch(digest):
            with output_errors(path):
                path.unlink()


def _is_whole(path: Path, grid: Grid) -> bool:
    """Return whether a raster of labels is there, with this grid."""
    if not path.is_file():
        return False
    try:
        with IdRaster(path) as raster:
            return (raster.grid.height, raster.grid.width) == (grid.height, grid.width)
    except DataError:
        return False


def _burn(shapes: IdShapes, path: Path) -> Counter[tuple[int, int]]:
    """Write the ids of shapes to a raster, block by block; return the pixels on which shapes of two ids lie."""
    window, twice = shapes.window, Counter[tuple[int, int]]()
    grid = shapes.grid[window]
    profile = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": 1,
        "dtype": "uint8",
        "crs": grid.crs,
        "transform": grid.transform,
        "nodata": IGNORE,
        "tiled": True,
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    with atomic_write(path) as partial, writing(path):
        with rasterio.open(partial, "w", **profile) as file:
            for part in pieces(grid):
                ids = shapes.onto(grid[part])
                twice += shapes.covered_twice(grid[part], ids)
                file.write(ids.astype(np.uint8), 1, window=rasterio_window(part))
        with rasterio.open(partial) as file:  # read, as a disk that was full when it was closed is told to nobody
            for part in pieces(grid):
                file.read(1, window=rasterio_window(part))
    return twice


def _report(twice: Counter[tuple[int, int]], rules: LabelRules) -> None:
    """Say where shapes of different classes overlap, and that the later drawn counts."""
    if not twice:
        return
    names = {i: name for name, i in (rules.names or {}).items()} | {IGNORE: "not known"}
    told = [
        f"{names.get(above, str(above))} over {names.get(below, str(below))} {pixels:,}"
        for (below, above), pixels in twice.most_common(_MOST)
    ]
    log.warning(
        "labels overlap on %s, where the later drawn counts, as viewers show it: %s%s",
        counted(twice.total(), "pixel"),
        ", ".join(told),
        f" and {counted(len(twice) - _MOST, 'more pair')}" if len(twice) > _MOST else "",
    )
