"""What is taken for a scene: rasters that would be misread are refused here, and how a file is laid out is told.

A scene that ground control points alone place is brought onto a north-up grid as it is read, as gdalwarp would choose
it and by the nearest pixel, so that every number is one that was measured and outputs lie where the scene lies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rasterio.enums import ColorInterp, Resampling
from rasterio.vrt import WarpedVRT

from geood.errors import DataError
from geood.geo.gdal import display_name, open_raster, reading

STRIPS_PX = 2048  # width up to which rows decoded whole are no matter: one or two tiles share them


class BlockLayout(NamedTuple):
    """How the pixels of a file lie on disk: what can only be decoded together is a `block`.

    `block` and `size` are (height, width) in pixels, `points` the ground control points that alone place the file.
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
        """The layout of an open dataset."""
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
        """Whether a block holds full rows."""
        return self.block[1] >= self.size[1]

    def __str__(self) -> str:
        height, width = self.block
        blocks = f"strips of {height} rows" if self.whole_rows else f"tiles of {width} x {height} px"
        if self.whole_rows and height >= self.size[0]:
            blocks = "one block"
        packed = f"{self.compression} compression" if self.compression != "none" else "no compression"
        overviews = f"{self.overviews or 'no'} overview{'s' if self.overviews != 1 else ''}"
        placed = f", placed by {self.points} ground control points" if self.points else ""
        return f"{self.driver}, {blocks}, {packed}, {overviews}{placed}"


class Opened(NamedTuple):
    """A raster to read from, and the file itself (the same, unless ground control points place it)."""

    dataset: Any
    file: Any

    def close(self) -> None:
        """Close both."""
        self.dataset.close()
        self.file.close()


def open_measurements(name: str, nodata: float | None) -> Opened:
    """Open a raster of measurements; `nodata` stands for the file's own where it is given.

    Raises:
        DataError: if the file is missing, is no raster, or holds pixels that are no measurements per band
            (palette, complex numbers, mixed types), or if all that places it are sensor coefficients (RPCs).
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
    """Whether nothing but ground control points says where a raster lies."""
    return bool(dataset.crs is None and dataset.transform.is_identity and dataset.gcps[0])


def _north_up(name: str, file: Any, nodata: float | None) -> Any:
    """The raster on a north-up grid, with an alpha band that is 0 outside its footprint and where it holds no data."""
    if file.gcps[1] is None:
        raise DataError(
            f"{display_name(name)}: its ground control points have no CRS, so they place it nowhere; add it first: "
            "gdal_translate -gcp ... -a_srs EPSG:CODE IN OUT"
        )
    alpha = ColorInterp.alpha in file.colorinterp
    chosen = {"src_nodata": nodata} if nodata is not None else {}
    return WarpedVRT(
        file,
        crs=file.gcps[1],
        nodata=None,
        add_alpha=not alpha,
        resampling=Resampling.nearest,
        tolerance=0,  # an approximation would depend on the window that is read
        UNIFIED_SRC_NODATA="YES",  # no data is where all bands have it, as in any scene
        **chosen,
    )


def _refuse_odd(name: str, dataset: Any) -> None:
    """Refuse rasters whose numbers or place would be misread."""
    types = sorted(set(dataset.dtypes))
    if any("complex" in t for t in types):
        raise DataError(f"{display_name(name)}: holds complex numbers; save their amplitude as float32 first")
    if len(types) > 1:
        raise DataError(
            f"{display_name(name)}: its bands are of different types ({', '.join(types)}); save them all as one type"
        )
    if ColorInterp.palette in dataset.colorinterp:
        raise DataError(
            f"{display_name(name)}: a palette image; turn it into colours first: gdal_translate -expand rgb IN OUT"
        )
    if all(role == ColorInterp.alpha for role in dataset.colorinterp):
        raise DataError(
            f"{display_name(name)}: its only band is an alpha band; give a scene with bands of measurements"
        )
    if not dataset.transform.is_identity and abs(dataset.transform.determinant) == 0:
        raise DataError(
            f"{display_name(name)}: its transform {tuple(dataset.transform)[:6]} has no area; georeference it again"
        )
    if dataset.crs is None and dataset.transform.is_identity and not dataset.gcps[0] and dataset.rpcs is not None:
        raise DataError(
            f"{display_name(name)}: placed by sensor coefficients (RPCs) alone, which place nothing without heights; "
            "rectify it first: gdalwarp -rpc -to RPC_DEM=HEIGHTS.tif IN OUT"
        )
