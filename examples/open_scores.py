"""How much of a scene lies above a threshold? Read block by block, so the scene may be of any size."""

import sys

import geood

path = sys.argv[1] if len(sys.argv) > 1 else "demo/anomalies.tif"
scores = geood.open_scores(path)
print(scores)
valid = int(scores.notnull().sum())
for threshold in (0.25, 0.5, 0.75):
    share = int((scores > threshold).sum()) / valid
    print(f"above {threshold}: {share:.3%} of {valid:,} pixels")
