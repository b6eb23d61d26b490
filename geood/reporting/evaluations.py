"""Results of `geood evaluate`, read for people: the table of scores, precision by recall, things and false polygons.

Both kinds are taken, of scenes and of images with masks, from their JSON. A file may come from an older geood, or have
been edited: what does not fit is an error that names it, and what is not there stays empty.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood.config import SCORES, title_of
from geood.errors import DataError, shown

FILES = ("results.json", "metrics.json")


class ScoreRow(NamedTuple):
    """Figures of one score, shares in [0, 1]; None where undefined."""

    title: str
    own: bool
    ap: float | None
    fpr95: float | None
    auroc: float | None


class Found(NamedTuple):
    """Things found and false polygons at one threshold of the model's own score."""

    at: str
    threshold: float
    things: int
    found: int
    polygons: int
    false: int
    per_km2: float | None


@dataclass(frozen=True)
class Measured:
    """Figures of one evaluation. `curve` (n, 3) holds threshold, recall and precision of the own score.

    `model` is the identity of the bundle, empty where the file does not tell it.
    """

    name: str
    model: str
    rows: list[ScoreRow]
    base_rate: float | None
    pixels: int
    miou: float | None
    iou: dict[str, float]
    confusion: NDArray[np.int64] | None
    curve: NDArray[np.float64]
    found: list[Found]
    ranking: dict[str, float]


def is_evaluation(path: Path) -> bool:
    """Return whether a path is the figures of an evaluation, or a folder with them, by its names."""
    return path.suffix == ".json" if path.is_file() else any((path / name).is_file() for name in FILES)


def read_evaluation(path: Path) -> Measured:
    """Read the figures of an evaluation from its JSON file or its folder.

    Raises:
        DataError: they cannot be read, or are none.
    """
    file = path if path.is_file() else next(path / name for name in FILES if (path / name).is_file())
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(given, dict) or not isinstance(given["rows"], list):
            raise ValueError("it has no rows of scores")
        return _measured(given, path.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{file}: no figures of an evaluation ({shown(error)}); give what `geood evaluate --out` wrote"
        ) from None


def _measured(given: dict[str, Any], name: str) -> Measured:
    own = str(given.get("score", ""))
    confusion = np.array(given.get("confusion") or np.zeros((0, 0)), np.int64)
    iou = {str(k): _number(v) for k, v in given.get("class_iou", {}).items()}
    square = confusion.ndim == 2 and confusion.shape == (len(iou),) * 2 and len(iou) > 0
    curve = np.array(given.get("curve") or np.zeros((0, 3)), np.float64).reshape(-1, 3)
    return Measured(
        name=f"{given['data_set']}, split {given['split']}" if "data_set" in given else name,
        model=str(given.get("model", "")),
        rows=[_row(row, own) for row in given["rows"]],
        base_rate=_share(given.get("base_rate")),
        pixels=int(given.get("pixels", 0)),
        miou=_share(given.get("miou")),
        iou=iou,
        confusion=confusion if square else None,
        curve=curve[np.isfinite(curve[:, 1:]).all(1)],
        found=[_found(row) for row in given.get("objects", ()) if row["score"] == own],
        ranking={str(k): float(v) for k, v in given.get("ranking", {}).items() if isinstance(v, (int, float))},
    )


def _row(row: dict[str, Any], own: str) -> ScoreRow:
    kind = str(row["score"])
    title = title_of(kind) if kind in SCORES else kind
    return ScoreRow(title, kind == own, *(_share(row.get(key)) for key in ("average_precision", "fpr95", "auroc")))


def _found(row: dict[str, Any]) -> Found:
    rate = row.get("false_per_km2")
    return Found(
        at=str(row["at"]),
        threshold=float(row["threshold"]),
        things=int(row["things"]),
        found=int(row["found"]),
        polygons=int(row["polygons"]),
        false=int(row["false_polygons"]),
        per_km2=None if rate is None else float(rate),
    )


def _share(value: Any) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
