"""A reader of your own, and scores as an xarray array: any array of digital numbers in, a labelled map out.

Here the reader makes waves; put in its place whatever gives you bands: a database, a camera, a NetCDF file.
"""

import sys

import numpy as np
import torch
import xarray as xr

import geood


def read(bands: int, height: int = 256, width: int = 320) -> xr.DataArray:
    """Stand in for your own reader: digital numbers (band, y, x) with coordinates, NaN where there is no data."""
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    numbers = np.stack([127 + 100 * np.sin(x / 9 + band) * np.cos(y / 7) for band in range(bands)])
    numbers[:, :20, :30] = np.nan
    return xr.DataArray(numbers, dims=("band", "y", "x"), coords={"y": 5000.0 - y[:, 0], "x": 300.0 + x[0]})


bundle = geood.ModelBundle.load(sys.argv[1] if len(sys.argv) > 1 else "demo/run/model.safetensors", flow=False)
image = read(bundle.bands.count)
valid = np.isfinite(image.values).all(axis=0)
scaled = bundle.bands.scale(image.values, valid)  # height and width are multiples of 32: pad yours, and cut afterwards
score = bundle.score(torch.from_numpy(scaled)[None], torch.from_numpy(valid)[None])[0].numpy()
scores = xr.DataArray(np.where(valid, score, np.nan), dims=("y", "x"), coords={k: image[k] for k in ("y", "x")})
scores.attrs = {"score": bundle.config.score.kind, "model": bundle.identity, "threshold": bundle.threshold}
print(scores)
print(f"above the threshold: {float((scores > bundle.threshold).mean()):.2%}")
