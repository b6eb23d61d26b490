"""Reading of score rasters: their GEOOD_* tags, as text and as checked values, and their scores as a lazy xarray array.

They are written in `cog`. Tags are lost or changed by other programs, so each is checked before it is used, here alone.
This module knows nothing of tensors, models or polygons.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from geood.config import PredictConfig
from geood.constants import NO_CLASS
from geood.errors import DataError, counted, shown
from geood.geo.gdal import open_raster
from geood.geo.grid import Window

if TYPE_CHECKING:
    import xarray

MODEL_TAG, SCENE_TAG = "GEOOD_MODEL", "GEOOD_SCENE"
THRESHOLD_TAG, PREDICT_TAG, CLASSES_TAG = "GEOOD_THRESHOLD", "GEOOD_PREDICT", "GEOOD_CLASSES"
SCORE_TAG, TABLE_TAG = "GEOOD_SCORE", "GEOOD_FALSE_POLYGONS"
VERDICT_TAG, RUN_TAG = "GEOOD_VERDICT", "GEOOD_RUN"  # answer, and all fields of the verdict as JSON
SIGNALS_TAG, INLIERS_TAG = "GEOOD_SIGNALS", "GEOOD_INLIERS"  # see `EvidenceTags`
FAILED_TAG = "GEOOD_FAILED_TILES"  # windows [row, col, height, width] that hold no scores because they failed
SETTING_TAGS = {  # of the score, by their keys in the config
    "temperature": "GEOOD_TEMPERATURE",
    "veto_share": "GEOOD_VETO_SHARE",
    "smooth_px": "GEOOD_SMOOTH_PX",
    "smooth_contrast": "GEOOD_SMOOTH_CONTRAST",
}
SAME_RUN = (MODEL_TAG, SCENE_TAG)  # tags that score raster and class raster of one prediction share


@dataclass(frozen=True)
class ScoreTags:
    """Tags of a score raster that polygons are made with, checked.

    `model` and `scene` say of which prediction it is, `class_names` name the values of its class raster, `failed` are
    windows without scores because their tiles failed.
    """

    model: str
    scene: str
    threshold: float
    predict: PredictConfig
    class_names: dict[int, str]
    failed: tuple[Window, ...]


@dataclass(frozen=True)
class EvidenceTags:
    """Tags of a score raster that explain its scores, checked; empty in rasters that have none.

    `signals` are the names of the scores that this is made of, in the order of the class raster's band `signal`;
    `inliers` are pairs of a score and the share of inlier validation pixels that exceed it.
    """

    signals: tuple[str, ...]
    inliers: tuple[tuple[float, float], ...]


def evidence_tags(path: str | Path) -> EvidenceTags:
    """Read and check the tags of a score raster that explain its scores.

    Raises:
        DataError: the file is no score raster of geood, or a tag is wrong; the message names the tag.
    """
    path = Path(path)
    tags = read_tags(path)
    signals, inliers = (_json(tags.get(tag, "[]")) for tag in (SIGNALS_TAG, INLIERS_TAG))
    if not (isinstance(signals, list) and all(_is_name(name) for name in signals)):
        raise _bad(path, tags, SIGNALS_TAG, wanted='names of scores as JSON, such as ["hybrid", "encoder_knn"]')
    if not (isinstance(inliers, list) and all(_is_knot(pair) for pair in inliers)):
        raise _bad(
            path, tags, INLIERS_TAG, wanted="JSON pairs of a score and a share of inliers, such as [[0.8, 0.01]]"
        )
    return EvidenceTags(tuple(signals), tuple((float(score), float(share)) for score, share in inliers))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_knot(pair: object) -> bool:
    if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) in (int, float) for number in pair)):
        return False
    return bool(abs(pair[0]) <= sys.float_info.max and 0 <= pair[1] <= 1)  # JSON has integers beyond all floats


def score_tags(path: str | Path, *, threshold: float | None = None) -> ScoreTags:
    """Read and check the tags of a score raster; a `threshold` given is taken instead of that of its tag.

    Raises:
        DataError: the file is no score raster of geood, or a tag is missing or wrong; the message names the tag.
    """
    path = Path(path)
    tags = read_tags(path)
    with open_raster(path) as dataset:
        shape = dataset.shape
    failed = _failed(path, tags, shape) if FAILED_TAG in tags else ()
    return ScoreTags(
        model=_text(path, tags, MODEL_TAG),
        scene=_text(path, tags, SCENE_TAG),
        threshold=_threshold(path, tags) if threshold is None else threshold,
        predict=_predict(path, tags),
        class_names=_class_names(path, tags),
        failed=failed,
    )


def _text(path: Path, tags: dict[str, str], tag: str) -> str:
    if not tags.get(tag):
        raise _bad(path, tags, tag, wanted="the text that `geood predict` wrote")
    return tags[tag]


def _threshold(path: Path, tags: dict[str, str]) -> float:
    try:
        threshold = float(tags[THRESHOLD_TAG])
    except (KeyError, ValueError):
        threshold = math.nan
    if not math.isfinite(threshold):
        raise _bad(path, tags, THRESHOLD_TAG, wanted="a finite number", remedy="give one with --threshold")
    return threshold


def _predict(path: Path, tags: dict[str, str]) -> PredictConfig:
    try:
        return PredictConfig.model_validate_json(tags[PREDICT_TAG])
    except (KeyError, ValidationError):
        wanted = "the config section predict of this geood as JSON"
        raise _bad(path, tags, PREDICT_TAG, wanted=wanted) from None


def _class_names(path: Path, tags: dict[str, str]) -> dict[int, str]:
    try:
        given = json.loads(tags[CLASSES_TAG])
        names = {int(key): name for key, name in given.items()}
        fine = len(names) == len(given) and all(0 <= i < NO_CLASS and _is_name(n) for i, n in names.items())
    except (KeyError, ValueError, AttributeError, RecursionError):
        fine = False
    if not fine:
        raise _bad(path, tags, CLASSES_TAG, wanted='names by class value as JSON, such as {"0": "land"}')
    return names


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.strip() != "" and name.isprintable()


def _failed(path: Path, tags: dict[str, str], shape: tuple[int, int]) -> tuple[Window, ...]:
    try:
        given = json.loads(tags[FAILED_TAG])
        fine = isinstance(given, list) and all(_is_window(window, shape) for window in given)
    except (ValueError, RecursionError):
        fine = False
    if not fine:
        wanted = f"JSON windows [row, col, height, width] within its {shape[0]} x {shape[1]} pixels"
        raise _bad(path, tags, FAILED_TAG, wanted=wanted)
    return tuple(Window(*window) for window in given)


def _is_window(window: object, shape: tuple[int, int]) -> bool:
    if not (isinstance(window, list) and len(window) == 4 and all(type(number) is int for number in window)):
        return False
    row, col, height, width = map(int, window)
    return min(row, col) >= 0 and min(height, width) > 0 and row + height <= shape[0] and col + width <= shape[1]


def _bad(path: Path, tags: dict[str, str], tag: str, *, wanted: str, remedy: str = "predict again") -> DataError:
    found = f"is {shown(tags[tag])}" if tag in tags else "is missing"
    return DataError(
        f"{path}: its tag {tag} {found}; needed is {wanted}; another program may have changed it: {remedy}"
    )


def tagged_number(tags: Mapping[str, str], tag: str) -> float | None:
    """Return the number in a tag; None where there is none, or one that is not finite."""
    try:
        value = float(tags[tag])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def read_tags(path: str | Path, *, dtype: str = "float32") -> dict[str, str]:
    """Read the GEOOD_* tags of a score raster, or with dtype "uint8" of a class raster.

    Raises:
        DataError: the file is missing, cannot be read, or is not a score raster of geood.
    """
    path = Path(path)
    with open_raster(path) as dataset:
        tags = {k: v.rstrip() for k, v in dataset.tags().items() if k.startswith("GEOOD_")}
        if not tags or dataset.dtypes[0] != dtype or (dataset.count != 1 and dtype == "float32"):
            raise DataError(
                f"{path}: not a score raster of geood ({counted(dataset.count, 'band')} of {dataset.dtypes[0]}, "
                f"{counted(len(tags), 'GEOOD_ tag')}); give the .tif that `geood predict` wrote"
            )
    return tags


def open_scores(path: str | Path, chunks: int = 1024) -> xarray.DataArray:
    """Open a score raster as an xarray array, read lazily by Dask chunks.

    Args:
        path: the `.tif` that `geood predict` wrote.
        chunks: side of a chunk, pixels.

    Returns:
        Scores (y, x), float32, higher is more anomalous, NaN where there is no data; with coordinates in CRS units, the
        CRS under `.rio.crs`, and the raster's tags as attributes.

    Raises:
        DataError: the file cannot be read or is not a score raster of geood.

    Example:
        >>> import geood
        >>> scores = geood.open_scores("scores.tif")
        >>> scores.dims, scores.shape, str(scores.dtype)
        (('y', 'x'), (96, 128), 'float32')
        >>> share = float((scores > float(scores.attrs["GEOOD_THRESHOLD"])).mean())
        >>> 0 <= share <= 1
        True
    """
    import rioxarray

    path = Path(path)
    tags = read_tags(path)
    array: Any = rioxarray.open_rasterio(path, chunks={"y": chunks, "x": chunks}, masked=True)
    array = array.squeeze("band", drop=True).rename("score")
    array.attrs = {**tags, "long_name": "anomaly score"}
    scores: xarray.DataArray = array
    return scores
