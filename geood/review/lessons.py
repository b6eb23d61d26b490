"""From verdicts to the next training: false alarms become labelled ground, real things a set to measure it on.

A false alarm is ground that holds no anomaly. Where its `true_class` names a class of the model, it is labelled so;
otherwise nobody stated what it is, and the class that the model took it for would be a guess, so only the banks and,
where it is trained again, the outlier head learn from it (id 254). With a bank of the encoder's features the head is
kept. A cell that was searched to its end without a miss is such ground as a whole, but
for what in it is real or not decided. Real things are unlabelled in training, never negatives, and go with the false
alarms into a labelled set of their own. Nothing that was reviewed is written to, and the same verdicts give the same
files.
"""

from __future__ import annotations

import difflib
import filecmp
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import geopandas
import pandas as pd
import pyogrio
import shapely
import yaml

from geood.atomic import atomic_files, check_output, output_errors
from geood.config import Config, load_config
from geood.constants import IGNORE, UNSTATED
from geood.datasets import find_files, settle_classes
from geood.errors import ConfigError, DataError, OutputError, counted, shown
from geood.geo.ogr import fixed_time, local_file, plain_path
from geood.geo.paths import seen_from
from geood.review.copies import whole_numbers
from geood.review.ground import beside_scenes, empty_cells, has_area
from geood.review.reading import ReviewNames, misspelt_lines, read_review
from geood.review.scenes import scenes_of

LAYER, ATTRIBUTE = "labels", "class_id"


class _Files(NamedTuple):
    """Files of a feedback: the next config, its labels, and config and labels of the hold-out set."""

    config: Path
    labels: Path
    holdout: Path
    holdout_labels: Path


@dataclass(frozen=True)
class Feedback:
    """Result of a feedback: the files that were written and what is in them."""

    config: Path
    labels: Path
    holdout: Path | None
    counts: Mapping[str, int]
    notes: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield what was done, for people."""
        done = self.counts
        yield (
            f"learned    {counted(done['false'], 'false alarm')} ({done['stated']} with a class), "
            f"{counted(done['cells'], 'cell')} without a "
            f"miss: {self.labels}"
        )
        if self.holdout is None:
            yield "hold-out   none, as no polygon is real"
        else:
            measured = f"geood evaluate scenes {quote(str(self.holdout))}"
            yield f"hold-out   {done['real']} real, {done['false']} false: {measured}"
        for note in self.notes:
            yield f"note       {note}"


def feedback(
    paths: Sequence[str | Path],
    config_path: str | Path,
    out: str | Path,
    *,
    scenes: Sequence[str | Path] = (),
    names: ReviewNames = ReviewNames(),  # noqa: B008  # frozen
    overwrite: bool = False,
) -> Feedback:
    """Write the config of the next training and what it reads, from the verdicts in reviewed files.

    `next.yaml` builds on the config and adds reviewed ground: `next.reviewed.gpkg`, with that of earlier rounds.
    `next.holdout.yaml` and `next.holdout.gpkg` are a labelled set for `geood evaluate scenes`: real things are
    anomalies, false alarms are not. It tells whether the lesson was learned, not how well it holds elsewhere.

    Args:
        paths: reviewed copies of one polygon file.
        config_path: the config that the model was trained with.
        out: the next config, `next.yaml`; files that exist with other content are replaced with `overwrite` alone.
        scenes: the scenes that the polygons are of, or folders in which they are looked for by their names; those not
            given are looked for beside the polygons, in the current folder, and among the images of the config.
        names: names of layer and columns.
        overwrite: replace files of another feedback.

    Raises:
        ConfigError: the config is for photographs or data sets, or a scene is not found or not of these polygons.
        DataError: a file cannot be read, a verdict is misspelt, an outline is not valid, or there is nothing to learn.
        OutputError: a file exists with other content, or cannot be written.
    """
    config_path, out = Path(config_path), Path(out)
    config = settle_classes(load_config(config_path))
    files = _named(out, config_path, overwrite=overwrite)
    if config.data.kind != "scenes":
        raise ConfigError(f"{config_path}: trains on photographs, which have no place for reviewed polygons")
    review = read_review(paths, names)
    if review.misspelt:
        where, listed = ", ".join(map(str, paths)), "; ".join(misspelt_lines(review.misspelt))
        raise DataError(f"{where}: verdicts that are none of real, false, unsure, skip: {listed}; correct them first")
    notes = [*review.notes, *(f"conflict {conflict}: left out" for conflict in review.conflicts)]
    ids = {name.casefold(): i for i, name in config.data.classes.items()}
    frame = _with_ids(review.polygons, ids, notes, Path(paths[0]))
    cells = empty_cells(review, notes)
    if cells is not None:
        frame, cells = _of_one_crs(frame, cells, Path(paths[0]))
    labels = _labels(frame, cells, review.undecided)
    counts = {
        "false": int((frame["verdict"] == "false").sum()),
        "stated": int(((frame["verdict"] == "false") & (frame[ATTRIBUTE] != UNSTATED)).sum()),
        "real": int((frame["verdict"] == "real").sum()),
        "cells": 0 if cells is None else len(cells),
    }
    if not counts["false"] and not counts["cells"] and not counts["real"]:
        raise DataError(f"{paths[0]}: no polygon has a verdict yet, and no cell is complete; type some and save")
    found = scenes_of(review, cells, paths=[*map(Path, paths)], given=[*map(Path, scenes)], config=config)
    judged = frame[frame["verdict"].isin(["real", "false"])]
    notes += beside_scenes(judged, found, what="judged polygon")
    if cells is not None:
        notes += beside_scenes(cells, found, what="searched cell", needed=judged.empty)
    if config.segmenter.outlier != "head" and counts["false"] > counts["stated"]:
        notes.append(
            "the model has no outlier head: false alarms without a class of the model in true_class teach nothing"
        )
    anomaly = (
        next(iter(config.data.anomaly)) if config.data.anomaly else min({*range(UNSTATED)} - {*config.data.classes})
    )
    with (
        output_errors(out),
        atomic_files(
            out.parent, out.name, overwrite=True, finals={path.name: path for path in (files.config, *files[1:])}
        ) as staging,
    ):
        _write_labels(staging / files.labels.name, _joined(config, labels, notes))
        _write_yaml(staging / files.config.name, config_path, out, _next_keys(config, found, files.labels))
        if counts["real"]:
            _write_labels(staging / files.holdout_labels.name, _holdout(frame, config, ids, anomaly))
            _write_yaml(staging / files.holdout.name, out, out, _holdout_keys(config, found, files, anomaly))
        _refuse_others(staging, files, overwrite=overwrite)
    return Feedback(out, files.labels, files.holdout if counts["real"] else None, counts, tuple(notes))


def _named(out: Path, config_path: Path, *, overwrite: bool) -> _Files:
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{out}: the next config is a YAML file; end the name in .yaml")
    if out.exists() and out.samefile(config_path):
        raise OutputError(f"{out}: is the config of the training before; give the next one another name")
    names = (out.name, f"{out.stem}.reviewed.gpkg", f"{out.stem}.holdout{out.suffix}", f"{out.stem}.holdout.gpkg")
    files = _Files(*(out.with_name(name) for name in names))
    for path in files:
        check_output(path, overwrite=overwrite or path.exists())  # compared below with what is to be written
    return files


def _with_ids(
    frame: geopandas.GeoDataFrame, ids: Mapping[str, int], notes: list[str], path: Path
) -> geopandas.GeoDataFrame:
    """Add the class id of each false alarm; refuse outlines that are not valid, leave out what contradicts itself.

    What is no area goes too: points and lines that a program made beside areas.

    Raises:
        DataError: an outline is not valid, or there is no CRS.
    """
    if frame.crs is None and len(frame):
        raise DataError(f"{path}: its polygons have no CRS, and the scenes have; save it with the CRS of the map")
    named = [_class_id(value, ids) for value in frame.get("true_class", pd.Series([None] * len(frame)))]
    false, real = (frame["verdict"] == kind for kind in ("false", "real"))
    known = pd.Series(named) != UNSTATED
    notes += _unknown_classes(frame, ids)
    odd = real & known
    if odd.any():
        what = counted(int(odd.sum()), "polygon")
        notes.append(f"{what} judged real, and yet of a class that the model was taught; left out")
    frame = frame.assign(**{ATTRIBUTE: named})
    frame.loc[odd, "verdict"] = "skip"
    judged = frame[false | real]
    bare = ~has_area(judged.geometry)
    if bare.any():
        notes.append(f"{counted(int(bare.sum()), 'judged polygon')} without an outline; left out")
        frame = frame[~frame.index.isin(judged.index[bare])]
        judged = judged[~bare]
    wrong = judged[~judged.geometry.is_valid]
    if len(wrong):
        raise DataError(
            f"{wrong['source'].iloc[0]}: {counted(len(wrong), 'judged polygon')} whose outline is not valid, fid "
            f"{wrong['fid'].iloc[0]} first ({shapely.is_valid_reason(wrong.geometry.iloc[0])}); repair it, in QGIS "
            "with Fix geometries"
        )
    return frame.reset_index(drop=True)


def _unknown_classes(frame: geopandas.GeoDataFrame, ids: Mapping[str, int]) -> list[str]:
    """Return a note on classes that the model does not know: any of false alarms, those of real things if misspelt."""
    counts: Counter[str] = Counter()
    for value, verdict in zip(frame.get("true_class", ()), frame["verdict"], strict=False):
        word = "" if pd.isna(value) else str(value).strip().casefold()
        told = verdict == "false" or (verdict == "real" and bool(difflib.get_close_matches(word, ids)))
        counts.update([word] if word and word not in ids and told else [])
    if not counts:
        return []
    known = ", ".join(shown(name) for name in ids)
    listed = ", ".join(misspelt_lines(counts, ids))
    return [f"true_class {listed}: no class of the model, so none is stated; it knows {known}"]


def _class_id(value: Any, ids: Mapping[str, int]) -> int:
    return ids.get(value.strip().casefold(), UNSTATED) if isinstance(value, str) else UNSTATED


def _of_one_crs(
    frame: geopandas.GeoDataFrame, cells: geopandas.GeoDataFrame, path: Path
) -> tuple[geopandas.GeoDataFrame, geopandas.GeoDataFrame]:
    """Return polygons and cells in the CRS of the polygons, or that of the cells where there are no polygons.

    Raises:
        DataError: neither has one.
    """
    crs = frame.crs or cells.crs
    if crs is None:
        raise DataError(f"{path}: its cells have no CRS, and the scenes have; save it with the CRS of the map")
    return frame.set_crs(crs), cells.to_crs(crs) if cells.crs else cells.set_crs(crs)


def _labels(
    frame: geopandas.GeoDataFrame, cells: geopandas.GeoDataFrame | None, undecided: Sequence[Any]
) -> geopandas.GeoDataFrame:
    """Return the labelled ground in the order of drawing: cells, false alarms, and on top what is left out."""
    parts = []
    if cells is not None:
        parts.append(_rows(cells.geometry, UNSTATED, "cell"))
    false = frame[frame["verdict"] == "false"]
    parts.append(_rows(false.geometry, false[ATTRIBUTE].to_numpy(), "false"))
    others = frame[frame["verdict"] != "false"]
    real = others["verdict"] == "real"
    left_out = [*others[real].geometry]
    if cells is not None:  # nobody decided on the rest, which is no empty ground
        searched = cells.geometry.union_all()
        left_out += [shape for shape in (*others[~real].geometry, *undecided) if shapely.intersects(shape, searched)]
    parts.append(_rows(left_out, IGNORE, "left out"))
    return pd.concat(parts, ignore_index=True).set_crs(frame.crs, allow_override=True)


def _rows(shapes: Any, class_id: Any, origin: str) -> geopandas.GeoDataFrame:
    values = {ATTRIBUTE: class_id, "origin": origin}
    made = geopandas.GeoDataFrame(values, index=range(len(shapes)), geometry=list(shapes))
    parts = made.astype({ATTRIBUTE: "int64"}).explode(ignore_index=True)
    return parts[has_area(parts.geometry)].reset_index(drop=True)


def _joined(config: Config, labels: geopandas.GeoDataFrame, notes: list[str]) -> geopandas.GeoDataFrame:
    """Return the labelled ground of earlier rounds with the new one on top; what has no class there is left out.

    Raises:
        DataError: that ground cannot be read, or is none that a feedback wrote.
    """
    if config.data.reviewed_labels is None:
        return labels
    [path] = find_files(config.data.root, [config.data.reviewed_labels], what="data.reviewed_labels")
    with local_file(path) as plain:
        before = pyogrio.read_dataframe(plain)
    if ATTRIBUTE not in before:
        raise DataError(f"{path}: no column {ATTRIBUTE}, which reviewed ground of earlier rounds has; restore the file")
    ids = whole_numbers(before[ATTRIBUTE])
    known = ids.between(0, 255)
    if not known.all():
        notes.append(f"{path.name}: {counted(int((~known).sum()), 'shape')} without a class id of 0 to 255; left out")
    before = before.assign(**{ATTRIBUTE: ids})[known].astype({ATTRIBUTE: "int64"})
    before = before.to_crs(labels.crs) if before.crs is not None and labels.crs is not None else before
    before = before[[name for name in (ATTRIBUTE, "origin", "geometry") if name in before]]
    return pd.concat([before, labels], ignore_index=True).set_crs(labels.crs, allow_override=True)


def _holdout(
    frame: geopandas.GeoDataFrame, config: Config, ids: Mapping[str, int], anomaly: int
) -> geopandas.GeoDataFrame:
    """Return real things as anomalies, and false alarms with a class: that stated, taken for, or any."""
    parts = []
    for verdict in ("false", "real"):
        rows = frame[frame["verdict"] == verdict]
        if verdict == "real":
            chosen = [anomaly] * len(rows)
        else:
            guessed = rows.get("class_name", pd.Series([None] * len(rows), index=rows.index))
            some = min(config.data.classes)
            chosen = [
                stated if stated != UNSTATED else _class_id(name, ids) if _class_id(name, ids) != UNSTATED else some
                for stated, name in zip(rows[ATTRIBUTE], guessed, strict=True)
            ]
        parts.append(_rows(rows.geometry, chosen, verdict))
    return pd.concat(parts, ignore_index=True).set_crs(frame.crs, allow_override=True)


def _next_keys(config: Config, scenes: Sequence[Path], labels: Path) -> dict[str, Any]:
    root, data = config.data.root, config.data
    earlier = find_files(root, data.reviewed_images, what="data.reviewed_images") if data.reviewed_images else []
    images = dict.fromkeys([*(str(path.absolute()) for path in earlier), *map(str, scenes)])
    keys: dict[str, Any] = {
        "data": {"reviewed_images": list(images), "reviewed_labels": str(labels.absolute())},
        "loss": {"inliers_by_crop": True},
    }
    train: dict[str, Any] = {"stages_from": None} if config.train.stages_from else {}
    if config.segmenter.outlier == "head" and config.train.third_stage == "head" and config.score.encoder_bank:
        train["head_steps"] = 0  # a head that learns again ranks worse; the bank learns alone
    return keys | ({"train": train} if train else {})


def _holdout_keys(config: Config, scenes: Sequence[Path], files: _Files, anomaly: int) -> dict[str, Any]:
    labels = str(files.holdout_labels.absolute())
    images = [str(path) for path in scenes]
    data: dict[str, Any] = {"test_images": images, "test_labels": [labels], "label_attribute": ATTRIBUTE}
    data |= {"label_layer": None, "label_ids": {}, "background": None}
    return {"data": data | ({} if config.data.anomaly else {"anomaly": [anomaly]})}


def _write_yaml(path: Path, base: Path, out: Path, keys: Mapping[str, Any]) -> None:
    said = "# Written by `geood feedback`: change it as you like; it is not written over without --overwrite.\n"
    tree = {"base": seen_from(base, out.parent), **keys}
    path.write_text(said + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000), encoding="utf-8")


def _write_labels(path: Path, frame: geopandas.GeoDataFrame) -> None:
    with plain_path(path) as plain, fixed_time():
        frame.to_file(plain, layer=LAYER, driver="GPKG", engine="pyogrio")


def _refuse_others(staging: Path, files: _Files, *, overwrite: bool) -> None:
    """Refuse to replace files of other content, which a person may have changed, and a hold-out set by none."""
    for final in files:
        made = staging / final.name
        if final.exists() and not overwrite and not (made.exists() and filecmp.cmp(made, final, shallow=False)):
            raise OutputError(
                f"{final}: exists with other content, from other verdicts or changed by hand; give another --out, or "
                "add --overwrite to replace it"
            )
