"""Copies of one map that several people reviewed, taken together: each polygon and each searched cell counts once.

A polygon is known by its rank, scene and model, where it has them, otherwise by its outline and its figures. Where
verdicts differ it is in conflict, which is listed and left out of the figures. How files are read is in `reading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import pandas as pd
import shapely

from geood.errors import DataError, counted, shown
from geood.geo.qgis.form import SAMPLE_LAYER
from geood.geo.vector import sound

KEY = ("scene", "model", "rank")  # columns by which polygons of several files are the same one
CELL_KEY = ("scene", "seed", "cell")  # and cells
LARGEST = 2**53  # below which a float is a whole number without doubt
ROUNDED, MOSTLY = 1e-5, 0.5  # relative difference of figures that are one; share of polygons that tell one map
FEW = 0.1  # share of polygons that may have the rank of another one by mistake
_SCORES = ("score_max", "score_mean")  # columns of geood that nobody measures anew
_FIGURES = (*_SCORES, "area_px", "area_m2", "class_name", "scene", "model")


class Conflict(NamedTuple):
    """Polygon with verdicts that differ: where it stands, and who said what."""

    polygon: str
    said: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.polygon}: {', '.join(self.said)}"


def of_one_crs(frames: Sequence[geopandas.GeoDataFrame], paths: Sequence[str | Path]) -> list[geopandas.GeoDataFrame]:
    """Return the polygons of all files with the CRS of the first, which has one notation in each format.

    Raises:
        DataError: another CRS is meant.
    """
    first = frames[0].crs
    for frame, path in zip(frames, paths, strict=True):
        if frame.crs != first and not (first and frame.crs and first.equals(frame.crs, ignore_axis_order=True)):
            raise DataError(
                f"{path}: has another CRS than {paths[0]}; save it in that one if they are copies of one map, else "
                "give them apart"
            )
    return [frame.set_crs(first, allow_override=True) for frame in frames]


def with_lost_columns(rows: geopandas.GeoDataFrame, key: Sequence[str] = KEY) -> geopandas.GeoDataFrame:
    """Return polygons or cells with what a file does not tell of any of its own, as a reviewer saved fewer columns.

    It is that of the same outline in another file, or what all others have in common. The last of the `key` is a number
    within the others.
    """
    names = [name for name in dict.fromkeys((*key, *_FIGURES)) if name in rows]
    each = {name: rows[name].isna().groupby(rows["_file"]).transform("all") for name in names}
    each = {name: lost for name, lost in each.items() if lost.any() and not lost.all()}
    if not each:
        return rows
    outlines = rows.geometry.to_wkb()
    for name, lost in each.items():
        told = rows[name][~lost]
        found = outlines.map(told.groupby(outlines[~lost]).first())
        if name in key[:2] and told.nunique() == 1:
            found = found.where(found.notna(), told.dropna().iloc[0])
        rows = rows.assign(**{name: rows[name].where(~lost, found)})
    return rows


def whole_numbers(values: pd.Series[Any]) -> pd.Series[Any]:
    """Return the numbers of a column, also of one of texts, as floats; NaN for all that is no whole number."""
    told = pd.to_numeric(values, errors="coerce").astype(np.float64)
    return told.where((told % 1 == 0) & (told.abs() < LARGEST))


def tells_polygons(polygons: geopandas.GeoDataFrame) -> bool:
    """Return whether ranks tell polygons apart: most have one, and of a file few have that of another polygon.

    The ranks of another tool may be grades, or of scenes that its file does not name. Parts of one polygon that a
    person cut have all its numbers; in a file of geood, which names the model, its scores, whatever was measured anew.
    """
    told = polygons[polygons["rank"].notna()]
    if len(told) < len(polygons) * (1 - MOSTLY):
        return False
    by = ["_file", *(name for name in KEY if name in told)]
    figures = [name for name in told.select_dtypes("number").columns if name not in ("fid", *by)]
    if "model" in told and told["model"].notna().mean() > MOSTLY:
        figures = [name for name in _SCORES if name in figures] or figures
    again = told.duplicated(by)
    if figures:
        return not (again & ~told.duplicated([*by, *figures])).mean() > FEW
    return not again.mean() > MOSTLY


def check_one_map(polygons: geopandas.GeoDataFrame, paths: Sequence[str | Path]) -> None:
    """Check that polygons of one rank in several files are the same: most of them have the same figures.

    A figure that one of both files does not tell, such as a column that a reviewer removed, says nothing.

    Raises:
        DataError: a file is of another map than the first.
    """
    by = [name for name in KEY if name in polygons]
    figures = [name for name in ("score_max", "area_px") if name in polygons]
    once = polygons.drop_duplicates(["_file", *by])
    first = once[once["_file"] == 0]
    for number, path in enumerate(paths[1:] if figures else (), 1):
        both = first.merge(once[once["_file"] == number], on=by, suffixes=("", "_other"))
        same = np.ones(len(both), np.bool_)
        for name in figures:
            mine, other = (
                pd.to_numeric(both[name + end], errors="coerce").astype(np.float64) for end in ("", "_other")
            )
            same &= np.isclose(mine, other, rtol=ROUNDED) | mine.isna() | other.isna()
        if len(both) and same.mean() < MOSTLY:
            raise DataError(
                f"{path}: is of another map than {paths[0]}: polygons of one rank have other figures; files that are "
                "given together are copies of one map, so give this one apart"
            )


def each_once(
    frame: geopandas.GeoDataFrame, notes: list[str], undecided: list[Any], *, ranked: bool
) -> tuple[geopandas.GeoDataFrame, tuple[Conflict, ...]]:
    """Keep each polygon once, with the verdict and class on which all agree; list those on which they do not.

    Parts into which a person cut a polygon, which keep its rank, are one polygon: those with its verdict together.
    The others are added to `undecided`.
    """
    by = [name for name in KEY if name in frame] if ranked else []
    if not by:
        by = [name for name in _FIGURES if name in frame]
        frame = frame.assign(_outline=frame.geometry.to_wkb())
        by.append("_outline")
    kept, conflicts, cut, apart = [], [], 0, 0
    classes = frame["true_class"].tolist() if "true_class" in frame else [None] * len(frame)
    outlines = frame.geometry.to_numpy(dtype=object, copy=True)
    verdict, file = frame["verdict"].tolist(), frame["_file"].tolist()
    for rows in frame.groupby(by, dropna=False, sort=False).indices.values():
        verdicts = {verdict[i] for i in rows} - {"", "skip"}
        first = next((i for i in rows if verdict[i] in verdicts), rows[0])
        first = first if verdicts else next((i for i in rows if verdict[i]), first)
        kept.append(first)
        parts = [i for i in rows if file[i] == file[first]]
        cut += len(parts) > 1
        torn = len(verdicts) > 1  # all parts are in conflict then, not the first alone
        own = [i for i in parts if torn or verdict[i] == verdict[first]]
        rest = [outlines[i] for i in parts if i not in own]
        outlines[first] = _together([outlines[i] for i in own])
        undecided += _without(rest, outlines[first])
        stated = _classes_of([classes[i] for i in rows if verdict[i] == verdict[first]])
        classes[first] = stated[0] if len(stated) == 1 else None
        apart += len(stated) > 1 and len(verdicts) == 1
        if torn:
            said = tuple(f"{verdict[i]} by {_who(frame, i)}" for i in rows if verdict[i] in verdicts)
            rank = frame["_told"].iat[first] if ranked else np.nan
            place = f"fid {frame['fid'].iat[first]}" if np.isnan(rank) else f"rank {int(rank)}"
            conflicts.append((first, Conflict(place, said)))
    if cut:
        notes.append(f"{counted(cut, 'polygon')} cut into parts or copied, with one rank: each counts once")
    if apart:
        notes.append(f"{counted(apart, 'polygon')} with one verdict and differing true_class: none is stated")
    frame = frame.assign(true_class=pd.Series(classes, frame.index, dtype=object)) if "true_class" in frame else frame
    merged = frame.set_geometry(outlines, crs=frame.crs)
    merged = merged.drop(columns=["_outline", "_file", "_told"], errors="ignore").copy()
    merged.iloc[[i for i, _ in conflicts], merged.columns.get_loc("verdict")] = "conflict"
    return merged.iloc[sorted(kept)].reset_index(drop=True), tuple(conflict for _, conflict in conflicts)


def _classes_of(typed: Sequence[Any]) -> list[Any]:
    """Return the classes that several rows state of one polygon, each once as it was first typed; blanks are none."""
    told: dict[str, Any] = {}
    for value in typed:
        if not is_empty(value) and (word := str(value).strip().casefold()):
            told.setdefault(word, value)
    return [*told.values()]


def _together(parts: Sequence[Any]) -> Any:
    """Return the parts of a polygon as one; one that is not valid as it is, so that it is told."""
    broken = [part for part in parts if part is not None and not part.is_valid]
    if len(parts) == 1 or broken:
        return (broken or parts)[0]
    return shapely.union_all(parts)


def _without(parts: Sequence[Any], whole: Any) -> list[Any]:
    """Return what parts have beside a whole; nothing if that is not valid, which is told where it matters."""
    if whole is None or not whole.is_valid:
        return []
    return [left for part in parts if part is not None and not (left := sound(part) - whole).is_empty]


def _who(frame: pd.DataFrame, i: int) -> str:
    name = frame["reviewer"].iat[i] if "reviewer" in frame else None
    return (
        f"{shown(str(name))} ({frame['source'].iat[i]})" if not is_empty(name) and name else str(frame["source"].iat[i])
    )


def searched_cells(frames: list[geopandas.GeoDataFrame], notes: list[str]) -> geopandas.GeoDataFrame | None:
    """Return the cells of all files, each once, with checked counts; what cannot be used is noted."""
    if not frames:
        return None
    cells = pd.concat([frame.assign(_file=number) for number, frame in enumerate(frames)], ignore_index=True)
    cells = _with_areas(with_lost_columns(cells, CELL_KEY))
    complete = [str(value).strip().casefold() in ("true", "1", "1.0", "yes") for value in cells["complete"]]
    misses = whole_numbers(cells["misses"])
    typed = pd.Series([not is_empty(value) and str(value).strip() != "" for value in cells["misses"]], dtype=bool)
    wrong = (misses < 0) | (typed & misses.isna())
    if wrong.any():
        notes.append(f"layer {SAMPLE_LAYER}: {counted(int(wrong.sum()), 'count')} of misses no whole number; left out")
    cells = cells.assign(misses=misses.mask(wrong), complete=np.array(complete, np.bool_) & ~wrong.to_numpy())
    if len(frames) > 1:
        cells = _agreed(_numbered(cells), [name for name in CELL_KEY if name in cells or name == "cell"], notes)
    cells = cells.drop(columns="_file")
    bare = int((cells["complete"] & cells["misses"].isna()).sum())
    if bare:
        notes.append(
            f"layer {SAMPLE_LAYER}: {counted(bare, 'cell')} complete without a count of misses, which is taken for 0"
        )
    return cells.assign(misses=cells["misses"].fillna(0).where(cells["complete"], cells["misses"]))


def _with_areas(cells: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Return cells with areas in numbers above 0, NaN where none is told."""
    for name in (name for name in ("area_m2", "stands_for_m2") if name in cells):
        told = pd.to_numeric(cells[name], errors="coerce").astype(np.float64)
        cells = cells.assign(**{name: told.where((told > 0) & (told < np.inf))})
    return cells


def _numbered(cells: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Return cells each of which has a number: one of its own outline where no file tells it."""
    told = whole_numbers(cells["cell"]) if "cell" in cells else pd.Series(np.nan, cells.index)
    above = told.max() if told.notna().any() else 0
    outlines = pd.Series(pd.factorize(cells.geometry.to_wkb())[0] + 1 + above, cells.index)
    return cells.assign(cell=told.fillna(outlines).astype(np.int64))


def _agreed(cells: geopandas.GeoDataFrame, by: list[str], notes: list[str]) -> geopandas.GeoDataFrame:
    """Keep each cell once; where several searched it and counted differently, it is no longer complete."""
    kept = []
    for rows in cells.groupby(by, dropna=False, sort=False).indices.values():
        done = [i for i in rows if cells["complete"].iat[i]]
        counts = {0 if np.isnan(count := cells["misses"].iat[i]) else count for i in done}
        kept.append(done[0] if done else rows[0])
        if len(counts) > 1:
            notes.append(
                f"layer {SAMPLE_LAYER}: cell {cells['cell'].iat[rows[0]]} has differing counts and is left out"
            )
            cells.iloc[kept[-1], cells.columns.get_loc("complete")] = False
    return cells.iloc[kept].reset_index(drop=True)


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NaT or value is pd.NA
