"""Speed of `predict` on a GPU: the network alone in four ways, the whole of `predict`, and what bfloat16 changes.

    python benchmarks/gpu.py [--sides 16384 32768] [--models BUNDLE ...] [--workers 0 2 4] [--only PARTS]

Parts, in this order; each prints as soon as it is done, so that a run that is cut short has told something:

  network   Mpx/s of kept pixels, batches of 8 tiles in bfloat16: launched kernel by kernel, captured as a CUDA graph,
            compiled (torch.compile), and compiled with graphs ("reduce-overhead")
  predict   `predict --out x.tif` of a scene of that side with so many worker processes, in a process of its own: Mpx/s,
            seconds before the first tile and after the last, ratio to the fastest network
  numbers   float32 and bfloat16 on the GPU against float32 on the CPU: the largest difference of a score, and the share
            of pixels that change sides at the threshold

Without --models the networks are an untrained `ldn121` and an untrained ladder on `tf_efficientnet_lite0`, both scored
by the divergence. A trained bundle has its own score (`combined`, unless its config says otherwise).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from predict import AERIAL, GPU_BATCH, low_precision, untrained_bundle

from geood.config.loading import load_config
from geood.geo.gdal import rasterio_window
from geood.geo.grid import Window
from geood.models.bundle import ModelBundle
from geood.prediction.engine import Batch, Engine
from geood.prediction.malloc import KEEP_FREED_MEMORY

NETWORKS = {
    "ldn121": ["segmenter.network=ldn121"],
    "lite0": ["segmenter.encoder=tf_efficientnet_lite0"],
}
PARTS = ("network", "predict", "numbers")
PASSES = 12  # of each way, after two that are not counted
PART_PX = 2048  # side of the square that `numbers` compares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[16384, 32768], help="pixels")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="bundles for three bands")
    parser.add_argument("--networks", nargs="*", default=[], choices=NETWORKS, help="untrained ones")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4], help="processes of `predict`")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    parser.add_argument("--keep", type=Path, help="folder for scenes and outputs; else a temporary one")
    parser.add_argument("--row", nargs=4, metavar=("SCENE", "OUT", "MODEL", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        one_prediction(*options.row)
        return
    print(f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        models = [*options.models]
        for name in options.networks or ([] if models else NETWORKS):
            models.append(folder / f"{name}.safetensors")
            untrained_bundle(models[-1], load_config(AERIAL, NETWORKS[name]))
        for model in models:
            print(f"\n{model.parent.name}/{model.name}", flush=True)
            best = fastest_network(model, compiled=not options.no_compile) if "network" in options.only else None
            for side in options.sides if "predict" in options.only else ():
                scene = made_scene(folder / f"scene_{side}.tif", side)
                for workers in options.workers:
                    timed(scene, folder / "out.tif", model, workers=workers, side=side, best=best)
            if "numbers" in options.only:
                compare_numbers(model, made_scene(folder / f"scene_{options.sides[0]}.tif", options.sides[0]))


def fastest_network(path: Path, *, compiled: bool) -> float | None:
    """Print Mpx/s of each way to run the network, of kept pixels; return the largest, None if all failed."""
    model = ModelBundle.load(path, flow=False).to("cuda")
    side = model.tile_px + 2 * model.halo_px
    image = torch.rand(GPU_BATCH, model.bands.count, side, side, device="cuda")
    found = {}
    for name, run in ways(model, image, compiled=compiled):
        began = time.perf_counter()
        try:
            rate = GPU_BATCH * model.tile_px**2 / 1e6 / seconds_of(run)
        except RuntimeError as error:
            print(f"  network, {name:<24} failed: {str(error).splitlines()[0]}", flush=True)
            continue
        found[name] = rate
        print(
            f"  network, {name:<24}{rate:>8.0f} Mpx/s   (ready after {time.perf_counter() - began:.0f} s)", flush=True
        )
    return max(found.values(), default=None)


@torch.inference_mode()
def ways(model: ModelBundle, image: torch.Tensor, *, compiled: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways to run the network on one batch in bfloat16."""
    kinds = (model.config.score.kind,)

    def plain() -> object:
        with torch.inference_mode(), low_precision():
            return model.infer(image, kinds)

    yield "kernel by kernel", plain
    seconds_of(plain, passes=1)
    kept: list[object] = []  # the graph, and what its pass returned

    def captured() -> object:
        if not kept:  # on the first call, whose failure is told as that of any way
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                answer = plain()
            kept.extend((graph, answer))
        return kept[0].replay()  # type: ignore[attr-defined]

    yield "CUDA graph", captured
    kept.clear()
    for name, mode in (("compiled", "default"), ("compiled, graphs", "reduce-overhead")) if compiled else ():
        network = torch.compile(model.segmenter, dynamic=False, mode=mode)

        def run(network: Callable[..., object] = network) -> object:
            with torch.inference_mode(), low_precision():
                return network(image, True)

        yield name, run


def seconds_of(run: Callable[[], object], passes: int = PASSES) -> float:
    """Seconds of a pass, after two that are not counted."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(passes):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / passes


def made_scene(path: Path, side: int) -> Path:
    """A scene of three bands of 8 bit in deflate, made quickly: one block of squares and noise, shifted each time."""
    if path.exists():
        return path
    rng, block = np.random.default_rng(0), 4096
    coarse = np.kron(rng.random((3, 64, 64)), np.ones((1, block // 64, block // 64)))
    base = (coarse * 200 + rng.random((3, block, block)) * 25 + 15).astype("uint8")
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
    profile |= {"blockxsize": 512, "blockysize": 512, "compress": "deflate", "num_threads": "all_cpus"}
    place = Affine(0.25, 0, 500_000, 0, -0.25, 4_650_000)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=place, BIGTIFF="IF_SAFER", **profile) as file:
        for number in range((-(-side // block)) ** 2):
            row, col = (block * i for i in divmod(number, -(-side // block)))
            window = Window(row, col, min(block, side - row), min(block, side - col))
            shifted = np.roll(base, (37 * number, 91 * number), (1, 2))
            file.write(shifted[:, : window.height, : window.width], window=rasterio_window(window))
    return path


def timed(scene: Path, out: Path, model: Path, *, workers: int, side: int, best: float | None) -> None:
    """Run `predict` in a process of its own and print its speed."""
    command = [sys.executable, __file__, "--row", str(scene), str(out), str(model), str(workers)]
    done = subprocess.run(command, env=os.environ | KEEP_FREED_MEMORY, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"  predict, {side} px, {workers} processes: failed", flush=True)
        return
    whole, first, last = (float(x) for x in done.stdout.split()[-3:])
    rate = side**2 / 1e6 / whole
    share = f"{rate / best:.2f} of the network, " if best else ""
    between = side**2 / 1e6 / (whole - first - last)
    print(
        f"  predict, {side} px, {workers} processes: {rate:.0f} Mpx/s, {share}{whole:.1f} s ({first:.1f} before the "
        f"first tile, {last:.1f} after the last; between them {between:.0f} Mpx/s)",
        flush=True,
    )


def one_prediction(scene: str, out: str, model: str, workers: str) -> None:
    """Print the seconds of a whole `predict`, of what came before its first tile, and of what came after its last."""
    from geood.prediction import journal
    from geood.prediction.pipeline import predict

    moments: list[float] = []
    append = journal.Journal.append

    def noted(self: object, *args: object) -> None:
        append(self, *args)  # type: ignore[arg-type]
        moments.append(time.perf_counter())

    journal.Journal.append = noted  # type: ignore[method-assign, assignment]
    began = time.perf_counter()
    predict([scene], out, bundle=model, workers=int(workers), overwrite=True)
    ended = time.perf_counter()
    print(ended - began, moments[0] - began, ended - moments[-1])


def compare_numbers(path: Path, scene: Path) -> None:
    """Print how far scores on the GPU are from those on the CPU."""
    with rasterio.open(scene) as file:
        pixels = file.read(window=rasterio.windows.Window(0, 0, PART_PX, PART_PX))
    maps = {}
    for where, precision in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        bundle = ModelBundle.load(path, flow=False).with_settings([f"predict.precision={precision}"])
        with hidden_gpu(where == "cpu"):
            engine = Engine(bundle, 1, bundle.config.predict)
            halves = [part for half in np.split(pixels, 2, 1) for part in np.split(half, 2, 2)]
            valid = np.ones(halves[0].shape[1:], bool)
            scaled = [engine.bundle.bands.scale(part, valid) for part in halves]
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                score = [
                    pool.submit(engine.maps, Batch(part[None], valid[None]), (slice(None), slice(None))).result().score
                    for part in scaled
                ]
        maps[where, precision] = np.stack(score)
        threshold = bundle.thresholds.get("0.01", 0.0)
    right = maps.pop(("cpu", "float32"))
    for (_, precision), score in maps.items():
        differs, above = np.abs(score - right).max(), right > threshold
        changed = np.mean((score > threshold) != above)
        print(
            f"  numbers, {precision}: scores from {right.min():.3g} to {right.max():.3g}, largest difference "
            f"{differs:.2g}; {100 * changed:.4f} % of the pixels change sides at {threshold:.4g}, which "
            f"{100 * above.mean():.2f} % exceed",
            flush=True,
        )


class hidden_gpu:
    """A block in which torch says that there is no GPU."""

    def __init__(self, hide: bool) -> None:
        self.hide, self.seen = hide, torch.cuda.is_available

    def __enter__(self) -> None:
        if self.hide:
            torch.cuda.is_available = lambda: False  # type: ignore[assignment]

    def __exit__(self, *error: object) -> None:
        torch.cuda.is_available = self.seen  # type: ignore[assignment]


if __name__ == "__main__":
    main()
