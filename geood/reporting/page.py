"""The page of a report: all that was read and drawn, put into one file of HTML that needs nothing else.

Every text from a file is escaped by the template engine, and a policy in the page's head lets no script run but the one
whose digest it names, and nothing be loaded: so a class name, a comment or a file name can show itself and no more.
Pictures share the bytes that a page may have. What is not there is said to be absent.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from geood._version import __version__
from geood.atomic import atomic_write, check_output, output_errors
from geood.config import title_of
from geood.errors import ConfigError, DataError, OutputError, printable
from geood.reporting.charts import Chart, curves_of, false_polygons, found_by_false, precision_recall
from geood.reporting.evaluations import Measured, is_evaluation, read_evaluation
from geood.reporting.gallery import Card
from geood.reporting.maps import MOST, SceneMap, is_map, read_maps
from geood.reporting.pictures import of_file, scale_uri
from geood.reporting.runs import Run, config_differences, read_run, thresholds_of
from geood.reporting.scenes import SceneView, shown_scenes
from geood.reporting.splits import SplitView, read_split
from geood.reporting.tables import class_table, confusion_table, negative_table, run_facts, verdict_bars

log = logging.getLogger("geood")
PAGE_BYTES = 15_000_000  # of a page with 500 polygons, at most
PICTURE_BYTES = 500_000  # of a picture of a run folder
PACKAGES = ("torch", "rasterio", "geopandas", "matplotlib", "jinja2")


@dataclass(frozen=True)
class Sources:
    """Sources of a page: at most one run, and any number of maps and evaluations; `unused` are images of no map."""

    run: Run | None
    maps: list[SceneMap]
    measured: list[Measured]
    unused: list[Path] = field(default_factory=list)


def report(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    scenes: Sequence[str | Path] = (),
    most: int = MOST,
    overwrite: bool = False,
) -> Path:
    """Write one self-contained page of HTML on runs, maps and evaluations.

    Args:
        sources: a run folder of `train`; polygons, scores or a folder of `predict`; figures of `evaluate`. Any of them,
            in any order, but one run at most.
        out: the page, ending in .html.
        scenes: images that were searched, or folders of them; those not given are looked for by name beside the maps,
            here, and where the run has its data.
        most: polygons that are shown of each map, the first by rank.
        overwrite: replace a page that exists.

    Returns:
        The path of the page.

    Raises:
        ConfigError: there is nothing to report on, or two runs; a scene that was given is not there.
        DataError: a source is none of these, or is damaged.
        OutputError: `out` exists, has another suffix, or cannot be written.

    Example:
        >>> import geood
        >>> geood.report(["scores.tif"], "report.html").name
        'report.html'
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{out}: a report is a page of HTML; end its name in .html")
    check_output(out, overwrite=overwrite)
    paths = [Path(source) for source in sources]
    read = read_sources(paths, scenes=[Path(scene) for scene in scenes], most=most)
    html = render(read, title=_title(paths))
    with output_errors(out), atomic_write(out, overwrite=overwrite) as partial:
        partial.write_text(html, encoding="utf-8")
    for note in _notes(read):
        log.info("%s", printable(note))
    return out


def _title(paths: Sequence[Path]) -> str:
    return printable(", ".join(dict.fromkeys(path.name or str(path) for path in paths)))


def read_sources(paths: Sequence[Path], *, scenes: Sequence[Path] = (), most: int = MOST) -> Sources:
    """Read what the sources hold, each by what it is.

    Raises:
        ConfigError: there is none, or two runs.
        DataError: one is nothing that is known.
    """
    if not paths:
        raise ConfigError("nothing to report on; give a run folder, polygons, or the figures of an evaluation")
    runs, maps, measured = list[Path](), list[Path](), list[Path]()
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give a run, polygons, or the figures of an evaluation")
        if path.name == "model.safetensors":
            runs.append(path.parent)
        elif (path / "config.yaml").is_file():
            runs.append(path)
        elif is_evaluation(path):
            measured.append(path)
        elif is_map(path):
            maps.append(path)
        else:
            raise DataError(
                f"{path}: neither a run of `geood train`, nor a map of `geood predict`, nor figures of `geood evaluate`"
            )
    if len(runs) > 1:
        raise ConfigError(f"two runs, {runs[0]} and {runs[1]}; a report tells of one, give the other a page of its own")
    run = read_run(runs[0]) if runs else None
    config, alone = run.config if run else None, len(maps) == 1
    read = [each for path in maps for each in read_maps(path, scenes=scenes, config=config, most=most, alone=alone)]
    told = {image.resolve() for each in read for image in (each.scene, each.other_scene) if image}
    unused = [path for path in scenes if path.is_file() and path.resolve() not in told]
    return Sources(run, read, [read_evaluation(path) for path in measured], unused)


def render(sources: Sources, *, title: str) -> str:
    """Return the page as text.

    Raises:
        DataError: a raster or a picture cannot be read.
    """
    from geood.calibration import in_digits

    environment = Environment(
        loader=PackageLoader("geood", "reporting/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.get_template("report.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    shown, cards = shown_scenes(sources.maps)
    return environment.get_template("report.html").render(
        title=title,
        today=date.today().isoformat(),
        version=__version__,
        in_digits=in_digits,
        script=Markup(script),
        digest=digest,
        style=Markup(environment.get_template("report.css").render()),
        **_map_parts(sources, shown, cards),
        **_run_parts(sources.run),
        measured=[_measured_parts(each, i) for i, each in enumerate(sources.measured)],
        notes=_notes(sources),
        versions=_versions(sources.run),
    )


def _map_parts(sources: Sources, shown: list[SceneView], cards: list[Card]) -> dict[str, Any]:
    return {
        "scenes": shown,
        "cards": cards,
        "classes_of_cards": sorted({card.title for card in cards}),
        "verdicts": [(each, verdict_bars(each.verdict)) for each in sources.maps if each.verdict is not None],
        "unjudged": [each.label for each in sources.maps if each.verdict is None],
        "promises": _promises(sources),
        "scale": scale_uri(),
        "has_map": bool(sources.maps),
    }


def _promises(sources: Sources) -> list[Chart]:
    """Return the plot of false polygons for each table that differs: of the maps, else of the run's own record."""
    made: dict[Any, Chart] = {}
    for each in sources.maps:
        if each.table is not None and each.table not in made:
            seen = each.per_km2
            if chart := false_polygons(
                each.table, len(made), least_m2=each.least_m2 or 0.0, threshold=each.threshold, seen=seen
            ):
                made[each.table] = _safe(chart)
    run = sources.run
    if not made and run is not None and run.header is not None and run.header.record is not None:
        from geood.calibration import PolygonTable, least_area

        table, default = PolygonTable.of(run.header.record), [t for t in thresholds_of(run.header) if t.default]
        least = least_area(run.config.predict.min_area_m2, run.header.resolution)
        if chart := false_polygons(
            table, 0, least_m2=least, threshold=default[0].value if default else None, seen=None
        ):
            made[table] = _safe(chart)
    return list(made.values())


def _run_parts(run: Run | None) -> dict[str, Any]:
    """Return what the templates need of a run; None and empty lists without one."""
    if run is None:
        empty: dict[str, Any] = {name: [] for name in ("curves", "thresholds", "differences", "pictures", "facts")}
        return empty | {"run": None, "class_rows": [], "confusion": None, "negatives": [], "split": None, "score": ""}
    split: SplitView | None = read_split(run.folder)
    if split is not None and split.chart is not None:
        split = split._replace(chart=_safe(split.chart))
    return {
        "run": run,
        "facts": run_facts(run),
        "curves": [_safe(chart) for chart in curves_of(run)],
        "class_rows": class_table(run.iou),
        "confusion": None if run.confusion is None else confusion_table(run.classes, run.confusion),
        "negatives": negative_table(run),
        "pictures": [(stage, *of_file(path, PICTURE_BYTES)) for stage, path in run.pictures.items()],
        "split": split,
        "thresholds": [] if run.header is None else thresholds_of(run.header),
        "score": "" if run.header is None else title_of(run.header.config.score.kind),
        "differences": config_differences(run.config),
    }


def _measured_parts(measured: Measured, number: int) -> dict[str, Any]:
    charts = (precision_recall(measured, number), found_by_false(measured, number))
    names = list(measured.iou)
    return {
        "figures": measured,
        "charts": [_safe(chart) for chart in charts if chart is not None],
        "class_rows": class_table(measured.iou),
        "confusion": None if measured.confusion is None else confusion_table(names, measured.confusion),
    }


def _safe(chart: Chart) -> Chart:
    """Mark the SVG of a plot as markup: matplotlib has escaped its texts."""
    return chart._replace(svg=Markup(chart.svg))


def _notes(sources: Sources) -> list[str]:
    """Return what a reader has to know before believing the page."""
    notes = [note for each in sources.maps for note in each.notes]
    own = sources.run.identity if sources.run else ""
    models = [each.model for each in sources.maps] + [each.model for each in sources.measured]
    others = sorted(set(models) - {own, ""}) if own else []
    if others:
        notes.append(f"Maps or figures here are of another model ({', '.join(others)}) than that of the run ({own}).")
    if sources.unused:
        listed = ", ".join(str(path) for path in sources.unused)
        notes.append(f"No map here tells that it is of {listed}, so it is not shown; give it with its own map alone.")
    if sources.run is not None and sources.run.header is None:
        notes.append("The run is not finished: it has no model yet.")
    return list(dict.fromkeys(notes))


def _versions(run: Run | None) -> list[tuple[str, list[tuple[str, str]]]]:
    here = [("geood", __version__), ("Python", platform.python_version())]
    here += [(name, version(name)) for name in PACKAGES]
    made = [("This page", here)]
    if run is not None and run.versions:
        made.insert(0, ("The training", list(run.versions.items())))
    if run is not None and run.header is not None:
        header = run.header
        bundle = [("written by geood", header.geood), ("format", str(header.written)), ("identity", run.identity)]
        made.insert(0, ("The model", bundle))
    return made
