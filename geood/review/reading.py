"""Reading of reviewed polygons and of searched cells, from GeoPackages that are open elsewhere and from other files.

What a person types is taken as it is meant: blanks and capitals do not count, and a verdict that is none of the four is
listed and left out. Nothing is written. Files of several reviewers are taken together in `copies`.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import pandas as pd
import pyogrio

from geood.constants import VECTOR_SUFFIXES
from geood.errors import ConfigError, DataError, counted, printable, shown
from geood.geo.gdal import reason
from geood.geo.gpkg import snapshot
from geood.geo.ogr import local_file
from geood.geo.qgis.form import CELL_REVIEW, SAMPLE_LAYER, VERDICTS
from geood.review.copies import (
    Conflict,
    check_one_map,
    each_once,
    is_empty,
    of_one_crs,
    searched_cells,
    tells_polygons,
    whole_numbers,
    with_lost_columns,
)

LAYER = "anomalies"
SCORES = ("score_max", "score")  # columns taken for the score, the first that is there
_FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
)


class ReviewNames(NamedTuple):
    """Names in files of other tools: of the layer, and of the columns of the verdict and of the score."""

    layer: str | None = None
    verdict: str = "verdict"
    score: str | None = None


@dataclass(frozen=True)
class Review:
    """Polygons and cells of one or several reviewed files.

    `polygons` has the columns of the files and `fid`, `source`, `score` (NaN: none) and a `verdict` of the four or "",
    best ranked first; `ranked` is True if a column `rank` says so. `cells` are those of the layer `sample`, with
    numbers in `misses` (NaN: none typed) and True or False in `complete`. `misspelt` counts verdicts that are none,
    `undecided` are shapes: parts of a polygon that was cut, without the verdict that its other parts have.
    """

    polygons: geopandas.GeoDataFrame
    cells: geopandas.GeoDataFrame | None
    misspelt: dict[str, int] = field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()
    ranked: bool = False
    undecided: tuple[Any, ...] = ()


def misspelt_lines(misspelt: Mapping[str, int], known: Iterable[str] = VERDICTS) -> list[str]:
    """Return a line for each word that is none of those known, with the one that it resembles, of words and numbers."""
    lines = []
    for text, count in misspelt.items():
        near = difflib.get_close_matches(text.casefold(), list(known), n=1)
        lines.append(f"{shown(text)!r}{f' ({shown(near[0])}?)' if near else ''} in {counted(count, 'row')}")
    return lines


def read_review(paths: Sequence[str | Path], names: ReviewNames = ReviewNames()) -> Review:  # noqa: B008  # frozen
    """Read reviewed files; of several, the polygons and cells together.

    Raises:
        ConfigError: no file is given.
        DataError: a file cannot be read, has no layer of polygons or no column of verdicts, its CRS differs, or it is
            of another map.
    """
    if not paths:
        raise ConfigError("no reviewed file; give at least one")
    frames, cells, notes = [], [], list[str]()
    for number, path in enumerate(map(Path, paths)):
        frame, sample = _read_file(path, names)
        frames.append(frame.assign(source=path.name, _file=number))
        cells += [] if sample is None else [sample.assign(source=path.name)]
    polygons = with_lost_columns(pd.concat(of_one_crs(frames, paths), ignore_index=True))
    cells = [each.to_crs(cells[0].crs) if each.crs and cells[0].crs else each for each in cells]
    polygons, misspelt = _spelt(polygons, names.verdict)
    ranks = whole_numbers(polygons["rank"]) if "rank" in polygons else None
    ranked = ranks is not None and tells_polygons(polygons.assign(rank=ranks))
    for frame, path in zip(frames, map(Path, paths), strict=True):
        notes += _gaps(frame, path, ranked=ranked)
    if ranks is not None and ranked:  # what was drawn by hand has none, and comes last
        own = ranks.max() + 1 + pd.factorize(polygons.geometry.to_wkb(), use_na_sentinel=False)[0]
        polygons = polygons.assign(rank=ranks.where(ranks.notna(), own), _told=ranks.astype(np.float64))
        check_one_map(polygons, paths)
    undecided: list[Any] = []
    polygons, conflicts = each_once(polygons, notes, undecided, ranked=ranked)
    polygons = _scored(polygons, names.score)
    order = polygons["rank"] if ranked else -polygons["score"].fillna(-np.inf)
    scenes = polygons["scene"].nunique() if "scene" in polygons else 1
    if ranked and scenes > 1:  # each scene has its own ranks
        order = order + (-polygons["score"].rank(pct=True) / 2).fillna(0)
    polygons = polygons.iloc[np.argsort(order.to_numpy(), kind="stable")].reset_index(drop=True)
    return Review(polygons, searched_cells(cells, notes), misspelt, conflicts, tuple(notes), ranked, tuple(undecided))


def _read_file(path: Path, names: ReviewNames) -> tuple[geopandas.GeoDataFrame, geopandas.GeoDataFrame | None]:
    """Return the polygons of a file with their fid, and the cells of its sample if it has one."""
    if path.suffix.lower() not in VECTOR_SUFFIXES:
        raise DataError(f"{path}: not a file of polygons; needed: {', '.join(VECTOR_SUFFIXES)}")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise DataError(f"{path}: no such file; {f'did you mean {near[0]}?' if near else 'give a reviewed file'}")
    try:
        if path.suffix.lower() == ".gpkg":
            with snapshot(path) as copy:
                return _read_layers(copy, path, names)
        if path.suffix.lower() == ".parquet":
            frame = geopandas.read_parquet(path).reset_index(drop=True)  # which may hold a number twice
            frame = frame if frame.geometry.name == "geometry" else frame.rename_geometry("geometry")
            numbers = frame.get("fid", np.arange(len(frame)))
            return _checked(frame.assign(fid=numbers), path, names), None
        with local_file(path) as plain:
            return _read_layers(plain, path, names)
    except _FAILURES as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}); copy it again, or give another file") from None


def _read_layers(
    plain: Path, path: Path, names: ReviewNames
) -> tuple[geopandas.GeoDataFrame, geopandas.GeoDataFrame | None]:
    layers = [str(name) for name, kind in pyogrio.list_layers(plain) if kind]
    fields = {name: [str(f) for f in pyogrio.read_info(plain, layer=name)["fields"]] for name in layers}
    chosen = _chosen(fields, path, names)
    frame = pyogrio.read_dataframe(plain, layer=chosen, fid_as_index=True)
    frame = frame.reset_index(names="fid", drop="fid" in frame)  # QGIS saves that of a GeoPackage as a column
    samples = [name for name in layers if name == SAMPLE_LAYER] or [
        name for name, held in fields.items() if name != chosen and {"misses", "complete"} <= set(held)
    ]
    cells = pyogrio.read_dataframe(plain, layer=samples[0]) if samples and samples[0] != chosen else None
    if cells is not None and not set(CELL_REVIEW) - {"reviewer", "reviewed", "comment"} <= set(cells.columns):
        cells = None
    return _checked(frame, path, names), cells


def _chosen(fields: dict[str, list[str]], path: Path, names: ReviewNames) -> str:
    """Choose the layer of polygons: by name, the one that geood writes, or the only one with a column of verdicts."""
    listed = ", ".join(printable(name) for name in fields) or "none"
    if names.layer is not None:
        if names.layer not in fields:
            raise DataError(f"{path}: has no layer {shown(names.layer)}; give one of them with --layer: {listed}")
        return names.layer
    if LAYER in fields:
        return LAYER
    having = [name for name, held in fields.items() if names.verdict in held]
    if len(having) == 1:
        return having[0]
    if len(fields) == 1:
        return next(iter(fields))
    raise DataError(f"{path}: cannot tell which layer holds the reviewed polygons; give one with --layer: {listed}")


def _checked(frame: geopandas.GeoDataFrame, path: Path, names: ReviewNames) -> geopandas.GeoDataFrame:
    if names.verdict not in frame:
        columns = ", ".join(printable(name) for name in frame.columns if name not in ("fid", "geometry"))
        raise DataError(
            f"{path}: no column {shown(names.verdict)} with the verdicts; name it with --verdict-column; columns: "
            f"{columns or 'none'}"
        )
    if any(isinstance(value, (bool, np.bool_)) for value in frame[names.verdict]):
        raise DataError(
            f"{path}: the column {shown(names.verdict)} holds yes and no, where verdicts are the words real, false, "
            "unsure and skip; write them as text, in QGIS with the field calculator"
        )
    if names.score is not None and names.score not in frame:
        raise DataError(f"{path}: no column {shown(names.score)}; name that of the scores with --score-column")
    if "geometry" not in frame:
        raise DataError(f"{path}: its rows have no geometry; give the file with the polygons")
    return frame


def _spelt(frame: geopandas.GeoDataFrame, column: str) -> tuple[geopandas.GeoDataFrame, dict[str, int]]:
    """Bring verdicts to their spelling; those that are none become empty, and are counted."""
    typed = [("" if is_empty(value) else str(value).strip()) for value in frame[column]]
    plain = [text.casefold() for text in typed]
    counts = Counter(text for text, low in zip(typed, plain, strict=True) if low and low not in VERDICTS)
    known = [text if text in VERDICTS else "" for text in plain]
    return frame.assign(verdict=pd.Series(known, frame.index, dtype=object)), dict(sorted(counts.items()))


def _scored(frame: geopandas.GeoDataFrame, column: str | None) -> geopandas.GeoDataFrame:
    """Add the column `score`: the one named, or the one that geood writes; NaN where there is none."""
    chosen = column or next((name for name in SCORES if name in frame), None)
    if chosen is None:
        return frame.assign(score=np.nan)
    return frame.assign(score=pd.to_numeric(frame[chosen], errors="coerce").astype(np.float64))


def _gaps(frame: geopandas.GeoDataFrame, path: Path, *, ranked: bool) -> list[str]:
    """Tell how many rows were deleted, as far as ranks, where they tell polygons apart, or row numbers show it.

    Scenes that share a file share its ranks; where a rank occurs in several scenes, each has its own.
    """
    if ranked and "rank" in frame:
        ranks = whole_numbers(frame["rank"]).dropna()
        by_scene = "scene" in frame and bool(frame.assign(_rank=ranks).groupby("_rank")["scene"].nunique().gt(1).any())
        if by_scene:
            scenes = frame["scene"].astype(str)
            each = [(f" of {shown(str(scene))}", ranks[scenes[ranks.index] == scene]) for scene in scenes.unique()]
            return _missing(each, path, "rank")
        return _missing([("", ranks)], path, "rank")
    numbers = whole_numbers(frame["fid"]).dropna()
    return _missing([("", numbers)], path, "row number") if path.suffix.lower() == ".gpkg" else []


def _missing(groups: Sequence[tuple[str, pd.Series[Any]]], path: Path, what: str) -> list[str]:
    """Return a note on each group of numbers that has gaps from 1 on."""
    notes = []
    for name, numbers in groups:
        missing = int(numbers.max()) - numbers.nunique() if len(numbers) else 0
        if missing > 0:
            notes.append(
                f"{path.name}: {counted(missing, what)}{name} missing of those up to {int(numbers.max())}, "
                "so rows were deleted; none counts"
            )
    return notes
