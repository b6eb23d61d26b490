"""What feeding a training costs: the share of a step that waits for crops, and a step against a bare loop.

    python benchmarks/training.py --data FOLDER [--sets dubai camvid ...] [--stages segmenter flow head joint]
        [--steps 40] [--rounds 5] [--encoder resnet10t] [--crop-px 128] [--set KEY=VALUE ...] [--work FOLDER]

FOLDER holds data sets as published (see `quality.py`): dubai and mumbai (scenes with rasters of class ids), oam (scenes
and rasters of buildings), camvid (photographs). `dubai-polygons` and `oam-polygons` have the same labels as polygons in
a GeoPackage, cut from the rasters.

For each set and stage, in turn: so many steps as `geood train` does them (crops read and augmented, Lightning, one
validation's end left out), and as many in a bare loop over one batch that is ready in memory: the same network, loss,
optimizer and clipping. Rounds of the two follow each other, and medians of the rounds are told, ratios pair by pair.
`wait` is the share of the training's time that no step was under way in; `CPU` is user and system time of the process
and its loading workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import geopandas as gpd
import pandas as pd
import rasterio
import rasterio.features
import torch
from predict import AERIAL
from shapely.geometry import shape
from torch.utils.data import default_collate

from geood.config.loading import load_config
from geood.datasets.crops import Crops
from geood.datasets.sources import open_crops
from geood.models.flows.flow import Flow
from geood.models.segmenter import Segmenter
from geood.training import trainer
from geood.training.callbacks import CheckpointCallback
from geood.training.plans import Plan
from geood.training.stage import Stage, first_crops

SETS: dict[str, list[str]] = {
    "dubai": [
        "data.root={data}/dubai",
        "data.images=['tile?.tif']",
        "data.labels=['tile?_labels.tif']",
        "data.classes={{0: land, 1: road, 2: building, 3: vegetation, 4: water}}",
    ],
    "dubai-polygons": [
        "data.root={data}/dubai",
        "data.images=['tile?.tif']",
        "data.labels=['{work}/dubai.gpkg']",
        "data.label_attribute=class_id",
        "data.classes={{0: land, 1: road, 2: building, 3: vegetation, 4: water}}",
    ],
    "mumbai": [
        "data.root={data}/mumbai/train",
        "data.images=['jp22_*[0-9].tif']",
        "data.labels=['*_labels.tif']",
        "data.classes={{0: slum, 1: built, 2: impervious, 3: vegetation, 4: barren, 5: water}}",
        "data.block_m=100",
    ],
    "oam-polygons": [
        "data.root={data}/oam",
        "data.images=['aoi?_block?.tif', 'aoi2_sparse.tif']",
        "data.labels=['{work}/oam.gpkg']",
        "data.label_attribute=class_id",
        "data.classes={{0: ground, 1: building}}",
        "data.background=0",
        "data.block_m=20",
    ],
    "camvid": [
        "data.kind=photos",
        "data.root={data}/camvid",
        "data.images=['train/*']",
        "data.labels=['trainannot/*']",
        "data.classes={{0: sky, 1: building, 2: pole, 3: road, 4: pavement, 5: tree, 6: sign, 7: fence, 8: car}}",
        "data.flips=sideways",
        "data.quarter_turns=false",
    ],
}
POLYGONS = {"dubai-polygons": ("dubai", "tile?_labels.tif"), "oam-polygons": ("oam", "*_buildings.tif")}


class Row(NamedTuple):
    """Seconds and CPU seconds a step as trained, share of waiting, and seconds and CPU seconds a bare step."""

    step: float
    cpu: float
    wait: float
    bare: float
    bare_cpu: float


def cut_polygons(name: str, data: Path, work: Path) -> None:
    """Write the labels of a set as polygons of their class ids."""
    folder, pattern = POLYGONS[name]
    path, frames = work / f"{folder}.gpkg", []
    if path.exists():
        return
    for file in sorted((data / folder).glob(pattern)):
        with rasterio.open(file) as raster:
            ids = raster.read(1)
            wanted = ids != (255 if folder == "dubai" else 0)
            found = list(rasterio.features.shapes(ids, wanted, transform=raster.transform))
            shapes = {"class_id": [int(v) for _, v in found]}
            frames.append(gpd.GeoDataFrame(shapes, geometry=[shape(s) for s, _ in found], crs=raster.crs))
    pd.concat(frames).to_file(path, layer="labels", driver="GPKG")


def spent() -> float:
    """User and system seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def trained(crops: Crops, plan: Plan, networks: dict[str, Any], run: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds and seconds of waiting of the steps of a stage, as `train` does them."""
    found: list[CheckpointCallback] = []
    real = CheckpointCallback.on_train_end

    def ended(callback: CheckpointCallback, *args: Any) -> None:
        found.append(callback)
        real(callback, *args)

    stage = Stage(plan, crops.config, **networks)
    (run / "checkpoints").mkdir(parents=True)
    few = dataclasses.replace(crops, validation_boxes=crops.validation_boxes[:1])
    before = spent()
    with patch.object(CheckpointCallback, "on_train_end", ended):
        trainer._run_stage(stage, run, few, begun=0)
    [callback] = found
    return callback.busy + callback.waited, spent() - before, callback.waited


def bare(crops: Crops, plan: Plan, networks: dict[str, Any]) -> tuple[float, float]:
    """Seconds and CPU seconds of as many steps on one batch that is ready."""
    stage = Stage(plan, crops.config, **networks)
    stage.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = stage.configure_optimizers()["optimizer"]
    samples = crops.training(0, plan.batch)
    batch = default_collate([samples[i] for i in range(plan.batch)])
    before, began = spent(), time.perf_counter()
    for _ in range(plan.steps):
        optimizer.zero_grad()
        stage.training_step(batch, 0).backward()
        stage.configure_gradient_clipping()
        optimizer.step()
    return time.perf_counter() - began, spent() - before


def measured(crops: Crops, name: str, options: argparse.Namespace, work: Path) -> Row:
    """Medians over the rounds of one stage; the first round warms up."""
    config = crops.config
    batch = config.train.joint_batch if name in ("head", "joint") and config.train.joint_batch else config.train.batch
    plan = Plan(name, 1, options.steps, batch)
    rounds: list[Row] = []
    for number in range(options.rounds + 1):
        torch.manual_seed(0)
        flow = None
        if "flow" in config.negatives.sources:
            flow = Flow(crops.bands.count, config.flow, crops.bands.step)
            flow.initialize(first_crops(crops))
        segmenter = Segmenter(crops.bands.count, len(config.data.classes), config.segmenter)
        networks = {"segmenter": segmenter, "flow": flow, "photographs": None}
        run = work / f"run_{number}"
        seconds, cpu, waited = trained(crops, plan, networks, run)
        shutil.rmtree(run)
        alone, alone_cpu = bare(crops, plan, networks)
        if number:
            rounds.append(
                Row(
                    seconds / plan.steps, cpu / plan.steps, waited / seconds, alone / plan.steps, alone_cpu / plan.steps
                )
            )
    return Row(*(statistics.median(column) for column in zip(*rounds, strict=True)))


def opened(name: str, options: argparse.Namespace, work: Path) -> Crops:
    """The crops of a set, by the reference config and what the command says."""
    if name in POLYGONS:
        cut_polygons(name, options.data, work)
    own = [line.format(data=options.data.resolve(), work=work.resolve()) for line in SETS[name]]
    small = [
        f"segmenter.encoder={options.encoder}",
        "segmenter.decoder_channels=96",
        "negatives.source={phase: 1, flow: 1}",
        "negatives.patch_max_px=48",
        f"data.crop_px={options.crop_px}",
        "data.crops=400",
        "train.batch=8",
        "train.accelerator=cpu",
    ]
    return open_crops(load_config(AERIAL, [*own, *small, *options.set]), work / "labels" / name)


def read_ms(crops: Crops, number: int = 200) -> float:
    """CPU milliseconds in which a crop is read and augmented, the first ones left out."""
    samples = crops.training(1, 2 * number)
    for i in range(number):
        samples[i]
    before = spent()
    for i in range(number, 2 * number):
        samples[i]
    return (spent() - before) / number * 1e3


def table(options: argparse.Namespace, work: Path) -> None:
    """Print a row for each set and stage."""
    threads = torch.get_num_threads()
    print(f"{options.encoder}, crops of {options.crop_px} px, {threads} threads, {' '.join(options.set)}\n")
    columns = ["set", "crop, ms", "stage", "wait", "step, s", "bare, s", "step / bare", "CPU s a step", "CPU / bare"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in options.sets:
        crops = opened(name, options, work)
        ms = read_ms(crops)
        for stage in options.stages:
            row = measured(crops, stage, options, work)
            print(
                f"| {name} | {ms:.1f} | {stage} | {row.wait:.1%} | {row.step:.3f} | {row.bare:.3f} | "
                f"{row.step / row.bare:.3f} | {row.cpu:.3f} | {row.cpu / row.bare_cpu:.3f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--stages", nargs="+", default=["segmenter", "flow", "head", "joint"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoder", default="resnet10t", help="a light one waits most")
    parser.add_argument("--crop-px", type=int, default=128)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    logging.getLogger("geood").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(exist_ok=True)
        table(options, work)


if __name__ == "__main__":
    main()
