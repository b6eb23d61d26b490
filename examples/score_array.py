"""Score an image that is already in memory: digital numbers in, one score a pixel out."""

import sys

import numpy as np
import torch

import geood

bundle = geood.ModelBundle.load(sys.argv[1] if len(sys.argv) > 1 else "demo/run/model.safetensors")
rng = np.random.default_rng(0)
numbers = rng.uniform(bundle.bands.low[0], bundle.bands.high[0], (bundle.bands.count, 128, 128))
image = bundle.bands.scale(numbers, np.ones((128, 128), bool))
score = bundle.score(torch.from_numpy(image)[None])[0]
print(f"noise scores {score.mean():.3f} on average; the default threshold is {bundle.threshold:.3f}")
