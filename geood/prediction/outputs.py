"""Outputs of a prediction: their names, checks before any work, and publication.

Names follow from the scenes and `--out` alone, so everything that could forbid writing is found before any work:
outputs that exist, two of one name, or one that would replace an input. Finished files are renamed only once all are
complete; a note of the pending renames lets an interrupted publication be finished. How scores and polygons are made is
not known here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from geood.atomic import atomic_write, check_output
from geood.errors import ConfigError, DataError, OutputError
from geood.geo.gdal import open_raster, pieces, rasterio_window, reading, writing
from geood.geo.grid import Grid, Window
from geood.geo.listing import files_in
from geood.geo.paths import RASTERS, ScenePath, files_of, gdal_name
from geood.polygons import OUTPUT_SUFFIXES, companion_of
from geood.prediction.workdir import PUBLISHING


@dataclass(frozen=True)
class Prediction:
    """The outputs of one scene and their figures; `polygons` is None if only scores are written.

    `failed_tiles` are the windows (row, column, height, width in pixels) that could not be scored.
    """

    scene: str
    scores: Path
    polygons: Path | None
    classes: Path | None
    threshold: float
    valid_pixels: int
    anomalies: int | None
    failed_tiles: tuple[Window, ...] = ()


class Target(NamedTuple):
    """Final paths of one scene's outputs; `polygons` is None if the scene has no polygon file of its own."""

    scene: ScenePath
    scores: Path
    classes: Path | None
    polygons: Path | None

    @property
    def files(self) -> list[Path]:
        rasters = [p for p in (self.scores, self.classes) if p]
        return [*rasters, *(p.with_suffix(".qml") for p in rasters), *([self.polygons] if self.polygons else [])]


def sources_of(scenes: Sequence[str | Path], *, mosaic: bool) -> list[str]:
    """Return the names of all scenes, folders expanded; a mosaic is one scene, named after the first argument.

    Raises:
        DataError: a folder holds no scene.
    """
    if mosaic:
        return [str(s) for s in scenes][:1]
    return [source for s in scenes for source in (_scenes_of(Path(s)) if Path(s).is_dir() else [str(s)])]


def _scenes_of(folder: Path) -> list[str]:
    paths = files_in(folder, RASTERS)
    if not paths:
        raise DataError(f"{folder}: no scene in this folder; needed: files ending in {', '.join(RASTERS)}")
    return [str(path) for path in paths]


def check_outputs(
    finals: list[Path], sources: Sequence[str], out: Path, *, others: Sequence[Path], overwrite: bool
) -> None:
    """Check that all outputs can be written, and that none replaces a file of a scene or one of the `others` read.

    Raises:
        ConfigError: two outputs would have the same name.
        OutputError: an output exists, would replace an input, or cannot be written.
    """
    if len({str(path).casefold() for path in finals}) < len(finals):
        raise ConfigError("two of the scenes would have outputs of the same name; predict them one by one")
    existing = [path for final in finals for path in (final, companion_of(final)) if path and path.exists()]
    inputs = [file for source in sources for file in _files(source)] if existing else []
    for path in existing:
        if any(path.samefile(file) for file in (*inputs, *others) if file.exists()):
            raise OutputError(
                f"{path}: this output would replace the scene itself or another input; choose another --out"
            )
    for path in finals:
        check_output(out if path.parent == out and not out.exists() else path, overwrite=overwrite)
        companion = companion_of(path)
        if companion and companion.exists():
            check_output(companion, overwrite=overwrite)


def _files(source: str) -> list[Path]:
    """Return the files of a scene, or of all scenes in a folder; none if it cannot be opened (reported later)."""
    names = _scenes_of(Path(source)) if Path(source).is_dir() else [source]
    files: list[Path] = []
    for name in names:
        with suppress(DataError):
            files += files_of(gdal_name(name))
    return files


def targets_of(sources: list[str], out: Path, *, folder: bool) -> tuple[list[Target], Path | None]:
    """Return the outputs of each scene, and the polygon file that several scenes share (None if they do not).

    Raises:
        ConfigError: there is no scene, two have the same name, or the suffix of `out` is unknown.
    """
    if not sources:
        raise ConfigError("no scene to predict; give at least one raster")
    scenes = [ScenePath(source) for source in sources]
    if len({scene.stem for scene in scenes}) < len(scenes):
        raise ConfigError("two scenes have the same name, so their outputs would too; predict them one by one")
    if out.is_dir() or (out.suffix == "" and (folder or len(scenes) > 1)):
        return [_target(s, out / f"{s.stem}.gpkg") for s in scenes], None
    if out.suffix == ".tif" and len(scenes) == 1:
        return [Target(scenes[0], out, None, None)], None
    if out.suffix not in OUTPUT_SUFFIXES:
        kinds = ", ".join(OUTPUT_SUFFIXES)
        raise ConfigError(
            f"{out}: cannot tell what to write; end the name in {kinds}, .tif (one scene), or name a folder"
        )
    if len(scenes) == 1:
        return [_target(scenes[0], out)], None
    shared = [_target(s, out.with_name(f"{out.stem}_{s.stem}.gpkg")) for s in scenes]
    return [t._replace(polygons=None) for t in shared], out


def _target(scene: ScenePath, polygons: Path) -> Target:
    return Target(scene, polygons.with_suffix(".tif"), polygons.with_suffix(".classes.tif"), polygons)


def write_summary(out: Path, made: list[Prediction], staging: Path) -> None:
    """Write a CSV with one row per scene: figures of its scores, and the share of pixels above the threshold."""
    rows = []
    for prediction in made:
        counted, total, above, highest = 0, 0.0, 0, math.nan
        with reading(prediction.scores), open_raster(staging / prediction.scores.name) as raster:
            grid = Grid(raster.height, raster.width, raster.transform, raster.crs)
            for window in pieces(grid):
                scores = raster.read(1, window=rasterio_window(window))
                scores = scores[np.isfinite(scores)]
                counted += scores.size
                total += float(scores.sum(dtype=np.float64))
                above += int((scores > prediction.threshold).sum())
                highest = float(np.fmax(highest, scores.max(initial=-np.inf))) if scores.size else highest
        rows.append(
            {
                "scene": ScenePath(prediction.scene).label,
                "scores": prediction.scores.name,
                "valid_pixels": prediction.valid_pixels,
                "score_mean": total / counted if counted else math.nan,
                "score_max": highest,
                "above_threshold": above / counted if counted else math.nan,
                "threshold": prediction.threshold,
                "anomalies": prediction.anomalies,
                "failed_tiles": len(prediction.failed_tiles),
            }
        )
    with writing(out):
        pd.DataFrame(rows).to_csv(out, index=False)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make the output folder if only that is missing; remove it afterwards if it is still empty."""
    made = not folder.exists()
    if made:
        folder.mkdir()
    try:
        yield
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def publish(folder: Path, finals: list[Path], made: Sequence[Prediction]) -> None:
    """Rename every finished file to its final path, and with it the lists of failed tiles.

    The pending renames are written to a note first, so that they can be finished after an interruption (`published`).

    Raises:
        OutputError: a file cannot be put in place.
    """
    note = folder / PUBLISHING
    listed = [companion for path in finals if (companion := companion_of(path))]
    values = [{k: str(v) if isinstance(v, Path) else v for k, v in vars(prediction).items()} for prediction in made]
    with writing(note), atomic_write(note, alone=True) as partial, partial.open("w", encoding="utf-8") as file:
        json.dump({"finals": [str(p) for p in finals + listed], "made": values}, file)
        file.flush()
        os.fsync(file.fileno())
    _put_in_place(folder, finals + listed)


def published(folder: Path) -> list[Prediction]:
    """Finish an interrupted `publish`, which left `PUBLISHING` in the folder, and return its predictions.

    Raises:
        OutputError: a file cannot be put in place.
    """
    stored = json.loads((folder / PUBLISHING).read_text(encoding="utf-8"))
    _put_in_place(folder, [Path(p) for p in stored["finals"]])
    made = []
    for values in stored["made"]:
        paths = {k: None if values[k] is None else Path(values[k]) for k in ("scores", "polygons", "classes")}
        failed = tuple(Window(*window) for window in values["failed_tiles"])
        made.append(Prediction(**(values | paths | {"failed_tiles": failed})))
    return made


def _put_in_place(folder: Path, finals: list[Path]) -> None:
    """Rename the files in the folder; delete an older list of failed tiles if there is no new one."""
    for final in finals:
        try:
            if (folder / final.name).exists():
                os.replace(folder / final.name, final)
            elif ".failed_tiles." in final.name:
                final.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{final}: cannot be put in place ({error.strerror}); close the program that uses it, then --resume"
            ) from None
    (folder / PUBLISHING).unlink()
