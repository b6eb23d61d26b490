"""Score rasters for `polygonize`: their GEOOD_ tags, their values and georeferencing, and their bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio

from fuzz.law import Case
from fuzz.material import HEIGHT, ODD_NODATA, WIDTH, odd_tag, odd_transform, raster_bytes
from fuzz.mutations import TEXTS, Rng, damage, edited, odd_json, pick
from geood.config import PredictConfig
from geood.prediction import polygonize

VALUES = (0.9, 1.0, -1.0, 3e38, -3e38, 1e-45, float("nan"), float("inf"), float("-inf"))
THRESHOLDS = ("nan", "inf", "-inf", "", "x", "1e999", "0.5x", "1_0", " 0.5 ", "-1", "0x1p-1", "٠.٥", "1" * 5000)
WINDOWS = (
    "[[0, 0, 8, 8]]",
    "[[0, 0, -1, 5]]",
    "[[1e300, 0, 1, 1]]",
    "[[NaN, 0, 1, 1]]",
    "[[0, 0, 1]]",
    "[0]",
    "5",
    "{}",
)
SUFFIXES = (".geojson", ".fgb", ".parquet", ".gpkg")


def stock(_: Path) -> tuple[Any, Any, dict[str, str]]:
    """Return scores (H, W), classes (H, W), and the tags of both."""
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    scores = (0.5 + 0.5 * np.sin(rows / 5) * np.cos(cols / 6)).astype(np.float32)
    scores[:5, :9] = np.nan
    tags = {
        "GEOOD_VERSION": "0.1.0",
        "GEOOD_MODEL": "0123456789ab",
        "GEOOD_SCENE": "scene.tif",
        "GEOOD_SCORE": "hybrid",
        "GEOOD_THRESHOLD": "0.8",
        "GEOOD_CLASSES": json.dumps({0: "land", 1: "road", 2: "roof"}),
        "GEOOD_PREDICT": PredictConfig().model_dump_json(),
    }
    return scores, (rows // 8 % 3).astype(np.uint8), tags


def case(rng: Rng, stock: tuple[Any, Any, dict[str, str]]) -> Case:
    """Return a score raster, perhaps with its classes beside it, and the options of `polygonize`."""
    scores, classes, tags = stock
    kind, options, own = int(rng.integers(8)), {"nodata": float("nan")}, dict(tags)
    if kind <= 3:
        for _ in range(int(rng.integers(1, 3))):
            own = _odd_tags(own, rng)
    elif kind == 4:
        scores = scores.copy()
        scores[int(rng.integers(HEIGHT)) :, int(rng.integers(WIDTH)) :] = pick(rng, VALUES)
    elif kind == 5:
        options |= pick(rng, ({"transform": odd_transform(rng)}, {"crs": None}, {"nodata": pick(rng, ODD_NODATA)}))
    data = _raster(scores, own, **options)
    if kind in (6, 7):
        data = (damage if kind == 6 else odd_tag)(data, rng)
    files = {"given/x.tif": data}
    if rng.integers(2):
        beside = _raster(classes, own if rng.integers(4) else _odd_tags(own, rng))
        files["given/x.classes.tif"] = damage(beside, rng) if not rng.integers(6) else beside
    threshold = pick(rng, (None, None, None, 0.5, -1.0, 1e300, 5e-324))
    least = pick(rng, (None, None, 0.0, 1.0, 1e300))
    return Case(files, {"suffix": pick(rng, SUFFIXES), "threshold": threshold, "min_area_m2": least})


def run(box: Path, options: dict[str, Any], _: Any) -> list[str]:
    """Cut polygons, and count those in the file."""
    how, out = dict(options), box / "made" / f"x{options['suffix']}"
    del how["suffix"]
    count = polygonize(box / "given" / "x.tif", out, **how)
    if options["threshold"] is None:
        with rasterio.open(box / "given" / "x.tif") as file:
            assert np.isfinite(float(file.tags()["GEOOD_THRESHOLD"])), "no threshold"
    if out.suffix == ".parquet":
        import geopandas

        assert len(geopandas.read_parquet(out)) == count
    elif count or out.suffix != ".fgb":  # a driver may leave the extent of no shapes open
        info = pyogrio.read_info(out, layer=0, force_total_bounds=bool(count))
        assert info["features"] == count
        assert not count or np.isfinite(info["total_bounds"]).all()
    made = (
        [out.name, f"x.failed_tiles{out.suffix}"]
        if (box / "made" / f"x.failed_tiles{out.suffix}").exists()
        else [out.name]
    )
    return made if out.suffix == ".gpkg" else [*made, *(name.replace(out.suffix, ".qml") for name in made)]


def _raster(array: Any, tags: dict[str, str], **options: Any) -> bytes:
    kept = {key: value.replace("\x00", "") for key, value in tags.items()}
    kept = {key: value.encode("utf-8", "replace").decode() for key, value in kept.items()}
    return raster_bytes(array[None], tags=kept, tiled=True, blockxsize=16, blockysize=16, compress="deflate", **options)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:  # odd already
        return False


def _odd_tags(tags: dict[str, str], rng: Rng) -> dict[str, str]:
    key, out = pick(rng, sorted(tags)), dict(tags)
    kind = int(rng.integers(4))
    if kind == 0:
        del out[key]
    elif kind == 1:
        out[key] = pick(rng, TEXTS)
    elif key == "GEOOD_THRESHOLD":
        out[key] = pick(rng, THRESHOLDS)
    elif kind == 2 or not _is_json(tags[key]):
        out["GEOOD_FAILED_TILES"] = pick(rng, WINDOWS)
    else:
        tree = json.dumps(edited(json.loads(tags[key]), rng))
        out[key] = tree if rng.integers(3) else odd_json(tree.encode(), rng)[:20_000].decode("utf-8", "replace")
    return out
