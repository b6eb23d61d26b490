"""Make the pictures of the pages anew from the results of `geood demo`; `make pictures` runs the demo and this.

    python docs/pictures.py DEMO

All pixels are of the made-up world. Those of QGIS are drawn by QGIS's own Python, and left as they are without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
IMAGES = HERE / "images"
WIDTH = 1200  # pixels at most
QGIS_PYTHON = os.environ.get("QGIS_PYTHON", "/usr/bin/python3")


def main() -> None:
    """Draw all pictures, and say which."""
    demo = Path(sys.argv[1])
    pack(demo / "overview.png", "demo", quality=80)
    pack(demo / "run" / "curves.png", "curves", quality=80)
    if subprocess.run([QGIS_PYTHON, "-c", "import qgis.gui"], capture_output=True, check=False).returncode:
        print(f"those of QGIS are as before: {QGIS_PYTHON} cannot import qgis.gui; name QGIS's Python in QGIS_PYTHON")
        return
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
    with tempfile.TemporaryDirectory() as drawn:
        subprocess.run([QGIS_PYTHON, HERE / "qgis_pictures.py", demo, drawn], env=environment, check=True)
        for path in sorted(Path(drawn).glob("*.png")):
            pack(path, path.stem, quality=85)


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
