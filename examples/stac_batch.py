"""A batch over STAC items: every item of a list is scored, and one that fails does not stop the others.

The items are JSON files or addresses; of each the asset `image` (or the only one) is read. Done ones are left out when
it is run again.
"""

import json
import sys
from pathlib import Path

import geood


def image_of(item: Path) -> Path:
    """Return the raster of an item: its asset `image`, or its only one; addresses start at the item."""
    assets = json.loads(item.read_text(encoding="utf-8"))["assets"]
    asset = assets["image"] if "image" in assets else next(iter(assets.values()))
    return (item.parent / asset["href"]).resolve()


model, out, *items = sys.argv[1:]
Path(out).mkdir(parents=True, exist_ok=True)
failed = 0
for item in map(Path, items):
    target = Path(out) / f"{item.stem}.gpkg"
    if target.exists():
        print(f"{item.name}: done before")
        continue
    try:
        [made] = geood.predict([image_of(item)], target, bundle=model, resume=True)
        print(f"{item.name}: {made.anomalies} anomalies, budget {made.verdict.answer if made.verdict else 'unknown'}")
    except geood.GeoodError as error:  # every error that geood raises on purpose; others are bugs and do stop
        failed += 1
        print(f"{item.name}: {error}")
sys.exit(failed > 0)
