"""What could one round of review bring at most? Ways to use verdicts, on one pass through the networks.

    python benchmarks/feedback_ways.py SETTING --bundle FILE --data FOLDER [--fpr 0.05] [--seeds 0 1 2]

SETTING, FOLDER, parts and verdicts as in `benchmarks/feedback.py`; FILE is a finished bundle of it that scores by
`combined` (the placeholder {seed} stands for the seed). No network learns: both parts pass through it once, verdicts
are given to the 100 polygons with the most contrast times root of area above the threshold of --fpr, and each way
changes the scores alone, so a seed takes seconds. Tiles are not used: a scene is passed as a whole.

Printed: average precision, and false polygons for each square kilometre at recalls of things, for reviewed and for
untouched ground; the fourth recall is the one that the reviewed map had. Ways: the bank of the encoder with the places
of false alarms, each three times, in the banks of all classes, and with 12 px around them; scores lowered near features
of false alarms, and around them (with the bank, 5 places: what `geood feedback` and `geood train --from` do); a linear
classifier of real things against false alarms and the bank; a threshold of each class; and, as the most that lessons
can bring at the places that were seen, reviewed false ground without scores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import feedback as one_round
import numpy as np
import quality
import rasterio
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from geood.config.loading import load_config
from geood.metrics.objects import count_polygons, is_real, things_of, threshold_at_recall
from geood.metrics.pixels import PixelCurve
from geood.models.bundle import ModelBundle
from geood.models.encoder_bank import located, places
from geood.models.inlier_statistics import Inliers

RECALLS = (0.05, 0.1, 0.2, 0.3, 0.5)
LEAST_PX, RING_PX, AROUND_PX, VERDICTS = 9, 8, 12, 100
Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]


class Passed(NamedTuple):
    """A scene after the networks: their answer, the pixels that went in, its own size, validity and pixel area."""

    answer: Any
    image: Tensor
    shape: tuple[int, int]
    valid: NDArray[np.bool_]
    pixel_m2: float

    def full(self, coarse: Tensor) -> NDArray[np.float32]:
        """Values (h, w) of a map of features, at the scene's pixels."""
        size = self.image.shape[-2:]
        wide = functional.interpolate(coarse[None, None].float(), size=size, mode="bilinear", align_corners=False)
        return wide[0, 0].numpy()[: self.shape[0], : self.shape[1]]

    def features(self, bank: Bank) -> Tensor:
        """Encoder features (h, w, A) as places of the bank."""
        assert bank.bundle.inliers is not None
        maps = (self.answer.encoder, *([] if bank.bundle.inliers.is_narrow(self.answer) else [self.answer.coarser]))
        return located(maps, shift=bank.shift, axes=bank.axes)[0]

    def classes(self) -> NDArray[np.int64]:
        return self.answer.logits[0].argmax(0).numpy()[: self.shape[0], : self.shape[1]]


class Bank:
    """The bank of a bundle, and what becomes of scores with another one."""

    def __init__(self, bundle: ModelBundle) -> None:
        assert bundle.inliers is not None
        self.bundle, self.buffers = bundle, dict(bundle.inliers.named_buffers())
        self.shift, self.axes, self.near, self.of = (
            self.buffers[f"encoder_{name}"] for name in ("shift", "axes", "near", "classes")
        )

    def with_places(self, features: Tensor, classes: Tensor) -> ModelBundle:
        near, of = torch.cat([self.near, features]), torch.cat([self.of, classes.float()])
        order = of.argsort(stable=True)
        return replace(
            self.bundle,
            inliers=Inliers(self.buffers | {"encoder_near": near[order], "encoder_classes": of[order]}),
        )

    def at(self, scenes: list[Passed], masks: Masks) -> tuple[Tensor, Tensor]:
        """Features (N, A) and classes (N,) of the places whose middle pixel is in the masks."""
        found, taken = [], []
        for scene, mask in zip(scenes, masks, strict=True):
            scale = scene.image.shape[-1] // scene.answer.encoder.shape[-1]
            whole = np.zeros(scene.image.shape[-2:], bool)
            whole[: scene.shape[0], : scene.shape[1]] = mask
            inside = torch.from_numpy(whole[scale // 2 :: scale, scale // 2 :: scale])
            found.append(scene.features(self)[inside])
            taken.append(places(scene.answer.logits, scene.answer.encoder.shape[2:])[0][inside])
        return torch.cat(found), torch.cat(taken)


def passed(bundle: ModelBundle, pairs: list[tuple[Path, Path]]) -> list[Passed]:
    scenes = []
    for path, _ in pairs:
        with rasterio.open(path) as file:
            pixels, valid = file.read([1, 2, 3]), file.dataset_mask() > 0
            pixel_m2 = abs(file.transform.a * file.transform.e)
        image = torch.from_numpy(bundle.bands.scale(pixels, valid))[None]
        height, width = image.shape[-2:]
        image = functional.pad(image, (0, -width % 32, 0, -height % 32), mode="reflect")
        with torch.inference_mode():
            scenes.append(Passed(bundle.infer(image), image, (height, width), valid, pixel_m2))
    return scenes


def scores(bundle: ModelBundle, scenes: list[Passed]) -> Maps:
    found = []
    for scene in scenes:
        score = bundle.score_of(scene.answer, scene.image)[0].numpy()[: scene.shape[0], : scene.shape[1]].copy()
        score[~scene.valid] = np.nan
        found.append(score)
    return found


def judged(maps: Maps, truth: list[np.ndarray], threshold: float) -> tuple[Masks, Masks, dict[str, int]]:
    """Ground of false alarms and of real things among the polygons with the most contrast times root of area."""
    polygons = []
    for i, (score, ids) in enumerate(zip(maps, truth, strict=True)):
        labels, _ = ndimage.label(np.nan_to_num(score, nan=-np.inf) > threshold, np.ones((3, 3)))
        for number, window in enumerate(ndimage.find_objects(labels), 1):
            mask = labels[window] == number
            if (area := int(mask.sum())) < LEAST_PX:
                continue
            near = tuple(slice(max(0, side.start - RING_PX), side.stop + RING_PX) for side in window)
            ring = score[near][labels[near] == 0]
            contrast = score[window][mask].mean() - (np.nanmean(ring) if ring.size else threshold)
            known = ids[window][mask]
            known = known[known != 255]
            real = bool(is_real(np.array([(known == 1).sum()]), np.array([known.size]))[0]) if known.size else False
            said = "real" if real else "unsure" if not known.size or (known == 1).any() else "false"
            polygons.append((-contrast * area**0.5, i, window, mask, said))
    polygons = sorted(polygons, key=lambda polygon: polygon[0])[:VERDICTS]
    ground = {said: [np.zeros(score.shape, bool) for score in maps] for said in ("false", "real", "unsure")}
    for _, i, window, mask, said in polygons:
        ground[said][i][window] |= mask
    return ground["false"], ground["real"], {said: sum(p[4] == said for p in polygons) for said in ground}


def figures(maps: Maps, truth: list[np.ndarray], scenes: list[Passed], recalls: list[float]) -> list[float]:
    """Average precision in percent, and false polygons for each square kilometre at recalls."""
    curve, reach, rest = PixelCurve(), [], []
    for score, ids in zip(maps, truth, strict=True):
        things, others = things_of(ids)
        reach.append(things.reach(score))
        rest.append(others)
        curve.update(np.nan_to_num(score, nan=0.0), np.where(np.isfinite(score), ids, 255).astype(np.uint8))
    km2 = sum(np.isfinite(score).sum() * scene.pixel_m2 / 1e6 for score, scene in zip(maps, scenes, strict=True))
    row = [100 * float(curve.average_precision)]
    for recall in recalls:
        at = threshold_at_recall(np.concatenate(reach), recall)
        counts = [
            count_polygons(score, others, threshold=at, least_px=one_round.LEAST_POLYGON_M2 / scene.pixel_m2).false
            for score, others, scene in zip(maps, rest, scenes, strict=True)
        ]
        row.append(sum(counts) / km2)
    return row


def lowered(
    bank: Bank, scene: Passed, false: Tensor, *, nats: float, reach: float = 1.0, largest: int = 1, mean: int = 1
) -> NDArray[np.float32]:
    """What is taken from scores near features of false alarms: most at them, nothing at some usual distances.

    The nearness of a place is the largest within so many places on a side, and then the mean over so many.
    """
    usual = torch.cdist(bank.near[::4], bank.near).topk(4, largest=False).values[:, 1:].mean(1).median() * reach
    features = scene.features(bank)
    close = (1 - torch.cdist(features.flatten(0, 1), false).amin(1) / usual).clamp(min=0)
    near = close.reshape(1, 1, *features.shape[:2])
    near = functional.max_pool2d(near, largest, 1, largest // 2)
    near = functional.avg_pool2d(near, mean, 1, mean // 2, count_include_pad=False)
    return nats * scene.full(near[0, 0])


def classifier(bank: Bank, real: Tensor, others: Tensor) -> Callable[[Passed], NDArray[np.float32]]:
    """Half the logit of a linear classifier of real things against others, within 3."""
    both = torch.cat([real, others]).double()
    truth = torch.cat([torch.ones(len(real)), torch.zeros(len(others))]).double()
    mean, spread = both.mean(0), both.std(0).clamp_min(1e-3)
    inputs, weight = (both - mean) / spread, torch.where(truth > 0, min(50.0, len(others) / len(real)), 1.0)
    line = torch.zeros(inputs.shape[1] + 1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=60)

    def cost() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ line[:-1] + line[-1]
        found = functional.binary_cross_entropy_with_logits(logits, truth, weight=weight)
        found = found + 3e-3 * line[:-1].square().sum()
        found.backward()
        return found

    optimizer.step(cost)

    def half(scene: Passed) -> NDArray[np.float32]:
        logits = ((scene.features(bank).double() - mean) / spread) @ line.detach()[:-1] + line.detach()[-1]
        return 0.5 * scene.full(logits.clamp(-6, 6))

    return half


def by_class(maps: Maps, scenes: list[Passed], real: Masks, truth: list[np.ndarray]) -> Callable[[Passed], Any]:
    """How far the 99 % quantile of each class's reviewed scores lies above that of all; at most 4 nats."""
    known = [np.isfinite(score) & ~mask for score, mask in zip(maps, real, strict=True)]
    inlier = [np.isfinite(score) & (ids != 1) for score, ids in zip(maps, truth, strict=True)]
    overall = np.quantile(np.concatenate([score[mask] for score, mask in zip(maps, inlier, strict=True)]), 0.99)
    shift = []
    for channel in range(scenes[0].answer.logits.shape[1]):
        masks = [mask & (scene.classes() == channel) for scene, mask in zip(scenes, known, strict=True)]
        own = np.concatenate([score[mask] for score, mask in zip(maps, masks, strict=True)])
        shift.append(np.clip(np.quantile(own, 0.99) - overall, -4, 4) if own.size > 2000 else 0.0)
    return lambda scene: np.asarray(shift, np.float32)[scene.classes()]


def run(bundle: ModelBundle, parts: dict[str, Any], config: Any, *, fpr: str) -> None:
    """Print the table of one bundle."""
    spent, bank = time.process_time(), Bank(bundle)
    truth = {part: one_round.truths(pairs, config) for part, pairs in parts.items()}
    scenes = {part: passed(bundle, pairs) for part, pairs in parts.items()}
    before = {part: scores(bundle, some) for part, some in scenes.items()}
    threshold = bundle.thresholds[fpr]
    false, real, said = judged(before["reviewed"], truth["reviewed"], threshold)
    reach = [things_of(ids)[0].reach(s) for s, ids in zip(before["reviewed"], truth["reviewed"], strict=True)]
    own = float(np.mean(np.concatenate(reach) > threshold))
    recalls = [*RECALLS[:3], own, *RECALLS[3:]]
    at_false, at_real = bank.at(scenes["reviewed"], false), bank.at(scenes["reviewed"], real)[0]
    wide = [
        ndimage.binary_dilation(mask, iterations=AROUND_PX) & ~ndimage.binary_dilation(other, iterations=4)
        for mask, other in zip(false, real, strict=True)
    ]
    classes = bank.of.unique()
    everywhere = at_false[0].repeat(len(classes), 1), classes.repeat_interleave(len(at_false[0]))
    banks = {
        "bank: places of false alarms": bank.with_places(*at_false),
        "bank: each of them three times": bank.with_places(at_false[0].repeat(3, 1), at_false[1].repeat(3)),
        "bank: in every class": bank.with_places(*everywhere),
        "bank: and 12 px around": bank.with_places(*bank.at(scenes["reviewed"], wide)),
    }
    ways = {"before": before}
    ways |= {name: {part: scores(other, scenes[part]) for part in parts} for name, other in banks.items()}

    def taken(less: Callable[[Passed], Any]) -> dict[str, Maps]:
        return {p: [s - less(scene) for s, scene in zip(before[p], scenes[p], strict=True)] for p in parts}

    for nats, distance in ((2.0, 1.0), (4.0, 1.0), (4.0, 1.5)):
        near = taken(lambda scene, n=nats, d=distance: lowered(bank, scene, at_false[0], nats=n, reach=d))
        ways[f"less near false alarms, {nats:g} nats, {distance:g} distances"] = near
    whole = taken(lambda scene: lowered(bank, scene, at_false[0], nats=4.0))
    ways["the same, 4 nats, never below the reviewed map's threshold"] = {
        p: [np.maximum(less, np.minimum(s, threshold)) for less, s in zip(whole[p], before[p], strict=True)]
        for p in parts
    }
    with_bank = ways["bank: places of false alarms"]
    for largest, mean in ((1, 1), (3, 3), (5, 5), (7, 5)):
        less = {
            p: [lowered(bank, s, at_false[0], nats=4.0, largest=largest, mean=mean) for s in scenes[p]] for p in parts
        }
        name = f"bank, less near and around (largest of {largest}, mean of {mean} places)"
        ways[name] = {p: [s - n for s, n in zip(with_bank[p], less[p], strict=True)] for p in parts}
    if len(at_real):
        half = classifier(bank, at_real, torch.cat([at_false[0], bank.near]))
        ways["linear classifier, real against false and bank"] = taken(lambda scene: -half(scene))
    ways["a threshold of each class"] = taken(by_class(before["reviewed"], scenes["reviewed"], real, truth["reviewed"]))
    lowest = np.float32(min(np.nanmin(score) for score in before["reviewed"]))
    gone = [np.where(mask, lowest, score) for mask, score in zip(false, before["reviewed"], strict=True)]
    ways["no score on reviewed false ground"] = {"reviewed": gone, "untouched": before["untouched"]}
    print(f"verdicts {said}, recall of the reviewed map {own:.2f}, {time.process_time() - spent:.0f} core s")
    heads = " | ".join(f"{recall:.2f}" for recall in recalls)
    print(f"| way | reviewed: AP | {heads} | untouched: AP | {heads} |\n|---|{'---|' * 2 * (1 + len(recalls))}")
    for name, maps in ways.items():
        rows = [figures(maps[part], truth[part], scenes[part], recalls) for part in parts]
        print(f"| {name} | {' | '.join(f'{value:.1f}' for row in rows for value in row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=sorted(path.stem for path in quality.HERE.glob("*.yaml")))
    parser.add_argument("--bundle", required=True, help="finished bundle; {seed} stands for the seed")
    parser.add_argument("--data", type=Path, required=True, help="prepared data of the setting")
    parser.add_argument("--work", type=Path, default=Path("runs/feedback"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fpr", default="0.05", help="rate of the threshold that the reviewed map was cut at")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(quality.HERE / f"{options.setting}.yaml", [f"data.root={options.data.resolve()}"])
    parts = one_round.parted(options.data.resolve(), options.setting, options.work.resolve() / options.setting)
    for seed in options.seeds:
        bundle = ModelBundle.load(options.bundle.format(seed=seed), flow=False, tell=False)
        print(f"\nseed {seed}:", end=" ")
        run(bundle, parts, config, fpr=options.fpr)


if __name__ == "__main__":
    main()
