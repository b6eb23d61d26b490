"""What one round of review brings: false polygons for each square kilometre at equal recall, before and after feedback.

    python benchmarks/feedback.py SETTING --first FOLDER --data FOLDER [--work FOLDER] [--seeds 0] [--verdicts 100]

SETTING is a file of `benchmarks/quality/` for scenes, FOLDER of --first a finished run of its first stages (with the
placeholder {seed}), as `benchmarks/quality.py` leaves them, and that of --data the prepared data, `data/NAME` in its
work folder. The test scenes are parted in two by their names, a single one into its west and its east half. The first
part is reviewed: `predict`, the 100 best ranked polygons get verdicts from the labels (real if a quarter of the
labelled pixels is an anomaly), `feedback`, `train --from`. With `--verdicts 100 100` a second round reviews the map of
the model that the first one made. The second part is never shown to a training; it stands for new ground.

Things and polygons are counted by the rule of `geood.metrics.objects`: a thing of 16 px or more is found if a quarter
of its pixels lie above the threshold, a polygon is real if a quarter of its labelled pixels is an anomaly. Before: the
threshold of the model. After: the threshold at which recall is the same (the highest that reaches it). False ground is
the share of inlier pixels above it: where much of a scene is, false polygons have run together, and there are fewer of
them the lower the threshold.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import quality
import rasterio
import torch
from rasterio.features import rasterize
from rasterio.windows import Window

from geood.config.loading import load_config
from geood.metrics.objects import count_polygons, is_real, things_of, threshold_at_recall
from geood.metrics.pixels import PixelCurve
from geood.models.bundle import ModelBundle
from geood.prediction.pipeline import predict
from geood.review.auditing import audit
from geood.review.lessons import feedback
from geood.training.trainer import train

LEAST_POLYGON_M2 = 4.0


def parted(root: Path, setting: str, work: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Test images and labels in two parts, as files of their own."""
    config = load_config(quality.HERE / f"{setting}.yaml", [f"data.root={root}"]).data
    images = sorted(p for pattern in config.test_images for p in root.glob(pattern))
    labels = sorted(p for pattern in config.test_labels for p in root.glob(pattern))
    pairs = list(zip(images, labels, strict=True))
    if len(pairs) > 1:
        return {"reviewed": pairs[::2], "untouched": pairs[1::2]}
    halves: dict[str, list[tuple[Path, Path]]] = {}
    for part, side in (("reviewed", 0), ("untouched", 1)):
        cut = []
        for path, kind in zip(pairs[0], ("", "_labels"), strict=True):
            out = work / "halves" / f"{pairs[0][0].stem}_{part}{kind}.tif"
            out.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(path) as source:
                width = source.width // 2
                window = Window(side * width, 0, width, source.height)
                profile = source.profile | {"width": width, "transform": source.window_transform(window)}
                with rasterio.open(out, "w", **profile) as target:
                    target.write(source.read(window=window))
            cut.append(out)
        halves[part] = [(cut[0], cut[1])]
    return halves


def truths(pairs: list[tuple[Path, Path]], config: Any) -> list[np.ndarray]:
    """Truth of each scene: 0 inlier, 1 anomaly, 255 ignored."""
    found = []
    for _, path in pairs:
        with rasterio.open(path) as source:
            ids = source.read(1)
        truth = np.full(ids.shape, 255, np.uint8)
        truth[np.isin(ids, list(config.data.classes))] = 0
        truth[np.isin(ids, config.data.anomaly)] = 1
        found.append(truth)
    return found


def scored(bundle: Path, pairs: list[tuple[Path, Path]], out: Path) -> list[Path]:
    """Score rasters and polygons of the scenes."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "map.gpkg"
    made = predict(
        [image for image, _ in pairs],
        file,
        bundle_path=bundle,
        settings=[f"predict.min_area_m2={LEAST_POLYGON_M2}", "predict.sample_cells=0"],
        overwrite=True,
        discard_verdicts=True,
    )
    return [one.scores for one in made]


def counted(scores: list[Path], truth: list[np.ndarray], threshold: float) -> dict[str, float]:
    """Things found and false polygons at a threshold, over all scenes, by the rule of `geood.metrics.objects`."""
    things = found = false = real = above = inliers = 0
    km2 = 0.0
    for path, labels in zip(scores, truth, strict=True):
        with rasterio.open(path) as source:
            score, pixel_m2 = source.read(1), abs(source.transform.a * source.transform.e)
        km2 += np.isfinite(score).sum() * pixel_m2 / 1e6
        in_truth, rest = things_of(labels)
        counts = count_polygons(score, rest, threshold=threshold, least_px=LEAST_POLYGON_M2 / pixel_m2)
        false, real = false + counts.false, real + counts.real
        reach = in_truth.reach(score)
        things, found = things + len(reach), found + int((reach > threshold).sum())
        ground = score[(labels == 0) & np.isfinite(score)]
        above, inliers = above + int((ground > threshold).sum()), inliers + ground.size
    return {
        "things": things,
        "found": found,
        "recall": found / max(1, things),
        "false": false,
        "real": real,
        "false_per_km2": false / km2,
        "false_ground": above / max(1, inliers),
        "km2": km2,
    }


def at_recall(scores: list[Path], truth: list[np.ndarray], recall: float) -> tuple[float, dict[str, float]]:
    """The highest threshold that reaches a recall, and the counts at it."""
    reached = []
    for path, labels in zip(scores, truth, strict=True):
        with rasterio.open(path) as source:
            reached.append(things_of(labels)[0].reach(source.read(1)))
    threshold = threshold_at_recall(np.concatenate(reached), recall)
    return threshold, counted(scores, truth, threshold)


def precision_of(scores: list[Path], truth: list[np.ndarray]) -> float:
    """Average precision of pixels, pooled."""
    curve = PixelCurve()
    for path, labels in zip(scores, truth, strict=True):
        with rasterio.open(path) as source:
            array = source.read(1)
        curve.update(np.nan_to_num(array, nan=0.0), np.where(np.isfinite(array), labels, 255).astype(np.uint8))
    return float(curve.average_precision)


def judge(gpkg: Path, pairs: list[tuple[Path, Path]], truth: list[np.ndarray], number: int) -> dict[str, int]:
    """Type verdicts into the best ranked polygons, as a person would who knows the labels."""
    import geopandas

    frame = geopandas.read_file(gpkg, layer="anomalies", fid_as_index=True)
    frame = frame.sort_values("rank") if "rank" in frame else frame.sort_values("score_max", ascending=False)
    frame = frame.head(number)
    labels = {image.name: (image, ids) for (image, _), ids in zip(pairs, truth, strict=True)}
    said: dict[str, int] = {}
    with sqlite3.connect(gpkg) as database:
        for function in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):  # of the triggers of the index
            database.create_function(function, 1, lambda _: 0)
        for fid, row in frame.iterrows():
            image, ids = labels[row["scene"]] if "scene" in frame else next(iter(labels.values()))
            with rasterio.open(image) as source:
                inside = rasterize([row.geometry], ids.shape, transform=source.transform).astype(bool)
            known = ids[inside & (ids != 255)]
            real = is_real(np.array([(known == 1).sum()]), np.array([known.size]))[0]
            verdict = "unsure" if not known.size else "real" if real else "false"
            verdict = "unsure" if verdict == "false" and (known == 1).any() else verdict
            said[verdict] = said.get(verdict, 0) + 1
            database.execute("UPDATE anomalies SET verdict = ?, reviewer = 'labels' WHERE fid = ?", (verdict, int(fid)))
    return said


def run(
    setting: str, first: Path, root: Path, work: Path, *, seed: int, verdicts: list[int], keys: list[str]
) -> dict[str, Any]:
    """Rounds on one setting with one seed, each of so many verdicts; each reviews the map of the model before it."""
    began = time.process_time()
    changed = {"train.seed": seed, "train.tune_from": str(first)} | quality.CHANGED
    settings = [f"data.root={root}", *(f"{k}={json.dumps(v)}" for k, v in (quality.LENGTHS | changed).items())]
    config = load_config(quality.HERE / f"{setting}.yaml", [*settings, *keys])
    before = bundle = train(config, work / "before", resume=(work / "before" / "config.yaml").exists())
    parts = parted(root, setting, work)
    truth = {part: truths(pairs, config) for part, pairs in parts.items()}
    maps = {part: scored(before, pairs, work / f"map_before_{part}") for part, pairs in parts.items()}
    threshold = ModelBundle.load(before, flow=False).threshold
    figures: dict[str, Any] = {"setting": setting, "seed": seed, "verdicts": [], "precision": []}
    for part in parts:
        was = counted(maps[part], truth[part], threshold)
        figures[part] = {"before": was | {"ap": precision_of(maps[part], truth[part]), "threshold": threshold}}
    scenes = [image for image, _ in parts["reviewed"]]
    said, last = work / "before" / "config.yaml", "before"
    for i, number in enumerate(verdicts):
        name, following = f"after{i or ''}", work / f"next{i or ''}.yaml"
        gpkg = work / f"map_{last}_reviewed" / "map.gpkg"
        figures["verdicts"].append(judge(gpkg, parts["reviewed"], truth["reviewed"], number))
        figures["precision"].append(audit([gpkg]).overall.precision)
        feedback([gpkg], said, following, scenes=scenes, overwrite=True)
        asked = load_config(following, [f"train.tune_from={json.dumps(str(bundle))}", *keys])
        bundle, said = train(asked, work / name, resume=(work / name / "config.yaml").exists()), following
        last = name
        for part, pairs in parts.items():
            later = scored(bundle, pairs, work / f"map_{name}_{part}")
            at, now = at_recall(later, truth[part], figures[part]["before"]["recall"])
            figures[part][name] = now | {"ap": precision_of(later, truth[part]), "threshold": at}
    figures["core_seconds"] = time.process_time() - began
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=sorted(path.stem for path in quality.HERE.glob("*.yaml")))
    parser.add_argument("--first", required=True, help="finished first stages; {seed} stands for the seed")
    parser.add_argument("--data", type=Path, required=True, help="prepared data of the setting")
    parser.add_argument("--work", type=Path, default=Path("runs/feedback"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--verdicts", type=int, nargs="+", default=[100], help="of each round")
    parser.add_argument("--encoder", help="timm name, if it is not the setting's")
    parser.add_argument("--set", nargs="*", default=[], help="other keys of the config")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.encoder:
        quality.CHANGED.update({"segmenter.encoder": options.encoder})
    print("| seed | ground | recall | false per km2 | after | change | false ground, % | after | AP | after |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        work = (options.work / options.setting / f"seed{seed}").resolve()
        work.mkdir(parents=True, exist_ok=True)
        first = Path(options.first.format(seed=seed)).resolve()
        found = run(
            options.setting, first, options.data.resolve(), work, seed=seed, verdicts=options.verdicts, keys=options.set
        )
        (work / "figures.json").write_text(json.dumps(found, indent=1))
        for part in ("reviewed", "untouched"):
            was, *later = found[part].values()
            for i, now in enumerate(later):
                change = now["false_per_km2"] / was["false_per_km2"] - 1 if was["false_per_km2"] else float("nan")
                print(
                    f"| {seed} | {part}{f', round {i + 1}' if i else ''} | {was['recall']:.2f} of {was['things']} | "
                    f"{was['false_per_km2']:.1f} | {now['false_per_km2']:.1f} | {100 * change:+.0f} % | "
                    f"{100 * was['false_ground']:.1f} | {100 * now['false_ground']:.1f} | "
                    f"{100 * was['ap']:.1f} | {100 * now['ap']:.1f} |",
                    flush=True,
                )
        print(f"verdicts {found['verdicts']}, {found['core_seconds']:.0f} core s", flush=True)


if __name__ == "__main__":
    main()
