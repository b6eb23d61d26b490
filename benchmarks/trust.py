"""May a map be believed? What the promise of a threshold is worth on scenes that no training has seen.

Each command adds rows to WORK/rows.json and leaves out those that are there, so a run that was stopped goes on.

    python benchmarks/trust.py calibrate --config RUN/config.yaml --model RUN/model.safetensors --work WORK
        finish a trained model with a record of its validation ground, to WORK/model.safetensors; no weights change
    python benchmarks/trust.py scenes --work WORK --images 'test/*.tif'
        predict each labelled scene (X.tif, X_labels.tif beside it or in ../labels) and compare the rate of false
        positives and the false polygons per km2 on its inlier ground with the 90 % intervals that predict told
    python benchmarks/trust.py fixtures --work WORK --scene S.tif --elsewhere OTHER.tif...
        the verdicts on one scene as it is, with gain, blur, noise, swapped bands, half the resolution, and on others
    python benchmarks/trust.py leave-one-out --config CONFIG.yaml --work WORK --seeds 0 1 2
        train on all scenes of a config but one, in turn (or, with many, but one part in six), and measure those
    python benchmarks/trust.py table --work WORK

Ground truth is used for measuring alone. A scene holds if both figures lie within their intervals.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from scipy.ndimage import gaussian_filter

from geood.calibration import Verdict
from geood.config import Config, change_config, load_config
from geood.datasets import find_files, open_crops
from geood.geo.label_rules import LabelRules
from geood.geo.labels import open_labels
from geood.geo.scene import Scene
from geood.models import ModelBundle
from geood.polygons import areas_above
from geood.prediction import predict
from geood.training import train
from geood.training.calibration import calibrated

FEW = ["data.crops=40", "data.validation_crops=4"]  # training crops are not needed to measure validation ground
PARTS = 6


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
    rows, bundle = Rows(work), ModelBundle.load(work / "model.safetensors", flow=False)
    for image in images:
        name = f"scene {tag}{image.stem}"
        if name in rows.rows or not labels_of(image):
            continue
        out = work / "maps" / f"{image.stem}.gpkg"
        out.parent.mkdir(exist_ok=True)
        [made] = predict([image], out, bundle_path=work / "model.safetensors", overwrite=True)
        assert made.verdict is not None
        rows.add(name, measured(image, made.scores, bundle, made.verdict))


def changed(array: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    """Return a scene's bands (C, H, W) uint8 as another sensor, season or accident might give them."""
    wide = array.astype(np.float32)
    if how == "gain":
        wide *= 1.4
    elif how == "haze":
        wide = 110 + 0.45 * wide
    elif how == "blur":
        wide = np.stack([gaussian_filter(band, 2.0) for band in wide])
    elif how == "noise":
        wide += rng.normal(0, 20, wide.shape)
    elif how == "swapped":
        wide = wide[::-1]
    return np.clip(np.rint(wide), 1, 255).astype(np.uint8)


def fixtures(work: Path, scene: Path, elsewhere: list[Path]) -> None:
    rows, rng = Rows(work), np.random.default_rng(0)
    folder = work / "fixtures"
    folder.mkdir(parents=True, exist_ok=True)
    with rasterio.open(scene) as file:
        array, transform, crs = file.read([1, 2, 3]), file.transform, file.crs
    made = {}
    for how in ("as it is", "gain", "haze", "blur", "noise", "swapped"):
        made[how] = changed(array, how, rng), transform
    coarse = array[:, : array.shape[1] // 2 * 2, : array.shape[2] // 2 * 2].astype(np.float32)
    coarse = coarse.reshape(3, coarse.shape[1] // 2, 2, coarse.shape[2] // 2, 2).mean((2, 4))
    made["half the resolution"] = np.rint(coarse).astype(np.uint8), transform @ transform.scale(2, 2)
    for how, (pixels, place) in made.items():
        path = folder / f"{how.replace(' ', '_')}.tif"
        profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": crs, "transform": place}
        with rasterio.open(path, "w", height=pixels.shape[1], width=pixels.shape[2], **profile) as file:
            file.write(pixels)
        _fixture(rows, work, f"fixture {scene.stem}: {how}", path)
    for path in elsewhere:
        _fixture(rows, work, f"fixture elsewhere: {path.stem}", path)


def _fixture(rows: Rows, work: Path, name: str, path: Path) -> None:
    if name in rows.rows:
        return
    [made] = predict([path], work / "fixture.gpkg", bundle_path=work / "model.safetensors", overwrite=True)
    assert made.verdict is not None
    told = made.verdict.fields()
    rows.add(name, {k: told[k] for k in ("answer", "above", "high", "p", "distance", "differs", "why")})


def leave_one_out(config: Config, work: Path, seeds: list[int]) -> None:
    """Train without a scene, or a sixth of many, and measure it."""
    data = config.data
    images = find_files(data.root, data.images, what="data.images")
    parts = [[image] for image in images] if len(images) <= PARTS else [images[i::PARTS] for i in range(PARTS)]
    for seed in seeds:
        for number, held in enumerate(parts):
            run = work / f"seed{seed}" / f"part{number}"
            rest = [str(path) for path in images if path not in held]
            settings = [f"data.images={json.dumps(rest)}", f"train.seed={seed}"]
            if not (run / "model.safetensors").exists():
                train(change_config(config, settings), run, resume=run.exists())
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["calibrate", "scenes", "fixtures", "leave-one-out", "table"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--set", dest="settings", nargs="*", default=[])
    parser.add_argument("--brief", action="store_true", help="calibrate: scores of logits and head alone")
    parser.add_argument("--images", type=Path, nargs="*", default=[])
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--elsewhere", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    args = parser.parse_args()
    if args.what == "calibrate":
        calibrate(load_config(args.config), args.model, args.work, args.settings, brief=args.brief)
    elif args.what == "scenes":
        scenes(args.work, args.images)
    elif args.what == "fixtures":
        fixtures(args.work, args.scene, args.elsewhere)
    elif args.what == "leave-one-out":
        leave_one_out(load_config(args.config, args.settings), args.work, args.seeds)
    else:
        table(args.work)


if __name__ == "__main__":
    main()
