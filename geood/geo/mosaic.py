"""VRT mosaic: rasters on a common grid as one scene.

gdalbuildvrt resolves overlaps band by band, this module pixel by pixel. The mosaic has one mask; a pixel is valid if it
is valid in any tile, and comes from the last such tile in name order. So nodata of one tile never hides another tile,
and gaps between tiles are nodata. As in any scene, a pixel is invalid if any band is at the nodata value, in 8-bit
tiles if all bands are; here all bands of the tiles count, as the mosaic does not know which will be read. Pixels are
neither read nor resampled here: tiles that do not share a grid are rejected.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags

from geood.atomic import atomic_write
from geood.errors import DataError, counted
from geood.geo.addresses import NETWORK, display_name, holds_secret
from geood.geo.alpha import declared_so, told_apart
from geood.geo.gdal import allow_servers, open_raster, reading, writing
from geood.geo.grid import Grid
from geood.geo.listing import files_in
from geood.geo.paths import RASTERS, gdal_name

log = logging.getLogger("geood")
LOOKED_AT = 16  # tiles whose alpha bands are looked at
TOLERANCE_PX = 0.01  # largest misalignment of a tile's corner with the common grid, in pixels
_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "uint64": "UInt64",
    "int64": "Int64",
    "float32": "Float32",
    "float64": "Float64",
}


class _Tile(NamedTuple):
    """Metadata of one raster of the mosaic.

    `nodata` has a value per band, None if unset; `masked`: GDAL has one mask for all bands; `alpha`: index of an alpha
    band that GDAL's mask ignores, because of nodata values or of its type; `as_data`: a band declared as alpha is none,
    though GDAL's mask follows it; `block` is (height, width) in pixels.
    """

    name: str
    grid: Grid
    dtype: str
    bands: tuple[int, ...]
    names: tuple[str | None, ...]
    roles: tuple[str, ...]
    nodata: tuple[float, ...] | None
    masked: bool
    alpha: int | None
    as_data: bool
    block: tuple[int, int]

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith("float")

    @property
    def unified(self) -> bool:
        """True if a pixel is nodata only where all bands are: in 8 bits, each number is a measurement too."""
        return np.dtype(self.dtype).itemsize == 1 or len(self.bands) == 1


def write_mosaic(rasters: str | Path | Sequence[str | Path], out: str | Path, *, nodata: float | None = None) -> Path:
    """Write a VRT that mosaics rasters, or all rasters of folders, into one scene.

    Where tiles overlap, the last in name order is on top. Alpha bands become part of the mask. A float pixel with NaN
    in only some bands takes those bands from the tile below. Tiles without band names are taken to have those of the
    others. An `out` with the same content is left untouched; only its owner may read it if the addresses of tiles hold
    secrets.

    Args:
        rasters: raster files, or folders of them.
        out: path of the VRT.
        nodata: nodata value that overrides those of the tiles.

    Returns:
        The path `out`.

    Raises:
        DataError: there is no tile, one cannot be read, or they differ in CRS, type, bands, pixel size or alignment.
        OutputError: `out` cannot be written.
    """
    names = _names([rasters] if isinstance(rasters, (str, Path)) else rasters)
    measured = _measured(names)
    tiles = [_look(name, nodata, measured) for name in names]
    grid, places = _common(tiles)
    tiles = _with_names(tiles)
    out, mode = Path(out), 0o600 if any(holds_secret(name) for name in names) else 0o666
    with (
        writing(out),
        atomic_write(out, alone=True, keep_same=True, mode=mode) as partial,
        open(partial, "w", encoding="utf-8", errors="surrogateescape", opener=lambda p, f: os.open(p, f, mode)) as file,
    ):
        file.writelines(f"{line}\n" for line in _document(tiles, grid, places))
    if mode == 0o600:
        out.chmod(mode)  # where one of the same content was kept
    if any(NETWORK.search(name) for name in names):
        allow_servers(gdal_name(out))
    return out


def _names(given: Sequence[str | Path]) -> list[str]:
    """Return the GDAL names of all rasters without duplicates, sorted by file name."""
    names: set[str] = set()
    for raster in given:
        folder = Path(raster)
        if folder.is_dir():
            inside = files_in(folder, RASTERS)
            if not inside:
                raise DataError(f"{folder}: no raster in this folder; needed: files ending in {', '.join(RASTERS)}")
            names.update(gdal_name(path) for path in inside)
        else:
            names.add(gdal_name(raster))
    if not names:
        raise DataError("no raster for a mosaic; give the tiles, or a folder of them")
    return sorted(names, key=lambda name: (name.rsplit("/", 1)[-1], name))


def _measured(names: Sequence[str]) -> frozenset[int]:
    """Return the bands that tiles declare as alpha and that hold measurements, by a sample of the tiles."""
    found: set[int] = set()
    for name in names[:: -(-len(names) // LOOKED_AT)]:
        with open_raster(name) as dataset, reading(name):
            declared = [i for i, role in enumerate(dataset.colorinterp, 1) if role == ColorInterp.alpha]
            found |= set(told_apart(dataset, declared).measured)
    if found:
        log.warning("%s and the other tiles: %s", display_name(names[0]), declared_so(sorted(found)))
    return frozenset(found)


def _look(name: str, nodata: float | None, measured: frozenset[int]) -> _Tile:
    with open_raster(name) as dataset, reading(name):
        roles = dataset.colorinterp
        declared = {i for i, role in enumerate(roles, 1) if role == ColorInterp.alpha}
        alpha = min(declared - measured, default=None)
        bands = tuple(i for i in dataset.indexes if i not in declared - measured)
        as_data = bool(declared & measured)
        types = sorted({dataset.dtypes[i - 1] for i in bands})
        if len(types) != 1 or types[0] not in _TYPES:
            raise DataError(
                f"{display_name(name)}: has bands of type {', '.join(types) or 'alpha alone'}, where bands of one type "
                "of real numbers are needed; convert it with gdal_translate -ot"
            )
        flags = {flag for i in bands for flag in dataset.mask_flag_enums[i - 1]}
        own = tuple(dataset.nodatavals[i - 1] for i in bands) if MaskFlags.nodata in flags else None
        return _Tile(
            name,
            Grid(dataset.height, dataset.width, dataset.transform, dataset.crs),
            types[0],
            bands,
            tuple(dataset.descriptions[i - 1] for i in bands),
            tuple("undefined" if i in declared else roles[i - 1].name for i in bands),
            own if nodata is None else (nodata,) * len(bands),
            MaskFlags.per_dataset in flags and not (as_data and MaskFlags.alpha in flags),
            None if MaskFlags.alpha in flags and not as_data else alpha,
            as_data,
            dataset.block_shapes[0],
        )


# The common grid


def _common(tiles: Sequence[_Tile]) -> tuple[Grid, list[tuple[int, int]]]:
    """Return the grid of all tiles together, and the (column, row) offset of each tile in it.

    Raises:
        DataError: a tile does not match the first.
    """
    first = tiles[0]
    offsets = [_place(tile, first) for tile in tiles]
    left, top = (min(offset[axis] for offset in offsets) for axis in (0, 1))
    width = max(col + tile.grid.width for (col, _), tile in zip(offsets, tiles, strict=True)) - left
    height = max(row + tile.grid.height for (_, row), tile in zip(offsets, tiles, strict=True)) - top
    if max(width, height) >= 2**31:
        raise DataError(
            f"{display_name(first.name)}: with the other tiles it spans {width} x {height} pixels, more than a raster "
            "can have; leave out tiles that lie elsewhere"
        )
    transform = first.grid.transform @ Affine.translation(left, top)
    return Grid(height, width, transform, first.grid.crs), [(col - left, row - top) for col, row in offsets]


def _with_names(tiles: Sequence[_Tile]) -> list[_Tile]:
    """Return the tiles with the band names that some of them have.

    Raises:
        DataError: a band has different names in two tiles.
    """
    names: list[str | None] = [None] * len(tiles[0].names)
    givers: list[_Tile] = [tiles[0]] * len(names)
    for tile in tiles:
        for band, name in enumerate(tile.names):
            if name is not None and names[band] is None:
                names[band], givers[band] = name, tile
            elif name is not None and name != names[band]:
                raise DataError(
                    f"{display_name(tile.name)}: its band {band + 1} is called {name}, where {names[band]} was needed, "
                    f"as in {display_name(givers[band].name)}; leave out tiles of other bands, or give all tiles the "
                    "same names: in Python, rasterio.open(TILE, 'r+').descriptions = ..."
                )
    if bare := [tile for tile in tiles if tile.names != tuple(names)]:
        log.info(
            "%s%s: without all band names, taken to be those of the other tiles: %s",
            display_name(bare[0].name),
            f" and {counted(len(bare) - 1, 'more tile')}" if len(bare) > 1 else "",
            ", ".join(name or "(none)" for name in names),
        )
    return [tile._replace(names=tuple(names)) for tile in tiles]


def _place(tile: _Tile, first: _Tile) -> tuple[int, int]:
    """Check a tile against the first and return its (column, row) offset in pixels of the first."""
    facts = {
        "CRS": (tile.grid.crs, first.grid.crs),
        "type": (tile.dtype, first.dtype),
        "bands": (len(tile.bands), len(first.bands)),
        "colours": (tile.roles, first.roles),
    }
    for what, (came, needed) in facts.items():
        if came != needed:
            _refuse(tile, first, f"{what} {_short(came)}", _short(needed))
    if tile is not first and first.grid.crs is None and first.grid.transform.is_identity:
        raise DataError(
            f"{display_name(tile.name)}: is not georeferenced, so it cannot be part of a mosaic; predict it on its own"
        )
    corners = [(x, y) for x in (0, tile.grid.width) for y in (0, tile.grid.height)]
    seen = [~first.grid.transform @ (tile.grid.transform @ corner) for corner in corners]
    if not all(math.isfinite(number) for corner in seen for number in corner):
        _refuse(tile, first, f"transform {tuple(tile.grid.transform)[:6]}", f"{tuple(first.grid.transform)[:6]}")
    (x0, y0), (col, row) = seen[0], (round(seen[0][0]), round(seen[0][1]))
    sizes = zip(seen, corners, strict=True)
    if any(max(abs(x - x0 - right), abs(y - y0 - down)) > TOLERANCE_PX for (x, y), (right, down) in sizes):
        _refuse(tile, first, f"pixels of {_size(tile)}", f"{_size(first)} along the same axes")
    off = max(abs(x0 - col), abs(y0 - row))
    if off > TOLERANCE_PX:
        _refuse(tile, first, f"pixels that lie {off:.3g} px off", "pixels of one grid")
    return col, row


def _size(tile: _Tile) -> str:
    width, height = tile.grid.pixel_size
    return f"{width:.9g} x {height:.9g}"


def _short(fact: object) -> str:
    text = ", ".join(map(str, fact)) if isinstance(fact, tuple) else str(fact)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _refuse(tile: _Tile, first: _Tile, came: str, needed: str) -> None:
    raise DataError(
        f"{display_name(tile.name)}: has {came}, where {needed} was needed, as {display_name(first.name)} has; convert "
        "the tiles to a common format (gdalwarp -t_srs CRS -tr SIZE SIZE -tap; gdal_translate -ot TYPE -b BAND; "
        "gdal_edit -colorinterp_BAND COLOUR), or build one scene yourself with gdalbuildvrt"
    )


# The VRT document


class _Source(NamedTuple):
    """Source of a tile: its file, or an inline VRT with the correct mask; `partly`: the mask may have holes."""

    name: str
    bands: tuple[int, ...]
    partly: bool


def _document(tiles: Sequence[_Tile], grid: Grid, places: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Yield the lines of the VRT."""
    first = tiles[0]
    parts = [(_standing_for(tile), _rectangles(tile, offset)) for tile, offset in zip(tiles, places, strict=True)]
    yield f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">'
    if grid.crs is not None:
        yield f"<SRS>{escape(grid.crs.to_wkt(version='WKT2_2019'))}</SRS>"
    if not grid.transform.is_identity:
        yield f"<GeoTransform>{', '.join(f'{number:.17g}' for number in grid.transform.to_gdal())}</GeoTransform>"
    for band, (name, role) in enumerate(zip(first.names, first.roles, strict=True)):
        yield f'<VRTRasterBand dataType="{_TYPES[first.dtype]}" band="{band + 1}">'
        if name is not None:
            yield f"<Description>{escape(name)}</Description>"
        yield f"<ColorInterp>{role.capitalize()}</ColorInterp>"
        if first.is_float:
            yield "<NoDataValue>nan</NoDataValue>"
        for source, rectangles in parts:
            yield _element(source.name, source.bands[band], rectangles, nan=first.is_float, masked=source.partly)
        yield "</VRTRasterBand>"
    yield '<MaskBand><VRTRasterBand dataType="Byte">'
    for source, rectangles in parts:
        yield _element(source.name, f"mask,{source.bands[0]}", f"{rectangles}<NODATA>0</NODATA>")
    yield "</VRTRasterBand></MaskBand>"
    yield "</VRTDataset>"


def _standing_for(tile: _Tile) -> _Source:
    """Return the tile's file if GDAL's mask of it is right, else an inline VRT of it."""
    values = _representable(tile)
    masks = [f"mask,{tile.bands[0]}"] if tile.masked else []
    masks += [str(tile.alpha)] if tile.alpha else []
    if tile.nodata is None and not tile.alpha and not tile.as_data:
        return _Source(tile.name, tile.bands, tile.masked)
    if values is not None and not tile.unified:
        alone = [(tile._replace(bands=(band,)), (value,)) for band, value in zip(tile.bands, values, strict=True)]
        parts = [_element(tile.name, mask) for mask in masks]
        parts += [_element(_wrapped(one, value), "mask,1") for one, value in alone]
        return _Source(_wrapped(tile, None, parts), tuple(range(1, len(tile.bands) + 1)), True)
    plain = _wrapped(tile, values)
    if not masks:
        return _Source(plain, tuple(range(1, len(tile.bands) + 1)), values is not None)
    parts = [_element(tile.name, mask) for mask in masks] + ([_element(plain, "mask,1")] if values else [])
    return _Source(_wrapped(tile, None, parts), tuple(range(1, len(tile.bands) + 1)), True)


def _representable(tile: _Tile) -> tuple[float, ...] | None:
    """Return the nodata values if pixels can equal them in all bands, else None; NaN is handled band by band."""
    if tile.nodata is None:
        return None
    if tile.is_float:
        return None if any(math.isnan(value) for value in tile.nodata) else tile.nodata
    limits = np.iinfo(tile.dtype)
    return tile.nodata if all(limits.min <= value <= limits.max and value % 1 == 0 for value in tile.nodata) else None


def _wrapped(tile: _Tile, nodata: tuple[float, ...] | None, masks: Sequence[str] = ()) -> str:
    """Build an inline VRT of a tile; pixels that equal `nodata` in all bands, or are 0 in any mask, are nodata."""
    lines = [f'<VRTDataset rasterXSize="{tile.grid.width}" rasterYSize="{tile.grid.height}">']
    if nodata is not None:
        values = " ".join(repr(value) if tile.is_float else str(int(value)) for value in nodata)
        lines.append(f'<Metadata><MDI key="NODATA_VALUES">{values}</MDI></Metadata>')
    for number, band in enumerate(tile.bands, 1):
        source = _element(tile.name, band)
        lines.append(f'<VRTRasterBand dataType="{_TYPES[tile.dtype]}" band="{number}">{source}</VRTRasterBand>')
    if masks:
        product = "<PixelFunctionType>mul</PixelFunctionType><SourceTransferType>Float64</SourceTransferType>"
        derived = ' subClass="VRTDerivedRasterBand"' if len(masks) > 1 else ""
        inner = "".join([product if derived else "", *masks])
        lines.append(f'<MaskBand><VRTRasterBand dataType="Byte"{derived}>{inner}</VRTRasterBand></MaskBand>')
    return "".join([*lines, "</VRTDataset>"])


def _rectangles(tile: _Tile, place: tuple[int, int]) -> str:
    """Return the source and destination rectangles, and source properties, with which GDAL opens the file lazily."""
    width, height = tile.grid.width, tile.grid.height
    size = f'RasterXSize="{width}" RasterYSize="{height}" DataType="{_TYPES[tile.dtype]}"'
    return (
        f'<SourceProperties {size} BlockXSize="{tile.block[1]}" BlockYSize="{tile.block[0]}"/>'
        f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
        f'<DstRect xOff="{place[0]}" yOff="{place[1]}" xSize="{width}" ySize="{height}"/>'
    )


def _element(name: str, band: int | str, rectangles: str = "", *, nan: bool = False, masked: bool = False) -> str:
    """Build one source element of a VRT band."""
    rules = ("<NODATA>nan</NODATA>" if nan else "") + ("<UseMaskBand>true</UseMaskBand>" if masked else "")
    kind = "ComplexSource" if rules or "<NODATA>" in rectangles else "SimpleSource"
    file = f'<SourceFilename relativeToVRT="0">{escape(name)}</SourceFilename><SourceBand>{band}</SourceBand>'
    return f"<{kind}>{file}{rectangles}{rules}</{kind}>"
