"""Ellipsoidal areas of many rings at once.

Points are transformed to geodetic coordinates and from there to an equal-area projection, in which the area of a
polygon is plain geometry: a cylindrical one around the equator, or an azimuthal one around a pole, which the cylinder
cannot hold (Snyder 1987, Map Projections: A Working Manual, pages 16, 76 and 187). Long edges are densified first, so
that each segment is as good as straight in either projection.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray

from geood.geo.grid import Grid
from geood.polygons.rings import Rings

_EDGE_PX = 32  # longest segment taken as straight both in the scene's CRS and in the equal-area projection
_CHUNK_POINTS = 2**18  # processed together, unless one ring has more
_POLAR_LATITUDE = np.deg2rad(80)  # the azimuthal one from here on; any latitude would do where both distort little


class GeodesicAreas:
    """Areas in square metres of rings on a grid; NaN without CRS or outside its domain."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.crs = None if grid.crs is None else pyproj.CRS.from_wkt(grid.crs.to_wkt())
        self._planar_px_area = np.nan
        self._to_geodetic: pyproj.Transformer | None = None
        if self.crs is None:
            return
        geodetic, geod = self.crs.geodetic_crs, self.crs.get_geod()
        if geodetic is None or geod is None:  # a local CRS is planar by definition
            unit = self.crs.axis_info[0].unit_conversion_factor if self.crs.axis_info else np.nan
            self._planar_px_area = abs(grid.transform.determinant) * unit**2
            return
        self._to_geodetic = pyproj.Transformer.from_crs(self.crs, geodetic, always_xy=True)
        self._radians = geodetic.axis_info[0].unit_conversion_factor
        self._in_degrees = self.crs.is_geographic and not self.crs.is_derived
        self._radius, self._eccentricity = geod.a, float(np.sqrt(geod.es))

    def measure(self, rings: Rings) -> NDArray[np.float64]:
        """Compute the area (n,) of each component."""
        if len(rings.component_offsets) < 2:
            return np.zeros(0)
        signed, begin = np.empty(len(rings.ring_offsets) - 1), 0
        while begin < len(signed):
            last = int(np.searchsorted(rings.ring_offsets, rings.ring_offsets[begin] + _CHUNK_POINTS, "right")) - 1
            end = max(begin + 1, last)
            offsets = rings.ring_offsets[begin : end + 1]
            signed[begin:end] = self._ring_areas(rings.points[offsets[0] : offsets[-1]], offsets - offsets[0])
            begin = end
        area: NDArray[np.float64] = np.abs(np.add.reduceat(signed, rings.polygon_offsets[rings.component_offsets[:-1]]))
        area[~np.isfinite(area)] = np.nan
        return area

    def largest_pixel(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> float:
        """Return the largest area among pixels given by their upper left corners, infinite if one is not known."""
        corner = np.stack([cols, rows], axis=1).repeat(5, axis=0)
        square = np.tile([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]], (len(rows), 1))
        offsets = np.arange(len(rows) + 1)
        area = self.measure(Rings((corner + square).astype(np.int32), offsets * 5, offsets, offsets))
        return float(np.nan_to_num(area, nan=np.inf).max())

    def _ring_areas(self, points: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Compute the signed area of each ring, positive or negative by its direction; `offsets` as in Rings."""
        edges = np.ones(len(points) - 1, np.bool_)
        edges[offsets[1:-1] - 1] = False  # from the end of a ring to the start of the next one
        start, end = (ends[edges].astype(np.float64) for ends in (points[:-1], points[1:]))
        starts = offsets - np.arange(len(offsets))  # offset of the edges of each ring
        if self._to_geodetic is None:
            cross = (start[:, 0] * end[:, 1] - end[:, 0] * start[:, 1]) / 2 * self._planar_px_area
            return np.add.reduceat(cross, starts[:-1])
        cuts = np.maximum(np.ceil(np.abs(end - start).max(axis=1) / _EDGE_PX), 1).astype(np.int64)
        cut_offsets = np.concatenate([[0], np.cumsum(cuts)])
        step = (np.arange(cut_offsets[-1]) - np.repeat(cut_offsets[:-1], cuts))[:, None]
        densified = np.repeat(start, cuts, axis=0) + np.repeat((end - start) / cuts[:, None], cuts, axis=0) * step
        return self._ellipsoidal_areas(densified, cut_offsets[starts])

    def _ellipsoidal_areas(self, points: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Compute the signed ellipsoidal area of rings that are not closed and have no long edges."""
        following = np.arange(1, len(points) + 1)
        following[offsets[1:] - 1] = offsets[:-1]
        with np.errstate(invalid="ignore"):
            lon, q = self._lon_and_q(points)
            dlon = lon[following] - lon
            dlon -= 2 * np.pi * np.round(dlon / (2 * np.pi))
            q_first = q[offsets[:-1]]
            area = np.add.reduceat(((q + q[following]) / 2 - np.repeat(q_first, np.diff(offsets))) * dlon, offsets[:-1])
            polar = np.abs(q_first) > self._q(np.sin(_POLAR_LATITUDE))
            polar |= np.abs(np.add.reduceat(dlon, offsets[:-1])) > np.pi
            if polar.any() and not self._in_degrees:  # in degrees the cylindrical one is exact
                side = np.copysign(1, q_first)
                radius = np.sqrt(np.maximum(self._q(1.0) - q * np.repeat(side, np.diff(offsets)), 0))
                disk = np.add.reduceat(radius * radius[following] * np.sin(dlon), offsets[:-1])
                area = np.where(polar, -side * disk, area)
        result: NDArray[np.float64] = area * self._radius**2 / 2
        return result

    def _lon_and_q(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return longitude in radians and `_q` of points (n, 2) given as column and row."""
        assert self._to_geodetic is not None
        t = self._grid.transform
        x, y = t.c + points @ np.array([t.a, t.b]), t.f + points @ np.array([t.d, t.e])
        lon, lat = self._to_geodetic.transform(x, y)
        with np.errstate(invalid="ignore"):
            return np.asarray(lon) * self._radians, self._q(np.sin(np.asarray(lat) * self._radians))

    def _q(self, sine: Any) -> Any:
        """Compute Snyder's q (3-12) of the sine of a latitude: proportional to the area from there to the equator."""
        e = self._eccentricity
        return 2 * sine if e == 0 else (1 - e**2) * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)
