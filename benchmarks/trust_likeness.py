"""Is a scene called unlike when it is, and only then? Likeness on scenes as they are and as changed.

    python benchmarks/trust_likeness.py measure --work WORK --setting mumbai --half 0 --seed 0 [--weights FILE]
        train on one half of the scenes of a setting (as `trust.py prepare` leaves them in WORK/data), and keep the
        statistics of cells of the other half, as they are and as changed, in WORK/likeness/SETTING_halfN_seedN.npz
    python benchmarks/trust_likeness.py table --work WORK
        of how many scenes each change is seen, and what is named first, by today's rule

Scenes are passed as a whole, so that one takes a few seconds with all its changes; every third cell along either axis
is measured, as `predict` does. `table` prints today's rule beside the one without light within classes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import trust
from numpy.typing import NDArray
from scipy.stats import beta

from geood.calibration import CellMaps, drift_of, pooled_features, tile_cells
from geood.calibration.exchangeability import in_words
from geood.calibration.tiled_scoring import ImageSource, passed_tiles
from geood.config import load_config
from geood.geo.grid import tile_grid
from geood.models import CalibrationRecord, ModelBundle, for_inference
from geood.training import train

CHANGES = (*trust.CHANGES[:1], *trust.CHANGES[2:], "half the resolution")  # nodata takes cells away, and changes none


def changed(pixels: NDArray[np.uint8], how: str, rng: np.random.Generator) -> ImageSource:
    """Return a scene (C, H, W) as changed."""
    if how == "half the resolution":
        rows, cols = (size // 2 * 2 for size in pixels.shape[1:])
        wide = pixels[:, :rows, :cols].astype(np.float32).reshape(3, rows // 2, 2, cols // 2, 2).mean((2, 4))
        coarse = np.rint(wide).clip(1).astype(np.uint8)
        return ImageSource(coarse, np.ones(coarse.shape[1:], bool), scale=2.0)
    return ImageSource(trust.changed(pixels, how, rng), np.ones(pixels.shape[1:], bool))


def cells_of(bundle: ModelBundle, source: ImageSource) -> NDArray[np.float32]:
    """Return the statistics (n, S) of a scene's cells."""
    kind, found = bundle.config.score.kind, []
    rows, cols = source.mask.shape
    tiles = tile_grid(rows, cols, tile_px=-(-max(rows, cols) // 32) * 32, halo_px=0, scale=source.scale)
    for one, within in passed_tiles(bundle, source, tiles, lambda _, wanted: wanted, kinds=(kind,)):
        score = bundle.score_of(one.output, one.image, one.seen, kind=kind)[0].float().numpy()
        classes = one.output.logits[0].argmax(0).numpy().astype(np.uint8)
        near = pooled_features(one.output.features)[0].numpy()
        maps = CellMaps(one.image[0].numpy(), score, classes, near, len(bundle.class_ids))
        found.append(tile_cells(maps, one.tile, within, scale=source.scale))
    return np.concatenate(found)


def measure(work: Path, setting: str, *, half: int, seed: int, weights: Path | None) -> None:
    """Train on one half, and keep the statistics of the other one and of its own calibration ground."""
    images = sorted(path for path in (work / "data" / setting).glob("*.tif") if not path.stem.endswith("_labels"))
    rest, held = images[half::2], images[1 - half :: 2]
    run, out = work / f"{setting}_half{half}_seed{seed}", work / "likeness" / f"{setting}_half{half}_seed{seed}.npz"
    chosen = trust.LENGTHS | {
        "data.root": str((work / "data" / setting).resolve()),
        "data.images": [path.name for path in rest],
        "data.labels": [path.name for image in rest for path in trust.labels_of(image)],
        "train.seed": seed,
    }
    if weights is not None:
        chosen |= {"segmenter.weights": str(weights.resolve()), "train.encoder_lr_factor": 0.25}
    began = time.process_time()
    config = load_config(trust.HERE / f"{setting}.yaml", [f"{k}={json.dumps(v)}" for k, v in chosen.items()])
    train(config, run, resume=(run / "config.yaml").exists())
    bundle = for_inference(ModelBundle.load(run / "model.safetensors", flow=False, tell=False))
    record = bundle.record
    assert record is not None
    print(f"trained in {time.process_time() - began:.0f} core s, {record.images} images, {len(record.cells)} cells")
    kept: dict[str, Any] = {"record": record.model_dump_json()}
    for image in held:
        with rasterio.open(image) as file:
            pixels = file.read([1, 2, 3])
        rng = np.random.default_rng(0)
        for how in CHANGES:
            kept[f"cells {image.stem}: {how}"] = cells_of(bundle, changed(pixels, how, rng))
        print(f"{image.stem}, {time.process_time() - began:.0f} core s", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **kept)


def table(work: Path) -> None:
    """Print of how many scenes each change is seen, with the exact 95 % interval, and what is named first."""
    seen: dict[tuple[str, str], list[str]] = {}
    for path in sorted((work / "likeness").glob("*.npz")):
        with np.load(path) as kept:
            record = CalibrationRecord.model_validate_json(str(kept["record"]))
            names, whole = record.statistics, [n for n in record.statistics if not n.startswith("within ")]
            rows = tuple(row[: len(whole)] for row in record.cells)
            before = record.model_copy(update={"statistics": tuple(whole), "cells": rows})
            for name in kept.files:
                if name.startswith("cells "):
                    for way, ground in (("light of whole cells", before), ("within classes", record)):
                        drift = drift_of(kept[name], ground, names=names)
                        assert drift is not None
                        words = in_words(drift, {}).removeprefix("perhaps ")
                        key = name.split(": ", 1)[1], way
                        seen.setdefault(key, []).append(words.split(",")[0].split(" (")[0])
    print("| changed by | by | scenes | called unlike | 95 % interval | named first |\n|---|---|---|---|---|---|")
    for (how, way), words in sorted(seen.items(), key=lambda pair: CHANGES.index(pair[0][0])):
        count, total = sum(map(bool, words)), len(words)
        low = beta.ppf(0.025, count, total - count + 1) if count else 0.0
        high = beta.ppf(0.975, count + 1, total - count) if count < total else 1.0
        first = "; ".join(f"{word} {n}" for word, n in Counter(filter(None, words)).most_common(4))
        print(f"| {how} | {way} | {total} | {count} | {100 * low:.0f} to {100 * high:.0f} % | {first} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "table"])
    parser.add_argument("--work", type=Path, default=Path("runs/trust"))
    parser.add_argument("--setting", choices=sorted(path.stem for path in trust.HERE.glob("*.yaml")), default="mumbai")
    parser.add_argument("--half", type=int, choices=(0, 1), default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="of the encoder; none: random ones")
    args = parser.parse_args()
    if args.what == "measure":
        measure(args.work, args.setting, half=args.half, seed=args.seed, weights=args.weights)
    else:
        table(args.work)


if __name__ == "__main__":
    main()
