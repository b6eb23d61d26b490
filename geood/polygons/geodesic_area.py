"""Areas on the ellipsoid, of many outlines at once.

Points are brought to the globe and from there onto a map that keeps areas, where the area of a polygon is plain
geometry: a cylinder around the equator, or near a pole, which has no place on the cylinder, a disk around it (Snyder
1987, Map Projections: A Working Manual, pages 16, 76 and 187). Long edges are cut first, so that each piece is as good
as straight on either map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray

from geood.geo.grid import Grid
from geood.polygons.rings import Outlines

_EDGE_PX = 32  # longest edge taken as straight on the scene's map and on the one that keeps areas
_POINTS = 2**18  # worked on together, unless one ring has more
_POLAR = np.deg2rad(80)  # from here on the disk is taken; any latitude would do that both maps distort little


class GeodesicAreas:
    """Areas in square metres of what is outlined on a grid; NaN without CRS or off the globe."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.crs = None if grid.crs is None else pyproj.CRS.from_wkt(grid.crs.to_wkt())
        self._flat = np.nan
        self._to_globe: pyproj.Transformer | None = None
        if self.crs is None:
            return
        globe, geod = self.crs.geodetic_crs, self.crs.get_geod()
        if globe is None or geod is None:  # a local CRS is flat by definition
            unit = self.crs.axis_info[0].unit_conversion_factor if self.crs.axis_info else np.nan
            self._flat = abs(grid.transform.determinant) * unit**2
            return
        self._to_globe = pyproj.Transformer.from_crs(self.crs, globe, always_xy=True)
        self._radians = globe.axis_info[0].unit_conversion_factor
        self._degrees = self.crs.is_geographic and not self.crs.is_derived
        self._radius, self._eccentricity = geod.a, float(np.sqrt(geod.es))

    def of(self, outline: Outlines) -> NDArray[np.float64]:
        """The area of each component."""
        if len(outline.components) < 2:
            return np.zeros(0)
        signed, begin = np.empty(len(outline.rings) - 1), 0
        while begin < len(signed):
            last = int(np.searchsorted(outline.rings, outline.rings[begin] + _POINTS, "right")) - 1
            end = max(begin + 1, last)
            rings = outline.rings[begin : end + 1]
            signed[begin:end] = self._of_rings(outline.points[rings[0] : rings[-1]], rings - rings[0])
            begin = end
        area: NDArray[np.float64] = np.abs(np.add.reduceat(signed, outline.polygons[outline.components[:-1]]))
        area[~np.isfinite(area)] = np.nan
        return area

    def of_largest_pixel(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> float:
        """The largest area of those pixels whose upper left corners these are, infinite where one is not known."""
        corner = np.stack([cols, rows], axis=1).repeat(5, axis=0)
        square = np.tile([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]], (len(rows), 1))
        count = np.arange(len(rows) + 1)
        area = self.of(Outlines((corner + square).astype(np.int32), count * 5, count, count))
        return float(np.nan_to_num(area, nan=np.inf).max())

    def _of_rings(self, points: NDArray[np.int32], rings: NDArray[np.int64]) -> NDArray[np.float64]:
        """The area in each ring, whose sign is that of its direction; `rings` as in Outlines."""
        edges = np.ones(len(points) - 1, np.bool_)
        edges[rings[1:-1] - 1] = False  # from the end of a ring to the beginning of the next one
        first, last = (part[edges].astype(np.float64) for part in (points[:-1], points[1:]))
        starts = rings - np.arange(len(rings))  # where the edges of each ring begin
        if self._to_globe is None:
            shares = (first[:, 0] * last[:, 1] - last[:, 0] * first[:, 1]) / 2 * self._flat
            return np.add.reduceat(shares, starts[:-1])
        cuts = np.maximum(np.ceil(np.abs(last - first).max(axis=1) / _EDGE_PX), 1).astype(np.int64)
        bounds = np.concatenate([[0], np.cumsum(cuts)])
        step = (np.arange(bounds[-1]) - np.repeat(bounds[:-1], cuts))[:, None]
        corners = np.repeat(first, cuts, axis=0) + np.repeat((last - first) / cuts[:, None], cuts, axis=0) * step
        return self._on_the_globe(corners, bounds[starts])

    def _on_the_globe(self, points: NDArray[np.float64], rings: NDArray[np.int64]) -> NDArray[np.float64]:
        """The same where rings are not closed and no edge is long."""
        following = np.arange(1, len(points) + 1)
        following[rings[1:] - 1] = rings[:-1]
        with np.errstate(invalid="ignore"):
            lon, q = self._lon_and_q(points)
            turn = lon[following] - lon
            turn -= 2 * np.pi * np.round(turn / (2 * np.pi))
            at_first = q[rings[:-1]]
            area = np.add.reduceat(((q + q[following]) / 2 - np.repeat(at_first, np.diff(rings))) * turn, rings[:-1])
            polar = np.abs(at_first) > self._q(np.sin(_POLAR))
            polar |= np.abs(np.add.reduceat(turn, rings[:-1])) > np.pi
            if polar.any() and not self._degrees:  # in degrees the cylinder is exact
                side = np.copysign(1, at_first)
                radius = np.sqrt(np.maximum(self._q(1.0) - q * np.repeat(side, np.diff(rings)), 0))
                disk = np.add.reduceat(radius * radius[following] * np.sin(turn), rings[:-1])
                area = np.where(polar, -side * disk, area)
        found: NDArray[np.float64] = area * self._radius**2 / 2
        return found

    def _lon_and_q(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitude in radians and `_q` of points given as column and row."""
        assert self._to_globe is not None
        t = self._grid.transform
        x, y = t.c + points @ np.array([t.a, t.b]), t.f + points @ np.array([t.d, t.e])
        lon, lat = self._to_globe.transform(x, y)
        with np.errstate(invalid="ignore"):
            return np.asarray(lon) * self._radians, self._q(np.sin(np.asarray(lat) * self._radians))

    def _q(self, sine: Any) -> Any:
        """Snyder's q (3-12) of the sine of a latitude: proportional to the area between there and the equator."""
        e = self._eccentricity
        return 2 * sine if e == 0 else (1 - e**2) * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)
