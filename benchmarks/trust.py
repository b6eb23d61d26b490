"""May a map be believed? What the promise of a threshold is worth on scenes that no training has seen.

Each command adds rows to WORK/rows.json and leaves out those that are there, so a run that was stopped goes on.

    python benchmarks/trust.py calibrate --config RUN/config.yaml --model RUN/model.safetensors --work WORK
        finish a trained model with a record of its validation ground, to WORK/model.safetensors; no weights change
    python benchmarks/trust.py scenes --work WORK --images 'test/*.tif'
        predict each labelled scene (X.tif, X_labels.tif beside it or in ../labels) and compare the rate of false
        positives and the false polygons per km2 on its inlier ground with the 90 % intervals that predict told
    python benchmarks/trust.py fixtures --work WORK --images 'test/*.tif' [--side 1024] [--elsewhere OTHER.tif...]
        the verdicts of `predict` on the middle of each scene as it is, and with gain, haze, blur, noise, swapped bands,
        half the resolution, another season, half of it nodata; and on other scenes
    python benchmarks/trust.py cost --work WORK --images SCENE...
        core seconds of `predict`, after one run that loads what it needs, and the share of them that the verdict takes
    python benchmarks/trust.py prepare --data FOLDER --work WORK
        copies of the scenes that are left out in turn, in WORK/data, once: `dubai` (six scenes at 1 m), `mumbai` (68
        at 0.5 m, left out in six parts) and `oam` (six drone scenes at 0.15 m; buildings are labelled)
    python benchmarks/trust.py leave-one-out --work WORK --setting dubai --fold 0 --seed 0 [--weights FILE]
        train on all scenes of a setting but those of one fold, and measure those. Every job has a folder of its own,
        WORK/SETTING/foldN_seedN, so many may run at once; one that was stopped goes on, a finished one does nothing.
    python benchmarks/trust.py jobs [--seeds 0 1 2] [--settings dubai mumbai oam]
        the options of all those jobs, a line each, for xargs
    python benchmarks/trust.py table --work WORK
        all rows below a folder together

Ground truth is used for measuring alone. A scene holds if both figures lie within their intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import rasterio
import torch
from scipy.ndimage import gaussian_filter

from geood.calibration import FAILS, HOLDS, UNKNOWN, Verdict
from geood.config import Config, change_config, load_config
from geood.datasets import open_crops
from geood.geo.labels.reading import open_labels
from geood.geo.labels.rules import LabelRules
from geood.geo.scene import Scene
from geood.models import ModelBundle
from geood.polygons import areas_above
from geood.prediction import engine, pipeline, predict, scene_verdict, worker
from geood.training import train
from geood.training.calibration import calibrated

FEW = ["data.crops=40", "data.validation_crops=4"]  # training crops are not needed to measure validation ground
HERE = Path(__file__).parent / "trust"
FOLDS = 6
HALVED = ("dubai", "oam")
# Short: the promise is asked for, not a good model. A GPU is shared by many jobs, so a tile at a time.
LENGTHS = {
    "train.segmenter_steps": 300,
    "train.head_steps": 60,
    "train.segmenter_lr": 1e-3,
    "train.segmenter_last_lr": 1e-5,
    "train.validate_every": 300,
    "data.crops": 400,
    "data.validation_crops": 8,
    "predict.batch": 1,
    "predict.tile_px": 1024,
    "predict.sample_cells": 0,
}


class Rows:
    """Rows of a table by name, kept in a JSON file."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.path = work / "rows.json"
        self.rows: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, name: str, row: dict[str, Any]) -> None:
        self.rows[name] = row
        self.path.write_text(json.dumps(self.rows, indent=1))
        print(name, row, flush=True)


def calibrate(config: Config, model: Path, work: Path, settings: list[str], *, brief: bool) -> None:
    """Save the model with the thresholds and the record of the config's validation ground.

    `brief` drops the statistics of inliers, and with them all scores but those of logits and head.
    """
    out = work / "model.safetensors"
    if out.exists():
        return
    bundle = ModelBundle.load(model).with_settings(settings)
    bundle = replace(bundle, inliers=None) if brief else bundle
    crops = open_crops(change_config(config, FEW))
    work.mkdir(parents=True, exist_ok=True)
    saved = calibrated(bundle, crops).save(out)
    record = saved.record
    assert record is not None
    print(f"{record.blocks} blocks, {record.images} images, {record.km2} km2, {len(record.cells)} cells")
    print(
        {
            rate: (threshold, record.intervals.get(record.kind, {}).get(rate))
            for rate, threshold in saved.thresholds.items()
        }
    )


def labels_of(image: Path) -> list[Path]:
    """Return the label files of a scene."""
    names = [image.with_name(f"{image.stem}_labels.tif"), image.parent.parent / "labels" / f"{image.stem}_labels.tif"]
    return [path for path in names if path.exists()]


def measured(image: Path, scores: Path, bundle: ModelBundle, verdict: Verdict) -> dict[str, Any]:
    """Return the achieved rate and false polygons per km2 on the inlier ground of a scene, beside what was told."""
    with rasterio.open(scores) as file:
        score = file.read(1)
    with Scene.open(image) as scene:
        side = scene.grid.resolution_m or np.nan
        rules = LabelRules(label_ids=bundle.config.data.label_ids)
        with open_labels(labels_of(image), scene.grid, rules) as labels:
            ids = labels.read(scene.grid.window)
    inlier = np.isin(ids, bundle.class_ids) & np.isfinite(score)
    km2 = inlier.sum() * side**2 / 1e6
    rate = float((score[inlier] > verdict.threshold).mean())
    areas = areas_above(np.where(inlier, score, np.float32(np.nan)), verdict.threshold)
    least = (bundle.config.predict.min_area_m2 or 9 * (bundle.resolution or 0) ** 2) / side**2
    false = float((areas >= least).sum() / km2)
    told = verdict.fields()
    inside = verdict.high is not None and verdict.low <= rate <= verdict.high
    inside_polygons = verdict.false_high is not None and verdict.false_low <= false <= verdict.false_high
    kept = ("promised", "low", "high", "false_per_km2", "false_low", "false_high", "above", "answer", "differs")
    return {"rate": rate, "false": false, "rate_in": inside, "polygons_in": inside_polygons} | {
        k: told[k] for k in kept
    }


def scenes(work: Path, images: list[Path], tag: str = "") -> None:
    """Predict scenes and compare what was told with what their labels say; statistics of their cells are kept."""
    rows, bundle = Rows(work), ModelBundle.load(work / "model.safetensors", flow=False)
    for image in images:
        name = f"scene {tag}{image.stem}"
        if name in rows.rows or not labels_of(image):
            continue
        out = work / "maps" / f"{image.stem}.gpkg"
        out.parent.mkdir(exist_ok=True)
        began = time.perf_counter()
        with kept_cells(work / "cells" / f"{image.stem}.npy"):
            [made] = predict([image], out, bundle_path=work / "model.safetensors", overwrite=True)
        assert made.verdict is not None
        seconds = round(time.perf_counter() - began, 1)
        rows.add(name, measured(image, made.scores, bundle, made.verdict) | {"seconds": seconds})


@contextmanager
def kept_cells(path: Path) -> Iterator[None]:
    """Keep the statistics of the cells of a scene that is predicted meanwhile, for later studies of the verdict."""
    state_of = pipeline.state_of

    def keeping(scores: Path, bundle: ModelBundle, cells: np.ndarray, **options: Any) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, cells)
        return state_of(scores, bundle, cells, **options)

    with patch.object(pipeline, "state_of", keeping):
        yield


def changed(array: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    """Return a scene's bands (C, H, W) uint8 as another sensor, season or accident might give them; 0 is nodata."""
    wide = array.astype(np.float32)
    if how == "gain 1.4":
        wide *= 1.4
    elif how == "gain 0.65":
        wide *= 0.65
    elif how == "haze":
        wide = 110 + 0.45 * wide
    elif how == "light haze":
        wide = 50 + 0.75 * wide
    elif how == "blur":
        wide = np.stack([gaussian_filter(band, 2.0) for band in wide])
    elif how == "noise":
        wide += rng.normal(0, 20, wide.shape)
    elif how == "red and blue swapped":
        wide = wide[::-1]
    elif how == "green, blue, red":
        wide = wide[[1, 2, 0]]
    elif how == "dry season":  # green plants turn brown
        red, green, blue = wide
        green_by = np.clip((2 * green - red - blue) / 40, 0, 1)
        wide = np.stack([red + 0.5 * green_by * green, green - 0.1 * green_by * green, 0.9 * blue])
    elif how == "winter light":  # a low sun is darker and redder
        wide = wide * np.array([0.75, 0.68, 0.6], np.float32)[:, None, None]
    whole = np.clip(np.rint(wide), 1, 255).astype(np.uint8)
    if how == "half of it nodata":
        whole[:, :, : whole.shape[2] // 2] = 0
    return whole


CHANGES = (
    "as it is",
    "half of it nodata",
    "gain 1.4",
    "gain 0.65",
    "haze",
    "light haze",
    "blur",
    "noise",
    "red and blue swapped",
    "green, blue, red",
    "dry season",
    "winter light",
)


def fixtures(work: Path, images: list[Path], elsewhere: list[Path], *, side: int) -> None:
    """Predict scenes as they are and as changed, and others; keep what the verdicts said."""
    rows, folder = Rows(work), work / "fixtures"
    folder.mkdir(parents=True, exist_ok=True)
    for scene in images:
        rng = np.random.default_rng(0)
        array, transform, crs = _middle(scene, side)
        made = {how: (changed(array, how, rng), transform) for how in CHANGES}
        coarse = array[:, : array.shape[1] // 2 * 2, : array.shape[2] // 2 * 2].astype(np.float32)
        coarse = coarse.reshape(3, coarse.shape[1] // 2, 2, coarse.shape[2] // 2, 2).mean((2, 4))
        made["half the resolution"] = np.rint(coarse).clip(1).astype(np.uint8), transform @ transform.scale(2, 2)
        for how, (pixels, place) in made.items():
            path = folder / f"{scene.stem}_{how.replace(' ', '_').replace(',', '')}.tif"
            _write_fixture(path, pixels, place, crs)
            _fixture(rows, work, f"fixture {scene.stem}: {how}", path)
            path.unlink()
    for scene in elsewhere:
        path = folder / f"{scene.stem}.tif"
        _write_fixture(path, *_middle(scene, side))
        _fixture(rows, work, f"fixture {scene.stem}: elsewhere", path)
        path.unlink()
    seen_table(rows.rows)


def _middle(scene: Path, side: int) -> tuple[np.ndarray, Any, Any]:
    """Return the bands (3, h, w) of the middle of a scene, at most `side` pixels, their transform and CRS."""
    with rasterio.open(scene) as file:
        row, col = (max(0, (size - side) // 2) for size in (file.height, file.width))
        window = rasterio.windows.Window(col, row, min(side, file.width), min(side, file.height))
        return file.read([1, 2, 3], window=window), file.window_transform(window), file.crs


def _write_fixture(path: Path, pixels: np.ndarray, place: Any, crs: Any) -> None:
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": crs, "transform": place, "nodata": 0}
    with rasterio.open(path, "w", height=pixels.shape[1], width=pixels.shape[2], **profile) as file:
        file.write(pixels)


def _fixture(rows: Rows, work: Path, name: str, path: Path) -> None:
    if name in rows.rows:
        return
    [made] = predict([path], work / "fixture.gpkg", bundle_path=work / "model.safetensors", overwrite=True)
    assert made.verdict is not None
    told = made.verdict.fields()
    rows.add(name, {k: told[k] for k in ("answer", "above", "high", "p", "distance", "differs", "why")})


def seen_table(rows: dict[str, dict[str, Any]]) -> None:
    """Print for each change how many scenes were called unlike, by which words, and what was said of the budget."""
    told: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows.items():
        if name.startswith("fixture "):
            told.setdefault(name.split(": ", 1)[1], []).append(row)
    print("\n| change | scenes | unlike | named as a change | holds | cannot be told | does not hold | share above |")
    print("|---|---|---|---|---|---|---|---|")
    for how, each in told.items():
        answers = [sum(row["answer"] == answer for row in each) for answer in (HOLDS, UNKNOWN, FAILS)]
        words = Counter(
            row["differs"].removeprefix("perhaps ").split(", ")[0] for row in each if "perhaps" in row["differs"]
        )
        unlike, above = sum(bool(row["differs"]) for row in each), np.median([row["above"] for row in each])
        named = "; ".join(f"{word} {count}" for word, count in words.most_common())
        print(
            f"| {how} | {len(each)} | {unlike} | {named} | {answers[0]} | {answers[1]} | {answers[2]} "
            f"| {100 * above:.2f} % |"
        )


def cost(work: Path, images: list[Path]) -> None:
    """Print the core seconds of `predict` and of its verdict: cells of each tile, comparison and judgement."""
    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **keys: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*given, **keys)
            finally:
                spent.append(time.thread_time() - began)

        return run

    places = ((worker, "tile_cells"), (engine, "pooled_features"), (scene_verdict, "drift_of"))
    with ExitStack() as stack:
        for room, name in (*places, (scene_verdict, "verdict_of")):
            stack.enter_context(patch.object(room, name, timed(getattr(room, name))))
        for image in [images[0], *images]:
            spent.clear()
            began = time.process_time()
            [made] = predict([image], work / "cost.gpkg", bundle_path=work / "model.safetensors", overwrite=True)
            whole = time.process_time() - began
            print(
                f"{image.name}: {made.valid_pixels / 1e6:.2f} Mpx, {whole:.2f} core s, of which the verdict "
                f"{1000 * sum(spent):.1f} ms, {100 * sum(spent) / whole:.2f} %",
                flush=True,
            )


def prepare(data: Path, work: Path) -> None:
    """Write the scenes of all settings and their labels, those of half a size by means of 2 x 2 pixels."""
    chosen = {
        "dubai": [(path, path.stem) for path in sorted((data / "dubai").glob("tile[0-9].tif"))],
        "mumbai": [
            (path, f"{path.parent.name}_{path.stem}") for path in sorted((data / "mumbai").glob("*/*[0-9].tif"))
        ],
        "oam": [
            (data / "oam" / f"{name}.tif", name)
            for name in ("aoi1_block0", "aoi1_block1", "aoi2_sparse", "aoi4_block0", "aoi4_block1")
        ],
    }
    for setting, images in chosen.items():
        for path, name in images:
            labels = next(
                p for kind in ("labels", "buildings") if (p := path.with_name(f"{path.stem}_{kind}.tif")).exists()
            )
            target = work / "data" / setting / f"{name}.tif"
            target.parent.mkdir(parents=True, exist_ok=True)
            if setting not in HALVED:
                shutil.copyfile(path, target)
                shutil.copyfile(labels, target.with_name(f"{name}_labels.tif"))
                continue
            with rasterio.open(path) as file, rasterio.open(labels) as ids:
                pixels, classes, profile = file.read([1, 2, 3]), ids.read(1), file.profile
            parts = 2 if name == "aoi1_block0" else 1  # the two halves of the largest are scenes of their own
            width = pixels.shape[2] // parts
            for part in range(parts):
                cut = slice(part * width, (part + 1) * width)
                where = profile["transform"] @ rasterio.Affine.translation(part * width, 0)
                out = target.with_stem(f"{name}_{part}" if parts > 1 else name)
                _write_halved(out, pixels[:, :, cut], classes[:, cut], profile | {"transform": where})


def _write_halved(out: Path, pixels: np.ndarray, ids: np.ndarray, profile: dict[str, Any]) -> None:
    """Write the bands (3, H, W) of a scene and its labels (H, W) at half the size."""
    rows, cols = pixels.shape[1] // 2, pixels.shape[2] // 2
    blocks = pixels[:, : 2 * rows, : 2 * cols].reshape(3, rows, 2, cols, 2)
    gap = (blocks == profile["nodata"]).all(0).any((1, 3)) if profile["nodata"] is not None else False
    pixels = np.where(gap, 0, np.rint(blocks.mean((2, 4)))).astype(np.uint8)
    ids, transform = ids[: 2 * rows : 2, : 2 * cols : 2], profile["transform"] @ rasterio.Affine.scale(2)
    made = {"driver": "GTiff", "dtype": "uint8", "crs": profile["crs"], "transform": transform, "tiled": True}
    made |= {"height": ids.shape[0], "width": ids.shape[1]}
    nodata = {} if profile["nodata"] is None else {"nodata": profile["nodata"]}
    with rasterio.open(out, "w", count=3, compress="webp", webp_lossless=True, **made, **nodata) as file:
        file.write(pixels)
    with rasterio.open(out.with_name(f"{out.stem}_labels.tif"), "w", count=1, compress="deflate", **made) as file:
        file.write(ids, 1)


def jobs(settings: list[str], seeds: list[int]) -> list[str]:
    """Return the options of the jobs, first those of the first seed."""
    return [
        f"--setting {setting} --fold {fold} --seed {seed}"
        for seed in seeds
        for fold in range(FOLDS)
        for setting in settings
    ]


def leave_one_out(work: Path, setting: str, *, fold: int, seed: int, keys: list[str], weights: Path | None) -> None:
    """Train without the scenes of one fold, and measure those."""
    images = sorted(path for path in (work / "data" / setting).glob("*.tif") if not path.stem.endswith("_labels"))
    held, run = images[fold::FOLDS], work / setting / f"fold{fold}_seed{seed}"
    rest = [path for path in images if path not in held]
    chosen = {
        "data.root": str((work / "data" / setting).resolve()),
        "data.images": [path.name for path in rest],
        "data.labels": [path.name for image in rest for path in labels_of(image)],
        "train.seed": seed,
    }
    if weights is not None:
        chosen |= {"segmenter.weights": str(weights.resolve()), "train.encoder_lr_factor": 0.25}
    settings = [f"{key}={json.dumps(value)}" for key, value in (LENGTHS | chosen).items()]
    began = time.perf_counter()
    if not (run / "model.safetensors").exists():
        config = load_config(HERE / f"{setting}.yaml", [*settings, *keys])
        train(config, run, resume=(run / "config.yaml").exists())
    record = ModelBundle.load(run / "model.safetensors", flow=False).record
    assert record is not None, "no validation ground"
    partial = run / "record.partial"
    partial.write_text(record.model_dump_json())
    os.replace(partial, run / "record.json")
    print(f"{run}: trained in {time.perf_counter() - began:.0f} s, {record.blocks} blocks", flush=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the other jobs need it
    scenes(run, held, tag=f"seed {seed}, ")


def table(work: Path) -> None:
    """Print all rows below a folder, and the share of scenes that hold."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(work.rglob("rows.json")):
        rows |= {f"{path.parent.relative_to(work)} {name}": row for name, row in json.loads(path.read_text()).items()}
    measured_rows = {name: row for name, row in rows.items() if "rate" in row}
    print(
        "| scene | rate | promised (interval) | false per km2 | expected (interval) | verdict |\n"
        "|---|---|---|---|---|---|"
    )
    for name, row in measured_rows.items():
        spans = [f"{row[k]:.3g}" if row[k] is not None else "?" for k in ("low", "high", "false_low", "false_high")]
        print(
            f"| {name} | {100 * row['rate']:.2f} % | {row['promised']:.3g} ({spans[0]} to {spans[1]}) "
            f"| {row['false']:.1f} | {row['false_per_km2'] or float('nan'):.3g} ({spans[2]} to {spans[3]}) "
            f"| {row['answer']} |"
        )
    if measured_rows:
        for key in ("rate_in", "polygons_in"):
            print(key, f"{sum(row[key] for row in measured_rows.values())} of {len(measured_rows)}")
        told = [row for row in measured_rows.values() if not (row["rate_in"] and row["polygons_in"])]
        print("not within, and not said to hold:", sum(row["answer"] != "holds" for row in told), "of", len(told))
    print("\n| fixture | verdict | above | distance | what differs |\n|---|---|---|---|---|")
    for name, row in rows.items():
        if "rate" not in row:
            print(f"| {name} | {row['answer']} | {100 * row['above']:.2f} % | {row['distance']} | {row['differs']} |")
    seen_table({name.split(" ", 1)[1]: row for name, row in rows.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = ["calibrate", "scenes", "fixtures", "cost", "prepare", "jobs", "leave-one-out", "table"]
    parser.add_argument("what", choices=commands)
    parser.add_argument("--work", type=Path, default=Path("runs/trust"))
    parser.add_argument("--data", type=Path, help="prepare: folder of the data sets as published")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--set", dest="keys", nargs="*", default=[])
    parser.add_argument("--brief", action="store_true", help="calibrate: scores of logits and head alone")
    parser.add_argument("--images", type=Path, nargs="*", default=[])
    parser.add_argument("--side", type=int, default=1024, help="fixtures: pixels of the middle that is taken")
    parser.add_argument("--elsewhere", type=Path, nargs="*", default=[])
    names = sorted(path.stem for path in HERE.glob("*.yaml"))
    parser.add_argument("--setting", choices=names)
    parser.add_argument("--settings", choices=names, nargs="+", default=names)
    parser.add_argument("--fold", type=int, choices=range(FOLDS), default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", type=Path, help="leave-one-out: of the encoder; none: random ones")
    args = parser.parse_args()
    if args.what == "calibrate":
        calibrate(load_config(args.config), args.model, args.work, args.keys, brief=args.brief)
    elif args.what == "scenes":
        scenes(args.work, args.images)
    elif args.what == "fixtures":
        fixtures(args.work, args.images, args.elsewhere, side=args.side)
    elif args.what == "cost":
        cost(args.work, args.images)
    elif args.what == "prepare":
        prepare(args.data, args.work)
    elif args.what == "jobs":
        print("\n".join(jobs(args.settings, args.seeds)))
    elif args.what == "leave-one-out":
        leave_one_out(args.work, args.setting, fold=args.fold, seed=args.seed, keys=args.keys, weights=args.weights)
    else:
        table(args.work)


if __name__ == "__main__":
    main()
