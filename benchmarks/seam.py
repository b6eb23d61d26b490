"""Do tiles show in a map of scores? Reach, halo and seams of one bundle, or of networks of every family of encoders.

    python benchmarks/seam.py BUNDLE... --scene SCENE [--side 1536] [--tile 768] [--halos]
    python benchmarks/seam.py --families --scene SCENE

Takes the middle `side` x `side` pixels of a scene, scores them once as a whole (with up to 352 px of what lies around)
and once in tiles, and prints: the halo that the network needs (that of the bundle, or measured here if it has none),
the share of a pixel's input gradient from beyond it, the mean step of scores from pixel to pixel across the inner
seams, the same between any two neighbouring pixels of the whole, their ratio, and of the 1 % most anomalous pixels the
share that change side. `--halos` prints a row for other halos too; the needed one has a star. `--families` takes
networks with random weights, their batch norms set by crops of the scene, and needs no bundle. It computes on one core,
in the float32 of `predict` on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geood.config import SCORES, Config
from geood.geo.bands import Bands
from geood.geo.grid import Tile, Window, tile_grid
from geood.geo.scene import Scene
from geood.models.bundle import TILE_PX, WIDE_HALO, WIDE_TILE_PX, ModelBundle
from geood.models.reach import MOST_HALO, effort_for, measured_reach, outputs_of
from geood.models.segmenter import Segmenter

FAMILIES = (
    {"encoder": "resnet18"},
    {"encoder": "resnet50"},
    {"encoder": "densenet121"},
    {"encoder": "tf_efficientnet_lite0"},
    {"encoder": "efficientnet_b0"},
    {"encoder": "convnext_atto"},
    {"encoder": "regnetx_002"},
    {"encoder": "regnety_002"},
    {"encoder": "densenet121", "network": "ldn121"},
)
HALOS = (0, 32, 64, 128, 192, 256, MOST_HALO)
ANOMALOUS = 0.01
BATCHES, BATCH, CROP_PX = 4, 8, 128  # that set the batch norms of a random network
HEADER = ("halo", "beyond", "seam step", "usual step", "ratio", "change side")


class Imagery:
    """Pixels of the middle of a scene, scaled for a network."""

    def __init__(self, path: Path, side: int, bands: Bands | None) -> None:
        with Scene.open(path, nodata=bands.nodata if bands else None) as scene:
            indexes = bands.indexes if bands else (1, 2, 3)
            row, col = ((size - side) // 2 for size in (scene.grid.height, scene.grid.width))
            margin = MOST_HALO
            around = Window(row - margin, col - margin, side + 2 * margin, side + 2 * margin)
            pixels, self.valid = scene.read(around, indexes)
            scaled = bands.scale(pixels, self.valid) if bands else pixels.astype(np.float32) / 255
        self.image, self.side, self.margin = torch.from_numpy(scaled)[None], side, margin

    def window(self, window: Window) -> Tensor:
        """Pixels of a window, counted from the middle part's corner."""
        rows, cols = (slice(a + self.margin, a + self.margin + n) for a, n in zip(window[:2], window[2:], strict=True))
        return self.image[..., rows, cols].contiguous()

    def views(self, height: int, width: int, number: int) -> list[Tensor]:
        """Parts for the measurement of reach."""
        places = np.random.default_rng(0).integers(
            0, np.array(self.image.shape[-2:]) - (height, width) + 1, (number, 2)
        )
        return [self.image[..., r : r + height, c : c + width].contiguous() for r, c in places.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*")
    parser.add_argument("--scene", type=Path, required=True)
    parser.add_argument("--families", action="store_true", help="networks with random weights")
    parser.add_argument("--halos", action="store_true", help="a row for other halos too")
    parser.add_argument("--encoders", nargs="*", default=[], help="of the families, those with these encoders alone")
    parser.add_argument("--side", type=int, default=1536, help="pixels; a multiple of 32")
    parser.add_argument("--tile", type=int, default=768, help="pixels; a multiple of 32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.scene.name}, {options.side} px, tiles of {options.tile} px")
    print(f"{'network':<34}{'score':<10}" + "".join(f"{name:>12}" for name in HEADER) + f"{'measured in':>14}")
    for path in options.bundles:
        bundle = ModelBundle.load(path, flow=False, tell=False)
        report(f"{bundle.config.segmenter.encoder}, trained", bundle, options)
    for keys in FAMILIES if options.families else ():
        if not options.encoders or keys["encoder"] in options.encoders:
            bundle = random_bundle(keys, Imagery(options.scene, options.side, None))
            report(" ".join(reversed(keys.values())), bundle, options)


def report(name: str, bundle: ModelBundle, options: argparse.Namespace) -> None:
    """Print the rows of one network."""
    imagery = Imagery(options.scene, options.side, bundle.bands)
    spent = time.process_time()
    if bundle.reach is None:
        needs = SCORES[bundle.config.score.kind].needs
        network = outputs_of(
            bundle.segmenter,
            outlier=needs in ("head", "class", "experts"),
            encoder="encoder" in needs or needs == "experts",
        )
        effort = effort_for(bundle.segmenter)
        reach = measured_reach(network, bundle.score, imagery.views, effort=effort, tile_px=tile_side)
        bundle = dataclasses.replace(bundle, reach=reach)
    assert bundle.reach is not None
    spent = time.process_time() - spent
    margin = MOST_HALO
    around = Window(-margin, -margin, options.side + 2 * margin, options.side + 2 * margin)
    whole = score(bundle, imagery, around)[margin:-margin, margin:-margin]
    own = bundle.reach.halo_px
    for halo in sorted({own, *HALOS} if options.halos else {own}):
        steps = seam_figures(bundle, imagery, whole, tile_px=options.tile, halo_px=halo)
        figures = f"{halo:>12}{bundle.reach.lost(halo):>11.2%} {steps[0]:>12.5f}{steps[1]:>12.5f}{steps[2]:>12.2f}"
        took = f"{spent:>12.1f} s" if halo == own and spent > 1 else ""
        print(
            f"{name:<34}{bundle.config.score.kind:<10}{figures}{steps[3]:>11.2%} {took}{' *' if halo == own else ''}",
            flush=True,
        )


def tile_side(halo_px: int) -> int:
    """Side of tiles as `predict` chooses it."""
    return WIDE_TILE_PX if halo_px > WIDE_HALO else TILE_PX


def score(bundle: ModelBundle, imagery: Imagery, window: Window) -> NDArray[np.float32]:
    """Scores (h, w) of one window, looked at alone."""
    return bundle.score(imagery.window(window))[0].numpy()


def seam_figures(
    bundle: ModelBundle, imagery: Imagery, whole: NDArray[np.float32], *, tile_px: int, halo_px: int
) -> tuple[float, float, float, float]:
    """Mean step at seams, mean step of the whole, their ratio, and the share of anomalous pixels that change side."""
    side = imagery.side
    tiled, tile = np.empty_like(whole), Tile(Window(0, 0, 0, 0), Window(0, 0, 0, 0))
    for tile in tile_grid(side, side, tile_px=tile_px, halo_px=halo_px):
        tiled[tile.write.slices] = score(bundle, imagery, tile.read)[tile.core]
    seams = [place - 1 for place in range(tile_px, side, tile_px)]
    down, across = (np.abs(np.diff(tiled, axis=axis)) for axis in (0, 1))
    stepped = np.mean([down[seams].mean(), across[:, seams].mean()])
    usual = np.mean([np.abs(np.diff(whole, axis=axis)).mean() for axis in (0, 1)])
    threshold = np.quantile(whole, 1 - ANOMALOUS)
    changed = ((tiled > threshold) != (whole > threshold)).sum() / (whole > threshold).sum()
    return float(stepped), float(usual), float(stepped / usual), float(changed)


def random_bundle(keys: dict[str, str], imagery: Imagery) -> ModelBundle:
    """A network with random weights (seed 0) whose batch norms have the statistics of crops of the scene."""
    torch.manual_seed(0)
    data = {"images": ["*.tif"], "labels": ["*.tif"], "classes": {i: f"class {i}" for i in range(5)}}
    config = Config.model_validate(
        {"data": data, "segmenter": keys | {"outlier": "none"}, "score": {"kind": "jsd", "encoder_bank": 0}}
    )
    network = Segmenter(3, 5, config.segmenter).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        for _ in range(BATCHES):
            places = torch.randint(0, imagery.image.shape[-1] - CROP_PX, (BATCH, 2)).tolist()
            network(torch.cat([imagery.image[..., r : r + CROP_PX, c : c + CROP_PX] for r, c in places]))
    return ModelBundle(
        segmenter=network.eval(),
        flow=None,
        inliers=None,
        bands=Bands(
            names=("red", "green", "blue"),
            indexes=(1, 2, 3),
            low=(0.0,) * 3,
            high=(255.0,) * 3,
            fill=(0.5,) * 3,
            step=(1 / 255,) * 3,
        ),
        config=config,
        class_ids=tuple(range(5)),
        resolution=None,
        calibration={},
        calibrated=config.score,
        metrics={},
    )


if __name__ == "__main__":
    main()
