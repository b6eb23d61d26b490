"""Examples of the negatives of a config, to be looked at: what its sources make of its own training crops.

A picture of them tells more than any figure whether they are what they should be. They are drawn as in training, but
all of one size, so that they can be laid side by side. Nothing is pasted or trained here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import default_collate

from geood.config import Config
from geood.datasets import open_crops, open_photographs
from geood.models import Flow, Segmenter
from geood.training.negative_sources import Images, draw_patches
from geood.training.third_stage import telling


@torch.no_grad()
def example_negatives(
    config: Config, segmenter: Segmenter | None, flow: Flow | None, *, count: int, side: int
) -> Tensor | None:
    """Draw negatives (count, C, side, side) in [0, 1] from the sources of a config; None if it has none.

    Args:
        config: sources, and the images that crops are cut from.
        segmenter: the trained segmenter; only the source attribution needs it.
        flow: the trained flow, if it is one of the sources.
        count: number of negatives, at least two.
        side: height and width in pixels.

    Raises:
        DataError: images, labels or photographs cannot be used.
    """
    settings = config.negatives
    if not settings.sources:
        return None
    crops = open_crops(config)
    samples = crops.training(config.train.seed, count)
    batch = default_collate([samples[i] for i in range(count)])
    told = telling(segmenter, batch["image"]) if segmenter is not None and "attribution" in settings.sources else None
    patches = draw_patches(
        settings,
        [(side, side)] * count,
        Images(batch["image"], batch["valid"], told),
        flow=flow,
        photographs=open_photographs(config, crops.bands.count),
        generator=torch.Generator().manual_seed(config.train.seed),
    )
    return torch.stack(patches).clamp(0, 1)
