"""A first map, from labelled scenes to the ten places to look at first: config, training, map, verdict, polygons.

It takes the made-up scenes in `demo/world`, and writes into `first_map`. For your own, change the section `data`.
"""

import sys
from pathlib import Path

import geopandas

import geood

world = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/world").absolute()
out = Path("first_map")
out.mkdir(exist_ok=True)

# 1. The config: where scenes and labels are, what the ids mean. All other keys have defaults; these are made small.
CONFIG = f"""\
data:
  root: {world}
  images: [train_*.tif]
  labels: [labels/train_*.tif]
  classes: {{0: land, 1: road, 2: building, 3: tree, 4: water}}
  crop_px: 128
  crops: 200
  block_m: 32.0
  validation_crops: 8
segmenter: {{encoder: resnet10t, decoder_channels: 32}}
negatives: {{patch_max_px: 56}}
train: {{segmenter_steps: 100, segmenter_lr: 2.0e-3, validate_every: 50}}
"""
(out / "aerial.yaml").write_text(CONFIG, encoding="utf-8")
config = geood.load_config(out / "aerial.yaml")

# 2. Train: one file, `first_map/run/model.safetensors`.
bundle_path = geood.train(config, out / "run")
bundle = geood.ModelBundle.load(bundle_path)
print(f"mIoU on ground that training did not see: {bundle.metrics['segmenter/miou']:.0%}")

# 3. Map a scene that the model has not seen, and ask whether the map can be believed.
[made] = geood.predict([world / "test.tif"], out / "anomalies.gpkg", bundle=bundle_path)
print("\n".join(made.verdict.lines()))

# 4. The polygons are ordered by rank: look at the first.
polygons = geopandas.read_file(out / "anomalies.gpkg", layer="anomalies")
print(f"{len(polygons)} polygons above {made.threshold:.3g}; the first:")
print(polygons[["rank", "class_name", "contrast", "area_m2", "signal"]].head(10).to_string(index=False))
