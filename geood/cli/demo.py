"""Demo: the whole tool on a made-up landscape: make scenes, train, predict, evaluate, draw.

Only the scenes and the small config are special to the demo: each step is the same call that the command of that name
makes. It runs offline in minutes on two CPU cores.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from geood.atomic import output_errors
from geood.config import load_config
from geood.datasets import make_world
from geood.errors import OutputError, counted
from geood.evaluation import draw_overview, evaluate_scenes, write_metrics
from geood.models import ModelBundle
from geood.polygons import check_nothing_typed
from geood.prediction import predict
from geood.reporting import draw_curves, report
from geood.training import example_negatives, train

log = logging.getLogger("geood")
SEED = 7

CONFIG = """\
# The demo's config: small enough for minutes on two CPU cores. geood's configs/aerial.yaml explains every key.
data:
  root: world
  images: [train_*.tif]
  labels: [labels/train_*.tif]
  test_images: [test.tif]
  test_labels: [labels/test.tif]
  classes: {0: land, 1: road, 2: building, 3: tree, 4: water}
  anomaly: [9]
  crop_px: 128
  crops: 600
  block_m: 64.0
  validation_crops: 32
segmenter:
  encoder: resnet10t
  decoder_channels: 64
flow:
  steps: 2
  layers: 2
  growth: 24
negatives:
  source: {phase: 1, flow: 1}  # so that both are seen; the flow alone is the paper's, phase the default
  patch_max_px: 56
train:
  seed: 7
  batch: 8
  segmenter_steps: 300
  segmenter_lr: 2.0e-3
  flow_steps: 400
  head_steps: 300
  joint_flow_lr: 1.0e-4
  validate_every: 100
score:
  kind: combined
predict:
  tile_px: 512
  min_area_m2: 2.0
"""


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo: the path of the bundle, each file with its description, and the table of figures as text."""

    bundle_path: Path
    files: list[tuple[Path, str]]
    table: str


def run_demo(out: Path, *, overwrite: bool = False) -> DemoResult:
    """Run the demo into the folder `out`.

    Raises:
        OutputError: `out` exists and may not be replaced, holds verdicts, or cannot be written.
    """
    if out.exists() and not (overwrite and (out / "demo.yaml").is_file()):
        hint = "add --overwrite or give another --out" if (out / "demo.yaml").is_file() else "give another --out"
        raise OutputError(f"{out}: exists already; {hint}")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out}: its parent folder does not exist; make it or give another --out")
    try:
        check_nothing_typed(out / "anomalies.gpkg", discard=False)
    except OutputError:
        raise OutputError(f"{out}: its map holds typed verdicts, or cannot be read now; give another --out") from None
    config_path = out / "demo.yaml"
    with output_errors(out):
        _clear(out)
        config_path.write_text(CONFIG, encoding="utf-8")
    log.info("making aerial scenes of a made-up landscape")
    world = make_world(out / "world", seed=SEED)
    config = load_config(config_path)
    bundle_path = train(config, out / "run")
    # what was there is cleared; only a prediction that was stopped may be left, of another model
    [result] = predict([world.test_image], out / "anomalies.gpkg", bundle_path=bundle_path, overwrite=True)
    bundle = ModelBundle.load(bundle_path)
    evaluation = evaluate_scenes(config_path, bundle)
    write_metrics(evaluation, out / "metrics.json", overwrite=False)
    negatives = example_negatives(config, bundle.segmenter, bundle.flow, count=9, side=56)
    draw_overview(
        out / "overview.png",
        scene=Path(result.scene),
        scores=result.scores,
        classes=result.classes,
        labels=world.test_labels,
        class_names=bundle.class_names,
        anomaly=list(config.data.anomaly),
        negatives=None if negatives is None else negatives.numpy(),
        threshold=result.threshold,
        metrics=evaluation.headline(),
    )
    draw_curves(out / "run")
    report([out / "run", out / "anomalies.gpkg", out / "metrics.json"], out / "report.html")
    files = [
        (out / "report.html", "all of it on one page, to be opened in a browser: verdict, map, polygons, curves"),
        (out / "overview.png", "scene, classes, score map, truth and synthetic negatives, in one picture"),
        (
            out / "anomalies.gpkg",
            f"{counted(result.anomalies or 0, 'polygon')} above {result.threshold:.3f}, with their attributes",
        ),
        (out / "anomalies.tif", "score of every pixel (cloud-optimized GeoTIFF)"),
        (out / "anomalies.classes.tif", "predicted class of every pixel"),
        (out / "metrics.json", "the figures above, and more"),
        (out / "run", "the training run: config, split, metrics, model.safetensors"),
        (out / "world", "the made-up scenes and their labels"),
        (out / "demo.yaml", "the config of the training run"),
    ]
    return DemoResult(bundle_path, files, evaluation.table())


def _clear(out: Path) -> None:
    """Make the folder, or delete what an earlier demo left in it and nothing else."""
    out.mkdir(exist_ok=True)
    for folder in ("run", "world"):
        shutil.rmtree(out / folder, ignore_errors=True)
    for pattern in ("report.html", "overview.png", "metrics.json", "anomalies.*"):
        for path in out.glob(pattern):
            path.unlink()
