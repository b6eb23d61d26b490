"""Peak memory of `predict --max-ram` over scenes of very different size, each in a process of its own.

    python benchmarks/memory.py [--max-ram 2GB] [--sides 5000,20000,100000] [--encoder resnet18] [--keep FOLDER]

Scenes up to 20,000 pixels a side are full; a larger one is a sparse VRT with islands of data. The score is `combined`
of an untrained network, with all of its experts. The peak is that of resident memory (VmHWM), so this needs Linux.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from predict import make_scene
from scores import bundle_of

from geood.config.sections import ScoreConfig
from geood.prediction.malloc import KEEP_FREED_MEMORY

FULL = 20_000  # largest side of a scene that is full
ISLAND = 3000  # side of an island, pixels
ISLANDS = 6
CLASSES = 5
ABOVE = 1e-3  # share of pixels of noise above the threshold


def make_sparse(path: Path, side: int) -> None:
    """A VRT of `side` x `side` pixels that holds data in a few islands along its diagonal alone."""
    island = path.with_name("island.tif")
    if not island.exists():
        make_scene(island, ISLAND)
    bands = []
    for band in (1, 2, 3):
        sources = []
        for i in range(ISLANDS):
            place = i * (side - ISLAND) // (ISLANDS - 1)
            sources.append(
                f'<ComplexSource><SourceFilename relativeToVRT="1">{island.name}</SourceFilename>'
                f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" xSize="{ISLAND}" ySize="{ISLAND}"/>'
                f'<DstRect xOff="{place}" yOff="{place}" xSize="{ISLAND}" ySize="{ISLAND}"/></ComplexSource>'
            )
        inner = "<NoDataValue>0</NoDataValue>" + "".join(sources)
        bands.append(f'<VRTRasterBand dataType="Byte" band="{band}">{inner}</VRTRasterBand>')
    place = "<SRS>EPSG:32633</SRS><GeoTransform>500000, 0.25, 0, 4650000, 0, -0.25</GeoTransform>"
    path.write_text(f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{place}{"".join(bands)}</VRTDataset>')


def save_untrained(path: Path, encoder: str) -> None:
    """A bundle for scenes of `make_scene`, whose score is that of the default config."""
    made = bundle_of(encoder, CLASSES)
    bundle = dataclasses.replace(
        made,
        bands=dataclasses.replace(made.bands, scene_count=3),
        resolution=0.25,
        config=made.config.model_copy(update={"score": ScoreConfig()}),
        calibrated=ScoreConfig(),
    )
    assert bundle.inliers is not None and bundle.inliers.knows_tail("encoder_ratio")
    with torch.inference_mode():
        cut = float(bundle.score(torch.rand(1, 3, 512, 512)).flatten().quantile(1 - ABOVE))
    kind = bundle.config.score.kind
    dataclasses.replace(bundle, calibration={kind: dict.fromkeys(("0.001", "0.01", "0.05"), cut)}).save(path)


def one_row(scene: Path, out: Path, bundle: Path, limit: str) -> None:
    """Predict and print seconds, valid megapixels and the peak in megabytes."""
    from geood.prediction.pipeline import predict

    began = time.perf_counter()
    [made] = predict([scene], out, bundle_path=bundle, max_ram=limit, overwrite=True)
    seconds = time.perf_counter() - began
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found
    print(seconds, made.valid_pixels / 1e6, int(found[1]) / 1024, made.anomalies)


def main() -> None:
    if sys.argv[1:2] == ["--row"]:
        one_row(*map(Path, sys.argv[2:5]), sys.argv[5])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-ram", default="2GB")
    parser.add_argument("--sides", default="5000,20000,100000", help="pixels")
    parser.add_argument("--encoder", default="resnet18", help="of the untrained network")
    parser.add_argument("--keep", type=Path, help="folder for scenes and outputs; else a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        bundle = folder / "memory.safetensors"
        save_untrained(bundle, options.encoder)
        print(f"--max-ram {options.max_ram}, {options.encoder}, {os.cpu_count()} cores\n")
        print("| side | valid Mpx | seconds | polygons | peak MB |\n|---|---|---|---|---|")
        for side in map(int, options.sides.split(",")):
            scene = folder / f"memory_{side}.{'tif' if side <= FULL else 'vrt'}"
            if not scene.exists():
                (make_scene if side <= FULL else make_sparse)(scene, side)
            row = [sys.executable, __file__, "--row", str(scene), str(folder / "memory.gpkg"), str(bundle)]
            done = subprocess.run(
                [*row, options.max_ram],
                env=os.environ | KEEP_FREED_MEMORY,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            seconds, valid, peak, polygons = done.stdout.split()[-4:]
            found = [
                f"{side:,}",
                f"{float(valid):.0f}",
                f"{float(seconds):.0f}",
                f"{int(polygons):,}",
                f"{float(peak):.0f}",
            ]
            print(f"| {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
