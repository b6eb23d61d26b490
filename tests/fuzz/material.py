"""Valid files that several kinds mutate: a tiny bundle, small rasters in many layouts, and a client that stays."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from logging import CRITICAL
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from affine import Affine
from rasterio.dtypes import in_dtype_range
from rasterio.io import MemoryFile

import geood.prediction.dispatch
import geood.prediction.pipeline
from fuzz.mutations import NOT_NUMBERS, Rng, damage, pick
from geood.models.bundle import ModelBundle
from support.bundles import make_bundle
from support.rasters import HALF_METRE, UTM, picture

HEIGHT, WIDTH = 40, 48
TINY = {"encoder": "test_efficientnet", "decoder_channels": 8}  # 400 kB, loaded in 20 ms
ODD_PLACES = (0.0, -0.0, 1e-300, 1e-12, 1.0, 1e9, 1e15, 1e300, -1e300, 1.7e308, *NOT_NUMBERS)
ODD_NODATA = (0, -1, 255, 256, -9999.5, 1e40, 3.5e38, -3.4028234663852886e38, *NOT_NUMBERS)


@cache
def tiny_bundle(folder: Path) -> Path:
    """Return a bundle for three bands of 8 bit, as small as can be."""
    path = folder / "model.safetensors"
    make_bundle(path, segmenter=TINY, predict={"tile_px": 32, "halo_px": 0})
    return path


_NO_PAGES: dict[str, Any] = {
    "dashboard_address": "127.0.0.1:0",
    "worker_dashboard_address": "127.0.0.1:0",
    "scheduler_kwargs": {"dashboard": False},
    "silence_logs": CRITICAL,
}


@contextmanager
def quick_predictions() -> Iterator[None]:
    """Let `predict` in the block use one Dask client, and load a bundle once; both take longer than a tiny scene."""
    from distributed import Client

    loaded: dict[str, ModelBundle] = {}
    load = ModelBundle.load

    def once(path: str | Path, *arguments: Any, **options: Any) -> ModelBundle:
        if str(path) not in loaded:
            loaded[str(path)] = load(path, *arguments, **options)
        return loaded[str(path)]

    with ExitStack() as stack:
        client = stack.enter_context(
            Client(processes=False, set_as_default=False, n_workers=1, threads_per_worker=2, **_NO_PAGES)
        )
        stack.enter_context(patch.object(os, "fsync", lambda _: None))  # no power cut is tried here
        stack.enter_context(
            patch.object(geood.prediction.pipeline, "dask_client", lambda *_, **__: nullcontext(client))
        )
        stack.enter_context(patch.object(geood.prediction.dispatch, "LOOK_S", 0.001))
        stack.enter_context(patch.object(ModelBundle, "load", once))
        yield


def raster_bytes(array: Any, **options: Any) -> bytes:
    """Return an array (C, H, W) as a file; the options are those of rasterio, and `tags`.

    A nodata value that the type of the array cannot hold is left out.
    """
    tags = options.pop("tags", {})
    profile = {"driver": "GTiff", "crs": UTM, "transform": HALF_METRE, **options}
    count, height, width = array.shape
    if (nodata := profile.get("nodata")) is not None and not in_dtype_range(nodata, array.dtype):
        del profile["nodata"]
    with MemoryFile() as memory:
        with memory.open(count=count, height=height, width=width, dtype=array.dtype, **profile) as file:
            file.write(array)
            file.update_tags(**tags)
        data: bytes = memory.read()
    return data


def odd_transform(rng: Rng) -> Affine:
    """Return a transform with one to three coefficients that no map has."""
    values = list(HALF_METRE[:6])
    for _ in range(int(rng.integers(1, 4))):
        values[int(rng.integers(6))] = float(pick(rng, ODD_PLACES))
    return Affine(*values)


def layouts() -> dict[str, bytes]:
    """Return one scene of three bands in many file layouts, by name."""
    rgb, tiles = picture(HEIGHT, WIDTH), {"tiled": True, "blockxsize": 16, "blockysize": 16}
    wide = picture(HEIGHT, WIDTH, dtype="uint16", high=60000)
    real = picture(HEIGHT, WIDTH, dtype="float32")
    holes = real.copy()
    holes[:, 5:20, 5:20] = np.nan
    alpha = np.concatenate([rgb, (rgb[:1] > 60) * np.uint8(255)])
    return {
        "tiles.tif": raster_bytes(rgb, compress="deflate", **tiles),
        "strips.tif": raster_bytes(rgb, blockysize=8),
        "bands.tif": raster_bytes(rgb, interleave="band", compress="lzw", predictor=2),
        "jpeg.tif": raster_bytes(rgb, compress="jpeg", photometric="ycbcr", **tiles),
        "zstd.tif": raster_bytes(rgb, compress="zstd", nodata=0, **tiles),
        "big.tif": raster_bytes(rgb, BIGTIFF="YES", compress="lzma"),
        "wide.tif": raster_bytes(wide, compress="deflate", nodata=0),
        "real.tif": raster_bytes(holes, nodata=float("nan"), compress="deflate", **tiles),
        "double.tif": raster_bytes(real.astype("float64"), nodata=-9999.0),
        "signed.tif": raster_bytes(wide.astype("int16"), compress="packbits"),
        "alpha.tif": raster_bytes(alpha, photometric="rgb", alpha="yes", compress="deflate"),
        "photo.png": raster_bytes(rgb, driver="PNG", crs=None, transform=Affine.identity()),
        "photo.jpg": raster_bytes(rgb, driver="JPEG", crs=None, transform=Affine.identity()),
    }


def odd_tag(data: bytes, rng: Rng) -> bytes:
    """Return a classic TIFF with one entry of its first directory changed: tag, type, count or value."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return damage(data, rng)
    order = "<" if data[:1] == b"I" else ">"
    [start] = struct.unpack_from(f"{order}I", data, 4)
    if start + 2 > len(data):
        return damage(data, rng)
    [entries] = struct.unpack_from(f"{order}H", data, start)
    at = start + 2 + 12 * int(rng.integers(max(1, entries)))
    if at + 12 > len(data):
        return damage(data, rng)
    out, kind = bytearray(data), int(rng.integers(5))
    word = pick(rng, (0, 1, 2, 3, 5, 7, 16, 255, 65535, 2**31 - 1, 2**32 - 1, len(data), len(data) - 4, at))
    if kind == 0:
        struct.pack_into(
            f"{order}H", out, at, pick(rng, (254, 256, 257, 258, 259, 262, 277, 284, 317, 322, 338, 339, 42113))
        )
    elif kind == 1:
        struct.pack_into(f"{order}H", out, at + 2, int(rng.integers(20)))
    else:
        struct.pack_into(f"{order}I", out, at + (4 if kind == 2 else 8), word)
    return bytes(out)
