"""Facts of images as one looks at them before a training: number, bands, nodata, CRS, resolution, ground covered.

Files are opened, and a sample of their borders is read; whether they can be used together is judged where they are
opened for training.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyproj

from geood.errors import DataError, counted
from geood.geo.border import undeclared_nodata
from geood.geo.gdal import open_raster
from geood.geo.scene import Scene, SceneSource

log = logging.getLogger("geood")
BORDERS = 8  # images whose border is looked at for nodata that nobody declared


@dataclass(frozen=True)
class Imagery:
    """Facts of a group of images.

    Attributes:
        paths: the files.
        bands: names of the bands of the first image, alpha excluded.
        dtype: type of its numbers.
        nodata: its nodata value, None without one.
        suspected: a value that fills much of a border and is not declared as nodata, None without one.
        crs: names of the CRSs and the number of images in each; empty for photographs.
        resolution, resolution_m: size of a pixel of the first image in units of its CRS and in metres; None for
            photographs.
        resolutions: the finest and the coarsest size of a pixel, in metres.
        shortest_px: the shortest side of any image.
        pixels: of all images together.
        km2: ground that they cover, overlaps counted twice; None for photographs.
    """

    paths: tuple[Path, ...]
    bands: tuple[str, ...]
    dtype: str
    nodata: float | None
    suspected: float | None
    crs: dict[str, int]
    resolution: float | None
    resolution_m: float | None
    resolutions: tuple[float, float] | None
    shortest_px: int
    pixels: int
    km2: float | None

    @property
    def kind(self) -> str:
        """`scenes` if the images have a CRS, `photos` if none has one: the values of data.kind."""
        return "scenes" if self.crs else "photos"

    def lines(self) -> list[str]:
        """Return the facts in words."""
        nodata = "none" if self.nodata is None else f"{self.nodata:g}"
        bands = f"{counted(len(self.bands), 'band')} of {self.dtype} ({', '.join(self.bands)}), nodata {nodata}"
        if self.resolution_m is None or self.km2 is None or self.resolutions is None:
            photographs = counted(len(self.paths), "photograph")
            return [f"{photographs}, {self.pixels / 1e6:,.1f} million pixels", bands]
        fine, coarse = self.resolutions
        spread = "" if coarse < 1.01 * fine else f" (others {fine:.3g} to {coarse:.3g})"
        scenes = counted(len(self.paths), "scene")
        ground = f"{scenes}, {self.km2:.3g} km2 at {self.resolution_m:.3g} m per pixel{spread}"
        named = ", ".join(name if len(self.crs) == 1 else f"{name} ({n})" for name, n in self.crs.items())
        return [ground, bands, f"CRS {named}"]


def look_at(paths: Sequence[Path], *, nodata: float | None = None) -> Imagery:
    """Open images and return their facts; `nodata`, if given, overrides that of the files.

    Raises:
        DataError: a file cannot be read, or some images have a CRS and others none.
    """
    found: Counter[str] = Counter()
    bare: list[Path] = []
    sides, pixels, resolutions, area = [], 0, [], 0.0
    units: list[float] = []
    first: tuple[tuple[str, ...], str, float | None] | None = None
    suspected = None
    looked_at = set(paths[:: -(-len(paths) // BORDERS)])
    for path in paths:
        with Scene.open(SceneSource(str(path), nodata=nodata)) as scene:
            grid = scene.grid
            if first is None:
                first = (tuple(scene.band_names), str(scene.dtype), _nodata(path) if nodata is None else nodata)
            sides.append(min(grid.height, grid.width))
            pixels += grid.height * grid.width
            if grid.crs is None or grid.resolution_m is None:
                bare.append(path)
                continue
            found[pyproj.CRS.from_user_input(grid.crs).name] += 1
            resolutions.append(grid.resolution_m)
            units.append(math.sqrt(abs(grid.transform.determinant)))
            area += grid.height * grid.width * (grid.pixel_m2 or 0.0)
            if suspected is None and path in looked_at:
                suspected = undeclared_nodata(scene)
    if found and bare:
        raise DataError(
            f"{bare[0]}: has no CRS, and {counted(sum(found.values()), 'other image has', 'other images have')} one; "
            "set it (gdal_edit.py -a_srs EPSG:...), or leave it out"
        )
    assert first is not None
    return Imagery(
        paths=tuple(paths),
        bands=first[0],
        dtype=first[1],
        nodata=first[2],
        suspected=suspected,
        crs=dict(found),
        resolution=units[0] if units else None,
        resolution_m=resolutions[0] if resolutions else None,
        resolutions=(min(resolutions), max(resolutions)) if resolutions else None,
        shortest_px=min(sides),
        pixels=pixels,
        km2=area / 1e6 if resolutions else None,
    )


def _nodata(path: Path) -> float | None:
    """Return the nodata value that a file declares, None without one."""
    with open_raster(path) as file:
        return None if file.nodata is None else float(file.nodata)
