"""The outputs of a prediction: what they are called, whether they may be written, and how they get their names."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from geood.errors import ConfigError, DataError, OutputError
from geood.gdal import open_raster, pieces, rasterio_window, reading, spoken
from geood.grid import Grid, Window
from geood.location import gdal_name, stem
from geood.raster import check_output
from geood.vector import OUTPUT_SUFFIXES

SCENES = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".webp")  # what is taken from a folder


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

    scene: str
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
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in SCENES and p.is_file())
    if not found:
        raise DataError(f"{folder}: no scene in this folder; needed: files ending in {', '.join(SCENES)}")
    return [str(path) for path in found]


def label(scene: str) -> str:
    """What a scene is called in outputs: its file name, without what follows a "?" in an address."""
    return Path(spoken(gdal_name(scene))).name


def check_outputs(finals: list[Path], sources: list[str], out: Path, *, overwrite: bool) -> None:
    """See that all outputs can be written, and that none is a scene or another output."""
    if len(set(finals)) < len(finals):
        raise ConfigError("two of the scenes would have outputs of the same name; predict them one by one")
    read = {str(Path(gdal_name(source)).resolve()) for source in sources}
    for path in finals:
        if str(path.resolve()) in read:
            raise OutputError(f"{path}: this output would replace the scene itself; choose another name for --out")
        check_output(out if path.parent == out and not out.exists() else path, overwrite=overwrite)


def targets_of(scenes: list[str], out: Path, *, folder: bool) -> tuple[list[Target], Path | None]:
    """Names of all outputs, and the polygon file that several scenes share (None if they do not)."""
    if not scenes:
        raise ConfigError("no scene to predict; give at least one raster")
    stems = [stem(s) for s in scenes]
    if len(set(stems)) < len(stems):
        raise ConfigError("two scenes have the same name, so their outputs would too; predict them one by one")
    if out.is_dir() or (out.suffix == "" and (folder or len(scenes) > 1)):
        return [_beside(s, out / f"{stem(s)}.gpkg") for s in scenes], None
    if out.suffix == ".tif" and len(scenes) == 1:
        return [Target(scenes[0], out, None, None)], None
    if out.suffix not in OUTPUT_SUFFIXES:
        kinds = ", ".join(OUTPUT_SUFFIXES)
        raise ConfigError(
            f"{out}: cannot tell what to write; end the name in {kinds}, .tif (one scene), or name a folder"
        )
    if len(scenes) == 1:
        return [_beside(scenes[0], out)], None
    shared = [_beside(s, out.with_name(f"{out.stem}_{stem(s)}.gpkg")) for s in scenes]
    return [t._replace(polygons=None) for t in shared], out


def _beside(scene: str, polygons: Path) -> Target:
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
                "scene": label(one.scene),
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


def publish(staging: Path, finals: list[Path]) -> None:
    """Give every finished file its name, and what lists failed tiles beside them."""
    listed = [finals[0].parent / path.name for path in staging.glob("*.failed_tiles.*")]
    try:
        for final in finals + listed:
            os.replace(staging / final.name, final)
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be put in place ({error.strerror}); see to its folder") from None
