"""Rasters as scenes: many layouts with damaged bytes and directories, odd nodata and transforms, and VRT text.

A scene that is predicted has finite scores in [0, 1] or no data, and an output of its own size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from fuzz.law import Case
from fuzz.material import (
    HEIGHT,
    ODD_NODATA,
    ODD_PLACES,
    WIDTH,
    layouts,
    odd_tag,
    odd_transform,
    quick_predictions,
    raster_bytes,
    tiny_bundle,
)
from fuzz.mutations import Rng, damage, pick
from geood.errors import TilesFailedError
from geood.geo.grid import Window
from geood.geo.scene import Scene
from geood.prediction import SceneOptions, predict
from support.rasters import HALF_METRE, picture

around = quick_predictions
SCORES = ("x.tif", "x.qml", "x.above.qml")
BESIDE = tuple(f"x.scores.{end}" for end in ("tif", "qml", "above.qml", "classes.tif", "classes.qml"))
POLYGONS = ("x.geojson", "x.qml", *BESIDE)
VRT = """<VRTDataset rasterXSize="{width}" rasterYSize="{height}">
  <SRS>EPSG:32633</SRS>
  <GeoTransform>{places}</GeoTransform>
  {bands}
</VRTDataset>
"""
BAND = """<VRTRasterBand dataType="Byte" band="{band}">
    <SimpleSource>
      <SourceFilename relativeToVRT="1">tiles.tif</SourceFilename>
      <SourceBand>{band}</SourceBand>
      <SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>
      <DstRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>
    </SimpleSource>
  </VRTRasterBand>
"""
MOST_PIXELS = 200_000
TOKENS = (
    ("Byte", ("UInt16", "Float64", "CFloat32", "Int8", "Nothing", "")),
    ("SimpleSource", ("ComplexSource", "ArraySource", "KernelFilteredSource", "X")),
    (
        "tiles.tif",
        ("s.vrt", "missing.tif", "", ".", "../given/tiles.tif", "/dev/zero", "/dev/null", "<OGR/>", "&amp;&#0;"),
    ),
    ('relativeToVRT="1"', ('relativeToVRT="0"', 'shared="0" relativeToVRT="1"', "")),
    ("EPSG:32633", ("EPSG:0", "EPSG:4326", "", "x", "LOCAL_CS[x]", "+proj=geocent")),
    (str(WIDTH), ("0", "-1", "1", "49", "2147483647", "4294967296", "1e9", "nan", "")),
    (str(HEIGHT), ("0", "-1", "1", "41", "2147483647", "x")),
    ('xOff="0"', ('xOff="-5"', 'xOff="5.5"', 'xOff="nan"', 'xOff="1e300"')),
    ("<SourceBand>1", ("<SourceBand>0", "<SourceBand>9", "<SourceBand>mask", "<SourceBand>-1")),
    (
        "</VRTRasterBand>",
        ("<NoDataValue>nan</NoDataValue></VRTRasterBand>", "<NoDataValue>0</NoDataValue></VRTRasterBand>"),
    ),
    ("</VRTRasterBand>", ("<Scale>0</Scale><Offset>inf</Offset></VRTRasterBand>", "<MaskBand/></VRTRasterBand>", "")),
    (
        "<VRTRasterBand ",
        ('<VRTRasterBand subClass="VRTDerivedRasterBand" ', '<VRTRasterBand subClass="VRTRawRasterBand" ', "<X "),
    ),
)


def stock(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """Return a bundle, and one scene in many layouts."""
    return tiny_bundle(folder), layouts()


def case(rng: Rng, stock: tuple[Path, dict[str, bytes]]) -> Case:
    """Return a scene, the name that it is predicted by, and options."""
    _, files = stock
    kind = int(rng.integers(8))
    name = pick(rng, sorted(files))
    if kind <= 2:
        given = {name: damage(files[name], rng)}
    elif kind == 3:
        given = {name: odd_tag(files[name], rng)}
    elif kind == 4:
        given = {"odd.tif": _odd_values(rng)}
        name = "odd.tif"
    else:
        given = {"s.vrt": _odd_vrt(rng), "tiles.tif": files["tiles.tif"]}
        name = "s.vrt"
    if not rng.integers(12):  # content of one kind under the name of another
        given["photo.tif"] = given.pop(name)
        name = "photo.tif"
    options = {
        "name": name,
        "suffix": pick(rng, (".tif", ".tif", ".tif", ".geojson")),
        "nodata": pick(rng, (None, None, None, *ODD_NODATA)),
        "bands": pick(rng, (None, None, None, "1,2,3", "3,2,1", "1,1,1", "0,1,2")),
        "box": pick(rng, (None, None, None, "500001,4649760,500010,4649770", "nan,0,1,1", "1e308,-1e308,1e308,1e308")),
    }
    return Case({f"given/{n}": data for n, data in given.items()}, options)


def run(box: Path, options: dict[str, Any], stock: tuple[Path, dict[str, bytes]]) -> list[str]:
    """Predict the scene, and look at the scores."""
    scene, out = box / "given" / options["name"], box / "made" / f"x{options['suffix']}"
    reading = SceneOptions(options["bands"], options["nodata"], True, None, options["box"])
    kept: list[str] = []
    with Scene.open(scene) as opened:
        if opened.grid.height * opened.grid.width > MOST_PIXELS:  # damage that made it large: that only takes time
            opened.read(Window(0, 0, 64, 64))
            return []
    try:
        [made] = predict([scene], out, bundle_path=stock[0], options=reading)
    except TilesFailedError as error:
        [made] = error.made
        kept = [p.name for p in (box / "made").iterdir() if p.name == f".{out.stem}.geood" or "failed_tiles" in p.name]
    with rasterio.open(made.scores) as file:
        scores, size = file.read(1), (file.height, file.width)
        assert np.isfinite(file.transform[:6]).all()
    seen = scores[~np.isnan(scores)]
    assert seen.size == made.valid_pixels and ((seen >= 0) & (seen <= 1)).all()
    if options["name"] != "s.vrt":
        with rasterio.open(scene) as file:
            if not file.gcps[0]:
                assert size == (file.height, file.width)
    return [*(SCORES if out.suffix == ".tif" else POLYGONS), *kept]


def kept(name: str) -> bool:
    """Return whether a name is that of the work folder, which keeps finished tiles."""
    return name == ".x.geood"


def _odd_values(rng: Rng) -> bytes:
    """Return a GeoTIFF whose values, nodata or transform are beyond reason."""
    dtype = pick(rng, ("uint8", "uint16", "int16", "int32", "float32", "float64"))
    with np.errstate(all="ignore"):
        array = picture(HEIGHT, WIDTH, dtype="float64").astype(dtype)
        array[:, 8:20, 8:20] = np.float64(pick(rng, (*ODD_PLACES, 255.0, -5.0))).astype(dtype)
    place = odd_transform(rng) if rng.integers(2) else HALF_METRE
    return raster_bytes(array, transform=place, nodata=pick(rng, (None, *ODD_NODATA)))


def _odd_vrt(rng: Rng) -> bytes:
    """Return the text of a VRT with one to three of its tokens, or bytes, changed."""
    sizes = {"width": WIDTH, "height": HEIGHT}
    bands = "".join(BAND.format(band=band, **sizes) for band in (1, 2, 3))
    places = list(HALF_METRE.to_gdal())
    if not rng.integers(4):
        places[int(rng.integers(6))] = pick(rng, ODD_PLACES)
    text = VRT.format(bands=bands, places=", ".join(repr(float(value)) for value in places), **sizes)
    for _ in range(int(rng.integers(1, 4))):
        old, choices = pick(rng, TOKENS)
        text = text.replace(old, pick(rng, choices), int(pick(rng, (1, 1, -1))))
    data = text.encode()
    return data if rng.integers(5) else damage(data, rng)
