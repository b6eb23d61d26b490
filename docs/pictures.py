"""Make the pictures of the pages anew from the results of `geood demo`; `make pictures` runs the demo and this.

    python docs/pictures.py DEMO

All pixels are of the made-up world. Those of QGIS are drawn by QGIS's own Python, and left as they are without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

from geood import predict
from geood.datasets import make_world

HERE = Path(__file__).parent
IMAGES = HERE / "images"
WIDTH = 1200  # pixels at most
QGIS_PYTHON = os.environ.get("QGIS_PYTHON", "/usr/bin/python3")


def main() -> None:
    """Draw all pictures, and say which."""
    demo = Path(sys.argv[1])
    pack(demo / "overview.png", "demo", quality=80)
    pack(demo / "run" / "curves.png", "curves", quality=80)
    with tempfile.TemporaryDirectory() as drawn:
        pack(verdicts(demo, Path(drawn)), "verdicts", quality=60)
    if subprocess.run([QGIS_PYTHON, "-c", "import qgis.gui"], capture_output=True, check=False).returncode:
        print(f"those of QGIS are as before: {QGIS_PYTHON} cannot import qgis.gui; name QGIS's Python in QGIS_PYTHON")
        return
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
    with tempfile.TemporaryDirectory() as drawn:
        subprocess.run([QGIS_PYTHON, HERE / "qgis_pictures.py", demo, drawn], env=environment, check=True)
        for path in sorted(Path(drawn).glob("*.png")):
            pack(path, path.stem, quality=85)


def verdicts(demo: Path, folder: Path) -> Path:
    """Map ordinary ground that no training saw, the demo's scene, and that scene with noise; return one picture of all.

    Their overviews stand below each other.
    """
    scenes = [folder / "scenes" / f"{name}.tif" for name in ("ordinary", "things", "noise")]
    scenes[0].parent.mkdir()
    shutil.copyfile(make_world(folder / "world", seed=8).train_images[0], scenes[0])
    shutil.copyfile(demo / "world" / "test.tif", scenes[1])
    with rasterio.open(demo / "world" / "test.tif") as scene:
        pixels, profile = scene.read(), scene.profile
    noise = np.random.default_rng(0).normal(0, 20, pixels.shape)
    with rasterio.open(scenes[2], "w", **profile) as copy:
        noisy = np.clip(np.rint(pixels + noise), 1, 255)
        copy.write(np.where(pixels == profile["nodata"], pixels, noisy).astype(pixels.dtype))
    made = []
    for scene in scenes:
        [one] = predict([scene], folder / f"{scene.stem}.gpkg", bundle=demo / "run", overview=True)
        made.append(Image.open(one.overview).convert("RGB"))
    page = Image.new("RGB", (max(part.width for part in made), sum(part.height for part in made)), "white")
    for i, part in enumerate(made):
        page.paste(part, (0, sum(above.height for above in made[:i])))
    page.save(folder / "verdicts.png")
    return folder / "verdicts.png"


def pack(path: Path, name: str, *, quality: int) -> None:
    """Save a picture as WebP among those of the pages, no wider than they are."""
    with Image.open(path) as page:
        picture = page.convert("RGB")
        if picture.width > WIDTH:
            size = (WIDTH, round(WIDTH * picture.height / picture.width))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        picture.save(IMAGES / f"{name}.webp", quality=quality, method=6)
    print(IMAGES / f"{name}.webp")


if __name__ == "__main__":
    main()
