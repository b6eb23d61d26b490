"""Labels: rasters of class ids and vector files, with odd values and types, damaged structure, text and bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.dtypes import in_dtype_range

from fuzz.law import Case
from fuzz.material import HEIGHT, ODD_NODATA, WIDTH, odd_tag, odd_transform, raster_bytes
from fuzz.mutations import NOT_NUMBERS, NUMBERS, Rng, damage, edited, json_bytes, odd_json, pick
from geood.constants import IGNORE
from geood.geo.grid import Grid, Window
from geood.geo.labels.reading import open_labels
from geood.geo.labels.rules import LabelRules
from support.rasters import HALF_METRE, UTM

GRID = Grid(HEIGHT, WIDTH, HALF_METRE, rasterio.crs.CRS.from_string(UTM))
WHOLE = Window(0, 0, HEIGHT, WIDTH)
IDS = (0, 1, 7, 254, 255, 256, -1, 2**31, 2**53, 1e300, -1e300, 0.5, 1e-300, *NOT_NUMBERS)
RINGS = (
    [],
    [[0, 0]],
    [[0, 0], [1, 1], [0, 0]],
    [[0, 0], [1e300, 0], [1e300, 1e300], [0, 0]],
    [[float("nan")] * 2] * 4,
    [[float("inf"), 0]] * 4,
    [[0, 0], [4, 4], [0, 4], [4, 0], [0, 0]],
    [[0, "x"]] * 4,
    [[None, 0]] * 4,
    [[0]] * 4,
)


def stock(folder: Path) -> dict[str, bytes]:
    """Return valid labels by file name."""
    shapes = [shapely.box(500_002 + 5 * i, 4_649_762, 500_006 + 5 * i, 4_649_772) for i in range(3)]
    frame = geopandas.GeoDataFrame({"class": [0, 1, 2]}, geometry=shapes, crs=UTM)
    for name in ("v.gpkg", "v.geojson", "v.fgb"):
        frame.to_file(folder / name)
    frame.to_parquet(folder / "v.parquet")
    ids = (np.arange(HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH) // 100 % 5).astype(np.uint8)
    rasters = {
        "bytes.tif": raster_bytes(ids, compress="deflate", nodata=4),
        "wide.tif": raster_bytes(ids.astype("uint16"), tiled=True, blockxsize=16, blockysize=16),
        "real.tif": raster_bytes(ids.astype("float32")),
        "photo.png": raster_bytes(ids, driver="PNG", crs=None, transform=Affine.identity()),
    }
    return rasters | {p.name: p.read_bytes() for p in folder.glob("v.*")}


def case(rng: Rng, stock: dict[str, bytes]) -> Case:
    """Return one label file, its values told in the options where they are all that is odd."""
    name, kind = pick(rng, sorted(stock)), int(rng.integers(6))
    data, value = stock[name], None
    if name.endswith((".gpkg", ".fgb", ".parquet")):
        data = damage(data, rng)
    elif name.endswith(".geojson"):
        tree = _odd_shape(json.loads(data), rng) if kind < 3 else edited(json.loads(data), rng)
        data = odd_json(data, rng) if kind == 5 else json_bytes(tree)
    elif kind <= 1:
        data = damage(data, rng)
    elif kind == 2:
        data = odd_tag(data, rng)
    elif kind == 3:
        name, (data, value) = "odd.tif", _odd_ids(rng)
    else:
        ids, options = np.ones((1 + (kind == 4 and int(rng.integers(3))), HEIGHT, WIDTH), np.uint8), {}
        if rng.integers(2):
            options["transform"] = odd_transform(rng)
        else:
            options["crs"] = pick(rng, (None, "EPSG:4326", "EPSG:32661", "EPSG:3857", 'LOCAL_CS["x"]'))
        name, data = "odd.tif", raster_bytes(ids, **options)
    return Case({f"given/{name}": data}, {"name": name, "value": None if value is None else repr(value)})


def run(box: Path, options: dict[str, Any], _: Any) -> list[str]:
    """Read the labels of a scene, whole and by windows."""
    path = box / "given" / options["name"]
    with open_labels([path], GRID, LabelRules("class")) as labels:
        ids = labels.read(WHOLE)
        part = labels.read(Window(8, 8, 16, 16))
        labels.read(Window(-8, -8, 16, 16))
    assert ids.shape == (HEIGHT, WIDTH) and np.issubdtype(ids.dtype, np.integer)
    assert np.array_equal(ids[8:24, 8:24], part)
    if path.name.startswith("v."):
        assert ids.min() >= 0 and ids.max() <= IGNORE
    if options["value"] is not None:
        value = float(options["value"])
        assert int(ids[5, 5]) == (value if np.isfinite(value) else IGNORE), f"{value} read as {ids[5, 5]}"
    return []


def _odd_ids(rng: Rng) -> tuple[bytes, float]:
    """Return a raster of ids with an odd one at its row 5, column 5, and that one."""
    dtype = pick(rng, ("uint8", "int16", "int32", "uint32", "float32", "float64", "int64", "uint64"))
    array = np.ones((1, HEIGHT, WIDTH), dtype)
    with np.errstate(all="ignore"):
        array[0, 4:7, 4:7] = np.array(pick(rng, IDS)).astype(dtype)
    options, nodata = {}, pick(rng, (None, None, *ODD_NODATA))
    value = array[0, 5, 5].item()
    if nodata is not None and in_dtype_range(nodata, dtype):
        options["nodata"] = nodata
        if value == np.array(nodata).astype(dtype):
            value = float("nan")
    return raster_bytes(array, **options), value


def _odd_shape(tree: Any, rng: Rng) -> Any:
    feature = pick(rng, tree["features"])
    kind = int(rng.integers(4))
    if kind == 0:
        feature["properties"]["class"] = pick(rng, (*NUMBERS, *NOT_NUMBERS, "1", "roof", None, True, [], {}))
    elif kind == 1:
        ring = pick(rng, RINGS)
        feature["geometry"] = {"type": "Polygon", "coordinates": [ring]}
    elif kind == 2:
        types = ("Point", "LineString", "MultiPolygon", "GeometryCollection", "Curve", "", None, 5)
        feature["geometry"] = pick(rng, (None, {}, {"type": pick(rng, types), "coordinates": [[0, 0], [1, 1]]}))
    else:
        crs = pick(rng, ("urn:ogc:def:crs:EPSG::0", "EPSG:4326", "x", None, 5))
        tree["crs"] = pick(rng, (None, {}, {"type": "name", "properties": {"name": crs}}))
    return tree
