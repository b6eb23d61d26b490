"""Smoother outlines: the staircases of pixels taken off, without a new fault in any polygon.

Each component is simplified on its own as what GEOS calls a coverage, so that its polygons keep their corner contacts
and stay valid, and so that the result does not depend on what was found beside it. Pixels of other components that it
touches at a corner take part as they are, which keeps that contact too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geood.polygons.runs import CONTACT, DOWN, RIGHT, Vertices


def simplified(shapes: NDArray[Any], corners: Vertices, owner: NDArray[np.int64], *, size_px: float) -> NDArray[Any]:
    """MultiPolygons (n,) in pixels without details of about `size_px`; `owner` is the index of a corner's shape.

    Vertices go whose triangle with both neighbours is smaller than size_px^2 (Visvalingam and Whyatt 1993).
    """
    touched, of = _touched_pixels(corners, owner)
    starts = np.searchsorted(of, np.arange(len(shapes) + 1))
    result = shapes.copy()
    for i, shape in enumerate(shapes):
        parts = shapely.get_parts(shape)
        around = touched[starts[i] : starts[i + 1]]
        smooth = shapely.coverage_simplify(np.concatenate([parts, around]), size_px)[: len(parts)]
        whole = shapely.multipolygons(smooth)
        if shapely.is_valid(whole) and not shapely.is_empty(smooth).any():
            result[i] = whole
    return result


def _touched_pixels(corners: Vertices, owner: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The pixels of others that meet a shape at a corner, as squares in the order of the shapes; and whose they are."""
    contact = np.flatnonzero(corners.y & CONTACT)
    x, y = corners.x[contact], corners.y[contact]
    points = np.stack([owner[contact], x >> 2, y >> 2], axis=1)
    _, place, times = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    foreign = times[place.ravel()] == 1  # at a contact of a shape with itself both pixels are its own
    other = np.stack([owner[contact], (x >> 2) - (x & RIGHT > 0), (y >> 2) - (y & DOWN > 0)], axis=1)[foreign]
    whose, col, row = np.unique(other, axis=0).T if len(other) else np.zeros((3, 0), np.int64)
    return shapely.box(col, row, col + 1, row + 1), whose
