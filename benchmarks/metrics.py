"""What the metrics cost: megapixels a second of each pixel protocol, and milliseconds of the component metrics.

    python benchmarks/metrics.py [--width 2048] [--height 1024] [--components 10 100 1000] [--repeats 5]
                                 [--smiyc CHECKOUT] [--python INTERPRETER]

All of it runs on one thread. A pixel protocol is timed on float32 and on float16 scores of one frame, apart from its
figures, which are read once per data set. With `--smiyc`, a checkout of SegmentMeIfYouCan/road-anomaly-benchmark, the
official code is timed on the same frames, by `--python` where that code needs older versions than this environment
has, and the ratio is printed. Times are the best of the repeats, as other work on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from geood.metrics.protocols import PixelProtocol

THRESHOLD, SIZES_PX = 0.5, (50, 10)
PATIENCE_S = 10


def best_of(run: Callable[[], object], repeats: int) -> float:
    """The least seconds of a call; one call is enough where it takes seconds."""
    times: list[float] = []
    while len(times) < repeats and sum(times) < PATIENCE_S:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def pixel_frame(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scores and truth with 3 % anomalies and a tenth void."""
    rng = np.random.default_rng(0)
    truth = (rng.random((height, width)) < 0.03).astype(np.uint8)
    truth[: height // 10] = 255
    return (rng.normal(0, 1, truth.shape) + 1.5 * (truth == 1)).astype(np.float32), truth


def component_frame(height: int, width: int, number: int) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """`number` true and as many predicted boxes on a grid, the predicted ones shifted by a third of a box."""
    pitch = int((height * width / number) ** 0.5)
    while (width // pitch) * (height // pitch) < number:
        pitch -= 1
    columns, side = width // pitch, max(4, pitch // 2)
    truth, score = np.zeros((height, width), np.uint8), np.zeros((height, width), np.float16)
    for index in range(number):
        top, left = (index // columns) * pitch, (index % columns) * pitch
        truth[top : top + side, left : left + side] = 1
        shift = side // 3
        score[top + shift : top + shift + side, left + shift : left + shift + side] = 1
    truth[-8:] = 255
    return score, truth


def official(checkout: Path, folder: Path, repeats: int) -> None:
    """Time the official code on the frames in a folder and print the seconds as JSON; needs nothing of geood."""
    sys.path.insert(0, str(checkout))
    os.environ.setdefault("MPLBACKEND", "agg")
    seconds = {}
    with contextlib.redirect_stdout(sys.stderr):
        from road_anomaly_benchmark.metrics import MetricRegistry
        from road_anomaly_benchmark.metrics.instance_segmentation import default_instancer, segment_metrics

        def components(score: NDArray[np.float16], truth: NDArray[np.uint8]) -> None:
            segment_metrics(*default_instancer(score, truth, THRESHOLD, *SIZES_PX)[:2])

        pixels = MetricRegistry.get("PixBinaryClass")
        for path in sorted(folder.glob("*.npz")):
            with np.load(path) as frame:
                score, truth = frame["score"].astype(np.float16), frame["truth"]
            if path.stem == "pixels":
                run = partial(pixels.process_frame, truth, score, visualize=False)
            else:
                run = partial(components, score, truth)
            seconds[path.stem] = best_of(run, repeats)
    json.dump(seconds, sys.stdout)


def official_seconds(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the official code on each frame, by name; empty without a checkout."""
    if not options.smiyc:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        frames = {"pixels": pixel_frame(options.height, options.width)}
        frames |= {str(n): component_frame(options.height, options.width, n) for n in options.components}
        for name, (score, truth) in frames.items():
            np.savez(Path(folder) / f"{name}.npz", score=score, truth=truth)
        command = [options.python, __file__, "--smiyc", options.smiyc, "--frames", folder]
        command += ["--repeats", str(options.repeats)]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def beside(seconds: float, other: float | None) -> str:
    return f"{1000 * other:>12.0f} ms{other / seconds:>9.0f} x" if other else ""


def updated(name: str, settings: dict[str, Any], *, frame: tuple[NDArray[Any], NDArray[np.uint8]]) -> PixelProtocol:
    """A fresh accumulator that has taken one frame."""
    from geood.metrics.protocols import protocol_named

    accumulator = protocol_named(name, **settings)
    accumulator.update(*frame)
    return accumulator


def show_pixels(options: argparse.Namespace, other: float | None) -> None:
    """Print a line for each pixel protocol."""
    from geood.metrics.protocols import PROTOCOLS

    score, truth = pixel_frame(options.height, options.width)
    print(f"{'pixel protocol':<24}{'float32':>14}{'float16':>14}{'figures':>13}")
    for name, settings in [*((name, {}) for name in PROTOCOLS), ("densehybrid", {"per_image": True})]:
        times = {}
        for kind in (np.float32, np.float16):
            given = score.astype(kind)
            times[kind] = best_of(partial(updated, name, settings, frame=(given, truth)), options.repeats)
        full = updated(name, settings, frame=(score, truth))
        figures = best_of(full.figures, options.repeats)
        speeds = "".join(f"{score.size / seconds / 1e6:>8.0f} Mpx/s" for seconds in times.values())
        label = " ".join([name, *settings])
        compared = beside(times[np.float16], other) if name == "smiyc" else ""
        print(f"{label:<24}{speeds}{1000 * figures:>10.1f} ms{compared}")


def show_components(options: argparse.Namespace, others: dict[str, float]) -> None:
    """Print a line for each number of components."""
    from geood.metrics.components import ComponentScores

    print(f"\n{'components':<24}{'a frame':>12}")
    for number in options.components:
        score, truth = component_frame(options.height, options.width, number)
        run = partial(ComponentScores(*SIZES_PX).update, score, truth, threshold=THRESHOLD)
        seconds = best_of(run, options.repeats)
        found = run()
        label = f"{len(found.siou)} true, {len(found.ppv)} predicted"
        print(f"{label:<24}{1000 * seconds:>9.1f} ms{beside(seconds, others.get(str(number)))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048, help="pixels")
    parser.add_argument("--height", type=int, default=1024, help="pixels")
    parser.add_argument("--components", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smiyc", help="folder of the official code")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the official code")
    parser.add_argument("--frames", help=argparse.SUPPRESS)  # how this script calls itself
    options = parser.parse_args()
    if options.frames:
        official(Path(options.smiyc), Path(options.frames), options.repeats)
        return
    print(f"{options.width} x {options.height} px, one thread, numpy {np.__version__}")
    others = official_seconds(options)
    if others:
        print(f"beside it the official code under {options.python}, and how many times as long it takes")
    show_pixels(options, others.pop("pixels", None))
    show_components(options, others)


if __name__ == "__main__":
    main()
