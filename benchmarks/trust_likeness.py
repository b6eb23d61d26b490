"""Is a scene called unlike when it is, and only then? Likeness on scenes as they are and as changed.

    python benchmarks/trust_likeness.py measure --work WORK --setting mumbai --half 0 --seed 0 [--weights FILE]
        train on one half of the scenes of a setting (as `trust.py prepare` leaves them in WORK/data), and keep the
        statistics of cells of the other half, as they are and as changed, in WORK/likeness/SETTING_halfN_seedN.npz
    python benchmarks/trust_likeness.py table --work WORK
        of how many scenes each change is seen, and what is named first, by today's rule

Scenes are passed as a whole, so that one takes a few seconds with all its changes; every third cell along either axis
is measured, as `predict` does. Beside the statistics that are compared, moments of the bands within each predicted
class are kept, for studies of other rules.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import rasterio
import trust
from numpy.typing import NDArray
from scipy.stats import beta

from geood.calibration import cells as cell_room
from geood.calibration import drift_of, pooled_features, statistic_names, tile_cells
from geood.calibration.cells import CellMaps
from geood.calibration.exchangeability import in_words
from geood.calibration.tiled_scoring import ImageSource, passed_tiles
from geood.config import load_config
from geood.geo.grid import tile_grid
from geood.models import CalibrationRecord, ModelBundle, for_inference
from geood.training import train

CHANGES = (*trust.CHANGES[:1], *trust.CHANGES[2:], "half the resolution")  # nodata takes cells away, and changes none


def moments(maps: CellMaps, known: NDArray[np.bool_], every: int) -> NDArray[np.float32]:
    """Return of each cell and predicted class the pixels, means and covariances of the bands (n, K, 1 + B + B B)."""
    side, found = cell_room.CELL_PX, []
    bands = len(maps.image)
    for row in range(0, known.shape[0], side * every):
        for col in range(0, known.shape[1], side * every):
            window = slice(row, row + side), slice(col, col + side)
            mask = known[window]
            if mask.sum() < cell_room.LEAST_KNOWN * side**2:
                continue
            cell = np.zeros((maps.class_count, 1 + bands + bands**2), np.float32)
            for channel in range(maps.class_count):
                pixels = maps.image[:, *window][:, mask & (maps.classes[window] == channel)]
                if pixels.shape[1] > 1:
                    cell[channel] = np.r_[pixels.shape[1], pixels.mean(1), np.cov(pixels).ravel()]
            found.append(cell)
    return np.array(found, np.float32).reshape(len(found), maps.class_count, 1 + bands + bands**2)


@contextmanager
def kept_moments() -> Iterator[list[NDArray[np.float32]]]:
    """Keep the moments of all cells whose statistics are measured meanwhile."""
    kept: list[NDArray[np.float32]] = []
    measured = cell_room.cell_statistics

    def keeping(maps: CellMaps, known: NDArray[np.bool_], *, every: int = cell_room.EVERY) -> NDArray[np.float32]:
        kept.append(moments(maps, known, every))
        return measured(maps, known, every=every)

    with patch.object(cell_room, "cell_statistics", keeping):
        yield kept


def changed(pixels: NDArray[np.uint8], how: str, rng: np.random.Generator) -> ImageSource:
    """Return a scene (C, H, W) as changed."""
    if how == "half the resolution":
        rows, cols = (size // 2 * 2 for size in pixels.shape[1:])
        wide = pixels[:, :rows, :cols].astype(np.float32).reshape(3, rows // 2, 2, cols // 2, 2).mean((2, 4))
        coarse = np.rint(wide).clip(1).astype(np.uint8)
        return ImageSource(coarse, np.ones(coarse.shape[1:], bool), scale=2.0)
    return ImageSource(trust.changed(pixels, how, rng), np.ones(pixels.shape[1:], bool))


def cells_of(bundle: ModelBundle, source: ImageSource) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the statistics (n, S) and moments (n, K, M) of a scene's cells."""
    kind, found = bundle.config.score.kind, []
    rows, cols = source.mask.shape
    tiles = tile_grid(rows, cols, tile_px=-(-max(rows, cols) // 32) * 32, halo_px=0, scale=source.scale)
    with kept_moments() as kept:
        for one, within in passed_tiles(bundle, source, tiles, lambda _, wanted: wanted, kinds=(kind,)):
            score = bundle.score_of(one.output, one.image, one.seen, kind=kind)[0].float().numpy()
            classes = one.output.logits[0].argmax(0).numpy().astype(np.uint8)
            near = pooled_features(one.output.features)[0].numpy()
            maps = CellMaps(one.image[0].numpy(), score, classes, near, len(bundle.class_ids))
            found.append(tile_cells(maps, one.tile, within, scale=source.scale))
    return np.concatenate(found), np.concatenate(kept)


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
    with kept_moments() as kept:
        config = load_config(trust.HERE / f"{setting}.yaml", [f"{k}={json.dumps(v)}" for k, v in chosen.items()])
        train(config, run, resume=(run / "config.yaml").exists())
    bundle = for_inference(ModelBundle.load(run / "model.safetensors", flow=False, tell=False))
    record = bundle.record
    assert record is not None
    ground = np.concatenate(kept) if kept else np.empty((0, len(bundle.class_ids), 13), np.float32)
    if len(ground) > len(record.cells):  # the record keeps as many, drawn in this way
        ground = ground[sorted(np.random.default_rng([seed, 78]).permutation(len(ground))[: len(record.cells)])]
    print(f"trained in {time.process_time() - began:.0f} core s, {record.images} images, {len(record.cells)} cells")
    kept_cells: dict[str, Any] = {"record": record.model_dump_json(), "moments ground": ground}
    for image in held:
        with rasterio.open(image) as file:
            pixels = file.read([1, 2, 3])
        rng = np.random.default_rng(0)
        for how in CHANGES:
            stats, inside = cells_of(bundle, changed(pixels, how, rng))
            kept_cells |= {f"cells {image.stem}: {how}": stats, f"moments {image.stem}: {how}": inside}
        print(f"{image.stem}, {time.process_time() - began:.0f} core s", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **kept_cells)


def table(work: Path) -> None:
    """Print of how many scenes each change is seen, with the exact 95 % interval, and what is named first."""
    seen: dict[str, list[str]] = {how: [] for how in CHANGES}
    for path in sorted((work / "likeness").glob("*.npz")):
        with np.load(path) as kept:
            record = CalibrationRecord.model_validate_json(str(kept["record"]))
            bands = tuple(name.removeprefix("level ") for name in record.statistics if name.startswith("level "))
            classes = sum(name.startswith("class ") for name in record.statistics)
            names = statistic_names(bands, classes)
            for name in kept.files:
                if name.startswith("cells "):
                    drift = drift_of(kept[name], record, names=names)
                    assert drift is not None
                    words = in_words(drift, {}).removeprefix("perhaps ")
                    seen[name.split(": ", 1)[1]].append(words.split(",")[0].split(" (")[0])
    print("| changed by | scenes | called unlike | 95 % interval | named first |\n|---|---|---|---|---|")
    for how, words in seen.items():
        count, total = sum(map(bool, words)), len(words)
        low = beta.ppf(0.025, count, total - count + 1) if count else 0.0
        high = beta.ppf(0.975, count + 1, total - count) if count < total else 1.0
        first = "; ".join(f"{word} {n}" for word, n in Counter(filter(None, words)).most_common(4))
        print(f"| {how} | {total} | {count} | {100 * low:.0f} to {100 * high:.0f} % | {first} |")


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
