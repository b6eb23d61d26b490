"""Flows at equal time: bits per dimension, and how far their samples are images.

    python benchmarks/flows.py --data FOLDER [--work FOLDER] [--seconds 60] [--seeds 0 1 2] [--sets ...] [--flows ...]

Trains each flow for as many seconds of one core on random patches of the training images of a data set, prepared as in
`quality.py` (data as there), and measures it on patches of its validation images: bits per dimension, and the monitor's
figures of as many samples as there are patches, in the first row those of these patches. CamVid has validation images
of its own; of the scenes the right fifth is kept apart. A folder of pictures is written to the work folder: samples
above patches. Rows are means over the seeds.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import torch
from quality import prepare
from torch import Tensor, nn

from geood.config.sections import FlowConfig
from geood.models.flows.flow import Flow
from geood.training.sample_monitor import sample_figures, sample_picture

SETS = ("camvid", "dubai", "mumbai")
COLUMNS = ("corr_1", "corr_4", "corr_8", "corr_16", "border", "outside", "spread")
SIDE = 64  # of the patches that are measured, in pixels
MEASURED = 96  # patches and samples
EMPTY = 0.02  # largest share of black pixels in a patch: scenes have corners without data


class Trial(NamedTuple):
    """A flow and how it is trained: sides of patches in pixels (None: 8 to 72, drawn anew), patches a step, rate."""

    config: FlowConfig
    side: int | None = 64  # as in a training: patches of the largest size, fewer a step
    batch: int = 5
    rate: float = 1e-3


TRIALS = {
    "plain": Trial(FlowConfig()),
    "plain, patches of 8 to 72 px": Trial(FlowConfig(), side=None, batch=16),
    "plain, 4 steps a level": Trial(FlowConfig(steps=4)),
    "plain, 4 levels": Trial(FlowConfig(levels=4)),
    "plain, 64 wide": Trial(FlowConfig(growth=64)),
    "plain, rate 2e-3": Trial(FlowConfig(), rate=2e-3),
    "denseflow-small": Trial(FlowConfig(network="denseflow-small")),
}


def opened(root: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Training and validation images (3, H, W) bytes of a prepared data set."""
    parts = [_images(root / part / "images") for part in ("train", "validation")]
    if parts[1]:
        return parts[0], parts[1]
    ends = [image.shape[2] * 4 // 5 for image in parts[0]]
    whole = list(zip(parts[0], ends, strict=True))
    return [image[:, :, :end] for image, end in whole], [image[:, :, end:] for image, end in whole]


def _images(folder: Path) -> list[Tensor]:
    found = []
    for path in sorted(folder.glob("*")):
        with rasterio.open(path) as source:
            found.append(torch.from_numpy(source.read()))
    return found


def patches(images: list[Tensor], count: int, sides: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random patches (count, 3, height, width) in [0, 1]."""
    height, width = sides
    images = [image for image in images if image.shape[1] >= height and image.shape[2] >= width]
    found: list[Tensor] = []
    while len(found) < count:
        image = images[int(torch.randint(len(images), (1,), generator=generator))]
        row = int(torch.randint(image.shape[1] - height + 1, (1,), generator=generator))
        col = int(torch.randint(image.shape[2] - width + 1, (1,), generator=generator))
        patch = image[:, row : row + height, col : col + width]
        if float((patch == 0).all(0).float().mean()) <= EMPTY:
            found.append(patch)
    return torch.stack(found).float() / 255


def trained(trial: Trial, images: list[Tensor], *, seconds: float, seed: int) -> tuple[Flow, int]:
    """A flow after that many seconds of the core, and its steps; the rate falls along a cosine of the time."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    flow = Flow(3, trial.config, (1 / 255,) * 3).train()
    optimizer, steps, began = torch.optim.Adam(flow.parameters(), trial.rate), 0, time.process_time()
    flow.initialize(patches(images, 64, (SIDE, SIDE), generator))
    while (done := (time.process_time() - began) / seconds) < 1:
        rate = trial.rate * min(1, (steps + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        height, width = (8 * torch.randint(1, 10, (2,), generator=generator)).tolist()
        sides = (height, width) if trial.side is None else (trial.side, trial.side)
        loss = flow.bits_per_dimension(patches(images, trial.batch, sides, generator), generator).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        steps += 1
    return flow.eval(), steps


@torch.no_grad()
def measured(flow: Flow, held: Tensor, picture: Path) -> dict[str, float]:
    """Bits per dimension of patches, and the monitor's figures of samples."""
    bits = float(flow.bits_per_dimension(held, torch.Generator().manual_seed(1)).mean())
    samples = flow.sample(len(held), SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    picture.parent.mkdir(parents=True, exist_ok=True)
    rows = {f"samples, {SIDE} x {SIDE} px": samples, "": samples[8:], "validation patches": held, " ": held[8:]}
    sample_picture(rows).save(picture)
    return {"bits": bits} | sample_figures(samples, flow.step)


def cells(figures: Mapping[str, Any]) -> Iterator[str]:
    """The cells of a row, each a mean over seeds; that of the bits with its standard deviation."""
    bits = np.array(figures.get("bits", []))
    yield (f"{bits.mean():.3f}" + (f" ± {bits.std(ddof=1):.3f}" if len(bits) > 1 else "")) if len(bits) else ""
    for name in COLUMNS:
        value = float(np.mean(figures[name]))
        yield f"{100 * value:.1f} %" if name == "outside" else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/flows"), help="where prepared data and pictures go")
    parser.add_argument("--seconds", type=float, default=60, help="of one core, for each flow and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--flows", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| crops | flow | parameters | steps | bits | 1 px | 4 px | 8 px | 16 px | border | outside | spread |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.sets:
        train, validation = opened(prepare(name, options.data.resolve(), options.work.resolve()))
        held = patches(validation, MEASURED, (SIDE, SIDE), torch.Generator().manual_seed(99))
        real = sample_figures(held, torch.full((3,), 1 / 255))
        print(f"| {name} | *validation patches* | | | {' | '.join(cells(real))} |", flush=True)
        for flow_name in options.flows:
            found, steps = [], []
            for seed in options.seeds:
                flow, count = trained(TRIALS[flow_name], train, seconds=options.seconds, seed=seed)
                picture = (
                    options.work / "pictures" / f"{name}_{flow_name.replace(', ', '_').replace(' ', '_')}_{seed}.png"
                )
                found.append(measured(flow, held, picture))
                steps.append(count)
            figures = {key: [row[key] for row in found] for key in found[0]}
            numbers = f"{sum(p.numel() for p in flow.parameters()):,} | {np.mean(steps):.0f}"
            print(f"| {name} | {flow_name} | {numbers} | {' | '.join(cells(figures))} |", flush=True)


if __name__ == "__main__":
    main()
