"""Speed and memory of `predict`, beside the bare network and beside what else people run, on the same scene.

    python benchmarks/predict.py [--side 6000] [--model BUNDLE] [--network ldn121] [--rows bare,tif] [--keep FOLDER]

Makes a scene of `side` x `side` pixels (three bands, uint8, deflate), then times in turn, each in a process of its own,
the same network on the same tiles with the same halo:

  bare           the segmenter alone on ready tensors, one tile a core (on a GPU: batches, bfloat16), no files
  tif            `predict --out x.tif`: read, scale, score, write, COG with overviews and statistics
  bfloat16       the same with `--set predict.precision=bfloat16`
  gpkg           `predict --out x.gpkg`: the first with class raster and polygons
  torchgeo       the loop one writes with TorchGeo: GridGeoSampler, DataLoader, each tile's middle into a GeoTIFF
  xarray         rioxarray and dask: the scene in chunks, `map_overlap`, `to_raster`
  monai          MONAI's sliding_window_inference over the scene in memory (constant weights), written at the end

and prints Mpx/s of kept pixels, the ratio to the bare network, and the peak of resident memory. All rows run in
processes that keep freed memory, as the command line does (`geood.prediction.malloc`); all but the first include
loading the model. Rows whose library is not installed are left out. Without --model an untrained network of the default
config is taken; its speed is that of a trained one, and its scores cut about a polygon for each 1000 pixels. Its reach
is not measured (a halo of 64 px), or with --halo HALO said to be that: `predict` may take larger tiles then, and the
other rows take those of the bundle. --tile SIDE is for all rows.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine

from geood._torch_compat import declare_missing_operators
from geood.config.loading import change_config, load_config
from geood.config.sections import Config
from geood.geo.bands import Bands
from geood.geo.gdal import rasterio_window
from geood.geo.grid import Tile, Window, tile_grid
from geood.models.bundle import ModelBundle
from geood.models.bundle_header import Reach
from geood.models.flows.flow import Flow
from geood.models.segmenter import Segmenter
from geood.prediction.malloc import KEEP_FREED_MEMORY

NEEDS = {
    "bare": "torch",
    "tif": "torch",
    "bfloat16": "torch",
    "gpkg": "torch",
    "torchgeo": "torchgeo",
    "xarray": "rioxarray",
    "monai": "monai",
}
GPU_BATCH = 8
AERIAL = Path(__file__).parent.parent / "configs" / "aerial.yaml"


def make_scene(path: Path, side: int) -> None:
    """A scene with detail on several scales, so that it compresses about as a photograph does; written by blocks."""
    rng = np.random.default_rng(0)
    coarse = rng.random((3, 64, 64))
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
    transform = Affine(0.25, 0, 500_000, 0, -0.25, 4_650_000)
    with rasterio.open(
        path, "w", crs="EPSG:32633", transform=transform, compress="deflate", BIGTIFF="IF_SAFER", **profile
    ) as file:
        for row in range(0, side, 1024):
            for col in range(0, side, 1024):
                height, width = min(1024, side - row), min(1024, side - col)
                base = np.kron(np.roll(coarse, (row // 1024, col // 1024), (1, 2)), np.ones((1, 16, 16)))
                block = base[:, :height, :width] * 200 + rng.random((3, height, width)) * 25 + 15
                file.write(block.astype("uint8"), window=rasterio.windows.Window(col, row, width, height))


def untrained_bundle(path: Path, config: Config, halo_px: int | None = None) -> None:
    """A bundle with random weights; its thresholds leave about a polygon for each 1000 pixels of `make_scene`.

    It has no inlier statistics, and its score is the divergence, whose range is known without training. With `halo_px`
    it says that its network looks so far, else nothing.
    """
    config = change_config(config, ["score.kind=jsd"])
    torch.manual_seed(0)
    bands = Bands(("r", "g", "b"), (1, 2, 3), (0.0,) * 3, (255.0,) * 3, (0.5,) * 3, (1 / 255,) * 3, scene_count=3)
    segmenter = Segmenter(3, len(config.data.classes), config.segmenter)
    ModelBundle(
        segmenter=segmenter.eval(),
        flow=Flow(3, config.flow, bands.step).eval(),
        inliers=None,
        bands=bands,
        config=config,
        class_ids=tuple(config.data.classes),
        resolution=0.25,
        calibration={config.score.kind: {"0.001": 0.9999, "0.01": 0.9999, "0.05": 0.9999}},
        calibrated=config.score,
        metrics={},
        reach=None if halo_px is None else Reach(halo_px=halo_px, beyond=(0.5,) * (halo_px // 32 - 1) + (0.005,)),
    ).save(path)


def device() -> torch.device:
    """Where networks are timed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def low_precision() -> Any:
    """bfloat16 on a GPU, as `predict` takes it; nothing on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device().type == "cuda" else nullcontext()


def tiles_of(bundle: ModelBundle, side: int) -> list[Tile]:
    """The tiles that `predict` makes of the scene."""
    return list(tile_grid(side, side, tile_px=bundle.tile_px, halo_px=bundle.halo_px))


@torch.inference_mode()
def bare(scene: Path, out: Path, bundle: Path, side: int) -> float:
    """Seconds for the segmenter alone on tensors of all tiles' read windows."""
    model = ModelBundle.load(bundle).to(device())
    shapes = [(t.read.height, t.read.width) for t in tiles_of(model, side)]
    if device().type == "cuda":
        return bare_on_gpu(model, shapes)
    ready = {shape: torch.rand(1, model.bands.count, *shape) for shape in set(shapes)}

    def run(shape: tuple[int, int]) -> None:
        model.infer(ready[shape])

    cores = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(run, shapes[:cores]))  # warm up
        began = time.perf_counter()
        list(pool.map(run, shapes))
        return time.perf_counter() - began


def bare_on_gpu(model: ModelBundle, shapes: list[tuple[int, int]]) -> float:
    """The same in batches of one shape on a GPU."""
    batches = [(shape, min(GPU_BATCH, shapes.count(shape) - i)) for shape in sorted(set(shapes))
               for i in range(0, shapes.count(shape), GPU_BATCH)]  # fmt: skip
    ready = {shape: torch.rand(GPU_BATCH, model.bands.count, *shape, device=device()) for shape in set(shapes)}
    with low_precision():
        for shape, count in batches[:2] + batches[-2:]:
            model.infer(ready[shape][:count])
        torch.cuda.synchronize()
        began = time.perf_counter()
        for shape, count in batches:
            model.infer(ready[shape][:count])
        torch.cuda.synchronize()
    return time.perf_counter() - began


def geood(scene: Path, out: Path, bundle: Path, side: int, *, settings: Sequence[str] = ()) -> float:
    """Seconds for the whole of `predict`."""
    from geood.prediction.pipeline import predict

    began = time.perf_counter()
    predict([scene], out, bundle_path=bundle, settings=settings)
    return time.perf_counter() - began


def rounded(scene: Path, out: Path, bundle: Path, side: int) -> float:
    """Seconds for the whole of `predict` in bfloat16."""
    return geood(scene, out, bundle, side, settings=["predict.precision=bfloat16"])


def torchgeo(scene: Path, out: Path, bundle: Path, side: int) -> float:
    """Seconds for a loop over TorchGeo's grid sampler."""
    declare_missing_operators()
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    class Scenes(RasterDataset):
        filename_glob = scene.name

    began = time.perf_counter()
    model = ModelBundle.load(bundle).to(device())
    tile_px, halo = model.tile_px, model.halo_px
    with rasterio.open(scene) as file:
        profile = file.profile | {"count": 1, "dtype": "float32", "nodata": float("nan"), "compress": "zstd"}
        transform = file.transform
    data = Scenes(scene.parent)
    sampler = GridGeoSampler(data, size=tile_px + 2 * halo, stride=tile_px)
    loader = DataLoader(data, batch_size=1, sampler=sampler, num_workers=1, collate_fn=stack_samples)
    with rasterio.open(out, "w", **profile) as file:
        for batch, (x, y, _) in zip(loader, sampler, strict=True):
            image = batch["image"] / 255
            with torch.inference_mode(), low_precision():
                score = model.score(image.to(device()))[0].float().cpu().numpy()
            col, row = (round(v) for v in ~transform @ (x.start, y.stop))
            place = Window(row + halo, col + halo, tile_px, tile_px).within(Window(0, 0, side, side))
            if place.height and place.width:
                kept = score[Window(place.row - row, place.col - col, place.height, place.width).slices]
                file.write(kept, 1, window=rasterio_window(place))
    return time.perf_counter() - began


def xarray(scene: Path, out: Path, bundle: Path, side: int) -> float:
    """Seconds for rioxarray and dask: chunks of a tile with overlap of the halo."""
    import dask
    import rioxarray

    began = time.perf_counter()
    model = ModelBundle.load(bundle).to(device())
    tile_px, halo = model.tile_px, model.halo_px
    torch.set_num_threads(1)

    def score(block: np.ndarray) -> np.ndarray:
        torch.set_num_threads(1)
        height, width = (-(-n // 32) * 32 for n in block.shape[1:])
        padded = np.pad(block, ((0, 0), (0, height - block.shape[1]), (0, width - block.shape[2])), mode="edge")
        image = torch.from_numpy(padded.astype(np.float32) / 255)[None].to(device())
        with torch.inference_mode(), low_precision():
            return model.score(image).float().cpu().numpy()[:, : block.shape[1], : block.shape[2]]

    chunks = {"band": 3, "y": tile_px, "x": tile_px}
    opened = rioxarray.open_rasterio(scene, chunks=chunks, lock=False)
    grown = (tuple(size + 2 * halo for size in axis) for axis in opened.data.chunks[1:])
    scores = opened.data.map_overlap(
        score, depth={1: halo, 2: halo}, boundary="reflect", dtype=np.float32, chunks=((1,), *grown)
    )
    result = opened.isel(band=[0]).copy(data=scores).rio.write_nodata(float("nan"))
    with dask.config.set(scheduler="threads", num_workers=os.cpu_count()):
        result.rio.to_raster(out, driver="GTiff", dtype="float32", tiled=True, compress="zstd", lock=threading.Lock())
    return time.perf_counter() - began


def monai(scene: Path, out: Path, bundle: Path, side: int) -> float:
    """Seconds for MONAI's sliding window over the whole scene in memory."""
    from monai.inferers import sliding_window_inference

    began = time.perf_counter()
    model = ModelBundle.load(bundle).to(device())
    tile_px, halo = model.tile_px, model.halo_px
    with rasterio.open(scene) as file:
        image = torch.from_numpy(file.read().astype(np.float32) / 255)[None]
        profile = file.profile | {"count": 1, "dtype": "float32", "nodata": float("nan"), "compress": "zstd"}
    read = tile_px + 2 * halo
    with torch.inference_mode(), low_precision():
        scores = sliding_window_inference(
            image,
            read,
            1,
            lambda x: model.score(x)[:, None].float(),
            overlap=2 * halo / read,
            sw_device=device(),
            device="cpu",
        )
    with rasterio.open(out, "w", **profile) as file:
        file.write(scores[0].numpy())
    return time.perf_counter() - began


ROWS = {
    "bare": bare,
    "tif": geood,
    "bfloat16": rounded,
    "gpkg": geood,
    "torchgeo": torchgeo,
    "xarray": xarray,
    "monai": monai,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=6000, help="pixels")
    parser.add_argument("--model", type=Path, help="a bundle for three bands")
    parser.add_argument(
        "--encoder", default="densenet121", help="without --model: the encoder of the untrained network"
    )
    parser.add_argument("--network", choices=["ladder", "ldn121"], default="ladder", help="without --model, likewise")
    parser.add_argument("--halo", type=int, help="without --model: its network's own halo, pixels, a multiple of 32")
    parser.add_argument("--tile", type=int, help="without --model: side of the tiles of all rows, pixels")
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows, by name")
    parser.add_argument("--keep", type=Path, help="folder for scene and outputs; else a temporary one")
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        one_row(options.row, options.folder, options.model, options.side)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        bundle = options.model or folder / f"{options.network}-{options.encoder}.safetensors"
        if options.model is None:
            how = [f"segmenter.encoder={options.encoder}", f"segmenter.network={options.network}"]
            how += [f"predict.tile_px={options.tile}"] if options.tile else []
            untrained_bundle(bundle, load_config(AERIAL, how), options.halo)
        scene = folder / f"scene_{options.side}.tif"
        if not scene.exists():
            make_scene(scene, options.side)
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
        print(f"{options.side} x {options.side} px, {where}, torch {torch.__version__}, {bundle.name}")
        print(f"{'':<10}{'seconds':>9}{'Mpx/s':>9}{'of bare':>9}{'peak MB':>9}")
        alone = float("nan")
        for row in options.rows.split(","):
            if importlib.util.find_spec(NEEDS[row]) is None:
                print(f"{row:<10} {NEEDS[row]} is not installed")
                continue
            what = {"row": row, "folder": folder, "model": bundle, "side": options.side}
            command = [sys.executable, __file__, *(f"--{option}={value}" for option, value in what.items())]
            done = subprocess.run(
                command, env=os.environ | KEEP_FREED_MEMORY, stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                print(f"{row:<10} failed")
                continue
            seconds, peak = (float(x) for x in done.stdout.split()[-2:])
            alone = seconds if row == "bare" else alone
            rate = options.side**2 / 1e6 / seconds
            print(f"{row:<10}{seconds:>9.1f}{rate:>9.2f}{alone / seconds:>9.3f}{peak:>9.0f}", flush=True)


def one_row(row: str, folder: Path, bundle: Path, side: int) -> None:
    """Time one row in this process and print seconds and peak memory."""
    for old in folder.glob("out*"):
        old.unlink()
    seconds = ROWS[row](
        folder / f"scene_{side}.tif", folder / f"out.{'gpkg' if row == 'gpkg' else 'tif'}", bundle, side
    )
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
