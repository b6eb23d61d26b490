"""Opening of rasters as scenes: rejects unsupported inputs and reports the block layout.

Rejected are rasters that would be misread: palette images, complex numbers, bands of mixed dtypes, and rasters placed
by RPCs alone. A scene that is georeferenced by ground control points (GCPs) alone is warped on reading to a north-up
grid of gdalwarp's choice, nearest neighbour, so that every value is a measured one and outputs are georeferenced.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from rasterio.enums import ColorInterp, Resampling
from rasterio.vrt import WarpedVRT

from geood.errors import DataError, counted
from geood.geo.addresses import display_name
from geood.geo.gdal import open_raster, reading
from geood.geo.vrt import document

STRIPS_PX = 2048  # width up to which decoding full rows costs little, as only one or two tiles share them
_BLOCK = re.compile(r'BlockXSize="(\d{1,9})" BlockYSize="(\d{1,9})"')


class BlockLayout(NamedTuple):
    """Layout of a file on disk: driver, blocks, compression, band interleaving and overviews.

    `block` (the unit of decoding) and `size` are (height, width) in pixels; `points` is the number of GCPs if they
    alone georeference the file, else 0.
    """

    driver: str
    block: tuple[int, int]
    size: tuple[int, int]
    compression: str
    interleave: str
    overviews: int
    points: int

    @classmethod
    def of(cls, dataset: Any) -> BlockLayout:
        """Read the layout of an open dataset."""
        tags = dataset.tags(ns="IMAGE_STRUCTURE")
        height, width = dataset.block_shapes[0]
        return cls(
            driver=dataset.driver,
            block=(height, width),
            size=(dataset.height, dataset.width),
            compression=tags.get("COMPRESSION", "none"),
            interleave=tags.get("INTERLEAVE", "BAND").lower(),
            overviews=len(dataset.overviews(1)),
            points=len(dataset.gcps[0]) if by_points(dataset) else 0,
        )

    @property
    def whole_rows(self) -> bool:
        """True if a block spans full rows, as in a file of strips."""
        return self.block[1] >= self.size[1]

    def __str__(self) -> str:
        height, width = self.block
        blocks = f"strips of {counted(height, 'row')}" if self.whole_rows else f"tiles of {width} x {height} px"
        if self.whole_rows and height >= self.size[0]:
            blocks = "one block"
        packed = f"{self.compression} compression" if self.compression != "none" else "no compression"
        overviews = counted(self.overviews, "overview") if self.overviews else "no overviews"
        placed = f", georeferenced by {counted(self.points, 'ground control point')}" if self.points else ""
        return f"{self.driver}, {blocks}, {packed}, {overviews}{placed}"


def largest_block(file: Any, own: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the largest block that a VRT names of its sources; `own` for any other raster."""
    if file.driver != "VRT":
        return own
    text = document(file.name) or "".join(file.tags(ns="xml:VRT").values())  # GDAL leaves them out of its own text
    named = [(int(high), int(wide)) for wide, high in _BLOCK.findall(text)]
    return max([own, *named], key=lambda block: block[0] * block[1])


class Opened(NamedTuple):
    """Dataset to read from, and the file itself; they are the same object unless GCPs alone georeference the file."""

    dataset: Any
    file: Any

    def close(self) -> None:
        """Close both."""
        self.dataset.close()
        self.file.close()


def open_measurements(name: str, nodata: float | None) -> Opened:
    """Open a raster of measurements; `nodata`, if given, overrides the file's own value.

    Raises:
        DataError: the file is missing, is not a raster, has a palette, complex numbers, mixed dtypes or only an alpha
            band, has a degenerate transform, has GCPs without CRS, or is georeferenced by RPCs alone.
    """
    file = open_raster(name)
    try:
        with reading(name):
            _refuse_odd(name, file)
            return Opened(_north_up(name, file, nodata) if by_points(file) else file, file)
    except BaseException:
        file.close()
        raise


def by_points(dataset: Any) -> bool:
    """Check whether ground control points are a raster's only georeferencing."""
    return bool(dataset.crs is None and dataset.transform.is_identity and dataset.gcps[0])


def _north_up(name: str, file: Any, nodata: float | None) -> Any:
    """Warp a raster to a north-up grid, with an alpha band that is 0 outside its footprint and at nodata."""
    if file.gcps[1] is None:
        raise DataError(
            f"{display_name(name)}: its ground control points have no CRS, so it cannot be georeferenced; add it "
            "first: gdal_translate -gcp ... -a_srs EPSG:CODE IN OUT"
        )
    alpha = ColorInterp.alpha in file.colorinterp
    chosen = {"src_nodata": nodata} if nodata is not None else {}
    return WarpedVRT(
        file,
        crs=file.gcps[1],
        nodata=None,
        add_alpha=not alpha,
        resampling=Resampling.nearest,
        tolerance=0,  # an approximate transformer would depend on the window that is read
        UNIFIED_SRC_NODATA="YES",  # numbers stay as they are; `Scene` tells what only some bands lack
        **chosen,
    )


def _refuse_odd(name: str, dataset: Any) -> None:
    """Reject rasters whose values or georeferencing would be misread."""
    types = sorted(set(dataset.dtypes))
    if any("complex" in t for t in types):
        raise DataError(f"{display_name(name)}: holds complex numbers; save their amplitude as float32 first")
    if len(types) > 1:
        raise DataError(
            f"{display_name(name)}: its bands are of different types ({', '.join(types)}); save them all as one type"
        )
    if ColorInterp.palette in dataset.colorinterp:
        raise DataError(
            f"{display_name(name)}: a palette image; expand it to RGB first: gdal_translate -expand rgb IN OUT"
        )
    if all(role == ColorInterp.alpha for role in dataset.colorinterp):
        raise DataError(
            f"{display_name(name)}: its only band is an alpha band; give a scene with bands of measurements"
        )
    if not dataset.transform.is_identity and abs(dataset.transform.determinant) == 0:
        raise DataError(
            f"{display_name(name)}: its transform {tuple(dataset.transform)[:6]} is degenerate; georeference it again"
        )
    if dataset.crs is None and dataset.transform.is_identity and not dataset.gcps[0] and dataset.rpcs is not None:
        raise DataError(
            f"{display_name(name)}: georeferenced by RPCs (rational polynomial coefficients) alone, which need a DEM; "
            "orthorectify it first: gdalwarp -rpc -to RPC_DEM=HEIGHTS.tif IN OUT"
        )
