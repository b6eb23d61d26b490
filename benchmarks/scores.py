"""What each score costs beside the forward pass whose answer it reads.

    python benchmarks/scores.py [--side 1024] [--classes 8 19] [--networks ldn121 densenet121 resnet18] [--repeats 5]

An untrained segmenter answers one tile of `side` x `side` pixels on one thread (as each tile of `predict` has one on a
CPU; on a GPU, where there is one, in bfloat16); then every score that such a bundle can give is read off that answer.
Freed memory is kept, as in `predict`; else page faults are most of what a score costs. Printed is the least time of all
repeats, and that of scores in per cent of the forward pass. Every score reads the one answer: none looks at the scene
again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from geood.config.sections import Config, SegmenterConfig
from geood.geo.bands import Bands
from geood.models.bundle import ModelBundle
from geood.models.inlier_statistics import InlierFit
from geood.models.score_maps import with_tails
from geood.models.segmenter import Segmenter
from geood.prediction.malloc import keep_freed_memory

BANK = 4096
SMOOTH_PX = 8


def bundle_of(network: str, classes: int) -> ModelBundle:
    """An untrained bundle with everything that scores may ask for."""
    shape = {"network": "ldn121"} if network == "ldn121" else {"encoder": network}
    names = {i: str(i) for i in range(classes)}
    config = Config.model_validate(
        {
            "data": {"images": ["x"], "labels": ["y"], "classes": names},
            "segmenter": shape | {"outlier": "head"},
            "score": {"smooth_px": 0},
        }
    )
    torch.manual_seed(0)
    segmenter = Segmenter(3, classes, SegmenterConfig(**shape, outlier="head")).eval()
    fit = InlierFit(classes, samples=BANK, places=2048, batches=1, seed=0)
    with torch.no_grad():
        answer = segmenter(torch.rand(1, 3, 512, 512))
    fit.update(answer, torch.zeros(1, 512, 512, dtype=torch.int64))
    bands = Bands(("r", "g", "b"), (1, 2, 3), (0.0,) * 3, (255.0,) * 3, (0.5,) * 3, (1 / 255,) * 3)
    return ModelBundle(
        segmenter=segmenter,
        flow=None,
        inliers=with_tails(fit.finish(), lambda kind: lambda share: -share),
        bands=bands,
        config=config,
        class_ids=tuple(range(classes)),
        resolution=None,
        calibration={},
        calibrated=config.score,
        metrics={},
    )


def seconds_of(run: Callable[[], object], repeats: int) -> float:
    """Least seconds of a call, after one to warm up: of the core on a CPU, of the clock on a GPU.

    What else runs on a machine adds to a time and never takes from it.
    """
    on_gpu, times = torch.cuda.is_available(), []
    clock = time.perf_counter if on_gpu else time.process_time
    for _ in range(repeats + 1):
        began = clock()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(clock() - began)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--classes", type=int, nargs="+", default=[8, 19])
    parser.add_argument("--networks", nargs="+", default=["ldn121", "densenet121", "resnet18"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    print(f"{options.side} x {options.side} px, one tile, {device.type}, torch {torch.__version__}")
    for network in options.networks:
        for classes in options.classes:
            one_network(network, classes, side=options.side, repeats=options.repeats, device=device)


def one_network(network: str, classes: int, *, side: int, repeats: int, device: torch.device) -> None:
    """Print one network's table."""
    bundle = bundle_of(network, classes).to(device)
    image = torch.rand(1, 3, side, side, device=device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        forward = seconds_of(lambda: bundle.infer(image, ("jsd",)), repeats)
        head = seconds_of(lambda: bundle.infer(image), repeats) - forward
        answer = bundle.infer(image)
    print(f"\n{network}, {classes} classes: forward pass {1000 * forward:.0f} ms")
    print(f"  {'outlier head':<24}{1000 * head:>8.1f} ms{100 * head / forward:>8.2f} %")
    smooth = bundle.with_settings([f"score.smooth_px={SMOOTH_PX}"])
    for kind in bundle.scores:
        seconds = seconds_of(lambda kind=kind: bundle.score_of(answer, image, kind=kind), repeats)
        print(f"  {kind:<24}{1000 * seconds:>8.1f} ms{100 * seconds / forward:>8.2f} %")
    added = seconds_of(lambda: smooth.score_of(answer, image, kind="jsd"), repeats)
    added -= seconds_of(lambda: bundle.score_of(answer, image, kind="jsd"), repeats)
    print(f"  {'smoothing':<24}{1000 * added:>8.1f} ms{100 * added / forward:>8.2f} %")


if __name__ == "__main__":
    main()
