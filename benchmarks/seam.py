"""How much does a tile's edge differ from one pass over the whole scene, for some halos?

    python benchmarks/seam.py BUNDLE SCENE [--side 1024] [--tile 512]

Takes the upper left `side` x `side` pixels of a scene, scores them once as a whole (mirrored all around by 128 px) and
once in tiles, and prints for each halo the difference of the scores over all valid pixels and over those within 16 px
of an inner seam. With a halo as wide as the network's receptive field both are rounding alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from geood.geo.grid import Window, tile_grid
from geood.geo.scene import Scene
from geood.models.bundle import ModelBundle

MARGIN = 128


def score(model: ModelBundle, scene: Scene, window: Window) -> NDArray[np.float32]:
    """Scores (h, w) of one window, looked at alone; NaN where invalid."""
    pixels, valid = scene.read(window, model.bands.indexes)
    image = torch.from_numpy(model.bands.scale(pixels, valid))[None]
    return np.where(valid, model.score(image)[0].numpy(), np.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--side", type=int, default=1024, help="pixels; a multiple of 32")
    parser.add_argument("--tile", type=int, default=512, help="pixels; a multiple of 32")
    options = parser.parse_args()
    side, tile_px = options.side, options.tile
    model = ModelBundle.load(options.bundle)
    near = np.zeros((side, side), bool)
    for place in range(tile_px, side, tile_px):
        near[place - 16 : place + 16] = near[:, place - 16 : place + 16] = True
    print(
        f"{options.bundle.name}, encoder {model.config.segmenter.encoder}, {options.scene.name}, tiles of {tile_px} px"
    )
    print(f"{'halo px':>8}{'mean':>10}{'p99':>10}{'max':>10}{'mean at seams':>16}{'max at seams':>14}")
    with Scene.open(options.scene, nodata=model.bands.nodata) as scene:
        around = Window(-MARGIN, -MARGIN, side + 2 * MARGIN, side + 2 * MARGIN)
        whole = score(model, scene, around)[MARGIN:-MARGIN, MARGIN:-MARGIN]
        for halo in (0, 32, 64, 128, 256):
            tiled = np.full_like(whole, np.nan)
            for tile in tile_grid(side, side, tile_px=tile_px, halo_px=halo):
                tiled[tile.write.slices] = score(model, scene, tile.read)[tile.core]
            gap = np.abs(tiled - whole)
            figures = (np.nanmean(gap), np.nanpercentile(gap, 99), np.nanmax(gap))
            seams = (np.nanmean(gap[near]), np.nanmax(gap[near]))
            print(f"{halo:>8}" + "".join(f"{x:>10.5f}" for x in figures) + f"{seams[0]:>16.5f}{seams[1]:>14.5f}")


if __name__ == "__main__":
    main()
