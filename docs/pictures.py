"""Make the pictures of the pages anew from the results of `geood demo`; `make pictures` runs the demo and this.

    python docs/pictures.py DEMO

All pixels are of the made-up world. Those of QGIS are drawn by QGIS's own Python, and left as they are without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
IMAGES = HERE / "images"
WIDTH = 1200  # pixels
QGIS_PYTHON = os.environ.get("QGIS_PYTHON", "/usr/bin/python3")


def main() -> None:
    """Draw all pictures, and say which."""
    demo = Path(sys.argv[1])
    with Image.open(demo / "overview.png") as page:
        small = page.convert("RGB").resize((WIDTH, round(WIDTH * page.height / page.width)), Image.Resampling.LANCZOS)
        small.save(IMAGES / "demo.webp", quality=80)
    print(f"{IMAGES / 'demo.webp'}")
    if subprocess.run([QGIS_PYTHON, "-c", "import qgis.gui"], capture_output=True, check=False).returncode:
        print(f"those of QGIS are as before: {QGIS_PYTHON} cannot import qgis.gui; name QGIS's Python in QGIS_PYTHON")
        return
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
    subprocess.run([QGIS_PYTHON, HERE / "demo_in_qgis.py", demo, IMAGES], env=environment, check=True)
    print(f"{IMAGES / 'qgis-map.jpg'}\n{IMAGES / 'qgis-form.png'}")


if __name__ == "__main__":
    main()
