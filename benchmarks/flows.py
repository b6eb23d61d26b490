"""Bits per dimension of DenseFlow and of the plain affine flow, with as many parameters and in as much time.

    python benchmarks/flows.py --data FOLDER [--work FOLDER] [--steps 2000] [--seeds 0 1 2] [--network denseflow-small]

Trains the flow stage alone on the crops of two settings of `quality.py` (data as there), and prints for each flow its
parameters, steps, seconds of one core, and bits per dimension on the validation crops, mean and standard deviation over
seeds. The plain flow has the growth that brings its parameters nearest to those of the other; it is trained for as many
steps, and for as many as take the same time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import configured, prepare

from geood.config.sections import FlowConfig
from geood.models.flow import Flow
from geood.training.run_folder import last_metrics
from geood.training.trainer import train

SETTINGS = ("camvid-9-10", "dubai-unlabelled")
STAGE = {
    "train.segmenter_steps": 0,
    "train.third_stage": "joint",
    "train.joint_steps": 0,
    "train.precision": "32-true",
    "segmenter.outlier": "none",
    "negatives.source": "flow",
    "score.kind": "jsd",
}


def parameters(config: FlowConfig) -> int:
    """Trained numbers of a flow over three bands."""
    return sum(p.numel() for p in Flow(3, config, (1 / 255,) * 3).parameters())


def growth_for(wanted: int) -> int:
    """The growth of the plain flow whose number of parameters is nearest to `wanted`."""
    return min(range(2, 129), key=lambda growth: abs(parameters(FlowConfig(growth=growth)) - wanted))


def run(setting: str, seed: int, keys: dict[str, Any], *, root: Path, out: Path) -> tuple[float, float]:
    """Validation bits per dimension and core seconds of one training of the flow alone."""
    config = configured(setting, root, seed, STAGE | keys)
    began = time.process_time()
    train(config, out)
    seconds = time.process_time() - began
    return last_metrics(out / "metrics.csv", "flow")["flow/bpd"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/flows"), help="where runs are kept")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--network", default="denseflow-small")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dense = {"flow.network": options.network}
    growth = growth_for(parameters(FlowConfig(network=options.network)))
    plain = {"flow.growth": growth}
    print("| crops | flow | parameters | steps | core s | bits per dimension |\n|---|---|---|---|---|---|", flush=True)
    for setting in SETTINGS:
        root = prepare(setting.partition("-")[0], options.data.resolve(), options.work.resolve())
        longer = options.steps
        for name, keys in ((options.network, dense), ("plain, as many steps", plain), ("plain, as much time", plain)):
            steps = longer if name.endswith("time") else options.steps
            found = []
            for seed in options.seeds:
                out = options.work / setting / f"{name.replace(', ', '_').replace(' ', '_')}_{steps}_{seed}"
                found.append(run(setting, seed, keys | {"train.flow_steps": steps}, root=root, out=out))
            bits, seconds = np.array(found).T
            if keys is dense:
                spent = seconds.mean()
            elif steps == options.steps:
                longer = round(steps * spent / seconds.mean())
            network = {k.removeprefix("flow."): v for k, v in keys.items()}
            count = parameters(FlowConfig.model_validate(network))
            spread = f" ± {bits.std(ddof=1):.3f}" if len(bits) > 1 else ""
            cells = (setting, name, f"{count:,}", steps, f"{seconds.mean():.0f}", f"{bits.mean():.3f}{spread}")
            print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
