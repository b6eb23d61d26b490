"""Boundary simplification: removes the staircases of pixels and keeps polygons valid.

Each component is simplified on its own as a coverage in the sense of GEOS, so that its polygons keep their diagonal
contacts and stay valid, and so that the result does not depend on the batch it came in. Pixels of other components that
it touches diagonally take part unchanged, which keeps that contact too. Their other pixels do not: where details of
several pixels are removed, a polygon may cover some of another component.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geood.polygons.runs import CONTACT, DOWN, RIGHT, Vertices


def simplify(shapes: NDArray[Any], vertices: Vertices, owner: NDArray[np.int64], *, size_px: float) -> NDArray[Any]:
    """Simplify MultiPolygons (n,) in pixels by details of about `size_px`; `owner` is the index of each vertex's shape.

    A vertex is removed if the triangle with both its neighbours is smaller than size_px^2 (Visvalingam and Whyatt
    1993).
    """
    touched, of = _touched_pixels(vertices, owner)
    starts = np.searchsorted(of, np.arange(len(shapes) + 1))
    result = shapes.copy()
    for i, shape in enumerate(shapes):
        parts = shapely.get_parts(shape)
        neighbours = touched[starts[i] : starts[i + 1]]
        smooth = shapely.coverage_simplify(np.concatenate([parts, neighbours]), size_px)[: len(parts)]
        whole = shapely.multipolygons(smooth)
        if shapely.is_valid(whole) and not shapely.is_empty(smooth).any():
            result[i] = whole
    return result


def _touched_pixels(vertices: Vertices, owner: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the pixels of others that shapes touch diagonally, as squares in the order of shapes, and the shapes."""
    contact = np.flatnonzero(vertices.y & CONTACT)
    x, y = vertices.x[contact], vertices.y[contact]
    points = np.stack([owner[contact], x >> 2, y >> 2], axis=1)
    _, point, counts = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    foreign = counts[point.ravel()] == 1  # where a shape touches itself, both pixels are its own
    pixels = np.stack([owner[contact], (x >> 2) - (x & RIGHT > 0), (y >> 2) - (y & DOWN > 0)], axis=1)[foreign]
    toucher, col, row = np.unique(pixels, axis=0).T if len(pixels) else np.zeros((3, 0), np.int64)
    return shapely.box(col, row, col + 1, row + 1), toucher
