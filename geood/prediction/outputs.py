"""Outputs of a prediction: their names, checks before any work, and the summary of several scenes.

Names follow from the scenes and `--out` alone, so everything that could forbid writing is found before any work:
outputs that exist, two of one name, one that would replace an input, or one that would be left beside another map. How
finished files get their names is in `publication`; how scores and polygons are made is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geood.atomic import check_name, check_output, output_errors
from geood.calibration import Verdict
from geood.errors import ConfigError, DataError, OutputError
from geood.geo.gdal import open_raster, pieces, rasterio_window, reading, writing
from geood.geo.grid import Grid, Window
from geood.geo.listing import files_in
from geood.geo.paths import RASTERS, ScenePath, files_of, gdal_name
from geood.geo.qgis.styles import ABOVE, style_beside
from geood.notebook import html_table
from geood.polygons import (
    OUTPUT_SUFFIXES,
    check_nothing_typed,
    check_stem,
    companions_of,
    raster_of_scene,
    scores_beside,
    style_of,
)
from geood.prediction.workdir import work_folder

SUMMARY = "summary.csv"


@dataclass(frozen=True)
class Prediction:
    """The outputs of one scene and their figures; `polygons` is None if only scores are written, `overview` if unasked.

    `verdict` says whether the promise of the threshold holds. `failed_tiles` are the windows (row, column, height,
    width in pixels) that could not be scored; `reason` says why the first could not.
    """

    scene: str
    scores: Path
    polygons: Path | None
    classes: Path | None
    threshold: float
    valid_pixels: int
    anomalies: int | None
    failed_tiles: tuple[Window, ...] = ()
    reason: str = ""
    verdict: Verdict | None = None
    overview: Path | None = None

    def _repr_html_(self) -> str:
        told = {
            "scores": self.scores,
            "classes": self.classes,
            "polygons": self.polygons,
            "anomalies": self.anomalies,
            "threshold": self.threshold,
            "valid pixels": f"{self.valid_pixels:,}",
            "failed tiles": len(self.failed_tiles),
        }
        said = {} if self.verdict is None else {"verdict": " ".join(self.verdict.lines())}
        return html_table(self.scene, told | said)


class LeftOut(NamedTuple):
    """Scene that was left out, as it cannot be read, and why not."""

    scene: str
    why: str


class Target(NamedTuple):
    """Final paths of one scene's outputs; `polygons` is None if the scene has no polygon file of its own."""

    scene: ScenePath
    scores: Path
    classes: Path | None
    polygons: Path | None
    overview: Path | None = None

    @property
    def files(self) -> list[Path]:
        rasters = [p for p in (self.scores, self.classes) if p]
        styles = [*map(style_beside, rasters), self.scores.with_suffix(ABOVE)]
        pictures = [self.overview] if self.overview else []
        return [*rasters, *styles, *_with_style(self.polygons), *pictures]


class RunOutputs(NamedTuple):
    """Final paths of a run: those of each scene, the polygon file that scenes share, and their table.

    All of them lie in `folder`; `work_folder` is the one in which they are made. `asked` is the number of scenes that
    were asked for, with those that were left out since.
    """

    targets: tuple[Target, ...]
    together: Path | None
    summary: Path | None
    work_folder: Path
    asked: int

    @property
    def finals(self) -> list[Path]:
        """Paths of all files."""
        own = [path for target in self.targets for path in target.files]
        return [*own, *_with_style(self.together), *([self.summary] if self.summary else [])]

    @property
    def folder(self) -> Path:
        """Folder of all files."""
        return self.targets[0].scores.parent


def _with_style(polygons: Path | None) -> list[Path]:
    return [path for path in (polygons, style_of(polygons)) if path] if polygons else []


def outputs_of(scenes: Sequence[str | Path], out: Path, *, mosaic: bool, overview: bool = False) -> RunOutputs:
    """Name the outputs of a run: several scenes get a table too, as each folder of outputs of a folder does.

    Each scene gets a picture if that is asked for.

    Raises:
        ConfigError: there is no scene, two would write one file, or the suffix of `out` is unknown.
        DataError: a folder holds no scene.
    """
    targets, together = targets_of(sources_of(scenes, mosaic=mosaic), out)
    if overview:
        targets = [t._replace(overview=(t.polygons or t.scores).with_suffix(".overview.png")) for t in targets]
    inside = targets[0].scores.parent == out
    tabled = len(targets) > 1 or (inside and not mosaic and any(Path(s).is_dir() for s in scenes))
    summary = (out / SUMMARY if inside else out.with_name(f"{out.stem}.{SUMMARY}")) if tabled else None
    parent = targets[0].scores.parent
    _check_apart(targets)
    folder = work_folder(parent, out.name if inside else out.stem)
    return RunOutputs(tuple(targets), together, summary, folder, len(targets))


def _check_apart(targets: Sequence[Target]) -> None:
    """Check that no two scenes would write one file, also where a disk takes capitals for small letters.

    Raises:
        ConfigError: two would.
    """
    owners: dict[str, str] = {}
    for target in targets:
        for path in target.files:
            name = str(path).casefold()
            if name in owners:
                raise ConfigError(
                    f"{owners[name]} and {target.scene.public}: outputs of these two scenes would have the same name, "
                    f"{path.name}; predict each with an --out of its own"
                )
            owners[name] = target.scene.public


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
    finals: list[Path],
    sources: Sequence[str],
    out: Path,
    *,
    others: Sequence[Path],
    overwrite: bool,
    discard_verdicts: bool = False,
) -> None:
    """Check that all outputs can be written, and that none replaces a file of a scene or one of the `others` read.

    Raises:
        OutputError: an output exists, would replace an input or a person's verdicts, or cannot be written.
    """
    every = [path for final in finals for path in (final, *companions_of(final))]
    for path in every:
        check_name(path)
    existing = [path for path in every if path.exists()]
    inputs = [file for source in sources for file in _files(source)] if existing else []
    for path in existing:
        if any(path.samefile(file) for file in (*inputs, *others) if file.exists()):
            raise OutputError(
                f"{path}: this output would replace the scene itself or another input; choose another --out"
            )
    for path in every:
        check_output(out if path.parent == out and not out.exists() else path, overwrite=overwrite)
    for path in finals:
        check_nothing_typed(path, discard=discard_verdicts)
        check_stem(path)
    check_families(finals)


def _files(source: str) -> list[Path]:
    """Return the files of a scene, or of all scenes in a folder; none if it cannot be opened (reported later)."""
    names = _scenes_of(Path(source)) if Path(source).is_dir() else [source]
    files: list[Path] = []
    for name in names:
        with suppress(DataError):
            files += files_of(gdal_name(name))
    return files


def targets_of(sources: list[str], out: Path) -> tuple[list[Target], Path | None]:
    """Return the outputs of each scene, and the polygon file that several scenes share (None if they do not).

    A name without a suffix is a folder.

    Raises:
        ConfigError: there is no scene, or the suffix of `out` is unknown.
    """
    if not sources:
        raise ConfigError("no scene to predict; give at least one raster")
    scenes = [ScenePath(source) for source in sources]
    if out.is_dir() or out.suffix == "":
        return [_target(s, out / f"{s.stem}.gpkg") for s in scenes], None
    if out.suffix == ".tif" and len(scenes) == 1:
        return [Target(scenes[0], out, None, None)], None
    if out.suffix not in OUTPUT_SUFFIXES:
        kinds = ", ".join(OUTPUT_SUFFIXES)
        raise ConfigError(
            f"{out}: cannot tell what to write; end the name in {kinds} or .tif (one scene), or make a folder of that "
            "name first"
        )
    if len(scenes) == 1:
        return [_target(scenes[0], out)], None
    shared = [Target(s, raster := raster_of_scene(out, s.label), _classes_of(raster), None) for s in scenes]
    return shared, out


def _target(scene: ScenePath, polygons: Path) -> Target:
    scores = scores_beside(polygons)
    return Target(scene, scores, _classes_of(scores), polygons)


def _classes_of(scores: Path) -> Path:
    return scores.with_suffix(".classes.tif")


def write_summary(out: Path, made: list[Prediction], staging: Path, skipped: Sequence[LeftOut] = ()) -> None:
    """Write a CSV with one row per scene: figures of its scores, and the share of pixels above the threshold.

    Scenes that were left out come last, and have nothing but a reason, in a column `skipped`.
    """
    rows: list[dict[str, object]] = []
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
                **_judged(prediction.verdict),
            }
        )
    rows += [{"scene": Path(scene).name, "skipped": why} for scene, why in skipped]
    import pandas as pd  # here, as its import takes as long as a tile

    with writing(out):
        pd.DataFrame(rows, dtype=object).to_csv(out, index=False)  # counts stay whole beside scenes without any


def _judged(verdict: Verdict | None) -> dict[str, object]:
    """Return the columns of a verdict that a summary has besides its own."""
    if verdict is None:
        return {}
    fields = verdict.fields()
    return {"budget": fields.pop("answer")} | {
        name: value for name, value in fields.items() if name not in ("threshold", "valid_px", "above")
    }


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make the output folder if only that is missing; remove it afterwards if it is still empty."""
    made = not folder.is_dir()
    if made:
        with output_errors(folder):
            folder.mkdir()
    try:
        yield
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def check_families(finals: Sequence[Path]) -> None:
    """Check that no polygons of geood lose their raster or their style, which lie in files of the same stem.

    Raises:
        OutputError: a raster or a style would be replaced beside polygons of another file.
    """
    for raster in finals:
        if raster.suffix != ".tif":
            continue
        stem = raster.with_suffix("") if raster.stem.endswith(".scores") else raster
        for suffix in OUTPUT_SUFFIXES:
            polygons = stem.with_suffix(suffix)
            lost = raster.exists() or style_of(polygons) == style_beside(raster)
            if lost and polygons not in finals and polygons.exists() and _is_anomalies(polygons):
                raise OutputError(
                    f"{raster}: belongs to the polygons in {polygons.name}, which would be left without it; delete or "
                    "move these first, or choose another --out"
                )


def _is_anomalies(path: Path) -> bool:
    """Return whether a file holds polygons that geood wrote; what reads them is loaded for those that exist alone."""
    from geood.polygons import is_anomalies

    return is_anomalies(path)
