"""The outputs of a prediction: what they are called, whether they may be written, and how they get their names."""

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
from geood.geo.paths import RASTERS, ScenePath, files_of, gdal_name
from geood.polygons import OUTPUT_SUFFIXES, beside
from geood.prediction.workdir import PUBLISHING


@dataclass(frozen=True)
class Prediction:
    """The outputs of one scene and what is in them; `polygons` is None where only scores were asked for.

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
    """Final names of one scene's outputs; `polygons` only where the scene has some of its own."""

    scene: ScenePath
    scores: Path
    classes: Path | None
    polygons: Path | None

    @property
    def files(self) -> list[Path]:
        rasters = [p for p in (self.scores, self.classes) if p]
        return [*rasters, *(p.with_suffix(".qml") for p in rasters), *([self.polygons] if self.polygons else [])]


def sources_of(scenes: Sequence[str | Path], *, mosaic: bool) -> list[str]:
    """The scenes by their names; the tiles of a mosaic are one, named as the first of what was given.

    Raises:
        DataError: a folder holds none.
    """
    if mosaic:
        return [str(s) for s in scenes][:1]
    return [source for s in scenes for source in (_scenes_of(Path(s)) if Path(s).is_dir() else [str(s)])]


def _scenes_of(folder: Path) -> list[str]:
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in RASTERS and p.is_file())
    if not found:
        raise DataError(f"{folder}: no scene in this folder; needed: files ending in {', '.join(RASTERS)}")
    return [str(path) for path in found]


def check_outputs(
    finals: list[Path], sources: Sequence[str], out: Path, *, others: Sequence[Path], overwrite: bool
) -> None:
    """See that all outputs can be written, and that none replaces a file of a scene or one of the `others` read."""
    if len({str(path).casefold() for path in finals}) < len(finals):
        raise ConfigError("two of the scenes would have outputs of the same name; predict them one by one")
    there = [path for final in finals for path in (final, beside(final)) if path.exists()]
    read = [file for source in sources for file in _files(source)] if there else []
    for path in there:
        if any(path.samefile(file) for file in (*read, *others) if file.exists()):
            raise OutputError(
                f"{path}: this output would replace the scene itself, or what else is read; choose another --out"
            )
    for path in finals:
        check_output(out if path.parent == out and not out.exists() else path, overwrite=overwrite)
        if path.suffix in OUTPUT_SUFFIXES and beside(path).exists():
            check_output(beside(path), overwrite=overwrite)


def _files(source: str) -> list[Path]:
    """The files behind a scene, or all scenes of a folder; none where it cannot be opened, which is said later."""
    names = _scenes_of(Path(source)) if Path(source).is_dir() else [source]
    found: list[Path] = []
    for name in names:
        with suppress(DataError):
            found += files_of(gdal_name(name))
    return found


def targets_of(sources: list[str], out: Path, *, folder: bool) -> tuple[list[Target], Path | None]:
    """Names of all outputs, and the polygon file that several scenes share (None if they do not)."""
    if not sources:
        raise ConfigError("no scene to predict; give at least one raster")
    scenes = [ScenePath.of(source) for source in sources]
    if len({scene.stem for scene in scenes}) < len(scenes):
        raise ConfigError("two scenes have the same name, so their outputs would too; predict them one by one")
    if out.is_dir() or (out.suffix == "" and (folder or len(scenes) > 1)):
        return [_beside(s, out / f"{s.stem}.gpkg") for s in scenes], None
    if out.suffix == ".tif" and len(scenes) == 1:
        return [Target(scenes[0], out, None, None)], None
    if out.suffix not in OUTPUT_SUFFIXES:
        kinds = ", ".join(OUTPUT_SUFFIXES)
        raise ConfigError(
            f"{out}: cannot tell what to write; end the name in {kinds}, .tif (one scene), or name a folder"
        )
    if len(scenes) == 1:
        return [_beside(scenes[0], out)], None
    shared = [_beside(s, out.with_name(f"{out.stem}_{s.stem}.gpkg")) for s in scenes]
    return [t._replace(polygons=None) for t in shared], out


def _beside(scene: ScenePath, polygons: Path) -> Target:
    return Target(scene, polygons.with_suffix(".tif"), polygons.with_suffix(".classes.tif"), polygons)


def write_summary(out: Path, made: list[Prediction], staging: Path) -> None:
    """One row for each scene: what its scores are, and how much of it lies above the threshold."""
    rows = []
    for one in made:
        counted, total, above, highest = 0, 0.0, 0, math.nan
        with reading(one.scores), open_raster(staging / one.scores.name) as raster:
            grid = Grid(raster.height, raster.width, raster.transform, raster.crs)
            for window in pieces(grid):
                scores = raster.read(1, window=rasterio_window(window))
                scores = scores[np.isfinite(scores)]
                counted += scores.size
                total += float(scores.sum(dtype=np.float64))
                above += int((scores > one.threshold).sum())
                highest = float(np.fmax(highest, scores.max(initial=-np.inf))) if scores.size else highest
        rows.append(
            {
                "scene": ScenePath.of(one.scene).label,
                "scores": one.scores.name,
                "valid_pixels": one.valid_pixels,
                "score_mean": total / counted if counted else math.nan,
                "score_max": highest,
                "above_threshold": above / counted if counted else math.nan,
                "threshold": one.threshold,
                "anomalies": one.anomalies,
                "failed_tiles": len(one.failed_tiles),
            }
        )
    with writing(out):
        pd.DataFrame(rows).to_csv(out, index=False)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make the folder of the outputs if only that is missing; take it away again if nothing came of it."""
    made = not folder.exists()
    if made:
        folder.mkdir()
    try:
        yield
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def publish(folder: Path, finals: list[Path], made: Sequence[Prediction]) -> None:
    """Give every finished file its name, and what lists failed tiles beside them.

    What is to be done is written down first, so that it can be finished if it is cut short (`published`).

    Raises:
        OutputError: if a file cannot be put in place.
    """
    note = folder / PUBLISHING
    listed = [beside(path) for path in finals if path.suffix in OUTPUT_SUFFIXES and path.suffix != ".gpkg"]
    values = [{k: str(v) if isinstance(v, Path) else v for k, v in vars(one).items()} for one in made]
    with writing(note), atomic_write(note) as partial, partial.open("w", encoding="utf-8") as file:
        json.dump({"finals": [str(p) for p in finals + listed], "made": values}, file)
        file.flush()
        os.fsync(file.fileno())
    _put_in_place(folder, finals + listed)


def published(folder: Path) -> list[Prediction]:
    """Finish what an earlier `publish` was cut short in (it left `PUBLISHING` there), and return its predictions.

    Raises:
        OutputError: if a file cannot be put in place.
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
    """Rename what is in the folder; where nothing is listed any more, an older list goes."""
    for final in finals:
        try:
            if (folder / final.name).exists():
                os.replace(folder / final.name, final)
            elif ".failed_tiles." in final.name:
                final.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{final}: cannot be put in place ({error.strerror}); close what uses it, then --resume"
            ) from None
    (folder / PUBLISHING).unlink()
