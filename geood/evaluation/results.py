"""Results of an evaluation, and their writing: tables beside published figures, JSON, a CSV file of the images.

The columns are those of the benchmarks' own tables. Figures are shares in [0, 1] in the results and in JSON, per cent
in tables. How they are measured is in `scenes` and `measurement`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from geood.atomic import atomic_folder, atomic_write, check_output, output_errors
from geood.calibration import in_digits
from geood.catalog import DataSet, Split
from geood.config import title_of
from geood.errors import OutputError, counted
from geood.evaluation.leaderboards import PUBLISHED, Published
from geood.notebook import html_text

FOLDERS = ("scores", "classes", "pictures")  # of what is kept of each image
OUTPUTS = {"metrics.json", "images.csv", *FOLDERS}  # all that an evaluation's output folder may hold
SCENE_OUTPUTS = {"results.json", "scenes.csv", "objects.csv", "pictures"}  # of one on scenes
EQUAL_RECALL = "recall 0.5"  # at which the table compares scores
COMPONENT_COLUMNS = {"sIoU": "mean_siou", "PPV": "mean_ppv", "F1": "mean_f1"}


@dataclass(frozen=True)
class SetEvaluation:
    """Figures of one bundle, or of score files, on one split of a data set; shares in [0, 1], NaN if undefined.

    `rows` has a dict for each kind of score; `components`, `open_set` and `miou` belong to the bundle's default score
    `own` and its classes (empty, NaN: the benchmark has no such figure). `images` has a dict for each image.
    """

    data_set: DataSet
    split: Split
    source: str
    own: str
    rows: list[dict[str, Any]]
    pixels: int
    anomaly_pixels: int
    components: dict[str, float] = field(default_factory=dict)
    open_set: dict[str, float] = field(default_factory=dict)
    distances: list[dict[str, float]] = field(default_factory=list)
    miou: float = math.nan
    class_iou: dict[str, float] = field(default_factory=dict)
    images: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left_out: tuple[str, ...] = ()
    leaked: tuple[str, ...] = ()
    unknown: dict[str, int] = field(default_factory=dict)

    @property
    def base_rate(self) -> float:
        """Share of anomaly pixels, which is the average precision of random scores."""
        return self.anomaly_pixels / self.pixels if self.pixels else math.nan

    def figures(self) -> dict[str, Any]:
        """Return all figures as JSON values; undefined ones are None."""
        values: dict[str, Any] = without_nan(
            {
                "data_set": self.data_set.name,
                "split": self.split.name,
                "protocol": self.data_set.protocol,
                "source": self.source,
                "score": self.own,
                "rows": self.rows,
                "pixels": self.pixels,
                "anomaly_pixels": self.anomaly_pixels,
                "base_rate": self.base_rate,
                "components": self.components,
                "open_set": self.open_set,
                "distances": self.distances,
                "miou": self.miou,
                "class_iou": self.class_iou,
                "images": self.images,
                "skipped": self.skipped,
                "left_out": list(self.left_out),
                "taught": list(self.leaked),
                "expected_images": self.split.count,
                "unknown": self.unknown,
            }
        )
        return values

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return html_text(f"{self.data_set.name}, {self.split.name}", self.table())

    def table(self) -> str:
        """Return the figures as a text table in per cent, with published ones of the same benchmark below."""
        shown = self.anomaly_pixels > 0
        lines = _head(bool(self.components)) if shown else []
        for row in sorted(self.rows, key=lambda row: row["score"] != self.own) if shown else []:
            own = row["score"] == self.own
            cells = [row.get(key, math.nan) for key in ("average_precision", "fpr95", "auroc")]
            cells += [self.components[key] for key in COMPONENT_COLUMNS.values()] if own and self.components else []
            lines.append(_line(title_of(row["score"]) + (" *" if own else ""), cells))
        lines += self._below()
        published = PUBLISHED.get(self.data_set.benchmark)
        if published and shown:
            lines += ["", f"published, {published.title} (+: trained with real negatives)"]
            lines += [_published(row, bool(self.components)) for row in published.rows]
            lines.append(f"source: {published.source}")
        return "\n".join(lines)

    def _below(self) -> list[str]:
        """Return the lines below the table of scores."""
        lines = ["no anomaly pixel: AP, FPR95 and AUROC are undefined", ""]
        if self.anomaly_pixels:
            lines = ["* this score; all figures in per cent", ""]
        complete = f" of {self.split.count}" if self.split.count else ""
        lines.append(f"{'images':<28}{len(self.images):>8}{complete} of {self.data_set.name}, split {self.split.name}")
        if self.anomaly_pixels:
            lines.append(
                f"{'anomaly pixels':<28}{percent(self.base_rate)} of {self.pixels:,} (the AP of random scores)"
            )
        if not math.isnan(self.miou):
            each = ", ".join(f"{name} {100 * iou:.0f}" for name, iou in self.class_iou.items() if not math.isnan(iou))
            lines.append(f"{'closed-set mIoU':<28}{percent(self.miou)} ({each})")
        if self.open_set:
            gap = 100 * self.open_set["gap"]
            lines.append(
                f"{'open-set mIoU':<28}{percent(self.open_set['open_miou'])}, {gap:.1f} below the closed-set mIoU, at "
                "the threshold that detects 95 % of these anomalies"
            )
        if self.components:
            lines.append(
                f"{'components above':<28}{self.components['threshold']:8.4g}, the threshold of the best F1 here"
            )
        if self.distances:
            lines += ["", f"{'distance, m':<28}{'AP':>8}{'FPR95':>8}{'AUROC':>8}"]
        for row in self.distances:
            cells = [row["average_precision"], row["fpr95"], row["auroc"]]
            lines.append(_line(f"{row['from_m']:g} to {row['to_m']:g}", cells))
        if self.skipped:
            lines.append(f"void in every pixel: {counted(len(self.skipped), 'image')}")
        if self.leaked:
            lines.append(f"anomalies that the model was trained on: {', '.join(self.leaked)}")
        if self.left_out:
            lines.append(f"left out: classes that the model never learned: {', '.join(self.left_out)}")
        if self.unknown:
            listed = ", ".join(
                f"{label} ({counted(pixels, 'pixel')})" for label, pixels in list(self.unknown.items())[:5]
            )
            lines.append(f"left out: label ids or colours that the data set does not define: {listed}")
        return lines


@contextmanager
def staged(out: Path | None, *, overwrite: bool = False, inputs: Sequence[Path] = ()) -> Iterator[Path | None]:
    """Yield a hidden folder beside `out` that replaces it once it is complete; None for None.

    Raises:
        OutputError: `out` exists and may not be replaced, or holds other things than an evaluation; one of `inputs` is
            in it; or the folder cannot be made.
    """
    if out is None:
        yield None
        return
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; add --overwrite to replace it, or choose another name")
    if out.exists() and not _is_evaluation(out):
        raise OutputError(f"{out}: holds other things than an evaluation, and is left alone; choose another --out")
    target = out.resolve()
    if inputs := [path for path in inputs if path.resolve().is_relative_to(target)]:
        raise OutputError(f"{out}: holds {inputs[0]}, which is to be read; choose another --out")
    if not target.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}; make it first, or choose another place")
    with atomic_folder(target, overwrite=overwrite) as folder:
        yield folder


def _is_evaluation(folder: Path) -> bool:
    """Return whether a folder is empty, or holds an evaluation and no other files."""
    if not folder.is_dir():
        return False
    names = {p.name for p in folder.iterdir()}
    files = [p for name in FOLDERS for p in (folder / name).rglob("*") if not p.is_dir()]
    ours = "metrics.json" in names <= OUTPUTS or "results.json" in names <= SCENE_OUTPUTS
    return not names or (ours and all(p.suffix in (".npy", ".png") for p in files))


def write_figures(evaluation: SetEvaluation, out: Path) -> list[Path]:
    """Write `metrics.json` and `images.csv` into a folder; return their paths.

    Raises:
        OutputError: they cannot be written.
    """
    figures, images = out / "metrics.json", out / "images.csv"
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(figures) as partial:
            partial.write_text(json.dumps(evaluation.figures(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        with atomic_write(images) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(evaluation.images[0]) if evaluation.images else ["image"])
            writer.writeheader()
            writer.writerows(without_nan(evaluation.images))
    return [figures, images]


def _head(components: bool) -> list[str]:
    names = ["AP", "FPR95", "AUROC", *(COMPONENT_COLUMNS if components else ())]
    return [f"{'score':<28}" + "".join(f"{name:>8}" for name in names)]


def _line(name: str, cells: list[float]) -> str:
    return f"{name:<28}" + "".join(percent(cell) for cell in cells)


def _published(row: Published, components: bool) -> str:
    cells = [row.average_precision, row.fpr95, row.auroc]
    cells += [row.siou, row.ppv, row.mean_f1] if components else []
    shares = [math.nan if cell is None else cell / 100 for cell in cells]
    name = row.method + (" +" if row.negatives else "")
    return name + "\n" + _line("", shares) if len(name) > 27 else _line(name, shares)


@dataclass(frozen=True)
class Evaluation:
    """Figures of one bundle on a set of scenes; shares in [0, 1], NaN if undefined.

    `rows` has a dict for each kind of score: `score`, `temperature`, `average_precision`, `fpr95`, `auroc`.
    `at_threshold` has recall, precision and false-positive rate at the bundle's default threshold, and the rate
    promised with its interval. `scenes` has a dict for each scene with the figures of the bundle's default score, and
    what is promised of false polygons there, with its 90 % interval.
    `objects` has a dict for each score and threshold with the recall of things and the false polygons, `ranking` the
    precision of the first polygons, `things` a dict for each thing (all empty: not counted). `curve` has points
    (threshold, recall, precision) of the default score, `confusion` the pixels of each true class by predicted class.
    """

    model: str
    score: str
    rows: list[dict[str, Any]]
    at_threshold: dict[str, float]
    pixels: int
    anomaly_pixels: int
    base_rate: float
    miou: float
    class_iou: dict[str, float]
    unknown_ids: dict[int, int]
    scenes: list[dict[str, Any]]
    objects: list[dict[str, Any]] = field(default_factory=list)
    ranking: dict[str, Any] = field(default_factory=dict)
    things: list[dict[str, Any]] = field(default_factory=list)
    curve: list[list[float]] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)

    def headline(self) -> dict[str, float]:
        """Return the main figures: those of the bundle's default score, the base rate, and mIoU."""
        [own] = [row for row in self.rows if row["score"] == self.score]
        return {
            "AP": own["average_precision"],
            "FPR95": own["fpr95"],
            "AUROC": own["auroc"],
            "base rate": self.base_rate,
            "mIoU": self.miou,
        }

    def to_json(self) -> str:
        """Return all figures as JSON text; undefined ones are null."""
        return json.dumps(without_nan(asdict(self)), indent=2) + "\n"

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return html_text(f"scenes, model {self.model}", self.table())

    def table(self) -> str:
        """Return the figures as a text table, in per cent."""
        lines = [f"{'score':<24}{'AP':>8}{'FPR95':>8}{'AUROC':>8}"]
        for row in self.rows:
            name = title_of(row["score"]) + (" *" if row["score"] == self.score else "")
            figures = (row["average_precision"], row["fpr95"], row["auroc"])
            lines.append(f"{name:<24}" + "".join(percent(x) for x in figures))
        lines += [
            "* the score of this model; all figures in per cent",
            "",
            f"{'anomaly pixels':<24}{percent(self.base_rate)} of {self.pixels:,} (the AP of random scores)",
            f"{'closed-set mIoU':<24}{percent(self.miou)} "
            f"({', '.join(f'{name} {100 * iou:.0f}' for name, iou in self.class_iou.items() if not math.isnan(iou))})",
        ]
        if self.at_threshold:
            at = self.at_threshold
            lines.append(
                f"{'above ' + format(at['threshold'], '.3f'):<24}{percent(at['recall'])} of the anomaly pixels and "
                f"{100 * at['fpr']:.2f} of the others; precision {100 * at['precision']:.1f}"
            )
            if "promised" in at:
                span = f", {100 * at['low']:.2f} to {100 * at['high']:.2f} on other ground" if "high" in at else ""
                lines.append(f"{'promised':<24}{100 * at['promised']:8.2f} of the others{span}")
        if self.unknown_ids:
            ids = ", ".join(f"{i} ({counted(n, 'pixel')})" for i, n in self.unknown_ids.items())
            lines.append(f"left out: label ids that are neither a class nor an anomaly: {ids}")
        return "\n".join([*lines, *self._of_objects()])

    def _of_objects(self) -> list[str]:
        """Return the lines on things and polygons: the model's score at its thresholds, all scores at equal recall."""
        if not self.objects:
            return []
        lines = [
            "",
            f"{'score, at':<34}{'things':>8}{'found':>8}{'polygons':>10}{'false':>8}{'false/km2':>11}{'ground':>8}",
        ]
        for row in self.objects:
            own = row["score"] == self.score
            if own or row["at"] == EQUAL_RECALL:
                name = f"{title_of(row['score'])}{' *' if own else ''}, {row['at']}"
                rate = "-" if math.isnan(row["false_per_km2"]) else f"{row['false_per_km2']:.1f}"
                lines.append(
                    f"{name:<34}{row['things']:>8}{row['found']:>8}{row['polygons']:>10}{row['false_polygons']:>8}"
                    f"{rate:>11}{percent(row['false_ground'])}"
                )
        lines.append("ground: per cent of the inlier ground above the threshold; where it is large, polygons merge")
        lines += self._promise_of_polygons()
        if self.ranking.get("polygons"):
            first = ", ".join(
                f"{percent(self.ranking[name]).strip()} of the first {name.partition('_')[2]}"
                for name in self.ranking
                if name.startswith("precision_")
            )
            lines.append(f"real by rank, at the default threshold: {first}")
        return lines

    def _promise_of_polygons(self) -> list[str]:
        """Return the line on false polygons that were promised at the default threshold; none without a promise."""
        told = [row for row in self.scenes if not math.isnan(row.get("false_promised", math.nan))]
        if not told:
            return []
        line = f"promised at the default threshold: {in_digits(told[0]['false_promised'])} false/km2"
        bounded = [row for row in told if not math.isnan(row["false_high"])]
        if bounded:
            inside = sum(row["false_low"] <= row["false_per_km2"] <= row["false_high"] for row in bounded)
            line += f"; {inside} of {counted(len(bounded), 'scene')} within the 90 % interval for its size"
        return [line]


def write_metrics(evaluation: Evaluation, out: Path, *, overwrite: bool = False) -> None:
    """Write all figures of an evaluation as JSON, atomically.

    Raises:
        OutputError: the file exists and may not be replaced, or cannot be written.
    """
    check_output(out, overwrite=overwrite)
    with output_errors(out), atomic_write(out, overwrite=overwrite) as partial:
        partial.write_text(evaluation.to_json(), encoding="utf-8")


def write_scene_figures(evaluation: Evaluation, out: Path) -> None:
    """Write `results.json`, `scenes.csv` and `objects.csv` (one row for each thing) into a folder.

    Raises:
        OutputError: they cannot be written.
    """
    scenes = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in evaluation.scenes]
    with output_errors(out):
        with atomic_write(out / "results.json") as partial:
            partial.write_text(evaluation.to_json(), encoding="utf-8")
        for name, rows in (("scenes.csv", scenes), ("objects.csv", evaluation.things)):
            with atomic_write(out / name) as partial, partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else ["scene"])
                writer.writeheader()
                writer.writerows(without_nan(rows))


def percent(share: float) -> str:
    """Format a share as per cent, eight characters wide: one decimal, two below 1 %, a dash if it is NaN."""
    if math.isnan(share):
        return f"{'-':>8}"
    return f"{100 * share:8.2f}" if 0 < share < 0.01 else f"{100 * share:8.1f}"


def without_nan(value: Any) -> Any:
    """Return a copy of nested dicts and lists with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
