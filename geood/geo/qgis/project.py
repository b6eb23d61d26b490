"""QGIS projects: layers in their order, each with its styles, in one .qgz file that stays with the data.

A .qgz file is a zip archive of one XML document, which is made from a template that QGIS saved. Paths in it are
relative, so a folder with its project may be moved or sent. Styles are copied into it: those of GeoPackages from their
table `layer_styles`, those of other files from the `.qml` beside them; an image that has none is stretched to what most
of its pixels hold. Which files belong to a map is not known here.
"""

from __future__ import annotations

import sqlite3
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import pyogrio
import pyproj
from rasterio.enums import ColorInterp, Resampling

from geood.atomic import atomic_write, output_errors
from geood.errors import DataError, printable
from geood.geo.display import DisplayRange, drawn_shape, read_valid, stretch_of
from geood.geo.gdal import open_raster, reading
from geood.geo.grid import Grid
from geood.geo.ogr import local_file
from geood.geo.paths import gdal_name, seen_from
from geood.geo.qgis.style_templates import fill, template, written
from geood.geo.qgis.styles import ABOVE, style_beside

RAMP, SHOWN_ABOVE = "whole range", "above the threshold"  # names of the two styles of a score raster
SAMPLED_PX = 512  # longer side of what an image's values are looked at in
_WRITTEN = (2000, 1, 1, 0, 0, 0)  # the time of writing in every project, so that equal projects have equal bytes


class ProjectLayer(NamedTuple):
    """Layer of a project: its title, its file (or address), and its name in a file of several layers.

    Of several `styles` (name and QML) the first is shown. `visible` tells whether the layer is ticked.
    """

    title: str
    path: str | Path
    name: str | None
    styles: tuple[tuple[str, str], ...]
    crs: pyproj.CRS | None
    bounds: tuple[float, float, float, float]
    visible: bool = True

    @property
    def vector(self) -> bool:
        """True for a layer of polygons."""
        return self.name is not None


def polygon_layers(path: Path, *, shown: Mapping[str, bool]) -> list[ProjectLayer]:
    """Return the layers of a file of polygons, in the order of the names in `shown`, which tells what is ticked.

    A file that holds one layer without a name is shown as it is.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        if path.suffix != ".gpkg":
            crs, bounds = _whole(path)
            styles = (("default", _text(style_beside(path))),)
            return [ProjectLayer(path.stem, path, "", styles, crs, bounds)]
        with local_file(path) as plain:
            held = {str(name) for name, kind in pyogrio.list_layers(plain) if kind is not None}
            infos = {n: pyogrio.read_info(plain, layer=n, force_total_bounds=True) for n in shown if n in held}
    except (OSError, ValueError, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise DataError(f"{path}: cannot be read as polygons ({error}); give a file that geood wrote") from None
    inside = _styles_in(path)
    return [
        ProjectLayer(name, path, name, (("default", inside.get(name, "")),), _crs(info["crs"]), _bounds(info), on)
        for (name, info), on in zip(infos.items(), (shown[name] for name in infos), strict=True)
    ]


def _whole(path: Path) -> tuple[pyproj.CRS | None, tuple[float, float, float, float]]:
    """Return CRS and bounds of a file of one layer."""
    if path.suffix == ".parquet":  # which not every GDAL reads
        frame = geopandas.read_parquet(path)
        return frame.crs, tuple(frame.total_bounds)
    with local_file(path) as plain:
        info = pyogrio.read_info(plain, force_total_bounds=True)
    return _crs(info["crs"]), _bounds(info)


def _bounds(info: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return the bounds of a layer, not finite where it holds no polygon."""
    bounds = info["total_bounds"]
    return (np.nan,) * 4 if bounds is None else tuple(bounds)


def raster_layer(path: str | Path, title: str, *, visible: bool = True) -> ProjectLayer:
    """Return a raster as a layer, in the style of the `.qml` beside it, or as an image if there is none.

    Raises:
        DataError: it cannot be read.
    """
    local = Path(path)
    styles = [("default", _text(style_beside(local)))]
    if above := _text(local.with_suffix(ABOVE)):
        styles = [(RAMP, styles[0][1]), (SHOWN_ABOVE, above)]
    with reading(path), open_raster(gdal_name(str(path))) as raster:
        if not styles[0][1]:
            styles = [("default", _image_style(raster))]
        crs = None if raster.crs is None else _crs(raster.crs.to_wkt())
        grid = Grid(raster.height, raster.width, raster.transform)
        bounds = (0, -raster.height, raster.width, 0) if raster.transform.is_identity else grid.bounds
    return ProjectLayer(title, path, None, tuple(styles), crs, bounds, visible)


def write_project(groups: Mapping[str, Sequence[ProjectLayer]], out: Path, *, overwrite: bool) -> None:
    """Write a project of groups of layers, the first on top; the layers of a group without a name are in none.

    Raises:
        DataError: a style is no XML, or QGIS cannot open a layer of that path.
        OutputError: it exists or cannot be written.
    """
    root = template("project.qgs", {"title": printable(out.stem)})
    [tree], [layers] = root.findall("layer-tree-group"), root.findall("projectlayers")
    [prototype], [order] = tree.findall("layer-tree-group"), root.findall("layerorder")
    patterns = {layer.get("type"): layer for layer in layers}
    nodes = {node.get("providerKey"): node for node in prototype.findall("layer-tree-layer")}
    for parent in (layers, order, *tree.findall("custom-order")):
        for child in list(parent):
            parent.remove(child)
    for node in nodes.values():
        prototype.remove(node)
    tree.remove(prototype)
    every = [layer for group in groups.values() for layer in group]
    _set_view(root, every)
    at, number = 1, 0
    for title, members in groups.items():
        parent = tree
        if title:
            parent = deepcopy(prototype)
            fill(parent, {"group": printable(title)})
            tree.insert(at, parent)
        for layer in members:
            number += 1
            own = f"geood_layer_{number:05}"  # QGIS gives one of its own for an id of ten characters or less
            layers.append(_filled(patterns["vector" if layer.vector else "raster"], layer, own, out.parent))
            node = deepcopy(nodes["memory" if layer.vector else "gdal"])
            source = _source(layer, out.parent)
            node.attrib |= {"id": own, "name": printable(layer.title), "source": source, "expanded": "0"}
            node.attrib |= {"providerKey": _provider(layer), "checked": f"Qt::{'C' if layer.visible else 'Unc'}hecked"}
            parent.insert(at if parent is tree else len(parent), node)
            at += parent is tree
            ET.SubElement(order, "layer", {"id": own})
        at += parent is not tree
    with (
        output_errors(out),
        atomic_write(out, overwrite=overwrite) as partial,
        zipfile.ZipFile(partial, "w") as archive,
    ):
        member = zipfile.ZipInfo(f"{out.stem}.qgs", _WRITTEN)
        member.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(member, written(root))


def _filled(pattern: ET.Element, layer: ProjectLayer, own: str, folder: Path) -> ET.Element:
    """Return the element of one layer: its source, CRS and styles."""
    made = deepcopy(pattern)
    texts = {"id": own, "datasource": _source(layer, folder), "layername": printable(layer.title)}
    for tag, text in (texts | {"provider": _provider(layer)}).items():
        for child in made.findall(tag):
            child.text = text
    for srs in made.findall("srs"):
        _set_crs(srs, layer.crs)
    styles = [(name, _parsed(qml, layer)) for name, qml in layer.styles if qml]
    if not styles:
        return made
    shown = styles[0][1]
    made.attrib |= {key: text for key, text in shown.attrib.items() if key not in ("version", "styleCategories")}
    made.extend(child for child in shown if child.tag != "layerGeometryType")
    manager = ET.SubElement(made, "map-layer-style-manager", {"current": styles[0][0]})
    for i, (name, style) in enumerate(styles):
        holder = ET.SubElement(manager, "map-layer-style", {"name": name})
        if i:
            holder.append(style)
    return made


def _parsed(qml: str, layer: ProjectLayer) -> ET.Element:
    try:
        return ET.fromstring(qml.encode())
    except (ET.ParseError, UnicodeEncodeError) as error:
        raise DataError(f"{layer.path}: its style is no XML ({error}); save it again in QGIS, or remove it") from None


def _set_view(root: ET.Element, layers: Sequence[ProjectLayer]) -> None:
    """Let the project have the CRS of its lowest layer, and begin with the view of all that are in it."""
    crs = layers[-1].crs if layers else None
    for srs in root.findall("projectCrs"):
        _set_crs(srs, crs)
    bounds = [layer.bounds for layer in layers if layer.crs == crs and np.isfinite(layer.bounds).all()]
    if not bounds:
        return
    low, high = np.min(bounds, axis=0)[:2], np.max(bounds, axis=0)[2:]
    canvas = ET.SubElement(root, "mapcanvas", {"name": "theMapCanvas", "annotationsVisible": "1"})
    ET.SubElement(canvas, "units").text = "degrees" if crs is not None and crs.is_geographic else "meters"
    extent = ET.SubElement(canvas, "extent")
    for name, value in zip(("xmin", "ymin", "xmax", "ymax"), (*low, *high), strict=True):
        ET.SubElement(extent, name).text = repr(float(value))
    ET.SubElement(canvas, "rotation").text = "0"
    target = ET.SubElement(canvas, "destinationsrs")
    target.extend(deepcopy(child) for srs in root.findall("projectCrs") for child in srs)


def _set_crs(parent: ET.Element, crs: pyproj.CRS | None) -> None:
    """Fill in a reference system; QGIS looks it up by its code, else it takes the WKT."""
    for system in parent.findall("spatialrefsys"):
        for child in system:
            child.text = None
        authority = crs.to_authority(min_confidence=100) if crs is not None else None
        texts = {"wkt": crs.to_wkt() if crs is not None else "", "authid": ":".join(authority or ())}
        texts["geographicflag"] = str(bool(crs is not None and crs.is_geographic)).lower()
        for tag, text in texts.items():
            for child in system.findall(tag):
                child.text = text


def _source(layer: ProjectLayer, folder: Path) -> str:
    """Return where QGIS finds a layer: relative to the project where it is a file on the same disk.

    Raises:
        DataError: QGIS would take a part of its path for options.
    """
    name, path = gdal_name(str(layer.path)), Path(layer.path)
    if path.exists():
        name = seen_from(path, folder)
        name = name if name.startswith("../") or Path(name).is_absolute() else f"./{name}"
    if layer.vector and "|" in name:
        raise DataError(f"{layer.path}: QGIS takes | in the path of polygons for the start of options; rename it")
    return f"{name}|layername={layer.name}" if layer.name else name


def _provider(layer: ProjectLayer) -> str:
    return "ogr" if layer.vector else "gdal"


def _crs(text: str | None) -> pyproj.CRS | None:
    return pyproj.CRS(text) if text else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a style ({error}); save it again in QGIS, or remove it") from None


def _styles_in(gpkg: Path) -> dict[str, str]:
    """Return the default styles of the layers of a GeoPackage, by their names; none if it has none."""
    query = "SELECT f_table_name, styleQML FROM layer_styles WHERE useAsDefault = 1"
    with closing(sqlite3.connect(f"{gpkg.absolute().as_uri()}?mode=ro", uri=True)) as database:
        try:
            return {str(name): str(qml or "") for name, qml in database.execute(query)}
        except sqlite3.Error:
            return {}


def _image_style(raster: Any) -> str:
    """Return the style of an image: its red, green and blue, or its first three bands, or one in grey."""
    bands = list(_colours(raster))
    root = template("image.qml" if len(bands) == 3 else "image_grey.qml")
    keys = ("redBand", "greenBand", "blueBand") if len(bands) == 3 else ("grayBand",)
    shape = drawn_shape(raster.height, raster.width, SAMPLED_PX)
    pixels, valid = read_valid(raster, bands, shape, kernel=Resampling.nearest)
    with np.errstate(over="ignore"):  # a pixel is valid if one of its bands is, and the others have nodata there
        nodata = np.array([raster.nodatavals[band - 1] for band in bands], np.float32)[:, None, None]
    seen = np.where(pixels == nodata, np.nan, pixels)[:, valid]
    limits = DisplayRange() if raster.dtypes[bands[0] - 1] == "uint8" else stretch_of(seen)
    for renderer in root.iter("rasterrenderer"):
        stretches = [child for child in renderer if child.tag.lower().endswith("contrastenhancement")]
        for key, band, child in zip(keys, bands, stretches, strict=True):
            renderer.set(key, str(band))
            for tag, value in zip(("minValue", "maxValue"), limits, strict=True):
                for limit in child.findall(tag):
                    limit.text = repr(value)
    return written(root)


def _colours(raster: Any) -> Iterator[int]:
    """Yield the bands that an image is shown in, from 1 on."""
    kinds = list(raster.colorinterp)
    wanted = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(kind in kinds for kind in wanted):
        yield from (kinds.index(kind) + 1 for kind in wanted)
    else:
        yield from (1, 2, 3) if raster.count >= 3 else (1,)
