"""What `geood predict` spends before its first tile: seconds of a core and on the wall after `import torch`.

    python benchmarks/start.py
    python benchmarks/start.py --encoders densenet121 --halo 160 --out tif --runs 9 --against ../geood-before

Each run is a process of its own, which imports torch, looks at the clocks, and runs the command on a scene of 512 px
with an untrained network; it ends when the first tile is read and its network made, before that computes. Medians over
the runs (and the least), after one that is not counted and leaves the bytecode of all modules. With --against another
checkout of geood takes turns with this one. Processor time is of all threads, as the kernel counts it.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
WATCHED = "geood.prediction.engine"


class Watch(importlib.abc.MetaPathFinder):
    """Finder that ends the process, telling the time since `began`, when an engine is to compute its first tile."""

    def __init__(self) -> None:
        self.began = time.process_time(), time.perf_counter()

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def watched(module: ModuleType) -> None:
            run(module)
            module.__dict__["Engine"].maps = self.end

        spec.loader.exec_module = watched
        return spec

    def end(self, *_: Any) -> None:
        now = time.process_time(), time.perf_counter()
        print(*(there - here for here, there in zip(self.began, now, strict=True)), flush=True)
        os._exit(0)


def first_tile(scene: str, out: str, bundle: str) -> None:
    """Run the command as far as its first tile."""
    from geood.cli import main

    sys.argv = ["geood", "predict", scene, "--model", bundle, "--out", out]
    import torch  # noqa: F401

    sys.meta_path.insert(0, Watch())
    main()


def measured(checkout: Path, scene: Path, out: str, bundle: Path) -> tuple[float, float]:
    """Seconds of a core and on the wall, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        told = [sys.executable, __file__, "--first", str(scene), str(Path(folder) / out), str(bundle)]
        paths = {"PYTHONPATH": str(checkout), "TMPDIR": folder}
        done = subprocess.run(told, env=os.environ | paths, stdout=subprocess.PIPE, text=True, check=True)
    core, wall = (float(number) for number in done.stdout.split()[-2:])
    return core, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["densenet121", "tf_efficientnet_lite0"])
    parser.add_argument("--out", nargs="+", default=["tif", "gpkg"], help="kinds of outputs")
    parser.add_argument("--halo", type=int, help="that the network is said to need, pixels, a multiple of 32")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--first", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first:
        first_tile(*options.first)
        return
    from predict import AERIAL, load_config, make_scene, untrained_bundle

    checkouts = [HERE.parent] + ([options.against.resolve()] if options.against else [])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_scene(scene := folder / "scene.tif", 512)
        print(f"{'':<44}{'core, s':>14}{'wall, s':>14}")
        for encoder in options.encoders:
            bundle = folder / f"{encoder}.safetensors"
            untrained_bundle(bundle, load_config(AERIAL, [f"segmenter.encoder={encoder}"]), options.halo)
            for kind in options.out:
                found: dict[Path, list[tuple[float, float]]] = {checkout: [] for checkout in checkouts}
                for run in range(options.runs + 1):
                    for checkout in checkouts:
                        seconds = measured(checkout, scene, f"out.{kind}", bundle)
                        found[checkout] += [seconds] if run else []
                for checkout, taken in found.items():
                    row = f"{encoder}, {kind}" + (f", {checkout.name}" if options.against else "")
                    columns = (f"{statistics.median(c):.2f} ({min(c):.2f})" for c in zip(*taken, strict=True))
                    print(f"{row:<44}" + "".join(f"{column:>14}" for column in columns), flush=True)


if __name__ == "__main__":
    main()
