"""Commands of the command line: each parses its options, calls one function, and prints what was written.

Nothing heavy is imported before a command runs. Expected errors are one message on stderr and an exit code (0 done, 1 a
bug in geood, 2 usage or config, 3 input data, 4 not all was mapped, 130 interrupted); `--debug`, anywhere on the line,
adds the traceback. Parameters of a method belong in a config section, not here.
"""

from __future__ import annotations

from functools import partial
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from geood._version import DISTRIBUTION, __version__
from geood.cli.beginning import check, doctor, init
from geood.cli.data import data_app
from geood.cli.export import export
from geood.cli.info import info
from geood.cli.measuring import measure_images, measure_scenes, pair_measurement, set_measurement
from geood.cli.options import (
    Aoi,
    BandsOption,
    Bbox,
    DiscardVerdicts,
    MaxRam,
    Model,
    Mosaic,
    NoData,
    NoResample,
    Overview,
    Overwrite,
    Settings,
    TlsFile,
    UnreadableOption,
    Uses,
    Workers,
)
from geood.cli.panels import Verbs
from geood.cli.printing import print_cut, print_next, print_predictions
from geood.cli.project import project
from geood.cli.report import print_training, report
from geood.cli.reviewing import audit, feedback
from geood.cli.threshold_options import (
    Connectivity,
    FalsePerKm2,
    Fpr,
    JsonFile,
    MinArea,
    OnDriftOption,
    Simplify,
    Threshold,
    Top,
    check_json_file,
    write_verdicts,
)
from geood.errors import ConfigError, ScenesSkippedError, TilesFailedError, counted, printable

app = typer.Typer(
    name="geood",
    cls=Verbs,
    help="Find what a model was never taught, in aerial and satellite scenes and in road-driving images.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
for verb in (init, check, doctor, audit, feedback, report, project):
    app.command()(verb)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"geood {__version__} (distribution {DISTRIBUTION})")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Define the options before the command; `--debug` is removed by `main`, wherever it is on the line."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the made-up scenes and all results.")] = Path("demo"),
    overwrite: Overwrite = False,
) -> None:
    """Run the whole tool in minutes: make aerial scenes, train, predict, evaluate, draw. Needs no data, no network."""
    from geood.cli.demo import run_demo

    result = run_demo(out, overwrite=overwrite)
    print(result.table)
    print(f"\nFiles in {out}:")
    for path, meaning in result.files:
        print(f"  {path!s:<34} {meaning}")
    print("\nOpen the GeoPackage and the rasters in QGIS: each carries its style. Then try your own scene:")
    print(f"  geood predict YOUR_SCENE.tif --out anomalies.gpkg --model {result.bundle_path}")
    print("or train on your own classes: a first config writes itself from images and labels, and trains")
    print("  geood init --images SCENES --labels FILE")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; `geood init` writes one.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/NAME-OF-CONFIG.")] = None,
    begin: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN", help="Go on with this run's model: third stage alone, on other data."),
    ] = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
) -> None:
    """Train a model on labelled scenes, to one file: OUT/model.safetensors."""
    from geood.config import load_config

    tuned = [] if begin is None else [f"train.tune_from={dumps(str(begin.absolute()))}"]
    checked = load_config(config, [*(settings or ()), *tuned])
    from geood.training import train as run

    bundle_path = run(checked, out or Path("runs") / config.stem, resume=resume)
    print_training(bundle_path)


@app.command()
def predict(
    scenes: Annotated[
        list[str], typer.Argument(metavar="SCENE...", help="Rasters to search: files, folders, https://, s3://, zip.")
    ],
    out: Annotated[
        Path, typer.Option(help="x.gpkg (.geojson, .parquet, .fgb): polygons and scores; x.tif: scores; or a folder.")
    ],
    model: Model = None,
    threshold: Threshold = None,
    fpr: Fpr = None,
    false_per_km2: FalsePerKm2 = None,
    top: Top = None,
    on_drift: OnDriftOption = "warn",
    json_file: JsonFile = None,
    bands: BandsOption = None,
    nodata: NoData = None,
    no_resample: NoResample = False,
    aoi: Aoi = None,
    bbox: Bbox = None,
    mosaic: Mosaic = False,
    workers: Workers = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address of a running Dask scheduler, which is trusted like code."),
    ] = None,
    tls_ca_file: TlsFile = None,
    tls_cert: TlsFile = None,
    tls_key: TlsFile = None,
    max_ram: MaxRam = None,
    settings: Uses = None,
    overview: Overview = False,
    unreadable: UnreadableOption = "error",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Overwrite = False,
    discard_verdicts: DiscardVerdicts = False,
) -> None:
    """Map the anomalies of scenes: a score raster, and polygons that open styled in QGIS."""
    from geood.prediction import SceneOptions, TlsFiles
    from geood.prediction import predict as run

    tls = None
    if tls_ca_file and tls_cert:
        tls = TlsFiles(tls_ca_file, tls_cert, tls_key)
    elif tls_ca_file or tls_cert or tls_key:
        raise ConfigError("--tls-ca-file and --tls-cert belong together, and --tls-key to them; give them all")
    bundle_path = _bundle_path(model)
    if json_file:
        inputs: list[str | Path] = [*scenes, bundle_path, *([aoi] if aoi else [])]
        check_json_file(json_file, inputs=inputs, overwrite=overwrite)
    chosen: dict[str, Any] = {"threshold": threshold, "fpr": fpr, "false_per_km2": false_per_km2, "top": top}
    chosen |= {"on_drift": on_drift, "unreadable": unreadable}
    try:
        made = run(
            scenes,
            out,
            bundle_path=bundle_path,
            **chosen,
            options=SceneOptions(bands, nodata, not no_resample, aoi, bbox),
            mosaic=mosaic,
            workers=workers,
            scheduler=scheduler,
            tls=tls,
            max_ram=max_ram,
            settings=settings or (),
            overview=overview,
            resume=resume,
            overwrite=overwrite,
            discard_verdicts=discard_verdicts,
        )
    except (ScenesSkippedError, TilesFailedError) as error:
        _tell(error.made, json_file, overwrite=overwrite)
        raise
    _tell(made, json_file, overwrite=overwrite)


def _tell(made: Any, json_file: Path | None, *, overwrite: bool) -> None:
    print_predictions(made)
    print_next(made)
    if json_file:
        write_verdicts(json_file, made, overwrite=overwrite)


@app.command()
def plan(
    scene: Annotated[str, typer.Argument(metavar="SCENE", help="The raster to be searched.")],
    model: Model = None,
    out: Annotated[
        Path, typer.Option(help="As for predict: its free space, and the tiles of an unfinished run.")
    ] = Path(),
    bands: BandsOption = None,
    nodata: NoData = None,
    no_resample: NoResample = False,
    aoi: Aoi = None,
    bbox: Bbox = None,
    workers: Workers = 0,
    max_ram: MaxRam = None,
    settings: Uses = None,
) -> None:
    """Show what `predict` would do with a scene, and what it would take: tiles, memory, disk, time."""
    from geood.prediction import SceneOptions, plan_run

    options = SceneOptions(bands, nodata, not no_resample, aoi, bbox)
    for label, text in plan_run(
        scene,
        bundle_path=_bundle_path(model),
        options=options,
        workers=workers,
        max_ram=max_ram,
        settings=settings or (),
        out=out,
    ):
        print(f"{label:<11}{printable(text)}")


@app.command()
def polygonize(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="A score raster that `geood predict` wrote.")],
    out: Annotated[Path, typer.Option(help="x.gpkg, x.geojson, x.parquet or x.fgb.")],
    threshold: Threshold = None,
    fpr: Fpr = None,
    false_per_km2: FalsePerKm2 = None,
    top: Top = None,
    min_area: MinArea = None,
    simplify: Simplify = None,
    connectivity: Connectivity = None,
    model: Model = None,
    overwrite: Overwrite = False,
    discard_verdicts: DiscardVerdicts = False,
) -> None:
    """Extract polygons again from a score raster, without the model."""
    from geood.prediction import polygonize as run

    chosen: dict[str, Any] = {"threshold": threshold, "fpr": fpr, "false_per_km2": false_per_km2, "top": top}
    shape: dict[str, Any] = {"min_area_m2": min_area, "simplify_m": simplify, "connectivity": connectivity}
    replace: dict[str, Any] = {"overwrite": overwrite, "discard_verdicts": discard_verdicts}
    bundle_path = None if model is None else _bundle_path(model)
    count = run(scores, out, **chosen, **shape, bundle_path=bundle_path, **replace)
    print_cut(out, count)


@app.command()
def evaluate(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="scenes, pairs, or a name from `geood data list`.")
    ],
    root: Annotated[
        Path,
        typer.Argument(
            metavar="ROOT",
            help="The folder of the data set; for pairs one of images and masks; for scenes a config with "
            "data.test_images, or X.tif with X_labels.tif.",
        ),
    ],
    model: Model = None,
    scores: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Measure score files of any other tool instead of a model.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set; default: its last.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="pooled, fishyscapes, smiyc, caos or densehybrid; default: the data set's own; pairs: pooled."
        ),
    ] = None,
    images: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="pairs: the images below ROOT, a folder or a pattern.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="pairs: their masks; default: labels or labels_masks; 1 is an anomaly."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for figures, tables and pictures; scenes: or a JSON file, x.json.")
    ] = None,
    bands: BandsOption = None,
    nodata: NoData = None,
    no_resample: NoResample = False,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure a model by every score that it supports, or score files, by a benchmark's own protocol."""
    from geood.geo.scene_reading import ReadingOptions

    options = ReadingOptions(bands, nodata, not no_resample)
    newest = partial(_bundle_path, model)
    common: dict[str, Any] = {"settings": settings or (), "options": options, "overwrite": overwrite}
    if benchmark != "pairs" and (images or labels):
        raise ConfigError("--images and --labels are for pairs; scenes and data sets have their own layout")
    if benchmark == "scenes" and (scores or split or protocol):
        raise ConfigError(
            "--scores, --split and --protocol are for pairs and the names from `geood data list`; scenes have none"
        )
    if benchmark == "pairs" and split:
        raise ConfigError("--split is for the names from `geood data list`; of pairs all are measured")
    if scores and model:
        raise ConfigError("give --model or --scores, one of the two")
    if benchmark == "scenes":
        measure_scenes(root, newest, out, **common)
        return
    if benchmark == "pairs":
        run = pair_measurement(root, images=images, labels=labels, protocol=protocol)
    else:
        run = set_measurement(benchmark, root, split=split, protocol=protocol)
    inputs = [root, *([scores] if scores else [])]
    measure_images(run, newest, out, inputs=inputs, scores=scores, **common)


@app.command()
def submit(
    benchmark: Annotated[
        str,
        typer.Argument(metavar="BENCHMARK", help="smiyc-anomaly, smiyc-obstacle, smiyc-lost-and-found or fishyscapes."),
    ],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The data set's folder; fishyscapes: any images.")],
    out: Annotated[Path, typer.Option(help="Output folder; the official tool's DIR_OUTPUTS.")],
    model: Model = None,
    method: Annotated[str, typer.Option(help="Name of the method in the official tool.")] = "geood",
    bands: BandsOption = None,
    nodata: NoData = None,
    no_resample: NoResample = False,
    settings: Uses = None,
    overwrite: Overwrite = False,
) -> None:
    """Write submission files for a benchmark's server."""
    from geood.evaluation import submit as run
    from geood.geo.scene_reading import ReadingOptions
    from geood.models import ModelBundle

    bundle, options = ModelBundle.load(_bundle_path(model), flow=False), ReadingOptions(bands, nodata, not no_resample)
    count = run(
        benchmark, root, bundle, out, method=method, settings=settings or (), options=options, overwrite=overwrite
    )
    print(f"scores     of {counted(count, 'image')} in {out}")


app.command()(export)
app.command()(info)


def _bundle_path(given: Path | None) -> Path:
    """Return the given bundle path (or that in a run folder), else that of the newest run here, which is printed."""
    from geood.models import bundle_path_of

    if given is not None:
        return bundle_path_of(given)
    paths = sorted(Path("runs").glob("*/model.safetensors"), key=lambda p: p.stat().st_mtime)
    if not paths:
        raise ConfigError("no model: give --model BUNDLE, or train one here first (`geood train CONFIG`)")
    print(f"model      {paths[-1]} (the newest below runs/)")
    return paths[-1]
