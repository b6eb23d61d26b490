"""Fixtures that several rooms' tests share: scenes written on the spot, and a small bundle."""

import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geood.bands import Bands
from geood.bundle import ModelBundle
from geood.cog import assemble, encode_tile
from geood.config import Config
from geood.flow import Flow
from geood.grid import tile_grid
from geood.segmenter import Segmenter

UTM = "EPSG:32633"
HALF_METRE = Affine(0.5, 0, 500_000.25, 0, -0.5, 4_649_776.75)


def write_raster(path, array, *, crs=UTM, transform=HALF_METRE, nodata=None, **profile):
    """Write an array (C, H, W) or (H, W) as a GeoTIFF and return its path."""
    array = array[None] if array.ndim == 2 else array
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=array.dtype,
        crs=crs,
        transform=transform,
        nodata=nodata,
        **profile,
    ) as file:
        file.write(array)
    return path


def write_scores(path, grid, array, **tags):
    """A score raster (float32) or class raster (uint8) of an array, put together as `predict` does it."""
    kinds = array.dtype == np.uint8
    pixels = {"nodata": 255.0 if kinds else float("nan"), "overview": "mode" if kinds else "average"}
    journal, places = path.with_name(f"{path.name}.journal"), {}
    with journal.open("wb") as file:
        for number, tile in enumerate(tile_grid(grid.height, grid.width, tile_px=1024, halo_px=0)):
            chunk = encode_tile(np.ascontiguousarray(array[tile.write.slices]), tile_px=1024, **pixels)
            places[number] = file.tell(), len(chunk)
            file.write(chunk)
    assemble(
        path,
        grid,
        journal=journal,
        places=places,
        tile_px=1024,
        dtype=array.dtype.name,
        description="class" if kinds else "anomaly score",
        tags={"GEOOD_MODEL": "abc", **tags},
        statistics={},
        **pixels,
    )
    journal.unlink()
    return path


def picture(height, width, *, bands=3, seed=0, dtype="uint8", high=255):
    """Smooth random digital numbers (bands, height, width), from 1 up."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((bands, height // 8 + 2, width // 8 + 2))
    fine = np.kron(coarse, np.ones((1, 8, 8)))[:, :height, :width] + rng.random((bands, height, width)) * 0.2
    return (1 + fine / 1.2 * (high - 1)).astype(dtype)


def small_config(**sections):
    """A config with tiny networks and lengths; sections override keys."""
    tree = {
        "data": {
            "images": ["*.tif"],
            "labels": ["*.tif"],
            "classes": {0: "land", 1: "road", 2: "roof"},
            "anomaly": [7],
        },
        "segmenter": {"encoder": "resnet10t", "decoder_channels": 16, "outlier": "none"},
        "flow": {"steps": 1, "layers": 1, "growth": 8},
        "negatives": {"patch_max_px": 32},
        "predict": {"tile_px": 64, "halo_px": 32},
    }
    for section, keys in sections.items():
        tree[section] = tree.get(section, {}) | keys
    return Config.model_validate(tree)


def make_bundle(path, *, bands=3, high=255.0, **sections):
    """Save a bundle with seeded random weights, whose scores spread over [0, 1], and return it."""
    config = small_config(**sections)
    torch.manual_seed(0)
    classes = len(config.data.classes)
    segmenter, flow = Segmenter(bands, classes, config.segmenter), Flow(bands, config.flow, (1 / high,) * bands)
    with torch.no_grad():
        segmenter.head[-1].weight.mul_(60)  # strong opinions, so that classes and scores vary from pixel to pixel
    bundle = ModelBundle(
        segmenter=segmenter.eval(),
        flow=flow.eval(),
        inliers=None,
        bands=Bands(
            names=tuple(f"band_{i + 1}" for i in range(bands)),
            indexes=tuple(range(1, bands + 1)),
            low=(0.0,) * bands,
            high=(high,) * bands,
            fill=(0.5,) * bands,
            step=(1 / high,) * bands,
            scene_count=bands,
        ),
        config=config,
        class_ids=tuple(sorted(config.data.classes)),
        resolution=0.5,
        calibration={config.score.kind: {"0.001": 0.9, "0.01": 0.7, "0.05": 0.5}},
        calibrated=config.score,
        metrics={"joint/miou": 0.5},
    )
    return bundle.save(path)


@pytest.fixture
def small_disk(tmp_path, request):
    """A disk of 2 MB, or of the size that the test gives as parameter."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={getattr(request, 'param', '2M')}", "tmpfs", place]
    try:
        mounted = not subprocess.run(command, capture_output=True, check=False).returncode
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs Linux and root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory) -> Path:
    """A bundle for three bands of 8 bit."""
    path = tmp_path_factory.mktemp("bundle") / "model.safetensors"
    make_bundle(path)
    return path


@pytest.fixture(scope="session")
def bundle(bundle_path) -> ModelBundle:
    """The same, loaded."""
    return ModelBundle.load(bundle_path)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory):
    """A function of a data set's name: the root of its miniature, which is not to be changed, and its frames."""
    from miniatures import MINIATURES

    @cache
    def written(name):
        root = tmp_path_factory.mktemp(name)
        return root, MINIATURES[name](root)

    return written
