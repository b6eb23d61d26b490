"""Nodata that a scene does not declare, found along its border.

Mosaics and warped scenes are framed by what their writer had no data for, often 0 or the highest number of the type.
Without a declaration that is data: it would be trained on and scored. So the border of a scene is sampled, in bounded
time whatever its size. Nothing is corrected: a dark lake at the border looks the same, and only the user knows.
"""

from __future__ import annotations

import numpy as np

from geood.geo.grid import Window
from geood.geo.scene import Scene

BORDER_WINDOWS = 24  # on each side of a scene
BORDER_PX = 16  # length of each
BORDER_SHARE = 0.2  # share of border pixels above which a value is taken for nodata


def undeclared_nodata(scene: Scene) -> float | None:
    """Return a value that much of the border has in most bands, like nodata, though it counts as data; else None.

    In 8-bit scenes all bands must have it, as a pixel of them is only then at nodata (see `Scene.valid`).

    Raises:
        DataError: the pixels cannot be read.
    """
    grid, whole = scene.grid, scene.grid.window
    down, across = _places(grid.height), _places(grid.width)
    sides = {Window(row, col, 1, BORDER_PX) for row in (0, grid.height - 1) for col in across}
    sides |= {Window(row, col, BORDER_PX, 1) for col in (0, grid.width - 1) for row in down}
    samples = [scene.stored(window.within(whole), scene.band_indexes) for window in sorted(sides)]
    numbers = np.concatenate([array.reshape(scene.count, -1) for array, _ in samples], axis=1)
    valid = np.concatenate([valid.ravel() for _, valid in samples])
    enough = scene.count if scene.dtype.itemsize == 1 else scene.count // 2 + 1
    if scene.dtype.kind == "f":
        usual = [0.0, -9999.0, -32768.0, float(np.finfo(scene.dtype).min)]
    else:
        limits = np.iinfo(scene.dtype)
        usual = [0.0, float(limits.max), *([-9999.0, float(limits.min)] if limits.min < -9999 else [])]
    share = {value: float((valid & ((numbers == value).sum(axis=0) >= enough)).mean()) for value in usual}
    likely = max(usual, key=lambda value: share[value])
    return likely if share[likely] >= BORDER_SHARE else None


def _places(side: int) -> list[int]:
    """Return where the windows of a side begin: next to each other if they hold all of it, else evenly spread."""
    if side <= BORDER_WINDOWS * BORDER_PX:
        return list(range(0, side, BORDER_PX))
    return [int(place) for place in np.linspace(0, side - 1, BORDER_WINDOWS)]
