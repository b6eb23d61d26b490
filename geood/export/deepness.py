"""Keys that tell QGIS's plugin Deepness of a bundle, in the metadata of an ONNX file, and the limits of that plugin.

Deepness (https://github.com/PUTvision/qgis-plugin-deepness) cuts square tiles of one size with an overlap, divides
their bytes by 255 and looks for a share above a threshold. So the file has fixed sizes, the factor of 255 is inside the
graph, and the score becomes a share that is 0.5 at the model's threshold. The plugin knows neither nodata nor classes
beside the score, and cannot resume; `predict` does.
"""

from __future__ import annotations

import json
import math

from geood.errors import ConfigError
from geood.export.graph import BYTE, ByteGraph, ScoreGraph
from geood.models import ModelBundle

LEAST_TILE = 512  # pixels: with smaller ones the plugin spends its time on tiles
HALOS = 4  # of a tile's side, where the config says nothing: half of it is overlap
STRIDE = 32


def byte_graph(bundle: ModelBundle) -> ByteGraph:
    """Return the graph of a bundle that takes bytes divided by 255 and gives a share.

    Raises:
        ConfigError: the plugin cannot run the model, or it has no threshold.
    """
    check_bytes(bundle)
    return ByteGraph(ScoreGraph(bundle), threshold=bundle.threshold, nat=rise_per_nat(bundle))


def check_bytes(bundle: ModelBundle) -> None:
    """Check that Deepness can run a model: bands of 8 bits, and pixels of a known size.

    Raises:
        ConfigError: it cannot.
    """
    bands = bundle.bands
    for name, low, high in zip(bands.names, bands.low, bands.high, strict=True):
        if low < 0 or high > BYTE:
            raise ConfigError(
                f"band {name} ranges from {low:g} to {high:g}, and Deepness hands on bytes, 0 to 255; use --to onnx "
                "with another program, or `geood predict`"
            )
    if bundle.resolution is None:
        raise ConfigError(
            "the model does not know the size of its pixels on the ground, which Deepness asks for; it was trained on "
            "photographs: use --to onnx"
        )


def rise_per_nat(bundle: ModelBundle) -> float:
    """Return by how much the threshold rises where e times fewer inliers are to reach it; 1 if that is not known."""
    rates = sorted((float(rate), threshold) for rate, threshold in bundle.thresholds.items() if float(rate) > 0)
    if len(rates) < 2:
        return 1.0
    (fewest, highest), (most, lowest) = rates[0], rates[-1]
    rise = (highest - lowest) / math.log(most / fewest)
    return rise if rise > 0 else 1.0


def tile_side(bundle: ModelBundle) -> int:
    """Return the side of a tile with its overlap, in pixels: that of predict.tile_px, or four halos."""
    given, halo = bundle.config.predict.tile_px, bundle.halo_px
    side = max(LEAST_TILE, HALOS * halo) if given == "auto" else given + 2 * halo
    return -(-side // STRIDE) * STRIDE


def deepness_metadata(bundle: ModelBundle) -> dict[str, str]:
    """Return the keys that Deepness reads, each as JSON."""
    side, bands = tile_side(bundle), bundle.bands.count
    assert bundle.resolution is not None
    keys = {
        "model_type": "Segmentor",
        "class_names": {"0": "anomaly"},
        "resolution": round(100 * bundle.resolution, 4),
        "tile_size": side,
        "tiles_overlap": math.ceil(200 * bundle.halo_px / side),
        "standardization_mean": [0.0] * bands,
        "standardization_std": [1.0] * bands,
        "seg_thresh": 0.5,
        "seg_small_segment": 0,
    }
    return {key: json.dumps(value) for key, value in keys.items()}
